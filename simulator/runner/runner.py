"""Runs one experiment: start, gate, load, break, wait until whole, heal, collect, judge, take down.

Everything that happens goes to the history first. Healing, collecting and taking down always happen,
each under its own deadline; the first error wins and later ones become notes on it. How a run ended
(completed, failed, aborted, interrupted) is a different thing from what its history proves (the verdict).
"""

from __future__ import annotations

import secrets
import shutil
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from random import Random
from typing import Any

from simulator.backends.base import Backend, ClusterRecord, ClusterSpec, GpuKind, clock_of
from simulator.checkers.anatomy import anatomy
from simulator.checkers.base import RunView
from simulator.checkers.program import baseline_of
from simulator.cluster import HEALTH, Cluster, refuse_unable, salvage
from simulator.errors import BadInput, CannotRun, Interrupted, NotFound, Problem, SimulatorError
from simulator.faults import rpc_environment
from simulator.history import Recorder
from simulator.runner.injection import Injection
from simulator.runner.interrupts import Interrupts
from simulator.runner.judging import judge_run, run_view
from simulator.runner.live import LiveRun
from simulator.runner.load import Load
from simulator.runner.own import OwnLoad
from simulator.runner.program import ProgramLoad
from simulator.runner.request import Listener, RunRequest, build_spec
from simulator.schedule import PlannedFault, misplaced, resolve, unable, without
from simulator.store import EXPERIMENT, SCHEMA, RunDir, Store
from simulator.waiting import Clock, Deadline, within
from simulator.workload import Script

#: Deadlines, seconds: of the gate before the load and of the look at the cluster after it, and of
#: the parts that always run.
GATE_S, AFTER_S = 60.0, 30.0
COLLECT_S, DOWN_S = 120.0, 120.0

#: Work that is lost for good makes phases that rest on it impossible, but not the others: how long a
#: run waits for those once everything is healed, seconds.
LOST_S = 20.0

#: For how long nothing new is seen of a recovery before the run says what it waits for, seconds.
SILENCE_S = 10.0


@dataclass
class _Lease:
    """The cluster of one or several runs: is it to be made, and is it ours to take down?"""

    name: str
    gpu: GpuKind
    engine: str
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

    def repeat(
        self, request: RunRequest, times: int, *, baseline: RunRequest | None = None
    ) -> list[dict[str, Any]]:
        """`times` runs on one cluster; run i has seed + i. Ends early when one could not run.

        Parameters
        ----------
        baseline
            The same program undisturbed: it runs first, its result comes first, and the others are compared
            with it. If it does not end well, it is the only one.
        """
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        todo = [replace(request, seed=seed + i) for i in range(times)]
        planned = self._plan(todo[0])  # what is wrong with it shows before anything starts
        lease = self._lease(request)
        results: list[dict[str, Any]] = []
        interrupts = Interrupts(lambda: _last_words(lease.name))
        with interrupts.installed():
            try:
                if baseline is not None:
                    first = replace(baseline, seed=seed)
                    results.append(self._one(first, self._plan(first), lease, interrupts))
                    self.listener.result(results[-1])
                    facts = baseline_of(run_view(Path(results[-1]["run_dir"])))
                    if results[-1]["status"] != "completed" or facts is None or interrupts.count:
                        return results
                    todo = [replace(one, baseline=facts) for one in todo]
                for i, one in enumerate(todo):
                    planned = self._plan(one) if i else planned
                    results.append(self._one(one, planned, lease, interrupts))
                    self.listener.result(results[-1])
                    if results[-1]["status"] != "completed" or interrupts.count:
                        break
            finally:
                interrupts.cleaning = True
                if lease.ours and not request.keep:
                    self._down(lease.name, results)
        return results

    # -- before anything starts --------------------------------------------------------------------

    def _plan(self, request: RunRequest) -> list[PlannedFault]:
        experiment, topology = request.experiment, request.topology
        problems = list(experiment.problems(request.params, topology))
        if request.health not in HEALTH:
            raise BadInput([*problems, *_unknown_health(request.health)])
        if problems:
            raise BadInput(problems)
        request.all_rpc_faults()
        planned = (
            resolve(request.schedule, topology, Random(request.seed))
            if request.plan is None
            else list(request.plan)
        )
        for fault in dict.fromkeys(p.step.fault for p in planned):
            fault.prepare(self.backend, self.listener.say)
        refused = unable(planned, self.backend)
        if refused:
            raise CannotRun("this backend cannot do it", why="; ".join(refused))
        if problems := misplaced(planned, topology):
            raise BadInput(problems)
        return planned

    def _lease(self, request: RunRequest) -> _Lease:
        name = (
            request.reuse
            or request.name
            or f"{request.experiment.name.replace('_', '-')}-{secrets.token_hex(2)}"
        )
        gpu = self._gpu(request, self._existing(request, name))
        return _Lease(name, gpu, self.backend.version(), fresh=request.reuse is None)

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
        has = sorted(n.name for n in clusters[name].nodes if not n.managed)
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

    def _gpu(self, request: RunRequest, existing: ClusterRecord | None) -> GpuKind:
        if existing is not None:
            return existing.gpu
        refuse_unable(self.backend, request.topology)
        return self.backend.gpu_kind(request.topology)

    # -- one run -----------------------------------------------------------------------------------

    def _one(
        self,
        request: RunRequest,
        planned: Sequence[PlannedFault],
        lease: _Lease,
        interrupts: Interrupts,
    ) -> dict[str, Any]:
        assert request.seed is not None
        run = self.store.create(request.experiment.name, request.seed)
        run_id = run.path.name
        spec = build_spec(
            request,
            planned,
            run_id=run_id,
            cluster=lease.name,
            backend=self.backend.name,
            engine=lease.engine,
            gpu=lease.gpu,
            started=self.clock.wall(),
        )
        run.write_spec(spec)
        if Path(request.source).is_file():
            # Its checks must be at hand when the run is judged again, wherever the original is then.
            shutil.copyfile(request.source, run.path / EXPERIMENT)
        recorder = Recorder(run.history_path, wall=self.clock.wall, mono=self.clock.mono)
        cluster = Cluster(self.backend, lease.name)
        live = LiveRun(self.backend, self.clock, self.listener, cluster, recorder, run_id)
        load = _load_of(request, live, run)
        injection = Injection(live, load, planned, request.topology)
        recorder.record("run.start", schema=SCHEMA, run_id=run_id, experiment=spec["experiment"])
        status = "completed"
        interrupts.cleaning = False
        try:
            try:
                self._act(request, live, load, injection, run, spec, lease)
            finally:
                interrupts.cleaning = True
        except (Interrupted, KeyboardInterrupt) as error:
            status = "interrupted"
            self.listener.say(
                f"{str(error) or 'interrupted'}: healing, collecting and taking down; once more stops at once"
            )
            live.note(error)
        except SimulatorError as error:
            status = "failed" if injection.injected else "aborted"
            live.note(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - clean up and say so, whatever it was
            status = "failed"
            live.note(error)
        self._finish(live, load, injection, run, request)
        live.over = True
        recorder.record("run.end", status=status)
        recorder.close()
        return judge_run(run, status=status, error=live.said)

    def _act(
        self,
        request: RunRequest,
        live: LiveRun,
        load: Load,
        injection: Injection,
        run: RunDir,
        spec: dict[str, Any],
        lease: _Lease,
    ) -> None:
        live.phase("create")
        self._up(request, live, run, lease)
        live.map_nodes()
        spec["versions"]["ray"] = live.cluster.ray.version()
        run.write_spec(spec)
        live.observe()
        live.watch_autoscaler()
        live.measure_clock()

        live.phase("gate")
        live.steady([n.name for n in request.topology.nodes()], "before", GATE_S)

        live.phase("load")
        load.begin()

        if injection.planned:
            live.phase("faults")
            injection.inject_all()

            live.phase("recover")
            self._recover(live, load, injection, request, run)
            load.survey()
        else:
            live.phase("work")
            load.wait_planned()
        load.drain(injection.struck)

    def _up(self, request: RunRequest, live: LiveRun, run: RunDir, lease: _Lease) -> None:
        """Make the cluster, or start what is down of one that was made already."""
        if not lease.fresh:
            down = [
                n.name
                for n in live.cluster.record().nodes
                if n.state in ("exited", "created") and not n.managed
            ]
            live.cluster.start_nodes(down, progress=live.started)
            return
        cluster_spec = self.backend.prepare(
            ClusterSpec(
                name=lease.name,
                topology=request.topology,
                gpu=lease.gpu,
                image=request.image,
                env={**HEALTH[request.health], **rpc_environment(request.all_rpc_faults())},
                run_dir=run.path,
                seed=request.seed or 0,
            ),
            self.listener.say,
        )
        lease.ours, lease.fresh = True, False
        try:
            live.cluster.up(
                cluster_spec, progress=live.started, parallelism=request.start_parallelism
            )
        except BadInput:
            lease.ours = False  # somebody else took the name in the meantime
            raise

    def _recover(
        self,
        live: LiveRun,
        load: Load,
        injection: Injection,
        request: RunRequest,
        run: RunDir,
    ) -> None:
        """Heal each fault when it is due, and go on until the last mandatory phase was seen."""
        spec = run.spec()
        deadline = Deadline(request.recovery_timeout + 30.0, clock=self.clock.mono)
        next_look = 0.0
        vain: Deadline | None = None
        waiting_for: list[str] = []
        silence: Deadline | None = None
        while not deadline.passed:
            history = live.look()
            if injection.heal_due(history):
                history = live.recorder.snapshot()
            load.ask(injection.struck)
            if load.too_late:
                return
            if injection.all_healed and not injection.pending:
                if _nothing_more_to_see(live, load, injection):
                    return
                if history.first("driver.failure", "driver.actor_failure") and vain is None:
                    vain = Deadline(LOST_S, clock=self.clock.mono)
                if vain is not None and vain.passed:
                    return
                if self.clock.mono() >= next_look:
                    began = self.clock.mono()
                    seen = anatomy(RunView(history, spec))
                    if not seen.waiting_for:
                        return
                    if seen.waiting_for != waiting_for:
                        waiting_for = seen.waiting_for
                        silence = Deadline(SILENCE_S, clock=self.clock.mono)
                    elif silence is not None and silence.passed:
                        missing = ", ".join(seen.phase(name).title for name in waiting_for)
                        self.listener.say(f"  still to be seen: {missing}")
                        silence = None
                    # A long history takes its time to look through: spend a tenth on it at most.
                    next_look = self.clock.mono() + 10 * (self.clock.mono() - began)
            self.clock.sleep(0.5)

    # -- what always happens -----------------------------------------------------------------------

    def _finish(
        self, live: LiveRun, load: Load, injection: Injection, run: RunDir, request: RunRequest
    ) -> None:
        """Heal, collect, in this order, whatever happened; errors become notes."""
        exists = any(c.name == live.cluster.name for c in self._clusters(live))
        live.phase("heal")
        if exists:
            live.guard("draining", lambda: load.end(injection.struck))
            for fault in reversed(injection.injected):
                live.guard(f"healing {fault.site.id}", partial(injection.heal, fault))
            if load.job is not None:
                gone = [f.node for f in injection.injected if f.stays]
                whole = [n.name for n in without(request.topology, gone)]
                alone = load.leaves_nothing
                live.guard(
                    "the steady state after",
                    lambda: live.steady(whole, "after", AFTER_S, at_rest=alone),
                )
                live.guard("the resources left", lambda: live.resources_left(wait=alone))
        live.phase("collect")
        if exists:
            if load.job is not None:
                live.guard("the last records", load.complete)
            if live.observer is not None:
                live.guard("the clock", live.measure_clock)
                live.guard("the observer's end", live.end_observer)
            live.guard("collecting", lambda: self._collect(live, run))
        if live.watch is not None:
            live.guard("closing the watch", live.watch.close)
        if live.observer is not None:
            live.guard("removing the observer", live.observer.remove)

    def _clusters(self, live: LiveRun) -> Sequence[ClusterRecord]:
        try:
            return self.backend.clusters()
        except SimulatorError as error:
            live.note(error)
            return []

    def _collect(self, live: LiveRun, run: RunDir) -> None:
        problems: list[str] = []

        def save() -> None:
            problems.extend(salvage(self.backend, live.cluster.name, run.path, siblings=False))

        within(COLLECT_S, "collecting ledger and logs", save)
        for problem in problems:
            live.recorder.record("run.note", text=problem)

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


def _load_of(request: RunRequest, live: LiveRun, run: RunDir) -> Load:
    """What the experiment runs, as the runner sees it."""
    workload = request.experiment.workload(request.params)
    if isinstance(workload, Script):
        return ProgramLoad(live, workload, run.path)
    return OwnLoad(live, workload, request.topology, request.recovery_timeout)


def _nothing_more_to_see(live: LiveRun, load: Load, injection: Injection) -> bool:
    """Whether waiting is vain: no work goes on, nobody watches, or no fault is known to hold."""
    return (
        load.idle
        or not live.reading
        or not all(f.verified for f in injection.injected)
        or not injection.injected
    )


def _unknown_health(name: str) -> Sequence[Problem]:
    return [Problem(f"--health {name}", "is not known", "one of " + ", ".join(HEALTH))]


def _last_words(name: str) -> None:
    sys.stderr.write(
        f"\nStopped at once. What is left is found by its label; remove it with:\n"
        f"    python -m simulator down --name {name}\n"
    )
    sys.stderr.flush()
