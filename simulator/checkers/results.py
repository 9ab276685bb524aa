"""What the owner asked for and what it got: was anything lost, was anything wrong?"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import gaps_of
from simulator.checkers.index import Index, index_of
from simulator.history import Op

#: How many details a finding lists; its metrics have the count.
SHOWN = 20

#: What the driver and the orchestrator say when the work is over.
_ENDS = ("driver.planned", "driver.end", "workload.end")

_COLOURS = re.compile("\x1b\\[[0-9;]*m")
_TELLING = re.compile(r"[\w.]*(Error|Exception)\b")


def check_no_task_lost(view: RunView) -> Finding:
    """Everything that was submitted came back to its owner."""
    index = index_of(view)
    name = "no_task_lost"
    asked = {**index.submits, **index.calls}
    if not asked:
        return Finding(name, Verdict.UNKNOWN, "nothing was submitted, so nothing could be lost")
    # Who asks for something that is never tried again has to live with its failing, and was told.
    failures = {**index.failures, **index.actor_failures}
    told = {k for k, op in asked.items() if op.data.get("at_most_once") and k in failures}
    failed: list[Op] = []
    silent: list[Op] = []
    for key, submit in asked.items():
        if key in told:
            continue
        if key in index.calls:
            if key in index.actor_results:
                continue
            failure = index.actor_failures.get(key)
        else:
            # "Failed for good" is what it says, whatever came later.
            failure = index.failures.get(key)
            if failure is None and key in index.results:
                continue
        if failure is not None:
            failed.append(failure)
        else:
            silent.append(submit)
    metrics = {
        "submitted": len(index.submits),
        "actor_calls": len(index.calls),
        "failed": len(failed),
        "failed_at_most_once": len(told),
        "without_answer": len(silent),
    }
    lost = [f"{op.data['key']}: {_error(op)}" for op in failed]
    unanswered = [f"{op.data['key']}: neither result nor failure" for op in silent]
    open_end = _open_end(view, index)
    if failed or (silent and open_end is None):
        count = len(failed) + (len(silent) if open_end is None else 0)
        details = lost if open_end is not None else lost + unanswered
        cited = failed if open_end is not None else failed + silent
        return Finding(
            name,
            Verdict.INVALID,
            f"{count} of {len(asked)} lost: {_some(details, 3)}",
            [op.index for op in cited[:SHOWN]],
            details[:SHOWN],
            metrics,
        )
    if silent:
        return Finding(
            name,
            Verdict.UNKNOWN,
            f"{len(silent)} of {len(asked)} have no answer, but {open_end}",
            [op.index for op in silent[:SHOWN]],
            unanswered[:SHOWN],
            metrics,
        )
    unclear = _unfinished(index)
    if unclear:
        more = f" (and {len(unclear) - 1} more)" if len(unclear) > 1 else ""
        cites = [op.index for kind in _ENDS if (op := index.last(kind)) is not None]
        return Finding(name, Verdict.UNKNOWN, unclear[0] + more, cites, unclear, metrics)
    return Finding(
        name,
        Verdict.VALID,
        f"all {len(index.submits)} tasks"
        + (f" and {len(index.calls)} actor calls" if index.calls else "")
        + " came back"
        + (f", or failed and may not be repeated ({len(told)})" if told else ""),
        metrics=metrics,
    )


def _open_end(view: RunView, index: Index) -> str | None:
    """Why an answer that is not there may have been given all the same; None if it was not."""
    driver = gaps_of(view).driver
    if driver:
        return driver[0]
    if index.last("driver.end") is None:
        end = index.last("workload.end")
        status = "never ended" if end is None else f"ended as {end.data.get('status')}"
        return f"the workload {status} and its driver did not finish"
    return None


def _unfinished(index: Index) -> list[str]:
    """Why more may have been asked for than is recorded: by the workload's end, and its own totals."""
    planned, end, over = (index.last(kind) for kind in _ENDS)
    if end is None:
        return ["the workload's driver did not finish: more may have been planned"]
    found = []
    if over is None:
        found.append("nobody saw how the workload ended")
    elif over.data.get("status") != "SUCCEEDED":
        found.append(f"the driver finished, but the workload ended as {over.data.get('status')}")
    seen = {"submitted": index.submits, "results": index.results, "failures": index.failures}
    for what, lines in seen.items():
        said = end.data.get(what)
        if said != len(lines):
            found.append(f"the driver counted {said} {what}, and {len(lines)} are recorded")
    # A stream goes on beyond its plan, and a part of its plan may be two tasks: at least as many.
    least = 0 if planned is None else planned.data.get("tasks") or 0
    if least > len(index.submits):
        found.append(f"the driver planned {least} tasks, and {len(index.submits)} are recorded")
    return found


def check_results_right(view: RunView) -> Finding:
    """Every result is what the same function gives when it is computed again, here."""
    index = index_of(view)
    name = "results_right"
    wrong: list[tuple[Op, str]] = []
    unclear: list[tuple[Op, str]] = []
    checked = 0
    for op in _answers(index):
        judged, why = _judge(index, op)
        if judged is None:
            unclear.append((op, why))
        else:
            checked += 1
            if not judged:
                wrong.append((op, why))
    wrong += [
        (op, f"{op.data['key']}: came back a second time")
        for op in index.again
        if op.kind in ("driver.result", "driver.actor_result")
    ]
    totals = _totals(index)
    metrics = {"recomputed": checked, "wrong": len(wrong), "actor_totals": totals}
    if wrong:
        return _finding(name, Verdict.INVALID, f"{len(wrong)} wrong", wrong, metrics)
    if unclear:
        text = f"{len(unclear)} of {checked + len(unclear)} could not be recomputed"
        return _finding(name, Verdict.UNKNOWN, text, unclear, metrics)
    if not checked:
        return Finding(name, Verdict.UNKNOWN, "no result came back, so none could be wrong")
    final = f"; {len(totals)} actors ended with the right total" if totals else ""
    return Finding(name, Verdict.VALID, f"all {checked} results are right{final}", metrics=metrics)


def _finding(
    name: str, verdict: Verdict, text: str, found: list[tuple[Op, str]], metrics: dict[str, Any]
) -> Finding:
    details = [why for _, why in found]
    return Finding(
        name,
        verdict,
        f"{text}: {_some(details, 3)}",
        [op.index for op, _ in found[:SHOWN]],
        details[:SHOWN],
        metrics,
    )


def _answers(index: Index) -> Iterable[Op]:
    yield from index.results.values()
    for back in index.objects_back.values():
        yield from back
    yield from index.actor_results.values()


def _judge(index: Index, op: Op) -> tuple[bool | None, str]:
    from simulator.innode.work import expected_value

    key = str(op.data["key"])
    asked = index.submits.get(key) or index.calls.get(key)
    # What was asked for counts; an answer may say it only where the question is not recorded.
    about = asked.data if asked is not None else op.data
    if "fn" not in about:
        return None, f"{key}: nobody recorded what was asked for"
    fn, args = str(about["fn"]), about.get("args", [])
    try:
        expected = expected_value(fn, args)
    except KeyError:
        return None, f"{key}: the right value of {fn} is not known"
    value = op.data.get("value")
    if same(value, expected):
        return True, ""
    return False, f"{key}: {fn}({_short(args)[1:-1]}) gave {_short(value)}, not {_short(expected)}"


def same(value: Any, expected: Any) -> bool:
    """Equal as JSON values; floats to nine digits, since they went through a file."""
    if isinstance(expected, float) and isinstance(value, (int, float)):
        return math.isclose(value, expected, rel_tol=1e-9, abs_tol=1e-12)
    if isinstance(expected, (list, tuple)):
        return (
            isinstance(value, (list, tuple))
            and len(value) == len(expected)
            and all(map(same, value, expected))
        )
    if isinstance(expected, dict):
        return (
            isinstance(value, dict)
            and value.keys() == expected.keys()
            and all(same(value[k], expected[k]) for k in expected)
        )
    return type(value) is type(expected) and bool(value == expected)


def _totals(index: Index) -> dict[str, Any]:
    """The last value that each actor gave."""
    last: dict[str, Op] = {}
    for op in index.actor_results.values():
        actor = str(op.data.get("actor"))
        if actor not in last or index.at(op) >= index.at(last[actor]):
            last[actor] = op
    return {actor: op.data.get("value") for actor, op in sorted(last.items())}


def _error(op: Op) -> str:
    """The error and the line of its message that says what happened; Ray colours its messages."""
    error = str(op.data.get("error", "failed"))
    message = _COLOURS.sub("", str(op.data.get("message", "")))
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    telling = next((line for line in lines if _TELLING.match(line)), *lines[:1] or [""])
    return f"{error}: {telling[:160]}" if telling else error


def _some(texts: list[str], count: int) -> str:
    return "; ".join(texts[:count]) + (
        f"; and {len(texts) - count} more" if len(texts) > count else ""
    )


def _short(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else text[:57] + "..."
