"""Packets pass in one direction only: a worker hears nothing of the others, or they hear nothing of it.

The nastiest of partitions, since what was said still arrives and is acted on. To Ray both look alike: a TCP
connection needs answers, so none works, and the GCS gives the node up.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.experiment import MaxRetries, Tasks
from simulator.topology import Topology


class OneWayPartition(Experiment):
    """See the module's text."""

    name = "one_way_partition"
    claim = "A worker is cut off in one direction, and no task is lost and no result is wrong."

    class Params(BaseParams):
        direction: Literal["in", "out"] = Field(
            "in", description="in: the worker hears nothing; out: nobody hears it"
        )
        seconds: float = Field(20.0, gt=0, le=3600, description="how long, seconds")
        tasks: Tasks = 240
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        cut = f"partition(direction={params.direction}) one(worker)"
        return parse_schedule(f"{cut} @10s for {params.seconds:g}s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect", "declared_dead", "rejoined", "full_throughput"]

    def recovery_timeout(self, params: Params) -> float:
        # An answer that was lost on its way is missed only by gRPC's keepalive, 5 + 2 minutes.
        return 480.0
