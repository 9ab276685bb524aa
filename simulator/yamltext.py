"""Reads YAML that a user wrote: whatever is wrong with it is one kind of error.

PyYAML raises its own errors for wrong grammar, and whatever Python raises for a value that looks like a date,
a number or a truth value and is none; nesting beyond Python's own depth ends in a RecursionError.
"""

from __future__ import annotations

from typing import Any

import yaml


class NotYaml(ValueError):
    """A text is not YAML, or holds a value that is not what it looks like; says so in one line."""


def read_yaml(text: str | bytes) -> Any:
    """The plain data of a YAML text; bytes are to be UTF-8.

    Raises
    ------
    NotYaml
        It is not YAML.
    """
    try:
        return yaml.safe_load(text.decode("utf-8") if isinstance(text, bytes) else text)
    except RecursionError:
        raise NotYaml("is nested too deeply") from None
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a 45th day, no UTF-8, a long number
        raise NotYaml(" ".join(str(error).split())) from None
    except (AttributeError, LookupError, ArithmeticError, TypeError):  # `!!timestamp x`, `!!bool x`
        raise NotYaml("a value is not of the type that its tag (!!...) says") from None
