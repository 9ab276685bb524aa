"""A head that dies and comes back, with a control store that keeps its tables and with one that does not."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from pathlib import Path

import pytest
from real import running

from simulator.backends.base import CanKill
from simulator.cluster import Cluster
from simulator.faults import Kill, Site
from simulator.topology import override, parse_topology

APP = Path(__file__).parent / "apps" / "memory.py"

TOPOLOGY = parse_topology(
    {
        "name": "pair",
        "gcs": "rocksdb",
        "head": {"resources": {"CPU": 1}},
        "worker_groups": [{"group_name": "worker", "resources": {"CPU": 1, "there": 1}}],
    },
    "test",
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(
            "process", marks=[pytest.mark.real_process, pytest.mark.acceptance], id="process"
        ),
        pytest.param("docker", marks=pytest.mark.real_docker, id="docker"),
    ],
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    with running(request.param, TOPOLOGY, "keeps") as cluster:
        yield cluster
    Path("/tmp/memory.py").unlink(missing_ok=True)  # where processes share this machine's


def count(cluster: Cluster) -> int:
    """What a detached actor on the worker has counted to, asked by a job of its own."""
    cluster.backend.copy_in(cluster.name, "head", str(APP), "/tmp/memory.py")
    job = f"count-{secrets.token_hex(3)}"
    cluster.ray.submit("python /tmp/memory.py", job)
    cluster.wait_until(lambda: cluster.ray.job(job).over or None, name="the job", timeout=90)
    log = cluster.ray.job_logs(job)
    found = [line for line in log.splitlines() if line.startswith("count ")]
    assert found, log
    return int(found[-1].split()[1])


def worker_id(cluster: Cluster) -> str | None:
    return next(n.ray_node_id for n in cluster.status().nodes if n.name == "worker-1")


def kill_head(cluster: Cluster) -> None:
    assert isinstance(cluster.backend, CanKill)
    cluster.backend.kill(cluster.name, "head")


def test_with_its_tables_a_new_head_knows_the_actor_and_the_worker(cluster: Cluster) -> None:
    before = worker_id(cluster)
    assert count(cluster) == 1
    kill_head(cluster)
    done = cluster.restart("head")
    assert (done.started, done.renewed, done.remembers) == (("head",), (), True)
    assert worker_id(cluster) == before
    assert count(cluster) == 2


def test_healing_a_killed_head_leaves_the_workers_as_they_are(cluster: Cluster) -> None:
    before = worker_id(cluster)
    fault = Kill()
    site = fault.locate(cluster, Site("head", "f1"))
    fault.inject(cluster, site)
    assert fault.heal(cluster, site, 60.0) == "started again; it joined as a new node"
    assert worker_id(cluster) == before
    assert count(cluster) == 3


def test_stopped_as_a_whole_and_started_again_the_head_still_knows(cluster: Cluster) -> None:
    before = worker_id(cluster)
    cluster.stop(grace=5.0)
    done = cluster.start()
    assert done.remembers
    # The actor went with its worker, and is made anew: Ray restarts none that may not be restarted.
    assert worker_id(cluster) not in (None, before)
    dead = {n.ray.ray_node_id for n in cluster.ray_nodes() if not n.ray.alive}
    assert before in dead


@pytest.mark.acceptance
@pytest.mark.real_docker
def test_without_them_a_new_head_knows_nothing() -> None:
    with running("docker", override(TOPOLOGY, ["gcs=memory"]), "forgets") as cluster:
        before = worker_id(cluster)
        assert count(cluster) == 1
        kill_head(cluster)
        done = cluster.restart("head")
        assert (done.renewed, done.remembers) == (("worker-1",), False)
        assert worker_id(cluster) not in (None, before)
        assert count(cluster) == 1
