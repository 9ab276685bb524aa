"""What the tests of the core share: a small experiment on the fake backend, run in a moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from simulator.backends.base import ClusterSpec
from simulator.backends.fake import Behaviour, FakeBackend, FakeClock
from simulator.cluster import HEALTH, Cluster
from simulator.experiment import Experiment, load_experiment
from simulator.history import History, Op
from simulator.runner import Listener, Runner, RunRequest
from simulator.store import RunDir, Store
from simulator.topology import Topology, load_topology


class Killed(BaseException):
    """The orchestrator is gone from one moment to the next: nothing of it runs any more."""


def fake(behaviour: Behaviour | None = None) -> FakeBackend:
    """A fake backend whose clock begins at the same moment in every test."""
    return FakeBackend(behaviour=behaviour, clock=FakeClock(wall=1_800_000_000.0))


def topology(workers: int = 3) -> Topology:
    return load_topology("default").with_workers(workers)


def cluster_spec(name: str = "c", workers: int = 3, **more: Any) -> ClusterSpec:
    return ClusterSpec(
        name, topology(workers), "simulated", env={**HEALTH["fast"], **more.pop("env", {})}, **more
    )


def cluster_up(backend: FakeBackend, name: str = "c", workers: int = 3) -> Cluster:
    cluster = Cluster(backend, name)
    cluster.up(cluster_spec(name, workers))
    return cluster


def fake_of(cluster: Cluster) -> FakeBackend:
    assert isinstance(cluster.backend, FakeBackend)
    return cluster.backend


def state(cluster: Cluster, node: str = "worker-1") -> str:
    """What engine and Ray say of a node together."""
    return next(n.state for n in cluster.status().nodes if n.name == node)


@dataclass
class Lab:
    """A fake backend, a store, and experiments run on them."""

    root: Path
    backend: FakeBackend = field(default_factory=fake)
    experiment: Experiment = field(default_factory=lambda: load_experiment("node_failure"))
    phases: list[str] = field(default_factory=list)
    said: list[str] = field(default_factory=list)
    on_phase: dict[str, Callable[[], None]] = field(default_factory=dict)
    on_tick: Callable[[History], None] = lambda history: None

    @property
    def store(self) -> Store:
        return Store(self.root)

    def request(self, *params: str, **more: Any) -> RunRequest:
        settings = ("at=4", "tasks=60", *params)
        return RunRequest(
            experiment=self.experiment,
            params=self.experiment.parse_params(settings),
            topology=more.pop("topology", topology()),
            source=self.experiment.name,
            seed=more.pop("seed", 7),
            name=None if "reuse" in more else more.pop("name", "c"),
            **more,
        )

    def runner(self) -> Runner:
        def phase(name: str) -> None:
            self.phases.append(name)
            self.on_phase.get(name, lambda: None)()

        listener = Listener(
            say=self.said.append, phase=phase, tick=lambda history: self.on_tick(history)
        )
        return Runner(self.backend, self.store, listener=listener)

    def run(self, *params: str, **more: Any) -> dict[str, Any]:
        return self.runner().run(self.request(*params, **more))

    def history(self, result: Mapping[str, Any]) -> History:
        return RunDir(Path(result["run_dir"])).history()

    def latest(self) -> RunDir:
        return self.store.find("latest")


def finding(result: Mapping[str, Any], check: str) -> dict[str, Any]:
    """The finding of that check; KeyError if there is none."""
    found: dict[str, dict[str, Any]] = {f["check"]: f for f in result["findings"]}
    return found[check]


def kinds(history: History) -> list[str]:
    return [op.kind for op in history]


def only(history: History, kind: str) -> Op:
    """The one operation of that kind."""
    (op,) = history.of(kind)
    return op
