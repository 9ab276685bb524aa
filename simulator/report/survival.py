"""What outlived the head, and how long a client waited, as tables for both reports."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from simulator.checkers.survival import CALLS, Outage, survival_of
from simulator.report.losses import NOTHING
from simulator.report.run import Run, clean

#: As many outages as a person may still read; the longest are shown.
MAX_OUTAGES = 40


@dataclass(frozen=True, slots=True)
class Row:
    """One thing; `mark` is ``kept``, ``lost`` or ``unknown``, `surprise` that it was to be otherwise."""

    title: str
    mark: str
    how: str
    surprise: bool


@dataclass(frozen=True, slots=True)
class Wait:
    """For how long a call did not come back; seconds since the fault."""

    title: str
    begin: str
    end: str
    seconds: str
    failures: int
    error: str


@dataclass(frozen=True, slots=True)
class Survival:
    """Both tables; `always` are the calls that never waited."""

    store: str
    rows: Sequence[Row]
    waits: Sequence[Wait]
    always: Sequence[str]

    @property
    def uninterrupted(self) -> str:
        """The calls that never waited, in words; "" if there are none."""
        return "; ".join(self.always)


def survival(run: Run) -> Survival | None:
    """The tables of a run; None if it made nothing whose survival could be seen, or they cannot be computed."""
    found = run.figured(survival_of)
    if found is None:
        return None
    marks = {True: "kept", False: "lost", None: "unknown"}
    rows = [
        Row(item.title, marks[item.survived], clean(item.how), item.as_expected is False)
        for item in found.items
    ]
    longest = sorted(found.outages, key=lambda o: -(o.seconds or float("inf")))[:MAX_OUTAGES]
    waits = [_wait(found.since, o) for o in sorted(longest, key=lambda o: o.begin)]
    # A client that was lost itself does not say how it would have gone on.
    called = {str(op.data["what"]) for op in run.history.of("driver.probed")}
    waited = {o.what for o in found.outages}
    always = [title for what, title in CALLS.items() if what in called - waited]
    return Survival(found.store, rows, waits, always)


def _wait(since: Callable[[float], float], outage: Outage) -> Wait:
    return Wait(
        CALLS.get(outage.what, outage.what),
        f"{since(outage.begin):.1f}",
        "never" if outage.end is None else f"{since(outage.end):.1f}",
        NOTHING if outage.seconds is None else f"{outage.seconds:.1f}",
        outage.failures,
        clean(outage.error),
    )
