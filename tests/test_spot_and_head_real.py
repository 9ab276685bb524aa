"""Spot machines that are taken back, and a head that dies, as their experiments have them, on a real engine."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from fakes import finding

from simulator.backends.docker import DockerBackend
from simulator.experiment import load_experiment
from simulator.runner import Runner, RunRequest
from simulator.store import Store
from simulator.topology import load_topology, override

pytestmark = pytest.mark.real_docker


def run(folder: Path, name: str, *params: str, settings: tuple[str, ...] = ()) -> dict[str, Any]:
    experiment = load_experiment(name)
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(params),
        topology=override(load_topology(experiment.topology), list(settings)),
        source=name,
        seed=1,
        name=f"test-{os.getpid()}-{name.replace('_', '-')}",
    )
    result = Runner(DockerBackend(), Store(folder)).run(request)
    assert result["status"] == "completed", result["error"]
    return result


def test_a_drained_machine_takes_no_task_along_and_a_killed_one_does(tmp_path: Path) -> None:
    result = run(tmp_path, "spot_preemption", "task_seconds=1")
    assert result["verdict"] == "valid", result["findings"]
    killed, _, told = result["losses"]
    assert (told["way"], told["tasks_cut_off"], told["killed_s"] is None) == (
        "preempt, drained", 0, False,
    )  # fmt: skip
    assert killed["tasks_cut_off"] >= 1
    assert result["costs"]["paid"] < result["costs"]["on_demand"]


@pytest.mark.acceptance
def test_a_task_that_is_longer_than_the_notice_is_cut_off(tmp_path: Path) -> None:
    result = run(tmp_path, "spot_preemption", "task_seconds=8", "notice=3")
    assert finding(result, "drained_in_time")["verdict"] == "invalid", result["findings"]


@pytest.mark.parametrize(
    ("store", "kept"),
    [
        ("rocksdb", 10),
        pytest.param("redis", 10, marks=pytest.mark.acceptance),
        pytest.param("memory", 0, marks=pytest.mark.acceptance),
    ],
)
def test_what_its_store_keeps_outlives_the_head(tmp_path: Path, store: str, kept: int) -> None:
    result = run(tmp_path, "head_failure", settings=(f"gcs={store}",))
    assert result["verdict"] == "valid", result["findings"]
    survival = result["survival"]
    assert (survival["store"], survival["head_died"]) == (store, True)
    assert sum(item["survived"] for item in survival["items"]) == kept


@pytest.mark.acceptance
@pytest.mark.parametrize("asked", ["seconds=10", "way=kill seconds=3", "way=partition seconds=8"])
def test_a_store_that_is_away_for_a_while_costs_nothing(tmp_path: Path, asked: str) -> None:
    result = run(tmp_path, "redis_blip", *asked.split())
    assert result["verdict"] == "valid", result["findings"]
