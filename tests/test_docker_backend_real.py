"""The Docker backend on a real engine: one cluster of a head and two workers for all tests."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
from real import by_hand

from simulator.assets import asset_path
from simulator.backends.base import ClusterSpec, EngineEvent, definition
from simulator.backends.docker import DockerBackend
from simulator.backends.docker.engine import Connection, connect, find_connection
from simulator.backends.docker.image import DEFAULT_IMAGE, ensure_image
from simulator.cluster import Cluster
from simulator.compose import DASHBOARD_PORT
from simulator.errors import BadInput, CannotRun, NotFound
from simulator.scaling import scale
from simulator.topology import Topology, load_topology

pytestmark = pytest.mark.real_docker

NAME = f"test-{os.getpid()}"
OTHER = f"test-{os.getpid()}-other"


def docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout.strip()


def labelled(name: str) -> list[str]:
    """Whatever the engine has of a cluster: containers, networks, volumes."""
    only = ("--filter", f"label=ray-sim.cluster={name}", "--quiet")
    found = [docker("ps", "--all", *only), docker("network", "ls", *only)]
    return [line for text in [*found, docker("volume", "ls", *only)] for line in text.splitlines()]


def inspected(name: str) -> list[dict[str, Any]]:
    only = ("--filter", f"label=ray-sim.cluster={name}", "--quiet")
    ids = docker("ps", "--all", *only).split()
    containers: list[dict[str, Any]] = json.loads(docker("inspect", *ids))
    return containers


class Events:
    """What a watch delivered, to be waited for."""

    def __init__(self) -> None:
        self._queue: queue.Queue[EngineEvent] = queue.Queue()
        self.emit = self._queue.put

    def next(self) -> EngineEvent:
        return self._queue.get(timeout=15)


@pytest.fixture(scope="module")
def backend() -> DockerBackend:
    ensure_image(DEFAULT_IMAGE, say=print)
    return DockerBackend()


@pytest.fixture(scope="module")
def topology() -> Topology:
    return load_topology("default").with_workers(2)


@pytest.fixture(scope="module")
def cluster(backend: DockerBackend, topology: Topology) -> Iterator[Cluster]:
    cluster = Cluster(backend, NAME)
    try:
        cluster.up(ClusterSpec(NAME, topology, "simulated"))
        yield cluster
    finally:
        backend.remove(NAME)
        assert labelled(NAME) == []


@pytest.fixture
def events(backend: DockerBackend, cluster: Cluster) -> Iterator[Events]:
    events = Events()
    watch = backend.watch(NAME, events.emit)
    yield events
    watch.close()


def test_every_node_is_alive_under_its_own_address(cluster: Cluster) -> None:
    status = cluster.status()
    assert {n.name: n.state for n in status.nodes} == {
        "head": "alive",
        "worker-1": "alive",
        "worker-2": "alive",
    }
    assert len({n.address for n in status.nodes}) == 3
    assert status.gpu == "simulated"
    assert status.nodes[0].resources["GPU"] == 1


def test_ray_wants_the_token_and_answers_on_loopback_only(
    backend: DockerBackend, cluster: Cluster
) -> None:
    endpoint = backend.endpoint(NAME)
    assert endpoint.url.startswith("http://127.0.0.1:")
    assert endpoint.token not in repr(endpoint)
    with requests.Session() as session:
        session.trust_env = False
        for path in ("/api/version", "/api/jobs/", "/api/v0/nodes"):
            assert session.get(endpoint.url + path, timeout=10).status_code == 401
            session.headers["Authorization"] = f"Bearer {endpoint.token}"
            assert session.get(endpoint.url + path, timeout=10).status_code == 200
            del session.headers["Authorization"]


def test_containers_have_no_secrets_rights_or_open_ports(
    backend: DockerBackend, cluster: Cluster
) -> None:
    token = backend.endpoint(NAME).token
    assert len(token) == 64
    containers = inspected(NAME)
    assert len(containers) == 4
    assert token not in json.dumps(containers)
    for container in containers:
        host = container["HostConfig"]
        assert not host["CapAdd"]
        assert host["CapDrop"] == ["ALL"]
        assert host["SecurityOpt"] == ["no-new-privileges:true"]
        assert not host["Privileged"]
        assert host["RestartPolicy"]["Name"] == "no"
        assert host["Memory"] > 0
        assert host["PidsLimit"] > 0
        assert "docker.sock" not in json.dumps(container["Mounts"])
        ports = container["NetworkSettings"]["Ports"] or {}
        published = {(port, p["HostIp"]) for port, binds in ports.items() for p in binds or []}
        is_head = container["Config"]["Labels"]["ray-sim.role"] == "head"
        assert published == ({(f"{DASHBOARD_PORT}/tcp", "127.0.0.1")} if is_head else set())
    for node in ("head", "worker-1"):
        done = backend.execute(NAME, node, ["sh", "-c", "id -u; grep CapEff /proc/1/status"])
        assert done.output.split() == ["1000", "CapEff:", "0000000000000000"]


def test_a_command_in_a_node_gives_its_output_and_exit_code(
    backend: DockerBackend, cluster: Cluster
) -> None:
    done = backend.execute(NAME, "worker-2", ["sh", "-c", "echo $MINE; exit 3"], env={"MINE": "x"})
    assert (done.code, done.output) == (3, "x\n")


def test_names_that_do_not_exist_are_told_with_those_that_do(
    backend: DockerBackend, cluster: Cluster
) -> None:
    with pytest.raises(NotFound, match="worker-1"):
        backend.kill(NAME, "worker-7")
    with pytest.raises(NotFound, match=NAME):
        backend.cluster(NAME + "x")


def test_a_name_in_use_by_something_else_is_refused(
    backend: DockerBackend, cluster: Cluster, topology: Topology
) -> None:
    with pytest.raises(BadInput, match=r"also has worker-2.*scale GROUP=N"):
        backend.create(ClusterSpec(NAME, topology.with_workers(1), "simulated"))
    with pytest.raises(BadInput, match="another definition"):
        backend.create(ClusterSpec(NAME, topology, "simulated", env={"RAY_x": "1"}))
    backend.create(ClusterSpec(NAME, topology, "simulated"))  # the same again changes nothing
    volume = f"{NAME}-foreign"
    docker("volume", "create", "--label", f"com.docker.compose.project={volume}", volume)
    try:
        with pytest.raises(BadInput, match="something else"):
            backend.create(ClusterSpec(volume, topology, "simulated"))
        assert labelled(volume) == []
    finally:
        docker("volume", "rm", volume)


def test_what_is_put_into_the_ledger_is_read_in_the_node_and_fetched_again(
    backend: DockerBackend, cluster: Cluster, tmp_path: Path
) -> None:
    for text in (b'{"go": 1}', b'{"go": 2}'):
        backend.put_ledger_file(NAME, "run-1/control.json", text)
    script = "cat /ledger/run-1/control.json; echo line > /ledger/run-1/worker.jsonl"
    assert backend.execute(NAME, "worker-1", ["sh", "-c", script]).output == '{"go": 2}'
    backend.fetch_ledger(NAME, "run-1", tmp_path / "one")
    assert {p.name: p.read_text() for p in (tmp_path / "one").iterdir()} == {
        "control.json": '{"go": 2}',
        "worker.jsonl": "line\n",
    }
    backend.fetch_ledger(NAME, "", tmp_path / "all")
    assert (tmp_path / "all" / "run-1" / "worker.jsonl").read_text() == "line\n"
    with pytest.raises(CannotRun, match="ledger"):
        backend.fetch_ledger(NAME, "no-such-run", tmp_path / "none")


def test_files_are_copied_to_a_node_and_back_and_belong_to_its_user(
    backend: DockerBackend, cluster: Cluster, tmp_path: Path
) -> None:
    def sh(script: str) -> list[str]:
        return backend.execute(NAME, "worker-1", ["sh", "-c", script]).output.split()

    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "sub" / "secret").write_text("hush\n")
    (data / "sub" / "secret").chmod(0o600)
    assert backend.copy_in(NAME, "worker-1", str(data), "/tmp") == []
    assert sh("cat /tmp/data/sub/secret; touch /tmp/data/mine; stat -c %u:%g /tmp/data") == [
        "hush",
        "1000:1000",
    ]
    backend.copy_in(NAME, "worker-1", f"{data}/.", "/tmp")
    assert sh("ls -d /tmp/sub; stat -c %a:%u /tmp") == ["/tmp/sub", "1777:0"]
    backend.copy_in(NAME, "worker-1", str(data / "sub" / "secret"), "renamed")
    assert sh("cat renamed; ln -s /etc/passwd /tmp/data/sub/link; ln -s data /tmp/short") == [
        "hush"
    ]

    assert backend.copy_out(NAME, "worker-1", "/tmp/short", str(tmp_path / "back")) == [
        "data/sub/link"
    ]
    back = sorted(str(p.relative_to(tmp_path / "back")) for p in (tmp_path / "back").rglob("*"))
    assert back == ["mine", "sub", "sub/secret"]
    backend.copy_out(NAME, "worker-1", "renamed", str(tmp_path))
    assert (tmp_path / "renamed").read_text() == "hush\n"
    for source, target, said in (
        ("/tmp/gone", ".", "does not exist"),
        ("/tmp/data", str(tmp_path / "renamed"), "a folder cannot be put in its place"),
    ):
        with pytest.raises(BadInput, match=said):
            backend.copy_out(NAME, "worker-1", source, target)
    with pytest.raises(BadInput, match="there is no folder /no"):
        backend.copy_in(NAME, "worker-1", str(data), "/no/where")
    with pytest.raises(CannotRun, match="read-only"):
        backend.copy_in(NAME, "worker-1", str(data), "/run/ray-sim")


def test_the_nodes_clock_is_told(backend: DockerBackend, cluster: Cluster) -> None:
    before = float(backend.execute(NAME, "head", ["date", "+%s.%N"]).output)
    there = backend.wall_clock()
    after = float(backend.execute(NAME, "head", ["date", "+%s.%N"]).output)
    assert before < there < after


def test_a_program_is_read_from_its_beginning_and_stopped(
    backend: DockerBackend, cluster: Cluster
) -> None:
    head = cluster.node("head").address
    argv = ["simulator.innode.observer", "--gcs", f"{head}:6379", "--run", "run-1"]
    program = backend.run_program(NAME, "observer", argv, {})
    container = next(c for c in inspected(NAME) if c["Name"].endswith("observer"))
    assert not container["HostConfig"]["PortBindings"]
    assert container["HostConfig"]["CapDrop"] == ["ALL"]
    assert not container["Config"]["OpenStdin"]
    lines: queue.Queue[str] = queue.Queue()

    def read() -> None:
        for line in program.lines():
            lines.put(line)

    reader = threading.Thread(target=read)
    reader.start()
    first = json.loads(lines.get(timeout=60))
    assert first["kind"] == "observer.start"
    assert program.stop(timeout=20) == 0
    reader.join(timeout=20)
    assert not reader.is_alive()

    again = backend.program(NAME, "observer")
    assert again is not None
    everything = list(again.lines())
    assert json.loads(everything[0]) == first
    assert json.loads(everything[-1])["kind"] == "observer.end"
    assert len(everything) == 1 + lines.qsize()
    assert [n.name for n in cluster.record().nodes] == ["head", "worker-1", "worker-2"]
    again.remove()
    again.remove()
    assert backend.program(NAME, "observer") is None


def test_a_frozen_node_is_seen_frozen_and_thawed(
    backend: DockerBackend, cluster: Cluster, events: Events
) -> None:
    backend.pause(NAME, "worker-2")
    assert cluster.node("worker-2").state == "paused"
    with pytest.raises(CannotRun, match="paused"):
        backend.execute(NAME, "worker-2", ["true"])
    backend.resume(NAME, "worker-2")
    assert cluster.node("worker-2").state == "running"
    seen = [events.next(), events.next()]
    assert [(e.verb, e.node) for e in seen] == [("pause", "worker-2"), ("unpause", "worker-2")]
    assert seen[0].wall < seen[1].wall
    with pytest.raises(CannotRun, match="not paused"):
        backend.resume(NAME, "worker-2")


def test_no_event_is_lost_right_after_watch_returned(
    backend: DockerBackend, cluster: Cluster
) -> None:
    for _ in range(5):
        events = Events()
        watch = backend.watch(NAME, events.emit)
        backend.pause(NAME, "worker-2")
        backend.resume(NAME, "worker-2")
        assert [events.next().verb, events.next().verb] == ["pause", "unpause"]
        watch.close()


def test_a_killed_node_leaves_its_logs_and_comes_back(
    backend: DockerBackend, cluster: Cluster, events: Events, tmp_path: Path
) -> None:
    before = cluster.node("worker-1")
    asked = backend.wall_clock()
    backend.kill(NAME, "worker-1")
    dead = cluster.node("worker-1")
    assert (dead.state, dead.exit_code, dead.address) == ("exited", 137, "")
    event = events.next()
    assert (event.verb, event.node, event.exit_code) == ("die", "worker-1", 137)
    assert asked < event.wall < backend.wall_clock()

    with pytest.raises(CannotRun, match="not running"):
        backend.kill(NAME, "worker-1")
    backend.node_logs(NAME, "worker-1", tmp_path)
    assert (tmp_path / "raylet.out").stat().st_size > 0
    assert "supervisor: ready" in backend.logs(NAME, "worker-1")
    assert len(backend.logs(NAME, "worker-1", tail=2).splitlines()) == 2
    followed = list(backend.follow_logs(NAME, "worker-1", tail=1))
    assert "supervisor: ready" in followed[0]

    cluster.start_nodes(["worker-1"])
    assert (events.next().verb, cluster.node("worker-1").hostname) == ("start", before.hostname)


def test_a_stopped_node_exits_as_asked(
    backend: DockerBackend, cluster: Cluster, events: Events
) -> None:
    backend.stop(NAME, "worker-2", grace=20)
    stopped = cluster.node("worker-2")
    assert (stopped.state, stopped.exit_code) == ("exited", 0)
    assert events.next().exit_code == 0
    backend.copy_in(NAME, "worker-2", __file__, "/tmp/while-down.py")
    cluster.start_nodes(["worker-2"])
    copied = backend.execute(NAME, "worker-2", ["cat", "/tmp/while-down.py"]).output
    assert copied == Path(__file__).read_text(encoding="utf-8")


def test_a_restarted_head_keeps_its_address(backend: DockerBackend, cluster: Cluster) -> None:
    before = cluster.node("head")
    token = backend.endpoint(NAME).token
    backend.kill(NAME, "head")
    with pytest.raises(CannotRun, match="the head is exited"):
        backend.endpoint(NAME)
    # Something that starts while the head is down must not get its address.
    program = backend.run_program(NAME, "sleeper", ["http.server", "9"], {})
    program.remove()
    cluster.start_nodes(["head"])
    after = cluster.node("head")
    assert (after.address, after.hostname) == (before.address, before.hostname)
    assert backend.endpoint(NAME).token == token
    assert cluster.ray.version()


# ---- a second cluster, as different as it can be


@pytest.fixture(scope="module")
def stock_layout(backend: DockerBackend) -> str:
    tag = "ray-cluster-simulator/stock-layout:test"
    docker(
        "buildx", "build", "--builder", docker("context", "show"), "--load", "--provenance=false",
        "--build-arg", f"NODE_IMAGE={DEFAULT_IMAGE}", "--tag", tag,
        str(asset_path("docker") / "stock-layout"),
    )  # fmt: skip
    return tag


class FarEngine(DockerBackend):
    """The same engine, taken for one that does not have this machine's files."""

    def _connect(self) -> Any:
        if self._connected is None:
            far = Connection("tcp://far.invalid:2376", False, "test")
            self._connected = (far, connect(find_connection()))
        return self._connected


def test_a_stock_image_serves_on_an_engine_that_shares_no_files_beside_another_cluster(
    cluster: Cluster, stock_layout: str, tmp_path: Path
) -> None:
    backend = FarEngine()
    lone = load_topology("default").with_workers(0)
    other = Cluster(backend, OTHER)
    try:
        other.up(ClusterSpec(OTHER, lone, "simulated", image=stock_layout, run_dir=tmp_path))
        assert [n.state for n in other.status().nodes] == ["alive"]
        kinds = {m["Type"] for c in inspected(OTHER) for m in c["Mounts"]}
        assert kinds == {"volume"}
        who = backend.execute(OTHER, "head", ["sh", "-c", "id -u; id -g; which python"]).output
        assert who.split() == ["1000", "100", "/home/ray/anaconda3/bin/python"]
        assert other.record().run_dir == tmp_path.resolve()
        assert (tmp_path / "compose.yaml").is_file()
        program = backend.run_program(
            OTHER, "observer",
            ["simulator.innode.observer", "--gcs", f"{other.node('head').address}:6379",
             "--run", "r"], {},
        )  # fmt: skip
        assert json.loads(next(iter(program.lines())))["kind"] == "observer.start"
        assert backend.endpoint(OTHER).token != backend.endpoint(NAME).token
        assert backend.endpoint(OTHER).url != backend.endpoint(NAME).url
        heads = {c.node("head").address for c in (cluster, other)}
        assert len({address.rpartition(".")[0] for address in heads}) == 2

        # The ledger outlives every container.
        backend.put_ledger_file(OTHER, "r/kept.json", b"{}")
        for container in inspected(OTHER):
            docker("rm", "--force", container["Id"])
        assert [c.nodes for c in backend.clusters() if c.name == OTHER] == [[]]
        backend.fetch_ledger(OTHER, "r", tmp_path / "ledger")
        assert (tmp_path / "ledger" / "kept.json").read_bytes() == b"{}"
        assert len(labelled(OTHER)) == 3  # the network and two volumes; no helper is left
    finally:
        backend.remove(OTHER)
    assert labelled(OTHER) == []
    backend.remove(OTHER)
    assert cluster.status().nodes[0].state == "alive"


# ---- by hand


def test_plain_docker_compose_gives_a_cluster_that_we_understand(backend: DockerBackend) -> None:
    name = f"test-{os.getpid()}-hand"
    try:
        cluster = by_hand(backend, name, "10.223.250", "compose.yaml")
        found = cluster.record()
        assert [n.name for n in found.nodes] == ["head", "worker-1"]
        assert found.gpu == "simulated"
        assert found.run_dir is None

        made = backend.spec(name)
        assert definition(made) == definition(
            ClusterSpec(name, load_topology("default"), "simulated")
        )
        scale(cluster, {"worker": 2})
        assert [n.state for n in cluster.status().nodes] == ["alive"] * 3
    finally:
        backend.remove(name)
    assert labelled(name) == []
