"""What a run's records say its nodes ran on."""

from __future__ import annotations

import platform

import pytest

from simulator.backends.docker import DockerBackend
from simulator.backends.fake import FakeBackend
from simulator.backends.process import ProcessBackend
from simulator.errors import CannotRun


def test_docker_says_the_version_that_the_engine_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DockerBackend, "_info", lambda self: {"ServerVersion": "26.1.5+dfsg1"})
    assert DockerBackend().version() == "Docker 26.1.5+dfsg1"


def test_docker_has_no_version_where_no_engine_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")
    with pytest.raises(CannotRun):
        DockerBackend().version()


@pytest.mark.parametrize("release", ["6.1.0-18-amd64", "6.1"])
def test_processes_run_on_the_kernel_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr(platform, "release", lambda: release)
    assert ProcessBackend().version() == "processes on Linux 6.1"


def test_a_simulated_cluster_says_that_it_is_one() -> None:
    assert FakeBackend().version() == "simulated"
