"""A cluster that grows, shrinks and loses its head: how much longer that takes than starting a node by itself.

    python benchmarks/growth.py --rounds 20

In every round `autoscale_up` on machines that come without delay. In every fourth also a worker that `scale` adds by
itself, a head that is started by itself, and `head_failure` with its tables in RocksDB, the head started again at once.
At the end `autoscale_down`, for how late idle nodes leave. Times are medians, and where they go is told step by step;
what Ray's autoscaler asked for without need is reported, and a run with a machine that it did not ask for ends all.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Figure, finish, load, parser, reason, relative, say

from simulator.backends.base import ClusterSpec
from simulator.backends.docker import DockerBackend, engine_answers
from simulator.cluster import HEALTH, Cluster
from simulator.errors import SimulatorError
from simulator.experiment import load_experiment
from simulator.runner import Runner, RunRequest
from simulator.scaling import scale
from simulator.store import Store
from simulator.topology import Topology, load_topology, override

NAME = "bench-growth"
#: The targets: seconds, and times what a start by itself takes.
ASKED_S, FIRST_TASK, IDLE_S, FIRST_CALL = 1.5, 1.3, 2.0, 1.5
#: Of so many rounds, one has what changes little.
SELDOM = 4
#: Where the time from demand to work goes: phases of a growth, by their names here.
PHASES = {
    "asked": "launch_asked",
    "machine": "machine_up",
    "alive": "node_alive",
    "first_task": "first_task",
}


def run(folder: Path, name: str, topology: Topology, *params: str, seed: int) -> dict[str, Any]:
    """One run of an experiment; raises `Unable` where it is not valid, since then its times say nothing."""
    experiment = load_experiment(name)
    result = Runner(DockerBackend(), Store(folder)).run(
        RunRequest(
            experiment=experiment,
            params=experiment.parse_params(params),
            topology=topology,
            source=name,
            seed=seed,
            name=f"{NAME}-{name.replace('_', '-')}",
        )
    )
    if result["verdict"] != "valid":
        bad = next(f for f in result["findings"] if f["verdict"] != "valid")
        raise SimulatorError(f"{name} was {result['verdict']}", why=bad["summary"])
    return result


def alone() -> tuple[float, float]:
    """Seconds until a head that was killed is alive again, and until a worker that is added is."""
    backend = DockerBackend()
    nodes = load_topology("mortal_head").with_workers(1)
    cluster = Cluster(backend, NAME)
    try:
        spec = ClusterSpec(NAME, nodes, backend.gpu_kind(nodes), env=HEALTH["fast"])
        cluster.up(backend.prepare(spec, say))
        worker = timed(lambda: scale(cluster, {"worker": 2}))
        cluster.kill("head")
        time.sleep(6.0)  # the workers have noticed by then
        head = timed(lambda: cluster.start_nodes(["head"]))
    finally:
        cluster.down()
    return head, worker


def timed(action: Callable[[], object]) -> float:
    began = time.monotonic()
    action()
    return round(time.monotonic() - began, 2)


def metrics(result: Mapping[str, Any], check: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(f["metrics"] for f in result["findings"] if f["check"] == check)
    return found


def measure(rounds: int, folder: Path) -> Mapping[str, Sequence[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    elastic = override(
        load_topology("elastic"),
        ["worker_groups.cpu.provision_delay=0s", "worker_groups.gpu.provision_delay=0s"],
    )
    for number in range(rounds):
        grown = run(folder, "autoscale_up", elastic, seed=number)
        for name, phase in PHASES.items():
            found[name].append(grown["recovery"][f"{phase}_s"])
        found["surplus"].append(metrics(grown, "launches_asked")["surplus"])
        if number % SELDOM == 0:
            head, worker = alone()
            found["head"].append(head)
            found["worker"].append(worker)
            found["first_call"].append(until_first_call(folder, number))
        seen = ", ".join(f"{name} {values[-1]:.2f}" for name, values in found.items())
        say(f"round {number + 1} of {rounds}: {seen}")
    down = run(folder, "autoscale_down", load_topology("elastic"), seed=0)
    left = metrics(down, "idle_leave")
    return {**found, "late": left["late_s"], "late_by_ray": left["late_by_ray_s"]}


def until_first_call(folder: Path, seed: int) -> float:
    """Seconds from the death of a head, started again as soon as that was seen, to the first call that needs it."""
    nodes = load_topology("mortal_head")
    lost = run(folder, "head_failure", nodes, "down=0", "serve=false", seed=seed)["recovery"]
    return float(lost["first_call_s"] - lost["effect_s"])


def figures_of(found: Mapping[str, Sequence[float]], why: str) -> list[Figure]:
    """The table; with `why`, nothing was measured."""

    def median(name: str) -> float | None:
        return round(statistics.median(found[name]), 3) if found.get(name) else None

    def single(name: str) -> dict[str, Any]:
        return {"s": list(found.get(name, ()))}

    surplus = sum(found["surplus"]) if found.get("surplus") else None

    def most(name: str) -> float | None:
        return max(found[name]) if found.get(name) else None

    def reported(what: str, value: float | None, name: str, unit: str = "s") -> Figure:
        return Figure(what, value, unit, why=why, details=single(name))

    return [
        Figure(
            "demand to the first machine asked for",
            median("asked"),
            "s",
            ASKED_S,
            why=why,
            details=single("asked"),
        ),
        reported("demand to the first machine running", median("machine"), "machine"),
        reported("demand to the first new node alive", median("alive"), "alive"),
        relative(
            "demand to the first task on a new node",
            median("first_task"),
            "s",
            FIRST_TASK,
            "a worker added by itself",
            median("worker"),
            why=why,
            details=single("first_task"),
        ),
        reported("a worker added by itself, until it is alive", median("worker"), "worker"),
        Figure(
            "idle nodes leave late by at most, by Ray's own count",
            most("late_by_ray"),
            "s",
            IDLE_S,
            why=why,
            details=single("late_by_ray"),
        ),
        reported("the same, from the end of their last work", most("late"), "late"),
        reported(
            "machines asked for that no task ran on, all rounds", surplus, "surplus", "machines"
        ),
        relative(
            "head killed and started again, to the first call that needs it",
            median("first_call"),
            "s",
            FIRST_CALL,
            "a head by itself",
            median("head"),
            why=why,
            details=single("first_call"),
        ),
        reported("a head by itself, from its start to alive", median("head"), "head"),
    ]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=20, help="how often a cluster grows")
    chosen = arguments.parse_args()
    began_load, why = load(), ""
    found: Mapping[str, Sequence[float]] = {}
    silent = engine_answers(timeout=5.0)
    if silent is None:
        try:
            with tempfile.TemporaryDirectory(prefix="ray-sim-bench-") as folder:
                found = measure(chosen.rounds, Path(folder))
        except SimulatorError as error:
            why = reason(error)
    else:
        why = f"no Docker engine answers ({silent})"
    options = {"rounds": chosen.rounds}
    made = figures_of(found, why)
    return finish("growth", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
