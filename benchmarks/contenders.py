"""The three ways to start a cluster that are compared, and the one judge of when it is there.

Each is a program of its own that has imported what it needs before the clock starts; it says ``ready``, starts
when it reads a line, and takes its cluster down when its input ends, so that it also does when who started it
is gone.

    python contenders.py alive                        # asks a GCS which nodes are alive
    python contenders.py cluster_utils WORKERS        # ray.cluster_utils.Cluster
    python contenders.py simulator NAME WORKERS TOPOLOGY
    python contenders.py compose NAME WORKERS         # plain docker compose up
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from simulator.innode.supervisor import OBJECT_STORE_BYTES  # noqa: E402

#: So often the judge asks, seconds; the same for all.
ASK_S = 0.05
#: A start that has not ended by then never will.
LIMIT_S = 300.0


def tell(**message: Any) -> None:
    print(json.dumps(message), flush=True)


def wait_for_go() -> None:
    """Returns when told to start; from then on the end of our input ends whatever is being done."""
    # A Ctrl-C is for who started this; it ends us by ending our input.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    tell(ready=True)
    sys.stdin.readline()
    signal.signal(signal.SIGTERM, _stop)
    threading.Thread(target=_watch_input, daemon=True).start()


def _watch_input() -> None:
    while sys.stdin.readline():
        pass
    os.kill(os.getpid(), signal.SIGTERM)


def _stop(number: int, frame: object) -> None:  # noqa: ARG001 - as signal handlers are called
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # what follows is taking down
    raise SystemExit(0)


def wait_for_end() -> None:
    while True:
        time.sleep(3600)


# ---- the judge


def alive() -> None:
    """Reads ``{"address", "token", "wanted"}``; tells of every change of how many are alive, with the time."""
    from simulator.innode.ray_private import Gcs

    tell(ready=True)
    asked = json.loads(sys.stdin.readline())
    with tempfile.NamedTemporaryFile("w", suffix=".token") as token:
        token.write(asked["token"])
        token.flush()
        os.environ |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": token.name}
        asyncio.run(_ask(lambda: Gcs(asked["address"]), asked["wanted"]))


async def _ask(connect: Any, wanted: int) -> None:
    gcs, before = connect(), -1  # from the running loop, as it wants
    while True:
        with suppress(Exception):  # whatever gRPC raises: nobody answers yet
            nodes = await gcs.nodes(timeout=5.0)
            count = sum(node.state == "ALIVE" for node in nodes)
            now = time.monotonic()
            if count != before:
                before = count
                tell(alive=count, at=now)
            if count >= wanted:
                return
        await asyncio.sleep(ASK_S)


# ---- the contenders


def cluster_utils(workers: int) -> None:
    """Options as compose.yaml's nodes have them, as far as Ray's own helper can."""
    from ray.cluster_utils import Cluster

    token = Path(os.environ["RAY_AUTH_TOKEN_PATH"]).read_text(encoding="utf-8").strip()
    wait_for_go()
    tell(began=time.monotonic())
    cluster = Cluster(shutdown_at_exit=True)
    try:
        cluster.add_node(
            wait=False,
            num_cpus=1,
            num_gpus=1,
            object_store_memory=OBJECT_STORE_BYTES,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            dashboard_port=0,
            ray_client_server_port=_free_port(),
        )
        tell(address=cluster.address, token=token)
        for _ in range(workers):
            # Its own default for these: no log monitor.
            cluster.add_node(wait=False, num_cpus=1, object_store_memory=OBJECT_STORE_BYTES)
        tell(returned=time.monotonic())
        wait_for_end()
    finally:
        cluster.shutdown()


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def simulator(name: str, workers: int, topology: str) -> None:
    """`Cluster.up`, as the command `up` calls it."""
    from simulator.backends.base import ClusterSpec
    from simulator.backends.docker import DockerBackend
    from simulator.cluster import Cluster
    from simulator.topology import load_topology

    wanted = load_topology(topology).with_workers(workers)
    backend = DockerBackend()
    spec = ClusterSpec(name, wanted, backend.gpu_kind(wanted))
    spec = backend.prepare(spec, lambda text: None)
    cluster = Cluster(backend, name)
    wait_for_go()
    tell(began=time.monotonic())
    _announce_later(name)
    try:
        cluster.up(spec)
        tell(returned=time.monotonic())
        wait_for_end()
    finally:
        cluster.down()


def compose(name: str, workers: int) -> None:
    """``docker compose up``, with nothing of ours but the file, on a subnet that is free."""
    from simulator.assets import asset_path
    from simulator.backends.docker import DockerBackend
    from simulator.backends.docker.addresses import taken_subnets
    from simulator.backends.docker.engine import connect, find_connection
    from simulator.compose import free_network

    connection = find_connection()
    client = connect(connection)
    network = free_network(taken_subnets(client, connection), workers + 1)
    client.close()
    env = {
        **os.environ,
        "RAY_SIM_SUBNET": network.subnet,
        "RAY_SIM_IP_RANGE": network.ip_range,
        "RAY_SIM_HEAD_IP": network.head_ip,
    }
    file = asset_path("compose.yaml")
    command = ["docker", "compose", "--project-name", name, "--file", str(file)]
    wait_for_go()
    tell(began=time.monotonic())
    _announce_later(name)
    try:
        done = subprocess.run(
            [*command, "up", "--detach", "--scale", f"worker={workers}"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        tell(returned=time.monotonic(), code=done.returncode, last=done.stderr[-300:])
        wait_for_end()
    finally:
        DockerBackend().remove(name)


def _announce_later(name: str) -> None:
    """Tell where the GCS is as soon as the engine knows; from a thread, so that nothing waits."""
    from simulator.backends.docker import DockerBackend
    from simulator.errors import SimulatorError

    def look() -> None:
        backend, end = DockerBackend(), time.monotonic() + LIMIT_S
        while time.monotonic() < end:
            with suppress(SimulatorError, StopIteration):
                token = backend.endpoint(name).token
                address = next(n.address for n in backend.cluster(name).nodes if n.role == "head")
                if address and token:
                    tell(address=f"{address}:6379", token=token)
                    return
            time.sleep(0.2)

    threading.Thread(target=look, daemon=True).start()


def main() -> None:
    kind, *words = sys.argv[1:]
    if kind == "alive":
        alive()
    elif kind == "cluster_utils":
        cluster_utils(int(words[0]))
    elif kind == "simulator":
        simulator(words[0], int(words[1]), words[2])
    else:
        compose(words[0], int(words[1]))


if __name__ == "__main__":
    main()
