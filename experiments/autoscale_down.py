"""Two waves of work with a rest between them and after: idle nodes leave, and none that has something to do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simulator import Experiment, Step, TaskKind, Topology, Wave, Waves
from simulator.experiment import MaxRetries
from simulator.experiment import Params as BaseParams


class AutoscaleDown(Experiment):
    """A wave that needs all nodes, then one long task, then nothing."""

    name = "autoscale_down"
    claim = "Nodes without work leave after the idle timeout, and one that works stays however long it takes."
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
        """How much comes, and for how long nothing does."""

        tasks: Annotated[int, Field(ge=1, le=10_000, description="tasks of the first wave")] = 8
        task_seconds: Annotated[
            float, Field(gt=0, le=600, description="nominal length of a task, seconds")
        ] = 1.5
        long_seconds: Annotated[
            float,
            Field(gt=0, le=3600, description="length of the one task of the second wave, seconds"),
        ] = 30.0
        rest_seconds: Annotated[
            float, Field(ge=0, le=3600, description="how long there is nothing to do then, seconds")
        ] = 40.0
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Waves:
        """All nodes, then one of them."""
        many = Wave([TaskKind("cpu", {"CPU": 1}, params.tasks)], seconds=params.task_seconds)
        one = Wave([TaskKind("long", {"CPU": 1}, 1)], seconds=params.long_seconds)
        return Waves([many, one], rest_s=params.rest_seconds, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """Nothing is broken."""
        return ()

    def recovery_timeout(self, params: Params) -> float:
        """All of it is counted from the first wave on."""
        return 120.0 + params.long_seconds + params.rest_seconds

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """Until as few nodes as may be are left."""
        return ("launch_asked", "node_alive", "demand_met", "first_gone", "least_left")
