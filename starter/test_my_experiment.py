"""Tests of my_experiment.py in memory, on the fake backend: they find mistakes in the experiment.

What Ray does only a real run shows: python -m simulator run ./my_experiment.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from simulator import FakeBackend, Runner, RunRequest, Store, load_experiment, load_topology

EXPERIMENT = str(Path(__file__).with_name("my_experiment.py"))


@pytest.fixture
def backend() -> FakeBackend:
    return FakeBackend(seed=1)


def run(backend: FakeBackend, runs: Path, *params: str) -> dict[str, Any]:
    experiment = load_experiment(EXPERIMENT)
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(params),
        topology=load_topology(experiment.topology),
        source=EXPERIMENT,
        seed=1,
        name="test",
    )
    return Runner(backend, Store(runs)).run(request)


def verdicts(result: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["verdict"] for finding in result["findings"]}


def test_the_claim_holds_on_a_cluster_that_does_what_it_should(
    backend: FakeBackend, tmp_path: Path
) -> None:
    result = run(backend, tmp_path)
    assert (result["status"], result["verdict"]) == ("completed", "valid"), result["findings"]


# A check that was never seen to fail tells nothing: break each promise once.


def test_a_lost_task_is_found(backend: FakeBackend, tmp_path: Path) -> None:
    backend.lose_task("t-30")
    assert verdicts(run(backend, tmp_path))["no_task_lost"] == "invalid"


def test_much_work_done_twice_is_found(backend: FakeBackend, tmp_path: Path) -> None:
    assert verdicts(run(backend, tmp_path, "at_most=0"))["little_redone"] == "invalid"


def test_a_fault_without_effect_is_no_success(backend: FakeBackend, tmp_path: Path) -> None:
    for worker in ("worker-1", "worker-2"):
        backend.without_effect("kill", worker)
    assert run(backend, tmp_path)["verdict"] == "unknown"
