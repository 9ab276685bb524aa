"""A straggler: one worker gets a small part of a core, as on a machine that is throttled or shared with others.

Nothing dies, so nothing is retried: whatever is on the slow node is late, and Ray goes on giving it work. That
is what this experiment shows, and that the node is not taken for dead.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.topology import Topology


class SlowNode(Experiment):
    """See the module's text."""

    name = "slow_node"
    claim = "A worker is slow for a while: it stays alive, no task is lost, and none runs twice."

    class Params(BaseParams):
        cores: float = Field(0.1, gt=0, le=64, description="how much of a core it may use")
        seconds: float = Field(20.0, gt=0, le=3600, description="how long, seconds")
        tasks: int = Field(200, ge=1, le=1_000_000, description="number of tasks planned")

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        slow = f"cpu_limit(cores={params.cores:g}) one(worker)"
        return parse_schedule(f"{slow} @10s for {params.seconds:g}s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect"]
