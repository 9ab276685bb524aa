"""The supervisor against a stand-in for ``ray start``: real processes, no Ray."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from fake_ray import LINUX, FakeRay, gone, until

from simulator.innode import supervisor

pytestmark = pytest.mark.skipif(not LINUX, reason="the supervisor reads /proc")

PACKAGE_ROOT = Path(supervisor.__file__).parents[2]


class Node:
    """One supervised node below a temporary folder."""

    def __init__(self, folder: Path) -> None:
        self.home, self.temp = folder / "home", folder / "ray"
        self.ray = FakeRay(folder)
        self.process: subprocess.Popen[str] | None = None

    def start(self, role: str = "worker", **env: str) -> subprocess.Popen[str]:
        options = ["--num-cpus=1", f"--temp-dir={self.temp}"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "simulator.innode.supervisor", role, *options],
            env={
                **os.environ,
                "PYTHONPATH": f"{self.ray.path}{os.pathsep}{PACKAGE_ROOT}",
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

    def until_ready(self) -> None:
        until((self.home / "ready").exists, "ready")

    def ended(self) -> tuple[int, str]:
        """Its exit code and what it printed; all it started must be gone."""
        assert self.process is not None
        output, _ = self.process.communicate(timeout=60)
        left = [name for name in ("raylet", "gcs_server", "orphan") if self.ray.pids(name)]
        assert left == []
        assert not (self.home / "ready").exists()
        return self.process.returncode, output


@pytest.fixture
def node(tmp_path: Path) -> Iterator[Node]:
    node = Node(tmp_path)
    yield node
    if node.process is not None and node.process.poll() is None:
        node.process.kill()
    for name in ("raylet", "gcs_server", "orphan"):
        for pid in node.ray.pids(name):
            os.kill(pid, signal.SIGKILL)
    if node.process is not None:
        node.process.communicate()


def test_it_marks_the_node_and_says_when_it_is_ready(node: Node) -> None:
    process = node.start()
    node.until_ready()
    marker = json.loads((node.home / "node.json").read_text())
    assert (marker["node"], marker["start_of_node"]) == ("worker-7", 1)
    assert marker["boot"]
    process.terminate()
    code, output = node.ended()
    assert code == supervisor.STOPPED
    assert "--node-name=worker-7" in output
    assert "--node-ip-address=127.0.0.7" in output
    assert "--address=127.0.0.1:6379" in output
    assert "--num-cpus=1" in output
    assert "--block" not in output
    assert (node.home / "exit_code").read_text() == "0\n"


def test_sigterm_ends_every_process_of_the_node(node: Node) -> None:
    node.ray.lives("orphan", "trap '' TERM; while :; do sleep 0.05; done")
    process = node.start()
    node.until_ready()
    until(lambda: node.ray.pids("orphan"))
    process.terminate()
    assert node.ended()[0] == supervisor.STOPPED


def test_the_raylet_signs_off_before_the_gcs_is_ended(node: Node, tmp_path: Path) -> None:
    order = tmp_path / "order"
    for name in ("raylet", "gcs_server"):
        node.ray.lives(
            name, f"trap 'echo {name} >>{order}; exit 0' TERM; while :; do sleep 0.05; done"
        )
    process = node.start("head")
    node.until_ready()
    process.terminate()
    assert node.ended()[0] == supervisor.STOPPED
    assert order.read_text().split() == ["raylet", "gcs_server"]


def test_a_raylet_that_ignores_sigterm_is_killed(node: Node) -> None:
    node.ray.lives("raylet", "trap '' TERM\nwhile true; do sleep 0.1; done")
    process = node.start(RAY_SIM_GRACE_S="0.5")
    node.until_ready()
    process.terminate()
    assert node.ended()[0] == supervisor.STOPPED


def test_sigterm_ends_a_start_that_is_under_way(node: Node) -> None:
    node.ray.start("hangs")
    process = node.start()
    assert process.stdout is not None
    until(lambda: process.stdout and "ray start start" in process.stdout.readline())
    process.terminate()
    assert node.ended()[0] == supervisor.STOPPED


def test_a_killed_raylet_ends_the_node_and_the_code_says_so(node: Node) -> None:
    node.start()
    node.until_ready()
    (pid,) = node.ray.pids("raylet")
    os.kill(pid, signal.SIGKILL)
    code, output = node.ended()
    assert code == supervisor.RAYLET_DIED
    assert "the raylet ended with signal 9" in output
    assert (node.home / "exit_code").read_text() == f"{supervisor.RAYLET_DIED}\n"


def test_a_raylet_that_gives_up_is_a_raylet_that_died(node: Node, tmp_path: Path) -> None:
    node.ray.lives("raylet", f"until test -e {tmp_path}/go; do sleep 0.02; done; exit 1")
    node.start()
    node.until_ready()
    (tmp_path / "go").touch()
    code, output = node.ended()
    assert code == supervisor.RAYLET_DIED
    assert "the raylet ended with exit code 1" in output


def test_a_raylet_that_leaves_by_itself_is_told_apart_from_a_crash(
    node: Node, tmp_path: Path
) -> None:
    node.ray.lives("raylet", f"until test -e {tmp_path}/go; do sleep 0.02; done; exit 0")
    node.start()
    node.until_ready()
    (tmp_path / "go").touch()
    assert node.ended()[0] == supervisor.RAYLET_LEFT


def test_a_head_without_its_gcs_ends(node: Node) -> None:
    node.start("head")
    node.until_ready()
    (pid,) = node.ray.pids("gcs_server")
    os.kill(pid, signal.SIGKILL)
    code, output = node.ended()
    assert code == supervisor.GCS_DIED
    assert "the GCS ended with signal 9" in output


def test_a_head_whose_tables_have_no_place_does_not_start_ray(node: Node, tmp_path: Path) -> None:
    path = tmp_path / "missing"
    node.start("head", RAY_gcs_storage="rocksdb", RAY_gcs_storage_path=str(path))
    code, output = node.ended()
    assert code == supervisor.NO_STORE
    assert f"the GCS cannot keep its tables: {path} cannot be written to" in output
    assert "ray start start" not in output
    assert (node.home / "exit_code").read_text() == f"{supervisor.NO_STORE}\n"


def test_only_ray_is_told_the_password(node: Node, tmp_path: Path) -> None:
    (tmp_path / "password").write_text("hush")
    node.start("head", RAY_SIM_REDIS_PASSWORD_FILE=str(tmp_path / "password"))
    node.until_ready()
    assert node.process is not None
    node.process.terminate()
    said = [line for line in node.ended()[1].splitlines() if "hush" in line]
    assert len(said) == 1
    assert said[0].startswith("ray start start")  # the stand-in says what it was told


def test_a_gcs_that_ends_while_ray_starts_ends_the_head_and_not_its_patience(node: Node) -> None:
    node.ray.start("lingers")
    node.start("head")
    until(lambda: node.ray.pids("gcs_server"), "the GCS")
    (pid,) = node.ray.pids("gcs_server")
    time.sleep(2 * supervisor.LOOK_S)  # so that it was seen
    os.kill(pid, signal.SIGKILL)
    code, output = node.ended()
    assert code == supervisor.GCS_DIED
    assert "the GCS ended while Ray was starting" in output


def test_a_failed_ray_start_is_not_ready_and_says_why(node: Node) -> None:
    node.ray.start("fails")
    node.start()
    code, output = node.ended()
    assert code == supervisor.START_FAILED
    assert "the GCS did not answer" in output
    assert "raylet.out: the raylet's last words" in output


def test_ray_that_starts_no_raylet_has_failed(node: Node) -> None:
    node.ray.lives("raylet", "exit 1")
    node.ray.lives("orphan", "sleep 600")
    node.start()
    code, _ = node.ended()
    assert code in (supervisor.START_FAILED, supervisor.RAYLET_DIED)


def test_who_is_left_behind_is_adopted_and_reaped(node: Node, tmp_path: Path) -> None:
    node.ray.lives("orphan", f"until test -e {tmp_path}/go; do sleep 0.02; done")
    process = node.start()
    node.until_ready()
    (pid,) = node.ray.pids("orphan")
    parent = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
    assert parent == process.pid
    (tmp_path / "go").touch()
    until(lambda: gone(pid), "the reaping")
    process.terminate()
    node.ended()


def test_a_node_killed_with_sigkill_starts_again(node: Node) -> None:
    process = node.start()
    node.until_ready()
    process.kill()
    for pid in node.ray.pids("raylet"):
        os.kill(pid, signal.SIGKILL)
    process.communicate()
    assert (node.home / "ready").exists()
    stale = node.temp / "ray_current_cluster"
    stale.parent.mkdir(exist_ok=True)
    stale.write_text("127.0.0.1:6379")  # with it, `ray start --head` would say: already running
    node.ray.start("hangs")
    process = node.start()
    assert process.stdout is not None
    until(lambda: process.stdout and "ray start start" in process.stdout.readline())
    assert not (node.home / "ready").exists()
    assert not (node.home / "exit_code").exists()
    assert not stale.exists()
    assert json.loads((node.home / "node.json").read_text())["start_of_node"] == 2
    process.terminate()
    node.ended()


def test_a_drain_that_cannot_be_asked_for_becomes_an_end_at_once(node: Node) -> None:
    process = node.start(RAY_SIM_ON_TERM="drain", RAY_SIM_DRAIN_S="600")
    node.until_ready()
    process.terminate()
    code, output = node.ended()  # the stand-in has no GCS that could be asked
    assert code == supervisor.STOPPED
    assert "the drain was refused" in output


def test_it_sleeps_until_it_is_needed(node: Node) -> None:
    process = node.start()
    node.until_ready()

    status = Path(f"/proc/{process.pid}/stat")
    until(lambda: status.read_text().rpartition(")")[2].split()[0] == "S", "sleep")
    used = status.read_text().rpartition(")")[2].split()[11:13]
    assert sum(map(int, used)) < 100  # clock ticks: starting costs some, waiting none
    process.terminate()
    node.ended()


def test_it_imports_little(tmp_path: Path) -> None:
    heavy = {"subprocess", "asyncio", "threading", "logging", "pathlib", "ray", "typing"}
    program = "import sys, simulator.innode.supervisor; print(*sys.modules)"
    done = subprocess.run(
        [sys.executable, "-S", "-c", program],
        cwd=_lonely(tmp_path),
        capture_output=True,
        text=True,
        check=True,
    )
    assert heavy & set(done.stdout.split()) == set()


def _lonely(folder: Path) -> Path:
    """The in-node programs as a container has them: without the rest of the package."""
    (folder / "simulator").mkdir()
    (folder / "simulator" / "innode").symlink_to(Path(supervisor.__file__).parent)
    return folder


def test_what_is_given_wins_over_what_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SIM_NODE", "head")
    monkeypatch.setenv("RAY_SIM_NODE_IP", "127.0.0.9")
    command = supervisor.ray_command("head", ["--port=7000", "--object-store-memory", "1"])
    assert command.count("--port=7000") == 1
    assert not [c for c in command if c.startswith("--port=6379")]
    assert not [c for c in command if c.startswith("--object-store-memory=104857600")]
    assert "--head" in command


def test_without_ray_in_this_python_the_one_on_the_path_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("RAY_SIM_NODE_IP", "127.0.0.9")
    monkeypatch.setattr(sys, "path", [])
    assert supervisor.ray_command("head", [])[:2] == ["ray", "start"]


@pytest.mark.parametrize(
    ("arguments", "value"),
    [
        (["--temp-dir=/a"], "/a"),
        (["--temp-dir", "/a"], "/a"),
        (["--temp-dir"], "/d"),
        (["--temp-dirs=/a"], "/d"),
        ([], "/d"),
    ],
)
def test_an_option_is_found_however_it_is_written(arguments: list[str], value: str) -> None:
    assert supervisor.option(arguments, "--temp-dir", "/d") == value


@pytest.mark.parametrize(
    ("role", "env", "text"),
    [("boss", {}, b"usage"), ("worker", {"RAY_SIM_HEAD_ADDRESS": ""}, b"RAY_SIM_HEAD_ADDRESS")],
)
def test_wrong_usage_is_refused(role: str, env: dict[str, str], text: bytes) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulator.innode.supervisor", role],
        capture_output=True,
        cwd=PACKAGE_ROOT,
        env={**os.environ, **env},
        check=False,
    )
    assert done.returncode == supervisor.USAGE
    assert text in done.stdout + done.stderr
