"""A real cluster for the tests of a module, on either backend."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager

from simulator.backends.base import ClusterSpec
from simulator.backends.select import choose
from simulator.cluster import HEALTH, Cluster
from simulator.topology import Topology


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
