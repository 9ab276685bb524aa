"""What an idle worker holds: anonymous memory of its cgroup, default and lean.

    python benchmarks/memory.py

By the engine's own statistics (`total_rss` in cgroup v1, `anon` in v2): the sum of processes' RSS would count
shared pages many times, and page cache is not the node's need. One worker is started, left alone for a while,
and looked at several times.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping
from contextlib import closing
from typing import Any

from figures import Figure, finish, load, parser, reason, say

from simulator.backends.base import LABEL_CLUSTER, LABEL_ROLE, ClusterSpec
from simulator.backends.docker import DockerBackend, engine_answers
from simulator.backends.docker.engine import connect, find_connection
from simulator.cluster import Cluster
from simulator.errors import SimulatorError
from simulator.topology import load_topology

NAME = "bench-memory"

#: MB (10^6 bytes) at most, by topology.
TARGETS = {"default": 175.0, "lean": 105.0}


def anonymous(stats: Mapping[str, Any]) -> float:
    """MB of anonymous memory, from the engine's statistics of a container."""
    told = stats["memory_stats"]["stats"]
    return float(told["anon"] if "anon" in told else told["total_rss"]) / 1e6


def measure(topology: str, idle_s: float, looks: int) -> Figure:
    title = f"idle worker, {topology}: anonymous memory"
    try:
        nodes = load_topology(topology).with_workers(1)
    except SimulatorError:
        return Figure(title, None, "MB", why=f"there is no topology {topology}")
    backend = DockerBackend()
    name = f"{NAME}-{topology}"
    cluster = Cluster(backend, name)
    try:
        spec = ClusterSpec(name, nodes, backend.gpu_kind(nodes))
        cluster.up(backend.prepare(spec, say))
        say(f"{topology}: idle for {idle_s:.0f} s")
        time.sleep(idle_s)
        with closing(connect(find_connection())) as client:
            (worker,) = client.containers(
                filters={"label": [f"{LABEL_CLUSTER}={name}", f"{LABEL_ROLE}=worker"]}
            )
            looked = [client.stats(worker["Id"], stream=False) for _ in range(looks)]
    except SimulatorError as error:
        return Figure(title, None, "MB", why=reason(error))
    finally:
        cluster.down()
    found = [round(anonymous(stats), 1) for stats in looked]
    return Figure(title, statistics.median(found), "MB", TARGETS[topology], details={"mb": found})


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--idle", type=float, default=30.0, metavar="SECONDS")
    arguments.add_argument("--looks", type=int, default=5, metavar="N")
    chosen = arguments.parse_args()
    began_load, silent = load(), engine_answers(timeout=5.0)
    made = [
        measure(topology, chosen.idle, chosen.looks)
        if silent is None
        else Figure(
            f"idle worker, {topology}: anonymous memory", None, "MB",
            why=f"no Docker engine answers ({silent})",
        )
        for topology in TARGETS
    ]  # fmt: skip
    options = {"idle_s": chosen.idle, "looks": chosen.looks}
    return finish("memory", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
