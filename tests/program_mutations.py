"""Ways in which a program's run could have gone wrong, as `history_mutations` has them for our workloads.

They apply to the valid run of a program whose worker was killed, which reports effects and says how many.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from history_mutations import (
    INVALID,
    UNKNOWN,
    Mutated,
    NotHere,
    altered,
    doubled,
    first_fault,
    of_kind,
    some,
    without,
    without_fault,
)

from simulator.checkers.base import RunView, Verdict
from simulator.checkers.index import index_of
from simulator.checkers.program import ProgramTask, tasks_of
from simulator.history import History, Op

Mutation = Callable[[RunView], Mutated]
MUTATIONS: dict[str, Mutation] = {}


def mutation(function: Mutation) -> Mutation:
    MUTATIONS[function.__name__] = function
    return function


def cut_task(view: RunView) -> ProgramTask:
    found: ProgramTask = some(
        (t for t in tasks_of(view) if t.finished and t.attempts[0].data["state"] == "FAILED"),
        "task that was cut off and finished",
    )
    return found


def of_effects(view: RunView) -> dict[str, Verdict]:
    """Whether none is missing is unknown too, where there are any."""
    return {"effects_exactly_once": UNKNOWN} if view.history.of("program.effect") else {}


def ended(view: RunView, **data: Any) -> RunView:
    return altered(view, of_kind(view, "program.end"), **data)


# How it ended


@mutation
def it_failed(view: RunView) -> Mutated:
    lines = ["Traceback (most recent call last):", "ValueError: wrong"]
    changed = ended(view, status="FAILED", exit_code=1, lines=lines)
    return Mutated(changed, {"program_ended_well": INVALID})


@mutation
def it_took_too_long(view: RunView) -> Mutated:
    changed = ended(view, status="STOPPED", exit_code=None, why="it was not over within 9 s")
    return Mutated(changed, {"program_ended_well": INVALID, **of_effects(view)})


@mutation
def somebody_stopped_it(view: RunView) -> Mutated:
    changed = ended(view, status="STOPPED", exit_code=None)
    return Mutated(changed, {"program_ended_well": UNKNOWN, **of_effects(view)})


@mutation
def it_was_lost_from_sight(view: RunView) -> Mutated:
    changed = ended(view, status="LOST", exit_code=None, seconds=None)
    return Mutated(changed, {"program_ended_well": UNKNOWN, **of_effects(view)})


@mutation
def nobody_saw_its_end(view: RunView) -> Mutated:
    changed = without(view, of_kind(view, "program.end"))
    return Mutated(changed, {"program_ended_well": UNKNOWN, **of_effects(view)})


# What became of its tasks


@mutation
def the_second_attempt_is_missing(view: RunView) -> Mutated:
    return Mutated(without(view, cut_task(view).last), {"attempts_recovered": INVALID})


@mutation
def the_second_attempt_failed_too(view: RunView) -> Mutated:
    changed = altered(view, cut_task(view).last, state="FAILED", error_type="WORKER_DIED")
    return Mutated(changed, {"attempts_recovered": INVALID})


@mutation
def attempts_dropped(view: RunView) -> Mutated:
    changed = altered(view, of_kind(view, "attempts.complete"), dropped=7)
    return Mutated(changed, {"attempts_recovered": UNKNOWN, "evidence": UNKNOWN})


@mutation
def attempts_forgotten(view: RunView) -> Mutated:
    changed = altered(view, of_kind(view, "attempts.complete"), forgotten=True)
    return Mutated(changed, {"attempts_recovered": UNKNOWN, "evidence": UNKNOWN})


@mutation
def attempts_not_collected(view: RunView) -> Mutated:
    changed = without(view, of_kind(view, "attempts.complete"))
    return Mutated(changed, {"attempts_recovered": UNKNOWN, "evidence": UNKNOWN})


@mutation
def no_attempt_at_all(view: RunView) -> Mutated:
    gone = view.history.of("program.attempt", "attempt.failed", "program.actor")
    changed = without(view, *gone)
    return Mutated(changed, {"attempts_recovered": UNKNOWN, "fault_hit_work": UNKNOWN})


# What it reports


@mutation
def an_effect_twice(view: RunView) -> Mutated:
    changed = doubled(view, of_kind(view, "program.effect"))
    return Mutated(changed, {"effects_exactly_once": INVALID})


@mutation
def an_effect_missing(view: RunView) -> Mutated:
    changed = without(view, of_kind(view, "program.effect"))
    return Mutated(changed, {"effects_exactly_once": INVALID})


@mutation
def an_effect_lost_on_the_way(view: RunView) -> Mutated:
    lost = of_kind(view, "program.effect")
    ops = [op for op in view.history if op is not lost]
    flips = {"effects_exactly_once": UNKNOWN, "evidence": UNKNOWN}
    return Mutated(RunView(History(ops), view.spec), flips)


@mutation
def more_effects_than_planned(view: RunView) -> Mutated:
    plan = of_kind(view, "program.mark", name="effects")
    changed = altered(view, plan, value=plan.data["value"] - 1)
    return Mutated(changed, {"effects_exactly_once": INVALID})


@mutation
def effects_that_nobody_planned(view: RunView) -> Mutated:
    changed = without(view, of_kind(view, "program.mark", name="effects"))
    return Mutated(changed, {"effects_exactly_once": UNKNOWN})


# What the faults did


@mutation
def effect_of_the_fault_dropped(view: RunView) -> Mutated:
    return Mutated(without(view, first_fault(view).effect), {"fault_hit_work": UNKNOWN})


@mutation
def effect_of_the_fault_not_verified(view: RunView) -> Mutated:
    changed = altered(view, first_fault(view).effect, verified=False)
    return Mutated(changed, {"fault_hit_work": UNKNOWN})


@mutation
def nothing_of_it_was_there(view: RunView) -> Mutated:
    """All of it ran elsewhere: attempts, actors and driver."""
    victim = first_fault(view).node
    kinds = ("program.attempt", "attempt.failed", "ray.actor", "program.start")
    gone = [op for op in view.history.of(*kinds) if op.node == victim]
    return Mutated(without(view, *gone), {"fault_hit_work": UNKNOWN})


@mutation
def it_had_ended_before_the_fault(view: RunView) -> Mutated:
    fault, end = first_fault(view), of_kind(view, "program.end")
    early = replace(end, wall=view.history.at(fault.inject) - 0.5)
    ops = [early if op is end else op for op in view.history]
    return Mutated(RunView(History(ops), view.spec), {"fault_hit_work": UNKNOWN})


@mutation
def the_fault_was_skipped(view: RunView) -> Mutated:
    flips = {"fault_hit_work": UNKNOWN, "whole_again": UNKNOWN, "evidence": UNKNOWN}
    return Mutated(without_fault(view), flips)


@mutation
def the_node_was_not_seen_again(view: RunView) -> Mutated:
    fault = first_fault(view)
    rejoin = index_of(view).rejoin(fault.node, index_of(view).at(fault.inject))
    if rejoin is None:
        raise NotHere("the node did not come back")
    return Mutated(without(view, rejoin), {"whole_again": UNKNOWN})


@mutation
def healed_dropped(view: RunView) -> Mutated:
    return Mutated(without(view, first_fault(view).healed), {"healed": INVALID})


@mutation
def not_steady_afterwards(view: RunView) -> Mutated:
    steady = of_kind(view, "steady", when="after")
    changed = altered(view, steady, ok=False, problems=["worker-2 is exited, not alive"])
    return Mutated(changed, {"healed": INVALID, "whole_again": INVALID})


@mutation
def history_cut_off(view: RunView) -> Mutated:
    cut = History(view.history.ops, truncated="line 9 of history.jsonl is cut off")
    flips = dict.fromkeys(("evidence", "attempts_recovered", "effects_exactly_once"), UNKNOWN)
    return Mutated(RunView(cut, view.spec), flips)


def with_attempts(view: RunView, change: Callable[[Op], dict[str, Any]]) -> RunView:
    """Each attempt with some of its data changed."""
    ops = [
        replace(op, data={**op.data, **change(op)}) if op.kind == "program.attempt" else op
        for op in view.history
    ]
    return RunView(History(ops), view.spec)
