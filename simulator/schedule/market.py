"""A market of spot machines, as a source of faults: they are taken back at random, now and then a whole group at once.

Clouds tell how often the machines of a kind are taken back, and that they come in waves: who wants one of them wants
more. Both are drawn here beforehand, from the seed alone, as steps of a schedule; so the same seed gives the same
plan, which can be shown, replayed and shrunk like any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import ClassVar

from simulator.errors import BadInput, NotFound, Problem
from simulator.faults import Preempt
from simulator.schedule.builder import read_made
from simulator.schedule.chance import RECOVERY_S
from simulator.schedule.steps import After, Heal, Step, WhenDeclaredDead
from simulator.schedule.targets import Named, Together
from simulator.topology import NodeSpec, Topology, WorkerGroup

#: More preemptions than this are a slip of the pen.
MOST = 1000


@dataclass(frozen=True)
class SpotMarket:
    """Spot machines are taken back at random.

    How long a machine is there until it is taken is drawn from an exponential distribution: however long it has been
    there already, it is as likely as ever to be taken next. A machine that was taken is left alone until another one
    should have come in its place.

    Parameters
    ----------
    groups
        Whose machines; all groups of spot machines unless said.
    rate
        How often one machine is taken, on average.
    notice
        How long from the notice until a machine is taken.
    drain
        Whether Ray is told, and drains the node until then.
    correlated
        Of how many the whole group is taken at once.
    replace
        How long until another machine comes in its place; unless said, once Ray has declared the node dead.
    until
        How long the market goes on; it ends with the work in any case.
    """

    groups: tuple[str, ...] = ()
    rate: float = field(default=60.0, metadata={"unit": "/h"})
    notice: float = field(default=30.0, metadata={"unit": "s"})
    drain: bool = True
    correlated: float = field(default=0.0, metadata={"unit": "%"})
    replace: float | None = field(default=None, metadata={"unit": "s"})
    until: float = field(default=600.0, metadata={"unit": "s"})

    name: ClassVar[str] = "spot_market"

    def __post_init__(self) -> None:
        Preempt(self.notice)  # what it says of a notice that makes no sense
        if not 0 < self.rate <= 3600:  # NaN too
            raise ValueError(f"rate is {self.rate:g}/h; use 2/min, for example, at most 1/s")
        if not 0 <= self.correlated <= 100:
            raise ValueError(f"correlated is {self.correlated:g}%; use 0% to 100%")
        if self.replace is not None and not 0 <= self.replace < inf:
            raise ValueError(f"replace is {self.replace:g} s; use 0 or more")
        if not 0 < self.until < inf:
            raise ValueError(f"until is {self.until:g} s; use 300s, for example")

    @property
    def fault(self) -> Preempt:
        return Preempt(self.notice, self.drain)

    @property
    def heal(self) -> Heal:
        return WhenDeclaredDead() if self.replace is None else After(self.notice + self.replace)

    def groups_of(self, topology: Topology) -> Sequence[WorkerGroup]:
        """The groups whose machines are taken.

        Raises
        ------
        BadInput
            There is none, or one that is named is none of spot machines, or Ray's autoscaler has its machines.
        NotFound
            There is no group of that name.
        """
        where = self.name
        spot = [g for g in topology.worker_groups if g.is_spot]
        for name in self.groups:
            if topology.group(name) not in spot:
                raise BadInput(
                    Problem(
                        where,
                        f"{name} is no group of spot machines, which nobody takes back",
                        f"say so in its topology: --set worker_groups.{name}.market=spot",
                    )
                )
        chosen = [g for g in spot if g.group_name in self.groups] if self.groups else spot
        if not chosen:
            raise BadInput(
                Problem(
                    where,
                    f"topology {topology.name} has no group of spot machines",
                    "use --topology spot, or say market: spot of one of its groups",
                )
            )
        if topology.autoscaling:
            raise BadInput(
                Problem(
                    where,
                    "which machines there will be is Ray's autoscaler's to say",
                    f"use preempt one({chosen[0].group_name}) every 20s..40s",
                )
            )
        return chosen

    def steps(self, topology: Topology, seed: int) -> list[Step]:
        """The preemptions that a seed gives, in the order of time.

        Raises
        ------
        BadInput, NotFound
            As `groups_of`; or there are too many.
        """
        names = {g.group_name for g in self.groups_of(topology)}
        nodes = [n for n in sorted(topology.nodes(), key=lambda n: n.name) if n.group in names]
        # Its own stream: what else is drawn from the seed does not change it.
        rng = Random(f"{self.name} {seed}")
        free = dict.fromkeys((n.name for n in nodes), 0.0)
        away = self.notice + (RECOVERY_S if self.replace is None else self.replace)
        found: list[Step] = []
        at = 0.0
        while free:
            there = [n for n in nodes if free[n.name] <= at]
            comes_back = min((f for f in free.values() if f > at), default=inf)
            gap = rng.expovariate(self.rate / 3600 * len(there)) if there else inf
            if at + gap >= comes_back:
                at = comes_back  # there is one more from then on
                continue
            at = round(at + gap, 3)
            if at > self.until:
                break
            hit = self._hit(there, rng)
            free.update(dict.fromkeys(hit, round(at + away, 3)))
            found.append(self._step(at, hit))
            if len(found) > MOST:
                what = f"takes machines more than {MOST} times"
                raise BadInput(Problem(self.name, what, "lower the rate, or say until=300s"))
        return found

    def _hit(self, there: Sequence[NodeSpec], rng: Random) -> list[str]:
        taken = rng.choice(there)
        if rng.random() * 100 < self.correlated:
            return [n.name for n in there if n.group == taken.group]
        return [taken.name]

    def _step(self, at: float, hit: Sequence[str]) -> Step:
        named = tuple(Named(name) for name in hit)
        target = named[0] if len(named) == 1 else Together(named)
        return Step(at=at, fault=self.fault, target=target, heal=self.heal, while_working=True)


def read_market(text: str, where: str, problems: list[Problem]) -> SpotMarket | None:
    """The market that a text describes, ``spot_market(rate=2/min, notice=5s)``; None if it has problems."""
    made = read_made(text, where, {SpotMarket.name: SpotMarket}, problems)
    return made if isinstance(made, SpotMarket) else None


def is_market(text: str) -> bool:
    """Whether a text is about a market, and no step of a schedule."""
    return text.strip().partition("(")[0].strip() == SpotMarket.name


def market_problems(market: SpotMarket, topology: Topology) -> Sequence[Problem]:
    """What keeps a market from taking machines of a topology."""
    try:
        market.steps(topology, 0)
    except BadInput as error:
        return error.problems
    except NotFound as error:
        return [Problem(SpotMarket.name, str(error))]
    return ()
