"""Runs the command line and turns every way it can end into an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

import typer.main

from simulator.cli import output
from simulator.cli.app import app
from simulator.errors import CannotRun, SimulatorError

COULD_NOT_RUN = 4
#: What typer exits with on Ctrl-C outside of a command that handles it itself.
_TYPER_INTERRUPTED = 130


def main(args: Sequence[str] | None = None) -> int:
    """Run one command line; returns its exit code."""
    command = typer.main.get_command(app)
    try:
        command(args=None if args is None else list(args), prog_name=_program())
    except SystemExit as ended:
        code = ended.code if isinstance(ended.code, int) else int(bool(ended.code))
        if code == _TYPER_INTERRUPTED:
            output.say("interrupted")
            return COULD_NOT_RUN
        return code
    except SimulatorError as error:
        output.show_error(error)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has enough of it; what is buffered has nowhere to go.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:
        if not error.filename:
            output.show_crash(error)
        else:  # a file of the user's, or a full disk: no defect of ours
            output.show_error(CannotRun(str(error.filename), why=error.strerror or ""))
        return COULD_NOT_RUN
    except Exception as error:  # noqa: BLE001 - whatever it is, it is ours, and never exit code 1
        output.show_crash(error)
        return COULD_NOT_RUN
    return 0


def _program() -> str:
    name = os.path.basename(sys.argv[0])  # noqa: PTH119 - a name, not a path
    return "ray-sim" if name.startswith("ray-sim") else "python -m simulator"
