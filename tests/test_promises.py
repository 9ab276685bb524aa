"""The experiment promises, on the fake backend: what is kept, how each promise is seen broken, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from fakes import fake, finding, topology

from simulator.backends.fake import FakeBackend
from simulator.errors import BadInput, CannotRun
from simulator.experiment import load_experiment
from simulator.history import History
from simulator.runner import Runner, RunRequest
from simulator.runner import live as live_module
from simulator.store import RunDir, Store
from simulator.topology import Topology, load_topology, override

EXPERIMENT = load_experiment("promises")


def run(
    folder: Path, *params: str, backend: FakeBackend | None = None, nodes: Topology | None = None
) -> dict[str, Any]:
    request = RunRequest(
        experiment=EXPERIMENT,
        params=EXPERIMENT.parse_params(params),
        topology=nodes or topology(),
        source="promises",
        seed=1,
        name="c",
    )
    result = Runner(backend or fake(), Store(folder)).run(request)
    assert result["status"] == "completed", result["error"]
    return result


def history_of(result: dict[str, Any]) -> History:
    return RunDir(Path(result["run_dir"])).history()


def not_valid(result: dict[str, Any]) -> dict[str, str]:
    return {f["check"]: f["verdict"] for f in result["findings"] if f["verdict"] != "valid"}


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("kept"))


def test_every_promise_is_kept_when_a_worker_dies(kept: dict[str, Any]) -> None:
    assert {f["check"]: f["verdict"] for f in kept["findings"]} == dict.fromkeys(
        EXPERIMENT.checks, "valid"
    )
    # What was promised was put to the test.
    assert finding(kept, "at_most_once")["metrics"]["interrupted"] >= 1
    assert finding(kept, "one_incarnation")["metrics"]["incarnations"] == 4
    assert finding(kept, "groups_whole")["metrics"]["lost_bundles"] == 1


@pytest.mark.parametrize(
    ("params", "broken"),
    [
        (["violation=retried"], {"at_most_once"}),
        (["violation=repeated"], {"effects_exactly_once"}),
        # What is left in use keeps the cluster from being at rest.
        (["violation=leaked"], {"resources_free", "healed"}),
        (["fault=pause"], {"one_incarnation"}),
        (["fault=partition"], {"one_incarnation"}),
        # The last roll call never comes back from a bundle that is placed nowhere.
        (["comes_back=false"], {"groups_whole", "no_task_lost"}),
    ],
)
def test_each_promise_can_be_seen_broken(
    tmp_path: Path, params: list[str], broken: set[str]
) -> None:
    assert not_valid(run(tmp_path, *params)) == dict.fromkeys(broken, "invalid")


def test_a_pause_that_ray_does_not_notice_tests_no_promise_of_actors_and_groups(
    tmp_path: Path,
) -> None:
    result = run(tmp_path, "fault=pause", "lasts=2", "recovery_timeout=5")
    unknown = not_valid(result)
    assert unknown["one_incarnation"] == unknown["groups_whole"] == "unknown"
    assert set(unknown.values()) == {"unknown"}
    # It was cut off for a while, and then came back by itself.
    assert finding(result, "at_most_once")["metrics"]["interrupted"] >= 1


def test_a_group_is_seen_to_be_placed_lost_placed_again_and_removed(kept: dict[str, Any]) -> None:
    ops = history_of(kept).of("ray.group")
    states = [op.data["state"] for op in ops]
    assert states == ["PENDING", "CREATED", "RESCHEDULING", "CREATED", "REMOVED"]
    assert sorted(ops[1].data["nodes"]) == ["head", "worker-1", "worker-2", "worker-3"]
    assert ops[2].data["nodes"].count(None) == 1


def test_what_is_left_is_looked_at_when_the_job_is_gone(kept: dict[str, Any]) -> None:
    history = history_of(kept)
    (seen,) = history.of("cluster.resources")
    (ended,) = history.of("workload.end")
    assert seen.index > ended.index
    assert seen.data["nodes"]["worker-1"] == {"CPU": [0.0, 1.0]}
    assert (seen.data["waiting"], seen.data["why"]) == ([], "")


def test_a_ray_that_does_not_say_what_is_left_is_unknown(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def silent(cluster: object) -> None:
        raise CannotRun("Ray does not answer")

    monkeypatch.setattr(live_module, "use_of", silent)
    result = run(tmp_path)
    assert not_valid(result) == {"resources_free": "unknown"}
    assert "Ray does not answer" in finding(result, "resources_free")["summary"]


def test_nodes_too_small_for_a_bundle_and_a_post_are_refused(tmp_path: Path) -> None:
    nodes = override(load_topology("default"), ["head.resources.CPU=0"])
    with pytest.raises(BadInput, match=r"less than a CPU \(head\)"):
        run(tmp_path, nodes=nodes)
    with pytest.raises(BadInput, match="has 1 workers"):
        run(tmp_path, nodes=topology(1))
    with pytest.raises(BadInput, match="worker-9"):
        run(tmp_path, "victim=worker-9")
