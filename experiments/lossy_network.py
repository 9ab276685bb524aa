"""One worker's network loses packets, as with a bad cable or an overloaded switch.

TCP sends again what is lost, so Ray sees no loss but delay: up to some percent nobody notices; far above,
health checks time out, and a node that works is declared dead.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.experiment import MaxRetries, Tasks
from simulator.topology import Topology


class LossyNetwork(Experiment):
    """See the module's text."""

    name = "lossy_network"
    claim = (
        "A worker's network loses packets for a while, and no task is lost and no result is wrong."
    )

    class Params(BaseParams):
        percent: float = Field(5.0, gt=0, le=100, description="share of the packets, each way")
        seconds: float = Field(20.0, gt=0, le=3600, description="how long, seconds")
        tasks: Tasks = 200
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        lossy = f"loss(percent={params.percent:g}) one(worker)"
        return parse_schedule(f"{lossy} @10s for {params.seconds:g}s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect"]
