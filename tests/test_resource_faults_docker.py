"""Faults of CPU, memory and disk on a real engine, judged from outside: one small cluster for all tests."""

from __future__ import annotations

import json
import os
import queue
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from simulator.backends.base import ClusterSpec, EngineEvent
from simulator.backends.docker import DockerBackend
from simulator.backends.docker.image import DEFAULT_IMAGE, ensure_image
from simulator.cluster import HEALTH, Cluster
from simulator.compose import SPILL_TARGET
from simulator.errors import CannotRun
from simulator.faults import CpuLimit, CpuStress, DiskFull, Fault, MemoryHog, MemoryLimit, Oom, Site
from simulator.topology import parse_topology
from simulator.waiting import wait_until

pytestmark = pytest.mark.real_docker

NAME = f"test-{os.getpid()}-res"
NODE = "worker-1"
MIB = 1024**2
MEMORY = 1024 * MIB

TOPOLOGY = parse_topology(
    {
        "name": "small",
        "head": {"resources": {"CPU": 1}},
        "worker_groups": [
            {
                "group_name": "worker",
                "resources": {"CPU": 1, "there": 1},
                "memory": "1g",
                "shm_size": "80m",
                "spill_size": "128m",
            },
            {"group_name": "plain", "resources": {"CPU": 1}},
        ],
    },
    "test",
)

#: Where the kernel shows what it holds for a container, by version of cgroups.
QUOTA = {"1": "cpu/cpu.cfs_quota_us", "2": "cpu.max"}
LIMIT = {"1": "memory/memory.limit_in_bytes", "2": "memory.max"}
USED = {"1": "memory/memory.usage_in_bytes", "2": "memory.current"}


#: A worker that Ray starts while the memory is full may hang, and Ray waits for it, a minute unless told otherwise.
HANGS = {"RAY_worker_register_timeout_seconds": "15"}
PATIENCE = 120  # seconds


def docker(*arguments: str, code: int = 0) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout.strip()


def inside(script: str, code: int = 0) -> str:
    return docker("exec", f"{NAME}-{NODE}", "sh", "-c", script, code=code)


def inspected(*path: str) -> Any:
    found = json.loads(docker("inspect", "--size", f"{NAME}-{NODE}"))[0]
    for key in path:
        found = found[key]
    return found


@pytest.fixture(scope="module")
def cgroup() -> str:
    return docker("info", "--format", "{{.CgroupVersion}}")


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    ensure_image(DEFAULT_IMAGE, say=print)
    backend = DockerBackend()
    cluster = Cluster(backend, NAME)
    try:
        cluster.up(ClusterSpec(NAME, TOPOLOGY, "none", env={**HEALTH["fast"], **HANGS}))
        yield cluster
    finally:
        backend.remove(NAME)


@pytest.fixture(scope="module")
def work(cluster: Cluster) -> str:
    """A job with a task and an actor on the node, both for ever."""
    backend = cluster.backend
    backend.copy_in(NAME, "head", str(Path(__file__).with_name("holding.py")), "/tmp")
    cluster.ray.submit("python /tmp/holding.py", "holding")
    wait_until(lambda: workers(cluster), name="a task and an actor", timeout=60, interval=0.3)
    return "holding"


def workers(cluster: Cluster) -> set[int] | None:
    """The pids of the task's and the actor's processes, once Ray tells of both."""
    tasks = {t.pid for t in cluster.ray.running_tasks() if t.name == "holding"}
    actors = {a.pid for a in cluster.ray.actors() if a.name == "keeper" and a.alive}
    return tasks | actors if tasks and actors else None


@pytest.fixture
def events(cluster: Cluster) -> Iterator[queue.Queue[EngineEvent]]:
    events: queue.Queue[EngineEvent] = queue.Queue()
    watch = cluster.backend.watch(NAME, events.put)
    yield events
    watch.close()


def struck(cluster: Cluster, fault: Fault, name: str = "f1") -> Site:
    site = fault.locate(cluster, Site(NODE, name))
    fault.inject(cluster, site)
    wait_until(
        lambda: fault.holds(cluster, site), name=f"{fault} holds", timeout=PATIENCE, interval=0.2
    )
    return site


def healed(cluster: Cluster, fault: Fault, site: Site) -> None:
    """Healed twice, and gone."""
    for _ in range(2):
        assert fault.heal(cluster, site, 60)
        assert fault.lingers(cluster, site) == ""
    (node,) = [n for n in cluster.status().nodes if n.name == NODE]
    assert node.state == "alive"


def until(condition: Callable[[], Any], name: str) -> Any:
    return wait_until(condition, name=name, timeout=PATIENCE, interval=0.2)


# ---- what it was made with


def test_shared_memory_is_small_and_rays_object_store_lies_in_it(cluster: Cluster) -> None:
    assert inspected("HostConfig", "ShmSize") == 80 * MIB
    assert inside("stat -f -c '%T %b %S' /dev/shm").split()[0] == "tmpfs"
    (node,) = [n for n in cluster.ray.nodes() if n.hostname == cluster.node(NODE).hostname]
    assert 75 * MIB <= node.resources["object_store_memory"] < 80 * MIB
    text = cluster.backend.logs(NAME, NODE)
    assert "instead of /dev/shm" not in text


# ---- limits


def quota(cgroup: str) -> float:
    """Cores; the period is 100 ms, as Docker sets it."""
    return int(inside(f"cat /sys/fs/cgroup/{QUOTA[cgroup]}").split()[0]) / 100_000


def test_the_tighter_of_two_cpu_limits_counts_for_the_kernel(cluster: Cluster, cgroup: str) -> None:
    wide, tight = CpuLimit(0.5), CpuLimit(0.25)
    made = quota(cgroup)
    assert made > 0.5
    first = struck(cluster, wide, "f1")
    assert (quota(cgroup), inspected("HostConfig", "NanoCpus")) == (0.5, 500_000_000)
    second = struck(cluster, tight, "f2")
    assert quota(cgroup) == 0.25
    wide.inject(cluster, first)  # a wider one takes nothing back
    assert quota(cgroup) == 0.25
    assert wide.holds(cluster, first)
    healed(cluster, tight, second)
    # Whoever runs the faults strikes again what does not hold any more.
    assert not wide.holds(cluster, first)
    wide.inject(cluster, first)
    assert quota(cgroup) == 0.5
    healed(cluster, wide, first)
    assert quota(cgroup) == made
    assert inspected("HostConfig", "NanoCpus") == made * 1e9


def test_a_memory_limit_is_the_kernels_and_leaves_no_swap(cluster: Cluster, cgroup: str) -> None:
    def limit() -> int:
        return int(inside(f"cat /sys/fs/cgroup/{LIMIT[cgroup]}"))

    assert limit() == MEMORY
    fault = MemoryLimit("600m")
    site = struck(cluster, fault)
    assert limit() == 600 * MIB
    assert inspected("HostConfig", "MemorySwap") == 600 * MIB
    healed(cluster, fault, site)
    assert limit() == MEMORY
    assert inspected("HostConfig", "MemorySwap") == 2 * MEMORY


def test_limits_are_swept_without_a_history(cluster: Cluster, cgroup: str) -> None:
    made = quota(cgroup)
    struck(cluster, CpuLimit(0.5))
    struck(cluster, MemoryLimit("700m"))
    assert CpuLimit.sweep(cluster, NODE) == f"it has {CpuLimit.said(made)} again"
    assert MemoryLimit.sweep(cluster, NODE) == "it has 1024 MiB again"
    assert quota(cgroup) == made
    assert (CpuLimit.sweep(cluster, NODE), MemoryLimit.sweep(cluster, NODE)) == ("", "")


def test_a_memory_limit_below_what_is_in_use(cluster: Cluster, cgroup: str) -> None:
    """The older cgroups refuse it, and so does the fault beforehand."""
    fault = MemoryLimit("40m")
    if cgroup == "1":
        with pytest.raises(CannotRun, match="cgroup v1 takes no limit below that"):
            fault.locate(cluster, Site(NODE))
        with pytest.raises(CannotRun, match="unable to set memory limit"):
            fault.inject(cluster, Site(NODE))
        assert int(inside(f"cat /sys/fs/cgroup/{LIMIT['1']}")) == MEMORY
        return
    site = struck(cluster, fault)
    until(lambda: inspected("State", "OOMKilled"), "the kernel kills")
    healed(cluster, fault, site)


# ---- burdens


def burdens() -> int:
    """Counted by the engine, which lists processes from outside."""
    return docker("top", f"{NAME}-{NODE}", "-eo", "pid,args").count("burden burn")


def test_busy_processes_take_cpu_in_the_nodes_own_cgroup(cluster: Cluster) -> None:
    def used() -> int:
        stats = docker("stats", "--no-stream", "--format", "{{.CPUPerc}}", f"{NAME}-{NODE}")
        return int(float(stats.rstrip("%")))

    fault = CpuStress(processes=2)
    site = struck(cluster, fault)
    assert burdens() == 2
    until(lambda: used() > 50, "the engine sees it compute")
    healed(cluster, fault, site)
    assert burdens() == 0


def test_memory_is_filled_to_a_share_and_is_free_again(cluster: Cluster, cgroup: str) -> None:
    def used() -> int:
        return int(inside(f"cat /sys/fs/cgroup/{USED[cgroup]}"))

    before = used()
    fault = MemoryHog(share=0.7)
    site = struck(cluster, fault)
    assert 0.68 * MEMORY < used() < 0.9 * MEMORY
    assert burdens() == 1
    healed(cluster, fault, site)
    assert burdens() == 0
    until(lambda: used() < before + 100 * MIB, "the memory is free again")


def test_burdens_are_swept_without_a_history(cluster: Cluster) -> None:
    struck(cluster, CpuStress(processes=1), "f1")
    struck(cluster, MemoryHog(share=0.5), "f2")
    struck(cluster, DiskFull(share=0.5), "f3")
    assert CpuStress.sweep(cluster, NODE) == "3 burdening processes ended, 1 fillers removed"
    assert burdens() == 0
    assert CpuStress.sweep(cluster, NODE) == ""


def kills(cgroup: str) -> int:
    file = {"1": "memory/memory.oom_control", "2": "memory.events"}[cgroup]
    return int(inside(f"grep '^oom_kill ' /sys/fs/cgroup/{file}").split()[1])


def test_above_its_threshold_rays_own_monitor_kills_and_the_kernel_does_not(
    cluster: Cluster, work: str, cgroup: str
) -> None:
    before, killed = until(lambda: workers(cluster), "both are there"), kills(cgroup)
    fault = MemoryHog(share=0.97)
    site = fault.locate(cluster, Site(NODE))
    fault.inject(cluster, site)
    until(lambda: not before & (workers(cluster) or set()), "Ray kills both workers")
    log = "grep -h 'OOM kill reason' /tmp/ray/session_latest/logs/raylet.out || true"
    until(lambda: "exceeded threshold" in inside(log), "Ray tells why")
    assert kills(cgroup) == killed
    healed(cluster, fault, site)
    until(lambda: workers(cluster), "both are back")


def test_when_memory_runs_out_the_kernel_kills_a_worker_of_rays_and_the_engine_tells(
    cluster: Cluster, work: str, cgroup: str, events: queue.Queue[EngineEvent]
) -> None:
    before, killed = until(lambda: workers(cluster), "both are there"), kills(cgroup)
    fault = Oom()
    site = struck(cluster, fault)
    assert kills(cgroup) > killed
    assert inspected("State", "OOMKilled")
    event = events.get(timeout=15)
    assert (event.verb, event.node) == ("oom", NODE)
    assert burdens() == 0  # it ended when somebody was killed
    until(lambda: (now := workers(cluster)) and not before <= now, "Ray replaces its worker")
    healed(cluster, fault, site)
    assert cluster.node(NODE).state == "running"


# ---- a disk


def test_a_full_disk_is_the_nodes_own_and_never_the_machines(cluster: Cluster) -> None:
    mount = inside(f"grep ' {SPILL_TARGET} ' /proc/mounts").split()
    assert (mount[2], "size=131072k" in mount[3]) == ("tmpfs", True)
    layer = inspected("SizeRw")
    inside(f"head -c 10000000 /dev/zero > {SPILL_TARGET}/there")
    fault = DiskFull()
    site = struck(cluster, fault)
    said = inside(f"dd if=/dev/zero of={SPILL_TARGET}/more bs=4k count=1 2>&1; true")
    assert "No space left on device" in said
    assert inside(f"stat -f -c %a {SPILL_TARGET}") == "0"
    assert inspected("SizeRw") - layer < MIB
    inside(f"rm {SPILL_TARGET}/there")
    until(lambda: inside(f"stat -f -c %a {SPILL_TARGET}") == "0", "what is freed is taken too")
    healed(cluster, fault, site)
    assert inside(
        f"rm {SPILL_TARGET}/more; echo more > {SPILL_TARGET}/more; cat {SPILL_TARGET}/more"
    )


def blocks(cluster: Cluster, name: str) -> dict[str, int]:
    """What became of twelve blocks of 10 MB, kept on the node, whose store holds seven."""
    backend = cluster.backend
    backend.copy_in(NAME, "head", str(Path(__file__).with_name("blocks.py")), "/tmp")
    cluster.ray.submit("python /tmp/blocks.py 12", name)
    until(lambda: cluster.ray.job(name).over, f"{name} ends")
    log = cluster.ray.job_logs(name)
    (line,) = [one for one in log.splitlines() if one.startswith("outcomes")]
    outcomes: dict[str, int] = json.loads(line.partition(" ")[2])
    return outcomes


def test_ray_spills_to_that_disk_and_fails_what_does_not_fit_while_it_is_full(
    cluster: Cluster,
) -> None:
    assert blocks(cluster, "whole") == {"read": 12}
    assert "ray_spilled_objects" in inside(f"ls {SPILL_TARGET}")
    fault = DiskFull()
    site = struck(cluster, fault)
    found = blocks(cluster, "full")
    assert found["read"] < 12
    assert sum(found.values()) == 12
    assert {name for name in found if name != "read"} == {"RayTaskError(OutOfDiskError)"}
    healed(cluster, fault, site)
    assert blocks(cluster, "healed") == {"read": 12}


def test_a_node_without_such_a_disk_is_not_filled(cluster: Cluster) -> None:
    with pytest.raises(CannotRun, match="plain-1 can be filled: it has no disk of its own size"):
        DiskFull().locate(cluster, Site("plain-1"))
