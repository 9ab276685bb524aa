"""The recovery anatomy: where the seconds went between a fault and full throughput.

Each phase is a point in time, counted from the injection of the first fault that took a node down,
with its uncertainty and the operations that it rests on. What did not happen is None with a note
that begins with "not seen" and says why; it is never 0. docs/reference/anatomy.md defines each
phase in words. The runner asks for the anatomy about once a second while a run goes on, so it
works on any beginning of a history.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from simulator.checkers import throughput
from simulator.checkers.base import RunView
from simulator.checkers.elasticity import elastic_of
from simulator.checkers.growth import growth
from simulator.checkers.index import SLACK, Down, Execution, FaultRecord, Index, index_of
from simulator.checkers.losses import Loss, Moment, losses_of, way_of
from simulator.checkers.phases import Anatomy, Phase
from simulator.checkers.survival import CALLS, OF_THE_GCS, Outage, outages_of
from simulator.history import Op

#: Name and title of every phase, in their usual order.
PHASES: dict[str, str] = {
    "effect": "took effect",
    "first_failure": "first failed attempt seen by its owner",
    "first_retry": "first retry running",
    "actor_alive": "actor alive again",
    "declared_dead": "declared DEAD by the GCS",
    "objects_rebuilt": "lost objects rebuilt",
    "throughput": "throughput back to 95 % of the surviving capacity",
    "rejoined": "node rejoined",
    "full_throughput": "full throughput",
}

#: Those of a machine that is taken back after a notice, where that is what the phases are counted from.
PREEMPTION: dict[str, str] = {
    "notice": "Ray told of the preemption",
    "drained": "no task left on the node",
    "killed": "killed at its deadline",
    "replaced": "as many nodes as before",
}

#: Those of a head that is lost, or of the store of its tables, where that is what the phases are counted from.
HEAD: dict[str, str] = {
    "gcs_answers": "the GCS answers again",
    "first_call": "first call that needs the GCS",
    "all_answer": "whatever a client calls answers",
}

#: Name and title of all of them.
TITLES: dict[str, str] = {**PHASES, **PREEMPTION, **HEAD}

#: Phases that are measured on a steady stream of work, or on objects that are known to be kept: of a
#: program of the user's nobody knows either.
OF_OUR_WORKLOADS = frozenset({"objects_rebuilt", "throughput", "full_throughput"})

#: Throughput counts as back when a window's mean reaches this part of the baseline.
BACK = 0.95

#: A baseline is at least so many task lengths and so many seconds long. In a shorter one, with tasks
#: however short, how work is handed out weighs more than what the nodes can do: measured too low, it
#: would be reached by a cluster that is not back.
BASELINE_TASKS, BASELINE_S = 2, 1.0

#: Ray's own actors, which it starts and restarts for its own purposes.
_INTERNAL_ACTORS = ("_ray_internal", "JobSupervisor", "SERVE_")


def anatomy(view: RunView) -> Anatomy:
    """The recovery anatomy of a run, or of as much of it as has happened.

    Where Ray's autoscaler decides, its phases are those of a cluster that grows and shrinks.
    """
    return view.once("anatomy", _built)


def _built(view: RunView) -> Anatomy:
    return growth(view) if elastic_of(view).is_elastic else _Anatomy(view, index_of(view)).build()


def task_length(index: Index) -> float | None:
    """The workload's nominal task length, seconds; None if there is no task of any length."""
    start = index.first("driver.start")
    if start is not None and start.data.get("task_seconds"):
        return float(start.data["task_seconds"])
    lengths = [e.nominal_s for e in index.tasks() if e.nominal_s > 0]
    return median(lengths) if lengths else None


def window_s(length: float) -> float:
    """Width of the window over which throughput is averaged, for a task length; seconds."""
    return max(2.0, 3.0 * length)


class _NotSeen(Exception):
    """A phase was not seen, and why."""


class _NeverSeen(_NotSeen):
    """Nor can it be any more."""


@dataclass(frozen=True, slots=True)
class _Seen:
    when: float
    ops: tuple[Op, ...]
    uncertainty: float = 0.0
    note: str = ""


#: Phases of a steady stream of tasks, with actors and objects on every worker.
_OF_STREAMS = OF_OUR_WORKLOADS | {"first_failure", "first_retry", "actor_alive"}


class _Anatomy:
    """One computation; the methods named after phases return what was seen or raise `_NotSeen`."""

    def __init__(self, view: RunView, index: Index) -> None:
        self.view, self.index, self.spec = view, index, view.spec
        self.mandatory = set(view.spec.get("mandatory_phases", ()))
        self.metrics: dict[str, Any] = {}
        self.names = [n for n in PHASES if not (index.of_program and n in OF_OUR_WORKLOADS)]
        injected = index.injected()
        self.fault = next((f for f in injected if index.downs_node(f)), None) or next(
            iter(injected), None
        )
        if self.fault is not None and self.fault.announced:
            self.names = ["notice", "drained", "killed", *self.names, "replaced"]
        if self.fault is not None and self.fault.node in index.heads:
            self.names = [*self.names, *HEAD]
        if index.first("driver.made") is not None:
            # Of its tasks, none is there to show how fast work goes on; its actors are told one by one.
            self.names = [n for n in self.names if n not in _OF_STREAMS]
        self.seen: dict[str, _Seen] = {}

    def build(self) -> Anatomy:
        self._count_work()
        fault = self.fault
        if fault is None or fault.inject is None or fault.node is None:
            why = "not seen: no fault was injected"
            skipped = next((f.skipped for f in self.index.faults.values() if f.skipped), None)
            if skipped is not None:
                why += f" ({skipped.data.get('why', 'skipped')})"
            return Anatomy([self._phase(name, None, why) for name in self.names], self.metrics)
        self.inject = fault.inject
        self.victim = fault.node
        self.injected_at = self.index.at(fault.inject)
        self.effect_at = self._effect_at(fault)
        self.down = Down(self.victim, self.injected_at, self.effect_at, ())
        self.hit = self._work_hit()
        if not self.index.of_program:
            self._baselines()
        phases = []
        for name in self.names:
            try:
                seen: _Seen = getattr(self, name)()
            except _NotSeen as why:
                phase = self._phase(name, None, f"not seen: {why}")
                phases.append(replace(phase, in_vain=isinstance(why, _NeverSeen)))
            else:
                self.seen[name] = seen
                phases.append(self._phase(name, seen, seen.note))
        self._measure_loss()
        return Anatomy(phases, self.metrics, fault.id, self.victim, self.injected_at)

    def _phase(self, name: str, seen: _Seen | None, note: str) -> Phase:
        title, mandatory = TITLES[name], name in self.mandatory
        if seen is None:
            return Phase(name, title, None, mandatory=mandatory, note=note)
        history = self.index.history
        observed = any(op.source == "observer" for op in seen.ops)
        return Phase(
            name,
            title,
            # Clocks may put an event a hair before what caused it.
            max(0.0, seen.when - self.injected_at),
            seen.uncertainty
            + history.uncertainty(self.inject, *seen.ops[-1:])
            + (self.index.observer_poll_s if observed else 0.0),
            sorted({self.inject.index, *(op.index for op in seen.ops)}),
            mandatory,
            note,
        )

    # What the phases rest on

    def _effect_at(self, fault: FaultRecord) -> float:
        op = fault.effect or fault.done
        return max(self.injected_at, self.index.at(op)) if op else self.injected_at

    def _work_hit(self) -> dict[str, Execution]:
        """Per key, the execution that was under way on the victim when it went down."""
        found: dict[str, Execution] = {}
        for execution in self.index.executions_on(self.victim):
            if self.down.hit(execution) and not self._run_again_before(execution):
                found[execution.key] = execution
        return found

    def _run_again_before(self, execution: Execution) -> bool:
        of_key = self.index.executions[execution.key]
        return any(execution.start < e.start < self.injected_at for e in of_key)

    def _after(self, op: Op) -> bool:
        """At or after the injection, as far as the clocks can tell."""
        slack = self.index.history.uncertainty(self.inject, op) + SLACK
        return self.index.at(op) >= self.injected_at - slack

    def _earliest(self, ops: Sequence[Op], why_not: str, note: str = "") -> _Seen:
        if not ops:
            raise _NotSeen(why_not)
        first = min(ops, key=self.index.at)
        return _Seen(self.index.at(first), (first,), note=note)

    # The phases

    def effect(self) -> _Seen:
        assert self.fault is not None
        effect = self.fault.effect
        if effect is None:
            raise _NotSeen(f"nothing reported that {self.fault.fault} of {self.victim} took effect")
        how = str(effect.data.get("how", ""))
        if not effect.data.get("verified"):
            raise _NotSeen(f"{self.fault.fault} of {self.victim} could not be verified: {how}")
        return _Seen(self.index.at(effect), (effect,), note=how)

    # Of a preemption

    def _loss(self) -> Loss | None:
        return next((one for one in losses_of(self.view) if one.fault is self.fault), None)

    def _of_loss(self, name: str, what: Callable[[Loss], Moment | None]) -> _Seen:
        loss = self._loss()
        if loss is None:
            raise _NotSeen(f"{self.victim} was not seen to go")
        moment = what(loss)
        if moment is None:
            raise _NeverSeen(loss.why.get(f"{name}_s", "nobody saw it").removeprefix("not seen: "))
        return _Seen(moment.when, (moment.op,), note=moment.note)

    def notice(self) -> _Seen:
        assert self.fault is not None
        notice = self.fault.notice
        if notice is None or not notice.data.get("verified"):
            raise _NotSeen("nothing showed that it was announced")
        said = str(notice.data.get("how", ""))
        if way_of(self.fault) == "preempt, not told":
            raise _NeverSeen(said)
        return _Seen(self.index.at(notice), (notice,), note=said)

    def drained(self) -> _Seen:
        return self._of_loss("drained", lambda loss: loss.drained)

    def killed(self) -> _Seen:
        return self._of_loss("killed", lambda loss: loss.killed)

    def replaced(self) -> _Seen:
        loss = self._loss()
        if loss is None or loss.replaced is None:
            raise _NotSeen("there were never as many nodes of its group again")
        return _Seen(loss.replaced.when, (loss.replaced.op,), note=loss.replaced.note)

    # Of a head

    def gcs_answers(self) -> _Seen:
        blind = [op for op in self.index.all("observer.blind") if self._after(op)]
        if not blind:
            raise _NotSeen("the GCS never fell silent")
        since = self.index.at(blind[0])
        back = [op for op in self.index.all("observer.seeing") if self.index.at(op) >= since]
        return self._earliest(back, "the GCS was not seen to answer again")

    def first_call(self) -> _Seen:
        back = [o for o in self._outages() if o.what in OF_THE_GCS and o.end is not None]
        if not back:
            raise _NotSeen("no call that needs the GCS failed, or waited, and came back")
        first = min(back, key=lambda outage: outage.end or 0.0)
        return _Seen(first.end or 0.0, first.ops, note=CALLS[first.what])

    def all_answer(self) -> _Seen:
        outages = self._outages()
        if not outages:
            raise _NotSeen("no call failed, or waited")
        never = [o for o in outages if o.end is None]
        if never:
            raise _NotSeen(f"{CALLS[never[0].what]} did not come back")
        last = max(outages, key=lambda outage: outage.end or 0.0)
        return _Seen(last.end or 0.0, last.ops, note=CALLS[last.what])

    def _outages(self) -> list[Outage]:
        """Those that the fault made, or that were under way when it came."""
        return [
            o for o in outages_of(self.index) if o.end is None or o.end >= self.injected_at - SLACK
        ]

    def first_failure(self) -> _Seen:
        index = self.index
        ops = [
            op
            for key, attempts in index.attempts.items()
            for op in attempts
            if (key in self.hit or op.node == self.victim) and self._after(op)
        ]
        for failures in (index.failures, index.actor_failures):
            ops += [op for key, op in failures.items() if key in self.hit and self._after(op)]
        if not self.hit and not ops:
            raise _NeverSeen(f"no work was under way on {self.victim}")
        why = "no owner reported a failed attempt of the work that was on " + self.victim
        if index.first("attempts.complete") is None:
            why += " (Ray's records of attempts are not in the history)"
        seen = self._earliest(ops, why)
        op = seen.ops[0]
        said = op.data.get("error_type") or op.data.get("error") or ""
        return _Seen(seen.when, seen.ops, note=f"{op.data.get('key')}: {said}")

    def first_retry(self) -> _Seen:
        # What shows that the work was on the victim: its START there, or, where the node died
        # between taking the task and starting it, Ray's record of the failed attempt.
        was_there: dict[str, Op] = {
            key: op
            for key, attempts in self.index.attempts.items()
            for op in attempts
            if op.node == self.victim
            and self._after(op)
            and (key in self.index.submits or self.index.of_program)
        }
        was_there.update({key: e.start_op for key, e in self.hit.items() if e.actor is None})
        if not was_there:
            raise _NeverSeen(f"no task was under way on {self.victim}")
        retries = [
            (again, op)
            for key, op in was_there.items()
            for again in self.index.executions.get(key, [])
            if self._after(again.start_op) and self._elsewhere(again)
        ]
        if not retries:
            raise _NotSeen(f"none of the tasks cut off on {self.victim} started again elsewhere")
        again, op = min(retries, key=lambda pair: pair[0].start)
        note = f"{again.key} on {again.node}"
        return _Seen(again.start, (op, again.start_op), note=note)

    def _elsewhere(self, execution: Execution) -> bool:
        """On another node, or on the new one that has the victim's name: where all else is busy, work waits for it."""
        if execution.node != self.victim:
            return True
        return any(
            self._after(op) and self.index.at(op) <= execution.start
            for op in self.index.engine_starts(self.victim)
        )

    def actor_alive(self) -> _Seen:
        actors = self._actors_on_victim()
        if not actors:
            raise _NeverSeen(f"no actor lived on {self.victim}")
        back: list[tuple[float, Op, Op]] = []
        for identity, before in actors.items():
            name = before.data.get("name") or identity
            alive = [op for op in self.index.actor_ops[identity] if self._lives_again(op)]
            if not alive:
                later = [op for op in self.index.actor_ops[identity] if self._after(op)]
                state = f"was last {later[-1].data.get('state')}" if later else "was not seen again"
                raise _NotSeen(f"actor {name} {state}")
            first = min(alive, key=self.index.at)
            back.append((self.index.at(first), before, first))
        when, before, after = max(back, key=lambda found: found[0])
        which = f"{after.data.get('name') or after.data.get('actor_id')} on {after.node}"
        note = which if len(back) == 1 else f"{which}, the last of {len(back)}"
        return _Seen(when, (before, after), note=note)

    def _actors_on_victim(self) -> dict[str, Op]:
        found: dict[str, Op] = {}
        for identity, ops in self.index.actor_ops.items():
            before = [op for op in ops if self.index.at(op) < self.injected_at]
            if not before or before[-1].data.get("state") != "ALIVE":
                continue
            names = (str(before[-1].data.get("name", "")), str(before[-1].data.get("class", "")))
            if before[-1].node == self.victim and not any(
                n.startswith(_INTERNAL_ACTORS) for n in names
            ):
                found[identity] = before[-1]
        return found

    def _lives_again(self, op: Op) -> bool:
        if op.data.get("state") != "ALIVE" or not self._after(op):
            return False
        if op.node is None:
            return False
        if op.node != self.victim:
            return True
        # On the victim only after it came back: an earlier report is old news.
        rejoined = self.index.rejoin(self.victim, self.injected_at)
        return rejoined is not None and self.index.at(op) >= self.index.at(rejoined)

    def declared_dead(self) -> _Seen:
        death = self.index.death(self.victim, self.injected_at)
        if death is None:
            raise _NotSeen(f"{self.victim} was not declared DEAD")
        note = str(death.data.get("message") or death.data.get("reason") or "")
        return _Seen(self.index.at(death), (death,), note=note)

    def objects_rebuilt(self) -> _Seen:
        index = self.index
        lost = index.only_copies(self.victim, self.injected_at)
        if not lost:
            raise _NeverSeen(f"no kept object had its only copy on {self.victim}")
        back: list[tuple[float, tuple[Op, ...]]] = []
        for held in lost:
            name, key = held.data.get("object"), held.data.get("key")
            again = [
                e
                for e in index.executions.get(str(key), [])
                if e.start >= self.injected_at - SLACK and e.whole and e.end is not None
            ]
            if not again:
                raise _NotSeen(f"{key}, which makes object {name}, was not executed again")
            first = min(again, key=lambda e: e.end or 0.0)
            ended = first.end or 0.0
            used = [
                op
                for op in index.objects_back.get(str(name), [])
                if index.at(op) >= ended - SLACK - index.history.uncertainty(op)
            ]
            if not used:
                raise _NotSeen(f"object {name} was made again, but no consumer of it came back")
            op = min(used, key=index.at)
            assert first.end_op is not None
            back.append((index.at(op), (held, first.start_op, first.end_op, op)))
        when, ops = max(back, key=lambda found: found[0])
        name = ops[0].data.get("object")
        note = f"{name}" if len(back) == 1 else f"{name}, the last of {len(back)}"
        return _Seen(when, ops, note=note)

    def rejoined(self) -> _Seen:
        op = self.index.rejoin(self.victim, self.injected_at)
        if op is None:
            raise _NotSeen(f"{self.victim} did not join again")
        return _Seen(self.index.at(op), (op,))

    def throughput(self) -> _Seen:
        if "effect" not in self.seen:
            raise _NotSeen("the fault's effect was not seen")
        return self._window(self.effect_at, self.surviving, "the surviving nodes gave before")

    def full_throughput(self) -> _Seen:
        if "rejoined" not in self.seen:
            raise _NotSeen(f"{self.victim} did not join again")
        return self._window(self.seen["rejoined"].when, self.total, "all nodes gave before")

    # Throughput

    def _baselines(self) -> None:
        """Mean throughput from the end of ramp-up to the injection, in all and without victims."""
        index = self.index
        self.total = self.surviving = 0.0
        self.no_baseline = ""
        tasks = [e for e in index.tasks() if e.nominal_s > 0]
        length = task_length(index)
        if not tasks or length is None:
            self.no_baseline = "no task has a nominal length"
            return
        self.width = window_s(length)
        start = index.first("driver.start")
        slots = start.data.get("slots") if start is not None else None
        ramp = throughput.ramp_end(tasks, slots, self.injected_at)
        long = 0.0 if ramp is None else self.injected_at - ramp
        self.metrics["throughput_window_s"] = self.width
        self.metrics["baseline_window_s"] = round(long, 6)
        if ramp is None or long < max(BASELINE_TASKS * length, BASELINE_S):
            self.no_baseline = (
                f"only {long:.1f} s of full work before the injection, too short for a baseline "
                f"with tasks of {length:g} s"
            )
            return
        self.total, self.surviving = throughput.baselines(
            tasks, ramp, self.injected_at, self._victims()
        )
        self.metrics["baseline_total"] = round(self.total, 6)
        self.metrics["baseline_surviving"] = round(self.surviving, 6)
        self.curve = throughput.finished(
            e for e in tasks if e.end is not None and e.end > self.injected_at
        )
        last = max((e.end for e in tasks if e.end is not None), default=self.effect_at)
        lowest = self.curve.lowest(self.effect_at, last, self.width)
        self.metrics["throughput_lowest"] = None if lowest is None else round(lowest, 6)

    def _victims(self) -> set[str]:
        """Nodes that were struck together with, or before, the victim."""
        return {self.victim} | {
            f.node
            for f in self.index.injected()
            if f.node is not None
            and f.inject is not None
            and self.index.at(f.inject) <= self.effect_at
            and self.index.downs_node(f)
        }

    def _window(self, since: float, baseline: float, which: str) -> _Seen:
        if self.no_baseline:
            raise _NeverSeen(self.no_baseline)
        if baseline <= 0:
            raise _NeverSeen(f"the baseline is 0: {which} nothing")
        wanted = BACK * baseline
        begin = self.curve.first_window(since, self.width, wanted)
        if begin is None:
            best = self._best(since)
            raise _NotSeen(
                f"no window of {self.width:g} s reached {wanted:.2f} work-seconds per second "
                f"({BACK:.0%} of the {baseline:.2f} that {which}); the best reached {best:.2f}"
            )
        end = begin + self.width
        inside = [
            e for e in self.index.tasks() if e.end is not None and begin <= e.end <= end and e.pace
        ]
        ops = tuple(e.end_op for e in inside[-20:] if e.end_op is not None)
        note = f"{self.curve.mean(begin, end):.2f} of {baseline:.2f} work-seconds per second"
        return _Seen(end, ops, uncertainty=self.width / 2, note=note)

    def _best(self, since: float) -> float:
        times = [since, *(t for t in self.curve.times if t >= since)]
        # A best effort for a sentence; a long run need not be searched step by step.
        chosen = times[:: max(1, len(times) // 500)]
        return max(self.curve.mean(t, t + self.width) for t in chosen)

    # Figures around the phases

    def _count_work(self) -> None:
        index = self.index
        tasks = rebuilt = repeated = executions = calls = 0
        for of_key in index.executions.values():
            if of_key[0].actor is not None:
                calls += len(of_key)
                continue
            executions += len(of_key)
            tasks += 1
            repeated += len(of_key) > 1
            rebuilt += sum(e.whole for e in of_key[:-1])
        self.metrics.update(
            tasks=len(index.submits) or tasks,
            executions=executions,
            tasks_reexecuted=repeated,
            retries=executions - tasks - rebuilt,
            rebuilds=rebuilt,
            actor_calls=calls,
            failed_attempts=sum(len(ops) for ops in index.attempts.values()),
            tasks_failed=len(index.failures),
        )

    def _measure_loss(self) -> None:
        cut = [e for e in self.hit.values() if e.end is None]
        # How long a program's tasks are to take, nobody knows: all that they did is lost.
        most = math.inf if self.index.of_program else 0.0
        lost = sum(min(e.nominal_s or most, max(0.0, self.effect_at - e.start)) for e in cut)
        self.metrics["tasks_cut_off"] = sum(e.actor is None for e in cut)
        self.metrics["work_seconds_lost"] = round(lost, 6)
        rejoined = self.seen.get("rejoined")
        assert self.fault is not None
        heal = self.fault.heal
        if heal is None:
            asked = [
                op
                for op in self.index.all("node.asked")
                if op.node == self.victim and self.index.at(op) >= self.injected_at
            ]
            heal = asked[0] if asked else None
        self.metrics["restart_to_rejoin_s"] = (
            round(rejoined.when - self.index.at(heal), 6) if rejoined and heal else None
        )
