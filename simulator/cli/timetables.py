"""Faults and schedules as tables for people, and a picture of which lasts how long."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any

from rich.console import Group, RenderableType
from rich.text import Text

from simulator.cli.tables import table

if TYPE_CHECKING:
    from simulator.schedule import PlannedFault
    from simulator.topology import Topology

#: Cells of the picture, and how far behind the last known moment it goes, seconds.
_CELLS, _BEYOND_S = 60, 20.0


def faults_view(rows: Sequence[Mapping[str, Any]], backend: str) -> RenderableType:
    """What each fault does, with what parameters and an example, and whether it can be done here."""
    made = table("fault", "what it does", f"on {backend}")
    for i, row in enumerate(rows):
        what = Text(row["summary"])
        for parameter in row["parameters"]:
            what.append(f"\n  {_parameter(parameter)}", "cyan")
            if parameter["description"]:
                what.append(f"  {parameter['description']}", "default")
        what.append(f"\n  {row['example']}", "dim")
        if not row["able"]:
            what.append(f"\n  not here: {row['why_not']}", "yellow")
        able = Text("yes", "green") if row["able"] else Text("no", "yellow")
        made.add_row(Text(row["name"], "bold"), what, able, end_section=i < len(rows) - 1)
    return made


def _parameter(row: Mapping[str, Any]) -> str:
    from simulator.faults.parameters import written
    from simulator.quantities import UNITS

    unit, default = row["unit"], row["default"]
    shown = "none" if default is None else written(default)
    if unit and default is not None and not isinstance(default, str):
        shown += unit if unit in UNITS else f" {unit}"
    return f"{row['name']}={shown} ({row['type']})"


def schedule_view(
    planned: Sequence[PlannedFault], topology: Topology, seed: int, width: int
) -> RenderableType:
    """Every fault in the order of time, and a picture of when each holds."""
    nodes = [n.name for n in topology.nodes()]
    shown = (
        ", ".join(nodes) if len(nodes) <= 8 else f"{', '.join(nodes[:6])} and {len(nodes) - 6} more"
    )
    head = Text(f"topology {topology.name}", "bold")
    head.append(f" ({shown}), seed {seed}", "default")
    rows = table("id", "when", "fault", "whom", "undone", "how")
    for fault in planned:
        data = fault.to_data()
        rows.add_row(
            Text(fault.id, "bold"),
            _when(fault),
            str(fault.step.fault),
            _whom(fault),
            data["heal"],
            data["undo"],
        )
    return Group(head, rows, *_picture(planned, width))


def _when(fault: PlannedFault) -> Text:
    step = fault.step
    text = Text(f"{fault.at:g} s")
    if step.every is not None:
        text.append(f"\n{step.every}", "dim")
    elif step.by_chance:
        text.append(f"\nof {step.at}", "dim")
    if step.when is not None:
        text.append(f"\nwhen {step.when}, within {step.patience:g} s")
    if step.when_busy:
        text.append("\nin the middle of a task")
    if step.while_working:
        text.append("\nif there is work then", "dim")
    return text


def _whom(fault: PlannedFault) -> Text:
    step = fault.step
    asked = str(step.target) + (f" from {step.against}" if step.against is not None else "")
    if not fault.nodes:
        return Text(f"{asked}: found when it is due", "cyan")
    text = Text(", ".join(fault.nodes))
    if fault.peers:
        text.append(" from ", "dim").append(", ".join(fault.peers))
    if asked != text.plain:
        text.append(f"\nof {asked}", "dim")
    return text


def _span(fault: PlannedFault) -> tuple[float, float, float]:
    """From when it may hold, until when it does for sure, and until when it may; seconds."""
    from simulator.schedule import After, WhenDeclaredDead

    heal = fault.step.heal
    latest = fault.at + (fault.step.patience if fault.step.when is not None else 0.0)
    if not isinstance(
        heal, After
    ):  # of one that is announced, the time until it is undone counts from its deadline
        latest += fault.step.fault.announced_s
    if isinstance(heal, After):
        sure = fault.at if fault.step.when is not None else fault.at + heal.seconds
        return fault.at, sure, latest + heal.seconds
    if isinstance(heal, WhenDeclaredDead):
        return fault.at, fault.at, latest + heal.at_most
    return fault.at, fault.at, inf


def _picture(planned: Sequence[PlannedFault], width: int) -> list[RenderableType]:
    """One line for each fault against time; what is not sure is drawn thin."""
    names = max(len(f.id) for f in planned)
    cells = max(10, min(_CELLS, width - names - 8))
    spans = [_span(fault) for fault in planned]
    # What may go on for long must not squeeze together what is known.
    last = max(max(begin, sure) for begin, sure, _ in spans) + _BEYOND_S

    def cell(seconds: float) -> int:
        return round(min(seconds, last) / last * (cells - 1))

    lines: list[RenderableType] = []
    for fault, (begin, sure, at_most) in zip(planned, spans, strict=True):
        first, solid, end = cell(begin), cell(sure), cell(at_most)
        conditional = fault.step.when is not None
        text = Text(f"{fault.id:>{names}}  {'·' * first}", "dim")
        text.append("?" if conditional else "█" * (solid - first + 1), "red")
        text.append("─" * (end - max(solid, first)), "yellow")
        text.append("·" * (cells - 1 - end), "dim")
        lines.append(text)
    scale = Text(" " * (names + 2) + "0", "dim")
    scale.append(f"{last:.0f} s".rjust(cells - 1))
    legend = "█ holds   ─ may hold   ? waits for its condition"
    return [*lines, scale, Text(" " * (names + 2) + legend, "dim")]
