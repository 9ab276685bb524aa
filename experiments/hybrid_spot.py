"""GPU work on spot machines, CPU work on demand: GPU machines are taken back, and Ray's autoscaler has others come.

The recipe's hybrid cluster: a CPU head that stays, GPU workers that are cheap and may go. The report says what each
loss cost, and what the machines cost beside the same ones on demand.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import (
    Experiment,
    Finding,
    RunView,
    Step,
    TaskKind,
    Topology,
    Verdict,
    Wave,
    Waves,
    parse_schedule,
    register_check,
)
from simulator import Params as BaseParams
from simulator.checkers.costs import costs_of
from simulator.checkers.losses import losses_of
from simulator.errors import Problem
from simulator.experiment import MaxRetries

GROUP = "gpu"


class HybridSpot(Experiment):
    """See the module's text."""

    name = "hybrid_spot"
    claim = "GPU work gets done on spot machines though they are taken back, and for less than on demand."
    topology = "hybrid_spot"
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "demand_met",
        "launches_asked",
        "lost_replaced",
        "groups_right",
        "fault_hit_work",
        "spot_pays",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        gpu_tasks: int = Field(10, ge=1, le=10000, description="tasks of 1 GPU and 1 CPU")
        cpu_tasks: int = Field(
            6, ge=0, le=10000, description="tasks of 1 CPU, which come with them"
        )
        task_seconds: float = Field(
            5.0, ge=0.1, le=600, description="nominal length of a task, seconds"
        )
        notice: float = Field(
            8.0, gt=0, le=3600, description="from the notice to the end of a machine, seconds"
        )
        drain: bool = Field(True, description="whether Ray is told of the notice")
        at: float = Field(
            15.0, ge=0, le=3600, description="when the first one goes, seconds after the work began"
        )
        losses: int = Field(1, ge=1, le=100, description="how many are taken back")
        gap: float = Field(20.0, gt=0, le=3600, description="from one loss to the next, seconds")
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Waves:
        """All of it at once: more GPU tasks than there are GPU machines."""
        kinds = [TaskKind("gpu", {"CPU": 1, "GPU": 1}, params.gpu_tasks)]
        if params.cpu_tasks:
            kinds.append(TaskKind("cpu", {"CPU": 1}, params.cpu_tasks))
        return Waves([Wave(kinds, seconds=params.task_seconds)], max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """GPU machines are taken back while they work."""
        fault = f"preempt(notice={params.notice:g}s, drain={str(params.drain).lower()})"
        again = f" every {params.gap:g}s {params.losses} times" if params.losses > 1 else ""
        return parse_schedule(f"{fault} one({GROUP}) @{params.at:g}s{again} busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """Until what was lost is replaced, and all is done."""
        return ("effect", "launch_asked", "node_alive", "demand_met")

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        group = next((g for g in topology.worker_groups if g.group_name == GROUP), None)
        if group is not None and group.is_spot and group.price is not None:
            return ()
        return [
            Problem(
                f"topology {topology.name}",
                f"has no group {GROUP} of spot machines with a price",
                "use --topology hybrid_spot, or a copy of it",
            )
        ]


def spot_pays(view: RunView) -> Finding:
    """With all that was done twice, the machines cost less than the same ones on demand."""
    name = "spot_pays"
    costs, losses = costs_of(view), losses_of(view)
    cites = sorted({i for loss in losses for i in loss.to_data(0.0)["cites"]})
    if costs is None:
        return Finding(name, Verdict.UNKNOWN, "the topology has no prices")
    if not losses:
        return Finding(
            name, Verdict.UNKNOWN, "no machine was lost, so that there is nothing to set off"
        )
    if costs.saved is None or costs.on_demand is None or costs.paid is None:
        return Finding(name, Verdict.UNKNOWN, next(iter(costs.why.values()), "not known"), cites)
    metrics = {"paid": costs.paid, "on_demand": costs.on_demand, "losses": len(losses)}
    text = f"{costs.paid:.3g} was paid, on demand it would have been {costs.on_demand:.3g}"
    verdict = Verdict.VALID if costs.saved > 0 else Verdict.INVALID
    return Finding(name, verdict, text, cites, metrics=metrics)


register_check("spot_pays", spot_pays)
