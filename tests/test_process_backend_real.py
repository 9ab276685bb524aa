"""Real Ray as process groups: one cluster for all of these tests, and one beside it."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator.backends.base import ClusterSpec, EngineEvent, Program
from simulator.backends.process import ProcessBackend
from simulator.backends.process.backend import _short_tmp
from simulator.backends.process.table import MARKER, living
from simulator.cluster import HEALTH, Cluster, steady_problems
from simulator.faults import Kill, Pause, Site
from simulator.topology import load_topology

pytestmark = pytest.mark.real_process


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    backend = ProcessBackend()
    cluster = Cluster(backend, f"test-process-{secrets.token_hex(2)}")
    topology = load_topology("default").with_workers(2)
    home = backend.root / cluster.name
    try:
        cluster.up(ClusterSpec(cluster.name, topology, "simulated", env=HEALTH["fast"]))
        yield cluster
    finally:
        cluster.down()
        assert living(home, below=True) == []
        assert not home.exists()
        assert not _short_tmp(home).exists()


class Observed:
    """An observer beside the cluster, and what it has said."""

    def __init__(self, cluster: Cluster, program: Program) -> None:
        self.cluster, self.program = cluster, program
        self.lines: list[dict[str, Any]] = []
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self) -> None:
        self.lines.extend(json.loads(line) for line in self.program.lines())

    def nodes(self, host: str, state: str) -> list[dict[str, Any]]:
        return [
            line
            for line in list(self.lines)
            if (line["kind"], line["host"]) == ("ray.node", host) and line["data"]["state"] == state
        ]

    def until(self, condition: Callable[[], object], name: str) -> None:
        self.cluster.wait_until(lambda: bool(condition()) or None, name=name, timeout=90)


@pytest.fixture(scope="module")
def observed(cluster: Cluster) -> Iterator[Observed]:
    argv = ["simulator.innode.observer", "--run", "run-1"]
    program = cluster.backend.run_program(cluster.name, "observer", argv, {})
    observed = Observed(cluster, program)
    yield observed
    assert program.stop(timeout=30) == 0
    observed.thread.join(timeout=30)
    kinds = [line["kind"] for line in observed.lines]
    assert (kinds[0], kinds[-1]) == ("observer.start", "observer.end")
    assert "observer.blind" not in kinds
    assert all(line["data"]["gcs"] for line in observed.lines if line["kind"] == "observer.beat")
    program.remove()


def states(cluster: Cluster) -> dict[str, str]:
    return {n.name: n.state for n in cluster.status().nodes}


def gcs_says_dead(cluster: Cluster, node: str) -> None:
    cluster.wait_until(
        lambda: not any(n.alive and n.hostname == node for n in cluster.ray.nodes()),
        name=f"{node} is DEAD in the GCS",
        timeout=60,
    )


def test_every_node_is_alive_under_its_own_address(cluster: Cluster) -> None:
    status = cluster.status()
    assert {n.state for n in status.nodes} == {"alive"}
    assert len({n.address for n in status.nodes}) == 3
    assert status.ray["version"] == "2.60.0"


def test_every_process_of_ray_carries_the_mark(cluster: Cluster) -> None:
    backend = cluster.backend
    assert isinstance(backend, ProcessBackend)
    home = backend.root / cluster.name
    marked = {process.pid for process in living(home, below=True)}
    by_title: dict[int, str] = {}
    for process in living(home, below=True):
        for child in _children(process.pid):
            by_title[child] = Path(f"/proc/{child}/cmdline").read_text(errors="replace")[:60]
    assert set(by_title) <= marked
    for pid, title in by_title.items():
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        assert f"{MARKER}={home}".encode() in environment, title
    assert any("DashboardAgent" in title for title in by_title.values())


def _children(pid: int) -> list[int]:
    return [int(text) for text in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_ray_comes_to_report_what_the_nodes_offer(cluster: Cluster) -> None:
    names = [n.name for n in cluster.record().nodes]
    cluster.wait_until(
        lambda: steady_problems(cluster, names) == [], name="the steady state", timeout=30
    )
    resources = cluster.status().ray["resources"]
    assert (resources["CPU"], resources["GPU"]) == ([0.0, 3.0], [0.0, 1.0])


def test_tasks_run_on_every_node_and_their_actors_are_observed(
    cluster: Cluster, observed: Observed
) -> None:
    program = (
        "import os, time, ray; ray.init(address='auto', log_to_driver=False)\n"
        "@ray.remote(num_cpus=0)\n"
        "class Counter:\n"
        "    def where(self): return os.environ['RAY_SIM_NODE']\n"
        "counter = Counter.options(name='c', label_selector={'ray.io/node-id': '!in(x)'}).remote()\n"
        "place = ray.get(counter.where.remote())\n"
        "@ray.remote(num_cpus=1)\n"
        "def where(): time.sleep(1); return os.environ['RAY_SIM_NODE']\n"
        "nodes = sorted(set(ray.get([where.remote() for _ in range(12)])))\n"
        "print('actor on', place); print('ran on', nodes)\n"
    )
    done = cluster.backend.execute(cluster.name, "head", ["python", "-c", program])
    assert done.code == 0, done.output
    assert "ran on ['head', 'worker-1', 'worker-2']" in done.output
    place = done.output.split("actor on ")[1].split()[0]
    alive = [
        line
        for line in observed.lines
        if line["kind"] == "ray.actor"
        and (line["data"]["name"], line["data"]["state"]) == ("c", "ALIVE")
    ]
    assert [line["data"]["hostname"] for line in alive] == [place]
    assert alive[0]["data"]["class"] == "Counter"


def test_a_command_runs_in_any_node(cluster: Cluster) -> None:
    program = "import ray; ray.init(log_to_driver=False); print('nodes', len(ray.nodes()))"
    done = cluster.backend.execute(cluster.name, "worker-1", ["python", "-c", program])
    assert done.code == 0, done.output
    assert "nodes 3" in done.output


def test_without_the_token_nobody_is_answered(cluster: Cluster) -> None:
    url = cluster.backend.endpoint(cluster.name).url
    assert requests.get(f"{url}/api/version", timeout=5).status_code == 401
    assert requests.get(f"{url}/api/jobs/", timeout=5).status_code == 401


def test_rays_own_logs_are_found(cluster: Cluster, tmp_path: Path) -> None:
    cluster.backend.node_logs(cluster.name, "worker-1", tmp_path)
    assert "raylet.out" in {path.name for path in tmp_path.iterdir()}


def test_a_killed_node_is_reported_declared_dead_and_comes_back_as_a_new_one(
    cluster: Cluster, observed: Observed
) -> None:
    events: list[EngineEvent] = []
    before = next(n for n in cluster.status().nodes if n.name == "worker-1")
    watch = cluster.backend.watch(cluster.name, events.append)
    try:
        asked = time.time()
        Kill().inject(cluster, Site("worker-1"))
        assert Kill().holds(cluster, Site("worker-1"))
        observed.until(lambda: events, "the die event")
        observed.until(lambda: observed.nodes("worker-1", "DEAD"), "worker-1 is DEAD")
    finally:
        watch.close()
    assert (events[0].verb, events[0].node, events[0].exit_code) == ("die", "worker-1", 137)
    (dead,) = observed.nodes("worker-1", "DEAD")
    assert asked <= events[0].wall <= dead["wall"]
    assert dead["data"]["ray_node_id"] == before.ray_node_id
    assert dead["data"]["reason"] == "UNEXPECTED_TERMINATION"
    Kill().heal(cluster, Site("worker-1"), 120)
    after = next(n for n in cluster.status().nodes if n.name == "worker-1")
    assert after.state == "alive"
    assert after.ray_node_id != before.ray_node_id
    assert after.address == before.address
    observed.until(lambda: len(observed.nodes("worker-1", "ALIVE")) == 2, "the new worker-1")
    assert observed.nodes("worker-1", "ALIVE")[1]["data"]["ray_node_id"] == after.ray_node_id


def test_a_node_paused_for_too_long_comes_back_as_a_new_one(cluster: Cluster) -> None:
    before = next(n for n in cluster.status().nodes if n.name == "worker-2")
    Pause().inject(cluster, Site("worker-2"))
    assert Pause().holds(cluster, Site("worker-2"))
    gcs_says_dead(cluster, "worker-2")
    Pause().heal(cluster, Site("worker-2"), 120)
    after = next(n for n in cluster.status().nodes if n.name == "worker-2")
    assert after.state == "alive"
    assert after.ray_node_id != before.ray_node_id


def test_a_stopped_node_says_that_it_was_asked_to(cluster: Cluster, observed: Observed) -> None:
    before = len(observed.nodes("worker-2", "DEAD"))
    cluster.backend.stop(cluster.name, "worker-2", 20)
    record = cluster.node("worker-2")
    assert (record.state, record.exit_code) == ("exited", 0)
    observed.until(lambda: len(observed.nodes("worker-2", "DEAD")) > before, "worker-2 is DEAD")
    assert observed.nodes("worker-2", "DEAD")[-1]["data"]["reason"] == "EXPECTED_TERMINATION"
    cluster.restart("worker-2")
    assert states(cluster)["worker-2"] == "alive"


def test_a_drained_node_leaves_by_itself_and_its_code_says_so(
    cluster: Cluster, observed: Observed
) -> None:
    # Ray counts it alive a moment before `ray start` has ended.
    ready = cluster.backend.root / cluster.name / "worker-2" / "home" / "ready"  # type: ignore[attr-defined]
    observed.until(ready.exists, "worker-2 is ready")
    drain = ["python", "-m", "simulator.innode.ray_private", "drain", "30"]
    done = cluster.backend.execute(cluster.name, "worker-2", drain)
    assert done.code == 0, done.output
    observed.until(lambda: cluster.node("worker-2").state == "exited", "the end of worker-2")
    assert cluster.node("worker-2").exit_code == 12
    observed.until(lambda: observed.nodes("worker-2", "DEAD"), "worker-2 is DEAD")
    observed.until(
        lambda: observed.nodes("worker-2", "DEAD")[-1]["data"]["reason"].startswith("AUTOSCALER"),
        "the reason",
    )
    reason = observed.nodes("worker-2", "DEAD")[-1]["data"]["reason"]
    assert reason == "AUTOSCALER_DRAIN_PREEMPTED"
    cluster.start_nodes(["worker-2"])


ASK = """
import asyncio, json, sys
from simulator.innode.ray_private import Gcs

async def ask():
    gcs = Gcs(sys.argv[1])
    await gcs.subscribe(10)
    await gcs.actors(10)
    await gcs.groups(10)
    return [[n.ray_node_id, n.hostname, n.state == "ALIVE"] for n in await gcs.nodes(10)]

print(json.dumps(asyncio.run(ask())))
"""


def test_the_private_api_says_what_the_public_one_says(cluster: Cluster) -> None:
    backend = cluster.backend
    assert isinstance(backend, ProcessBackend)
    facts = backend._facts(cluster.name)
    words = [sys.executable, "-c", ASK, f"{facts['head']}:{facts['gcs_port']}"]

    def agreed() -> bool:
        # In a node's environment: Ray reads its settings once in the life of a process.
        done = backend.execute(cluster.name, "head", words)
        assert done.code == 0, done.output
        private = {tuple(n) for n in json.loads(done.output.splitlines()[-1])}
        return private == {(n.ray_node_id, n.hostname, n.alive) for n in cluster.ray.nodes()}

    # Asked one after the other: a node that has just left may be news to the second only.
    assert cluster.wait_until(agreed, name="both say the same", timeout=30)


def test_a_cluster_of_another_name_lives_beside_it_and_its_head_can_be_replaced(
    cluster: Cluster,
) -> None:
    other = Cluster(cluster.backend, cluster.name + "-b")
    topology = load_topology("cpu_only").with_workers(1)
    env = {**HEALTH["fast"], "RAY_SIM_ON_TERM": "drain"}
    try:
        other.up(ClusterSpec(other.name, topology, "none", env=env))
        assert states(other) == {"head": "alive", "worker-1": "alive"}
        other.backend.stop(other.name, "worker-1", 60)
        assert other.node("worker-1").exit_code == 0
        assert "asked to stop: drain" in other.backend.logs(other.name, "worker-1")
        (gone,) = (n for n in other.ray.nodes() if n.hostname == "worker-1")
        assert not gone.alive
        other.start_nodes(["worker-1"])
        # The worker's processes name the head's address, and the head's folder says "it runs here".
        other.kill("head")
        other.start_nodes(["head"])
        assert states(other)["head"] == "alive"
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


def test_nodes_outlive_an_orchestrator_that_is_killed(cluster: Cluster) -> None:
    program = (
        "import os, signal, sys; from simulator.backends.process import ProcessBackend\n"
        f"ProcessBackend().start({cluster.name!r}, 'worker-1')\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    cluster.kill("worker-1")
    gcs_says_dead(cluster, "worker-1")
    done = subprocess.run([sys.executable, "-c", program], env=dict(os.environ), check=False)
    assert done.returncode == -9
    cluster.wait_until(
        lambda: states(cluster)["worker-1"] == "alive", name="worker-1 is alive", timeout=60
    )
