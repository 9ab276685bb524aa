"""Verdicts, findings and what a checker is.

A checker is an offline function of a run: it reads the history and the spec, asks nobody else,
and can be run again years later. It answers valid, invalid, or **unknown** when there was nothing
to judge or when it could not see: a vacuous pass is the worst thing this software could give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any, TypeVar

from simulator.history import History

T = TypeVar("T")


class Verdict(str, Enum):
    """Severity grows from valid over unknown to invalid."""

    VALID = "valid"
    UNKNOWN = "unknown"
    INVALID = "invalid"


_ORDER = [Verdict.VALID, Verdict.UNKNOWN, Verdict.INVALID]


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """Invalid outranks unknown outranks valid; of nothing at all, unknown."""
    return max(verdicts, key=_ORDER.index, default=Verdict.UNKNOWN)


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found, and the operations (by index) that it rests on."""

    check: str
    verdict: Verdict
    summary: str
    cites: Sequence[int] = ()
    details: Sequence[str] = ()
    metrics: Mapping[str, Any] = field(default_factory=dict)

    def to_data(self) -> dict[str, Any]:
        return {
            "check": self.check,
            "verdict": self.verdict.value,
            "summary": self.summary,
            "cites": list(self.cites),
            "details": list(self.details),
            "metrics": dict(self.metrics),
        }


@dataclass(frozen=True, slots=True)
class RunView:
    """What a checker may look at: the history and the run's spec (``spec.json``), nothing else.

    What several checkers derive from it (the index, the anatomy) is derived once, by `once`.
    """

    history: History
    spec: Mapping[str, Any]
    _derived: dict[str, tuple[int, Any]] = field(
        default_factory=dict, init=False, repr=False, compare=False
    )

    @property
    def params(self) -> Mapping[str, Any]:
        params: Mapping[str, Any] = self.spec.get("params", {})
        return params

    def once(self, name: str, build: Callable[[RunView], T]) -> T:
        """``build(self)``, kept under `name` until the history has grown."""
        kept = self._derived.get(name)
        if kept is None or kept[0] != len(self.history):
            kept = (len(self.history), build(self))
            self._derived[name] = kept
        value: T = kept[1]
        return value


Checker = Callable[[RunView], Finding]
