"""How the Docker backend reads and changes a node's limits, and its processes; no engine is asked."""

from __future__ import annotations

import json
from collections.abc import Sequence
from signal import SIGSTOP
from types import SimpleNamespace
from typing import Any

import pytest
from python_on_whales.exceptions import DockerException as CommandFailed

from simulator.backends.base import ClusterSpec, Completed, Limits, NodeProcess
from simulator.backends.docker import limits, processes
from simulator.errors import CannotRun
from simulator.topology import load_topology, override


class Engine:
    """Answers `inspect_container` with one model, and takes `docker update`."""

    def __init__(self, **model: Any) -> None:
        self.model = {"HostConfig": {}, "State": {}, **model}
        self.updates: list[dict[str, Any]] = []
        self.container = SimpleNamespace(update=self._update)

    def inspect_container(self, container: str) -> Any:
        return self.model

    def _update(self, container: str, **changed: Any) -> None:
        self.updates.append(changed)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ({"NanoCpus": 500_000_000, "Memory": 100}, Limits(0.5, 100)),
        ({"NanoCpus": 0, "CpuQuota": 150_000, "CpuPeriod": 0, "Memory": 0}, Limits(1.5, None)),
        ({"CpuQuota": 25_000, "CpuPeriod": 50_000}, Limits(0.5, None)),
        ({}, Limits(None, None)),
    ],
)
def test_the_engines_record_is_read_in_either_of_its_forms(
    host: dict[str, int], expected: Limits
) -> None:
    assert limits.asked_of_engine(Engine(HostConfig=host), "c") == expected  # type: ignore[arg-type]


def test_what_a_node_was_made_with_is_compose_yaml_and_the_topology() -> None:
    mine = override(load_topology("default"), ["worker_groups.worker.memory=1500m"])
    spec = ClusterSpec("lab", mine, "none")
    assert limits.made(spec, "worker", 8.0) == Limits(2.0, 1500 * 1024**2)
    assert limits.made(spec, "head", 8.0) == Limits(2.0, 3 * 1024**3)
    assert limits.made(spec, "worker", 1.0).cpus == 1.0  # a small machine's


def test_only_what_is_given_is_changed(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Engine()
    monkeypatch.setattr(limits, "DockerClient", lambda: engine)
    limits.set_limits("c", Limits(cpus=0.5), swap=None)
    limits.set_limits("c", Limits(memory=700), swap=700)
    limits.set_limits("c", Limits(), swap=None)
    assert engine.updates == [{"cpus": 0.5}, {"memory": 700, "memory_swap": 700}]


def test_a_kernel_that_refuses_is_quoted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(container: str, **changed: Any) -> None:
        said = (
            b"Error response from daemon: unable to set memory limit to 62914560 (current usage: 1)"
        )
        raise CommandFailed(["docker", "update"], 1, stderr=said)

    client = SimpleNamespace(container=SimpleNamespace(update=refuse))
    monkeypatch.setattr(limits, "DockerClient", lambda: client)
    with pytest.raises(CannotRun, match="unable to set memory limit to 62914560"):
        limits.set_limits("c", Limits(memory=1), swap=1)


def test_a_node_that_shows_no_cgroup_is_not_taken_for_one_without_limits() -> None:
    with pytest.raises(CannotRun, match="shows no files below /sys/fs/cgroup"):
        limits.load(lambda argv: Completed(2, ""), "worker-1")


def test_the_kernels_word_is_read_from_the_node() -> None:
    asked: list[Sequence[str]] = []

    def execute(argv: Sequence[str]) -> Completed:
        asked.append(argv)
        lines = [
            "/sys/fs/cgroup/cpu.max:25000 100000",
            "/sys/fs/cgroup/memory.max:1000",
            "/sys/fs/cgroup/memory.current:800",
            "/sys/fs/cgroup/memory.stat:inactive_file 300",
            "/sys/fs/cgroup/memory.events:oom_kill 4",
            "/sys/fs/cgroup/cpu.stat:usage_usec 2500000",
        ]
        return Completed(2, "\n".join(lines))  # files of the other version are missing

    load = limits.load(execute, "worker-1")
    assert load.limits == Limits(0.25, 1000)
    assert (load.memory, load.oom_kills, load.cpu_seconds, load.cgroup) == (500, 4, 2.5, 2)
    assert asked[0][0] == "grep"


@pytest.mark.parametrize(
    ("tmpfs", "folder"),
    [
        ({"/spill": "size=67108864,mode=1777"}, "/spill"),
        ({"/spill": "mode=1777"}, None),  # without a size it would be the machine's memory
        ({"/tmp": "size=1m"}, None),
        (None, None),
    ],
)
def test_a_disk_to_fill_is_one_of_a_size_of_its_own(
    tmpfs: dict[str, str] | None, folder: str | None
) -> None:
    assert limits.spill_folder(Engine(HostConfig={"Tmpfs": tmpfs}), "c") == folder  # type: ignore[arg-type]


def test_the_engine_notes_that_memory_ran_out() -> None:
    assert limits.ran_out_of_memory(Engine(State={"OOMKilled": True}), "c")  # type: ignore[arg-type]
    assert not limits.ran_out_of_memory(Engine(), "c")  # type: ignore[arg-type]


# ---- processes

RAYLET = NodeProcess(19, 4711, "S", "raylet", "/x/raylet --y")


def test_processes_are_read_from_the_program_inside() -> None:
    row = {"pid": 19, "started": 4711, "state": "S", "name": "raylet", "title": "/x/raylet --y"}
    found = processes.processes(lambda argv: Completed(0, json.dumps([row])), "worker-1")
    assert found == [RAYLET]


@pytest.mark.parametrize(("code", "there"), [(0, True), (1, False)])
def test_a_signal_says_whether_the_process_was_there(code: int, there: bool) -> None:
    asked: list[Sequence[str]] = []

    def execute(argv: Sequence[str]) -> Completed:
        asked.append(argv)
        return Completed(code, "")

    assert processes.signal(execute, "worker-1", RAYLET, SIGSTOP) is there
    assert list(asked[0][-4:]) == ["signal", "19", "4711", "19"]


def test_a_node_whose_program_fails_is_told_with_its_words() -> None:
    def execute(argv: Sequence[str]) -> Completed:
        return Completed(127, "OCI runtime exec failed\npython: not found\n")

    with pytest.raises(CannotRun, match="worker-1 cannot be listed: python: not found"):
        processes.processes(execute, "worker-1")
    with pytest.raises(CannotRun, match="process 19 of worker-1 could not be signalled"):
        processes.signal(execute, "worker-1", RAYLET, SIGSTOP)
