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
from simulator.cluster import HEALTH, Cluster, refuse_unable, salvage
from simulator.errors import BadInput, CannotRun, Interrupted, NotFound, Problem, SimulatorError
from simulator.history import History, Recorder
from simulator.runner.injection import Injection
from simulator.runner.interrupts import Interrupts
from simulator.runner.judging import judge_run
from simulator.runner.live import LiveRun
from simulator.runner.request import Listener, RunRequest, build_spec
from simulator.schedule import PlannedFault, resolve, without
from simulator.store import EXPERIMENT, SCHEMA, RunDir, Store
from simulator.waiting import Clock, Deadline, within

#: Deadlines, seconds: of the gate before the load and of the look at the cluster after it, and of
#: the parts that always run.
GATE_S, AFTER_S = 60.0, 30.0
COLLECT_S, DOWN_S = 120.0, 120.0

#: Work that is lost for good makes phases that rest on it impossible, but not the others: how long a
#: run waits for those once everything is healed, seconds.
LOST_S = 20.0


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

    def repeat(self, request: RunRequest, times: int) -> list[dict[str, Any]]:
        """`times` runs on one cluster; run i has seed + i. Ends early when one could not run."""
        seed = secrets.randbelow(2**31) if request.seed is None else request.seed
        request = replace(request, seed=seed)
        planned = self._plan(request)
        lease = self._lease(request)
        results: list[dict[str, Any]] = []
        interrupts = Interrupts(lambda: _last_words(lease.name))
        with interrupts.installed():
            try:
                for i in range(times):
                    one = replace(request, seed=seed + i)
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
        planned = (
            resolve(experiment.schedule(request.params, topology), topology, Random(request.seed))
            if request.plan is None
            else list(request.plan)
        )
        kinds = {p.step.fault.name: p.step.fault for p in planned}.values()
        refused = [r for fault in kinds if (r := fault.unable(self.backend))]
        if refused:
            raise CannotRun("this backend cannot do it", why="; ".join(refused))
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
        injection = Injection(live, planned, request.topology)
        recorder.record("run.start", schema=SCHEMA, run_id=run_id, experiment=spec["experiment"])
        status = "completed"
        interrupts.cleaning = False
        try:
            try:
                self._act(request, live, injection, run, spec, lease)
            finally:
                interrupts.cleaning = True
        except (Interrupted, KeyboardInterrupt) as error:
            status = "interrupted"
            self.listener.say(str(error) or "interrupted")
            live.note(error)
        except SimulatorError as error:
            status = "failed" if injection.injected else "aborted"
            live.note(error)
        except (Exception, SystemExit) as error:  # noqa: BLE001 - clean up and say so, whatever it was
            status = "failed"
            live.note(error)
        self._finish(live, injection, run, request)
        recorder.record("run.end", status=status)
        recorder.close()
        return judge_run(run, status=status, error=live.said)

    def _act(
        self,
        request: RunRequest,
        live: LiveRun,
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
        live.measure_clock()

        live.phase("gate")
        live.steady([n.name for n in request.topology.nodes()], "before", GATE_S)

        live.phase("load")
        live.load(request.experiment.workload(request.params), request.topology)

        if injection.planned:
            live.phase("faults")
            injection.inject_all()

            live.phase("recover")
            self._recover(live, injection, request, run)
        else:
            live.phase("work")
            self._work(live)
        live.drain()

    def _up(self, request: RunRequest, live: LiveRun, run: RunDir, lease: _Lease) -> None:
        """Make the cluster, or start what is down of one that was made already."""
        if not lease.fresh:
            down = [n.name for n in live.cluster.record().nodes if n.state in ("exited", "created")]
            live.cluster.start_nodes(down, progress=live.started)
            return
        cluster_spec = self.backend.prepare(
            ClusterSpec(
                name=lease.name,
                topology=request.topology,
                gpu=lease.gpu,
                image=request.image,
                env=HEALTH[request.health],
                run_dir=run.path,
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

    def _work(self, live: LiveRun) -> None:
        """Nothing is to be broken: go on until all planned work is done."""
        deadline = Deadline(live.drain_s, clock=self.clock.mono)
        while not live.job_over:
            if live.look().first("driver.end") or not live.reading:
                break
            if deadline.passed:
                text = f"the planned work was not done within {live.drain_s:.0f} s"
                live.recorder.record("run.note", text=text)
                break
            live.ask_ray(head_struck=False)
            self.clock.sleep(0.5)
        # It had all its time here: what follows is only its last word.
        live.drain_s = deadline.left

    def _recover(
        self, live: LiveRun, injection: Injection, request: RunRequest, run: RunDir
    ) -> None:
        """Heal each fault when it is due, and go on until the last mandatory phase was seen."""
        spec = run.spec()
        deadline = Deadline(
            request.experiment.recovery_timeout(request.params) + 30.0, clock=self.clock.mono
        )
        next_look = 0.0
        vain: Deadline | None = None
        while not deadline.passed:
            history = live.look()
            if injection.heal_due(history):
                history = live.recorder.snapshot()
            live.ask_ray(head_struck=injection.struck("head"))
            if injection.all_healed:
                if _nothing_more_to_see(live, injection, history):
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

    # -- what always happens -----------------------------------------------------------------------

    def _finish(
        self, live: LiveRun, injection: Injection, run: RunDir, request: RunRequest
    ) -> None:
        """Heal, collect, in this order, whatever happened; errors become notes."""
        exists = any(c.name == live.cluster.name for c in self._clusters(live))
        live.phase("heal")
        if exists:
            live.guard("draining", live.end_job)
            for fault in reversed(injection.injected):
                live.guard(f"healing {fault.site.id}", partial(injection.heal, fault))
            if live.job is not None:
                gone = [f.node for f in injection.injected if f.stays]
                whole = [n.name for n in without(request.topology, gone)]
                live.guard("the steady state after", lambda: live.steady(whole, "after", AFTER_S))
                live.guard("the resources left", live.resources_left)
        live.phase("collect")
        if exists:
            if live.job is not None:
                live.guard("failed attempts", live.complete_attempts)
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


def _nothing_more_to_see(live: LiveRun, injection: Injection, history: History) -> bool:
    """Whether waiting is vain: no work goes on, nobody watches, or no fault is known to hold."""
    return (
        live.job_over
        or history.first("driver.end") is not None
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
