"""Which backend: Docker if an engine answers, else processes; says which and why."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from simulator.backends.base import Backend
from simulator.errors import BadInput, CannotRun, NotFound, Problem

NAMES = ("auto", "docker", "process")


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and the sentence that says why it was taken."""

    backend: Backend
    why: str


def make(name: str) -> Backend:
    """The backend of this name, whether or not it can run here.

    Raises
    ------
    BadInput
        The name is not known.
    """
    # Imported here: a backend's libraries are loaded only where it is used.
    if name == "process":
        from simulator.backends.process import ProcessBackend

        return ProcessBackend()
    if name == "docker":
        from simulator.backends.docker import DockerBackend

        return DockerBackend()
    raise _unknown(name)


def choose(name: str = "auto") -> Choice:
    """The backend of this name, or the one that fits this machine.

    Raises
    ------
    BadInput
        The name is not known.
    CannotRun
        Docker was asked for and no engine answers.
    """
    if name not in NAMES:
        raise _unknown(name)
    if name == "process":
        return Choice(make(name), "processes, as asked for")
    from simulator.backends.docker import engine_silence

    silent = engine_silence(timeout=5.0)
    if silent is None:
        asked = name == "docker"
        why = f"Docker, {'as asked for' if asked else 'because an engine answers'}"
        return Choice(make("docker"), why)
    if name == "docker":
        raise CannotRun(
            "no Docker engine answers",
            why=silent.why or silent.what,
            remedy=". ".join(r for r in (silent.remedy, "Or use --backend process") if r),
        )
    why = f"processes, because no Docker engine answers ({silent.why or silent.what})"
    return Choice(make("process"), why)


@dataclass(frozen=True, slots=True)
class Usable:
    """Every backend that answers on this machine, and a sentence for each that does not."""

    backends: Sequence[Backend]
    silent: Sequence[str] = ()


def usable(name: str = "auto") -> Usable:
    """Where clusters may be found: on the backend of this name, or on all that answer.

    Raises
    ------
    BadInput, CannotRun
        As `choose`, where one backend was asked for.
    """
    if name != "auto":
        return Usable([choose(name).backend])
    backends: list[Backend] = []
    silent: list[str] = []
    for other in NAMES[1:]:
        if other == "process" and not sys.platform.startswith("linux"):
            continue  # there are none elsewhere, and that is no news to anybody
        try:
            backends.append(choose(other).backend)
        except CannotRun as error:
            silent.append(f"{other}: {error.what} ({error.why})")
    return Usable(backends, silent)


def _unknown(name: str) -> BadInput:
    return BadInput(Problem(f"--backend {name}", str(NotFound("backend", name, NAMES))))
