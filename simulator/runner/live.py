"""What a run holds while it goes on, and how all that it sees reaches the history.

The cluster is watched from three sides: the engine tells of nodes, the observer of what the GCS and
the ledger say, and Ray is asked about its job (`simulator.runner.load`). The first two speak from threads
of their own; everything is recorded first and looked at later, in the history, by whoever waits for
something. What runs on the cluster and which faults there are is no concern of this module.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from simulator.autoscaling import AUTOSCALER, CLOUD
from simulator.backends.base import Backend, EngineEvent, HostsAutoscaler, Program, Watch
from simulator.cluster import Cluster, StartEvent, Use, steady_problems, use_of
from simulator.errors import CannotRun, NotFound
from simulator.history import SOURCES, History, Recorder
from simulator.runner.request import Listener
from simulator.waiting import Clock, WaitTimeout

OBSERVER = "observer"

#: How long the observer has to say its first word, seconds.
START_S = 60.0

#: How often it is looked which nodes there are, while nodes come that nobody knows, seconds.
NEWCOMER_S = 0.5

#: How long what the job had may stay in use after its end, by Ray's late reports, seconds.
FREE_S = 20.0


@dataclass
class LiveRun:
    """One run while it goes on.

    Attributes
    ----------
    clock
        What everything is timed with.
    names
        Nodes by hostname.
    ray_nodes
        Nodes by the id that Ray gave them.
    over
        Nothing more is to be read.
    error, notes
        The first error, and what went wrong after it.
    """

    backend: Backend
    clock: Clock
    listener: Listener
    cluster: Cluster
    recorder: Recorder
    run_id: str
    names: dict[str, str] = field(default_factory=dict)
    ray_nodes: dict[str, str] = field(default_factory=dict)
    watch: Watch | None = None
    observer: Program | None = None
    reader: threading.Thread | None = None
    over: bool = False
    error: BaseException | None = None
    notes: list[str] = field(default_factory=list)
    _next_listing: float = 0.0

    # -- where it stands ---------------------------------------------------------------------------

    def phase(self, phase: str) -> None:
        self.recorder.record("run.phase", phase=phase)
        self.listener.phase(phase)

    def look(self) -> History:
        """The history so far, shown to the listener too."""
        history = self.recorder.snapshot()
        self.listener.tick(history)
        return history

    @property
    def reading(self) -> bool:
        """Whether the observer may still say something."""
        return self.reader is not None and self.reader.is_alive()

    # -- what went wrong ---------------------------------------------------------------------------

    def note(self, error: BaseException, where: str = "") -> None:
        """Record an error; the first one is the run's, later ones become notes on it."""
        self.recorder.record(
            "run.error", error=f"{type(error).__name__}: {error}", where=where or "run"
        )
        if self.error is None:
            self.error = error
        else:
            self.notes.append(f"{where}: {error}")

    def guard(self, what: str, action: Callable[[], None]) -> None:
        """Do something that must not keep the rest from being done; its error is noted."""
        try:
            action()
        except Exception as error:  # noqa: BLE001 - cleaning up goes on whatever fails
            self.note(error, what)

    @property
    def said(self) -> str | None:
        """What there is to say of errors, None without one."""
        if self.error is None:
            return None
        return "\n".join([str(self.error), *(f"note: {n}" for n in self.notes)])

    # -- nodes -------------------------------------------------------------------------------------

    def started(self, event: StartEvent) -> None:
        """Record how the start of a node goes."""
        if event.verb == "starting":
            self.recorder.record("node.asked", node=event.node, attempt=event.attempt)
        elif event.verb == "joined":
            self.recorder.record("node.joined", node=event.node, seconds=round(event.seconds, 3))
        else:
            self.recorder.record("node.failed", node=event.node, lines=list(event.details))
        self.listener.start(event)

    def map_nodes(self) -> None:
        """Record which nodes there are, and know them by hostname from now on."""
        nodes = self.cluster.record().breakable
        self.names.update({n.hostname: n.name for n in nodes})
        self.recorder.record(
            "cluster.nodes",
            nodes=[
                {
                    "name": n.name,
                    "role": n.role,
                    "group": n.group,
                    "hostname": n.hostname,
                    "address": n.address,
                    "resources": dict(n.resources),
                    "profile": n.profile.value,
                    "labels": dict(n.labels),
                }
                for n in nodes
            ],
        )

    def steady(
        self, wanted: Sequence[str], when: str, timeout: float, *, at_rest: bool = True
    ) -> None:
        """Wait until these nodes are alive and at rest, and record whether they were.

        Parameters
        ----------
        when
            ``before`` the load or ``after`` it.
        at_rest
            False where something may rightly go on holding resources.
        timeout
            Seconds.

        Raises
        ------
        CannotRun
            They were not, before the load; after it, the checks say what that means.
        """
        problems: list[str] = ["not looked yet"]

        def steady() -> bool:
            problems[:] = steady_problems(self.cluster, wanted, at_rest=at_rest)
            return not problems

        try:
            self.cluster.wait_until(steady, name="the steady state", timeout=timeout, interval=0.5)
        except WaitTimeout:
            self.recorder.record("steady", when=when, ok=False, problems=problems)
            if when == "before":
                raise CannotRun(
                    f"the cluster was not at rest after {timeout:.0f} s",
                    why="; ".join(problems),
                    remedy="nothing was broken; the run was not begun",
                ) from None
            return
        self.recorder.record("steady", when=when, ok=True, problems=[])

    def resources_left(self, *, wait: bool) -> None:
        """Record what is in use now that the job is gone: what stays so for a while was leaked.

        Parameters
        ----------
        wait
            For all to be free: Ray's report is some seconds old.
        """
        seen, why = Use({}), ""

        def all_free() -> bool:
            nonlocal seen, why
            try:
                seen, why = use_of(self.cluster), ""
            except CannotRun as error:
                seen, why = Use({}), str(error)
            return seen.all_free

        with suppress(WaitTimeout):
            self.cluster.wait_until(
                all_free,
                name="all resources to be free",
                timeout=FREE_S if wait else 0.0,
                interval=0.5,
            )
        self.recorder.record(
            "cluster.resources",
            nodes={
                name: {resource: list(pair) for resource, pair in resources.items()}
                for name, resources in seen.nodes.items()
            },
            waiting=[[dict(demand), count] for demand, count in seen.waiting],
            why=why,
        )

    # -- watching ----------------------------------------------------------------------------------

    def observe(self) -> None:
        """Start watching from three sides, and wait until the observer sees the cluster.

        Raises
        ------
        CannotRun
            The observer ended, or said nothing in time.
        """
        self.watch = self.backend.watch(self.cluster.name, self._engine)
        stale = self.backend.program(self.cluster.name, OBSERVER)
        if stale is not None:
            stale.remove()
        self.observer = self.backend.run_program(
            self.cluster.name,
            OBSERVER,
            ["simulator.innode.observer", "--run", self.run_id],
            {},
        )
        self.reader = threading.Thread(target=self._read, args=(self.observer,), daemon=True)
        self.reader.start()

        def spoke() -> bool:
            history = self.recorder.snapshot()
            if history.first("observer.start"):
                return True
            if not self.reading:
                raise CannotRun(
                    "the observer ended before it saw anything",
                    why="its last words follow",
                    details=[str(op.data["text"]) for op in history.of("observer.noise")[-12:]],
                )
            return False

        self.cluster.wait_until(spoke, name="the observer's first word", timeout=START_S)

    def end_observer(self) -> None:
        """Let the observer say its last word, and read it."""
        assert self.observer is not None
        self.observer.stop(timeout=15.0)
        if self.reader is not None:
            self.reader.join(timeout=30.0)

    def watch_autoscaler(self) -> None:
        """Read what Ray's autoscaler and its cloud say, where there are any; none of it is of earlier runs."""
        backend, name = self.backend, self.cluster.name
        if not isinstance(backend, HostsAutoscaler) or backend.autoscaler_runs(name) is None:
            return
        started = self.recorder.snapshot().first("run.start")
        since = self.recorder.history.at(started) if started else 0.0
        for program in (backend.program(name, CLOUD), backend.program(name, AUTOSCALER)):
            if program is not None:
                words = (program, since)
                threading.Thread(target=self._read_words, args=words, daemon=True).start()

    def _read_words(self, program: Program, since: float) -> None:
        try:
            for line in program.lines():
                if self.over:
                    return
                if line.startswith("{") and json.loads(line)["wall"] >= since:
                    self._observed(line)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to: the history is told
            text = f"the words of Ray's autoscaler broke off: {type(error).__name__}: {error}"
            self._receive("run.note", text=text)

    def _engine(self, event: EngineEvent) -> None:
        if event.verb == "start" and event.node not in self.names.values():
            with suppress(CannotRun, NotFound):
                self.map_nodes()
        more = {} if event.exit_code is None else {"exit_code": event.exit_code}
        self._receive(
            f"engine.{event.verb}", source="engine", node=event.node, wall=event.wall, data=more
        )

    def _receive(self, kind: str, **what: Any) -> None:
        """Record from a thread of somebody else's, who may still speak when the run is over."""
        try:
            self.recorder.record(kind, **what)
        except ValueError:
            if not self.recorder.closed:
                raise

    def _read(self, observer: Program) -> None:
        try:
            for line in observer.lines():
                self._observed(line)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to: the history is told
            text = f"the observer's stream broke: {type(error).__name__}: {error}"
            self._receive("run.note", text=text)

    def _observed(self, line: str) -> None:
        try:
            raw = json.loads(line)
            kind, source, wall, mono = raw["kind"], raw["src"], raw["wall"], raw["mono"]
            host, data = raw["host"], dict(raw["data"])
            if kind in ("driver.object", "ray.group"):
                data["nodes"] = [self._name(h) for h in data["hosts"]]
            node = data.get("node") if host is None else self._name(host)
            if kind == "ray.node" and node is not None:
                self.ray_nodes[data["ray_node_id"]] = node
        except (ValueError, KeyError, TypeError):
            if line.strip():
                self._receive("observer.noise", text=line[:500])
            return
        self._receive(kind, source=source, node=node, wall=wall, mono=mono, data=data)

    def _name(self, host: str) -> str:
        """The node of this hostname; it may have come while nobody looked."""
        if host not in self.names and self.clock.mono() >= self._next_listing:
            self._next_listing = self.clock.mono() + NEWCOMER_S
            with suppress(CannotRun, NotFound):
                self.map_nodes()
        return self.names.get(host, host)

    def measure_clock(self) -> None:
        """The nodes' clock against ours, the tightest of a few tries."""
        best: tuple[float, float] | None = None
        for _ in range(5):
            before = self.clock.wall()
            there = self.backend.wall_clock()
            after = self.clock.wall()
            half = (after - before) / 2
            if best is None or half < best[1]:
                best = (there - (before + after) / 2, half)
        assert best is not None
        self.recorder.record(
            "clock.offset",
            sources=[source for source in SOURCES if source != "orchestrator"],
            offset=round(best[0], 6) if abs(best[0]) > best[1] else 0.0,
            uncertainty=round(best[1], 6),
        )

    def put(self, name: str, content: Any) -> None:
        """Write a file of this run's where what runs on the cluster reads it."""
        self.backend.put_ledger_file(
            self.cluster.name, f"{self.run_id}/{name}", json.dumps(content).encode()
        )
