"""Three ways for a spot machine to go, one after the other in one run: killed, shut down, taken back after a notice.

The same work runs all the time. First a machine is killed without a word, then one gets SIGTERM, then one is
preempted: Ray is told when it will be gone, drains it, and it is killed at that moment. Each comes back before the
next one goes. The report holds the three side by side: what was cut off and done again, how long the place was
empty, and what all that did to the bill. With ``unheard=true`` there is a fourth: a notice of which nobody tells Ray.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import (
    Experiment,
    Finding,
    RunView,
    Step,
    TaskStream,
    Verdict,
    parse_schedule,
    register_check,
)
from simulator import Params as BaseParams
from simulator.checkers.losses import losses_of
from simulator.errors import Problem
from simulator.experiment import MaxRetries
from simulator.topology import Topology


class SpotPreemption(Experiment):
    """See the module's text."""

    name = "spot_preemption"
    claim = "A machine whose end Ray is told of in time takes no task along, and less work is lost than by a kill."
    topology = "spot"
    checks = (
        "no_task_lost",
        "results_right",
        "executions_explained",
        "fault_hit_work",
        "drained_in_time",
        "gentler_than_a_kill",
        "recovers",
        "healed",
        "evidence",
    )

    class Params(BaseParams):
        task_seconds: float = Field(
            2.0, ge=0.1, le=600, description="how long each task holds its slot, seconds"
        )
        notice: float = Field(
            10.0, gt=0, le=3600, description="from the notice to the end of the machine, seconds"
        )
        at: float = Field(
            15.0, ge=0, le=3600, description="when the first one goes, seconds after the load began"
        )
        unheard: bool = Field(False, description="also a notice of which nobody tells Ray")
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(
            tasks=60, task_seconds=params.task_seconds, max_retries=params.max_retries
        )

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        ways = ["kill", "stop", f"preempt(notice={params.notice:g}s)"]
        if params.unheard:
            ways.append(f"preempt(notice={params.notice:g}s, drain=false)")
        nodes = spot_nodes(topology)
        steps = [f"{ways[0]} {nodes[0]} @{params.at:g}s busy"]
        for i, way in enumerate(ways[1:], 1):
            # The one before is whole again by then; a slow machine may take its time for that.
            after = f"when 'fault(f{i}) == healed' within 300s"
            steps.append(f"{way} {nodes[i % len(nodes)]} {after} busy")
        return parse_schedule("; ".join(steps))

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        """Of the first one, which is killed."""
        return ("effect", "first_retry", "declared_dead", "rejoined")

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        found = []
        where = f"topology {topology.name}"
        if not spot_nodes(topology):
            found.append(
                Problem(where, "has no spot machine", "use --topology spot, or say market: spot")
            )
        if len(topology.workers()) < 2:
            found.append(
                Problem(where, "has one worker at most; another must take over", "--workers 2")
            )
        return found


def spot_nodes(topology: Topology) -> list[str]:
    """Names of the machines that may be taken back."""
    spot = {g.group_name for g in topology.worker_groups if g.is_spot}
    return [n.name for n in topology.workers() if n.group in spot]


def gentler_than_a_kill(view: RunView) -> Finding:
    """Less work was done twice after the preemption that Ray was told of than after the kill."""
    name = "gentler_than_a_kill"
    losses = {loss.way: loss for loss in losses_of(view)}
    killed, told = losses.get("kill"), losses.get("preempt, drained")
    if killed is None or told is None:
        lacks = "killed" if killed is None else "preempted after Ray was told"
        return Finding(name, Verdict.UNKNOWN, f"no machine was seen to be {lacks}")
    cites = sorted({i for loss in (killed, told) for i in loss.to_data(0.0)["cites"]})
    before, after = killed.repeated_s, told.repeated_s
    if before is None or after is None:
        why = next(iter((killed if before is None else told).why.values()), "lines are missing")
        return Finding(name, Verdict.UNKNOWN, why, cites)
    metrics = {"killed_s": round(before, 3), "told_s": round(after, 3)}
    text = f"{before:.1f} work-seconds went with the machine that was killed, {after:.1f} with the one Ray was told of"
    if before == 0:
        return Finding(
            name, Verdict.UNKNOWN, f"{text}: there is nothing to compare", cites, metrics=metrics
        )
    verdict = Verdict.VALID if after < before else Verdict.INVALID
    return Finding(name, verdict, text, cites, metrics=metrics)


register_check("gentler_than_a_kill", gentler_than_a_kill)
