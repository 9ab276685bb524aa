"""What the parts of a step mean: values, times, targets and comparisons, each from its tree."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection
from difflib import get_close_matches
from typing import Any, cast

from lark import Token, Tree

from simulator.faults.parameters import Text, Written
from simulator.quantities import Quantity
from simulator.schedule import conditions
from simulator.schedule.conditions import Condition
from simulator.schedule.parsing import Wrong, not_found, tree_of
from simulator.schedule.steps import Between
from simulator.schedule.targets import (
    DRAWN_WORDS,
    Labelled,
    Named,
    NodeOfActor,
    NodeOfTask,
    Offering,
    Several,
    Target,
)

# -- the meaning of the parts


def text_of(token: Token) -> str:
    """A name or a text as it is meant, without its quotes."""
    raw = str(token)
    if token.type != "TEXT":
        return raw
    if raw[0] == "'":
        return raw[1:-1]
    try:
        return str(json.loads(raw))
    except ValueError:
        raise Wrong(
            token, "the text has a backslash that means nothing", r"write \\ for one"
        ) from None


def value_of(value: Any) -> Written:
    if isinstance(value, Tree) and value.data == "pair":
        kind, _, name = value.children
        return Text(f"{kind}:{text_of(cast('Token', name))}")
    if isinstance(value, Tree):
        return tuple(value_of(item) for item in value.children if item is not None)
    if value.type == "QUANTITY":
        try:
            return Quantity.parse(str(value))
        except ValueError as error:
            raise Wrong(value, f"{value} {error}") from None
    return Text(text_of(value)) if value.type == "TEXT" else text_of(value)


def duration(token: Token) -> float:
    try:
        seconds = Quantity.parse(str(token)).as_unit("s")
    except ValueError as error:
        raise Wrong(token, f"the time {error}") from None
    if seconds < 0:
        raise Wrong(token, f"the time is {token}; no time is below 0")
    return seconds


def time_of(tree: Tree[Token]) -> float | Between:
    low, _, high = tree.children
    first = duration(cast("Token", low))
    if high is None:
        return first
    try:
        return Between(first, duration(cast("Token", high)))
    except ValueError as error:
        raise Wrong(tree, str(error)) from None


def whole(token: Token) -> int:
    if not re.fullmatch(r"[1-9][0-9]*", token):
        raise Wrong(token, f"the count is {token}; use a whole number from 1 on")
    return int(token)


def target_of(tree: Tree[Token]) -> Target:
    name = cast("Token", tree.children[0])
    if tree.data == "word_target":
        if name in DRAWN_WORDS and name.type == "NAME":
            return DRAWN_WORDS[str(name)]()
        return Named(text_of(name))
    arguments = [tree_of(a).children for a in tree.children[1:] if a is not None]
    made = _TARGETS.get(str(name))
    if made is None:
        raise not_found(name, "target", str(name), {*_TARGETS, *DRAWN_WORDS, "head"})
    return made(str(name), tree, arguments)


def _plain(tree: Tree[Token], arguments: list[Any], least: int, most: int, use: str) -> list[Token]:
    """Arguments without a part before them; wrong unless there are so many."""
    if not least <= len(arguments) <= most or any(a[2] is not None for a in arguments):
        raise Wrong(tree, f"this is not how {tree.children[0]} is written", f"use {use}")
    return [a[0] for a in arguments]


def _of_group(name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    if name in ("busiest", "holder_of_most_objects"):
        _plain(tree, arguments, 0, 0, name)
        return DRAWN_WORDS[name]()
    given = _plain(tree, arguments, 0, 1, f"{name}, or {name}(worker) for a group")
    return DRAWN_WORDS[name](*map(text_of, given))


def _random(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    use = "random(2), or random(2, worker) for a group"
    given = _plain(tree, arguments, 1, 2, use)
    return Several(whole(given[0]), *map(text_of, given[1:]))


def _label(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    if len(arguments) != 1 or arguments[0][1] != "=":
        raise Wrong(tree, f"this is not how {tree.children[0]} is written", "use label(key=value)")
    key, _, value = arguments[0]
    return Labelled(text_of(key), text_of(value))


def _resource(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    (resource,) = _plain(tree, arguments, 1, 1, "resource(GPU)")
    return Offering(text_of(resource))


def _node_of(_name: str, tree: Tree[Token], arguments: list[Any]) -> Target:
    kinds: dict[str, Callable[[str], Target]] = {"actor": NodeOfActor, "task": NodeOfTask}
    if len(arguments) != 1 or arguments[0][1] != ":" or arguments[0][0] not in kinds:
        what = "use node_of(actor:NAME) or node_of(task:FUNCTION)"
        raise Wrong(tree, f"this is not how {tree.children[0]} is written", what)
    kind, _, name = arguments[0]
    return kinds[str(kind)](text_of(name))


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


def comparison(tree: Tree[Token]) -> Condition:
    subject, argument, attribute, comparison, value = tree.children
    name = cast("Token", subject)
    if name not in _SUBJECTS:
        raise not_found(name, "condition", str(name), _SUBJECTS)
    use = f"use {_SUBJECTS[str(name)]}"
    if argument is None:
        raise Wrong(tree, f"{name} of what?", use)
    of = text_of(cast("Token", argument))
    if attribute is not None and name != "actor":
        raise Wrong(cast("Token", attribute), f"{name} has no .{attribute}", use)
    if name == "mark" and comparison is None:
        return conditions.Marked(of)
    if comparison is None:
        raise Wrong(tree, f"{name} is compared with nothing", use)
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
        raise Wrong(cast("Token", comparison), f"a state is not {compare} another", "use == or !=")
    _one_of(operand, str(operand), states)
    return make(of, compare, str(operand))


def _one_of(token: Token, word: str, known: Collection[str]) -> None:
    if word not in known:
        near = get_close_matches(word, known, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"use one of {', '.join(known)}"
        raise Wrong(token, f"the state is {word!r}", remedy)


def _number(token: Token, use: str) -> float:
    try:
        if token.type == "QUANTITY":
            return Quantity.parse(str(token)).as_unit(None)
    except ValueError as error:
        raise Wrong(token, f"the number {error}") from None
    raise Wrong(token, f"{str(token)!r} is no number", use)
