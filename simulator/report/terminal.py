"""The same story in the terminal, smaller: verdict, recovery, a strip per node, findings.

It must read well at 80 columns, in a log file, and without colour, so every meaning has a word
or a character of its own and colour only repeats it.
"""

from __future__ import annotations

from pathlib import Path

from rich.box import HEAVY, SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.markup import escape
from rich.padding import Padding
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from simulator.checkers.base import Verdict
from simulator.report import losses, placement, program, story, survival
from simulator.report.console import show
from simulator.report.run import Run, load_run, short_title
from simulator.report.timeline import Execution, Outcome, Timeline, build_timeline

STYLES = {Verdict.VALID: "green", Verdict.INVALID: "red", Verdict.UNKNOWN: "yellow"}
MARKS = {Verdict.VALID: "✓", Verdict.INVALID: "✕", Verdict.UNKNOWN: "?"}

#: Below so many columns a table's last column has no room for a sentence: each row becomes lines instead.
NARROW = 60

#: The same of the table of losses, which has ten columns.
WIDE = 104

#: So many of the last lines that a program printed are shown where it did not end well.
LAST_LINES = 12

LEVELS = "▁▂▃▄▅▆▇█"


def render_terminal(run: Path | Run, console: Console | None = None) -> None:
    """Print a run's report.

    Parameters
    ----------
    run
        A run directory, or a run that was loaded already.
    console
        Where to print; by default standard output. Its width, encoding and colours are obeyed.

    Raises
    ------
    BadInput
        The path is not a run directory.
    """
    console = Console() if console is None else console
    run = run if isinstance(run, Run) else load_run(run)
    timeline = build_timeline(run)
    parts: list[RenderableType] = [_verdict(run, timeline)]
    matrix = placement.matrix(run)
    if matrix is not None:
        parts.append(_matrix(matrix, console.width))
    if run.phases and (run.grows_unbroken or not run.breaks_nothing):
        parts.append(_anatomy(run, console.width))
    outlived = survival.survival(run)
    if outlived is not None:
        parts.append(_survival(outlived))
    lost = losses.losses(run)
    if lost is not None:
        parts.append(_losses(lost, console.width))
    bill = losses.bill(run)
    if bill is not None:
        parts.append(_bill(bill))
    if timeline.lanes:
        parts.append(_strips(timeline, console.width))
    if run.findings:
        parts.append(_findings(run, console.width))
    said = program.program_of(run)
    if said is not None and said.lines and run.verdict is not Verdict.VALID:
        parts.append(_printed(said))
    show(console, Group(*parts))
    show(console, _where(run), crop=False)


def _verdict(run: Run, timeline: Timeline) -> Panel:
    style = STYLES[run.verdict]
    lines = [Text(f"{MARKS[run.verdict]} {run.verdict.value.upper()}", style=f"bold {style}")]
    if run.claim:
        lines.append(Text(run.claim, style="bold"))
    lines.append(Text(story.why(run)))
    told = story.story(run, timeline)
    if told:
        lines += [Text(""), Text(told)]
    for notice in [story.status_means(run), *run.notices]:
        if notice:
            lines.append(Text(f"! {notice}", style="yellow"))
    facts = [
        run.backend,
        f"topology {run.topology}",
        *([f"lean nodes: {', '.join(run.lean_groups)}"] if run.lean_groups else []),
        f"Ray {run.ray_version}",
        f"GPU {run.gpu}",
        f"health {run.health}",
        *([f"RPC faults: {'; '.join(run.rpc_faults)}"] if run.rpc_faults else []),
        f"seed {'unknown' if run.seed is None else run.seed}",
        run.status,
    ]
    lines += [Text(""), Text(" · ".join(facts), style="dim")]
    return Panel(
        Group(*lines),
        title=escape(run.experiment),
        title_align="left",
        border_style=style,
        box=HEAVY,
    )


def _heading(title: str) -> Text:
    return Text(f"\n{title}", style="bold")


def _matrix(matrix: placement.Matrix, width: int) -> RenderableType:
    """A line per node: how many of each kind ran there, and the most that was in use at once."""
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("node", no_wrap=True)
    for column in matrix.columns:
        table.add_column(column.name, justify="right", overflow="fold")
    table.add_column("most in use", overflow="fold")
    lines: list[RenderableType] = []
    for row in matrix.rows:
        cells = [
            Text(f"{c.count} {MARKS[Verdict.INVALID]}", style="bold red")
            if c.wrong
            else Text(str(c.count) if c.may else "-", style="" if c.count else "dim")
            for c in row.cells
        ]
        uses = Text(" ").join(
            Text(
                f"{u.resource} {u.peak.amount:g}/{u.peak.capacity:g}{MARKS[Verdict.INVALID]}",
                "red",
            )
            if u.peak.above
            else Text(f"{u.resource} {u.peak.amount:g}/{u.peak.capacity:g}")
            for u in row.uses
        )
        table.add_row(Text(row.node), *cells, uses)
        counts = Text(", ").join(
            Text(f"{column.name} ").append_text(cell)
            for column, cell in zip(matrix.columns, cells, strict=True)
        )
        lines += [
            Text(row.node, style="bold"),
            _indented(counts),
            *([_indented(Text("most in use ").append_text(uses))] if row.uses else []),
        ]
    legend = "- not offered there"
    if matrix.wrong:
        legend += f"   {MARKS[Verdict.INVALID]} wrong: without what it needs, or more than there is"
    if matrix.more:
        legend += f"   {matrix.more} more nodes are not shown"
    shown: RenderableType = table if width >= NARROW else Group(*lines)
    return Group(_heading("Who ran where, tasks"), shown, Text(legend, style="dim"))


def _indented(text: Text) -> RenderableType:
    return Padding(text, (0, 0, 0, 2))


def _anatomy(run: Run, width: int) -> RenderableType:
    """One line a phase: the wait for it as a bar, where there is room, from the phase before it."""
    seen = run.seen
    span = max((p.seconds or 0.0 for p in seen), default=0.0) or 1.0
    # The title, the seconds, the uncertainty and the gaps between them leave the rest to the bar.
    bar_width = max(8, min(width, 120) - 52)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True, min_width=22 if width >= NARROW else None)
    if width >= NARROW:
        table.add_column(no_wrap=True, width=bar_width)
    table.add_column(no_wrap=True, justify="right")
    table.add_column(no_wrap=True, style="dim")
    before = 0.0
    for phase in seen:
        at = max(phase.seconds or 0.0, 0.0)
        left = round(before / span * (bar_width - 1))
        right = round(at / span * (bar_width - 1))
        bar = Text(" " * left + "━" * (right - left) + "┫", style="cyan")
        sign = "+" if (phase.seconds or 0.0) >= 0 else "-"
        table.add_row(
            Text(short_title(phase)),
            *([bar] if width >= NARROW else []),
            Text(f"{sign}{story.seconds(abs(phase.seconds or 0.0))}", style="bold"),
            Text(story.uncertainty(phase)),
        )
        before = max(before, at)
    for phase in run.not_seen:
        word, missing = (
            Text("required" if phase.mandatory else ""),
            Text("not seen", style="yellow"),
        )
        row = [word, missing] if width >= NARROW else [missing, word]
        table.add_row(Text(short_title(phase)), *row)
    longest = Text(story.longest_wait(run), style="dim")
    parts: list[RenderableType] = [
        _heading(f"{story.what_phases_tell(run)}, seconds since {story.origin(run)}"),
        table,
    ]
    if longest.plain:
        parts.append(longest)
    return Group(*parts)


def _survival(found: survival.Survival) -> RenderableType:
    """What outlived the head, and which calls waited for how long."""
    styles = {"kept": "green", "lost": "yellow", "unknown": "yellow"}
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("", "", "how that shows"):
        table.add_column(name)
    for row in found.rows:
        mark = Text(row.mark, "bold red" if row.surprise else styles[row.mark])
        table.add_row(mark, Text(row.title), Text(row.how))
    waits = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in ("a client's calls", "from", "to", "waited", "errors"):
        waits.add_column(name, justify="left" if name == "a client's calls" else "right")
    for wait in found.waits:
        cells = (wait.title, wait.begin, wait.end, wait.seconds, str(wait.failures))
        waits.add_row(*map(Text, cells))
    shown: list[RenderableType] = [
        _heading(f"What outlived the head (store: {found.store})"),
        table,
    ]
    if found.waits:
        shown += [waits, Text("seconds since the fault", style="dim")]
    if found.always:
        shown.append(Text(f"never interrupted: {found.uninterrupted}", style="dim"))
    return Group(*shown)


def _losses(lost: losses.Losses, width: int) -> RenderableType:
    """A line for each node that was lost, and one for each way of which there were several."""
    columns = {
        "how": "way",
        "node": "node",
        **({"told": "told", "drained": "drained"} if lost.has_notice else {}),
        "gone": "gone",
        "replaced": "replaced",
        "empty": "without",
        "cut off": "cut",
        "done again": "repeated",
        "failed": "failed",
    }
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    for name in columns:
        table.add_column(name, justify="left" if name in ("how", "node") else "right", no_wrap=True)
    lines: list[RenderableType] = []
    for row in (*lost.rows, *lost.totals):
        cells = [str(getattr(row, name)) for name in columns.values()]
        table.add_row(*map(Text, cells), style="bold" if row in lost.totals else "")
        rest = [f"{name} {cell}" for name, cell in zip(columns, cells, strict=True)][2:]
        lines += [Text(f"{row.way}: {row.node}", style="bold"), _indented(Text(", ".join(rest)))]
    notes = [f"{row.node}: {note}" for row in lost.rows for note in row.notes]
    if lost.more:
        notes.append(f"{lost.more} more stand in result.json")
    legend = "seconds since each began; tasks cut off; tasks done again (work-seconds); tasks + calls failed for good"
    shown: RenderableType = table if width >= WIDE else Group(*lines)
    return Group(
        _heading("What each loss cost"),
        shown,
        Text(legend, style="dim"),
        *(Text(note, style="dim") for note in notes),
    )


def _bill(bill: losses.Bill) -> RenderableType:
    """What the machines cost, in sentences; what is not known, with its reason."""
    unknown = [Text(f"not known: {name}: {why}", style="yellow") for name, why in bill.why]
    return Group(_heading("What the machines cost"), Text(bill.told), *unknown)


def _strips(timeline: Timeline, width: int) -> RenderableType:
    """A strip of characters per node: how busy it was, and where it was not there."""
    names = max(len(lane.name) for lane in timeline.lanes)
    count = max(10, min(width, 120) - names - 2)
    step = (timeline.end - timeline.start) / count
    by_node: dict[str, list[Execution]] = {lane.name: [] for lane in timeline.lanes}
    for e in timeline.executions:
        if not e.call and e.node in by_node:
            by_node[e.node].append(e)
    table = Table.grid(padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True, width=count)
    shown = timeline.lanes if len(timeline.lanes) <= 20 else timeline.lanes[:20]
    used: set[str] = set()
    for lane in shown:
        cells = _cells(by_node[lane.name], timeline.start, step, count)
        for span in lane.spans:
            char, style = _state_char(span.state)
            if not char:
                continue
            for i in range(_cell(span.start, timeline.start, step, count),
                           _cell(span.end, timeline.start, step, count)):  # fmt: skip
                cells[i] = (char, style)
                used.add(char)
        for e in by_node[lane.name]:
            if e.outcome in (Outcome.CUT, Outcome.FAILED):
                cells[_cell(e.end, timeline.start, step, count)] = ("x", "bold red")
                used.add("x")
        strip = Text()
        for char, style in cells:
            strip.append(char, style=style)
        table.add_row(Text(lane.name), strip)
    if len(shown) < len(timeline.lanes):
        table.add_row(
            "...", f"{len(timeline.lanes) - len(shown)} more nodes are in the HTML report"
        )
    rule = _ruler(timeline, count, step)
    table.add_row("", Text(rule, style="dim"))
    words = {"x": "work cut off or failed", "!": "gone, Ray has not noticed", " ": "",
             "-": "dead", "~": "starting", "=": "paused", "·": "gone, not needed any more"}  # fmt: skip
    legend = ["█ busy", *(f"{c} {words[c]}" for c in "x!-~=" if c in used)]
    return Group(
        _heading("Nodes, seconds since the work began"),
        table,
        Text("   ".join(legend), style="dim"),
    )


def _cell(moment: float, start: float, step: float, count: int) -> int:
    return min(max(int((moment - start) / step), 0), count - 1)


def _state_char(state: str) -> tuple[str, str]:
    return {
        "unnoticed": ("!", "red"),
        "dead": ("-", "dim"),
        "gone": ("·", "dim"),
        "starting": ("~", "dim"),
        "paused": ("=", "magenta"),
    }.get(state, ("", ""))


def _cells(
    executions: list[Execution], start: float, step: float, count: int
) -> list[tuple[str, str]]:
    """How busy a node was in each cell, against its busiest one."""
    busy = [0.0] * count
    for e in executions:
        for i in range(_cell(e.start, start, step, count), _cell(e.end, start, step, count) + 1):
            overlap = min(e.end, start + (i + 1) * step) - max(e.start, start + i * step)
            busy[i] += max(0.0, overlap)
    cells = []
    most = max(step, *busy)
    for value in busy:
        share = value / most
        level = round(share * len(LEVELS))
        cells.append((LEVELS[level - 1], "cyan") if level else (" ", ""))
    return cells


def _ruler(timeline: Timeline, count: int, step: float) -> str:
    """Round numbers under the strips, and a caret where each fault began."""
    span = timeline.end - timeline.start
    tick = next(
        factor * 10.0**exponent
        for exponent in range(-2, 8)
        for factor in (1, 2, 5)
        if span / (factor * 10.0**exponent) <= 7
    )
    line = [" "] * count
    moment = tick * int(timeline.start / tick)
    while moment <= timeline.end:
        if moment >= timeline.start:
            text = f"{moment:g}"
            at = _cell(moment, timeline.start, step, count)
            if at + len(text) <= count:
                line[at : at + len(text)] = text
        moment = round(moment + tick, 6)
    marks = [" "] * count
    for fault in timeline.faults:
        at = _cell(fault.injected, timeline.start, step, count)
        text = f"^ {fault.fault} {fault.target or 'cluster'}"
        if at + len(text) > count:
            text = f"{fault.fault} {fault.target or 'cluster'} ^"
            at = max(0, at - len(text) + 1)
        if all(c == " " for c in marks[max(0, at - 1) : at + len(text)]):
            marks[at : at + len(text)] = text
    above = "".join(marks).rstrip()
    return (above + "\n" if above else "") + "".join(line).rstrip()


def _findings(run: Run, width: int) -> RenderableType:
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1))
    table.add_column("verdict", no_wrap=True)
    table.add_column("check", no_wrap=True, max_width=26)
    table.add_column("finding", overflow="fold")
    lines: list[RenderableType] = []
    order = [Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID]
    for finding in sorted(run.findings, key=lambda f: order.index(f.verdict)):
        text = Text(finding.summary)
        if finding.verdict is not Verdict.VALID:
            for line in finding.details[:3]:
                text.append(f"\n{line}", style="dim")
            if len(finding.details) > 3:
                text.append(f"\n{len(finding.details) - 3} more in the report", style="dim")
        verdict = Text(
            f"{MARKS[finding.verdict]} {finding.verdict.value}", style=STYLES[finding.verdict]
        )
        table.add_row(verdict, Text(finding.check), text)
        lines += [Text("  ").join([verdict, Text(finding.check)]), _indented(text)]
    return Group(_heading("Checks"), table if width >= NARROW else Group(*lines))


def _printed(said: program.Program) -> RenderableType:
    """The end of what the program printed: why it failed stands there and nowhere else."""
    lines = Text("\n".join(said.lines[-LAST_LINES:]), style="dim")
    return Group(_heading("The last that the program printed"), _indented(lines))


def _where(run: Run) -> RenderableType:
    # Whoever copies a line copies all of it: the terminal folds it, nobody breaks it.
    lines = Text(no_wrap=True, overflow="ignore")
    report = run.path / "report.html"
    if report.is_file():
        lines.append("\nReport  ", style="bold")
        lines.append(str(report))
    if run.command:
        lines.append("\nReplay  ", style="bold")
        lines.append(run.command)
    return lines
