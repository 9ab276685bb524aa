"""Puts a step together from its parts, wherever they were written, and gathers what is wrong with them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import partial
from typing import Any, cast

from lark import Token, Tree
from lark.exceptions import UnexpectedInput

from simulator.errors import BadInput, NotFound, Problem
from simulator.faults import FAULTS, Fault
from simulator.faults.parameters import Parameter, Written, parameters
from simulator.schedule import conditions
from simulator.schedule.conditions import Condition
from simulator.schedule.meaning import (
    comparison,
    duration,
    target_of,
    text_of,
    time_of,
    value_of,
    whole,
)
from simulator.schedule.parsing import (
    CLAUSES,
    Source,
    Wrong,
    not_found,
    parser,
    span,
    syntax_problem,
    tree_of,
)
from simulator.schedule.steps import After, AtEnd, Every, Heal, Never, Step, WhenDeclaredDead
from simulator.schedule.targets import Target, Together


@dataclass
class StepBuilder:
    """Puts a step together from its parts, and notes every problem that they have."""

    problems: list[Problem]
    _source: Source = field(default_factory=lambda: Source("", ""))
    _failed: bool = False
    _kind: type[Fault] | None = None
    _parameters: dict[str, Any] = field(default_factory=dict)
    _target: Target | None = None
    _against: Target | None = None
    _clauses: dict[str, Any] = field(default_factory=dict)
    _trees: dict[str, tuple[Source, Tree[Token]]] = field(default_factory=dict)

    def parse(self, start: str, text: str, where: str) -> Tree[Token] | None:
        """The tree of a text; what is said of it from now on concerns that text."""
        return self._parse(start, Source(text, where))

    def _parse(self, start: str, source: Source) -> Tree[Token] | None:
        self._source = source
        try:
            return parser().parse(source.text, start=start)
        except UnexpectedInput as error:
            self._failed = True
            self.problems.append(syntax_problem(error, self._source))
            return None

    def note(self, problem: Problem) -> None:
        """A problem of the step's that somebody else found."""
        self._failed = True
        self.problems.append(problem)

    def _try(self, read: Callable[[], None]) -> None:
        try:
            read()
        except Wrong as wrong:
            self.note(self._source.of(wrong))

    # .. the fault

    def fault(self, tree: Tree[Token]) -> None:
        self._read(tree, FAULTS)

    def _read(self, tree: Tree[Token], kinds: Mapping[str, Any]) -> None:
        """A name with its parameters, of one of these kinds."""
        name, given = tree.children
        self._trees["fault"] = (self._source, tree)
        kind = kinds.get(str(name))
        if kind is None:
            self.note(self._source.of(not_found(cast("Token", name), "fault", str(name), kinds)))
            return
        self._kind = kind
        for position, part in enumerate(tree_of(given).children if given is not None else ()):
            if part is not None:
                self._try(partial(self._parameter, kind, tree_of(part), position))

    def made(self, tree: Tree[Token], kinds: Mapping[str, Any]) -> Any:
        """What a name with its parameters makes, of one of these kinds; None if anything is wrong with it."""
        self._read(tree, kinds)
        return self._made() if self._kind is not None else None

    def _parameter(self, kind: type[Fault], tree: Tree[Token], position: int) -> None:
        known = parameters(kind)
        name, _, value = tree.children
        if not known:
            raise Wrong(tree, f"{kind.name} takes no parameters")
        if name is None:
            if position > 0:
                raise Wrong(tree, "only the first parameter may stand without its name",
                             f"{kind.name} takes {', '.join(known)}")  # fmt: skip
            name = Token("NAME", next(iter(known)), start_pos=span(tree)[0])
        elif name not in known:
            raise not_found(cast("Token", name), f"parameter of {kind.name}", str(name), known)
        self._set(known[str(name)], value_of(value), tree)

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
            raise Wrong(at, f"{parameter.name} is said twice")
        try:
            self._parameters[parameter.name] = parameter.read(value)
        except ValueError as error:
            raise Wrong(at, f"{parameter.name} {error}") from None

    def word(self, tree: Tree[Token]) -> None:
        """A word behind the target is a value of the parameter that has such a choice."""

        def read() -> None:
            (word,) = tree.children
            if self._kind is None:
                return  # what it takes is not known
            choices = {c: p for p in parameters(self._kind).values() for c in p.choices}
            if str(word) not in choices:
                near = get_close_matches(str(word), [*choices, *CLAUSES], n=2)
                takes = f"{self._kind.name} takes {' or '.join(choices)}" if choices else ""
                raise Wrong(
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

        self._try(read)

    def against(self, tree: Tree[Token]) -> None:
        def read() -> None:
            self._against = self._whom(tree)
            if self._kind is not None and not self._kind.between_nodes:
                raise Wrong(
                    tree,
                    f"{self._kind.name} does not lie between nodes",
                    "leave out from and what follows it",
                )

        self._try(read)

    def _whom(self, tree: Tree[Token]) -> Target:
        found = []
        for part in tree.children:
            try:
                found.append(target_of(tree_of(part)))
            except Wrong as wrong:
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
                raise Wrong(tree, f"{said} is said twice")
            self._clauses[slot] = value
            self._trees[name] = (self._source, tree)

        self._try(read)

    def _clause_value(self, name: str, tree: Tree[Token]) -> Any:
        if name in ("at", "every"):
            return time_of(tree_of(tree.children[-1]))
        if name == "times":
            return whole(cast("Token", tree.children[0]))
        if name == "when":
            return self._condition(tree.children[-1])
        if name == "when_dead":
            at_most = tree.children[-1]
            return (
                WhenDeclaredDead()
                if at_most is None
                else WhenDeclaredDead(duration(cast("Token", at_most)))
            )
        if name in ("first", "last", "after", "within"):
            seconds = duration(cast("Token", tree.children[-1]))
            return After(seconds) if name == "after" else seconds
        return {"at_end": AtEnd(), "never": Never(), "busy": True, "while_working": True}[name]

    def _condition(self, part: Any) -> Condition | None:
        if isinstance(part, Tree):
            return self._meaning(part)
        inside = StepBuilder(self.problems)
        source = Source(text_of(part), self._source.where)
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
                return comparison(tree)
            except Wrong as wrong:
                self.note(self._source.of(wrong))
                return None
        parts = [self._meaning(tree_of(p)) for p in tree.children if isinstance(p, Tree)]
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
                at=clauses.get("at", every.gap if every else 0.0),
                fault=fault,
                target=self._target,
                heal=cast(Heal, clauses.get("heal")),
                when_busy=clauses.get("busy", False),
                while_working=clauses.get("while_working", False),
                when=clauses.get("when"),
                against=self._against,
                every=every,
                **({"patience": clauses["within"]} if "within" in clauses else {}),
            )
        except ValueError as error:
            source, tree = self._trees.get("every", (source, tree))
            self.note(source.of(Wrong(tree, str(error))))
            return None

    def _made(self) -> Fault | None:
        assert self._kind is not None
        if self._failed:
            return None
        source, tree = self._trees["fault"]
        try:
            return self._kind(**self._parameters)
        except (ValueError, TypeError) as error:
            self.note(source.of(Wrong(tree, f"{self._kind.name}: {error}")))
        except BadInput as error:
            for problem in error.problems:
                what = f"{problem.where}: {problem.what}"
                self.note(source.of(Wrong(tree, what, problem.remedy)))
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
                self.note(source.of(Wrong(tree, what, remedy)))


def read_made(text: str, where: str, kinds: Mapping[str, Any], problems: list[Problem]) -> Any:
    """What a text such as ``name(parameter=10s)`` makes, of one of these dataclasses; None if it has problems."""
    builder = StepBuilder(problems)
    tree = builder.parse("fault", text, where)
    return None if tree is None else builder.made(tree, kinds)
