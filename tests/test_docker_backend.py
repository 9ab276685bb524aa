"""The Docker backend's parts that need no engine, and what it says where there is none."""

from __future__ import annotations

import io
import os
import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
from docker.errors import APIError, ImageNotFound
from hypothesis import given
from hypothesis import strategies as st
from python_on_whales.exceptions import DockerException as CommandFailed

from simulator.backends.base import Backend, CanKill, CanPause, ClusterSpec, GpuKind, NodeState
from simulator.backends.docker import DockerBackend, engine_answers
from simulator.backends.docker import checks as docker_checks
from simulator.backends.docker.addresses import host_routes
from simulator.backends.docker.archive import (
    extract,
    lines_of,
    only_file,
    save_file,
    tar_for,
    tar_of_file,
    tar_of_folder,
)
from simulator.backends.docker.backend import (
    _Container,
    _refuse_beside,
    parse_engine_time,
    variables_of,
)
from simulator.backends.docker.checks import Passing, _memory, passing, resolve_gpu
from simulator.backends.docker.engine import (
    Connection,
    asking,
    is_address_clash,
    is_gone,
    is_unmountable,
)
from simulator.backends.docker.events import to_event
from simulator.backends.docker.image import DEFAULT_IMAGE, GPU_IMAGE, LEAN_IMAGE
from simulator.backends.docker.programs import DockerProgram
from simulator.backends.nvidia import Driver
from simulator.backends.select import choose
from simulator.compose import INNODE_TARGET
from simulator.errors import BadInput, CannotRun
from simulator.topology import LEAN_LACKS, Topology, load_topology, override, parse_topology

LOCAL = Connection("", False, "test")
ELSEWHERE = Connection("tcp://far.invalid:2376", False, "test")


def answer(status: int, text: str) -> Any:
    return SimpleNamespace(status_code=status, reason="because", url="http+docker://x", text=text)


# ---- where there is no engine


@pytest.fixture
def no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "unix:///nonexistent/docker.sock")


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_the_reason_is_said() -> None:
    assert engine_answers(timeout=2.0) == "unix:///nonexistent/docker.sock does not exist"


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_the_doctor_reports_it_and_does_not_fail() -> None:
    engine = DockerBackend().check(load_topology("default"))[0]
    assert (engine.level, engine.name) == ("problem", "engine")
    assert "does not exist" in engine.text
    assert engine.remedy


@pytest.mark.usefixtures("no_engine")
def test_without_an_engine_every_method_says_so() -> None:
    backend = DockerBackend()
    for ask in (backend.clusters, backend.wall_clock, lambda: backend.remove("lab")):
        with pytest.raises(CannotRun, match="no Docker engine answers"):
            ask()


def test_a_context_that_does_not_exist_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DOCKER_HOST", raising=False)
    monkeypatch.setenv("DOCKER_CONTEXT", "no-such-context")
    assert "no-such-context" in (engine_answers(timeout=2.0) or "")


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("tcp://[::1", "Invalid IPv6 URL"),
        ("tcp://x:99999", "Port out of range 0-65535"),
        ("ssh://me@x:ssh", "Port could not be cast to integer value as 'ssh'"),
    ],
)
def test_an_address_that_is_none_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, host: str, why: str
) -> None:
    monkeypatch.setenv("DOCKER_HOST", host)
    assert engine_answers(timeout=2.0) == f"DOCKER_HOST says {host}: {why}"
    assert DockerBackend().check(load_topology("default"))[0].level == "problem"


def test_without_ssh_support_it_is_said_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr("docker.api.client.SSHHTTPAdapter", raising=False)  # no paramiko
    monkeypatch.setenv("DOCKER_HOST", "ssh://x")
    said = "ssh://x needs the Docker SDK's SSH support; pip install 'docker[ssh]'"
    assert engine_answers(timeout=2.0) == said
    with pytest.raises(CannotRun) as caught:
        choose("docker")
    assert str(caught.value) == f"no Docker engine answers: {said}. Or use --backend process"


def test_it_is_a_backend_that_can_kill_and_pause() -> None:
    backend: Backend = DockerBackend()
    assert isinstance(backend, CanKill)
    assert isinstance(backend, CanPause)


# ---- errors


def test_what_the_engine_says_becomes_the_reason() -> None:
    with pytest.raises(CannotRun) as caught, asking("worker-1 was paused", remedy="See: status"):
        raise APIError("409", response=answer(409, ""), explanation="Container x is not running")
    assert str(caught.value) == "worker-1 was paused: Container x is not running. See: status"
    assert not is_gone(caught.value)


def test_a_missing_image_comes_with_the_way_to_build_it() -> None:
    with pytest.raises(CannotRun, match="simulator image build") as caught, asking("x"):
        raise ImageNotFound("404", response=answer(404, ""), explanation="No such image: y")
    assert is_gone(caught.value)


@pytest.mark.parametrize(
    ("stderr", "kind"),
    [
        ("Network lab_cluster Error\ninvalid pool: Pool overlaps with other one on this", "clash"),
        ("Error response: bind source path does not exist: /here", "unmountable"),
        ("something else", ""),
    ],
)
def test_failures_of_compose_are_told_apart(stderr: str, kind: str) -> None:
    with pytest.raises(CannotRun) as caught, asking("it was made"):
        raise CommandFailed(["docker", "compose"], 1, stderr=stderr.encode())
    assert caught.value.why == stderr.splitlines()[-1]
    assert is_address_clash(caught.value) == (kind == "clash")
    assert is_unmountable(caught.value) == (kind == "unmountable")


class FreezerThatSlips:
    """An engine that fails to freeze a busy node a few times, as runc does on a crowded machine."""

    def __init__(self, failures: int, said: str) -> None:
        self.failures, self.said, self.asked = failures, said, 0

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        labels = {
            "ray-sim.cluster": "lab",
            "ray-sim.role": "worker",
            "ray-sim.group": "worker",
            "com.docker.compose.container-number": "1",
        }
        state = "paused" if self.asked > self.failures else "running"
        return [{"Id": "c1", "Labels": labels, "State": state}]

    def pause(self, ident: str) -> None:
        self.asked += 1
        if self.asked <= self.failures:
            raise APIError("500", response=answer(500, ""), explanation=self.said)


def with_engine(engine: Any, monkeypatch: pytest.MonkeyPatch) -> DockerBackend:
    backend = DockerBackend()
    monkeypatch.setattr(backend, "_connected", (LOCAL, engine))
    return backend


def test_a_node_that_resists_being_frozen_is_frozen_at_the_next_try(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FreezerThatSlips(2, "OCI runtime pause failed: unable to freeze: unknown")
    with_engine(engine, monkeypatch).pause("lab", "worker-1")
    assert engine.asked == 3


def test_any_other_refusal_to_freeze_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FreezerThatSlips(2, "Container c1 is not running")
    with pytest.raises(CannotRun, match="not running"):
        with_engine(engine, monkeypatch).pause("lab", "worker-1")
    assert engine.asked == 1


def test_a_container_for_a_library_comes_over_the_connection_that_there_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = FreezerThatSlips(0, "")
    engine.inspect_container = lambda ident: {"Id": ident, "State": {"Status": "running"}}  # type: ignore[attr-defined]
    container = with_engine(engine, monkeypatch).container("lab", "worker-1")
    assert (container.id, container.status) == ("c1", "running")
    container.pause()
    assert engine.asked == 1


# ---- the engine's words in ours


@pytest.mark.parametrize(
    ("topology", "gpu", "image", "needed"),
    [
        ("default", "simulated", None, [DEFAULT_IMAGE]),
        ("default", "real", None, [DEFAULT_IMAGE, GPU_IMAGE]),
        ("lean", "none", None, [DEFAULT_IMAGE, LEAN_IMAGE]),
        ("lean", "none", "my/ray:1", ["my/ray:1"]),
    ],
)
def test_only_the_images_that_a_cluster_needs_are_made_ready(
    monkeypatch: pytest.MonkeyPatch, topology: str, gpu: GpuKind, image: str | None,
    needed: list[str],
) -> None:  # fmt: skip
    asked: list[str] = []
    monkeypatch.setattr(
        "simulator.backends.docker.backend.ensure_image", lambda tag, say: asked.append(tag)
    )
    said: list[str] = []
    spec = ClusterSpec("c", load_topology(topology), gpu, image=image)
    assert DockerBackend().prepare(spec, said.append) == spec
    assert asked == needed
    assert any(LEAN_LACKS in line for line in said) == (LEAN_IMAGE in needed)
    assert any("profile lean has no effect" in line for line in said) == (image is not None)


def test_the_token_is_read_once_for_each_head(monkeypatch: pytest.MonkeyPatch) -> None:
    backend, tokens = DockerBackend(), iter(["one", "two"])
    heads = iter(["first", "first", "second"])
    ports = {"NetworkSettings": {"Ports": {"8265/tcp": [{"HostPort": "1"}]}}}
    engine = SimpleNamespace(inspect_container=lambda ident: ports)
    monkeypatch.setattr(backend, "_connect", lambda: (LOCAL, engine))
    monkeypatch.setattr(
        backend, "_node", lambda cluster, node: SimpleNamespace(id=next(heads), state="running")
    )
    monkeypatch.setattr(backend, "_token", lambda cluster: next(tokens))
    assert [backend.endpoint("c").token for _ in range(3)] == ["one", "one", "two"]


def test_lean_workers_count_for_less_memory() -> None:
    info = {"MemTotal": 64 * 2**30}
    default, lean = (
        next(c.text for c in _memory(info, load_topology(name).with_workers(64)))
        for name in ("default", "lean")
    )
    idle = [float(re.findall(r"about ([\d.]+) GiB idle", text)[0]) for text in (default, lean)]
    assert idle[1] < 0.7 * idle[0]


def test_the_engines_clock_is_read_to_the_nanosecond() -> None:
    assert parse_engine_time("2025-11-21T10:14:00.123456789Z") == 1763720040_123456789
    assert parse_engine_time("2025-11-21T11:14:00.5+01:00") == 1763720040_500000000
    assert parse_engine_time("2025-11-21T10:14:00Z") == 1763720040_000000000
    with pytest.raises(CannotRun, match="clock"):
        parse_engine_time("soon")


def test_a_variable_that_the_shell_did_not_have_is_none_of_the_container() -> None:
    assert variables_of(["A=1=2", "B=", "RAY_health_check_period_ms"]) == {"A": "1=2", "B": ""}


def test_routes_are_read_but_for_the_default_one() -> None:
    table = (
        "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n"
        "eth0\t00000000\t0100000A\t0003\t0\t0\t0\t00000000\t0\t0\t0\n"
        "eth0\t0000000A\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
        "docker0\t000011AC\t00000000\t0001\t0\t0\t0\t0000FFFF\t0\t0\t0\n"
    )
    assert host_routes(table) == ["10.0.0.0/16", "172.17.0.0/16"]


def test_an_event_keeps_the_engines_time_and_the_exit_code() -> None:
    raw = {"Action": "die", "timeNano": 1_500_000_000, "Actor": {"Attributes": {"exitCode": "137"}}}
    event = to_event(raw, "worker-2")
    assert (event.verb, event.node, event.wall, event.exit_code) == ("die", "worker-2", 1.5, 137)
    raw = {"Action": "pause", "timeNano": 2_000_000_000, "Actor": {"Attributes": {}}}
    assert to_event(raw, "head").exit_code is None


def test_a_path_is_mounted_only_where_the_engine_has_this_machines_files() -> None:
    assert LOCAL.shares_files
    assert LOCAL.shares_loopback
    assert not ELSEWHERE.shares_files
    assert not ELSEWHERE.shares_loopback
    assert not Connection("tcp://127.0.0.1:2375", False, "test").shares_files
    assert Connection("tcp://127.0.0.1:2375", False, "test").shares_loopback


# ---- GPUs


NVIDIA: dict[str, Any] = {"Runtimes": {"runc": {}, "nvidia": {}}}
CDI: dict[str, Any] = {
    "Runtimes": {"runc": {}},
    "DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=0"}],
}
NONE: dict[str, Any] = {"Runtimes": {"runc": {}}}


def topology(gpus: str, head: int = 1, worker: int = 0) -> Topology:
    return parse_topology(
        {
            "head": {"resources": {"CPU": 1, "GPU": head}, "gpus": gpus},
            "worker_groups": [{"group_name": "w", "resources": {"CPU": 1, "GPU": worker}}],
        },
        "test",
    )


@pytest.mark.parametrize("info", [NVIDIA, CDI])
def test_a_gpu_is_real_only_where_the_engine_can_pass_it_and_it_is_wanted(
    info: dict[str, Any],
) -> None:
    assert resolve_gpu(ELSEWHERE, info, topology("auto")) == "real"
    assert resolve_gpu(ELSEWHERE, info, topology("real")) == "real"
    assert resolve_gpu(ELSEWHERE, info, topology("simulated")) == "simulated"
    assert resolve_gpu(ELSEWHERE, info, topology("auto", head=0)) == "none"


def test_without_one_it_is_simulated_or_refused() -> None:
    assert resolve_gpu(ELSEWHERE, NONE, topology("auto")) == "simulated"
    with pytest.raises(CannotRun, match="container toolkit"):
        resolve_gpu(ELSEWHERE, NONE, topology("real"))


def test_fewer_than_are_declared_are_not_called_real(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve_gpu(ELSEWHERE, CDI, topology("auto", head=2)) == "simulated"
    with pytest.raises(CannotRun, match="wants 2 real GPUs"):
        resolve_gpu(ELSEWHERE, CDI, topology("real", head=2))
    # How many an engine elsewhere has behind the runtime is its own to say, when it makes the head.
    assert resolve_gpu(ELSEWHERE, NVIDIA, topology("auto", head=2)) == "real"
    monkeypatch.setattr(docker_checks, "device_files", lambda: True)
    one = Driver(("NVIDIA L4",))
    assert resolve_gpu(LOCAL, NVIDIA, topology("auto", head=2), one) == "simulated"
    assert resolve_gpu(LOCAL, NVIDIA, topology("auto", head=1), one) == "real"


def test_cdi_devices_are_taken_by_the_names_that_the_engine_has(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    names = ("GPU-5a", "10", "9", "all", "0:0")
    many = {"DiscoveredDevices": [{"Source": "cdi", "ID": f"nvidia.com/gpu={n}"} for n in names]}
    assert passing(ELSEWHERE, many) == Passing("cdi", ("9", "10"), 2)
    one = {"DiscoveredDevices": [{"Source": "cdi", "ID": "nvidia.com/gpu=all"}]}
    assert passing(ELSEWHERE, one) == Passing("cdi", ("all",))
    others = {"DiscoveredDevices": [{"Source": "cdi", "ID": "docker.com/gpu=webgpu"}]}
    assert passing(ELSEWHERE, others) is None


#: What Docker 26.1.5 with CDI says of itself, and a specification that gave its containers an H100.
OLDER: dict[str, Any] = {"ServerVersion": "26.1.5+dfsg1", "Runtimes": {"runc": {"path": "runc"}}}
H100 = """
{"cdiVersion": "0.5.0", "kind": "nvidia.com/gpu",
 "devices": [
  {"name": "0", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}},
  {"name": "all", "containerEdits": {"deviceNodes": [{"path": "/dev/nvidia0"}]}}],
 "containerEdits": {
  "env": ["NVIDIA_VISIBLE_DEVICES=void"],
  "deviceNodes": [{"path": "/dev/nvidia-uvm"}, {"path": "/dev/nvidiactl"}],
  "mounts": [{"hostPath": "/usr/local/nvidia", "containerPath": "/usr/local/nvidia",
              "options": ["ro", "nosuid", "nodev", "rbind", "rprivate"]}]}}
"""


def test_an_engine_that_does_not_list_its_cdi_devices_says_where_they_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(docker_checks, "device_files", lambda: True)
    info = {**OLDER, "CDISpecDirs": [str(tmp_path), str(tmp_path / "missing")]}
    assert passing(LOCAL, info) is None
    (tmp_path / "broken.yaml").write_text("kind: [")
    (tmp_path / "vendor.json").write_text('{"kind": "vendor.com/net", "devices": [{"name": "0"}]}')
    (tmp_path / "wrong.json").write_text('{"kind": "nvidia.com/gpu", "devices": ["0"]}')
    (tmp_path / "notes.txt").write_text(H100)
    assert passing(LOCAL, info) is None
    (tmp_path / "nvidia.json").write_text(H100)
    assert passing(LOCAL, info) == Passing("cdi", ("0",), 1)
    assert passing(ELSEWHERE, info) is None  # its files are not ours
    assert passing(LOCAL, {**info, "CDISpecDirs": []}) is None  # not told to pass any


def test_a_worker_never_makes_a_simulated_gpu_look_real() -> None:
    assert resolve_gpu(ELSEWHERE, NVIDIA, topology("auto", head=1, worker=1)) == "simulated"
    assert resolve_gpu(ELSEWHERE, NVIDIA, topology("auto", head=0, worker=1)) == "simulated"
    with pytest.raises(CannotRun, match="worker group"):
        resolve_gpu(ELSEWHERE, NVIDIA, topology("real", head=1, worker=1))


def test_a_topology_without_gpus_has_none() -> None:
    assert resolve_gpu(ELSEWHERE, NVIDIA, load_topology("cpu_only")) == "none"
    bare = override(load_topology("default"), ["head.resources.GPU=0"])
    assert resolve_gpu(ELSEWHERE, NVIDIA, bare) == "none"


# ---- archives


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


@given(
    lines=st.lists(st.text(st.characters(exclude_characters="\n", codec="utf-8"))),
    ended=st.booleans(),
    size=st.integers(1, 7),
)
def test_lines_come_whole_however_the_stream_was_cut(
    lines: list[str], ended: bool, size: int
) -> None:
    text = "\n".join(lines) + ("\n" if ended else "")
    assert list(lines_of(pieces(text.encode(), size))) == list(io.StringIO(text, newline="\n"))


def test_a_file_put_into_the_ledger_is_fetched_whole(tmp_path: Path) -> None:
    data = os.urandom(100_000)
    packed = tar_of_file("run-1/control.json", data)
    assert only_file(pieces(packed, 777)) == data
    extract(pieces(packed, 777), tmp_path)  # leaves out the topmost part, here run-1
    assert (tmp_path / "control.json").read_bytes() == data


def test_data_is_there_before_the_name_that_is_read() -> None:
    with tarfile.open(fileobj=io.BytesIO(tar_of_file("a/b/c.json", b"{}"))) as tar:
        entries = [(m.name, m.type, m.mode) for m in tar]
    assert entries == [
        ("a", tarfile.DIRTYPE, 0o777),
        ("a/b", tarfile.DIRTYPE, 0o777),
        ("a/b/.c.json.part", tarfile.REGTYPE, 0o644),
        ("a/b/c.json", tarfile.LNKTYPE, 0o644),
    ]


def test_an_archive_cannot_write_elsewhere(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for name in ("logs/../../evil", "logs/good"):
            entry = tarfile.TarInfo(name)
            entry.size = 2
            tar.addfile(entry, io.BytesIO(b"hi"))
        link = tarfile.TarInfo("logs/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(link)
        hard = tarfile.TarInfo("logs/hard")
        hard.type, hard.linkname = tarfile.LNKTYPE, "logs/../../../etc/passwd"
        tar.addfile(hard)
    into = tmp_path / "deep" / "er"
    extract([buffer.getvalue()], into)
    assert [p.relative_to(tmp_path) for p in tmp_path.rglob("*") if not p.is_dir()] == [
        Path("deep/er/good")
    ]


def test_the_programs_that_are_copied_in_are_those_of_the_package(tmp_path: Path) -> None:
    (tmp_path / "a.py").write_text("x = 1")
    (tmp_path / "__pycache__").mkdir()
    (tmp_path / "__pycache__" / "a.pyc").write_text("no")
    with tarfile.open(fileobj=io.BytesIO(tar_of_folder(tmp_path, "/opt/x"))) as tar:
        assert tar.getnames() == ["opt/x/a.py"]


def test_what_is_copied_in_belongs_to_the_nodes_user(tmp_path: Path) -> None:
    (tmp_path / "data" / "sub").mkdir(parents=True)
    (tmp_path / "data" / "sub" / "run.sh").write_text("#!/bin/sh")
    (tmp_path / "data" / "sub" / "run.sh").chmod(0o700)
    (tmp_path / "data" / "link").symlink_to("sub")
    os.mkfifo(tmp_path / "data" / "pipe")
    for name, names in (
        ("copy", ["copy", "copy/link", "copy/sub", "copy/sub/run.sh"]),
        (None, ["link", "sub", "sub/run.sh"]),
    ):
        buffer = io.BytesIO()
        left_out = tar_for(buffer, tmp_path / "data", name, (1000, 100))
        assert left_out == ["copy/pipe" if name else "pipe"]
        with tarfile.open(fileobj=io.BytesIO(buffer.getvalue())) as tar:
            entries = {m.name: m for m in tar}
        assert sorted(entries) == names
        assert {(m.uid, m.gid, m.uname) for m in entries.values()} == {(1000, 100, "")}
        assert entries[names[-1]].mode == 0o700


def test_what_is_copied_out_is_listed_if_it_was_left_out(tmp_path: Path) -> None:
    source = tmp_path / "logs"
    source.mkdir()
    (source / "a.sh").write_text("hi")
    (source / "a.sh").chmod(0o755)
    (source / "to-a").symlink_to("a.sh")
    buffer = io.BytesIO()
    tar_for(buffer, source, "logs", (0, 0))
    into = tmp_path / "into"
    assert extract(pieces(buffer.getvalue(), 777), into) == ["logs/to-a"]
    assert [p.name for p in into.iterdir()] == ["a.sh"]
    assert os.access(into / "a.sh", os.X_OK)
    only = io.BytesIO()
    tar_for(only, source / "a.sh", "a.sh", (0, 0))
    save_file(pieces(only.getvalue(), 777), tmp_path / "one")
    assert (tmp_path / "one").read_text() == "hi"
    assert os.access(tmp_path / "one", os.X_OK)


# ---- making nodes beside others


def container(group: str, number: int, state: NodeState = "running") -> _Container:
    labels = {"ray-sim.role": "worker", "ray-sim.group": group}
    name = f"{group}-{number}"
    return _Container(name, "lab", "worker", name, state, labels, {}, frozenset())


def test_what_compose_cannot_make_is_refused_before_it_tries() -> None:
    nodes = [container("cpu", 1), container("cpu", 3), container("gpu", 1, "paused")]
    _refuse_beside(nodes, {"cpu": ["cpu-4"]})
    _refuse_beside(nodes, {"new": ["new-1"]})
    with pytest.raises(BadInput) as caught:
        _refuse_beside(nodes, {"cpu": ["cpu-2"], "gpu": ["gpu-2"]})
    said = str(caught.value)
    assert "cpu-2: was removed by hand" in said
    assert "scale the group down first: scale cpu=1" in said
    assert "gpu-1: is paused, so no node can be made beside it; resume gpu-1" in said


class Compose:
    """Stands for `docker compose`: keeps what it was asked to make."""

    asked: ClassVar[list[tuple[Path, str]]] = []

    def __init__(self, *, compose_files: list[Path], compose_project_name: str) -> None:
        self.file = compose_files[0]
        self.compose = self

    def create(self, services: object, **options: object) -> None:
        self.asked.append((self.file, self.file.read_text(encoding="utf-8")))


def test_a_runs_folder_keeps_what_its_cluster_was_made_of(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("simulator.backends.docker.backend.DockerClient", Compose)
    monkeypatch.setattr(Compose, "asked", [])
    spec = ClusterSpec("lab", load_topology("default"), "none", run_dir=tmp_path)
    backend = DockerBackend()
    backend._run_compose(spec, "as it was run", None)
    backend._run_compose(spec, "scaled later", ["worker"])
    assert [text for _, text in Compose.asked] == ["as it was run", "scaled later"]
    assert (tmp_path / "compose.yaml").read_text() == "as it was run"
    assert not Compose.asked[1][0].exists()


class ByHand:
    """An engine with a cluster that ``docker compose up`` made: nothing keeps what it was made as."""

    def __init__(self, head: str, worker: str, profile: str = "") -> None:
        self.images = {"head": head, "worker-1": worker}
        self.profile = profile

    def containers(self, **_: Any) -> list[dict[str, Any]]:
        labels = {"ray-sim.cluster": "lab", "com.docker.compose.container-number": "1"}
        worker = {"ray-sim.role": "worker", "ray-sim.group": "worker"}
        if self.profile:
            worker["ray-sim.profile"] = self.profile
        head = {"ray-sim.role": "head", "ray-sim.group": "head", "ray-sim.gpu": "real"}
        return [
            {"Id": "head", "Labels": labels | head, "State": "running"},
            {"Id": "worker-1", "Labels": labels | worker, "State": "running"},
        ]

    def inspect_container(self, ident: str) -> dict[str, Any]:
        gpus = ["--num-gpus=1"] if ident == "head" else []
        config = {
            "Hostname": ident,
            "Cmd": [ident, "--num-cpus=2", *gpus],
            "Image": self.images[ident],
            "Env": ["RAY_health_check_period_ms=500", "PATH=/bin"],
        }
        return {"Config": config, "State": {"ExitCode": 0}}


def test_a_cluster_by_hand_is_read_back_and_its_own_images_are_no_choice_of_anybodys(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    spec = with_engine(ByHand(GPU_IMAGE, LEAN_IMAGE, "lean"), monkeypatch).spec("lab")
    assert (spec.image, spec.gpu, spec.from_nodes) == (None, "real", True)
    assert spec.topology.lean_groups == ["worker"]
    assert spec.env == {"RAY_health_check_period_ms": "500"}
    assert [n.name for n in spec.topology.nodes()] == ["head", "worker-1"]
    assert with_engine(ByHand("my/ray:1", "my/ray:1"), monkeypatch).spec("lab").image == "my/ray:1"


# ---- a program's output


class Starting(ByHand):
    """An engine that keeps what it was told to make."""

    def __init__(self) -> None:
        super().__init__(DEFAULT_IMAGE, DEFAULT_IMAGE)
        self.made: list[dict[str, Any]] = []

    def networks(self, **_: Any) -> list[dict[str, Any]]:
        return []

    def inspect_container(self, ident: str) -> dict[str, Any]:
        model = super().inspect_container(ident)
        mount = {"Destination": INNODE_TARGET, "Type": "bind", "Source": "/here", "RW": False}
        return {
            "Config": {**model["Config"], "User": "ray"},
            "HostConfig": {"NetworkMode": "lab"},
            "Image": "sha256:1",
            "Mounts": [mount],
        }

    def create_host_config(self, **options: Any) -> dict[str, Any]:
        return options

    def create_container(self, **options: Any) -> dict[str, Any]:
        self.made.append(options["host_config"])
        return {"Id": "program"}

    def start(self, ident: str) -> None:
        assert ident == "program"


def test_only_output_that_is_read_again_may_fill_the_engines_disk(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = Starting()
    backend = with_engine(engine, monkeypatch)
    backend.run_program("lab", "observer", ["x"], {})
    backend.run_program("lab", "monitor-1", ["x"], {}, keep_output=False)
    sizes = [made["log_config"].config["max-size"] for made in engine.made]
    assert sizes == ["1g", "4m"]


class FlakyEngine:
    """Gives a program's output in streams that break; ends it at the last."""

    def __init__(self, streams: list[bytes]) -> None:
        self.streams = streams

    def inspect_container(self, container: str) -> dict[str, Any]:
        return {"State": {"Running": len(self.streams) > 1, "ExitCode": 0}}

    def logs(self, container: str, **options: Any) -> Iterator[bytes]:
        data = self.streams.pop(0) if len(self.streams) > 1 else self.streams[0]
        return pieces(data, 3)


def test_a_broken_stream_is_taken_up_again_without_loss_or_repeat() -> None:
    whole = b"one\ntwo\nthree\nfour\n"
    engine: Any = FlakyEngine([whole[:6], whole[:9], whole[:4], whole])
    assert list(DockerProgram(engine, "id", "observer").lines()) == ["one", "two", "three", "four"]
