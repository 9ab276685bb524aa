"""Says whether this machine can do it: each fact ok, a warning, or a problem with its remedy.

It must answer on a machine where nothing is installed yet, so every part is looked at by itself, and
a part that breaks becomes a problem of its own instead of the end of the report. What a backend needs
(engine, image, memory, cores, Ray) the backend itself knows.
"""

from __future__ import annotations

import platform
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from simulator import __version__
from simulator.backends import select
from simulator.backends.base import Check
from simulator.errors import SimulatorError
from simulator.topology import Topology


@dataclass(frozen=True, slots=True)
class Section:
    """Checks that belong together.

    Attributes
    ----------
    backend
        Name of the backend that they are about, or None for the machine itself.
    """

    title: str
    backend: str | None
    checks: Sequence[Check]

    @property
    def blocked(self) -> bool:
        return any(c.level == "problem" for c in self.checks)


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Everything that was looked at, and which backend would be taken for `asked`."""

    sections: Sequence[Section]
    choice: str
    asked: str = "auto"

    @property
    def able(self) -> bool:
        """Whether a cluster can be started on at least one backend."""
        return any(s.backend is not None and not s.blocked for s in self.sections)


def examine(topology: Topology, backend: str = "auto") -> Diagnosis:
    """Look at the machine and at every backend, or only at the one that is named.

    Raises
    ------
    BadInput
        The backend's name is not known.
    """
    names = select.NAMES[1:] if backend == "auto" else [backend]
    sections = [Section("This machine", None, [_python(), _simulator()])]
    sections += [Section(f"Backend {name}", name, _backend(name, topology)) for name in names]
    try:
        choice = select.choose(backend).why
    except SimulatorError as error:
        choice = f"none: {error}"
    return Diagnosis(sections, choice, backend)


def _python() -> Check:
    text = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    if (3, 10) <= sys.version_info[:2] <= (3, 13):
        return Check("ok", "Python", text)
    return Check("warning", "Python", text, "3.10 to 3.13 are tested")


def _simulator() -> Check:
    return Check("ok", "simulator", f"ray-cluster-simulator {__version__}")


def _backend(name: str, topology: Topology) -> list[Check]:
    try:
        return list(select.make(name).check(topology))
    except SimulatorError as error:
        if error.exit_code == 2:
            raise
        why = f": {error.why}" if error.why else ""
        return [Check("problem", name, error.what + why, error.remedy)]
    except Exception as error:  # noqa: BLE001 - a doctor that dies helps nobody
        text = f"could not be looked at: {type(error).__name__}: {error}"
        return [Check("problem", name, text, "Report this as a defect")]
