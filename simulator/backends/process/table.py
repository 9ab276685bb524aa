"""Which living processes belong to which node: read from ``/proc``, remembered nowhere.

Every process of a node inherits one variable that names its owner: the directory of the node, or a
folder below it for what a person executes there. Owners form a tree, so "everything of this cluster" is
"everything below its directory". Containers of the Docker backend show up in the host's ``/proc`` too,
with their own environment, so the variable is one of this backend alone, and its value is unique on
the machine.

A program that paints its own title over its environment (Ray's agents do, unless told not to) would
lose the mark: what descends from a marked process counts as marked too, and nodes are started with
``SPT_NOENV``, which keeps the environment whole.
"""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

#: Value: the absolute path of the owner's directory.
MARKER = "RAY_SIM_PROCESS_NODE"


@dataclass(frozen=True, slots=True)
class Process:
    """A living process; ``started`` (clock ticks since boot) tells it from a later one of that pid."""

    pid: int
    parent: int
    state: str
    started: int


def look(pid: int) -> Process | None:
    """The process of this pid; None if there is none or it is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            text = file.read()
    except OSError:
        return None
    fields = text[text.rindex(")") + 2 :].split()
    return None if fields[0] in "ZX" else Process(pid, int(fields[1]), fields[0], int(fields[19]))


def owner_of(pid: int) -> str | None:
    """What the process's mark says; None without a mark, or if it cannot be read."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environ = file.read()
    except OSError:
        return None
    start = environ.find(MARKER.encode() + b"=")
    if start < 0 or (start > 0 and environ[start - 1] != 0):
        return None
    value = environ[start + len(MARKER) + 1 :].partition(b"\0")[0]
    return os.fsdecode(value)


def living(owner: Path, *, below: bool = False) -> list[Process]:
    """The living processes of an owner, oldest first.

    Parameters
    ----------
    below
        Also those of every owner below it. This process and the ones above it are left out: who
        takes a cluster down from a shell inside one of its nodes must live to finish it.
    """
    try:
        entries = os.listdir("/proc")  # noqa: PTH208 - a name is all that is needed
    except OSError:
        return []
    table = {p.pid: p for p in map(look, (int(e) for e in entries if e.isdigit())) if p}
    spared, pid = {os.getpid()}, os.getpid()
    while pid in table:
        pid = table[pid].parent
        spared.add(pid)
    exact, prefix = str(owner), f"{owner}/"
    owners = {pid: owner_of(pid) for pid in table if pid not in spared}
    found = {
        pid
        for pid, value in owners.items()
        if value is not None and (value == exact or (below and value.startswith(prefix)))
    }
    if found:
        for pid, value in owners.items():
            if value is None and _descends(pid, found, owners, table):
                found.add(pid)
    return sorted((table[pid] for pid in found), key=lambda p: (p.started, p.pid))


def _descends(
    pid: int, found: set[int], owners: dict[int, str | None], table: dict[int, Process]
) -> bool:
    """Whether the nearest marked process above an unmarked one is among those found."""
    above = table[pid].parent
    while above in table and above in owners and owners[above] is None and above not in found:
        above = table[above].parent
    return above in found


def living_owners(owner: Path) -> set[str]:
    """Every owner, at or below this one, that has a living process."""
    found = {owner_of(process.pid) for process in living(owner, below=True)}
    return {value for value in found if value is not None}


def alive(pid: int, owner: Path) -> bool:
    """Whether a pid still is that owner's process, and not a new one under an old number."""
    return look(pid) is not None and owner_of(pid) == str(owner)


def send(processes: Iterable[Process], number: signal.Signals) -> None:
    """Signal processes, and none that got one of their pids in the meantime."""
    for process in processes:
        with holding(process.pid) as handle:
            now = look(process.pid)
            if now is None or now.started != process.started:
                continue
            with suppress(ProcessLookupError):
                if handle is None:
                    os.kill(process.pid, number)
                else:
                    signal.pidfd_send_signal(handle, number)


@contextmanager
def holding(pid: int) -> Iterator[int | None]:
    """A handle on a process that no later process can take over; None where there are none."""
    handle = open_handle(pid)
    try:
        yield handle
    finally:
        if handle is not None:
            os.close(handle)


def open_handle(pid: int) -> int | None:
    """A pidfd, which becomes readable when the process ends; None if it has, or on old kernels."""
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno in (errno.ESRCH, errno.ENOSYS, errno.EPERM, errno.EINVAL):
            return None
        raise


def kill_all(owner: Path, *, below: bool = True, timeout: float = 10.0) -> bool:
    """SIGKILL every process of an owner until none is left; whether that was reached.

    Oldest first: whoever would notice the end of another and tell of it is gone before that.
    """
    end = time.monotonic() + timeout
    known: dict[int, Process] = {}
    while True:
        # One that lost its mark is still known from the look before its parents died.
        left = {p.pid: p for p in living(owner, below=below)}
        for process in known.values():
            now = look(process.pid)
            if now is not None and now.started == process.started:
                left.setdefault(process.pid, process)
        if not left:
            return True
        known |= left
        send(sorted(left.values(), key=lambda p: (p.started, p.pid)), signal.SIGKILL)
        if time.monotonic() > end:
            return False
        time.sleep(0.005)
