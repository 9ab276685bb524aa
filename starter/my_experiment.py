"""A worker dies while others go on; how much of the work has to be done again?

Run it:   python -m simulator run ./my_experiment.py
Test it:  python -m pytest test_my_experiment.py
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pydantic import Field

from simulator import (
    Experiment,
    Finding,
    Kill,
    RandomWorker,
    RunView,
    Step,
    TaskStream,
    Topology,
    Verdict,
    WhenDeclaredDead,
    register_check,
)
from simulator import Params as BaseParams


class MyExperiment(Experiment):
    name = "my_experiment"
    # One sentence that a run can refute. The checks are what refutes it.
    claim = "A worker dies, no task is lost, and little is done twice."
    topology = str(Path(__file__).with_name("my_topology.yaml"))
    checks = (
        *("no_task_lost", "results_right", "fault_hit_work", "recovers", "healed", "evidence"),
        "little_redone",
    )

    class Params(BaseParams):
        """Each is set with --param NAME=VALUE; what does not fit is refused before anything starts."""

        tasks: int = Field(120, ge=1, description="number of tasks planned")
        at_most: int = Field(5, ge=0, description="so many tasks may run more than once")

    def workload(self, params: Params) -> TaskStream:
        """What runs meanwhile: tasks on every node, whose results can be recomputed."""
        return TaskStream(tasks=params.tasks)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """Who is hit by what, when, and when that is undone. The seed draws the worker."""
        return [
            Step(
                at=6.0,  # seconds after the load began
                fault=Kill(),
                target=RandomWorker(),
                heal=WhenDeclaredDead(),
                when_busy=True,
            )
        ]

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """Without these phases of recovery the verdict is unknown: nothing was learned."""
        return ("effect", "declared_dead", "rejoined")


def little_redone(view: RunView) -> Finding:
    """Few tasks ran more than once."""
    runs: dict[str, list[int]] = {}
    for op in view.history.of("task.start"):
        runs.setdefault(str(op.data["key"]), []).append(op.index)
    if not runs:  # nothing to judge is unknown, never a pass
        return Finding("little_redone", Verdict.UNKNOWN, "no task ran")
    again = {key: ops for key, ops in runs.items() if len(ops) > 1}
    limit = int(view.spec["params"]["at_most"])
    verdict = Verdict.VALID if len(again) <= limit else Verdict.INVALID
    text = f"{len(again)} of {len(runs)} tasks ran more than once; {limit} may"
    return Finding("little_redone", verdict, text, [op for ops in again.values() for op in ops])


register_check("little_redone", little_redone)
