"""What an anatomy is made of: phases, each a point in time, and the figures around them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

#: Phases that rest on records which Ray gives late, and completely only after the workload ended:
#: while a run goes on, nobody should wait for them.
KNOWN_AFTERWARDS = frozenset({"first_failure"})


@dataclass(frozen=True, slots=True)
class Phase:
    """One point of the recovery.

    Attributes
    ----------
    seconds
        Since the injection; None if it was not seen, and `note` says why.
    uncertainty
        How far `seconds` may be off either way, seconds.
    cites
        Indices of the operations that it rests on.
    in_vain
        It was not seen, and nothing that may still happen can change that.
    """

    name: str
    title: str
    seconds: float | None
    uncertainty: float = 0.0
    cites: Sequence[int] = ()
    mandatory: bool = False
    note: str = ""
    in_vain: bool = False

    @property
    def seen(self) -> bool:
        return self.seconds is not None

    def to_data(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "title": self.title,
            "seconds": None if self.seconds is None else round(self.seconds, 6),
            "uncertainty": round(self.uncertainty, 6),
            "cites": list(self.cites),
            "mandatory": self.mandatory,
            "note": self.note,
        }


@dataclass(frozen=True, slots=True)
class Anatomy:
    """All phases in their usual order, and the figures around them.

    Attributes
    ----------
    fault, victim
        Id of the fault that the phases are counted from, and its node; None without any.
    injected_at
        What they are counted from, by the orchestrator's wall clock, seconds; None without a fault, and
        where no work came that a cluster could grow with.
    """

    phases: Sequence[Phase]
    metrics: dict[str, Any] = field(default_factory=dict)
    fault: str | None = None
    victim: str | None = None
    injected_at: float | None = None

    def phase(self, name: str) -> Phase:
        """The phase of that name; KeyError if there is none."""
        for phase in self.phases:
            if phase.name == name:
                return phase
        raise KeyError(name)

    @property
    def missing(self) -> list[str]:
        """Mandatory phases that were not seen."""
        return [p.name for p in self.phases if p.mandatory and not p.seen]

    @property
    def waiting_for(self) -> list[str]:
        """The missing ones that can still be seen while the workload runs."""
        vain = {p.name for p in self.phases if p.in_vain}
        return [name for name in self.missing if name not in KNOWN_AFTERWARDS and name not in vain]

    @property
    def recovery(self) -> dict[str, float | None]:
        """``{"<phase>_s": seconds or None}``, for result.json."""
        return {
            f"{p.name}_s": None if p.seconds is None else round(p.seconds, 6) for p in self.phases
        }
