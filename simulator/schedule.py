"""When which fault hits whom, and when it is undone.

A schedule is a list of `Step` values. What depends on chance is drawn with the run's seed over candidates
sorted by name, so the same seed gives the same plan; what was drawn is written to the history.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

from simulator.errors import BadInput, NotFound, Problem
from simulator.faults import Fault
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
class Never:
    """The node stays as the fault left it until the run is over; the cluster must do without."""

    def __str__(self) -> str:
        return "not before the end"


Heal = WhenDeclaredDead | After | Never


@dataclass(frozen=True, slots=True)
class RandomWorker:
    """Any worker, drawn with the seed; of one group if `group` is given."""

    group: str | None = None

    def resolve(self, topology: Topology, rng: Random) -> str:
        names = sorted(
            n.name for n in topology.workers() if self.group is None or n.group == self.group
        )
        if not names:
            raise BadInput(
                Problem("target", f"topology {topology.name} has no worker to hit", "--workers 3")
            )
        return rng.choice(names)

    def __str__(self) -> str:
        return f"one({self.group or 'worker'})"


@dataclass(frozen=True, slots=True)
class Named:
    """The node of this name."""

    name: str

    def resolve(self, topology: Topology, rng: Random) -> str:  # noqa: ARG002 - nothing to draw
        names = [n.name for n in topology.nodes()]
        if self.name not in names:
            raise NotFound("node", self.name, names)
        return self.name

    def __str__(self) -> str:
        return self.name


Target = RandomWorker | Named


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
    """

    at: float
    fault: Fault
    target: Target
    heal: Heal = field(default_factory=WhenDeclaredDead)
    when_busy: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.at < inf:  # NaN too
            raise ValueError(f"a step at {self.at} seconds; it must be a number from 0 on")


@dataclass(frozen=True, slots=True)
class PlannedFault:
    """A step whose target has been drawn."""

    id: str
    step: Step
    node: str

    def to_data(self) -> dict[str, Any]:
        return {
            "id": self.id,
            "fault": self.step.fault.name,
            "target": self.node,
            "asked": str(self.step.target),
            "when": f"{self.step.at:g} s after the load began"
            + (", in the middle of a task" if self.step.when_busy else ""),
            "at_s": self.step.at,
            "heal": str(self.step.heal),
            "undo": "nothing" if isinstance(self.step.heal, Never) else self.step.fault.undo,
        }


def resolve(steps: Sequence[Step], topology: Topology, rng: Random) -> list[PlannedFault]:
    """Draw every target, in the order of time.

    Raises
    ------
    NotFound, BadInput
        A named node does not exist; there is no worker to draw from.
    """
    ordered = sorted(steps, key=lambda step: step.at)
    return [
        PlannedFault(f"f{i}", step, step.target.resolve(topology, rng))
        for i, step in enumerate(ordered, 1)
    ]


def survivors(topology: Topology, planned: Sequence[PlannedFault]) -> list[NodeSpec]:
    """The nodes that should be alive when all that is to be healed was healed."""
    gone = {p.node for p in planned if isinstance(p.step.heal, Never)}
    return [n for n in topology.nodes() if n.name not in gone]
