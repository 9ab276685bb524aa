"""The process that runs a task crashes, as by a segmentation fault in a library; its node notices nothing.

The raylet sees the process end and tells the task's owner at once: no failure detector is involved, and the
task is tried again, where there is room, within a moment.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.experiment import MaxRetries, Tasks
from simulator.topology import Topology


class WorkerProcessCrash(Experiment):
    """See the module's text."""

    name = "worker_process_crash"
    claim = "A task's process crashes, and the task is done again; its node stays as it is."

    class Params(BaseParams):
        tasks: Tasks = 160
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks, task_seconds=1.0, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return parse_schedule('crash_process("task:square_sum") one(worker) @10s busy')

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect"]
