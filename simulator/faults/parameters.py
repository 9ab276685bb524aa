"""A fault's parameters as people write them: with units, checked against the fault's own fields.

A number may have its unit behind it, as in ``100ms``, ``512m``, ``1mbit`` or ``20%``, and is converted to the
unit of its field: the one that the field's metadata names (``field(default=30.0, metadata={"unit": "ms"})``), or the
one that the last word of its name means (``percent``, ``memory_bytes``; ``delay`` is in seconds). A field without a
unit takes plain numbers.
"""

from __future__ import annotations

import inspect
import json
import re
from dataclasses import MISSING, Field, dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from simulator.quantities import Quantity

if TYPE_CHECKING:
    from simulator.faults.base import Fault

#: The unit of a field whose name ends in this word, where its metadata name none: that unit, or
#: what is measured in no other.
_BY_NAME = {
    "s": "s", "seconds": "s", "ms": "ms", "bytes": "bytes", "percent": "%", "bit": "bit",
    "kbit": "kbit", "mbit": "mbit",
    **dict.fromkeys(("delay", "jitter", "grace", "deadline", "timeout"), "s"),
}  # fmt: skip

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = {"true": True, "false": False, "none": None}


class Text(str):
    """A word that stood in quotes: never true, false or none."""


#: A value as the language has it: a quantity, a word or a text, or a list of them.
Written = Quantity | str | tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a kind of fault.

    Attributes
    ----------
    hint
        Its type.
    unit
        Of its plain numbers, "" where it has none.
    means
        What it is, as the fault's docstring says; without its marks.
    """

    name: str
    hint: Any
    default: Any
    unit: str = ""
    means: str = ""

    @property
    def choices(self) -> tuple[str, ...]:
        """The words that it takes, where only some are right."""
        return tuple(a for a in _alternatives(self.hint) if isinstance(a, str))

    def read(self, value: Written) -> Any:
        """What was written as a value of this parameter.

        Raises
        ------
        ValueError
            It is none; says what it is and what to use.
        """
        plain = self._plain(value)
        try:
            return TypeAdapter(self.hint).validate_python(plain)
        except ValidationError as error:
            shown = value.text if isinstance(value, Quantity) else written(plain)
            if self.choices:
                raise ValueError(f"is {shown}; use {' or '.join(self.choices)}") from None
            message = error.errors()[0]["msg"].removeprefix("Value error, ")
            raise ValueError(f"is {shown}: {message[0].lower()}{message[1:]}") from None

    def _plain(self, value: Written) -> Any:
        items = value if isinstance(value, tuple) else (value,)
        found = tuple(self._one(item) for item in items)
        # Of a list, a single one may be written as it is.
        return found if isinstance(value, tuple) or get_origin(self.hint) is tuple else found[0]

    def _one(self, value: Any) -> Any:
        kinds = _alternatives(self.hint)
        if isinstance(value, Quantity):
            if str in kinds and not {int, float} & set(kinds):
                return value.text
            number = value.as_unit(self.unit)
            return int(number) if number == int(number) and float not in kinds else number
        if not isinstance(value, Text) and value in _WORDS and type(_WORDS[value]) in kinds:
            return _WORDS[value]
        return str(value)


def _alternatives(hint: Any) -> tuple[Any, ...]:
    """The types and literals that a hint allows, those inside of a list too."""
    parts = get_args(hint)
    if not parts or hint is Any:
        return (hint,)
    if get_origin(hint) is Literal:
        return parts
    return tuple(a for part in parts for a in _alternatives(part))


def parameters(kind: type[Fault]) -> dict[str, Parameter]:
    """The parameters of a kind of fault by name, in the order of its fields."""
    hints, means = get_type_hints(kind), _described(kind)
    return {
        f.name: Parameter(f.name, hints[f.name], _default(f), _unit(f), means.get(f.name, ""))
        for f in fields(kind)
    }


def _default(field: Field[Any]) -> Any:
    return field.default if field.default is not MISSING else None


def _unit(field: Field[Any]) -> str:
    declared = field.metadata.get("unit")
    return str(declared) if declared else _BY_NAME.get(field.name.rpartition("_")[2], "")


def _described(kind: type) -> dict[str, str]:
    """What the docstring's section ``Parameters`` says of each; "" where it says nothing."""
    _, _, section = inspect.cleandoc(kind.__doc__ or "").partition("Parameters\n----------\n")
    found: dict[str, list[str]] = {}
    names: list[str] = []
    for line in section.splitlines():
        if line and not line[0].isspace():
            names = [name.strip() for name in line.partition(":")[0].split(",")]
        elif line.strip():
            for name in names:
                found.setdefault(name, []).append(line.strip())
    return {name: " ".join(lines).rstrip(".").replace("`", "") for name, lines in found.items()}


# -- how the language writes a value


def number(value: float) -> str:
    """A number without an exponent and without zeros that say nothing."""
    text = format(Decimal(repr(value)), "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def quoted(text: str) -> str:
    """A name or a text as the language writes it: in quotes where it would be read as something else."""
    plain = _PLAIN.fullmatch(text) and text not in _WORDS
    return text if plain else json.dumps(text, ensure_ascii=False)


def written(value: Any) -> str:
    """A parameter's value as the language writes it."""
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return number(value)
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(written, value))}]"
    # What begins as a number with a unit does (1mbit) can be read as one.
    text = str(value)
    return text if _is_quantity(text) else quoted(text)


def _is_quantity(text: str) -> bool:
    try:
        Quantity.parse(text)
    except ValueError:
        return False
    return True
