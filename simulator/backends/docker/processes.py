"""Lists and signals the processes of a container, by a program of ours inside it.

The engine shows a container's processes by the machine's pids, which are not those that Ray knows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from signal import Signals

from simulator.backends.base import Completed, NodeProcess
from simulator.errors import CannotRun
from simulator.innode.processes import GONE

Execute = Callable[[Sequence[str]], Completed]

_PROGRAM = ("python", "-m", "simulator.innode.processes")


def processes(execute: Execute, node: str) -> list[NodeProcess]:
    """All that live, but for the one that looks."""
    done = execute([*_PROGRAM, "list"])
    try:
        return [NodeProcess(**row) for row in json.loads(done.output)]
    except (ValueError, TypeError) as error:
        raise _unread(f"the processes of {node} cannot be listed", done) from error


def signal(execute: Execute, node: str, process: NodeProcess, number: Signals) -> bool:
    """Signal exactly that process; False if it is gone."""
    done = execute([*_PROGRAM, "signal", str(process.pid), str(process.started), str(int(number))])
    if done.code not in (0, GONE):
        raise _unread(f"process {process.pid} of {node} could not be signalled", done)
    return done.code == 0


def _unread(what: str, done: Completed) -> CannotRun:
    lines = [line for line in done.output.splitlines() if line.strip()]
    return CannotRun(what, why=lines[-1] if lines else f"exit code {done.code}", details=lines[-5:])
