"""What it cost that a node was lost: work that was done again, what failed for good, and how long its place was empty.

The same figures for every way of dying, so that a machine that is killed without a word, one that is shut down
in an orderly way and one that is taken back after a notice can be held side by side. A loss is a node that ended
because of a fault, between its injection and its healing; that is the engine's word. What is not known is
None, and `Loss.why` says why. docs/reference/anatomy.md defines each figure.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import DOWNING_FAULTS, SLACK, Execution, FaultRecord, Index, index_of
from simulator.history import Op
from simulator.innode.supervisor import RAYLET_LEFT

#: Exit code of PID 1: 128 + SIGKILL.
SIGKILLED = 137

#: The figures that rest on what ran where, by their names in `Loss.to_data`.
_COUNTED = (
    "tasks_cut_off", "calls_cut_off", "tasks_repeated", "work_seconds_repeated",
    "tasks_started_after_notice",
)  # fmt: skip

#: So many tasks are named in a sentence.
NAMED = 3


@dataclass(frozen=True, slots=True)
class Moment:
    """When something was seen, and the operation that it rests on."""

    when: float
    op: Op
    note: str = ""


@dataclass(slots=True)
class Loss:
    """One node that was lost.

    Attributes
    ----------
    way
        How it died: the fault's name, and whether Ray was told before.
    injected, gone
        When the fault began, and when the node had ended.
    notice_s
        How long before it was announced; None where it was not.
    told
        When Ray was told, and was seen to drain the node.
    drained
        When no task was left on it, if that was before it was gone.
    killed
        SIGKILL at its time; None where it ended otherwise.
    dead, replaced
        When Ray declared it dead, and when its group had as many nodes as before.
    cut, lost
        What was under way when it was gone; what had been done there and was done again, since its output was lost.
    late_starts
        Tasks that began on it after Ray was told.
    why
        Why something is None, by its name in `to_data`.
    """

    fault: FaultRecord
    node: str
    group: str | None
    way: str
    injected: float
    gone: Moment
    notice_s: float | None = None
    told: Moment | None = None
    drained: Moment | None = None
    killed: Moment | None = None
    dead: Moment | None = None
    replaced: Moment | None = None
    cut: Sequence[Execution] = ()
    lost: Sequence[Execution] = ()
    again: frozenset[str] = frozenset()
    late_starts: Sequence[Execution] = ()
    busy_when_told: bool = False
    tasks_failed: int | None = None
    calls_failed: int | None = None
    attempts_failed: int | None = None
    counted: bool = True
    why: dict[str, str] = field(default_factory=dict)
    _most: float = 0.0

    @property
    def tasks_cut(self) -> list[Execution]:
        return [e for e in self.cut if e.actor is None]

    def ran(self, execution: Execution) -> float:
        """Work-seconds of an execution that counted for nothing."""
        end = self.gone.when if execution.end is None else execution.end
        return min(execution.nominal_s or self._most, max(0.0, end - execution.start))

    @property
    def repeated_s(self) -> float | None:
        """Work-seconds that were lost with the node, and had to be done again."""
        if not self.counted:
            return None
        return sum(map(self.ran, (*self.cut, *self.lost)))

    @property
    def idle_s(self) -> float | None:
        """How long it stood there, drained, before it was taken."""
        return None if self.drained is None else max(0.0, self.gone.when - self.drained.when)

    @property
    def without_s(self) -> float | None:
        """How long its place was empty."""
        if self.replaced is None:
            return None
        return max(0.0, self.replaced.when - self.gone.when)

    def since(self, moment: Moment | None) -> float | None:
        """Seconds since the injection."""
        return None if moment is None else round(max(0.0, moment.when - self.injected), 6)

    def to_data(self, zero: float) -> dict[str, Any]:
        """For result.json; `zero` is when the work began, by the orchestrator's clock."""

        def counted(value: int) -> int | None:
            return value if self.counted else None

        def rounded(value: float | None) -> float | None:
            return None if value is None else round(value, 6)

        ops = (self.gone, self.told, self.drained, self.killed, self.dead, self.replaced)
        inject = self.fault.inject
        return {
            "id": self.fault.id,
            "fault": self.fault.fault,
            "way": self.way,
            "node": self.node,
            "group": self.group,
            "at_s": round(self.injected - zero, 6),
            "notice_s": self.notice_s,
            "told_s": self.since(self.told),
            "drained_s": self.since(self.drained),
            "killed_s": self.since(self.killed),
            "gone_s": self.since(self.gone),
            "dead_s": self.since(self.dead),
            "replaced_s": self.since(self.replaced),
            "idle_s": rounded(self.idle_s),
            "without_s": rounded(self.without_s),
            "tasks_cut_off": counted(len(self.tasks_cut)),
            "calls_cut_off": counted(len(self.cut) - len(self.tasks_cut)),
            "tasks_repeated": counted(len(self.again)),
            "work_seconds_repeated": rounded(self.repeated_s),
            "tasks_started_after_notice": None
            if self.told is None
            else counted(len(self.late_starts)),
            "tasks_failed": self.tasks_failed,
            "calls_failed": self.calls_failed,
            "attempts_failed": self.attempts_failed,
            "why": dict(self.why),
            "cites": sorted(
                {m.op.index for m in ops if m is not None} | ({inject.index} if inject else set())
            ),
        }


def losses_of(view: RunView) -> Sequence[Loss]:
    """Every node that was lost by a fault, in the order of the injections."""
    return view.once("losses", lambda v: _Losses(v).found)


def loss_facts(view: RunView) -> list[dict[str, Any]]:
    """The losses as result.json has them; nothing where no node was lost."""
    index = index_of(view)
    begun = index.first("driver.start") or index.first("program.start")
    found = losses_of(view)
    if not found:
        return []
    zero = index.at(begun) if begun is not None else found[0].injected
    return [loss.to_data(zero) for loss in found]


class _Losses:
    def __init__(self, view: RunView) -> None:
        self.index: Index = index_of(view)
        self.gaps = gaps_of(view)
        self.groups = self.index.groups
        self.most = math.inf if self.index.of_program else 0.0
        self.deaths = [op for op in self.index.engine_ops if op.kind == "engine.die"]
        self.crowd = _Crowd(self.index, self.groups)
        by_death: dict[int, Loss] = {}
        for fault in self.index.injected():
            gone = self._gone(fault)
            if gone is None:
                continue
            before = by_death.get(gone.op.index)
            # One that means to end its node is why it ended.
            if before is None or (
                fault.fault in DOWNING_FAULTS and before.fault.fault not in DOWNING_FAULTS
            ):
                by_death[gone.op.index] = self._loss(fault, gone)
        self.found = sorted(by_death.values(), key=lambda loss: loss.injected)
        for loss in self.found:
            self._measure(loss)

    def _gone(self, fault: FaultRecord) -> Moment | None:
        """The end of its node between its injection and its healing."""
        if fault.inject is None or fault.node not in self.groups:
            return None  # a head, or what is no node: nothing comes in its place but itself
        at = self.index.at
        begin = at(fault.inject) - SLACK - self.index.history.uncertainty(*self.deaths[:1])
        until = math.inf if fault.heal is None else at(fault.heal)
        for op in self.deaths:
            if op.node == fault.node and begin <= at(op) <= until:
                return Moment(at(op), op)
        return None

    def _loss(self, fault: FaultRecord, gone: Moment) -> Loss:
        assert fault.inject is not None
        assert fault.node is not None
        loss = Loss(
            fault,
            fault.node,
            self.groups.get(fault.node),
            way_of(fault),
            self.index.at(fault.inject),
            gone,
            _most=self.most,
        )
        if fault.notice is not None:
            loss.notice_s = float(fault.notice.data.get("seconds") or 0.0)
        return loss

    def _measure(self, loss: Loss) -> None:
        index, node = self.index, loss.node
        began = map(index.at, index.engine_starts(node))
        life = max((when for when in began if when < loss.gone.when), default=-math.inf)
        here = [e for e in index.executions_on(node) if life <= e.start <= loss.gone.when + SLACK]
        gaps = self.gaps.attempts if index.of_program else self.gaps.ledger
        if gaps:
            loss.counted = False
            loss.why.update(dict.fromkeys(_COUNTED, gaps[0]))
        loss.cut = [e for e in here if e.end is None and self._under_way(e, loss)]
        loss.lost = self._lost(here, loss)
        ran_later = {
            e.key
            for e in (*loss.cut, *loss.lost)
            if any(a.start > e.start for a in index.executions[e.key]) and e.actor is None
        }
        loss.again = frozenset(ran_later)
        self._told(loss, here)
        self._failures(loss, here)
        self._ends(loss)

    def _under_way(self, execution: Execution, loss: Loss) -> bool:
        # Of a program's attempt it is known when its owner learned that it was cut off.
        over = execution.cut_off
        return over is None or over >= loss.injected - SLACK

    def _lost(self, here: Sequence[Execution], loss: Loss) -> list[Execution]:
        """Executions that were whole, and whose work was done again once the node was gone."""
        found = []
        for execution in here:
            of_key = self.index.executions[execution.key]
            if execution.end is None or not execution.whole or len(of_key) < 2:
                continue
            for before, again in pairwise(of_key):
                if before is execution and again.start >= loss.gone.when - SLACK:
                    found.append(execution)
        return found

    def _told(self, loss: Loss, here: Sequence[Execution]) -> None:
        """The notice, and what came of it."""
        notice = loss.fault.notice
        if notice is None:
            loss.why.update(
                dict.fromkeys(
                    ("notice_s", "told_s", "drained_s", "idle_s"), "it came without a notice"
                )
            )
            loss.why["tasks_started_after_notice"] = loss.why["told_s"]
            return
        tasks = [e for e in here if e.actor is None]
        said = str(notice.data.get("how", ""))
        if loss.fault.drains is None:
            reason = "nobody told Ray" if notice.data.get("verified") else f"not seen: {said}"
            for name in ("told_s", "drained_s", "idle_s", "tasks_started_after_notice"):
                loss.why[name] = reason
            loss.busy_when_told = any(e.running_at(loss.injected) for e in tasks)
            return
        told = loss.told = Moment(self.index.at(notice), notice, said)
        loss.busy_when_told = any(e.running_at(loss.injected) for e in tasks)
        loss.late_starts = [e for e in tasks if e.start > told.when + SLACK]
        if loss.tasks_cut:
            names = _some([e.key for e in loss.tasks_cut])
            loss.why["drained_s"] = f"not seen: {names} still under way when it was taken"
        elif not loss.counted:
            loss.why["drained_s"] = loss.why["tasks_cut_off"]
        else:
            last = max(
                (e for e in tasks if e.end is not None), key=lambda e: e.end or 0.0, default=None
            )
            if last is None or last.end_op is None or (last.end or 0.0) <= told.when:
                loss.drained = Moment(told.when, notice, "no task was on it then")
            else:
                loss.drained = Moment(last.end or 0.0, last.end_op, f"{last.key} was the last")
        if loss.drained is None:
            loss.why["idle_s"] = loss.why["drained_s"]

    def _failures(self, loss: Loss, here: Sequence[Execution]) -> None:
        """What failed for good, and how many attempts Ray has as failed."""
        index = self.index
        if index.of_program:
            cut = [e for e in here if e.cut_off is not None and self._under_way(e, loss)]
            for_good = [e for e in cut if e is index.executions[e.key][-1]]
            loss.tasks_failed = sum(e.actor is None for e in for_good)
            loss.calls_failed = len(for_good) - loss.tasks_failed
            loss.attempts_failed = len(cut)
        else:
            loss.tasks_failed = self._for_good(loss, index.failures)
            loss.calls_failed = self._for_good(loss, index.actor_failures)
            until = self._next(loss)
            loss.attempts_failed = sum(
                op.node == loss.node and loss.injected - SLACK <= index.at(op) < until
                for ops in index.attempts.values()
                for op in ops
            )
        open_end = self.gaps.driver or (
            [] if index.of_program or index.last("driver.end") else ["the driver did not finish"]
        )
        if open_end:
            loss.tasks_failed = loss.calls_failed = None
            loss.why["tasks_failed"] = loss.why["calls_failed"] = open_end[0]
        if self.gaps.attempts:
            loss.attempts_failed = None
            loss.why["attempts_failed"] = self.gaps.attempts[0]

    def _next(self, loss: Loss) -> float:
        """When the next node was lost."""
        later = [o.injected for o in self.found if o.injected > loss.injected]
        return min(later, default=math.inf)

    def _for_good(self, loss: Loss, failures: Mapping[str, Op]) -> int:
        index, until = self.index, self._next(loss)
        count = 0
        for key, op in failures.items():
            of_key = index.executions.get(key)
            if of_key:
                last = of_key[-1]
                count += any(last is e for e in loss.cut)
            else:  # it never began; whose fault that was, only the time tells
                count += loss.injected - SLACK <= index.at(op) < until
        return count

    def _ends(self, loss: Loss) -> None:
        """Killed, declared dead, replaced."""
        index, strike = self.index, loss.fault.strike
        code = loss.gone.op.data.get("exit_code")
        if code == SIGKILLED:
            after = f"{loss.gone.when - index.at(strike):.2f} s after its time" if strike else ""
            loss.killed = Moment(loss.gone.when, loss.gone.op, after)
        elif code == RAYLET_LEFT:
            loss.gone = Moment(loss.gone.when, loss.gone.op, "left by itself, having nothing to do")
            loss.why["killed_s"] = "not seen: it had left by itself before"
        else:
            loss.why["killed_s"] = f"not seen: it ended with exit code {code}"
        death = index.death(loss.node, loss.injected)
        if death is None:
            loss.why["dead_s"] = "not seen: Ray did not declare it dead"
        else:
            said = str(death.data.get("message") or death.data.get("reason") or "")
            loss.dead = Moment(index.at(death), death, said)
        loss.replaced = self.crowd.whole_again(loss)
        if loss.replaced is None:
            reason = "not seen: its group never had as many nodes again"
            loss.why["replaced_s"] = loss.why["without_s"] = reason


def way_of(fault: FaultRecord) -> str:
    """How a fault ends its node, in words that tell one way from another."""
    if fault.fault != "preempt":
        return fault.fault
    return "preempt, not told" if fault.drains is None else "preempt, drained"


class _Crowd:
    """How many nodes of each group were alive, over time: to the GCS, and running."""

    def __init__(self, index: Index, groups: Mapping[str, str]) -> None:
        self.steps: dict[str, list[tuple[float, int, Op]]] = {}
        self.index = index
        for node, ops in index.node_ops.items():
            group = groups.get(node)
            if group is None:
                continue
            for alive, over in self._lives(node, ops):
                steps = self.steps.setdefault(group, [])
                steps.append((index.at(alive), 1, alive))
                if over is not None:
                    steps.append((index.at(over), -1, over))
        for steps in self.steps.values():
            steps.sort(key=lambda step: (step[0], -step[1]))

    def _lives(self, node: str, ops: Sequence[Op]) -> Iterator[tuple[Op, Op | None]]:
        at = self.index.at
        for alive in ops:
            if alive.data.get("state") != "ALIVE":
                continue
            ends = [
                op
                for op in ops
                if op.data.get("state") == "DEAD"
                and op.data.get("ray_node_id") == alive.data.get("ray_node_id")
            ]
            ends += [
                op
                for op in self.index.engine_ops
                if op.kind == "engine.die" and op.node == node and at(op) > at(alive)
            ]
            yield alive, min(ends, key=at, default=None)

    def whole_again(self, loss: Loss) -> Moment | None:
        """When, after the loss, the group had as many nodes as when the fault began."""
        steps = self.steps.get(loss.group or "", [])
        before = sum(change for when, change, _ in steps if when <= loss.injected)
        count = 0
        for when, change, op in steps:
            count += change
            if when > loss.gone.when and change > 0 and count >= before:
                return Moment(when, op, op.node or "")
        return None


def _some(keys: Sequence[str]) -> str:
    shown = ", ".join(keys[:NAMED])
    if len(keys) > NAMED:
        shown += f" and {len(keys) - NAMED} more"
    return f"{shown} {'was' if len(keys) == 1 else 'were'}"


def check_drained_in_time(view: RunView) -> Finding:
    """No task was left on a node whose preemption Ray was told of, when it was taken."""
    name = "drained_in_time"
    index = index_of(view)
    announced = [f for f in index.injected() if f.notice is not None]
    told = [loss for loss in losses_of(view) if loss.told is not None]
    cites = sorted({i for loss in told for i in loss.to_data(0.0)["cites"]})
    late = [loss for loss in told if loss.tasks_cut]
    if late:
        details = [
            f"{loss.node}, {loss.notice_s:g} s after its notice: {e.key}, which had run for {loss.ran(e):.1f} s"
            for loss in late
            for e in loss.tasks_cut
        ]
        first = late[0]
        text = (
            f"{_some([e.key for e in first.tasks_cut])} still under way on {first.node} when it was taken, "
            f"{first.notice_s:g} s after its notice"
        )
        more = f" (and on {len(late) - 1} more)" if len(late) > 1 else ""
        starts = [e.start_op.index for loss in late for e in loss.tasks_cut[:20]]
        if any(not loss.counted for loss in late):
            lacks = f"{text}{more}, or so it seems: {late[0].why.get('tasks_cut_off', '')}"
            return Finding(name, Verdict.UNKNOWN, lacks, sorted({*cites, *starts}), details)
        return Finding(name, Verdict.INVALID, text + more, sorted({*cites, *starts}), details)
    if not announced:
        return Finding(name, Verdict.UNKNOWN, "no node was given a notice")
    if not told:
        why = "Ray was told of none of them, or nobody saw that it was, or none was taken"
        return Finding(name, Verdict.UNKNOWN, f"{len(announced)} had a notice, and {why}")
    unclear = [loss for loss in told if not loss.counted]
    if unclear:
        return Finding(name, Verdict.UNKNOWN, unclear[0].why["tasks_cut_off"], cites)
    busy = [loss for loss in told if loss.busy_when_told]
    if not busy:
        text = "no task was on any of them when its notice came, so there was nothing to drain"
        return Finding(name, Verdict.UNKNOWN, text, cites)
    details = [
        f"{loss.node}: drained after {loss.since(loss.drained):.1f} s, gone after {loss.since(loss.gone):.1f} s"
        + (f" ({loss.gone.note})" if loss.gone.note else "")
        for loss in told
        if loss.drained is not None
    ]
    slowest = max(loss.since(loss.drained) or 0.0 for loss in told)
    nodes = "the node" if len(told) == 1 else f"each of {len(told)} nodes"
    text = f"{nodes} that Ray was told of had no task left when it was taken: {slowest:.1f} s after the notice at most"
    metrics = {"told": len(told), "slowest_s": round(slowest, 6)}
    return Finding(name, Verdict.VALID, text, cites, details, metrics)
