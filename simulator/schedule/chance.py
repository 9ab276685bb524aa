"""A schedule that is drawn: which faults, when and for how long, all from one seed."""

from __future__ import annotations

from random import Random

from simulator.backends.base import Backend
from simulator.errors import BadInput, CannotRun, Problem
from simulator.faults import FAULTS
from simulator.schedule.steps import After, Step, WhenDeclaredDead
from simulator.schedule.targets import Named, RandomWorker
from simulator.topology import Topology

#: How long a fault lasts that no death of a node ends, seconds.
SHORTEST_S, LONGEST_S = 5.0, 15.0


def random_schedule(
    backend: Backend,
    topology: Topology,
    rate: float,
    budget: int,
    seed: int,
    *,
    head: bool = False,
) -> list[Step]:
    """So many faults of those that can be done here, each of which ends by itself.

    Parameters
    ----------
    rate
        Faults a second on average: from one to the next passes an exponential time.
    budget
        How many.
    head
        Whether the head may be hit too.

    Raises
    ------
    BadInput, CannotRun
        The figures make no sense; nothing can be done here.
    """
    problems = []
    if not 0 < rate <= 100:  # NaN too
        problems.append(Problem("--rate", f"is {rate:g} faults a second", "use 0.2, for example"))
    if not 0 < budget <= 1000:
        problems.append(Problem("--budget", f"is {budget} faults", "use 1 to 1000"))
    if problems:
        raise BadInput(problems)
    kinds = [kind for _, kind in sorted(FAULTS.items()) if kind.at_random]
    able = [kind for kind in kinds if kind().unable(backend) is None]
    if not able:
        raise CannotRun("there is no fault to draw from", why="backend and machine can do none")
    rng = Random(seed)
    steps = []
    at = 0.0
    for _ in range(budget):
        at = round(at + rng.expovariate(rate), 3)
        fault = rng.choice(able)()
        hits_head = head and rng.randrange(len(topology.nodes())) == 0
        lasts = round(rng.uniform(SHORTEST_S, LONGEST_S), 1)
        steps.append(
            Step(
                at=at,
                fault=fault,
                target=Named("head") if hits_head else RandomWorker(),
                heal=WhenDeclaredDead() if fault.downs_node else After(lasts),
            )
        )
    return steps
