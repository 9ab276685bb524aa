"""The Redis in which the head keeps its tables stalls, starts again or cannot be reached for a while.

What needs the GCS waits for it; actors, tasks and Serve do not. A blip that is longer than the GCS waits ends the GCS
and with it the head, which is started again: then this is ``head_failure``, and the same is to survive.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field

from simulator import (
    Experiment,
    Finding,
    RunView,
    Step,
    Survivors,
    Topology,
    Verdict,
    parse_schedule,
    register_check,
)
from simulator import Params as BaseParams
from simulator.checkers.survival import CALLS, OF_THE_GCS, survival_of
from simulator.errors import Problem

#: A call that waits for longer than this has been held up, seconds: what shares two cores is late now and then.
HELD_UP_S = 5.0


class RedisBlip(Experiment):
    """See the module's text."""

    name = "redis_blip"
    claim = (
        "While Redis is away, only what needs the GCS waits, and afterwards everything is there."
    )
    topology = "redis_store"
    checks = (
        "outlives_head",
        "work_goes_on",
        "fault_hit_work",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        way: Literal["pause", "kill", "partition"] = Field(
            "pause", description="frozen; killed and started again; cut off from the head"
        )
        seconds: float = Field(10.0, gt=0, le=300, description="how long it is away, seconds")
        task_seconds: float = Field(
            25.0, ge=1, le=600, description="how long the tasks take that run meanwhile, seconds"
        )

    def workload(self, params: Params) -> Survivors:
        return Survivors(params.task_seconds)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        far = " from head" if params.way == "partition" else ""
        when = f"when 'mark(ready)' within 120s for {params.seconds:g}s"
        return parse_schedule(f"{params.way} redis{far} {when}")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ("effect", "first_call")

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        found = list(self.workload(params).problems(topology))
        if topology.store is None:
            found.append(
                Problem(
                    f"topology {topology.name}",
                    f"keeps the head's tables in {topology.gcs.value}, and not in a Redis",
                    "use --topology redis_store, or --set gcs=redis",
                )
            )
        return found


def work_goes_on(view: RunView) -> Finding:
    """What needs no GCS came back all the while, and what needs it did not."""
    name = "work_goes_on"
    found = survival_of(view)
    if found is None:
        return Finding(name, Verdict.UNKNOWN, "no client called anything")
    cites = sorted({op.index for outage in found.outages for op in outage.ops})
    held = [
        o
        for o in found.outages
        if o.what not in OF_THE_GCS and (o.seconds is None or o.seconds > HELD_UP_S)
    ]
    if held:
        first = held[0]
        took = "never came back" if first.seconds is None else f"waited {first.seconds:.1f} s"
        return Finding(name, Verdict.INVALID, f"{CALLS[first.what]} {took}", cites)
    waited = [o for o in found.outages if o.what in OF_THE_GCS]
    if not waited:
        return Finding(name, Verdict.UNKNOWN, "nothing waited for the GCS: nobody noticed the blip")
    longest = max(waited, key=lambda o: o.seconds or 0.0)
    text = f"{CALLS[longest.what]} waited {longest.seconds or 0.0:.1f} s; what needs no GCS did not wait"
    return Finding(name, Verdict.VALID, text, cites)


register_check("work_goes_on", work_goes_on)
