"""A schedule that is drawn: which faults, when, whom and for how long, all from one seed."""

from __future__ import annotations

from random import Random

from simulator.backends.base import Backend
from simulator.errors import BadInput, CannotRun, Problem
from simulator.faults import FAULTS
from simulator.schedule.steps import After, Step, WhenDeclaredDead
from simulator.schedule.targets import Named
from simulator.topology import Topology

#: How long a fault lasts that no death of a node ends, seconds.
SHORTEST_S, LONGEST_S = 5.0, 15.0

#: For how long a node is left alone after a fault that no death ends, and after one that does: until
#: Ray has noticed, and the node is back. Seconds.
REST_S, RECOVERY_S = 5.0, 30.0


def chance_problems(rate: float, budget: int) -> list[Problem]:
    """What makes no sense of these two."""
    problems = []
    if not 0 < rate <= 100:  # NaN too
        problems.append(Problem("--rate", f"is {rate:g} faults a second", "use 0.2, for example"))
    if not 0 < budget <= 1000:
        problems.append(Problem("--budget", f"is {budget} faults", "use 1 to 1000"))
    return problems


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

    A node that was hit is left alone until it is back, lest the next fault finds nothing to break: where
    that concerns all nodes, the next fault comes later than drawn.

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
        The figures make no sense, or there is no node to hit; nothing can be done here.
    """
    problems = chance_problems(rate, budget)
    specs = {n.name: n for n in topology.nodes() if head or n.role == "worker"}
    nodes = sorted(specs)
    if not nodes:
        what = f"topology {topology.name} has no worker to hit"
        problems.append(Problem("random faults", what, "--workers 3"))
    if problems:
        raise BadInput(problems)
    kinds = [kind for _, kind in sorted(FAULTS.items()) if kind.at_random]
    hits = {
        kind: [name for name in nodes if kind().refused_on(specs[name]) is None]
        for kind in kinds
        if kind().unable(backend) is None
    }
    able = [kind for kind in kinds if hits.get(kind)]
    if not able:
        raise CannotRun("there is no fault to draw from", why="backend and machine can do none")
    rng = Random(seed)
    free = dict.fromkeys(nodes, 0.0)
    steps = []
    at = 0.0
    for _ in range(budget):
        at = max(round(at + rng.expovariate(rate), 3), min(free.values()))
        free_now = {name for name, since in free.items() if since <= at}
        kind = rng.choice([kind for kind in able if free_now.intersection(hits[kind])] or able)
        at = max(at, min(free[name] for name in hits[kind]))
        fault = kind()
        node = rng.choice([name for name in hits[kind] if free[name] <= at])
        lasts = round(rng.uniform(SHORTEST_S, LONGEST_S), 1)
        free[node] = round(at + (RECOVERY_S if fault.downs_node else lasts + REST_S), 3)
        heal = WhenDeclaredDead() if fault.downs_node else After(lasts)
        steps.append(Step(at=at, fault=fault, target=Named(node), heal=heal))
    return steps
