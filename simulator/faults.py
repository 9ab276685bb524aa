"""Ways to break a node, each with its own undo and its own proof.

A fault knows how to inject itself, which event of the engine shows that it took effect, how to see from
outside that it holds, and how it is healed. Nothing here trusts a call that merely returned: a fault that
cannot be shown to have taken effect counts as not injected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, Literal

from simulator.backends.base import KILL, PAUSE, Backend, CanKill, CanPause, Capability
from simulator.cluster import Cluster, State, wait_alive
from simulator.errors import CannotRun
from simulator.waiting import WaitTimeout

Verb = Literal["start", "die", "pause", "unpause", "oom"]


@dataclass(frozen=True)
class Fault(ABC):
    """One way to break one node.

    Attributes
    ----------
    name
        As a person says it and as the history records it.
    needs
        What the backend must be able to do beyond the basics, or None.
    shown_by
        The engine's event that shows the effect.
    undo
        How `heal` undoes it, written to the history before the fault acts.
    """

    name: ClassVar[str]
    needs: ClassVar[Capability | None]
    shown_by: ClassVar[Verb]
    undo: ClassVar[str]

    @abstractmethod
    def inject(self, cluster: Cluster, node: str) -> None:
        """Break it; returns when the engine took the order, raises `CannotRun` if it did not."""

    @abstractmethod
    def holds(self, cluster: Cluster, node: str) -> bool:
        """Whether the engine shows it as broken now."""

    def heal(self, cluster: Cluster, node: str, timeout: float) -> str:
        """Undo it, idempotently; returns how, for the history.

        A node that Ray already gave up comes back as a new one: whatever state the node is in,
        at the end it is alive in the GCS.

        Parameters
        ----------
        timeout
            For one attempt of the node to join, seconds.

        Raises
        ------
        NodeStartFailed
            It did not join.
        """
        how = ""
        if cluster.node(node).state == "paused":
            cluster.resume(node)
            if _settled(cluster, node) == "alive":
                return "resumed; Ray still had it"
            how = "resumed, but Ray had given it up; "
        if cluster.node(node).state == "running":
            if _state(cluster, node) != "dead":
                wait_alive(cluster, [node], timeout)
                return f"{how}it was running already"
            # Ray takes no node back that it gave up: end it, so that it can come back as a new one.
            cluster.backend.stop(cluster.name, node, 1.0)
        cluster.start_nodes([node], timeout=timeout)
        return f"{how}started again; it joined as a new node"

    def refused_by(self, backend: Backend) -> str | None:
        """Why this backend cannot do it, or None."""
        if self.needs is None or isinstance(backend, self.needs.protocol):
            return None
        return f"{self.name} needs a backend that {self.needs.means}; {backend.name} does not"

    def __str__(self) -> str:
        return self.name


def _state(cluster: Cluster, node: str) -> State:
    return next(n.state for n in cluster.status().nodes if n.name == node)


def _settled(cluster: Cluster, node: str, timeout: float = 30.0) -> State:
    """What becomes of a thawed node: Ray still has it, or it exits as one given up."""

    def decided() -> State | None:
        state = _state(cluster, node)
        return state if state in ("alive", "exited") else None

    try:
        return cluster.wait_until(decided, name=f"{node} is alive or exits", timeout=timeout)
    except WaitTimeout:
        return _state(cluster, node)


@dataclass(frozen=True)
class Kill(Fault):
    """SIGKILL to the whole node at once, as when a machine loses power."""

    name: ClassVar[str] = "kill"
    needs: ClassVar[Capability | None] = KILL
    shown_by: ClassVar[Verb] = "die"
    undo: ClassVar[str] = "start"

    def inject(self, cluster: Cluster, node: str) -> None:
        if not isinstance(cluster.backend, CanKill):
            raise CannotRun(self.refused_by(cluster.backend) or "cannot kill")
        cluster.backend.kill(cluster.name, node)

    def holds(self, cluster: Cluster, node: str) -> bool:
        return cluster.node(node).state == "exited"


@dataclass(frozen=True)
class Stop(Fault):
    """SIGTERM to PID 1, as when a machine is shut down in an orderly way.

    Parameters
    ----------
    grace
        Seconds until SIGKILL follows.
    """

    grace: float = 30.0

    name: ClassVar[str] = "stop"
    needs: ClassVar[Capability | None] = None
    shown_by: ClassVar[Verb] = "die"
    undo: ClassVar[str] = "start"

    def inject(self, cluster: Cluster, node: str) -> None:
        cluster.backend.stop(cluster.name, node, self.grace)

    def holds(self, cluster: Cluster, node: str) -> bool:
        return cluster.node(node).state == "exited"


@dataclass(frozen=True)
class Restart(Fault):
    """SIGKILL and an immediate start, as when a machine resets itself.

    The node may be back before Ray has noticed that it was gone.
    """

    name: ClassVar[str] = "restart"
    needs: ClassVar[Capability | None] = KILL
    shown_by: ClassVar[Verb] = "die"
    undo: ClassVar[str] = "start"

    def inject(self, cluster: Cluster, node: str) -> None:
        if not isinstance(cluster.backend, CanKill):
            raise CannotRun(self.refused_by(cluster.backend) or "cannot kill")
        cluster.backend.kill(cluster.name, node)
        cluster.backend.start(cluster.name, node)

    def holds(self, cluster: Cluster, node: str) -> bool:
        """The die event is the proof; that it runs again is the point of it."""
        return cluster.node(node).state in ("running", "exited")


@dataclass(frozen=True)
class Pause(Fault):
    """Freezes the node: memory and address stay, nothing runs, nothing is refused."""

    name: ClassVar[str] = "pause"
    needs: ClassVar[Capability | None] = PAUSE
    shown_by: ClassVar[Verb] = "pause"
    undo: ClassVar[str] = "resume"

    def inject(self, cluster: Cluster, node: str) -> None:
        if not isinstance(cluster.backend, CanPause):
            raise CannotRun(self.refused_by(cluster.backend) or "cannot pause")
        cluster.backend.pause(cluster.name, node)

    def holds(self, cluster: Cluster, node: str) -> bool:
        return cluster.node(node).state == "paused"
