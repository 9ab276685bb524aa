"""Can this machine run a cluster as processes? Each answer with what to do about it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from importlib import metadata

import psutil

from simulator.backends.base import Check, GpuKind, resolve_gpus
from simulator.backends.nvidia import MEANING, Driver, driver_check, look_at_driver, visible_here
from simulator.backends.process import network
from simulator.errors import CannotRun
from simulator.innode.supervisor import OBJECT_STORE_BYTES
from simulator.topology import Topology

RAY_VERSION = "2.60.0"

#: Memory of a node that works a little, bytes (measured, with a margin).
HEAD_MEMORY, WORKER_MEMORY = int(1.3e9), int(0.35e9)

_INSTALL = "pip install 'ray-cluster-simulator[ray]'"


def checks(topology: Topology | None, platform: str = sys.platform) -> list[Check]:
    """Every line of the doctor's report about processes."""
    if not platform.startswith("linux"):
        return [
            Check(
                "problem",
                "system",
                f"{platform} has neither /proc nor all of 127.0.0.0/8",
                "use Docker: --backend docker",
            )
        ]
    found = [
        Check(
            "ok",
            "system",
            "Linux; nodes share its files, network and cores: no limits, no network faults",
        ),
        Check(
            "ok",
            "ports",
            "Ray opens most of its ports on all addresses of this machine; "
            "they want the cluster's token, except for /metrics",
        ),
        _ray(),
    ]
    if topology is not None:
        found += [
            _memory(topology),
            shared_memory(topology),
            _cores(topology),
            addresses(topology),
            *gpu_checks(topology, look_at_driver()),
        ]
        found += store_checks(topology)
        if topology.lean_groups:
            text = "one Python for all: lean nodes run all of Ray, as the others do"
            found.append(Check("warning", "lean nodes", text, "use Docker: --backend docker"))
    return found


def store_checks(topology: Topology) -> Iterator[Check]:
    """Where the head is to keep its tables, if that is not here."""
    if topology.store is not None:
        text = (
            f"processes run no {topology.store.name}, so the head could not keep its tables there"
        )
        remedy = "use Docker: --backend docker, or a disk of the head's: gcs: rocksdb"
        yield Check("problem", "gcs", text, remedy)


def resolve_gpu(topology: Topology, driver: Driver) -> GpuKind:
    """What the declared GPUs would be here.

    Raises
    ------
    CannotRun
        The topology wants real ones and there are none, or too few.
    """
    return resolve_gpus(
        topology,
        lambda: len(visible_here(driver)),
        "CUDA_VISIBLE_DEVICES leaves none"
        if driver.devices
        else driver.error or "nvidia-smi shows none",
        "Unset CUDA_VISIBLE_DEVICES" if driver.devices else "Install the NVIDIA driver",
    )


def gpu_checks(topology: Topology, driver: Driver) -> Iterator[Check]:
    """The driver, and what the topology's GPUs would be."""
    yield driver_check(driver, len(visible_here(driver)), topology)
    try:
        yield Check("ok", "gpu", MEANING[resolve_gpu(topology, driver)])
    except CannotRun as error:
        yield Check("problem", "gpu", f"{error.what}: {error.why}", error.remedy)


def _ray() -> Check:
    try:
        version = metadata.version("ray")
    except metadata.PackageNotFoundError:
        return Check("problem", "Ray", f"is not installed for {sys.executable}", _INSTALL)
    extras = [name for name in ("aiohttp", "grpcio") if not _installed(name)]
    if extras:
        text = f"{version} lacks {', '.join(extras)}, so it has no dashboard and takes no jobs"
        return Check("problem", "Ray", text, _INSTALL)
    if version.split(".")[:2] != RAY_VERSION.split(".")[:2]:
        return Check("warning", "Ray", version, f"tested with {RAY_VERSION}: {_INSTALL}")
    return Check("ok", "Ray", version)


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def _memory(topology: Topology) -> Check:
    need = HEAD_MEMORY + WORKER_MEMORY * (len(topology.nodes()) - 1)
    memory = psutil.virtual_memory()
    text = (
        f"{topology.counted} need about {need / 1e9:.1f} GB; "
        f"{memory.available / 1e9:.1f} GB are free"
    )
    if need > memory.total:
        return Check("problem", "memory", text, "use fewer workers: --workers N")
    if need > memory.available:
        return Check("warning", "memory", text, "end other programs, or use fewer: --workers N")
    return Check("ok", "memory", text)


def shared_memory(topology: Topology, folder: str = "/dev/shm") -> Check:
    """All nodes share one /dev/shm; where it has no room, Ray keeps objects on disk, slowly."""
    nodes = len(topology.nodes())
    need = nodes * OBJECT_STORE_BYTES
    want = f"object stores of {nodes} nodes: {_mib(need)}"
    try:
        disk = psutil.disk_usage(folder)
    except OSError as error:
        text = f"{want}; {folder}: {error.strerror}, so Ray keeps objects on disk"
        return Check("warning", "shared memory", text, f"mount a tmpfs at {folder}")
    text = f"{want}; {folder} has {_mib(disk.free)} free of {_mib(disk.total)}"
    if disk.total < need:
        remedy = f"make {folder} larger (a container: --shm-size), or use fewer: --workers N"
        return Check("warning", "shared memory", f"{text}, so Ray keeps objects on disk", remedy)
    if disk.free < need:
        remedy = f"see what fills it: ls -lh {folder}"
        return Check("warning", "shared memory", f"{text}, so Ray keeps objects on disk", remedy)
    return Check("ok", "shared memory", text)


def _mib(size: int) -> str:
    return f"{size / 1024**2:.0f} MiB"


def addresses(topology: Topology) -> Check:
    """Is a network of loopback addresses free, and on its head the ports that must be chosen?"""
    nodes = len(topology.nodes())
    if nodes > network.MOST_NODES:
        text = f"{nodes} nodes; one cluster has addresses for {network.MOST_NODES}"
        return Check("problem", "addresses", text, "use fewer workers: --workers N")
    try:
        free = network.free_network("doctor", ())
        network.free_port(f"{free}.{network.FIRST_HOST}")
    except CannotRun as error:
        return Check("problem", "addresses", str(error), error.remedy)
    return Check("ok", "addresses", f"{free}.0/24 and ports on it are free for {nodes} nodes")


def _cores(topology: Topology) -> Check:
    cores, slots = os.cpu_count() or 1, topology.total("CPU")
    text = f"{cores} cores carry {slots:g} simulated CPUs"
    if slots > 8 * cores:
        return Check("warning", "cores", text, "times will be those of a crowded machine")
    return Check("ok", "cores", text)
