"""The process backend without Ray: directories, addresses, marks, and real processes that carry them.

Where a node is started, ``ray start`` is a stand-in (`fake_ray`): supervisor, signals and logs are real.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from fake_ray import LINUX, FakeRay, gone, until

from simulator.backends.base import (
    KILL,
    PAUSE,
    Backend,
    CanKill,
    CanPause,
    ClusterSpec,
    EngineEvent,
    NodeProcess,
    NodeRecord,
)
from simulator.backends.nvidia import Driver
from simulator.backends.process import ProcessBackend
from simulator.backends.process import checks as machine
from simulator.backends.process.backend import _short_tmp
from simulator.backends.process.network import free_network, free_port
from simulator.backends.process.table import MARKER, alive, kill_all, living, look
from simulator.errors import BadInput, CannotRun, NotFound
from simulator.innode.ray_start import NO_DEVICE
from simulator.topology import Topology, load_topology, override

pytestmark = pytest.mark.skipif(not LINUX, reason="processes are read from /proc")


@pytest.fixture
def backend(tmp_path: Path) -> Iterator[ProcessBackend]:
    backend = ProcessBackend(tmp_path / "state")
    yield backend
    for cluster in backend.clusters():
        backend.remove(cluster.name)
    assert living(backend.root, below=True) == []


@pytest.fixture
def ray(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeRay:
    """Nodes that start from here on start a stand-in."""
    ray = FakeRay(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ray.path))
    return ray


def spec(name: str, topology: Topology | None = None, **more: Any) -> ClusterSpec:
    return ClusterSpec(name, topology or load_topology("default"), "simulated", **more)


def node(backend: ProcessBackend, name: str) -> NodeRecord:
    return next(n for n in backend.cluster("one").nodes if n.name == name)


def started(backend: ProcessBackend, *names: str) -> None:
    """Have a cluster "one" with these nodes running."""
    backend.create(spec("one"))
    for name in names:
        backend.start("one", name)
    for name in names:
        until((backend.root / "one" / name / "home" / "ready").exists, f"{name} is ready")


def sleeper(owner: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "600"], env={**os.environ, MARKER: str(owner)})


def pids(owner: Path, *, below: bool = False) -> list[int]:
    return [process.pid for process in living(owner, below=below)]


def state(pid: int) -> str:
    process = look(pid)
    return process.state if process else ""


def test_it_has_the_capabilities_that_it_names(backend: ProcessBackend) -> None:
    typed: Backend = backend
    assert isinstance(typed, CanKill)
    assert isinstance(typed, CanPause)
    assert (KILL.protocol, PAUSE.protocol) == (CanKill, CanPause)


# ---- clusters


def test_a_created_cluster_is_found_by_everybody(backend: ProcessBackend, tmp_path: Path) -> None:
    backend.create(spec("one", run_dir=tmp_path / "run"))
    (record,) = ProcessBackend(backend.root).clusters()
    assert [n.name for n in record.nodes] == ["head", "worker-1", "worker-2", "worker-3"]
    assert {n.state for n in record.nodes} == {"created"}
    assert (record.gpu, record.backend, record.run_dir) == (
        "simulated",
        "process",
        tmp_path / "run",
    )
    backend.remove("one")
    assert backend.clusters() == []


def test_nodes_and_clusters_have_addresses_of_their_own(backend: ProcessBackend) -> None:
    for name in ("one", "two", "three"):
        backend.create(spec(name))
    addresses = [n.address for c in backend.clusters() for n in c.nodes]
    assert len(set(addresses)) == 12
    assert len({a.rpartition(".")[0] for a in addresses}) == 3
    assert all(a.startswith("127.") and not a.startswith("127.0.") for a in addresses)


def test_a_network_in_use_is_not_taken() -> None:
    first = free_network("seed", set())
    assert free_network("seed", set()) == first
    assert free_network("seed", {first}) != first
    with socket.socket() as foreign:
        foreign.bind((f"{first}.77", 0))
        foreign.listen()
        assert free_network("seed", set()) != first


def test_a_port_in_use_is_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as foreign:
        foreign.bind(("127.0.0.1", 0))
        taken = foreign.getsockname()[1]
        ports = range(taken, taken + 1)
        monkeypatch.setattr("simulator.backends.process.network._PORTS", ports)
        with pytest.raises(CannotRun, match="no port is free"):
            free_port("127.77.0.1")


def test_creating_again_changes_nothing(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    before = (backend.root / "one" / "cluster.json").read_text()
    backend.create(spec("one"))
    assert (backend.root / "one" / "cluster.json").read_text() == before


def test_without_a_head_there_is_no_endpoint(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    with pytest.raises(
        CannotRun, match=r"cannot answer: the head is created\. Start it first: start"
    ):
        backend.endpoint("one")


@pytest.mark.parametrize(
    "other",
    [
        spec("one", override(load_topology("default"), ["head.resources.CPU=3"])),
        spec("one", env={"RAY_health_check_period_ms": "1"}),
    ],
)
def test_a_name_with_another_definition_is_refused(
    backend: ProcessBackend, other: ClusterSpec
) -> None:
    backend.create(spec("one"))
    with pytest.raises(BadInput, match="another definition"):
        backend.create(other)


def test_creating_more_makes_what_is_missing_under_addresses_of_its_own(
    backend: ProcessBackend,
) -> None:
    small, default = load_topology("default").with_workers(1), load_topology("default")
    backend.create(spec("one", small))
    head = node(backend, "head")
    backend.create(spec("one", default))
    assert backend.spec("one") == spec("one", default)
    assert node(backend, "head") == head
    addresses = [n.address for n in backend.cluster("one").nodes]
    assert len(set(addresses)) == 4
    with pytest.raises(BadInput, match=r"also has worker-2, worker-3"):
        backend.create(spec("one", small))
    backend.remove_node("one", "worker-2")
    assert not (backend.root / "one" / "worker-2").exists()
    backend.create(spec("one", default))
    assert [n.name for n in backend.cluster("one").nodes] == [
        *("head", "worker-1", "worker-2", "worker-3")
    ]
    assert [n.address for n in backend.cluster("one").nodes] == addresses


def test_a_new_node_inherits_nothing_of_one_whose_removal_was_cut_short(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create(spec("one"))
    home = backend.root / "one" / "worker-3"
    tmp = backend._tmp(backend._facts("one"), "worker-3")
    tmp.mkdir(parents=True)
    for path in (home / "pid1", home / "pid1.log", home / "home" / "exit_code", tmp / "session"):
        path.write_text("7")
    assert node(backend, "worker-3").state == "exited"

    def killed(folder: Path) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("simulator.backends.process.backend._remove_folder", killed)
        with pytest.raises(KeyboardInterrupt):
            backend.remove_node("one", "worker-3")
    assert (home / "pid1.log").exists()
    backend.create(spec("one"))
    assert node(backend, "worker-3").state == "created"
    assert backend.logs("one", "worker-3") == ""
    assert list(home.rglob("*")) == [home / "home"]
    assert not tmp.exists()


def test_a_cluster_of_an_earlier_version_is_told_from_one_that_is_defined_otherwise(
    backend: ProcessBackend,
) -> None:
    backend.create(spec("one"))
    path = backend.root / "one" / "cluster.json"
    facts = json.loads(path.read_text())
    del facts["spec"]
    path.write_text(json.dumps(facts))
    with pytest.raises(CannotRun, match="made by an earlier version"):
        backend.spec("one")


def test_files_are_copied_to_a_node_and_back(backend: ProcessBackend, tmp_path: Path) -> None:
    backend.create(spec("one"))
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "run.sh").write_text("#!/bin/sh")
    (data / "sub" / "run.sh").chmod(0o755)
    (data / "link").symlink_to("sub")
    os.mkfifo(data / "pipe")
    home = backend.root / "one" / "worker-1" / "home"
    assert backend.copy_in("one", "worker-1", str(data), "new") == ["pipe"]
    assert os.access(home / "new" / "sub" / "run.sh", os.X_OK)
    assert (home / "new" / "link").is_symlink()
    backend.copy_out("one", "worker-1", "new/sub/run.sh", str(tmp_path))
    assert (tmp_path / "run.sh").read_text() == "#!/bin/sh"
    backend.copy_out("one", "worker-1", "new/.", str(tmp_path / "back"))
    assert sorted(p.name for p in (tmp_path / "back").iterdir()) == ["link", "sub"]
    with pytest.raises(BadInput, match="does not exist"):
        backend.copy_out("one", "worker-1", "gone", str(tmp_path))
    with pytest.raises(BadInput, match="inside of what is to be copied"):
        backend.copy_in("one", "worker-1", str(data), str(data / "deeper"))
    with pytest.raises(CannotRun, match=r"cannot be copied to .*: .*same file"):
        backend.copy_in("one", "worker-1", str(data / "sub/run.sh"), str(data / "sub"))


def test_a_creation_that_was_cut_short_is_done_again(backend: ProcessBackend) -> None:
    half = backend.root / "one" / "worker-1"
    half.mkdir(parents=True)
    assert backend.clusters() == []
    backend.create(spec("one"))
    assert node(backend, "worker-1").state == "created"


@pytest.mark.parametrize("name", ["", "..", ".", "../state", "a/b", "-x"])
def test_a_name_that_is_a_path_is_refused_and_removes_nothing(
    backend: ProcessBackend, name: str
) -> None:
    backend.create(spec("one"))
    with pytest.raises(BadInput):
        backend.create(spec(name))
    with pytest.raises(NotFound):
        backend.cluster(name)
    backend.remove(name)
    assert backend.cluster("one").name == "one"


@pytest.mark.usefixtures("ray")
def test_the_token_is_for_the_user_alone(backend: ProcessBackend) -> None:
    started(backend, "head")
    path = backend.root / "one" / "token"
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0
    endpoint = backend.endpoint("one")
    assert len(endpoint.token) >= 32
    assert endpoint.token not in repr(endpoint)
    assert endpoint.token not in (backend.root / "one" / "cluster.json").read_text()


@pytest.mark.parametrize(
    "group", ["worker", "a-group-of-just-twenty", "the-longest-name-of-all-32-chars"]
)
def test_sockets_get_a_short_path(tmp_path: Path, group: str) -> None:
    backend = ProcessBackend(tmp_path / ("long" * 30))
    groups = [{"group_name": group, "replicas": 2}]
    backend.create(
        spec("a-name-as-long-as-they-come", Topology.model_validate({"worker_groups": groups}))
    )
    facts = backend._facts("a-name-as-long-as-they-come")
    folders = [backend._tmp(facts, name) for name in facts["nodes"]]
    session = "session_2026-01-01_00-00-00_000000_1234567"
    assert max(len(str(f / session / "sockets" / "plasma_store")) for f in folders) <= 107
    assert len(set(folders)) == 3


def test_a_temporary_folder_of_somebody_else_is_refused(
    backend: ProcessBackend, ray: FakeRay, tmp_path: Path
) -> None:
    backend.create(spec("one"))
    trap = _short_tmp(backend.root / "one")
    trap.symlink_to(tmp_path)
    try:
        with pytest.raises(CannotRun, match="is not ours"):
            backend.start("one", "head")
    finally:
        trap.unlink()


def test_unknown_names_are_told_with_the_nearest(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    with pytest.raises(NotFound, match="did you mean worker-1"):
        backend.kill("one", "worker-11")
    with pytest.raises(NotFound, match="one"):
        backend.cluster("onne")


def test_resources_labels_and_memory_reach_ray_start(backend: ProcessBackend) -> None:
    topology = override(
        load_topology("default"),
        [
            "worker_groups.worker.resources.licence=2",
            "worker_groups.worker.labels.zone=a",
            "worker_groups.worker.memory=2g",
        ],
    )
    backend.create(spec("one", topology))
    arguments = backend._facts("one")["nodes"]["worker-1"]["arguments"]
    assert set(arguments) == {
        "--num-cpus=1",
        "--num-gpus=0",
        '--resources={"licence":2.0}',
        "--labels=zone=a",
        f"--memory={2 * 1024**3}",
    }


def test_the_users_own_ray_settings_do_not_reach_the_nodes(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    monkeypatch.setenv("no_proxy", "intern")
    backend.create(spec("one", env={"RAY_health_check_period_ms": "500"}))
    environment = backend._environment(backend._facts("one"), "worker-1")
    assert "RAY_ADDRESS" not in environment
    assert environment["RAY_AUTH_MODE"] == "token"
    assert environment["RAY_health_check_period_ms"] == "500"
    assert environment["no_proxy"] == "intern,127.0.0.0/8"


def test_the_heads_fixed_metrics_ports_are_moved_out_of_the_way(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    environment = backend._environment(backend._facts("one"), "head")
    ports = {environment["AUTOSCALER_METRIC_PORT"], environment["DASHBOARD_METRIC_PORT"]}
    assert len(ports) == 2
    assert not ports & {"44217", "44227"}


def test_removing_a_cluster_takes_its_orphans_too(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    orphan = sleeper(backend.root / "one" / "worker-2")
    neighbour = sleeper(backend.root / "one-more" / "worker-2")
    try:
        backend.remove("one")
        assert orphan.wait(timeout=5) == -signal.SIGKILL
        assert neighbour.poll() is None
        assert not (backend.root / "one").exists()
        backend.remove("one")
    finally:
        neighbour.kill()
        neighbour.wait()


# ---- marks


def test_only_processes_that_carry_the_mark_are_killed(tmp_path: Path) -> None:
    mine, other = tmp_path / "one" / "worker-1", tmp_path / "one" / "worker-11"
    victim, bystander = sleeper(mine), sleeper(other)
    try:
        assert pids(mine) == [victim.pid]
        assert pids(tmp_path / "one", below=True) == [victim.pid, bystander.pid]
        assert kill_all(mine)
        assert victim.wait(timeout=5) == -signal.SIGKILL
        assert bystander.poll() is None
        assert alive(bystander.pid, other)
        assert not alive(bystander.pid, mine)
    finally:
        bystander.kill()
        bystander.wait()
    assert look(bystander.pid) is None


def test_a_process_that_lost_its_mark_is_known_by_its_parent(tmp_path: Path) -> None:
    owner = tmp_path / "one" / "worker-1"
    script = f"env -u {MARKER} sleep 600 & echo $!; wait"
    parent = subprocess.Popen(
        ["sh", "-c", script], env={**os.environ, MARKER: str(owner)}, stdout=subprocess.PIPE
    )
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    until(lambda: not alive(child, owner), "the loss of the mark")
    assert set(pids(owner)) == {parent.pid, child}
    assert kill_all(owner)
    parent.communicate()
    assert look(child) is None


def test_who_takes_a_cluster_down_from_inside_lives_to_finish_it(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; "
        "from simulator.backends.process.table import kill_all, living; "
        "other = Path(sys.argv[1]); print(len(living(other)), kill_all(other))"
    )
    owner = tmp_path / "one" / "head"
    other = sleeper(owner)
    done = subprocess.run(
        [sys.executable, "-c", program, str(owner)],
        env={**os.environ, MARKER: str(owner)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == ["1", "True"]
    assert other.wait(timeout=5) == -signal.SIGKILL


def test_a_pid_that_was_given_to_somebody_else_is_not_the_node(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    (backend.root / "one" / "worker-1" / "pid1").write_text(str(os.getpid()))
    assert node(backend, "worker-1").state == "exited"


# ---- nodes


def test_a_node_runs_its_supervisor_with_what_is_its_own(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    started(backend, "head", "worker-1")
    head, worker = node(backend, "head"), node(backend, "worker-1")
    assert (head.state, worker.state, node(backend, "worker-2").state) == (
        "running",
        "running",
        "created",
    )
    marker = json.loads((backend.root / "one" / "worker-1" / "home" / "node.json").read_text())
    assert (marker["node"], marker["start_of_node"]) == ("worker-1", 1)
    words = backend.logs("one", "worker-1").split()
    assert f"--node-ip-address={worker.address}" in words
    port = backend._facts("one")["gcs_port"]
    assert f"--address={head.address}:{port}" in words
    assert f"--port={port}" in backend.logs("one", "head").split()
    assert "ready after" in backend.logs("one", "worker-1", tail=1)
    assert pids(backend.root / "one" / "worker-1") != []


def test_a_driver_node_starts_as_a_worker_with_a_place_for_drivers(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    made = spec("one")
    backend.create(replace(made, topology=override(made.topology, ["driver_node=true"])))
    for name in ("head", "driver"):
        backend.start("one", name)
    until(lambda: "ready after" in backend.logs("one", "driver"), "the driver node")
    words = backend.logs("one", "driver").split()
    assert "--num-cpus=0" in words
    assert '--resources={"driver":1}' in words
    assert "--head" not in words
    assert node(backend, "driver").role == "driver"


def test_starting_a_running_node_changes_nothing(backend: ProcessBackend, ray: FakeRay) -> None:
    started(backend, "worker-1")
    before = pids(backend.root / "one" / "worker-1")
    backend.start("one", "worker-1")
    # PID 1, the oldest, is the same; what else was there may be a start that has just ended.
    assert pids(backend.root / "one" / "worker-1")[0] == before[0]


def test_a_killed_node_is_gone_at_once_and_starts_again(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    started(backend, "worker-1", "worker-2")
    backend.kill("one", "worker-1")
    record = node(backend, "worker-1")
    assert (record.state, record.exit_code) == ("exited", 137)
    assert pids(backend.root / "one" / "worker-1", below=True) == []
    assert node(backend, "worker-2").state == "running"
    with pytest.raises(CannotRun, match="it is exited"):
        backend.kill("one", "worker-1")
    started(backend, "worker-1")
    marker = json.loads((backend.root / "one" / "worker-1" / "home" / "node.json").read_text())
    assert marker["start_of_node"] == 2
    assert node(backend, "worker-1").exit_code is None


def test_a_stopped_node_says_why_it_ended(backend: ProcessBackend, ray: FakeRay) -> None:
    started(backend, "worker-1")
    backend.stop("one", "worker-1", 30)
    record = node(backend, "worker-1")
    assert (record.state, record.exit_code) == ("exited", 0)
    backend.stop("one", "worker-1", 30)
    assert node(backend, "worker-1").exit_code == 0


def test_a_node_that_does_not_stop_is_killed_after_its_grace(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    started(backend, "worker-1")
    backend.pause("one", "worker-1")  # so that it cannot hear
    backend.stop("one", "worker-1", 0.1)
    record = node(backend, "worker-1")
    assert (record.state, record.exit_code) == ("exited", 137)


def test_a_node_without_its_supervisor_still_runs_and_can_be_killed(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    started(backend, "worker-1")
    home = backend.root / "one" / "worker-1"
    os.kill(int((home / "pid1").read_text()), signal.SIGKILL)
    until(lambda: len(pids(home)) == len(ray.pids("raylet")), "the supervisor's end")
    assert node(backend, "worker-1").state == "running"
    backend.start("one", "worker-1")
    assert len(ray.pids("raylet")) <= 1  # the old one was ended first
    backend.kill("one", "worker-1")
    assert ray.pids("raylet") == []


def test_a_node_is_paused_when_all_of_it_is(backend: ProcessBackend, ray: FakeRay) -> None:
    started(backend, "worker-1")
    home = backend.root / "one" / "worker-1"
    backend.pause("one", "worker-1")
    assert {state(pid) for pid in pids(home)} == {"T"}
    assert node(backend, "worker-1").state == "paused"
    with pytest.raises(CannotRun, match="it is paused"):
        backend.pause("one", "worker-1")
    with pytest.raises(CannotRun, match="resume worker-1"):
        backend.execute("one", "worker-1", ["true"])
    backend.resume("one", "worker-1")
    assert "T" not in {state(pid) for pid in pids(home)}
    assert node(backend, "worker-1").state == "running"


def test_one_process_of_a_node_is_signalled_and_none_that_is_not_the_nodes(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    started(backend, "worker-1")
    rows = backend.processes("one", "worker-1")
    (raylet,) = [p for p in rows if p.name == "raylet"]
    assert {p.pid for p in rows} <= set(pids(backend.root / "one" / "worker-1"))
    assert backend.signal_process("one", "worker-1", raylet, signal.SIGSTOP)
    until(lambda: state(raylet.pid) == "T", "it is stopped")
    assert node(backend, "worker-1").state == "running"
    assert backend.signal_process("one", "worker-1", raylet, signal.SIGCONT)
    until(lambda: state(raylet.pid) != "T", "it goes on")

    stranger = sleeper(backend.root / "one" / "worker-2")
    try:
        other = look(stranger.pid)
        assert other is not None
        for pid, born in ((other.pid, other.started), (raylet.pid, raylet.started - 1)):
            row = NodeProcess(pid, born, "S", "sleep", "sleep 600")
            assert not backend.signal_process("one", "worker-1", row, signal.SIGKILL)
        assert stranger.poll() is None
        assert not gone(raylet.pid)
    finally:
        stranger.kill()
        stranger.wait()

    assert backend.signal_process("one", "worker-1", raylet, signal.SIGKILL)
    until(lambda: node(backend, "worker-1").state == "exited", "the node follows its raylet")
    assert node(backend, "worker-1").exit_code == 11
    with pytest.raises(CannotRun, match="it is exited"):
        backend.processes("one", "worker-1")


def test_everything_that_happens_to_a_node_is_reported(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    backend.create(spec("one"))
    events: list[EngineEvent] = []
    watch = backend.watch("one", events.append)

    def seen(*verbs: str) -> None:
        until(lambda: len(events) >= len(verbs), f"{verbs[-1]}")
        assert [event.verb for event in events] == list(verbs)

    try:
        started(backend, "worker-1")
        seen("start")
        backend.pause("one", "worker-1")
        seen("start", "pause")
        backend.resume("one", "worker-1")
        seen("start", "pause", "unpause")
        backend.kill("one", "worker-1")
        backend.start("one", "worker-1")
        seen("start", "pause", "unpause", "die", "start")
        until((backend.root / "one" / "worker-1" / "home" / "ready").exists)
        (raylet,) = ray.pids("raylet")
        os.kill(raylet, signal.SIGKILL)
        seen("start", "pause", "unpause", "die", "start", "die")
    finally:
        watch.close()
    assert {event.node for event in events} == {"worker-1"}
    assert [event.exit_code for event in events] == [None, None, None, 137, None, 11]
    assert [event.wall for event in events] == sorted(event.wall for event in events)
    watch.close()


def test_a_closed_watch_reports_nothing_more(backend: ProcessBackend, ray: FakeRay) -> None:
    started(backend, "worker-1")
    events: list[EngineEvent] = []
    before = threading.active_count()
    watch = backend.watch("one", events.append)
    assert threading.active_count() == before + 1
    watch.close()
    assert threading.active_count() == before
    backend.kill("one", "worker-1")
    assert events == []


def test_logs_go_on_while_the_node_lives(backend: ProcessBackend, ray: FakeRay) -> None:
    started(backend, "worker-1")
    lines = backend.follow_logs("one", "worker-1", tail=1)
    assert "ready after" in next(lines)
    backend.stop("one", "worker-1", 30)
    rest = list(lines)
    assert "asked to stop" in rest[0]
    assert "stopped as asked" in rest[-1]
    assert backend.logs("one", "worker-1", tail=0) == ""
    assert list(backend.follow_logs("one", "worker-2")) == []


def test_rays_logs_are_copied_from_the_living_and_the_dead(
    backend: ProcessBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.create(spec("one"))
    monkeypatch.setattr("simulator.backends.process.backend._LOG_LIMIT", 4)
    tmp = _short_tmp(backend.root / "one") / "head"
    for session, text in (("session_2026-01-01", "old"), ("session_2026-02-02", "long and new")):
        (tmp / session / "logs" / "deep").mkdir(parents=True)
        (tmp / session / "logs" / "deep" / "raylet.out").write_text(text)
    (tmp / "session_latest").symlink_to("session_2026-02-02")
    backend.node_logs("one", "head", tmp_path / "logs")
    assert (tmp_path / "logs" / "deep" / "raylet.out").read_text() == " new"
    earlier = tmp_path / "logs" / "earlier" / "session_2026-01-01" / "deep" / "raylet.out"
    assert earlier.read_text() == "old"


def test_a_command_in_a_node_finds_the_cluster_and_ends_with_the_node(
    backend: ProcessBackend, ray: FakeRay
) -> None:
    started(backend, "worker-1")
    facts = backend._facts("one")
    done = backend.execute(
        "one", "worker-1", ["sh", "-c", "echo $RAY_ADDRESS $RAY_SIM_NODE $X"], env={"X": "y"}
    )
    assert (done.code, done.output) == (0, f"{facts['head']}:{facts['gcs_port']} worker-1 y\n")
    assert backend.execute("one", "worker-1", ["no-such-program"]).code == 127
    assert backend.execute("one", "worker-1", ["sh", "-c", "exit 7"]).code == 7
    codes: list[int] = []
    thread = threading.Thread(
        target=lambda: codes.append(backend.execute("one", "worker-1", ["sleep", "600"]).code)
    )
    thread.start()
    executed = backend.root / "one" / "worker-1" / "executed"
    until(lambda: living(executed), "the command")
    backend.kill("one", "worker-1")
    thread.join(timeout=30)
    assert codes == [137]
    with pytest.raises(CannotRun, match="it is exited"):
        backend.execute("one", "worker-1", ["true"])


def test_a_command_is_no_sign_of_a_nodes_life(backend: ProcessBackend, ray: FakeRay) -> None:
    started(backend, "worker-1")
    backend.kill("one", "worker-1")
    left = sleeper(backend.root / "one" / "worker-1" / "executed")
    assert node(backend, "worker-1").state == "exited"
    backend.remove("one")
    assert left.wait(timeout=5) == -signal.SIGKILL


# ---- programs and the ledger


def test_what_a_program_printed_can_be_read_again(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    program = backend.run_program("one", "observer", ["this"], {})
    lines = list(program.lines())
    assert any("Beautiful is better" in text for text in lines)
    again = ProcessBackend(backend.root).program("one", "observer")
    assert again is not None
    assert list(again.lines()) == lines
    assert again.stop(timeout=10) == 0
    again.remove()
    again.remove()
    assert backend.program("one", "observer") is None


def test_a_program_that_failed_says_so(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    program = backend.run_program("one", "observer", ["no_such_module"], {})
    assert list(program.lines()) == []
    assert program.stop(timeout=10) == 1


def test_a_program_is_told_to_end_and_then_made_to(
    backend: ProcessBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "polite.py").write_text(
        "import signal, sys\nsignal.signal(signal.SIGTERM, lambda *a: sys.exit(5))\n"
        "print('up', flush=True)\nwhile True: signal.pause()\n"
    )
    (tmp_path / "rude.py").write_text(
        "import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print('up', flush=True)\nwhile True: signal.pause()\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    backend.create(spec("one"))
    for name, timeout, code in (("polite", 30.0, 5), ("rude", 0.1, None)):
        program = backend.run_program("one", name, [name], {})
        assert next(program.lines()) == "up"
        with pytest.raises(CannotRun, match="already"):
            backend.run_program("one", name, [name], {})
        assert program.stop(timeout) == code
        assert living(backend.root / "one" / "programs" / name) == []


def test_ledger_files_are_written_whole_and_fetched(
    backend: ProcessBackend, tmp_path: Path
) -> None:
    backend.create(spec("one"))
    backend.put_ledger_file("one", "r1/control.json", b'{"go_on": true}')
    backend.fetch_ledger("one", "", tmp_path / "copy")
    assert (tmp_path / "copy" / "r1" / "control.json").read_bytes() == b'{"go_on": true}'
    assert [p.name for p in (tmp_path / "copy" / "r1").iterdir()] == ["control.json"]
    backend.fetch_ledger("one", "no-such-run", tmp_path / "nothing")
    assert not (tmp_path / "nothing").exists()


# ---- this machine


def nvidia_smi(folder: Path, monkeypatch: pytest.MonkeyPatch, devices: int = 1) -> None:
    tool = folder / "nvidia-smi"
    lines = [f"GPU {n}: Some Model (UUID: GPU-{n})" for n in range(devices)]
    tool.write_text("#!/bin/sh\n" + "".join(f"echo '{line}'\n" for line in lines))
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_a_real_gpu_that_is_not_there_is_refused(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    topology = override(load_topology("default"), ["head.gpus=real"])
    with pytest.raises(CannotRun, match="nvidia-smi shows none"):
        backend.gpu_kind(topology)
    assert backend.gpu_kind(load_topology("default")) == "simulated"
    assert backend.gpu_kind(load_topology("cpu_only")) == "none"


def test_a_gpu_that_nvidia_smi_shows_is_real(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path, monkeypatch)
    assert backend.gpu_kind(load_topology("default")) == "real"
    simulated = override(load_topology("default"), ["head.gpus=simulated"])
    assert backend.gpu_kind(simulated) == "simulated"


def test_fewer_gpus_than_are_declared_are_not_called_real(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nvidia_smi(tmp_path, monkeypatch, devices=1)
    topology = load_topology("two_gpu")
    assert backend.gpu_kind(topology) == "simulated"
    with pytest.raises(CannotRun, match="wants 2 real GPUs") as error:
        backend.gpu_kind(override(topology, ["head.gpus=real"]))
    assert error.value.why == "the head can be given 1 of them"
    assert "head.resources.GPU=1" in (error.value.remedy or "")
    nvidia_smi(tmp_path, monkeypatch, devices=2)
    assert backend.gpu_kind(topology) == "real"


@pytest.mark.parametrize(
    ("given", "kind"),
    [("", "simulated"), ("-1", "simulated"), ("NoDevFiles", "simulated"), ("7,0", "simulated"),
     ("1", "real"), ("GPU-1", "real"), ("0,-1,1", "real")],
)  # fmt: skip
def test_the_gpus_are_those_that_the_users_shell_leaves(
    backend: ProcessBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    given: str,
    kind: str,
) -> None:
    nvidia_smi(tmp_path, monkeypatch, devices=2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    assert backend.gpu_kind(load_topology("default")) == kind
    assert backend.gpu_kind(load_topology("two_gpu")) == "simulated"


@pytest.mark.parametrize(
    ("kind", "devices", "given", "head", "worker"),
    [
        ("real", 4, None, "0", ""),  # as many as the head declares, as a container is given
        ("real", 4, "2,3", "2", ""),  # the user's own choice among the real ones
        ("simulated", 4, "2", "-1", ""),  # one that is declared and does not exist
        ("simulated", 0, "0", None, ""),
        ("none", 4, "0", "-1", ""),
    ],
)
def test_real_gpus_are_seen_by_the_head_alone_and_only_if_asked_for(
    backend: ProcessBackend,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    kind: Any,
    devices: int,
    given: str | None,
    head: str | None,
    worker: str,
) -> None:
    if devices:
        nvidia_smi(tmp_path, monkeypatch, devices)
    else:
        monkeypatch.setattr("simulator.backends.process.backend.look_at_driver", Driver)
    if given is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", given)
    backend.create(ClusterSpec("one", load_topology("default"), kind))
    facts = backend._facts("one")
    nodes = {name: backend._environment(facts, name) for name in ("head", "worker-1")}
    assert {name: env.get("CUDA_VISIBLE_DEVICES") for name, env in nodes.items()} == {
        "head": head,
        "worker-1": worker,
    }
    # And Ray is kept from asking the driver for the type of what a node does not have.
    said = {name: NO_DEVICE in env for name, env in nodes.items()}
    assert said == {"head": devices > 0 and kind != "real", "worker-1": devices > 0}


def test_devices_of_a_driver_that_does_not_answer_are_hidden_all_the_same(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = Driver(error="nvidia-smi gives no answer (TimeoutExpired)")
    monkeypatch.setattr("simulator.backends.process.backend.look_at_driver", lambda: broken)
    assert backend.gpu_kind(load_topology("default")) == "simulated"
    with pytest.raises(CannotRun, match="gives no answer"):
        backend.gpu_kind(override(load_topology("default"), ["head.gpus=real"]))
    backend.create(ClusterSpec("one", load_topology("default"), "simulated"))
    assert backend._environment(backend._facts("one"), "head")["CUDA_VISIBLE_DEVICES"] == "-1"


@pytest.mark.parametrize(
    ("total", "available", "level"), [(1, 1, "problem"), (64, 1, "warning"), (64, 32, "ok")]
)
def test_memory_is_judged_by_what_the_topology_needs(
    backend: ProcessBackend,
    monkeypatch: pytest.MonkeyPatch,
    total: int,
    available: int,
    level: str,
) -> None:
    memory = SimpleNamespace(total=total * 10**9, available=available * 10**9)
    monkeypatch.setattr("psutil.virtual_memory", lambda: memory)
    (check,) = [c for c in backend.check(load_topology("default")) if c.name == "memory"]
    assert check.level == level
    assert ("--workers" in check.remedy) == (level != "ok")


def test_another_system_is_refused_with_the_reason(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    (check,) = machine.checks(None, platform="darwin")
    assert (check.level, check.remedy) == ("problem", "use Docker: --backend docker")
    monkeypatch.setattr(ProcessBackend, "check", lambda self, topology=None: [check])
    with pytest.raises(CannotRun, match="darwin has neither /proc"):
        backend.prepare(spec("one"), print)


@pytest.mark.parametrize(
    ("installed", "level"),
    [
        ({}, "problem"),
        ({"ray": "2.60.0"}, "problem"),
        ({"ray": "2.60.0", "aiohttp": "3", "grpcio": "1"}, "ok"),
        ({"ray": "2.60.3", "aiohttp": "3", "grpcio": "1"}, "ok"),
        ({"ray": "2.48.0", "aiohttp": "3", "grpcio": "1"}, "warning"),
    ],
)
def test_the_ray_that_is_there_is_judged(
    monkeypatch: pytest.MonkeyPatch, installed: dict[str, str], level: str
) -> None:
    def version(name: str) -> str:
        if name not in installed:
            raise PackageNotFoundError(name)
        return installed[name]

    monkeypatch.setattr("importlib.metadata.version", version)
    (check,) = [c for c in machine.checks(None) if c.name == "Ray"]
    assert check.level == level
    assert (level == "ok") == (not check.remedy)


def test_an_image_is_not_needed_and_that_is_said(backend: ProcessBackend) -> None:
    said: list[str] = []
    try:
        backend.prepare(spec("one", image="some/image"), said.append)
    except CannotRun:
        pytest.skip("no Ray is installed here")
    assert said == ["processes need no image; --image is ignored"]


def test_memory_and_disk_are_the_machines_and_that_is_said(backend: ProcessBackend) -> None:
    said: list[str] = []
    small = override(load_topology("default"), ["head.shm_size=80m"])
    try:
        backend.prepare(replace(spec("one"), topology=small), said.append)
    except CannotRun:
        pytest.skip("no Ray is installed here")
    (sentence,) = said
    assert "shm_size, spill_size have no effect" in sentence


def test_lean_nodes_are_whole_here_and_that_is_said(backend: ProcessBackend) -> None:
    lean = load_topology("lean")
    (check,) = [c for c in machine.checks(lean) if c.name == "lean nodes"]
    assert (check.level, check.remedy) == ("warning", "use Docker: --backend docker")
    said: list[str] = []
    try:
        backend.prepare(replace(spec("one"), topology=lean), said.append)
    except CannotRun:
        pytest.skip("no Ray is installed here")
    (sentence,) = said
    assert sentence.startswith("processes share one Python, so profile lean has no effect")


def test_a_redis_that_processes_do_not_have_is_refused_before_anything_is_made(
    backend: ProcessBackend,
) -> None:
    topology = override(load_topology("default"), ["gcs=redis"])
    (check,) = [c for c in machine.checks(topology) if c.name == "gcs"]
    assert (check.level, "rocksdb" in check.remedy) == ("problem", True)
    with pytest.raises(CannotRun, match="processes run no redis"):
        backend.prepare(replace(spec("one"), topology=topology), lambda text: None)
    assert backend.clusters() == []
