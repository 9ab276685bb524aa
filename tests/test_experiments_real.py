"""The experiments that come with the package, on a real engine: each valid as it is, and each seen to say otherwise."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import finding
from real import running

from simulator.cluster import Cluster
from simulator.experiment import load_experiment
from simulator.runner import Runner, RunRequest
from simulator.schedule import parse_schedule
from simulator.store import Store
from simulator.topology import load_topology

pytestmark = [pytest.mark.acceptance, pytest.mark.real_docker]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running("docker", load_topology("default"), "exp") as cluster:
        yield cluster


@pytest.fixture(scope="module")
def spilling() -> Iterator[Cluster]:
    with running("docker", load_topology("spilling"), "spill") as cluster:
        yield cluster


def run(
    cluster: Cluster, folder: Path, name: str, params: Sequence[str], schedule: str | None = None
) -> dict[str, Any]:
    experiment = load_experiment(name)
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(params),
        topology=load_topology(experiment.topology),
        source=name,
        seed=1,
        reuse=cluster.name,
        steps=parse_schedule(schedule) if schedule else None,
    )
    result = Runner(cluster.backend, Store(folder)).run(request)
    assert result["status"] == "completed", result["error"]
    return result


@pytest.mark.parametrize(
    "asked",
    [
        "worker_pause",
        "worker_pause seconds=0.5 survived=true",
        "partition_minority",
        "one_way_partition",
        "one_way_partition direction=out",
        "slow_node",
        "slow_node speculate=true",
        "lossy_network",
        "oom_kill",
        "raylet_crash",
        "worker_process_crash",
        "random_chaos faults=5 gap=10",
    ],
)
def test_it_is_valid_as_it_is(cluster: Cluster, tmp_path: Path, asked: str) -> None:
    name, *params = asked.split()
    result = run(cluster, tmp_path, name, params)
    assert result["verdict"] == "valid", result["findings"]


@pytest.mark.parametrize(
    ("asked", "check"),
    [
        ("worker_pause survived=true", "given_up_only_after_a_long_pause"),
        ("partition_minority max_retries=0", "no_task_lost"),
        ("one_way_partition max_retries=0", "no_task_lost"),
        ("lossy_network percent=100 max_retries=0", "no_task_lost"),
        ("oom_kill max_retries=0", "no_task_lost"),
        ("raylet_crash max_retries=0", "no_task_lost"),
        ("worker_process_crash max_retries=0", "no_task_lost"),
        ("random_chaos faults=2 gap=10 max_retries=0", "no_task_lost"),
    ],
)
def test_it_can_be_refuted(cluster: Cluster, tmp_path: Path, asked: str, check: str) -> None:
    name, *params = asked.split()
    result = run(cluster, tmp_path, name, params)
    assert result["verdict"] == "invalid", result["findings"]
    assert finding(result, check)["verdict"] == "invalid", result["findings"]


def test_a_slow_node_that_is_given_up_refutes_it(cluster: Cluster, tmp_path: Path) -> None:
    schedule = "pause one(worker) @10s for 15s busy"
    result = run(cluster, tmp_path, "slow_node", [], schedule)
    assert finding(result, "late_but_alive")["verdict"] == "invalid", result["findings"]


def test_copies_of_late_tasks_shorten_the_wait(cluster: Cluster, tmp_path: Path) -> None:
    found = finding(run(cluster, tmp_path, "slow_node", ["speculate=true"]), "late_but_alive")
    assert found["metrics"]["overtaken"] >= 1
    assert found["metrics"]["longest_s"] <= found["metrics"]["longest_without_copies_s"]


def test_a_full_disk_fails_what_does_not_fit_and_nothing_else(
    spilling: Cluster, tmp_path: Path
) -> None:
    result = run(spilling, tmp_path, "disk_full", [])
    assert result["verdict"] == "valid", result["findings"]
    assert finding(result, "only_what_does_not_fit_fails")["metrics"]["failed"] >= 1


def test_a_full_disk_that_nobody_needs_shows_nothing(spilling: Cluster, tmp_path: Path) -> None:
    result = run(spilling, tmp_path, "disk_full", ["kept=2"])
    assert finding(result, "only_what_does_not_fit_fails")["verdict"] == "unknown"


def test_what_fails_by_another_name_refutes_it(spilling: Cluster, tmp_path: Path) -> None:
    schedule = 'crash_process("task:make_block") one(worker) @10s busy'
    result = run(spilling, tmp_path, "disk_full", ["max_retries=0"], schedule)
    found = finding(result, "only_what_does_not_fit_fails")
    assert found["verdict"] == "invalid", result["findings"]
