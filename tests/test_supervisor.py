"""The supervisor against a stand-in for ``ray start``: real processes, no Ray.

The stand-in is a package named ray on PYTHONPATH, whose raylet is a shell script of that name: what the
supervisor does with processes is tested for real, in seconds.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from simulator.innode import supervisor

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the supervisor reads /proc")

PACKAGE_ROOT = Path(supervisor.__file__).parents[2]

RAY_START = """
import os, subprocess, sys
print("ray start", *sys.argv[1:], flush=True)
if os.environ.get("FAKE_RAY_FAILS"):
    sys.exit("the GCS did not answer")
here = os.path.dirname(os.path.abspath(__file__))
subprocess.Popen([os.path.join(here, "raylet")], start_new_session=True)
"""


class Node:
    """One supervised node below a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.home = folder / "home"
        package = folder / "fake" / "ray" / "scripts"
        package.mkdir(parents=True)
        for path in (package.parent, package):
            (path / "__init__.py").touch()
        (package / "scripts.py").write_text(RAY_START)
        self.raylet = package / "raylet"
        self.lives("sleep 60")
        self.process: subprocess.Popen[str] | None = None

    def lives(self, script: str) -> None:
        self.raylet.write_text(f"#!/bin/sh\n{script}\n")
        self.raylet.chmod(0o755)

    def start(self, **env: str) -> subprocess.Popen[str]:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulator.innode.supervisor", "worker", "--num-cpus=1"],
            env={
                **os.environ,
                "PYTHONPATH": f"{self.folder / 'fake'}{os.pathsep}{PACKAGE_ROOT}",
                "RAY_SIM_HOME": str(self.home),
                "RAY_SIM_NODE": "worker-7",
                "RAY_SIM_NODE_IP": "127.0.0.7",
                "RAY_SIM_HEAD_ADDRESS": "127.0.0.1:6379",
                **env,
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        return self.process

    def until(self, condition: Callable[[], object], seconds: float = 20.0) -> None:
        end = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < end, "it did not happen in time"
            time.sleep(0.02)

    def until_ready(self) -> None:
        self.until((self.home / "ready").exists)

    def raylet_pid(self) -> int:
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.raylet).encode() in command:
                    return int(entry.name)
        raise AssertionError("there is no raylet")

    def ended(self) -> tuple[int, str]:
        assert self.process is not None
        output, _ = self.process.communicate(timeout=20)
        return self.process.returncode, output


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    if node.process is not None and node.process.poll() is None:
        node.process.kill()
        os.kill(node.raylet_pid(), signal.SIGKILL)
        node.process.wait()


def test_it_marks_the_node_and_says_when_it_is_ready(node: Node) -> None:
    process = node.start()
    node.until_ready()
    marker = json.loads((node.home / "node.json").read_text())
    assert (marker["node"], marker["start_of_node"]) == ("worker-7", 1)
    process.terminate()
    code, output = node.ended()
    assert code == supervisor.STOPPED
    assert "--node-ip-address=127.0.0.7" in output
    assert "--num-cpus=1" in output
    assert "--block" not in output
    assert not (node.home / "ready").exists()
    assert (node.home / "exit_code").read_text().strip() == "0"


def test_sigterm_ends_every_process_of_the_node(node: Node) -> None:
    process = node.start()
    node.until_ready()
    pid = node.raylet_pid()
    process.terminate()
    assert node.ended()[0] == supervisor.STOPPED
    assert not Path(f"/proc/{pid}").exists()


def test_a_raylet_that_ignores_sigterm_is_killed(node: Node) -> None:
    node.lives("trap '' TERM\nwhile true; do sleep 0.1; done")
    process = node.start(RAY_SIM_GRACE_S="0.5")
    node.until_ready()
    process.terminate()
    assert node.ended()[0] == supervisor.STOPPED


def test_a_killed_raylet_ends_the_node_and_the_code_says_so(node: Node) -> None:
    node.start()
    node.until_ready()
    os.kill(node.raylet_pid(), signal.SIGKILL)
    code, output = node.ended()
    assert code == supervisor.RAYLET_DIED
    assert "the raylet ended with -9" in output


def test_a_raylet_that_leaves_by_itself_is_told_apart_from_a_crash(node: Node) -> None:
    node.lives("sleep 0.7; exit 0")
    node.start()
    assert node.ended()[0] == supervisor.RAYLET_LEFT


def test_a_failed_ray_start_is_not_ready_and_says_why(node: Node) -> None:
    node.start(FAKE_RAY_FAILS="1")
    code, output = node.ended()
    assert code == supervisor.START_FAILED
    assert "the GCS did not answer" in output
    assert not (node.home / "ready").exists()


def test_a_second_start_counts_and_forgets_the_old_ready_file(node: Node) -> None:
    node.home.mkdir()
    (node.home / "ready").touch()
    (node.home / "node.json").write_text('{"node": "worker-7", "start_of_node": 4}')
    node.start(FAKE_RAY_FAILS="1")
    node.ended()
    assert json.loads((node.home / "node.json").read_text())["start_of_node"] == 5
    assert not (node.home / "ready").exists()


def test_what_is_given_wins_over_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SIM_NODE", "head")
    monkeypatch.setenv("RAY_SIM_NODE_IP", "127.0.0.9")
    command = supervisor.ray_command("head", ["--port=7000", "--object-store-memory=1"])
    assert command.count("--port=7000") == 1
    assert not [c for c in command if c.startswith("--port=6379")]
    assert not [c for c in command if c.startswith("--object-store-memory=104857600")]
    assert "--head" in command


def test_a_wrong_role_is_refused() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulator.innode.supervisor", "boss"],
        capture_output=True,
        cwd=PACKAGE_ROOT,
        check=False,
    )
    assert done.returncode == 2
    assert b"usage" in done.stdout
