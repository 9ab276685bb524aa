"""Judges a run: its findings, the phases of its recovery, its figures, and one verdict.

An offline function of the history and the spec; the same run judged again years later gives the
same answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from simulator.checkers.anatomy import PHASES, anatomy
from simulator.checkers.base import Finding, RunView, Verdict, worst
from simulator.checkers.phases import Anatomy, Phase
from simulator.checkers.registry import run_checks
from simulator.history import without_collecting


@dataclass(frozen=True, slots=True)
class Judgement:
    """What a run means.

    Attributes
    ----------
    verdict
        The worst of all findings; unknown if there are none.
    recovery
        ``{"<phase>_s": seconds since the injection, or None if not seen}``.
    """

    findings: Sequence[Finding]
    phases: Sequence[Phase]
    metrics: Mapping[str, Any]
    verdict: Verdict
    recovery: Mapping[str, float | None] = field(default_factory=dict)
    injected_at: float | None = None
    victim: str | None = None


def judge(view: RunView) -> Judgement:
    """Run the checks that the spec names and take the recovery apart."""
    with without_collecting():
        return _judge(view)


def _judge(view: RunView) -> Judgement:
    findings = run_checks(view)
    try:
        found = anatomy(view)
    except Exception as error:  # noqa: BLE001 - a broken anatomy must not hide the findings
        note = f"not seen: the anatomy itself broke: {type(error).__name__}: {error}"
        mandatory = set(view.spec.get("mandatory_phases", ()))
        found = Anatomy(
            [Phase(n, t, None, mandatory=n in mandatory, note=note) for n, t in PHASES.items()]
        )
    return Judgement(
        findings=findings,
        phases=found.phases,
        metrics=found.metrics,
        verdict=worst(f.verdict for f in findings),
        recovery=found.recovery,
        injected_at=found.injected_at,
        victim=found.victim,
    )
