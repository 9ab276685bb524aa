"""The head is killed and started again: what outlives it, and how long a client waits.

What does is a matter of where the head keeps its tables: ``--set gcs=memory``, ``gcs=redis`` or ``gcs=rocksdb`` (which
the topology says). The report has a table of what survived, and every call that did not come back for a while.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import Experiment, Step, Survivors, Topology, parse_schedule
from simulator import Params as BaseParams
from simulator.errors import Problem


class HeadFailure(Experiment):
    """See the module's text."""

    name = "head_failure"
    claim = "What the head's store keeps outlives the head, the same as before; all else is lost, and is told to be."
    topology = "mortal_head"
    checks = ("outlives_head", "fault_hit_work", "recovers", "healed", "evidence")

    class Params(BaseParams):
        down: float = Field(
            3.0,
            ge=0,
            le=120,
            description="how long the head stays away before it is started, seconds",
        )
        task_seconds: float = Field(
            20.0, ge=1, le=600, description="how long the tasks take that run when it dies, seconds"
        )
        queued: int = Field(4, ge=0, le=1000, description="tasks that wait when it dies")
        serve: bool = Field(True, description="with a Serve application")

    def workload(self, params: Params) -> Survivors:
        return Survivors(params.task_seconds, params.queued, params.serve)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        """Once everything is there and in use."""
        return parse_schedule(f"kill head when 'mark(ready)' within 120s for {params.down:g}s")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """What there is in any case; how long a client waits is told, and is no promise."""
        return ("effect", "gcs_answers")

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        found = list(self.workload(params).problems(topology))
        if not topology.driver_node:
            found.append(
                Problem(
                    f"topology {topology.name}",
                    "has its drivers on the head, and they would die with it",
                    "--set driver_node=true",
                )
            )
        return found
