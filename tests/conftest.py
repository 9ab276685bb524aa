"""What all tests share: where real ones can run, their order, and that nothing is left behind."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import psutil
import pytest
from cli import Command, runner_of, use_backends
from fakes import Lab, fake
from hypothesis import HealthCheck, settings

from simulator.backends.base import LABEL_CLUSTER, ClusterSpec
from simulator.backends.docker import DockerBackend, engine_answers
from simulator.backends.fake import FakeBackend
from simulator.backends.nvidia import look_at_driver, visible_here
from simulator.backends.process.table import MARKER
from simulator.checkers.base import RunView

# Timing never decides a test; a machine that starts sixteen nodes meanwhile is slow.
settings.register_profile("ours", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("ours")

REQUIRE = os.environ.get("SIMULATOR_REQUIRE_DOCKER") == "1"

#: Clusters that this session made on a Docker engine, by name.
MADE: set[str] = set()

_STATE = Path(tempfile.mkdtemp(prefix="ray-sim-test-"))
_LEFT: list[str] = []


def pytest_configure() -> None:
    """Give the session its own runs and process nodes, and note what it makes in Docker."""
    # A background job of a shell ignores Ctrl-C, and so would every command that is tried here.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.environ["RAY_SIM_STATE_DIR"] = str(_STATE / "nodes")
    os.environ["RAY_SIM_RUNS"] = str(_STATE / "runs")
    os.environ.pop("RAY_SIM_DEBUG", None)
    os.environ.pop("COLUMNS", None)  # of whoever's window this is
    create = DockerBackend.create

    def noted(self: DockerBackend, spec: ClusterSpec) -> None:
        MADE.add(spec.name)
        create(self, spec)

    DockerBackend.create = noted  # type: ignore[method-assign]


# ---- where real ones can run


def _no_process() -> str | None:
    if sys.platform != "linux":
        return "process nodes need Linux"
    try:
        version("ray")
    except PackageNotFoundError:
        return "no Ray is installed here: pip install -e '.[local]'"
    return None


def _no_docker() -> str | None:
    silent = engine_answers(timeout=5.0)
    return f"no Docker engine answers: {silent}" if silent else None


def _no_gpu() -> str | None:
    driver = look_at_driver()
    if driver.devices and not visible_here(driver):
        return "CUDA_VISIBLE_DEVICES hides this machine's GPUs"
    return None if driver.devices else driver.error or "this machine has no NVIDIA GPU"


RINGS: tuple[tuple[str, Callable[[], str | None]], ...] = (
    ("real_process", _no_process),
    ("real_docker", _no_docker),
)
#: Last, and not required where the others are: few machines have one.
GPU_RING = ("real_gpu", _no_gpu)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--acceptance", action="store_true", help="also the long ones that `make acceptance` runs"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Pure tests first, then those on the fake backend, then real processes, then real Docker."""
    if not config.getoption("--acceptance"):
        long = [item for item in items if item.get_closest_marker("acceptance")]
        items[:] = [item for item in items if item not in long]
        config.hook.pytest_deselected(items=long)
    items.sort(key=_ring)
    for marker, why_not in (*RINGS, GPU_RING):
        marked = [item for item in items if item.get_closest_marker(marker)]
        required = REQUIRE and (marker, why_not) in RINGS
        reason = why_not() if marked and not required else None
        if reason:
            for item in marked:
                item.add_marker(pytest.mark.skip(reason=reason))


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Where real tests are required, the reason why they cannot run is a failure."""
    if REQUIRE:
        for marker, why_not in RINGS:
            if item.get_closest_marker(marker) and (reason := why_not()):
                pytest.fail(reason)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    """Where real tests are required, one that skips itself, or whose fixture does, has failed."""
    report = (yield).get_result()
    if REQUIRE and report.skipped and any(item.get_closest_marker(m) for m, _ in RINGS):
        report.outcome = "failed"
        report.longrepr = f"skipped where it must not be: {report.longrepr}"


def _ring(item: pytest.Item) -> int:
    for ring, (marker, _) in enumerate((*RINGS, GPU_RING), 2):
        if item.get_closest_marker(marker):
            return ring
    values = vars(getattr(item, "module", object)).values()
    homes = {str(getattr(value, "__module__", "")) for value in values}
    return int(any(home == "fakes" or "backends.fake" in home for home in homes))


# ---- what is left behind


@pytest.hookimpl(tryfirst=True)  # before pytest-xdist sends on what a worker has to say
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session if a process, container, network or volume of its own is left."""
    _LEFT.extend([*_processes_left(), *_containers_left()])
    shutil.rmtree(_STATE, ignore_errors=True)
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["left"] = _LEFT
    if _LEFT and session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Of the workers that share the tests, each sees only what it made itself."""
    _LEFT.extend(getattr(node, "workeroutput", {}).get("left", ()))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    if _LEFT:
        terminalreporter.section("left behind, and removed now", red=True, bold=True)
        for line in _LEFT:
            terminalreporter.write_line(line)


def _processes_left() -> Iterator[str]:
    """Processes that carry the marker of a node below this session's state folder."""
    for process in psutil.process_iter():
        try:
            home = process.environ().get(MARKER, "")
            if home.startswith(str(_STATE)):
                yield f"process {process.pid} of {home}: {' '.join(process.cmdline())[:100]}"
                process.kill()
        except psutil.Error:
            continue


def _containers_left() -> Iterator[str]:
    """Whatever an engine has of clusters that this session made."""
    if not MADE:
        return
    kinds = {"container": ["ps", "--all"], "network": ["network", "ls"], "volume": ["volume", "ls"]}
    left: set[str] = set()
    for name in sorted(MADE):
        for kind, command in kinds.items():
            label = f"label={LABEL_CLUSTER}={name}"
            for one in _docker(*command, "--filter", label, "--quiet").split():
                left.add(name)
                yield f"{kind} {one} of cluster {name}"
    for name in left:
        DockerBackend().remove(name)


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    return done.stdout


# ---- for any test


@pytest.fixture
def made_cluster() -> str:
    """A name for a cluster that a command makes in a process of its own; looked for at the end."""
    name = f"test-{os.getpid()}-{secrets.token_hex(2)}"
    MADE.add(name)
    return name


# ---- shared by the tests of the command line and of runs, on the fake backend


@pytest.fixture
def backend() -> FakeBackend:
    return fake()


@pytest.fixture
def command(
    backend: FakeBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    """Runs one command line in an empty folder; it sees this backend and no other."""
    monkeypatch.setenv("RAY_SIM_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    use_backends(monkeypatch, backend)
    return runner_of(capsys)


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    """Its runs write a page that costs nothing."""

    def page(path: Path, view: RunView) -> Path:
        (path / "report.html").write_text("a report", encoding="utf-8")
        return path / "report.html"

    monkeypatch.setattr("simulator.runner.judging.write_html", page)
    (tmp_path / "runs").mkdir()
    return Lab(tmp_path / "runs")
