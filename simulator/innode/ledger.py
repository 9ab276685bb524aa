"""The effect ledger: what really ran, where, written by the work itself.

Every execution writes START before its work and END after it, to a folder that outlives the node. One
``write`` call a line on a file opened for appending: the kernel has the whole line before the work
begins, so not even SIGKILL of the node can take it back. Ray is not asked for the node's identity: that
comes from the marker that PID 1 wrote.
"""

from __future__ import annotations

import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CONTROL = "control.json"
WORKLOAD = "workload.json"
DRIVER = "driver.jsonl"


def root() -> Path:
    """The ledger's folder on this node."""
    return Path(os.environ.get("RAY_SIM_LEDGER", "/ledger"))


def identity() -> tuple[str, int]:
    """This node's identity and how often it was started, as PID 1 wrote them."""
    marker = Path(os.environ.get("RAY_SIM_HOME", "/tmp/ray-sim")) / "node.json"
    try:
        data = json.loads(marker.read_text(encoding="utf-8"))
        return str(data["node"]), int(data["start_of_node"])
    except (OSError, ValueError, KeyError):
        return os.environ.get("RAY_SIM_NODE") or socket.gethostname(), 0


class Ledger:
    """Appends lines to one file of one run.

    Parameters
    ----------
    run_id
        Names the folder below the ledger's root.
    name
        File name; by default one for this process: ``<node>-<start of node>-<pid>.jsonl``.
    """

    def __init__(self, run_id: str, name: str | None = None) -> None:
        self.host, self.start_of_node = identity()
        folder = root() / run_id
        folder.mkdir(mode=0o777, parents=True, exist_ok=True)
        path = folder / (name or f"{self.host}-{self.start_of_node}-{os.getpid()}.jsonl")
        self._fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)

    def line(self, kind: str, **data: Any) -> bytes:
        """A line as it stands in the ledger, with the time of now."""
        line = {
            "kind": kind,
            "wall": time.time(),
            "mono": time.monotonic(),
            "host": self.host,
            "data": data,
        }
        return (json.dumps(line, separators=(",", ":")) + "\n").encode()

    def write(self, kind: str, **data: Any) -> None:
        os.write(self._fd, self.line(kind, **data))

    @contextmanager
    def execution(self, key: str, fn: str, nominal_s: float, **facts: Any) -> Iterator[None]:
        """START on entry, END on exit, with ``ok`` false if the body raised."""
        execution = uuid.uuid4().hex[:16]
        self.write(
            "task.start",
            key=key,
            exec=execution,
            fn=fn,
            nominal_s=nominal_s,
            pid=os.getpid(),
            start_of_node=self.start_of_node,
            **facts,
        )
        ok = False
        try:
            yield
            ok = True
        finally:
            self.write("task.end", key=key, exec=execution, ok=ok)

    @contextmanager
    def call(self, actor: str, key: str, incarnation: str) -> Iterator[None]:
        """START and END of a call of an actor's method; `incarnation` is the ``exec`` of its ``actor.start``."""
        execution = uuid.uuid4().hex[:16]
        self.write("call.start", actor=actor, key=key, exec=execution, incarnation=incarnation)
        yield
        self.write("call.end", actor=actor, key=key, exec=execution)


_open: dict[tuple[int, str], Ledger] = {}


def ledger(run_id: str) -> Ledger:
    """This process's ledger of a run, opened once."""
    key = (os.getpid(), run_id)
    if key not in _open:
        _open[key] = Ledger(run_id)
    return _open[key]


def read_json(path: Path) -> Mapping[str, Any]:
    """A small file that the orchestrator writes whole; {} while there is none."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return data if isinstance(data, dict) else {}
