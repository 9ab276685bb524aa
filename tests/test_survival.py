"""What outlives a head, on recorded real runs with each store: every finding refuted, and left open."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from history_mutations import Mutated, NotHere, rebuilt
from recorded import HISTORIES, flips_exactly, load, recorded, verdicts

from simulator.checkers.anatomy import anatomy
from simulator.checkers.base import RunView, Verdict
from simulator.checkers.index import index_of
from simulator.checkers.registry import run_checks
from simulator.checkers.survival import ITEMS, KEPT, Item, outages_of, survival_of
from simulator.experiment import load_experiment
from simulator.history import History, Op
from simulator.topology import Gcs, load_topology

INVALID, UNKNOWN, VALID = Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID

FOLDER = HISTORIES / "head"


@pytest.fixture(scope="module", params=recorded(FOLDER))
def original(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return load(FOLDER / request.param, tmp_path_factory.mktemp("history"))


def items(view: RunView) -> dict[str, Item]:
    found = survival_of(view)
    assert found is not None
    return {item.name: item for item in found.items}


def changed(view: RunView, change: Callable[[Op], Op | None], **flips: Verdict) -> Mutated:
    """The same run with each operation changed, or as if it had never been written."""
    kept = [new for op in view.history.ops if (new := change(op)) is not None]
    if kept == list(view.history.ops):
        raise NotHere("the history has nothing that this could change")
    return Mutated(rebuilt(view, kept), flips)


def test_every_store_that_a_topology_may_name_has_its_expectations() -> None:
    assert KEPT.keys() == {store.value for store in Gcs}
    assert all(kept <= ITEMS.keys() for kept in KEPT.values())


def test_the_original_is_valid_by_every_check(original: RunView) -> None:
    assert set(verdicts(original).values()) == {VALID}


def test_everything_is_told_with_its_evidence(original: RunView) -> None:
    found = survival_of(original)
    assert found is not None
    assert [item.name for item in found.items] == list(ITEMS)
    for item in found.items:
        assert item.survived is not None
        assert item.how
        assert item.cites
    data = found.to_data()
    assert data["store"] == original.spec["topology"]["gcs"]


def of_item(view: RunView, item: str, **data: Any) -> Callable[[Op], Op]:
    """What was found of an item, changed."""

    def change(op: Op) -> Op:
        if op.kind in ("survey.found", "driver.found") and op.data["item"] == item:
            return replace(op, data={**op.data, **data})
        return op

    return change


def evidence(view: RunView, item: str, kind: str = "found") -> dict[str, Any]:
    for op in view.history.ops:
        if op.kind in (f"survey.{kind}", f"driver.{kind}") and op.data["item"] == item:
            if "evidence" not in op.data:
                raise NotHere(f"{item} was not found")
            return dict(op.data["evidence"])
    raise NotHere(f"nobody looked for {item}")


def an_actor_is_made_anew(view: RunView) -> Mutated:
    now = evidence(view, "detached_actor")
    change = of_item(view, "detached_actor", evidence={**now, "pid": now["pid"] + 1})
    return changed(view, change, outlives_head=INVALID)


def an_actor_forgets_what_it_counted(view: RunView) -> Mutated:
    now = evidence(view, "named_actor")
    change = of_item(view, "named_actor", evidence={**now, "count": 1})
    return changed(view, change, outlives_head=INVALID)


def a_replica_of_serve_is_another_one(view: RunView) -> Mutated:
    now = evidence(view, "serve")
    change = of_item(view, "serve", evidence={**now, "pid": now["pid"] + 1})
    return changed(view, change, outlives_head=INVALID)


def a_worker_has_a_new_id(view: RunView) -> Mutated:
    evidence(view, "detached_actor")  # where something was kept
    now = evidence(view, "worker_nodes")
    change = of_item(view, "worker_nodes", evidence={"nodes": [*now["nodes"][1:], "f" * 56]})
    return changed(view, change, outlives_head=INVALID)


def the_group_is_gone(view: RunView) -> Mutated:
    evidence(view, "placement_group")
    change = of_item(view, "placement_group", found=False, why="its state is REMOVED")
    return changed(view, change, outlives_head=INVALID)


def the_key_has_another_value(view: RunView) -> Mutated:
    evidence(view, "kv")
    change = of_item(view, "kv", evidence={"value": "another"})
    return changed(view, change, outlives_head=INVALID)


def what_should_be_lost_was_kept(view: RunView) -> Mutated:
    change = of_item(view, "task_records", found=True, evidence={"rows": 1})
    return changed(view, change, outlives_head=INVALID)


def it_was_looked_for_in_vain(view: RunView) -> Mutated:
    change = of_item(view, "kv", found=None, error="RpcError", message="UNAVAILABLE")
    return changed(view, change, outlives_head=UNKNOWN)


def nobody_looked(view: RunView) -> Mutated:
    return changed(
        view, lambda op: None if op.kind == "survey.found" else op, outlives_head=UNKNOWN
    )


def the_job_failed(view: RunView) -> Mutated:
    if view.spec["topology"]["gcs"] == "memory":
        raise NotHere("it was lost anyhow")

    def change(op: Op) -> Op:
        if op.kind != "workload.end":
            return op
        return replace(op, data={**op.data, "status": "FAILED", "message": "it was lost"})

    return changed(view, change, outlives_head=INVALID)


def a_running_task_ran_twice(view: RunView) -> Mutated:
    starts = [o for o in view.history.of("task.start") if o.data["key"] == "running-1"]
    if view.history.first("driver.end") is None:
        raise NotHere("it did not come back anyhow")
    (start,) = starts
    end = next(o for o in view.history.of("task.end") if o.data["exec"] == start.data["exec"])
    again = [
        replace(op, wall=op.wall + 1, mono=None, data={**op.data, "exec": "again"})
        for op in (start, end)
    ]

    def with_it() -> list[Op]:
        return [o for op in view.history.ops for o in ([op, *again] if op is end else [op])]

    return Mutated(rebuilt(view, with_it()), {"outlives_head": INVALID})


def a_waiting_task_never_came_back(view: RunView) -> Mutated:
    if view.history.first("driver.end") is None:
        raise NotHere("it did not come back anyhow")

    def change(op: Op) -> Op:
        if op.kind == "driver.result" and op.data["key"] == "queued-1":
            return replace(op, kind="driver.said_nothing")
        return op

    return changed(view, change, outlives_head=INVALID)


def a_task_began_after_the_head_was_gone(view: RunView) -> Mutated:
    """Then it was not one of those that ran when the head died."""
    inject = view.history.first("fault.inject")
    assert inject is not None
    since = view.history.at(inject)

    def change(op: Op) -> Op:
        if op.kind == "task.start" and op.data["key"] == "running-1":
            return replace(op, wall=since + 1, mono=None, received=since + 1)
        return op

    return changed(view, change, outlives_head=UNKNOWN)


def nobody_saw_that_the_fault_took_effect(view: RunView) -> Mutated:
    def change(op: Op) -> Op:
        return replace(op, data={**op.data, "verified": False}) if op.kind == "fault.effect" else op

    # Whatever is there afterwards, nothing was put to the test.
    return changed(view, change, outlives_head=UNKNOWN, fault_hit_work=UNKNOWN, recovers=UNKNOWN)


def the_gcs_did_not_answer_again(view: RunView) -> Mutated:
    return changed(view, lambda op: None if op.kind == "observer.seeing" else op, recovers=UNKNOWN)


@pytest.mark.parametrize(
    "mutate",
    [
        an_actor_is_made_anew,
        an_actor_forgets_what_it_counted,
        a_replica_of_serve_is_another_one,
        a_worker_has_a_new_id,
        the_group_is_gone,
        the_key_has_another_value,
        what_should_be_lost_was_kept,
        it_was_looked_for_in_vain,
        nobody_looked,
        the_job_failed,
        a_running_task_ran_twice,
        a_waiting_task_never_came_back,
        a_task_began_after_the_head_was_gone,
        nobody_saw_that_the_fault_took_effect,
        the_gcs_did_not_answer_again,
    ],
)
def test_a_mutation_flips_exactly_the_checks_that_it_should(
    original: RunView, mutate: Callable[[RunView], Mutated]
) -> None:
    flips_exactly(original, mutate)


def test_a_run_without_anything_made_has_nothing_to_outlive_it(tmp_path: Path) -> None:
    view = load(HISTORIES / "docker-node-failure", tmp_path)
    asked = RunView(view.history, {**view.spec, "checks": ["outlives_head", "work_goes_on"]})
    load_experiment("redis_blip")
    assert verdicts(asked) == {"outlives_head": UNKNOWN, "work_goes_on": UNKNOWN}


# ---- a client


@pytest.fixture
def kept(tmp_path: Path) -> RunView:
    return load(FOLDER / "docker-rocksdb", tmp_path)


def test_what_needs_the_gcs_waits_and_the_rest_does_not(kept: RunView) -> None:
    found = outages_of(index_of(kept))
    assert {o.what for o in found} == {"new_actor", "name_lookup", "kv"}
    assert all(o.end is not None and o.end > o.begin for o in found)


def test_the_phases_tell_when_the_gcs_and_when_a_client_had_it_back(kept: RunView) -> None:
    seconds = {p.name: p.seconds for p in anatomy(kept).phases}
    for first, second in (
        ("effect", "gcs_answers"),
        ("gcs_answers", "first_call"),
        ("first_call", "all_answer"),
    ):
        before, after = seconds[first], seconds[second]
        assert before is not None
        assert after is not None
        assert before < after


def held_up(view: RunView, what: str, seconds: float) -> RunView:
    """The same run in which another call came back late."""
    first = next(op for op in view.history.of("driver.probe") if op.data["what"] == what)
    late = replace(
        view.history.of("driver.probe")[-1],
        data={**first.data, "ok": True, "failures": 0},
    )
    late = replace(late, data={**late.data, "last_ok": late.wall - seconds})
    return rebuilt(view, [*view.history.ops[:-1], late, view.history.ops[-1]])


def test_work_goes_on_unless_what_needs_no_gcs_waits(kept: RunView) -> None:
    load_experiment("redis_blip")

    def judged(view: RunView) -> Verdict:
        (found,) = run_checks(RunView(view.history, {**view.spec, "checks": ["work_goes_on"]}))
        return found.verdict

    assert judged(kept) is VALID
    assert judged(held_up(kept, "actor_call", 4.0)) is VALID
    assert judged(held_up(kept, "actor_call", 6.0)) is INVALID
    calm = [
        op for op in kept.history.ops if op.kind != "driver.probe" or op.data.get("last_ok") is None
    ]
    assert judged(RunView(History(calm), kept.spec)) is UNKNOWN


# ---- the experiments


@pytest.mark.parametrize("name", ["head_failure", "redis_blip"])
def test_a_topology_that_cannot_show_it_is_refused(name: str) -> None:
    experiment = load_experiment(name)
    params = experiment.parse_params([])
    assert experiment.problems(params, load_topology(experiment.topology)) == []
    told = " ".join(map(str, experiment.problems(params, load_topology("default"))))
    assert "fewer than three CPUs" in told
    assert ("driver_node=true" if name == "head_failure" else "gcs=redis") in told
    alone = load_topology(experiment.topology).with_workers(1)
    assert "two are needed" in str(experiment.problems(params, alone)[0])
