"""What a report shows of a program of the user's, beside what it shows of every run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from simulator.checkers.program import program_facts
from simulator.report.run import Run, clean, number

#: Rows of a table that a person may still read.
MAX_ROWS = 200


@dataclass(frozen=True, slots=True)
class Row:
    """An actor of the program, or a mark; times are seconds since the program began."""

    name: str
    where: str
    what: str
    when: float | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """The program of a run.

    Attributes
    ----------
    command
        Its name and arguments, as a person typed them.
    told
        How it ended, in a sentence.
    facts
        Figures, by their names in words.
    lines
        The last that it printed.
    more_marks, more_actors
        How many are not listed.
    """

    command: str
    told: str
    facts: Sequence[tuple[str, str]]
    lines: Sequence[str]
    log_whole: bool
    marks: Sequence[Row]
    more_marks: int
    actors: Sequence[Row]
    more_actors: int


def program_of(run: Run) -> Program | None:
    """The program of a run; None if it had none."""
    facts = program_facts(run.view)
    if not facts:
        return None
    history = run.history
    start, end = history.first("program.start"), history.last("program.end")
    zero = history.at(start) if start is not None else None
    marks = history.of("program.mark")
    actors = history.of("program.actor")
    told_by_it = end.data if end is not None else {}
    return Program(
        command=clean(" ".join([facts["script"], *map(str, facts["arguments"])])),
        told=told(run),
        facts=_figures(facts),
        lines=[clean(str(line)) for line in told_by_it.get("lines", ())],
        log_whole=bool(told_by_it.get("log_whole", False)),
        marks=[
            Row(
                clean(str(op.data["name"])),
                op.node or "?",
                "" if op.data.get("value") is None else clean(str(op.data["value"]))[:200],
                None if zero is None else history.at(op) - zero,
            )
            for op in marks[:MAX_ROWS]
        ],
        more_marks=max(0, len(marks) - MAX_ROWS),
        actors=[
            Row(
                clean(str(op.data["name"] or op.data["class"])),
                op.node or "?",
                clean(_life(op.data)),
            )
            for op in actors[:MAX_ROWS]
        ],
        more_actors=max(0, len(actors) - MAX_ROWS),
    )


def told(run: Run) -> str:
    """How the program ended, in a sentence; empty for a run without one."""
    facts = program_facts(run.view)
    if not facts:
        return ""
    script, seconds, code = facts["script"], number(facts["seconds"]), facts["exit_code"]
    how = {
        "SUCCEEDED": "ended well",
        "FAILED": "failed" if code is None else f"failed with exit code {code}",
        "STOPPED": "was stopped",
        "LOST": "was lost from sight",
    }.get(str(facts["status"]), "was not seen to end")
    text = f"{script} {how}" + ("" if seconds is None else f" after {seconds:.1f} s")
    if facts["slowdown"]:
        text += f", {facts['slowdown']:.2f} times as long as undisturbed"
    return clean(f"{text}.")


def _figures(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    always = ("status", "exit_code", "tasks", "attempts", "retried", "lost")
    words = {
        "status": "how it ended",
        "exit_code": "exit code",
        "seconds": "seconds",
        "baseline_s": "seconds undisturbed",
        "slowdown": "times as long",
        "tasks": "tasks and actor calls",
        "attempts": "attempts of them",
        "retried": "tried again",
        "lost": "failed for good",
        "actors": "actors",
        "restarted": "restarts of actors",
        "marks": "marks",
        "effects": "effects reported",
    }
    shown = [(key, name) for key, name in words.items() if facts[key] or key in always]
    return [(name, str(facts[key])) for key, name in shown if facts[key] is not None]


def _life(data: Mapping[str, Any]) -> str:
    parts = [str(data["state"]).lower()]
    if data["restarts"]:
        parts.append(f"restarted {data['restarts']} times")
    if data["detached"]:
        parts.append("detached")
    if data["death"]:
        parts.append(str(data["death"]))
    return ", ".join(parts)
