"""The disk that a worker spills objects to is full for a while, as when something else writes to it.

What fits in the object store is made and read as ever. What does not fit has nowhere to go, so Ray fails the task
that made it, at once and by name: `OutOfDiskError`, which is not tried again. Once there is room, all goes on.
The workers keep more than their stores hold; see `Hoard`.
"""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import Field

from simulator import (
    Experiment,
    Finding,
    Hoard,
    RunView,
    Step,
    Verdict,
    parse_schedule,
    register_check,
)
from simulator import Params as BaseParams
from simulator.errors import Problem
from simulator.experiment import MaxRetries, Tasks
from simulator.topology import Topology

#: What Ray says of an object that has nowhere to go.
NAME = "OutOfDiskError"


class DiskFull(Experiment):
    """See the module's text."""

    name = "disk_full"
    claim = (
        "The disk that a worker spills to is full for a while: what does not fit fails by its name, nothing else "
        "fails, no result is wrong, and then it goes on."
    )
    topology = "spilling"
    checks = (
        "results_right", "executions_explained", "only_what_does_not_fit_fails", "fault_hit_work", "recovers",
        "healed", "evidence",
    )  # fmt: skip

    class Params(BaseParams):
        seconds: float = Field(20.0, gt=0, le=3600, description="how long it is full, seconds")
        kept: int = Field(
            12, ge=1, le=10_000, description="how many blocks of 8 MiB a worker keeps"
        )
        tasks: Tasks = 300
        max_retries: MaxRetries = 3

    def workload(self, params: Params) -> Hoard:
        return Hoard(tasks=params.tasks, kept=params.kept, max_retries=params.max_retries)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return parse_schedule(f"disk_full one(worker) @15s for {params.seconds:g}s busy")

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ["effect"]

    def problems(self, params: Params, topology: Topology) -> Sequence[Problem]:
        if any(not node.spill_size for node in topology.workers()):
            text = "has workers without a disk of their own to spill to"
            return [
                Problem(
                    f"topology {topology.name}", text, "set spill_size, or use topology spilling"
                )
            ]
        return []


def only_what_does_not_fit_fails(view: RunView) -> Finding:
    """Tasks fail for want of disk while it is full, for nothing else and at no other time."""
    name, at = "only_what_does_not_fit_fails", view.history.at
    full = [op for op in view.history.of("fault.effect") if op.data["verified"]]
    failures = list(view.history.of("driver.failure"))
    metrics = {"failed": len(failures)}
    other = [op for op in failures if NAME not in f"{op.data['error']} {op.data['message']}"]
    if other:
        text = f"{other[0].data['key']} failed with {other[0].data['error']}"
        more = f" (and {len(other) - 1} more)" if len(other) > 1 else ""
        return Finding(
            name, Verdict.INVALID, text + more, [op.index for op in other[:20]], metrics=metrics
        )
    if not full:
        return Finding(name, Verdict.UNKNOWN, "no disk was seen to be full", metrics=metrics)
    begin = at(next(iter(view.history.of("fault.inject"))))
    healed = list(view.history.of("fault.healed"))
    # The owner hears of a failure some moments after it.
    end = at(healed[-1]) + 5.0 if healed else float("inf")
    late = [op for op in failures if not begin <= at(op) <= end]
    if late:
        text = f"{late[0].data['key']} failed for want of disk when there was room"
        return Finding(name, Verdict.INVALID, text, [op.index for op in late[:20]], metrics=metrics)
    if not failures:
        text = "nothing failed, so everything fitted: keep more blocks, or fill the disk for longer"
        return Finding(name, Verdict.UNKNOWN, text, metrics=metrics)
    after = [op for op in view.history.of("driver.result") if healed and at(op) > at(healed[-1])]
    metrics["after"] = len(after)
    if not after:
        text = "nothing came back after there was room, so nobody saw it go on"
        return Finding(name, Verdict.UNKNOWN, text, metrics=metrics)
    text = f"{len(failures)} failed while the disk was full, all with {NAME}; {len(after)} came back afterwards"
    return Finding(name, Verdict.VALID, text, [op.index for op in failures[:20]], metrics=metrics)


register_check("only_what_does_not_fit_fails", only_what_does_not_fit_fails)
