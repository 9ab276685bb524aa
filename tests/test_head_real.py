"""A head that dies and comes back: with tables on its disk, in a Redis beside the nodes, and with none."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real import by_hand, running

from simulator.backends.base import CanKill
from simulator.backends.docker import DockerBackend
from simulator.backends.docker.image import REDIS_IMAGE, ensure_image
from simulator.cluster import Cluster, salvage
from simulator.compose import STORE_TARGET
from simulator.errors import NodeStartFailed
from simulator.faults import Disconnect, Fault, Kill, Partition, Pause, Restart, Site
from simulator.innode.supervisor import GCS_DIED, NO_STORE
from simulator.topology import Gcs, override, parse_topology

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
WITH_REDIS = override(TOPOLOGY, ["gcs=redis", "driver_node=true"])


@pytest.fixture(
    scope="module",
    params=[
        pytest.param("process-rocksdb", marks=[pytest.mark.real_process, pytest.mark.acceptance]),
        pytest.param("docker-rocksdb", marks=pytest.mark.real_docker),
        pytest.param("docker-redis", marks=pytest.mark.real_docker),
    ],
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    backend, _, store = request.param.partition("-")
    topology = WITH_REDIS if store == "redis" else TOPOLOGY
    with running(backend, topology, f"keeps-{store}") as cluster:
        yield cluster
    Path("/tmp/memory.py").unlink(missing_ok=True)  # where processes share this machine's


def with_redis(test: Any) -> Any:
    """On the cluster that has a Redis and a driver node."""
    test = pytest.mark.parametrize("cluster", ["docker-redis"], indirect=True, scope="module")(test)
    return pytest.mark.real_docker(test)


def submit(cluster: Cluster, command: str) -> str:
    """A job whose driver has the app, on the driver node if there is one."""
    needs = cluster.driver_needs()
    node = "head" if needs is None else "driver"
    cluster.backend.copy_in(cluster.name, node, str(APP), "/tmp/memory.py")
    job = f"count-{secrets.token_hex(3)}"
    cluster.ray.submit(command, job, resources=needs)
    return job


def count(cluster: Cluster) -> int:
    """What a detached actor on the worker has counted to, asked by a job of its own."""
    job = submit(cluster, "python /tmp/memory.py")
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


# -- a Redis beside the nodes, and a driver with a node of its own --------------------------------------


def inspected(cluster: Cluster) -> list[dict[str, Any]]:
    """All that carries the cluster's label, as the engine describes it."""
    listed = [
        "docker",
        "ps",
        "--all",
        "--quiet",
        "--filter",
        f"label=ray-sim.cluster={cluster.name}",
    ]
    ids = subprocess.check_output(listed, text=True).split()
    found: list[dict[str, Any]] = json.loads(
        subprocess.check_output(["docker", "inspect", *ids], text=True)
    )
    return found


@with_redis
def test_a_driver_on_its_own_node_goes_on_while_there_is_no_head(cluster: Cluster) -> None:
    beats = "import time; [(print('beat', i, flush=True), time.sleep(0.5)) for i in range(24)]"
    job = submit(cluster, f'python -c "{beats}"')
    cluster.wait_until(
        lambda: cluster.ray.job(job).status == "RUNNING" or None, name="the driver", timeout=60
    )
    where = cluster.ray.job(job).driver_node
    assert where == next(n.ray_node_id for n in cluster.status().nodes if n.name == "driver")
    kill_head(cluster)
    cluster.restart("head")
    done = cluster.wait_until(
        lambda: j if (j := cluster.ray.job(job)).over else None, name="its end", timeout=60
    )
    assert (done.status, done.exit_code) == ("SUCCEEDED", 0)
    beats_seen = [w for w in cluster.ray.job_logs(job).splitlines() if w.startswith("beat ")]
    assert beats_seen == [f"beat {i}" for i in range(24)]


@with_redis
def test_only_the_head_and_redis_have_the_password_and_no_node_has_rights_or_the_engine(
    cluster: Cluster, tmp_path: Path
) -> None:
    backend = cluster.backend
    password = backend.execute(
        cluster.name, "redis", ["cat", f"{STORE_TARGET}/password"]
    ).output.strip()
    assert len(password) == 64
    containers = inspected(cluster)
    assert len(containers) == 5  # init, head, driver, worker, redis
    assert password not in json.dumps(containers)
    having = set()
    for container in containers:
        role = container["Config"]["Labels"]["ray-sim.role"]
        host, mounts = container["HostConfig"], container["Mounts"]
        if any(m["Destination"] == STORE_TARGET for m in mounts):
            having.add(role)
        assert host["CapDrop"] == ["ALL"], role
        assert not host["CapAdd"], role
        assert not host["Privileged"], role
        assert "docker.sock" not in json.dumps(mounts), role
        assert role == "init" or container["Config"]["User"] not in ("", "0", "root", "0:0"), role
        assert role == "head" or not host["PortBindings"], role
    assert having == {"init", "head", "store"}
    # What any process there was told, or has in its environment.
    everything = "cat /proc/[0-9]*/cmdline /proc/[0-9]*/environ 2>/dev/null; true"
    for node in ("driver", "worker-1"):
        found = backend.execute(cluster.name, node, ["sh", "-c", everything]).output
        assert "raylet" in found
        assert password not in found, node
    assert salvage(backend, cluster.name, tmp_path) == []
    assert (tmp_path / "logs" / "redis" / "pid1.log").is_file()
    logs = [path for path in (tmp_path / "logs").rglob("*") if path.is_file()]
    assert any(path.name == "gcs_server.out" for path in logs)
    assert [p.name for p in logs if password.encode() in p.read_bytes()] == []


LONG = pytest.mark.acceptance


@pytest.mark.parametrize(
    ("fault", "node", "peers", "ends_head"),
    [
        (Kill(), "redis", (), True),
        (Pause(), "redis", (), False),
        pytest.param(Restart(), "redis", (), True, marks=LONG),
        pytest.param(Partition(), "redis", ("head", "worker-1", "driver"), False, marks=LONG),
        pytest.param(Partition(), "head", ("redis",), False, marks=LONG),
        pytest.param(Disconnect(), "redis", (), False, marks=LONG),
    ],
    ids=str,
)
@with_redis
def test_a_fault_on_the_store_costs_no_more_than_the_head(
    cluster: Cluster, fault: Fault, node: str, peers: tuple[str, ...], ends_head: bool
) -> None:
    before, counted = worker_id(cluster), count(cluster)
    fault.prepare(cluster.backend, print)
    site = fault.locate(cluster, Site(node, "f1", peers))
    fault.inject(cluster, site)
    assert fault.holds(cluster, site)
    if ends_head:
        cluster.wait_until(
            lambda: cluster.node("head").state == "exited" or None, name="the end", timeout=30
        )
        assert cluster.node("head").exit_code == GCS_DIED
    else:
        cluster.clock.sleep(6.0)  # longer than a GCS that has lost its connection goes on trying
        assert cluster.node("head").state == "running"
    fault.heal(cluster, site, 60.0)
    assert fault.lingers(cluster, site) == ""
    assert cluster.node("redis").state == "running"
    assert worker_id(cluster) == before
    assert count(cluster) == counted + 1


@with_redis
def test_after_sigkill_of_everything_at_once_nothing_that_was_kept_is_lost(
    cluster: Cluster,
) -> None:
    known = {n.ray.ray_node_id for n in cluster.ray_nodes()}
    assert isinstance(cluster.backend, CanKill)
    for node in reversed(cluster.record().breakable):
        cluster.backend.kill(cluster.name, node.name)
    assert {n.state for n in cluster.record().breakable} == {"exited"}
    started = cluster.start().started
    assert started[0] == "redis"
    assert set(started) == {"redis", "head", "driver", "worker-1"}
    assert known < {n.ray.ray_node_id for n in cluster.ray_nodes()}


@pytest.mark.acceptance
@with_redis
def test_a_head_that_does_not_reach_its_redis_says_so_and_leaves_nothing_running(
    cluster: Cluster,
) -> None:
    kill_head(cluster)
    cut = Disconnect()
    unplugged = cut.locate(cluster, Site("redis", "f2"))
    cut.inject(cluster, unplugged)
    try:
        with pytest.raises(NodeStartFailed) as caught:
            cluster.restart("head")
        assert "the GCS cannot keep its tables: Redis at " in "\n".join(caught.value.details)
        assert cluster.node("head").exit_code == NO_STORE
    finally:
        cut.heal(cluster, unplugged, 60.0)
    cluster.restart("head")


@pytest.mark.acceptance
@pytest.mark.real_docker
def test_compose_by_hand_gives_a_head_with_a_redis_that_we_understand() -> None:
    backend, name = DockerBackend(), f"test-{os.getpid()}-hand-redis"
    ensure_image(REDIS_IMAGE, say=print)
    try:
        cluster = by_hand(backend, name, "10.223.251", "compose.yaml", "docker/redis.yaml")
        made = backend.spec(name)
        assert made.topology.gcs is Gcs.REDIS
        before = worker_id(cluster)
        kill_head(cluster)
        assert cluster.restart("head").remembers
        assert worker_id(cluster) == before
    finally:
        backend.remove(name)


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
