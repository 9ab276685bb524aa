"""Where output goes: data to standard output, everything else to standard error.

Colours appear only on a terminal. Into a pipe or a file, tables get a width of their own, since a
program that reads them has no window whose edge must be kept.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from simulator.errors import SimulatorError

#: Columns of a table or a report that does not go to a terminal.
PIPE_WIDTH = 120

ISSUES = "https://github.com/ray-cluster-simulator/ray-cluster-simulator/issues"


def _width(terminal: bool) -> int | None:
    return None if terminal or os.environ.get("COLUMNS") else PIPE_WIDTH


def data_console() -> Console:
    """Standard output."""
    return Console(width=_width(sys.stdout.isatty()), highlight=False)


class _Steady(Console):
    """A console that never hides the cursor: a second Ctrl-C could not bring it back."""

    def show_cursor(self, show: bool = True) -> bool:  # noqa: ARG002 - the base class's signature
        return False


def progress_console() -> Console:
    """Standard error."""
    return _Steady(stderr=True, width=_width(sys.stderr.isatty()), highlight=False)


def say(text: str, style: str = "") -> None:
    """One line of progress."""
    progress_console().print(Text(text, style=style), soft_wrap=True)


def print_line(text: str) -> None:
    """One line of data, flushed, so that a reader at the other end of a pipe has it at once."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def print_json(data: Any) -> None:
    """Data as one JSON document."""
    print_line(json.dumps(data, indent=2, ensure_ascii=False))


def show_error(error: SimulatorError) -> None:
    """What, why, what next, as the error itself says it."""
    text = Text("error: ", style="bold red")
    text.append(str(error), style="default")
    progress_console().print(text, soft_wrap=True)


def show_crash(error: BaseException) -> None:
    """An error of ours that nobody foresaw: one line, and where the stack trace is."""
    trace = "".join(traceback.format_exception(error))
    text = Text("unexpected error: ", style="bold red")
    text.append(f"{type(error).__name__}: {error}", style="default")
    if os.environ.get("RAY_SIM_DEBUG"):
        text.append(f"\n{trace}", style="default")
    else:
        text.append(f"\nThis is a defect of ray-cluster-simulator. {_kept(trace)}", style="default")
    text.append(f"\nPlease report it, with that trace, at {ISSUES}", style="default")
    progress_console().print(text, soft_wrap=True)


def _kept(trace: str) -> str:
    try:
        handle, path = tempfile.mkstemp(prefix="ray-sim-error-", suffix=".txt")
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(f"{' '.join(sys.argv)}\n\n{trace}")
    except OSError:
        return "Set RAY_SIM_DEBUG=1 to see its stack trace."
    return f"Its stack trace is in {Path(path)}; RAY_SIM_DEBUG=1 shows it here."
