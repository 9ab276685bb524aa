"""The tests' own plumbing: a session that leaves something behind fails, and skips say why."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

TESTS = Path(__file__).resolve().parent

LEAKS = """
import os, subprocess, sys
from simulator.backends.process.table import MARKER

def test_it():
    env = {**os.environ, MARKER: os.environ["RAY_SIM_STATE_DIR"] + "/lab/worker-1"}
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(120)"], env=env)
    print("left", child.pid)
    child.returncode = 0  # it is not waited for: that is the point
"""

REAL = """
import pytest

@pytest.mark.real_docker
def test_it():
    pass
"""


def session(folder: Path, text: str, **env: str) -> subprocess.CompletedProcess[str]:
    """A test session of one file, with this folder's conftest.py."""
    path = folder / "test_one.py"
    path.write_text(text)
    inherited = {k: v for k, v in os.environ.items() if k != "SIMULATOR_REQUIRE_DOCKER"}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "conftest", "-p", "no:cacheprovider", "-s",
         "-c", str(TESTS.parent / "pyproject.toml"), str(path)],
        env={**inherited, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)]), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip


@pytest.mark.skipif(sys.platform != "linux", reason="nodes as processes need Linux")
def test_a_session_that_leaves_a_node_s_process_behind_fails_and_ends_it(tmp_path: Path) -> None:
    done = session(tmp_path, LEAKS)
    assert done.returncode == 1, done.stdout
    assert "left behind, and removed now" in done.stdout
    pid = re.search(r"left (\d+)", done.stdout)
    assert pid
    assert f"process {pid[1]} of " in done.stdout
    assert not psutil.pid_exists(int(pid[1])) or (
        psutil.Process(int(pid[1])).status() == psutil.STATUS_ZOMBIE
    )


def test_where_no_engine_answers_a_docker_test_is_skipped_with_the_reason(tmp_path: Path) -> None:
    done = session(tmp_path, REAL, DOCKER_HOST="unix:///nonexistent/docker.sock")
    assert done.returncode == 0, done.stdout
    assert "1 skipped" in done.stdout
    assert "no Docker engine answers: unix:///nonexistent/docker.sock" in done.stdout


def test_where_docker_is_required_the_same_test_fails(tmp_path: Path) -> None:
    done = session(
        tmp_path, REAL, DOCKER_HOST="unix:///nonexistent/docker.sock", SIMULATOR_REQUIRE_DOCKER="1"
    )
    assert done.returncode == 1, done.stdout
    assert "1 error" in done.stdout or "1 failed" in done.stdout
    assert "no Docker engine answers: unix:///nonexistent/docker.sock" in done.stdout
