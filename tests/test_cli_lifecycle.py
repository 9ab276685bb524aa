"""Clusters stopped, started, scaled, followed and reached into from the command line, on the fake backend."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from cli import SHORT, Command

from simulator.backends.base import Completed
from simulator.backends.fake import FakeBackend
from simulator.cli import output
from simulator.errors import CannotRun


@pytest.fixture
def command(command: Command) -> Command:
    assert command("up", "--workers", "2").code == 0
    return command


def states(command: Command) -> dict[str, str]:
    return {n["name"]: n["state"] for n in command("status", "--json").data["nodes"]}


def documented(command: str) -> set[str]:
    """The names in the rows of the table of what a command prints with --json."""
    page = (Path(__file__).parent.parent / "docs/reference/cli.md").read_text(encoding="utf-8")
    table = page.partition("## JSON")[2].partition("## Environment")[0]
    (rows,) = re.findall(rf"^\|[^|]*`{command}`[^|]*(\|.*(?:\n\| \|.*)*)", table, re.M)
    return {name for code in re.findall(r"`([^`]*)`", rows) for name in re.findall(r"\w+", code)}


def keys(data: object) -> set[str]:
    """The fields of an object, and of the objects in its lists."""
    if isinstance(data, list):
        return set().union(*map(keys, data))
    if not isinstance(data, dict):
        return set()
    return set(data).union(*(keys(v) for v in data.values() if isinstance(v, list)))


def test_every_field_of_the_json_is_documented(command: Command) -> None:
    for line in ("status", "clusters", "nodes", "experiments", "runs", "scale worker=1", "stop"):
        name = line.split()[0]
        assert keys(command(*line.split(), "--json").data) <= documented(name)
    assert {"profile", "remedy"} <= documented("status")
    start = command("start", "--json").data
    assert keys(start) | set(start["ray"]) | set(start["count"]) <= documented("start")
    seen = json.loads(command("monitor", "--for", "5", "--json").out.splitlines()[0])
    assert keys(seen) == documented("monitor")


# ---- stop and start


def test_a_cluster_is_stopped_shown_as_stopped_and_started_again(command: Command) -> None:
    stopped = command("stop")
    assert (stopped.code, stopped.out) == (0, "")
    assert stopped.err.splitlines()[-2:] == [
        "stopped head",
        "stopped ray-sim; start it again with: python -m simulator start",
    ]
    assert set(states(command).values()) == {"exited"}
    shown = " ".join(command("status").out.split())
    assert "stopped; start it again with: python -m simulator start --name ray-sim" in shown
    again = command("stop", "--json")
    assert again.data == {"cluster": "ray-sim", "stopped": []}
    assert "no node of ray-sim runs; nothing to do" in again.err

    started = command("start", "--json")
    assert started.code == 0
    assert started.data["count"] == {"desired": 3, "running": 3, "alive": 3}
    assert "jobs, actors and placement groups of before are gone" in started.err
    assert "worker-2 joined after" in started.err
    once_more = command("start")
    assert once_more.code == 0
    assert "all nodes of ray-sim run already" in once_more.err
    assert "joined" not in once_more.err


def test_a_frozen_node_is_said_to_be_killed_or_left(command: Command) -> None:
    command("pause", "worker-2")
    command("kill", "worker-1")
    assert "left frozen: worker-2" in command("start").err
    stopped = command("stop")
    assert "killed worker-2: it was frozen, and could not sign off" in stopped.err


def test_workers_without_a_head_are_said_to_be_started_anew(command: Command) -> None:
    command("kill", "head")
    started = command("start")
    assert "started anew, since their head is gone: worker-1, worker-2" in started.err
    assert set(states(command).values()) == {"alive"}


def test_a_head_that_is_down_is_said_with_how_to_have_it_back(command: Command) -> None:
    command("kill", "head")
    shown = " ".join(command("status").out.split())
    assert "Ray does not answer: the head is exited. Start it first: start" in shown
    restarted = command("restart", "head")
    assert restarted.code == 0
    assert "jobs, actors and placement groups of before are gone" in restarted.err
    assert "started anew, since their head is gone: worker-1, worker-2" in restarted.err
    assert set(states(command).values()) == {"alive"}


def test_a_run_on_a_stopped_cluster_says_how_to_start_it(command: Command) -> None:
    command("stop")
    refused = command("run", "node_failure", "--reuse", "ray-sim", *SHORT)
    assert refused.code == 2
    assert "head is exited; first: python -m simulator start --name ray-sim" in refused.err
    command("start")
    assert command("run", "node_failure", "--reuse", "ray-sim", "--json", *SHORT).code == 0


def test_up_starts_a_stopped_cluster_and_down_removes_it(
    command: Command, backend: FakeBackend
) -> None:
    command("stop")
    assert command("up", "--workers", "2", "--json").data["count"]["alive"] == 3
    command("stop")
    assert command("down").code == 0
    assert backend.clusters() == []


# ---- scale


def test_scaling_adds_and_removes_and_says_so(command: Command) -> None:
    up = command("scale", "worker=4", "--json")
    assert up.code == 0
    assert up.data == {"cluster": "ray-sim", "added": ["worker-3", "worker-4"], "removed": []}
    assert "ray-sim: create worker-3, worker-4" in up.err
    assert "worker-4 joined after" in up.err
    down = command("scale", "worker=1", "--json")
    assert [r["node"] for r in down.data["removed"]] == ["worker-4", "worker-3", "worker-2"]
    assert "removing worker-4, on which nothing runs" in down.err
    assert states(command) == {"head": "alive", "worker-1": "alive"}


def test_scaling_to_what_is_there_says_so(command: Command) -> None:
    same = command("scale", "worker=2")
    assert (same.code, same.out) == (0, "")
    assert "worker has 2 already; nothing to do" in same.err
    command("kill", "worker-1")
    said = command("scale", "worker=2").err
    assert "not running: worker-1; start with: python -m simulator start" in said


def test_every_problem_of_scaling_is_said_at_once(command: Command) -> None:
    done = command("scale", "worke=3", "head=2", "worker=many", "gpu")
    assert done.code == 2
    for said in ("4 problems", "did you mean worker?", "one head", "'many'", "is not GROUP=N"):
        assert said in done.err
    twice = command("scale", "worker=1", "worker=2")
    assert "worker is there twice" in twice.err
    assert "replicas: is -1" in command("scale", "worker=-1").err
    assert len(states(command)) == 3


def test_what_does_not_join_is_taken_away_again(command: Command, backend: FakeBackend) -> None:
    backend.never_joins("worker-3")
    done = command("scale", "worker=3", "--timeout", "5")
    assert done.code == 4
    assert "missing worker-3" in done.err
    assert list(states(command)) == ["head", "worker-1", "worker-2"]


def test_an_interrupted_scaling_says_what_it_left(command: Command, backend: FakeBackend) -> None:
    sent: list[int] = []

    def interrupt() -> None:
        if not sent:
            sent.append(1)
            os.kill(os.getpid(), signal.SIGINT)

    backend.before("start", interrupt)
    done = command("scale", "worker=4")
    assert done.code == 4
    assert "interrupted by SIGINT: what was being added is taken away again" in done.err
    assert list(states(command)) == ["head", "worker-1", "worker-2"]


def interrupt_at(backend: FakeBackend, method: str, call: int) -> None:
    """Let Ctrl-C be pressed right before the so-many-th call of a method."""
    calls: list[int] = []

    def interrupt() -> None:
        calls.append(1)
        if len(calls) == call:
            os.kill(os.getpid(), signal.SIGINT)

    backend.before(method, interrupt)


def test_an_interrupted_removal_says_how_far_it_came_and_is_gone_on_with(
    command: Command, backend: FakeBackend
) -> None:
    command("scale", "worker=6")
    interrupt_at(backend, "remove_node", 3)
    done = command("scale", "worker=1", "--name", "ray-sim")
    assert done.code == 4
    assert "interrupted by SIGINT: removed 2 of 5 nodes. Remove the rest with: " in done.err
    assert "python -m simulator scale worker=1 --name ray-sim" in done.err
    assert "taken away" not in done.err
    assert command("scale", "worker=1").code == 0
    assert states(command) == {"head": "alive", "worker-1": "alive"}


def test_an_interrupt_before_anything_was_planned_changed_nothing(
    command: Command, backend: FakeBackend
) -> None:
    interrupt_at(backend, "spec", 2)
    done = command("scale", "worker=1")
    assert "interrupted by SIGINT: nothing was changed" in done.err
    assert len(states(command)) == 3


def test_what_did_not_join_is_taken_away_whole_though_ctrl_c_is_pressed(
    command: Command, backend: FakeBackend
) -> None:
    backend.never_joins("worker-4")
    interrupt_at(backend, "remove_node", 1)
    done = command("scale", "worker=4", "--timeout", "5")
    assert done.code == 4
    assert "taking away what was added; Ctrl-C stops at once" in done.err
    assert "missing worker-4" in done.err
    assert list(states(command)) == ["head", "worker-1", "worker-2"]


def test_that_ray_does_not_say_what_runs_is_said(command: Command, backend: FakeBackend) -> None:
    backend.fail_next("ray.running", CannotRun("too busy"))
    assert "removing worker-2; what runs there is not known: too busy" in (
        command("scale", "worker=1").err
    )


# ---- nodes


def test_the_nodes_of_ray_are_shown_with_why_they_died(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    command("kill", "worker-2")
    backend.simulated_clock.sleep(40)
    monkeypatch.setenv("COLUMNS", "80")
    shown = command("nodes")
    assert shown.code == 0
    assert max(map(len, shown.out.splitlines())) <= 80
    assert "died: health check failed" in shown.out
    rows = command("nodes", "--json").data["nodes"]
    assert [(r["node"], r["state"]) for r in rows] == [
        ("head", "ALIVE"),
        ("worker-1", "ALIVE"),
        ("worker-2", "DEAD"),
    ]
    assert rows[2]["until"] > rows[2]["since"]
    command("stop")
    silent = command("nodes")
    assert (silent.code, silent.out) == (4, "")
    assert "the head is exited. Start it first: start" in silent.err


# ---- monitor


def test_a_cluster_is_followed_as_lines_for_people_and_for_programs(
    command: Command, backend: FakeBackend
) -> None:
    backend.later(3.0, lambda: backend.kill("ray-sim", "worker-1"))
    lines = command("monitor", "--for", "40").out.splitlines()
    assert "head      running  (now)" in lines[0]
    assert "worker-1  ended with 137" in lines[-2]
    assert "is DEAD, UNEXPECTED_TERMINATION" in lines[-1]
    seen = [
        json.loads(line) for line in command("monitor", "--for", "5", "--json").out.splitlines()
    ]
    assert [s["node"] for s in seen if s["kind"] == "engine.state"] == [
        "head",
        "worker-1",
        "worker-2",
    ]
    assert {s["present"] for s in seen} == {True}
    assert backend._programs == {}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_ctrl_c_ends_it_and_its_program_is_removed(
    command: Command, backend: FakeBackend, number: signal.Signals
) -> None:
    backend.later(5.0, lambda: os.kill(os.getpid(), number))
    assert command("monitor").code == 0
    assert backend._programs == {}


def test_it_ends_when_its_reader_leaves(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "has_reader", lambda: False)
    assert command("monitor").code == 0
    assert backend._programs == {}


def test_a_pipe_without_a_reader_is_noticed_without_writing() -> None:
    program = "import sys; from simulator.cli.output import has_reader\nwhile has_reader(): pass\n"
    reading, writing = os.pipe()
    process = subprocess.Popen([sys.executable, "-c", program], stdout=writing)
    os.close(writing)
    os.close(reading)
    assert process.wait(timeout=60) == 0


# ---- attach


def test_without_a_terminal_exec_is_named(command: Command) -> None:
    done = command("attach", "worker-1")
    assert (done.code, done.out) == (2, "")
    assert "python -m simulator exec worker-1 -- COMMAND" in done.err


def test_on_a_terminal_the_exit_code_is_the_shells(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    terminal = type("Terminal", (), {"isatty": lambda self: True})()
    monkeypatch.setattr(
        "simulator.cli.nodes.sys", type("S", (), {"stdin": terminal, "stdout": terminal})
    )
    monkeypatch.setattr(backend, "execute", lambda *a, **k: Completed(5, ""))
    assert command("attach", "worker-1").code == 5


# ---- cp


def test_files_go_to_a_node_and_come_back(command: Command, tmp_path: Path) -> None:
    (tmp_path / "job.py").write_text("print()")
    there = command("cp", "job.py", "worker-1:/tmp")
    assert (there.code, there.out) == (0, "")
    assert "copied job.py to worker-1:/tmp" in there.err
    command("stop")
    assert command("cp", "worker-1:/tmp/job.py", "./back.py").code == 0
    assert (tmp_path / "back.py").read_text() == "print()"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("a b", "neither is in a node; write one of them as NODE:PATH, such as worker-2:/tmp"),
        ("head:/a worker-1:/b", "both are in nodes; copy head:/a to this machine first"),
        ("worker-9:/a .", "no node named 'worker-9': did you mean worker"),
        ("worker-9:/a .", "a file of that name is written ./worker-9:/a"),
        ("head: .", "head:: names no path; for example head:/tmp"),
        ("gone.py head:/tmp", "gone.py: does not exist"),
        ("head:/gone .", "/gone: does not exist"),
    ],
)
def test_wrong_copies_are_said_and_are_exit_code_2(command: Command, line: str, said: str) -> None:
    done = command("cp", *line.split())
    assert (done.code, done.out) == (2, "")
    assert said in " ".join(done.err.split())


def test_what_was_left_out_is_said(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [f"link-{i}" for i in range(7)]
    monkeypatch.setattr(backend, "copy_out", lambda *a: names)
    said = command("cp", "head:/tmp", ".").err
    assert "left out, since neither file nor folder: link-0" in said
    assert "and 2 more" in said


@pytest.mark.parametrize("seconds", ["inf", "nan", "1e300", "-1"])
@pytest.mark.parametrize(
    "line", ["stop --grace", "up --timeout", "monitor --for", "status --watch --interval"]
)
def test_a_time_that_is_none_is_exit_code_2(command: Command, line: str, seconds: str) -> None:
    done = command(*line.split(), seconds)
    assert (done.code, done.out) == (2, "")
    assert "Invalid value" in done.err
