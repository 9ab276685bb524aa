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
from simulator.schedule import Step, chance_problems, random_schedule, read_schedule, resolve
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
    """

    steps: Sequence[Step]
    chance: tuple[float, int] | None = None
    head: bool = False

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
        said = [text for text in faults if _words(text) not in drawn]
        before = len(problems.found)
        steps = read_schedule(said, file, where=where, problems=problems.found)
        if topology is not None:
            whole = len(problems.found) == before
            # Without the steps that cannot be read, a condition that names a fault names another.
            known = steps if whole else [replace(step, when=None) for step in steps]
            problems.attempt(where, lambda: resolve(known, topology, Random(0)))
        for option, given in (("--rate", rate), ("--budget", budget)):
            if given is not None and not drawn:
                what = f"belongs to {where} {RANDOM}"
                problems.found.append(Problem(option, what, f"leave it out, or say {RANDOM} too"))
        chance = (RATE if rate is None else rate, BUDGET if budget is None else budget)
        if drawn:
            problems.found.extend(chance_problems(*chance))
        return cls(steps, chance if drawn else None, head=RANDOM_WITH_HEAD in drawn)

    def all_steps(self, backend: Backend, topology: Topology, seed: int) -> list[Step]:
        """Every step, the drawn ones last; raises as `random_schedule`."""
        if self.chance is None:
            return list(self.steps)
        rate, budget = self.chance
        for kind in FAULTS.values():
            kind().prepare(backend, output.say)
        drawn = random_schedule(backend, topology, rate, budget, seed, head=self.head)
        return [*self.steps, *drawn]


def _words(text: str) -> str:
    return " ".join(text.split())
