"""Which living processes belong to which node: read from ``/proc``, remembered nowhere.

Every process of a node inherits one variable that names the node's directory. Containers of the Docker backend
show up in the host's ``/proc`` too, with their own environment, so the marker is a variable of this
backend alone, and its value is unique on the machine.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from pathlib import Path

#: Value: the absolute path of the node's directory.
MARKER = "RAY_SIM_PROCESS_NODE"


def living(owner: Path, *, below: bool = False) -> list[int]:
    """Pids of the living processes of one node, or of all nodes `below` a cluster's directory."""
    wanted = f"{MARKER}={owner}".encode()
    found = []
    for entry in os.listdir("/proc"):  # noqa: PTH208 - a name is all that is needed
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            environ = Path("/proc", entry, "environ").read_bytes().split(b"\0")
        except OSError:
            continue
        for variable in environ:
            if variable == wanted or (below and variable.startswith(wanted + b"/")):
                if run_state(int(entry)) not in ("", "Z", "X"):
                    found.append(int(entry))
                break
    return found


def run_state(pid: int) -> str:
    """The kernel's letter for a process (R, S, D, T, Z ...); "" if there is none."""
    try:
        text = Path("/proc", str(pid), "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
    return text[text.rindex(")") + 2]


def belongs(pid: int, owner: Path) -> bool:
    """Whether a pid still is a process of that node, and not a new one under an old number."""
    try:
        environ = Path("/proc", str(pid), "environ").read_bytes()
    except OSError:
        return False
    return f"{MARKER}={owner}".encode() in environ.split(b"\0")


def send(pids: Iterable[int], number: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            continue


def kill_all(owner: Path, *, below: bool = False, timeout: float = 10.0) -> bool:
    """SIGKILL every process of a node until none is left; whether that was reached."""
    end = time.monotonic() + timeout
    while pids := living(owner, below=below):
        send(pids, signal.SIGKILL)
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True
