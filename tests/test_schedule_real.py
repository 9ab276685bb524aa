"""Schedules on real Ray: targets by meaning found where they are, conditions that come true, in one run.

The cluster is one of processes: what is asked of Ray is the same on every backend.
"""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from real import running

from simulator.cluster import Cluster
from simulator.experiment import load_experiment
from simulator.history import History, read_history
from simulator.runner import Runner, RunRequest, replay_request
from simulator.schedule import (
    Busiest,
    HolderOfMostObjects,
    Look,
    NodeOfActor,
    NodeOfTask,
    Target,
    parse_schedule,
)
from simulator.store import RunDir, Store
from simulator.topology import load_topology

pytestmark = pytest.mark.real_process

#: Tasks on worker-1, an actor on worker-2, one object there and two on worker-3; knows nothing of us.
PROGRAM = """
import time, ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy as Affinity

ray.init()
at = {n["NodeName"]: Affinity(n["NodeID"], soft=False) for n in ray.nodes()}

@ray.remote(num_cpus=0.1)
def slow():
    time.sleep(120)

@ray.remote(num_cpus=0)
def block():
    return bytes(1_000_000)

@ray.remote(num_cpus=0)
class Trainer:
    def ready(self):
        return True

one, two, three = sorted(name for name in at if "worker" in name)
tasks = [slow.options(scheduling_strategy=at[one]).remote() for _ in range(3)]
trainer = Trainer.options(name="mine", scheduling_strategy=at[two]).remote()
ray.get(trainer.ready.remote())
blocks = [block.options(scheduling_strategy=at[n]).remote() for n in (two, three, three)]
ray.wait(blocks, num_returns=3, fetch_local=False)
time.sleep(120)
"""

WANTED: list[tuple[Target, str]] = [
    (NodeOfTask("slow"), "worker-1"),
    (Busiest(), "worker-1"),
    (NodeOfActor("mine"), "worker-2"),
    (NodeOfActor("Trainer"), "worker-2"),
    (HolderOfMostObjects(), "worker-3"),
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with running("process", load_topology("default"), "lang") as cluster:
        yield cluster


def test_a_strangers_tasks_actors_and_objects_are_found_where_they_are(
    cluster: Cluster, tmp_path: Path
) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    job = f"lang-{secrets.token_hex(3)}"
    cluster.ray.submit(f"python {tmp_path / 'program.py'}", job)
    look = Look(cluster, lambda: History(), "head")
    topology = load_topology("default")

    def found() -> bool:
        # Ray's own count of objects is up to 15 seconds old, and there is none before the first.
        held = cluster.ray.objects_held().values()
        return len(cluster.ray.running_tasks()) >= 3 and sorted(held)[-2:] == [1, 2]

    try:
        cluster.wait_until(found, name="the program's work", timeout=90, interval=0.5)
        for target, node in WANTED:
            assert target.resolve(topology, Random(0), look) == (node,), str(target)
    finally:
        cluster.ray.stop_job(job)
        cluster.wait_until(
            lambda: cluster.ray.job(job).over, name="the job's end", timeout=30, interval=0.5
        )


@pytest.mark.acceptance
def test_a_schedule_waits_finds_and_hits_what_it_means(cluster: Cluster, tmp_path: Path) -> None:
    text = (
        "kill node_of(actor:counter-worker-2) when 'tasks(finished) > 20' busy; "
        "pause node_of(task:square_sum) when 'fault(f1) == healed and node(worker-2) == alive' for 2s; "
        "stop(grace=1) holder_of_most_objects, worker-1 when 'fault(f2) == healed' for 5s"
    )
    experiment = load_experiment("node_failure")
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(()),
        topology=load_topology("default"),
        source="node_failure",
        seed=1,
        reuse=cluster.name,
        steps=parse_schedule(text),
    )
    result = Runner(cluster.backend, Store(tmp_path)).run(request)
    assert result["status"] == "completed", result["error"]
    history = read_history(Path(result["run_dir"]) / "history.jsonl")
    done = {op.data["id"]: op for op in history.of("fault.inject")}
    killed, paused = done["f1"], done["f2"]
    assert killed.node == "worker-2"  # where that actor was placed
    assert sum(op.index < killed.index for op in history.of("driver.result")) > 20
    healed = {op.data["id"]: op for op in history.of("fault.healed")}
    assert healed["f1"].index < paused.index
    assert healed["f2"].index < min(op.index for i, op in done.items() if i.startswith("f3"))
    assert {op.node for i, op in done.items() if i.startswith("f3")} >= {"worker-1"}
    assert all(op.data["verified"] for op in history.of("fault.effect"))
    assert all(op.data["verified"] for op in healed.values())
    verdicts = {f["check"]: f["verdict"] for f in result["findings"]}
    assert verdicts["fault_hit_work"] == "valid", result["findings"]
    assert verdicts["no_task_lost"] == "valid", result["findings"]
    assert verdicts["healed"] == "valid", result["findings"]


def struck(result: dict[str, Any]) -> list[tuple[str, str, str | None]]:
    """Which fault hit whom, in the order in which it did."""
    history = read_history(Path(result["run_dir"]) / "history.jsonl")
    return [(op.data["id"], op.data["fault"], op.node) for op in history.of("fault.inject")]


@pytest.mark.acceptance
def test_the_same_seed_breaks_the_same_and_a_replay_too(cluster: Cluster, tmp_path: Path) -> None:
    text = (
        "kill one(worker) @5s..9s busy until dead; pause random(2) @30s..33s for 2s; "
        "kill node_of(task:square_sum) when 'fault(f2) == healed' busy until dead"
    )
    experiment = load_experiment("node_failure")
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params(["tasks=280"]),
        topology=load_topology("default"),
        source="node_failure",
        seed=11,
        reuse=cluster.name,
        steps=parse_schedule(text),
    )

    def run(request: RunRequest) -> dict[str, Any]:
        result = Runner(cluster.backend, Store(tmp_path)).run(request)
        assert result["status"] == "completed", result["error"]
        return result

    once, again = run(request), run(request)
    first, second = (RunDir(Path(r["run_dir"])) for r in (once, again))
    assert first.spec()["schedule"] == second.spec()["schedule"]
    drawn = [hit for hit in struck(once) if not hit[0].startswith("f3")]
    assert len(drawn) == 3
    assert drawn == [hit for hit in struck(again) if not hit[0].startswith("f3")]
    # What depends on where the tasks were is settled by the run, and its replay does not ask again.
    replayed = run(replace(replay_request(first), reuse=cluster.name, name=None))
    assert struck(replayed) == struck(once)
    times = [
        [
            (f["id"], f["fault"], f["when"], f["at_s"])
            for f in RunDir(Path(r["run_dir"])).spec()["schedule"]
        ]
        for r in (once, replayed)
    ]
    assert times[0] == times[1]
