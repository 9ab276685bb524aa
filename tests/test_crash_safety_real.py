"""The orchestrator is killed with SIGKILL at some moment of a run; then `heal` and `down` leave nothing.

Every kind of trace that a fault leaves in the machine is there at that moment: rules in a node's network, a
limit, a file that fills a disk, a frozen node. What is left is looked for from outside, with the
engine's own client.

All moments are tried by `make acceptance`; CI takes the one in which most is broken.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from simulator.backends.base import LABEL_CLUSTER
from simulator.history import History, read_history
from simulator.store import RunDir

pytestmark = pytest.mark.real_docker

FAULTS = """
from simulator import (After, AtEnd, CpuLimit, DiskFull, Experiment, Named, Partition, Pause, Step, TaskStream)

class Crash(Experiment):
    name = "crash"
    claim = "Whatever ends the orchestrator, everything can be undone."

    def workload(self, params):
        return TaskStream(tasks=60)

    def schedule(self, params, topology):
        return [
            Step(1, CpuLimit(cores=0.5), Named("worker-1"), HEAL),
            Step(1, DiskFull(), Named("worker-1"), HEAL),
            Step(2, Partition(), Named("worker-2"), HEAL),
            Step(3, Pause(), Named("worker-3"), HEAL),
            Step(4, Partition(direction="in"), Named("worker-1"), HEAL, against=Named("worker-2")),
        ]

    def mandatory_phases(self, params):
        return ()
"""


def phase(name: str) -> Callable[[Path, History], bool]:
    return lambda run, history: any(op.data["phase"] == name for op in history.of("run.phase"))


def seen(kind: str, times: int = 1) -> Callable[[Path, History], bool]:
    return lambda run, history: len(history.of(kind)) >= times


#: When to kill, by name: in the order of a run.
MOMENTS: Mapping[str, Callable[[Path, History], bool]] = {
    "create": phase("create"),
    "start": seen("node.asked"),
    "gate": phase("gate"),
    "load": seen("task.start", 5),
    "inject": seen("fault.inject", 3),
    "hold": seen("fault.effect", 5),
    "heal": seen("fault.heal", 2),
    "collect": phase("collect"),
    "down": lambda run, history: (run / "result.json").exists(),
}

CHOSEN = [
    pytest.param(moment, marks=() if moment == "hold" else pytest.mark.acceptance)
    for moment in MOMENTS
]


def simulator(*arguments: str, runs: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "simulator", *arguments],
        env={**os.environ, "RAY_SIM_RUNS": str(runs)},
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )


def docker(*arguments: str) -> str:
    return subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True).stdout


def labelled(cluster: str) -> list[str]:
    """Every container, network and volume that carries the cluster's label."""
    only = ("--quiet", "--filter", f"label={LABEL_CLUSTER}={cluster}")
    found = [docker("ps", "--all", *only), docker("network", "ls", *only)]
    return [line for text in [*found, docker("volume", "ls", *only)] for line in text.split()]


def nodes(cluster: str) -> dict[str, str]:
    """Id of each worker's container, by its number."""
    rows = docker(
        "ps", "--all", "--filter", f"label={LABEL_CLUSTER}={cluster}",
        "--filter", "label=ray-sim.role=worker",
        "--format", '{{.ID}} {{.Label "com.docker.compose.container-number"}}',
    )  # fmt: skip
    return {f"worker-{n}": ident for ident, n in (row.split() for row in rows.splitlines())}


def traces(cluster: str) -> list[str]:
    """What of the faults is left in the machine."""
    found = []
    for name, ident in nodes(cluster).items():
        (state,) = json.loads(docker("inspect", ident))
        if state["State"]["Paused"]:
            found.append(f"{name} is frozen")
            continue  # nothing can be asked in there
        if state["HostConfig"]["NanoCpus"] not in (0, 2_000_000_000):
            found.append(f"{name} has {state['HostConfig']['NanoCpus']} billionths of a core")
        used = docker("exec", ident, "sh", "-c", "df --output=pcent /spill 2>/dev/null || true")
        if "100%" in used:
            found.append(f"the disk of {name} is full")
        for other, peer in nodes(cluster).items():
            if other != name:
                address = next(
                    iter(
                        json.loads(docker("inspect", peer))[0]["NetworkSettings"][
                            "Networks"
                        ].values()
                    )
                )["IPAddress"]
                # Nobody listens there: "refused" comes back where packets pass, and nothing where not.
                probe = (
                    "import socket,sys; s=socket.socket(); s.settimeout(2)\n"
                    f"sys.exit(s.connect_ex(('{address}', 9)) != 111)"
                )
                done = subprocess.run(
                    ["docker", "exec", ident, "python3", "-c", probe], check=False
                )
                if done.returncode:
                    found.append(f"{name} does not reach {other}")
    return found


@pytest.mark.parametrize("moment", CHOSEN)
def test_an_orchestrator_that_is_killed_leaves_nothing(
    moment: str, made_cluster: str, tmp_path: Path
) -> None:
    experiment, runs = tmp_path / "crash.py", tmp_path / "runs"
    # All of them hold until the end, but where it is the healing that is cut short: then they are healed one
    # after the other while work goes on, which would else wait for what a partition keeps from it.
    heal = "After(4)" if moment in ("heal", "collect", "down") else "AtEnd()"
    experiment.write_text(FAULTS.replace("HEAL", heal))
    run = subprocess.Popen(
        [
            *(sys.executable, "-m", "simulator", "run", str(experiment), "--backend", "docker"),
            *("--name", made_cluster, "--set", "worker_groups.worker.spill_size=128m"),
        ],
        env={**os.environ, "RAY_SIM_RUNS": str(runs)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        path = _when(MOMENTS[moment], runs, run)
    finally:
        run.send_signal(signal.SIGKILL)
        run.wait()
    if moment == "hold":
        assert len(traces(made_cluster)) > 3  # what is looked for below is found where it is

    healed = simulator("heal", str(path), runs=runs)
    if moment not in ("create", "start", "down"):
        assert healed.returncode == 0, healed.stdout + healed.stderr
        status = json.loads(simulator("status", "--name", made_cluster, "--json", runs=runs).stdout)
        assert {n["state"] for n in status["nodes"]} == {"alive"}
        assert traces(made_cluster) == []
        again = simulator("heal", made_cluster, runs=runs)
        assert again.returncode == 0, again.stdout + again.stderr

    down = simulator("down", "--name", made_cluster, runs=runs)
    assert down.returncode == 0, down.stdout + down.stderr
    assert labelled(made_cluster) == []

    report = simulator("report", str(path), runs=runs)
    assert report.returncode == 0, report.stdout + report.stderr
    result = RunDir(path).result()
    assert result is not None
    if moment != "down":
        assert (result["status"], result["verdict"]) == ("interrupted", "unknown")


def _when(
    moment: Callable[[Path, History], bool], runs: Path, run: subprocess.Popen[bytes]
) -> Path:
    """The run's directory, once that moment has come."""
    end = time.monotonic() + 300
    while time.monotonic() < end:
        assert run.poll() is None, "the run ended by itself"
        path = next(iter(runs.glob("crash/2*")), None)
        if path is not None and (path / "history.jsonl").exists():
            if moment(path, read_history(path / "history.jsonl")):
                return path
        time.sleep(0.1)
    raise AssertionError("it did not come in time")
