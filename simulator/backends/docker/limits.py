"""How much CPU and memory a container may use: read from the kernel, changed while it runs.

The engine's own record says what it asked for; what counts is what the kernel holds, and that stands in the
cgroup files which the container sees of itself, of either version of cgroups.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import docker
from python_on_whales import DockerClient

from simulator.backends.base import ClusterSpec, Completed, Limits, Load
from simulator.backends.docker.engine import asking
from simulator.compose import SPILL_TARGET, expand
from simulator.errors import CannotRun
from simulator.innode import cgroup
from simulator.topology import parse_size

Execute = Callable[[Sequence[str]], Completed]

_NANO = 1_000_000_000


def asked_of_engine(client: docker.APIClient, container: str) -> Limits:
    """What the engine gives it, also at its next start."""
    with asking("the engine was asked for a node's limits"):
        host = client.inspect_container(container)["HostConfig"]
    quota, period = host.get("CpuQuota") or 0, host.get("CpuPeriod") or 100_000
    cpus = host["NanoCpus"] / _NANO if host.get("NanoCpus") else quota / period
    return Limits(cpus if cpus > 0 else None, host.get("Memory") or None)


def why_unlimited(info: Mapping[str, Any], resource: str) -> str | None:
    """What the engine lacks for it: a rootless one may not have been given the controller."""
    keys = ("CpuCfsQuota", "CpuCfsPeriod") if resource == "cpus" else ("MemoryLimit",)
    if all(info.get(key) is not False for key in keys):
        return None
    words = "CPU" if resource == "cpus" else "memory"
    version = info.get("CgroupVersion", "?")
    return f"this Docker engine cannot limit {words} (cgroup v{version} without that controller)"


def made(spec: ClusterSpec, group: str, cores: float) -> Limits:
    """What compose.yaml and the topology gave it, whatever was changed since."""
    service = expand(spec, cores=cores)["services"][group]
    memory = service.get("mem_limit")
    return Limits(
        float(service["cpus"]) if "cpus" in service else None,
        None if memory is None else parse_size(str(memory)),
    )


def set_limits(container: str, limits: Limits, *, swap: int | None) -> None:
    """Change those that are given.

    Parameters
    ----------
    swap
        Memory and swap together, bytes: as much as the memory for a limit that swapping must not soften.
    """
    changed: dict[str, Any] = {}
    if limits.cpus is not None:
        changed["cpus"] = limits.cpus
    if limits.memory is not None:
        changed |= {"memory": limits.memory, "memory_swap": swap}
    if changed:
        with asking("a node's limits were to be changed"):
            DockerClient().container.update(container, **changed)


#: Where memory has run out, the kernel may kill whoever looks.
_LOOKS = 5


def load(execute: Execute, node: str) -> Load:
    """A look at the cgroup from inside, by a program that needs next to nothing.

    Raises
    ------
    CannotRun
        The node does not show its cgroup.
    """
    for _ in range(_LOOKS):
        seen = cgroup.parse(execute(["grep", "-s", "", *cgroup.paths()]).output.splitlines())
        if seen.version:
            break
    if not seen.version:
        raise CannotRun(
            f"what {node} has of CPU and memory cannot be read",
            why=f"it shows no files below {cgroup.ROOT}",
        )
    return Load(
        Limits(seen.cpus, seen.memory), seen.used, seen.oom_kills, seen.cpu_seconds, seen.version
    )


def ran_out_of_memory(client: docker.APIClient, container: str) -> bool:
    """The engine's own note of it."""
    with asking("the engine was asked whether a node ran out of memory"):
        return bool(client.inspect_container(container)["State"].get("OOMKilled"))


def spill_folder(client: docker.APIClient, container: str) -> str | None:
    """Where it has a disk of its own size, for Ray to spill to."""
    with asking("the engine was asked for a node's disks"):
        model = client.inspect_container(container)
    disks = model["HostConfig"].get("Tmpfs") or {}
    return SPILL_TARGET if "size=" in disks.get(SPILL_TARGET, "") else None
