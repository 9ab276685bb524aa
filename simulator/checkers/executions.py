"""Did every piece of work run at least once, and is every further execution explained?

The effect ledger says what really ran. A task may run twice when a fault cut its first execution
off, when Ray reports that an attempt failed, when its output was lost with the node that held it
and was needed again, or when a node that Ray had given up worked on; nothing else makes a second execution right.
"""

from __future__ import annotations

from itertools import pairwise

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import IN_TRANSIT, SLACK, Down, Execution, Index, index_of
from simulator.checkers.results import SHOWN
from simulator.history import Op


class _Case:
    """Gathers what is wrong, and what is only unclear because a line may be missing."""

    def __init__(self) -> None:
        self.wrong: list[tuple[str, tuple[Op, ...]]] = []
        self.unclear: list[tuple[str, tuple[Op, ...]]] = []

    def add(self, text: str, *ops: Op, unless: list[str] | None = None) -> None:
        """Something is wrong, `unless` evidence is missing that would explain it."""
        (self.unclear if unless else self.wrong).append((text, ops))


def check_executions_explained(view: RunView) -> Finding:
    """Every result has a whole execution, and every further execution has its reason."""
    index, gaps = index_of(view), gaps_of(view)
    name = "executions_explained"
    executions = sum(map(len, index.executions.values()))
    if not executions and not index.results:
        return Finding(name, Verdict.UNKNOWN, "the effect ledger is empty: nothing ever ran")
    case = _Case()
    _lines_fit(index, case, gaps.ledger)
    _all_asked_for(index, case, gaps.driver)
    _results_have_executions(index, case, gaps.ledger)
    reasons = _further_executions(index, case, gaps.ledger, gaps.attempts)
    metrics = {"executions": executions, "further": sum(reasons.values()), **reasons}
    if case.wrong or case.unclear:
        found = case.wrong or case.unclear
        verdict = Verdict.INVALID if case.wrong else Verdict.UNKNOWN
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        text = found[0][0] + more
        if not case.wrong:
            text += "; but lines are missing that may explain it"
        cites = sorted({op.index for _, ops in found[:SHOWN] for op in ops})
        return Finding(name, verdict, text, cites, [t for t, _ in found[:SHOWN]], metrics)
    explained = ", ".join(
        f"{count} {words}"
        for words, count in (
            ("after a fault cut the one before off", reasons["after_fault"]),
            ("after a failed attempt", reasons["after_failed_attempt"]),
            ("to rebuild a lost output", reasons["rebuilt"]),
            ("on a node that had been given up and worked on", reasons["belated"]),
        )
        if count
    )
    return Finding(
        name,
        Verdict.VALID,
        f"{executions} executions; "
        + (f"those beyond the first are explained: {explained}" if explained else "none ran twice"),
        metrics=metrics,
    )


def _lines_fit(index: Index, case: _Case, ledger_gaps: list[str]) -> None:
    for op in index.started_twice:
        case.add(f"{op.data['key']}: execution {op.data['exec']} started twice", op)
    for op in index.ended_twice:
        case.add(f"{op.data['key']}: execution {op.data['exec']} ended twice", op)
    for op in index.ends_without_start:
        case.add(
            f"{op.data['key']}: execution {op.data['exec']} on {op.node} ended without a start",
            op,
            unless=ledger_gaps,
        )
    for e in index.all_executions():
        if e.end_op is None:
            continue
        if e.end_op.node != e.node:
            case.add(
                f"{e.key}: started on {e.node}, ended on {e.end_op.node}", e.start_op, e.end_op
            )
        elif e.end_op.data["key"] != e.key:
            case.add(f"{e.key}: ended as {e.end_op.data['key']}", e.start_op, e.end_op)


def _all_asked_for(index: Index, case: _Case, driver_gaps: list[str]) -> None:
    # A driver that was killed between handing work to Ray and writing so leaves the same trace.
    unless = list(driver_gaps)
    if index.last("driver.end") is None:
        unless.append("the driver did not finish")
    for op in index.again:
        if op.kind in ("driver.submit", "driver.actor_call"):
            case.add(f"{op.data['key']}: asked for twice", op)
    asked = index.calls.keys() | index.actor_results.keys() | index.actor_failures.keys()
    for key, of_key in index.executions.items():
        if key not in (index.submits if of_key[0].actor is None else asked):
            case.add(f"{key}: ran, but was never asked for", of_key[0].start_op, unless=unless)


def _results_have_executions(index: Index, case: _Case, ledger_gaps: list[str]) -> None:
    for answers in (index.results, index.actor_results):
        for key, op in answers.items():
            # Ending on another node is a fault of its own, already named.
            of_key = index.executions.get(key, [])
            if not any(e.end_op is not None and e.ok for e in of_key):
                case.add(f"{key}: has a result, but no whole execution", op, unless=ledger_gaps)


def _further_executions(
    index: Index, case: _Case, ledger_gaps: list[str], attempt_gaps: list[str]
) -> dict[str, int]:
    counts = {"after_fault": 0, "after_failed_attempt": 0, "rebuilt": 0, "belated": 0}
    for key, of_key in index.executions.items():
        if len(of_key) < 2:
            continue
        attempts = sorted(index.attempts.get(key, []), key=index.at)
        for before, again in pairwise(of_key):
            reason = _reason(index, before, again, attempts)
            if reason is not None:
                counts[reason] += 1
                continue
            state = "whole" if before.whole else "cut off, and no fault did it"
            case.add(
                f"{key}: ran again on {again.node} without a reason "
                f"(the execution before, on {before.node}, was {state})",
                before.start_op,
                again.start_op,
                # A failed attempt that Ray no longer knows would be the reason.
                unless=attempt_gaps or ([] if before.end_op else ledger_gaps),
            )
    return counts


def _reason(index: Index, before: Execution, again: Execution, attempts: list[Op]) -> str | None:
    """Why the work ran again; uses up the failed attempt that explains it."""
    downs = [d for d in index.downs(before.node) if d.begin <= again.start + SLACK]
    failed = next((op for op in attempts if _explains(index, op, before, again)), None)
    if failed is not None:
        attempts.remove(failed)
    if any(down.hit(before) for down in downs):
        return "after_fault"
    if failed is not None:
        return "after_failed_attempt"
    if any(_output_lost(index, before, down) for down in downs):
        return "rebuilt"
    if any(_answer_lost(index, before, again, down) for down in downs):
        return "after_fault"
    if _belated(index, before, again):
        return "belated"
    return None


def _belated(index: Index, before: Execution, again: Execution) -> bool:
    """Did a node that Ray has given up do, once it could, what it had been handed before?

    It works on until it learns that it was given up, while its work is done elsewhere too.
    """
    for late, other in ((again, before), (before, again)):
        if index.given_up(late) and any(
            down.begin <= other.start + SLACK for down in index.downs(late.node)
        ):
            return True
    return False


def _explains(index: Index, attempt: Op, before: Execution, again: Execution) -> bool:
    slack = SLACK + index.history.uncertainty(attempt, before.start_op)
    return before.start - slack <= index.at(attempt) <= again.start + slack


def _output_lost(index: Index, before: Execution, down: Down) -> bool:
    """Did its output stay on the node that went down, and did its owner still hold it?"""
    if before.end is None or before.end > down.sure + SLACK:
        return False
    result = index.results.get(before.key)
    if result is None or result.data.get("value") is not None:
        # A value that came back to its owner as such is not in any node's object store. Without
        # a result, the owner was still waiting for what was to be made of it.
        return result is None
    if index.at(result) >= down.begin - SLACK:
        return True
    # Its owner holds a kept object to the end, and Ray rebuilds what is held, whether anybody asks or not.
    return any(op.data.get("key") == before.key for ops in index.objects.values() for op in ops)


def _answer_lost(index: Index, before: Execution, again: Execution, down: Down) -> bool:
    """Had it just ended when its node went down, and had its owner no answer until it ran again?"""
    if before.end is None or not down.begin - IN_TRANSIT <= before.end <= down.sure + SLACK:
        return False
    answer = index.results.get(before.key) or index.actor_results.get(before.key)
    return answer is None or index.at(answer) >= again.start - SLACK
