"""The command line on real Ray: a cluster by hand, an orchestrator that is killed, Ctrl-C."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from simulator.backends.select import choose
from simulator.cluster import Cluster
from simulator.history import read_history
from simulator.report import load_run
from simulator.waiting import wait_until

BACKENDS = [
    pytest.param("process", marks=pytest.mark.real_process),
    pytest.param("docker", marks=pytest.mark.real_docker),
]


@dataclass(frozen=True)
class Followed:
    """What a command prints, one JSON object a line, while it goes on."""

    process: subprocess.Popen[str]

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """The next one that is wanted."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            event: dict[str, Any] = json.loads(line)
            if wanted(event):
                return event
        raise AssertionError(f"it ended with {self.process.wait()}")


@dataclass(frozen=True)
class Shell:
    """Command lines about one cluster, each a process of its own as a person's are."""

    backend: str
    cluster: str
    runs: Path

    def words(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "simulator", *arguments]

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "RAY_SIM_RUNS": str(self.runs)}

    def __call__(self, verb: str, *arguments: str, code: int = 0) -> str:
        """Run one about this cluster; returns what it printed on standard output."""
        done = subprocess.run(
            self.words(verb, "--name", self.cluster, *arguments),
            env=self.env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout

    def status(self) -> dict[str, str]:
        nodes = json.loads(self("status", "--json"))["nodes"]
        return {node["name"]: node["state"] for node in nodes}

    @property
    def exists(self) -> bool:
        return any(c.name == self.cluster for c in choose(self.backend).backend.clusters())

    @contextmanager
    def following(self, verb: str, *arguments: str) -> Iterator[Followed]:
        """One that goes on until Ctrl-C, which it then gets."""
        process = subprocess.Popen(
            self.words(verb, "--name", self.cluster, *arguments),
            env=self.env,
            stdout=subprocess.PIPE,
            text=True,
        )
        try:
            yield Followed(process)
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=60)
            assert process.returncode == 0
        finally:
            process.kill()
            process.communicate()

    def attached(self, node: str, line: str, *, code: int) -> str:
        """What is on a terminal on which one line was typed after the first prompt."""
        pid, terminal = pty.fork()
        if pid == 0:
            os.execv(sys.executable, self.words("attach", node, "--name", self.cluster))
        shown = b""
        with suppress(OSError):  # so says a terminal whose last program has ended
            while data := os.read(terminal, 4096):
                shown += data
                if f"({node}) ".encode() in shown and line:
                    os.write(terminal, f"{line}\n".encode())
                    line = ""
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code, shown
        return shown.decode()

    @contextmanager
    def running(self, *params: str) -> Iterator[subprocess.Popen[str]]:
        """An experiment with two workers, in a session of its own."""
        words = self.words(
            "run", "node_failure", "--backend", self.backend, "--name", self.cluster,
            "--workers", "2", "--seed", "7", "--json", *params,
        )  # fmt: skip
        process = subprocess.Popen(
            words,
            env=self.env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.communicate()

    def wait_for(self, kind: str, process: subprocess.Popen[str]) -> Path:
        """The directory of the run once its history has an operation of this kind."""

        def found() -> Path | None:
            assert process.poll() is None, process.communicate()
            for path in self.runs.glob("node_failure/*-7/history.jsonl"):
                if read_history(path).first(kind):
                    return path.parent
            return None

        return wait_until(found, name=kind, timeout=180, interval=0.3)


@pytest.fixture(params=BACKENDS)
def shell(request: pytest.FixtureRequest, made_cluster: str, tmp_path: Path) -> Iterator[Shell]:
    shell = Shell(request.param, made_cluster, tmp_path / "runs")
    yield shell
    shell("down")
    assert not shell.exists


def test_a_cluster_by_hand(shell: Shell, tmp_path: Path) -> None:
    up = json.loads(shell("up", "--backend", shell.backend, "--workers", "2", "--json"))
    assert up["count"] == {"desired": 3, "running": 3, "alive": 3}
    assert up["backend"] == shell.backend

    # Before any node dies: Ray tells every driver of a death, half a minute later, in its own words.
    programs_are_submitted(shell, tmp_path / "project")
    one_is_stopped_by_ctrl_c(shell, tmp_path / "project")
    the_dashboard_answers_to_the_token(shell)

    shell("kill", "worker-1")
    assert shell.status() == {"head": "alive", "worker-1": "exited", "worker-2": "alive"}
    shell("restart", "worker-1")
    assert set(shell.status().values()) == {"alive"}

    shell("pause", "worker-2")
    assert shell.status()["worker-2"] == "paused"
    shell("resume", "worker-2")
    assert shell.status()["worker-2"] == "alive"

    program = "import ray; ray.init('auto', log_to_driver=False); print(len(ray.nodes()) > 2)"
    assert "True" in shell("exec", "head", "--", "python", "-c", program)
    shell("exec", "worker-1", "--", "sh", "-c", "exit 7", code=7)
    assert "supervisor: ready" in shell("logs", "worker-1")
    assert len(shell("logs", "head", "--tail", "2").splitlines()) == 2
    shell("down")
    assert not shell.exists


PROGRAM = """
import os, sys, tool, ray
ray.init(logging_level="ERROR", log_to_driver=False)
print(tool.NAME, os.environ["FLAVOUR"], *sys.argv[1:])
print(ray.get(ray.remote(lambda: __import__("tool").NAME + " on a node").remote()))
for number in range(2000):
    print(number)
sys.stdout.flush()
sys.stdout.buffer.write(b"50%\\r100%\\n\\xff no newline at the end")
sys.exit(7)
"""


def programs_are_submitted(shell: Shell, project: Path) -> None:
    """A program with what it imports and its environment: its words, all and in order, and its exit code."""
    (project / "src").mkdir(parents=True)
    (project / "src" / "main.py").write_text(PROGRAM)
    (project / "tool.py").write_text("NAME = 'tool'\n")
    env = json.dumps({"env_vars": {"FLAVOUR": "sweet"}})
    words = shell.words(
        "submit", "--name", shell.cluster, "--working-dir", str(project), "--runtime-env", env,
        "src/main.py", "--twice", "a b",
    )  # fmt: skip
    first, again = (subprocess.run(words, env=shell.env, capture_output=True) for _ in range(2))
    for done in (first, again):
        assert done.returncode == 7, done.stderr
        assert done.stdout == (
            b"tool sweet --twice a b\ntool on a node\n"
            + b"".join(b"%d\n" % number for number in range(2000))
            + b"50%\r100%\n\xff no newline at the end"
        )
    assert b"uploading 2 files" in first.stderr
    assert b"uploading" not in again.stderr

    failing = json.loads(shell("submit", "--json", str(project / "tool.py")))
    assert (failing["status"], failing["exit_code"]) == ("SUCCEEDED", 0)
    job_id = shell("submit", "--no-wait", str(project / "src" / "main.py")).strip()
    cluster = Cluster(choose(shell.backend).backend, shell.cluster)
    assert wait_until(lambda: cluster.ray.job(job_id).over, name="its end", timeout=180)
    assert cluster.ray.job(job_id).exit_code == 1  # it was shipped without what it imports
    assert "No module named 'tool'" in shell("exec", "head", "--", "ray", "job", "logs", job_id)


def one_is_stopped_by_ctrl_c(shell: Shell, project: Path) -> None:
    (project / "long.py").write_text("import time\nprint('begun')\ntime.sleep(600)\n")
    with subprocess.Popen(
        shell.words("submit", "--name", shell.cluster, str(project / "long.py")),
        env=shell.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=180)
    assert process.returncode == 4
    assert "asking Ray to stop the job" in err
    assert "was stopped" in err


def the_dashboard_answers_to_the_token(shell: Shell) -> None:
    url, token = shell("dashboard").strip(), shell("dashboard", "--token").strip()
    plain = requests.get(f"{url}/api/version", timeout=10)
    assert plain.status_code == 401
    headers = {"Authorization": f"Bearer {token}"}
    asked = requests.get(f"{url}/api/version", headers=headers, timeout=10)
    assert asked.json()["ray_version"]


HOLD = """
import ray
ray.init("auto", log_to_driver=False)
@ray.remote(num_cpus=1)
class Holder:
    def ready(self):
        return True
made = [Holder.options(name=f"h-{i}", lifetime="detached").remote() for i in range(3)]
print(ray.get([holder.ready.remote() for holder in made]))
"""


@pytest.mark.parametrize(
    "shell",
    [
        pytest.param("process", marks=[pytest.mark.real_process, pytest.mark.acceptance]),
        BACKENDS[1],
    ],
    indirect=True,
)
def test_a_cluster_is_scaled_followed_stopped_and_started_again(
    shell: Shell, tmp_path: Path
) -> None:
    shell("up", "--backend", shell.backend, "--workers", "1")
    added = json.loads(shell("scale", "worker=2", "--json"))
    assert (added["added"], added["removed"]) == (["worker-2"], [])

    # One actor for each CPU: head, worker-1, worker-2.
    (tmp_path / "hold.py").write_text(HOLD)
    shell("cp", str(tmp_path / "hold.py"), "head:.")
    assert "True" in shell("exec", "head", "--", "python", "hold.py")
    shell("cp", "head:hold.py", str(tmp_path / "back.py"))
    assert (tmp_path / "back.py").read_text() == HOLD

    with shell.following("monitor", "--json") as seen:
        seen.until(lambda e: e["kind"] == "ray.actor" and e["node"] == "worker-2")
        (removed,) = json.loads(shell("scale", "worker=1", "--json"))["removed"]
        assert removed["node"] == "worker-2"
        (actor,) = removed["running"]["actors"]
        assert actor.startswith("Holder h-")
        dead = seen.until(lambda e: e["kind"] == "ray.node" and e["data"]["state"] == "DEAD")
        assert (dead["node"], dead["present"]) == ("worker-2", False)
        again = json.loads(shell("scale", "worker=2", "--json"))
        assert again["added"] == ["worker-2"]
        seen.until(lambda e: e["kind"] == "engine.start" and e["node"] == "worker-2")
        remembered = json.loads(shell("nodes", "--json"))["nodes"]
        assert [n["state"] for n in remembered] == ["ALIVE", "ALIVE", "ALIVE", "DEAD"]
        assert "SIGTERM" in remembered[3]["message"]

        head = json.loads(shell("status", "--json"))["nodes"][0]["address"]
        shell("stop")
        seen.until(lambda e: e["kind"] == "engine.die" and e["node"] == "head")
    assert set(shell.status().values()) == {"exited"}
    shell("start")
    status = json.loads(shell("status", "--json"))
    assert {n["state"] for n in status["nodes"]} == {"alive"}
    assert status["nodes"][0]["address"] == head
    assert "(worker-1) " in shell.attached("worker-1", "exit 7", code=7)


@pytest.mark.parametrize("shell", [BACKENDS[0]], indirect=True)  # on Docker: test_promises_real.py
def test_after_its_orchestrator_was_killed_a_run_keeps_every_start(shell: Shell) -> None:
    with shell.running() as process:
        run = shell.wait_for("fault.effect", process)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert shell.exists
    shell("down")
    assert not shell.exists
    result: dict[str, Any] = json.loads((run / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["verdict"] != "valid"
    written = {
        json.loads(line)["data"]["exec"]
        for path in (run / "ledger").glob("*.jsonl")
        for line in path.read_text().splitlines()
        if '"task.start"' in line
    }
    assert written
    assert {op.data["exec"] for op in load_run(run).history.of("task.start")} == written
    reported = subprocess.run(
        shell.words("report", str(run)), env=shell.env, capture_output=True, text=True, check=True
    )
    assert reported.stdout == f"{run / 'report.html'}\n"
    assert "interrupted" in (run / "report.html").read_text()


@pytest.mark.parametrize(
    "sent",
    [
        pytest.param(signal.SIGINT, id="ctrl-c"),
        pytest.param(signal.SIGTERM, id="sigterm", marks=pytest.mark.acceptance),
    ],
)
@pytest.mark.parametrize("shell", [BACKENDS[0]], indirect=True)
def test_one_interrupt_heals_collects_takes_down_and_reports(
    shell: Shell, sent: signal.Signals
) -> None:
    with shell.running("--param", "at=3") as process:
        shell.wait_for("fault.effect", process)
        process.send_signal(sent)
        out, err = process.communicate(timeout=180)
    assert process.returncode == 4
    assert "once more stops at once" in err
    result = json.loads(out)
    assert result["status"] == "interrupted"
    assert not shell.exists
    history = load_run(Path(result["run_dir"])).history
    healed = history.last("fault.healed")
    assert healed is not None
    assert healed.data["verified"]
