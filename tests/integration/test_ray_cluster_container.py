"""The cluster on a real engine: what testcontainers' own parts make of it."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
import requests
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID
from testcontainers.core.wait_strategies import (
    CompositeWaitStrategy,
    ExecWaitStrategy,
    HttpWaitStrategy,
    LogMessageWaitStrategy,
    PortWaitStrategy,
)

from simulator.backends.base import LABEL_CLUSTER
from simulator.errors import CannotRun
from simulator.testcontainers import NodesAliveWaitStrategy, RayClusterContainer, cleanup


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout.strip()


def test_stock_wait_strategies_look_at_the_head(ray: RayClusterContainer) -> None:
    CompositeWaitStrategy(
        NodesAliveWaitStrategy(),
        LogMessageWaitStrategy("."),
        PortWaitStrategy(8265),
        HttpWaitStrategy(8265, "/api/gcs_healthz"),
        HttpWaitStrategy(8265, "/api/version").with_header(*next(iter(ray.auth_headers().items()))),
        ExecWaitStrategy(["test", "-e", "/tmp/ray-sim/ready"]),
    ).with_startup_timeout(30).wait_until_ready(ray)
    assert ray.status == "running"


def test_a_strategy_that_does_not_come_true_says_so(ray: RayClusterContainer) -> None:
    never = LogMessageWaitStrategy("this is never said").with_startup_timeout(1)
    with pytest.raises(TimeoutError, match="this is never said"):
        never.with_poll_interval(0.1).wait_until_ready(ray)


def test_ray_answers_to_the_token_and_to_nobody_else(ray: RayClusterContainer) -> None:
    url = f"{ray.get_dashboard_url()}/api/version"
    with requests.Session() as session:
        session.trust_env = False
        assert session.get(url, timeout=10).status_code == 401
        answer = session.get(url, headers=ray.auth_headers(), timeout=10)
        assert answer.json()["ray_version"]


def test_reapers_and_later_sessions_find_all_that_it_is_made_of(ray: RayClusterContainer) -> None:
    program = ray.cluster.backend.run_program(ray.name, "beside", ["platform"], {})
    for kind in (["ps", "--all"], ["network", "ls"], ["volume", "ls"]):
        ours = docker(*kind, "-q", "--filter", f"label={LABEL_CLUSTER}={ray.name}").split()
        assert ours
        for thing in json.loads(docker("inspect", *ours)):
            found = thing.get("Labels") or thing["Config"]["Labels"]
            assert found[LABEL_SESSION_ID] == SESSION_ID
            assert not cleanup.is_dead(Path(found[cleanup.LABEL_OWNER]))
    program.remove()


def test_a_job_that_fails_shows_its_last_lines(ray: RayClusterContainer, tmp_path: Path) -> None:
    program = tmp_path / "wrong.py"
    program.write_text("raise SystemExit('no such data')\n")
    with pytest.raises(CannotRun, match=r"ended as FAILED(.|\n)*no such data"):
        ray.submit(program).wait(timeout=60)


def test_a_nodes_command_and_output_can_be_read(ray: RayClusterContainer) -> None:
    assert ray.exec("python -c 'print(6 * 7)'", node="worker-2") == (0, b"42\n")
    assert ray.exec(["false"]).exit_code == 1
    assert b"".join(ray.get_logs("worker-2"))
