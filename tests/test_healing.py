"""Healing a cluster whose orchestrator was killed: whatever holds is undone, whoever injected it."""

from __future__ import annotations

import gc
from pathlib import Path

import pytest
from cli import Command, runner_of, use_backends
from fakes import Killed, Lab, cluster_up, fake

from simulator.cluster import Cluster
from simulator.errors import BadInput
from simulator.faults import Kill, Pause, Site
from simulator.healing import heal, open_faults
from simulator.history import History, Recorder, is_being_written
from simulator.store import RunDir


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("RAY_SIM_RUNS", str(tmp_path / "runs"))
    return Lab(tmp_path / "runs")


def kill_when(lab: Lab, kind: str) -> RunDir:
    """Run until an operation of this kind is there and end at once, as SIGKILL would."""

    def kill(history: History) -> None:
        if history.first(kind):
            raise Killed

    lab.on_tick = kill
    with pytest.raises(Killed):
        lab.run(keep=True)
    lab.on_tick = lambda history: None
    for recorder in [o for o in gc.get_objects() if isinstance(o, Recorder)]:
        recorder.close()  # a process that is dead has no file open; this one goes on
    return lab.latest()


def states(cluster: Cluster) -> dict[str, str]:
    return {n.name: n.state for n in cluster.status().nodes}


def test_the_fault_of_a_killed_run_is_undone_from_its_history(lab: Lab) -> None:
    run = kill_when(lab, "fault.effect")
    ((fault, site),) = open_faults(run)
    assert (fault, site.id) == (Kill(), "f1")
    cluster = Cluster(lab.backend, "c")
    assert states(cluster)[site.node] == "exited"
    healing = heal(cluster, [run])
    assert healing.problems == []
    assert f"{site.node}: kill healed; started again; it joined as a new node" in healing.done
    assert set(states(cluster).values()) == {"alive"}


def test_healing_again_changes_nothing(lab: Lab) -> None:
    run = kill_when(lab, "fault.effect")
    cluster = Cluster(lab.backend, "c")
    heal(cluster, [run])
    ids = {n.ray_node_id for n in cluster.status().nodes}
    again = heal(cluster, [run])
    assert again.problems == []
    assert all("it was running already" in text for text in again.done)
    assert {n.ray_node_id for n in cluster.status().nodes} == ids


def test_a_fault_that_was_healed_is_not_open(lab: Lab) -> None:
    assert list(open_faults(kill_when(lab, "fault.healed"))) == []


def test_without_a_history_what_is_found_is_undone() -> None:
    cluster = cluster_up(fake())
    Pause().inject(cluster, Site("head"))
    Pause().inject(cluster, Site("worker-1"))
    Kill().inject(cluster, Site("worker-2"))
    healing = heal(cluster)
    assert healing.problems == []
    assert {"head: thawed", "worker-1: thawed"} <= set(healing.done)
    assert set(states(cluster).values()) == {"alive"}
    assert heal(cluster).done == []


def test_what_cannot_be_undone_is_named_and_keeps_nothing_from_being_undone() -> None:
    backend = fake()
    cluster = cluster_up(backend)
    Kill().inject(cluster, Site("worker-1"))
    Pause().inject(cluster, Site("worker-2"))
    backend.start_fails("worker-1", times=100)
    healing = heal(cluster, timeout=20)
    assert any("worker-1" in text for text in healing.problems)
    assert states(cluster)["worker-2"] == "alive"


def test_a_run_that_goes_on_is_left_alone(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    recorder = Recorder(run.history_path)
    assert is_being_written(run.history_path)
    with pytest.raises(BadInput, match="still goes on"):
        heal(cluster_up(fake()), [run])
    recorder.close()
    assert not is_being_written(run.history_path)


# ---- the command


@pytest.fixture
def command(
    lab: Lab,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> Command:
    monkeypatch.chdir(tmp_path)
    use_backends(monkeypatch, lab.backend)
    return runner_of(capsys)


@pytest.mark.parametrize("what", [(), ("c",), ("node_failure/latest",)])
def test_heal_names_a_cluster_or_a_run(lab: Lab, command: Command, what: tuple[str, ...]) -> None:
    kill_when(lab, "fault.effect")
    healed = command("heal", *what, "--json")
    assert (healed.code, healed.data["cluster"], healed.data["problems"]) == (0, "c", [])
    assert any("kill healed" in text for text in healed.data["done"])
    assert "every node is alive" in healed.err
    assert {n["state"] for n in command("status", "--json").data["nodes"]} == {"alive"}


def test_heal_of_a_whole_cluster_says_so(command: Command) -> None:
    assert command("up").code == 0
    assert "nothing was to be healed" in command("heal").err


def test_heal_of_a_run_whose_cluster_is_gone_says_so(lab: Lab, command: Command) -> None:
    lab.run()
    healed = command("heal", "latest")
    assert healed.code == 0
    assert "is gone; nothing to heal" in healed.err


def test_heal_of_nothing_known_gives_the_nearest(command: Command) -> None:
    command("up", "--name", "two")
    healed = command("heal", "tow")
    assert (healed.code, "did you mean two" in healed.err) == (2, True)


def test_heal_says_what_it_could_not_heal(lab: Lab, command: Command) -> None:
    command("up")
    command("kill", "worker-1")
    lab.backend.start_fails("worker-1", times=100)
    healed = command("heal", "--timeout", "10")
    assert healed.code == 4
    assert "could not be healed" in healed.err
    assert "down --name ray-sim" in healed.err
