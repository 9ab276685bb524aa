"""When which fault hits whom, and when it is undone.

A schedule is a list of `Step` values. What depends on chance is drawn with the run's seed over candidates
sorted by name, so the same seed gives the same plan; what was drawn is written to the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from math import inf
from random import Random
from typing import Any

from simulator.backends.base import Backend
from simulator.errors import BadInput, CannotRun, NotFound, Problem
from simulator.faults import Fault, Site
from simulator.faults.parameters import number
from simulator.schedule.conditions import Condition, FaultIs, NodeIs
from simulator.schedule.targets import Look, Target
from simulator.topology import NodeSpec, Topology

#: For how long a fault waits for its condition, unless told otherwise, seconds.
PATIENCE_S = 120.0

#: For how long a fault comes back of which nobody says when it ends, seconds; and how often at most.
REPEATED_S, MOST_TIMES = 600.0, 1000

# -- when it is undone


@dataclass(frozen=True, slots=True)
class WhenDeclaredDead:
    """Undo it once the GCS has declared the node dead, or after `at_most` seconds in any case."""

    at_most: float = 90.0

    def __str__(self) -> str:
        return "once Ray declared it dead"


@dataclass(frozen=True, slots=True)
class After:
    """Undo it so many seconds after the injection."""

    seconds: float

    def __str__(self) -> str:
        return f"{self.seconds:g} s later"


@dataclass(frozen=True, slots=True)
class AtEnd:
    """Undo it when the work is done: the cluster has to work under it."""

    def __str__(self) -> str:
        return "when the work is done"


@dataclass(frozen=True, slots=True)
class Never:
    """The node stays as the fault left it until the run is over; the cluster must do without."""

    def __str__(self) -> str:
        return "not before the end"


Heal = WhenDeclaredDead | After | AtEnd | Never


def usual_heal(fault: Fault) -> Heal:
    """How a fault is undone of which nothing else is said."""
    return WhenDeclaredDead() if fault.downs_node else AtEnd()


def _written_heal(heal: Heal) -> str:
    if isinstance(heal, After):
        return f"for {number(heal.seconds)}s"
    if isinstance(heal, WhenDeclaredDead):
        at_most = heal.at_most != WhenDeclaredDead().at_most
        return "until dead" + (f" at most {number(heal.at_most)}s" if at_most else "")
    return "until the end" if isinstance(heal, AtEnd) else "for good"


# -- when it strikes


@dataclass(frozen=True, slots=True)
class Between:
    """A number of seconds that is drawn with the seed."""

    low: float
    high: float

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.high < inf:  # NaN too
            raise ValueError(f"{self} is no range; the first must be the smaller, from 0 on")

    def draw(self, rng: Random) -> float:
        return round(rng.uniform(self.low, self.high), 3)

    def __str__(self) -> str:
        return f"{number(self.low)}s..{number(self.high)}s"


@dataclass(frozen=True, slots=True)
class Every:
    """A fault that comes back as long as the work goes on.

    Attributes
    ----------
    gap
        Seconds from one to the next, drawn anew each time if it is a range.
    until, times
        The last is at most so many seconds after the load began, and there are at most so many; with
        neither, it ends `REPEATED_S` seconds after the first.
    """

    gap: float | Between
    until: float | None = None
    times: int | None = None

    def __post_init__(self) -> None:
        least = self.gap.low if isinstance(self.gap, Between) else self.gap
        if not 0 < least < inf:
            raise ValueError(f"a gap of {_seconds(self.gap)}; it must be above 0")
        if self.times is not None and self.times < 1:
            raise ValueError(f"{self.times} times; it must be 1 or more")

    def moments(self, first: float, rng: Random) -> list[float]:
        """When each strikes, seconds after the load began; cut off beyond `MOST_TIMES`."""
        unsaid = inf if self.times else first + REPEATED_S
        last = unsaid if self.until is None else self.until
        found: list[float] = []
        at = first
        while at <= last and len(found) < (self.times or inf) and len(found) <= MOST_TIMES:
            found.append(at)
            at = round(at + (self.gap.draw(rng) if isinstance(self.gap, Between) else self.gap), 3)
        return found

    def __str__(self) -> str:
        parts = [f"every {_seconds(self.gap)}"]
        if self.until is not None:
            parts.append(f"until {number(self.until)}s")
        if self.times is not None:
            parts.append(f"{self.times} times")
        return " ".join(parts)


def _seconds(time: float | Between) -> str:
    return str(time) if isinstance(time, Between) else f"{number(time)}s"


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a schedule; `str` gives it as the language writes it.

    Attributes
    ----------
    at
        Seconds after the load began.
    heal
        When it is undone; unless said, as `usual_heal` has it.
    when_busy
        From then on, wait for the moment at which the target is in the middle of a task: a node is idle
        for a moment between two tasks, and a fault that falls there tells nothing.
    when
        From then on, wait until this is true; a condition that never comes true is a fault that was never
        injected, and the verdict unknown.
    patience
        For how long it waits for `when`, seconds.
    against
        The other nodes that it concerns, such as the far side of a partition; None is all others.
    every
        It comes back; `at` is the first time.
    while_working
        It is left out if all of the planned work has been given out by then.
    """

    at: float | Between
    fault: Fault
    target: Target
    heal: Heal = None  # type: ignore[assignment]  # what is usual for the fault, see below
    when_busy: bool = False
    when: Condition | None = None
    patience: float = PATIENCE_S
    against: Target | None = None
    every: Every | None = None
    while_working: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.at, Between) and not 0 <= self.at < inf:  # NaN too
            raise ValueError(f"a step at {self.at} seconds; it must be a number from 0 on")
        latest = self.at.high if isinstance(self.at, Between) else self.at
        if self.every and self.every.until is not None and self.every.until < latest:
            raise ValueError(
                f"it ends at {number(self.every.until)}s, before its first time {_seconds(self.at)}"
            )
        announced = self.fault.announced_s
        if isinstance(self.heal, After) and self.heal.seconds < announced:
            raise ValueError(
                f"it is undone after {number(self.heal.seconds)}s, and strikes only "
                f"{number(announced)}s after its notice; say for {number(announced + 10)}s, for example"
            )
        if self.heal is None:
            object.__setattr__(self, "heal", usual_heal(self.fault))

    @property
    def by_chance(self) -> bool:
        """Whether its times are drawn."""
        gap = self.every.gap if self.every else None
        return isinstance(self.at, Between) or isinstance(gap, Between)

    def __str__(self) -> str:
        whom = f"{self.target} from {self.against}" if self.against else str(self.target)
        parts = [f"{self.fault} {whom}"]
        if self.at != 0:
            parts.append(f"@{_seconds(self.at)}")
        if self.every is not None:
            parts.append(str(self.every))
        if self.when is not None:
            parts.append(f"when {_in_quotes(str(self.when))}")
            if self.patience != PATIENCE_S:
                parts.append(f"within {number(self.patience)}s")
        if self.when_busy:
            parts.append("busy")
        if self.while_working:
            parts.append("while working")
        if self.heal != usual_heal(self.fault):
            parts.append(_written_heal(self.heal))
        return " ".join(parts)


def _in_quotes(text: str) -> str:
    return f"'{text}'" if "'" not in text else text


# -- the plan


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """One strike of a step, with its time and, if the topology settles it, its target drawn.

    Attributes
    ----------
    nodes, peers
        Whom it hits, and the other nodes that it concerns; empty while only the running cluster can tell.
    at
        Seconds after the load began.
    draw
        The seed of what is drawn later.
    repetition
        Of a step that comes back, which time this is, from 1; those from 2 on are left out if the work is
        over by then.
    """

    id: str
    step: Step
    nodes: tuple[str, ...]
    peers: tuple[str, ...] = ()
    at: float = 0.0
    draw: int = 0
    repetition: int = 1

    def resolve(self, topology: Topology, look: Look) -> PlannedFault:
        """With all that it hits, now that it is due.

        Raises
        ------
        NotFound, BadInput, CannotRun
            Nobody, for a reason.
        """
        if not self.nodes:
            return _drawn(self, topology, Random(self.draw), look)
        # Where the driver runs was not known when it was drawn.
        spared = {look.driver_node} - self.step.target.named
        nodes = tuple(name for name in self.nodes if name not in spared)
        if not nodes:
            raise CannotRun(
                f"{self.nodes[0]} is the node that the driver runs on",
                remedy="it is hit only if its name is said",
            )
        return replace(self, nodes=nodes)

    def sites(self) -> list[Site]:
        """One for each node that is hit."""
        several = len(self.nodes) > 1
        return [
            Site(node, f"{self.id}.{i}" if several else self.id, self.peers)
            for i, node in enumerate(self.nodes, 1)
        ]

    def to_data(self) -> dict[str, Any]:
        step = self.step
        when = f"{self.at:g} s after the load began"
        if step.when is not None:
            when = f"{when}, when {step.when}" if self.at else f"when {step.when}"
        return {
            "id": self.id,
            "step": str(step),
            "fault": step.fault.name,
            "parameters": step.fault.to_data(),
            "target": ", ".join(self.nodes) or str(step.target),
            "nodes": list(self.nodes),
            "peers": list(self.peers),
            "asked": str(step.target) + (f" from {step.against}" if step.against else ""),
            "when": when + (", in the middle of a task" if step.when_busy else ""),
            "at_s": self.at,
            "repetition": self.repetition,
            "heal": str(step.heal),
            "undo": "nothing" if isinstance(step.heal, Never) else step.fault.undo,
        }


def resolve(steps: Sequence[Step], topology: Topology, rng: Random) -> list[PlannedFault]:
    """Draw every time, and every target that the topology settles.

    Returns
    -------
    list of PlannedFault
        In the order of time. Their ids count in the order of the steps, so that a condition can name
        another fault whatever times are drawn.

    Raises
    ------
    BadInput
        A node, a group or a fault that is named does not exist; there is no worker to draw from. Every
        problem of every step.
    """
    strikes: list[tuple[float, int, Step]] = []
    problems: list[Problem] = []
    for step in steps:
        # A step whose times are fixed takes nothing from the seed's stream.
        own = Random(rng.getrandbits(48)) if step.by_chance else rng
        first = step.at.draw(own) if isinstance(step.at, Between) else step.at
        moments = step.every.moments(first, own) if step.every else [first]
        if len(moments) > MOST_TIMES:
            what = f"strikes more than {MOST_TIMES} times"
            problems.append(Problem(str(step), what, "say until when, or how often: 10 times"))
        strikes += [(at, i, step) for i, at in enumerate(moments[:MOST_TIMES], 1)]
    ids = [f"f{i}" for i in range(1, len(strikes) + 1)]
    planned: list[PlannedFault] = []
    for id_, (at, repetition, step) in zip(ids, strikes, strict=True):
        fault = PlannedFault(id_, step, (), at=at, draw=rng.getrandbits(48), repetition=repetition)
        try:
            _check_condition(fault, topology, ids)
            if step.target.early and (step.against is None or step.against.early):
                drawn = _drawn(fault, _there(topology), Random(fault.draw), None)
                if _is_settled(drawn, topology):
                    fault = drawn
        except NotFound as error:
            problems.append(Problem(str(step), str(error)))
        except BadInput as error:
            problems.extend(error.problems)
        planned.append(fault)
    if problems:
        raise BadInput(list(dict.fromkeys(problems)))
    return sorted(planned, key=lambda fault: fault.at)


def _there(topology: Topology) -> Topology:
    """What a target is drawn from before anything runs.

    Where Ray's autoscaler decides, nobody knows which nodes there will be: then it is only tried whether
    the target could be one, and drawn when its time has come.
    """
    return topology.imagined() if topology.autoscaling else topology


def _is_settled(drawn: PlannedFault, topology: Topology) -> bool:
    names = {n.name for n in topology.breakable()}
    return not topology.autoscaling or names >= {*drawn.nodes, *drawn.peers}


def _check_condition(fault: PlannedFault, topology: Topology, ids: Sequence[str]) -> None:
    """Raise if its condition speaks of what does not exist: it would wait in vain."""
    for part in fault.step.when.parts if fault.step.when else ():
        nodes = [n.name for n in _there(topology).breakable()]
        if isinstance(part, NodeIs) and part.node not in nodes:
            raise NotFound("node", part.node, nodes)
        if isinstance(part, FaultIs):
            asked = part.fault.partition(".")[0]
            if asked == fault.id:
                what = f"waits for itself: {part}"
                raise BadInput(Problem(str(fault.step), what, "name an earlier fault"))
            if asked not in ids:
                raise NotFound("fault of this schedule", part.fault, ids)


def _drawn(fault: PlannedFault, topology: Topology, rng: Random, look: Look | None) -> PlannedFault:
    step = fault.step
    nodes = tuple(step.target.resolve(topology, rng, look))
    if not step.fault.between_nodes:
        return replace(fault, nodes=nodes)
    others = (
        [n.name for n in topology.nodes()]
        if step.against is None
        else step.against.across(topology, rng, look, nodes)
    )
    peers = tuple(sorted(set(others) - set(nodes)))
    if not peers:
        raise BadInput(
            Problem(
                f"{step.fault.name} {step.target}", f"leaves no other node ({', '.join(nodes)})"
            )
        )
    return replace(fault, nodes=nodes, peers=peers)


def unable(planned: Iterable[PlannedFault], backend: Backend) -> list[str]:
    """Why which of these faults cannot be done here; each reason once."""
    faults = dict.fromkeys(p.step.fault for p in planned)
    return list(dict.fromkeys(why for fault in faults if (why := fault.unable(backend))))


def misplaced(planned: Iterable[PlannedFault], topology: Topology) -> list[Problem]:
    """Which of these faults their nodes cannot suffer, as far as their targets are drawn."""
    specs = {node.name: node for node in topology.breakable()}
    return [
        Problem(f"{fault.step.fault.name} {name}", why)
        for fault in planned
        for name in fault.nodes
        if name in specs and (why := fault.step.fault.refused_on(specs[name]))
    ]


def without(topology: Topology, gone: Iterable[str]) -> list[NodeSpec]:
    """The nodes that should be alive when all that is to be healed was healed.

    Parameters
    ----------
    gone
        Nodes whose faults stay.
    """
    names = set(gone)
    return [n for n in topology.nodes() if n.name not in names]
