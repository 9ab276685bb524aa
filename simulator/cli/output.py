"""Where output goes: data to standard output, everything else to standard error.

Colours appear only on a terminal. Into a pipe or a file, tables get a width of their own, since a
program that reads them has no window whose edge must be kept.
"""

from __future__ import annotations

import json
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.text import Text

from simulator.errors import SimulatorError

#: Columns of a table or a report that does not go to a terminal.
PIPE_WIDTH = 120

ISSUES = "https://github.com/ray-cluster-simulator/ray-cluster-simulator/issues"


def _width(terminal: bool) -> int | None:
    return None if terminal or os.environ.get("COLUMNS") else PIPE_WIDTH


class ReaderLeft(Exception):
    """Whoever read our data reads no more (``| head -1``). No `OSError`, of which typer makes exit 1."""


class _Data(Console):
    """A console that leaves it to the command what happens when its reader leaves."""

    def on_broken_pipe(self) -> None:
        raise ReaderLeft


def data_console() -> Console:
    """Standard output."""
    return _Data(width=_width(sys.stdout.isatty()), highlight=False)


def have_streams() -> None:
    """Give a program that was started with a closed standard output or error one to nowhere."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - open until the end
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115


def _to_nowhere(stream: TextIO) -> None:
    """What is still buffered has no reader; written at exit, it would change the exit code."""
    with suppress(OSError, ValueError):  # a stream that is no file
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextmanager
def reader_may_leave() -> Iterator[None]:
    """Let whoever reads our data stop reading (``| head -1``) without costing what comes next.

    What comes next is the exit code: a verdict must not change because nobody read it to the end.
    """
    try:
        yield
    except ReaderLeft:
        _to_nowhere(sys.stdout)


def has_reader() -> bool:
    """Whether somebody may still read our data: False once the other end of a pipe was closed.

    Writing would tell as well, but whoever follows something may have nothing to write for hours.
    """
    try:
        poll = select.poll()
        poll.register(sys.stdout.fileno(), 0)
        return not any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (AttributeError, OSError, ValueError):  # no such call, or a stream that is no file
        return True


class _Steady(Console):
    """Progress, which must never end what it tells of.

    It never hides the cursor, since a second Ctrl-C could not bring it back, and when its reader
    leaves it falls silent.
    """

    def on_broken_pipe(self) -> None:
        self.quiet = True
        _to_nowhere(sys.stderr)

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
    write(text + "\n")


def write(text: str) -> None:
    """Data as it is, flushed; `ReaderLeft` if nobody reads any more."""
    try:
        sys.stdout.write(text)
        sys.stdout.flush()
    except BrokenPipeError:
        raise ReaderLeft from None


def write_bytes(data: bytes, *, progress: bool = False) -> None:
    """Bytes as they are, flushed; `ReaderLeft` if nobody reads any more, unless it is `progress`."""
    stream = sys.stderr if progress else sys.stdout
    stream.flush()
    try:
        stream.buffer.write(data)
        stream.buffer.flush()
    except BrokenPipeError:
        if not progress:
            raise ReaderLeft from None
        _to_nowhere(stream)


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
