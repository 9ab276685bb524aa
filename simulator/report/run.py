"""A run directory as the reports see it: what was asked, what happened, what it means.

Reports must open anything that a run can leave behind, also one whose orchestrator was killed:
a file that is missing or damaged becomes a notice that every report shows, never an exception.
Only a folder that is no run directory at all is refused.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from simulator.checkers.base import Finding, RunView, Verdict, worst
from simulator.checkers.judge import judge
from simulator.checkers.phases import Phase
from simulator.errors import BadInput, Problem
from simulator.history import History, Op
from simulator.store import HISTORY, RESULT, SPEC, RunDir

T = TypeVar("T")

STATUSES = {
    "completed": "",
    "failed": "The run met an error of its own before it was done; what it recorded is shown.",
    "aborted": "The run was called off before the fault, because its starting conditions "
    "were not met.",
    "interrupted": "The run ended before it was done (Ctrl-C, or its orchestrator was killed); "
    "everything recorded until then is shown.",
}

#: Control characters could drive a terminal, and neither they nor lone surrogates belong in a file.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ud800-\udfff]")

#: Titles short enough for a narrow terminal; a phase that is not here shows its own title.
SHORT_TITLES = {
    "notice": "Ray told",
    "drained": "no task left",
    "killed": "killed in time",
    "effect": "took effect",
    "first_failure": "first failure seen",
    "actor_alive": "actor alive again",
    "declared_dead": "declared DEAD",
    "objects_rebuilt": "lost objects rebuilt",
    "throughput": "95 % of survivors",
    "rejoined": "node rejoined",
    "full_throughput": "full throughput",
    "replaced": "nodes as before",
}


def short_title(phase: Phase) -> str:
    """The phase's title for a narrow place."""
    return SHORT_TITLES.get(phase.name, phase.title)


@dataclass(frozen=True, slots=True)
class Run:
    """Everything a run directory holds.

    Attributes
    ----------
    view
        The history and the spec, as the checks see them.
    result
        The content of result.json, or what judging the history just now gave.
    notices
        Sentences about what is missing or damaged.
    judged
        Whether there is any judgement.
    """

    path: Path
    view: RunView
    result: Mapping[str, Any]
    notices: Sequence[str]
    judged: bool
    findings: Sequence[Finding]
    phases: Sequence[Phase]

    def figured(self, compute: Callable[[RunView], T | None]) -> T | None:
        """What a checker figures of the run; None where it cannot: a damaged run is shown as far as it goes."""
        try:
            return compute(self.view)
        except Exception:  # noqa: BLE001 - the checks say so
            return None

    @property
    def history(self) -> History:
        return self.view.history

    @property
    def spec(self) -> Mapping[str, Any]:
        return self.view.spec

    @property
    def experiment(self) -> str:
        return clean(str(self._either("experiment") or self.path.parent.name or "experiment"))

    @property
    def claim(self) -> str:
        return clean(str(self.spec.get("claim") or ""))

    @property
    def verdict(self) -> Verdict:
        return _verdict(self.result.get("verdict"))

    @property
    def status(self) -> str:
        """completed, failed, aborted or interrupted."""
        said = self.result.get("status")
        if isinstance(said, str) and said:
            return said
        end = self.history.last("run.end")
        return str(end.data.get("status", "interrupted")) if end else "interrupted"

    @property
    def backend(self) -> str:
        return str(self._either("backend") or "unknown")

    @property
    def gpu(self) -> str:
        return str(self._either("gpu") or "unknown")

    @property
    def health(self) -> str:
        return str(self._either("health") or "unknown")

    @property
    def rpc_faults(self) -> list[str]:
        """Sentences of what was done to Ray's calls for the whole of the cluster's life."""
        found = self._either("rpc_faults")
        return [str(fault) for fault in found] if isinstance(found, list) else []

    @property
    def seed(self) -> int | None:
        seed = self._either("seed")
        return seed if isinstance(seed, int) else None

    @property
    def ray_version(self) -> str:
        versions = _mapping(self.spec.get("versions"))
        return str(self.result.get("ray_version") or versions.get("ray") or "unknown")

    @property
    def topology(self) -> str:
        spec = self.spec.get("topology")
        name = spec.get("name") if isinstance(spec, Mapping) else spec
        return str(self.result.get("topology") or name or "unknown")

    @property
    def lean_groups(self) -> list[str]:
        """Worker groups whose nodes ran bare Ray, whatever the topology asked for."""
        recorded = self.history.last("cluster.nodes")
        nodes = recorded.data.get("nodes") if recorded else None
        if not isinstance(nodes, list):
            return []
        lean = [n for n in nodes if isinstance(n, Mapping) and n.get("profile") == "lean"]
        return sorted({str(n.get("group", "?")) for n in lean})

    @property
    def command(self) -> str:
        return clean(str(self.spec.get("command") or ""))

    @property
    def params(self) -> Mapping[str, Any]:
        return _mapping(self._either("params"))

    @property
    def metrics(self) -> Mapping[str, Any]:
        return _mapping(self.result.get("metrics"))

    @property
    def seen(self) -> list[Phase]:
        """The phases that were seen, by time."""
        found = [p for p in self.phases if p.seconds is not None]
        return sorted(found, key=lambda p: p.seconds or 0.0)

    @property
    def not_seen(self) -> list[Phase]:
        return [p for p in self.phases if p.seconds is None]

    @property
    def breaks_nothing(self) -> bool:
        """Was no fault asked for, and none seen: a run in which there is nothing to recover from?"""
        asked = self.spec.get("schedule")
        if not self.is_elastic:
            asked = asked or self.spec.get("mandatory_phases")
        return bool(self.spec) and not asked and self.history.first("fault.") is None

    @property
    def is_elastic(self) -> bool:
        """Whether Ray's autoscaler decided how many workers there were."""
        return bool(_mapping(self.spec.get("topology")).get("autoscaling"))

    @property
    def grows_unbroken(self) -> bool:
        """Whether its phases tell how the cluster grew and shrank, and not how it recovered."""
        return self.is_elastic and self.breaks_nothing and bool(self.phases)

    @property
    def error(self) -> str:
        """What stopped a run that did not complete, in words."""
        error = self.result.get("error")
        if isinstance(error, Mapping):
            error = error.get("error") or error.get("message") or json.dumps(dict(error))
        if error:
            return clean(str(error))
        recorded = self.history.last("run.error")
        return clean(str(recorded.data.get("error", ""))) if recorded else ""

    def cited(self, indices: Sequence[int]) -> list[Op]:
        """The operations with these indices; ones that the history does not hold are left out."""
        ops = self.history.ops
        # An index is a place in the history, unless lines of it could not be read.
        found = {i: ops[i] for i in indices if 0 <= i < len(ops) and ops[i].index == i}
        wanted = set(indices) - found.keys()
        if wanted:
            found |= {op.index: op for op in ops if op.index in wanted}
        return [found[i] for i in indices if i in found]

    def _either(self, key: str) -> Any:
        value = self.result.get(key)
        return self.spec.get(key) if value is None else value


def load_run(run_dir: Path, view: RunView | None = None) -> Run:
    """Read a run directory, whatever is left of it.

    Parameters
    ----------
    view
        Its history and spec, by whoever has read them already: a long history takes seconds and
        memory, and what was computed from it is kept with the view.

    Raises
    ------
    BadInput
        It is not a folder, or holds neither spec.json, history.jsonl nor result.json.
    """
    run_dir = Path(run_dir)
    files = (SPEC, HISTORY, RESULT)
    if not any((run_dir / name).is_file() for name in files):
        what = "holds no " + ", ".join(files) if run_dir.is_dir() else "is not a folder"
        raise BadInput(Problem(str(run_dir), what, "name a run, such as runs/node_failure/latest"))
    notices: list[str] = []
    if view is None:
        spec = _read_json(run_dir / SPEC, notices, "what was asked for is not known")
        try:
            history = RunDir(run_dir).history()
        except OSError:
            history = History()
            notices.append(f"{HISTORY} is missing: there is no evidence to show.")
        view = RunView(history, spec)
    history, spec = view.history, view.spec
    can_judge = bool(spec) and len(history) > 0
    consequence = "judged just now, from the history" if can_judge else "nothing was judged"
    result = _read_json(run_dir / RESULT, notices, consequence)
    judged = bool(result)
    if not judged and can_judge:
        result, judged = _judge_now(view), True
    truncated = history.truncated or result.get("truncated")
    if truncated:
        notices.append(f"The history is incomplete: {truncated}.")
    return Run(
        path=run_dir,
        view=view,
        result=result,
        notices=notices,
        judged=judged,
        findings=[_finding(f) for f in _list(result.get("findings")) if isinstance(f, Mapping)],
        phases=[_phase(p) for p in _list(result.get("phases")) if isinstance(p, Mapping)],
    )


def _judge_now(view: RunView) -> Mapping[str, Any]:
    """What result.json would say; a run that did not come to its end is never valid."""
    found = judge(view)
    end = view.history.last("run.end")
    completed = end is not None and end.data.get("status") == "completed"
    verdict = found.verdict if completed else worst([found.verdict, Verdict.UNKNOWN])
    return {
        "verdict": verdict.value,
        "findings": [f.to_data() for f in found.findings],
        "phases": [p.to_data() for p in found.phases],
        "metrics": dict(found.metrics),
    }


def _read_json(path: Path, notices: list[str], consequence: str) -> Mapping[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError:
        notices.append(f"{path.name} is missing: {consequence}.")
        return {}
    except ValueError:
        data = None
    if not isinstance(data, dict):
        notices.append(f"{path.name} cannot be read: {consequence}.")
        return {}
    return data


def clean(text: str) -> str:
    """The text as it may be shown: what a task wrote may hold anything."""
    return _UNPRINTABLE.sub("\ufffd", text)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _verdict(value: Any) -> Verdict:
    try:
        return Verdict(value)
    except ValueError:
        return Verdict.UNKNOWN


def _indices(value: Any) -> list[int]:
    return [i for i in _list(value) if isinstance(i, int)]


def number(value: Any) -> float | None:
    """The value if it is a number, else None: what did not happen is never 0."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if usable else None


def _finding(raw: Mapping[str, Any]) -> Finding:
    details = raw.get("details")
    return Finding(
        check=clean(str(raw.get("check", "?"))),
        verdict=_verdict(raw.get("verdict")),
        summary=clean(str(raw.get("summary", ""))),
        cites=_indices(raw.get("cites")),
        details=[
            clean(str(line)) for line in ([details] if isinstance(details, str) else _list(details))
        ],
        metrics=_mapping(raw.get("metrics")),
    )


def _phase(raw: Mapping[str, Any]) -> Phase:
    name = str(raw.get("name", "?"))
    return Phase(
        name=name,
        title=clean(str(raw.get("title") or name.replace("_", " "))),
        seconds=number(raw.get("seconds")),
        uncertainty=number(raw.get("uncertainty")) or 0.0,
        cites=_indices(raw.get("cites")),
        mandatory=bool(raw.get("mandatory", False)),
        note=clean(str(raw.get("note") or "")).removeprefix("not seen: "),
    )
