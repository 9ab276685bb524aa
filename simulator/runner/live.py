"""What a run holds while it goes on, and how all that it sees reaches the history.

The cluster is watched from three sides: the engine tells of nodes, the observer of what the GCS and
the ledger say, and Ray is asked about its job. They speak from threads of their own; everything they
say is recorded first and looked at later, in the history, by whoever waits for something. Which faults
there are is no concern of this module.
"""

from __future__ import annotations

import json
import secrets
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from simulator.backends.base import Backend, EngineEvent, Program, Watch
from simulator.cluster import Cluster, StartEvent, Use, steady_problems, use_of
from simulator.errors import CannotRun
from simulator.history import History, Recorder
from simulator.runner.request import Listener
from simulator.topology import Topology
from simulator.waiting import Clock, WaitTimeout
from simulator.workload import Workload

LEDGER_CONTROL = "control.json"
LEDGER_WORKLOAD = "workload.json"
OBSERVER = "observer"

#: How long the observer and the workload have to say their first word, and the workload its last,
#: seconds; the last also gets what the planned work takes.
START_S, DRAIN_S = 60.0, 120.0

#: How long what the job had may stay in use after its end, by Ray's late reports, seconds.
FREE_S = 20.0

#: How often Ray is asked about the job and its failed attempts, seconds.
ASK_S = 2.0


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
    job
        The workload's job, once it was submitted; `job_over` when it has ended.
    drain_s
        How long the workload may take to finish what it has, seconds.
    asked
        What the workload was told so far.
    attempts
        Failed attempts that are recorded already, by task and number.
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
    job: str | None = None
    job_over: bool = False
    drain_s: float = DRAIN_S
    asked: dict[str, bool] = field(default_factory=dict)
    next_ask: float = 0.0
    attempts: set[tuple[str, int]] = field(default_factory=set)
    error: BaseException | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def driver_node(self) -> str | None:
        """The node that the job's driver runs on, once it has begun."""
        return next((op.node for op in self.recorder.snapshot().of("driver.start")), None)

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
        nodes = self.cluster.record().nodes
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

    def steady(self, wanted: Sequence[str], when: str, timeout: float) -> None:
        """Wait until these nodes are alive and at rest, and record whether they were.

        Parameters
        ----------
        when
            ``before`` the load or ``after`` it.
        timeout
            Seconds.

        Raises
        ------
        CannotRun
            They were not, before the load; after it, the checks say what that means.
        """
        problems: list[str] = ["not looked yet"]

        def at_rest() -> bool:
            problems[:] = steady_problems(self.cluster, wanted)
            return not problems

        try:
            self.cluster.wait_until(at_rest, name="the steady state", timeout=timeout, interval=0.5)
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

    def resources_left(self) -> None:
        """Record what is in use now that the job is gone: what stays so for a while was leaked."""
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
                all_free, name="all resources to be free", timeout=FREE_S, interval=0.5
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

    def _engine(self, event: EngineEvent) -> None:
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
                data["nodes"] = [self.names.get(h, h) for h in data["hosts"]]
            node = None if host is None else self.names.get(host, host)
            if kind == "ray.node" and node is not None:
                self.ray_nodes[data["ray_node_id"]] = node
        except (ValueError, KeyError, TypeError):
            if line.strip():
                self._receive("observer.noise", text=line[:500])
            return
        self._receive(kind, source=source, node=node, wall=wall, mono=mono, data=data)

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
            sources=["engine", "observer", "ledger", "driver", "ray"],
            offset=round(best[0], 6) if abs(best[0]) > best[1] else 0.0,
            uncertainty=round(best[1], 6),
        )

    # -- the workload ------------------------------------------------------------------------------

    def load(self, workload: Workload, topology: Topology) -> None:
        """Submit the workload, and wait until its driver runs.

        Raises
        ------
        CannotRun
            It ended before it began, or did not begin in time.
        """
        roles = {n.name: n.role for n in topology.nodes()}
        hostnames = {name: host for host, name in self.names.items() if roles.get(name) == "worker"}
        self._put(LEDGER_WORKLOAD, workload.spec(hostnames))
        self.drain_s = DRAIN_S + 2 * workload.nominal_seconds(topology)
        self.job = f"{self.run_id}-{secrets.token_hex(3)}"
        self.recorder.record("workload.submit", job_id=self.job, workload=workload.name)
        self.cluster.ray.submit(workload.entrypoint(self.run_id), self.job)

        def began() -> bool:
            if self.recorder.snapshot().first("driver.start"):
                return True
            try:
                job = self.cluster.ray.job(self.job or "")
            except CannotRun:
                return False
            if job.over:
                raise CannotRun(
                    f"the workload ended before it began: {job.status}",
                    why=job.message,
                    details=self.cluster.ray.job_logs(job.job_id).splitlines()[-12:],
                )
            return False

        self.cluster.wait_until(
            began, name="the workload's beginning", timeout=START_S, interval=0.2
        )

    def go_on(self) -> None:
        """Tell the workload that a fault was done, unless it has ended."""
        if self.recorder.snapshot().first("driver.end") is None:
            self.recorder.record("workload.go_on")
            self._control(go_on=True)

    def drain(self) -> None:
        """Tell the workload to finish what it has, and wait for its last word."""
        if self.job is None or self.job_over:
            return
        self.recorder.record("workload.finish")
        if self.recorder.snapshot().first("driver.end") is None:
            self._control(go_on=True, finish=True)
        status, message = "LOST", ""

        def over() -> bool:
            nonlocal status, message
            self.look()
            try:
                job = self.cluster.ray.job(self.job or "")
            except CannotRun as error:
                message = str(error)
                return False
            status, message = job.status, job.message
            return job.over

        try:
            self.cluster.wait_until(
                over, name="the workload's end", timeout=self.drain_s, interval=0.3
            )
        except WaitTimeout as error:
            message = str(error)
        self._job_ended(status, message)

    def end_job(self) -> None:
        """Have no work going on any more: finished where all is well, stopped where it is not."""
        if self.job is None or self.job_over:
            return
        if self.error is None:
            self.drain()
        else:
            self.cluster.ray.stop_job(self.job)
            self._job_ended("STOPPED", "the run ended early")

    def ask_ray(self, *, head_struck: bool) -> None:
        """Every `ASK_S` seconds: which attempts failed, and whether the workload still runs.

        Raises
        ------
        CannotRun
            The head is gone, and no fault did it (`head_struck`).
        """
        if self.clock.mono() < self.next_ask:
            return
        self.next_ask = self.clock.mono() + ASK_S
        self.failed_attempts()
        head = self.cluster.node("head")
        if head.state != "running" and not head_struck:
            raise CannotRun(
                f"the head is {head.state}, and no fault of this run did it",
                why=f"its exit code is {head.exit_code}; its last lines follow",
                details=self.backend.logs(self.cluster.name, "head", tail=12).splitlines(),
            )
        try:
            job = self.cluster.ray.job(self.job or "")
        except CannotRun:
            return
        if job.over and not self.job_over:
            self._job_ended(job.status, job.message)

    def failed_attempts(self) -> int | None:
        """Record the failed attempts that Ray knows of and we do not yet; how many it dropped."""
        started = self.recorder.snapshot().first("driver.start")
        if started is None:
            return None
        try:
            found = self.cluster.ray.failed_attempts(started.data["job_id"])
        except CannotRun:
            return None
        for row in found.rows:
            if (row.task_id, row.attempt) in self.attempts or not row.ended:
                continue
            self.attempts.add((row.task_id, row.attempt))
            self.recorder.record(
                "attempt.failed",
                source="ray",
                node=self.ray_nodes.get(row.ray_node_id),
                wall=row.ended,
                key=row.name,
                task_id=row.task_id,
                attempt=row.attempt,
                error_type=row.error_type,
            )
        return found.dropped

    def complete_attempts(self) -> None:
        """Record the last of the failed attempts, and that there are no more."""
        dropped = self.failed_attempts()
        if dropped is not None:
            self.recorder.record(
                "attempts.complete", source="ray", rows=len(self.attempts), dropped=dropped
            )

    def _job_ended(self, status: str, message: str) -> None:
        self.job_over = True
        self.recorder.record("workload.end", status=status, message=message[:500])

    def _control(self, **asked: bool) -> None:
        self.asked.update(asked)
        self._put(LEDGER_CONTROL, self.asked)

    def _put(self, name: str, content: Any) -> None:
        """Write a file of this run's where the workload's driver reads it."""
        self.backend.put_ledger_file(
            self.cluster.name, f"{self.run_id}/{name}", json.dumps(content).encode()
        )
