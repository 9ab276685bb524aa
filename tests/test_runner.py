"""The runner, on the fake backend: what a run records, and that it cleans up whatever goes wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes import Killed, Lab, cluster_up, fake, finding, kinds, only, topology

from simulator.backends.base import Capability, Check
from simulator.backends.fake import Behaviour
from simulator.checkers.base import RunView
from simulator.cluster import Cluster, salvage
from simulator.errors import BadInput, CannotRun, NotFound
from simulator.experiment import PHASES, Experiment, load_experiment
from simulator.experiment import Params as BaseParams
from simulator.faults import Kill, Pause, Restart, Stop
from simulator.history import History
from simulator.innode.supervisor import GCS_DIED
from simulator.runner import RunRequest, exit_code, judge_run, own, run_view
from simulator.schedule import After, All, AtEnd, Named, Never, Step, WhenDeclaredDead
from simulator.store import RunDir, Store
from simulator.topology import Topology, override
from simulator.workload import TaskStream


class Scheduled(Experiment):
    """Any schedule, and no phase that must be seen."""

    name = "scheduled"
    claim = "What is scheduled happens."
    steps: ClassVar[Sequence[Step]] = ()
    phases: ClassVar[Sequence[str]] = ("effect",)

    class Params(BaseParams):
        at: float = 4
        tasks: int = 60

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return self.steps

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return self.phases


def scheduled(*steps: Step, phases: Sequence[str] = ("effect",)) -> Experiment:
    class Here(Scheduled):
        pass

    Here.steps, Here.phases = steps, phases
    return Here()


# -- a run that goes well ------------------------------------------------------------------------------


def test_a_worker_dies_and_the_run_is_valid(lab: Lab) -> None:
    result = lab.run()
    assert (result["status"], result["verdict"], result["error"]) == ("completed", "valid", None)
    assert all(result["recovery"][f"{phase}_s"] is not None for phase in PHASES)
    assert lab.phases == [
        *("create", "gate", "load", "faults", "recover", "heal", "collect", "down"),
    ]
    assert lab.backend.clusters() == []
    assert exit_code(result) == 0


def test_a_run_leaves_its_report(tmp_path: Path) -> None:
    result = Lab(tmp_path).run()
    assert result["error"] is None
    assert "no task is lost" in Path(result["report"]).read_text()


def test_everything_is_recorded_before_it_is_done(lab: Lab) -> None:
    seen: dict[str, list[str]] = {}

    def look(method: str) -> None:
        lines = lab.latest().history_path.read_text().splitlines()
        seen.setdefault(method, [json.loads(line)["kind"] for line in lines])

    lab.backend.before("kill", lambda: look("kill"))
    lab.backend.before("ray.submit", lambda: look("submit"))
    lab.backend.before("stop", lambda: look("stop"))
    history = lab.history(lab.run())
    assert seen["kill"][-2:] == ["fault.plan", "fault.inject"]
    assert seen["submit"][-1] == "workload.submit"
    order = kinds(history)
    for before, after in (
        ("fault.plan", "fault.inject"),
        ("fault.inject", "engine.die"),
        ("engine.die", "fault.effect"),
        ("fault.effect", "workload.go_on"),
        ("fault.heal", "fault.healed"),
        ("fault.healed", "workload.finish"),
        ("workload.finish", "driver.end"),
        ("observer.end", "run.end"),
    ):
        assert order.index(before) < order.index(after), (before, after)
    assert only(history, "fault.plan").data["undo"] == "start"


def test_the_node_is_started_again_only_after_ray_declared_it_dead(lab: Lab) -> None:
    history = lab.history(lab.run())
    victim = only(history, "fault.inject").node
    dead = next(op for op in history.of("ray.node") if op.data["state"] == "DEAD")
    assert dead.node == victim
    assert dead.index < only(history, "fault.heal").index


def test_two_runs_with_the_same_seed_make_the_same_plan_and_the_same_history(
    tmp_path: Path,
) -> None:
    told = []
    for i in range(2):
        lab = Lab(tmp_path / str(i))
        result = lab.run(seed=11)
        history = lab.history(result)
        victim = only(history, "fault.inject").node
        spec = lab.latest().spec()
        told.append((victim, spec["schedule"], result["recovery"], result["metrics"]))
    assert told[0] == told[1]


def test_every_kind_of_operation_is_in_the_reference(lab: Lab) -> None:
    root = Path(__file__).parent.parent
    reference = (root / "docs/reference/history.md").read_text()
    source = "\n".join(path.read_text() for path in (root / "simulator/runner").glob("*.py"))
    written = set(re.findall(r'(?:record|_receive)\(\s*"([a-z_.]+)"', source))
    seen = {op.kind for op in lab.history(lab.run())}
    assert len(written) > 10
    assert {kind for kind in written | seen if f"`{kind}`" not in reference} == set()


def test_the_clock_offset_of_the_nodes_is_measured(tmp_path: Path) -> None:
    lab = Lab(tmp_path, fake(Behaviour(clock_offset=3600.0)))
    result = lab.run()
    history = lab.history(result)
    assert history.offsets["ledger"].offset == pytest.approx(3600.0)
    assert result["verdict"] == "valid"
    begun, ended = only(history, "run.start"), only(history, "run.end")
    assert all(begun.wall <= history.at(op) <= ended.wall for op in history.of("task.start"))


def test_the_spec_says_what_was_asked_and_how_to_replay_it(lab: Lab) -> None:
    lab.run(command="python -m simulator run node_failure --seed {seed}", seed=5)
    spec = lab.latest().spec()
    assert spec["command"].endswith("--seed 5")
    assert spec["params"]["tasks"] == 60
    assert spec["versions"]["ray"] == "simulated"
    assert spec["versions"]["engine"] == "simulated"
    assert spec["gpu"] == "simulated"
    assert [s["fault"] for s in spec["schedule"]] == ["kill"]


def test_a_run_without_a_seed_draws_one_and_says_it(lab: Lab) -> None:
    result = lab.run(seed=None)
    assert isinstance(result["seed"], int)
    assert lab.latest().path.name.endswith(f"-{result['seed']}")


# -- verdicts that are not valid -----------------------------------------------------------------------


def test_without_retries_the_run_is_invalid_and_names_the_lost_tasks(lab: Lab) -> None:
    result = lab.run("max_retries=0")
    lost = finding(result, "no_task_lost")
    assert (result["status"], result["verdict"]) == ("completed", "invalid")
    assert lost["verdict"] == "invalid"
    failures = {op.data["key"] for op in lab.history(result).of("driver.failure")}
    assert failures
    assert all(any(key in line for line in lost["details"]) for key in failures)
    assert exit_code(result) == 1


def test_a_fault_after_the_work_is_done_proves_nothing(lab: Lab) -> None:
    result = lab.run("at=60", "tasks=20")
    assert (result["status"], result["verdict"]) == ("completed", "unknown")
    assert "the work was over" in finding(result, "fault_hit_work")["summary"]
    assert exit_code(result) == 3


def test_a_fault_without_effect_proves_nothing_and_nobody_waits_for_it(lab: Lab) -> None:
    for worker in ("worker-1", "worker-2", "worker-3"):
        lab.backend.without_effect("kill", worker)
    result = lab.run()
    history = lab.history(result)
    assert (result["status"], result["verdict"]) == ("completed", "unknown")
    assert only(history, "fault.effect").data["verified"] is False
    assert "could not be verified" in finding(result, "fault_hit_work")["summary"]
    assert finding(result, "no_task_lost")["verdict"] == "valid"
    assert only(history, "run.end").wall - only(history, "fault.done").wall < 60


def test_a_wrong_result_is_found(lab: Lab) -> None:
    lab.backend.wrong_result("t-5")
    result = lab.run()
    assert result["verdict"] == "invalid"
    assert [f["check"] for f in result["findings"] if f["verdict"] == "invalid"] == [
        "results_right"
    ]
    assert "t-5" in finding(result, "results_right")["summary"]


def test_a_task_that_never_comes_back_is_found(lab: Lab) -> None:
    lab.backend.lose_task("t-6")
    result = lab.run()
    assert finding(result, "no_task_lost")["verdict"] == "invalid"
    assert "t-6" in finding(result, "no_task_lost")["summary"]


def test_a_line_of_the_ledger_that_was_lost_on_its_way_is_found_in_the_raw_ledger(lab: Lab) -> None:
    lab.backend.lose_line("task.end", "t-9")
    result = lab.run()
    salvaged = [op for op in lab.history(result) if op.data.get("salvaged")]
    assert [(op.kind, op.data["key"]) for op in salvaged] == [("task.end", "t-9")]
    assert result["verdict"] != "invalid"


def test_an_end_that_was_never_written_is_not_explained_away(lab: Lab) -> None:
    lab.backend.lose_line("task.end", "t-9", where="ledger")
    result = lab.run()
    assert finding(result, "executions_explained")["verdict"] == "invalid"
    assert "t-9" in finding(result, "executions_explained")["summary"]


def test_an_observer_that_was_blind_makes_the_run_unknown(lab: Lab) -> None:
    lab.on_phase["faults"] = lambda: lab.backend.blind_observer("c", 10.0)
    result = lab.run("recovery_timeout=20")
    assert result["verdict"] == "unknown"
    assert finding(result, "evidence")["verdict"] == "unknown"


def test_a_run_says_once_what_it_still_waits_for(lab: Lab) -> None:
    lab.backend.lose_line("driver.object_back", "look-worker-2")
    lab.run("victim=worker-2", "recovery_timeout=30")
    assert lab.said == ["  still to be seen: lost objects rebuilt"]


def test_an_observer_that_died_makes_the_run_unknown_and_nobody_waits_for_it(lab: Lab) -> None:
    lab.on_phase["faults"] = lambda: lab.backend.later(2.0, lambda: lab.backend.crash_observer("c"))
    result = lab.run()
    assert (result["status"], result["verdict"]) == ("completed", "unknown")
    assert finding(result, "evidence")["verdict"] == "unknown"


def test_a_victim_that_is_gone_already_is_skipped(lab: Lab) -> None:
    lab.on_phase["faults"] = lambda: lab.backend.later(
        1.0, lambda: lab.backend.crash("c", "worker-2")
    )
    result = lab.run("victim=worker-2")
    history = lab.history(result)
    assert only(history, "fault.skipped").data["why"] == "worker-2 is exited"
    assert history.of("fault.inject") == []
    assert finding(result, "fault_hit_work")["verdict"] == "unknown"


# -- other schedules -----------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [Kill(), Stop(), Pause(), Restart()], ids=str)
def test_each_fault_is_verified_and_healed(lab: Lab, fault: Any) -> None:
    lab.experiment = scheduled(Step(4, fault, Named("worker-1"), After(8)))
    result = lab.run()
    history = lab.history(result)
    assert (result["status"], result["verdict"]) == ("completed", "valid"), result["findings"]
    assert only(history, "fault.effect").data["verified"] is True
    assert only(history, "fault.healed").data["verified"] is True
    assert finding(result, "healed")["verdict"] == "valid"


def test_a_pause_that_ends_before_detection_costs_no_node(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Pause(), Named("worker-1"), After(2)))
    history = lab.history(lab.run())
    assert only(history, "fault.healed").data["how"] == "resumed; Ray still had it"
    assert {op.data["state"] for op in history.of("ray.node")} == {"ALIVE"}


def test_a_pause_beyond_detection_brings_the_node_back_as_a_new_one(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Pause(), Named("worker-1"), WhenDeclaredDead()))
    history = lab.history(lab.run())
    assert "joined as a new node" in only(history, "fault.healed").data["how"]
    ids = {op.data["ray_node_id"] for op in history.of("ray.node") if op.node == "worker-1"}
    assert len(ids) == 2


def test_the_first_fault_is_healed_before_a_much_later_one_is_injected(lab: Lab) -> None:
    lab.experiment = scheduled(
        Step(4, Kill(), Named("worker-1")), Step(40, Kill(), Named("worker-2"))
    )
    result = lab.run("tasks=300")
    history = lab.history(result)
    first, second = history.of("fault.healed")[0], history.of("fault.inject")[1]
    assert (first.node, second.node) == ("worker-1", "worker-2")
    assert first.index < second.index
    assert result["verdict"] == "valid"


def test_a_heal_is_timed_from_its_own_injection(lab: Lab) -> None:
    lab.experiment = scheduled(
        Step(2, Kill(), Named("worker-1"), After(6)), Step(4, Kill(), Named("worker-2"), After(6))
    )
    history = lab.history(lab.run())
    injected = {op.node: op.wall for op in history.of("fault.inject")}
    heals = {op.node: op.wall for op in history.of("fault.heal")}
    assert heals["worker-1"] - injected["worker-1"] == pytest.approx(6, abs=1.0)
    assert heals["worker-2"] - injected["worker-2"] >= 6


def test_a_node_that_is_to_stay_away_is_not_missed_afterwards(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("worker-1"), Never()))
    result = lab.run()
    history = lab.history(result)
    assert only(history, "fault.healed").data["how"] == "asked to stay"
    assert history.of("steady")[-1].data == {"when": "after", "ok": True, "problems": []}
    assert finding(result, "healed")["verdict"] == "valid"


def test_a_run_without_faults_is_judged_too(lab: Lab) -> None:
    lab.experiment = scheduled(phases=())
    result = lab.run()
    assert (result["status"], result["verdict"]) == ("completed", "valid")


def test_the_head_dies_as_planned_and_the_run_ends(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("head"), After(3)))
    result = lab.run()
    history = lab.history(result)
    assert only(history, "fault.effect").data["verified"] is True
    assert result["verdict"] != "valid"
    assert history.of("observer.blind")
    assert lab.backend.clusters() == []


def test_a_head_that_came_back_without_tables_has_lost_the_job_and_nobody_waits_for_it(
    lab: Lab,
) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("head"), After(3)))
    began = lab.backend.simulated_clock.now
    result = lab.run(topology=override(topology(), ["driver_node=true"]))
    end = only(lab.history(result), "workload.end").data
    assert end["status"] == "LOST"
    assert "its head was started anew, and knows no earlier job" in end["message"]
    assert result["verdict"] != "valid"
    assert lab.backend.simulated_clock.now - began < 90


@pytest.mark.parametrize("heal", [Never(), AtEnd()], ids=str)
def test_a_head_that_nobody_starts_again_ends_the_run_and_not_its_patience(
    lab: Lab, heal: Never | AtEnd
) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("head"), heal))
    began = lab.backend.simulated_clock.now
    result = lab.run()
    assert only(lab.history(result), "workload.end").data["status"] == "LOST"
    assert result["verdict"] != "valid"
    assert lab.backend.simulated_clock.now - began < 150
    assert lab.backend.clusters() == []


def test_what_failed_before_the_head_was_hit_is_asked_for_while_it_can_be(lab: Lab) -> None:
    lab.experiment = scheduled(
        Step(4, Kill(), Named("worker-1"), WhenDeclaredDead()),
        Step(9, Kill(), Named("head"), After(3)),
    )
    history = lab.history(lab.run())
    hit = next(op for op in history.of("fault.inject") if op.node == "head")
    assert any(op.index < hit.index for op in history.of("attempt.failed"))
    assert only(history, "attempts.complete").data["forgotten"] is False


KEEPS = ["driver_node=true", "gcs=redis"]


@pytest.mark.parametrize("fault", [Kill(), Stop(), Restart(), Pause()], ids=str)
def test_a_store_is_broken_and_healed_and_its_head_comes_back_with_it(lab: Lab, fault: Any) -> None:
    lab.experiment = scheduled(Step(4, fault, Named("redis"), After(6)))
    result = lab.run(topology=override(topology(), KEEPS))
    history = lab.history(result)
    assert result["status"] == "completed"
    assert (only(history, "fault.effect").node, only(history, "fault.effect").data["verified"]) == (
        "redis",
        True,
    )
    died = [op for op in history.of("engine.die") if op.node == "head"]
    if isinstance(fault, Pause):
        assert died == []
    else:
        assert [op.data["exit_code"] for op in died] == [GCS_DIED]
        assert "and so was the head" in only(history, "fault.healed").data["how"]
    # The driver went on, and what it was told came back: nothing of it hung on the head.
    assert only(history, "workload.end").data["status"] == "SUCCEEDED"
    assert finding(result, "fault_hit_work")["verdict"] == "valid"
    assert "hit the control plane of" in finding(result, "fault_hit_work")["summary"]
    assert result["verdict"] == "valid"


def test_a_store_that_is_to_stay_away_until_it_is_given_up_stays_until_its_head_ends(
    lab: Lab,
) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("redis"), WhenDeclaredDead()))
    history = lab.history(lab.run(topology=override(topology(), KEEPS)))
    died = next(op for op in history.of("engine.die") if op.node == "head")
    heal = only(history, "fault.heal")
    assert died.index < heal.index
    assert history.at(heal) - history.at(died) < 3


def test_of_a_store_no_phase_of_a_nodes_recovery_must_be_seen(lab: Lab) -> None:
    nodes = override(topology(), KEEPS)
    steps = [Step(4, Kill(), Named("redis"), WhenDeclaredDead())]
    assert lab.request(topology=nodes, steps=steps).mandatory_phases == ["effect"]
    steps.append(Step(9, Kill(), Named("worker-1"), WhenDeclaredDead()))
    assert "rejoined" in lab.request(topology=nodes, steps=steps).mandatory_phases


def test_a_driver_node_outlives_a_head_that_keeps_its_tables(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("head"), After(8)))
    result = lab.run(topology=override(topology(), KEEPS))
    assert only(lab.history(result), "workload.end").data["status"] == "SUCCEEDED"
    assert result["verdict"] == "valid"


def test_a_store_of_a_cluster_that_has_none_is_refused_by_name(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("redis")))
    with pytest.raises(BadInput, match="no node or group named 'redis'"):
        lab.run()
    assert lab.backend.clusters() == []


def test_a_driver_node_has_the_driver_and_no_work_and_no_drawn_fault(lab: Lab) -> None:
    step = Step(4, Kill(), All(), WhenDeclaredDead())
    lab.experiment = scheduled(step, phases=())
    result = lab.run(topology=override(topology(), ["driver_node=true"]))
    history = lab.history(result)
    assert only(history, "driver.start").node == "driver"
    assert {op.node for op in history.of("task.start")}.isdisjoint({"driver"})
    assert {op.node for op in history.of("fault.effect")} == {"worker-1", "worker-2", "worker-3"}
    assert result["status"] == "completed"


def test_a_job_dies_with_the_driver_node_that_was_named(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("driver"), After(10)))
    result = lab.run(topology=override(topology(), ["driver_node=true"]))
    end = only(lab.history(result), "workload.end").data
    assert end["status"] == "FAILED"
    assert result["verdict"] != "valid"
    assert "node has died" in end["message"]


# -- when something goes wrong -------------------------------------------------------------------------


def test_a_node_that_cannot_start_aborts_the_run_and_leaves_nothing(lab: Lab) -> None:
    lab.backend.start_fails("worker-2", times=3, lines=["disk full"])
    result = lab.run()
    assert (result["status"], exit_code(result)) == ("aborted", 4)
    assert "3 of 4 nodes joined" in result["error"] or "2 of 3 nodes joined" in result["error"]
    assert "disk full" in result["error"]
    history = lab.history(result)
    assert {op.node for op in history.of("node.joined")} >= {"head", "worker-1", "worker-3"}
    assert len(history.of("node.failed")) == 3
    assert lab.backend.clusters() == []


@pytest.mark.parametrize(
    ("method", "status"),
    [
        ("prepare", "aborted"),
        ("create", "aborted"),
        ("watch", "aborted"),
        ("run_program", "aborted"),
        ("wall_clock", "aborted"),
        ("put_ledger_file", "aborted"),
        ("ray.submit", "aborted"),
        ("kill", "failed"),
    ],
)
def test_an_error_of_the_engine_ends_the_run_and_leaves_nothing(
    lab: Lab, method: str, status: str
) -> None:
    lab.backend.fail_next(method, CannotRun("the engine is on fire"))
    result = lab.run()
    assert (result["status"], exit_code(result)) == (status, 4)
    assert result["error"].startswith("the engine is on fire")
    assert only(lab.history(result), "run.end").data["status"] == status
    assert lab.backend.clusters() == []


def test_an_error_of_our_own_is_recorded_and_leaves_nothing(lab: Lab) -> None:
    lab.backend.fail_next("put_ledger_file", ZeroDivisionError("oops"))
    result = lab.run()
    assert result["status"] == "failed"
    assert only(lab.history(result), "run.error").data["error"] == "ZeroDivisionError: oops"
    assert lab.backend.clusters() == []


def test_an_error_while_recovering_still_heals_collects_and_takes_down(lab: Lab) -> None:
    def break_the_heal() -> None:
        lab.backend.fail_next("cluster", CannotRun("the engine hiccuped"))

    lab.on_phase["recover"] = break_the_heal
    result = lab.run()
    history = lab.history(result)
    assert result["status"] == "failed"
    assert result["error"].startswith("the engine hiccuped")
    assert only(history, "fault.healed").data["verified"] is True
    assert (Path(result["run_dir"]) / "ledger" / "driver.jsonl").is_file()
    assert lab.phases[-3:] == ["heal", "collect", "down"]
    assert lab.backend.clusters() == []


def test_the_first_error_wins_and_later_ones_become_notes(lab: Lab) -> None:
    lab.backend.fail_next("kill", CannotRun("first"))
    lab.on_phase["heal"] = lambda: lab.backend.fail_next("fetch_ledger", OSError("second"))
    lab.on_phase["collect"] = lambda: lab.backend.fail_next(
        "ray.failed_attempts", ValueError("third")
    )
    result = lab.run()
    assert result["error"].splitlines()[0] == "first"
    assert "third" in result["error"]
    notes = [op.data["text"] for op in lab.history(result).of("run.note")]
    assert any("second" in text for text in notes)


def test_a_cluster_that_cannot_be_taken_down_is_said_and_named(lab: Lab) -> None:
    lab.backend.fail_next("remove", CannotRun("the engine is gone"))
    result = lab.run()
    assert "c could not be taken down: the engine is gone" in result["error"]
    assert any("python -m simulator down --name c" in text for text in lab.said)
    assert result["verdict"] == "valid"


def test_an_observer_that_never_speaks_aborts_the_run(lab: Lab) -> None:
    lab.backend.observer_stays_silent()
    result = lab.run()
    assert result["status"] == "aborted"
    assert "the observer's first word did not happen within 60 s" in result["error"]
    assert lab.backend.clusters() == []


def test_an_observer_that_dies_at_once_aborts_the_run_at_once(lab: Lab) -> None:
    lab.backend.observer_stays_silent()
    begun = lab.backend.simulated_clock.now
    lab.on_phase["create"] = lambda: lab.backend.later(
        12.0, lambda: lab.backend.crash_observer("c")
    )
    result = lab.run()
    assert "the observer ended before it saw anything" in result["error"]
    assert lab.backend.simulated_clock.now - begun < 30


def test_a_workload_that_never_starts_aborts_the_run(lab: Lab) -> None:
    lab.backend.job_never_starts()
    result = lab.run()
    assert result["status"] == "aborted"
    assert "the workload's beginning did not happen" in result["error"]
    assert lab.backend.clusters() == []


def test_a_workload_that_does_not_end_is_stopped_where_the_cluster_stays(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster_up(lab.backend, "mine")
    monkeypatch.setattr(own, "DRAIN_S", 0.01)
    monkeypatch.setattr(TaskStream, "nominal_seconds", lambda self, topology: 0.0)
    stopped: list[str] = []
    lab.backend.before("ray.stop_job", lambda: stopped.append("once"))
    result = lab.run("recovery_timeout=0.01", "tasks=5000", reuse="mine")
    end = lab.history(result).of("workload.end")[-1]
    assert end.data["status"] == "RUNNING"
    assert stopped == ["once"]
    assert finding(result, "no_task_lost")["verdict"] != "valid"


def test_a_workload_that_fails_at_once_is_shown_with_its_last_words(lab: Lab) -> None:
    lab.backend.job_ends("FAILED", "ImportError: no module named torch")
    result = lab.run()
    assert result["status"] == "aborted"
    assert "the workload ended before it began: FAILED" in result["error"]
    assert "no module named torch" in result["error"]


def test_a_head_that_dies_by_itself_fails_the_run(lab: Lab) -> None:
    lab.on_phase["recover"] = lambda: lab.backend.later(
        3.0, lambda: lab.backend.crash("c", "head", 139)
    )
    result = lab.run()
    assert result["status"] == "failed"
    assert "the head is exited, and no fault of this run did it" in result["error"]
    assert "139" in result["error"]
    assert lab.backend.clusters() == []


def test_a_cluster_that_is_not_at_rest_is_not_broken(lab: Lab) -> None:
    lab.on_phase["gate"] = lambda: lab.backend.crash("c", "worker-3")
    result = lab.run()
    history = lab.history(result)
    assert result["status"] == "aborted"
    assert "worker-3 is exited, not alive" in result["error"]
    assert only(history, "steady").data["ok"] is False
    assert history.of("fault.") == []


def test_a_steady_state_that_does_not_come_back_is_invalid(lab: Lab) -> None:
    lab.on_phase["heal"] = lambda: lab.backend.crash("c", "worker-1")
    result = lab.run("victim=worker-2")
    assert result["verdict"] == "invalid"
    assert "worker-1 is exited, not alive" in finding(result, "healed")["summary"]


def test_a_node_that_cannot_come_back_fails_the_run(lab: Lab) -> None:
    lab.on_phase["recover"] = lambda: lab.backend.start_fails("worker-2", times=6)
    result = lab.run("victim=worker-2")
    assert result["status"] == "failed"
    assert "missing worker-2" in result["error"]
    assert finding(result, "healed")["verdict"] == "invalid"


def test_a_report_that_breaks_does_not_cost_the_verdict(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(path: Path, view: RunView) -> None:
        raise RuntimeError("no ink")

    monkeypatch.setattr("simulator.runner.judging.write_html", broken)
    result = lab.run()
    assert result["verdict"] == "valid"
    assert "the report could not be written: RuntimeError: no ink" in result["error"]
    assert lab.backend.clusters() == []


def test_garbage_from_the_observer_is_noise_and_not_the_end(lab: Lab) -> None:
    def garbage() -> None:
        program = lab.backend.program("c", "observer")
        for line in ("Traceback (most recent call last):", '{"kind": "x"}', "[]", ""):
            program.stream.write(line)  # type: ignore[union-attr]

    lab.on_phase["load"] = garbage
    result = lab.run()
    noise = [op.data["text"] for op in lab.history(result).of("observer.noise")]
    assert noise == ["Traceback (most recent call last):", '{"kind": "x"}', "[]"]
    assert result["verdict"] == "valid"


# -- plans that are refused ----------------------------------------------------------------------------


def started_nothing(lab: Lab) -> bool:
    return not any(c.method in ("create", "start") for c in lab.backend.calls) and not list(
        lab.root.iterdir()
    )


def test_an_unknown_victim_is_refused_with_the_nearest_names(lab: Lab) -> None:
    with pytest.raises(BadInput, match="did you mean worker-1"):
        lab.run("victim=worker-11")
    assert started_nothing(lab)


def test_all_problems_of_a_plan_come_together(lab: Lab) -> None:
    with pytest.raises(BadInput) as caught:
        lab.run(topology=topology(1), health="quick")
    assert {p.where for p in caught.value.problems} == {"topology default", "--health quick"}
    assert started_nothing(lab)


def test_a_fault_that_the_backend_cannot_do_is_refused(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CanFly:
        pass

    monkeypatch.setattr(Kill, "needs", Capability("fly", CanFly, "can fly"))
    with pytest.raises(CannotRun, match="kill needs a backend that can fly; fake does not"):
        lab.run()
    assert started_nothing(lab)


def test_a_machine_with_a_problem_is_refused(lab: Lab) -> None:
    lab.backend.checks = [
        Check("warning", "cores", "only two"),
        Check("problem", "memory", "too little", "use fewer workers"),
    ]
    with pytest.raises(CannotRun, match="memory: too little; use fewer workers"):
        lab.run()
    assert started_nothing(lab)


def test_a_name_in_use_is_refused_and_the_cluster_left_alone(lab: Lab) -> None:
    cluster_up(lab.backend, "c")
    with pytest.raises(BadInput, match="a cluster of that name exists already"):
        lab.run()
    assert [c.name for c in lab.backend.clusters()] == ["c"]
    assert list(lab.root.iterdir()) == []


def test_a_name_taken_in_the_meantime_is_not_taken_down(lab: Lab) -> None:
    lab.on_phase["create"] = lambda: (cluster_up(lab.backend, "c", workers=1), None)[1]
    result = lab.run()
    assert result["status"] == "aborted"
    assert [c.name for c in lab.backend.clusters()] == ["c"]


# -- several runs on one cluster -----------------------------------------------------------------------


def test_a_run_on_a_cluster_that_is_up_leaves_it_up(lab: Lab) -> None:
    cluster = cluster_up(lab.backend, "mine")
    result = lab.run(reuse="mine")
    assert result["verdict"] == "valid"
    assert {n.state for n in cluster.status().nodes} == {"alive"}
    assert lab.latest().spec()["cluster"] == "mine"


def test_reusing_a_cluster_starts_what_had_exited(lab: Lab) -> None:
    cluster = cluster_up(lab.backend, "mine")
    cluster.kill("worker-2")
    cluster.wait_until(
        lambda: cluster.node("worker-2").state == "exited", name="worker-2 is gone", timeout=5
    )
    result = lab.run(reuse="mine")
    assert result["verdict"] == "valid"


def test_reusing_an_unknown_cluster_names_the_nearest(lab: Lab) -> None:
    cluster_up(lab.backend, "mine")
    with pytest.raises(NotFound, match="did you mean mine"):
        lab.run(reuse="mime")


def test_reusing_a_cluster_of_another_shape_is_refused(lab: Lab) -> None:
    cluster_up(lab.backend, "mine", workers=2)
    with pytest.raises(BadInput, match="name the topology that it was started with"):
        lab.run(reuse="mine")


def test_keep_leaves_the_cluster_up(lab: Lab) -> None:
    lab.run(keep=True)
    assert [c.name for c in lab.backend.clusters()] == ["c"]
    assert {n.state for n in Cluster(lab.backend, "c").status().nodes} == {"alive"}


def test_repeated_runs_share_a_cluster_and_have_seeds_of_their_own(lab: Lab) -> None:
    results = lab.runner().repeat(lab.request(seed=20), 3)
    assert [r["seed"] for r in results] == [20, 21, 22]
    assert [r["verdict"] for r in results] == ["valid"] * 3
    assert len([c for c in lab.backend.calls if c.method == "create"]) == 1
    assert len([c for c in lab.backend.calls if c.method == "remove"]) == 1
    assert len({r["run_dir"] for r in results}) == 3
    for result in results:
        ledger = Path(result["run_dir"]) / "ledger"
        assert (ledger / "driver.jsonl").is_file()
        assert [p for p in ledger.iterdir() if p.is_dir()] == []


def test_ctrl_c_while_cleaning_up_ends_the_repeating(lab: Lab) -> None:
    lab.on_phase["heal"] = lambda: signal.raise_signal(signal.SIGINT)
    results = lab.runner().repeat(lab.request(), 3)
    assert [r["status"] for r in results] == ["completed"]
    assert lab.backend.clusters() == []


def test_repeating_stops_when_a_run_could_not_run(lab: Lab) -> None:
    lab.on_phase["gate"] = lambda: (
        lab.backend.crash("c", "worker-1") if lab.phases.count("gate") == 2 else None
    )
    results = lab.runner().repeat(lab.request(), 5)
    assert [r["status"] for r in results] == ["completed", "aborted"]
    assert lab.backend.clusters() == []


# -- Ctrl-C and worse ----------------------------------------------------------------------------------


@pytest.mark.parametrize("phase", ["create", "gate", "load", "faults", "recover"])
def test_ctrl_c_once_heals_collects_and_takes_down(lab: Lab, phase: str) -> None:
    lab.on_phase[phase] = lambda: signal.raise_signal(signal.SIGINT)
    result = lab.run()
    history = lab.history(result)
    assert (result["status"], exit_code(result)) == ("interrupted", 4)
    # In the first phase there is nothing yet to take down.
    assert lab.phases[lab.phases.index("heal") :] == [
        *("heal", "collect"),
        *(["down"] if phase != "create" else []),
    ]
    assert len(history.of("fault.inject")) == len(history.of("fault.healed"))
    assert lab.backend.clusters() == []
    assert [op.index for op in history.ops] == list(range(len(history)))


def test_ctrl_c_while_cleaning_up_changes_nothing(lab: Lab) -> None:
    lab.on_phase["heal"] = lambda: signal.raise_signal(signal.SIGINT)
    result = lab.run()
    assert (result["status"], result["verdict"]) == ("completed", "valid")
    assert lab.backend.clusters() == []


def test_the_handlers_of_signals_are_put_back(lab: Lab) -> None:
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    lab.run()
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


TWICE = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from fakes import Lab

lab = Lab(Path({root!r}))
lab.on_phase["recover"] = lambda: os.kill(os.getpid(), signal.SIGINT)
lab.on_phase["heal"] = lambda: os.kill(os.getpid(), signal.SIGINT)
lab.run()
print("not reached")
"""


def test_ctrl_c_twice_stops_at_once_and_says_how_to_clean_up(tmp_path: Path) -> None:
    here = Path(__file__).parent
    done = subprocess.run(
        [sys.executable, "-c", TWICE.format(tests=str(here), root=str(tmp_path))],
        cwd=here.parent,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 4
    assert "python -m simulator down --name c" in done.stderr
    assert done.stdout == ""
    history = Store(tmp_path).find("latest").history()
    assert history.of("fault.inject")
    assert history.last("run.end") is None


def killed_run(lab: Lab) -> RunDir:
    """A run whose orchestrator was killed in the middle of its recovery.

    It is the directory as it was at that moment: the thread that reads the observer's lines does not die with
    an exception as it would with its process.
    """
    left = lab.root.parent / "killed"

    def kill(history: History) -> None:
        if history.first("fault.effect") and len(history.of("task.start")) > 40:
            shutil.copytree(lab.root, left, symlinks=True)
            raise Killed

    lab.on_tick = kill
    with pytest.raises(Killed):
        lab.run(keep=True)
    return Store(left).find("latest")


def test_a_killed_orchestrator_leaves_every_start_that_was_written(lab: Lab) -> None:
    run = killed_run(lab)
    received = len(run.history().of("task.start"))
    # The cluster goes on without its orchestrator.
    lab.backend.simulated_clock.sleep(5.0)
    assert salvage(lab.backend, "c", run.path) == []
    result = judge_run(run)
    written = [
        json.loads(line)["data"]["exec"]
        for path in (run.path / "ledger").glob("*.jsonl")
        for line in path.read_text().splitlines()
        if json.loads(line)["kind"] == "task.start"
    ]
    told = [op.data["exec"] for op in run.history().of("task.start")]
    assert len(written) > received
    assert sorted(told) == sorted(written)
    assert result["status"] == "interrupted"
    assert result["verdict"] == "unknown"
    assert exit_code(result) == 4
    assert Path(result["report"]).is_file()
    assert (run.path / "logs" / "head" / "pid1.log").is_file()
    assert (run.path / "logs" / "observer.jsonl").read_text().count("observer.end") == 1


def test_salvaging_twice_gives_the_same(lab: Lab) -> None:
    run = killed_run(lab)
    salvage(lab.backend, "c", run.path)
    first = judge_run(run)
    salvage(lab.backend, "c", run.path)
    assert judge_run(run) == first


def test_salvage_gives_each_run_of_a_cluster_its_own_ledger(lab: Lab) -> None:
    first = lab.run(keep=True)
    second = Lab(lab.root, lab.backend)

    def kill(history: History) -> None:
        if history.first("fault.effect"):
            raise Killed

    second.on_tick = kill
    with pytest.raises(Killed):
        second.run(reuse="c", seed=8)
    label = lab.backend.cluster("c").run_dir
    assert label == Path(first["run_dir"])
    shutil.rmtree(label / "ledger")
    salvage(lab.backend, "c", label)
    mine = second.latest().path / "ledger"
    assert mine != label / "ledger"
    assert (mine / "driver.jsonl").read_text() != (label / "ledger" / "driver.jsonl").read_text()
    assert judge_run(RunDir(label))["verdict"] == first["verdict"]


def test_a_run_can_be_judged_again_from_its_directory_alone(lab: Lab) -> None:
    result = lab.run()
    run = RunDir(Path(result["run_dir"]))
    again = judge_run(run)
    assert again == run.result() == result
    assert run_view(run.path).params["tasks"] == 60


OWN = """
from simulator import Experiment, Finding, TaskStream, Verdict, register_check

class Own(Experiment):
    name = "own"
    claim = "It has a check of its own."
    checks = ("no_task_lost", "own_check_of_this_test")

    def workload(self, params):
        return TaskStream(tasks=10)

    def schedule(self, params, topology):
        return []

register_check("own_check_of_this_test", lambda view: Finding("own_check_of_this_test", Verdict.VALID, "so it is"))
"""

JUDGE = """
import sys
from pathlib import Path
from simulator.runner import judge_run
from simulator.store import RunDir
print(judge_run(RunDir(Path(sys.argv[1])))["findings"])
"""


def test_a_check_of_ones_own_judges_again_in_another_process_without_the_file(
    lab: Lab, tmp_path: Path
) -> None:
    path = tmp_path / "own.py"
    path.write_text(OWN)
    lab.experiment = load_experiment(str(path))
    request = RunRequest(
        experiment=lab.experiment,
        params=lab.experiment.parse_params([]),
        topology=topology(),
        source=str(path),
    )
    result = lab.runner().run(request)
    assert result["verdict"] == "valid"
    path.unlink()
    done = subprocess.run(
        [sys.executable, "-c", JUDGE, result["run_dir"]],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.strip() == str(result["findings"])


def test_what_hangs_while_collecting_is_left_behind(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    release = threading.Event()
    monkeypatch.setattr("simulator.runner.runner.COLLECT_S", 0.05)
    lab.backend.before("fetch_ledger", lambda: (release.wait(30), None)[1])
    result = lab.run()
    release.set()
    assert "collecting ledger and logs did not happen within 0.05 s" in result["error"]
    assert result["verdict"] == "valid"
    assert lab.backend.clusters() == []


def test_a_history_cut_in_mid_line_is_judged_up_to_there(lab: Lab) -> None:
    run = RunDir(Path(lab.run()["run_dir"]))
    text = run.history_path.read_text()
    cut = text.index('"kind":"fault.healed"') + 5
    run.history_path.write_text(text[:cut])
    shutil.rmtree(run.path / "ledger")
    result = judge_run(run)
    assert result["status"] == "interrupted"
    assert result["verdict"] == "unknown"
    line = text[:cut].count("\n") + 1
    assert (
        result["truncated"]
        == f"line {line} of history.jsonl is cut off; judged up to line {line - 1}"
    )


def test_the_exit_code_of_a_run_that_could_not_run_is_4() -> None:
    for status in ("failed", "aborted", "interrupted"):
        assert exit_code({"status": status, "verdict": "valid"}) == 4
    for verdict, code in (("valid", 0), ("invalid", 1), ("unknown", 3)):
        assert exit_code({"status": "completed", "verdict": verdict}) == code


def test_nothing_of_a_run_is_left_running(lab: Lab) -> None:
    before = set(threading.enumerate())
    lab.run()
    assert set(threading.enumerate()) == before
    assert os.environ.get("RAY_SIM_CLUSTER") is None
    assert isinstance(lab.request(), RunRequest)
