"""Lists the processes of the container that it runs in, and signals one of them.

``list`` prints one line of JSON, a row for each living process: pid, started (clock ticks since boot, which tells it
from a later process of that pid), state (as in /proc: R, S, T ...), name, and title (its arguments, or what it
painted over them, as Ray's processes do). ``signal PID STARTED NUMBER`` signals that process and none that has
its pid by now; exit code 1 if it is gone.

On the process backend a node has no /proc of its own: there the backend does the same for the node's processes.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from typing import Any

USAGE, GONE = 2, 1

_TITLE = 300  # characters; the arguments of a worker are several times that


def look(pid: int) -> dict[str, Any] | None:
    """The process of this pid; None if there is none, or it has ended and waits to be reaped."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
        with open(f"/proc/{pid}/cmdline", "rb") as file:
            title = file.read(_TITLE).replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    if fields[0] in "ZX":
        return None
    name = text[text.index("(") + 1 : text.rindex(")")]
    return {
        "pid": pid,
        "started": int(fields[19]),
        "state": fields[0],
        "name": name,
        "title": title or name,
    }


def table() -> list[dict[str, Any]]:
    rows = [look(int(entry)) for entry in os.listdir("/proc") if entry.isdigit()]
    return [row for row in rows if row is not None and row["pid"] != os.getpid()]


def send(pid: int, started: int, number: int) -> bool:
    """Signal it; whether it was there."""
    handle = None
    with contextlib.suppress(OSError):
        handle = os.pidfd_open(pid)  # from here on the number can belong to no other process
    try:
        row = look(pid)
        if row is None or row["started"] != started:
            return False
        with contextlib.suppress(ProcessLookupError):
            if handle is None:
                os.kill(pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
            return True
        return False
    finally:
        if handle is not None:
            os.close(handle)


def main(argv: list[str]) -> int:
    if argv == ["list"]:
        print(json.dumps(table()))
        return 0
    if len(argv) == 4 and argv[0] == "signal" and all(a.isdecimal() for a in argv[1:]):
        return 0 if send(int(argv[1]), int(argv[2]), int(argv[3])) else GONE
    print(__doc__, file=sys.stderr)
    return USAGE


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
