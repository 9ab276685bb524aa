"""Where tasks ran and within what limits: what the check proves, what it finds, and when it says unknown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.placement import check_placed_right, placed_of
from simulator.checkers.registry import OF_ONE_WORKLOAD, run_checks
from simulator.history import History, Op

SPOT = {"market": "spot"}

#: Two nodes: one has GPUs, the other a disk and another label.
NODES: dict[str, dict[str, Any]] = {
    "g": {"resources": {"CPU": 2, "GPU": 1}, "labels": SPOT},
    "d": {"resources": {"CPU": 2, "disk": 1}, "labels": {"market": "fixed"}},
}

KINDS: dict[str, dict[str, Any]] = {
    "gpu": {"resources": {"CPU": 1, "GPU": 1}},
    "half": {"resources": {"CPU": 0.5, "GPU": 0.5}},
    "cpu": {"resources": {"CPU": 1}},
    "disk": {"resources": {"CPU": 1, "disk": 1}},
    "label": {"resources": {"CPU": 1}, "labels": SPOT},
}


@dataclass
class Ran:
    """One execution: kind, node, from when to when (None: no END)."""

    kind: str
    node: str
    start: float
    end: float | None
    gpus: Sequence[str] | None = None
    data: Mapping[str, Any] = field(default_factory=dict)


#: Every kind ran, every limit was reached, nothing was wrong.
GOOD = (
    Ran("gpu", "g", 0, 1, ["0"]),
    Ran("cpu", "g", 0, 1),
    Ran("half", "g", 1, 2, ["0"]),
    Ran("half", "g", 1.5, 2.5, ["0"]),
    Ran("label", "g", 1, 2),
    Ran("disk", "d", 0, 1),
    Ran("cpu", "d", 0.5, 1.5),
)


def view(
    ran: Iterable[Ran] = GOOD,
    *,
    nodes: Mapping[str, Any] | None = None,
    kinds: Mapping[str, Any] | None = None,
    more: Iterable[tuple[float, str, str | None, dict[str, Any]]] = (),
    lost_lines: int = 0,
) -> RunView:
    rows: list[tuple[float, str, str, str | None, dict[str, Any]]] = []
    nodes = NODES if nodes is None else nodes
    listed = [{"name": n, "role": "worker", "hostname": n, **offer} for n, offer in nodes.items()]
    rows.append((-1.0, "cluster.nodes", "orchestrator", None, {"nodes": listed}))
    kinds = KINDS if kinds is None else kinds
    counts: dict[str, int] = {}
    for number, r in enumerate(ran):
        counts[r.kind] = counts.get(r.kind, 0) + 1
        gpus = r.gpus if r.gpus is not None or "GPU" in kinds[r.kind]["resources"] else []
        facts = {"key": f"{r.kind}-{counts[r.kind]}", "exec": f"{number:016x}"}
        needs = kinds[r.kind]["resources"]
        start = {**facts, "fn": "square_sum", "nominal_s": 1.0, "gpu_ids": gpus, "demand": needs}
        start |= r.data
        rows.append((r.start, "task.start", "ledger", r.node, start))
        if r.end is not None:
            rows.append((r.end, "task.end", "ledger", r.node, {**facts, "ok": True}))
    rows += [(when, kind, "orchestrator", node, data) for when, kind, node, data in more]
    rows.sort(key=lambda row: row[0])
    end = {"files": {"x.jsonl": lost_lines} if lost_lines else {}}
    rows.append((1e6, "observer.end", "observer", None, end))
    ops = [
        Op(i, kind, source, 1000.0 + when, 5.0 + when, 1000.0 + when, node, data)
        for i, (when, kind, source, node, data) in enumerate(rows)
    ]
    described = [
        {"name": n, "count": counts.get(n, 1), "labels": {}, "omits": [], **k}
        for n, k in kinds.items()
    ]
    return RunView(History(ops), {"workload": {"name": "placement", "kinds": described}})


def judged(*ran: Ran, **how: Any) -> Finding:
    return check_placed_right(view([*GOOD, *ran], **how))


def without(kind: str) -> list[Ran]:
    return [r for r in GOOD if r.kind != kind]


# -- valid -------------------------------------------------------------------------------------------


def test_everything_in_its_place_is_valid_and_says_what_was_in_use() -> None:
    found = judged()
    assert found.verdict is Verdict.VALID, found.summary
    assert "all 7 executions of 5 kinds" in found.summary
    assert found.metrics["ran"]["cpu"] == {"g": 1, "d": 1}
    assert found.metrics["peak_of_capacity"]["g GPU"] == "1/1"
    assert found.cites
    assert any(line.startswith("g: 2 of 2 CPU") for line in found.details)


def test_what_begins_the_moment_that_another_ends_does_not_overlap_it() -> None:
    assert judged(Ran("disk", "d", 5, 6), Ran("disk", "d", 6, 7)).verdict is Verdict.VALID


def test_a_wall_clock_that_is_set_back_makes_no_overlap() -> None:
    run = view([*GOOD, Ran("disk", "d", 5, 6), Ran("disk", "d", 6, 7)])
    ops = [
        Op(op.index, op.kind, op.source, op.wall - 0.5, op.mono, op.received, op.node, op.data)
        if op.mono == 11.0 and op.kind == "task.start"
        else op
        for op in run.history
    ]
    assert check_placed_right(RunView(History(ops), run.spec)).verdict is Verdict.VALID


def test_what_a_fault_cut_off_held_it_until_its_node_went_down() -> None:
    down = (6.0, "fault.inject", "d", {"id": "f1", "fault": "kill"})
    cut = Ran("disk", "d", 5, None)
    assert judged(cut, Ran("disk", "d", 20, 21), more=[down]).verdict is Verdict.VALID
    early = judged(cut, Ran("disk", "d", 5.5, 5.8), more=[down])
    assert early.verdict is Verdict.INVALID
    assert "2 disk of 1 in use at once on d, by disk-2 and disk-3" in early.summary


# -- invalid -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("ran", "said"),
    [
        (Ran("gpu", "d", 9, 10, ["0"]), "gpu-2 ran on d: it needs 1 GPU and d offers 0"),
        (Ran("disk", "g", 9, 10), "disk-2 ran on g: it needs 1 disk and g offers 0"),
        (
            Ran("label", "d", 9, 10),
            "label-2 ran on d: it needs a node with market=spot and d has market=fixed",
        ),
        (Ran("gpu", "g", 9, 10, []), "gpu-2 on g: it needs 1 GPU and was not given any"),
        (Ran("gpu", "g", 9, 10, ["0", "1"]), "it needs 1 GPU and was given GPU 0 and 1"),
        (Ran("gpu", "g", 0.5, 0.6, ["0"]), "2 GPU of 1 in use at once on g, by gpu-1"),
        (Ran("half", "g", 0.5, 0.6, ["0"]), "1.5 GPU of 1 in use at once on g, by gpu-1"),
        (Ran("cpu", "d", 0.6, 0.7), "3 CPU of 2 in use at once on d, by disk-1"),
        (Ran("gpu", "g", 9, 10, ["7"]), "g offers 1 GPU and gave out GPU 0 and 7"),
    ],
)
def test_it_names_the_task_and_the_node_and_cites_both(ran: Ran, said: str) -> None:
    found = judged(ran)
    assert found.verdict is Verdict.INVALID
    assert any(said in text for text in found.details), found.details
    assert found.cites


def test_a_node_without_the_label_is_told_from_one_with_another_value() -> None:
    nodes = {**NODES, "d": {**NODES["d"], "labels": {}}}
    found = judged(Ran("label", "d", 9, 10), nodes=nodes)
    assert "needs a node with market=spot and d has no label market" in found.summary


def test_one_gpu_given_twice_is_found_though_the_node_has_another_that_is_free() -> None:
    nodes = {**NODES, "g": {"resources": {"CPU": 4, "GPU": 2}, "labels": SPOT}}
    twice = [Ran("gpu", "g", 9, 10, ["0"]), Ran("gpu", "g", 9.5, 10.5, ["0"])]
    found = judged(*twice, Ran("cpu", "g", 9.5, 10), Ran("cpu", "g", 9.5, 10), nodes=nodes)
    assert found.verdict is Verdict.INVALID
    assert "2 of GPU 0 in use at once on g, by gpu-2 and gpu-3" in found.summary


def test_gpus_that_cannot_be_told_apart_are_judged_by_their_sum() -> None:
    nodes = {**NODES, "g": {"resources": {"CPU": 2, "GPU": 2}, "labels": SPOT}}
    ran = [r if r.gpus is None else Ran(r.kind, r.node, r.start, r.end, ["-1"]) for r in GOOD]
    pair = [Ran("gpu", "g", 9, 10, ["-1"]), Ran("gpu", "g", 9, 10, ["-1"])]
    halves = [Ran("half", "g", 12 + i / 10, 13, ["-1"]) for i in range(4)]
    assert check_placed_right(view([*ran, *pair, *halves], nodes=nodes)).verdict is Verdict.VALID
    three = [*pair, Ran("half", "g", 9.5, 9.6, ["-1"])]
    assert check_placed_right(view([*ran, *three], nodes=nodes)).verdict is Verdict.INVALID


def test_several_gpus_of_one_name_are_one_name_and_that_is_enough() -> None:
    """Ray returns the set of the names: two devices that are both called -1 are one."""
    nodes = {**NODES, "g": {"resources": {"CPU": 2, "GPU": 2}, "labels": SPOT}}
    kinds = {**KINDS, "two": {"resources": {"CPU": 1, "GPU": 2}}}
    ran = [r if r.gpus is None else replace(r, gpus=["-1"]) for r in GOOD]

    def given(*gpus: str) -> Verdict:
        two = Ran("two", "g", 9, 10, list(gpus))
        halves = [Ran("half", "g", 12 + i / 10, 13, ["-1"]) for i in range(4)]
        return check_placed_right(view([*ran, *halves, two], nodes=nodes, kinds=kinds)).verdict

    assert given("-1") is given("-1", "-1") is Verdict.VALID
    assert given("-1", "0") is given() is given("-1", "-1", "-1") is Verdict.INVALID


@pytest.mark.parametrize("gpus", [["-1"], ["-1", "0", "1"], ["0", "0"]])
def test_a_gpu_of_any_name_is_too_many_for_a_task_that_needs_none(gpus: list[str]) -> None:
    found = judged(Ran("label", "g", 9, 10, gpus))
    assert found.verdict is Verdict.INVALID
    assert f"label-2 on g: it needs 0 GPU and was given GPU {gpus[0]}" in found.summary


@pytest.mark.parametrize("asked", [{"CPU": 0.5}, {"CPU": 0.5, "GPU": 1}, {"GPU": 0.5, "disk": 0}])
def test_a_task_that_ray_was_asked_to_place_by_other_needs_is_wrong(
    asked: dict[str, float],
) -> None:
    found = judged(Ran("half", "g", 9, 10, ["0"], {"demand": asked}))
    assert found.verdict is Verdict.INVALID
    assert "half-3 on g: it was submitted asking for {" in found.summary
    assert found.summary.endswith("and needs {CPU: 0.5, GPU: 0.5}")


def test_no_cpu_is_the_same_as_none_mentioned_and_fractions_need_not_be_exact() -> None:
    kinds = {**KINDS, "free": {"resources": {"CPU": 0, "disk": 1}}}
    exact = Ran("free", "d", 9, 10, data={"demand": {"disk": 1.0}})
    near = Ran("half", "g", 9, 10, ["0"], {"demand": {"CPU": 0.5000000001, "GPU": 0.5}})
    assert judged(exact, near, kinds=kinds).verdict is Verdict.VALID
    stated = replace(exact, data={"demand": {"CPU": 0.0, "disk": 1.0}})
    assert judged(stated, near, kinds=kinds).verdict is Verdict.VALID


def test_whether_a_task_was_given_a_gpu_matters_only_where_there_is_one() -> None:
    unrecorded = {"gpu_ids": None}
    found = judged(Ran("label", "g", 9, 10, data=unrecorded))
    assert found.verdict is Verdict.UNKNOWN
    assert "nobody recorded which GPU label-2 was given" in found.summary
    assert judged(Ran("disk", "d", 9, 10, data=unrecorded)).verdict is Verdict.VALID


def test_what_is_proven_wrong_stays_invalid_when_lines_are_missing() -> None:
    found = judged(Ran("disk", "g", 9, 10), lost_lines=3)
    assert found.verdict is Verdict.INVALID


# -- unknown -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_that_never_ran_is_unknown(kind: str) -> None:
    found = check_placed_right(view(without(kind)))
    assert found.verdict is Verdict.UNKNOWN
    assert f"no {kind} task ever ran" in found.details


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (view(lost_lines=3), "x.jsonl"),
        (view(nodes={}), "nobody recorded what the nodes offer"),
        (view([*GOOD, Ran("cpu", "d", 8, None)]), "cpu-3 on d has no END"),
        (view([*GOOD, Ran("cpu", "moon", 8, 9)]), "cpu-3 ran on moon"),
        (view([*GOOD, Ran("cpu", "d", 9, 8)]), "cpu-3 on d ended before it began"),
        (
            view([*GOOD, Ran("cpu", "d", 8, 9, data={"demand": {}})]),
            "nobody recorded what Ray was asked for by cpu-3",
        ),
        (
            view(kinds={**KINDS, "cpu": {**KINDS["cpu"], "count": 7}}),
            "5 of 7 cpu tasks never ran: cpu-3, cpu-4 and cpu-5 ...",
        ),
        (
            view(kinds={**KINDS, "cpu": {**KINDS["cpu"], "count": 1}}),
            "cpu-2 ran on d: what it needs, or what is there, is not known",
        ),
        (view([*GOOD, Ran("gpu", "g", 8, 9)]), "nobody recorded which GPU gpu-2 was given"),
        (
            view([r for r in GOOD if (r.kind, r.start) != ("half", 1.5)]),
            "no two half tasks were ever on one GPU at once",
        ),
        (
            view(nodes={**NODES, "d": {"resources": {"CPU": 2, "disk": 5}, "labels": {}}}),
            "no node ever had all of its disk in use: at most 1 of 5, on d",
        ),
        (
            view(nodes={n: {**offer, "labels": SPOT} for n, offer in NODES.items()}),
            "label tasks could have run nowhere else",
        ),
        (
            view(nodes={n: {"resources": o["resources"]} for n, o in NODES.items()}),
            "nobody recorded the nodes' labels",
        ),
    ],
)
def test_what_was_not_seen_or_not_tested_is_unknown_and_says_so(made: RunView, said: str) -> None:
    found = check_placed_right(made)
    assert found.verdict is Verdict.UNKNOWN
    assert said in " ".join([found.summary, *found.details])


def test_a_run_of_another_workload_has_nothing_to_judge() -> None:
    run = RunView(view().history, {"workload": {"name": "task_stream", "tasks": 3}})
    assert check_placed_right(run).verdict is Verdict.UNKNOWN
    assert placed_of(run) is None
    assert not {f.check for f in run_checks(RunView(History(), {}))} & OF_ONE_WORKLOAD


# -- any placement -----------------------------------------------------------------------------------


@st.composite
def placements(draw: st.DrawFn) -> list[Ran]:
    """Tasks that begin as soon as what they need is free, in an order and with lengths that are drawn."""
    free = {node: dict(offer["resources"]) for node, offer in NODES.items()}
    running: list[tuple[float, Ran]] = []
    done: list[Ran] = []
    now = 100.0
    for kind, length in draw(
        st.lists(st.tuples(st.sampled_from(sorted(KINDS)), st.integers(1, 9)), max_size=40)
    ):
        needs = KINDS[kind]["resources"]
        while True:
            able = [
                n for n, has in free.items() if all(has.get(r, 0) >= a for r, a in needs.items())
                and (kind != "label" or n == "g")
            ]  # fmt: skip
            if able:
                break
            running.sort(key=lambda pair: pair[0])
            now, over = running.pop(0)
            for r, a in KINDS[over.kind]["resources"].items():
                free[over.node][r] += a
        node = draw(st.sampled_from(able))
        for r, a in needs.items():
            free[node][r] -= a
        ran = Ran(kind, node, now, now + length, ["0"] if "GPU" in needs else None)
        running.append((now + length, ran))
        done.append(ran)
    return done


@given(placements())
def test_no_placement_within_the_limits_is_called_wrong(ran: list[Ran]) -> None:
    found = judged(*ran)
    assert found.verdict is Verdict.VALID, found.details


@given(placements(), st.data())
def test_any_overlap_that_is_planted_is_found(ran: list[Ran], data: st.DataObject) -> None:
    """Another task for something that exists once, while somebody has it."""
    holders = [r for r in [*GOOD, *ran] if r.kind in ("gpu", "disk")]
    holder = data.draw(st.sampled_from(holders))
    assert holder.end is not None
    part = data.draw(st.floats(0, 0.9))
    start = holder.start + part * (holder.end - holder.start)
    extra = Ran(
        holder.kind, holder.node, start, start + data.draw(st.floats(0.01, 20)), holder.gpus
    )
    found = judged(*ran, extra)
    assert found.verdict is Verdict.INVALID
    assert any(f"in use at once on {holder.node}" in text for text in found.details)


@given(placements(), st.data())
def test_any_task_that_is_moved_to_where_it_may_not_run_is_found(
    ran: list[Ran], data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(GOOD) - 1).filter(lambda i: GOOD[i].kind != "cpu"))
    moved = Ran(
        GOOD[at].kind,
        "d" if GOOD[at].node == "g" else "g",
        GOOD[at].start,
        GOOD[at].end,
        GOOD[at].gpus,
    )
    found = check_placed_right(view([*GOOD[:at], moved, *GOOD[at + 1 :], *ran]))
    assert found.verdict is Verdict.INVALID
    assert any(f"ran on {moved.node}: it needs" in text for text in found.details)
