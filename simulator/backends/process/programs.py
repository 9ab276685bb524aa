"""A program of ours beside the nodes: the observer, for example.

It carries the cluster's mark, so it is found and removed with the cluster, and it outlives an
orchestrator that is killed: what it printed stands in a file and can be read again.
"""

from __future__ import annotations

import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

from simulator.backends.process.launch import EXIT_CODE, follow, noted_number, noted_pid
from simulator.backends.process.table import kill_all, living, send


class ProcessProgram:
    """One such program, by its folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def lines(self) -> Iterator[str]:
        """Its standard output from the beginning, line by line, until it ends."""
        return follow(self._folder / "out", self._running)

    def stop(self, timeout: float) -> int | None:
        """SIGTERM, wait up to `timeout` seconds, SIGKILL; its exit code if it ended by itself."""
        if self._running():
            send(living(self._folder), signal.SIGTERM)
        end = time.monotonic() + timeout
        while self._running():
            if time.monotonic() > end:
                kill_all(self._folder)
                return None
            time.sleep(0.02)
        return noted_number(self._folder / EXIT_CODE)

    def remove(self) -> None:
        """End it if it runs, and remove it with all it printed; idempotent."""
        kill_all(self._folder)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _running(self) -> bool:
        return noted_pid(self._folder, self._folder) is not None
