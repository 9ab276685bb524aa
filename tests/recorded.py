"""Recorded real runs, and what every table of mutations holds them to."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from history_mutations import Mutated, NotHere

from simulator.checkers.base import RunView, Verdict
from simulator.checkers.registry import run_checks
from simulator.experiment import known_experiments, load_experiment
from simulator.history import read_history

HISTORIES = Path(__file__).parent / "histories"


def recorded(folder: Path) -> list[str]:
    """The names of the runs in a folder."""
    return sorted(path.parent.name for path in folder.glob("*/spec.json"))


def load(run: Path, scratch: Path) -> RunView:
    """A recorded run: its ``spec.json``, and its ``history.jsonl``, packed or not."""
    spec = json.loads((run / "spec.json").read_text(encoding="utf-8"))
    if spec["experiment"] in known_experiments():
        load_experiment(spec["experiment"])  # it may have checks of its own
    packed, plain = run / "history.jsonl.gz", run / "history.jsonl"
    if packed.exists():
        plain = scratch / "history.jsonl"
        plain.write_bytes(gzip.decompress(packed.read_bytes()))
    return RunView(read_history(plain), spec)


def verdicts(view: RunView) -> dict[str, Verdict]:
    return {f.check: f.verdict for f in run_checks(view)}


def flips_exactly(original: RunView, mutate: Callable[[RunView], Mutated]) -> None:
    """A mutation flips the checks that it names and no other, and findings cite what is there."""
    try:
        mutated = mutate(original)
    except NotHere as why:
        pytest.skip(str(why))
    before = verdicts(original)
    findings = run_checks(mutated.view)
    found = {f.check: f.verdict for f in findings}
    said = [f"{f.check} is {f.verdict.value}: {f.summary}" for f in findings]
    assert found == {**before, **mutated.flips}, "\n".join(said)
    assert found != before, "a mutation that nobody notices tests nothing"
    known = {op.index for op in mutated.view.history}
    assert all(set(f.cites) <= known for f in findings)
