"""When which fault hits whom, and when it is undone.

A schedule is a list of `Step` values. What depends on chance is drawn with the run's seed over candidates
sorted by name, so the same seed gives the same plan; what was drawn is written to the history.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from math import inf
from random import Random
from typing import Any, Protocol

from simulator.errors import BadInput, Problem
from simulator.faults import Fault, Site
from simulator.history import History
from simulator.schedule.targets import Look, Target
from simulator.topology import NodeSpec, Topology


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


class Condition(Protocol):
    """Something that a history shows to be true, or not yet; `str` says it as a person does."""

    def holds(self, history: History) -> bool: ...


@dataclass(frozen=True, slots=True)
class Step:
    """One fault of a schedule.

    Attributes
    ----------
    at
        Seconds after the load began.
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
    """

    at: float
    fault: Fault
    target: Target
    heal: Heal = field(default_factory=WhenDeclaredDead)
    when_busy: bool = False
    when: Condition | None = None
    patience: float = 120.0
    against: Target | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.at < inf:  # NaN too
            raise ValueError(f"a step at {self.at} seconds; it must be a number from 0 on")


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A step whose target has been drawn, if the topology settles it.

    Attributes
    ----------
    nodes, peers
        Whom it hits, and the other nodes that it concerns; empty while only the running cluster can tell.
    draw
        The seed of what is drawn later.
    """

    id: str
    step: Step
    nodes: tuple[str, ...]
    peers: tuple[str, ...] = ()
    draw: int = 0

    def resolve(self, topology: Topology, look: Look) -> PlannedFault:
        """With all that it hits, now that it is due.

        Raises
        ------
        NotFound, BadInput, CannotRun
            Nobody, for a reason.
        """
        if self.nodes:
            return self
        return _drawn(self, topology, Random(self.draw), look)

    def sites(self) -> list[Site]:
        """One for each node that is hit."""
        several = len(self.nodes) > 1
        return [
            Site(node, f"{self.id}.{i}" if several else self.id, self.peers)
            for i, node in enumerate(self.nodes, 1)
        ]

    def to_data(self) -> dict[str, Any]:
        step = self.step
        when = f"{step.at:g} s after the load began"
        if step.when is not None:
            when = f"{when}, when {step.when}" if step.at else f"when {step.when}"
        return {
            "id": self.id,
            "fault": step.fault.name,
            "parameters": step.fault.to_data(),
            "target": ", ".join(self.nodes) or str(step.target),
            "nodes": list(self.nodes),
            "peers": list(self.peers),
            "asked": str(step.target) + (f" from {step.against}" if step.against else ""),
            "when": when + (", in the middle of a task" if step.when_busy else ""),
            "at_s": step.at,
            "heal": str(step.heal),
            "undo": "nothing" if isinstance(step.heal, Never) else step.fault.undo,
        }


def resolve(steps: Sequence[Step], topology: Topology, rng: Random) -> list[PlannedFault]:
    """Draw every target that the topology settles, in the order of time.

    Raises
    ------
    NotFound, BadInput
        A named node does not exist; there is no worker to draw from.
    """
    planned = []
    for i, step in enumerate(sorted(steps, key=lambda step: step.at), 1):
        fault = PlannedFault(f"f{i}", step, (), draw=rng.getrandbits(48))
        if step.target.early and (step.against is None or step.against.early):
            fault = _drawn(fault, topology, Random(fault.draw), None)
        planned.append(fault)
    return planned


def _drawn(fault: PlannedFault, topology: Topology, rng: Random, look: Look | None) -> PlannedFault:
    step = fault.step
    nodes = tuple(step.target.resolve(topology, rng, look))
    if not step.fault.between_nodes:
        return replace(fault, nodes=nodes)
    others = (
        [n.name for n in topology.nodes()]
        if step.against is None
        else step.against.resolve(topology, rng, look)
    )
    peers = tuple(sorted(set(others) - set(nodes)))
    if not peers:
        raise BadInput(
            Problem(
                f"{step.fault.name} {step.target}", f"leaves no other node ({', '.join(nodes)})"
            )
        )
    return replace(fault, nodes=nodes, peers=peers)


def without(topology: Topology, gone: Iterable[str]) -> list[NodeSpec]:
    """The nodes that should be alive when all that is to be healed was healed.

    Parameters
    ----------
    gone
        Nodes whose faults stay.
    """
    names = set(gone)
    return [n for n in topology.nodes() if n.name not in names]
