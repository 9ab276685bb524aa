"""What the kernel grants a node, and what the node has of it, from the cgroup files that it sees of itself.

Version 1 and version 2 of cgroups say the same in other words. Whoever is inside reads the files (`read`);
whoever is outside has them printed by ``grep -s "" FILES`` and reads that (`parse`), which needs no Python in
a node that has hardly any CPU or memory left.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass

ROOT = "/sys/fs/cgroup"

#: Of version 1, then of version 2; each kernel has one half of them.
FILES = (
    "cpu/cpu.cfs_quota_us",
    "cpu/cpu.cfs_period_us",
    "cpuacct/cpuacct.usage",
    "memory/memory.limit_in_bytes",
    "memory/memory.usage_in_bytes",
    "memory/memory.stat",
    "memory/memory.oom_control",
    "cpu.max",
    "cpu.stat",
    "memory.max",
    "memory.current",
    "memory.stat",
    "memory.events",
)

#: Version 1 writes a number near this where there is no limit, bytes.
_ENDLESS = 2**60


@dataclass(frozen=True)
class Cgroup:
    """One look at a node's cgroup; None is no limit.

    Attributes
    ----------
    version
        Of cgroups; 0 where no file could be read.
    cpus, memory
        Limits: cores, bytes.
    used
        Memory that cannot simply be dropped: all but the inactive pages of files, bytes. Ray's own memory monitor
        counts the same.
    oom_kills
        Processes that the kernel killed here for want of memory since the node was started.
    cpu_seconds
        That its processes had of the CPU.
    """

    version: int
    cpus: float | None
    memory: int | None
    used: int
    oom_kills: int
    cpu_seconds: float


def paths(root: str = ROOT) -> list[str]:
    return [os.path.join(root, name) for name in FILES]


def read(root: str = ROOT) -> Cgroup:
    """A look from inside."""
    lines = []
    for path in paths(root):
        try:
            with open(path, encoding="utf-8") as file:
                lines += [f"{path}:{line}" for line in file.read().splitlines()]
        except OSError:
            continue  # of the other version, or of a kernel without it
    return parse(lines, root)


def parse(lines: Iterable[str], root: str = ROOT) -> Cgroup:
    """A look from outside: lines of ``PATH:CONTENT``, as grep writes them.

    Examples
    --------
    >>> parse(["/sys/fs/cgroup/cpu.max:50000 100000", "/sys/fs/cgroup/memory.max:max"]).cpus
    0.5
    """
    plain: dict[str, str] = {}
    keyed: dict[tuple[str, str], int] = {}
    for line in lines:
        path, colon, text = line.partition(":")
        if not colon or not path.startswith(root):
            continue
        name = os.path.relpath(path, root)
        plain.setdefault(name, text.strip())
        key, _, value = text.strip().partition(" ")
        if value.isdecimal():
            keyed[name, key] = int(value)

    def number(name: str) -> int:
        text = plain.get(name, "")
        return int(text) if text.lstrip("-").isdecimal() else 0

    if "memory.max" in plain or "cpu.max" in plain:
        quota, _, period = plain.get("cpu.max", "max").partition(" ")
        used = number("memory.current") - keyed.get(("memory.stat", "inactive_file"), 0)
        return Cgroup(
            version=2,
            cpus=None if quota == "max" else int(quota) / int(period or 100_000),
            memory=number("memory.max") or None,
            used=max(0, used),
            oom_kills=keyed.get(("memory.events", "oom_kill"), 0),
            cpu_seconds=keyed.get(("cpu.stat", "usage_usec"), 0) / 1e6,
        )
    quota_us = number("cpu/cpu.cfs_quota_us")
    limit = number("memory/memory.limit_in_bytes")
    used = number("memory/memory.usage_in_bytes")
    used -= keyed.get(("memory/memory.stat", "total_inactive_file"), 0)
    return Cgroup(
        version=1 if plain else 0,
        cpus=quota_us / (number("cpu/cpu.cfs_period_us") or 100_000) if quota_us > 0 else None,
        memory=limit if 0 < limit < _ENDLESS else None,
        used=max(0, used),
        oom_kills=keyed.get(("memory/memory.oom_control", "oom_kill"), 0),
        cpu_seconds=number("cpuacct/cpuacct.usage") / 1e9,
    )
