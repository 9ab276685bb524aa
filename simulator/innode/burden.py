"""Puts a burden on the node that it runs on: busy processors, full memory, a full disk. Nothing of Ray's.

``start MARK cpu N`` starts N processes that compute for ever. ``start MARK memory SHARE`` starts one that takes
memory until the node holds this share of its limit, and keeps it there. ``start MARK oom`` starts one that takes
memory until the kernel kills something in the node. ``fill MARK FOLDER SHARE`` writes a file until this share of
the disk at FOLDER is taken, starts a process that takes what others free there, and refuses any FOLDER that is not
a disk of its own size. ``look MARK`` and ``end MARK [FOLDER]`` tell of it, and take it away; the mark ``*`` means
every one.

A burden is known by its mark, which stands in its processes' arguments and in its file's name, and by nothing
else: not by a pid, which may be somebody else's by then. Each command prints one line of JSON. Exit codes: 0 done,
2 wrong usage, 3 refused (the line says why).
"""

from __future__ import annotations

import contextlib
import errno
import json
import mmap
import os
import signal
import sys
import time
from typing import Any

from simulator.innode import cgroup

USAGE, REFUSED = 2, 3
ANY = "*"

_MODULE = "simulator.innode.burden"
_BURN = "burn"  # how the processes that are a burden call themselves, unlike those that start or end them
_STEP, _LEAP = 4 * 1024**2, 64 * 1024**2
_PAGE = mmap.PAGESIZE
_FILE = ".ray-sim-burden-"
_BLOCK = bytes(1024**2)


class Refused(Exception):
    """It is not done, for this reason."""


# ---- which processes


def processes(mark: str, kind: str = ANY) -> list[dict[str, Any]]:
    """Those that are this burden: pid, kind, when it began, its state and its CPU time, both in ticks."""
    found = []
    for entry in os.listdir("/proc"):
        if not entry.isdigit():
            continue
        try:
            with open(f"/proc/{entry}/cmdline", "rb") as file:
                argv = file.read().decode(errors="replace").split("\0")
            with open(f"/proc/{entry}/stat", encoding="utf-8", errors="replace") as file:
                text = file.read()
        except OSError:
            continue
        if _MODULE not in argv:
            continue
        own = argv[argv.index(_MODULE) + 1 :]
        if own[:1] != [_BURN] or mark not in (ANY, own[1]) or kind not in (ANY, own[2]):
            continue
        fields = text[text.rindex(")") + 2 :].split()
        if fields[0] not in "ZX":
            found.append(
                {
                    "pid": int(entry),
                    "mark": own[1],
                    "kind": own[2],
                    "started": int(fields[19]),
                    "state": fields[0],
                    "ticks": int(fields[11]) + int(fields[12]),
                }
            )
    return found


def start(mark: str, kind: str, argument: str) -> int:
    """Start the processes, each on its own and none a child that anybody waits for; how many."""
    count = int(argument) if kind == "cpu" else 1
    if kind != "cpu" and cgroup.read().memory is None:
        raise Refused("the node has no memory limit, so the machine's own memory would be filled")
    for _ in range(count):
        _spawn(mark, kind, argument)
    return count


def _spawn(*burden: str) -> None:
    nothing = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, os.devnull, os.O_WRONLY, 0),
        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
    ]
    command = [sys.executable, "-m", _MODULE, _BURN, *burden]
    os.posix_spawn(sys.executable, command, os.environ, file_actions=nothing, setpgroup=0)


def end(mark: str, kind: str = ANY) -> int:
    """SIGKILL its processes until none is left; how many there were."""
    ended = set()
    for _ in range(100):
        left = processes(mark, kind)
        if not left:
            break
        for process in left:
            ended.add(process["pid"])
            with contextlib.suppress(ProcessLookupError):
                os.kill(process["pid"], signal.SIGKILL)
        time.sleep(0.02)
    return len(ended)


# ---- what they do


def burn_cpu() -> None:
    while True:
        pass


def take_memory(share: float) -> None:
    """Hold the node at this share of its memory limit; what others free is taken too."""
    taken = []
    while True:
        now = cgroup.read()
        missing = int((now.memory or 0) * share) - now.used
        if missing < _PAGE * 16:
            time.sleep(0.2)
            continue
        taken.append(_touched(min(missing, _STEP)))


def exhaust_memory() -> None:
    """Take memory until the kernel kills a process of the node: this one, or one that it likes less.

    As fast as can be, since Ray looks four times a second whether it should kill one itself; at the end in small
    steps, since the kernel goes on to kill until it has what was asked for.
    """
    now = cgroup.read()
    before, taken = now.oom_kills, []
    while now.oom_kills == before:
        far = (now.memory or 0) - now.used - _LEAP
        taken.append(_touched(max(_STEP, min(far, _LEAP))))
        now = cgroup.read()


def _touched(size: int) -> mmap.mmap:
    """Memory of which every page is there."""
    size += -size % _PAGE
    kind = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, size, flags=kind | getattr(mmap, "MAP_POPULATE", 0))
    memory[::_PAGE] = b"\1" * (size // _PAGE)
    return memory


# ---- a disk


def fill(mark: str, folder: str, share: float) -> dict[str, Any]:
    """Take so much of the disk, and start what keeps it taken; what the disk looks like then."""
    _take_disk(mark, folder, share)
    if not processes(mark, "disk"):
        _spawn(mark, "disk", folder, str(share))
    return look_at_disk(mark, folder)


def keep_full(mark: str, folder: str, share: float) -> None:
    """Take what others free there, ten times a second; Ray deletes what it spilled once nobody needs it."""
    while True:
        _take_disk(mark, folder, share)
        time.sleep(0.1)


def _take_disk(mark: str, folder: str, share: float) -> None:
    """Write its file until so much of the disk is taken."""
    size = _size_of_own(folder)
    path = _file_of(mark, folder)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        while True:
            disk = os.statvfs(folder)
            free = disk.f_bavail * disk.f_frsize
            missing = free - int(size * (1 - share))
            if missing <= 0 or not os.write(descriptor, _BLOCK[: min(missing, len(_BLOCK))]):
                break
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
    finally:
        os.close(descriptor)


def look_at_disk(mark: str, folder: str) -> dict[str, Any]:
    """Sizes in bytes: of the disk, of what is free, of this burden's file (None if there is none)."""
    disk = os.statvfs(folder)
    filler = None
    with contextlib.suppress(FileNotFoundError):
        filler = os.stat(_file_of(mark, folder)).st_size
    return {
        "size": disk.f_blocks * disk.f_frsize,
        "free": disk.f_bavail * disk.f_frsize,
        "filler": filler,
    }


def unfill(mark: str, folder: str) -> int:
    """Remove its file, or all such files; how many there were."""
    removed = 0
    names = os.listdir(folder) if os.path.isdir(folder) else []
    wanted = os.path.basename(_file_of(mark, folder))
    for name in names:
        if name == wanted or (mark == ANY and name.startswith(_FILE)):
            os.unlink(os.path.join(folder, name))
            removed += 1
    return removed


def _file_of(mark: str, folder: str) -> str:
    return os.path.join(folder, _FILE + mark.replace("/", "-"))


def _size_of_own(folder: str) -> int:
    """Bytes of the tmpfs that is mounted there; anything else may be the machine's own disk."""
    kind = ""
    with open("/proc/self/mountinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            place, _, source = line.partition(" - ")
            if place.split()[4] == folder:
                kind = source.split()[0]
    if kind != "tmpfs":
        raise Refused(f"{folder} is no disk of its own size" + (f" but a {kind}" if kind else ""))
    disk = os.statvfs(folder)
    if not disk.f_blocks:
        raise Refused(f"the disk at {folder} has no size, so the machine's memory would be filled")
    return disk.f_blocks * disk.f_frsize


# ---- the command


def main(argv: list[str]) -> int:
    try:
        return _main(argv)
    except Refused as refused:
        print(json.dumps({"refused": str(refused)}))
        return REFUSED


def _main(argv: list[str]) -> int:
    verb, mark, *rest = [*argv, "", ""][: max(2, len(argv))]
    if verb == _BURN and rest:
        if rest[0] == "cpu":
            burn_cpu()
        elif rest[0] == "memory":
            take_memory(float(rest[1]))
        elif rest[0] == "disk":
            keep_full(mark, rest[1], float(rest[2]))
        else:
            exhaust_memory()
        return 0
    if verb == "start" and mark and rest and rest[0] in ("cpu", "memory", "oom"):
        print(json.dumps({"started": start(mark, rest[0], (*rest, "")[1])}))
    elif verb == "fill" and mark and len(rest) == 2:
        print(json.dumps(fill(mark, rest[0], float(rest[1]))))
    elif verb == "look" and mark:
        seen: dict[str, Any] = {"processes": processes(mark)}
        if rest:
            seen["disk"] = look_at_disk(mark, rest[0])
        print(json.dumps(seen))
    elif verb == "end" and mark:
        ended = end(mark)
        print(json.dumps({"ended": ended, "removed": unfill(mark, rest[0]) if rest else 0}))
    else:
        print(__doc__, file=sys.stderr)
        return USAGE
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
