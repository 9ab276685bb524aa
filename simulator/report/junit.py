"""Findings as JUnit XML, for continuous integration.

Each run is a test suite, each check a test case. Invalid is a *failure*. Unknown is an *error*,
not *skipped*: most systems show skipped as green, and a run that proves nothing must not look
like a pass. A run that did not complete, or was never judged, gets a test case ``run`` that is an
error, so that it cannot be green either.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from datetime import datetime, timezone
from pathlib import Path
from xml.etree import ElementTree

from simulator.checkers.base import Finding, Verdict
from simulator.report import story
from simulator.report.run import Run, load_run, number

#: XML 1.0 cannot hold these at all, not even escaped.
_ILLEGAL = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit_xml(runs: Path | Run | Iterable[Path | Run]) -> str:
    """One or several runs as a JUnit XML document.

    Raises
    ------
    BadInput
        A path is not a run directory.
    """
    several = [runs] if isinstance(runs, (Path, Run)) else list(runs)
    root = ElementTree.Element("testsuites", name="ray-cluster-simulator")
    totals = {"tests": 0, "failures": 0, "errors": 0}
    for item in several:
        suite = _suite(item if isinstance(item, Run) else load_run(item))
        root.append(suite)
        for name in totals:
            totals[name] += int(suite.get(name, "0"))
    for name, value in totals.items():
        root.set(name, str(value))
    ElementTree.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ElementTree.tostring(
        root, encoding="unicode"
    )


def _suite(run: Run) -> ElementTree.Element:
    suite = ElementTree.Element("testsuite", name=_clean(run.experiment))
    started, ended = number(run.result.get("started")), number(run.result.get("ended"))
    if started is None:
        started = number(run.spec.get("started"))
    if started is not None:
        when = datetime.fromtimestamp(started, tz=timezone.utc)
        suite.set("timestamp", when.strftime("%Y-%m-%dT%H:%M:%S"))
    took = ended - started if started is not None and ended is not None else 0.0
    suite.set("time", f"{took:.3f}")
    properties = ElementTree.SubElement(suite, "properties")
    for name, value in _properties(run):
        ElementTree.SubElement(properties, "property", name=name, value=_clean(value))
    problem = _problem(run)
    if problem:
        case = _case(suite, run, "run")
        ElementTree.SubElement(case, "error", message=_clean(problem), type=_clean(run.status))
    for finding in run.findings:
        _judged(_case(suite, run, finding.check), finding)
    out = ElementTree.SubElement(suite, "system-out")
    out.text = _clean("\n".join([f"run directory: {run.path}", f"replay: {run.command}"]))
    suite.set("tests", str(len(suite.findall("testcase"))))
    suite.set("failures", str(len(suite.findall("testcase/failure"))))
    suite.set("errors", str(len(suite.findall("testcase/error"))))
    suite.set("skipped", "0")
    return suite


def _case(suite: ElementTree.Element, run: Run, name: str) -> ElementTree.Element:
    return ElementTree.SubElement(
        suite, "testcase", classname=_clean(run.experiment), name=_clean(name), time="0"
    )


def _judged(case: ElementTree.Element, finding: Finding) -> None:
    if finding.verdict is Verdict.VALID:
        out = ElementTree.SubElement(case, "system-out")
        out.text = _clean(finding.summary)
        return
    tag = "failure" if finding.verdict is Verdict.INVALID else "error"
    mark = ElementTree.SubElement(
        case, tag, message=_clean(finding.summary), type=finding.verdict.value
    )
    mark.text = _clean("\n".join(finding.details))


def _problem(run: Run) -> str:
    """Why the run as a whole cannot count, if so."""
    if run.status != "completed":
        return " ".join([f"status {run.status}.", story.status_means(run), *run.notices])
    if not run.judged:
        return " ".join(run.notices)
    if not run.findings:
        return "nothing was checked"
    return ""


def _properties(run: Run) -> list[tuple[str, str]]:
    found = [
        ("seed", "unknown" if run.seed is None else str(run.seed)),
        ("status", run.status),
        ("verdict", run.verdict.value),
        ("backend", run.backend),
        ("topology", run.topology),
        ("health", run.health),
        ("gpu", run.gpu),
        ("version.ray", run.ray_version),
    ]
    versions = run.spec.get("versions")
    if isinstance(versions, dict):
        found += [(f"version.{k}", str(v)) for k, v in versions.items() if k != "ray"]
    found += [
        (f"recovery.{p.name}_s", "not seen" if p.seconds is None else f"{p.seconds:.3f}")
        for p in run.phases
    ]
    return found


def _clean(text: str) -> str:
    return _ILLEGAL.sub("�", text)
