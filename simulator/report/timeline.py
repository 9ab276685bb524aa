"""Who did what when, per node, read from the history for drawing.

The checks judge; this only places things on a time axis: every execution with its outcome, the
states of every node, every fault from its effect until its node was back, and how much useful
work the cluster did. Times are seconds from the moment when the work began (`Timeline.zero`).
"""

from __future__ import annotations

import math
import re
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from itertools import islice
from operator import itemgetter

from simulator.checkers import throughput
from simulator.checkers.anatomy import BACK, anatomy
from simulator.checkers.evidence import let_go
from simulator.checkers.index import DOWNING_FAULTS, Index, index_of
from simulator.history import History, Op
from simulator.report.run import Run, number

#: The most marks that a picture can still show.
MAX_MARKS = 500

#: When something happened, seconds from `Timeline.zero`.
At = Callable[[Op], float]


class Outcome(IntEnum):
    """How an execution ended; the numbers are part of the report's embedded data."""

    COMPLETED = 0
    AGAIN = 1  # completed, and it was not the first execution of this piece of work
    CUT = 2  # never ended, because its node or process went away
    FAILED = 3  # ended with an error
    OPEN = 4  # no END was recorded, and nothing says what became of it


OUTCOME_WORDS = {
    Outcome.COMPLETED: "completed",
    Outcome.AGAIN: "re-executed",
    Outcome.CUT: "cut off",
    Outcome.FAILED: "failed",
    Outcome.OPEN: "end not recorded",
}

#: What a fault did to its target, as a predicate; others are named as they are.
FAULT_WORDS = {
    "kill": "killed",
    "stop": "stopped",
    "restart": "restarted",
    "pause": "paused",
    "preempt": "preempted",
}


@dataclass(frozen=True, slots=True)
class Execution:
    """One execution of a task, or one call of an actor (then `call` is True).

    `attempt` counts from 1; `row` keeps executions that overlap on a node apart.
    """

    key: str
    node: str
    start: float
    end: float
    outcome: Outcome
    attempt: int
    call: bool
    row: int = 0


@dataclass(frozen=True, slots=True)
class Span:
    """A node's state for a while: starting, alive, paused, unnoticed, dead.

    Unnoticed: the engine says it is gone, Ray still holds it alive.
    """

    start: float
    end: float
    state: str


@dataclass(frozen=True, slots=True)
class FaultBand:
    """A fault from its effect (or its injection, if no effect was seen) until its node was back.

    `end` is None when it never came back.
    """

    fault_id: str
    fault: str
    target: str | None
    injected: float
    start: float
    end: float | None
    verified: bool
    hit: int


@dataclass(frozen=True, slots=True)
class Lane:
    """One node.

    `rows` is how many executions usually ran at once; those in higher rows are rare overlaps.
    """

    name: str
    role: str
    rows: int
    spans: Sequence[Span]


@dataclass(frozen=True, slots=True)
class Throughput:
    """Useful occupancy in bins of `step` seconds: task slots' worth of useful work going on.

    A finished execution contributes its nominal length divided by its real one, over its time.
    `before` is the level before the first fault, `goal` per bin 95 % of what the nodes that
    were there should give (None where no fault was yet); both None without a baseline.
    `window` is the width of the moving mean that the recovery was judged by; None without one.
    """

    start: float
    step: float
    values: Sequence[float]
    before: float | None
    goal: Sequence[float | None]
    window: float | None = None


@dataclass(frozen=True, slots=True)
class Mark:
    """A point that a program said it had come to."""

    name: str
    node: str
    at: float


@dataclass(frozen=True, slots=True)
class Timeline:
    """All of it; `zero` is seconds of the orchestrator's wall clock, the rest relative to it."""

    zero: float
    start: float
    end: float
    lanes: Sequence[Lane]
    executions: Sequence[Execution]
    faults: Sequence[FaultBand]
    throughput: Throughput
    marks: Sequence[Mark] = ()

    def count(self, outcome: Outcome, *, calls: bool = False) -> int:
        return sum(e.outcome is outcome and e.call == calls for e in self.executions)


def build_timeline(run: Run) -> Timeline:
    """Place everything that `run` recorded on a time axis."""
    history = run.history
    if not len(history):
        return Timeline(0.0, 0.0, 1.0, (), (), (), Throughput(0.0, 1.0, (), None, ()))
    zero = _zero(history)

    def at(op: Op) -> float:
        return history.at(op) - zero

    first, last = _extent(history, zero)
    index = index_of(run.view)
    executions = _executions(index, _deaths(history, at), at, zero, last)
    faults = _faults(index, at, executions)
    start, end = _domain(run, at, executions, faults, first, last)
    rows = _usual_rows(executions)
    events = _node_events(history)
    left = let_go(index)
    lanes = [
        Lane(
            name,
            role,
            rows.get(name, 1),
            _spans(
                events.get(name, ()),
                at,
                start,
                end,
                gone="gone" if name in left else "dead",
                of_ray=role != "store",
            ),
        )
        for name, role in nodes_of(history)
    ]
    return Timeline(
        zero=zero,
        start=start,
        end=end,
        lanes=lanes,
        executions=executions,
        faults=faults,
        throughput=_throughput(run, index, faults, zero, start, end),
        marks=[
            Mark(str(op.data["name"]), op.node or "?", at(op))
            for op in history.of("program.mark")[:MAX_MARKS]
        ],
    )


def _zero(history: History) -> float:
    begins = ("driver.start", "program.start", "task.start", "actor.start", "workload.submit")
    for kind in begins:
        began = history.first(kind)
        if began is not None:
            return history.at(began)
    return history.at(history.ops[0])


def _extent(history: History, zero: float) -> tuple[float, float]:
    """When the first and the last thing happened: each source's extremes, by its own clock."""
    earliest: dict[str, Op] = {}
    latest: dict[str, Op] = {}
    for op in history:
        source = op.source
        if source not in earliest:
            earliest[source] = latest[source] = op
        elif op.wall < earliest[source].wall:
            earliest[source] = op
        elif op.wall > latest[source].wall:
            latest[source] = op
    return (
        min(history.at(op) for op in earliest.values()) - zero,
        max(history.at(op) for op in latest.values()) - zero,
    )


def _domain(
    run: Run,
    at: At,
    executions: Sequence[Execution],
    faults: Sequence[FaultBand],
    first: float,
    last: float,
) -> tuple[float, float]:
    """From just before the work began until the last thing worth seeing; setup is left out."""
    moments = [e.end for e in executions]
    moments += [f.end if f.end is not None else f.start for f in faults]
    if faults:
        moments += [faults[0].injected + (p.seconds or 0.0) for p in run.seen]
    moments += [at(op) for op in run.history.of("workload.end", "program.end")]
    if not moments:
        return first, max(last, first + 1.0)
    end = min(max(moments), last) if last > 0 else max(moments)
    begin = min([0.0, *(e.start for e in executions)])
    margin = min(max(0.02 * (end - begin), 0.2), 2.0)
    return begin - margin, end + margin


_ORDER = {"head": 0, "driver": 1}


def nodes_of(history: History) -> list[tuple[str, str]]:
    """Name and role of every node, in the order in which reports show them: first the head, and the driver node."""
    roles: dict[str, str] = {}
    for op in history.of("cluster.nodes"):
        for node in op.data.get("nodes", ()):
            roles.setdefault(str(node.get("name")), str(node.get("role", "worker")))
    for op in history.of("task.start", "call.start", "ray.node", "engine."):
        if op.node:
            roles.setdefault(op.node, "head" if op.node == "head" else "worker")
    return sorted(roles.items(), key=lambda item: (_ORDER.get(item[1], 2), _natural(item[0])))


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(p), "") if p.isdigit() else (-1, p) for p in re.split(r"(\d+)", name)]


def _deaths(history: History, at: At) -> dict[str, list[float]]:
    """When each node is known to have gone away: everything running there was cut off."""
    found: dict[str, list[float]] = defaultdict(list)
    for op in history.of("engine.die", "fault.effect", "ray.node"):
        if op.node is None:
            continue
        if op.kind == "ray.node" and op.data.get("state") != "DEAD":
            continue
        if op.kind == "fault.effect" and op.data.get("fault") not in DOWNING_FAULTS:
            continue
        found[op.node].append(at(op))
    for times in found.values():
        times.sort()
    return found


def _executions(
    index: Index,
    deaths: dict[str, list[float]],
    at: At,
    zero: float,
    last: float,
) -> list[Execution]:
    found: list[tuple[float, float, str, str, Outcome, int, bool]] = []
    for key, of_key in index.executions.items():
        attempts = index.attempts.get(key)
        failures = sorted(at(op) for op in attempts) if attempts else ()
        for i, e in enumerate(of_key):
            start = e.start - zero
            if e.end is not None:
                end = max(start, e.end - zero)
                outcome = Outcome.AGAIN if i else Outcome.COMPLETED
                if not e.ok:
                    outcome = Outcome.FAILED
            else:
                gone = _next(deaths.get(e.node or "", ()), start)
                if gone is None:
                    gone = _next(failures, start)
                if gone is None and i + 1 < len(of_key):
                    gone = of_key[i + 1].start - zero
                if e.cut_off is not None:  # its own process may have died, long before its node
                    gone = min(e.cut_off - zero, math.inf if gone is None else gone)
                outcome = Outcome.OPEN if gone is None else Outcome.CUT
                end = max(start, last if gone is None else gone)
            # A program's actors are its own way of working, not something beside its tasks.
            node, call = e.node or "?", e.actor is not None and not index.of_program
            found.append((start, end, key, node, outcome, i + 1, call))
    found.sort(key=itemgetter(0))
    return _packed(found)


def _next(times: Sequence[float], after: float) -> float | None:
    position = bisect_left(times, after)
    return times[position] if position < len(times) else None


def _faults(index: Index, at: At, executions: Sequence[Execution]) -> list[FaultBand]:
    tasks = [e for e in executions if not e.call]
    bands = []
    for record in index.faults.values():
        began = record.inject or record.effect
        if began is None:
            continue
        injected = at(began)
        effect, healed = record.effect, record.healed
        start = injected if effect is None else at(effect)
        end = None if healed is None else at(healed)
        of_ray = (
            record.node not in index.stores
        )  # Ray takes no store back: it is whole when it is healed
        if record.node is not None and of_ray and index.downs_node(record):
            rejoined = index.rejoin(record.node, index.at(effect or began))
            end = None if rejoined is None else at(rejoined)
        hit = sum(
            e.node == record.node
            and e.start <= start
            and (e.end >= injected if e.outcome is Outcome.CUT else e.end > start)
            for e in tasks
        )
        bands.append(
            FaultBand(
                record.id,
                record.fault or "fault",
                record.node,
                injected,
                start,
                end,
                record.took_effect,
                hit,
            )
        )
    return sorted(bands, key=lambda band: band.injected)


def _node_events(history: History) -> dict[str, list[Op]]:
    """Per node, what says something of its state; a fault's effect where no engine reported."""
    found: dict[str, list[Op]] = defaultdict(list)
    effects: dict[str, list[Op]] = defaultdict(list)
    for op in history.of("engine.", "ray.node", "fault.effect"):
        if op.node is not None:
            (effects if op.kind == "fault.effect" else found)[op.node].append(op)
    for node, ops in effects.items():
        if not any(op.kind.startswith("engine.") for op in found[node]):
            found[node] += ops
    return found


def _spans(
    events: Iterable[Op],
    at: At,
    start: float,
    end: float,
    gone: str = "dead",
    *,
    of_ray: bool = True,
) -> list[Span]:
    """The node's states within the domain, from the engine's events and Ray's belief.

    Parameters
    ----------
    gone
        What a node is that is down and is not believed to be there.
    of_ray
        Whether Ray has a belief about it: a store lives as long as it runs.
    """
    process: bool | None = None
    paused = declared_dead = False
    starts = 0
    #: Ray's ids that it holds alive, with the start of the node that each belongs to: after a
    #: restart Ray may hold the old one alive for a while, which says nothing of the new one.
    alive: dict[str, int] = {}
    spans: list[Span] = []
    since, state = start, ""
    for op in sorted(events, key=at):
        fault = op.data.get("fault")
        if op.kind == "engine.start":
            process, paused, declared_dead = True, False, False
            starts += 1
        elif op.kind == "engine.die" or fault in DOWNING_FAULTS:
            process, paused = False, False
        elif op.kind == "engine.pause" or fault == "pause":
            paused = True
        elif op.kind == "engine.unpause":
            paused = False
        elif op.kind == "ray.node":
            ray_node = str(op.data.get("ray_node_id"))
            if op.data.get("state") == "ALIVE":
                alive[ray_node] = starts
                declared_dead = False
            elif alive.pop(ray_node, starts) == starts:
                declared_dead = True
        believed = starts in alive.values() if of_ray else process is not False
        now = _state(process, paused, believed, declared_dead)
        if now != state:
            moment = min(max(at(op), start), end)
            if state and moment > since:
                spans.append(Span(since, moment, gone if state == "dead" else state))
            since, state = moment, now
    if state and end > since:
        spans.append(Span(since, end, gone if state == "dead" else state))
    return spans


def _state(process: bool | None, paused: bool, ray: bool, declared_dead: bool) -> str:
    if paused:
        return "paused"
    if process is False:
        return "unnoticed" if ray else "dead"
    if ray:
        return "alive"
    return "dead" if declared_dead else "starting"


def _packed(
    found: Iterable[tuple[float, float, str, str, Outcome, int, bool]],
) -> list[Execution]:
    """Sorted by node and row, each in the first row of its node that is free: none overlap."""
    rows: dict[tuple[str, bool], list[float]] = defaultdict(list)
    placed: list[Execution] = []
    for start, end, key, node, outcome, attempt, call in found:
        free = rows[node, call]
        for row, until in enumerate(free):
            if until <= start:
                free[row] = end
                break
        else:
            row = len(free)
            free.append(end)
        placed.append(Execution(key, node, start, end, outcome, attempt, call, row))
    placed.sort(key=lambda e: (e.node, e.call, e.row, e.start))
    return placed


def _usual_rows(executions: Iterable[Execution]) -> dict[str, int]:
    """Per node, how many rows hold at least a twentieth of what its first row holds."""
    busy: dict[str, dict[int, float]] = defaultdict(lambda: defaultdict(float))
    for e in executions:
        if not e.call:
            busy[e.node][e.row] += e.end - e.start
    return {
        node: max(row + 1 for row, time in rows.items() if time >= rows[0] / 20)
        for node, rows in busy.items()
    }


def _throughput(
    run: Run, index: Index, faults: Sequence[FaultBand], zero: float, start: float, end: float
) -> Throughput:
    """The curve and its levels, by the same functions that judged the recovery."""
    step = _nice((end - start) / 4000)
    count = max(1, int((end - start) / step + 0.999))
    values = _bins(_useful(index), zero + start, step, count)
    recovery = anatomy(run.view)
    window = number(recovery.metrics.get("throughput_window_s"))
    before = number(recovery.metrics.get("baseline_total"))
    surviving = number(recovery.metrics.get("baseline_surviving"))
    fault = next((f for f in faults if f.fault_id == recovery.fault), None)
    if fault is None or before is None or surviving is None:
        return Throughput(start, step, values, None, [None] * count, window)
    goal: list[float | None] = []
    for i in range(count):
        moment = start + (i + 0.5) * step
        if moment < fault.start:
            goal.append(None)
        else:
            back = fault.end is not None and moment >= fault.end
            goal.append(BACK * (before if back else surviving))
    return Throughput(start, step, values, before, goal, window)


def _useful(index: Index) -> throughput.Curve:
    """Work that counted; of a program's, whose lengths nobody knows, all that was finished."""
    if not index.of_program:
        return throughput.finished(index.tasks())
    done = (e for e in index.all_executions() if e.ok and e.end is not None)
    return throughput.Curve((e.start, e.end, 1.0) for e in done if e.end is not None)


def _nice(width: float) -> float:
    """The next width of 1, 2 or 5 times a power of ten; never under 0.1 s."""
    return next(w for e in range(-1, 9) for f in (1, 2, 5) if (w := f * 10.0**e) >= width)


def _bins(curve: throughput.Curve, start: float, step: float, count: int) -> list[float]:
    """Exact means of a step function per bin, in one pass over it."""
    work = [0.0] * count
    for since, until, rate in zip(
        curve.times, islice(curve.times, 1, None), curve.rates, strict=False
    ):
        i = max(0, int((since - start) / step))
        if i < count and until <= start + (i + 1) * step and since >= start:
            work[i] += rate * (until - since)
            continue
        while i < count and start + i * step < until:
            low, high = start + i * step, start + (i + 1) * step
            work[i] += rate * max(0.0, min(until, high) - max(since, low))
            i += 1
    return [round(max(0.0, w) / step, 4) for w in work]
