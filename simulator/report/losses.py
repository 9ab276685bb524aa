"""What losing nodes cost, as a table of the ways in which they died, and what the machines cost: for both reports.

The figures come from the checkers (`simulator.checkers.losses`, `simulator.checkers.costs`); this puts them into
words. A figure that is not known stands as a dash, never as 0, and its reason stands below.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from statistics import median

from simulator.checkers.costs import Costs, costs_of
from simulator.checkers.losses import Loss, losses_of
from simulator.report.run import Run, clean
from simulator.report.story import plural

#: Rows that a person may still read.
MAX_ROWS = 200

NOTHING = "\u2013"


@dataclass(frozen=True, slots=True)
class Row:
    """One loss, or all of a kind; texts as they are shown.

    Attributes
    ----------
    way, node
        How it died; which node it was, or how many there were.
    told, drained, gone, dead, replaced
        Seconds since the fault began.
    repeated
        Tasks that were cut off or whose output was lost, and work-seconds.
    failed
        For good: tasks and calls of actors.
    idle
        How long it stood drained before it was gone, seconds.
    notes
        What is known besides, and why something is not.
    """

    way: str
    node: str
    told: str
    drained: str
    gone: str
    dead: str
    replaced: str
    without: str
    cut: str
    repeated: str
    failed: str
    idle: str
    notes: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Losses:
    """All of them, one row each, and one for each way of which there were several.

    `has_notice` is whether any was announced: else three columns say nothing.
    """

    rows: Sequence[Row]
    totals: Sequence[Row]
    has_notice: bool = False
    more: int = 0


def losses(run: Run) -> Losses | None:
    """The table of a run; None if no node was lost, or it cannot be computed."""
    found = run.figured(losses_of)
    if not found:
        return None
    ways: dict[str, list[Loss]] = {}
    for loss in found:
        ways.setdefault(loss.way, []).append(loss)
    totals = [_total(way, of_way) for way, of_way in ways.items() if len(of_way) > 1]
    return Losses(
        [_row(loss) for loss in found[:MAX_ROWS]],
        totals,
        any(loss.notice_s is not None for loss in found),
        max(0, len(found) - MAX_ROWS),
    )


def _row(loss: Loss) -> Row:
    notes = []
    if loss.gone.note:
        notes.append(loss.gone.note)
    if loss.late_starts:
        last = max(e.start for e in loss.late_starts) - loss.injected
        notes.append(
            f"{plural(len(loss.late_starts), 'task')} began there after Ray was told, the last after {last:.1f} s"
        )
    if loss.told is not None and loss.drained is None:
        notes.append(loss.why["drained_s"].removeprefix("not seen: "))
    told_of = ("work_seconds_repeated", "replaced_s", "tasks_failed")
    notes += [loss.why[n].removeprefix("not seen: ") for n in told_of if n in loss.why]
    return Row(
        loss.way,
        clean(loss.node),
        _seconds(loss.since(loss.told)),
        _seconds(loss.since(loss.drained)),
        _seconds(loss.since(loss.gone)),
        _seconds(loss.since(loss.dead)),
        _seconds(loss.since(loss.replaced)),
        _seconds(loss.without_s),
        _count(len(loss.tasks_cut) if loss.counted else None),
        _work(len(loss.again) if loss.counted else None, loss.repeated_s),
        _failed(loss.tasks_failed, loss.calls_failed),
        _seconds(loss.idle_s),
        [clean(note) for note in notes],
    )


def _total(way: str, found: Sequence[Loss]) -> Row:
    """Medians of times, sums of counts; of what is not known of one, nothing is known of all."""

    def middle(values: Sequence[float | None]) -> str:
        known = [v for v in values if v is not None]
        return _seconds(median(known) if known else None)

    def total(values: Sequence[float | None]) -> float | None:
        known = [v for v in values if v is not None]
        return sum(known) if len(known) == len(values) else None

    tasks = total([len(loss.again) if loss.counted else None for loss in found])
    cut = total([len(loss.tasks_cut) if loss.counted else None for loss in found])
    return Row(
        way,
        f"all {len(found)}",
        middle([loss.since(loss.told) for loss in found]),
        middle([loss.since(loss.drained) for loss in found]),
        middle([loss.since(loss.gone) for loss in found]),
        middle([loss.since(loss.dead) for loss in found]),
        middle([loss.since(loss.replaced) for loss in found]),
        middle([loss.without_s for loss in found]),
        _count(cut),
        _work(tasks, total([loss.repeated_s for loss in found])),
        _failed(
            total([loss.tasks_failed for loss in found]),
            total([loss.calls_failed for loss in found]),
        ),
        middle([loss.idle_s for loss in found]),
    )


def _seconds(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.1f}"


def _count(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0f}"


def _work(tasks: float | None, seconds: float | None) -> str:
    if tasks is None or seconds is None:
        return NOTHING
    return f"{tasks:.0f} ({seconds:.1f} s)"


def _failed(tasks: float | None, calls: float | None) -> str:
    return NOTHING if tasks is None or calls is None else f"{tasks:.0f} + {calls:.0f}"


# ---- money


@dataclass(frozen=True, slots=True)
class CostRow:
    """The machines of one group."""

    group: str
    market: str
    nodes: str
    hours: str
    price: str
    paid: str


@dataclass(frozen=True, slots=True)
class Bill:
    """What the machines cost.

    Attributes
    ----------
    told
        In sentences.
    facts
        Name and figure, in the order in which they are read.
    why
        Figures that are not known, each with the reason.
    """

    told: str
    rows: Sequence[CostRow]
    facts: Sequence[tuple[str, str]]
    why: Sequence[tuple[str, str]] = field(default_factory=list)


#: Names of the figures, as `Costs.to_data` has them, in words.
WORDS = {
    "seconds": "seconds of work",
    "paid": "paid",
    "on_demand": "the same on demand",
    "saved": "saved",
    "repeated": "paid for work that was lost",
    "idle": "paid for machines that stood drained",
    "per_work_hour": "an hour of work",
    "on_demand_per_work_hour": "an hour of work on demand, undisturbed",
}


def bill(run: Run) -> Bill | None:
    """What the machines of a run cost; None where its topology says nothing of prices."""
    costs = run.figured(costs_of)
    if costs is None:
        return None
    known = costs.to_data()
    return Bill(
        told=_told(costs),
        rows=[
            CostRow(
                clean(g.name),
                g.market or NOTHING,
                "as many as there were" if g.nodes is None else str(g.nodes),
                NOTHING if costs.seconds is None else f"{g.node_s:.1f}",
                _money(g.price),
                NOTHING
                if g.price is None or costs.seconds is None
                else _money(g.node_s * g.price / 3600),
            )
            for g in costs.groups
        ],
        facts=[
            (words, _seconds(known[name]) if name == "seconds" else _money(known[name]))
            for name, words in WORDS.items()
        ],
        why=[
            (WORDS.get(name, name.replace("_", " ")), clean(why)) for name, why in costs.why.items()
        ],
    )


def _told(costs: Costs) -> str:
    if costs.paid is None or costs.seconds is None:
        why = next(iter(costs.why.values()), "nobody knows why")
        return f"What the machines cost is not known: {why}."
    parts = [
        f"The machines cost {_money(costs.paid)} in the {costs.seconds:.0f} s that the work took"
    ]
    if costs.saved is not None and costs.on_demand:
        share = abs(costs.saved) / costs.on_demand
        more = "less" if costs.saved >= 0 else "more"
        parts[0] += (
            f", {share:.0%} {more} than as many on demand, none of which is lost ({_money(costs.on_demand)})"
        )
    if costs.repeated is not None and costs.idle is not None and (costs.repeated or costs.idle):
        parts.append(
            f"Of that, {_money(costs.repeated)} went for work that was lost with a machine, "
            f"{_money(costs.idle)} for machines that stood drained until they were taken"
        )
    if costs.worth_it is not None:
        parts.append(
            f"An hour of work that counted cost {_money(costs.per_work_hour)}, on demand and undisturbed it would "
            f"have been {_money(costs.on_demand_per_work_hour)}: it was {'' if costs.worth_it else 'not '}worth it"
        )
    if costs.unpriced:
        parts.append(
            f"Without a price, and so not counted: {', '.join(map(clean, costs.unpriced))}"
        )
    return ". ".join(parts) + "."


def _money(value: float | None) -> str:
    """Three digits that count; a simulated minute of a cheap machine costs little."""
    return NOTHING if value is None else format(Decimal(f"{value:.3g}"), "f")
