"""The small language of schedules: the same on a command line, in a file, and as `str` of a `Step`.

``kill one(worker) @20s for 15s; partition minority from majority when 'tasks(finished) > 50'``

A text is split into steps first, so that three bad steps are three errors, each with the place at which it
stands. Which faults there are, and what parameters each takes, is read from the registry, so that a fault
that a user registers can be written like any other. The grammar is in ``language.lark``.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from simulator.errors import BadInput, Problem
from simulator.faults import Fault
from simulator.faults.parameters import parameters, written
from simulator.quantities import UNITS
from simulator.schedule.builder import StepBuilder
from simulator.schedule.parsing import tree_of
from simulator.schedule.steps import Step

_PIECES = re.compile(
    r"""(?P<text>"(?:\\.|[^"\\\n])*"|'[^'\n]*')|(?P<comment>\#[^\n]*)|(?P<end>[;\n])|."""
)


def parse_schedule(text: str, where: str = "--fault") -> list[Step]:
    """The steps of a text, in its order.

    Parameters
    ----------
    where
        What its problems are said to be problems of.

    Raises
    ------
    BadInput
        Every problem of every step.
    """
    problems: list[Problem] = []
    steps = read_text(text, where, problems)
    if problems:
        raise BadInput(problems)
    return steps


def read_text(text: str, where: str, problems: list[Problem]) -> list[Step]:
    """The steps that can be read; what is wrong with the others is added to `problems`."""
    pieces = list(split(text))
    several_lines = "\n" in text.strip()
    found = []
    for number, (line, piece) in enumerate(pieces, 1):
        place = where
        if several_lines:
            place = f"{where}, line {line}"
        elif len(pieces) > 1:
            place = f"{where}, step {number}"
        try:
            step = read_step(piece, place, problems)
        except RecursionError:
            problems.append(Problem(place, "is nested too deeply", "leave out some not"))
            continue
        if step is not None:
            found.append(step)
    if not pieces:
        problems.append(Problem(where, "has no step", "for example: kill one(worker) @20s"))
    return found


def split(text: str) -> Iterator[tuple[int, str]]:
    """The steps of a text without what only parts them, each with the number of its line."""
    line, begin, piece = 1, 1, ""
    for match in _PIECES.finditer(text):
        if match["end"]:
            if piece.strip():
                yield begin, piece.strip()
            line += match["end"] == "\n"
            begin, piece = line, ""
        elif not match["comment"]:
            piece += match[0]
    if piece.strip():
        yield begin, piece.strip()


def read_step(text: str, where: str, problems: list[Problem]) -> Step | None:
    """The step of a text without separators; None if it has problems."""
    builder = StepBuilder(problems)
    tree = builder.parse("step", text, where)
    if tree is None:
        return None
    fault, target, _, against, *rest = tree.children
    builder.fault(tree_of(fault))
    builder.target(tree_of(target))
    if against is not None:
        builder.against(tree_of(against))
    for part in rest:
        if tree_of(part).data == "word":
            builder.word(tree_of(part))
        else:
            builder.clause(tree_of(part))
    return builder.build()


def example_of(kind: type[Fault], group: str = "worker") -> str:
    """A step with this fault, and with the usual value of its first parameter."""
    first = next(iter(parameters(kind).values()), None)
    shown = ""
    if first is not None and first.default is not None and not first.choices:
        plain = isinstance(first.default, str) or first.unit not in UNITS
        shown = f"({first.name}={written(first.default)}{'' if plain else first.unit})"
    whom = f"one({group}) from head" if kind.between_nodes else f"one({group})"
    lasting = "" if kind().downs_node else " for 10s"
    return f"{kind.name}{shown} {whom} @20s{lasting}"
