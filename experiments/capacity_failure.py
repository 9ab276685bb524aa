"""A burst of work while there is no machine to be had: Ray's autoscaler asks until there is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simulator import Experiment, Step, TaskKind, Topology, Wave, Waves
from simulator.experiment import MaxRetries
from simulator.experiment import Params as BaseParams


class CapacityFailure(Experiment):
    """Every request for a machine is refused for a while; the work waits."""

    name = "capacity_failure"
    claim = "Work that waits for machines which are sold out is done once there are some again, and nothing is lost."
    topology = "scarce"
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "demand_met",
        "launches_asked",
        "refusals_overcome",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        """How much comes, and how long it takes."""

        tasks: Annotated[int, Field(ge=1, le=10000, description="tasks of 1 CPU")] = 8
        task_seconds: Annotated[
            float, Field(gt=0, le=600, description="nominal length of a task, seconds")
        ] = 1.5
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Waves:
        """One wave."""
        wave = Wave([TaskKind("cpu", {"CPU": 1}, params.tasks)], seconds=params.task_seconds)
        return Waves([wave], max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """Nothing is broken."""
        return ()

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """Until all of it is done."""
        return ("demand_seen", "launch_asked", "node_alive", "first_task", "demand_met")
