"""A straggler: one worker gets a small part of a core, as on a machine that is throttled or shared with others.

Nothing dies, so nothing is retried: whatever is on the slow node is late, Ray goes on giving it work, and a
program that waits for its last task waits for that node. With ``speculate=true`` the program defends itself: what is
late is submitted a second time, and whichever copy comes back first counts. Neither copy is cancelled, so one
run shows both: how long the answers took, and how long they would have taken.
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
from simulator.experiment import DEFAULT_CHECKS, Tasks
from simulator.topology import Topology


class SlowNode(Experiment):
    """See the module's text."""

    name = "slow_node"
    claim = "A worker is slow for a while: it is not taken for dead, no task is lost, and none runs twice."
    checks = (*DEFAULT_CHECKS, "late_but_alive")

    class Params(BaseParams):
        cores: float = Field(0.1, ge=0.05, le=64, description="how much of a core it may use")
        seconds: float = Field(20.0, gt=0, le=3600, description="how long, seconds")
        speculate: bool = Field(False, description="submit what is late a second time")
        patience: float = Field(
            1.2,
            gt=0,
            le=3600,
            description="after how many seconds without an answer a task is late",
        )
        tasks: Tasks = 200

    def workload(self, params: Params) -> TaskStream:
        # Enough to compute that a small part of a core shows, and room for second copies.
        return TaskStream(
            tasks=params.tasks,
            in_flight_per_slot=1.0,
            loop=2_000_000,
            speculate_after_s=params.patience if params.speculate else None,
        )

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        slow = f"cpu_limit(cores={params.cores:g}) one(worker)"
        return parse_schedule(f"{slow} @10s for {params.seconds:g}s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect"]


def late_but_alive(view: RunView) -> Finding:
    """The slow node was late and never declared dead; where copies were made, one overtook its original."""
    name, at, params = "late_but_alive", view.history.at, view.spec["params"]
    struck = [op for op in view.history.of("fault.effect") if op.data["verified"]]
    if not struck:
        return Finding(name, Verdict.UNKNOWN, "no node was seen to be slow")
    node, since = struck[0].node, struck[0].index
    dead = [
        op.index
        for op in view.history.of("ray.node")
        if op.node == node and op.data["state"] == "DEAD" and op.index > since
    ]
    if dead:
        return Finding(name, Verdict.INVALID, f"{node} was declared dead", [since, *dead])
    asked = {op.data["key"]: op for op in view.history.of("driver.submit")}
    came = {op.data["key"]: op for op in view.history.of("driver.result")}
    alone, first, overtaken = [], [], []
    for key, submit in asked.items():
        copy = came.get(f"{key}-copy")
        if key not in came or key.endswith("-copy") or submit.data["fn"] != "square_sum":
            continue
        alone.append(at(came[key]) - at(submit))
        first.append(min(alone[-1], at(copy) - at(submit)) if copy else alone[-1])
        if copy and at(copy) < at(came[key]):
            overtaken.append(copy)
    late = sum(seconds > params["patience"] for seconds in alone)
    copies = sum(key.endswith("-copy") for key in asked)
    metrics = {
        "late": late,
        "copies": copies,
        "overtaken": len(overtaken),
        "longest_s": round(max(first, default=0.0), 3),
        "longest_without_copies_s": round(max(alone, default=0.0), 3),
    }
    if not late:
        return Finding(
            name, Verdict.UNKNOWN, f"{node} was slow, and nothing was late", metrics=metrics
        )
    text = f"{late} of {len(alone)} tasks were late, the slowest took {max(alone):.1f} s"
    if not params["speculate"]:
        return Finding(name, Verdict.VALID, text, [since], metrics=metrics)
    if not overtaken:
        text += "; no copy came back before its original"
        return Finding(name, Verdict.UNKNOWN, text, [since], metrics=metrics)
    text += f"; {len(overtaken)} of {copies} copies were first, and the last answer took {max(first):.1f} s"
    cites = [since, *(op.index for op in overtaken[:20])]
    return Finding(name, Verdict.VALID, text, cites, metrics=metrics)


register_check("late_but_alive", late_but_alive)
