"""The shell's completion: the words that it offers, and that it costs and says nothing."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from cli import runner_of, use_backends
from fakes import cluster_up, fake

from simulator.backends import select
from simulator.backends.fake import FakeBackend
from simulator.cli.options import BACKENDS, HEALTHS
from simulator.cluster import HEALTH
from simulator.errors import CannotRun
from simulator.experiment import known_experiments

ROOT = Path(__file__).resolve().parent.parent

Complete = Callable[[str], list[str]]


@pytest.fixture
def backend() -> FakeBackend:
    backend = fake()
    cluster_up(backend, "lab", 2)
    cluster_up(backend, "other", 1)
    return backend


@pytest.fixture
def complete(
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Complete:
    """What bash is offered for the last word of a line, which may be empty."""
    monkeypatch.setenv("RAY_SIM_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["ray-sim"])
    use_backends(monkeypatch, backend)
    command = runner_of(capsys)

    def offered(line: str) -> list[str]:
        monkeypatch.setenv("_RAY_SIM_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", f"ray-sim {line}")
        monkeypatch.setenv("COMP_CWORD", str(len(line.split(" "))))
        done = command()
        assert (done.code, done.err) == (0, "")
        return done.out.split()

    return offered


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("to", ["topologies"]),
        ("submit --no", ["--no-wait"]),
        ("down --name ", ["lab", "other"]),
        ("status --name o", ["other"]),
        ("kill ", ["head", "worker-1", "worker-2"]),
        ("kill --name other wor", ["worker-1"]),
        ("run node", ["node_failure", "node_loss_replaced"]),
        ("run node_failure --param ta", ["tasks=", "task_seconds="]),
        ("run node_failure --reuse l", ["lab"]),
        ("run node_failure --health ", ["ray", "fast"]),
        ("up --backend d", ["docker"]),
        ("up --topology two", ["two_gpu"]),
        ("topologies h", ["hybrid", "hybrid_spot"]),
        ("schedule ki", ["kill"]),
        ("run node_failure --fault ra", ["random"]),
        ("schedule --topology two", ["two_gpu"]),
        ("image build --target ", ["cpu", "gpu", "lean", "netfault", "redis"]),
        ("check ", []),
        ("run ./", []),
        ("run nothing.py --param ", []),
    ],
)
def test_the_shell_is_offered_what_fits(complete: Complete, line: str, words: list[str]) -> None:
    assert complete(line) == words


def test_files_and_runs_of_the_user_s_are_offered_too(complete: Complete, tmp_path: Path) -> None:
    Path("mine.py").write_text("")
    Path("mine.yaml").write_text("")
    run = tmp_path / "runs" / "node_failure" / "20260101-000000-7"
    run.mkdir(parents=True)
    (run / "spec.json").write_text("{}")
    assert complete("run ") == [*known_experiments(), "mine.py"]
    assert complete("up --topology m") == ["mortal_head", "mine.yaml"]
    assert complete("check ") == [
        "latest", "node_failure/latest", "node_failure/20260101-000000-7",
    ]  # fmt: skip


def test_an_engine_that_fails_or_hangs_is_no_trouble(
    complete: Complete, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.fail_next("clusters", CannotRun("no engine"))
    assert complete("kill ") == []
    backend.fail_next("clusters", RuntimeError("a defect"))
    assert complete("down --name ") == []
    never = threading.Event()
    monkeypatch.setattr("simulator.cli.complete.PATIENCE_S", 0.05)
    monkeypatch.setattr(select, "usable", lambda name: never.wait())
    assert complete("kill ") == []
    never.set()


def test_the_words_that_are_known_beforehand_are_those_of_the_library() -> None:
    assert BACKENDS == select.NAMES
    assert tuple(HEALTH) == HEALTHS


LOADED = """
import os, sys
from simulator.cli import main
sys.argv = ["ray-sim"]
try:
    main()
finally:
    print(*sys.modules, sep="\\n", file=sys.stderr)
"""


@pytest.mark.parametrize("line", ["", "up --topology ", "run ", "up --backend ", "check "])
def test_what_is_known_beforehand_loads_nothing_heavy(line: str) -> None:
    env = {**os.environ, "_RAY_SIM_COMPLETE": "complete_bash", "COMP_WORDS": f"ray-sim {line}",
           "COMP_CWORD": str(len(line.split(" ")))}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", LOADED],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    loaded = set(done.stderr.split())
    assert "simulator.cli.complete" in loaded
    assert done.stdout.strip() or line == "check "
    heavy = {"docker", "ray", "requests", "yaml", "pathspec", "simulator.backends"}
    assert loaded & heavy == set()  # Typer itself may load pydantic
    assert "simulator.topology" not in loaded


@pytest.mark.skipif(shutil.which("bash") is None, reason="there is no bash")
def test_bash_itself_completes_a_line(tmp_path: Path) -> None:
    program = tmp_path / "ray-sim"
    program.write_text(
        f"#!{sys.executable}\nimport sys\nfrom simulator.cli import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    script = """
eval "$(_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION=1 ray-sim --show-completion bash)"
complete -p ray-sim
COMP_WORDS=(ray-sim up --topology two); COMP_CWORD=3
_ray_sim_completion ray-sim
printf '<%s>' "${COMPREPLY[@]}"
"""
    path = os.pathsep.join([str(tmp_path), os.environ["PATH"]])
    done = subprocess.run(
        ["bash", "--norc", "-c", script],
        env={**os.environ, "PATH": path, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == "<two_gpu>"
    assert "_ray_sim_completion ray-sim" in done.stdout
    assert done.stderr == ""


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_script_is_that_of_the_program_however_it_was_called(shell: str) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulator", "--show-completion", shell],
        cwd=ROOT,
        env={**os.environ, "_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert f"_RAY_SIM_COMPLETE=complete_{shell}" in done.stdout
    assert "python" not in done.stdout
