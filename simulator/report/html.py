"""Writes ``report.html``: one file that opens anywhere, also years later and without a network.

Text, tables and the recovery bar are plain HTML made here, so they can be read without
JavaScript, by a screen reader and on paper; only the two charts are drawn by the script. Styles,
script, charting library and data are all inside the file. What a task wrote is hostile until
proven otherwise: Jinja escapes every value, the data block is JSON without a single ``<``, and
the page's Content-Security-Policy lets only our two scripts run, by their hashes, and nothing
load.
"""

from __future__ import annotations

import base64
import hashlib
import json
import sys
from array import array
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from simulator.checkers.base import Finding, RunView, Verdict
from simulator.checkers.elasticity import capacity
from simulator.checkers.phases import Phase
from simulator.history import Op, without_collecting
from simulator.report import losses, placement, program, story, survival
from simulator.report.run import Run, clean, load_run
from simulator.report.timeline import (
    FAULT_WORDS,
    OUTCOME_WORDS,
    Outcome,
    Timeline,
    build_timeline,
)
from simulator.topology import DRIVER, LEAN_LACKS, Driver

ASSETS = Path(__file__).parent / "assets"

#: Rows of a table that a person may still read; what is left out is counted below it.
MAX_CITED = 40
MAX_TOUCHED = 200
MAX_DETAILS = 200
MAX_TEXT = 400

#: Shown where there is no value: an en dash.
NOTHING = "\u2013"

VERDICT_MARKS = {Verdict.VALID: "✓", Verdict.INVALID: "✕", Verdict.UNKNOWN: "?"}


def write_html(run_dir: Path, view: RunView | None = None) -> Path:
    """Write ``report.html`` into a run directory and return its path.

    `view` is its history and spec, if they are read already.

    Raises
    ------
    BadInput
        `run_dir` is not a run directory.
    OSError
        The file cannot be written.
    """
    with without_collecting():
        run = load_run(Path(run_dir), view)
        path = run.path / "report.html"
        path.write_bytes(render_html(run).encode())
    return path


def render_html(run: Run, timeline: Timeline | None = None) -> str:
    """The page as text."""
    timeline = build_timeline(run) if timeline is None else timeline
    environment = Environment(
        loader=FileSystemLoader(ASSETS),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    scripts = {
        "library": _asset("uplot/uPlot.iife.min.js"),
        "script": _asset("report.js"),
    }
    page = environment.get_template("report.html.j2").render(
        **scripts,
        styles=_asset("uplot/uPlot.min.css") + _asset("report.css"),
        licence=_asset("uplot/LICENSE").strip(),
        hashes=[_csp_hash(text) for text in scripts.values()],
        data=_data(run, timeline),
        **_view(run, timeline),
    )
    return clean(page)


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8")


def _csp_hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _view(run: Run, timeline: Timeline) -> dict[str, Any]:
    """Everything that the template shows, already in words."""
    return {
        "run": run,
        "timeline": timeline,
        "verdict": run.verdict.value,
        "mark": VERDICT_MARKS[run.verdict],
        "marks": {v.value: mark for v, mark in VERDICT_MARKS.items()},
        "means": story.VERDICT_MEANS[run.verdict],
        "why": story.why(run),
        "story": story.story(run, timeline),
        "status_means": story.status_means(run),
        "badges": _badges(run),
        "placement": placement.matrix(run),
        "program": program.program_of(run),
        "survival": survival.survival(run),
        "losses": losses.losses(run),
        "bill": losses.bill(run),
        "anatomy": _anatomy(run, timeline),
        "longest_wait": story.longest_wait(run),
        "origin": story.origin(run),
        "phases_of": story.what_phases_tell(run),
        "findings": [_finding(f, run, timeline) for f in _by_severity(run.findings)],
        "legend": _legend(timeline),
        "touched": _touched(run, timeline),
        "metrics": [(_name(k), _short(v)) for k, v in run.metrics.items()],
        "params": [(k, _short(v)) for k, v in run.params.items()],
        "nodes": _nodes(run),
        "schedule": _schedule(run),
        "versions": _pairs(run.spec.get("versions")),
        "oversubscription": story.oversubscription(run),
    }


def _by_severity(findings: Sequence[Finding]) -> list[Finding]:
    order = [Verdict.INVALID, Verdict.UNKNOWN, Verdict.VALID]
    return sorted(findings, key=lambda f: order.index(f.verdict))


def _badges(run: Run) -> list[tuple[str, str, str]]:
    """Label, value, explanation."""
    health = {
        "fast": "A lost node is declared dead after about 4 s; Ray's own settings take longer.",
        "ray": "Ray's own failure detection settings.",
    }
    return [
        ("Status", run.status, story.status_means(run)),
        ("Backend", run.backend, "docker: containers; process: process groups on this machine."),
        ("Topology", run.topology, "Which nodes the cluster has."),
        *([("Lean nodes", ", ".join(run.lean_groups), f"Bare Ray: {LEAN_LACKS}.")]
          if run.lean_groups else []),
        ("Ray", run.ray_version, ""),
        ("GPU", run.gpu, story.GPU_MEANS.get(run.gpu, "")),
        ("Failure detection", run.health, health.get(run.health, "")),
        *([("RPC faults", "; ".join(run.rpc_faults), "Injected by Ray itself into its calls, for all "
            "of the cluster's life.")] if run.rpc_faults else []),
        ("Seed", "unknown" if run.seed is None else str(run.seed), "The same seed gives the same "
         "plan."),
    ]  # fmt: skip


def _anatomy(run: Run, timeline: Timeline) -> dict[str, Any]:
    if run.breaks_nothing and not run.grows_unbroken:
        return {"rows": [], "not_seen": []}
    seen = run.seen
    whole = max([p.seconds or 0.0 for p in seen], default=0.0) or 1.0
    span = max([(p.seconds or 0.0) + p.uncertainty for p in seen], default=0.0) or 1.0
    rows, segments, before = [], [], 0.0
    for i, phase in enumerate(seen):
        at = phase.seconds or 0.0
        left, right = max(0.0, before) / span * 100, max(0.0, at) / span * 100
        spread = min(phase.uncertainty / span * 100, 100.0)
        rows.append(
            {
                "phase": phase,
                "number": i + 1,
                "left": round(left, 3),
                "width": round(max(right - left, 0.0), 3),
                "right": round(right, 3),
                "low": round(max(right - spread, 0.0), 3),
                "spread": round(2 * spread, 3),
                "time": _signed(at),
                "uncertainty": story.uncertainty(phase),
                "step": story.seconds(max(at - before, 0.0)),
                "cited": _cited(phase.cites, run, timeline),
                "note": phase.note,
            }
        )
        if at > before:
            segments.append(
                {"number": i + 1, "title": phase.title, "width": round((at - max(before, 0.0)) / whole * 100, 3),
                 "step": story.seconds(at - before), "shade": i % 2}
            )  # fmt: skip
        before = max(before, at)
    ticks = [{"at": round(tick / span * 100, 3), "text": f"{tick:g} s"} for tick in _ticks(span)]
    return {
        "rows": rows,
        "segments": segments,
        "not_seen": [_unseen(p) for p in run.not_seen],
        "ticks": ticks,
        "inject": timeline.faults[0].injected if timeline.faults else None,
    }


def _unseen(phase: Phase) -> dict[str, Any]:
    return {"title": phase.title, "note": phase.note, "mandatory": phase.mandatory}


def _signed(value: float) -> str:
    return ("+" if value >= 0 else "-") + story.seconds(abs(value))


def _ticks(span: float) -> list[float]:
    for exponent in range(-3, 7):
        for factor in (1, 2, 5):
            step = factor * 10.0**exponent
            if span / step <= 6:
                return [round(i * step, 6) for i in range(int(span / step + 1e-9) + 1)]
    return [0.0, span]


def _finding(finding: Finding, run: Run, timeline: Timeline) -> dict[str, Any]:
    return {
        "check": finding.check.replace("_", " "),
        "verdict": finding.verdict.value,
        "mark": VERDICT_MARKS[finding.verdict],
        "summary": finding.summary,
        "details": list(finding.details[:MAX_DETAILS]),
        "more_details": max(0, len(finding.details) - MAX_DETAILS),
        "metrics": [(_name(k), _short(v)) for k, v in finding.metrics.items()],
        "cited": _cited(finding.cites, run, timeline),
    }


def _cited(cites: Sequence[int], run: Run, timeline: Timeline) -> dict[str, Any]:
    """Cited operations as rows; those the history does not hold are counted."""
    wanted = list(dict.fromkeys(cites))
    ops = run.cited(wanted[:MAX_CITED])
    rows = [
        {
            "index": op.index,
            "time": f"{run.history.at(op) - timeline.zero:.3f}",
            "kind": op.kind,
            "source": op.source,
            "node": op.node or NOTHING,
            "data": _op_data(op),
        }
        for op in ops
    ]
    missing = len(wanted[:MAX_CITED]) - len(ops)
    return {"rows": rows, "more": max(0, len(wanted) - MAX_CITED), "missing": missing}


def _op_data(op: Op) -> str:
    return _clip(", ".join(f"{key}: {_short(value)}" for key, value in op.data.items()))


def _legend(timeline: Timeline) -> list[dict[str, Any]]:
    counts = dict.fromkeys(Outcome, 0)
    for e in timeline.executions:
        if not e.call:
            counts[e.outcome] += 1
    return [
        {"name": OUTCOME_WORDS[o], "css": o.name.lower(), "count": n}
        for o, n in counts.items()
        if n
        or (timeline.executions and o is Outcome.COMPLETED)
        or (timeline.faults and o in (Outcome.CUT, Outcome.AGAIN))
    ]


def _touched(run: Run, timeline: Timeline) -> dict[str, Any]:
    """Every execution that did not simply complete, as a table: for the eye, paper and readers."""
    errors: dict[str, str] = {}
    for op in run.history.of("attempt.failed", "driver.failure", "driver.actor_failure"):
        words = [str(op.data[k]) for k in ("error_type", "error", "message") if op.data.get(k)]
        errors[str(op.data.get("key"))] = _clip(": ".join(words))
    found = [e for e in timeline.executions if e.outcome is not Outcome.COMPLETED]
    found.sort(key=lambda e: (e.start, e.key))
    rows = [
        {
            "key": e.key,
            "kind": "actor call" if e.call else "task",
            "node": e.node,
            "attempt": e.attempt,
            "start": f"{e.start:.2f}",
            "end": f"{e.end:.2f}",
            "outcome": OUTCOME_WORDS[e.outcome],
            "css": e.outcome.name.lower(),
            "error": errors.get(e.key, "") if e.outcome in (Outcome.CUT, Outcome.FAILED) else "",
        }
        for e in found[:MAX_TOUCHED]
    ]
    return {"rows": rows, "more": max(0, len(found) - MAX_TOUCHED), "total": len(found)}


def _nodes(run: Run) -> list[dict[str, str]]:
    """The topology's groups as rows, from the spec; the recorded nodes where it is not known."""
    topology = run.spec.get("topology")
    if isinstance(topology, Mapping) and topology.get("head"):
        groups = [("head", 1, topology["head"])]
        if topology.get("driver_node"):
            groups.append((DRIVER, 1, Driver().model_dump()))
        groups += [
            (str(g.get("group_name", "?")), g.get("replicas", 1), g)
            for g in topology.get("worker_groups") or ()
            if isinstance(g, Mapping)
        ]
        return [
            {
                "name": f"{name} (lean)" if name in run.lean_groups else name,
                "count": str(count),
                "resources": _resources(g.get("resources")),
            }
            for name, count, g in groups
            if isinstance(g, Mapping)
        ]
    recorded = run.history.last("cluster.nodes")
    return [
        {
            "name": str(n.get("name", "?")),
            "count": "1",
            "resources": _resources(n.get("resources")),
        }
        for n in (recorded.data.get("nodes", ()) if recorded else ())
        if isinstance(n, Mapping)
    ]


def _resources(value: Any) -> str:
    if not isinstance(value, Mapping):
        return NOTHING
    return ", ".join(f"{v:g} {k}" if isinstance(v, (int, float)) else f"{v} {k}"
                     for k, v in value.items() if v) or "none"  # fmt: skip


def _schedule(run: Run) -> list[dict[str, str]]:
    rows = []
    resolved: dict[str, list[str]] = {}
    for op in run.history.of("fault.plan"):
        step = str(op.data.get("id")).partition(".")[0]
        resolved.setdefault(step, []).append(op.node or str(op.data.get("target", "")))
    for step in run.spec.get("schedule") or ():
        if isinstance(step, Mapping):
            fault_id = str(step.get("id", ""))
            rows.append(
                {
                    "fault": str(step.get("fault", "?")),
                    "target": _short(step.get("asked") or step.get("target")),
                    "resolved": ", ".join(resolved.get(fault_id, ())) or NOTHING,
                    "when": _short(step.get("when")),
                    "heal": _short(step.get("heal")),
                }
            )
    return rows


def _name(metric: str) -> str:
    """A metric's name in words, its unit in brackets."""
    words = metric.removesuffix("_s").replace("_", " ")
    return f"{words} (s)" if metric.endswith("_s") else words


def _pairs(value: Any) -> list[tuple[str, str]]:
    return [(k, _short(v)) for k, v in value.items()] if isinstance(value, Mapping) else []


def _short(value: Any) -> str:
    if value is None:
        return NOTHING
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return _clip(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _clip(text: str) -> str:
    return text if len(text) <= MAX_TEXT else text[:MAX_TEXT] + " …"


def _capacity(run: Run, timeline: Timeline) -> dict[str, Any] | None:
    """CPUs that were wanted and offered over time, where Ray's autoscaler decided; in steps."""
    points = capacity(run.view) if run.is_elastic else []
    if not points:
        return None
    first = (timeline.start, points[0][1], points[0][2])
    steps = [(round(when - timeline.zero, 3), *both) for when, *both in points]
    shown = [first, *(p for p in steps if p[0] > timeline.start)]
    return {
        "at": [round(p[0], 3) for p in shown],
        "wanted": [p[1] for p in shown],
        "offered": [p[2] for p in shown],
    }


def _data(run: Run, timeline: Timeline) -> str:
    """What the charts draw, as columns; JSON in which no ``<`` can end the script element.

    Times are milliseconds since `Timeline.start`, as unsigned 32-bit integers. Executions stand
    in segments (one node, one row); within a segment none overlap, so that what lies under the
    pointer or in the view is found by binary search.
    """
    names = {lane.name: i for i, lane in enumerate(timeline.lanes)}
    executions = [e for e in timeline.executions if e.node in names]
    segments: list[list[int]] = []
    for i, e in enumerate(executions):
        where = [names[e.node], int(e.call), e.row]
        if not segments or segments[-1][:3] != where:
            segments.append([*where, i, i])
        segments[-1][4] = i + 1
    start = timeline.start
    begins = [_ms(e.start - start) for e in executions]
    through = timeline.throughput
    data = {
        "start": start,
        "end": timeline.end,
        "capacity": _capacity(run, timeline),
        "lanes": [
            {
                "name": lane.name,
                "rows": lane.rows,
                "spans": [[round(s.start, 4), round(s.end, 4), s.state] for s in lane.spans],
            }
            for lane in timeline.lanes
        ],
        "segments": segments,
        "from": _column("I", begins),
        "length": _column(
            "I", [_ms(e.end - start) - began for e, began in zip(executions, begins, strict=True)]
        ),
        "outcome": _column("B", [e.outcome for e in executions]),
        "attempt": _column("B", [min(e.attempt, 255) for e in executions]),
        "keys": "\n".join(e.key.replace("\n", " ") for e in executions),
        "outcomes": [OUTCOME_WORDS[o] for o in Outcome],
        "faults": [
            {
                "text": f"{f.fault} {f.target or 'cluster'}",
                "word": FAULT_WORDS.get(f.fault, f.fault),
                "lane": names.get(f.target or "", -1),
                "at": round(f.injected, 4),
                "start": round(f.start, 4),
                "end": None if f.end is None else round(f.end, 4),
            }
            for f in timeline.faults
        ],
        "marks": [
            [round(m.at, 4), names[m.node], clean(m.name)[:60]]
            for m in timeline.marks
            if m.node in names
        ],
        "throughput": {
            "start": through.start,
            "step": through.step,
            "values": [round(v, 3) for v in through.values],
            "before": None if through.before is None else round(through.before, 3),
            "window": through.window,
            "goal": [None if v is None else round(v, 3) for v in through.goal],
        },
    }
    text = json.dumps(data, separators=(",", ":"), ensure_ascii=True)
    return text.replace("&", "\\u0026").replace("<", "\\u003c").replace(">", "\\u003e")


def _ms(seconds: float) -> int:
    return min(max(0, round(seconds * 1000)), 2**32 - 1)


def _column(code: str, values: Iterable[int]) -> str:
    column = array(code, values)
    if sys.byteorder == "big":
        column.byteswap()
    return base64.b64encode(column.tobytes()).decode()
