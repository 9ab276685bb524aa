"""Whom a fault hits.

What depends on chance is drawn with the run's seed over candidates sorted by name. A target that the
topology settles is drawn when the run is planned; one that only the running cluster can tell (the node
of an actor, the busiest) is resolved at the injection. What was resolved enters the history, and a replay
uses that.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random
from typing import ClassVar

from simulator.cluster import Cluster
from simulator.errors import BadInput, NotFound, Problem
from simulator.history import History
from simulator.topology import Topology


@dataclass(frozen=True, slots=True)
class Look:
    """The running cluster at the moment at which a target is resolved.

    Attributes
    ----------
    history
        A call gives what was recorded so far.
    driver_node
        The node that the job's driver runs on, if that is known: it is never hit unless it is named.
    """

    cluster: Cluster
    history: Callable[[], History]
    driver_node: str | None = None


class Target(ABC):
    """Which nodes a fault hits.

    Attributes
    ----------
    early
        The topology settles it, so that it is drawn when the run is planned.
    """

    early: ClassVar[bool] = True

    @abstractmethod
    def resolve(self, topology: Topology, rng: Random, look: Look | None = None) -> Sequence[str]:
        """The names, at least one.

        Parameters
        ----------
        look
            The running cluster; None when the run is planned (an `early` target does without).

        Raises
        ------
        NotFound, BadInput
            There is no such node, or none to draw from.
        """


@dataclass(frozen=True)
class RandomWorker(Target):
    """Any worker, drawn with the seed; of one group if `group` is given."""

    group: str | None = None

    def resolve(
        self,
        topology: Topology,
        rng: Random,
        look: Look | None = None,
    ) -> Sequence[str]:
        names = sorted(
            n.name for n in topology.workers() if self.group is None or n.group == self.group
        )
        if not names:
            raise BadInput(
                Problem("target", f"topology {topology.name} has no worker to hit", "--workers 3")
            )
        return (rng.choice(names),)

    def __str__(self) -> str:
        return f"one({self.group or 'worker'})"


@dataclass(frozen=True)
class Named(Target):
    """The node of this name."""

    name: str

    def resolve(
        self,
        topology: Topology,
        rng: Random,
        look: Look | None = None,
    ) -> Sequence[str]:
        names = [n.name for n in topology.nodes()]
        if self.name not in names:
            raise NotFound("node", self.name, names)
        return (self.name,)

    def __str__(self) -> str:
        return self.name
