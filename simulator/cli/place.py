"""Where a run takes place: a cluster of its own, or one that is up already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.backends import select
from simulator.backends.base import Backend, ClusterRecord
from simulator.cli import output
from simulator.cli.find import find, refuse_taken
from simulator.cli.plan import Problems
from simulator.cluster import HEALTH, Cluster
from simulator.errors import Problem
from simulator.faults import rpc_faults
from simulator.faults.rpc import VARIABLE
from simulator.topology import Topology


@dataclass(frozen=True, slots=True)
class Place:
    """The backend, the nodes that there are to be, and with what settings of Ray's.

    Attributes
    ----------
    health
        How Ray detects a lost node.
    rpc_faults
        Those that were asked for, or that a cluster has which is up.
    """

    backend: Backend
    nodes: Topology
    health: str
    rpc_faults: Sequence[str]


def refuse_contradictions(
    problems: Problems,
    backend: str,
    health: str | None,
    name: str | None,
    reuse: str | None,
    image: str | None,
) -> None:
    """Note what is wrong with the options that say where, without asking any engine."""
    if health is not None:
        problems.one_of("--health", health, HEALTH)
    problems.one_of("--backend", backend, select.NAMES)
    if name is not None:
        problems.cluster_name(name)
    for option, given in (("--name", name), ("--image", image)):
        if reuse is not None and given is not None:
            problems.found.append(
                Problem(option, f"and --reuse {reuse} contradict each other", "use one of them")
            )


def choose(
    problems: Problems,
    backend: str,
    health: str | None,
    name: str | None,
    reuse: str | None,
    nodes: Topology | None,
    *,
    rpc_asked: Sequence[str] = (),
    rpc_own: Sequence[str] = (),
) -> Place:
    """The backend that answers, or the one where the cluster to be reused is.

    Parameters
    ----------
    nodes
        None for those that the cluster to be reused has.
    rpc_asked, rpc_own
        RPC faults of the command line, and of the experiment.

    Raises
    ------
    BadInput, NotFound, CannotRun
        The cluster cannot be reused, the name is taken, no backend answers.
    """
    if reuse is not None:
        found = find(reuse, backend)
        chosen = found.backend
        output.say(f"Backend: {chosen.name}, where cluster {reuse} is")
        _refuse_unready(problems, found.record)
        nodes = nodes or chosen.spec(reuse).topology
        actual, has = started_with(found.cluster)
        if actual is None or (health is not None and health != actual):
            what = f"was started with {'--health ' + actual if actual else 'settings of its own'}"
            problems.found.append(
                Problem(f"--reuse {reuse}", what, "a running cluster's failure detection is fixed")
            )
        health = actual
        wanted = [str(fault) for fault in rpc_faults([*rpc_own, *rpc_asked])]
        if wanted and sorted(wanted) != sorted(has):
            what = f"was started with {'--rpc-fault ' + ', '.join(has) if has else 'no RPC faults'}"
            problems.found.append(
                Problem(f"--reuse {reuse}", what, "Ray reads them once, when a node starts")
            )
        rpc_asked = has
    else:
        choice = select.choose(backend)
        chosen = choice.backend
        output.say(f"Backend: {choice.why}")
        health = health or "fast"
        if name is not None:
            refuse_taken(name)
    problems.raise_any()
    assert nodes is not None
    assert health is not None
    return Place(chosen, nodes, health, tuple(rpc_asked))


def started_with(cluster: Cluster) -> tuple[str | None, list[str]]:
    """The name of a cluster's failure-detection settings, None if they are none of ours, and its RPC faults.

    A run on a borrowed cluster must report what that has, not a default.
    """
    lines = cluster.backend.execute(cluster.name, "head", ["env"]).output.splitlines()
    env = dict(line.split("=", 1) for line in lines if "=" in line)
    names = {name for settings in HEALTH.values() for name in settings}
    has = {name: env[name] for name in names if env.get(name)}
    health = next((name for name, settings in HEALTH.items() if has == dict(settings)), None)
    faults: list[str] = json.loads(env.get(VARIABLE) or "[]")
    return health, faults


def _refuse_unready(problems: Problems, record: ClusterRecord) -> None:
    """Note what keeps a run from borrowing this cluster; exited workers the run starts itself."""
    for node in record.nodes:
        # The head comes back with its workers, of which it knows nothing otherwise.
        start = "start" if node.role == "head" else None
        lacks = {"paused": f"resume {node.name}", "exited": start, "created": start}
        command = lacks.get(node.state)
        if command is not None:
            remedy = f"python -m simulator {command} --name {record.name}"
            problems.found.append(
                Problem(
                    f"--reuse {record.name}", f"{node.name} is {node.state}", f"first: {remedy}"
                )
            )
    problems.raise_any()
