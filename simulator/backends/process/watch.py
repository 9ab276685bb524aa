"""Reports what happens to nodes: started, ended, frozen, thawed.

The end of a node is told by the kernel the moment its PID 1 is gone (a pidfd becomes readable). Nothing tells
of a process that was stopped or started, so for those each PID 1 is looked at twenty times a second.
"""

from __future__ import annotations

import json
import os
import select
import threading
import time
from collections.abc import Callable
from pathlib import Path

from simulator.backends.base import EngineEvent
from simulator.backends.process.launch import EXIT_CODE, PID, noted_number, noted_pid
from simulator.backends.process.table import look, open_handle

_PERIOD_S = 0.05
KILLED = 137  # 128 + SIGKILL


def exit_code(home: Path) -> int:
    """What the supervisor noted as its last word; without one it was killed."""
    noted = noted_number(home / "home" / EXIT_CODE)
    return KILLED if noted is None else noted


class _Node:
    """One node as it was last seen."""

    def __init__(self, name: str, home: Path) -> None:
        self.name, self.home = name, home
        self.pid: int | None = None
        self.handle: int | None = None
        self.paused = False
        self.noted = 0

    def adopt(self) -> bool:
        """Hold on to the PID 1 of a node that has none yet; whether there was one."""
        try:
            noted = (self.home / PID).stat().st_mtime_ns
        except OSError:
            return False
        if noted == self.noted:
            return False
        self.noted = noted
        pid = noted_pid(self.home, self.home)
        if pid is None:
            return False
        self.pid, self.handle = pid, open_handle(pid)
        self.paused = False
        return True

    def release(self) -> None:
        if self.handle is not None:
            os.close(self.handle)
        self.pid = self.handle = None


class ProcessWatch:
    """A thread that delivers events until closed; sees everything that happens after its making.

    Parameters
    ----------
    cluster
        The file that says which nodes there are, which may change.
    """

    def __init__(self, cluster: Path, emit: Callable[[EngineEvent], None]) -> None:
        self._cluster, self._emit = cluster, emit
        self._nodes: list[_Node] = []
        self._read = 0
        self._find_nodes()
        for node in self._nodes:
            node.adopt()
            if node.pid is not None:
                now = look(node.pid)
                node.paused = now is not None and now.state in "tT"
        self._closed = threading.Event()
        self._wake, self._waker = os.pipe()
        self._thread = threading.Thread(target=self._run, name="process-watch", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Stop delivering; returns when the thread has ended."""
        if self._closed.is_set():
            return
        self._closed.set()
        os.write(self._waker, b"x")
        if self._thread is not threading.current_thread():
            self._thread.join(timeout=5.0)

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._wake, select.POLLIN)
        for node in self._nodes:
            if node.handle is not None:
                poll.register(node.handle, select.POLLIN)
        try:
            while not self._closed.is_set():
                poll.poll(_PERIOD_S * 1000)
                wall = time.time()
                self._find_nodes()
                for node in self._nodes:
                    self._look_at(node, wall, poll)
        finally:
            for node in self._nodes:
                node.release()
            os.close(self._wake)
            os.close(self._waker)

    def _find_nodes(self) -> None:
        """Take up the nodes that were made; one that was removed is kept until its end was seen."""
        try:
            changed = self._cluster.stat().st_mtime_ns
            if changed == self._read:
                return
            names = set(json.loads(self._cluster.read_text(encoding="utf-8"))["nodes"])
        except OSError:
            names, changed = set(), 0  # the cluster is gone
        self._read = changed
        self._nodes = [n for n in self._nodes if n.name in names or n.pid is not None]
        new = names - {n.name for n in self._nodes}
        self._nodes += [_Node(name, self._cluster.parent / name) for name in sorted(new)]

    def _look_at(self, node: _Node, wall: float, poll: select.poll) -> None:
        if node.pid is None:
            if node.adopt():
                if node.handle is not None:
                    poll.register(node.handle, select.POLLIN)
                self._tell("start", node, wall)
            return
        now = look(node.pid)
        if now is None:
            if node.handle is not None:
                poll.unregister(node.handle)
            node.release()
            self._tell("die", node, wall)
            return
        paused = now.state in "tT"
        if paused != node.paused:
            node.paused = paused
            self._tell("pause" if paused else "unpause", node, wall)

    def _tell(self, verb: str, node: _Node, wall: float) -> None:
        code = exit_code(node.home) if verb == "die" else None
        if not self._closed.is_set():
            self._emit(EngineEvent(verb, node.name, wall, code))  # type: ignore[arg-type]
