"""Which backend: Docker if an engine answers, else processes; says which and why."""

from __future__ import annotations

from dataclasses import dataclass

from simulator.backends.base import Backend
from simulator.errors import BadInput, CannotRun, Problem

NAMES = ("auto", "docker", "process")


@dataclass(frozen=True, slots=True)
class Choice:
    """A backend and the sentence that says why it was taken."""

    backend: Backend
    why: str


def choose(name: str = "auto") -> Choice:
    """The backend of this name.

    Raises
    ------
    BadInput
        The name is not known.
    CannotRun
        Docker was asked for and no engine answers.
    """
    # Imported here: a backend's libraries are loaded only where it is used.
    if name not in NAMES:
        raise BadInput(Problem(f"--backend {name}", "is not known", "one of " + ", ".join(NAMES)))
    if name == "process":
        from simulator.backends.process import ProcessBackend

        return Choice(ProcessBackend(), "processes, as asked for")
    from simulator.backends.docker import DockerBackend, engine_answers

    silent = engine_answers(timeout=5.0)
    if silent is None:
        asked = name == "docker"
        return Choice(DockerBackend(), f"Docker, {'as asked for' if asked else 'an engine answers'}")
    if name == "docker":
        raise CannotRun(
            "no Docker engine answers",
            why=silent,
            remedy="Start Docker, or on Debian as root: make engine; or use --backend process",
        )
    from simulator.backends.process import ProcessBackend

    return Choice(ProcessBackend(), f"processes, because no Docker engine answers ({silent})")
