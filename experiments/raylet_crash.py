"""The raylet of a worker crashes; the machine lives on, and with it its address.

Unlike a machine that is gone, this node answers: connections are refused, so its death is noticed sooner. PID 1
ends the node, as the service that runs Ray does in production, and the node comes back as a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.experiment import PHASES, MaxRetries, Tasks
from simulator.topology import Topology


class RayletCrash(Experiment):
    """See the module's text."""

    name = "raylet_crash"
    claim = (
        "A raylet crashes in the middle of its work, and no task is lost and no result is wrong."
    )

    class Params(BaseParams):
        tasks: Tasks = 160
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return parse_schedule("crash_process(raylet) one(worker) @10s busy until dead")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return PHASES
