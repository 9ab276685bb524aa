"""Faults of a whole node: killed, stopped, restarted, frozen, drained, preempted."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from typing import ClassVar

from simulator.backends.base import KILL, PAUSE, Capability
from simulator.cluster import Cluster
from simulator.errors import CannotRun
from simulator.faults.base import Fault, Site, Verb, register_fault, require, revive
from simulator.innode.supervisor import RAYLET_LEFT
from simulator.topology import NodeSpec


@dataclass(frozen=True)
class NodeFault(Fault):
    """Base of those that the engine itself can do and tell of; undone by having the node back."""

    on_store: ClassVar[bool] = True

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

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        if cluster.node(site.node).role == "store":
            return cluster.revive_store(timeout, lost=True)
        return super().heal(cluster, site, timeout)


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


@register_fault
@dataclass(frozen=True)
class Drain(NodeFault):
    """Ray is told that the node will be taken away: it gets no new work, and leaves once it has none.

    So begins the preemption of a spot machine. At the deadline nothing happens by itself: whoever takes
    the node away must do that. Ray does not take a drain back; healed, the node comes back as a new one.

    Parameters
    ----------
    deadline
        Seconds until it will be taken away, as told to Ray; 0 for no deadline.
    """

    deadline: float = 0.0

    name: ClassVar[str] = "drain"
    summary: ClassVar[str] = "Ray is told to drain the node, as before a preemption"
    undo: ClassVar[str] = "restart"
    on_store: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 <= self.deadline <= _MOST_SECONDS:  # NaN too
            raise ValueError(f"deadline is {self.deadline}; use 0 to {_MOST_SECONDS:.0f} seconds")

    def refused_on(self, node: NodeSpec) -> str | None:
        if node.role == "head":
            return "is the head, without which there is no cluster"
        return super().refused_on(node)

    def locate(self, cluster: Cluster, site: Site) -> Site:
        ray_node_id = _ray_node_id(cluster, site.node)
        if ray_node_id is None:
            raise CannotRun(f"{site.node} cannot be drained", why="Ray does not hold it alive")
        return replace(site, details={"ray_node_id": ray_node_id})

    def inject(self, cluster: Cluster, site: Site) -> None:
        _ask_head(cluster, "drain", str(self.deadline), site.details["ray_node_id"])

    def holds(self, cluster: Cluster, site: Site) -> str:
        ours = site.details["ray_node_id"]
        if held := _held_for_draining(cluster, ours):
            return held
        gone = next((n for n in cluster.ray.nodes() if n.ray_node_id == ours and not n.alive), None)
        return "" if gone is None else f"it has left; Ray says: {gone.message or 'no reason'}"

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        how = ""
        drained = site.details.get("ray_node_id")
        if drained is not None and drained == _ray_node_id(cluster, site.node):
            how = "a drain is not taken back, so it was stopped; "
            cluster.backend.stop(cluster.name, site.node, _GRACE_S)
        return how + revive(cluster, site.node, timeout)

    def lingers(self, cluster: Cluster, site: Site) -> str:
        now = _ray_node_id(cluster, site.node)
        return "Ray still holds it for draining" if now in draining(cluster) else ""

    @classmethod
    def sweep(cls, cluster: Cluster, node: str) -> str:
        """Of every node at once, when it is the head's turn: to ask costs the start of a Ray."""
        head = cluster.node(node)
        if head.role != "head" or head.state != "running":
            return ""
        deadlines = draining(cluster)
        found = [n.name for n in cluster.status().nodes if n.ray_node_id in deadlines]
        for name in found:
            cluster.backend.stop(cluster.name, name, _GRACE_S)
        return f"stopped what Ray was draining: {', '.join(found)}" if found else ""


@register_fault
@dataclass(frozen=True)
class Preempt(NodeFault):
    """A spot machine is taken back: a notice, then SIGKILL when its time is over.

    What a cloud's agent on the machine does with the notice is told to Ray: the node will be gone at that moment, so
    that it gets no new work. It may have left by itself by then, having nothing to do. Without a notice it is a
    `kill`; of a notice that nobody hears, Ray learns as little. Healed, another machine has come in its place.

    Parameters
    ----------
    notice
        How long from the notice until the machine is taken.
    drain
        Whether Ray is told, and drains the node until then.
    """

    notice: float = field(default=30.0, metadata={"unit": "s"})
    drain: bool = True

    name: ClassVar[str] = "preempt"
    summary: ClassVar[str] = (
        "a spot machine is taken back: a notice, a drain, SIGKILL at the deadline"
    )
    needs: ClassVar[Capability | None] = KILL
    shown_by: ClassVar[Verb | None] = "die"
    undo: ClassVar[str] = "start"
    at_random: ClassVar[bool] = False  # spot machines have a chance of their own (`SpotMarket`)
    on_store: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if not 0 < self.notice <= _MOST_SECONDS:  # NaN too
            raise ValueError(
                f"notice is {self.notice:g}; use more than 0 seconds, at most {_MOST_SECONDS:.0f}; "
                "kill comes without any"
            )

    @property
    def announced_s(self) -> float:
        return self.notice

    def refused_on(self, node: NodeSpec) -> str | None:
        return Drain().refused_on(node) if self.drain else super().refused_on(node)

    def locate(self, cluster: Cluster, site: Site) -> Site:
        details = dict(Drain().locate(cluster, site).details) if self.drain else {}
        # By the nodes' clock: at this moment the machine is taken, however long it takes to tell Ray so.
        return replace(
            site, details={**details, "until": cluster.backend.wall_clock() + self.notice}
        )

    def inject(self, cluster: Cluster, site: Site) -> None:
        if self.drain:
            until = str(int(site.details["until"] * 1000))
            _ask_head(cluster, "drain-by", until, site.details["ray_node_id"])

    def announced(self, cluster: Cluster, site: Site) -> str:
        if not self.drain:
            return "Ray is told nothing"
        # That it is dead would show nothing: it may have been taken before Ray knew.
        if cluster.node(site.node).exit_code == RAYLET_LEFT:
            return "it was drained, and left by itself"
        return _held_for_draining(cluster, site.details["ray_node_id"])

    def strike(self, cluster: Cluster, site: Site) -> None:
        if cluster.node(site.node).state == "exited":
            return
        try:
            require(self, cluster.backend).kill(cluster.name, site.node)
        except CannotRun:
            if cluster.node(site.node).state != "exited":
                raise

    def holds(self, cluster: Cluster, site: Site) -> str:
        return _is(cluster, site, "exited")

    def heal(self, cluster: Cluster, site: Site, timeout: float) -> str:
        # Before its time it is as a drain.
        return Drain().heal(cluster, site, timeout)

    def lingers(self, cluster: Cluster, site: Site) -> str:
        return Drain().lingers(cluster, site) if self.drain else ""


_MOST_SECONDS = 7 * 24 * 3600.0
_GRACE_S = 10.0


def draining(cluster: Cluster) -> dict[str, int]:
    """The nodes that Ray holds for draining: deadline in ms since 1970 by Ray's node id, 0 for none.

    Raises
    ------
    CannotRun
        Ray cannot be asked.
    """
    found: dict[str, int] = json.loads(_ask_head(cluster, "draining") or "{}")
    return found


def _held_for_draining(cluster: Cluster, ray_node_id: str) -> str:
    """That Ray drains it now, in words; "" if it does not."""
    deadlines = draining(cluster)
    if ray_node_id not in deadlines:
        return ""
    left = deadlines[ray_node_id] / 1000 - cluster.backend.wall_clock()
    return "Ray holds it for draining" + (
        f", {left:.0f} s before its deadline" if deadlines[ray_node_id] else ", without a deadline"
    )


def _ray_node_id(cluster: Cluster, node: str) -> str | None:
    return next(n.ray_node_id for n in cluster.status().nodes if n.name == node)


def _ask_head(cluster: Cluster, *arguments: str) -> str:
    """Run `simulator.innode.ray_private` on the head; its last line."""
    done = cluster.backend.execute(
        cluster.name, "head", ["python", "-m", "simulator.innode.ray_private", *arguments]
    )
    lines = [line for line in done.output.splitlines() if line.strip()]
    if done.code:
        raise CannotRun(
            f"Ray could not be asked: {arguments[0]}",
            why=lines[-1] if lines else f"exit code {done.code}",
            details=lines[-8:-1],
        )
    return lines[-1] if lines else ""
