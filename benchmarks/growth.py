"""A cluster that grows, shrinks and loses its head: how much longer that takes than starting a node by itself.

    python benchmarks/growth.py --rounds 5

In every round, by turns: `autoscale_up` on machines that come without delay, a worker and a head that are started by
themselves, and `head_failure` with its tables in RocksDB, the head started again at once. At the end `autoscale_down`,
for how late idle nodes leave. All figures are medians; what Ray's autoscaler asked for without need is reported.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from figures import Figure, finish, load, parser, reason, relative, say

from simulator.backends.base import ClusterSpec
from simulator.backends.docker import DockerBackend, engine_answers
from simulator.cluster import HEALTH, Cluster
from simulator.errors import SimulatorError
from simulator.experiment import load_experiment
from simulator.runner import Runner, RunRequest
from simulator.store import Store
from simulator.topology import Topology, load_topology, override

NAME = "bench-growth"
#: The targets: seconds, and times what a start by itself takes.
ASKED_S, FIRST_TASK, IDLE_S, FIRST_CALL = 1.5, 1.3, 2.0, 1.5


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
    """Seconds that a head takes to be alive, and then one worker."""
    backend = DockerBackend()
    nodes = load_topology("mortal_head").with_workers(1)
    cluster = Cluster(backend, NAME)
    took: dict[str, float] = {}
    try:
        spec = ClusterSpec(NAME, nodes, backend.gpu_kind(nodes), env=HEALTH["fast"])
        cluster.up(backend.prepare(spec, say))
        for node in ("worker-1", "head"):
            cluster.kill(node)
            time.sleep(6.0)  # Ray has given it up by then
            began = time.monotonic()
            cluster.start_nodes([node])
            took[node] = round(time.monotonic() - began, 2)
    finally:
        cluster.down()
    return took["head"], took["worker-1"]


def metrics(result: Mapping[str, Any], check: str) -> Mapping[str, Any]:
    found: Mapping[str, Any] = next(f["metrics"] for f in result["findings"] if f["check"] == check)
    return found


def measure(rounds: int, folder: Path) -> Mapping[str, Sequence[float]]:
    found: dict[str, list[float]] = {
        name: []
        for name in ("asked", "first_task", "worker", "head", "first_call", "surplus", "late")
    }
    elastic = override(
        load_topology("elastic"),
        ["worker_groups.cpu.provision_delay=0s", "worker_groups.gpu.provision_delay=0s"],
    )
    for number in range(rounds):
        grown = run(folder, "autoscale_up", elastic, seed=number)
        found["asked"].append(grown["recovery"]["launch_asked_s"])
        found["first_task"].append(grown["recovery"]["first_task_s"])
        found["surplus"].append(metrics(grown, "launches_asked")["surplus"])
        head, worker = alone()
        found["head"].append(head)
        found["worker"].append(worker)
        lost = run(
            folder, "head_failure", load_topology("mortal_head"), "down=0", "serve=false",
            seed=number,
        )  # fmt: skip
        # Down for no longer than it takes to see that it is.
        found["first_call"].append(lost["recovery"]["first_call_s"] - lost["recovery"]["effect_s"])
        say(
            f"round {number + 1} of {rounds}: "
            + ", ".join(f"{k} {v[-1]:.2f}" for k, v in found.items() if v)
        )
    down = run(folder, "autoscale_down", load_topology("elastic"), seed=0)
    found["late"] += metrics(down, "idle_leave")["late_s"]
    return found


def figures_of(found: Mapping[str, Sequence[float]], why: str) -> list[Figure]:
    """The table; with `why`, nothing was measured."""

    def median(name: str) -> float | None:
        return round(statistics.median(found[name]), 3) if found.get(name) else None

    def single(name: str) -> dict[str, Any]:
        return {"s": list(found.get(name, ()))}

    surplus = sum(found["surplus"]) if found.get("surplus") else None
    late = max(found["late"]) if found.get("late") else None
    return [
        Figure(
            "demand to the first machine asked for",
            median("asked"),
            "s",
            ASKED_S,
            why=why,
            details=single("asked"),
        ),
        relative(
            "demand to the first task on a new node",
            median("first_task"),
            "s",
            FIRST_TASK,
            "a worker by itself",
            median("worker"),
            why=why,
            details=single("first_task"),
        ),
        Figure(
            "a worker by itself, from its start to alive",
            median("worker"),
            "s",
            why=why,
            details=single("worker"),
        ),
        Figure(
            "idle nodes leave late by at most", late, "s", IDLE_S, why=why, details=single("late")
        ),
        Figure(
            "machines asked for that no task ran on, all rounds",
            surplus,
            "machines",
            why=why,
            details=single("surplus"),
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
        Figure(
            "a head by itself, from its start to alive",
            median("head"),
            "s",
            why=why,
            details=single("head"),
        ),
    ]


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--rounds", type=int, default=5, help="how often each is done")
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
