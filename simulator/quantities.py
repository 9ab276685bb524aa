"""Numbers as people write them, with a unit behind: ``100ms``, ``512m``, ``1mbit`` or ``20%``."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal

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
    "/s": ("frequency", 1.0),
    "/min": ("frequency", 1 / 60),
    "/h": ("frequency", 1 / 3600),
}

#: Units that a field may have, beside those that may be written: of bytes, nobody writes the unit.
_OF_FIELDS: Mapping[str, tuple[str, float]] = {**UNITS, "bytes": ("size", 1.0)}

#: What a quantity of each kind looks like.
SHOWN = {
    "time": "10s or 100ms",
    "size": "512m or 2g",
    "rate": "1mbit",
    "share": "20%",
    "frequency": "2/min",
}

_QUANTITY = re.compile(r"(-?[0-9]+(?:\.[0-9]+)?)([A-Za-z%]*(?:/[A-Za-z]+)?)")


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
