"""A soak: ten faults at random times on random workers, and the work must come out right.

What is drawn (when, whom) depends on the seed alone, so a run that fails is done again with `replay`, and
`shrink` finds which of its faults it takes to fail.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import Experiment, Step, TaskStream, parse_schedule
from simulator import Params as BaseParams
from simulator.experiment import MaxRetries
from simulator.topology import Topology


class RandomChaos(Experiment):
    """See the module's text."""

    name = "random_chaos"
    claim = "Whatever happens to the workers, one after the other, no task is lost and no result is wrong."
    checks = (
        "no_task_lost", "results_right", "executions_explained", "fault_hit_work", "healed", "evidence",
    )  # fmt: skip

    class Params(BaseParams):
        faults: int = Field(10, ge=1, le=1000, description="how many")
        gap: float = Field(
            20.0, ge=5, le=3600, description="from one to the next, at least, seconds"
        )
        max_retries: MaxRetries = -1

    def workload(self, params: Params) -> TaskStream:
        seconds = params.faults * 1.5 * params.gap
        return TaskStream(tasks=int(4 * seconds), max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        kinds = (
            "kill one(worker) {when} busy until dead",
            "pause one(worker) {when} for 2s busy",
            "stop(grace=5s) one(worker) {when} busy until dead",
            "restart one(worker) {when} busy",
            "pause one(worker) {when} busy until dead",
        )
        steps = []
        for i in range(params.faults):
            begin = 5 + i * 1.5 * params.gap
            when = f"@{begin:g}s..{begin + params.gap / 2:g}s"
            steps.append(kinds[i % len(kinds)].format(when=when))
        return parse_schedule("; ".join(steps))

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ()

    def recovery_timeout(self, params: Params) -> float:
        return 120.0
