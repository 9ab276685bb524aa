"""Worker groups made larger and smaller while the cluster is up.

Up is desired minus actual, applied: the missing nodes are made and started as any are, and if they do not join
they are gone again. Down is telling before doing: what Ray runs on a node is asked and said before the node is
stopped, since the tasks there will run a second time elsewhere and the actors begin anew, or not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from simulator.backends.base import ClusterSpec, NodeRecord
from simulator.cluster import AT_A_TIME, Cluster, Plan, StartEvent, refuse_unable
from simulator.errors import BadInput, CannotRun, NotFound, Problem
from simulator.rayapi import RunningWork
from simulator.topology import DRIVER, WorkerGroup, topology_problems


@dataclass(frozen=True, slots=True)
class Removal:
    """A node that is to be removed, or was: what ran on it, or why that is not known."""

    node: str
    running: RunningWork = field(default_factory=RunningWork)
    unknown: str = ""


@dataclass(frozen=True, slots=True)
class Scaled:
    """What `scale` did: nodes that were added, and those that were removed."""

    added: Sequence[str] = ()
    removed: Sequence[Removal] = ()

    def __bool__(self) -> bool:
        return bool(self.added or self.removed)

    def to_data(self) -> dict[str, Any]:
        return {
            "added": list(self.added),
            "removed": [
                {
                    "node": r.node,
                    "running": {"tasks": list(r.running.tasks), "actors": list(r.running.actors)},
                    "unknown": r.unknown or None,
                }
                for r in self.removed
            ],
        }


def scale_problems(cluster: Cluster, counts: Mapping[str, int]) -> list[Problem]:
    """Why a cluster cannot have so many nodes in these worker groups; empty if it can."""
    return _problems(cluster.backend.spec(cluster.name), cluster.record().nodes, counts)


def _problems(
    made: ClusterSpec, nodes: Sequence[NodeRecord], counts: Mapping[str, int]
) -> list[Problem]:
    groups = {g.group_name: g for g in made.topology.worker_groups}
    problems: list[Problem] = []
    for name, count in counts.items():
        where = f"{name}={count}"
        if name == "head":
            problems.append(Problem(where, "a cluster has one head", "scale a worker group"))
        elif name == DRIVER and made.topology.driver_node:
            problems.append(Problem(where, "a cluster has one driver node", "scale a worker group"))
        elif name not in groups:
            problems.append(Problem(where, str(NotFound("worker group", name, groups))))
        elif made.topology.autoscaling:
            group = groups[name]
            problems.append(
                Problem(
                    where,
                    f"Ray's autoscaler decides how many there are, from {group.least} to {group.most}",
                    "give it other limits when the cluster is made: "
                    f"up --set worker_groups.{name}.max_replicas=N",
                )
            )
        else:
            asked = groups[name].model_dump() | {"replicas": count}
            try:
                WorkerGroup.model_validate(asked)
            except ValidationError as error:
                problems += topology_problems(error, where)
            if made.from_nodes and count == 0:
                problems.append(
                    Problem(
                        where,
                        f"only its nodes tell what {name} is, so that no node could ever be added again",
                        f"keep one, {name}=1, or take the cluster down",
                    )
                )
    return problems + _gap_problems(made, nodes, counts)


def _gap_problems(
    made: ClusterSpec, nodes: Sequence[NodeRecord], counts: Mapping[str, int]
) -> list[Problem]:
    """Gaps in the numbers, as of nodes that were removed by hand, where they are in the way.

    Nodes are made from the lowest number on, and a number below another's cannot be given again.
    """
    have = {g.group_name: g.replicas for g in made.topology.worker_groups}
    adds = any(count > have.get(group, count) for group, count in counts.items())
    problems: list[Problem] = []
    for group in made.topology.worker_groups:
        name = group.group_name
        mine = {int(n.name.rpartition("-")[2]) for n in nodes if n.group == name}
        last = max(mine, default=0)
        gaps = sorted(set(range(1, last)) - mine)
        # Where nodes are added, every group is made what it should be.
        wanted = counts.get(name, have[name] if adds else 0)
        if not gaps or wanted < gaps[0]:
            continue
        below = gaps[0] - 1
        least = max(group.min_replicas or 0, 1 if made.from_nodes else 0)
        again = " ".join(
            f"{name}={count}" for name, count in ({name: wanted} | dict(counts)).items()
        )
        problems.append(
            Problem(
                f"{name}={counts[name]}" if name in counts else name,
                f"{', '.join(f'{name}-{i}' for i in gaps)} {'is' if len(gaps) == 1 else 'are'} gone, "
                f"and no number below {name}-{last} can be given again",
                f"first scale {name}={below}, then scale {again}"
                if below >= least
                else "take the cluster down and make it again",
            )
        )
    return problems


def scale(
    cluster: Cluster,
    counts: Mapping[str, int],
    *,
    grace: float = 10.0,
    timeout: float = 120.0,
    parallelism: int | None = None,
    progress: Callable[[StartEvent], None] = lambda event: None,
    on_plan: Callable[[Plan], None] = lambda plan: None,
    on_removal: Callable[[Removal], None] = lambda removal: None,
    on_undo: Callable[[], None] = lambda: None,
) -> Scaled:
    """Have so many nodes in each of these worker groups, and leave the others as they are.

    Nodes are added first, and waited for. Then those with the highest numbers are removed: Ray
    is asked what runs there, the node is stopped and its container removed.

    Parameters
    ----------
    on_removal
        Told of each node right before it is stopped.
    on_undo
        Told right before what was made is taken away again, since something went wrong.

    Raises
    ------
    BadInput
        There is no such group, or its limits do not allow so many, or nodes that were removed by hand
        are in the way.
    NodeStartFailed, CannotRun
        New nodes did not join, or could not be made; whatever was made is gone again and nothing
        was removed.
    """
    made = cluster.backend.spec(cluster.name)
    nodes = cluster.record().nodes
    problems = _problems(made, nodes, counts)
    if problems:
        raise BadInput(problems)
    wanted = [n.name for n in made.with_counts(counts).topology.nodes() if n.group in counts]
    have = [n for n in nodes if n.group in counts]
    names = {n.name for n in have}
    missing = [name for name in wanted if name not in names]
    surplus = [n for n in reversed(have) if n.name not in wanted]
    have_now = {g.group_name: g.replicas for g in made.topology.worker_groups}
    larger = made.with_counts({group: max(n, have_now[group]) for group, n in counts.items()})
    if missing:
        cluster.need_head("no worker can join")
        refuse_unable(cluster.backend, larger.topology)
    on_plan(Plan(missing, missing, [n.name for n in surplus]))
    if missing:
        _add(cluster, larger, missing, timeout, parallelism, progress, on_undo)
    removed: list[Removal] = []
    for first in range(0, len(surplus), AT_A_TIME):
        removed += _take_away(cluster, surplus[first : first + AT_A_TIME], grace, on_removal)
    return Scaled(tuple(missing), tuple(removed))


def _add(
    cluster: Cluster,
    spec: ClusterSpec,
    names: Sequence[str],
    timeout: float,
    parallelism: int | None,
    progress: Callable[[StartEvent], None],
    on_undo: Callable[[], None],
) -> None:
    """Make and start nodes; all of them, or none."""
    try:
        cluster.backend.create(spec)
        cluster.start_nodes(names, timeout=timeout, parallelism=parallelism, progress=progress)
    except BaseException:
        on_undo()
        for name in names:
            # Some may not have been made; and the first error is the one to be told.
            with suppress(CannotRun, NotFound):
                cluster.backend.remove_node(cluster.name, name)
        raise


def _take_away(
    cluster: Cluster,
    nodes: Sequence[NodeRecord],
    grace: float,
    on_removal: Callable[[Removal], None],
) -> list[Removal]:
    removals = _what_runs_on(cluster, nodes)
    for removal in removals:
        on_removal(removal)
    # What cannot be stopped is killed as it is removed; and somebody else may have removed it.
    with suppress(CannotRun, NotFound):
        cluster.stop_together(nodes, grace, lambda event: None)
    for node in nodes:
        with suppress(NotFound):
            cluster.backend.remove_node(cluster.name, node.name)
    return removals


def _what_runs_on(cluster: Cluster, nodes: Sequence[NodeRecord]) -> list[Removal]:
    running = [n for n in nodes if n.state in ("running", "paused")]
    ids: dict[str, str] = {}
    work: Mapping[str, RunningWork] = {}
    unknown = ""
    if running:
        try:
            cluster.need_head("Ray cannot be asked what runs there")
            ids = {n.hostname: n.ray_node_id for n in cluster.ray.nodes() if n.alive}
            work = cluster.ray.running()
        except CannotRun as error:
            unknown = str(error)
    return [
        Removal(
            n.name,
            work.get(ids.get(n.hostname, ""), RunningWork()),
            unknown if n in running else "",
        )
        for n in nodes
    ]
