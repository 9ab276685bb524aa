"""What a program promises, on real Ray: kept when a worker dies, and each promise seen broken.

One cluster for each backend serves all of these runs.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fakes import finding
from real import running

from simulator.checkers.base import RunView, Verdict
from simulator.checkers.registry import run_checks
from simulator.cluster import Cluster
from simulator.experiment import load_experiment
from simulator.history import History
from simulator.runner import Runner, RunRequest
from simulator.store import RunDir, Store
from simulator.topology import load_topology

pytestmark = pytest.mark.acceptance

BACKENDS = [
    pytest.param("process", marks=pytest.mark.real_process),
    pytest.param("docker", marks=pytest.mark.real_docker),
]
ON_DOCKER = pytest.mark.parametrize(
    "cluster", [pytest.param("docker", marks=pytest.mark.real_docker)], indirect=True
)
TOPOLOGY = load_topology("cpu_only").with_workers(3)


@pytest.fixture(scope="module", params=BACKENDS)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with running(request.param, TOPOLOGY, "sem") as cluster:
        yield cluster


def run(
    cluster: Cluster, folder: Path, *params: str, experiment: str = "promises"
) -> dict[str, Any]:
    loaded = load_experiment(experiment)
    request = RunRequest(
        experiment=loaded,
        params=loaded.parse_params(params),
        topology=TOPOLOGY,
        source=experiment,
        seed=1,
        reuse=cluster.name,
    )
    result = Runner(cluster.backend, Store(folder)).run(request)
    assert result["status"] == "completed", result["error"]
    return result


def not_valid(result: dict[str, Any]) -> dict[str, str]:
    return {f["check"]: f["verdict"] for f in result["findings"] if f["verdict"] != "valid"}


def history_of(result: dict[str, Any]) -> History:
    return RunDir(Path(result["run_dir"])).history()


def test_every_promise_is_kept_when_a_worker_dies(cluster: Cluster, tmp_path: Path) -> None:
    result = run(cluster, tmp_path)
    assert not_valid(result) == {}, result["findings"]
    assert finding(result, "at_most_once")["metrics"]["interrupted"] >= 1
    assert finding(result, "one_incarnation")["metrics"]["incarnations"] >= 4
    assert finding(result, "groups_whole")["metrics"]["lost_bundles"] >= 1
    assert finding(result, "effects_exactly_once")["metrics"]["keys"] >= 80


def test_a_charge_that_is_submitted_with_retries_is_executed_twice(
    cluster: Cluster, tmp_path: Path
) -> None:
    result = run(cluster, tmp_path, "violation=retried")
    assert not_valid(result) == {"at_most_once": "invalid"}, result["findings"]
    assert "teller-worker-" in finding(result, "at_most_once")["summary"]


def test_a_deed_without_an_idempotency_key_is_done_twice(cluster: Cluster, tmp_path: Path) -> None:
    result = run(cluster, tmp_path, "violation=repeated")
    assert not_valid(result) == {"effects_exactly_once": "invalid"}, result["findings"]
    assert "happened more than once: order-" in finding(result, "effects_exactly_once")["summary"]


def test_an_actor_on_a_node_that_thaws_after_it_was_replaced_lives_twice(
    cluster: Cluster, tmp_path: Path
) -> None:
    result = run(cluster, tmp_path, "fault=pause", "lasts=15")
    assert not_valid(result) == {"one_incarnation": "invalid"}, result["findings"]
    found = finding(result, "one_incarnation")
    ops = {op.index: op for op in history_of(result)}
    cited = [ops[i] for i in found["cites"]]
    victim = next(op.node for op in ops.values() if op.kind == "fault.inject")
    thawed = next(op for op in ops.values() if op.kind == "engine.unpause")
    old = [op for op in cited if op.node == victim]
    # The old one wrote after the engine had thawed its node, and after the new one had begun.
    assert any(op.wall > thawed.wall - 0.5 and op.data["actor"] == f"teller-{victim}" for op in old)
    assert {op.kind for op in cited} >= {"actor.start"}


@ON_DOCKER
def test_an_actor_on_a_node_that_ray_cannot_reach_lives_twice(
    cluster: Cluster, tmp_path: Path
) -> None:
    result = run(cluster, tmp_path, "fault=partition", "lasts=20")
    assert not_valid(result) == {"one_incarnation": "invalid"}, result["findings"]
    # It was there all the time, not only when it could be reached again.
    assert finding(result, "one_incarnation")["metrics"]["longest_overlap_s"] > 5


def test_a_bundle_whose_node_stays_away_leaves_its_group_broken(
    cluster: Cluster, tmp_path: Path
) -> None:
    try:
        result = run(cluster, tmp_path, "comes_back=false")
    finally:
        cluster.start_nodes([n.name for n in cluster.record().nodes if n.state == "exited"])
    # Nor does the last roll call come back from it.
    assert not_valid(result) == {"groups_whole": "invalid", "no_task_lost": "invalid"}, result[
        "findings"
    ]
    assert "RESCHEDULING" in finding(result, "groups_whole")["summary"]


def test_tasks_that_are_never_retried_run_at_most_once(cluster: Cluster, tmp_path: Path) -> None:
    result = run(cluster, tmp_path, "max_retries=0", experiment="node_failure")
    run_dir = RunDir(Path(result["run_dir"]))
    (found,) = run_checks(RunView(run_dir.history(), run_dir.spec()), ["at_most_once"])
    assert found.verdict is Verdict.VALID, found
    assert found.metrics["interrupted"] >= 1


def test_an_actor_that_outlives_its_program_leaves_its_resources_in_use(
    cluster: Cluster, tmp_path: Path
) -> None:
    """The last of these runs: what it leaves behind is there until the cluster goes."""
    result = run(cluster, tmp_path, "violation=leaked")
    assert not_valid(result) == {"resources_free": "invalid", "healed": "invalid"}, result[
        "findings"
    ]
    assert "0.25 of 1 CPU still in use" in finding(result, "resources_free")["summary"]
