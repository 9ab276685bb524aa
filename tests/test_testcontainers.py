"""A cluster for somebody's own test: how it starts and that nothing is left, on the fake backend."""

from __future__ import annotations

import fcntl
import logging
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
from fakes import cluster_spec, cluster_up
from testcontainers.core.config import testcontainers_config
from testcontainers.core.exceptions import ContainerStartException, NoSuchPortExposed
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID
from testcontainers.core.wait_strategies import CompositeWaitStrategy, LogMessageWaitStrategy
from testcontainers.core.waiting_utils import WaitStrategy

from simulator import Cluster, FakeBackend, load_topology
from simulator.backends.base import Check, Completed
from simulator.backends.fake.ray import jobs_of
from simulator.compose import LEDGER_TARGET
from simulator.errors import BadInput, CannotRun, NodeStartFailed
from simulator.rayapi import RayUnreachable
from simulator.testcontainers import (
    NodesAliveWaitStrategy,
    RayClusterContainer,
    cleanup,
    container,
)
from simulator.waiting import WaitTimeout


class FakeContainer:
    """What the Docker SDK would say of a node."""

    status = "running"

    def logs(self, *, stdout: bool = True, stderr: bool = True) -> bytes:
        return b"up\n" if stdout else b"a warning\n"

    def reload(self) -> None: ...


class Engine(FakeBackend):
    """The fake backend in the Docker backend's place."""

    def container(self, cluster: str, node: str) -> FakeContainer:
        self._node(cluster, node)
        return FakeContainer()


class Never(WaitStrategy):
    """What it waits for does not come."""

    def __init__(self, error: BaseException) -> None:
        super().__init__()
        self.error = error

    def wait_until_ready(self, container: Any) -> None:
        raise self.error


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Engine]:
    engine = Engine()
    monkeypatch.setattr(container, "DockerBackend", lambda: engine)
    monkeypatch.setattr(cleanup, "owners_folder", lambda: tmp_path / "owners")
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", True)
    cleanup.session.cache_clear()
    cleanup.start_reaper.cache_clear()
    yield engine
    cleanup.session().close()
    cleanup.session.cache_clear()
    cleanup.start_reaper.cache_clear()


def left(engine: Engine) -> list[str]:
    return [c.name for c in engine.clusters()]


# ---- starting and stopping


def test_all_its_nodes_are_alive_inside_and_gone_outside(engine: Engine) -> None:
    with RayClusterContainer(workers=2) as ray:
        assert {n.name: n.state for n in ray.nodes()} == {
            "head": "alive",
            "worker-1": "alive",
            "worker-2": "alive",
        }
        assert left(engine) == [ray.name]
        assert ray.status == "running"
    assert left(engine) == []
    assert ray.status == "not_started"
    ray.stop()  # again does nothing


def test_settings_may_be_said_one_after_the_other(engine: Engine) -> None:
    ray = (
        RayClusterContainer("my/image", env={"A": "1"})
        .with_env("B", "2")
        .with_envs(C="3")
        .with_workers(1)
        .with_name("mine")
    )
    with ray:
        spec = engine.world("mine").spec
        assert spec.image == "my/image"
        assert {k: spec.env[k] for k in "ABC"} == {"A": "1", "B": "2", "C": "3"}
        assert spec.env["RAY_health_check_period_ms"] == "500"
        assert [n.name for n in spec.topology.nodes()] == ["head", "worker-1"]


def test_a_topology_may_be_a_name_a_file_or_a_value(engine: Engine, tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("head: {resources: {CPU: 1}}\n")
    for topology in ("cpu_only", file, load_topology("wide")):
        ray = RayClusterContainer(topology=topology)
        assert ray.topology.name in ("cpu_only", "mine", "wide")


def test_two_clusters_without_a_name_stand_side_by_side(engine: Engine) -> None:
    with RayClusterContainer(workers=1) as one, RayClusterContainer(workers=1) as two:
        assert left(engine) == sorted([one.name, two.name])


def test_one_may_be_started_again_but_not_twice(engine: Engine) -> None:
    ray = RayClusterContainer(workers=0).start()
    with pytest.raises(BadInput, match="started already"):
        ray.start()
    ray.stop()
    with ray:
        assert len(left(engine)) == 1


def test_every_wrong_setting_is_told_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        RayClusterContainer(health="slow", name="No Name", topology="defualt")
    text = str(caught.value)
    assert "use ray or fast" in text
    assert "'No Name': is no name for a cluster" in text
    assert "did you mean default?" in text
    with pytest.raises(BadInput, match="no name for a cluster"):
        RayClusterContainer().with_name("-")


def test_without_an_engine_it_says_so_and_why(engine: Engine) -> None:
    assert RayClusterContainer.why_unavailable() is None
    engine.checks = [Check("problem", "engine", "no Docker engine answers", "Start it")]
    assert RayClusterContainer.why_unavailable() == "engine: no Docker engine answers; Start it"
    with pytest.raises(CannotRun, match=r"on this machine: engine: no Docker engine answers"):
        RayClusterContainer().start()


def test_before_a_start_there_is_nothing_to_ask(engine: Engine) -> None:
    with pytest.raises(ContainerStartException):
        RayClusterContainer().nodes()


# ---- what is undone


def test_of_a_start_in_which_a_node_does_not_join_nothing_is_left(engine: Engine) -> None:
    engine.start_fails("worker-1", times=3, lines=("no more memory",))
    with pytest.raises(NodeStartFailed, match="no more memory") as caught:
        RayClusterContainer(workers=2).start()
    assert caught.value.missing == ("worker-1",)
    assert left(engine) == []


@pytest.mark.parametrize("error", [TimeoutError("late"), RuntimeError("no"), KeyboardInterrupt()])
def test_of_a_start_that_is_not_waited_to_its_end_nothing_is_left(
    engine: Engine, caplog: pytest.LogCaptureFixture, error: BaseException
) -> None:
    with pytest.raises(type(error)) as caught:
        RayClusterContainer(workers=1).waiting_for(Never(error)).start()
    assert caught.value is error
    assert left(engine) == []
    notes = "\n".join([*getattr(error, "__notes__", ()), *caplog.messages])
    assert "last lines of head (running):" in notes


def test_an_error_that_keeps_it_from_being_removed_does_not_hide_the_first(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fail_next("remove", CannotRun("the engine is gone"))
    error = TimeoutError("late")
    with pytest.raises(TimeoutError, match="late"):
        RayClusterContainer(workers=0).waiting_for(Never(error)).start()
    notes = "\n".join([*getattr(error, "__notes__", ()), *caplog.messages])
    assert "could not be removed: the engine is gone" in notes
    assert len(left(engine)) == 1
    cleanup.session().close()  # as at the end of the interpreter
    assert left(engine) == []


def test_a_cluster_of_somebody_else_is_neither_borrowed_nor_removed(engine: Engine) -> None:
    cluster_up(engine, "theirs", workers=1)
    with pytest.raises(BadInput, match="name theirs: is in use"):
        RayClusterContainer(name="theirs", workers=1).start()
    assert left(engine) == ["theirs"]


def test_a_cluster_that_somebody_made_anew_under_the_same_name_stays(engine: Engine) -> None:
    ray = RayClusterContainer(name="shared", workers=0).start()
    engine.remove("shared")
    Cluster(engine, "shared").up(cluster_spec("shared", 1, labels={cleanup.LABEL_OWNER: "/x"}))
    ray.stop()
    assert left(engine) == ["shared"]


def test_one_that_somebody_made_by_hand_under_the_same_name_stays(engine: Engine) -> None:
    ray = RayClusterContainer(name="shared", workers=0).start()
    engine.remove("shared")
    cluster_up(engine, "shared", workers=1)  # such a cluster names no owner
    ray.stop()
    assert left(engine) == ["shared"]


def test_one_that_cannot_be_removed_does_not_hide_why_the_test_failed(
    engine: Engine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fail_next("remove", CannotRun("the engine is gone"), times=2)
    with pytest.raises(AssertionError, match="the test's own"), RayClusterContainer(workers=0):
        raise AssertionError("the test's own")
    assert "could not be removed" in caplog.text
    assert "the engine is gone" in caplog.text
    with pytest.raises(CannotRun, match="the engine is gone"), RayClusterContainer(workers=0):
        pass
    assert len(left(engine)) == 2
    cleanup.session().close()  # as at the end of the interpreter
    assert left(engine) == []


def test_what_nobody_stopped_is_removed_at_the_end(engine: Engine) -> None:
    RayClusterContainer(workers=0).start()
    RayClusterContainer(workers=0).start()
    cleanup.session().close()
    assert left(engine) == []


# ---- owners that died


def owner_that_is_killed(folder: Path) -> Path:
    """The file of an owner whose process was ended with SIGKILL."""
    code = (
        "import os, signal; from pathlib import Path\n"
        "from simulator.testcontainers import cleanup\n"
        f"print(cleanup.Owner(Path({str(folder)!r})).path, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    return Path(done.stdout.strip())


def test_clusters_of_a_killed_session_are_removed_by_the_next(
    engine: Engine, tmp_path: Path
) -> None:
    dead = owner_that_is_killed(tmp_path / "owners")
    living = cleanup.Owner(tmp_path / "owners")
    owners = {
        "dead-1": str(dead),
        "dead-2": str(dead),
        "living": str(living.path),
        "elsewhere": str(tmp_path / "owners" / "of-another-machine.lock"),
        "foreign": str(owner_that_is_killed(tmp_path / "other-folder")),
    }
    for name, owner in owners.items():
        spec = cluster_spec(name, 0, labels={cleanup.LABEL_OWNER: owner})
        Cluster(engine, name).up(spec)
    cluster_up(engine, "by-hand", workers=0)

    taken_down_by_hand = owner_that_is_killed(tmp_path / "owners")

    with RayClusterContainer(workers=0) as ray:
        assert left(engine) == sorted(["living", "elsewhere", "foreign", "by-hand", ray.name])
    assert not dead.exists()
    assert not taken_down_by_hand.exists()
    assert living.path.exists()
    living.release()


def test_what_an_owner_left_that_was_killed_while_it_began_is_removed(
    engine: Engine, tmp_path: Path
) -> None:
    folder = tmp_path / "owners"
    code = (
        "import fcntl, os, signal; from pathlib import Path\n"
        "from simulator.testcontainers import cleanup\n"
        "real, calls = fcntl.flock, []\n"
        "def flock(file, how):\n"
        "    calls.append(how)\n"
        "    if len(calls) == 2: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    real(file, how)\n"
        "fcntl.flock = flock\n"
        f"cleanup.Owner(Path({str(folder)!r}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -9, done.stderr
    before = {p.name for p in folder.iterdir()}
    assert len(before) == 2
    living = cleanup.Owner(folder)
    assert cleanup.remove_orphans(engine) == []
    assert {p.name for p in folder.iterdir()} == {"guard", living.path.name}
    living.release()


def test_an_owner_that_begins_is_not_taken_for_dead(
    engine: Engine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another session looks between the making of its file and the lock of it: it waits."""
    asked: list[bool] = []
    looking: list[threading.Thread] = []
    real = fcntl.flock

    def flock(file: Any, how: int) -> None:
        if how & fcntl.LOCK_NB and not looking:
            path = Path(file.name)
            looking.append(threading.Thread(target=lambda: asked.append(cleanup.is_dead(path))))
            looking[0].start()
            looking[0].join(0.2)  # long enough for a look that does not wait
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", flock)
    owner = cleanup.Owner(tmp_path / "owners")
    looking[0].join()
    assert asked == [False]
    owner.release()


def test_an_owner_that_lives_is_not_taken_for_dead(engine: Engine, tmp_path: Path) -> None:
    owner = cleanup.Owner(tmp_path / "owners")
    assert not cleanup.is_dead(owner.path)
    owner.release()
    assert not cleanup.is_dead(owner.path)  # its file is gone: it removed all it had


# ---- the reaper


class Reapers:
    """Counts how often a reaper is asked for."""

    def __init__(self, error: Exception | None = None) -> None:
        self.error, self.asked = error, 0

    def get_instance(self) -> None:
        self.asked += 1
        if self.error:
            raise self.error

    def delete_instance(self) -> None: ...


def test_the_reaper_finds_its_clusters_by_their_label(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", False)
    reapers = Reapers()
    monkeypatch.setattr(cleanup, "Reaper", reapers)
    for _ in range(2):
        with RayClusterContainer(workers=0) as ray:
            assert ray.cluster.record().labels[LABEL_SESSION_ID] == SESSION_ID
    assert reapers.asked == 1


def test_where_the_reaper_cannot_be_pulled_that_is_said_once_and_it_goes_on(
    engine: Engine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(testcontainers_config, "ryuk_disabled", False)
    monkeypatch.setattr(cleanup, "Reaper", Reapers(OSError("no such registry")))
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            with RayClusterContainer(workers=0):
                pass
    (said,) = [r.getMessage() for r in caplog.records if "reaper" in r.getMessage()]
    assert "no such registry" in said
    assert "down --all" in said


def test_a_reaper_that_is_switched_off_is_not_asked_for(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    reapers = Reapers()
    monkeypatch.setattr(cleanup, "Reaper", reapers)
    with RayClusterContainer(workers=0):
        pass
    assert reapers.asked == 0


# ---- waiting


def test_strategies_of_testcontainers_look_at_the_head(engine: Engine) -> None:
    strategy = CompositeWaitStrategy(LogMessageWaitStrategy("up"), NodesAliveWaitStrategy())
    with RayClusterContainer(workers=1).waiting_for(strategy) as ray:
        assert ray.get_logs() == (b"up\n", b"a warning\n")
        assert ray.get_container_host_ip() == "127.0.0.1"
        with pytest.raises(NoSuchPortExposed, match="8265"):
            ray.get_exposed_port(6379)


def test_named_nodes_can_be_waited_for_after_a_fault(engine: Engine) -> None:
    with RayClusterContainer(workers=2) as ray:
        ray.kill("worker-1")
        NodesAliveWaitStrategy("head", "worker-2").wait_until_ready(ray)
        with pytest.raises(NodeStartFailed, match="worker-1 is exited"):
            NodesAliveWaitStrategy().with_startup_timeout(2).wait_until_ready(ray)
        ray.restart("worker-1")
        NodesAliveWaitStrategy().wait_until_ready(ray)


def test_a_strategy_for_nodes_wants_a_cluster() -> None:
    with pytest.raises(TypeError, match="no RayClusterContainer"):
        NodesAliveWaitStrategy().wait_until_ready(object())


# ---- the rest


def test_nodes_freeze_and_thaw(engine: Engine) -> None:
    with RayClusterContainer(workers=1) as ray:
        ray.pause("worker-1")
        assert [n.state for n in ray.nodes()] == ["alive", "paused"]
        ray.resume("worker-1")
        assert [n.state for n in ray.nodes()] == ["alive", "alive"]


def test_a_command_may_be_a_string_or_its_words(engine: Engine) -> None:
    engine.answers = {"echo a b": Completed(0, "a b\n")}
    with RayClusterContainer(workers=1) as ray:
        assert ray.exec("echo 'a' b", node="worker-1") == (0, b"a b\n")
        assert ray.exec(["echo", "a", "b"]).exit_code == 0


def test_a_program_that_is_no_file_is_refused(engine: Engine, tmp_path: Path) -> None:
    with (
        RayClusterContainer(workers=0) as ray,
        pytest.raises(BadInput, match="there is no such file"),
    ):
        ray.submit(tmp_path / "none.py")


# ---- jobs


@pytest.fixture
def program(tmp_path: Path) -> Path:
    path = tmp_path / "train.py"
    path.write_text("print('done')\n")
    return path


def test_a_job_gives_what_its_program_printed(engine: Engine, program: Path) -> None:
    with RayClusterContainer(workers=0) as ray:
        engine.job_prints("epoch 1\n", "done\n")
        job = ray.submit(program, "--epochs", "1")
        assert job.wait() == job.wait() == "epoch 1\ndone\n"
        assert job.status() == "SUCCEEDED"
        assert "done\n" in job.logs()
        world = engine.world(ray.name)
        (submitted,) = jobs_of(world).values()
        assert submitted.entrypoint == "python -u train.py --epochs 1"
        assert submitted.runtime_env["env_vars"] == {"RAY_SIM_JOB_FOLDER": job.folder}
        (made,) = world.files
        assert job.folder == f"{LEDGER_TARGET}/{PurePosixPath(made).parent}"


def test_a_job_that_fails_shows_how_and_its_last_words(engine: Engine, program: Path) -> None:
    with RayClusterContainer(workers=0) as ray:
        engine.job_prints("no such data\n", exit_code=3)
        with pytest.raises(CannotRun, match=r"ended as FAILED: .* exit code 3") as caught:
            ray.submit(program).wait()
        assert caught.value.details == ("no such data",)


def test_a_job_that_takes_too_long_goes_on_and_may_be_waited_for_again(
    engine: Engine, program: Path
) -> None:
    with RayClusterContainer(workers=0) as ray:
        engine.job_prints(*["more\n"] * 10)
        job = ray.submit(program)
        with pytest.raises(WaitTimeout, match="within 3 s: it is RUNNING"):
            job.wait(timeout=3)
        assert job.wait() == "more\n" * 10


def test_a_job_of_a_head_that_was_started_anew_is_not_waited_for(
    engine: Engine, program: Path
) -> None:
    with RayClusterContainer(workers=0) as ray:
        engine.job_prints(*["more\n"] * 500)
        job = ray.submit(program)
        ray.restart("head")
        began = ray.cluster.clock.mono()
        with pytest.raises(CannotRun, match=r"knows of no job .*: its head was started anew"):
            job.wait(timeout=300)
        assert ray.cluster.clock.mono() - began < 5


def test_a_silence_of_ray_before_the_end_or_after_it_is_waited_out(
    engine: Engine, program: Path
) -> None:
    silent = RayUnreachable("hush")
    with RayClusterContainer(workers=0) as ray:
        engine.job_prints("done\n")
        job = ray.submit(program)
        engine.fail_next("ray.job", silent, times=100)
        assert job.wait() == "done\n"
        engine.fail_next("ray.read_job_log", silent)
        engine.fail_next("ray.follow_job_log", silent)
        assert job.wait() == "done\n"
        engine.fail_next("ray.job", silent, times=100)
        with pytest.raises(WaitTimeout, match="hush"):
            job.wait(timeout=10)


def test_its_token_is_what_an_http_client_sends(engine: Engine) -> None:
    with RayClusterContainer(workers=0) as ray:
        assert ray.auth_headers() == {"Authorization": f"Bearer {ray.get_token()}"}
        assert ray.get_dashboard_url().startswith("http")


def test_without_the_extra_the_error_says_how_to_install_it() -> None:
    code = "import sys; sys.modules['testcontainers'] = None; import simulator.testcontainers"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "pip install 'ray-cluster-simulator[testcontainers]'" in done.stderr.splitlines()[-1]
