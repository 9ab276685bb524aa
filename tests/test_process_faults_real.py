"""Faults of single processes, and drain, on real Ray in process groups and in containers, seen from outside."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from simulator.backends.base import Backend, ClusterSpec
from simulator.backends.docker import DockerBackend
from simulator.backends.docker.image import DEFAULT_IMAGE, ensure_image
from simulator.backends.process import ProcessBackend
from simulator.backends.process.table import living
from simulator.cluster import HEALTH, Cluster
from simulator.errors import CannotRun
from simulator.faults import CrashProcess, Drain, Fault, FreezeProcess, Preempt, Site, processes
from simulator.faults.nodes import draining
from simulator.topology import parse_topology
from simulator.waiting import wait_until

pytestmark = pytest.mark.acceptance

NODE = "worker-1"

TOPOLOGY = parse_topology(
    {
        "name": "pair",
        "head": {"resources": {"CPU": 1}},
        "worker_groups": [{"group_name": "worker", "resources": {"CPU": 1, "there": 1}}],
    },
    "test",
)


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(ProcessBackend, marks=pytest.mark.real_process, id="process"),
        pytest.param(DockerBackend, marks=pytest.mark.real_docker, id="docker"),
    ],
)
def cluster(request: pytest.FixtureRequest) -> Iterator[Cluster]:
    backend: Backend = request.param()
    if isinstance(backend, DockerBackend):
        ensure_image(DEFAULT_IMAGE, say=print)
    cluster = Cluster(backend, f"test-{os.getpid()}-crash")
    try:
        cluster.up(ClusterSpec(cluster.name, TOPOLOGY, "none", env=HEALTH["fast"]))
        backend.copy_in(
            cluster.name, "head", str(Path(__file__).with_name("holding.py")), "/tmp/holding.py"
        )
        cluster.ray.submit("python /tmp/holding.py", "holding")
        yield cluster
    finally:
        cluster.down()
        Path("/tmp/holding.py").unlink(missing_ok=True)  # where processes share this machine's


@pytest.fixture(autouse=True)
def whole(cluster: Cluster) -> None:
    """Whatever became of the test before."""
    cluster.start()


def seen(cluster: Cluster, node: str = NODE) -> list[tuple[str, str]]:
    """State and title of every process of a node, as the machine shows them."""
    backend = cluster.backend
    if isinstance(backend, ProcessBackend):
        found = []
        for process in living(backend.root / cluster.name / node):
            try:
                one = psutil.Process(process.pid)
                state = "T" if one.status() == psutil.STATUS_STOPPED else "S"
                found.append((state, " ".join(one.cmdline()).strip()))
            except psutil.Error:
                continue
        return found
    container = f"{cluster.name}-{node}" + ("-1" if node == "head" else "")
    done = subprocess.run(
        ["docker", "top", container, "-eo", "pid,stat,args"],
        capture_output=True,
        text=True,
        check=False,
    )
    rows = [line.split(maxsplit=2) for line in done.stdout.splitlines()[1:]]
    return [(state[0], title.strip()) for _, state, title in rows]


def ray_id(cluster: Cluster) -> str | None:
    return next(n.ray_node_id for n in cluster.status().nodes if n.name == NODE)


def state(cluster: Cluster) -> str:
    return next(n.state for n in cluster.status().nodes if n.name == NODE)


def workers(cluster: Cluster) -> dict[str, int] | None:
    """The pids of the task's and the actor's processes, once Ray tells of both on a living node."""
    here = ray_id(cluster)
    tasks = [
        t.pid for t in cluster.ray.running_tasks() if t.name == "holding" and t.ray_node_id == here
    ]
    actors = [
        a.pid
        for a in cluster.ray.actors()
        if a.name == "keeper" and a.alive and a.ray_node_id == here
    ]
    return {"task": tasks[0], "actor": actors[0]} if tasks and actors else None


def until(condition: Callable[[], Any], name: str, timeout: float = 60) -> Any:
    return wait_until(condition, name=name, timeout=timeout, interval=0.2)


@pytest.fixture
def work(cluster: Cluster) -> dict[str, int]:
    """A task and an actor at work on the node: the pids of their processes."""
    found: dict[str, int] = until(lambda: workers(cluster), "a task and an actor at work")
    return found


def ready(cluster: Cluster, node: str = NODE) -> bool:
    """Ray counts a node as alive a moment before its `ray start` has ended."""
    script = 'test -e "${RAY_SIM_HOME:-/tmp/ray-sim}/ready"'
    return cluster.backend.execute(cluster.name, node, ["sh", "-c", script]).code == 0


def struck(cluster: Cluster, fault: Fault, node: str = NODE) -> Site:
    until(lambda: ready(cluster, node), "`ray start` has ended")
    site = fault.locate(cluster, Site(node))
    fault.inject(cluster, site)
    until(lambda: fault.holds(cluster, site), f"{fault} holds")
    return site


def healed(cluster: Cluster, fault: Fault, site: Site) -> str:
    """Healed twice, and gone; how it was healed the first time."""
    how = fault.heal(cluster, site, 60)
    assert fault.lingers(cluster, site) == ""
    assert state(cluster) == "alive"
    alive = ray_id(cluster)
    assert fault.heal(cluster, site, 60)
    assert (state(cluster), ray_id(cluster)) == ("alive", alive)
    return how


# ---- Ray's own processes


@pytest.mark.parametrize(
    ("fault", "title", "codes"),
    [
        (CrashProcess("raylet"), "raylet/raylet", {11}),
        (CrashProcess("raylet", signal="SIGTERM"), "raylet/raylet", {12}),
        # The raylet ends with its agents; whether with an error is Ray's business.
        (CrashProcess("agent"), "ray::DashboardAgent", {11, 12}),
        (CrashProcess("runtime_env_agent"), "ray::RuntimeEnvAgent", {11, 12}),
    ],
    ids=str,
)
def test_a_node_ends_with_any_of_rays_own_processes_and_comes_back_as_a_new_one(
    cluster: Cluster, fault: CrashProcess, title: str, codes: set[int]
) -> None:
    assert [t for _, t in seen(cluster) if title in t]
    before = ray_id(cluster)
    site = struck(cluster, fault)
    until(lambda: cluster.node(NODE).state == "exited", "the node follows")
    assert cluster.node(NODE).exit_code in codes
    assert seen(cluster) == []
    assert "joined as a new node" in healed(cluster, fault, site)
    assert ray_id(cluster) != before


def test_healing_at_once_waits_for_what_becomes_of_the_node(cluster: Cluster) -> None:
    until(lambda: ready(cluster), "`ray start` has ended")
    fault = CrashProcess("raylet")
    site = fault.locate(cluster, Site(NODE))
    fault.inject(cluster, site)
    assert "joined as a new node" in healed(cluster, fault, site)


def test_a_raylet_frozen_for_a_moment_goes_on_as_the_same_node(cluster: Cluster) -> None:
    fault, before = FreezeProcess("raylet"), ray_id(cluster)
    agent = "ray::DashboardAgent"  # it takes a while to give itself this title
    until(lambda: agent in (title for _, title in seen(cluster)), "the agent's title")
    site = struck(cluster, fault)
    states = {title: state for state, title in seen(cluster)}
    assert [s for t, s in states.items() if "raylet/raylet" in t] == ["T"]
    assert states[agent] != "T"
    assert healed(cluster, fault, site) == "continued; it was running already"
    assert "T" not in [s for s, _ in seen(cluster)]
    assert ray_id(cluster) == before


def test_a_raylet_frozen_for_long_is_given_up_and_comes_back_as_a_new_node(
    cluster: Cluster,
) -> None:
    fault = FreezeProcess("raylet")
    site = struck(cluster, fault)
    until(lambda: state(cluster) == "dead", "Ray gives the node up")
    assert cluster.node(NODE).state == "running"
    assert "joined as a new node" in healed(cluster, fault, site)


def test_a_stopped_process_is_swept_without_a_history(cluster: Cluster) -> None:
    struck(cluster, FreezeProcess("runtime_env_agent"))
    assert FreezeProcess.sweep(cluster, NODE) == "1 stopped processes continued"
    assert "T" not in [s for s, _ in seen(cluster)]
    assert FreezeProcess.sweep(cluster, NODE) == ""


# ---- workers


@pytest.mark.parametrize(
    ("fault", "which"),
    [
        (CrashProcess("task:hold"), "task"),
        (CrashProcess("actor:keeper"), "actor"),
        (CrashProcess("actor:keeper", signal="SIGTERM"), "actor"),
    ],
    ids=str,
)
def test_a_killed_worker_is_replaced_by_ray_and_its_node_lives_on(
    cluster: Cluster, work: dict[str, int], fault: CrashProcess, which: str
) -> None:
    node, other = ray_id(cluster), {"task": "actor", "actor": "task"}[which]
    site = struck(cluster, fault)
    assert site.details["pid"] == work[which]
    until(lambda: (now := workers(cluster)) and now[which] != work[which], "Ray starts another")
    now = workers(cluster)
    assert now is not None
    assert now[other] == work[other]
    how = healed(cluster, fault, site)
    assert how == "Ray replaces its workers itself; it was running already"
    assert ray_id(cluster) == node


def test_a_frozen_worker_keeps_its_place_and_goes_on(
    cluster: Cluster, work: dict[str, int]
) -> None:
    fault = FreezeProcess("task:hold")
    site = struck(cluster, fault)
    assert [s for s, title in seen(cluster) if title.startswith("ray::holding")] == ["T"]
    assert healed(cluster, fault, site) == "continued; it was running already"
    assert workers(cluster) == work


def test_what_does_not_run_there_is_said(
    cluster: Cluster, work: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(processes, "FOUND_S", 1.0)
    with pytest.raises(CannotRun, match="worker-1 runs no gcs"):
        CrashProcess("gcs").locate(cluster, Site(NODE))
    with pytest.raises(CannotRun, match="head runs no actor:keeper"):
        CrashProcess("actor:keeper").locate(cluster, Site("head"))


# ---- drain and preemption


def test_a_busy_node_that_is_drained_works_on_and_is_restarted_to_heal(
    cluster: Cluster, work: dict[str, int]
) -> None:
    fault, before = Drain(deadline=600), ray_id(cluster)
    site = struck(cluster, fault)
    assert "Ray holds it for draining" in fault.holds(cluster, site)
    assert list(draining(cluster)) == [before]
    assert workers(cluster) == work
    assert healed(cluster, fault, site).startswith("a drain is not taken back, so it was stopped")
    assert ray_id(cluster) != before
    assert draining(cluster) == {}


def test_a_drain_without_a_deadline_is_swept_without_a_history(
    cluster: Cluster, work: dict[str, int]
) -> None:
    site = struck(cluster, Drain())
    assert "without a deadline" in Drain().holds(cluster, site)
    assert Drain.sweep(cluster, NODE) == ""
    assert Drain.sweep(cluster, "head") == f"stopped what Ray was draining: {NODE}"
    assert "joined as a new node" in healed(cluster, Drain(), site)


def test_a_preempted_node_works_until_it_is_taken(cluster: Cluster, work: dict[str, int]) -> None:
    fault, before = Preempt(notice=600), ray_id(cluster)
    site = noticed(cluster, fault)
    assert "Ray holds it for draining" in fault.announced(cluster, site)
    assert draining(cluster) == {before: int(site.details["until"] * 1000)}
    assert workers(cluster) == work
    assert fault.holds(cluster, site) == ""
    fault.strike(cluster, site)
    until(lambda: cluster.node(NODE).state == "exited", "it is gone")
    assert cluster.node(NODE).exit_code == 137
    given_up = until(
        lambda: next(n for n in cluster.ray.nodes() if n.ray_node_id == before).message,
        "Ray gives it up",
    )
    assert "preemption" in given_up
    assert "joined as a new node" in healed(cluster, fault, site)
    assert draining(cluster) == {}


def noticed(cluster: Cluster, fault: Preempt) -> Site:
    until(lambda: ready(cluster), "`ray start` has ended")
    site = fault.locate(cluster, Site(NODE))
    fault.inject(cluster, site)
    until(lambda: fault.announced(cluster, site), "it is announced")
    return site


def test_an_idle_node_that_is_drained_leaves_by_itself(
    cluster: Cluster, work: dict[str, int]
) -> None:
    until(lambda: cluster.ray.stop_job("holding"), "the job is told to stop")
    until(lambda: not cluster.ray.running().get(ray_id(cluster) or ""), "nothing runs there")
    site = struck(cluster, Drain(deadline=60))
    until(lambda: cluster.node(NODE).state == "exited", "it leaves")
    assert cluster.node(NODE).exit_code == 12
    assert "it has left; Ray says" in Drain().holds(cluster, site)
    assert "joined as a new node" in healed(cluster, Drain(deadline=60), site)


def test_a_node_with_nothing_to_do_leaves_before_it_is_taken(cluster: Cluster) -> None:
    fault = Preempt(notice=600)
    site = noticed(cluster, fault)
    until(lambda: cluster.node(NODE).state == "exited", "it leaves")
    assert cluster.node(NODE).exit_code == 12
    assert fault.announced(cluster, site) == "it was drained, and left by itself"
    fault.strike(cluster, site)  # finds nothing, which is no error
    assert "joined as a new node" in healed(cluster, fault, site)


# ---- the GCS, last: no worker outlives it


def test_the_head_ends_with_its_gcs(cluster: Cluster) -> None:
    fault = CrashProcess("gcs")
    assert [t for _, t in seen(cluster, "head") if "gcs_server" in t]
    site = struck(cluster, fault, "head")
    until(lambda: cluster.node("head").state == "exited", "the head follows")
    assert cluster.node("head").exit_code == 13
    # The worker would exit by itself before long: to a new GCS it is nobody.
    assert fault.heal(cluster, site, 60).endswith("joined as a new node, and so did worker-1")
    assert {n.state for n in cluster.status().nodes} == {"alive"}
