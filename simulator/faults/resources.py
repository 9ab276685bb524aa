"""Faults of what a node has: CPU and memory taken away or used up, a disk that is full.

A limit is changed from outside, by the engine. What uses up a node's CPU, memory or disk is a small program of
ours inside it (`simulator.innode.burden`), known by a mark that names the cluster and the site. Both are
judged by what the kernel says: a cgroup's values, a disk's free blocks, the engine's note of an OOM kill.
"""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from simulator.backends.base import (
    LIMIT,
    SPILL_DISK,
    Backend,
    CanLimit,
    Capability,
    HasSpillDisk,
    Limits,
)
from simulator.cluster import Cluster
from simulator.errors import CannotRun
from simulator.faults.base import (
    SIGKILLED,
    Fault,
    Site,
    Verb,
    goes_down,
    recover,
    register_fault,
    require,
)
from simulator.innode.burden import ANY
from simulator.topology import NodeSpec, parse_size

_MIB = 1024**2
#: With less, it takes a node many seconds to be looked at; Docker's own least is 0.01.
_LEAST_CORES = 0.05
_LEAST_MEMORY = 6 * _MIB  # Docker takes no less
_MOST_PROCESSES = 256

#: How far below its share a node's memory may be and count as filled: a few pages come and go.
_NEARLY = 0.98


# ---- limits


class _OfOneKind(Fault):
    """Needs a limit of this kind, which not every machine gives."""

    #: The field of `Limits`.
    resource: ClassVar[Literal["cpus", "memory"]]

    def unable(self, backend: Backend) -> str | None:
        if not isinstance(backend, CanLimit):
            return self.refused_by(backend)
        why = backend.why_unlimited(self.resource)
        return f"{self.name}: {why}" if why else None


@dataclass(frozen=True)
class _Limit(_OfOneKind):
    """Base of those that take away what a node was made with; several may overlap, and the tightest counts."""

    needs: ClassVar[Capability | None] = LIMIT
    undo: ClassVar[str] = "restore"
    outlives_restart: ClassVar[bool] = True

    def asked(self) -> float:
        raise NotImplementedError

    @staticmethod
    def said(amount: float) -> str:
        """An amount in words."""
        raise NotImplementedError

    def locate(self, cluster: Cluster, site: Site) -> Site:
        backend = require(self, cluster.backend)
        has = _amount(backend.made_limits(cluster.name, site.node), self.resource)
        if has is not None and self.asked() >= has:
            raise CannotRun(
                f"{self} takes nothing away from {site.node}", why=f"it has {self.said(has)}"
            )
        now = _amount(backend.limits(cluster.name, site.node), self.resource)
        return replace(site, details={"before": now})

    def inject(self, cluster: Cluster, site: Site) -> None:
        backend = require(self, cluster.backend)
        now = _amount(backend.limits(cluster.name, site.node), self.resource)
        if now is None or now > self.asked():  # a tighter one of another fault stays
            backend.set_limits(cluster.name, site.node, _limits(self.resource, self.asked()))

    def in_force(self, cluster: Cluster, site: Site) -> float | None:
        """By the kernel's word, or for a node that is down by the engine's."""
        backend = require(self, cluster.backend)
        if cluster.node(site.node).state == "running":
            with suppress(
                CannotRun
            ):  # it may end while it is looked at, for want of what was taken
                return _amount(backend.load(cluster.name, site.node).limits, self.resource)
            if cluster.node(site.node).state == "running":
                return None
        return _amount(backend.limits(cluster.name, site.node), self.resource)

    def holds(self, cluster: Cluster, site: Site) -> str:
        now = self.in_force(cluster, site)
        # The kernel counts in whole pages and in parts of a period.
        if now is None or now > self.asked() * 1.001:
            return ""
        return f"the node has {self.said(now)}"

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        backend = require(self, cluster.backend)
        how = _loosen(backend, cluster, site.node, self.resource, site.details.get("before"))
        killed = self.resource == "memory" and backend.ran_out_of_memory(cluster.name, site.node)
        came = recover(cluster, site.node, timeout, killed=killed)
        return f"{f'it has {self.said(how)} again' if how else 'nothing was missing'}; {came}"

    def lingers(self, cluster: Cluster, site: Site) -> str:
        backend = require(self, cluster.backend)
        now = self.in_force(cluster, site)
        made = _amount(backend.made_limits(cluster.name, site.node), self.resource)
        if now is None or made is None or now >= made * 0.999:
            return ""
        return f"the node still has {self.said(now)} of {self.said(made)}"

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        if not isinstance(cluster.backend, CanLimit):
            return ""
        restored = _loosen(cluster.backend, cluster, node, cls.resource)
        return f"it has {cls.said(restored)} again" if restored else ""


def _amount(limits: Limits, resource: str) -> float | None:
    amount: float | None = getattr(limits, resource)
    return amount


def _limits(resource: str, amount: float) -> Limits:
    return Limits(cpus=amount) if resource == "cpus" else Limits(memory=int(amount))


def _loosen(
    backend: CanLimit, cluster: Cluster, node: str, resource: str, before: float | None = None
) -> float | None:
    """Give a node back what it was made with, if it has less; how much that is.

    Parameters
    ----------
    before
        What it had when the fault struck: a cluster by hand may have been made with more than
        compose.yaml says.
    """
    made = _amount(backend.made_limits(cluster.name, node), resource)
    now = _amount(backend.limits(cluster.name, node), resource)
    wanted = max((amount for amount in (made, before) if amount is not None), default=None)
    if wanted is None or now is None or now >= wanted * 0.999:
        return None
    backend.set_limits(cluster.name, node, _limits(resource, wanted))
    return wanted


@register_fault
@dataclass(frozen=True)
class CpuLimit(_Limit):
    """The node gets fewer cores, as on a machine that is shared or too hot.

    Parameters
    ----------
    cores
        That it may still use, at least 0.05.
    """

    cores: float = 0.5

    name: ClassVar[str] = "cpu_limit"
    summary: ClassVar[str] = "the node may use fewer cores, as on a machine that is throttled"
    resource: ClassVar[Literal["cpus", "memory"]] = "cpus"

    def __post_init__(self) -> None:
        if not self.cores >= _LEAST_CORES:  # NaN too
            raise ValueError(f"cores is {self.cores}; a node needs at least {_LEAST_CORES}")

    def asked(self) -> float:
        return self.cores

    @staticmethod
    def said(amount: float) -> str:
        return f"{amount:g} core" + ("" if amount == 1 else "s")


@register_fault
@dataclass(frozen=True)
class MemoryLimit(_Limit):
    """The node may hold less memory; below what it uses, the kernel kills in it until it fits.

    A kernel with cgroup v1 refuses a limit below what is in use: there, use `MemoryHog` or `Oom`.

    Parameters
    ----------
    limit
        A size such as ``512m`` or ``2g``.
    """

    limit: str = "512m"

    name: ClassVar[str] = "memory_limit"
    summary: ClassVar[str] = "the node may hold less memory; what does not fit, the kernel kills"
    resource: ClassVar[Literal["cpus", "memory"]] = "memory"

    def __post_init__(self) -> None:
        if _size("limit", self.limit) < _LEAST_MEMORY:
            raise ValueError(f'limit is "{self.limit}"; a node needs at least 6m')

    def asked(self) -> float:
        return parse_size(self.limit)

    @staticmethod
    def said(amount: float) -> str:
        return f"{amount / _MIB:.0f} MiB"

    def locate(self, cluster: Cluster, site: Site) -> Site:
        found = super().locate(cluster, site)
        load = require(self, cluster.backend).load(cluster.name, site.node)
        if load.cgroup == 1 and load.memory >= self.asked():
            raise CannotRun(
                f"{site.node} cannot be limited to {self.said(self.asked())}",
                why=f"it uses {self.said(load.memory)}, and cgroup v1 takes no limit below that",
                remedy="Ask for more, or use the fault oom",
            )
        return found


def _size(field: str, text: str) -> int:
    try:
        return parse_size(text)
    except ValueError as error:
        raise ValueError(f"{field} {error}") from None


# ---- what is used up


class WentDown(CannotRun):
    """The node went down while a program of ours ran in it, which ended with it."""


def ask_burden(cluster: Cluster, node: str, *arguments: str) -> dict[str, Any]:
    """Run `simulator.innode.burden` in a node; what it says.

    Raises
    ------
    WentDown
        The node did not live to hear what it says.
    CannotRun
        The node does not run, or the program refused.
    """
    argv = ["python", "-m", "simulator.innode.burden", *arguments]
    try:
        done = cluster.backend.execute(cluster.name, node, argv)
    except CannotRun as error:
        if goes_down(cluster, node):
            raise WentDown(str(error)) from error
        raise
    lines = [line for line in done.output.splitlines() if line.strip()]
    said: dict[str, Any] = {}
    if lines and lines[-1].startswith("{"):
        said = json.loads(lines[-1])
    if done.code or not said:
        why = said.get("refused") or (lines[-1] if lines else f"exit code {done.code}")
        if done.code == SIGKILLED and goes_down(cluster, node):
            raise WentDown(f"{node} went down", why="so did what ran in it")
        raise CannotRun(f"{node} cannot be burdened", why=why, details=lines[-5:-1])
    return said


@dataclass(frozen=True)
class _Burden(Fault):
    """Base of those that run a program in the node; it ends with the node, and is ended by its mark."""

    undo: ClassVar[str] = "end"
    in_node: ClassVar[bool] = True

    @staticmethod
    def mark(cluster: Cluster, site: Site) -> str:
        return f"{cluster.name}/{site.id}"

    def look(self, cluster: Cluster, site: Site, *folder: str) -> dict[str, Any]:
        """What there is of it; nothing in a node that is down."""
        if cluster.node(site.node).state != "running":
            return {"processes": []}
        return ask_burden(cluster, site.node, "look", self.mark(cluster, site), *folder)

    def end(self, cluster: Cluster, site: Site, *folder: str) -> str:
        """Take it away; how, in words."""
        if cluster.node(site.node).state not in ("running", "paused"):
            return "it ended with the node"
        try:
            said = ask_burden(cluster, site.node, "end", self.mark(cluster, site), *folder)
        except WentDown:
            return "it ended with the node"
        parts = []
        if said["ended"]:
            parts.append(f"{said['ended']} processes ended")
        if said["removed"]:
            parts.append("its file removed")
        return " and ".join(parts) or "nothing of it was there any more"

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        how = self.end(cluster, site)
        return f"{how}; {recover(cluster, site.node, timeout)}"

    def lingers(self, cluster: Cluster, site: Site) -> str:
        left = self.look(cluster, site)["processes"]
        return f"{len(left)} processes of it still run" if left else ""


@register_fault
@dataclass(frozen=True)
class CpuStress(_Burden):
    """Processes that compute for ever take part in the node's CPU, as a noisy neighbour does.

    Parameters
    ----------
    processes
        How many; each takes one core if it can get it.
    """

    processes: int = 2

    name: ClassVar[str] = "cpu_stress"
    summary: ClassVar[str] = "processes that compute for ever share the node's CPU with Ray"
    needs: ClassVar[Capability | None] = LIMIT
    outlives_restart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 1 <= self.processes <= _MOST_PROCESSES:
            raise ValueError(f"processes is {self.processes}; use 1 to {_MOST_PROCESSES}")

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend)
        there = len(self.look(cluster, site)["processes"])
        if there < self.processes:
            mark, missing = self.mark(cluster, site), self.processes - there
            ask_burden(cluster, site.node, "start", mark, "cpu", str(missing))

    def holds(self, cluster: Cluster, site: Site) -> str:
        found = self.look(cluster, site)["processes"]
        if len(found) < self.processes or not all(process["ticks"] for process in found):
            return ""
        return f"{len(found)} processes of it had {sum(p['ticks'] for p in found)} ticks of CPU"

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        """Of every burden in the node, whatever its kind: to look costs the start of a Python."""
        backend = cluster.backend
        if not isinstance(backend, CanLimit) or cluster.node(node).state != "running":
            return ""
        disk = isinstance(backend, HasSpillDisk) and backend.spill_folder(cluster.name, node)
        try:
            said = ask_burden(cluster, node, "end", ANY, *([disk] if disk else []))
        except WentDown:
            return ""
        if not (said["ended"] or said["removed"]):
            return ""
        return f"{said['ended']} burdening processes ended, {said['removed']} fillers removed"


@register_fault
@dataclass(frozen=True)
class MemoryHog(_Burden, _OfOneKind):
    """A process takes memory until the node holds a share of its limit, and keeps it there.

    Above Ray's own threshold (95 % of the limit unless set otherwise) Ray's memory monitor kills workers; the
    kernel kills nothing as long as the rest fits.

    Parameters
    ----------
    share
        Of the node's memory limit, above 0 and below 1; to have the kernel kill, use `Oom`.
    """

    share: float = 0.9

    name: ClassVar[str] = "memory_hog"
    summary: ClassVar[str] = "a process keeps a share of the node's memory taken"
    resource: ClassVar[Literal["cpus", "memory"]] = "memory"
    needs: ClassVar[Capability | None] = LIMIT
    outlives_restart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share < 1:
            raise ValueError(
                f"share is {self.share}; use a number between 0 and 1, or the fault oom"
            )

    def locate(self, cluster: Cluster, site: Site) -> Site:
        _need_limit(self, cluster, site)
        return site

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend)
        if not self.look(cluster, site)["processes"]:
            mark = self.mark(cluster, site)
            ask_burden(cluster, site.node, "start", mark, "memory", str(self.share))

    def holds(self, cluster: Cluster, site: Site) -> str:
        if not self.look(cluster, site)["processes"]:
            return ""
        load = require(self, cluster.backend).load(cluster.name, site.node)
        if load.limits.memory is None or load.memory < load.limits.memory * self.share * _NEARLY:
            return ""
        return f"{load.memory // _MIB} of {load.limits.memory // _MIB} MiB are in use"


@register_fault
@dataclass(frozen=True)
class Oom(_Burden, _OfOneKind):
    """Memory runs out, at once, until the kernel kills a process of the node; then the rest is free again.

    The kernel prefers Ray's workers, which Ray itself offers it, and takes the process that filled the memory where
    there are none. That is not Ray's memory monitor, which kills before the memory is full: the engine tells of
    this one, Ray's log of the other.
    """

    name: ClassVar[str] = "oom"
    summary: ClassVar[str] = "memory runs out until the kernel kills a process of the node"
    resource: ClassVar[Literal["cpus", "memory"]] = "memory"
    needs: ClassVar[Capability | None] = LIMIT
    shown_by: ClassVar[Verb | None] = "oom"

    def locate(self, cluster: Cluster, site: Site) -> Site:
        _need_limit(self, cluster, site)
        load = require(self, cluster.backend).load(cluster.name, site.node)
        return replace(site, details={"oom_kills": load.oom_kills})

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend)
        ask_burden(cluster, site.node, "start", self.mark(cluster, site), "oom")

    def holds(self, cluster: Cluster, site: Site) -> str:
        """Not that memory is short, which is over by then, but that the kernel killed for it."""
        backend = require(self, cluster.backend)
        if cluster.node(site.node).state != "running":
            ran_out = backend.ran_out_of_memory(cluster.name, site.node)
            return (
                "the engine says that the node ran out of memory, and it is down" if ran_out else ""
            )
        kills = backend.load(cluster.name, site.node).oom_kills - site.details["oom_kills"]
        return f"the kernel killed {kills} of its processes for want of memory" if kills > 0 else ""


def _need_limit(fault: Fault, cluster: Cluster, site: Site) -> None:
    """Without a limit of the node's own it would be the machine's memory that is filled."""
    if require(fault, cluster.backend).limits(cluster.name, site.node).memory is None:
        raise CannotRun(
            f"{site.node} cannot run out of memory by itself",
            why="it has no memory limit",
            remedy="Set memory in its topology",
        )


@register_fault
@dataclass(frozen=True)
class DiskFull(_Burden):
    """The disk that the node spills objects to is full, and stays so whatever Ray deletes there.

    It is a disk of the node's own size, never the machine's.

    Parameters
    ----------
    share
        Of that disk that is taken, above 0 and up to 1.
    """

    share: float = 1.0

    name: ClassVar[str] = "disk_full"
    summary: ClassVar[str] = "the disk that the node spills objects to is full"
    needs: ClassVar[Capability | None] = SPILL_DISK
    undo: ClassVar[str] = "remove"
    outlives_restart: ClassVar[bool] = True

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share is {self.share}; use a number above 0 and up to 1")

    def refused_on(self, node: NodeSpec) -> str | None:
        return super().refused_on(node) or (None if node.spill_size else _NO_DISK)

    def locate(self, cluster: Cluster, site: Site) -> Site:
        folder = require(self, cluster.backend).spill_folder(cluster.name, site.node)
        if folder is None:
            raise CannotRun(f"no disk of {site.node} can be filled", why=f"it {_NO_DISK}")
        return replace(site, details={"folder": folder})

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend)
        mark, folder = self.mark(cluster, site), site.details["folder"]
        ask_burden(cluster, site.node, "fill", mark, folder, str(self.share))

    def holds(self, cluster: Cluster, site: Site) -> str:
        disk = self.look(cluster, site, site.details["folder"]).get("disk")
        if disk is None or disk["filler"] is None:
            return ""
        if disk["free"] > disk["size"] * (1 - self.share) + _MIB / 16:
            return ""
        return f"{disk['free'] / _MIB:.1f} of {disk['size'] / _MIB:.0f} MiB are free"

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        how = self.end(cluster, site, site.details["folder"])
        return f"{how}; {recover(cluster, site.node, timeout)}"

    def lingers(self, cluster: Cluster, site: Site) -> str:
        found = self.look(cluster, site, site.details["folder"])
        if found["processes"]:
            return "the process that keeps the disk full is still there"
        disk = found.get("disk")
        return "" if disk is None or disk["filler"] is None else "its file is still there"


_NO_DISK = "has no disk of its own size to spill to; set spill_size in its topology"
