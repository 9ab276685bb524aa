"""A machine is lost in the middle of its work: Ray's autoscaler has another one come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simulator import Experiment, Step, TaskKind, Topology, Wave, Waves, parse_schedule
from simulator.experiment import MaxRetries
from simulator.experiment import Params as BaseParams


class NodeLossReplaced(Experiment):
    """Long tasks on all CPU workers, one of which is killed."""

    name = "node_loss_replaced"
    claim = "A machine that is lost while there is work for it is replaced, and its work is done."
    topology = "elastic"
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "demand_met",
        "launches_asked",
        "lost_replaced",
        "fault_hit_work",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        """How much comes, and how long it takes."""

        tasks: Annotated[int, Field(ge=1, le=10000, description="tasks of 1 CPU")] = 12
        task_seconds: Annotated[
            float, Field(gt=0, le=600, description="nominal length of a task, seconds")
        ] = 6.0
        at: Annotated[
            float,
            Field(
                ge=0,
                le=3600,
                description="when the machine is killed, seconds after the work began",
            ),
        ] = 20.0
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Waves:
        """One wave, longer than it takes to have all workers."""
        wave = Wave([TaskKind("cpu", {"CPU": 1}, params.tasks)], seconds=params.task_seconds)
        return Waves([wave], max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """One CPU worker, while it works."""
        return parse_schedule(f"kill one(cpu) @{params.at:g}s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """Until what was lost is replaced, and all is done."""
        return ("effect", "launch_asked", "node_alive", "demand_met")
