"""Ray's own autoscaler with real nodes: they come when work asks for them, and go when it does not."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import docker
import pytest
from real import running

from simulator.autoscaling import AUTOSCALER, CLOUD
from simulator.backends.base import LABEL_CLUSTER, CanKill, HostsAutoscaler, NodeRecord
from simulator.backends.process import ProcessBackend
from simulator.backends.process.table import living
from simulator.cluster import Cluster
from simulator.errors import BadInput
from simulator.scaling import scale
from simulator.topology import parse_topology
from simulator.waiting import wait_until

APP = Path(__file__).parent / "apps" / "elastic.py"

TOPOLOGY = parse_topology(
    {
        "name": "small",
        "autoscaling": {"idle_timeout": "4s", "upscaling_speed": 10},
        "head": {"resources": {"CPU": 0}},
        "worker_groups": [
            {"group_name": "cpu", "replicas": 2, "min_replicas": 1, "resources": {"CPU": 1}}
        ],
    },
    "test",
)


@pytest.fixture(
    scope="module",
    params=[
        # CI has these on Docker only: the cloud and what it is asked are the same.
        pytest.param(
            "process", marks=[pytest.mark.real_process, pytest.mark.acceptance], id="process"
        ),
        pytest.param("docker", marks=pytest.mark.real_docker, id="docker"),
    ],
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with running(request.param, TOPOLOGY, "auto") as cluster:
        cluster.backend.copy_in(cluster.name, "head", str(APP), "/tmp/elastic.py")
        yield cluster
    Path("/tmp/elastic.py").unlink(missing_ok=True)  # where processes share this machine's


def begin(cluster: Cluster, tasks: int, seconds: float) -> str:
    """Have so many tasks run; returns the job's id."""
    job = f"elastic-{secrets.token_hex(3)}"
    cluster.ray.submit(f"python /tmp/elastic.py {tasks} {seconds}", job)
    return job


def alive(cluster: Cluster) -> set[str]:
    """Workers that Ray holds alive."""
    return {n.name for n in cluster.status().nodes if n.state == "alive" and n.role == "worker"}


def eventually(condition: Callable[[], Any], name: str) -> None:
    wait_until(lambda: condition() or None, name=name, timeout=90, interval=0.3)


def told(cluster: Cluster, program: str, kind: str) -> list[dict[str, Any]]:
    """What a program beside the nodes has said of this kind so far."""
    if isinstance(cluster.backend, ProcessBackend):
        path = cluster.backend.root / cluster.name / "programs" / program / "out"
        text = path.read_text()
    else:
        container = docker.from_env().containers.get(f"{cluster.name}-program-{program}")
        text = container.logs(stdout=True, stderr=False).decode()
    lines = [json.loads(line) for line in text.splitlines() if line.startswith("{")]
    return [line["data"] for line in lines if line["kind"] == kind]


def runs(cluster: Cluster) -> bool | None:
    assert isinstance(cluster.backend, HostsAutoscaler)
    return cluster.backend.autoscaler_runs(cluster.name)


def managed(cluster: Cluster) -> list[NodeRecord]:
    return [n for n in cluster.record().nodes if n.managed]


def test_the_least_that_a_group_may_have_is_there_when_it_is_up(cluster: Cluster) -> None:
    assert len(alive(cluster)) == 1
    (node,) = (n for n in managed(cluster) if n.state == "running")
    assert node.group == "cpu"
    status = cluster.status()
    assert status.autoscaler is not None
    assert status.autoscaler.runs
    asked = told(cluster, CLOUD, "cloud.asked")
    assert [n for a in asked for n in a["nodes"]] == [node.name]
    assert all(a["request"] for a in asked)


def test_work_brings_nodes_up_to_the_limit_and_idle_ones_leave(cluster: Cluster) -> None:
    before = alive(cluster)
    job = begin(cluster, 14, 2)
    eventually(lambda: len(alive(cluster)) == 2, "a second worker")
    eventually(lambda: cluster.ray.job(job).over, "the job's end")
    assert "14 tasks on 2 nodes" in cluster.ray.job_logs(job)
    assert len({n.name for n in managed(cluster)}) == len(before) + 1
    eventually(lambda: len(alive(cluster)) == 1, "an idle worker to leave")

    def gone() -> list[NodeRecord]:
        return [n for n in managed(cluster) if n.state == "exited"]

    eventually(gone, "the engine to say so too")
    # It left by itself when it was drained, or was taken back when it had.
    assert {n.exit_code for n in gone()} <= {0, 12}


def test_what_is_killed_is_replaced_by_another_one(cluster: Cluster) -> None:
    assert isinstance(cluster.backend, CanKill)
    (victim,) = alive(cluster)
    cluster.backend.kill(cluster.name, victim)
    eventually(lambda: alive(cluster) - {victim}, "another worker")
    with pytest.raises(BadInput, match="a machine that is gone does not come back"):
        cluster.restart(victim)
    with pytest.raises(BadInput, match="Ray's autoscaler decides how many there are, from 1 to 2"):
        scale(cluster, {"cpu": 2})


def end_hard(cluster: Cluster, program: str) -> None:
    """SIGKILL to a program beside the nodes, as its death by an accident."""
    if isinstance(cluster.backend, ProcessBackend):
        folder = cluster.backend.root / cluster.name / "programs" / program
        inner = living(folder)[-1]  # the youngest: the program itself, below its keeper
        os.kill(inner.pid, signal.SIGKILL)
        return
    state = docker.APIClient().inspect_container(f"{cluster.name}-program-{program}")["State"]
    os.kill(int(state["Pid"]), signal.SIGKILL)


def test_a_program_that_dies_is_started_again_and_loses_no_node(cluster: Cluster) -> None:
    eventually(lambda: len(alive(cluster)) == 1, "one worker")
    have = alive(cluster)
    job = begin(cluster, 14, 2)
    eventually(
        lambda: any(n.state == "running" and n.name not in have for n in managed(cluster)),
        "a second worker on its way",
    )
    for program in (CLOUD, AUTOSCALER):
        end_hard(cluster, program)
    eventually(lambda: cluster.ray.job(job).over, "the job's end")
    eventually(lambda: runs(cluster), "both programs")
    eventually(lambda: len(told(cluster, AUTOSCALER, "autoscaler.start")) == 2, "the second start")
    assert len(told(cluster, CLOUD, "cloud.start")) == 2
    assert "14 tasks on 2 nodes" in cluster.ray.job_logs(job)
    # No node was started twice, and none is forgotten: what runs is what Ray counts.
    assert len([n for n in managed(cluster) if n.state == "running"]) <= 2
    eventually(lambda: len(alive(cluster)) == 1, "the idle one to leave")

    def books_are_right() -> bool:
        return alive(cluster) == {n.name for n in managed(cluster) if n.state == "running"}

    eventually(books_are_right, "the books to be right")


def test_stopped_it_starts_nothing_and_started_again_it_goes_on(cluster: Cluster) -> None:
    cluster.stop(grace=5.0)
    assert not any(n.state == "running" for n in cluster.record().nodes)
    assert runs(cluster) is False
    cluster.start()
    assert runs(cluster)
    assert len(alive(cluster)) == 1


@pytest.mark.real_docker
def test_only_the_cloud_has_the_engine_and_no_node_has_anything_of_it() -> None:
    with running("docker", TOPOLOGY, "guard") as cluster:
        api = docker.APIClient()
        filters = {"label": f"{LABEL_CLUSTER}={cluster.name}"}
        with_engine, with_cloud = set(), set()
        for row in api.containers(all=True, filters=filters):
            model = api.inspect_container(row["Id"])
            name = row["Names"][0].removeprefix(f"/{cluster.name}-")
            sources = {m["Source"] for m in model["Mounts"]}
            if any("docker.sock" in s for s in sources):
                with_engine.add(name)
            if any(m.get("Name", "").endswith("_cloud") for m in model["Mounts"]):
                with_cloud.add(name)
            assert not model["HostConfig"]["CapAdd"]
            assert model["HostConfig"]["CapDrop"] == ["ALL"]
            assert not model["HostConfig"]["Privileged"]
            if name.startswith("cpu-") or name == "head-1":
                assert model["Config"]["User"] not in ("", "0", "0:0", "root")
        assert with_engine == {"program-cloud"}
        assert with_cloud == {"program-cloud", "program-autoscaler"}
        model = api.inspect_container(f"{cluster.name}-program-cloud")
        assert model["HostConfig"]["NetworkMode"] == "none"
        assert "RAY_AUTH_TOKEN_PATH" not in str(model["Config"]["Env"])


@pytest.mark.real_docker
def test_down_leaves_nothing_though_nodes_are_on_their_way() -> None:
    with running("docker", TOPOLOGY, "leave") as cluster:
        cluster.backend.copy_in(cluster.name, "head", str(APP), "/tmp/elastic.py")
        begin(cluster, 6, 5)
        eventually(lambda: len(managed(cluster)) == 2, "a machine that was asked for")
        cluster.down()
    for what in ("ps --all", "network ls", "volume ls"):
        words = [*what.split(), "--quiet", "--filter", f"label={LABEL_CLUSTER}={cluster.name}"]
        done = subprocess.run(["docker", *words], capture_output=True, text=True, check=True)
        assert done.stdout == ""
