"""A burst of work on a cluster that has no workers: Ray's autoscaler asks for them, and they come."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simulator import Experiment, Step, TaskKind, Topology, Wave, Waves
from simulator.experiment import MaxRetries
from simulator.experiment import Params as BaseParams


class AutoscaleUp(Experiment):
    """More tasks than there are slots, and a placement group that fits nowhere, all at once."""

    name = "autoscale_up"
    claim = "Work that fits nowhere gets the nodes that it needs, and none are launched that Ray did not ask for."
    topology = "elastic"
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "demand_met",
        "launches_asked",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        """How much comes at once."""

        tasks: Annotated[int, Field(ge=1, le=10_000, description="tasks of 1 CPU")] = 12
        task_seconds: Annotated[
            float, Field(gt=0, le=600, description="nominal length of a task, seconds")
        ] = 1.5
        bundles: Annotated[
            int, Field(ge=0, le=100, description="bundles of 1 CPU of the placement group")
        ] = 2
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Waves:
        """One wave."""
        wave = Wave(
            kinds=[TaskKind("cpu", {"CPU": 1}, params.tasks)],
            seconds=params.task_seconds,
            bundles=[{"CPU": 1}] * params.bundles,
            strategy="SPREAD",
        )
        return Waves([wave], max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """Nothing is broken."""
        return ()

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """All of growing; shrinking is another story."""
        return (
            "demand_seen",
            "launch_asked",
            "machine_up",
            "node_alive",
            "first_task",
            "demand_met",
        )
