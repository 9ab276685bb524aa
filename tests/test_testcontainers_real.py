"""A test run that is killed in its middle leaves nothing that cannot be found and removed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from simulator.backends.docker import DockerBackend
from simulator.testcontainers import cleanup
from simulator.waiting import wait_until

pytestmark = pytest.mark.real_docker

#: A user's test that is not over soon; it says so when its cluster is up.
TEST = """
import sys, time
from pathlib import Path
from simulator.testcontainers import RayClusterContainer

def test_something_long():
    with RayClusterContainer(workers=1, name={name!r}) as ray:
        Path({up!r}).touch()
        time.sleep(600)
"""


def labelled(cluster: str) -> list[str]:
    """Ids of every container, network and volume that carries the cluster's label."""
    only = ("--quiet", "--filter", f"label=ray-sim.cluster={cluster}")
    return [
        ident
        for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"])
        for ident in subprocess.run(
            ["docker", *kind, *only], capture_output=True, text=True, check=True
        ).stdout.split()
    ]


def simulator(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "simulator", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_after_kill_9_of_pytest_in_its_middle_down_leaves_nothing(
    made_cluster: str, tmp_path: Path
) -> None:
    up = tmp_path / "up"
    (tmp_path / "test_long.py").write_text(TEST.format(name=made_cluster, up=str(up)))
    run = subprocess.Popen(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_long.py"],
        cwd=tmp_path,
        # Where a reaper can run it would do the work that is to be shown here.
        env={**os.environ, "TESTCONTAINERS_RYUK_DISABLED": "true"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    try:
        wait_until(
            lambda: up.exists() or run.poll() is not None, name="the cluster is up", timeout=240
        )
        assert run.poll() is None, run.communicate()[0]
    finally:
        run.send_signal(signal.SIGKILL)
        run.communicate()

    record = DockerBackend().cluster(made_cluster)
    assert [n.state for n in record.nodes] == ["running", "running"]
    # What the next session of this user's would go by.
    owner = Path(record.labels[cleanup.LABEL_OWNER])
    assert cleanup.is_dead(owner)
    owner.unlink()

    simulator("down", "--name", made_cluster)
    assert labelled(made_cluster) == []
