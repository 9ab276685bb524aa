"""A program of ours in a container of its own beside the nodes: the observer, for example.

It carries the cluster's labels, so it is found and removed with the cluster, and it outlives an
orchestrator that is killed: what it printed stays with the engine and can be read again.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import docker
import requests
from urllib3.exceptions import HTTPError

from simulator.backends.docker.archive import lines_of
from simulator.backends.docker.engine import asking, is_gone
from simulator.errors import CannotRun

#: The name of a container that is no node.
LABEL_PROGRAM = "ray-sim.program"

_KILLED = 137  # 128 + SIGKILL


class DockerProgram:
    """One such container, by its id."""

    def __init__(self, client: docker.APIClient, container: str, name: str) -> None:
        self._client, self._container, self.name = client, container, name

    def lines(self) -> Iterator[str]:
        """Its standard output from the beginning, line by line, until it ends.

        A stream that breaks while the program goes on is taken up again after the lines that
        were delivered.
        """
        delivered = 0
        while True:
            running = self._running()
            try:
                with asking(f"the output of {self.name} was asked for"):
                    chunks = self._client.logs(
                        self._container, stdout=True, stderr=False, stream=True, follow=True
                    )
                for number, line in enumerate(lines_of(chunks), 1):
                    if running and not line.endswith("\n"):
                        break  # cut in the middle of a line; it is read again
                    if number > delivered:
                        delivered = number
                        yield line.removesuffix("\n")
            except CannotRun as error:
                if is_gone(error):
                    return
                raise
            except (requests.RequestException, HTTPError, OSError):
                continue
            if not running:
                return  # this reading began after its end, so nothing can be missing

    def stop(self, timeout: float) -> int | None:
        """SIGTERM, wait up to `timeout` seconds, SIGKILL; its exit code if it ended by itself."""
        with asking(f"program {self.name} was told to stop"):
            self._client.stop(self._container, timeout=max(0, math.ceil(timeout)))
            code = int(self._client.inspect_container(self._container)["State"]["ExitCode"])
        return None if code == _KILLED else code

    def remove(self) -> None:
        """End it if it runs, and remove it with all it printed; idempotent."""
        try:
            with asking(f"program {self.name} was removed"):
                self._client.remove_container(self._container, force=True, v=True)
        except CannotRun as error:
            if not is_gone(error):
                raise

    def _running(self) -> bool:
        try:
            with asking(f"program {self.name} was looked for"):
                state = self._client.inspect_container(self._container)["State"]
        except CannotRun as error:
            if is_gone(error):
                return False
            raise
        # One that the engine keeps up is not over when it has died.
        return bool(state["Running"] or state.get("Restarting"))
