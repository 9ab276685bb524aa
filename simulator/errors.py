"""Every error this package raises on purpose.

The tree::

    SimulatorError                exit 4
    ├── BadInput                  exit 2   what the user wrote is wrong; lists every problem
    ├── CannotRun                 exit 4   the machine, engine or image cannot do it
    │   └── NodeStartFailed       exit 4   named nodes did not join in time
    ├── NotFound                  exit 2   a cluster, node or run by that name does not exist
    └── Interrupted               exit 4   the user pressed Ctrl-C

Where they belong, modules have a `CannotRun` of their own: `simulator.waiting.WaitTimeout` and
`simulator.rayapi.RayUnreachable`.

An error says *what* happened, *why*, and what to do *next*; its data are fields first and a
sentence second, so that a caller can act on it and a person can read it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong with an input: where it stands, what it is, what to do.

    ``excerpt`` has lines of the input itself, and what points into them.
    """

    where: str
    what: str
    remedy: str = ""
    excerpt: tuple[str, ...] = ()

    def __str__(self) -> str:
        text = f"{self.where}: {self.what}" + (f"; {self.remedy}" if self.remedy else "")
        return "\n".join([text, *(f"      {line}" for line in self.excerpt)])


class SimulatorError(Exception):
    """Base of all errors raised on purpose.

    Parameters
    ----------
    what, why, remedy
        The sentence in three parts; the last two may be empty.
    details
        Lines shown below the sentence (last log lines, a failed command's output).
    """

    exit_code = 4

    def __init__(
        self, what: str, *, why: str = "", remedy: str = "", details: Iterable[str] = ()
    ) -> None:
        self.what = what
        self.why = why
        self.remedy = remedy
        self.details = tuple(details)
        super().__init__(what)

    def __str__(self) -> str:
        text = self.what
        if self.why:
            text += f": {self.why}"
        if self.remedy:
            text += f". {self.remedy}"
        return "\n".join([text, *(f"    {line}" for line in self.details)])


class BadInput(SimulatorError):
    """What the user wrote is wrong; `problems` holds all of it, not just the first."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem] | Problem) -> None:
        self.problems = (problems,) if isinstance(problems, Problem) else tuple(problems)
        count = len(self.problems)
        head = (
            str(self.problems[0])
            if count == 1
            else "\n".join([f"{count} problems:", *(f"  - {p}" for p in self.problems)])
        )
        super().__init__(head)


class NotFound(SimulatorError):
    """A name does not exist; says which names do and which come nearest."""

    exit_code = 2

    def __init__(self, kind: str, name: str, known: Iterable[str], *, hint: str = "") -> None:
        self.kind, self.name, self.known = kind, name, sorted(known)
        self.near = get_close_matches(name, self.known, n=3)
        if self.near:
            remedy = "did you mean " + " or ".join(self.near) + "?"
        elif self.known:
            remedy = "there is " + ", ".join(self.known)
        else:
            remedy = hint or f"there is no {kind} at all"
        super().__init__(f"no {kind} named {name!r}", why=remedy)


class CannotRun(SimulatorError):
    """This machine, engine or image cannot do what was asked."""


class NodeStartFailed(CannotRun):
    """Some nodes did not join; `missing` names them."""

    def __init__(
        self,
        *,
        missing: Sequence[str],
        wanted: int,
        seconds: float,
        why: str = "",
        remedy: str = "",
        details: Iterable[str] = (),
    ) -> None:
        self.missing, self.wanted, self.seconds = tuple(missing), wanted, seconds
        super().__init__(
            f"{wanted - len(missing)} of {wanted} nodes joined within {seconds:.0f} s; "
            f"missing {', '.join(missing)}",
            why=why,
            remedy=remedy,
            details=details,
        )


class Interrupted(SimulatorError):
    """The user asked to stop."""
