"""Real Ray as process groups: one cluster for all of these tests."""

from __future__ import annotations

import secrets
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest
import requests

from simulator.backends.base import ClusterSpec, EngineEvent
from simulator.backends.process import ProcessBackend
from simulator.backends.process.table import living
from simulator.cluster import HEALTH, Cluster, steady_problems
from simulator.faults import Kill, Pause
from simulator.topology import load_topology

pytestmark = pytest.mark.real_process


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    backend = ProcessBackend()
    cluster = Cluster(backend, f"test-process-{secrets.token_hex(2)}")
    topology = load_topology("default").with_workers(2)
    try:
        cluster.up(ClusterSpec(cluster.name, topology, "simulated", env=HEALTH["fast"]))
        yield cluster
    finally:
        cluster.down()
        assert living(backend.root / cluster.name, below=True) == []


def states(cluster: Cluster) -> dict[str, str]:
    return {n.name: n.state for n in cluster.status().nodes}


def wait_for(cluster: Cluster, node: str, state: str) -> None:
    cluster.wait_until(
        lambda: states(cluster)[node] == state, name=f"{node} is {state}", timeout=60
    )


def test_every_node_is_alive_under_its_own_address(cluster: Cluster) -> None:
    status = cluster.status()
    assert {n.state for n in status.nodes} == {"alive"}
    assert len({n.address for n in status.nodes}) == 3
    assert status.ray["version"] == "2.60.0"


def test_ray_comes_to_report_what_the_nodes_offer(cluster: Cluster) -> None:
    names = [n.name for n in cluster.record().nodes]
    cluster.wait_until(
        lambda: steady_problems(cluster, names) == [], name="the steady state", timeout=30
    )
    resources = cluster.status().ray["resources"]
    assert (resources["CPU"], resources["GPU"]) == ([0.0, 3.0], [0.0, 1.0])


def test_tasks_run_on_every_node(cluster: Cluster) -> None:
    program = (
        "import os, time, ray; ray.init(address='auto', log_to_driver=False)\n"
        "@ray.remote(num_cpus=1)\n"
        "def where(): time.sleep(1); return os.environ['RAY_SIM_NODE']\n"
        "print('ran on', sorted(set(ray.get([where.remote() for _ in range(12)]))))\n"
    )
    done = cluster.backend.execute(cluster.name, "head", ["python", "-c", program])
    assert done.code == 0, done.output
    assert "ran on ['head', 'worker-1', 'worker-2']" in done.output


def test_without_the_token_nobody_is_answered(cluster: Cluster) -> None:
    url = cluster.backend.endpoint(cluster.name).url
    assert requests.get(f"{url}/api/version", timeout=5).status_code == 401
    assert requests.get(f"{url}/api/jobs/", timeout=5).status_code == 401


def test_a_killed_node_is_reported_declared_dead_and_comes_back_as_a_new_one(
    cluster: Cluster,
) -> None:
    events: list[EngineEvent] = []
    seen = threading.Event()

    def emit(event: EngineEvent) -> None:
        events.append(event)
        seen.set()

    before = next(n for n in cluster.status().nodes if n.name == "worker-1")
    watch = cluster.backend.watch(cluster.name, emit)
    try:
        Kill().inject(cluster, "worker-1")
        assert Kill().holds(cluster, "worker-1")
        assert seen.wait(10)
    finally:
        watch.close()
    assert (events[0].verb, events[0].node, events[0].exit_code) == ("die", "worker-1", 137)
    cluster.wait_until(
        lambda: not any(n.alive and n.hostname == "worker-1" for n in cluster.ray.nodes()),
        name="worker-1 is DEAD in the GCS",
        timeout=60,
    )
    Kill().heal(cluster, "worker-1", 120)
    after = next(n for n in cluster.status().nodes if n.name == "worker-1")
    assert after.state == "alive"
    assert after.ray_node_id != before.ray_node_id
    assert after.address == before.address


def test_a_node_paused_for_too_long_comes_back_as_a_new_one(cluster: Cluster) -> None:
    before = next(n for n in cluster.status().nodes if n.name == "worker-2")
    Pause().inject(cluster, "worker-2")
    assert Pause().holds(cluster, "worker-2")
    cluster.wait_until(
        lambda: not any(n.alive and n.hostname == "worker-2" for n in cluster.ray.nodes()),
        name="worker-2 is DEAD in the GCS",
        timeout=60,
    )
    Pause().heal(cluster, "worker-2", 120)
    after = next(n for n in cluster.status().nodes if n.name == "worker-2")
    assert after.state == "alive"
    assert after.ray_node_id != before.ray_node_id


def test_a_stopped_node_says_that_it_was_asked_to(cluster: Cluster) -> None:
    cluster.backend.stop(cluster.name, "worker-2", 20)
    record = cluster.node("worker-2")
    assert (record.state, record.exit_code) == ("exited", 0)
    cluster.restart("worker-2")
    assert states(cluster)["worker-2"] == "alive"


def test_a_cluster_of_another_name_lives_beside_it(cluster: Cluster) -> None:
    other = Cluster(cluster.backend, cluster.name + "-b")
    topology = load_topology("cpu_only").with_workers(0)
    try:
        other.up(ClusterSpec(other.name, topology, "none"))
        assert states(other) == {"head": "alive"}
        assert set(states(cluster).values()) == {"alive"}
    finally:
        other.down()
    assert set(states(cluster).values()) == {"alive"}


def test_a_foreign_process_named_raylet_is_not_touched(cluster: Cluster) -> None:
    foreign = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)", "raylet"])
    try:
        cluster.kill("worker-1")
        assert foreign.poll() is None
        cluster.start_nodes(["worker-1"])
    finally:
        foreign.kill()
        foreign.wait()
