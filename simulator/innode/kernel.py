"""Asks the kernel, from inside a container, what can be done to a node's network and what Python runs here.

Faults on a network need pieces of the kernel that not every kernel has (a queueing discipline that delays, a
filter that drops), and no file says so for certain: they may be modules that are loaded when asked for. So
they are asked for, over netlink, in a network namespace that nobody uses: only a loopback device is in it.
Nothing but the standard library is needed, no ``tc`` and no ``iptables``.

As a program it prints one line of JSON, ``{"python": ..., "ray": ..., "features": {name: answer}}``, and
then waits ``--hold`` seconds, so that whoever started it can try on its container what is done from outside.
An answer is ``yes``, ``no``, or ``not known: `` and why. Wants CAP_NET_ADMIN and CAP_NET_RAW.
"""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import os
import platform
import shlex
import shutil
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Callable

YES, NO = "yes", "no"

# linux/netlink.h, rtnetlink.h
_REQUEST, _ACK, _CREATE, _REPLACE = 0x1, 0x4, 0x400, 0x100
_ERROR = 2
_NEWQDISC, _DELQDISC = 36, 37
_TCA_KIND, _TCA_OPTIONS = 1, 2
_ROOT = 0xFFFFFFFF
# linux/netfilter: nfnetlink.h, nf_tables.h, nf_tables_compat.h, x_tables.h, ip_tables.h
_NETFILTER = 12
_NFT_GETGEN = 10 << 8 | 16
_COMPAT_GET = 11 << 8
_COMPAT_NAME, _COMPAT_REVISION, _COMPAT_TYPE = 1, 2, 3
_IPT_GET_INFO, _IPT_GET_MATCH = 64, 66


def attribute(kind: int, data: bytes) -> bytes:
    """One netlink attribute, padded to four bytes."""
    return struct.pack("=HH", len(data) + 4, kind) + data + b"\0" * (-len(data) % 4)


def ask(family: int, kind: int, payload: bytes, flags: int = 0) -> int:
    """Send one netlink message; 0 or the error number that the kernel answers with."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, family) as kernel:
        kernel.settimeout(5.0)
        size = 16 + len(payload)
        kernel.send(struct.pack("=IHHII", size, kind, _REQUEST | _ACK | flags, 1, 0) + payload)
        while True:
            # An answer with data may come before the acknowledgement.
            rest = kernel.recv(65536)
            while len(rest) >= 20:
                length, what = struct.unpack_from("=IH", rest)
                if what == _ERROR:
                    return -int(struct.unpack_from("=i", rest, 16)[0])
                rest = rest[max(16, (length + 3) & ~3) :]


def qdisc(name: str, options: bytes) -> int:
    """Put a queueing discipline on the loopback device and take it away again."""
    head = struct.pack("=BxxxiIII", 0, 1, 0, _ROOT, 0)  # tcmsg: device 1 is lo
    wanted = head + attribute(_TCA_KIND, name.encode() + b"\0") + attribute(_TCA_OPTIONS, options)
    code = ask(socket.NETLINK_ROUTE, _NEWQDISC, wanted, _CREATE | _REPLACE)
    if not code:
        ask(socket.NETLINK_ROUTE, _DELQDISC, head)
    return code


def netem() -> int:
    """tc_netem_qopt: latency in ticks, limit, loss, gap, duplicate, jitter."""
    return qdisc("netem", struct.pack("=6I", 1000, 100, 0, 0, 0, 0))


def tbf() -> int:
    """tc_tbf_qopt for 1 MB/s: rate and peak rate, limit, buffer, MTU; then the burst in bytes."""
    rate = struct.pack("=BBHhHI", 0, 1, 0, -1, 0, 1_000_000)
    parameters = rate + bytes(12) + struct.pack("=III", 10_000, 100_000, 0)
    return qdisc("tbf", attribute(1, parameters) + attribute(6, struct.pack("=I", 5000)))


def nf_tables() -> int:
    """Which generation of rules the kernel is at; any answer means that it has nf_tables."""
    return ask(_NETFILTER, _NFT_GETGEN, struct.pack("=BBH", socket.AF_UNSPEC, 0, 0))


def nft_statistic() -> int:
    """Whether rules of nf_tables can use iptables' match ``statistic`` (a share of packets)."""
    payload = struct.pack("=BBH", socket.AF_INET, 0, 0)
    payload += attribute(_COMPAT_NAME, b"statistic\0")
    payload += attribute(_COMPAT_REVISION, struct.pack("!I", 0))
    payload += attribute(_COMPAT_TYPE, struct.pack("!I", 0))
    return ask(_NETFILTER, _COMPAT_GET, payload)


def _option(number: int, request: bytes) -> int:
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        # Python's getsockopt hands over an empty buffer, and the kernel reads a name from it.
        import ctypes

        buffer = ctypes.create_string_buffer(request, len(request))
        size = ctypes.c_uint32(len(request))
        libc = ctypes.CDLL(None, use_errno=True)
        done = libc.getsockopt(raw.fileno(), 0, number, buffer, ctypes.byref(size))
        return ctypes.get_errno() if done else 0


def ip_tables() -> int:
    """Whether there is a table ``filter`` of the older iptables (ipt_getinfo)."""
    return _option(_IPT_GET_INFO, b"filter".ljust(84, b"\0"))


def ipt_statistic() -> int:
    """Whether it has the match ``statistic`` (xt_get_revision)."""
    return _option(_IPT_GET_MATCH, b"statistic".ljust(29, b"\0") + b"\0")


#: Every feature, how it is asked for, and the errors that mean that the kernel does not have it.
FEATURES: dict[str, tuple[Callable[[], int], tuple[int, ...]]] = {
    "netem": (netem, (errno.ENOENT,)),
    "tbf": (tbf, (errno.ENOENT,)),
    "nf_tables": (nf_tables, (errno.EINVAL, errno.EPROTONOSUPPORT)),
    "nft_statistic": (nft_statistic, (errno.ENOENT, errno.EINVAL, errno.EPROTONOSUPPORT)),
    "ip_tables": (ip_tables, (errno.ENOENT, errno.ENOPROTOOPT)),
    "ipt_statistic": (ipt_statistic, (errno.ENOENT, errno.ENOPROTOOPT, errno.EPROTONOSUPPORT)),
}


def features() -> dict[str, str]:
    """The kernel's answer for every feature."""
    return {name: _answer(*how) for name, how in FEATURES.items()}


def _answer(call: Callable[[], int], absent: tuple[int, ...]) -> str:
    try:
        code = call()
    except OSError as error:
        code = error.errno or 0
        if not code:  # a timeout has no number
            return f"not known: {error}"
    if not code:
        return YES
    return NO if code in absent else f"not known: {os.strerror(code)}"


def is_unused() -> bool:
    """Whether this network namespace has nothing but a loopback device."""
    return [name for _, name in socket.if_nameindex()] == ["lo"]


def versions() -> dict[str, str | None]:
    """Version of the Python that nodes would run Ray with, to the patch, and of that Ray."""
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return {"python": platform.python_version(), "ray": importlib.metadata.version("ray")}
    # An image whose `python` is not the one that has Ray: the command's first line names it.
    command = shutil.which("ray")
    if command is not None:
        code = (
            "import importlib.metadata as m, json, platform; "
            "print(json.dumps({'python': platform.python_version(), 'ray': m.version('ray')}))"
        )
        with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
            with open(command, encoding="utf-8", errors="replace") as script:
                words = shlex.split(script.readline().removeprefix("#!"))
            done = subprocess.run(
                [*words, "-c", code], capture_output=True, text=True, timeout=20, check=True
            )
            found: dict[str, str | None] = json.loads(done.stdout)
            return found
    return {"python": platform.python_version(), "ray": None}


def main() -> int:
    hold = float(sys.argv[sys.argv.index("--hold") + 1]) if "--hold" in sys.argv else 0.0
    if not is_unused():
        print("this network namespace is in use; nothing is tried in it", file=sys.stderr)
        return 2
    print(json.dumps({**versions(), "features": features()}), flush=True)
    time.sleep(hold)
    return 0


if __name__ == "__main__":
    sys.exit(main())
