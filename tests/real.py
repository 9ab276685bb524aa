"""A real cluster for the tests of a module, on either backend."""

from __future__ import annotations

import os
import secrets
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager

from simulator.assets import asset_path
from simulator.backends.base import ClusterSpec
from simulator.backends.docker import DockerBackend
from simulator.backends.select import choose
from simulator.cluster import HEALTH, Cluster
from simulator.topology import Topology
from simulator.waiting import wait_until


@contextmanager
def running(backend_name: str, topology: Topology, label: str) -> Iterator[Cluster]:
    """Up with quick failure detection, and gone afterwards whatever happens.

    Parameters
    ----------
    label
        In the cluster's name, to tell whose it is.
    """
    backend = choose(backend_name).backend
    cluster = Cluster(backend, f"test-{label}-{secrets.token_hex(2)}")
    spec = ClusterSpec(cluster.name, topology, backend.gpu_kind(topology), env=HEALTH["fast"])
    try:
        cluster.up(backend.prepare(spec, lambda text: None))
        yield cluster
    finally:
        cluster.down()


def by_hand(backend: DockerBackend, name: str, network: str, *files: str) -> Cluster:
    """A head and one worker as ``docker compose up`` alone gives them, both alive; whoever asks removes them.

    Parameters
    ----------
    network
        The first three numbers of its addresses.
    files
        Of compose.yaml and what lies below docker/, by the names that the package has them under.
    """
    environment = {
        **os.environ,
        "RAY_SIM_SUBNET": f"{network}.0/24",
        "RAY_SIM_IP_RANGE": f"{network}.128/25",
        "RAY_SIM_HEAD_IP": f"{network}.10",
        "RAY_SIM_REDIS_IP": f"{network}.11",
    }
    given = [word for file in files for word in ("-f", str(asset_path(file)))]
    done = subprocess.run(
        ["docker", "compose", *given, "-p", name, "up", "--detach", "--scale", "worker=1"],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    cluster = Cluster(backend, name)
    wait_until(
        lambda: [n.state for n in cluster.status().nodes] == ["alive", "alive"],
        name="both nodes alive", timeout=120, interval=0.5,
    )  # fmt: skip
    return cluster
