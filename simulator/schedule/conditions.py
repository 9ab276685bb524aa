"""When a fault may strike: what a run's history must show first.

A condition is a value of the plan, frozen like the plan; what it has counted so far in one run is kept
apart from it, in the watch that it begins. A watch is shown each operation once, as it comes, so a
condition can be asked ten times a second of a history of a million operations.
"""

from __future__ import annotations

import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeGuard

from simulator.faults.parameters import number, quoted
from simulator.history import History, Op

#: How two numbers are compared.
COMPARISONS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
    "==": operator.eq,
    "!=": operator.ne,
}

#: What may be counted of tasks, and what nodes, actors and faults may be.
TASKS = ("finished", "failed", "running")
NODE_STATES = ("alive", "dead", "paused", "exited")
ACTOR_STATES = ("pending", "alive", "restarting", "dead")
FAULT_STATES = ("injected", "healed", "skipped")
NUMBERS_OF_ACTORS = ("mark", "checkpoint")


class Watch(Protocol):
    """A condition being watched in one run."""

    @property
    def true(self) -> bool:
        """Whether it is true after all that was seen."""

    def see(self, op: Op) -> None:
        """The next operation of the history."""


class Condition(ABC):
    """Something that a history shows to be true, or not yet; `str` says it as the language writes it."""

    @abstractmethod
    def watch(self) -> Watch:
        """Begin to watch it, before a run's first operation."""

    @property
    def parts(self) -> Iterator[Condition]:
        """Itself and all that it is made of."""
        yield self

    def holds(self, history: History) -> bool:
        """Whether it is true at the end of this history."""
        watch = self.watch()
        for op in history:
            watch.see(op)
        return watch.true


# -- tasks


@dataclass(frozen=True)
class Tasks(Condition):
    """So many tasks have finished, have failed for good, or run now."""

    state: str
    comparison: str
    count: float

    def watch(self) -> Watch:
        return _TasksWatch(self)

    def __str__(self) -> str:
        return f"tasks({self.state}) {self.comparison} {number(self.count)}"


class _TasksWatch:
    """Counts what our own workloads write; of another program, the last count that was taken."""

    def __init__(self, of: Tasks) -> None:
        self._of = of
        self._ended = 0
        self._running: dict[str, str | None] = {}
        self._told = 0.0

    def see(self, op: Op) -> None:
        kind = op.kind
        if kind == "program.tasks":
            self._told = float(op.data.get(self._of.state, 0))
        elif self._of.state == "running":
            if kind == "task.start":
                self._running[op.data["exec"]] = op.node
            elif kind == "task.end":
                self._running.pop(op.data["exec"], None)
            elif kind == "engine.die":
                for execution in [e for e, node in self._running.items() if node == op.node]:
                    del self._running[execution]
        elif kind == ("driver.result" if self._of.state == "finished" else "driver.failure"):
            self._ended += 1

    @property
    def true(self) -> bool:
        count = self._ended + len(self._running) + self._told
        return COMPARISONS[self._of.comparison](count, self._of.count)


# -- nodes, actors and faults


@dataclass(frozen=True)
class NodeIs(Condition):
    """A node is alive or dead to Ray, or frozen or exited as the engine says.

    A node that was killed is exited at once, and dead as soon as the GCS has given it up.
    """

    node: str
    comparison: str
    state: str

    def watch(self) -> Watch:
        return _NodeWatch(self)

    def __str__(self) -> str:
        return f"node({quoted(self.node)}) {self.comparison} {self.state}"


class _NodeWatch:
    _ENGINE = {
        "engine.start": "running",
        "engine.unpause": "running",
        "engine.pause": "paused",
        "engine.die": "exited",
    }

    def __init__(self, of: NodeIs) -> None:
        self._of = of
        self._engine = "running"
        self._in_ray: dict[str, bool] = {}

    def see(self, op: Op) -> None:
        if op.node != self._of.node:
            return
        if op.kind == "ray.node":
            self._in_ray[op.data["ray_node_id"]] = op.data["state"] == "ALIVE"
        self._engine = self._ENGINE.get(op.kind, self._engine)

    @property
    def true(self) -> bool:
        believed = any(self._in_ray.values())
        is_so = {
            "alive": believed and self._engine == "running",
            "dead": bool(self._in_ray) and not believed,
        }.get(self._of.state, self._engine == self._of.state)
        return is_so == (self._of.comparison == "==")


@dataclass(frozen=True)
class ActorIs(Condition):
    """An actor, by its name or else by its class, is in this state; of several, the one that changed last."""

    actor: str
    comparison: str
    state: str

    def watch(self) -> Watch:
        return _ActorWatch(self)

    def __str__(self) -> str:
        return f"actor({quoted(self.actor)}) {self.comparison} {self.state}"


class _ActorWatch:
    #: States of Ray's that begin so (PENDING_CREATION, DEPENDENCIES_UNREADY) are ours.
    _STATES = {"PENDING": "pending", "DEPENDENCIES": "pending"}

    def __init__(self, of: ActorIs) -> None:
        self._of = of
        self._by_name = ""
        self._by_class = ""

    def see(self, op: Op) -> None:
        if op.kind != "ray.actor":
            return
        ray = str(op.data["state"])
        state = self._STATES.get(ray.partition("_")[0], ray.lower())
        if op.data["name"] == self._of.actor:
            self._by_name = state
        elif op.data["class"] == self._of.actor:
            self._by_class = state

    @property
    def true(self) -> bool:
        state = self._by_name or self._by_class
        return bool(state) and (state == self._of.state) == (self._of.comparison == "==")


@dataclass(frozen=True)
class FaultIs(Condition):
    """Another fault of the plan was injected, or is healed (on every node that it hit), or was skipped."""

    fault: str
    comparison: str
    state: str

    def watch(self) -> Watch:
        return _FaultWatch(self)

    def __str__(self) -> str:
        return f"fault({quoted(self.fault)}) {self.comparison} {self.state}"


class _FaultWatch:
    def __init__(self, of: FaultIs) -> None:
        self._of = of
        self._injected: set[str] = set()
        self._healed: set[str] = set()
        self._skipped: set[str] = set()

    def see(self, op: Op) -> None:
        into = {
            "fault.done": self._injected,
            "fault.healed": self._healed,
            "fault.skipped": self._skipped,
        }.get(op.kind)
        if into is None:
            return
        fault = str(op.data["id"])
        if self._of.fault in (fault, fault.partition(".")[0]):  # f2.1 is the first node of f2
            into.add(fault)

    @property
    def true(self) -> bool:
        is_so = {
            "injected": bool(self._injected),
            "healed": bool(self._injected) and self._injected <= self._healed,
            "skipped": bool(self._skipped),
        }[self._of.state]
        return is_so == (self._of.comparison == "==")


# -- numbers that a program reports


@dataclass(frozen=True)
class ActorNumber(Condition):
    """What an actor last marked, or how many calls its checkpoint holds."""

    actor: str
    what: str
    comparison: str
    value: float

    def watch(self) -> Watch:
        if self.what == "checkpoint":
            return _NumberWatch(self.comparison, self.value, self._checkpoint)
        return _ActorMarkWatch(self)

    def _checkpoint(self, op: Op) -> Any:
        if op.kind == "actor.start" and op.data["actor"] == self.actor:
            return op.data["restored"]
        if op.kind == "call.end" and op.data["actor"] == self.actor:
            return int(op.data["key"].rpartition("/")[2])  # counter-worker-2/5 is the fifth
        return None

    def __str__(self) -> str:
        subject = f"actor({quoted(self.actor)}).{self.what}"
        return f"{subject} {self.comparison} {number(self.value)}"


class _ActorMarkWatch:
    """What an actor marks carries the id of its task, and that ends with the id of the actor.

    A mark of ``__init__`` comes before the GCS calls the actor alive, so those of all actors are kept.
    """

    #: How many hexadecimal digits of a task's id (Ray 2.60) stand before its actor's.
    _OF_TASK = 16

    def __init__(self, of: ActorNumber) -> None:
        self._of = of
        self._actors: set[str] = set()
        self._marks: dict[str, float] = {}
        self._last: float | None = None

    def see(self, op: Op) -> None:
        if op.kind == "ray.actor" and self._of.actor in (op.data["name"], op.data["class"]):
            self._actors.add(op.data["actor_id"])
            self._last = self._marks.get(op.data["actor_id"], self._last)
        elif op.kind == "program.mark" and op.data.get("task_id"):
            actor, value = op.data["task_id"][self._OF_TASK :], op.data.get("value")
            if _is_number(value):
                self._marks[actor] = value
                self._last = value if actor in self._actors else self._last

    @property
    def true(self) -> bool:
        compare = COMPARISONS[self._of.comparison]
        return self._last is not None and compare(self._last, self._of.value)


def _is_number(value: Any) -> TypeGuard[float]:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@dataclass(frozen=True)
class Marked(Condition):
    """The program called ``mark`` with this name; with a comparison, its last value compares so."""

    name: str
    comparison: str = ""
    value: float = 0.0

    def watch(self) -> Watch:
        return _NumberWatch(self.comparison, self.value, self._number)

    def _number(self, op: Op) -> Any:
        if op.kind != "program.mark" or op.data.get("name") != self.name:
            return None
        return op.data.get("value") if self.comparison else 0

    def __str__(self) -> str:
        compared = f" {self.comparison} {number(self.value)}" if self.comparison else ""
        return f"mark({quoted(self.name)}){compared}"


class _NumberWatch:
    """The last number that was seen, compared; what is no number counts as nothing.

    Parameters
    ----------
    find
        The number that an operation tells, or None.
    """

    def __init__(self, comparison: str, value: float, find: Callable[[Op], Any]) -> None:
        self._comparison, self._value, self._find = comparison, value, find
        self._last: float | None = None

    def see(self, op: Op) -> None:
        found = self._find(op)
        if _is_number(found):
            self._last = found

    @property
    def true(self) -> bool:
        if self._last is None or not self._comparison:
            return self._last is not None
        return COMPARISONS[self._comparison](self._last, self._value)


# -- put together


@dataclass(frozen=True)
class _Joined(Condition):
    of: tuple[Condition, ...]

    @property
    def parts(self) -> Iterator[Condition]:
        yield self
        for condition in self.of:
            yield from condition.parts


@dataclass(frozen=True)
class And(_Joined):
    """All of them are true at once."""

    def watch(self) -> Watch:
        return _JoinedWatch([c.watch() for c in self.of], all)

    def __str__(self) -> str:
        return " and ".join(_inside(c, And, Or) for c in self.of)


@dataclass(frozen=True)
class Or(_Joined):
    """At least one of them is true."""

    def watch(self) -> Watch:
        return _JoinedWatch([c.watch() for c in self.of], any)

    def __str__(self) -> str:
        return " or ".join(_inside(c, Or) for c in self.of)


@dataclass(frozen=True)
class Not(Condition):
    """It is not true, or not yet."""

    condition: Condition

    @property
    def parts(self) -> Iterator[Condition]:
        yield self
        yield from self.condition.parts

    def watch(self) -> Watch:
        return _JoinedWatch([self.condition.watch()], lambda truths: not any(truths))

    def __str__(self) -> str:
        return f"not {_inside(self.condition, And, Or)}"


def _inside(condition: Condition, *weaker: type[Condition]) -> str:
    return f"({condition})" if isinstance(condition, weaker) else str(condition)


class _JoinedWatch:
    def __init__(self, watches: list[Watch], join: Callable[[Iterator[bool]], bool]) -> None:
        self._watches, self._join = watches, join

    def see(self, op: Op) -> None:
        for watch in self._watches:
            watch.see(op)

    @property
    def true(self) -> bool:
        return self._join(watch.true for watch in self._watches)
