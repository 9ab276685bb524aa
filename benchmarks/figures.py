"""What all benchmarks share: figures with their targets, the machine they hold for, and where they are kept.

A figure without the machine says nothing, so each benchmark keeps its figures with machine, versions, commit and load
in ``benchmarks/results/bench-<name>.json``. What could not be measured is a row too, with the reason.

    python benchmarks/figures.py             # the table of what is kept
    python benchmarks/figures.py --markdown  # the same for the README
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from simulator import __version__  # noqa: E402 - the checkout, whatever else is installed
from simulator.errors import SimulatorError  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"

MET, MISSED, REPORTED = "met", "missed", "reported"


@dataclass(frozen=True, slots=True)
class Figure:
    """One thing that was measured.

    Attributes
    ----------
    value
        None if it was not measured; then `why` says why.
    at_most
        The target, in the same unit; None for what is only reported.
    basis
        What the target is made of, such as ``1.1 x cluster_utils``; "" if it is an absolute one.
    note
        What a reader must know to judge it: how many of how many, what is not equal.
    details
        Whatever else is worth keeping: single measurements, options.
    """

    name: str
    value: float | None
    unit: str
    at_most: float | None = None
    basis: str = ""
    why: str = ""
    note: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)

    @property
    def verdict(self) -> str:
        """met, missed, reported (there is no target), or ``not measured: `` and why.

        A figure whose target could not be measured is not called met: nothing was compared.
        """
        if self.value is None:
            return f"not measured: {self.why}"
        if self.why:
            return f"not compared: {self.why}"
        if self.at_most is None:
            return REPORTED
        return MET if self.value <= self.at_most else MISSED

    @property
    def shown(self) -> str:
        return "-" if self.value is None else f"{_number(self.value)} {self.unit}"

    @property
    def target(self) -> str:
        if self.at_most is None:
            return f"<= {self.basis}" if self.basis else "-"
        limit = f"<= {_number(self.at_most)} {self.unit}"
        return f"{limit} ({self.basis})" if self.basis else limit


def _number(value: float) -> str:
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def relative(
    name: str,
    value: float | None,
    unit: str,
    factor: float,
    peer: str,
    peer_value: float | None,
    *,
    why: str = "",
    note: str = "",
    details: Mapping[str, Any] | None = None,
) -> Figure:
    """A figure whose target is a peer's, times a factor; not compared where the peer has none."""
    basis = f"{factor:g} x {peer}"
    if value is not None and peer_value is None:
        why = why or f"{peer} was not measured"
    at_most = None if peer_value is None else round(factor * peer_value, 3)
    return Figure(name, value, unit, at_most, basis, why, note, details or {})


# ---- the machine


def machine() -> dict[str, Any]:
    """What figures depend on."""
    return {
        "cores": os.cpu_count(),
        "cpu": _cpu(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": platform.platform(),
        "python": platform.python_version(),
        "ray": _installed("ray"),
        "docker": _says("docker", "version", "--format", "{{.Server.Version}}"),
        "compose": _says("docker", "compose", "version", "--short"),
        "simulator": __version__,
    }


def _cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    named = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(named, platform.machine())


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _says(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def commit() -> str:
    """The commit that is checked out; a tree with changes is not that commit."""
    name = _says("git", "-C", str(ROOT), "rev-parse", "--short", "HEAD") or __version__
    changed = _says("git", "-C", str(ROOT), "status", "--porcelain", "--untracked-files=no")
    return f"{name}-changed" if changed else name


def load() -> float:
    """How many processes wanted a core in the last minute."""
    return round(os.getloadavg()[0], 1)


# ---- keeping and showing


def finish(
    bench: str,
    figures: Sequence[Figure],
    *,
    began_load: float,
    options: Mapping[str, Any],
    save: bool,
) -> int:
    """Print a benchmark's table, keep its figures if asked to, and return its exit code.

    1 if a target was missed, 3 if something was not measured, else 0.
    """
    print(table(figures))
    if save:
        keep(bench, figures, began_load=began_load, options=options)
    return exit_code(figures)


def exit_code(figures: Iterable[Figure]) -> int:
    verdicts = [figure.verdict for figure in figures]
    if MISSED in verdicts:
        return 1
    return 3 if any(v.startswith("not ") for v in verdicts) else 0


def keep(
    bench: str,
    figures: Sequence[Figure],
    *,
    began_load: float,
    options: Mapping[str, Any],
    folder: Path = RESULTS,
) -> Path:
    """Write a benchmark's figures with all that they depend on; returns the file."""
    data = {
        "bench": bench,
        "when": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "commit": commit(),
        "machine": machine(),
        "load": {"before": began_load, "after": load()},
        "options": dict(options),
        "figures": [{**asdict(figure), "verdict": figure.verdict} for figure in figures],
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"bench-{bench}.json"
    path.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
    return path


def kept(folder: Path = RESULTS) -> list[dict[str, Any]]:
    """What is kept, oldest benchmark's name first; figures as `Figure`."""
    found = []
    for path in sorted(folder.glob("bench-*.json")):
        data = json.loads(path.read_text(encoding="utf-8"))
        data["figures"] = [
            Figure(**{k: v for k, v in raw.items() if k != "verdict"}) for raw in data["figures"]
        ]
        found.append(data)
    return found


def table(figures: Iterable[Figure]) -> str:
    """The figures as aligned text."""
    rows = [("figure", "measured", "target", "verdict")]
    rows += [(f.name, f.shown, f.target, _verdict(f)) for f in figures]
    widths = [max(len(row[i]) for row in rows) for i in range(3)]
    return "\n".join(
        "  ".join(
            [*(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True)), row[3]]
        )
        for row in rows
    )


def markdown(results: Sequence[Mapping[str, Any]]) -> str:
    """All kept figures as one table for the README, and below it what they hold for."""
    lines = ["| figure | measured | target | |", "|---|---|---|---|"]
    for result in results:
        lines += [
            f"| {_cell(f.name)} | {_cell(f.shown)} | {_cell(f.target)} | {_cell(_verdict(f))} |"
            for f in result["figures"]
        ]
    grounds: dict[str, list[str]] = {}
    for result in results:
        grounds.setdefault(_ground(result), []).append(str(result["bench"]))
    lines.append("")
    lines += [f"{', '.join(names)}: {ground}." for ground, names in grounds.items()]
    return "\n".join(lines)


def _verdict(figure: Figure) -> str:
    return f"{figure.verdict}; {figure.note}" if figure.note else figure.verdict


def _ground(result: Mapping[str, Any]) -> str:
    on = result["machine"]
    engine = f", Docker {on['docker']}, Compose {on['compose']}" if on["docker"] else ""
    ray = f", Ray {on['ray']}" if on["ray"] else ""
    return (
        f"{on['cores']} cores ({on['cpu']}), {on['memory_gb']:.0f} GB, {on['system']}, Python "
        f"{on['python']}{ray}{engine}; commit {result['commit']}, {str(result['when'])[:10]}, load "
        f"{result['load']['before']:g} before"
    )


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<=", "≤")


def reason(error: SimulatorError) -> str:
    """Why something failed, on one line of a table."""
    return f"{error.what}: {error.why}" if error.why else error.what


def say(text: str) -> None:
    """Progress, on standard error."""
    sys.stderr.write(f"bench: {text}\n")
    sys.stderr.flush()


def parser(description: str | None) -> argparse.ArgumentParser:
    """An argument parser with what every benchmark takes."""
    made = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    made.add_argument(
        "--save", action="store_true", help="keep the figures under benchmarks/results/"
    )
    return made


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--markdown", action="store_true", help="as Markdown, with the machine")
    chosen = arguments.parse_args()
    results = kept()
    if not results:
        print("nothing is kept yet: make bench", file=sys.stderr)
        return 3
    if chosen.markdown:
        print(markdown(results))
    else:
        print(table(figure for result in results for figure in result["figures"]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
