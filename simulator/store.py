"""Where runs are kept: one directory each, readable by people and by programs years later.

The layout is in docs/reference/result.md. What was recorded is never lost: the history is flushed line
by line, and what `down` salvages from a cluster whose orchestrator was killed is merged when it is read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from simulator.errors import BadInput, NotFound, Problem
from simulator.history import SCHEMA as SCHEMA  # one version for all files of a run
from simulator.history import History, Op, read_history

SPEC, HISTORY, RESULT, REPORT = "spec.json", "history.jsonl", "result.json", "report.html"
EXPERIMENT, PROGRAM_LOG = "experiment.py", "program.log"

#: What of the spec every judgement takes, and its type.
_NEEDED: Mapping[str, type | tuple[type, ...]] = {
    "run_id": str,
    "experiment": str,
    "backend": str,
    "seed": int,
    "topology": dict,
    "versions": dict,
    "health": str,
    "gpu": str,
    "params": dict,
    "started": (int, float),
    "mandatory_phases": list,
    "checks": list,
}


@dataclass(frozen=True, slots=True)
class RunDir:
    """One run's directory."""

    path: Path

    @property
    def history_path(self) -> Path:
        return self.path / HISTORY

    def write_spec(self, spec: Mapping[str, Any]) -> None:
        _write_json(self.path / SPEC, spec)

    def write_result(self, result: Mapping[str, Any]) -> None:
        _write_json(self.path / RESULT, result)

    def spec(self) -> dict[str, Any]:
        """What was asked for.

        Raises
        ------
        BadInput
            It is not JSON, or a later version of the simulator wrote it.
        """
        spec = _read_json(self.path / SPEC)
        schema = spec.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise BadInput(
                Problem(
                    str(self.path),
                    f"was recorded with schema {schema}; this version reads up to {SCHEMA}",
                    "update the simulator to judge it",
                )
            )
        return spec

    def whole_spec(self) -> dict[str, Any]:
        """The same, or `BadInput` if it lacks what a run cannot be judged without."""
        spec = self.spec()
        missing = [key for key, kind in _NEEDED.items() if not isinstance(spec.get(key), kind)]
        if missing:
            raise BadInput(
                Problem(
                    str(self.path / SPEC),
                    f"lacks {', '.join(missing)}",
                    "restore the file; without it a run cannot be judged",
                )
            )
        return spec

    def result(self) -> dict[str, Any] | None:
        """What it meant when it was last judged; None if it never was, or if that is damaged.

        A result can always be made again from the history, so a damaged one is worth no error.
        """
        try:
            return _read_json(self.path / RESULT) if (self.path / RESULT).is_file() else None
        except BadInput:
            return None

    def history(self) -> History:
        """The history, together with ledger lines that were salvaged but never received."""
        history = read_history(self.history_path)
        return _with_salvaged(history, self.path / "ledger")


def default_root() -> Path:
    """``runs`` below the current folder, or ``$RAY_SIM_RUNS``."""
    return Path(os.environ.get("RAY_SIM_RUNS", "runs")).absolute()


class Store:
    """All runs below one root folder."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = root or default_root()

    def create(self, experiment: str, seed: int) -> RunDir:
        """A new run's directory, and ``latest`` pointing at it.

        Raises
        ------
        BadInput
            The folder cannot be written.
        """
        folder = self.root / experiment
        stamp = time.strftime("%Y%m%d-%H%M%S")
        try:
            folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"{stamp}-{seed}"
            number = 1
            while True:
                try:
                    path.mkdir()
                    break
                except FileExistsError:
                    number += 1
                    path = folder / f"{stamp}-{seed}-{number}"
            for link, target in (
                (folder / "latest", path.name),
                (self.root / "latest", str(path.relative_to(self.root))),
            ):
                part = link.with_name(f".latest-{os.getpid()}")
                part.unlink(missing_ok=True)
                part.symlink_to(target)
                part.replace(link)
        except OSError as error:
            raise BadInput(
                Problem(str(self.root), f"cannot be written: {error.strerror}", "set RAY_SIM_RUNS")
            ) from None
        return RunDir(path)

    def find(self, name: str) -> RunDir:
        """A run by path, or by name below the root: ``node_failure/latest``, ``latest``, an id.

        Raises
        ------
        NotFound
            There is nothing of that name.
        BadInput
            It is there but is not a run directory; says what is missing.
        """
        name = name or "."
        for candidate in (Path(name), self.root / name, *self.root.glob(f"*/{name}")):
            if candidate.is_dir():
                path = candidate.resolve()
                missing = [f for f in (SPEC, HISTORY) if not (path / f).is_file()]
                if missing:
                    raise BadInput(
                        Problem(
                            name,
                            f"is not a run directory: it has no {' and no '.join(missing)}",
                            "list them with: python -m simulator runs",
                        )
                    )
                return RunDir(path)
        known = [f"{r.path.parent.name}/{r.path.name}" for r in self.list()]
        raise NotFound(
            "run",
            name,
            known[-5:],
            hint="there is no run yet; make one with: python -m simulator run node_failure",
        )

    def list(self) -> list[RunDir]:
        """All runs, oldest first."""
        found = [
            RunDir(p.parent)
            for p in self.root.glob(f"*/*/{SPEC}")
            if not p.parent.is_symlink() and p.parent.name != "latest"
        ]
        return sorted(found, key=lambda r: r.path.name)


def _with_salvaged(history: History, ledger: Path) -> History:
    """Add ledger lines that the orchestrator never received (it was killed before they came)."""
    if not ledger.is_dir():
        return history
    seen = {
        (op.data["file"], op.data["line"])
        for op in history
        if op.source in ("ledger", "driver") and "file" in op.data
    }
    names = _names_by_hostname(history)
    extra: list[Op] = []
    for path in sorted(ledger.rglob("*.jsonl")):
        source = "driver" if path.name.startswith("driver") else "ledger"
        with path.open(encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, 1):
                if (path.name, number) in seen:
                    continue
                try:
                    raw = json.loads(line)
                    op = Op(
                        index=0,
                        kind=raw["kind"],
                        source=source,
                        wall=raw["wall"],
                        mono=raw["mono"],
                        received=raw["wall"],
                        node=names.get(raw["host"], raw["host"]),
                        data={**raw["data"], "file": path.name, "line": number, "salvaged": True},
                    )
                except (ValueError, KeyError, TypeError):
                    continue
                extra.append(op)
    if not extra:
        return history
    start = len(history)
    extra.sort(key=lambda op: op.wall)
    return History(
        [*history.ops, *(_at_index(op, start + i) for i, op in enumerate(extra))],
        truncated=history.truncated,
    )


def _at_index(op: Op, index: int) -> Op:
    return Op(index, op.kind, op.source, op.wall, op.mono, op.received, op.node, op.data)


def _names_by_hostname(history: History) -> dict[str, str]:
    return {
        node["hostname"]: node["name"]
        for op in history.of("cluster.nodes")
        for node in op.data["nodes"]
    }


def _write_json(path: Path, data: Mapping[str, Any]) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    part.replace(path)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise BadInput(Problem(str(path), f"is not JSON: {error}")) from None
    if not isinstance(data, dict):
        raise BadInput(Problem(str(path), "is not an object"))
    return data
