"""Every check by name, and how they are run.

An experiment names its checks (``spec["checks"]``). A check that breaks answers unknown with the
exception's text: a broken checker never says valid.
"""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches

from simulator.checkers.base import Checker, Finding, RunView, Verdict
from simulator.checkers.effects import check_effects_exactly_once
from simulator.checkers.elasticity import (
    check_demand_met,
    check_groups_right,
    check_idle_leave,
    check_launches_asked,
    check_lost_replaced,
    check_refusals_overcome,
)
from simulator.checkers.evidence import check_evidence
from simulator.checkers.executions import check_executions_explained
from simulator.checkers.faults import check_fault_hit_work, check_healed, check_recovers
from simulator.checkers.losses import check_drained_in_time
from simulator.checkers.placement import check_placed_right
from simulator.checkers.program import (
    check_attempts_recovered,
    check_program_ended_well,
    check_whole_again,
)
from simulator.checkers.results import check_no_task_lost, check_results_right
from simulator.checkers.semantics import (
    check_at_most_once,
    check_groups_whole,
    check_one_incarnation,
    check_resources_free,
)
from simulator.checkers.survival import check_outlives_head

#: Checks by name, in the order in which they are run and shown.
CHECKERS: dict[str, Checker] = {
    "no_task_lost": check_no_task_lost,
    "results_right": check_results_right,
    "executions_explained": check_executions_explained,
    "placed_right": check_placed_right,
    "at_most_once": check_at_most_once,
    "one_incarnation": check_one_incarnation,
    "groups_whole": check_groups_whole,
    "demand_met": check_demand_met,
    "launches_asked": check_launches_asked,
    "idle_leave": check_idle_leave,
    "lost_replaced": check_lost_replaced,
    "refusals_overcome": check_refusals_overcome,
    "groups_right": check_groups_right,
    "program_ended_well": check_program_ended_well,
    "attempts_recovered": check_attempts_recovered,
    "effects_exactly_once": check_effects_exactly_once,
    "resources_free": check_resources_free,
    "fault_hit_work": check_fault_hit_work,
    "drained_in_time": check_drained_in_time,
    "outlives_head": check_outlives_head,
    "recovers": check_recovers,
    "whole_again": check_whole_again,
    "healed": check_healed,
    "evidence": check_evidence,
}

#: The names of those that come with the package; `register_check` adds to `CHECKERS` only.
BUILT_IN = tuple(CHECKERS)

#: Those that judge the run of a program of the user's.
OF_PROGRAMS = (
    "program_ended_well",
    "attempts_recovered",
    "effects_exactly_once",
    "fault_hit_work",
    "whole_again",
    "healed",
    "evidence",
)

#: Those that judge a cluster whose workers Ray's autoscaler starts and stops.
OF_GROWTH = (
    "demand_met",
    "launches_asked",
    "idle_leave",
    "lost_replaced",
    "refusals_overcome",
    "groups_right",
)

#: Those that judge one kind of workload, tasks whose places are known, work of which something is promised, work
#: that a cluster grows with, or programs of the user's, or one kind of fault, and have nothing to judge in any other's
#: run: an experiment that runs it names them.
OF_ONE_WORKLOAD = frozenset(
    {
        "placed_right",
        "at_most_once",
        "one_incarnation",
        "groups_whole",
        *OF_GROWTH,
        "drained_in_time",
        "outlives_head",
        "program_ended_well",
        "attempts_recovered",
        "effects_exactly_once",
        "whole_again",
    }
)


def register_check(name: str, checker: Checker) -> None:
    """Add a check of one's own, so that experiments can name it.

    An experiment's file may be loaded several times: the same check of the same file takes its own place.

    Raises
    ------
    ValueError
        The name is taken by another check.
    """
    known = CHECKERS.setdefault(name, checker)
    if _origin(known) == _origin(checker):
        CHECKERS[name] = checker
    else:
        raise ValueError(f"there is a check named {name!r} already")


def _origin(checker: Checker) -> object:
    code = getattr(checker, "__code__", None)
    return (code.co_filename, checker.__qualname__) if code is not None else checker


def describe(name: str) -> str:
    """What a check claims, in one line: the first of its docstring."""
    return (CHECKERS[name].__doc__ or "").strip().partition("\n")[0]


def run_checks(view: RunView, names: Sequence[str] | None = None) -> list[Finding]:
    """The findings of the named checks, by default those that the run's spec names.

    A spec without any gets all that judge any workload.
    """
    if names is None:
        names = view.spec.get("checks") or [n for n in CHECKERS if n not in OF_ONE_WORKLOAD]
    return [_run(view, name) for name in names]


def _run(view: RunView, name: str) -> Finding:
    checker = CHECKERS.get(name)
    if checker is None:
        near = get_close_matches(name, CHECKERS, n=3) or list(CHECKERS)
        return Finding(
            name, Verdict.UNKNOWN, f"there is no check of this name; there is {', '.join(near)}"
        )
    try:
        return checker(view)
    except Exception as error:  # noqa: BLE001 - whatever breaks in a check must not pass
        return Finding(
            name, Verdict.UNKNOWN, f"the check itself broke: {type(error).__name__}: {error}"
        )
