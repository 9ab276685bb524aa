"""Faults of one process on the fake backend: which one is struck, its proof, its undo. The logic, not the fact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, cluster_up, fake, fake_of, finding, state

from simulator.backends.base import SIGNAL, CanSignal, NodeProcess
from simulator.backends.fake import FakeBackend
from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun
from simulator.experiment import load_experiment
from simulator.faults import (
    FAULTS,
    CrashProcess,
    Fault,
    FreezeProcess,
    Missed,
    Site,
    fault_from_data,
)
from simulator.faults.processes import ProcessFault
from simulator.schedule import After, Named, Step

CORE: list[ProcessFault] = [
    CrashProcess("raylet"),
    CrashProcess("raylet", signal="SIGTERM"),
    CrashProcess("agent"),
    CrashProcess("runtime_env_agent"),
    FreezeProcess("raylet"),
    FreezeProcess("agent"),
]


@pytest.fixture
def cluster() -> Cluster:
    return cluster_up(fake())


def struck(cluster: Cluster, fault: Fault, node: str = "worker-1") -> Site:
    site = fault.locate(cluster, Site(node))
    fault.inject(cluster, site)
    cluster.clock.sleep(1.0)
    return site


def ray_id(cluster: Cluster, node: str = "worker-1") -> str | None:
    return next(n.ray_node_id for n in cluster.status().nodes if n.name == node)


@pytest.mark.parametrize("fault", CORE, ids=str)
@pytest.mark.parametrize("wait", [0, 60], ids=["at once", "after detection"])
def test_inject_heal_and_heal_again(cluster: Cluster, fault: Fault, wait: float) -> None:
    site = struck(cluster, fault)
    assert fault.holds(cluster, site)
    cluster.clock.sleep(wait)
    assert fault.heal(cluster, site, 60)
    assert state(cluster) == "alive"
    assert fault.lingers(cluster, site) == ""
    alive = ray_id(cluster)
    assert fault.heal(cluster, site, 60)
    assert (state(cluster), ray_id(cluster)) == ("alive", alive)


@pytest.mark.parametrize("fault", CORE, ids=str)
def test_healing_what_was_never_broken_changes_nothing(cluster: Cluster, fault: Fault) -> None:
    before = ray_id(cluster)
    site = fault.locate(cluster, Site("worker-1"))
    assert fault.heal(cluster, site, 60)
    assert ray_id(cluster) == before


@pytest.mark.parametrize("fault", [CrashProcess("raylet"), FreezeProcess("agent")], ids=str)
def test_a_signal_without_effect_does_not_hold(cluster: Cluster, fault: Fault) -> None:
    fake_of(cluster).without_effect("signal_process", "worker-1")
    site = struck(cluster, fault)
    assert fault.holds(cluster, site) == ""


def test_the_supervisor_says_by_its_exit_code_what_died(cluster: Cluster) -> None:
    struck(cluster, CrashProcess("raylet"))
    assert cluster.node("worker-1").exit_code == 11
    struck(cluster, CrashProcess("gcs"), "head")
    assert cluster.node("head").exit_code == 13


def test_a_raylet_frozen_for_long_is_given_up_and_one_frozen_for_a_moment_is_not(
    cluster: Cluster,
) -> None:
    fault, before = FreezeProcess("raylet"), ray_id(cluster)
    site = struck(cluster, fault)
    assert fault.heal(cluster, site, 60) == "continued; it was running already"
    assert ray_id(cluster) == before
    site = struck(cluster, fault)
    cluster.clock.sleep(20)
    assert "joined as a new node" in fault.heal(cluster, site, 60)
    assert ray_id(cluster) != before


def test_a_stopped_process_is_swept_without_a_history(cluster: Cluster) -> None:
    site = struck(cluster, FreezeProcess("agent"))
    assert [how for kind in FAULTS.values() if (how := kind.sweep(cluster, "worker-1"))] == [
        "1 stopped processes continued"
    ]
    assert FreezeProcess("agent").lingers(cluster, site) == ""


def test_a_later_process_of_that_pid_is_not_the_one_that_was_struck(cluster: Cluster) -> None:
    fault = FreezeProcess("raylet")
    site = struck(cluster, fault)
    before = cluster.backend
    assert isinstance(before, CanSignal)
    fake_of(cluster).kill("c", "worker-1")
    cluster.start_nodes(["worker-1"])
    (now,) = [p for p in before.processes("c", "worker-1") if p.name == "raylet"]
    assert now.pid == site.details["pid"]
    assert fault.holds(cluster, site) == ""
    assert CrashProcess("raylet").holds(cluster, site)
    assert fault.heal(cluster, site, 60) == "the process is gone; it was running already"
    with pytest.raises(Missed, match="had ended by itself"):
        fault.inject(cluster, site)


def test_a_node_that_ends_while_it_is_looked_into_has_lost_its_process(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault, backend = CrashProcess("raylet"), fake_of(cluster)
    site = fault.locate(cluster, Site("worker-1"))

    def cut_off(self: FakeBackend, cluster: str, node: str) -> list[NodeProcess]:
        backend.later(0.5, lambda: backend.crash("c", "worker-1", 11))
        raise CannotRun("worker-1 ended meanwhile")

    with monkeypatch.context() as patched:
        patched.setattr(FakeBackend, "processes", cut_off)
        assert fault.holds(cluster, site)
        cluster.start()
        patched.setattr(backend, "later", lambda *_: None)
        with pytest.raises(CannotRun, match="ended meanwhile"):
            fault.holds(cluster, site)


# ---- workers


def lab_with(root: Path, steps: Sequence[Step]) -> Lab:
    kind = type(load_experiment("node_failure"))

    class Other(kind):  # type: ignore[misc, valid-type]
        def schedule(self, params: Any, topology: Any) -> Sequence[Step]:
            return steps

        def problems(self, params: Any, topology: Any) -> Sequence[Any]:
            return ()

    return Lab(root, experiment=Other())


def test_the_worker_of_a_task_is_killed_and_its_node_lives_on(tmp_path: Path) -> None:
    fault = CrashProcess("task:square_sum")
    lab = lab_with(tmp_path, [Step(4.0, fault, Named("worker-1"), heal=After(1.0), when_busy=True)])
    result = lab.run()
    history = lab.history(result)
    (effect,) = history.of("fault.effect")
    assert effect.data["verified"]
    assert "(ray::t-" in effect.data["how"]
    (healed,) = history.of("fault.healed")
    assert healed.data["how"] == "Ray replaces its workers itself; it was running already"
    assert not history.of("engine.die")
    assert [op.data["error_type"] for op in history.of("attempt.failed")] == ["WORKER_DIED"]
    assert finding(result, "no_task_lost")["verdict"] == "valid"
    plan = history.of("fault.plan")[0].data
    assert plan["site"]["details"]["title"].startswith("ray::t-")
    assert fault_from_data(json.loads(json.dumps(plan["parameters"]))) == fault


def test_the_worker_of_a_named_actor_is_killed_and_the_actor_restarts(tmp_path: Path) -> None:
    lab = lab_with(
        tmp_path,
        [Step(4.0, CrashProcess("actor:counter-worker-1"), Named("worker-1"), heal=After(1.0))],
    )
    result = lab.run()
    history = lab.history(result)
    assert history.of("fault.effect")[0].data["verified"]
    states = [op.data["state"] for op in history.of("ray.actor") if "worker-1" in op.data["name"]]
    assert states[:4] == ["PENDING_CREATION", "ALIVE", "RESTARTING", "ALIVE"]


def test_a_process_that_is_not_there_is_a_fault_that_was_skipped(tmp_path: Path) -> None:
    lab = lab_with(
        tmp_path, [Step(4.0, CrashProcess("actor:nobody"), Named("worker-1"), heal=After(1.0))]
    )
    result = lab.run()
    (skipped,) = lab.history(result).of("fault.skipped")
    assert "worker-1 runs no actor:nobody" in skipped.data["why"]
    assert finding(result, "fault_hit_work")["verdict"] == "unknown"


def test_a_process_that_ends_before_it_is_struck_leaves_the_fault_unverified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab = lab_with(tmp_path, [Step(4.0, CrashProcess(), Named("worker-1"), heal=After(1.0))])

    def gone(self: FakeBackend, cluster: str, node: str, process: NodeProcess, n: Any) -> bool:
        return False

    monkeypatch.setattr(FakeBackend, "signal_process", gone)
    result = lab.run()
    history = lab.history(result)
    assert result["status"] == "completed"
    (effect,) = history.of("fault.effect")
    assert not effect.data["verified"]
    assert not history.of("fault.done")
    assert history.of("fault.healed")[0].data["verified"]
    assert finding(result, "fault_hit_work")["verdict"] == "unknown"


# ---- refused


def test_only_the_head_runs_a_gcs(tmp_path: Path, cluster: Cluster) -> None:
    with pytest.raises(BadInput, match="crash_process worker-1: runs no GCS"):
        lab_with(tmp_path, [Step(1.0, CrashProcess("gcs"), Named("worker-1"))]).run()
    with pytest.raises(CannotRun, match="worker-1 runs no gcs"):
        CrashProcess("gcs").locate(cluster, Site("worker-1"))


@pytest.mark.parametrize("process", ["", "Raylet", "task:", "actor:", "worker", "job:x"])
def test_a_process_that_nobody_knows_is_refused(process: str) -> None:
    with pytest.raises(ValueError, match="use one of raylet, gcs, agent"):
        CrashProcess(process)
    with pytest.raises(ValueError, match="task:FUNCTION"):
        FreezeProcess(process)


@pytest.mark.parametrize("number", ["SIGSTOP", "KILL", "9"])
def test_a_crash_is_by_one_of_two_signals(number: Any) -> None:
    with pytest.raises(ValueError, match="use SIGKILL or SIGTERM"):
        CrashProcess("raylet", number)


def test_a_backend_without_processes_is_refused_by_name() -> None:
    class Bare:
        name = "bare"

    for fault in (CrashProcess(), FreezeProcess()):
        assert fault.needs is SIGNAL
        assert fault.refused_by(Bare()) == (  # type: ignore[arg-type]
            f"{fault.name} needs a backend that can signal one process of a node; bare does not"
        )
