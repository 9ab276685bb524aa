"""Faults of a whole node: killed, stopped, restarted, frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from simulator.backends.base import KILL, PAUSE, Capability
from simulator.cluster import Cluster
from simulator.faults.base import Fault, Site, Verb, register_fault, require, revive


@dataclass(frozen=True)
class NodeFault(Fault):
    """Base of those that the engine itself can do and tell of; undone by having the node back."""

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        return revive(cluster, site.node, timeout)


def _is(cluster: Cluster, site: Site, *states: str) -> str:
    state = cluster.node(site.node).state
    return f"the engine says {state}" if state in states else ""


@register_fault
@dataclass(frozen=True)
class Kill(NodeFault):
    """SIGKILL to the whole node at once, as when a machine loses power."""

    name: ClassVar[str] = "kill"
    summary: ClassVar[str] = "SIGKILL to the whole node at once, as when a machine loses power"
    needs: ClassVar[Capability | None] = KILL
    shown_by: ClassVar[Verb | None] = "die"
    undo: ClassVar[str] = "start"

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend).kill(cluster.name, site.node)

    def holds(self, cluster: Cluster, site: Site) -> str:
        return _is(cluster, site, "exited")


@register_fault
@dataclass(frozen=True)
class Stop(NodeFault):
    """SIGTERM to PID 1, as when a machine is shut down in an orderly way.

    Parameters
    ----------
    grace
        How long until SIGKILL follows.
    """

    grace: float = 30.0

    name: ClassVar[str] = "stop"
    summary: ClassVar[str] = "SIGTERM to PID 1, as when a machine is shut down in an orderly way"
    shown_by: ClassVar[Verb | None] = "die"
    undo: ClassVar[str] = "start"

    def inject(self, cluster: Cluster, site: Site) -> None:
        cluster.backend.stop(cluster.name, site.node, self.grace)

    def holds(self, cluster: Cluster, site: Site) -> str:
        return _is(cluster, site, "exited")


@register_fault
@dataclass(frozen=True)
class Restart(NodeFault):
    """SIGKILL and an immediate start, as when a machine resets itself.

    The node may be back before Ray has noticed that it was gone.
    """

    name: ClassVar[str] = "restart"
    summary: ClassVar[str] = "SIGKILL and an immediate start, as when a machine resets itself"
    needs: ClassVar[Capability | None] = KILL
    shown_by: ClassVar[Verb | None] = "die"
    undo: ClassVar[str] = "start"

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend).kill(cluster.name, site.node)
        cluster.backend.start(cluster.name, site.node)

    def holds(self, cluster: Cluster, site: Site) -> str:
        """The die event is the proof; that it runs again is the point of it."""
        return _is(cluster, site, "running", "exited")


@register_fault
@dataclass(frozen=True)
class Pause(NodeFault):
    """Freezes the node: memory and address stay, nothing runs, nothing is refused."""

    name: ClassVar[str] = "pause"
    summary: ClassVar[str] = "freezes the node: memory and address stay, nothing runs or is refused"
    needs: ClassVar[Capability | None] = PAUSE
    shown_by: ClassVar[Verb | None] = "pause"
    undo: ClassVar[str] = "resume"

    def inject(self, cluster: Cluster, site: Site) -> None:
        require(self, cluster.backend).pause(cluster.name, site.node)

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        if cluster.node(node).state != "paused":
            return ""
        cluster.resume(node)
        return "thawed"

    def holds(self, cluster: Cluster, site: Site) -> str:
        return _is(cluster, site, "paused")
