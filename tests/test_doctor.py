"""What the doctor says: of captured answers, of a shell, and of the real engine's kernel."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulator import doctor
from simulator.assets import innode_path
from simulator.backends import select
from simulator.backends.base import LABEL_CLUSTER, Check
from simulator.backends.docker import checks as docker_checks
from simulator.backends.docker import trials
from simulator.backends.docker.checks import gpu_checks
from simulator.backends.docker.engine import Connection
from simulator.backends.docker.image import DEFAULT_IMAGE, RAY_VERSION
from simulator.backends.docker.probe import Probed
from simulator.backends.nvidia import Driver, look_at_driver
from simulator.backends.process import checks as process_checks
from simulator.errors import CannotRun
from simulator.innode.kernel import FEATURES, is_unused
from simulator.topology import Topology, load_topology, override, parse_topology

LOCAL = Connection("", False, "test")
ELSEWHERE = Connection("tcp://far.invalid:2376", False, "test")
WELL = Probed("3.11.2", "2.60.0", dict.fromkeys(FEATURES, "yes"), "yes", "yes")


@pytest.fixture
def topology() -> Topology:
    return load_topology("default")


def by_name(checks: Any) -> dict[str, Check]:
    return {check.name: check for check in checks}


# ---- versions


def test_the_same_python_and_ray_here_and_in_the_image_are_well() -> None:
    assert trials.versions(WELL, "3.11.2", "2.60.0").level == "ok"


@pytest.mark.parametrize(("python", "ray"), [("3.11.7", "2.60.0"), ("3.11.2", "2.59.1")])
def test_another_patch_or_ray_here_is_a_warning_that_names_both(python: str, ray: str) -> None:
    check = trials.versions(WELL, python, ray)
    assert check.level == "warning"
    assert all(part in check.text for part in ("3.11.2", "2.60.0", python, ray))
    assert "ray://" in check.remedy


def test_no_ray_here_is_well_whatever_the_python() -> None:
    check = trials.versions(WELL, "3.13.1", "")
    assert check.level == "ok"
    assert "none is needed" in check.text


def test_an_image_without_ray_is_a_problem() -> None:
    assert trials.versions(Probed("3.12.0", None), "3.12.0", "").level == "problem"


# ---- what faults need


def test_a_kernel_that_has_everything_gives_no_warning() -> None:
    assert {check.level for check in trials.fault_needs(WELL)} == {"ok"}


def test_what_the_kernel_lacks_is_named_with_the_module_and_the_rest_stays_well() -> None:
    probed = Probed("3.11.2", "2.60.0", {**WELL.features, "netem": "no"}, "yes", "yes")
    found = by_name(trials.fault_needs(probed))
    assert found["delay"].level == "warning"
    assert "sch_netem" in found["delay"].remedy
    assert {c.level for name, c in found.items() if name != "delay"} == {"ok"}


def test_what_could_not_be_asked_is_never_well() -> None:
    answers = dict.fromkeys(FEATURES, "not known: Operation not permitted")
    for features in (answers, {}):
        found = by_name(trials.fault_needs(Probed("3.11.2", "2.60.0", features, "yes", "yes")))
        for name in ("packet filter", "packet loss", "delay", "bandwidth"):
            assert found[name].level == "warning"
            assert found[name].text.startswith("not known")


def test_one_of_two_packet_filters_is_enough_and_no_filter_is_none() -> None:
    old = {**WELL.features, "nf_tables": "no", "nft_statistic": "no"}
    assert (
        by_name(trials.fault_needs(Probed("3", "2", old, "yes", "yes")))["packet filter"].level
        == "ok"
    )
    none = {**old, "ip_tables": "no", "ipt_statistic": "not known: x"}
    found = by_name(trials.fault_needs(Probed("3", "2", none, "yes", "yes")))
    assert found["packet filter"].text == "the kernel drops no packets: no partitions"
    assert found["packet loss"].text == "not known: x"


def test_an_engine_that_refuses_to_freeze_says_why() -> None:
    probed = Probed("3.11.2", "2.60.0", WELL.features, "no: cgroups are not mounted", "yes")
    freezer = by_name(trials.fault_needs(probed))["freezer"]
    assert (freezer.level, freezer.text) == ("warning", "no pause (cgroups are not mounted)")


# ---- addresses


def test_a_subnet_by_hand_that_overlaps_is_named_with_its_owner_and_the_way_out(
    topology: Topology,
) -> None:
    taken = {"10.0.0.0/8": "a route of this machine"}
    found = by_name(trials.subnet_checks(taken, topology, {}))
    assert found["subnet"].level == "problem"  # all candidates lie in it
    assert "10.0.0.0/8: a route of this machine" in found["subnet by hand"].text
    assert "RAY_SIM_SUBNET" in found["subnet by hand"].remedy


def test_a_subnet_that_the_users_shell_names_is_the_one_that_is_looked_at(
    topology: Topology,
) -> None:
    taken = {
        "10.213.77.0/24": "the Docker network other",
        "172.17.0.0/16": "bridge",
        "fd00::/64": "v6",
    }
    shell = {"RAY_SIM_SUBNET": "10.99.0.0/24"}
    found = by_name(trials.subnet_checks(taken, topology, shell))
    assert [found[name].level for name in ("subnet", "subnet by hand")] == ["ok", "ok"]
    assert "10.99.0.0/24" in found["subnet by hand"].text
    bad = by_name(trials.subnet_checks({}, topology, {"RAY_SIM_SUBNET": "10.99.0.1/24"}))
    assert bad["subnet by hand"].level == "warning"


def test_the_subnet_of_a_cluster_that_was_started_by_hand_is_no_clash(topology: Topology) -> None:
    taken = {"10.213.77.0/24": "cluster ray-sim"}
    found = by_name(trials.subnet_checks(taken, topology, {}))
    assert found["subnet by hand"].level == "ok"
    assert "cluster ray-sim has it" in found["subnet by hand"].text


# ---- memory


def test_shared_memory_is_compared_with_the_stores_and_the_engines_memory(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert docker_checks._shared_memory({"MemTotal": 8 * 2**30}, topology).level == "ok"
    full = docker_checks._shared_memory({"MemTotal": 256 * 2**20}, topology)
    assert (full.level, "400 MiB" in full.text) == ("warning", True)
    monkeypatch.setattr(docker_checks, "OBJECT_STORE_BYTES", 2**30)
    small = docker_checks._shared_memory({"MemTotal": 8 * 2**30}, topology)
    assert "on disk" in small.text
    assert "shm_size" in small.remedy


def test_processes_share_one_shm_and_too_little_of_it_is_a_warning(
    topology: Topology, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(process_checks, "OBJECT_STORE_BYTES", 1)
    assert process_checks.shared_memory(topology, str(tmp_path)).level == "ok"
    monkeypatch.setattr(process_checks, "OBJECT_STORE_BYTES", 2**60)
    assert "on disk" in process_checks.shared_memory(topology, str(tmp_path)).text
    assert process_checks.shared_memory(topology, str(tmp_path / "none")).level == "warning"


def test_addresses_of_processes_are_looked_for_and_too_many_nodes_are_a_problem(
    topology: Topology,
) -> None:
    if sys.platform == "linux":
        assert process_checks.addresses(topology).level == "ok"
    many = parse_topology(
        {
            "head": {"resources": {"CPU": 1}},
            "worker_groups": [{"group_name": "w", "replicas": 256}],
        },
        "test",
    )
    assert process_checks.addresses(many).level == "problem"


# ---- GPUs

NVIDIA: dict[str, Any] = {"Runtimes": {"runc": {}, "nvidia": {}}}
NONE: dict[str, Any] = {"Runtimes": {"runc": {}}}
TWO = Driver(("NVIDIA L4", "NVIDIA L4"))


def test_without_a_gpu_nothing_is_missing_and_it_is_said_to_be_simulated(
    topology: Topology,
) -> None:
    found = by_name(gpu_checks(LOCAL, NONE, topology, Driver()))
    assert {check.level for check in found.values()} == {"ok"}
    assert "simulated" in found["gpu"].text


def test_each_missing_link_to_a_gpu_is_named_with_its_remedy(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(docker_checks, "device_files", lambda: True)
    toolkit = by_name(gpu_checks(LOCAL, NONE, topology, TWO))["GPU toolkit"]
    assert toolkit.level == "warning"
    assert "nvidia-ctk" in toolkit.remedy
    broken = Driver(error="nvidia-smi: Failed to initialize NVML: Driver/library version mismatch")
    driver = by_name(gpu_checks(LOCAL, NVIDIA, topology, broken))["GPU driver"]
    assert (driver.level, "mismatch" in driver.text) == ("warning", True)
    found = by_name(gpu_checks(LOCAL, NVIDIA, topology, TWO))
    assert "2: NVIDIA L4, NVIDIA L4" in found["GPU driver"].text
    assert "this machine's GPU" in found["gpu"].text
    three = override(topology, ["head.resources.GPU=3"])
    few = by_name(gpu_checks(LOCAL, NVIDIA, three, TWO))["GPU driver"]
    assert (few.level, "fewer than the head's 3" in few.text) == ("warning", True)


def test_a_real_gpu_that_is_wanted_and_not_there_is_a_problem(topology: Topology) -> None:
    real = override(topology, ["head.gpus=real"])
    assert by_name(gpu_checks(LOCAL, NONE, real, Driver()))["gpu"].level == "problem"


def test_processes_say_what_their_gpus_would_be(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    found = by_name(process_checks.gpu_checks(topology, TWO))
    assert (found["GPU driver"].level, found["GPU driver"].text) == (
        "ok",
        "2: NVIDIA L4, NVIDIA L4",
    )
    assert "this machine's GPU" in found["gpu"].text
    found = by_name(process_checks.gpu_checks(topology, Driver()))
    assert {check.level for check in found.values()} == {"ok"}
    assert "simulated" in found["gpu"].text


def test_a_shell_that_hides_the_gpus_from_its_programs_is_told(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    found = by_name(process_checks.gpu_checks(override(topology, ["head.gpus=real"]), TWO))
    assert "CUDA_VISIBLE_DEVICES leaves none of them" in found["GPU driver"].text
    assert (found["gpu"].level, found["gpu"].remedy) == (
        "problem",
        "Unset CUDA_VISIBLE_DEVICES, or set head.gpus=auto to simulate one",
    )


def test_nothing_is_said_of_the_driver_of_an_engine_elsewhere(topology: Topology) -> None:
    found = by_name(gpu_checks(ELSEWHERE, NVIDIA, topology, TWO))
    assert "not known" in found["GPU driver"].text
    assert "NVIDIA runtime" in found["GPU toolkit"].text


@pytest.mark.parametrize(
    ("output", "code", "expected"),
    [
        # As a driver of version 580 says it.
        ("GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-4b3d6d82-61eb-ddd0-c6fe-719266c2de45)\n", 0,
         Driver(("NVIDIA H100 80GB HBM3",))),
        ("GPU 0: NVIDIA L4 (UUID: GPU-1)\nGPU 1: Tesla T4 (UUID: GPU-2)\n", 0,
         Driver(("NVIDIA L4", "Tesla T4"))),
        ("Failed to initialize NVML\n", 18, Driver(error="nvidia-smi: Failed to initialize NVML")),
        ("", 9, Driver(error="nvidia-smi: exit code 9")),
    ],
)  # fmt: skip
def test_the_driver_is_asked_by_its_own_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, code: int, expected: Driver
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\nprintf '{output}'\nexit {code}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert look_at_driver() == expected


# ---- the user's shell


def test_a_shell_that_gets_in_the_way_is_told_and_a_token_is_not_shown(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (*doctor._IN_THE_WAY, "RAY_AUTH_MODE", "http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    assert [check.level for check in doctor.shell_checks()] == ["ok"]
    for name in doctor._IN_THE_WAY:
        monkeypatch.setenv(name, "my-secret")
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("http_proxy", "http://proxy.invalid:3128")
    monkeypatch.setenv("no_proxy", "example.invalid")
    monkeypatch.delenv("NO_PROXY", raising=False)
    found = by_name(doctor.shell_checks())
    assert set(found) == {*doctor._IN_THE_WAY, "RAY_AUTH_MODE", "proxy"}
    assert "my-secret" not in found["RAY_AUTH_TOKEN"].text
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    assert "proxy" not in by_name(doctor.shell_checks())


def test_a_trial_that_breaks_costs_nothing_of_what_was_found(
    topology: Topology, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Backend:
        name = "docker"

        def check(self, topology: Topology) -> list[Check]:
            return [Check("ok", "engine", "answers")]

        def try_out(self, *asked: Any) -> list[Check]:
            raise error

    backend: Any = Backend()
    monkeypatch.setattr(select, "make", lambda name: backend)
    monkeypatch.setattr(select, "choose", lambda name: select.Choice(backend, "x"))
    for error in (CannotRun("it broke", why="so it is"), ZeroDivisionError("division")):
        diagnosis = doctor.examine(topology, "docker")
        (section,) = [s for s in diagnosis.sections if s.backend]
        found = by_name(section.checks)
        assert diagnosis.able
        assert found["engine"].level == "ok"
        assert found["trials"].level == "warning"
        assert str(error) in found["trials"].text or "it broke: so it is" in found["trials"].text
        # It can neither kill nor pause, and says so.
        assert found["faults"].text.startswith("stop, drain; ")
        assert "kill, restart, preempt need one that can kill" in found["faults"].text


# ---- the real thing


def test_nothing_is_tried_in_a_network_that_is_in_use() -> None:
    if sys.platform != "linux" or is_unused():
        pytest.skip("only where there is a network device besides lo")
    done = subprocess.run(
        [sys.executable, str(innode_path() / "kernel.py")],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")


@pytest.mark.real_docker
def test_the_engines_kernel_answers_and_nothing_is_left(topology: Topology) -> None:
    said: list[str] = []
    diagnosis = doctor.examine(topology, "docker", say=said.append)
    (section,) = [s for s in diagnosis.sections if s.backend == "docker"]
    found = by_name(section.checks)
    assert diagnosis.able
    assert f"Ray {RAY_VERSION}" in found["versions"].text
    for name in ("freezer", "CPU limits", "packet filter"):
        assert found[name].level == "ok", found[name].text
    assert not any("not known" in check.text for check in found.values())
    assert any(DEFAULT_IMAGE in text for text in said)
    assert doctor_containers() == []


#: A doctor that looks into a container for ever.
SLOW = """
import time
from simulator.backends.docker import probe
from simulator.backends.docker.engine import connect, find_connection
from simulator.backends.docker.image import DEFAULT_IMAGE

def never(*_):
    print("looking", flush=True)
    time.sleep(600)

probe._answer = never
probe.probe(connect(find_connection()), DEFAULT_IMAGE)
"""


@pytest.mark.real_docker
def test_a_doctor_that_is_killed_leaves_only_what_down_finds() -> None:
    before = set(doctor_containers())
    with subprocess.Popen([sys.executable, "-c", SLOW], stdout=subprocess.PIPE, text=True) as slow:
        assert slow.stdout is not None
        assert slow.stdout.readline() == "looking\n"
        slow.kill()
    left = set(doctor_containers()) - before
    assert len(left) == 1
    for name in left:
        subprocess.run(
            [sys.executable, "-m", "simulator", "down", "--name", name], check=True,
            capture_output=True,
        )  # fmt: skip
    assert set(doctor_containers()) == before


def doctor_containers() -> list[str]:
    """Clusters' names on containers of a doctor, running or not."""
    done = subprocess.run(
        ["docker", "ps", "--all", "--filter", f"label={LABEL_CLUSTER}", "--format",
         f'{{{{.Label "{LABEL_CLUSTER}"}}}}'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return [name for name in done.stdout.split() if name.startswith("doctor-")]
