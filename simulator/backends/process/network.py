"""Addresses and ports of nodes that share one machine with each other and with everybody else.

Each cluster has loopback addresses of its own, 127.a.b.10 for its head and the following for its workers.
That alone does not part them: Ray binds most of its ports on all addresses. So the ports that would be the
same for every node, or are fixed by Ray, are chosen free; all others the kernel chooses.
"""

from __future__ import annotations

import hashlib
import secrets
import socket
from collections.abc import Collection
from pathlib import Path

from simulator.errors import CannotRun

#: Below the kernel's ephemeral ports and above Ray's own.
_PORTS = range(20000, 30000)
FIRST_HOST = 10
#: The last number of an address goes up to 254.
MOST_NODES = 254 - FIRST_HOST + 1


def free_network(seed: str, taken: Collection[str]) -> str:
    """The first three numbers of a cluster's addresses, drawn from what names it."""
    start = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:2], "big")
    for step in range(2**14):
        number = (start + step) % 2**14
        network = f"127.{64 + number // 256}.{number % 256}"
        if network not in taken and not _listens(network):
            return network
    raise CannotRun("no loopback network is free", remedy="Take a cluster down: clusters")


def free_port(address: str) -> int:
    """A port that is free now, on this address and on all."""
    for _ in range(200):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        if all(_binds(host, port) for host in (address, "0.0.0.0")):
            return port
    raise CannotRun(f"no port is free between {_PORTS.start} and {_PORTS.stop}")


def _binds(host: str, port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _listens(network: str) -> bool:
    """Whether anything on this machine listens on an address of that network."""
    a, b, c = (int(part) for part in network.split("."))
    needle = f"{c:02X}{b:02X}{a:02X}:"  # the kernel writes an address backwards
    try:
        lines = Path("/proc/net/tcp").read_text(encoding="ascii").splitlines()[1:]
    except OSError:
        return False
    return any(fields[1][2:].startswith(needle) for fields in map(str.split, lines))
