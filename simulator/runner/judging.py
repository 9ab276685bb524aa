"""Turns a run's directory into its result: verdict, phases, metrics, report, exit code.

Nothing here needs a cluster, or the process that ran it: a run whose orchestrator was killed is judged
by the next command that finds it, and an old one again whenever a check has changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from simulator.checkers.base import RunView, Verdict
from simulator.checkers.costs import costs_of
from simulator.checkers.judge import judge
from simulator.checkers.losses import loss_facts
from simulator.checkers.program import program_facts
from simulator.checkers.registry import CHECKERS
from simulator.checkers.survival import survival_of
from simulator.errors import SimulatorError
from simulator.experiment import load_experiment
from simulator.report import write_html
from simulator.store import EXPERIMENT, REPORT, SCHEMA, RunDir

#: The exit code of a result; of several, the first of these that is present counts.
EXIT_ORDER = (4, 1, 3, 0)


def judge_run(
    run: RunDir, *, status: str | None = None, error: str | None = None
) -> dict[str, Any]:
    """Judge a run from its directory alone, write ``result.json`` and the report, return the result.

    `status` and `error` are taken from the history where they are not given; a history without a
    ``run.end`` is of a run that was interrupted from outside.
    """
    spec, history = run.spec(), run.history()
    previous = run.result() or {}
    end = history.last("run.end")
    if status is None:
        status = str(end.data["status"]) if end else "interrupted"
    if error is None:
        error = previous.get("error")
    _know_checks(run, spec)
    view = RunView(history, spec)
    judgement = judge(view)
    last = history.ops[-1].received if history.ops else spec["started"]
    result: dict[str, Any] = {
        "schema": SCHEMA,
        "run_id": spec["run_id"],
        "experiment": spec["experiment"],
        "backend": spec["backend"],
        "status": status,
        "verdict": judgement.verdict.value,
        "seed": spec["seed"],
        "run_dir": str(run.path),
        "report": str(run.path / REPORT),
        "topology": spec["topology"]["name"],
        "ray_version": spec["versions"]["ray"],
        "health": spec["health"],
        "rpc_faults": spec.get("rpc_faults", []),
        "gpu": spec["gpu"],
        "findings": [f.to_data() for f in judgement.findings],
        "phases": [
            {
                "name": p.name,
                "title": p.title,
                "seconds": p.seconds,
                "uncertainty": p.uncertainty,
                "cites": list(p.cites),
                "mandatory": p.mandatory,
                "note": p.note,
            }
            for p in judgement.phases
        ],
        "recovery": {f"{p.name}_s": p.seconds for p in judgement.phases},
        "metrics": dict(judgement.metrics),
        "params": spec["params"],
        **_beside(view),
        "error": error,
        "started": spec["started"],
        "ended": last,
        "truncated": history.truncated,
    }
    run.write_result(result)
    try:
        write_html(run.path, view)
    except Exception as problem:  # noqa: BLE001 - a broken report must not cost the verdict
        text = f"the report could not be written: {type(problem).__name__}: {problem}"
        result["error"] = "\nnote: ".join(t for t in (error, text) if t)
        run.write_result(result)
    return result


def _beside(view: RunView) -> dict[str, Any]:
    """What only some runs have: a program, nodes that were lost, prices, what outlived the head.

    What cannot be computed of a damaged run must not cost the verdict.
    """
    found: dict[str, Any] = {"program": program_facts(view)}
    with suppress(Exception):
        found["losses"] = loss_facts(view)
    with suppress(Exception):
        survival = survival_of(view)
        found["survival"] = survival.to_data() if survival is not None else None
    with suppress(Exception):
        costs = costs_of(view)
        found["costs"] = costs.to_data() if costs is not None else None
    return {name: value for name, value in found.items() if value}


def _know_checks(run: RunDir, spec: Mapping[str, Any]) -> None:
    """Load the run's own experiment, if it names checks that only its file has."""
    if set(spec.get("checks", ())) <= CHECKERS.keys():
        return
    own = run.path / EXPERIMENT
    # One that comes with the package is not kept with the run.
    name = str(own) if own.is_file() else str(spec.get("experiment"))
    # What goes wrong here shows in the findings: a check that is not known is unknown.
    with suppress(SimulatorError):
        load_experiment(name)


def exit_code(result: Mapping[str, Any]) -> int:
    """0 valid, 1 invalid, 3 unknown, 4 could not run."""
    if result["status"] in ("failed", "aborted", "interrupted"):
        return 4
    return {Verdict.VALID.value: 0, Verdict.INVALID.value: 1}.get(str(result["verdict"]), 3)


def run_view(path: Path) -> RunView:
    """What a checker may look at, from a run's directory."""
    run = RunDir(path)
    return RunView(run.history(), run.spec())
