"""What the shell offers when a user presses Tab, as Typer asks for it.

A shell waits for it, and shows whatever goes wrong in the middle of a command line: so a candidate that
cannot be had in time is none, nothing is ever printed, and the files that travel with the package are
listed without loading what reads them.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

#: How long an engine may take to say which clusters there are, seconds.
PATIENCE_S = 2.0

Completer = Callable[[Any, str], list[str]]


def _quietly(find: Callable[[Any, str], Iterable[str]]) -> Completer:
    """Candidates that begin with what was typed; none where finding them fails."""

    def complete(ctx: Any, incomplete: str) -> list[str]:
        nowhere = io.StringIO()
        try:
            with contextlib.redirect_stderr(nowhere), contextlib.redirect_stdout(nowhere):
                found = [c for c in find(ctx, incomplete) if c.startswith(incomplete)]
        except Exception:  # noqa: BLE001 - nobody can be told here
            return []
        return found

    return complete


def choices(*values: str) -> Completer:
    """One of these words."""
    return _quietly(lambda ctx, incomplete: values)


def _travelling(folder: str, suffix: str) -> list[str]:
    from simulator.assets import asset_names

    return list(asset_names(folder, suffix))


def _named_or_file(folder: str, suffix: str) -> Completer:
    """What travels with the package by its name, and files here; a path is left to the shell."""

    def find(_ctx: Any, incomplete: str) -> list[str]:
        if "/" in incomplete:
            return []
        here = sorted(p.name for p in Path().glob(f"*{suffix}"))
        return [*_travelling(folder, suffix), *here]

    return _quietly(find)


experiment = _named_or_file("experiments", ".py")
topology = _named_or_file("topologies", ".yaml")


def _fault(_ctx: Any, _incomplete: str) -> list[str]:
    """The word that a step begins with; the shell leaves the rest of the text alone."""
    from simulator.faults import FAULTS

    return [*FAULTS, "random", "spot_market"]


fault = _quietly(_fault)


def _param(ctx: Any, _incomplete: str) -> list[str]:
    """Parameters of an experiment that comes with the package: a file of the user's is not run."""
    from simulator.cli.run_help import named_experiment
    from simulator.experiment import load_experiment

    name = named_experiment(ctx)
    if name not in _travelling("experiments", ".py"):
        return []
    return [f"{param}=" for param in load_experiment(name).Params.model_fields]


param = _quietly(_param)


def _clusters(ctx: Any) -> Sequence[Any]:
    from simulator.waiting import within

    found: list[Any] = []

    def look() -> None:
        from simulator.backends import select

        for backend in select.usable(ctx.params.get("backend") or "auto").backends:
            found.extend(backend.clusters())

    within(PATIENCE_S, "finding the clusters", look)
    return found


cluster = _quietly(lambda ctx, incomplete: sorted({c.name for c in _clusters(ctx)}))


def _node(ctx: Any, _incomplete: str) -> list[str]:
    name = ctx.params.get("name")
    records = [c for c in _clusters(ctx) if name in (None, c.name)]
    return list(dict.fromkeys(n.name for record in records for n in record.breakable))


node = _quietly(_node)


def _run(_ctx: Any, _incomplete: str) -> list[str]:
    from simulator.store import Store

    runs = [f"{r.path.parent.name}/{r.path.name}" for r in Store().list()]
    experiments = dict.fromkeys(run.partition("/")[0] for run in runs)
    return [*(["latest"] if runs else []), *(f"{name}/latest" for name in experiments), *runs]


run = _quietly(_run)
