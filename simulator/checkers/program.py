"""Did a program of the user's end well, and what did the faults do to it, as seen from outside?

Of such a program nothing is known but what Ray says of its job, of the attempts of its tasks and of its actors, and
what it reports by itself (`ray_sim`). Where Ray kept records to itself, or lost sight of the job, the answer
is unknown: a missing row may be the very one that would show what went wrong, or that it went well.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.evidence import FORGOTTEN
from simulator.checkers.index import OF_THE_PROGRAM, SLACK, index_of
from simulator.history import Op

#: How many names a summary and how many details a finding lists; its metrics have the counts.
NAMED, SHOWN = 3, 20

#: Of what it printed, so many of the last lines are details of how it ended; the reports show more.
LAST = 3

#: A driver exits no longer than this before its job is seen to end, seconds, and Ray its workers with it.
LEAVING_S = 1.0

#: Ray's words for work that it ended because its program had ended.
_JOB_ENDED = ("job has finished", "driver exits")

_TELLING = re.compile(r"^(?:\([^)]*\)\s*)?[\w.]*(?:Error|Exception|Interrupt|Exit)\b")


@dataclass(frozen=True, slots=True)
class ProgramTask:
    """One task of the program: its attempts, in their order."""

    task_id: str
    key: str
    attempts: Sequence[Op]

    @property
    def last(self) -> Op:
        return self.attempts[-1]

    @property
    def finished(self) -> bool:
        return bool(self.last.data["state"] == "FINISHED")


def tasks_of(view: RunView) -> list[ProgramTask]:
    """The program's tasks and actor calls, as far as Ray has them, found once per view."""
    return view.once("program tasks", _tasks)


def _tasks(view: RunView) -> list[ProgramTask]:
    attempts: dict[str, list[Op]] = {}
    for op in view.history.of("program.attempt"):
        attempts.setdefault(op.data["task_id"], []).append(op)
    return [
        ProgramTask(
            task_id, ops[0].data["key"], sorted(ops, key=lambda op: int(op.data["attempt"]))
        )
        for task_id, ops in attempts.items()
    ]


def program_facts(view: RunView) -> dict[str, Any]:
    """What there is to say of the program in figures; nothing where a run had none.

    Returns
    -------
    dict
        ``script, arguments, status, exit_code, seconds, baseline_s, slowdown``, how many ``tasks`` and
        ``attempts`` there were, how many tasks were ``retried`` and ``lost``, ``actors`` and how often they were
        ``restarted``, ``marks``, ``effects``; None for what is not known.
    """
    submit = view.history.first("program.submit")
    if submit is None:
        return {}
    end = view.history.last("program.end")
    told = end.data if end is not None else {}
    baseline = (view.spec.get("baseline") or {}).get("seconds")
    seconds = told.get("seconds")
    complete = view.history.last("attempts.complete")
    known = complete is not None and not complete.data.get("forgotten")
    tasks = tasks_of(view)
    actors = view.history.of("program.actor")
    return {
        "script": submit.data["script"],
        "arguments": list(submit.data["arguments"]),
        "status": told.get("status"),
        "exit_code": told.get("exit_code"),
        "seconds": seconds,
        "baseline_s": baseline,
        "slowdown": round(seconds / baseline, 3) if seconds and baseline else None,
        "tasks": len(tasks) if known else None,
        "attempts": sum(len(task.attempts) for task in tasks) if known else None,
        "retried": sum(len(task.attempts) > 1 for task in tasks) if known else None,
        "lost": len(_lost(view)) if known else None,
        "actors": len(actors) if known else None,
        "restarted": sum(int(op.data["restarts"]) for op in actors) if known else None,
        "marks": len(view.history.of("program.mark")),
        "effects": len(view.history.of("program.effect")),
    }


def baseline_of(view: RunView, *, keys: int = 10_000) -> dict[str, Any] | None:
    """What a run is to be compared with, of an undisturbed one before it; None if that did not end well.

    Parameters
    ----------
    keys
        Of more effects than this only the number is kept.
    """
    end = view.history.last("program.end")
    if end is None or end.data["status"] != "SUCCEEDED":
        return None
    done = sorted({str(op.data["key"]) for op in view.history.of("program.effect")})
    return {
        "run_id": view.spec["run_id"],
        "seconds": end.data["seconds"],
        "effects": {"count": len(done), "keys": done if len(done) <= keys else None},
    }


# -- how it ended ----------------------------------------------------------------------------------


def check_program_ended_well(view: RunView) -> Finding:
    """The program came to its end by itself, with exit code 0."""
    name = "program_ended_well"
    facts, end = program_facts(view), view.history.last("program.end")
    script = facts.get("script", "the program")
    if end is None:
        begun = view.history.first("program.start") is not None
        text = f"nobody saw how {script} ended" if begun else f"{script} was never started"
        return Finding(name, Verdict.UNKNOWN, text)
    data = end.data
    lines = [str(line) for line in data["lines"] if str(line).strip()]
    metrics = {k: facts[k] for k in ("exit_code", "seconds", "baseline_s", "slowdown")}
    took = "" if data["seconds"] is None else f" after {data['seconds']:.1f} s"
    cites = [op.index for op in (view.history.first("program.start"), end) if op is not None]

    def found(verdict: Verdict, text: str, details: Sequence[str] = ()) -> Finding:
        return Finding(name, verdict, text, cites, details, metrics)

    status = data["status"]
    if status == "SUCCEEDED":
        text = f"{script} ended with exit code {data['exit_code'] or 0}{took}"
        if facts["slowdown"]:
            text += f", {facts['slowdown']:.2f} times the {facts['baseline_s']:.1f} s undisturbed"
        return found(Verdict.VALID, text)
    if status == "FAILED":
        code = data["exit_code"]
        how = "failed" if code is None else f"failed with exit code {code}"
        faults = index_of(view).injected()
        early = bool(view.spec.get("schedule")) and not any(
            f.inject is not None and view.history.at(f.inject) <= view.history.at(end)
            for f in faults
        )
        when = ", before any fault was injected" if early else ""
        said = _telling(lines) or str(data["message"]).strip().partition("\n")[0]
        return found(Verdict.INVALID, f"{script} {how}{took}{when}: {said[:200]}", lines[-LAST:])
    if status == "STOPPED" and str(data["why"]).startswith("it was not over"):
        return found(Verdict.INVALID, f"{script} was stopped: {data['why']}", lines[-LAST:])
    if status == "STOPPED":
        why = data["why"] or "somebody else did that"
        return found(Verdict.UNKNOWN, f"{script} was stopped{took}: {why}", lines[-LAST:])
    why = data["why"] or data["message"] or "its head, which knows of jobs, is gone or another one"
    return found(Verdict.UNKNOWN, f"Ray lost sight of {script}: {why}", lines[-LAST:])


def _telling(lines: Sequence[str]) -> str:
    """The line that says what went wrong: of a stack trace its last, else the last of all."""
    named = [line.strip() for line in lines if _TELLING.match(line.strip())]
    return (named or [line.strip() for line in lines] or [""])[-1]


# -- what became of its tasks ----------------------------------------------------------------------


def check_attempts_recovered(view: RunView) -> Finding:
    """Every task that was cut off was tried again and finished."""
    name = "attempts_recovered"
    tasks = tasks_of(view)
    complete = view.history.last("attempts.complete")
    cut = [t for t in tasks if any(_failed(op) for op in t.attempts)]
    lost = _lost(view)
    again = [t for t in cut if t.finished]
    moved = [t for t in again if len({op.node for op in t.attempts if op.node}) > 1]
    metrics = {
        "tasks": len(tasks),
        "attempts": sum(len(t.attempts) for t in tasks),
        "cut_off": len(cut),
        "recovered": len(again),
        "moved": len(moved),
        "lost": len(lost),
    }
    details = [_told(t) for t in (lost or cut)[:SHOWN]]
    cites = sorted({op.index for t in (lost or cut)[:SHOWN] for op in t.attempts})

    def found(verdict: Verdict, text: str) -> Finding:
        return Finding(name, verdict, text, cites, details, metrics)

    if complete is None or view.history.truncated is not None:
        return found(Verdict.UNKNOWN, "Ray's records of the program's tasks were not collected")
    dropped = int(complete.data["dropped"])
    if dropped:
        text = f"Ray dropped {dropped} records of attempts, and what stood in them is not known"
        if lost:
            text += f"; by those that are there, {_count(lost, 'task')} failed for good"
        return found(Verdict.UNKNOWN, text)
    if complete.data.get("forgotten"):
        text = FORGOTTEN
        if lost:
            text += f"; by those that are there, {_count(lost, 'task')} failed for good"
        return found(Verdict.UNKNOWN, text)
    if not tasks:
        return found(Verdict.UNKNOWN, "Ray recorded no task of the program")
    if lost:
        names = ", ".join(_told(t) for t in lost[:NAMED])
        more = f" and {len(lost) - NAMED} more" if len(lost) > NAMED else ""
        text = f"{len(lost)} of {_count(tasks, 'task')} failed for good: {names}{more}"
        return found(Verdict.INVALID, text)
    left_out = complete.data.get("left_out") or 0
    besides = f" (and none of {left_out} attempts that Ray does not list)" if left_out else ""
    if not cut:
        return found(Verdict.VALID, f"none of {_count(tasks, 'task')} was cut off{besides}")
    open_end = len(cut) - len(again)
    if not again:
        text = f"none of {_count(tasks, 'task')} was lost; the program ended without waiting for "
        return found(Verdict.VALID, f"{text}{open_end}{besides}")
    were = "was" if len(again) == 1 else "were"
    text = f"{len(again)} of {_count(tasks, 'task')} {were} cut off and ran again"
    if moved:
        text += f", {len(moved)} on another node"
    if open_end:
        text += f"; the program ended without waiting for {open_end} more"
    return found(Verdict.VALID, text + besides)


def _failed(op: Op) -> bool:
    """Was this attempt cut off from outside, and not ended by the program itself?"""
    data = op.data
    return (
        data["state"] == "FAILED"
        and data["error_type"] not in OF_THE_PROGRAM
        and "ray.kill" not in data["error"]
    )


def _lost(view: RunView) -> list[ProgramTask]:
    """Tasks whose last attempt was cut off while the program still went on."""
    return [t for t in tasks_of(view) if _failed(t.last) and not _left_behind(view, t.last)]


def _left_behind(view: RunView, op: Op) -> bool:
    """Was it cut off because its program ended, and did not wait for it?

    Ray kills the workers of a driver that exits, and records that like any other death, about when the driver
    ends: a little before the job is seen to end.
    """
    end, ended = view.history.last("program.end"), op.data["ended"]
    if any(words in op.data["error"] for words in _JOB_ENDED):
        return True
    if end is None or ended is None:
        return False
    offsets = view.history.offsets
    when = ended - (offsets[op.source].offset if op.source in offsets else 0.0)
    over = view.history.at(end)
    if when <= over - LEAVING_S:
        return False
    if when > over + SLACK or end.data["status"] == "SUCCEEDED":
        return True
    return op.data["error_type"] in ("WORKER_DIED", "ACTOR_DIED") and not _struck(view, op, when)


def _struck(view: RunView, op: Op, when: float) -> bool:
    """Did a fault hold its node at that time?"""
    index = index_of(view)
    return any(
        f.node == op.node
        and f.inject is not None
        and index.at(f.inject) - SLACK <= when
        and (f.healed is None or when <= index.at(f.healed))
        for f in index.injected()
    )


def _told(task: ProgramTask) -> str:
    tries = [
        f"{op.data['error_type'] or op.data['state']}{f' on {op.node}' if op.node else ''}"
        for op in task.attempts
    ]
    return f"{task.key} ({', then '.join(tries)})"


def _count(things: Collection[object], one: str) -> str:
    return f"{len(things)} {one}{'s' * (len(things) != 1)}"


# -- where it was ----------------------------------------------------------------------------------


def at_work(view: RunView, node: str, when: float) -> list[tuple[str, Op]]:
    """What of the program was on a node at a moment beside its tasks: its driver, its actors, and attempts
    of which only the end is known.
    """
    index = index_of(view)
    start, end = view.history.first("program.start"), view.history.last("program.end")
    if start is None or (end is not None and index.at(end) <= when):
        return []
    found: list[tuple[str, Op]] = []
    if start.node == node and index.at(start) <= when:
        found.append(("its driver", start))
    ours = {op.data["actor_id"] for op in view.history.of("program.actor")}
    for actor_id, ops in index.actor_ops.items():
        before = [op for op in ops if index.at(op) <= when]
        if before and actor_id in ours:
            last = before[-1]
            if last.data.get("state") == "ALIVE" and last.node == node:
                name = last.data.get("name") or last.data.get("class") or actor_id[:8]
                found.append((f"actor {name}", last))
    # Where its beginning is not known, only the node's own death places an attempt there.
    for op in view.history.of("attempt.failed"):
        if op.node == node and op.data["error_type"] == "NODE_DIED" and index.at(op) >= when:
            key, number = op.data["key"], f"{op.data['task_id']}:{op.data['attempt']}"
            begun = any(e.exec == number for e in index.executions.get(key, ()))
            later = any(
                when + SLACK < down.begin <= index.at(op) and down.ops[0].kind != "ray.node"
                for down in index.downs(node)
            )
            if not begun and not later:
                found.append((key, op))
    return found


# -- when the cluster was whole again --------------------------------------------------------------


def check_whole_again(view: RunView) -> Finding:
    """Every node that a fault struck was alive again, and it is known when."""
    name = "whole_again"
    index = index_of(view)
    faults = index.injected()
    if not faults:
        if not view.spec.get("schedule"):
            return Finding(name, Verdict.VALID, "no fault was asked for")
        return Finding(name, Verdict.UNKNOWN, "no fault was injected")
    first = min(index.at(f.inject) for f in faults if f.inject is not None)
    whole_at, cites, away, unclear = first, [], [], []
    for fault in faults:
        assert fault.inject is not None
        assert fault.node is not None
        node, healed = fault.node, fault.healed
        if healed is not None and healed.data.get("how") == "asked to stay":
            away.append(node)
            continue
        death = index.death(node, index.at(fault.inject))
        back = index.rejoin(node, index.at(fault.inject)) if death is not None else healed
        if back is None or (back is healed and not back.data.get("verified")):
            unclear.append(f"{node} was not seen alive again after {fault.fault}")
            continue
        whole_at = max(whole_at, index.at(back))
        cites += [fault.inject.index, back.index]
    seconds = round(whole_at - first, 6)
    after = index.last("steady")
    gone = after is not None and after.data.get("when") == "after" and not after.data.get("ok")
    details = [f"{node} was to stay away" for node in sorted(set(away))]
    if gone and after is not None and not unclear:
        problems = "; ".join(map(str, after.data.get("problems", ())))
        text = f"the cluster is not whole again: {problems}"
        return Finding(name, Verdict.INVALID, text, [*sorted(set(cites)), after.index], details)
    if unclear:
        verdict = Verdict.INVALID if gone else Verdict.UNKNOWN
        more = f" (and {len(unclear) - 1} more)" if len(unclear) > 1 else ""
        return Finding(name, verdict, unclear[0] + more, sorted(set(cites)), [*unclear, *details])
    if len(away) == len(faults):
        text = f"{', '.join(sorted(set(away)))} was to stay away, so there was nothing to wait for"
        return Finding(name, Verdict.VALID, text, details=details)
    return Finding(
        name,
        Verdict.VALID,
        f"every node was there again {seconds:.1f} s after the first injection"
        + (f", but for {', '.join(sorted(set(away)))}" if away else ""),
        sorted(set(cites)),
        details,
        {"whole_again_s": seconds},
    )
