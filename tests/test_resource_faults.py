"""Faults of CPU, memory and disk, and drain, on the fake backend: their logic, not the fact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, cluster_up, fake, finding, state, topology

from simulator.backends.base import (
    LIMIT,
    SPILL_DISK,
    CanKill,
    CanLimit,
    CanSignal,
    Capability,
    ClusterSpec,
    Completed,
    HasSpillDisk,
    Limits,
    Load,
)
from simulator.backends.docker import DockerBackend
from simulator.backends.fake import FakeBackend
from simulator.backends.process import ProcessBackend
from simulator.cluster import HEALTH, Cluster
from simulator.errors import BadInput, CannotRun
from simulator.experiment import load_experiment
from simulator.faults import (
    FAULTS,
    CpuLimit,
    CpuStress,
    DiskFull,
    Drain,
    Fault,
    Kill,
    MemoryHog,
    MemoryLimit,
    Oom,
    Pause,
    Site,
    fault_from_data,
)
from simulator.schedule import After, AtEnd, Named, Step
from simulator.topology import override

ALL: list[Fault] = [
    CpuLimit(cores=0.25),
    MemoryLimit(limit="600m"),
    CpuStress(processes=3),
    MemoryHog(share=0.8),
    Oom(),
    DiskFull(share=0.9),
    Drain(deadline=30),
]


def with_disks() -> Any:
    return override(topology(), ["worker_groups.worker.spill_size=128m"])


@pytest.fixture
def cluster() -> Cluster:
    backend = fake()
    cluster = Cluster(backend, "c")
    cluster.up(ClusterSpec("c", with_disks(), "simulated", env=HEALTH["fast"]))
    return cluster


def struck(cluster: Cluster, fault: Fault, site: Site | None = None) -> Site:
    found = fault.locate(cluster, site or Site("worker-1", "f1"))
    fault.inject(cluster, found)
    cluster.clock.sleep(1.0)
    return found


def cpus(cluster: Cluster) -> float | None:
    assert isinstance(cluster.backend, CanLimit)
    return cluster.backend.limits("c", "worker-1").cpus


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_inject_heal_and_heal_again(cluster: Cluster, fault: Fault) -> None:
    assert fault.refused_by(cluster.backend) is None
    assert fault.refused_on(with_disks().workers()[0]) is None
    site = struck(cluster, fault)
    assert fault.holds(cluster, site)
    assert fault.heal(cluster, site, 60)
    assert fault.lingers(cluster, site) == ""
    assert state(cluster, "worker-1") == "alive"
    assert fault.heal(cluster, site, 60)
    assert fault.lingers(cluster, site) == ""
    assert state(cluster, "worker-1") == "alive"


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_what_another_process_reads_undoes_the_same(cluster: Cluster, fault: Fault) -> None:
    site = struck(cluster, fault)
    read = Site.from_data(json.loads(json.dumps(site.to_data())))
    same = fault_from_data(json.loads(json.dumps(fault.to_data())))
    assert (same, read) == (fault, site)
    assert same.heal(cluster, read, 60)
    assert same.lingers(cluster, read) == ""


@pytest.mark.parametrize("fault", [f for f in ALL if not isinstance(f, (Oom, Drain))], ids=str)
def test_what_is_left_on_a_node_is_swept_without_a_history(cluster: Cluster, fault: Fault) -> None:
    site = struck(cluster, fault)
    swept = [kind.sweep(cluster, node) for node in ("head", "worker-1") for kind in FAULTS.values()]
    assert len([how for how in swept if how]) == 1
    cluster.start()
    assert fault.lingers(cluster, site) == ""
    again = [kind.sweep(cluster, node) for node in ("head", "worker-1") for kind in FAULTS.values()]
    assert again == [""] * len(again)


def test_a_limit_of_a_node_that_is_down_is_restored_too(cluster: Cluster) -> None:
    site = struck(cluster, CpuLimit(0.25))
    Kill().inject(cluster, Site("worker-1"))
    how = CpuLimit(0.25).heal(cluster, site, 60)
    assert how == "it has 2 cores again; the node is exited, and not by this"
    assert state(cluster, "worker-1") == "exited"
    assert cpus(cluster) == 2


@pytest.mark.parametrize("fault", [f for f in ALL if f.in_node], ids=str)
def test_healing_leaves_a_node_that_another_fault_froze_as_it_is(
    cluster: Cluster, fault: Fault
) -> None:
    assert fault.in_node
    site = struck(cluster, fault)
    Pause().inject(cluster, Site("worker-1"))
    with pytest.raises(CannotRun, match="paused"):
        fault.heal(cluster, site, 60)
    assert cluster.node("worker-1").state == "paused"


# ---- overlapping limits


@pytest.mark.parametrize("order", [(0.5, 0.25), (0.25, 0.5)], ids=["tighter last", "tighter first"])
def test_the_tighter_of_two_limits_counts_until_it_is_healed(
    tmp_path: Path, order: Sequence[float]
) -> None:
    """The first one is healed first; what that took away of the other is put back."""
    seen: list[float | None] = []
    lab = lab_with(
        tmp_path,
        [
            Step(1.0, CpuLimit(order[0]), Named("worker-1"), heal=After(3.0)),
            Step(2.0, CpuLimit(order[1]), Named("worker-1"), heal=After(5.0)),
        ],
    )

    def look(history: Any) -> None:
        if "c" in lab.backend._worlds:
            seen.append(lab.backend.limits("c", "worker-1").cpus)

    lab.on_tick = look
    result = lab.run()
    assert result["status"] == "completed"
    history = lab.history(result)
    changes = [v for i, v in enumerate(seen) if i == 0 or v != seen[i - 1]]
    expected = [2.0, order[0], min(order), order[1], 2.0]
    assert changes == [v for i, v in enumerate(expected) if i == 0 or v != expected[i - 1]]
    assert [op.data["id"] for op in history.of("fault.again")] == ["f2"]
    assert all(op.data["verified"] for op in history.of("fault.effect", "fault.healed"))


def lab_with(root: Path, steps: Sequence[Step], nodes: Any = None) -> Lab:
    experiment = load_experiment("node_failure")
    kind = type(experiment)

    class Other(kind):  # type: ignore[misc, valid-type]
        def schedule(self, params: Any, topology: Any) -> Sequence[Step]:
            return steps

        def problems(self, params: Any, topology: Any) -> Sequence[Any]:
            return ()

    return Lab(root, experiment=Other())


def test_a_restart_by_another_fault_does_not_end_what_lasts(tmp_path: Path) -> None:
    lasting: list[Fault] = [CpuStress(2), MemoryHog(0.7), DiskFull()]
    steps = [Step(1.0, f, Named("worker-1"), heal=AtEnd()) for f in lasting]
    steps.append(Step(3.0, Kill(), Named("worker-1"), heal=After(2.0)))
    lab = lab_with(tmp_path, steps)
    result = lab.run(topology=with_disks())
    again = [op.data["fault"] for op in lab.history(result).of("fault.again")]
    assert again == ["cpu_stress", "memory_hog", "disk_full"]
    assert all(op.data["verified"] for op in lab.history(result).of("fault.healed"))


def test_what_lies_in_a_frozen_node_is_healed_after_it_is_thawed(tmp_path: Path) -> None:
    steps = [
        Step(1.0, CpuStress(2), Named("worker-1"), heal=After(2.0)),
        Step(2.0, Pause(), Named("worker-1"), heal=After(3.0)),
    ]
    lab = lab_with(tmp_path, steps)
    result = lab.run()
    healed = [op.data["fault"] for op in lab.history(result).of("fault.healed")]
    assert healed == ["pause", "cpu_stress"]
    assert result["status"] == "completed"


def test_memory_that_runs_out_is_shown_by_the_engine_and_costs_one_worker(tmp_path: Path) -> None:
    lab = lab_with(tmp_path, [Step(4.0, Oom(), Named("worker-1"), heal=After(2.0), when_busy=True)])
    result = lab.run()
    history = lab.history(result)
    assert [op.node for op in history.of("engine.oom")] == ["worker-1"]
    (effect,) = history.of("fault.effect")
    assert effect.data["verified"]
    assert "killed 1 of its processes" in effect.data["how"]
    assert finding(result, "fault_hit_work")["verdict"] == "valid"
    assert finding(result, "evidence")["verdict"] == "valid"
    assert not history.of("engine.die")


# ---- refused


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (CpuLimit(2.0), "takes nothing away from worker-1: it has 2 cores"),
        (MemoryLimit("4g"), "takes nothing away from worker-1: it has 2048 MiB"),
    ],
)
def test_a_limit_that_limits_nothing_is_refused(cluster: Cluster, fault: Fault, said: str) -> None:
    with pytest.raises(CannotRun) as caught:
        fault.locate(cluster, Site("worker-1"))
    assert said in str(caught.value)


def test_a_memory_limit_below_what_is_used_is_refused_where_the_kernel_would(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert MemoryLimit("100m").locate(cluster, Site("worker-1"))
    used = 200 * 1024**2

    def old(self: FakeBackend, cluster: str, node: str) -> Load:
        return Load(Limits(2.0, 2 * 1024**3), used, 0, 0.0, cgroup=1)

    monkeypatch.setattr(FakeBackend, "load", old)
    with pytest.raises(CannotRun, match="uses 200 MiB, and cgroup v1 takes no limit below"):
        MemoryLimit("100m").locate(cluster, Site("worker-1"))


@pytest.mark.parametrize("fault", [MemoryHog(), Oom()], ids=str)
def test_memory_without_a_limit_is_not_filled(
    cluster: Cluster, fault: Fault, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(FakeBackend, "limits", lambda self, cluster, node: Limits(2.0, None))
    with pytest.raises(CannotRun, match="has no memory limit"):
        fault.locate(cluster, Site("worker-1"))


def test_a_full_disk_on_a_node_without_one_is_refused_before_anything_starts(
    tmp_path: Path,
) -> None:
    lab = lab_with(tmp_path, [Step(1.0, DiskFull(), Named("worker-1"))])
    with pytest.raises(BadInput, match=r"disk_full worker-1: has no disk .* set spill_size"):
        lab.run()
    assert "create" not in [call.method for call in lab.backend.calls]
    with pytest.raises(CannotRun, match="set spill_size"):
        DiskFull().locate(cluster_up(fake()), Site("worker-1"))


def test_the_head_is_not_drained(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="drain head: is the head"):
        lab_with(tmp_path, [Step(1.0, Drain(), Named("head"))]).run()


@pytest.mark.parametrize(
    ("fault", "needs"),
    [
        (CpuLimit(), LIMIT),
        (MemoryLimit(), LIMIT),
        (CpuStress(), LIMIT),
        (MemoryHog(), LIMIT),
        (Oom(), LIMIT),
        (DiskFull(), SPILL_DISK),
    ],
    ids=str,
)
def test_processes_share_the_machine_and_so_are_refused(fault: Fault, needs: Capability) -> None:
    assert fault.needs is needs
    refused = fault.refused_by(ProcessBackend())
    assert refused == f"{fault.name} needs a backend that {needs.means}; process does not"
    assert fault.refused_by(DockerBackend()) is None


@pytest.mark.parametrize(
    ("lacks", "unable"),
    [
        ("CpuCfsQuota", ["cpu_limit"]),
        ("MemoryLimit", ["memory_limit", "memory_hog", "oom"]),
        (None, []),
    ],
)
def test_an_engine_without_a_controller_cannot_do_what_needs_it(
    lacks: str | None, unable: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    info = {"CgroupVersion": "2"} | ({lacks: False} if lacks else {})
    monkeypatch.setattr(DockerBackend, "_info", lambda self: info)
    found = {f.name: why for f in ALL if (why := f.unable(DockerBackend()))}
    assert list(found) == unable
    assert all("cgroup v2 without that controller" in why for why in found.values())
    assert all(f.unable(ProcessBackend()) == f.refused_by(ProcessBackend()) for f in ALL)


def test_which_backend_can_do_what() -> None:
    for backend in (DockerBackend(), fake()):
        assert isinstance(backend, CanLimit)
        assert isinstance(backend, HasSpillDisk)
        assert isinstance(backend, CanSignal)
    assert isinstance(ProcessBackend(), CanSignal)
    assert Drain().refused_by(ProcessBackend()) is None


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: CpuLimit(0), "cores is 0"),
        (lambda: CpuLimit(float("nan")), "cores is nan"),
        (lambda: MemoryLimit("5m"), "at least 6m"),
        (lambda: MemoryLimit("much"), 'limit is "much"; use a number'),
        (lambda: CpuStress(0), "processes is 0"),
        (lambda: MemoryHog(1.0), "or the fault oom"),
        (lambda: DiskFull(0), "share is 0"),
        (lambda: DiskFull(1.5), "share is 1.5"),
        (lambda: Drain(-1), "deadline is -1"),
        (lambda: Drain(float("inf")), "deadline is inf"),
    ],
)
def test_parameters_that_mean_nothing_are_refused_where_they_are_written(
    make: Any, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        make()


# ---- drain


def test_an_idle_node_that_is_drained_leaves_and_comes_back_as_a_new_one(cluster: Cluster) -> None:
    before = cluster.status().nodes[1].ray_node_id
    site = struck(cluster, Drain())
    assert site.details == {"ray_node_id": before}
    assert "it has left" in Drain().holds(cluster, site)
    assert cluster.node("worker-1").exit_code == 12
    assert "joined as a new node" in Drain().heal(cluster, site, 60)
    assert cluster.status().nodes[1].ray_node_id != before


def test_a_busy_node_that_is_drained_works_on_without_new_work_and_is_restarted_to_heal(
    tmp_path: Path,
) -> None:
    lab = lab_with(
        tmp_path, [Step(4.0, Drain(600), Named("worker-1"), heal=After(0.5), when_busy=True)]
    )
    result = lab.run("task_seconds=5")
    history = lab.history(result)
    (effect,) = history.of("fault.effect")
    assert "Ray holds it for draining, 6" in effect.data["how"]
    (healed,) = history.of("fault.healed")
    assert healed.data["how"].startswith("a drain is not taken back, so it was stopped")
    assert healed.data["verified"]


@pytest.mark.parametrize("how", ["killed with it", "too late"])
def test_a_burden_whose_node_goes_down_while_it_is_ended_has_ended(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    fault = CpuStress()
    site = struck(cluster, fault)
    execute = cluster.backend.execute

    def dies(*_: Any, **__: Any) -> Completed:
        monkeypatch.setattr(cluster.backend, "execute", execute)
        assert isinstance(cluster.backend, CanKill)
        cluster.backend.kill("c", "worker-1")
        if how == "too late":
            return execute("c", "worker-1", ["true"])
        return Completed(137, "")

    monkeypatch.setattr(cluster.backend, "execute", dies)
    assert fault.end(cluster, site) == "it ended with the node"


def test_a_burden_that_cannot_be_ended_while_its_node_runs_is_an_error(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    fault = CpuStress()
    site = struck(cluster, fault)
    monkeypatch.setattr(cluster.backend, "execute", lambda *_, **__: Completed(137, ""))
    with pytest.raises(CannotRun, match="worker-1 cannot be burdened: exit code 137"):
        fault.end(cluster, site)
