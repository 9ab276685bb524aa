"""An experiment's parameters as rows: name, type, default, what they mean."""

from __future__ import annotations

import types
import typing
from enum import Enum
from typing import Any

from pydantic.fields import FieldInfo

from simulator.experiment import Experiment

_LIMITS = (("ge", "at least"), ("gt", "above"), ("le", "at most"), ("lt", "below"))


def param_rows(experiment: Experiment) -> list[dict[str, Any]]:
    """One row for each parameter of an experiment, in the order in which they are written."""
    return [
        {
            "name": name,
            "type": type_name(field.annotation),
            "default": _default(field),
            "description": "; ".join(t for t in (field.description or "", _limits(field)) if t),
        }
        for name, field in experiment.Params.model_fields.items()
    ]


def type_name(annotation: Any) -> str:
    """A type as a person who does not write Python says it."""
    origin = typing.get_origin(annotation)
    arguments = typing.get_args(annotation)
    if origin is typing.Literal:
        return "|".join(map(str, arguments))
    if origin in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in arguments)
    if origin is not None:
        return f"{type_name(origin)} of {', '.join(type_name(a) for a in arguments)}"
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        return "|".join(str(member.value) for member in annotation)
    names = {int: "integer", float: "number", str: "text", bool: "true|false", type(None): "none"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _default(field: FieldInfo) -> Any:
    if field.is_required():
        return "required"
    value = field.get_default(call_default_factory=True)
    return value.value if isinstance(value, Enum) else value


def _limits(field: FieldInfo) -> str:
    return ", ".join(
        f"{words} {limit}"
        for name, words in _LIMITS
        for item in field.metadata
        if (limit := getattr(item, name, None)) is not None
    )
