"""Schedules from wherever they are written: options of a command line, and a file.

A file is in the language itself, one step a line, or YAML (``.yaml``, ``.yml``): a list whose entries are
texts of the language, or mappings with the same words as keys::

    - kill one(worker) @20s for 15s
    - fault: loss
      parameters: {percent: 20}
      target: one(worker)
      at: 60s
      for: 10s
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from simulator.errors import BadInput, NotFound, Problem
from simulator.faults.parameters import Text
from simulator.quantities import Quantity
from simulator.schedule.builder import StepBuilder
from simulator.schedule.language import read_text
from simulator.schedule.steps import Step
from simulator.yamltext import NotYaml, read_yaml

_Time = str | float


class _Entry(BaseModel):
    """A step as a mapping; what its texts mean is the language's to say."""

    model_config = ConfigDict(extra="forbid", strict=True)

    fault: str
    parameters: dict[str, Any] = Field(default_factory=dict)
    target: str
    against: str | None = Field(None, alias="from")
    at: _Time | None = None
    every: _Time | None = None
    until: _Time | None = None
    times: int | None = None
    for_: _Time | None = Field(None, alias="for")
    when: str | None = None
    within: _Time | None = None
    busy: bool = False
    while_: str | None = Field(None, alias="while")


#: How the value of each key is written as a clause of the language.
_CLAUSES = {
    "at": "@{}",
    "every": "every {}",
    "until": "until {}",
    "times": "{} times",
    "for": "for {}",
    "within": "within {}",
    "while": "while {}",
}


def read_schedule(
    faults: Sequence[str],
    file: Path | None = None,
    *,
    where: str = "--fault",
    problems: list[Problem] | None = None,
) -> list[Step]:
    """The steps of several texts and of a file, in this order.

    Parameters
    ----------
    faults
        Texts of the language, as ``--fault`` takes them.
    where
        What the problems of the texts are said to be problems of.
    problems
        Where to note them instead of raising; the steps that can be read are returned all the same.

    Raises
    ------
    BadInput
        Every problem of all of them.
    """
    found: list[Problem] = [] if problems is None else problems
    steps: list[Step] = []
    for i, text in enumerate(faults, 1):
        place = where if len(faults) == 1 else f"{where} {i}"
        steps += read_text(text, place, found)
    if file is not None:
        steps += _read_file(file, found)
    if found and problems is None:
        raise BadInput(found)
    return steps


def _read_file(path: Path, problems: list[Problem]) -> list[Step]:
    try:
        raw = path.read_bytes()
        text = raw.decode("utf-8")
    except OSError as error:
        problems.append(Problem(str(path), f"cannot be read: {error.strerror}"))
        return []
    except ValueError:
        problems.append(Problem(str(path), "is no text in UTF-8"))
        return []
    if path.suffix not in (".yaml", ".yml"):
        return read_text(text, str(path), problems)
    try:
        data = read_yaml(raw)
    except NotYaml as error:
        problems.append(Problem(str(path), "is not YAML", str(error)))
        return []
    if not isinstance(data, list) or not data:
        what = "is not a list" if data else "has no step"
        problems.append(Problem(str(path), what, "for example: - kill one(worker) @20s"))
        return []
    lines = list(_lines(text))
    steps: list[Step] = []
    for entry, line in zip(data, lines, strict=True):
        if isinstance(entry, str):
            steps += read_text(entry, f"{path}:{line['']}", problems)
        elif isinstance(entry, dict):
            step = _read_entry(entry, path, line, problems)
            steps += [step] if step is not None else []
        else:
            what = f"is {entry!r}; a step is a text or a mapping"
            problems.append(Problem(f"{path}:{line['']}", what))
    return steps


def _lines(text: str) -> Iterator[dict[str, int]]:
    """For each entry of the list the line of each of its keys, and under "" its own."""
    document = yaml.compose(text, Loader=yaml.SafeLoader)
    assert isinstance(document, yaml.SequenceNode)
    for node in document.value:
        found = {"": node.start_mark.line + 1}
        if isinstance(node, yaml.MappingNode):
            for key, _ in node.value:
                found[str(key.value)] = key.start_mark.line + 1
        yield found


def _read_entry(
    entry: dict[Any, Any], path: Path, lines: dict[str, int], problems: list[Problem]
) -> Step | None:
    def place(key: str) -> str:
        line = lines.get(key, lines[""])
        return f"{path}:{line}: {key}" if key else f"{path}:{line}"

    try:
        said = _Entry.model_validate({str(key): value for key, value in entry.items()})
    except ValidationError as error:
        problems.extend(_mapping_problems(error, place))
        return None
    builder = StepBuilder(problems)
    tree = builder.parse("fault", said.fault, place("fault"))
    if tree is not None:
        builder.fault(tree)
    for name, value in said.parameters.items():
        written = _as_written(value)
        builder.set_parameter(name, written, f"{place('parameters')}.{name}")
    for key, text in (("target", said.target), ("from", said.against)):
        tree = builder.parse("target", text, place(key)) if text is not None else None
        if tree is not None:
            (builder.target if key == "target" else builder.against)(tree)
    values = said.model_dump(
        by_alias=True, include={"at", "every", "until", "times", "for_", "within", "while_"}
    )
    for key, value in values.items():
        if value is not None:
            shown = f"{value:g}" if isinstance(value, float) else str(value)
            tree = builder.parse("clause", _CLAUSES[key].format(shown), place(key))
            if tree is not None:
                builder.clause(tree)
    if said.when is not None:
        builder.condition(said.when, place("when"))
    if said.busy:
        tree = builder.parse("clause", "busy", place("busy"))
        assert tree is not None
        builder.clause(tree)
    return builder.build()


def _as_written(value: Any) -> Any:
    """A value of YAML as the language would have read it."""
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, (int, float)):
        return Quantity(float(value), "", str(value))
    if isinstance(value, list):
        return tuple(_as_written(item) for item in value)
    try:
        return Quantity.parse(str(value))
    except ValueError:
        return Text(value)


def _mapping_problems(error: ValidationError, place: Any) -> list[Problem]:
    known = [f.alias or name for name, f in _Entry.model_fields.items()]
    found: dict[str, Problem] = {}
    for item in error.errors():
        key = str(item["loc"][0])
        if item["type"] == "extra_forbidden":
            problem = Problem(place(key), "is no key of a step", NotFound("key", key, known).why)
        elif item["type"] == "missing":
            problem = Problem(place(""), f"{key} is missing", _EXAMPLES[key])
        else:
            what = f"is {item['input']!r}"
            problem = Problem(place(key), what, _EXAMPLES.get(key, "use a text such as 10s"))
        found.setdefault(key, problem)
    return list(found.values())


_EXAMPLES = {
    "fault": "for example fault: kill",
    "target": "for example target: one(worker)",
    "from": "for example from: head",
    "parameters": "for example parameters: {percent: 20}",
    "when": "for example when: tasks(finished) > 50",
    "times": "use a whole number",
    "busy": "use true or false",
    "while": "use working",
}
