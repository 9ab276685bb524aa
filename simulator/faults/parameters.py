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
from collections.abc import Mapping
from dataclasses import MISSING, Field, dataclass, fields
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

if TYPE_CHECKING:
    from simulator.faults.base import Fault

#: What may stand behind a number: of which kind it is, and how many of that kind's own unit it makes.
UNITS: Mapping[str, tuple[str, float]] = {
    "ms": ("time", 0.001),
    "s": ("time", 1.0),
    "min": ("time", 60.0),
    "h": ("time", 3600.0),
    "k": ("size", 1024.0),
    "m": ("size", 1024.0**2),
    "g": ("size", 1024.0**3),
    "bit": ("rate", 1.0),
    "kbit": ("rate", 1e3),
    "mbit": ("rate", 1e6),
    "gbit": ("rate", 1e9),
    "%": ("share", 1.0),
}

#: Units that a field may have, beside those that may be written: of bytes, nobody writes the unit.
_OF_FIELDS: Mapping[str, tuple[str, float]] = {**UNITS, "bytes": ("size", 1.0)}

#: The unit of a field whose name ends in this word, where its metadata name none: that unit, or
#: what is measured in no other.
_BY_NAME = {
    "s": "s", "seconds": "s", "ms": "ms", "bytes": "bytes", "percent": "%", "bit": "bit",
    "kbit": "kbit", "mbit": "mbit",
    **dict.fromkeys(("delay", "jitter", "grace", "deadline", "timeout"), "s"),
}  # fmt: skip

#: What a quantity of each kind looks like.
SHOWN = {"time": "10s or 100ms", "size": "512m or 2g", "rate": "1mbit", "share": "20%"}

_QUANTITY = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)([A-Za-z%]*)")
_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_./-]*")
_WORDS = {"true": True, "false": False, "none": None}


@dataclass(frozen=True, slots=True)
class Quantity:
    """A number as it was written, with its unit; ``unit`` is "" where none was."""

    number: float
    unit: str
    text: str

    @classmethod
    def parse(cls, text: str) -> Quantity:
        """Raises ValueError, which says what is wrong, if it is no number with a known unit."""
        match = _QUANTITY.fullmatch(text)
        if match is None:
            raise ValueError(f"is {text!r}; use a number, such as 3, 10s or 512m")
        number, unit = float(match[1]), match[2]
        if unit and unit not in UNITS:
            raise ValueError(f"has the unit {unit!r}; use one of {', '.join(UNITS)}")
        return cls(number, unit, text)

    def as_unit(self, unit: str | None) -> float:
        """The number in a field's unit; ValueError if what was written does not measure that."""
        if not self.unit:
            return self.number
        kind, amount = UNITS[self.unit]
        wanted, one = _OF_FIELDS.get(unit or "", (None, 1.0))
        if wanted is None:
            raise ValueError(f"is {self.text}; use a plain number, without a unit")
        if kind != wanted:
            hint = " (minutes are min)" if self.unit == "m" and wanted == "time" else ""
            raise ValueError(
                f"is {self.text}, a {kind}; use a {wanted}, such as {SHOWN[wanted]}{hint}"
            )
        # In decimals, lest 100ms be 0.1 of a second only nearly.
        return float(Decimal(repr(self.number)) * Decimal(repr(amount)) / Decimal(repr(one)))


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
    match = _QUANTITY.fullmatch(text)
    return match is not None and (not match[2] or match[2] in UNITS)
