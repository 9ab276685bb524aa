"""Schedules in the language, run on the fake backend: what waits, what overlaps, what is found late."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, fake, finding, topology

from simulator.backends.fake import FakeBackend
from simulator.history import History, Op
from simulator.runner import replay_request
from simulator.schedule import parse_schedule


def run(lab: Lab, text: str, *params: str, **more: Any) -> tuple[dict[str, Any], History]:
    result = lab.run(*params, steps=parse_schedule(text), **more)
    return result, lab.history(result)


def first(history: History, kind: str, identity: str) -> Op:
    return next(op for op in history.of(kind) if op.data["id"] == identity)


def began(history: History) -> float:
    """When the load began, as the schedule counts."""
    phases = history.of("run.phase")
    return next(op.wall for op in phases if op.data["phase"] == "faults")


def planned(lab: Lab) -> list[dict[str, Any]]:
    schedule: list[dict[str, Any]] = lab.latest().spec()["schedule"]
    return schedule


# -- in time -------------------------------------------------------------------------------------------


def test_overlapping_faults_are_each_injected_in_time_and_healed_by_themselves(lab: Lab) -> None:
    text = "pause worker-1 @2s for 20s; kill worker-2 @5s for 4s; pause worker-3 @6s for 1s"
    result, history = run(lab, text)
    assert result["error"] is None
    start = began(history)
    for identity, at, lasts in (("f1", 2, 20), ("f2", 5, 4), ("f3", 6, 1)):
        inject, heal = (first(history, f"fault.{k}", identity) for k in ("inject", "heal"))
        assert at <= inject.wall - start < at + 1.5
        assert lasts <= heal.wall - inject.wall < lasts + 8  # another's healing takes its time
        assert first(history, "fault.healed", identity).data["verified"] is True
    assert first(history, "fault.heal", "f2").index < first(history, "fault.heal", "f1").index
    assert finding(result, "healed")["verdict"] == "valid"


def test_a_fault_hits_several_nodes_at_once_each_under_an_id_of_its_own(lab: Lab) -> None:
    result, history = run(lab, "kill worker-3, worker-1 @4s")
    hit = {op.data["id"]: op.node for op in history.of("fault.inject")}
    assert hit == {"f1.1": "worker-3", "f1.2": "worker-1"}
    assert {op.data["id"] for op in history.of("fault.healed")} == {"f1.1", "f1.2"}
    both = [op.wall for op in history.of("fault.inject")]
    assert max(both) - min(both) < 1
    assert result["status"] == "completed"
    assert finding(result, "healed")["verdict"] == "valid"
    assert finding(result, "fault_hit_work")["verdict"] == "valid"


def test_a_time_that_was_drawn_is_the_time_at_which_it_strikes(lab: Lab) -> None:
    _, history = run(lab, "kill one(worker) @3s..9s")
    (plan,) = planned(lab)
    assert 3 <= plan["at_s"] <= 9
    assert plan["step"] == "kill one(worker) @3s..9s"
    assert 0 <= first(history, "fault.inject", "f1").wall - began(history) - plan["at_s"] < 0.6


def test_the_same_seed_gives_the_identical_plan_and_another_seed_another(tmp_path: Path) -> None:
    text = "kill one(worker) @2s..5s for 4s; pause random(2) @9s..20s for 1s; stop one every 8s..9s 2 times"
    plans = []
    for i, seed in enumerate((11, 11, 12)):
        lab = Lab(tmp_path / str(i))
        run(lab, text, seed=seed)
        plans.append(planned(lab))
    assert plans[0] == plans[1] != plans[2]
    assert [p["id"] for p in plans[0]] == ["f1", "f3", "f2", "f4"]


# -- when a condition is true --------------------------------------------------------------------------


def test_a_fault_waits_for_its_condition(lab: Lab) -> None:
    result, history = run(lab, "kill worker-2 when 'tasks(finished) > 20' busy")
    inject = first(history, "fault.inject", "f1")
    before = [op for op in history.of("driver.result") if op.index < inject.index]
    assert len(before) > 20
    assert first(history, "fault.effect", "f1").data["verified"] is True
    assert (result["status"], result["verdict"]) == ("completed", "valid")


def test_a_fault_waits_for_another_to_be_healed_or_for_a_nodes_death(lab: Lab) -> None:
    text = (
        "pause worker-1 @2s; kill worker-2 when 'node(worker-1) == dead' for 3s; "
        "kill worker-3 when 'fault(f1) == healed and fault(f2) == injected'"
    )
    _, history = run(lab, text)
    dead = next(
        op for op in history.of("ray.node") if op.node == "worker-1" and op.data["state"] == "DEAD"
    )
    by_node = {op.node: op.index for op in history.of("fault.inject")}
    assert by_node["worker-1"] < dead.index < by_node["worker-2"] < by_node["worker-3"]
    healed = next(op for op in history.of("fault.healed") if op.node == "worker-1")
    assert healed.index < by_node["worker-3"]


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kill worker-2 when 'mark(never)' within 5s", "mark(never) did not come true within 5 s"),
        ("kill worker-2 @3s when 'tasks(finished) > 9999' within 20s", "did not come true"),
    ],
)
def test_a_condition_that_never_comes_true_leaves_the_verdict_unknown(
    lab: Lab, text: str, why: str
) -> None:
    result, history = run(lab, text)
    skipped = first(history, "fault.skipped", "f1")
    assert why in skipped.data["why"]
    assert history.of("fault.inject") == []
    assert (result["status"], result["verdict"]) == ("completed", "unknown")
    assert why in finding(result, "fault_hit_work")["summary"]


def test_a_condition_on_the_nodes_state_is_told_by_what_the_observer_saw_before(lab: Lab) -> None:
    _, history = run(lab, "kill worker-2 when 'node(worker-2) == alive'")
    assert first(history, "fault.inject", "f1").wall - began(history) < 1


# -- whom only the cluster can tell --------------------------------------------------------------------


def runs_on(history: History, index: int) -> dict[str, int]:
    """How many tasks ran on each node at that moment, by the ledger."""
    running: dict[str, str] = {}
    for op in history.ops[:index]:
        if op.kind == "task.start" and op.node is not None:
            running[op.data["exec"]] = op.node
        elif op.kind == "task.end":
            running.pop(op.data["exec"], None)
    nodes = list(running.values())
    return {node: nodes.count(node) for node in nodes}


def test_the_node_of_an_actor_is_found_at_the_injection(lab: Lab) -> None:
    result, history = run(lab, "kill node_of(actor:counter-worker-2) @4s")
    (plan,) = planned(lab)
    assert (plan["nodes"], plan["target"]) == ([], "node_of(actor:counter-worker-2)")
    assert first(history, "fault.plan", "f1").data["target"] == "worker-2"
    assert first(history, "fault.inject", "f1").node == "worker-2"
    assert (result["status"], result["verdict"]) == ("completed", "valid")


def test_the_node_of_a_task_runs_that_task(lab: Lab) -> None:
    _, history = run(lab, "pause node_of(task:square_sum) @4s for 1s")
    inject = first(history, "fault.inject", "f1")
    running = {
        op.node
        for op in history.ops[: inject.index]
        if op.kind == "task.start" and op.data["fn"] == "square_sum"
    }
    assert inject.node in running
    assert runs_on(history, inject.index)[str(inject.node)] >= 1


def test_the_busiest_is_never_the_drivers_node(lab: Lab) -> None:
    _, history = run(lab, "pause busiest @4s for 1s", "task_seconds=2")
    inject = first(history, "fault.inject", "f1")
    counts = runs_on(history, first(history, "fault.plan", "f1").index)
    driver = history.of("driver.start")[0].node
    assert driver == "head"
    counts.pop("head", None)
    assert counts[str(inject.node)] == max(counts.values())


def test_the_holder_of_most_objects_holds_some(lab: Lab) -> None:
    result, history = run(lab, "kill holder_of_most_objects @4s")
    assert first(history, "fault.inject", "f1").node in {"worker-1", "worker-2", "worker-3"}
    assert (
        "only copy of" in finding(result, "fault_hit_work")["summary"]
        or result["verdict"] == "valid"
    )


@pytest.mark.parametrize(
    ("target", "why"),
    [
        (
            "node_of(actor:Nobody)",
            "no living actor named 'Nobody': there is Counter, counter-worker-1",
        ),
        ("node_of(task:nothing)", "no running task named 'nothing'"),
    ],
)
def test_a_target_that_matches_nothing_is_skipped_and_said(lab: Lab, target: str, why: str) -> None:
    result, history = run(lab, f"kill {target} @4s")
    assert why in first(history, "fault.skipped", "f1").data["why"]
    assert (result["status"], result["verdict"]) == ("completed", "unknown")
    assert target in finding(result, "fault_hit_work")["summary"]


def test_a_far_side_is_drawn_apart_from_whom_is_hit(lab: Lab) -> None:
    _, history = run(lab, "kill minority, worker-1 @4s for 2s")
    assert {op.node for op in history.of("fault.inject")} >= {"worker-1"}


# -- that comes back -----------------------------------------------------------------------------------


def test_a_fault_comes_back_as_often_as_was_said(lab: Lab) -> None:
    _, history = run(lab, "pause worker-1 every 4s from 2s until 11s for 1s")
    start = began(history)
    injects = history.of("fault.inject")
    assert [op.data["id"] for op in injects] == ["f1", "f2", "f3"]
    for op, at in zip(injects, (2, 6, 10), strict=True):
        assert at <= op.wall - start < at + 1
    assert [p["repetition"] for p in planned(lab)] == [1, 2, 3]


def end_work_after(lab: Lab, faults: int) -> Callable[[History], None]:
    """The workload's driver ends as soon as so many faults were healed."""

    def tick(history: History) -> None:
        if len(history.of("fault.healed")) >= faults:
            assert isinstance(lab.backend, FakeBackend)
            world = lab.backend.world("c")
            path = next(p for p in world.files if p.endswith("control.json"))
            world.files[path] = json.dumps({"go_on": True, "finish": True}).encode()

    return tick


def test_what_would_come_after_the_work_is_left_out_and_nothing_is_missing(lab: Lab) -> None:
    lab.on_tick = end_work_after(lab, 1)
    result, history = run(lab, "kill worker-1 @4s every 40s until 200s for 2s")
    assert [op.data["id"] for op in history.of("fault.inject")] == ["f1"]
    assert [op.data["id"] for op in history.of("schedule.left_out")] == ["f2", "f3", "f4", "f5"]
    assert len(planned(lab)) == 5
    assert finding(result, "fault_hit_work")["verdict"] == "valid"
    ended = history.last("run.end")
    assert ended is not None
    assert ended.wall - began(history) < 100


def test_the_first_time_is_never_left_out(lab: Lab) -> None:
    lab.on_tick = end_work_after(lab, 1)
    result, history = run(lab, "kill worker-1 @4s for 2s; kill worker-2 @60s every 40s 2 times")
    assert [op.data["id"] for op in history.of("fault.inject")] == ["f1", "f2"]
    assert [op.data["id"] for op in history.of("schedule.left_out")] == ["f3"]
    assert finding(result, "fault_hit_work")["verdict"] == "unknown"
    assert "worker-2 hit no work" in finding(result, "fault_hit_work")["summary"]


# -- instead of the experiment's own -------------------------------------------------------------------


def test_other_faults_than_the_experiments_own_stand_in_the_spec(lab: Lab) -> None:
    result, history = run(lab, "pause worker-1 @3s until dead")
    spec = lab.latest().spec()
    assert spec["steps"] == ["pause worker-1 @3s"]
    assert [p["fault"] for p in spec["schedule"]] == ["pause"]
    assert {op.data["fault"] for op in history.of("fault.inject")} == {"pause"}
    assert result["verdict"] == "valid"
    lab.run(name="d")
    assert lab.latest().spec()["steps"] is None


@pytest.mark.parametrize(
    ("text", "without"),
    [
        ("kill worker-1 @3s", set()),
        ("kill worker-1 @3s for good", {"rejoined", "full_throughput"}),
        ("pause worker-1 @3s for 1s", None),
    ],
)
def test_only_such_phases_must_be_seen_as_the_faults_have(
    lab: Lab, text: str, without: set[str] | None
) -> None:
    own = lab.request().mandatory_phases
    result, _ = run(lab, text)
    phases = lab.latest().spec()["mandatory_phases"]
    assert phases == (["effect"] if without is None else [p for p in own if p not in without])
    assert finding(result, "recovers")["verdict"] == "valid"


def test_a_run_with_other_faults_is_replayed_with_them(lab: Lab) -> None:
    text = "kill busiest @2s..6s for 3s; pause one(worker) when 'fault(f1) == healed' for 1s"
    _, before = run(lab, text, seed=5)
    first_plan = planned(lab)
    request = replay_request(lab.latest())
    assert [str(step) for step in request.steps or ()] == text.split("; ")
    again = lab.history(lab.runner().run(request))
    for plan, old in zip(planned(lab), first_plan, strict=True):
        assert (plan["at_s"], plan["when"], plan["step"]) == (old["at_s"], old["when"], old["step"])
    assert [op.node for op in again.of("fault.inject")] == [
        op.node for op in before.of("fault.inject")
    ]


def test_a_random_schedule_runs_from_end_to_end(lab: Lab) -> None:
    from simulator.schedule import random_schedule

    steps = random_schedule(fake(), topology(), 0.2, 3, seed=2)
    result = lab.run(steps=steps)
    history = lab.history(result)
    assert len(history.of("fault.inject")) == 3
    assert finding(result, "healed")["verdict"] == "valid"
