"""From a text to its parts, by the grammar in ``language.lark``, and what to say where that fails."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from importlib.resources import files
from typing import Any, cast

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from simulator.errors import NotFound, Problem

#: What each terminal of the grammar looks like to a person; the rest look as they are.
_LOOKS = {
    "NAME": "a name",
    "QUANTITY": "a number or a time such as 10s",
    "TEXT": "a text in quotes",
    "COMPARISON": "a comparison such as >=",
    "AT": "@10s",
    "EVERY": "every 30s",
    "UNTIL": "until dead",
    "FOR": "for 10s",
    "HEAL": "heal +15s",
    "PLUS": "+15s",
    "WHEN": "when 'tasks(finished) > 50'",
    "WHILE": "while working",
    "AT_MOST": "at most 60s",
    "TO": "'..'",
    "LPAR": "'('",
    "RPAR": "')'",
    "LSQB": "'['",
    "RSQB": "']'",
    "COMMA": "','",
    "COLON": "':'",
    "EQUALS": "'='",
    "DOT": "'.'",
    "$END": "the end",
}

#: Terminals that need no mention where others of the same meaning are mentioned.
_SYNONYMS = frozenset(
    {"AT_WORD", "RESTART", "WITHIN", "TIMES", "NAME", "QUANTITY", "COMMA", "LPAR"}
)

#: The words with which something that may stand behind the target begins.
CLAUSES = (
    "at", "every", "from", "until", "for", "heal", "restart", "when", "within", "busy", "while",
)  # fmt: skip


@cache
def grammar() -> str:
    """The grammar, as Lark reads it."""
    return files("simulator.schedule").joinpath("language.lark").read_text(encoding="utf-8")


@cache
def parser() -> Lark:
    return Lark(
        grammar(),
        parser="lalr",
        start=["step", "fault", "target", "clause", "condition"],
        propagate_positions=True,
    )


# -- where it stands


class Wrong(Exception):
    """A part of a text has no meaning; which part, and why."""

    def __init__(self, at: Token | Tree[Token], what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.at, self.what, self.remedy = at, what, remedy


@dataclass
class Source:
    """A text, and where it came from.

    Attributes
    ----------
    line, offset
        The line that is shown, and where in it the text begins: a quoted condition is part of a step.
    """

    text: str
    where: str
    line: str = ""
    offset: int = 0

    def problem(self, begin: int, end: int, what: str, remedy: str = "") -> Problem:
        marks = " " * (self.offset + begin) + "^" * max(1, end - begin)
        return Problem(self.where, what, remedy, (self.line or self.text, marks))

    def of(self, wrong: Wrong) -> Problem:
        at = wrong.at
        begin, end = span(at)
        return self.problem(begin, end, wrong.what, wrong.remedy)


def span(at: Token | Tree[Token]) -> tuple[int, int]:
    if isinstance(at, Token):
        begin = at.start_pos or 0
        return begin, begin + len(at)
    return at.meta.start_pos, at.meta.end_pos


def tree_of(part: Any) -> Tree[Token]:
    return cast("Tree[Token]", part)


def not_found(at: Token | Tree[Token], kind: str, name: str, known: Iterable[str]) -> Wrong:
    error = NotFound(kind, name, known)
    return Wrong(at, f"there is no {kind} named {name!r}", error.why)


# -- errors of the grammar


def syntax_problem(error: UnexpectedInput, source: Source) -> Problem:
    """What the parser stumbled over, in words: at which character, and what could stand there."""
    text = source.text
    accepted: Collection[str] = ()
    if isinstance(error, UnexpectedToken):
        at_end = error.token.type == "$END"
        begin = len(text) if at_end else error.token.start_pos or 0
        end = begin + (1 if at_end else len(error.token))
        accepted = error.accepts or error.expected
        if (word := re.match(r"\w+", text[begin:])) is not None:
            end = max(end, begin + word.end())  # "heal" of "healed" is a word of the language
    else:
        begin = error.pos_in_stream or 0
        end = begin + 1
        accepted = (error.allowed or ()) if isinstance(error, UnexpectedCharacters) else ()
        if "AT" in accepted:  # the words, which begin like names, are not told
            accepted = [
                *accepted,
                *(t.name for t in parser().terminals if str(t.pattern.value) in CLAUSES),
            ]
    if text[begin : begin + 1] in ("'", '"'):
        return source.problem(begin, len(text), "the quote is not closed")
    alone = re.search(r"([A-Za-z_]*)\s*([0-9.]+[A-Za-z%]*)\s*$", text[:begin])
    if alone is not None and set(accepted) == {"TIMES"}:
        # A number behind a word that is none of the language's was taken for "5 times".
        near = get_close_matches(alone[1], CLAUSES, n=1)
        if near:
            what = f"{alone[1]!r} is no word of the language here"
            return source.problem(*alone.span(1), what, f"did you mean {near[0]}?")
        looks = "@{0}, for {0}, every {0}".format(alone[2])
        return source.problem(
            *alone.span(2), f"what is {alone[2]}?", f"expected {looks} or 5 times"
        )
    # Nothing at all, where what came before was whole and was taken for it: so it should end there.
    accepted = accepted or ("$END",)
    found = repr(text[begin:end]) if begin < len(text) else "the end"
    return source.problem(
        begin, end, f"{found} cannot stand here", f"expected {_expected(accepted)}"
    )


def _expected(accepted: Collection[str]) -> str:
    if {"NAME", "TEXT"} <= set(accepted) and "QUANTITY" not in accepted:
        return "whom to hit, such as worker-1, one(worker), all or head"
    names = list(accepted)
    if {"AT", "FOR"} <= set(names) or {"FOR", "$END"} <= set(names):  # behind the target
        names = [n for n in names if n not in _SYNONYMS]
    if "RPAR" in names:  # behind an argument, where only a few take a second part
        names = [n for n in names if n not in ("COLON", "EQUALS")]
    order = {t.name: i for i, t in enumerate(parser().terminals)}
    looks = {
        _LOOKS.get(n, n.lower()): None
        for n in sorted(names, key=lambda n: (n == "$END", order.get(n, 0)))
    }
    *others, last = looks
    return f"{', '.join(others)} or {last}" if others else last
