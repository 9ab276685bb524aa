"""One pass over a history that brings together what belongs together.

Every check and the recovery anatomy ask the same questions: what ran where and from when to when,
what was asked for and what came back, which fault did what to which node. This module answers them
once, for histories of a million operations, and keeps the operations themselves at hand so that a
finding can cite what it rests on. All times are seconds of the orchestrator's wall clock, as
`History.at` gives them.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from simulator.checkers.base import RunView
from simulator.history import History, Op

#: What two clocks that were measured against each other may still differ by: rounding of the
#: history's times (microseconds) and of Ray's own records (milliseconds). Seconds.
SLACK = 0.005

#: An answer that was on its way when its node went down was written to the ledger no longer than
#: this before. Seconds.
IN_TRANSIT = 1.0

#: Faults whose very purpose is that the node's processes end.
DOWNING_FAULTS = frozenset({"kill", "stop", "restart", "preempt"})


#: The operations about a fault that are kept.
_PARTS = frozenset(
    {"plan", "inject", "done", "notice", "strike", "effect", "skipped", "heal", "healed"}
)

#: Exit codes of a node that left as it was told to: PID 1 was told to stop, or its raylet was drained.
LEFT = frozenset({0, 12})


@dataclass(slots=True)
class Execution:
    """One execution of a piece of work: its START, and its END if there is one.

    Attributes
    ----------
    actor
        Name of the actor if it is an actor call, else None (a task).
    nominal_s
        How long the work holds its slot by its own account, seconds; 0 where it says nothing.
    start, end
        Orchestrator's seconds; `end` is None while, or if never, ended.
    ok
        False when the work itself raised.
    cut_off
        When its owner learned that it had been cut off, where nobody saw its end; only of a program's work.
    """

    exec: str
    key: str
    fn: str
    node: str | None
    start: float
    start_op: Op
    nominal_s: float = 0.0
    actor: str | None = None
    end: float | None = None
    end_op: Op | None = None
    ok: bool = False
    cut_off: float | None = None

    @property
    def whole(self) -> bool:
        """START and END on the same node, and the work did not raise."""
        return self.end_op is not None and self.ok and self.end_op.node == self.node

    @property
    def pace(self) -> float:
        """Nominal work-seconds done per second while it ran; 0 unless it finished."""
        if self.end is None or self.end <= self.start or self.nominal_s <= 0:
            return 0.0
        return self.nominal_s / (self.end - self.start)

    def running_at(self, when: float) -> bool:
        """Had it started and not ended at that time?"""
        over = self.cut_off if self.end is None else self.end
        return self.start <= when and (over is None or over > when)


@dataclass(slots=True)
class FaultRecord:
    """All that the history says of one fault; each attribute is its operation, or None."""

    id: str
    fault: str = ""
    node: str | None = None
    plan: Op | None = None
    inject: Op | None = None
    done: Op | None = None
    notice: Op | None = None
    strike: Op | None = None
    effect: Op | None = None
    skipped: Op | None = None
    heal: Op | None = None
    healed: Op | None = None

    @property
    def announced(self) -> bool:
        """Whether its node was to be told before it was struck."""
        return self.notice is not None

    @property
    def drains(self) -> Op | None:
        """With which Ray was seen to drain the node, whose machine will go; None if it was not told, or not seen to."""
        asked: Mapping[str, Any] = {} if self.plan is None else self.plan.data.get("parameters", {})
        op = self.notice if self.fault == "preempt" else self.effect
        told = self.fault == "drain" or (self.fault == "preempt" and bool(asked.get("drain", True)))
        return op if told and op is not None and op.data.get("verified") else None

    @property
    def took_effect(self) -> bool:
        return self.effect is not None and bool(self.effect.data.get("verified"))


@dataclass(frozen=True, slots=True)
class Down:
    """A node stopped working: surely not before `begin`, surely by `sure`."""

    node: str
    begin: float
    sure: float
    ops: tuple[Op, ...]

    def hit(self, execution: Execution) -> bool:
        """Was the execution on this node under way when it went down?"""
        return (
            execution.node == self.node
            and execution.start <= self.sure + SLACK
            and (execution.end is None or execution.end >= self.sure - SLACK)
        )


@dataclass(slots=True)
class LedgerFile:
    """How many lines of one ledger file stand in the history, and what is odd about their order."""

    name: str
    lines: int = 0
    next: int = 1
    missing: list[int] = field(default_factory=list)
    repeated: list[int] = field(default_factory=list)

    @property
    def of_driver(self) -> bool:
        """Written by the workload's driver, not by its tasks and actors?"""
        return self.name.rpartition("/")[2].startswith("driver")


#: Ray's words for an attempt that ended as the program had it: all others were cut off from outside.
OF_THE_PROGRAM = frozenset({"TASK_EXECUTION_EXCEPTION", "TASK_CANCELLED", "ACTOR_CREATION_FAILED"})


class Index:
    """What happened, by key, execution, node, actor, object and fault.

    What ran comes from the effect ledger; of a program of the user's, whose tasks write nothing to it, from
    Ray's records of their attempts.

    Attributes
    ----------
    executions
        Per key, in the order of their starts; tasks and actor calls alike.
    submits, calls, results, failures, actor_results, actor_failures
        Per key, the driver's first line of that kind (`calls` are ``driver.actor_call``).
    again
        Lines of the driver that answer a key for the second time.
    ends_without_start, started_twice, ended_twice
        Ledger lines that do not fit together.
    attempts
        Per key, the attempts that Ray reports as failed.
    objects, objects_back
        Per kept object, where its copies were, and when a consumer of it succeeded.
    node_ops, actor_ops
        ``ray.node`` per node and ``ray.actor`` per actor id, as the observer saw them.
    faults
        Per id, in the order of their first operation.
    """

    def __init__(self, history: History, spec: Mapping[str, Any]) -> None:
        self.history, self.spec = history, spec
        self.executions: dict[str, list[Execution]] = {}
        self.submits: dict[str, Op] = {}
        self.calls: dict[str, Op] = {}
        self.results: dict[str, Op] = {}
        self.failures: dict[str, Op] = {}
        self.actor_results: dict[str, Op] = {}
        self.actor_failures: dict[str, Op] = {}
        self.again: list[Op] = []
        self.ends_without_start: list[Op] = []
        self.started_twice: list[Op] = []
        self.ended_twice: list[Op] = []
        self.attempts: dict[str, list[Op]] = {}
        self.objects: dict[str, list[Op]] = {}
        self.objects_back: dict[str, list[Op]] = {}
        self.node_ops: dict[str, list[Op]] = {}
        self.actor_ops: dict[str, list[Op]] = {}
        self.engine_ops: list[Op] = []
        self.faults: dict[str, FaultRecord] = {}
        self.files: dict[str, LedgerFile] = {}
        self.beats: list[Op] = []
        self.others: dict[str, list[Op]] = {}
        self.observer_poll_s = 0.0
        self._downs: dict[str, list[Down]] | None = None
        self._read(history)

    # Building

    def _read(self, history: History) -> None:
        offsets = self._ahead = {source: o.offset for source, o in history.offsets.items()}
        by_exec: dict[str, Execution] = {}
        early_ends: dict[str, Op] = {}
        executions, files = self.executions, self.files
        handlers: dict[str, Callable[[Op], None]] = {
            "driver.submit": self._first(self.submits),
            "driver.result": self._first(self.results),
            "driver.failure": self._first(self.failures),
            "driver.actor_call": self._first(self.calls),
            "driver.actor_result": self._first(self.actor_results),
            "driver.actor_failure": self._first(self.actor_failures),
            "driver.object": self._grouped(self.objects, "object"),
            "driver.object_back": self._grouped(self.objects_back, "object"),
            "attempt.failed": self._grouped(self.attempts, "key"),
            "ray.actor": self._grouped(self.actor_ops, "actor_id"),
            "ray.node": self._ray_node,
            "program.attempt": self._attempt,
            "observer.beat": self.beats.append,
        }
        for op in history.ops:
            kind, data = op.kind, op.data
            name = data.get("file")
            if name is not None:
                file = files.get(name)
                if file is None:
                    file = files[name] = LedgerFile(name)
                _count(file, data.get("line"))
            if kind == "task.start" or kind == "call.start":
                identity = data["exec"]
                if identity in by_exec:
                    self.started_twice.append(op)
                    continue
                execution = Execution(
                    identity,
                    data["key"],
                    data.get("fn", ""),
                    op.node,
                    op.wall - offsets.get(op.source, 0.0),
                    op,
                    data.get("nominal_s") or 0.0,
                    data.get("actor"),
                )
                by_exec[identity] = execution
                of_key = executions.get(execution.key)
                if of_key is None:
                    executions[execution.key] = [execution]
                else:
                    of_key.append(execution)
                if early_ends and identity in early_ends:
                    end = early_ends.pop(identity)
                    self._end(execution, end, end.wall - offsets.get(end.source, 0.0))
            elif kind == "task.end" or kind == "call.end":
                started = by_exec.get(data["exec"])
                if started is not None:
                    self._end(started, op, op.wall - offsets.get(op.source, 0.0))
                elif data["exec"] in early_ends:
                    self.ended_twice.append(op)
                else:
                    early_ends[data["exec"]] = op
            else:
                handler = handlers.get(kind)
                if handler is not None:
                    handler(op)
                elif kind.startswith("fault."):
                    self._fault(op)
                elif kind.startswith("engine."):
                    self.engine_ops.append(op)
                else:
                    self.others.setdefault(kind, []).append(op)
        self.ends_without_start = list(early_ends.values())
        for of_key in executions.values():
            if len(of_key) > 1:
                of_key.sort(key=lambda e: e.start)
        start = self.first("observer.start")
        if start is not None:
            self.observer_poll_s = float(start.data.get("poll_s") or 0.0)

    def _attempt(self, op: Op) -> None:
        """An attempt of a program's task, as Ray remembers it; where and when it ran must be known."""
        data, ahead = op.data, self._ahead.get(op.source, 0.0)
        start = data["started"] if data["started"] is not None else data["sent"]
        if op.node is None or start is None:
            return
        execution = Execution(
            f"{data['task_id']}:{data['attempt']}",
            data["key"],
            data["name"],
            op.node,
            start - ahead,
            op,
            actor=None if data["type"] == "NORMAL_TASK" else data["actor_id"],
        )
        ended = None if data["ended"] is None else data["ended"] - ahead
        failed = data["state"] == "FAILED"
        if failed and data["error_type"] not in OF_THE_PROGRAM:
            execution.cut_off = ended
        elif failed or data["state"] == "FINISHED":
            execution.end, execution.end_op, execution.ok = ended, op, not failed
        self.executions.setdefault(execution.key, []).append(execution)

    def _end(self, execution: Execution, op: Op, when: float) -> None:
        if execution.end_op is not None:
            self.ended_twice.append(op)
            return
        execution.end_op, execution.end = op, when
        # A call's END is written only when its method returned.
        execution.ok = bool(op.data.get("ok", True))

    def _first(self, into: dict[str, Op]) -> Callable[[Op], None]:
        def keep(op: Op) -> None:
            key = op.data["key"]
            if key in into:
                self.again.append(op)
            else:
                into[key] = op

        return keep

    @staticmethod
    def _grouped(into: dict[str, list[Op]], name: str) -> Callable[[Op], None]:
        def keep(op: Op) -> None:
            into.setdefault(str(op.data.get(name)), []).append(op)

        return keep

    def _ray_node(self, op: Op) -> None:
        if op.node is not None:
            self.node_ops.setdefault(op.node, []).append(op)

    def _fault(self, op: Op) -> None:
        identity = str(op.data.get("id"))
        record = self.faults.setdefault(identity, FaultRecord(identity))
        record.fault = record.fault or str(op.data.get("fault", ""))
        part = op.kind.removeprefix("fault.")
        # The plan may name a target that is resolved only at the injection.
        if part == "inject" or record.node is None:
            record.node = op.node or record.node
        if part in _PARTS:
            before = getattr(record, part)
            # A second try that was verified outranks a first one that was not.
            if before is None or (op.data.get("verified") and not before.data.get("verified")):
                setattr(record, part, op)

    # Asking

    def at(self, op: Op) -> float:
        """When it happened, orchestrator's seconds."""
        return self.history.at(op)

    def all(self, kind: str) -> list[Op]:
        """Operations of a kind that has no attribute of its own (``run.end``, ``steady``, ...)."""
        return self.others.get(kind, [])

    def first(self, kind: str) -> Op | None:
        return next(iter(self.all(kind)), None)

    def last(self, kind: str) -> Op | None:
        return self.all(kind)[-1] if self.all(kind) else None

    def all_executions(self) -> Iterator[Execution]:
        for of_key in self.executions.values():
            yield from of_key

    @property
    def of_program(self) -> bool:
        """Was a program of the user's run, and not a workload of ours?"""
        return self.first("program.submit") is not None

    def tasks(self) -> Iterator[Execution]:
        """Executions of tasks, without actor calls."""
        return (e for e in self.all_executions() if e.actor is None)

    def executions_on(self, node: str | None) -> Iterator[Execution]:
        return (e for e in self.all_executions() if e.node == node)

    def injected(self) -> list[FaultRecord]:
        """Faults whose call was made, in the order of their injections."""
        made = [f for f in self.faults.values() if f.inject is not None]
        return sorted(made, key=lambda f: self.at(f.inject) if f.inject else math.inf)

    def downs_node(self, fault: FaultRecord) -> bool:
        """Did the fault take its node down: by its kind, or by what was seen of it afterwards?"""
        if fault.inject is None or fault.node is None:
            return False
        if fault.fault in DOWNING_FAULTS:
            return True
        return self.death(fault.node, self.at(fault.inject)) is not None

    def incarnation(self, node: str, when: float) -> Op | None:
        """The ``ray.node`` ALIVE of the node's life at that time, if it was seen."""
        alive: Op | None = None
        for op in self.node_ops.get(node, []):
            if op.data.get("state") == "ALIVE" and self.at(op) <= when:
                alive = op
        return alive

    def death(self, node: str, when: float) -> Op | None:
        """The ``ray.node`` DEAD of the incarnation that was alive at `when`, if it was seen."""
        ops = self.node_ops.get(node, [])
        alive = self.incarnation(node, when)
        later = {
            op.data.get("ray_node_id")
            for op in ops
            if op.data.get("state") == "ALIVE" and self.at(op) > when
        }
        for op in ops:
            if op.data.get("state") != "DEAD" or self.at(op) < when - SLACK:
                continue
            identity = op.data.get("ray_node_id")
            if identity == alive.data.get("ray_node_id") if alive else identity not in later:
                return op
        return None

    def given_up(self, execution: Execution) -> bool:
        """Had Ray already declared that life of the node dead in which the execution began?"""
        node, when = execution.node or "", execution.start + SLACK
        alive = self.incarnation(node, when)
        return alive is not None and any(
            op.data.get("state") == "DEAD"
            and op.data.get("ray_node_id") == alive.data.get("ray_node_id")
            and self.at(op) <= when
            for op in self.node_ops[node]
        )

    def rejoin(self, node: str, when: float) -> Op | None:
        """The first ``ray.node`` ALIVE of the node after `when` with an id not seen before."""
        known = {
            op.data.get("ray_node_id") for op in self.node_ops.get(node, []) if self.at(op) <= when
        }
        for op in self.node_ops.get(node, []):
            if op.data.get("state") == "ALIVE" and op.data.get("ray_node_id") not in known:
                return op
        return None

    def engine_starts(self, node: str) -> list[Op]:
        """Every time that the engine started this node."""
        return [op for op in self.engine_ops if op.kind == "engine.start" and op.node == node]

    def only_copies(self, node: str, when: float) -> list[Op]:
        """Kept objects whose only copy was on the node: their latest ``driver.object`` by then."""
        found = []
        for ops in self.objects.values():
            latest = [op for op in ops if self.at(op) <= when]
            if latest and self.places(latest[-1]) == [node]:
                found.append(latest[-1])
        return found

    def places(self, op: Op) -> list[str]:
        """Names of the nodes that a ``driver.object`` says hold a copy."""
        nodes = op.data.get("nodes")
        if nodes is not None:
            return list(nodes)
        names = self.hostnames
        return [names.get(host, host) for host in op.data.get("hosts", [])]

    @property
    def hostnames(self) -> dict[str, str]:
        """Name of the node per hostname, as the orchestrator last listed them."""
        return {
            n["hostname"]: n["name"]
            for op in self.all("cluster.nodes")
            for n in op.data.get("nodes", [])
            if n.get("hostname")
        }

    @property
    def nodes(self) -> set[str]:
        """Every node that the orchestrator ever listed."""
        listed = (op.data.get("nodes", []) for op in self.all("cluster.nodes"))
        return {n["name"] for nodes in listed for n in nodes}

    @property
    def groups(self) -> dict[str, str]:
        """The group of every worker that was ever listed."""
        return {
            str(n["name"]): str(n["group"])
            for op in self.all("cluster.nodes")
            for n in op.data.get("nodes", [])
            if n.get("role") == "worker" and n.get("group")
        }

    @property
    def heads(self) -> set[str]:
        """What all nodes depend on: the head, and where it keeps its tables."""
        return (self._of_role("head") or {"head"}) | self.stores

    @property
    def stores(self) -> set[str]:
        """Where the head keeps its tables, if that is a thing of its own; no node of Ray's."""
        return self._of_role("store")

    def _of_role(self, role: str) -> set[str]:
        return {
            n["name"]
            for op in self.all("cluster.nodes")
            for n in op.data.get("nodes", [])
            if n.get("role") == role
        }

    def downs(self, node: str | None) -> list[Down]:
        """Every time the node went down, by a fault or as the engine saw it."""
        if self._downs is None:
            self._downs = {}
            for down in self._all_downs():
                self._downs.setdefault(down.node, []).append(down)
        return self._downs.get(node or "", [])

    def _all_downs(self) -> Iterable[Down]:
        for fault in self.injected():
            if fault.node is None or fault.inject is None:
                continue
            sure = fault.effect or fault.done or fault.inject
            ops = tuple(op for op in (fault.inject, fault.effect) if op is not None)
            begin = self.at(fault.inject)
            if fault.announced:  # its node works until it is taken, or leaves
                begin = min(
                    (self.at(op) for op in (fault.strike, fault.effect) if op), default=begin
                )
            yield Down(fault.node, begin, max(begin, self.at(sure)), ops)
        for op in self.engine_ops:
            if op.kind in ("engine.die", "engine.pause", "engine.oom") and op.node is not None:
                when = self.at(op)
                yield Down(op.node, when, when, (op,))
        # A node that is only out of reach works on until Ray gives it up, and so does what it made.
        for node, said in self.node_ops.items():
            for op in said:
                if op.data.get("state") == "DEAD":
                    yield Down(node, self.at(op), self.at(op), (op,))


def _count(file: LedgerFile, line: Any) -> None:
    file.lines += 1
    if not isinstance(line, int):
        return
    if line == file.next:
        file.next = line + 1
    elif line > file.next:
        # A few numbers say enough; a lost gigabyte must not be listed line by line.
        file.missing.extend(range(file.next, min(line, file.next + 100)))
        file.next = line + 1
    elif line in file.missing:
        file.missing.remove(line)
    else:
        file.repeated.append(line)


def index_of(view: RunView) -> Index:
    """The view's index, built once per view."""
    return view.once("index", lambda v: Index(v.history, v.spec))
