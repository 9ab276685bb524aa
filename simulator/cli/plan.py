"""What was asked on the command line, as values of the library; every problem with it at once."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from simulator.backends.base import ClusterRecord, NodeRecord, name_problem
from simulator.cluster import HEALTH, Cluster
from simulator.errors import BadInput, NotFound, Problem
from simulator.topology import Head, Topology, WorkerGroup, load_topology, override

T = TypeVar("T")


@dataclass
class Problems:
    """Gathers what is wrong, so that a user sees all of it and not just the first."""

    found: list[Problem] = field(default_factory=list)

    def attempt(self, where: str, action: Callable[[], T]) -> T | None:
        """The action's value, or None and its problems noted."""
        try:
            return action()
        except BadInput as error:
            self.found.extend(error.problems)
        except NotFound as error:
            self.found.append(Problem(where, str(error)))
        return None

    def one_of(self, option: str, value: str, known: Iterable[str]) -> None:
        """Note it if the value is none of these."""
        names = list(known)
        if value not in names:
            error = NotFound("value", value, names)
            self.found.append(Problem(f"{option} {value}", "is not known", error.why))

    def cluster_name(self, name: str) -> None:
        """Note it if no cluster can have this name."""
        problem = name_problem(name)
        if problem is not None:
            self.found.append(problem)

    def raise_any(self) -> None:
        if self.found:
            raise BadInput(self.found)


def load_nodes(
    problems: Problems, name: str, workers: int | None, settings: Sequence[str]
) -> Topology | None:
    """A topology with ``--workers`` and ``--set`` applied, or None and what is wrong with it."""
    topology = problems.attempt(f"--topology {name}", lambda: load_topology(name))
    if topology is None:
        return None
    for option, apply in (
        ("--workers", lambda t: t if workers is None else t.with_workers(workers)),
        ("--set", lambda t: override(t, settings) if settings else t),
    ):
        topology = problems.attempt(option, partial(apply, topology)) or topology
    return topology


def topology_of(record: ClusterRecord) -> Topology:
    """The topology of a cluster that is up, read back from its nodes."""
    groups: dict[str, list[NodeRecord]] = {}
    head = Head()
    for node in record.nodes:
        if node.role == "head":
            head = Head(resources=node.resources or {"CPU": 1}, labels=node.labels)
        else:
            groups.setdefault(node.group, []).append(node)
    return Topology(
        name=f"of-{record.name}",
        description=f"what cluster {record.name} has",
        head=head,
        worker_groups=[
            WorkerGroup(
                group_name=group,
                replicas=len(nodes),
                resources=nodes[0].resources or {"CPU": 1},
                labels=nodes[0].labels,
            )
            for group, nodes in groups.items()
        ],
    )


def health_of(cluster: Cluster) -> str | None:
    """Which failure-detection settings a cluster was started with; None if neither of ours.

    A run on a borrowed cluster must report the settings that it has, not those of a default.
    """
    lines = cluster.backend.execute(cluster.name, "head", ["env"]).output.splitlines()
    env = dict(line.split("=", 1) for line in lines if "=" in line)
    names = {name for settings in HEALTH.values() for name in settings}
    has = {name: env[name] for name in names if env.get(name)}
    return next((name for name, settings in HEALTH.items() if has == dict(settings)), None)


def replay_command(
    source: str,
    backend: str,
    *,
    topology: str | None,
    workers: int | None,
    settings: Sequence[str],
    params: Sequence[str],
    health: str,
    image: str | None,
    reuse: str | None,
) -> str:
    """The command line that does it again; the runner puts the seed of each run for ``{seed}``."""
    words = ["python", "-m", "simulator", "run", source, "--backend", backend]
    for option, value in (
        ("--topology", topology),
        ("--workers", workers),
        ("--image", image),
        ("--reuse", reuse),
    ):
        if value is not None:
            words += [option, str(value)]
    for option, values in (("--set", settings), ("--param", params)):
        for one in values:
            words += [option, one]
    return f"{shlex.join([*words, '--health', health])} --seed {{seed}}"
