"""The network splits: a minority of the workers is cut off from the head and all others.

Both sides live on. The GCS hears nothing of the minority and declares it dead; what ran there is done again on
the other side, while a raylet that is cut off goes on for up to a minute before it notices, so work may run
twice. When the network is whole again, the nodes that were given up exit and come back as new ones.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.experiment import MaxRetries, Tasks
from simulator.topology import Topology


class PartitionMinority(Experiment):
    """See the module's text."""

    name = "partition_minority"
    claim = "A minority is cut off for a while, and no task is lost and no result is wrong."

    class Params(BaseParams):
        seconds: float = Field(20.0, gt=0, le=3600, description="how long it is cut off, seconds")
        tasks: Tasks = 240
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return parse_schedule(f"partition minority from majority @10s for {params.seconds:g}s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect", "declared_dead", "rejoined", "full_throughput"]

    def recovery_timeout(self, params: Params) -> float:
        # An answer that was lost on its way is missed only by gRPC's keepalive, 5 + 2 minutes.
        return 480.0
