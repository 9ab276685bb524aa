"""The process backend without Ray: directories, addresses, markers, and real processes that carry them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulator.backends.base import ClusterSpec
from simulator.backends.process import ProcessBackend
from simulator.backends.process.table import MARKER, belongs, kill_all, living, run_state
from simulator.errors import CannotRun, NotFound
from simulator.topology import Topology, load_topology, override

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes are read from /proc")


@pytest.fixture
def backend(tmp_path: Path) -> ProcessBackend:
    return ProcessBackend(tmp_path / "state")


def spec(name: str, topology: Topology | None = None) -> ClusterSpec:
    return ClusterSpec(name, topology or load_topology("default"), "simulated")


def sleeper(owner: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(["sleep", "60"], env={**os.environ, MARKER: str(owner)})


def test_a_created_cluster_is_found_by_everybody(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    (record,) = ProcessBackend(backend.root).clusters()
    assert [n.name for n in record.nodes] == ["head", "worker-1", "worker-2", "worker-3"]
    assert {n.state for n in record.nodes} == {"created"}
    assert record.gpu == "simulated"
    backend.remove("one")
    assert backend.clusters() == []


def test_nodes_and_clusters_have_addresses_of_their_own(backend: ProcessBackend) -> None:
    for name in ("one", "two", "three"):
        backend.create(spec(name))
    addresses = [n.address for c in backend.clusters() for n in c.nodes]
    assert len(set(addresses)) == 12
    assert all(a.startswith("127.") and not a.startswith("127.0.") for a in addresses)


def test_creating_again_changes_nothing(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    before = backend.endpoint("one")
    backend.create(spec("one"))
    assert backend.endpoint("one") == before


def test_the_token_is_for_the_user_alone(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    path = backend.root / "one" / "token"
    assert path.stat().st_mode & 0o077 == 0
    assert len(backend.endpoint("one").token) >= 32
    assert backend.endpoint("one").token not in repr(backend.endpoint("one"))


def test_sockets_get_a_short_path(backend: ProcessBackend) -> None:
    facts_tmp = Path("/tmp")
    backend.create(spec("a-cluster-with-a-very-long-name-indeed"))
    facts = backend._facts("a-cluster-with-a-very-long-name-indeed")
    socket = (
        f"{facts['tmp']}/worker-16/session_2026-01-01_00-00-00_000000_1234567/sockets/plasma_store"
    )
    assert len(socket) < 107
    assert Path(facts["tmp"]).parent == facts_tmp


def test_unknown_names_are_told_with_the_nearest(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    with pytest.raises(NotFound, match="did you mean worker-1"):
        backend.kill("one", "worker-11")
    with pytest.raises(NotFound, match="one"):
        backend.cluster("onne")


def test_resources_and_labels_reach_ray_start(backend: ProcessBackend) -> None:
    topology = override(
        load_topology("default"),
        ["worker_groups.worker.resources.licence=2", "worker_groups.worker.labels.zone=a"],
    )
    backend.create(spec("one", topology))
    arguments = backend._facts("one")["nodes"]["worker-1"]["arguments"]
    assert "--num-cpus=1" in arguments
    assert "--num-gpus=0" in arguments
    assert '--resources={"licence": 2.0}' in arguments
    assert "--labels=zone=a" in arguments


def test_the_users_own_ray_settings_do_not_reach_the_nodes(
    backend: ProcessBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "somewhere:6379")
    backend.create(spec("one"))
    environment = backend._environment(backend._facts("one"), "one", "worker-1")
    assert "RAY_ADDRESS" not in environment
    assert environment["RAY_AUTH_MODE"] == "token"


def test_only_processes_that_carry_the_marker_are_killed(tmp_path: Path) -> None:
    mine, other = tmp_path / "one" / "worker-1", tmp_path / "one" / "worker-11"
    victim, bystander = sleeper(mine), sleeper(other)
    try:
        assert living(mine) == [victim.pid]
        assert sorted(living(tmp_path / "one", below=True)) == sorted([victim.pid, bystander.pid])
        assert kill_all(mine)
        assert victim.wait(timeout=5) == -signal.SIGKILL
        assert bystander.poll() is None
        assert belongs(bystander.pid, other)
        assert not belongs(bystander.pid, mine)
    finally:
        bystander.kill()
        bystander.wait()
    assert run_state(bystander.pid) == ""


def test_removing_a_cluster_takes_its_orphans_too(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    orphan = sleeper(backend.root / "one" / "worker-2")
    backend.remove("one")
    assert orphan.wait(timeout=5) == -signal.SIGKILL
    assert not (backend.root / "one").exists()
    backend.remove("one")


def test_a_node_is_paused_when_all_of_it_is(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    home = backend.root / "one" / "worker-1"
    processes = [sleeper(home), sleeper(home)]
    (home / "pid1").write_text(str(processes[0].pid))
    try:
        assert backend.cluster("one").nodes[1].state == "running"
        backend.pause("one", "worker-1")
        assert {run_state(p.pid) for p in processes} == {"T"}
        assert backend.cluster("one").nodes[1].state == "paused"
        backend.resume("one", "worker-1")
        assert backend.cluster("one").nodes[1].state == "running"
        backend.kill("one", "worker-1")
        record = backend.cluster("one").nodes[1]
        assert (record.state, record.exit_code) == ("exited", 137)
    finally:
        backend.remove("one")


def test_a_pid_that_was_given_to_somebody_else_is_not_the_node(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    home = backend.root / "one" / "worker-1"
    (home / "pid1").write_text(str(os.getpid()))
    assert backend.cluster("one").nodes[1].state == "exited"


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
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho 'GPU 0: Some Model (UUID: GPU-1)'\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    assert backend.gpu_kind(load_topology("default")) == "real"
    simulated = override(load_topology("default"), ["head.gpus=simulated"])
    assert backend.gpu_kind(simulated) == "simulated"


def test_too_little_memory_is_a_problem(backend: ProcessBackend) -> None:
    crowd = Topology.model_validate({"worker_groups": [{"group_name": "w", "replicas": 60_000}]})
    problems = [c for c in backend.check(crowd) if c.level == "problem"]
    assert [c.name for c in problems] == ["memory"]
    assert problems[0].remedy


def test_ledger_files_are_written_whole_and_fetched(
    backend: ProcessBackend, tmp_path: Path
) -> None:
    backend.create(spec("one"))
    backend.put_ledger_file("one", "r1/control.json", b'{"go_on": true}')
    backend.fetch_ledger("one", "", tmp_path / "copy")
    assert (tmp_path / "copy" / "r1" / "control.json").read_bytes() == b'{"go_on": true}'


def test_what_a_program_printed_can_be_read_again(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    program = backend.run_program("one", "observer", ["this"], {})
    lines = list(program.lines())
    assert any("Beautiful is better" in text for text in lines)
    again = ProcessBackend(backend.root).program("one", "observer")
    assert again is not None
    assert list(again.lines()) == lines
    again.remove()
    assert backend.program("one", "observer") is None
    backend.remove("one")


def test_a_program_that_goes_on_is_stopped(backend: ProcessBackend) -> None:
    backend.create(spec("one"))
    program = backend.run_program("one", "observer", ["http.server", "0"], {})
    home = backend.root / "one" / "programs" / "observer"
    end = time.monotonic() + 10
    while not living(home):
        assert time.monotonic() < end
        time.sleep(0.02)
    program.stop(timeout=10)
    assert living(home) == []
    backend.remove("one")
