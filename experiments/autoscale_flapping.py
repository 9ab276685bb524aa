"""Bursts of work with pauses: what is launched anew for each of them, and what was kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simulator import Experiment, Step, TaskKind, Topology, Wave, Waves
from simulator.experiment import MaxRetries
from simulator.experiment import Params as BaseParams


class AutoscaleFlapping(Experiment):
    """Short bursts, with pauses that are shorter than the idle timeout unless told otherwise."""

    name = "autoscale_flapping"
    claim = "Nodes outlive pauses shorter than the idle timeout, so that a burst finds those of the one before."
    topology = "elastic"
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "demand_met",
        "launches_asked",
        "idle_leave",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        """How much comes, and how long it takes."""

        bursts: Annotated[int, Field(ge=2, le=100, description="how many bursts")] = 3
        tasks: Annotated[int, Field(ge=1, le=10000, description="tasks of each burst")] = 6
        pause_seconds: Annotated[
            float,
            Field(
                ge=0,
                le=3600,
                description="how long there is nothing to do between two bursts, seconds",
            ),
        ] = 8.0
        task_seconds: Annotated[
            float, Field(gt=0, le=600, description="nominal length of a task, seconds")
        ] = 1.0
        rest_seconds: Annotated[
            float,
            Field(
                ge=0, le=3600, description="how long there is nothing to do after the last, seconds"
            ),
        ] = 45.0
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Waves:
        """So many waves."""
        kinds = [TaskKind("cpu", {"CPU": 1}, params.tasks)]
        waves = [
            Wave(kinds, seconds=params.task_seconds, after_s=params.pause_seconds if n else 0.0)
            for n in range(params.bursts)
        ]
        return Waves(waves, rest_s=params.rest_seconds, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """Nothing is broken."""
        return ()

    def recovery_timeout(self, params: Params) -> float:
        """All of it is counted from the first burst on."""
        return 120.0 + params.bursts * (params.pause_seconds + 30.0) + params.rest_seconds

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """Until the nodes begin to leave."""
        return ("launch_asked", "node_alive", "demand_met", "first_gone")
