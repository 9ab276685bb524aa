"""Runs one experiment: start, gate, load, break, wait until whole, heal, collect, judge, take down.

Everything that happens goes to the history first. Healing, collecting and taking down always happen,
each under its own deadline; the first error wins and later ones become notes on it. How a run ended
(completed, failed, aborted, interrupted) is a different thing from what its history proves (the verdict).
"""

from __future__ import annotations

import json
import os
import platform
import secrets
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from random import Random
from types import FrameType
from typing import Any

import psutil

from simulator import __version__
from simulator.backends.base import (
    Backend,
    ClusterRecord,
    ClusterSpec,
    EngineEvent,
    Program,
    Watch,
    clock_of,
)
from simulator.checkers.anatomy import anatomy
from simulator.checkers.base import RunView, Verdict
from simulator.checkers.judge import judge
from simulator.checkers.registry import CHECKERS
from simulator.cluster import (
    HEALTH,
    START_ATTEMPTS,
    Cluster,
    StartEvent,
    salvage,
    steady_problems,
)
from simulator.errors import BadInput, CannotRun, Interrupted, NotFound, Problem, SimulatorError
from simulator.experiment import Experiment, load_experiment, params_data
from simulator.history import History, Op, Recorder
from simulator.report import write_html
from simulator.schedule import After, Never, PlannedFault, WhenDeclaredDead, resolve, survivors
from simulator.store import EXPERIMENT, REPORT, SCHEMA, RunDir, Store
from simulator.topology import Topology
from simulator.waiting import Clock, Deadline, WaitTimeout, within
from simulator.workload import Workload

LEDGER_CONTROL = "control.json"
LEDGER_WORKLOAD = "workload.json"
OBSERVER = "observer"

#: Deadlines of the parts that always run, seconds; draining also gets what the planned work takes.
HEAL_S, COLLECT_S, DOWN_S = 150.0, 120.0, 120.0
DRAIN_S, GATE_S, START_S = 120.0, 60.0, 60.0

#: How long a fault waits for its target to be in the middle of a task, seconds.
BUSY_S = 10.0

#: Work that is lost for good makes phases that rest on it impossible, but not the others: how long a
#: run waits for those once everything is healed, seconds.
LOST_S = 20.0


@dataclass(frozen=True)
class RunRequest:
    """What is to be run.

    Attributes
    ----------
    seed
        Fixes every draw; None draws a fresh one, which the run records.
    reuse
        Name of a cluster that is up already and stays up.
    keep
        Leave the cluster up at the end.
    command
        The command line that replays it; ``{seed}`` in it stands for the run's own seed.
    """

    experiment: Experiment
    params: Any
    topology: Topology
    source: str
    seed: int | None = None
    health: str = "fast"
    name: str | None = None
    reuse: str | None = None
    keep: bool = False
    image: str | None = None
    command: str = ""
    start_parallelism: int | None = None


@dataclass
class Listener:
    """Who wants to know how a run goes; every method may be left as it is."""

    say: Callable[[str], None] = lambda text: None
    phase: Callable[[str], None] = lambda phase: None
    start: Callable[[StartEvent], None] = lambda event: None
    tick: Callable[[History], None] = lambda history: None
    result: Callable[[Mapping[str, Any]], None] = lambda result: None


class Interrupts:
    """Ctrl-C once: heal, collect, take down, report what there is. Twice: stop now.

    While `cleaning`, the first Ctrl-C is only noted, since what it asks for is being done already.
    """

    def __init__(self, on_second: Callable[[], None]) -> None:
        self.count = 0
        self.cleaning = False
        self._on_second = on_second

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.count += 1
        if self.count >= 2:
            self._on_second()
            os._exit(4)
        if not self.cleaning:
            self.cleaning = True
            raise Interrupted(
                f"interrupted by {signal.Signals(number).name}",
                remedy="healing, collecting and taking down; once more stops at once",
            )

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while inside; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@dataclass
class _Fault:
    planned: PlannedFault
    injected: float | None = None  # when, by the run's monotonic clock
    verified: bool = False
    healed: bool = False

    @property
    def facts(self) -> dict[str, Any]:
        """What every operation about it says."""
        return {"id": self.planned.id, "fault": self.planned.step.fault.name}


@dataclass
class _Live:
    """What a run holds while it goes on."""

    cluster: Cluster
    recorder: Recorder
    run_id: str
    names: dict[str, str] = field(default_factory=dict)
    ray_nodes: dict[str, str] = field(default_factory=dict)
    watch: Watch | None = None
    observer: Program | None = None
    reader: threading.Thread | None = None
    faults: list[_Fault] = field(default_factory=list)
    job: str | None = None
    job_over: bool = False
    drain_s: float = DRAIN_S
    asked: dict[str, bool] = field(default_factory=dict)
    next_ask: float = 0.0
    attempts: set[tuple[str, int]] = field(default_factory=set)
    error: BaseException | None = None
    notes: list[str] = field(default_factory=list)


@dataclass
class _Lease:
    """The cluster of one or several runs: is it to be made, and is it ours to take down?"""

    name: str
    fresh: bool
    ours: bool = False


class Runner:
    """Runs experiments on one backend.

    Parameters
    ----------
    backend, store
        Where the cluster lives, and where the runs are kept.
    clock
        What everything is timed with; by default the backend's own, or the machine's.
    """

    def __init__(
        self,
        backend: Backend,
        store: Store,
        *,
        listener: Listener | None = None,
        clock: Clock | None = None,
    ) -> None:
        self.backend = backend
        self.store = store
        self.listener = listener or Listener()
        self.clock = clock or clock_of(backend)

    # -- public ------------------------------------------------------------------------------------

    def run(self, request: RunRequest) -> dict[str, Any]:
        """One run; returns what ``result.json`` holds.

        Raises
        ------
        BadInput, CannotRun
            The plan is impossible; nothing was started.
        """
        return self.repeat(request, 1)[0]

    def repeat(self, request: RunRequest, times: int) -> list[dict[str, Any]]:
        """`times` runs on one cluster; run i has seed + i. Ends early when one could not run."""
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        request = replace(request, seed=seed)
        planned = self._plan(request)
        name = (
            request.reuse
            or request.name
            or f"{request.experiment.name.replace('_', '-')}-{secrets.token_hex(2)}"
        )
        gpu = self._gpu(request, self._existing(request, name))
        results: list[dict[str, Any]] = []
        interrupts = Interrupts(lambda: self._last_words(name))
        lease = _Lease(name, fresh=request.reuse is None)
        with interrupts.installed():
            try:
                for i in range(times):
                    one = replace(request, seed=seed + i)
                    planned = self._plan(one) if i else planned
                    results.append(self._one(one, planned, gpu, lease, interrupts))
                    self.listener.result(results[-1])
                    if results[-1]["status"] != "completed" or interrupts.count:
                        break
            finally:
                interrupts.cleaning = True
                if lease.ours and not request.keep:
                    self._down(name, results)
        return results

    # -- before anything starts --------------------------------------------------------------------

    def _plan(self, request: RunRequest) -> list[PlannedFault]:
        experiment, topology = request.experiment, request.topology
        problems = list(experiment.problems(request.params, topology))
        if request.health not in HEALTH:
            raise BadInput([*problems, *_unknown_health(request.health)])
        if problems:
            raise BadInput(problems)
        planned = resolve(
            experiment.schedule(request.params, topology), topology, Random(request.seed)
        )
        refused = [r for p in planned if (r := p.step.fault.refused_by(self.backend))]
        if refused:
            raise CannotRun("this backend cannot do it", why="; ".join(refused))
        return planned

    def _existing(self, request: RunRequest, name: str) -> ClusterRecord | None:
        """The cluster to reuse, of the right shape; None where a new name is free."""
        clusters = {c.name: c for c in self.backend.clusters()}
        if request.reuse is None:
            if name in clusters:
                raise BadInput(
                    Problem(
                        f"--name {name}",
                        "a cluster of that name exists already",
                        f"run on it with --reuse {name}, take it down first "
                        f"(python -m simulator down --name {name}), or use another name",
                    )
                )
            return None
        if name not in clusters:
            raise NotFound("cluster", name, clusters)
        has = sorted(n.name for n in clusters[name].nodes)
        wanted = sorted(n.name for n in request.topology.nodes())
        if has != wanted:
            raise BadInput(
                Problem(
                    f"--reuse {name}",
                    f"it has {', '.join(has)}, and topology {request.topology.name} has "
                    f"{', '.join(wanted)}",
                    "name the topology that it was started with (--topology, --workers)",
                )
            )
        return clusters[name]

    def _gpu(self, request: RunRequest, existing: ClusterRecord | None) -> str:
        if existing is not None:
            return existing.gpu
        blocking = [c for c in self.backend.check(request.topology) if c.level == "problem"]
        if blocking:
            raise CannotRun(
                "this machine cannot run it",
                why="; ".join(str(c.as_problem()) for c in blocking),
            )
        return self.backend.gpu_kind(request.topology)

    # -- one run -----------------------------------------------------------------------------------

    def _one(
        self,
        request: RunRequest,
        planned: list[PlannedFault],
        gpu: str,
        lease: _Lease,
        interrupts: Interrupts,
    ) -> dict[str, Any]:
        assert request.seed is not None
        run = self.store.create(request.experiment.name, request.seed)
        run_id = run.path.name
        cluster = Cluster(self.backend, lease.name)
        spec = self._spec(request, planned, gpu, lease.name, run_id)
        run.write_spec(spec)
        if Path(request.source).is_file():
            # Its checks must be at hand when the run is judged again, wherever the original is then.
            shutil.copyfile(request.source, run.path / EXPERIMENT)
        recorder = Recorder(run.history_path, wall=self.clock.wall, mono=self.clock.mono)
        live = _Live(cluster, recorder, run_id, faults=[_Fault(p) for p in planned])
        recorder.record("run.start", schema=SCHEMA, run_id=run_id, experiment=spec["experiment"])
        status = "completed"
        interrupts.cleaning = False
        try:
            try:
                self._act(request, live, run, spec, gpu, lease)
            finally:
                interrupts.cleaning = True
        except (Interrupted, KeyboardInterrupt) as error:
            status = "interrupted"
            self.listener.say(str(error) or "interrupted")
            self._note(live, error)
        except SimulatorError as error:
            injected = any(f.injected is not None for f in live.faults)
            status = "failed" if injected else "aborted"
            self._note(live, error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - clean up and say so, whatever it was
            status = "failed"
            self._note(live, error)
        self._finish(live, run, request)
        recorder.record("run.end", status=status)
        recorder.close()
        return judge_run(run, status=status, error=self._said(live))

    def _down(self, name: str, results: list[dict[str, Any]]) -> None:
        """Take the cluster down; what keeps it from going is said, and noted in the last result."""
        self.listener.phase("down")
        try:
            within(DOWN_S, f"taking {name} down", Cluster(self.backend, name).down)
        except Exception as error:  # noqa: BLE001 - the results must reach the caller all the same
            text = f"{name} could not be taken down: {error}"
            self.listener.say(f"{text}\nTry again: python -m simulator down --name {name}")
            if results:
                last = results[-1]
                last["error"] = "\nnote: ".join(t for t in (last["error"], text) if t)
                RunDir(Path(last["run_dir"])).write_result(last)

    def _act(
        self,
        request: RunRequest,
        live: _Live,
        run: RunDir,
        spec: dict[str, Any],
        gpu: str,
        lease: _Lease,
    ) -> None:
        wanted = [n.name for n in request.topology.nodes()]
        self._phase(live, "create")
        if lease.fresh:
            cluster_spec = self.backend.prepare(
                ClusterSpec(
                    name=live.cluster.name,
                    topology=request.topology,
                    gpu=gpu,  # type: ignore[arg-type]
                    image=request.image,
                    env=HEALTH[request.health],
                    run_dir=run.path,
                ),
                self.listener.say,
            )
            lease.ours, lease.fresh = True, False
            try:
                live.cluster.up(
                    cluster_spec,
                    progress=lambda event: self._started(live, event),
                    parallelism=request.start_parallelism,
                )
            except BadInput:
                lease.ours = False  # somebody else took the name in the meantime
                raise
        else:
            down = [n.name for n in live.cluster.record().nodes if n.state in ("exited", "created")]
            live.cluster.start_nodes(down, progress=lambda event: self._started(live, event))
        self._map_nodes(live)
        spec["versions"]["ray"] = live.cluster.ray.version()
        run.write_spec(spec)
        self._observe(live)
        self._measure_clock(live)

        self._phase(live, "gate")
        self._steady(live, wanted, "before", GATE_S)

        self._phase(live, "load")
        workload = request.experiment.workload(request.params)
        self._load(live, workload, request.topology)

        self._phase(live, "faults")
        load_began = self.clock.mono()
        for fault in live.faults:
            self._wait_to(live, load_began + fault.planned.step.at)
            if fault.planned.step.when_busy:
                self._wait_busy(live, fault.planned.node)
            self._inject(live, fault)
        self._phase(live, "recover")
        self._recover(live, request, run)
        self._drain(live)

    # -- parts of it -------------------------------------------------------------------------------

    def _phase(self, live: _Live, phase: str) -> None:
        live.recorder.record("run.phase", phase=phase)
        self.listener.phase(phase)

    def _started(self, live: _Live, event: StartEvent) -> None:
        if event.verb == "starting":
            live.recorder.record("node.asked", node=event.node, attempt=event.attempt)
        elif event.verb == "joined":
            live.recorder.record("node.joined", node=event.node, seconds=round(event.seconds, 3))
        else:
            live.recorder.record("node.failed", node=event.node, lines=list(event.details))
        self.listener.start(event)

    def _map_nodes(self, live: _Live) -> None:
        nodes = live.cluster.record().nodes
        live.names.update({n.hostname: n.name for n in nodes})
        live.recorder.record(
            "cluster.nodes",
            nodes=[
                {
                    "name": n.name,
                    "role": n.role,
                    "group": n.group,
                    "hostname": n.hostname,
                    "address": n.address,
                    "resources": dict(n.resources),
                }
                for n in nodes
            ],
        )

    def _observe(self, live: _Live) -> None:
        """Start watching from three sides, and wait until the observer sees the cluster."""
        cluster = live.cluster
        live.watch = self.backend.watch(cluster.name, lambda event: self._engine(live, event))
        stale = self.backend.program(cluster.name, OBSERVER)
        if stale is not None:
            stale.remove()
        live.observer = self.backend.run_program(
            cluster.name,
            OBSERVER,
            ["simulator.innode.observer", "--run", live.run_id],
            {},
        )
        live.reader = threading.Thread(
            target=self._read_observer, args=(live, live.observer), daemon=True
        )
        live.reader.start()

        def spoke() -> bool:
            history = live.recorder.snapshot()
            if history.first("observer.start"):
                return True
            if not _reading(live):
                raise CannotRun(
                    "the observer ended before it saw anything",
                    why="its last words follow",
                    details=[str(op.data["text"]) for op in history.of("observer.noise")[-12:]],
                )
            return False

        cluster.wait_until(spoke, name="the observer's first word", timeout=START_S)

    def _engine(self, live: _Live, event: EngineEvent) -> None:
        more = {} if event.exit_code is None else {"exit_code": event.exit_code}
        self._receive(
            live,
            f"engine.{event.verb}",
            source="engine",
            node=event.node,
            wall=event.wall,
            data=more,
        )

    def _receive(self, live: _Live, kind: str, **what: Any) -> None:
        """Record from a thread of somebody else's, who may still speak when the run is over."""
        try:
            live.recorder.record(kind, **what)
        except ValueError:
            if not live.recorder.closed:
                raise

    def _read_observer(self, live: _Live, observer: Program) -> None:
        try:
            for line in observer.lines():
                self._observed(live, line)
        except Exception as error:  # noqa: BLE001 - a thread has nobody to raise to: the history is told
            text = f"the observer's stream broke: {type(error).__name__}: {error}"
            self._receive(live, "run.note", text=text)

    def _observed(self, live: _Live, line: str) -> None:
        try:
            raw = json.loads(line)
            kind, source, wall, mono = raw["kind"], raw["src"], raw["wall"], raw["mono"]
            host, data = raw["host"], dict(raw["data"])
            if kind == "driver.object":
                data["nodes"] = [live.names.get(h, h) for h in data["hosts"]]
            node = None if host is None else live.names.get(host, host)
            if kind == "ray.node" and node is not None:
                live.ray_nodes[data["ray_node_id"]] = node
        except (ValueError, KeyError, TypeError):
            if line.strip():
                self._receive(live, "observer.noise", text=line[:500])
            return
        self._receive(live, kind, source=source, node=node, wall=wall, mono=mono, data=data)

    def _measure_clock(self, live: _Live) -> None:
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
        live.recorder.record(
            "clock.offset",
            sources=["engine", "observer", "ledger", "driver", "ray"],
            offset=round(best[0], 6) if abs(best[0]) > best[1] else 0.0,
            uncertainty=round(best[1], 6),
        )

    def _steady(self, live: _Live, wanted: Sequence[str], when: str, timeout: float) -> None:
        problems: list[str] = ["not looked yet"]

        def at_rest() -> bool:
            problems[:] = steady_problems(live.cluster, wanted)
            return not problems

        try:
            live.cluster.wait_until(at_rest, name="the steady state", timeout=timeout, interval=0.5)
        except WaitTimeout:
            live.recorder.record("steady", when=when, ok=False, problems=problems)
            if when == "before":
                raise CannotRun(
                    f"the cluster was not at rest after {timeout:.0f} s",
                    why="; ".join(problems),
                    remedy="nothing was broken; the run was not begun",
                ) from None
            return
        live.recorder.record("steady", when=when, ok=True, problems=[])

    def _load(self, live: _Live, workload: Workload, topology: Topology) -> None:
        roles = {n.name: n.role for n in topology.nodes()}
        hostnames = {name: host for host, name in live.names.items() if roles.get(name) == "worker"}
        self.backend.put_ledger_file(
            live.cluster.name,
            f"{live.run_id}/{LEDGER_WORKLOAD}",
            json.dumps(workload.spec(hostnames)).encode(),
        )
        live.drain_s = DRAIN_S + 2 * workload.nominal_seconds(topology)
        live.job = f"{live.run_id}-{secrets.token_hex(3)}"
        live.recorder.record("workload.submit", job_id=live.job, workload=workload.name)
        live.cluster.ray.submit(workload.entrypoint(live.run_id), live.job)

        def began() -> bool:
            if live.recorder.snapshot().first("driver.start"):
                return True
            try:
                job = live.cluster.ray.job(live.job or "")
            except CannotRun:
                return False
            if job.over:
                raise CannotRun(
                    f"the workload ended before it began: {job.status}",
                    why=job.message,
                    details=live.cluster.ray.job_logs(job.job_id).splitlines()[-12:],
                )
            return False

        live.cluster.wait_until(
            began, name="the workload's beginning", timeout=START_S, interval=0.2
        )

    def _control(self, live: _Live, **asked: bool) -> None:
        live.asked.update(asked)
        self.backend.put_ledger_file(
            live.cluster.name,
            f"{live.run_id}/{LEDGER_CONTROL}",
            json.dumps(live.asked).encode(),
        )

    def _wait_to(self, live: _Live, moment: float) -> None:
        """Until then, heal what is due: a long schedule undoes its first fault before its last."""
        while (left := moment - self.clock.mono()) > 0:
            history = live.recorder.snapshot()
            self.listener.tick(history)
            self._heal_due(live, history)
            self.clock.sleep(min(left, 0.5))

    def _wait_busy(self, live: _Live, node: str) -> None:
        """Until a task on the node is known to have begun and to have half of its time to go.

        Gives up after `BUSY_S` seconds, or when the work is over: then the fault hits what it hits,
        and the checks say so.
        """
        deadline = Deadline(BUSY_S, clock=self.clock.mono)
        under_way: dict[str, Op] = {}
        looked = 0
        while not deadline.passed:
            history = live.recorder.snapshot()
            for op in history.ops[looked:]:
                if op.kind == "driver.end":
                    return
                if op.kind == "task.start" and op.node == node:
                    under_way[op.data["exec"]] = op
                elif op.kind == "task.end":
                    under_way.pop(op.data["exec"], None)
            looked = len(history)
            now = self.clock.wall()
            for op in under_way.values():
                if now - history.at(op) < op.data["nominal_s"] / 2:
                    return
            self.clock.sleep(0.01)

    def _inject(self, live: _Live, fault: _Fault) -> None:
        planned = fault.planned
        step, node = planned.step, planned.node
        facts, data = fault.facts, planned.to_data()
        live.recorder.record("fault.plan", node=node, target=node, undo=data["undo"], data=facts)
        state = live.cluster.node(node).state
        if state != "running":
            live.recorder.record("fault.skipped", node=node, why=f"{node} is {state}", data=facts)
            fault.healed = True
            live.recorder.record(
                "fault.healed", node=node, verified=True, how="nothing was done", data=facts
            )
            return
        before = len(live.recorder.snapshot())
        fault.injected = self.clock.mono()
        live.recorder.record("fault.inject", node=node, data=facts)
        step.fault.inject(live.cluster, node)
        live.recorder.record("fault.done", node=node, data=facts)
        self._verify(live, fault, before)
        if live.recorder.snapshot().first("driver.end") is None:
            live.recorder.record("workload.go_on")
            self._control(live, go_on=True)

    def _verify(self, live: _Live, fault: _Fault, since: int) -> None:
        """Show from outside that it took effect: the engine's event, and the state it left."""
        planned = fault.planned
        kind, node, facts = f"engine.{planned.step.fault.shown_by}", planned.node, fault.facts

        def seen() -> Any:
            ops = live.recorder.snapshot().ops[since:]
            return next((op for op in ops if op.kind == kind and op.node == node), None)

        try:
            event = live.cluster.wait_until(
                seen, name=f"{kind} of {node}", timeout=15.0, interval=0.02
            )
        except WaitTimeout as error:
            live.recorder.record(
                "fault.effect",
                source="engine",
                node=node,
                verified=False,
                how=str(error),
                data=facts,
            )
            return
        holds = fault.verified = planned.step.fault.holds(live.cluster, node)
        live.recorder.record(
            "fault.effect",
            source="engine",
            node=node,
            wall=event.wall,
            verified=holds,
            how=f"{kind} (op {event.index}); the engine says {live.cluster.node(node).state}",
            data=facts,
        )

    def _recover(self, live: _Live, request: RunRequest, run: RunDir) -> None:
        """Heal each fault when it is due, and go on until the last mandatory phase was seen."""
        spec = run.spec()
        deadline = Deadline(
            request.experiment.recovery_timeout(request.params) + 30.0, clock=self.clock.mono
        )
        next_look = 0.0
        vain: Deadline | None = None
        while not deadline.passed:
            history = live.recorder.snapshot()
            self.listener.tick(history)
            if self._heal_due(live, history):
                history = live.recorder.snapshot()
            self._ask_ray(live)
            if all(f.healed or _never(f) for f in live.faults if f.injected is not None):
                if self._nothing_more_to_see(live, history):
                    return
                if history.first("driver.failure", "driver.actor_failure") and vain is None:
                    vain = Deadline(LOST_S, clock=self.clock.mono)
                if vain is not None and vain.passed:
                    return
                if self.clock.mono() >= next_look:
                    began = self.clock.mono()
                    if not anatomy(RunView(history, spec)).waiting_for:
                        return
                    # A long history takes its time to look through: spend a tenth on it at most.
                    next_look = self.clock.mono() + 10 * (self.clock.mono() - began)
            self.clock.sleep(0.5)

    def _nothing_more_to_see(self, live: _Live, history: History) -> bool:
        """Whether waiting is vain: no work goes on, nobody watches, or no fault is known to hold."""
        injected = [f for f in live.faults if f.injected is not None]
        return (
            live.job_over
            or history.first("driver.end") is not None
            or not _reading(live)
            or not all(f.verified for f in injected)
            or not injected
        )

    def _ask_ray(self, live: _Live) -> None:
        """Every two seconds: which attempts failed, and whether the workload still runs."""
        if self.clock.mono() < live.next_ask:
            return
        live.next_ask = self.clock.mono() + 2.0
        self._failed_attempts(live)
        head = live.cluster.node("head")
        struck = any(
            f.planned.node == "head" and f.injected is not None and not f.healed
            for f in live.faults
        )
        if head.state != "running" and not struck:
            raise CannotRun(
                f"the head is {head.state}, and no fault of this run did it",
                why=f"its exit code is {head.exit_code}; its last lines follow",
                details=self.backend.logs(live.cluster.name, "head", tail=12).splitlines(),
            )
        try:
            job = live.cluster.ray.job(live.job or "")
        except CannotRun:
            return
        if job.over and not live.job_over:
            live.job_over = True
            live.recorder.record("workload.end", status=job.status, message=job.message[:500])

    def _heal_due(self, live: _Live, history: History) -> bool:
        """Undo every fault whose time has come; whether there was any."""
        due = [f for f in live.faults if not f.healed and self._due(history, f)]
        for fault in due:
            self._heal(live, fault)
        return bool(due)

    def _due(self, history: History, fault: _Fault) -> bool:
        heal = fault.planned.step.heal
        if isinstance(heal, Never) or fault.injected is None:
            return False
        since = self.clock.mono() - fault.injected
        if isinstance(heal, After):
            return since >= heal.seconds
        if not fault.verified:
            return True  # nothing died, so nothing will be declared dead
        inject = next(op for op in history.of("fault.inject") if op.data["id"] == fault.planned.id)
        dead = any(
            op.node == fault.planned.node and op.data["state"] == "DEAD" and op.index > inject.index
            for op in history.of("ray.node")
        )
        return dead or since >= heal.at_most

    def _heal(self, live: _Live, fault: _Fault) -> None:
        """Undo one fault; safe to call again."""
        planned, facts = fault.planned, fault.facts
        if fault.healed:
            return
        if _never(fault):
            fault.healed = True
            live.recorder.record(
                "fault.healed", node=planned.node, verified=True, how="asked to stay", data=facts
            )
            return
        live.recorder.record(
            "fault.heal", node=planned.node, how=planned.step.fault.undo, data=facts
        )
        each = HEAL_S / START_ATTEMPTS  # of the attempts that a start gets
        how = planned.step.fault.heal(live.cluster, planned.node, each)
        fault.healed = True
        self._map_nodes(live)
        live.recorder.record("fault.healed", node=planned.node, verified=True, how=how, data=facts)

    def _drain(self, live: _Live) -> None:
        """Tell the workload to finish what it has, and wait for its last word."""
        if live.job is None or live.job_over:
            return
        live.recorder.record("workload.finish")
        if live.recorder.snapshot().first("driver.end") is None:
            self._control(live, go_on=True, finish=True)
        status, message = "LOST", ""

        def over() -> bool:
            nonlocal status, message
            self.listener.tick(live.recorder.snapshot())
            try:
                job = live.cluster.ray.job(live.job or "")
            except CannotRun as error:
                message = str(error)
                return False
            status, message = job.status, job.message
            return job.over

        try:
            live.cluster.wait_until(
                over, name="the workload's end", timeout=live.drain_s, interval=0.3
            )
        except WaitTimeout as error:
            message = str(error)
        live.job_over = True
        live.recorder.record("workload.end", status=status, message=message[:500])

    def _failed_attempts(self, live: _Live) -> int | None:
        """Record the failed attempts that Ray knows of and we do not yet; how many it dropped."""
        started = live.recorder.snapshot().first("driver.start")
        if started is None:
            return None
        try:
            found = live.cluster.ray.failed_attempts(started.data["job_id"])
        except CannotRun:
            return None
        for row in found.rows:
            if (row.task_id, row.attempt) in live.attempts or not row.ended:
                continue
            live.attempts.add((row.task_id, row.attempt))
            live.recorder.record(
                "attempt.failed",
                source="ray",
                node=live.ray_nodes.get(row.ray_node_id),
                wall=row.ended,
                key=row.name,
                task_id=row.task_id,
                attempt=row.attempt,
                error_type=row.error_type,
            )
        return found.dropped

    # -- what always happens -----------------------------------------------------------------------

    def _finish(self, live: _Live, run: RunDir, request: RunRequest) -> None:
        """Heal, collect, in this order, whatever happened; errors become notes."""
        recorder, cluster = live.recorder, live.cluster
        exists = any(c.name == cluster.name for c in self._clusters(live))
        self._phase(live, "heal")
        if exists:
            self._guard(live, "draining", lambda: self._end_job(live))
            for fault in reversed(live.faults):
                if fault.injected is not None:
                    heal = partial(self._heal, live, fault)
                    self._guard(live, f"healing {fault.planned.id}", heal)
            if live.job is not None:
                whole = [
                    n.name
                    for n in survivors(
                        request.topology,
                        [f.planned for f in live.faults if f.injected is not None],
                    )
                ]
                self._guard(
                    live, "the steady state after", lambda: self._steady(live, whole, "after", 30.0)
                )
        self._phase(live, "collect")
        if exists:
            if live.job is not None:
                self._guard(live, "failed attempts", lambda: self._attempts_complete(live))
            if live.observer is not None:
                self._guard(live, "the clock", lambda: self._measure_clock(live))
                self._guard(live, "the observer's end", lambda: self._end_observer(live))
            problems: list[str] = []
            self._guard(
                live,
                "collecting",
                lambda: within(
                    COLLECT_S,
                    "collecting ledger and logs",
                    lambda: problems.extend(
                        salvage(self.backend, cluster.name, run.path, siblings=False)
                    ),
                ),
            )
            for problem in problems:
                recorder.record("run.note", text=problem)
        if live.watch is not None:
            self._guard(live, "closing the watch", live.watch.close)
        if live.observer is not None:
            self._guard(live, "removing the observer", live.observer.remove)

    def _clusters(self, live: _Live) -> Sequence[Any]:
        try:
            return self.backend.clusters()
        except SimulatorError as error:
            self._note(live, error)
            return []

    def _end_job(self, live: _Live) -> None:
        if live.job is None or live.job_over:
            return
        if live.error is None:
            self._drain(live)
        else:
            live.cluster.ray.stop_job(live.job)
            live.job_over = True
            live.recorder.record("workload.end", status="STOPPED", message="the run ended early")

    def _attempts_complete(self, live: _Live) -> None:
        dropped = self._failed_attempts(live)
        if dropped is not None:
            live.recorder.record(
                "attempts.complete", source="ray", rows=len(live.attempts), dropped=dropped
            )

    def _end_observer(self, live: _Live) -> None:
        assert live.observer is not None
        live.observer.stop(timeout=15.0)
        if live.reader is not None:
            live.reader.join(timeout=30.0)

    def _guard(self, live: _Live, what: str, action: Callable[[], None]) -> None:
        try:
            action()
        except Exception as error:  # noqa: BLE001 - cleaning up goes on whatever fails
            self._note(live, error, what)

    def _note(self, live: _Live, error: BaseException, where: str = "") -> None:
        live.recorder.record(
            "run.error", error=f"{type(error).__name__}: {error}", where=where or "run"
        )
        if live.error is None:
            live.error = error
        else:
            live.notes.append(f"{where}: {error}")

    def _said(self, live: _Live) -> str | None:
        if live.error is None:
            return None
        return "\n".join([str(live.error), *(f"note: {n}" for n in live.notes)])

    def _last_words(self, name: str) -> None:
        sys.stderr.write(
            f"\nStopped at once. What is left is found by its label; remove it with:\n"
            f"    python -m simulator down --name {name}\n"
        )
        sys.stderr.flush()

    def _spec(
        self,
        request: RunRequest,
        planned: Sequence[PlannedFault],
        gpu: str,
        name: str,
        run_id: str,
    ) -> dict[str, Any]:
        slots = request.topology.total("CPU")
        cores = os.cpu_count() or 1
        return {
            "schema": SCHEMA,
            "run_id": run_id,
            "experiment": request.experiment.name,
            "source": request.source,
            "claim": request.experiment.claim,
            "backend": self.backend.name,
            "cluster": name,
            "seed": request.seed,
            "params": dict(params_data(request.params)),
            "topology": request.topology.model_dump(mode="json"),
            "health": request.health,
            "gpu": gpu,
            "mandatory_phases": list(request.experiment.mandatory_phases(request.params)),
            "recovery_timeout_s": request.experiment.recovery_timeout(request.params),
            "checks": list(request.experiment.checks),
            "schedule": [p.to_data() for p in planned],
            "command": request.command.replace("{seed}", str(request.seed)),
            "versions": {
                "simulator": __version__,
                "python": platform.python_version(),
                "ray": None,
                "engine": self.backend.version(),
                "platform": platform.platform(),
            },
            "host": {
                "cores": cores,
                "memory_bytes": psutil.virtual_memory().total,
                "slots": slots,
                "oversubscription": round(slots / cores, 2),
            },
            "started": self.clock.wall(),
        }


def _reading(live: _Live) -> bool:
    """Whether the observer may still say something."""
    return live.reader is not None and live.reader.is_alive()


def _never(fault: _Fault) -> bool:
    return isinstance(fault.planned.step.heal, Never)


def _unknown_health(name: str) -> Sequence[Problem]:
    return [Problem(f"--health {name}", "is not known", "one of " + ", ".join(HEALTH))]


def judge_run(
    run: RunDir, *, status: str | None = None, error: str | None = None
) -> dict[str, Any]:
    """Judge a run from its directory alone, write ``result.json`` and the report, return the result.

    `status` and `error` are taken from the history where they are not given; a history without a
    ``run.end`` is of a run that was interrupted from outside.
    """
    spec, history = run.spec(), run.history()
    previous = run.result() or {}
    end = history.last("run.end")
    if status is None:
        status = str(end.data["status"]) if end else "interrupted"
    if error is None:
        error = previous.get("error")
    _know_checks(run, spec)
    judgement = judge(RunView(history, spec))
    last = history.ops[-1].received if history.ops else spec["started"]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": spec["run_id"],
        "experiment": spec["experiment"],
        "backend": spec["backend"],
        "status": status,
        "verdict": judgement.verdict.value,
        "seed": spec["seed"],
        "run_dir": str(run.path),
        "report": str(run.path / REPORT),
        "topology": spec["topology"]["name"],
        "ray_version": spec["versions"]["ray"],
        "health": spec["health"],
        "gpu": spec["gpu"],
        "findings": [f.to_data() for f in judgement.findings],
        "phases": [
            {
                "name": p.name,
                "title": p.title,
                "seconds": p.seconds,
                "uncertainty": p.uncertainty,
                "cites": list(p.cites),
                "mandatory": p.mandatory,
                "note": p.note,
            }
            for p in judgement.phases
        ],
        "recovery": {f"{p.name}_s": p.seconds for p in judgement.phases},
        "metrics": dict(judgement.metrics),
        "params": spec["params"],
        "error": error,
        "started": spec["started"],
        "ended": last,
        "truncated": history.truncated,
    }
    run.write_result(result)
    try:
        write_html(run.path)
    except Exception as problem:  # noqa: BLE001 - a broken report must not cost the verdict
        text = f"the report could not be written: {type(problem).__name__}: {problem}"
        result["error"] = "\nnote: ".join(t for t in (error, text) if t)
        run.write_result(result)
    return result


def _know_checks(run: RunDir, spec: Mapping[str, Any]) -> None:
    """Load the run's own experiment, if it names checks that only its file has."""
    if set(spec.get("checks", ())) <= CHECKERS.keys() or not (run.path / EXPERIMENT).is_file():
        return
    # What goes wrong here shows in the findings: a check that is not known is unknown.
    with suppress(SimulatorError):
        load_experiment(str(run.path / EXPERIMENT))


#: The exit code of a result; of several, the first of these that is present counts.
EXIT_ORDER = (4, 1, 3, 0)


def exit_code(result: Mapping[str, Any]) -> int:
    """0 valid, 1 invalid, 3 unknown, 4 could not run."""
    if result["status"] in ("failed", "aborted", "interrupted"):
        return 4
    return {Verdict.VALID.value: 0, Verdict.INVALID.value: 1}.get(str(result["verdict"]), 3)


def run_view(path: Path) -> RunView:
    """What a checker may look at, from a run's directory."""
    run = RunDir(path)
    return RunView(run.history(), run.spec())


__all__ = [
    "Interrupts",
    "Listener",
    "RunRequest",
    "Runner",
    "WhenDeclaredDead",
    "exit_code",
    "judge_run",
    "run_view",
]
