"""A worker freezes for a while, as a machine does whose hypervisor, disk or memory stalls. Does Ray bear with it?

A pause that is shorter than failure detection is survived: the node goes on where it was, and its work is only
late. A longer one is not: the GCS declares the node dead, its work is done elsewhere, and when it
thaws the raylet finds that it was given up, and exits; the node comes back as a new one.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import (
    After,
    Experiment,
    Finding,
    Named,
    Pause,
    RandomWorker,
    RunView,
    Step,
    TaskStream,
    Verdict,
    register_check,
)
from simulator import Params as BaseParams
from simulator.experiment import Tasks
from simulator.topology import Topology


class WorkerPause(Experiment):
    """See the module's text."""

    name = "worker_pause"
    claim = "A short pause is survived by the node, a long one by the work."
    checks = (
        "no_task_lost", "results_right", "executions_explained", "fault_hit_work", "recovers",
        "given_up_only_after_a_long_pause", "healed", "evidence",
    )  # fmt: skip

    class Params(BaseParams):
        seconds: float = Field(20.0, gt=0, le=3600, description="how long it is frozen, seconds")
        survived: bool = Field(
            False, description="whether that is short enough for Ray to bear with it"
        )
        victim: str = Field("random", description="which worker: a name, or random")
        tasks: Tasks = 200

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        target = RandomWorker() if params.victim == "random" else Named(params.victim)
        return [Step(10, Pause(), target, After(params.seconds), when_busy=True)]

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        if params.survived:
            return ["effect"]
        # What was under way is not tried again: its owner takes the late result when the node thaws.
        return ["effect", "declared_dead", "rejoined", "full_throughput"]


def given_up_only_after_a_long_pause(view: RunView) -> Finding:
    """A node that froze was declared dead if and only if the pause was said to be long."""
    name = "given_up_only_after_a_long_pause"
    struck = view.history.of("fault.effect")
    if not struck or not struck[0].data["verified"]:
        return Finding(name, Verdict.UNKNOWN, "no node was seen to freeze")
    node, since = struck[0].node, struck[0].index
    dead = [
        op.index
        for op in view.history.of("ray.node")
        if op.node == node and op.data["state"] == "DEAD" and op.index > since
    ]
    wanted = not view.spec["params"]["survived"]
    words = f"{node} was {'' if dead else 'not '}declared dead"
    verdict = Verdict.VALID if bool(dead) == wanted else Verdict.INVALID
    return Finding(name, verdict, words, [since, *dead])


register_check("given_up_only_after_a_long_pause", given_up_only_after_a_long_pause)
