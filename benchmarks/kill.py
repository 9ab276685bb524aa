"""How long from the call that kills a node to the engine's event that says so: ours beside ``docker kill`` itself.

    python benchmarks/kill.py --pairs 5

Two workers of one cluster are killed in turn, one by ours and one by ``docker kill``; which is which, and who
is first, changes with every pair. Both are timed alike: from the call until the die event arrives by one and
the same watch. `ours` is `Cluster.kill`, as the command ``kill`` calls it; what Python needs to start is in
neither, what the docker client needs is its own.
"""

from __future__ import annotations

import queue
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

from figures import Figure, finish, load, parser, reason, relative, say

from simulator.backends.base import LABEL_CLUSTER, LABEL_ROLE, ClusterSpec, EngineEvent
from simulator.backends.docker import DockerBackend, engine_answers
from simulator.cluster import Cluster
from simulator.errors import SimulatorError
from simulator.topology import load_topology

NAME = "bench-kill"
OURS, DOCKER = "ours", "docker kill"
FACTOR = 1.2
EVENT_S = 30.0


def containers(name: str) -> dict[str, str]:
    """Container by worker's name."""
    done = subprocess.run(
        ["docker", "ps", "--no-trunc", "--filter", f"label={LABEL_CLUSTER}={name}",
         "--filter", f"label={LABEL_ROLE}=worker", "--format",
         '{{.ID}} {{.Label "com.docker.compose.container-number"}}'],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    rows = (line.split() for line in done.stdout.splitlines())
    return {f"worker-{number}": ident for ident, number in rows}


def docker_kill(container: str) -> None:
    subprocess.run(["docker", "kill", container], check=True, capture_output=True)


def timed(node: str, kill: Callable[[], None], events: queue.Queue[tuple[str, float]]) -> float:
    """Milliseconds from the call to the node's die event."""
    while not events.empty():
        events.get_nowait()
    began = time.monotonic()
    kill()
    while True:
        who, when = events.get(timeout=EVENT_S)
        if who == node:
            return (when - began) * 1000


def pairs_of(number: int) -> list[tuple[str, str]]:
    """Who kills which node in this pair, in order."""
    nodes = ["worker-1", "worker-2"] if number % 4 < 2 else ["worker-2", "worker-1"]
    pairs = list(zip((OURS, DOCKER), nodes, strict=True))
    return pairs if number % 2 == 0 else pairs[::-1]


def measure(pairs: int) -> Mapping[str, Sequence[float]]:
    backend = DockerBackend()
    nodes = load_topology("default").with_workers(2)
    cluster = Cluster(backend, NAME)
    found: dict[str, list[float]] = {OURS: [], DOCKER: []}
    events: queue.Queue[tuple[str, float]] = queue.Queue()

    def note(event: EngineEvent) -> None:
        if event.verb == "die":
            events.put((event.node, time.monotonic()))

    try:
        cluster.up(backend.prepare(ClusterSpec(NAME, nodes, backend.gpu_kind(nodes)), say))
        watch = backend.watch(NAME, note)
        try:
            for number in range(pairs):
                idents = containers(NAME)
                for who, node in pairs_of(number):
                    kill = (
                        (lambda node=node: cluster.kill(node))
                        if who == OURS
                        else (lambda ident=idents[node]: docker_kill(ident))
                    )
                    found[who].append(round(timed(node, kill, events), 1))
                say(
                    f"pair {number + 1} of {pairs}: "
                    + ", ".join(f"{w} {ms[-1]} ms" for w, ms in found.items())
                )
                if number + 1 < pairs:
                    cluster.start_nodes(["worker-1", "worker-2"])
        finally:
            watch.close()
    finally:
        cluster.down()
    return found


def main() -> int:
    arguments = parser(__doc__)
    arguments.add_argument("--pairs", type=int, default=5, help="how often each kills")
    chosen = arguments.parse_args()
    began_load, why = load(), ""
    found: Mapping[str, Sequence[float]] = {}
    silent = engine_answers(timeout=5.0)
    if silent is None:
        try:
            found = measure(chosen.pairs)
        except SimulatorError as error:
            why = reason(error)
        except queue.Empty:
            why = f"no die event came within {EVENT_S:.0f} s"
    else:
        why = f"no Docker engine answers ({silent})"
    peer = statistics.median(found[DOCKER]) if found else None
    ours = statistics.median(found[OURS]) if found else None
    made = [
        relative(
            "a node killed, from the call to the die event, ours", ours, "ms", FACTOR, DOCKER, peer,
            why=why, details={"ms": list(found.get(OURS, ()))},
        ),
        Figure(
            "a node killed, from the call to the die event, docker kill", peer, "ms", why=why,
            details={"ms": list(found.get(DOCKER, ()))},
        ),
    ]  # fmt: skip
    options = {"pairs": chosen.pairs}
    return finish("kill", made, began_load=began_load, options=options, save=chosen.save)


if __name__ == "__main__":
    sys.exit(main())
