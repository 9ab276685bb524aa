"""Unmodified scripts (``tests/apps``) under real faults: undisturbed valid, killed valid, without retries invalid.

One cluster for each backend serves all runs. Each fault waits until its node is at work, so that no result
depends on how long a machine takes to begin.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real import running

from simulator.chaos import Chaos
from simulator.cluster import Cluster
from simulator.faults import Kill
from simulator.history import Op
from simulator.jobs import plan_program
from simulator.runner import Runner, RunRequest, exit_code
from simulator.schedule import After, Named, Step
from simulator.schedule.conditions import Condition, Watch
from simulator.store import RunDir, Store
from simulator.topology import load_topology
from simulator.workload import Script

APPS = Path(__file__).parent / "apps"
KILL = Step(1, Kill(), Named("worker-1"), After(2), when_busy=True)

PROCESS = pytest.param("process", marks=pytest.mark.real_process)
DOCKER = pytest.param("docker", marks=pytest.mark.real_docker)


@pytest.fixture(scope="module")
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with running(request.param, load_topology("default"), "chaos") as cluster:
        yield cluster


def run(
    cluster: Cluster,
    folder: Path,
    script: str,
    *arguments: str,
    baseline: bool = False,
    step: Step = KILL,
) -> list[dict[str, Any]]:
    program = plan_program(str(APPS / script), arguments)
    chaos = Chaos(Script(program, timeout_s=120), [step])

    def asked(experiment: Chaos) -> RunRequest:
        return RunRequest(
            experiment=experiment,
            params=experiment.params,
            topology=load_topology("default"),
            source="chaos",
            seed=1,
            reuse=cluster.name,
        )

    runner = Runner(cluster.backend, Store(folder))
    alone = asked(chaos.undisturbed()) if baseline else None
    return runner.repeat(asked(chaos), 1, baseline=alone)


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {f["check"]: f["verdict"] for f in result["findings"]}


def summaries(result: dict[str, Any]) -> dict[str, str]:
    return {f["check"]: f["summary"] for f in result["findings"]}


#: Arguments that keep every node at work for some seconds, and what switches retries off.
SCRIPTS = {
    "map_tasks.py": (("--tasks", "12", "--seconds", "2"), ("--max-retries", "0")),
    "actor_pool.py": (
        ("--actors", "4", "--calls", "24", "--seconds", "1"),
        ("--max-restarts", "0"),
    ),
    "pipeline.py": (("--blocks", "8", "--seconds", "2"), ("--max-retries", "0")),
}
EACH = pytest.mark.parametrize(
    "script",
    [
        pytest.param(name, marks=() if name == "map_tasks.py" else pytest.mark.acceptance)
        for name in SCRIPTS
    ],
)


@EACH
@pytest.mark.parametrize("cluster", [PROCESS], indirect=True)
def test_a_script_is_valid_undisturbed_and_when_a_worker_dies(
    cluster: Cluster, tmp_path: Path, script: str
) -> None:
    work, _ = SCRIPTS[script]
    alone, killed = run(cluster, tmp_path, script, *work, baseline=True)
    for result in (alone, killed):
        assert result["status"] == "completed", result["error"]
        assert set(verdicts(result).values()) == {"valid"}, result["findings"]
        assert exit_code(result) == 0
    assert alone["program"]["retried"] == 0
    program = killed["program"]
    assert program["retried"] + program["restarted"] >= 1
    assert (program["exit_code"], program["lost"]) == (0, 0)
    assert program["baseline_s"] == alone["program"]["seconds"]
    printed = (Path(killed["run_dir"]) / "program.log").read_text()
    assert "sum is" in printed


@EACH
@pytest.mark.parametrize("cluster", [PROCESS], indirect=True)
def test_a_script_without_retries_is_invalid_and_what_it_lost_is_named(
    cluster: Cluster, tmp_path: Path, script: str
) -> None:
    work, switched_off = SCRIPTS[script]
    (result,) = run(cluster, tmp_path, script, *work, *switched_off)
    assert (result["status"], result["verdict"]) == ("completed", "invalid"), result["error"]
    assert exit_code(result) == 1
    assert verdicts(result)["program_ended_well"] == "invalid"
    assert "failed with exit code 1" in summaries(result)["program_ended_well"]
    assert verdicts(result)["fault_hit_work"] == "valid"
    assert verdicts(result)["healed"] == "valid"
    assert verdicts(result)["attempts_recovered"] == "invalid"
    assert "worker-1" in summaries(result)["attempts_recovered"]


class Shipped(Condition):
    """An order was shipped from worker-1, and its task goes on for seconds."""

    def watch(self) -> Watch:
        return ShippedWatch()

    def __str__(self) -> str:
        return "worker-1 has shipped an order"


class ShippedWatch:
    true = False

    def see(self, op: Op) -> None:
        self.true |= op.kind == "program.effect" and op.node == "worker-1"


@pytest.mark.parametrize("cluster", [PROCESS], indirect=True)
def test_process_nodes_can_import_what_a_script_reports_with(cluster: Cluster) -> None:
    argv = ["python", "-c", "import ray_sim; print(ray_sim.__file__)"]
    for node in ("head", "worker-1"):
        done = cluster.backend.execute(cluster.name, node, argv)
        assert "innode/importable/ray_sim.py" in done.output


@pytest.mark.parametrize("cluster", [DOCKER], indirect=True)
def test_what_a_script_reports_comes_from_every_node_and_an_effect_that_came_twice_is_named(
    cluster: Cluster, tmp_path: Path
) -> None:
    work = ("--orders", "12", "--seconds", "4", "--ship-first")
    kill = Step(0, Kill(), Named("worker-1"), After(2), when=Shipped())
    (result,) = run(cluster, tmp_path, "orders.py", *work, step=kill)
    assert result["status"] == "completed", result["error"]
    wrong = {check for check, verdict in verdicts(result).items() if verdict != "valid"}
    assert wrong == {"effects_exactly_once"}, result["findings"]
    assert "more than once: order-" in summaries(result)["effects_exactly_once"]
    assert exit_code(result) == 1
    history = RunDir(Path(result["run_dir"])).history()
    effects = history.of("program.effect")
    assert len({op.data["key"] for op in effects}) == 12 < len(effects)
    assert {op.node for op in effects} > {"worker-1"}
    assert all(op.data["task_id"] for op in effects)
    marks = {op.data["name"]: op.data for op in history.of("program.mark")}
    assert marks["effects"]["value"] == marks["booked"]["value"] == 12
    assert marks["effects"]["task_id"] is None
    assert marks["booked"]["task_id"]
