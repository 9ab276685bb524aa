"""One simulated cluster: its nodes, the GCS that believes things about them, and the ledger's volume.

What is kept apart here is what is apart in a real one: whether a node runs is the engine's knowledge,
whether it is alive is the GCS's belief, and the second follows the first only after a while.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from pathlib import PurePosixPath
from random import Random
from typing import Any, Literal, Protocol

from simulator.backends.base import ClusterSpec, EngineEvent, Limits, NodeRecord, NodeState
from simulator.backends.fake.clock import FakeClock, Timer
from simulator.backends.fake.script import Behaviour, Script
from simulator.compose import GCS_PORT
from simulator.innode.supervisor import GCS_DIED
from simulator.netrules import Drop, NetRule
from simulator.topology import RECONNECT_S, NodeSpec

ENGINE_DELAY_S = 0.005
STORE_ADDRESS = "10.77.255.1"
RETRY_JOIN_S, GIVE_UP_JOIN_S = 1.0, 30.0


class NodeWatcher(Protocol):
    """What runs on the nodes and must know what becomes of them."""

    def node_joined(self, node: FakeNode) -> None: ...

    def node_dead(self, node: FakeNode, ray_node_id: str) -> None: ...

    def gcs_gone(self) -> None: ...


@dataclass
class GcsEntry:
    """A node as the GCS has it."""

    ray_node_id: str
    node: FakeNode
    alive: bool = True
    reason: str = ""
    message: str = ""
    since: float = 0.0
    until: float | None = None
    draining: int | None = None  # the deadline, ms since 1970; 0 for none


@dataclass(frozen=True, slots=True)
class RayEvent:
    """Something that the GCS came to believe, for the observer to see."""

    kind: str
    hostname: str | None
    data: Mapping[str, Any]


@dataclass
class Gcs:
    """The GCS of one life of the head: unless it keeps its tables, the next head knows nothing of it."""

    entries: list[GcsEntry] = field(default_factory=list)
    events: list[RayEvent] = field(default_factory=list)
    jobs: dict[str, Any] = field(default_factory=dict)
    packages: dict[str, bytes] = field(default_factory=dict)


class FakeNode:
    """A simulated container: what its PID 1 does goes on as long as it runs, and freezes with it."""

    def __init__(self, world: World, spec: NodeSpec, address: str) -> None:
        self.world, self.spec, self.address = world, spec, address
        self.name = spec.name
        self.hostname = f"{world.name}-{spec.name}"
        self.state: NodeState = "created"
        self.exit_code: int | None = None
        self.starts = 0
        self.silent = False  # the GCS hears nothing of it, though it is there
        self.changes = 0  # how often that changed
        self.rules: dict[str, NetRule] = {}
        self.unplugged = False
        self.log: list[str] = []
        #: What was copied onto it, by absolute path.
        self.files: dict[str, bytes] = {}
        #: What was changed of the limits that it was made with.
        self.limited = Limits()
        self.entry: GcsEntry | None = None
        self.joining = False
        self.doomed = False
        self._timers: dict[Timer, Callable[[], None]] = {}
        self._frozen: list[tuple[float, Callable[[], None]]] = []
        self._held: list[Callable[[], None]] = []
        self.begin_life()

    def begin_life(self) -> None:
        """Nothing that was in it outlives its PID 1."""
        self.burdens: list[Any] = []
        self.killed: set[int] = set()
        self.stopped: set[int] = set()
        self.oom_kills = 0

    @property
    def is_head(self) -> bool:
        return self.spec.role == "head"

    @property
    def believed_alive(self) -> bool:
        return self.entry is not None and self.entry.alive

    @property
    def takes_work(self) -> bool:
        """Whether a task may be placed here: it runs, and Ray neither gave it up nor drains it."""
        entry = self.entry
        alive = entry is not None and entry.alive and entry.draining is None
        return self.state == "running" and alive

    def record(self) -> NodeRecord:
        return NodeRecord(
            name=self.name,
            role=self.spec.role,
            group=self.spec.group,
            state=self.state,
            hostname=self.hostname,
            address=self.address
            if self.state in ("running", "paused") and not self.unplugged
            else "",
            exit_code=self.exit_code,
            resources=dict(self.spec.resources),
            profile=self.spec.profile,
            labels=dict(self.spec.labels),
        )

    def say(self, line: str) -> None:
        self.log.append(line)

    def do(self, seconds: float, action: Callable[[], None]) -> None:
        """Let something happen on this node, if it still runs then."""

        if self.state == "paused":
            self._frozen.append((seconds, action))
            return

        def happen() -> None:
            del self._timers[timer]
            action()

        timer = self.world.clock.after(seconds, happen)
        self._timers[timer] = action

    def freeze(self) -> None:
        now = self.world.clock.now
        for timer, action in self._timers.items():
            timer.cancel()
            self._frozen.append((timer.due - now, action))
        self._timers.clear()

    def thaw(self) -> None:
        frozen, self._frozen = self._frozen, []
        for left, action in frozen:
            self.do(left, action)

    def forget(self) -> None:
        """Nothing that was going on here will go on."""
        for timer in self._timers:
            timer.cancel()
        self._timers.clear()
        self._frozen.clear()
        self._held.clear()
        self.joining = False

    def when_heard(self, action: Callable[[], None]) -> None:
        """Do it now if the head can hear of it, else when it can again."""
        if self.world.reaches_head(self):
            action()
        else:
            self._held.append(action)

    def be_heard(self) -> None:
        held, self._held = self._held, []
        for action in held:
            action()


class World:
    """A simulated cluster."""

    def __init__(
        self, spec: ClusterSpec, clock: FakeClock, behaviour: Behaviour, script: Script, rng: Random
    ) -> None:
        self.spec, self.name = spec, spec.name
        self.clock, self.behaviour, self.script, self.rng = clock, behaviour, script, rng
        self.nodes: dict[str, FakeNode] = {}
        self.have(spec.topology.nodes())
        self.head = self.nodes["head"]
        store = spec.topology.store
        self.store = FakeNode(self, store, STORE_ADDRESS) if store is not None else None
        #: The tables of a GCS that is gone and keeps them.
        self.kept: Gcs | None = None
        self.outages = 0
        #: Where the driver of each job runs, by Ray's id of the job.
        self.drivers: dict[str, FakeNode] = {}
        self.gcs: Gcs | None = None
        self.watchers: list[Callable[[EngineEvent], None]] = []
        self.on_nodes: list[NodeWatcher] = []
        self.files: dict[str, bytes] = {}
        self.ledger: dict[str, list[str]] = {}
        #: What detached actors hold, whose programs have ended.
        self.left_behind: list[tuple[FakeNode, Mapping[str, float]]] = []
        self.removed = False

    # -- the engine's side -----------------------------------------------------------------------

    def have(self, nodes: Sequence[NodeSpec]) -> None:
        """Make those of these nodes that are missing."""
        have = dict(self.nodes)
        used = {node.address for node in have.values()}
        free = (a for i in count(10) if (a := f"10.77.{i // 250}.{i % 250}") not in used)
        self.nodes.clear()
        for node in nodes:
            self.nodes[node.name] = have.get(node.name) or FakeNode(self, node, next(free))

    @property
    def breakable(self) -> dict[str, FakeNode]:
        """The nodes, and the store, by name."""
        return {**self.nodes, **({self.store.name: self.store} if self.store is not None else {})}

    def remove(self, node: FakeNode) -> None:
        """Take one node away, whatever it is doing."""
        self.end(node, 137)
        del self.nodes[node.name]

    def wall(self) -> float:
        """The nodes' wall clock."""
        return self.clock.wall() + self.behaviour.clock_offset

    def hex(self, digits: int) -> str:
        return f"{self.rng.getrandbits(4 * digits):0{digits}x}"

    def emit(
        self,
        verb: Literal["start", "die", "pause", "unpause", "oom"],
        node: FakeNode,
        exit_code: int | None = None,
    ) -> None:
        event = EngineEvent(verb, node.name, self.wall(), exit_code)
        for deliver in self.watchers[:]:
            self.clock.after(ENGINE_DELAY_S, lambda d=deliver: d(event))  # type: ignore[misc]

    def start(self, node: FakeNode) -> None:
        if node.state in ("running", "paused"):
            return
        node.forget()
        node.begin_life()
        node.state, node.exit_code, node.doomed = "running", None, False
        node.starts += 1
        node.rules.clear()
        node.silent = False
        node.say(f"[supervisor] {node.hostname}: start {node.starts}")
        self.emit("start", node)
        if node is self.store:
            return
        failure = next(iter(self.script.starts.get(node.name, [])), None)
        if failure is not None:
            self.script.starts[node.name].pop(0)
            for line in failure.lines:
                node.say(line)
            if failure.exit_code is not None:
                code = failure.exit_code
                node.do(failure.after, lambda: self.end(node, code))
            return
        node.joining = True
        starting = [n for n in self.nodes.values() if n.joining]
        if self.behaviour.carries is not None and len(starting) > self.behaviour.carries:
            for each in starting:
                each.doomed = True
        usual = self.behaviour.head_start_s if node.is_head else self.behaviour.start_s
        seconds = self.script.start_seconds.get(node.name, usual)
        seconds += self.rng.random() * self.behaviour.start_jitter_s
        node.do(seconds, lambda: self._join(node, RETRY_JOIN_S))

    def _join(self, node: FakeNode, waited: float) -> None:
        if node.doomed:
            node.say("[raylet] Timed out waiting for file .../metrics_agent_port")
            self.end(node, 1)
        elif node.is_head and self.kept is not None:
            self._take_back(self.kept)
            self._enter(node)
        elif node.is_head:
            self.gcs = Gcs()
            for other in self.nodes.values():
                if other is not node and other.believed_alive:
                    other.say("[raylet] this GCS belongs to another cluster")
                    other.do(self.behaviour.exit_s, lambda o=other: self.end(o, 1))  # type: ignore[misc]
            self._enter(node)
        elif self.gcs is not None and self.hears_gcs(node):
            self._enter(node)
        elif waited >= GIVE_UP_JOIN_S:
            node.say(f"[raylet] no GCS answered at {self.head.address}:6379")
            self.end(node, 1)
        else:
            node.do(RETRY_JOIN_S, lambda: self._join(node, waited + RETRY_JOIN_S))

    def _take_back(self, gcs: Gcs) -> None:
        """A new head has the tables of before; who died since is found out, the head that was at once."""
        self.gcs, self.kept = gcs, None
        for entry in [e for e in gcs.entries if e.alive]:
            node = entry.node
            if node is self.head:
                self._declare_dead(entry, "UNEXPECTED_TERMINATION", "health check failed")
            elif node.entry is not entry or node.state != "running":
                self._doubt(entry, frozen=node.state == "paused")

    def _enter(self, node: FakeNode) -> None:
        assert self.gcs is not None
        node.joining = False
        node.entry = GcsEntry(self.hex(56), node, since=self.wall())
        self.gcs.entries.append(node.entry)
        node.say("[raylet] registered with the GCS")
        self._tell(node.entry)
        for watcher in self.on_nodes[:]:
            watcher.node_joined(node)

    def end(self, node: FakeNode, exit_code: int, *, farewell: bool = False) -> None:
        """PID 1 is gone; after a `farewell`, the GCS was told so."""
        if node.state not in ("running", "paused"):
            return
        node.forget()
        node.state, node.exit_code = "exited", exit_code
        node.say(f"[supervisor] exit {exit_code}")
        self.emit("die", node, exit_code)
        if node is self.store:
            if self.gcs is not None:
                patience = self.behaviour.store_patience_s
                self.head.do(patience, lambda: self.end(self.head, GCS_DIED))
        elif node.is_head:
            self._lose_gcs()
        elif node.entry is not None and node.entry.alive:
            if farewell:
                self._declare_dead(node.entry, "EXPECTED_TERMINATION", "received SIGTERM")
            else:
                self._doubt(node.entry, frozen=False)

    def pause(self, node: FakeNode) -> None:
        node.freeze()
        node.state = "paused"
        self.emit("pause", node)
        self._listen(node)

    def resume(self, node: FakeNode) -> None:
        node.state = "running"
        node.thaw()
        self.emit("unpause", node)
        self._listen(node)

    # -- the network -----------------------------------------------------------------------------

    def reaches_head(self, node: FakeNode) -> bool:
        """Whether packets pass between a node and the head, whatever their ports."""
        return node.is_head or not self._cut(node, self.head, (0,))

    def hears_gcs(self, node: FakeNode) -> bool:
        """Whether the GCS and a node can talk with one another."""
        return node.is_head or not self._cut(node, self.head, (0, GCS_PORT))

    def _cut(self, node: FakeNode, other: FakeNode, ports: Sequence[int]) -> bool:
        """Either way: a connection needs both."""
        dropped = any(
            flow.address == far.address and not flow.local_port and flow.remote_port in ports
            for near, far in ((node, other), (other, node))
            for rule in near.rules.values()
            if isinstance(rule, Drop) and rule.percent >= 100
            for flow in rule.flows
        )
        return dropped or node.unplugged or other.unplugged

    def network_changed(self) -> None:
        """Rules came or went; whoever is heard again says what it had to say."""
        for node in self.nodes.values():
            self._listen(node)
            if node.state == "running" and self.reaches_head(node):
                node.be_heard()

    def _listen(self, node: FakeNode) -> None:
        """The GCS hears of a node, or it does not: begin to doubt it, or let it learn what it missed."""
        silent = node.state == "paused" or not self.hears_gcs(node)
        if (
            node.is_head
            or node is self.store
            or node.state not in ("running", "paused")
            or silent is node.silent
        ):
            return
        node.silent = silent
        node.changes += 1
        if silent:
            if node.entry is not None and node.entry.alive:
                self._doubt(node.entry, frozen=True)
            changes = node.changes
            node.do(self.behaviour.gcs_patience_s, lambda: self._alone(node, changes))
        elif node.entry is not None and not node.entry.alive:
            node.say("[raylet] this node was marked dead by the GCS")
            node.do(self.behaviour.exit_s, lambda: self.end(node, 1))

    def _alone(self, node: FakeNode, changes: int) -> None:
        if node.changes == changes and not self.hears_gcs(node):
            node.say("[raylet] failed to connect to the GCS")
            self.end(node, 1)

    def raylet_stopped(self, node: FakeNode) -> None:
        """The raylet is frozen alone: what else runs on the node runs on."""
        node.changes += 1
        if node.entry is not None and node.entry.alive:
            self._doubt(node.entry, frozen=True)

    def raylet_continued(self, node: FakeNode) -> None:
        node.changes += 1
        if node.entry is not None and not node.entry.alive:
            node.say("[raylet] this node was marked dead by the GCS")
            node.do(self.behaviour.exit_s, lambda: self.end(node, 11))

    # -- what the GCS believes -------------------------------------------------------------------

    @property
    def ray_answers(self) -> bool:
        return self.gcs is not None and self.head.state == "running" and not self.head.unplugged

    def detect_s(self, *, frozen: bool) -> float:
        if self.behaviour.detect_s is not None:
            return self.behaviour.detect_s
        if "RAY_health_check_period_ms" in self.spec.env:
            return 4.3
        return 64.7 if frozen else 29.3

    def _doubt(self, entry: GcsEntry, *, frozen: bool) -> None:
        """Health checks begin to fail: unless the node answers again, it is given up."""
        gcs, node, changes = self.gcs, entry.node, entry.node.changes

        def give_up() -> None:
            thawed = frozen and node.changes != changes
            if gcs is not None and self.gcs is gcs and entry.alive and not thawed:
                self._declare_dead(
                    entry,
                    "UNEXPECTED_TERMINATION",
                    "health check failed: too many heartbeats missed",
                )

        self.clock.after(self.detect_s(frozen=frozen), give_up)

    def _declare_dead(self, entry: GcsEntry, reason: str, message: str) -> None:
        farewell = reason == "EXPECTED_TERMINATION"
        if entry.draining is not None and (farewell or 0 < entry.draining <= self.wall() * 1000):
            reason, message = "AUTOSCALER_DRAIN_PREEMPTED", "Terminated due to preemption"
        entry.alive, entry.reason, entry.message = False, reason, message
        entry.until = self.wall()
        self._tell(entry)
        for watcher in self.on_nodes[:]:
            watcher.node_dead(entry.node, entry.ray_node_id)

    def _tell(self, entry: GcsEntry) -> None:
        self.ray_event(
            "ray.node",
            entry.node.hostname,
            {
                "ray_node_id": entry.ray_node_id,
                "hostname": entry.node.hostname,
                "state": "ALIVE" if entry.alive else "DEAD",
                "reason": entry.reason,
                "message": entry.message,
            },
        )

    def ray_event(self, kind: str, where: str | None, data: Mapping[str, Any]) -> None:
        """The GCS learned something, about something at this hostname."""
        if self.gcs is not None:
            self.gcs.events.append(RayEvent(kind, where, data))

    def _lose_gcs(self) -> None:
        if self.gcs is None:
            return
        patience = self.behaviour.gcs_patience_s
        if self.spec.topology.outlives_head:
            self.kept, patience = self.gcs, float(RECONNECT_S)
        self.gcs = None
        self.outages += 1
        for watcher in self.on_nodes[:]:
            watcher.gcs_gone()
        for node in self.nodes.values():
            if node.state == "running" and not node.is_head:
                node.do(patience, lambda n=node, o=self.outages: self._lonely(n, o))  # type: ignore[misc]

    def _lonely(self, node: FakeNode, outage: int) -> None:
        if outage != self.outages:
            return
        if self.gcs is None or (node.entry is not None and node.entry not in self.gcs.entries):
            node.say("[raylet] failed to connect to the GCS")
            self.end(node, 1)

    # -- the ledger ------------------------------------------------------------------------------

    def write(self, run_id: str, file: str, node: FakeNode, kind: str, **data: Any) -> None:
        """One line of a program on a node, as `simulator.innode.ledger` writes it."""
        if self.script.loses("ledger", kind, str(data.get("key", ""))):
            return
        line = {
            "kind": kind,
            "wall": self.wall(),
            "mono": self.clock.mono() + self.behaviour.clock_offset,
            "host": node.hostname,
            "data": data,
        }
        path = str(PurePosixPath(run_id) / file)
        self.ledger.setdefault(path, []).append(json.dumps(line, separators=(",", ":")))
