"""The main job on real Ray: valid when it should be, invalid and unknown when it should be.

One cluster for each backend serves all of these runs; a run by itself starts, breaks, judges and leaves it whole.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real import running

from simulator.cluster import Cluster
from simulator.experiment import PHASES, load_experiment
from simulator.history import read_history
from simulator.runner import Runner, RunRequest, exit_code
from simulator.store import Store
from simulator.topology import Profile, Topology, load_topology

BACKENDS = [
    pytest.param("process", marks=pytest.mark.real_process),
    pytest.param("docker", marks=pytest.mark.real_docker),
]


def nodes_on(backend: str) -> Topology:
    """A head and three workers; where that is possible, one of them is lean."""
    topology = load_topology("default")
    if backend != "docker":
        return topology
    whole = topology.worker_groups[0].model_copy(update={"replicas": 2})
    lean = (
        load_topology("lean")
        .worker_groups[0]
        .model_copy(update={"group_name": "lean", "replicas": 1})
    )
    return topology.model_copy(update={"name": "mixed", "worker_groups": [whole, lean]})


@pytest.fixture(scope="module", params=BACKENDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with running(request.param, nodes_on(request.param), "main") as cluster:
        yield cluster


def run(cluster: Cluster, folder: Path, *params: str, seed: int = 1) -> dict[str, Any]:
    experiment = load_experiment("node_failure")
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(params),
        topology=nodes_on(cluster.backend.name),
        source="node_failure",
        seed=seed,
        reuse=cluster.name,
    )
    return Runner(cluster.backend, Store(folder)).run(request)


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {f["check"]: f["verdict"] for f in result["findings"]}


def test_a_worker_dies_and_nothing_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    # Tasks so long that one is still under way when the kill takes effect, on a busy machine too.
    result = run(cluster, tmp_path, "task_seconds=1", "tasks=80")
    assert result["status"] == "completed", result["error"]
    assert set(verdicts(result).values()) == {"valid"}, result["findings"]
    assert exit_code(result) == 0
    assert {name: s is not None for name, s in result["recovery"].items()} == {
        f"{phase}_s": True for phase in PHASES
    }
    history = read_history(Path(result["run_dir"]) / "history.jsonl")
    order = ["fault.plan", "fault.inject", "engine.die", "fault.effect", "fault.healed", "run.end"]
    positions = [op.index for kind in order if (op := history.first(kind))]
    assert len(positions) == len(order)
    assert positions == sorted(positions)
    assert Path(result["report"]).stat().st_size > 10_000


def test_without_retries_tasks_are_lost_and_named(cluster: Cluster, tmp_path: Path) -> None:
    result = run(cluster, tmp_path, "max_retries=0", seed=2)
    assert result["verdict"] == "invalid"
    assert exit_code(result) == 1
    lost = next(f for f in result["findings"] if f["check"] == "no_task_lost")
    assert lost["verdict"] == "invalid"
    history = read_history(Path(result["run_dir"]) / "history.jsonl")
    failed = [op.data["key"] for op in history.of("driver.failure")]
    assert failed
    text = " ".join([lost["summary"], *lost["details"]])
    assert all(key in text for key in failed[:3])


def test_a_fault_after_the_work_is_done_proves_nothing(cluster: Cluster, tmp_path: Path) -> None:
    result = run(cluster, tmp_path, "tasks=8", "at=8", seed=3)
    assert result["status"] == "completed", result["error"]
    assert result["verdict"] == "unknown"
    assert exit_code(result) == 3
    assert verdicts(result)["fault_hit_work"] == "unknown"
    assert verdicts(result)["no_task_lost"] == "valid"


@pytest.mark.acceptance
@pytest.mark.parametrize(
    "cluster", [pytest.param("docker", marks=pytest.mark.real_docker)], indirect=True
)
def test_a_lean_worker_dies_and_nothing_is_lost(cluster: Cluster, tmp_path: Path) -> None:
    assert cluster.node("lean-1").profile is Profile.LEAN
    result = run(cluster, tmp_path, "victim=lean-1", seed=4)
    assert result["status"] == "completed", result["error"]
    assert set(verdicts(result).values()) == {"valid"}, result["findings"]
    history = read_history(Path(result["run_dir"]) / "history.jsonl")
    assert {op.node for op in history.of("task.start")} >= {"lean-1"}
    report = Path(result["report"]).read_text(encoding="utf-8")
    assert "lean (lean)" in report


def test_every_node_is_alive_and_at_rest_after_the_runs(cluster: Cluster) -> None:
    status = cluster.status()
    assert {n.name: n.state for n in status.nodes} == {
        n.name: "alive" for n in nodes_on(cluster.backend.name).nodes()
    }
    assert status.ray["resources"]["CPU"][0] == 0
