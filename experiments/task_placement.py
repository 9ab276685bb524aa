"""Five kinds of tasks compete for the nodes; does each run only where what it needs is, within what is there?

Tasks for a whole GPU, for half of one, for a CPU, for a custom resource and for nodes with a label are submitted
together, more of each than fit at once, so that every limit is reached again and again. Nothing is broken: what
is judged is where Ray puts them. What a task needs is taken from the run's spec and where it ran from the
effect ledger, so the judgement does not rest on what Ray believes. That it can fail is shown by a planted
mistake, ``violation=gpu_not_asked``: tasks that need a GPU are submitted without asking for one.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import Field

from simulator.errors import Problem
from simulator.experiment import Experiment
from simulator.experiment import Params as BaseParams
from simulator.schedule import Step
from simulator.topology import Topology
from simulator.workload import Placement, TaskKind

_LABEL = re.compile(r"[A-Za-z0-9][\w./-]*=[A-Za-z0-9][\w.-]*")

#: Resources that Ray has a meaning of its own for.
_RAYS_OWN = ("CPU", "GPU", "memory", "object_store_memory")


class TaskPlacement(Experiment):
    """See the module's text."""

    name = "task_placement"
    claim = (
        "Tasks that need a GPU, half of one, a CPU, a custom resource or a label run only where that is, "
        "and no node is ever given more than it offers."
    )
    topology = "hybrid"
    # Nothing is broken, so nothing recovers; that the cluster is at rest afterwards is judged by `healed`.
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "placed_right",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        tasks: int = Field(20, ge=1, le=2_000, description="number of tasks of each kind")
        task_seconds: float = Field(
            0.5, ge=0.05, le=600, description="how long each holds what it asked for, seconds"
        )
        resource: str = Field("ssd", description="the custom resource; some nodes must offer it")
        label: str = Field(
            "ray.io/market-type=spot",
            description="the label, key=value; some nodes must have it and others not",
        )
        violation: Literal["none", "gpu_not_asked"] = Field(
            "none",
            description="a mistake to plant: gpu_not_asked submits tasks that need a GPU without asking for it",
        )

    def workload(self, params: Params) -> Placement:
        key, _, value = params.label.partition("=")
        omitted = ("GPU",) if params.violation == "gpu_not_asked" else ()
        count = params.tasks
        return Placement(
            kinds=(
                TaskKind("whole_gpu", {"CPU": 1, "GPU": 1}, count, omits=omitted),
                TaskKind("half_gpu", {"CPU": 0.5, "GPU": 0.5}, count, company=2),
                TaskKind("cpu_only", {"CPU": 1}, count),
                TaskKind("custom", {"CPU": 1, params.resource: 1}, count),
                TaskKind("labelled", {"CPU": 1}, count, labels={key: value}),
            ),
            task_seconds=params.task_seconds,
        )

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return ()

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ()

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        malformed = list(_malformed(params))
        if malformed:
            return malformed
        kinds = self.workload(params).kinds
        lacking = [*_lacking(kinds, topology), *_no_difference(params, topology)]
        return lacking or [*_out_of_reach(kinds, topology), *_too_few(params, kinds, topology)]


def _malformed(params: TaskPlacement.Params) -> Iterator[Problem]:
    if not _LABEL.fullmatch(params.label):
        yield Problem(
            f"--param label={params.label}",
            "is not key=value of a label",
            "for example --param label=ray.io/market-type=spot",
        )
    if not params.resource or params.resource in _RAYS_OWN:
        yield Problem(
            f"--param resource={params.resource}",
            "is not a custom resource",
            "name one that nodes of the topology offer, such as --param resource=ssd",
        )


def _lacking(kinds: Sequence[TaskKind], topology: Topology) -> Iterator[Problem]:
    """What no node of the topology offers, each thing once."""
    nodes = topology.nodes()
    where = f"topology {topology.name}"
    missing = {r: None for k in kinds for r in k.resources if not topology.total(r)}
    for name in missing:
        custom = {r for n in nodes for r, amount in n.resources.items() if amount} - {*_RAYS_OWN}
        others = f", or --param resource={sorted(custom)[0]}" if custom else ""
        remedy = f"--topology hybrid, or --set head.resources.{name}=1"
        yield Problem(
            where, f"offers no {name}", remedy if name in _RAYS_OWN else f"{remedy}{others}"
        )
    for kind in kinds:
        for key, value in kind.labels.items():
            if not any(n.labels.get(key) == value for n in nodes):
                has = sorted({f"{k}={v}" for n in nodes for k, v in n.labels.items()})
                others = f"; its nodes have {', '.join(has)}" if has else "; its nodes have none"
                yield Problem(
                    where,
                    f"has no node with the label {key}={value}{others}",
                    f"--topology hybrid, or --set 'head.labels={{{key}: {value}}}'",
                )
                break
        else:
            if not missing.keys() & kind.resources.keys() and not any(map(kind.fits, nodes)):
                wants = " and ".join(f"{a:g} {r}" for r, a in kind.resources.items())
                yield Problem(
                    where,
                    f"has no node that offers {wants} together{_labelled(kind)}",
                    "give a node that has the one the other too: --set head.resources.CPU=2",
                )


def _labelled(kind: TaskKind) -> str:
    return "".join(f", with the label {key}={value}" for key, value in kind.labels.items())


def _no_difference(params: TaskPlacement.Params, topology: Topology) -> Iterator[Problem]:
    key, _, value = params.label.partition("=")
    nodes = [n for n in topology.nodes() if n.resources.get("CPU", 0) >= 1]
    if nodes and all(n.labels.get(key) == value for n in nodes):
        yield Problem(
            f"--param label={params.label}",
            f"every node of topology {topology.name} with a CPU has it: no task could be in a wrong place",
            "name a label that some nodes have and others do not",
        )


def _out_of_reach(kinds: Sequence[TaskKind], topology: Topology) -> Iterator[Problem]:
    """Resources of which no node can ever have all in use: their limit would not be tested."""
    for name in dict.fromkeys(r for k in kinds for r in k.resources):
        offering = [n for n in topology.nodes() if n.resources.get(name)]
        if not any(
            abs(k.fits(n) * k.resources[name] - n.resources[name]) < 1e-6
            for n in offering
            for k in kinds
            if name in k.resources
        ):
            first = offering[0]
            yield Problem(
                f"topology {topology.name}",
                f"has no node whose {name} can all be in use at once ({first.name} offers "
                f"{first.resources[name]:g}, and {first.resources.get('CPU', 0):g} CPU): "
                "that limit would not be tested",
                f"offer a whole number of {name}, and at least as many CPUs on the same node",
            )


def _too_few(
    params: TaskPlacement.Params, kinds: Sequence[TaskKind], topology: Topology
) -> Iterator[Problem]:
    at_once = {k.name: sum(map(k.fits, topology.nodes())) for k in kinds}
    most = max(at_once, key=lambda name: at_once[name])
    if params.tasks <= at_once[most]:
        yield Problem(
            f"--param tasks={params.tasks}",
            f"{at_once[most]} {most} tasks fit at once on topology {topology.name}, so none would have to "
            "wait and no limit would be tested",
            f"--param tasks={2 * at_once[most]} or more",
        )
