"""A worker is killed in the middle of its work; is anything lost, and where do the seconds go?

Real work runs on every node: tasks whose results can be recomputed, objects whose only copy is on one
worker, and a stateful actor on each. After a warm-up that gives the baseline, one worker is killed with
SIGKILL. Ray has to notice, run the lost tasks elsewhere, bring the actor back, rebuild the lost object; when
it has declared the node dead the node is started again, joins, and takes its share of the work.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator.errors import NotFound, Problem
from simulator.experiment import PHASES, Experiment, MaxRetries, Tasks
from simulator.experiment import Params as BaseParams
from simulator.faults import Kill
from simulator.schedule import Named, Never, RandomWorker, Step, WhenDeclaredDead
from simulator.topology import Topology
from simulator.workload import TaskStream


class NodeFailure(Experiment):
    """See the module's text."""

    name = "node_failure"
    claim = "A worker dies in the middle of its work, and no task is lost and no result is wrong."

    class Params(BaseParams):
        tasks: Tasks = 160
        task_seconds: float = Field(
            0.5, ge=0.05, le=600, description="how long each holds its slot, seconds"
        )
        max_retries: MaxRetries = 3
        victim: str = Field(
            "random", description="which worker dies: a name, or random (drawn with the seed)"
        )
        at: float = Field(
            10.0, ge=0, le=86_400, description="when it dies, seconds after the load began"
        )
        comes_back: bool = Field(True, description="start it again once Ray has declared it dead")
        recovery_timeout: float = Field(
            120.0,
            gt=0,
            le=86_400,
            description="the last phase must be over within this time, seconds",
        )

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(
            tasks=params.tasks, task_seconds=params.task_seconds, max_retries=params.max_retries
        )

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return [
            Step(
                at=params.at,
                fault=Kill(),
                target=RandomWorker() if params.victim == "random" else Named(params.victim),
                heal=WhenDeclaredDead() if params.comes_back else Never(),
                when_busy=True,
            )
        ]

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        if params.comes_back:
            return PHASES
        return [phase for phase in PHASES if phase not in ("rejoined", "full_throughput")]

    def recovery_timeout(self, params: Params) -> float:
        return params.recovery_timeout

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        workers = [n.name for n in topology.workers()]
        if len(workers) < 2:
            return [
                Problem(
                    f"topology {topology.name}",
                    f"has {len(workers)} workers; one dies and another must take over",
                    "--workers 2 or more",
                )
            ]
        if params.victim != "random" and params.victim not in workers:
            return [
                Problem(
                    f"--param victim={params.victim}",
                    str(NotFound("worker", params.victim, workers)),
                )
            ]
        return []
