"""A worker runs out of memory, and the kernel kills a process of it: the one that runs a task, as a rule.

The kernel's doing, not that of Ray's memory monitor: nobody is warned, the process is just gone. The node lives
on; the owner of the task sees a worker that crashed, and tries the task again.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.experiment import MaxRetries, Tasks
from simulator.topology import Topology


class OomKill(Experiment):
    """See the module's text."""

    name = "oom_kill"
    claim = (
        "The kernel kills a task for want of memory, and no task is lost and no result is wrong."
    )

    class Params(BaseParams):
        tasks: Tasks = 160
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return parse_schedule("oom one(worker) @10s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect"]
