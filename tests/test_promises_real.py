"""What must hold whatever happens, shown on a real engine through the command line."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.backends.base import LABEL_CLUSTER
from simulator.history import read_history
from simulator.store import RunDir

pytestmark = pytest.mark.real_docker


def simulator(
    *arguments: str, timeout: float = 400, code: int = 0
) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "simulator", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )
    assert done.returncode == code, done.stdout + done.stderr
    return done


def labelled(cluster: str) -> list[str]:
    """Ids of every container, network and volume that carries the cluster's label."""
    found: list[str] = []
    for command in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        done = subprocess.run(
            ["docker", *command, "--quiet", "--filter", f"label={LABEL_CLUSTER}={cluster}"],
            capture_output=True,
            text=True,
            check=True,
        )
        found += done.stdout.split()
    return found


def test_sixteen_workers_come_up_and_go_without_a_trace(made_cluster: str) -> None:
    simulator("up", "--backend", "docker", "--name", made_cluster, "--workers", "16")
    status = json.loads(simulator("status", "--name", made_cluster, "--json").stdout)
    states = {node["name"]: node["state"] for node in status["nodes"]}
    assert states == {"head": "alive", **{f"worker-{i}": "alive" for i in range(1, 17)}}
    simulator("down", "--name", made_cluster)
    assert labelled(made_cluster) == []


def test_a_killed_orchestrator_loses_nothing_and_leaves_nothing(
    made_cluster: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    environment = {**os.environ, "RAY_SIM_RUNS": str(runs)}
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "simulator", "run", "node_failure", "--backend", "docker"),
            *("--name", made_cluster, "--param", "tasks=4000"),
        ],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        path = _once_it_runs(runs, run)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    received = len(read_history(path / "history.jsonl").of("task.start"))
    assert labelled(made_cluster)

    subprocess.run(
        [sys.executable, "-m", "simulator", "down", "--name", made_cluster],
        env=environment,
        check=True,
        capture_output=True,
        timeout=120,
    )
    assert labelled(made_cluster) == []
    written = sum(
        '"kind":"task.start"' in line
        for file in (path / "ledger").rglob("*.jsonl")
        for line in file.read_text().splitlines()
    )
    history = RunDir(path).history()
    # The nodes worked on between the kill and `down`: what they wrote then is there too.
    assert len(history.of("task.start")) == written > received > 0
    result = json.loads((path / "result.json").read_text())
    assert result["status"] == "interrupted"
    assert result["verdict"] == "unknown"
    report = subprocess.run(
        [sys.executable, "-m", "simulator", "report", str(path)],
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "report.html" in report.stdout


def _once_it_runs(runs: Path, run: subprocess.Popen[bytes]) -> Path:
    """The run's directory, once twenty tasks have begun."""
    end = time.monotonic() + 240
    while time.monotonic() < end:
        assert run.poll() is None, "the run ended by itself"
        path = next(iter(runs.glob("node_failure/2*")), None)
        if path is not None and len(read_history(path / "history.jsonl").of("task.start")) >= 20:
            return path
        time.sleep(0.3)
    raise AssertionError("no task began in time")
