"""Runs the command line and turns every way it can end into an exit code."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Sequence

import typer.main

from simulator.cli import output
from simulator.cli.app import app
from simulator.errors import CannotRun, SimulatorError

COULD_NOT_RUN = 4
#: What typer exits with on Ctrl-C outside of a command that handles it itself.
_TYPER_INTERRUPTED = 130
_COMPLETION = ("--install-completion", "--show-completion")
_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    output.have_streams()
    command = typer.main.get_command(app)
    try:
        with output.reader_may_leave():
            command(args=None if args is None else list(args), prog_name=_program(args))
    except SystemExit as ended:
        if isinstance(ended.__context__, BrokenPipeError):
            return _without_reader(ended.__context__)
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        if code == _TYPER_INTERRUPTED:
            output.say("interrupted")
            return COULD_NOT_RUN
        return code
    except SimulatorError as error:
        output.show_error(error)
        return error.exit_code
    except OSError as error:
        if not error.filename and error.errno in _NO_ROOM:
            output.show_error(CannotRun("the output cannot be written", why=error.strerror or ""))
        elif not error.filename:
            output.show_crash(error)
        else:  # a file of the user's, or a full disk: no defect of ours
            output.show_error(CannotRun(str(error.filename), why=error.strerror or ""))
        return COULD_NOT_RUN
    except Exception as error:  # noqa: BLE001 - whatever it is, it is ours, and never exit code 1
        output.show_crash(error)
        return COULD_NOT_RUN
    return 0


def _without_reader(broken: BrokenPipeError) -> int:
    """The exit code where typer made a broken pipe its own exit code 1, which here is a verdict."""
    why: BaseException | None = broken
    while why is not None:  # the message that could not be written was about wrong usage
        code = getattr(why, "exit_code", None)
        if isinstance(code, int):
            return code
        why = why.__context__
    frames = traceback.extract_tb(broken.__traceback__)
    if any(frame.name in ("_write_buffer", "show_help") for frame in frames):  # a help text
        return 0
    output.show_crash(broken)
    return COULD_NOT_RUN


def _program(args: Sequence[str] | None) -> str:
    given = sys.argv[1:] if args is None else args
    if any(word.partition("=")[0] in _COMPLETION for word in given):
        return "ray-sim"  # a shell completes the words of a program, and this is its name
    name = os.path.basename(sys.argv[0])  # noqa: PTH119 - a name, not a path
    return "ray-sim" if name.startswith("ray-sim") else "python -m simulator"
