"""Starts programs that outlive us, and finds out how they ended.

A shell of one line writes the program's pid before it becomes the program (or waits for it), so there
is no moment at which a process runs that nobody could find by its directory. Files are written beside
their place and moved, so nobody reads half of one.
"""

from __future__ import annotations

import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from simulator.backends.process.table import alive
from simulator.errors import CannotRun

PID, EXIT_CODE = "pid1", "exit_code"

_NOTE_PID = f'echo $$ >"$0/.{PID}" && mv "$0/.{PID}" "$0/{PID}" && '
_BECOME = _NOTE_PID + 'exec "$@"'
# The signal goes to the program as well; the shell must live on to note how that ended.
_WAIT_FOR = (
    _NOTE_PID
    + "trap : TERM INT; "
    + f'"$@"; code=$?; echo $code >"$0/.{EXIT_CODE}"; mv "$0/.{EXIT_CODE}" "$0/{EXIT_CODE}"'
)

_children: list[subprocess.Popen[bytes]] = []
_lock = threading.Lock()


def launch(
    folder: Path,
    argv: Sequence[str],
    env: Mapping[str, str],
    *,
    out: Path,
    err: Path | None = None,
    note_exit: bool = False,
    cwd: Path | None = None,
) -> int:
    """Start a program in a session of its own; returns its pid, which also stands in `folder`.

    Parameters
    ----------
    out, err
        Files that its output is appended to; without `err` both go to `out`.
    note_exit
        Have its exit code written to `folder` (for what does not do so itself); the pid is then
        that of the shell that waits for it.

    Raises
    ------
    CannotRun
        It could not be started.
    """
    for name in (PID, EXIT_CODE):
        (folder / name).unlink(missing_ok=True)
    script = _WAIT_FOR if note_exit else _BECOME
    try:
        with out.open("ab") as stdout, (err or out).open("ab") as stderr:
            child = subprocess.Popen(
                ["/bin/sh", "-c", script, str(folder), *argv],
                stdin=subprocess.DEVNULL,
                stdout=stdout,
                stderr=stderr,
                cwd=cwd or folder,
                env=dict(env),
                start_new_session=True,
            )
    except OSError as error:
        raise CannotRun(f"{argv[0]} could not be started", why=str(error)) from error
    with _lock:
        _children.append(child)
    end = time.monotonic() + 10.0
    while not (folder / PID).exists():
        if child.poll() is not None or time.monotonic() > end:
            raise CannotRun(f"{argv[0]} could not be started", why=f"see {err or out}")
        time.sleep(0.001)
    return child.pid


def reap() -> None:
    """Let the kernel forget those of our children that have ended."""
    with _lock:
        _children[:] = [child for child in _children if child.poll() is None]


def noted_pid(folder: Path, owner: Path) -> int | None:
    """The pid that stands in a folder, while it is that of a living process of this owner."""
    reap()
    number = noted_number(folder / PID)
    return number if number is not None and alive(number, owner) else None


def noted_number(path: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int(path.read_text(encoding="utf-8"))
    return None


def follow(path: Path, running: Callable[[], bool], skip: int = 0) -> Iterator[str]:
    """Lines of a growing file, until its writer has ended and all was read.

    Looks twenty times a second; a last line without an end is given when nothing can follow it.
    """
    rest = b""
    with path.open("rb") as file:
        file.seek(skip)
        while True:
            goes_on = running()  # asked before reading: what was written before its end is read
            while data := file.read(1 << 20):
                *lines, rest = (rest + data).split(b"\n")
                for line in lines:
                    yield line.decode(errors="replace")
            if not goes_on:
                if rest:
                    yield rest.decode(errors="replace")
                return
            time.sleep(0.05)
