"""The faults that were asked for on a command line: said in the language of schedules, or to be drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random

from simulator.backends.base import Backend
from simulator.cli import output
from simulator.cli.plan import Problems
from simulator.errors import Problem
from simulator.faults import FAULTS
from simulator.schedule import (
    SpotMarket,
    Step,
    chance_problems,
    is_market,
    market_problems,
    random_schedule,
    read_market,
    read_schedule,
    resolve,
)
from simulator.topology import Topology

#: What stands for faults that are drawn, and how many a second and in all unless told otherwise.
RANDOM, RATE, BUDGET = "random", 0.1, 5

#: The same, but the head may be hit too.
RANDOM_WITH_HEAD = "random with head"


@dataclass(frozen=True)
class AskedFaults:
    """The faults of a command line: those that are said, and how others are to be drawn.

    Attributes
    ----------
    chance
        Rate (faults a second) and budget of those that are drawn; None if none are.
    head
        Whether those may hit the head.
    markets
        Of spot machines, which draw faults too.
    """

    steps: Sequence[Step]
    chance: tuple[float, int] | None = None
    head: bool = False
    markets: Sequence[SpotMarket] = ()

    @classmethod
    def read(
        cls,
        problems: Problems,
        faults: Sequence[str],
        file: Path | None,
        rate: float | None,
        budget: int | None,
        topology: Topology | None,
        *,
        where: str = "--fault",
    ) -> AskedFaults:
        """What the options say, and every problem noted: of the language, and with whom they mean."""
        drawn = {text for text in map(_words, faults) if text in (RANDOM, RANDOM_WITH_HEAD)}
        said = [t for t in faults if _words(t) not in drawn and not is_market(t)]
        before = len(problems.found)
        read = [read_market(t, where, problems.found) for t in faults if is_market(t)]
        markets = [market for market in read if market is not None]
        steps = read_schedule(said, file, where=where, problems=problems.found)
        if topology is not None:
            whole = len(problems.found) == before
            # Without the steps that cannot be read, a condition that names a fault names another.
            known = steps if whole else [replace(step, when=None) for step in steps]
            problems.attempt(where, lambda: resolve(known, topology, Random(0)))
            for market in markets:
                problems.found.extend(market_problems(market, topology))
        for option, given in (("--rate", rate), ("--budget", budget)):
            if given is not None and not drawn:
                what = f"belongs to {where} {RANDOM}"
                problems.found.append(Problem(option, what, f"leave it out, or say {RANDOM} too"))
        chance = (RATE if rate is None else rate, BUDGET if budget is None else budget)
        if drawn:
            problems.found.extend(chance_problems(*chance))
        return cls(steps, chance if drawn else None, RANDOM_WITH_HEAD in drawn, markets)

    def all_steps(self, backend: Backend | None, topology: Topology, seed: int) -> list[Step]:
        """Every step, the drawn ones last; raises as `random_schedule` and `SpotMarket.steps`.

        The backend is needed for random faults only.
        """
        said = [*self.steps, *(step for m in self.markets for step in m.steps(topology, seed))]
        if self.chance is None:
            return said
        assert backend is not None
        rate, budget = self.chance
        for kind in FAULTS.values():
            kind().prepare(backend, output.say)
        drawn = random_schedule(backend, topology, rate, budget, seed, head=self.head)
        return [*said, *drawn]


def _words(text: str) -> str:
    return " ".join(text.split())
