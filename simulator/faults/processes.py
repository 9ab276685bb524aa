"""Faults of one process of a node: killed, told to end, frozen; what else runs on the node is left alone.

The process is found at the moment of the injection, and from then on is that pid with that moment of birth,
and no other. That it is gone, or stopped, is seen in the node's table of processes.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from signal import SIGCONT, SIGKILL, SIGSTOP, SIGTERM, Signals
from typing import ClassVar, Literal

from simulator.backends.base import SIGNAL, CanSignal, Capability, NodeProcess
from simulator.cluster import Cluster
from simulator.errors import CannotRun
from simulator.faults.base import (
    Fault,
    Missed,
    Site,
    recover,
    register_fault,
    require,
    settled,
    state_of,
)
from simulator.topology import NodeSpec
from simulator.waiting import WaitTimeout

#: Ray's own processes by the words for them: the name of the program, or the title that it paints.
CORE = {
    "raylet": "raylet",
    "gcs": "gcs_server",
    "agent": "ray::DashboardAgent",
    "runtime_env_agent": "ray::RuntimeEnvAgent",
}
_OF_WORK = ("task:", "actor:")

#: How long a process of a task or an actor is waited for: there may be none between two tasks, seconds.
FOUND_S = 10.0

#: How long a node may take to follow the process without which it cannot be, seconds.
FOLLOWS_S = 30.0

#: How long after a look into it that failed a node may take to be seen down, seconds.
ENDS_S = 3.0

_STOPPED = "T"

_WORKER = "ray::"  # how the title of a process begins that Ray started for somebody's work


@dataclass(frozen=True)
class ProcessFault(Fault):
    """Base of those that signal one process.

    Parameters
    ----------
    process
        ``raylet``, ``gcs``, ``agent`` (the dashboard's, on each node), ``runtime_env_agent``, ``task:FUNCTION`` for
        a worker that runs this function, or ``actor:NAME`` for the one that hosts this named actor.
    """

    process: str = "raylet"

    needs: ClassVar[Capability | None] = SIGNAL
    in_node: ClassVar[bool] = True

    def __post_init__(self) -> None:
        kind = next((k for k in _OF_WORK if self.process.startswith(k)), None)
        if self.process not in CORE and (kind is None or self.process == kind):
            known = ", ".join(CORE)
            raise ValueError(
                f"process is {self.process!r}; use one of {known}, task:FUNCTION or actor:NAME"
            )

    @property
    def is_core(self) -> bool:
        """Whether it is one of Ray's own, which a node has from its start on, and not one that works."""
        return self.process in CORE

    def refused_on(self, node: NodeSpec) -> str | None:
        if self.process == "gcs" and node.role != "head":
            return "runs no GCS; only the head does"
        return super().refused_on(node)

    def locate(self, cluster: Cluster, site: Site) -> Site:
        require(self, cluster.backend)
        try:
            found = cluster.wait_until(
                lambda: self._find(cluster, site.node),
                name=f"{self.process} on {site.node}",
                timeout=0.0 if self.is_core else FOUND_S,
                interval=0.2,
            )
        except WaitTimeout:
            raise CannotRun(
                f"{self} found nothing to strike", why=f"{site.node} runs no {self.process}"
            ) from None
        details = {"pid": found.pid, "started": found.started, "title": found.title}
        return replace(site, details=details)

    def _find(self, cluster: Cluster, node: str) -> NodeProcess | None:
        """The oldest process of the node that is meant."""
        kind, _, name = self.process.partition(":")
        meant: Callable[[NodeProcess], bool]
        if self.is_core:
            meant = self._is_core_process
        elif kind == "actor":
            meant = _hosts_actor(cluster, node, name)
        else:
            meant = _runs_task(cluster, node, name)
        rows = sorted(_processes(cluster, node), key=lambda p: (p.started, p.pid))
        return next((process for process in rows if meant(process)), None)

    def _is_core_process(self, process: NodeProcess) -> bool:
        return CORE[self.process] in (process.name, process.title)

    def struck(self, cluster: Cluster, site: Site) -> NodeProcess | None:
        """The very process that was found at the injection; None if it is gone."""
        wanted = (site.details["pid"], site.details["started"])
        rows = _rows_of_any(cluster, site.node)
        return next((p for p in rows if (p.pid, p.started) == wanted), None)

    def _send(self, cluster: Cluster, site: Site, number: Signals) -> None:
        process = self.struck(cluster, site)
        backend = require(self, cluster.backend)
        if process is None or not backend.signal_process(cluster.name, site.node, process, number):
            raise Missed(
                f"{self.process} of {site.node} could not be struck",
                why=f"process {site.details['pid']} had ended by itself",
            )

    def _back(self, cluster: Cluster, site: Site, timeout: float) -> str:
        """Have the node alive after the process that was struck has gone, or goes on."""
        with suppress(WaitTimeout):  # what it is then decides what is done
            cluster.wait_until(
                lambda: self._follows(cluster, site.node),
                name=f"{site.node} follows its {self.process} or goes on",
                timeout=FOLLOWS_S,
            )
        return recover(cluster, site.node, timeout)

    def _follows(self, cluster: Cluster, node: str) -> bool:
        """Whether it is settled what becomes of the node: it is down, or has such a process again."""
        if cluster.node(node).state != "running":
            return True
        try:
            return self._find(cluster, node) is not None
        except CannotRun:
            return False  # it ended while it was looked into, or Ray does not answer


def _hosts_actor(cluster: Cluster, node: str, name: str) -> Callable[[NodeProcess], bool]:
    """Its title has only its class; which process has the name is Ray's to say."""
    here = _ray_node_id(cluster, node)
    pids = {
        actor.pid
        for actor in cluster.ray.actors()
        if actor.alive and actor.name == name and actor.ray_node_id == here
    }
    return lambda process: process.pid in pids and process.title.startswith(_WORKER)


def _runs_task(cluster: Cluster, node: str, function: str) -> Callable[[NodeProcess], bool]:
    """What Ray says is up to a second old, so the process must show by its title that it still is so."""
    here = _ray_node_id(cluster, node)
    titles = {
        (task.pid, _WORKER + task.name)
        for task in cluster.ray.running_tasks()
        if task.ray_node_id == here and task.function.rpartition(".")[2] == function
    }
    # A task without a name of its own has its function's, and may be over before Ray tells of it.
    return lambda process: (
        process.title == _WORKER + function or (process.pid, process.title) in titles
    )


def _processes(cluster: Cluster, node: str) -> list[NodeProcess]:
    backend = cluster.backend
    assert isinstance(backend, CanSignal)
    return backend.processes(cluster.name, node)


def _rows_of_any(cluster: Cluster, node: str) -> list[NodeProcess]:
    """As `_processes`, of a node that is down too, or that goes down while it is looked into."""

    def down() -> bool:
        return cluster.node(node).state != "running"

    if down():
        return []
    try:
        return _processes(cluster, node)
    except CannotRun:
        # The engine may say so a moment later.
        with suppress(WaitTimeout):
            cluster.wait_until(down, name=f"{node} is down", timeout=ENDS_S)
            return []
        raise


def _ray_node_id(cluster: Cluster, node: str) -> str | None:
    return next(n.ray_node_id for n in cluster.status().nodes if n.name == node)


@register_fault
@dataclass(frozen=True)
class CrashProcess(ProcessFault):
    """One process of the node is killed, or told to end.

    Parameters
    ----------
    signal
        ``SIGKILL``, or ``SIGTERM``, which it may take its time over.
    """

    signal: Literal["SIGKILL", "SIGTERM"] = "SIGKILL"

    name: ClassVar[str] = "crash_process"
    summary: ClassVar[str] = "one process is killed: the raylet, the GCS, an agent, a worker"
    undo: ClassVar[str] = "start"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.signal not in (SIGKILL.name, SIGTERM.name):
            raise ValueError(f"signal is {self.signal!r}; use SIGKILL or SIGTERM")

    def inject(self, cluster: Cluster, site: Site) -> None:
        self._send(cluster, site, Signals[self.signal])

    def holds(self, cluster: Cluster, site: Site) -> str:
        if self.struck(cluster, site) is not None:
            return ""
        return f"process {site.details['pid']} ({site.details['title'][:40]}) is gone"

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        if not self.is_core:
            return f"Ray replaces its workers itself; {recover(cluster, site.node, timeout)}"
        return self._back(cluster, site, timeout)


@register_fault
@dataclass(frozen=True)
class FreezeProcess(ProcessFault):
    """One process of the node is stopped: it is there, holds what it holds, and does nothing."""

    name: ClassVar[str] = "freeze_process"
    summary: ClassVar[str] = "one process is stopped: it is there, and does nothing"
    undo: ClassVar[str] = "continue"

    def inject(self, cluster: Cluster, site: Site) -> None:
        self._send(cluster, site, SIGSTOP)

    def holds(self, cluster: Cluster, site: Site) -> str:
        process = self.struck(cluster, site)
        if process is None or process.state != _STOPPED:
            return ""
        return f"process {process.pid} ({process.title[:40]}) is in state T"

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        process = self.struck(cluster, site)
        if process is None:
            return f"the process is gone; {recover(cluster, site.node, timeout)}"
        how = "it ran already"
        if process.state == _STOPPED:
            backend = require(self, cluster.backend)
            backend.signal_process(cluster.name, site.node, process, SIGCONT)
            how = "continued"
            # A raylet that Ray gave up meanwhile notices that, and ends.
            if self.is_core and state_of(cluster, site.node) == "dead":
                settled(cluster, site.node)
        return f"{how}; {recover(cluster, site.node, timeout)}"

    def lingers(self, cluster: Cluster, site: Site) -> str:
        return self.holds(cluster, site)

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        backend = cluster.backend
        if not isinstance(backend, CanSignal) or cluster.node(node).state != "running":
            return ""
        stopped = [p for p in backend.processes(cluster.name, node) if p.state == _STOPPED]
        for process in stopped:
            backend.signal_process(cluster.name, node, process, SIGCONT)
        return f"{len(stopped)} stopped processes continued" if stopped else ""
