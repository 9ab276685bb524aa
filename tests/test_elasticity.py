"""A cluster that grows and shrinks: what each check proves, what it finds, and when it says unknown."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
from history_mutations import Mutated, NotHere
from recorded import HISTORIES, flips_exactly, load, recorded, verdicts

from simulator.checkers.anatomy import anatomy
from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.elasticity import capacity
from simulator.checkers.growth import GROWTH
from simulator.checkers.registry import CHECKERS, OF_GROWTH
from simulator.history import History, Op
from simulator.topology import load_topology

VALID, UNKNOWN, INVALID = Verdict.VALID, Verdict.UNKNOWN, Verdict.INVALID

ELASTIC = load_topology("elastic").model_dump(mode="json")
CPU, GPU = {"needs": {"CPU": 1.0}}, {"needs": {"CPU": 1.0, "GPU": 1.0}}


@dataclass
class Story:
    """A run: work for two nodes comes at 0 s, they come, do it, are idle from 12 s on and leave at 33 s."""

    rows: list[tuple[float, str, str, str | None, dict[str, Any]]] = field(default_factory=list)
    spec: dict[str, Any] = field(default_factory=lambda: {"topology": ELASTIC})
    execs: int = 0

    def __post_init__(self) -> None:
        self.add(-2, "observer.start", "observer", poll_s=0.1)
        self.add(0, "driver.start", "driver", tasks=4)
        self.add(0, "driver.wave", "driver", wave=1)
        for n in range(4):
            self.add(
                0, "driver.submit", "driver", key=f"t{n}", fn="square_sum", args=[1, 1], wave=1
            )
        self.state(1, demand=[{**CPU, "count": 4}])
        self.add(
            1, "cloud.asked", "cloud", group="cpu", count=2, request="r", nodes=["cpu-1", "cpu-2"]
        )
        for name in ("cpu-1", "cpu-2"):
            self.machine(name, 3, 6)
        for n in range(4):
            self.task(f"t{n}", f"cpu-{n % 2 + 1}", 8 + 2 * (n // 2), 10 + 2 * (n // 2))
        self.add(12.1, "driver.wave_over", "driver", wave=1)
        self.leave("cpu-1", 33)
        self.leave("cpu-2", 33)
        self.add(60, "run.phase", phase="heal")
        self.add(60.5, "observer.end", "observer", files={})
        self.add(61, "run.end", status="completed")

    def add(
        self,
        when: float,
        kind: str,
        source: str = "orchestrator",
        node: str | None = None,
        **data: Any,
    ) -> None:
        self.rows.append((when, kind, source, node, data))

    def state(self, when: float, **state: Any) -> None:
        self.add(when, "autoscaler.state", "autoscaler", **{"nodes": [], **state})

    def machine(self, name: str, started: float, alive: float) -> None:
        self.add(started, "engine.start", "engine", node=name)
        self.add(alive, "ray.node", "observer", node=name, ray_node_id=f"id-{name}", state="ALIVE")

    def task(self, key: str, node: str, start: float, end: float | None) -> None:
        self.execs += 1
        exec_ = f"e{self.execs}"
        self.add(start, "task.start", "ledger", node=node, exec=exec_, key=key, nominal_s=2.0)
        if end is not None:
            self.add(end, "task.end", "ledger", node=node, exec=exec_, key=key, ok=True)
            self.add(end + 0.1, "driver.result", "driver", key=key, value=1)

    def leave(self, name: str, when: float, code: int = 12) -> None:
        self.add(when, "engine.die", "engine", node=name, exit_code=code)

    def without(self, kind: str, **data: Any) -> Story:
        """The same without the rows of a kind, or without those of them that say this."""
        self.rows = [
            row
            for row in self.rows
            if row[1] != kind
            or any({"node": row[3], **row[4]}.get(k) != v for k, v in data.items())
        ]
        return self

    def view(self) -> RunView:
        ops = [
            Op(i, kind, source, 1000 + when, None, 1000 + when, node, data)
            for i, (when, kind, source, node, data) in enumerate(
                sorted(self.rows, key=lambda r: r[0])
            )
        ]
        return RunView(History(ops), self.spec)


def judged(story: Story, check: str) -> Finding:
    return CHECKERS[check](story.view())


ALL = (
    "demand_met",
    "launches_asked",
    "idle_leave",
    "lost_replaced",
    "refusals_overcome",
    "groups_right",
)


@pytest.mark.parametrize("check", ALL)
def test_where_ray_decides_nothing_there_is_nothing_to_judge(check: str) -> None:
    finding = judged(Story(spec={"topology": {}}), check)
    assert finding.verdict is UNKNOWN
    assert "leaves nothing to Ray's autoscaler" in finding.summary


@pytest.mark.parametrize(
    ("check", "summary"),
    [
        ("demand_met", "1 wave done, with 2 nodes that were launched for it"),
        ("launches_asked", "2 machines started"),
        ("idle_leave", "2 nodes left after 20 s without work, 1.0 to 1.0 s late"),
    ],
)
def test_a_run_in_which_all_is_well_is_valid(check: str, summary: str) -> None:
    finding = judged(Story(), check)
    assert finding.verdict is VALID, finding
    assert summary in finding.summary
    assert finding.cites


def test_growth_is_told_from_the_first_wave_on() -> None:
    found = anatomy(Story().view())
    expected = {
        "demand_seen": 1, "launch_asked": 1, "machine_up": 3, "node_alive": 6, "first_task": 8,
        "demand_met": 12.1, "first_gone": 33, "least_left": 33,
    }  # fmt: skip
    assert {p.name: p.seconds for p in found.phases} == pytest.approx(expected)
    assert set(found.recovery) <= {f"{name}_s" for name in GROWTH}


def test_a_phase_that_did_not_happen_is_not_seen_and_says_why() -> None:
    story = Story().without("engine.die", node="cpu-2").without("driver.wave_over")
    found = {p.name: p for p in anatomy(story.view()).phases}
    assert found["demand_met"].seconds is None
    assert found["demand_met"].note == "not seen: wave 1 never ended"
    assert found["least_left"].note == "not seen: in the end 1 of cpu were there"
    assert found["first_gone"].seconds == 33


# -- demand_met


def test_a_wave_that_was_never_done_refutes() -> None:
    story = Story().without("driver.wave_over").without("driver.result", key="t3")
    story.state(50, infeasible=[CPU])
    finding = judged(story, "demand_met")
    assert finding.verdict is INVALID
    assert finding.summary == "wave 1: 3 of 4 tasks came back"
    assert finding.details[0] == "never came back: t3"
    assert "infeasible" in finding.details[1]


def test_work_that_was_done_by_nodes_that_were_there_before_proves_nothing() -> None:
    story = Story().without("cloud.asked")
    story.add(
        -1, "cloud.asked", "cloud", group="cpu", count=2, request="r", nodes=["cpu-1", "cpu-2"]
    )
    assert judged(story, "demand_met").verdict is UNKNOWN


def test_without_waves_there_was_no_demand() -> None:
    assert judged(Story().without("driver.wave"), "demand_met").verdict is UNKNOWN


# -- launches_asked


def test_a_machine_that_nobody_asked_for_refutes() -> None:
    story = Story()
    story.machine("cpu-3", 7, 9)
    finding = judged(story, "launches_asked")
    assert (finding.verdict, finding.summary) == (
        INVALID,
        "cpu-3 was started, and nobody had asked for it",
    )


def test_a_machine_that_is_started_twice_refutes() -> None:
    story = Story()
    story.add(9, "engine.start", "engine", node="cpu-1")
    assert judged(story, "launches_asked").summary == "cpu-1 was started 2 times"


def test_a_request_that_is_not_of_rays_autoscaler_refutes() -> None:
    story = Story().without("cloud.asked")
    story.add(1, "cloud.asked", "cloud", group="cpu", count=2, request="", nodes=["cpu-1", "cpu-2"])
    assert "without a request of Ray's autoscaler" in judged(story, "launches_asked").summary


@pytest.mark.parametrize(
    ("group", "limit"), [("gpu", "of gpu, which may have 2"), ("cpu", "of cpu, which may have 4")]
)
def test_more_than_a_group_may_have_refutes(group: str, limit: str) -> None:
    story = Story()
    names = [f"{group}-{n}" for n in range(10, 15)]
    story.add(5, "cloud.asked", "cloud", group=group, count=5, request="r", nodes=names)
    for name in names:
        story.machine(name, 6, 9)
    finding = judged(story, "launches_asked")
    assert finding.verdict is INVALID
    assert limit in finding.summary


def test_more_than_all_groups_may_have_together_refutes() -> None:
    story = Story()
    for group in ("cpu", "gpu"):
        names = [f"{group}-{n}" for n in (8, 9)]
        story.add(5, "cloud.asked", "cloud", group=group, count=2, request="r", nodes=names)
        for name in names:
            story.machine(name, 6, 9)
    finding = judged(story, "launches_asked")
    assert finding.verdict is INVALID
    assert "number 6 of all, of 5 at most" in finding.summary


def test_a_machine_on_which_nothing_ran_is_a_surplus_and_no_mistake() -> None:
    story = Story()
    story.add(5, "cloud.asked", "cloud", group="cpu", count=1, request="r", nodes=["cpu-3"])
    story.machine("cpu-3", 6, 9)
    finding = judged(story, "launches_asked")
    assert (finding.verdict, finding.metrics["surplus"]) == (VALID, 1)


def test_without_machines_there_is_no_launch_to_judge() -> None:
    assert judged(Story().without("engine.start"), "launches_asked").verdict is UNKNOWN


# -- idle_leave


def test_by_rays_own_count_a_node_may_be_idle_for_less_long() -> None:
    """A raylet's count begins anew when other nodes leave: then one goes late, and Ray sees nothing amiss."""
    story = Story().without("engine.die", node="cpu-2")
    story.leave("cpu-2", 53)
    for name, when in (("cpu-1", 32.9), ("cpu-2", 52.9)):
        story.add(
            when, "ray.node", "observer", node=name, ray_node_id=f"id-{name}", state="DEAD",
            message="Termination of node that's idle for 20.64 seconds.",
        )  # fmt: skip
    finding = judged(story, "idle_leave")
    assert finding.verdict is VALID
    assert "1.0 to 21.0 s late (by Ray's own count 0.6 to 0.6 s)" in finding.summary
    assert finding.metrics["late_by_ray_s"] == [0.64, 0.64]


def test_a_node_that_leaves_while_it_works_refutes() -> None:
    story = Story()
    story.task("t9", "cpu-1", 30, 40)
    finding = judged(story, "idle_leave")
    assert (finding.verdict, finding.summary) == (INVALID, "cpu-1 went while t9 ran on it")


def test_a_node_that_leaves_too_soon_refutes() -> None:
    story = Story().without("engine.die", node="cpu-1")
    story.leave("cpu-1", 22)
    assert judged(story, "idle_leave").summary == "cpu-1 left after 10.0 s without work"


def test_of_a_node_that_never_had_work_ray_counts_from_its_own_start() -> None:
    story = Story()
    story.machine("cpu-3", 3, 9)  # the GCS has it late
    story.leave("cpu-3", 24)
    assert judged(story, "idle_leave").verdict is VALID
    soon = Story()
    soon.machine("cpu-3", 3, 9)
    soon.leave("cpu-3", 19)
    assert judged(soon, "idle_leave").summary == "cpu-3 left after 10.0 s without work"


def test_a_node_that_stays_for_ever_refutes() -> None:
    story = Story().without("engine.die", node="cpu-1").without("run.phase")
    story.add(90, "run.phase", phase="heal")
    finding = judged(story, "idle_leave")
    assert (finding.verdict, finding.summary) == (
        INVALID,
        "cpu-1 was idle for 78 s and is still there",
    )


def test_one_that_was_watched_for_too_short_a_time_proves_nothing() -> None:
    story = Story().without("engine.die").without("run.phase")
    story.add(20, "run.phase", phase="heal")
    assert judged(story, "idle_leave").verdict is UNKNOWN


def test_one_that_was_killed_did_not_leave() -> None:
    story = Story().without("engine.die")
    story.leave("cpu-1", 20, code=137)
    assert judged(story, "idle_leave").verdict is UNKNOWN


# -- lost_replaced


def lost(*, replaced: bool, waiting: bool = True) -> Story:
    story = Story().without("engine.die")
    facts = {"id": "f1", "fault": "kill"}
    when = 9.0 if waiting else 20.0
    story.add(when, "fault.inject", node="cpu-1", **facts)
    story.leave("cpu-1", when + 0.1, code=137)
    story.add(
        when + 0.1, "fault.effect", "engine", node="cpu-1", verified=True, how="dead", **facts
    )
    if replaced:
        story.add(10, "cloud.asked", "cloud", group="cpu", count=1, request="r", nodes=["cpu-3"])
        story.machine("cpu-3", 10.5, 11.5)
    return story


def test_what_is_lost_and_replaced_is_valid_and_growth_counts_from_the_fault() -> None:
    finding = judged(lost(replaced=True), "lost_replaced")
    assert finding.verdict is VALID
    assert finding.metrics["replaced_s"] == [2.4]
    phases = {p.name: p.seconds for p in anatomy(lost(replaced=True).view()).phases}
    assert phases["effect"] == pytest.approx(0.1)
    assert phases["launch_asked"] == 1
    assert phases["declared_dead"] is None


def test_what_is_lost_in_the_middle_of_a_wave_and_never_replaced_refutes() -> None:
    finding = judged(lost(replaced=False), "lost_replaced")
    assert (finding.verdict, finding.summary) == (
        INVALID,
        "cpu-1 went in wave 1, and none came in its place",
    )


def test_what_is_lost_when_nothing_waits_needs_no_other() -> None:
    assert judged(lost(replaced=False, waiting=False), "lost_replaced").verdict is UNKNOWN
    assert judged(Story(), "lost_replaced").verdict is UNKNOWN


# -- refusals_overcome


def refused(story: Story, when: float) -> Story:
    story.add(when, "cloud.asked", "cloud", group="cpu", count=2, request="r", refused="sold out")
    return story


def test_refusals_that_end_are_overcome() -> None:
    finding = judged(refused(Story(), 0.5), "refusals_overcome")
    assert finding.verdict is VALID
    assert finding.metrics == {"refused": 1, "asked_again_s": 0.5}


def test_refusals_and_a_wave_that_is_never_done_refute() -> None:
    story = refused(Story(), 0.5).without("driver.wave_over").without("driver.result", key="t3")
    assert judged(story, "refusals_overcome").verdict is INVALID


def test_without_a_refusal_nothing_was_overcome() -> None:
    assert judged(Story(), "refusals_overcome").verdict is UNKNOWN
    assert judged(refused(Story(), 40), "refusals_overcome").verdict is UNKNOWN


# -- groups_right


def with_gpu(when: float, **state: Any) -> Story:
    story = Story()
    story.state(when - 0.2, **state)
    story.add(when, "cloud.asked", "cloud", group="gpu", count=1, request="r", nodes=["gpu-1"])
    return story


def test_a_gpu_machine_for_gpu_work_is_right() -> None:
    finding = judged(with_gpu(20, demand=[{**GPU, "count": 1}]), "groups_right")
    assert (finding.verdict, finding.metrics) == (VALID, {"launches": 1, "at_limit": 0})


def test_a_gpu_machine_for_cpu_work_refutes_while_there_is_room() -> None:
    finding = judged(with_gpu(20, demand=[{**CPU, "count": 9}]), "groups_right")
    assert finding.verdict is INVALID
    assert "nothing waited for GPU, and cpu had room" in finding.summary


def test_a_gpu_machine_for_cpu_work_is_right_where_the_others_are_at_their_limit() -> None:
    story = with_gpu(20, demand=[{**CPU, "count": 9}])
    story.add(
        5, "cloud.asked", "cloud", group="cpu", count=2, request="r", nodes=["cpu-3", "cpu-4"]
    )
    finding = judged(story, "groups_right")
    assert (finding.verdict, finding.metrics["at_limit"]) == (VALID, 1)


def test_without_a_special_machine_there_is_nothing_to_judge() -> None:
    assert judged(Story(), "groups_right").verdict is UNKNOWN


# -- demand and capacity


def test_demand_and_capacity_are_told_as_rays_autoscaler_saw_them() -> None:
    story = Story()
    busy = {"id": "cpu-1", "group": "cpu", "state": "busy"}
    idle = {"id": "cpu-2", "group": "cpu", "state": "idle"}
    story.state(
        7, demand=[{**CPU, "count": 2}], groups=[{"bundles": [{"CPU": 1.0}]}], nodes=[busy, idle]
    )
    points = [(round(when - 1000, 3), *rest) for when, *rest in capacity(story.view())]
    assert points == [(1, 4, 0), (7, 4, 2)]


# -- recorded real runs, altered


def altered(view: RunView, change: Callable[[Op], Op | None], **flips: Verdict) -> Mutated:
    """The same run with each operation changed, or left out."""
    kept = [op for old in view.history.ops if (op := change(old)) is not None]
    if kept == view.history.ops:
        raise NotHere("the history has nothing that this could change")
    return Mutated(RunView(History(kept), view.spec), flips)


def a_task_never_comes_back(view: RunView) -> Mutated:
    last = [op for op in view.history.ops if op.kind == "driver.result"][-1]
    over = [op for op in view.history.ops if op.kind == "driver.wave_over"][-1]

    def change(op: Op) -> Op:
        # Its place in the ledger stays: no line is missing, it never said so.
        return replace(op, kind="driver.said_nothing") if op in (last, over) else op

    more = _if_judged(view, refusals_overcome=INVALID, recovers=UNKNOWN)
    return altered(view, change, demand_met=INVALID, no_task_lost=INVALID, **more)


def a_line_of_the_driver_is_missing(view: RunView) -> Mutated:
    last = [op for op in view.history.ops if op.kind == "driver.wave_over"][-1]
    more = _if_judged(view, recovers=UNKNOWN)
    return altered(view, lambda op: None if op is last else op, evidence=UNKNOWN, **more)


def _if_judged(view: RunView, **flips: Verdict) -> dict[str, Verdict]:
    return {check: verdict for check, verdict in flips.items() if check in view.spec["checks"]}


def a_request_is_of_nobody(view: RunView) -> Mutated:
    first = next(op for op in view.history.ops if op.data.get("request") and op.data.get("nodes"))

    def change(op: Op) -> Op:
        return replace(op, data={**op.data, "request": ""}) if op is first else op

    return altered(view, change, launches_asked=INVALID)


def a_machine_starts_twice(view: RunView) -> Mutated:
    first = next(
        (op for op in view.history.ops if op.kind == "engine.start" and op.node != "head"), None
    )
    if first is None:
        raise NotHere("no machine started")
    again = replace(first, index=first.index + 10**6)
    return Mutated(
        RunView(History([*view.history.ops, again]), view.spec), {"launches_asked": INVALID}
    )


def a_machine_leaves_in_the_middle_of_its_work(view: RunView) -> Mutated:
    if "idle_leave" not in view.spec["checks"]:
        raise NotHere("nobody judges who leaves")
    long = next(
        op for op in view.history.ops if op.kind == "task.start" and "long" in op.data["key"]
    )
    dies = next(op for op in view.history.ops if op.kind == "engine.die" and op.node == long.node)

    def change(op: Op) -> Op:
        if op is not dies:
            return op
        return replace(op, wall=long.wall + 5, mono=None, received=long.received + 5)

    # That what ran there came back all the same is a contradiction which others see as well.
    return altered(view, change, idle_leave=INVALID)


def nothing_is_refused(view: RunView) -> Mutated:
    if "refusals_overcome" not in view.spec["checks"]:
        raise NotHere("nobody judges refusals")
    return altered(
        view, lambda op: None if op.data.get("refused") else op, refusals_overcome=UNKNOWN
    )


def nobody_wants_a_gpu(view: RunView) -> Mutated:
    if "groups_right" not in view.spec["checks"]:
        raise NotHere("nobody judges groups")

    def change(op: Op) -> Op:
        if op.kind != "autoscaler.state":
            return op
        demand = [item for item in op.data["demand"] if "GPU" not in item["needs"]]
        return replace(op, data={**op.data, "demand": demand})

    return altered(view, change, groups_right=INVALID)


def none_comes_in_its_place(view: RunView) -> Mutated:
    if "lost_replaced" not in view.spec["checks"]:
        raise NotHere("nobody judges who is replaced")
    struck = next(op for op in view.history.ops if op.kind == "fault.inject")
    late = {
        name
        for op in view.history.ops
        if op.kind == "cloud.asked" and op.wall > struck.wall
        for name in op.data.get("nodes", ())
    }

    def change(op: Op) -> Op | None:
        asked = op.kind == "cloud.asked" and late & set(op.data.get("nodes", ()))
        known = op.kind in ("engine.start", "ray.node", "engine.die") and op.node in late
        return None if asked or known else op

    return altered(view, change, lost_replaced=INVALID, recovers=UNKNOWN)


ALTERATIONS: Sequence[Callable[[RunView], Mutated]] = (
    a_task_never_comes_back,
    a_line_of_the_driver_is_missing,
    a_request_is_of_nobody,
    a_machine_starts_twice,
    a_machine_leaves_in_the_middle_of_its_work,
    nothing_is_refused,
    nobody_wants_a_gpu,
    none_comes_in_its_place,
)

RUNS = HISTORIES / "growth"


@pytest.fixture(scope="module", params=recorded(RUNS))
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> RunView:
    return load(RUNS / request.param, tmp_path_factory.mktemp("history"))


def test_a_recorded_run_is_valid_by_every_check(real: RunView) -> None:
    assert {check: v for check, v in verdicts(real).items() if v is not VALID} == {}
    assert anatomy(real).missing == []


@pytest.mark.parametrize("alter", ALTERATIONS, ids=lambda f: f.__name__)
def test_an_alteration_flips_exactly_the_checks_that_it_should(
    real: RunView, alter: Callable[[RunView], Mutated]
) -> None:
    flips_exactly(real, alter)


def test_no_alteration_is_left_out_of_all_runs_and_every_check_is_flipped(tmp_path: Path) -> None:
    flipped: set[str] = set()
    for alter in ALTERATIONS:
        flips: set[str] = set()
        for name in recorded(RUNS):
            folder = tmp_path / f"{alter.__name__}-{name}"
            folder.mkdir()
            with suppress(NotHere):
                flips |= set(alter(load(RUNS / name, folder)).flips)
        assert flips, alter.__name__
        flipped |= flips
    assert flipped >= set(OF_GROWTH)
