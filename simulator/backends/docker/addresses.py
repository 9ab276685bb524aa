"""Which addresses are taken: by the engine's networks and by the routes of this machine."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import docker

from simulator.backends.base import LABEL_CLUSTER
from simulator.backends.docker.engine import Connection, asking


def taken_subnets(client: docker.APIClient, connection: Connection) -> dict[str, str]:
    """Everything that a new network must not overlap, and whose it is, in words."""
    taken = {}
    if connection.is_this_kernel:
        taken = dict.fromkeys(host_routes(), "a route of this machine")
    with asking("the engine was asked for its networks"):
        networks = client.networks()
    for network in networks:
        cluster = (network.get("Labels") or {}).get(LABEL_CLUSTER)
        whose = f"cluster {cluster}" if cluster else f"the Docker network {network['Name']}"
        for config in (network.get("IPAM") or {}).get("Config") or []:
            if config.get("Subnet"):
                taken[str(config["Subnet"])] = whose
    return taken


def host_routes(table: str | None = None) -> list[str]:
    """The subnets that this machine routes, except the default route.

    Parameters
    ----------
    table
        Text in the format of ``/proc/net/route``; by default that file.
    """
    if table is None:
        with suppress(OSError):
            table = Path("/proc/net/route").read_text(encoding="utf-8")
    routes = []
    for line in (table or "").splitlines()[1:]:
        fields = line.split()
        if len(fields) < 8:
            continue
        address = ".".join(str(b) for b in reversed(bytes.fromhex(fields[1])))
        prefix = bin(int(fields[7], 16)).count("1")
        if prefix:
            routes.append(f"{address}/{prefix}")
    return routes
