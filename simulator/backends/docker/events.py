"""Delivers what the engine reports about nodes, losing nothing from the call on.

The engine sends its answer's headers before it subscribes, so asking for "events from now on" could
lose the first ones. It keeps its latest events, though, and gives them again to who asks for those
since a moment of its own clock: with that, both the first connection and any later one are gapless.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any, cast

import docker
import requests
from docker.errors import DockerException

from simulator.backends.base import LABEL_CLUSTER, EngineEvent
from simulator.backends.docker.engine import asking

_VERBS = ("start", "die", "pause", "unpause", "oom")


def to_event(raw: Mapping[str, Any], node: str) -> EngineEvent:
    """The engine's own record of an event, in our words."""
    code = raw["Actor"]["Attributes"].get("exitCode")
    verb = raw["Action"]
    return EngineEvent(
        verb=verb,
        node=node,
        wall=raw["timeNano"] / 1e9,
        exit_code=int(code) if verb == "die" and code is not None else None,
    )


class EventWatch:
    """A thread that reads the engine's event stream until closed.

    Parameters
    ----------
    since
        Moment of the engine's clock from which on events are delivered, nanoseconds.
    name_of
        A node's name from its container's labels; None for what is not a node.
    """

    def __init__(
        self,
        client: docker.APIClient,
        cluster: str,
        *,
        since: int,
        name_of: Callable[[Mapping[str, str]], str | None],
        emit: Callable[[EngineEvent], None],
    ) -> None:
        self._client, self._cluster = client, cluster
        self._since = since
        self._name_of, self._emit = name_of, emit
        self._closed = threading.Event()
        self._stream = self._subscribe()
        self._thread = threading.Thread(target=self._run, name=f"events of {cluster}", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop delivering; returns when the thread has ended."""
        self._closed.set()
        # A stream through ssh cannot be closed from here; its thread ends with the process.
        with suppress(OSError, DockerException, AttributeError):
            self._stream.close()
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _subscribe(self) -> Any:
        seconds, nanos = divmod(self._since, 10**9)
        with asking(f"the events of {self._cluster} were asked for"):
            return self._client.events(
                since=cast(Any, f"{seconds}.{nanos:09d}"),
                filters={
                    "type": "container",
                    "event": list(_VERBS),
                    "label": f"{LABEL_CLUSTER}={self._cluster}",
                },
                decode=True,
            )

    def _run(self) -> None:
        pause = 0.1
        while not self._closed.is_set():
            try:
                for raw in self._stream:
                    pause = 0.1
                    self._since = raw["timeNano"] + 1
                    name = self._name_of(raw["Actor"]["Attributes"])
                    if name is not None and not self._closed.is_set():
                        self._emit(to_event(raw, name))
            except (requests.RequestException, DockerException, ValueError, AttributeError):
                # AttributeError: a stream that is closed while it is being read has no socket.
                pass
            # The engine was restarted, or the connection broke: go on where it ended.
            while not self._closed.wait(pause):
                pause = min(pause * 2, 2.0)
                with suppress(Exception):
                    self._stream = self._subscribe()
                    break
