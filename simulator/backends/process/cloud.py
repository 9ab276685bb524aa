"""The cloud of a cluster of processes: its machines are nodes as any, made when Ray's autoscaler asks.

python -m simulator.backends.process.cloud CLUSTER
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from simulator.backends.process.backend import ProcessBackend
from simulator.backends.process.launch import PID, noted_pid
from simulator.backends.process.table import look
from simulator.backends.process.watch import exit_code
from simulator.errors import SimulatorError
from simulator.innode.cloud import EngineError, Machine, serve


class ProcessEngine:
    """What the cloud needs (`simulator.innode.cloud.Engine`), of one cluster of processes."""

    def __init__(self, backend: ProcessBackend, cluster: str) -> None:
        self._backend, self._cluster = backend, cluster

    def machines(self) -> list[Machine]:
        with _told():
            nodes = self._backend.described(self._cluster)
        return [
            self._machine(name, node)
            for name, node in nodes.items()
            if node["role"] == "head" or "machine" in node
        ]

    def make(self, group: str, number: int, note: Mapping[str, Any]) -> str:
        with _told():
            return self._backend.make_machine(self._cluster, group, number, note)

    def start(self, name: str) -> None:
        with _told():
            self._backend.start(self._cluster, name)

    def ready(self, name: str) -> bool:
        return (self._home(name) / "home" / "ready").exists()

    def stop(self, name: str, grace: float) -> None:
        with _told():
            self._backend.stop(self._cluster, name, grace)

    def remove(self, name: str) -> None:
        with _told():
            self._backend.remove_node(self._cluster, name)

    def _home(self, name: str) -> Path:
        return self._backend.root / self._cluster / name

    def _machine(self, name: str, node: Mapping[str, Any]) -> Machine:
        # Asked ten times a second, so without a look at every process of the machine.
        home = self._home(name)
        pid1 = noted_pid(home, home)
        process = look(pid1) if pid1 is not None else None
        if process is not None:
            state = "paused" if process.state in "tT" else "running"
        else:
            state = "exited" if (home / PID).exists() else "created"
        code = exit_code(home) if state == "exited" else None
        return Machine(name, node["group"], state, node.get("machine", {}), code)


@contextmanager
def _told() -> Iterator[None]:
    """Have an error of ours be one that the cloud answers with."""
    try:
        yield
    except SimulatorError as error:
        raise EngineError(str(error)) from error


def main(argv: list[str]) -> int:
    if len(argv) != 1:
        sys.stderr.write(__doc__ or "")
        return 2
    return serve(ProcessEngine(ProcessBackend(), argv[0]), Path(os.environ["RAY_SIM_CLOUD"]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
