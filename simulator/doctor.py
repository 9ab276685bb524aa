"""Says whether this machine can do it: each fact ok, a warning, or a problem with its remedy.

It must answer on a machine where nothing is installed yet, so every part is looked at by itself, and
a part that breaks becomes a problem of its own instead of the end of the report. What a backend needs
(engine, image, memory, cores, Ray) the backend itself knows; where it can, it tries (`TriesOut`). What
could not be found out is said to be not known.
"""

from __future__ import annotations

import os
import platform
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from requests.utils import get_environ_proxies

from simulator import __version__
from simulator.backends import select
from simulator.backends.base import Backend, Check, TriesOut
from simulator.errors import SimulatorError
from simulator.faults import FAULTS
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


def examine(
    topology: Topology,
    backend: str = "auto",
    image: str | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> Diagnosis:
    """Look at the machine and at every backend, or only at the one that is named.

    Parameters
    ----------
    image
        The node image that would be used, instead of ours.
    say
        Told of what takes long.

    Raises
    ------
    BadInput
        The backend's name is not known.
    """
    names = select.NAMES[1:] if backend == "auto" else [backend]
    machine = [_python(), _simulator(), _token(), *shell_checks()]
    sections = [Section("This machine", None, machine)]
    for name in names:
        say(f"looking at backend {name}")
        sections.append(Section(f"Backend {name}", name, _backend(name, topology, image, say)))
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


def _token() -> Check:
    text = "on in every cluster; status, jobs and runs know it, a browser asks for it"
    return Check("ok", "token mode", text)


#: What in a shell changes what Ray's own programs do with a cluster of ours, and how.
_IN_THE_WAY = {
    "RAY_ADDRESS": "Ray's programs go there, whatever address they are given",
    "RAY_API_SERVER_ADDRESS": "`ray job` goes there, whatever address it is given",
    "RAY_AUTH_TOKEN": "Ray's programs show this token, which is not that of a cluster of ours",
    "RAY_AUTH_TOKEN_PATH": "Ray's programs show the token in that file, not that of a cluster of ours",
    "DOCKER_DEFAULT_PLATFORM": "images are built and pulled for it; emulated, a node takes minutes",
}


def shell_checks() -> Iterator[Check]:
    """What in the user's shell would get in the way of clusters, or of Ray's programs with them."""
    found = []
    for name, effect in _IN_THE_WAY.items():
        if os.environ.get(name):
            shown = "set" if name == "RAY_AUTH_TOKEN" else repr(os.environ[name])  # never a secret
            found.append(Check("warning", name, f"is {shown}: {effect}", f"unset {name}"))
    mode = os.environ.get("RAY_AUTH_MODE")
    if mode and mode != "token":
        text = (
            f"is {mode!r}: Ray's programs here show no token, and every cluster of ours wants one"
        )
        found.append(Check("warning", "RAY_AUTH_MODE", text, "export RAY_AUTH_MODE=token"))
    if get_environ_proxies("http://127.0.0.1").get("http"):
        text = "HTTP to 127.0.0.1 would go through a proxy; the simulator's own does not"
        remedy = "For curl, browsers and Ray's programs: export no_proxy=127.0.0.1,localhost"
        found.append(Check("warning", "proxy", text, remedy))
    if not found:
        yield Check("ok", "shell", "no variable gets in the way of Ray's or Docker's programs")
    yield from found


def _backend(
    name: str, topology: Topology, image: str | None, say: Callable[[str], None]
) -> list[Check]:
    try:
        backend = select.make(name)
        found = list(backend.check(topology))
    except SimulatorError as error:
        if error.exit_code == 2:
            raise
        why = f": {error.why}" if error.why else ""
        return [Check("problem", name, error.what + why, error.remedy)]
    except Exception as error:  # noqa: BLE001 - a doctor that dies helps nobody
        return [Check("problem", name, _broken(error), _REPORT_IT)]
    if isinstance(backend, TriesOut) and not any(c.level == "problem" for c in found):
        try:
            found += backend.try_out(topology, image, say)
        except SimulatorError as error:
            why = f": {error.why}" if error.why else ""
            found.append(Check("warning", "trials", f"not known: {error.what}{why}", error.remedy))
        except Exception as error:  # noqa: BLE001
            found.append(Check("warning", "trials", _broken(error), _REPORT_IT))
    return [*found, _faults(backend)]


_REPORT_IT = "Report this as a defect"


def _broken(error: Exception) -> str:
    return f"could not be looked at: {type(error).__name__}: {error}"


def _faults(backend: Backend) -> Check:
    """Which faults there are for nodes of this backend, and what the others would need."""
    kinds = FAULTS.values()
    refused = {
        kind.name: kind.needs.means
        for kind in kinds
        if kind.needs is not None and not isinstance(backend, kind.needs.protocol)
    }
    able = ", ".join(kind.name for kind in kinds if kind.name not in refused)
    if not refused:
        return Check("ok", "faults", able)
    by_means: dict[str, list[str]] = {}
    for name, means in refused.items():
        by_means.setdefault(means, []).append(name)
    needs = "; ".join(
        f"{', '.join(names)} need{'s' if len(names) == 1 else ''} one that {means}"
        for means, names in by_means.items()
    )
    return Check("warning", "faults", f"{able}; {needs}", "Use another backend for those")
