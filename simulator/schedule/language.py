"""The small language of schedules: the same on a command line, in a file, and as `str` of a `Step`.

``kill one(worker) @20s for 15s; partition minority from majority when 'tasks(finished) > 50'``

A text is split into steps first, so that three bad steps are three errors, each with the place at which it
stands. Which faults there are, and what parameters each takes, is read from the registry, so that a fault
that a user registers can be written like any other. The grammar is in ``language.lark``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache, partial
from importlib.resources import files
from typing import Any, cast

from lark import Lark, Token, Tree
from lark.exceptions import UnexpectedCharacters, UnexpectedInput, UnexpectedToken

from simulator.errors import BadInput, NotFound, Problem
from simulator.faults import FAULTS, Fault
from simulator.faults.parameters import Parameter, Quantity, Written, parameters
from simulator.schedule import conditions
from simulator.schedule.conditions import Condition
from simulator.schedule.steps import (
    After,
    AtEnd,
    Between,
    Every,
    Heal,
    Never,
    Step,
    WhenDeclaredDead,
)
from simulator.schedule.targets import (
    DRAWN_WORDS,
    Labelled,
    Named,
    NodeOfActor,
    NodeOfTask,
    Offering,
    Several,
    Target,
    Together,
)

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
    "AT_MOST": "at most 60s",
    "TO": "..",
    "LPAR": "(",
    "RPAR": ")",
    "LSQB": "[",
    "RSQB": "]",
    "COMMA": ",",
    "COLON": ":",
    "EQUALS": "=",
    "DOT": ".",
    "$END": "the end",
}

#: Terminals that need no mention where others of the same meaning are mentioned.
_SYNONYMS = frozenset(
    {"AT_WORD", "RESTART", "WITHIN", "TIMES", "NAME", "QUANTITY", "COMMA", "LPAR"}
)

#: The words with which something that may stand behind the target begins.
_CLAUSES = ("at", "every", "from", "until", "for", "heal", "restart", "when", "within", "busy")

_WORDS = re.compile(r"[A-Za-z_]+")
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
        step = read_step(piece, place, problems)
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
    builder.fault(_tree(fault))
    builder.target(_tree(target))
    if against is not None:
        builder.against(_tree(against))
    for part in rest:
        if _tree(part).data == "word":
            builder.word(_tree(part))
        else:
            builder.clause(_tree(part))
    return builder.build()


@cache
def grammar() -> str:
    """The grammar, as Lark reads it."""
    return files("simulator.schedule").joinpath("language.lark").read_text(encoding="utf-8")


@cache
def _parser() -> Lark:
    return Lark(
        grammar(),
        parser="lalr",
        start=["step", "fault", "target", "clause", "condition"],
        propagate_positions=True,
    )


# -- where it stands


class _Wrong(Exception):
    """A part of a text has no meaning; which part, and why."""

    def __init__(self, at: Token | Tree[Token], what: str, remedy: str = "") -> None:
        super().__init__(what)
        self.at, self.what, self.remedy = at, what, remedy


@dataclass
class _Source:
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

    def of(self, wrong: _Wrong) -> Problem:
        at = wrong.at
        begin, end = _span(at)
        return self.problem(begin, end, wrong.what, wrong.remedy)


def _span(at: Token | Tree[Token]) -> tuple[int, int]:
    if isinstance(at, Token):
        begin = at.start_pos or 0
        return begin, begin + len(at)
    return at.meta.start_pos, at.meta.end_pos


def _tree(part: Any) -> Tree[Token]:
    return cast("Tree[Token]", part)


def _not_found(at: Token | Tree[Token], kind: str, name: str, known: Iterable[str]) -> _Wrong:
    error = NotFound(kind, name, known)
    return _Wrong(at, f"there is no {kind} named {name!r}", error.why)


# -- errors of the grammar


def _syntax_problem(error: UnexpectedInput, source: _Source) -> Problem:
    """What the parser stumbled over, in words: at which character, and what could stand there."""
    text = source.text
    accepted: Collection[str] = ()
    if isinstance(error, UnexpectedToken):
        at_end = error.token.type == "$END"
        begin = len(text) if at_end else error.token.start_pos or 0
        end = begin + (1 if at_end else len(error.token))
        accepted = error.accepts or error.expected
    else:
        begin = error.pos_in_stream or 0
        end = begin + 1
        accepted = (error.allowed or ()) if isinstance(error, UnexpectedCharacters) else ()
        if "AT" in accepted:  # the words, which begin like names, are not told
            accepted = [
                *accepted,
                *(t.name for t in _parser().terminals if str(t.pattern.value) in _CLAUSES),
            ]
    if text[begin : begin + 1] in ("'", '"'):
        return source.problem(begin, len(text), "the quote is not closed")
    alone = re.search(r"([A-Za-z_]*)\s*([0-9.]+[A-Za-z%]*)\s*$", text[:begin])
    if alone is not None and set(accepted) == {"TIMES"}:
        # A number behind a word that is none of the language's was taken for "5 times".
        near = get_close_matches(alone[1], _CLAUSES, n=1)
        if near:
            what = f"{alone[1]!r} is no word of the language here"
            return source.problem(*alone.span(1), what, f"did you mean {near[0]}?")
        looks = "@{0}, for {0}, every {0}".format(alone[2])
        return source.problem(
            *alone.span(2), f"what is {alone[2]}?", f"expected {looks} or 5 times"
        )
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
    order = {t.name: i for i, t in enumerate(_parser().terminals)}
    looks = {
        _LOOKS.get(n, n.lower()): None
        for n in sorted(names, key=lambda n: (n == "$END", order.get(n, 0)))
    }
    *others, last = looks or ["something else"]
    return f"{', '.join(others)} or {last}" if others else last


# -- from a tree to a step


@dataclass
class StepBuilder:
    """Puts a step together from its parts, and notes every problem that they have."""

    problems: list[Problem]
    _source: _Source = field(default_factory=lambda: _Source("", ""))
    _failed: bool = False
    _kind: type[Fault] | None = None
    _parameters: dict[str, Any] = field(default_factory=dict)
    _target: Target | None = None
    _against: Target | None = None
    _clauses: dict[str, Any] = field(default_factory=dict)
    _trees: dict[str, tuple[_Source, Tree[Token]]] = field(default_factory=dict)

    def parse(self, start: str, text: str, where: str) -> Tree[Token] | None:
        """The tree of a text; what is said of it from now on concerns that text."""
        return self._parse(start, _Source(text, where))

    def _parse(self, start: str, source: _Source) -> Tree[Token] | None:
        self._source = source
        try:
            return _parser().parse(source.text, start=start)
        except UnexpectedInput as error:
            self._failed = True
            self.problems.append(_syntax_problem(error, self._source))
            return None

    def note(self, problem: Problem) -> None:
        """A problem of the step's that somebody else found."""
        self._failed = True
        self.problems.append(problem)

    def _try(self, read: Callable[[], None]) -> None:
        try:
            read()
        except _Wrong as wrong:
            self.note(self._source.of(wrong))

    # .. the fault

    def fault(self, tree: Tree[Token]) -> None:
        name, given = tree.children
        self._trees["fault"] = (self._source, tree)
        kind = FAULTS.get(str(name))
        if kind is None:
            self.note(self._source.of(_not_found(cast("Token", name), "fault", str(name), FAULTS)))
            return
        self._kind = kind
        for position, part in enumerate(_tree(given).children if given is not None else ()):
            if part is not None:
                self._try(partial(self._parameter, kind, _tree(part), position))

    def _parameter(self, kind: type[Fault], tree: Tree[Token], position: int) -> None:
        known = parameters(kind)
        name, _, value = tree.children
        if not known:
            raise _Wrong(tree, f"{kind.name} takes no parameters")
        if name is None:
            if position > 0:
                raise _Wrong(tree, "only the first parameter may stand without its name",
                             f"{kind.name} takes {', '.join(known)}")  # fmt: skip
            name = Token("NAME", next(iter(known)), start_pos=_span(tree)[0])
        elif name not in known:
            raise _not_found(cast("Token", name), f"parameter of {kind.name}", str(name), known)
        self._set(known[str(name)], _written(value), tree)

    def set_parameter(self, name: str, value: Written, where: str) -> None:
        """A parameter that does not stand in a text of the language."""
        if self._kind is None:
            return
        known = parameters(self._kind)
        if name not in known:
            error = NotFound(f"parameter of {self._kind.name}", name, known)
            self.note(Problem(where, str(error)))
            return
        try:
            self._parameters[name] = known[name].read(value)
        except ValueError as error:
            self.note(Problem(where, str(error)))

    def _set(self, parameter: Parameter, value: Written, at: Tree[Token]) -> None:
        if parameter.name in self._parameters:
            raise _Wrong(at, f"{parameter.name} is said twice")
        try:
            self._parameters[parameter.name] = parameter.read(value)
        except ValueError as error:
            raise _Wrong(at, f"{parameter.name} {error}") from None

    def word(self, tree: Tree[Token]) -> None:
        """A word behind the target is a value of the parameter that has such a choice."""

        def read() -> None:
            (word,) = tree.children
            if self._kind is None:
                return  # what it takes is not known
            choices = {c: p for p in parameters(self._kind).values() for c in p.choices}
            if str(word) not in choices:
                near = get_close_matches(str(word), [*choices, *_CLAUSES], n=2)
                takes = f"{self._kind.name} takes {' or '.join(choices)}" if choices else ""
                raise _Wrong(
                    tree,
                    f"{str(word)!r} is no word of the language here",
                    f"did you mean {' or '.join(near)}?" if near else takes,
                )
            self._set(choices[str(word)], str(word), tree)

        self._try(read)

    # .. whom

    def target(self, tree: Tree[Token]) -> None:
        def read() -> None:
            self._target = self._whom(tree)

        self._trees["target"] = (self._source, tree)
        self._try(read)

    def against(self, tree: Tree[Token]) -> None:
        def read() -> None:
            self._against = self._whom(tree)
            if self._kind is not None and not self._kind.between_nodes:
                raise _Wrong(
                    tree,
                    f"{self._kind.name} does not lie between nodes",
                    "leave out from and what follows it",
                )

        self._try(read)

    def _whom(self, tree: Tree[Token]) -> Target:
        found = []
        for part in tree.children:
            try:
                found.append(_one_target(_tree(part)))
            except _Wrong as wrong:
                self.note(self._source.of(wrong))
        return found[0] if len(found) == 1 else Together(tuple(found))

    # .. when, and for how long

    def clause(self, tree: Tree[Token]) -> None:
        def read() -> None:
            name = str(tree.data)
            slot = {
                "after": "heal", "when_dead": "heal", "at_end": "heal", "never": "heal",
                "first": "at",
            }.get(name, name)  # fmt: skip
            value = self._clause_value(name, tree)
            if slot in self._clauses:
                said = {"heal": "when it is undone", "at": "when it begins"}.get(slot, slot)
                raise _Wrong(tree, f"{said} is said twice")
            self._clauses[slot] = value
            self._trees[name] = (self._source, tree)

        self._try(read)

    def _clause_value(self, name: str, tree: Tree[Token]) -> Any:
        if name in ("at", "every"):
            return _time(_tree(tree.children[-1]))
        if name == "times":
            return _whole(cast("Token", tree.children[0]))
        if name == "when":
            return self._condition(tree.children[-1])
        if name == "when_dead":
            at_most = tree.children[-1]
            return (
                WhenDeclaredDead()
                if at_most is None
                else WhenDeclaredDead(_duration(cast("Token", at_most)))
            )
        if name in ("first", "last", "after", "within"):
            seconds = _duration(cast("Token", tree.children[-1]))
            return After(seconds) if name == "after" else seconds
        return {"at_end": AtEnd(), "never": Never(), "busy": True}[name]

    def _condition(self, part: Any) -> Condition | None:
        if isinstance(part, Tree):
            return self._meaning(part)
        inside = StepBuilder(self.problems)
        source = _Source(_text(part), self._source.where)
        if "\\" not in part:  # else it is not letter by letter what stands in the line
            source.line, source.offset = self._source.text, part.start_pos + 1
        tree = inside._parse("condition", source)
        found = inside._meaning(tree) if tree is not None else None
        self._failed |= inside._failed
        return found

    def condition(self, text: str, where: str) -> None:
        """The condition of a text of its own."""
        tree = self.parse("condition", text, where)
        if tree is not None:
            self._clauses["when"] = self._meaning(tree)

    def _meaning(self, tree: Tree[Token]) -> Condition | None:
        """The condition of a tree; None if a part of it has no meaning, which is noted."""
        if tree.data == "comparison":
            try:
                return _comparison(tree)
            except _Wrong as wrong:
                self.note(self._source.of(wrong))
                return None
        parts = [self._meaning(_tree(p)) for p in tree.children if isinstance(p, Tree)]
        found = tuple(p for p in parts if p is not None)
        if len(found) < len(parts):
            return None
        if tree.data == "not_so":
            return conditions.Not(found[0])
        if len(found) == 1:
            return found[0]
        return conditions.And(found) if tree.data == "all_of" else conditions.Or(found)

    # .. all of it

    def build(self) -> Step | None:
        """The step; None if anything is wrong with it."""
        self._contradictions()
        fault = self._made() if self._kind is not None else None
        if self._failed or fault is None or self._target is None:
            return None
        clauses = self._clauses
        source, tree = self._trees["fault"]
        try:
            every = None
            if "every" in clauses:
                every = Every(clauses["every"], clauses.get("last"), clauses.get("times"))
            return Step(
                at=clauses.get("at", 0.0),
                fault=fault,
                target=self._target,
                heal=cast(Heal, clauses.get("heal")),
                when_busy=clauses.get("busy", False),
                when=clauses.get("when"),
                against=self._against,
                every=every,
                **({"patience": clauses["within"]} if "within" in clauses else {}),
            )
        except ValueError as error:
            source, tree = self._trees.get("every", (source, tree))
            self.note(source.of(_Wrong(tree, str(error))))
            return None

    def _made(self) -> Fault | None:
        assert self._kind is not None
        if self._failed:
            return None
        source, tree = self._trees["fault"]
        try:
            return self._kind(**self._parameters)
        except (ValueError, TypeError) as error:
            self.note(source.of(_Wrong(tree, f"{self._kind.name}: {error}")))
            return None

    def _contradictions(self) -> None:
        needs = {
            "last": ("every", "an end in time belongs to every", "say for how long: for 10s"),
            "first": ("every", "from and a time belong to every", "say when: @10s"),
            "times": ("every", "how often belongs to every", "say every 30s as well"),
            "within": ("when", "within belongs to when", "say for what it waits: when '...'"),
        }
        for name, (needed, what, remedy) in needs.items():
            if name in self._trees and needed not in self._clauses and needed not in self._trees:
                source, tree = self._trees[name]
                self.note(source.of(_Wrong(tree, what, remedy)))


# -- the meaning of the parts


def _text(token: Token) -> str:
    """A name or a text as it is meant, without its quotes."""
    raw = str(token)
    if token.type != "TEXT":
        return raw
    if raw[0] == "'":
        return raw[1:-1]
    try:
        return str(json.loads(raw))
    except ValueError:
        raise _Wrong(token, "has a backslash that means nothing", r"write \\ for one") from None


def _written(value: Any) -> Written:
    if isinstance(value, Tree):
        return tuple(_written(item) for item in value.children if item is not None)
    if value.type == "QUANTITY":
        try:
            return Quantity.parse(str(value))
        except ValueError as error:
            raise _Wrong(value, f"{value} {error}") from None
    return _text(value)


def _duration(token: Token) -> float:
    try:
        seconds = Quantity.parse(str(token)).as_unit("s")
    except ValueError as error:
        raise _Wrong(token, f"the time {error}") from None
    if seconds < 0:
        raise _Wrong(token, f"the time is {token}; no time is below 0")
    return seconds


def _time(tree: Tree[Token]) -> float | Between:
    low, _, high = tree.children
    first = _duration(cast("Token", low))
    if high is None:
        return first
    try:
        return Between(first, _duration(cast("Token", high)))
    except ValueError as error:
        raise _Wrong(tree, str(error)) from None


def _whole(token: Token) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", token):
        raise _Wrong(token, f"the count is {token}; use a whole number from 1 on")
    return int(token)


def _one_target(tree: Tree[Token]) -> Target:
    name = cast("Token", tree.children[0])
    if tree.data == "word_target":
        if name in DRAWN_WORDS and name.type == "NAME":
            return DRAWN_WORDS[str(name)]()
        return Named(_text(name))
    arguments = [_tree(a).children for a in tree.children[1:] if a is not None]
    made = _TARGETS.get(str(name))
    if made is None:
        raise _not_found(name, "target", str(name), {*_TARGETS, *DRAWN_WORDS, "head"})
    return made(str(name), tree, arguments)


def _plain(tree: Tree[Token], arguments: list[Any], least: int, most: int, use: str) -> list[Token]:
    """Arguments without a part before them; wrong unless there are so many."""
    if not least <= len(arguments) <= most or any(a[2] is not None for a in arguments):
        raise _Wrong(tree, "is not how this is written", f"use {use}")
    return [a[0] for a in arguments]


def _of_group(name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    if name in ("busiest", "holder_of_most_objects"):
        _plain(tree, arguments, 0, 0, name)
        return DRAWN_WORDS[name]()
    given = _plain(tree, arguments, 0, 1, f"{name}, or {name}(worker) for a group")
    return DRAWN_WORDS[name](*map(_text, given))


def _random(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    use = "random(2), or random(2, worker) for a group"
    given = _plain(tree, arguments, 1, 2, use)
    return Several(_whole(given[0]), *map(_text, given[1:]))


def _label(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    if len(arguments) != 1 or arguments[0][1] != "=":
        raise _Wrong(tree, "is not how this is written", "use label(key=value)")
    key, _, value = arguments[0]
    return Labelled(_text(key), _text(value))


def _resource(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    (resource,) = _plain(tree, arguments, 1, 1, "resource(GPU)")
    return Offering(_text(resource))


def _node_of(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    kinds: dict[str, Callable[[str], Target]] = {"actor": NodeOfActor, "task": NodeOfTask}
    if len(arguments) != 1 or arguments[0][1] != ":" or arguments[0][0] not in kinds:
        what = "use node_of(actor:NAME) or node_of(task:FUNCTION)"
        raise _Wrong(tree, "is not how this is written", what)
    kind, _, name = arguments[0]
    return kinds[str(kind)](_text(name))


_TARGETS: dict[str, Callable[[str, Tree[Token], list[Any]], Target]] = {
    **dict.fromkeys(DRAWN_WORDS, _of_group),
    "random": _random,
    "label": _label,
    "resource": _resource,
    "node_of": _node_of,
}


# -- the meaning of a comparison

_SUBJECTS = {
    "tasks": "tasks(finished) > 50",
    "node": "node(worker-1) == dead",
    "actor": "actor(Trainer) == alive or actor(Trainer).mark >= 3",
    "mark": "mark(epoch) or mark(epoch) >= 5",
    "fault": "fault(f1) == healed",
}


def _comparison(tree: Tree[Token]) -> Condition:
    subject, argument, attribute, comparison, value = tree.children
    name = cast("Token", subject)
    if name not in _SUBJECTS:
        raise _not_found(name, "condition", str(name), _SUBJECTS)
    use = f"use {_SUBJECTS[str(name)]}"
    if argument is None:
        raise _Wrong(tree, f"{name} of what?", use)
    of = _text(cast("Token", argument))
    if attribute is not None and name != "actor":
        raise _Wrong(cast("Token", attribute), f"{name} has no .{attribute}", use)
    if name == "mark" and comparison is None:
        return conditions.Marked(of)
    if comparison is None:
        raise _Wrong(tree, "is compared with nothing", use)
    compare, operand = str(comparison), cast("Token", value)
    if name == "tasks":
        _one_of(cast("Token", argument), of, conditions.TASKS)
        return conditions.Tasks(of, compare, _number(operand, use))
    if name == "mark":
        return conditions.Marked(of, compare, _number(operand, use))
    if attribute is not None:
        _one_of(cast("Token", attribute), str(attribute), conditions.NUMBERS_OF_ACTORS)
        return conditions.ActorNumber(of, str(attribute), compare, _number(operand, use))
    make, states = {
        "node": (conditions.NodeIs, conditions.NODE_STATES),
        "actor": (conditions.ActorIs, conditions.ACTOR_STATES),
        "fault": (conditions.FaultIs, conditions.FAULT_STATES),
    }[str(name)]
    if compare not in ("==", "!="):
        raise _Wrong(cast("Token", comparison), f"a state is not {compare} another", "use == or !=")
    _one_of(operand, str(operand), states)
    return make(of, compare, str(operand))


def _one_of(token: Token, word: str, known: Collection[str]) -> None:
    if word not in known:
        near = get_close_matches(word, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise _Wrong(token, f"the state is {word!r}", remedy)


def _number(token: Token, use: str) -> float:
    try:
        if token.type == "QUANTITY":
            return Quantity.parse(str(token)).as_unit(None)
    except ValueError as error:
        raise _Wrong(token, f"the number {error}") from None
    raise _Wrong(token, f"{str(token)!r} is no number", use)
