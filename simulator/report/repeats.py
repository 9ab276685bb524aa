"""What several runs of one experiment have in common: ``--repeat N``.

One run says that it can take so long; the spread over ten says what to expect. A phase that some
runs did not see counts as not seen there, never as 0 and never as the slowest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.table import Table
from rich.text import Text

from simulator.checkers.base import Verdict, worst
from simulator.report.console import show
from simulator.report.run import SHORT_TITLES, number
from simulator.report.story import seconds


def summarise(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The distribution over several ``result.json``.

    Returns
    -------
    dict
        ``runs``; ``verdict`` (the worst of them; unknown of none); ``verdicts`` and ``statuses``
        (how many of each); ``seeds``; ``phases``: per name ``title, runs, seen, mandatory, min,
        median, max`` in seconds since the injection, null where never seen; ``metrics``: per numeric
        metric ``runs, min, median, max``.
    """
    verdicts = [_verdict(r.get("verdict")) for r in results]
    phases: dict[str, dict[str, Any]] = {}
    metrics: dict[str, list[float]] = {}
    for result in results:
        for phase in result.get("phases") or ():
            name = str(phase.get("name"))
            title = str(phase.get("title") or name)
            entry = phases.setdefault(
                name, {"title": title, "runs": 0, "mandatory": False, "values": []}
            )
            entry["runs"] += 1
            entry["mandatory"] |= bool(phase.get("mandatory"))
            value = number(phase.get("seconds"))
            if value is not None:
                entry["values"].append(value)
        for name, raw in (result.get("metrics") or {}).items():
            value = number(raw)
            if value is not None:
                metrics.setdefault(name, []).append(value)
    return {
        "runs": len(results),
        "verdict": worst(verdicts).value,
        "verdicts": {v.value: verdicts.count(v) for v in Verdict},
        "statuses": dict(Counter(str(r.get("status", "unknown")) for r in results)),
        "seeds": [r.get("seed") for r in results],
        "phases": {
            name: {
                "title": entry["title"],
                "runs": entry["runs"],
                "seen": len(entry["values"]),
                "mandatory": entry["mandatory"],
                **_spread(entry["values"]),
            }
            for name, entry in phases.items()
        },
        "metrics": {
            name: {"runs": len(values), **_spread(values)} for name, values in metrics.items()
        },
    }


def render_repeats(results: Sequence[Mapping[str, Any]], console: Console | None = None) -> None:
    """Print the distribution over several ``result.json`` as a table."""
    console = Console() if console is None else console
    summary = summarise(results)
    counts = ", ".join(f"{n} {v}" for v, n in summary["verdicts"].items() if n)
    total = summary["runs"]
    words = f"{total} run{'' if total == 1 else 's'}: {counts or 'none judged'}"
    parts: list[RenderableType] = [Text(words, style="bold")]
    phases = {n: e for n, e in summary["phases"].items() if e["seen"] or e["mandatory"]}
    if phases:  # without a fault there is nothing to recover from
        parts.append(_table(phases, total))
    show(console, Group(*parts))


def _table(phases: Mapping[str, Any], total: int) -> Table:
    table = Table(
        box=SIMPLE_HEAD,
        pad_edge=False,
        title="Seconds since the injection",
        title_justify="left",
        title_style="",
    )
    table.add_column("phase")
    for name in ("seen", "min", "median", "max"):
        table.add_column(name, justify="right", no_wrap=True)
    ordered = sorted(
        phases.items(),
        key=lambda item: float("inf") if item[1]["median"] is None else item[1]["median"],
    )
    for name, entry in ordered:
        everywhere = entry["seen"] == total
        table.add_row(
            Text(SHORT_TITLES.get(name, entry["title"])),
            Text(f"{entry['seen']} of {total}", style="" if everywhere else "yellow"),
            *("-" if entry[k] is None else seconds(entry[k]) for k in ("min", "median", "max")),
        )
    return table


def _spread(values: Sequence[float]) -> dict[str, float | None]:
    if not values:
        return {"min": None, "median": None, "max": None}
    return {
        "min": round(min(values), 4),
        "median": round(median(values), 4),
        "max": round(max(values), 4),
    }


def _verdict(value: Any) -> Verdict:
    try:
        return Verdict(value)
    except ValueError:
        return Verdict.UNKNOWN
