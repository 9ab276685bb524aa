"""Placement on real Ray: valid when tasks ask for what they need, invalid when one kind does not.

One small cluster for each backend serves both runs: the topology `hybrid` with one worker of each group.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import finding
from real import running

from simulator.cluster import Cluster
from simulator.experiment import load_experiment
from simulator.history import read_history
from simulator.runner import Runner, RunRequest, exit_code
from simulator.store import Store
from simulator.topology import load_topology, override

BACKENDS = [
    pytest.param("process", marks=pytest.mark.real_process),
    pytest.param("docker", marks=pytest.mark.real_docker),
]

TOPOLOGY = override(
    load_topology("hybrid"), ["worker_groups.gpu.replicas=1", "worker_groups.cpu.replicas=1"]
)


@pytest.fixture(scope="module", params=BACKENDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with running(request.param, TOPOLOGY, "place") as cluster:
        yield cluster


def run(cluster: Cluster, folder: Path, *params: str) -> dict[str, Any]:
    experiment = load_experiment("task_placement")
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(["tasks=14", *params]),
        topology=TOPOLOGY,
        source="task_placement",
        seed=1,
        reuse=cluster.name,
    )
    return Runner(cluster.backend, Store(folder)).run(request)


def test_tasks_that_ask_for_what_they_need_are_placed_right(
    cluster: Cluster, tmp_path: Path
) -> None:
    result = run(cluster, tmp_path)
    assert result["status"] == "completed", result["error"]
    assert {f["verdict"] for f in result["findings"]} == {"valid"}, result["findings"]
    assert exit_code(result) == 0
    ran = finding(result, "placed_right")["metrics"]["ran"]
    assert set(ran["whole_gpu"]) == set(ran["half_gpu"]) == set(ran["labelled"]) == {"gpu-1"}
    assert set(ran["custom"]) == {"cpu-1"}
    starts = read_history(Path(result["run_dir"]) / "history.jsonl").of("task.start")
    given = {op.data["key"].rpartition("-")[0]: op.data["gpu_ids"] for op in starts}
    assert given["cpu_only"] == []
    assert len(given["whole_gpu"]) == len(given["half_gpu"]) == 1


def test_a_gpu_that_was_not_asked_for_is_found_with_task_and_node(
    cluster: Cluster, tmp_path: Path
) -> None:
    result = run(cluster, tmp_path, "violation=gpu_not_asked")
    assert result["status"] == "completed", result["error"]
    assert exit_code(result) == 1
    assert {f["check"] for f in result["findings"] if f["verdict"] != "valid"} == {"placed_right"}
    found = finding(result, "placed_right")["summary"]
    assert re.search(r"whole_gpu-\d+ (ran )?on (head|gpu-1|cpu-1): it needs 1 GPU", found), found
