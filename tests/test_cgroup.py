"""What a node may use, read from the files of either version of cgroups."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from simulator.innode.cgroup import Cgroup, parse, paths, read

V1 = {
    "cpu/cpu.cfs_quota_us": "50000",
    "cpu/cpu.cfs_period_us": "100000",
    "cpuacct/cpuacct.usage": "1500000000",
    "memory/memory.limit_in_bytes": "2147483648",
    "memory/memory.usage_in_bytes": "300000000",
    "memory/memory.stat": "cache 90\ntotal_rss 10\ntotal_inactive_file 100000000",
    "memory/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2",
}
V2 = {
    "cpu.max": "50000 100000",
    "cpu.stat": "usage_usec 1500000\nuser_usec 1",
    "memory.max": "2147483648",
    "memory.current": "300000000",
    "memory.stat": "anon 10\ninactive_file 100000000",
    "memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0",
}


def laid_out(root: Path, files: dict[str, str]) -> str:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return str(root)


@pytest.mark.parametrize(("version", "files"), [(1, V1), (2, V2)])
def test_both_versions_say_the_same(tmp_path: Path, version: int, files: dict[str, str]) -> None:
    assert read(laid_out(tmp_path, files)) == Cgroup(
        version=version,
        cpus=0.5,
        memory=2147483648,
        used=200_000_000,
        oom_kills=2,
        cpu_seconds=1.5,
    )


@pytest.mark.parametrize("files", [V1, V2])
def test_what_grep_prints_is_read_as_well(tmp_path: Path, files: dict[str, str]) -> None:
    root = laid_out(tmp_path, files)
    done = subprocess.run(
        ["grep", "-s", "", *paths(root)], capture_output=True, text=True, check=False
    )
    assert parse(done.stdout.splitlines(), root) == read(root)


@pytest.mark.parametrize(
    "files",
    [
        V1 | {"cpu/cpu.cfs_quota_us": "-1", "memory/memory.limit_in_bytes": "9223372036854771712"},
        V2 | {"cpu.max": "max 100000", "memory.max": "max"},
    ],
)
def test_no_limit_is_none(tmp_path: Path, files: dict[str, str]) -> None:
    seen = read(laid_out(tmp_path, files))
    assert (seen.cpus, seen.memory) == (None, None)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    assert read(str(tmp_path)).version == 0
    assert parse(["grep: nothing here", "/elsewhere/cpu.max:1 2"]).version == 0
