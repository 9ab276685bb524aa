"""Can this machine run a cluster in containers? Each answer with what to do about it.

Nothing here raises because something is missing: that is what is being asked.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import docker
from python_on_whales import DockerClient

from simulator.assets import engine_help
from simulator.backends.base import Check, GpuKind, resolve_gpus
from simulator.backends.docker.engine import Connection, asking, connect, find_connection
from simulator.compose import load_compose
from simulator.errors import CannotRun
from simulator.innode.supervisor import OBJECT_STORE_BYTES
from simulator.topology import Gpus, Profile, Topology, parse_size

_OLDEST_API = (1, 41)  # Engine 20.10
_OLDEST_COMPOSE = (2, 20)
_GIB = 1024**3

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


def has_nvidia(connection: Connection, info: Mapping[str, Any]) -> str | None:
    """How the engine would pass a GPU, ``"runtime"`` or ``"cdi"``; None if it cannot."""
    if connection.is_this_kernel and not _device_files():
        return None  # the toolkit may be installed where no GPU is
    if "nvidia" in (info.get("Runtimes") or {}):
        return "runtime"
    devices = info.get("DiscoveredDevices") or []
    if any(str(d.get("ID", "")).startswith("nvidia.com/gpu") for d in devices):
        return "cdi"
    return None


def resolve_gpu(connection: Connection, info: Mapping[str, Any], topology: Topology) -> GpuKind:
    """What the declared GPUs would be here.

    Raises
    ------
    CannotRun
        The topology wants real ones and there are none.
    """
    return resolve_gpus(
        topology,
        lambda: has_nvidia(connection, info) is not None,
        "the Docker engine cannot pass one: it has neither the NVIDIA runtime with a device nor a "
        "CDI device nvidia.com/gpu",
        "Install the NVIDIA driver and container toolkit",
    )


def _device_files() -> bool:
    return any(Path("/dev", name).exists() for name in ("nvidiactl", "nvidia0", "dxg"))


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


@dataclass(frozen=True, slots=True)
class Driver:
    """What the NVIDIA driver of this machine says; `error` if it is there and does not work."""

    devices: tuple[str, ...] = ()
    error: str = ""


def look_at_driver() -> Driver:
    """Ask nvidia-smi, if there is one or there are device files."""
    command = shutil.which("nvidia-smi")
    if command is None:
        files = _device_files()
        return Driver(error="there are device files, but no nvidia-smi" if files else "")
    try:
        done = subprocess.run(
            [command, "-L"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Driver(error=f"nvidia-smi gives no answer ({type(error).__name__})")
    devices = tuple(
        re.sub(r"\s*\(UUID.*", "", line.partition(": ")[2])
        for line in done.stdout.splitlines()
        if line.startswith("GPU ")
    )
    if devices or not done.returncode:
        return Driver(devices)
    lines = [line.strip() for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    return Driver(error=f"nvidia-smi: {lines[0] if lines else f'exit code {done.returncode}'}")


def gpu_checks(
    connection: Connection, info: Mapping[str, Any], topology: Topology, driver: Driver
) -> Iterator[Check]:
    """Driver, toolkit, and what the topology's GPUs would be: each missing link with its remedy."""
    wanted = topology.head.gpus_declared
    how = has_nvidia(connection, info)
    configured = "nvidia" in (info.get("Runtimes") or {})
    if not connection.is_this_kernel:
        where = "the engine's machine is not this one, so its driver is not known"
        yield Check("ok", "GPU driver", where)
    elif driver.error:
        yield Check("warning", "GPU driver", driver.error, "Install the NVIDIA driver anew")
    elif driver.devices:
        names = f"{len(driver.devices)}: {', '.join(driver.devices)}"
        enough = len(driver.devices) >= wanted or topology.head.gpus is Gpus.SIMULATED
        remedy = "Set head.resources.GPU to what there is, or head.gpus=simulated"
        short = "" if enough else f", fewer than the head's {wanted}"
        yield Check("ok" if enough else "warning", "GPU driver", names + short, remedy)
    else:
        yield Check("ok", "GPU driver", "none: this machine shows no NVIDIA GPU")
    if how is not None:
        words = {"runtime": "the NVIDIA runtime", "cdi": "CDI devices (nvidia.com/gpu)"}
        yield Check("ok", "GPU toolkit", f"the engine passes GPUs by {words[how]}")
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
        kind = resolve_gpu(connection, info, topology)
    except CannotRun as error:
        yield Check("problem", "gpu", f"{error.what}: {error.why}", error.remedy)
        return
    meaning = {
        "real": "the head gets this machine's GPU",
        "simulated": "GPUs are simulated: declared to Ray, no device",
        "none": "no GPU is asked for",
    }
    yield Check("ok", "gpu", meaning[kind])


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in re.findall(r"\d+", text)[:2])
