"""Follows what happens to a cluster, live: what the engine reports, and what Ray comes to believe.

First the present state, then every change. Both sides speak from threads of their own and are put into one
line of events here. Ray's side is told by an observer as in a run: a program beside the nodes, started for
this purpose and removed at the end, so that several may watch and none disturbs a run. Without a head there
is nothing to be heard of Ray; that is said, and the engine's events go on.
"""

from __future__ import annotations

import json
import queue
import secrets
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

from simulator.backends.base import EngineEvent, NodeRecord, Program
from simulator.cluster import Cluster
from simulator.errors import CannotRun, NotFound

_TICK_S = 0.2
_LOOK_S = 3.0


@dataclass(frozen=True, slots=True)
class Seen:
    """One thing that was seen.

    Attributes
    ----------
    kind
        As in a run's history (docs/reference/history.md): ``engine.die``, ``ray.node``,
        ``observer.blind`` and so on; ``engine.state`` for what a node is at the beginning, and
        ``monitor.note`` for what there is to say of the watching itself.
    wall
        The source's clock, seconds.
    present
        Whether it is part of the state at the beginning, and no change.
    """

    kind: str
    source: Literal["engine", "ray", "monitor"]
    wall: float
    node: str | None
    present: bool = False
    data: Mapping[str, Any] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        return {
            "kind": self.kind,
            "source": self.source,
            "wall": round(self.wall, 6),
            "node": self.node,
            "present": self.present,
            "data": dict(self.data),
        }

    @property
    def words(self) -> str:
        """What happened, for people."""
        data = self.data
        if self.kind == "engine.state":
            code = data["exit_code"]
            return str(data["state"]) + ("" if code is None else f" with {code}")
        if self.kind == "engine.die":
            code = data.get("exit_code")
            return "ended" + ("" if code is None else f" with {code}")
        if self.kind.startswith("engine."):
            return _VERBS[self.kind.removeprefix("engine.")]
        if self.kind == "ray.node":
            why = ": ".join(t for t in (data.get("reason"), data.get("message")) if t)
            short = str(data["ray_node_id"])[:8]
            return f"Ray: node {short} is {data['state']}" + (f", {why}" if why else "")
        if self.kind == "ray.actor":
            name = f" {data['name']}" if data["name"] else ""
            times = f", restarted {data['restarts']} times" if data["restarts"] else ""
            return f"Ray: actor {data['class']}{name} is {data['state']}{times}"
        if self.kind == "observer.blind":
            return "Ray does not answer"
        if self.kind == "observer.seeing":
            return "Ray answers again"
        return str(data.get("text", self.kind))


_VERBS = {
    "start": "started",
    "pause": "frozen",
    "unpause": "thawed",
    "oom": "out of memory: the kernel killed a process",
}


class Monitor:
    """Watches a cluster while it is entered; what it sees is taken with `next`.

    Everything that it started is removed when it is left, however that happens.
    """

    def __init__(self, cluster: Cluster) -> None:
        self.cluster, self.backend = cluster, cluster.backend
        self._seen: queue.SimpleQueue[Seen] = queue.SimpleQueue()
        self._names: dict[str, str] = {}
        self._present = True
        self._leaving = False
        self._program: Program | None = None

    def __enter__(self) -> Monitor:
        self._watch = self.backend.watch(self.cluster.name, self._engine)
        try:
            for node in self._map_nodes():
                state = {"state": node.state, "exit_code": node.exit_code}
                self._put("engine.state", "engine", node.name, present=True, data=state)
            self._observe()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._leaving = True
        self._watch.close()
        if self._program is not None:
            # Nothing that it might still say is wanted, and whoever leaves does not want to wait.
            with suppress(CannotRun, NotFound):
                self._program.remove()

    def next(self) -> Seen | None:
        """What was seen next; None after a moment in which there was nothing."""
        with suppress(queue.Empty):
            return self._seen.get_nowait()
        self.cluster.clock.sleep(_TICK_S)
        with suppress(queue.Empty):
            return self._seen.get_nowait()
        return None

    @property
    def over(self) -> bool:
        """Whether the cluster was taken down."""
        try:
            self.cluster.record()
        except NotFound:
            return True
        except CannotRun:
            return False  # an engine that does not answer may answer again
        return False

    # -- the two sides -------------------------------------------------------------------------------

    def _observe(self) -> None:
        name = f"monitor-{secrets.token_hex(3)}"
        # A run of that name has no ledger, so it is nodes and actors that are told, and nothing else.
        argv = ["simulator.innode.observer", "--run", name]
        try:
            # Nobody reads it again; and one whose monitor was killed goes on until the cluster ends.
            self._program = self.backend.run_program(
                self.cluster.name, name, argv, {}, keep_output=False
            )
        except CannotRun as error:
            self._note(f"nothing is heard of Ray: {error}")
            return
        reader = threading.Thread(target=self._read, args=(self._program,), daemon=True, name=name)
        reader.start()

    def _engine(self, event: EngineEvent) -> None:
        code = {} if event.exit_code is None else {"exit_code": event.exit_code}
        self._seen.put(Seen(f"engine.{event.verb}", "engine", event.wall, event.node, False, code))

    def _read(self, program: Program) -> None:
        try:
            for line in program.lines():
                self._observed(line)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to
            why = f": {type(error).__name__}: {error}"
        else:
            why = ""
        if not self._leaving:
            self._note(f"the observer ended{why}; nothing is heard of Ray any more")

    def _observed(self, line: str) -> None:
        try:
            raw = json.loads(line)
            kind, wall, host, data = raw["kind"], raw["wall"], raw["host"], dict(raw["data"])
        except (ValueError, KeyError, TypeError):
            if line.strip():
                self._note(f"the observer said: {line[:500]}")
            return
        if kind == "observer.beat":
            self._present = False  # it has told all that it found
        elif kind in ("observer.blind", "observer.seeing"):
            self._seen.put(Seen(kind, "monitor", wall, None, False, data))
        elif kind in ("ray.node", "ray.actor"):
            # What was over before we looked is no part of the present.
            if not (self._present and data["state"] == "DEAD"):
                node = None if host is None else self._name(host)
                self._seen.put(Seen(kind, "ray", wall, node, self._present, data))

    # -- helpers -------------------------------------------------------------------------------------

    def _map_nodes(self) -> list[NodeRecord]:
        nodes = list(self.cluster.record().nodes)
        self._names.update({n.hostname: n.name for n in nodes})
        return nodes

    def _name(self, host: str) -> str:
        if host not in self._names:
            with suppress(CannotRun, NotFound):  # a node that was made since, or is gone already
                self._map_nodes()
        return self._names.get(host, host)

    def _note(self, text: str) -> None:
        self._put("monitor.note", "monitor", None, data={"text": text})

    def _put(
        self,
        kind: str,
        source: Literal["engine", "ray", "monitor"],
        node: str | None,
        *,
        present: bool = False,
        data: Mapping[str, Any],
    ) -> None:
        self._seen.put(Seen(kind, source, self.cluster.clock.wall(), node, present, data))


def follow(
    cluster: Cluster,
    emit: Callable[[Seen], None],
    *,
    seconds: float | None = None,
    wanted: Callable[[], bool] = lambda: True,
) -> None:
    """Give `emit` what is seen, until it raises, the time is over or it is not wanted any more.

    Parameters
    ----------
    seconds
        How long; without an end if None.
    wanted
        Asked a few times a second.

    Raises
    ------
    NotFound
        There is no such cluster. One that is taken down meanwhile is an end like another.
    """
    clock = cluster.clock
    end = None if seconds is None else clock.mono() + seconds
    with Monitor(cluster) as monitor:
        look_again = clock.mono() + _LOOK_S
        while wanted() and (end is None or clock.mono() < end):
            seen = monitor.next()
            if seen is not None:
                emit(seen)
            elif clock.mono() >= look_again:
                look_again = clock.mono() + _LOOK_S
                if monitor.over:
                    return
