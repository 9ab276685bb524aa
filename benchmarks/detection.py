"""How long Ray takes to declare a node dead, for each way of losing it, beside what its settings predict.

    python benchmarks/detection.py --faults kill pause partition disconnect --health fast ray

All workers of one cluster are struck by the same fault at the same moment, one sample each: the GCS watches
each of them by itself. Counted from the call that breaks the node to the time at which the GCS published its
death. The prediction (docs/reference/faults.md, "How long until Ray notices") follows from the settings alone.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Mapping, Sequence

from figures import Figure, finish, load, parser, reason, say

from simulator.backends.base import ClusterSpec
from simulator.backends.docker import DockerBackend, engine_answers
from simulator.cluster import HEALTH, Cluster
from simulator.errors import SimulatorError
from simulator.faults import FAULTS, Fault, Site
from simulator.monitor import Monitor
from simulator.topology import load_topology

NAME = "bench-detection"

#: Ray 2.60's own settings, seconds.
DEFAULTS = {"period": 3.0, "timeout": 10.0, "threshold": 5.0, "refresh": 3.0}

#: For how long Linux looks for the neighbour behind an address that is gone, seconds: then a connection
#: is refused, where one to a silent neighbour just waits.
NEIGHBOUR_S = 3.0

#: A node whose address is gone; the others only fall silent.
GONE = frozenset({"kill"})


def settings(health: str) -> Mapping[str, float]:
    """The failure detection's settings under a name of --health, seconds."""
    env = HEALTH[health]
    if not env:
        return DEFAULTS
    return {
        "period": float(env["RAY_health_check_period_ms"]) / 1000,
        "timeout": float(env["RAY_health_check_timeout_ms"]) / 1000,
        "threshold": float(env["RAY_health_check_failure_threshold"]),
        "refresh": float(env["RAY_ray_syncer_message_refresh_interval_ms"]) / 1000,
    }


def predicted(fault: str, health: str) -> tuple[float, float]:
    """From when to when a node is declared dead: N checks that fail and the pauses between them.

    The first check comes up to one refresh of the syncer late, since a node that was heard is not checked.
    """
    s = settings(health)
    each = min(s["timeout"], NEIGHBOUR_S) if fault in GONE else s["timeout"]
    least = s["threshold"] * each + (s["threshold"] - 1) * s["period"]
    return least, least + s["refresh"]


def strike(cluster: Cluster, fault: Fault, patience: float) -> list[float]:
    """Break all workers; seconds until each was dead, and all alive again afterwards."""
    workers = [n.name for n in cluster.record().nodes if n.role == "worker"]
    others = {w: tuple(n.name for n in cluster.record().nodes if n.name != w) for w in workers}
    sites = [
        fault.locate(cluster, Site(w, f"d{i}", others[w] if fault.between_nodes else ()))
        for i, w in enumerate(workers)
    ]
    took: dict[str, float] = {}
    began: dict[str, float] = {}
    with Monitor(cluster) as monitor:
        while (seen := monitor.next()) is None or seen.kind != "ray.node":
            pass  # the observer sees the cluster from here on
        for site in sites:
            began[site.node] = cluster.backend.wall_clock()
            fault.inject(cluster, site)
        end = time.monotonic() + patience
        while len(took) < len(sites) and time.monotonic() < end:
            seen = monitor.next()
            if seen is None or seen.kind != "ray.node" or seen.data["state"] != "DEAD":
                continue
            if seen.node in began and seen.node not in took:
                took[seen.node] = round(seen.wall - began[seen.node], 2)
    for site in sites:
        fault.heal(cluster, site, 120.0)
    return sorted(took.values())


def measure(faults: Sequence[str], health: str, workers: int) -> Mapping[str, Sequence[float]]:
    backend = DockerBackend()
    nodes = load_topology("default").with_workers(workers)
    cluster = Cluster(backend, NAME)
    found: dict[str, Sequence[float]] = {}
    try:
        spec = ClusterSpec(NAME, nodes, backend.gpu_kind(nodes), env=HEALTH[health])
        cluster.up(backend.prepare(spec, say))
        for name in faults:
            fault = FAULTS[name]()
            fault.prepare(backend, say)
            unable = fault.unable(backend)
            if unable is not None:
                say(f"{name}: {unable}")
                continue
            patience = 2 * predicted(name, health)[1] + 30
            found[name] = strike(cluster, fault, patience)
            say(f"{name}, --health {health}: {found[name]}")
    finally:
        cluster.down()
    return found


def main() -> int:
    arguments = parser(__doc__)
    names = ["kill", "pause", "partition", "disconnect"]
    arguments.add_argument("--faults", nargs="+", default=names, choices=sorted(FAULTS))
    arguments.add_argument("--health", nargs="+", default=["fast", "ray"], choices=list(HEALTH))
    arguments.add_argument("--workers", type=int, default=5, help="one sample each")
    chosen = arguments.parse_args()
    began_load = load()
    made: list[Figure] = []
    silent = engine_answers(timeout=5.0)
    for health in chosen.health:
        why = f"no Docker engine answers ({silent})" if silent else ""
        found: Mapping[str, Sequence[float]] = {}
        if silent is None:
            try:
                found = measure(chosen.faults, health, chosen.workers)
            except SimulatorError as error:
                why = reason(error)
        for fault in chosen.faults:
            seconds = found.get(fault, ())
            low, high = predicted(fault, health)
            note = f"predicted {low:g} to {high:g} s"
            if seconds:
                note += f"; {len(seconds)} of {chosen.workers} seen, {seconds[0]:g} to {seconds[-1]:g} s"
            made.append(
                Figure(
                    f"{fault}, --health {health}: until Ray declares the node dead",
                    statistics.median(seconds) if seconds else None,
                    "s",
                    why=why or ("" if seconds else "no death was seen"),
                    note=note,
                    details={"s": list(seconds)},
                )
            )
    options = {"workers": chosen.workers}
    return finish("detection", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
