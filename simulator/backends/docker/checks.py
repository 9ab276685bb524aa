"""Can this machine run a cluster in containers? Each answer with what to do about it.

Nothing here raises because something is missing: that is what is being asked.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import docker
import yaml
from python_on_whales import DockerClient

from simulator.assets import engine_help
from simulator.backends.base import Check, GpuKind, resolve_gpus
from simulator.backends.docker.engine import Connection, asking, connect, find_connection
from simulator.backends.nvidia import MEANING, Driver, device_files, driver_check, look_at_driver
from simulator.compose import load_compose
from simulator.errors import CannotRun
from simulator.innode.supervisor import OBJECT_STORE_BYTES
from simulator.topology import Profile, Topology, parse_size

_OLDEST_API = (1, 41)  # Engine 20.10
_OLDEST_COMPOSE = (2, 20)
_GIB = 1024**3
_CDI_KIND = "nvidia.com/gpu="

#: Measured on an idle cluster and while it works (tasks that import torch), bytes.
_HEAD_IDLE, _HEAD_BUSY = int(0.8 * _GIB), int(1.5 * _GIB)
_WORKER_IDLE, _WORKER_BUSY = int(0.2 * _GIB), int(0.4 * _GIB)
_LEAN_IDLE, _LEAN_BUSY = int(0.12 * _GIB), int(0.25 * _GIB)
#: Below these a node dies of memory before it does any work.
_HEAD_LEAST, _WORKER_LEAST = int(0.75 * _GIB), int(0.25 * _GIB)


def checks(topology: Topology | None) -> list[Check]:
    """Every line of the doctor's report about Docker."""
    try:
        connection = find_connection()
        client = connect(connection, timeout=5.0)
        with asking("the Docker engine was asked about itself"):
            info: Mapping[str, Any] = client.info()
    except CannotRun as error:
        return [
            Check("problem", "engine", f"{error.what}: {error.why}", error.remedy),
            *_compose(),
        ]
    found = [_engine(client, connection, info), *_compose(), *_kernel(info)]
    if topology is not None:
        found += [
            *_memory(info, topology),
            _shared_memory(info, topology),
            _cores(info, topology),
            *gpu_checks(connection, info, topology, look_at_driver()),
        ]
    client.close()
    return found


@dataclass(frozen=True, slots=True)
class Passing:
    """How the engine would pass GPUs to a container.

    Attributes
    ----------
    how
        ``"runtime"`` by NVIDIA's runtime and its hook, ``"cdi"`` by CDI devices.
    devices
        Names of the CDI devices, without ``nvidia.com/gpu=``.
    count
        How many there are; None if that is not known.
    """

    how: Literal["runtime", "cdi"]
    devices: tuple[str, ...] = ()
    count: int | None = None


def passing(
    connection: Connection, info: Mapping[str, Any], driver: Driver | None = None
) -> Passing | None:
    """How the engine would pass GPUs; None if it cannot.

    Parameters
    ----------
    driver
        What this machine's says, if it was asked already.
    """
    here = connection.is_this_kernel
    if here and not device_files():
        return None  # the toolkit may be installed where no GPU is
    if "nvidia" in (info.get("Runtimes") or {}):
        count = len((driver or look_at_driver()).devices) if here else 0
        return Passing("runtime", count=count or None)
    names = _cdi_devices(info, here=here)
    numbered = tuple(sorted((n for n in names if n.isdecimal()), key=int))
    if numbered:
        return Passing("cdi", numbered, len(numbered))
    # A Linux in Windows has one device that is all of them.
    return Passing("cdi", ("all",)) if "all" in names else None


def _cdi_devices(info: Mapping[str, Any], *, here: bool) -> set[str]:
    """Names of NVIDIA's CDI devices, with `_CDI_KIND` taken off.

    An engine says them since 28.2; one before that says only where it reads their specifications, and
    nothing at all if it was not told to (``"features": {"cdi": true}``).
    """
    said = [str(device.get("ID", "")) for device in info.get("DiscoveredDevices") or []]
    if not said and here:
        said = [
            f"{spec.get('kind')}={device.get('name')}"
            for folder in info.get("CDISpecDirs") or []
            for spec in _cdi_specs(Path(folder))
            for device in spec.get("devices") or []
            if isinstance(device, Mapping)
        ]
    return {name.removeprefix(_CDI_KIND) for name in said if name.startswith(_CDI_KIND)}


def _cdi_specs(folder: Path) -> Iterator[Mapping[str, Any]]:
    for path in sorted(folder.glob("*")):
        if path.suffix not in (".json", ".yaml"):
            continue
        with suppress(OSError, UnicodeDecodeError, yaml.YAMLError):  # the engine's to complain of
            spec = yaml.safe_load(path.read_text(encoding="utf-8"))
            if isinstance(spec, Mapping):
                yield spec


def resolve_gpu(
    connection: Connection,
    info: Mapping[str, Any],
    topology: Topology,
    driver: Driver | None = None,
) -> GpuKind:
    """What the declared GPUs would be here.

    Raises
    ------
    CannotRun
        The topology wants real ones and there are none, or too few.
    """

    def devices() -> int | None:
        found = passing(connection, info, driver)
        return 0 if found is None else found.count

    return resolve_gpus(
        topology,
        devices,
        "the Docker engine cannot pass one: it has neither the NVIDIA runtime with a device nor a "
        "CDI device nvidia.com/gpu",
        "Install the NVIDIA driver and container toolkit",
    )


def _engine(client: docker.APIClient, connection: Connection, info: Mapping[str, Any]) -> Check:
    version = info.get("ServerVersion", "?")
    text = f"Docker {version} answers at {connection.host or 'its usual socket'}"
    api = _numbers(client.version().get("ApiVersion", ""))
    if api < _OLDEST_API:
        return Check(
            "problem", "engine", f"Docker {version} is too old", "Install Docker 20.10 or later"
        )
    if not connection.shares_loopback:
        return Check(
            "warning",
            "engine",
            f"{text}, not on this machine: clusters run there, and Ray is reached by docker exec",
            "Figures hold for that machine; its clock is measured, but less exactly",
        )
    return Check("ok", "engine", f"{text} ({connection.via})")


def _compose() -> Iterator[Check]:
    remedy = f"Install Docker Compose 2.20 or later; {engine_help()}"
    try:
        with asking("docker compose was asked for its version"):
            client = DockerClient()
            text = client.compose.version()
            has_buildx = client.buildx.is_installed()
    except CannotRun as error:
        yield Check("problem", "compose", f"Docker Compose v2 is missing: {error.why}", remedy)
        return
    match = re.search(r"\d+\.\d+(\.\d+)?", text or "")
    version = match[0] if match else "?"
    if _numbers(version) < _OLDEST_COMPOSE:
        yield Check("problem", "compose", f"Docker Compose {version} is too old", remedy)
    else:
        yield Check("ok", "compose", f"Docker Compose {version}")
    if has_buildx:
        yield Check("ok", "buildx", "buildx is there")
    else:
        yield Check(
            "warning",
            "buildx",
            "buildx is missing, so the node image cannot be built here",
            f"Install docker-buildx-plugin; {engine_help()}",
        )


def _kernel(info: Mapping[str, Any]) -> Iterator[Check]:
    missing = [
        words
        for key, words in (
            ("MemoryLimit", "memory"),
            ("PidsLimit", "processes"),
            ("CpuCfsQuota", "CPU"),
        )
        if info.get(key) is False
    ]
    version = info.get("CgroupVersion", "?")
    if missing:
        yield Check(
            "warning",
            "cgroups",
            f"cgroup v{version} without limits for {', '.join(missing)}: nodes can take more",
            "A rootless engine needs these controllers delegated to the user",
        )
    else:
        yield Check("ok", "cgroups", f"cgroup v{version}, limits work")


def _memory(info: Mapping[str, Any], topology: Topology) -> Iterator[Check]:
    for node in topology.nodes():
        least = _HEAD_LEAST if node.role == "head" else _WORKER_LEAST
        if node.memory and parse_size(node.memory) < least and node.index == 1:
            yield Check(
                "problem",
                f"memory of {node.group}",
                f"{node.memory} is less than a {node.role} needs to start",
                f"give it {least // 1024**2}m or more",
            )
    lean = sum(n.profile is Profile.LEAN for n in topology.workers())
    whole = len(topology.nodes()) - 1 - lean
    has = int(info.get("MemTotal", 0))
    idle = _HEAD_IDLE + whole * _WORKER_IDLE + lean * _LEAN_IDLE
    busy = _HEAD_BUSY + whole * _WORKER_BUSY + lean * _LEAN_BUSY
    text = (
        f"{has / _GIB:.1f} GiB; {topology.counted} take about "
        f"{idle / _GIB:.1f} GiB idle, {busy / _GIB:.1f} GiB at work"
    )
    remedy = "Use fewer workers (--workers N), or give the engine more memory"
    if has < idle:
        yield Check("problem", "memory", text, remedy)
    elif has < busy:
        yield Check("warning", "memory", text, remedy)
    else:
        yield Check("ok", "memory", text)


def _cores(info: Mapping[str, Any], topology: Topology) -> Check:
    cores, slots = int(info.get("NCPU", 1)), topology.total("CPU")
    text = f"{cores} cores for {slots:g} simulated CPUs ({slots / cores:.1f} on each)"
    if slots > 16 * cores:
        return Check(
            "warning",
            "cores",
            text,
            "Starting takes about 2 to 3 CPU-seconds a worker, and work that computes will crawl",
        )
    return Check("ok", "cores", text)


def _shared_memory(info: Mapping[str, Any], topology: Topology) -> Check:
    """Ray keeps objects in /dev/shm, and on disk, slowly, where that is too small for its store."""
    size = parse_size(str(load_compose({})["services"]["worker"]["shm_size"]))
    nodes, has = len(topology.nodes()), int(info.get("MemTotal", 0))
    single = [node for node in (topology.head, topology.driver) if node is not None]
    groups = [*((node, 1) for node in single), *((g, g.replicas) for g in topology.worker_groups)]
    stores = sum(
        count * (parse_size(group.shm_size) if group.shm_size else OBJECT_STORE_BYTES)
        for group, count in groups
    )
    text = f"{_mib(size)} for each node's object store of {_mib(OBJECT_STORE_BYTES)}"
    if size < OBJECT_STORE_BYTES:
        return Check(
            "warning",
            "shared memory",
            f"{text}: too small, so Ray keeps objects on disk",
            "Give nodes more: shm_size in compose.yaml",
        )
    if has < stores:
        return Check(
            "warning",
            "shared memory",
            f"{text}; {nodes} full ones would be {_mib(stores)} of the engine's {_mib(has)}",
            "Use fewer workers (--workers N), or keep fewer objects",
        )
    return Check("ok", "shared memory", text)


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"


def gpu_checks(
    connection: Connection, info: Mapping[str, Any], topology: Topology, driver: Driver
) -> Iterator[Check]:
    """Driver, toolkit, and what the topology's GPUs would be: each missing link with its remedy."""
    found = passing(connection, info, driver)
    configured = "nvidia" in (info.get("Runtimes") or {})
    if connection.is_this_kernel:
        yield driver_check(driver, len(driver.devices), topology)
    else:
        where = "the engine's machine is not this one, so its driver is not known"
        yield Check("ok", "GPU driver", where)
    if found is not None:
        words = {"runtime": "the NVIDIA runtime", "cdi": "CDI devices (nvidia.com/gpu)"}
        yield Check("ok", "GPU toolkit", f"the engine passes GPUs by {words[found.how]}")
    elif driver.devices and connection.is_this_kernel:
        yield Check(
            "warning",
            "GPU toolkit",
            "the driver works, but the engine has neither the NVIDIA runtime nor a CDI device",
            "Install nvidia-container-toolkit, then: nvidia-ctk runtime configure "
            "--runtime=docker, and restart the engine",
        )
    else:
        there = "the NVIDIA runtime is there, without a GPU" if configured else "none, none needed"
        yield Check("ok", "GPU toolkit", there)
    try:
        yield Check("ok", "gpu", MEANING[resolve_gpu(connection, info, topology, driver)])
    except CannotRun as error:
        yield Check("problem", "gpu", f"{error.what}: {error.why}", error.remedy)


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])
