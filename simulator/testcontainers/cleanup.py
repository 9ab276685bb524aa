"""Nothing is left behind, whatever ends the process that started a cluster.

Four nets, each for what falls through the one above it:

1. ``stop()``, which the context manager calls, also when a start fails or is interrupted;
2. at the end of the interpreter, clusters that nobody stopped are removed;
3. testcontainers' reaper, a container that removes what carries the session's label when its connection
   to this process breaks;
4. where no reaper can run (its image cannot be pulled on every machine), the next session removes the
   clusters whose owner is dead. ``python -m simulator down --all`` does it at once.

An owner lives as long as it holds the lock of a file that its clusters' label names. The kernel gives
the lock back with the process, however that ended, so neither a clock nor a process id that was given
away again can make a living owner look dead. Where there is no such file, as for a cluster that another
machine or another container started on the same engine, nothing can be told and nothing is removed.
"""

from __future__ import annotations

import atexit
import fcntl
import logging
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import IO
from uuid import uuid4

from testcontainers.core.config import testcontainers_config
from testcontainers.core.container import Reaper
from testcontainers.core.labels import LABEL_SESSION_ID, SESSION_ID

from simulator.backends.base import Backend, ClusterRecord
from simulator.errors import SimulatorError
from simulator.rescue import take_down
from simulator.waiting import within

_LOG = logging.getLogger(__name__)

#: Path of the file whose lock the process that started the cluster holds.
LABEL_OWNER = "ray-sim.owner"

_REAPER_S = 30.0


class Owner:
    """This process, as one whose life or death others can see."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.path = folder / f"{uuid4().hex}.lock"
        with _alone_in(folder):
            self._file: IO[bytes] = open(self.path, "xb")  # noqa: SIM115 - held for life
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)

    def release(self) -> None:
        self.path.unlink(missing_ok=True)
        self._file.close()


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """So that no file of an owner's is seen without its lock, unless its owner is dead."""
    with open(folder / "guard", "ab") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        try:
            yield
        finally:  # said, since a child that was forked meanwhile would keep it
            fcntl.flock(guard, fcntl.LOCK_UN)


def owners_folder() -> Path:
    """Where the owners of this user have their files."""
    return Path(tempfile.gettempdir(), f"ray-sim-{os.getuid()}", "owners")


def is_dead(path: Path) -> bool:
    """Whether the owner with this file is gone; False where that cannot be told."""
    if path.parent != owners_folder():
        return False
    try:
        with _alone_in(path.parent), open(path, "r+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except OSError:  # there is no such file here, or somebody holds it
        return False


class Session:
    """The clusters that this process started and has not removed yet."""

    def __init__(self) -> None:
        self.owner = Owner(owners_folder())
        self._clusters: dict[str, Backend] = {}
        self._pid = os.getpid()
        atexit.register(self.close)

    def labels(self) -> Mapping[str, str]:
        """What this session's clusters carry, so that reapers and later sessions find them."""
        return {LABEL_OWNER: str(self.owner.path), LABEL_SESSION_ID: SESSION_ID}

    def add(self, name: str, backend: Backend) -> None:
        self._clusters[name] = backend

    def remove(self, name: str) -> None:
        """Remove a cluster of this session's; one of the same name that is not stays."""
        backend = self._clusters.get(name)
        if backend is None:
            return
        there = next((c for c in backend.clusters() if c.name == name), None)
        if there is not None and there.labels.get(LABEL_OWNER) == str(self.owner.path):
            backend.remove(name)
        del self._clusters[name]

    def close(self) -> None:
        """Remove all that is left; a forked child leaves it to its parent."""
        if os.getpid() != self._pid:
            return
        for name in list(self._clusters):
            try:
                self.remove(name)
            except SimulatorError as error:
                _LOG.warning("cluster %s could not be removed: %s", name, error)
        if not self._clusters:
            self.owner.release()


@cache
def session() -> Session:
    """The one of this process."""
    return Session()


def _get_reaper() -> None:
    Reaper.get_instance()


@cache
def start_reaper() -> bool:
    """Start testcontainers' reaper, once in a process, unless it is switched off.

    Where it cannot run, that is said once, and this session does without.
    """
    if testcontainers_config.ryuk_disabled:
        return False
    try:
        within(_REAPER_S, "the start of the reaper", _get_reaper)
    except Exception as error:  # noqa: BLE001 - whatever keeps it from running
        _LOG.warning(
            "the reaper %s cannot run here (%s); clusters of a session that is killed are removed by the "
            "next one, or by: python -m simulator down --all. TESTCONTAINERS_RYUK_DISABLED=true "
            "switches it off",
            testcontainers_config.ryuk_image,
            error,
        )
        with suppress(Exception):
            Reaper.delete_instance()
        return False
    return True


def remove_orphans(backend: Backend) -> list[str]:
    """Remove the clusters whose owner died without removing them; their names."""
    owned: dict[Path, list[ClusterRecord]] = {}
    for record in backend.clusters():
        if owner := record.labels.get(LABEL_OWNER):
            owned.setdefault(Path(owner), []).append(record)
    removed: list[str] = []
    # An owner may be dead and its clusters gone: somebody took them down by hand.
    for path in owners_folder().glob("*.lock"):
        owned.setdefault(path, [])
    for path, records in owned.items():
        if not is_dead(path):
            continue
        try:
            for record in records:
                take_down(backend, record, _LOG.info)
                removed.append(record.name)
        except SimulatorError as error:
            _LOG.warning("clusters of a session that is dead could not be removed: %s", error)
        else:
            path.unlink(missing_ok=True)
    return removed
