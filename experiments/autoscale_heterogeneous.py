"""Work for CPUs and work for GPUs, one after the other and together: which machines are launched for which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from simulator import Experiment, Step, TaskKind, Topology, Wave, Waves
from simulator.experiment import MaxRetries
from simulator.experiment import Params as BaseParams


class AutoscaleHeterogeneous(Experiment):
    """A few CPU tasks, then GPU tasks, then more CPU tasks than the CPU workers can take."""

    name = "autoscale_heterogeneous"
    claim = "A GPU machine is launched for GPU work, and for CPU work only where the CPU groups are at their limits."
    topology = "elastic"
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "demand_met",
        "launches_asked",
        "groups_right",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        """How much comes, and how long it takes."""

        gpu_tasks: Annotated[int, Field(ge=1, le=1000, description="tasks of 1 GPU and 1 CPU")] = 3
        many: Annotated[int, Field(ge=1, le=10000, description="CPU tasks of the last wave")] = 16
        task_seconds: Annotated[
            float, Field(gt=0, le=600, description="nominal length of a task, seconds")
        ] = 2.0
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Waves:
        """Three waves."""
        few = Wave([TaskKind("cpu", {"CPU": 1}, 2)], seconds=params.task_seconds)
        gpu = Wave(
            [TaskKind("gpu", {"CPU": 1, "GPU": 1}, params.gpu_tasks)], seconds=params.task_seconds
        )
        many = Wave([TaskKind("cpu", {"CPU": 1}, params.many)], seconds=params.task_seconds)
        return Waves([few, gpu, many], max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """Nothing is broken."""
        return ()

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """All of growing."""
        return ("launch_asked", "node_alive", "first_task", "demand_met")
