"""A small cloud: gives machines to one cluster when Ray's autoscaler asks, and takes them back.

Like a real one it takes its time, now and then has nothing to give, and knows nothing of Ray. It is the one
program that may start and stop nodes while nobody looks on, so it runs no Ray and nobody's code; Ray's
autoscaler (`simulator.innode.autoscaler`) asks it over a Unix socket, which no node can reach.

A request is one line of JSON, and so is the answer, an object with ``error`` if there is none:

============================================================ ===============================================
``{"do": "list"}``                                           ``{"machines": [...]}``: all that are not gone
``{"do": "create", "group", "count", "tags"}``               ``{"ids": [...]}``, at once; they come later
``{"do": "terminate", "ids": [...]}``                        ``{}``; of machines that are gone already, too
============================================================ ===============================================

What there is stands with the engine, and what a machine was asked for as on its label, so a cloud that was killed
goes on where it was. Only what no machine can tell is in its folder: numbers that were given out (no
machine is ever named as another one was), and when the first was asked for.

What it does it tells, one JSON object a line on standard output, in the form of the observer's lines.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import signal
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

SOCKET = "socket"
#: Of the orchestrator's: how machines come, by group (`Settings`); and which groups give none now, and why.
SETTINGS, CLOSED = "settings.json", "closed.json"
#: Of the cloud's own.
BOOK = "book.json"

#: How often it looks what is due and what is gone, seconds.
LOOK_S = 0.1
#: How long a machine has between SIGTERM and SIGKILL, seconds.
GRACE_S = 10.0
#: How many machines that are gone are kept, so that their logs can be read; the oldest go first.
KEPT_GONE = 32
#: A machine that has not become ready so long after its start holds up no other one, seconds.
BOOT_S = 60.0

#: What the head is to Ray's autoscaler, which must always find it listed.
HEAD = {
    "id": "head",
    "tags": {
        "ray-node-type": "head",
        "ray-user-node-type": "head",
        "ray-node-status": "up-to-date",
    },
}


@dataclass(frozen=True)
class Machine:
    """A machine as the engine has it.

    Attributes
    ----------
    state
        created, running, paused or exited.
    note
        What it was made with: its id, Ray's tags, when it is due; empty for the head.
    """

    name: str
    group: str
    state: str
    note: Mapping[str, Any] = field(default_factory=dict)
    exit_code: int | None = None


class Engine(Protocol):
    """What the cloud needs of an engine. Times are seconds."""

    def machines(self) -> list[Machine]:
        """The cluster's head and every machine of a managed group, exited ones included."""

    def make(self, group: str, number: int, note: Mapping[str, Any]) -> str:
        """Make a machine of a group, not started; returns its name."""

    def start(self, name: str) -> None: ...

    def ready(self, name: str) -> bool:
        """Whether what runs on it says that Ray is up."""

    def stop(self, name: str, grace: float) -> None: ...

    def remove(self, name: str) -> None: ...


class Refused(Exception):
    """There is no machine to be had; the text says why."""


class EngineError(Exception):
    """The engine refused, or did not answer."""


def read_json(path: Path) -> dict[str, Any]:
    """What a file holds; nothing where there is none."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    return found if isinstance(found, dict) else {}


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Have a file hold this, whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(data), encoding="utf-8")
    part.replace(path)


class Cloud:
    """Gives machines, and takes them back; every method may be called by several threads.

    Parameters
    ----------
    folder
        Where its files are; see the names above.
    tell
        Called with the kind and the data of everything that happens.
    """

    def __init__(
        self,
        engine: Engine,
        folder: Path,
        tell: Callable[..., None],
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.engine, self.folder, self.tell, self.wall = engine, folder, tell, wall
        self._lock = threading.Lock()
        self._booting: dict[str, float] = {}  # since when
        self._ended: set[str] = set()  # told of
        self._ending = ThreadPoolExecutor(4, thread_name_prefix="end")
        self._stopping: set[str] = set()

    # -- what it is asked ------------------------------------------------------------------------

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Answer one request, whatever it is."""
        try:
            what = request.get("do")
            if what == "list":
                return {"machines": self.present()}
            if what == "create":
                ids = self.create(request["group"], int(request["count"]), request["tags"])
                return {"ids": ids}
            if what == "terminate":
                self.terminate(request["ids"])
                return {}
            return {"error": f"{what!r} is not a request"}
        except Refused as error:
            return {"error": str(error)}
        except (EngineError, OSError, LookupError, TypeError, ValueError) as error:
            why = f"{type(error).__name__}: {error}"
            self.tell("cloud.error", what=request.get("do"), why=why)
            return {"error": why}

    def present(self) -> list[dict[str, Any]]:
        """Every machine that is not gone, the head among them whatever its state."""
        found = []
        for machine in self.engine.machines():
            if machine.group == "head":
                found.append({**HEAD, "name": machine.name, "running": machine.state == "running"})
            elif machine.state != "exited" and machine.note:
                found.append(
                    {
                        "id": machine.note["id"],
                        "tags": machine.note["tags"],
                        "name": machine.name,
                        "running": machine.state in ("running", "paused"),
                    }
                )
        return found

    def create(self, group: str, count: int, tags: Mapping[str, str]) -> list[str]:
        """Make so many machines, which come when they are due.

        Raises
        ------
        Refused
            The group has none to give.
        """
        settings = read_json(self.folder / SETTINGS)
        how = settings.get("groups", {}).get(group)
        asked = {"group": group, "count": count, "request": tags.get("ray-launch-request", "")}
        if how is None:
            self.tell("cloud.asked", **asked, refused="there is no such group")
            raise Refused(f"there is no group {group}")
        with self._lock:
            now = self.wall()
            book = read_json(self.folder / BOOK)
            first = book.setdefault("first_request", now)
            number = book.setdefault("requests", {}).get(group, 0) + 1
            book["requests"][group] = number
            why = self._why_none(settings, how, group, number, now - first)
            if why:
                write_json(self.folder / BOOK, book)
                self.tell("cloud.asked", **asked, refused=why)
                raise Refused(why)
            numbers = self._numbers(book, group, count)
            write_json(self.folder / BOOK, book)
            ids = [f"{group}-{n}" for n in numbers]
            self.tell("cloud.asked", **asked, nodes=ids)
            for n in numbers:
                low, high = how["delay"]
                delay = random.Random(f"{settings.get('seed')}:{group}:{n}").uniform(low, high)
                note = {"id": f"{group}-{n}", "tags": dict(tags), "due": now + delay}
                self.engine.make(group, n, note)
        return ids

    def terminate(self, ids: Sequence[str]) -> None:
        """Take machines back; returns before they are gone."""
        names = {m.note.get("id"): m for m in self.engine.machines() if m.note}
        with self._lock:
            for machine in (names[i] for i in ids if i in names):
                if machine.state == "exited" or machine.name in self._stopping:
                    continue
                self._stopping.add(machine.name)
                self.tell("cloud.terminate", node=machine.name)
                self._ending.submit(self._end, machine)

    def _end(self, machine: Machine) -> None:
        try:
            if machine.state == "created":
                self.engine.remove(machine.name)
            else:
                self.engine.stop(machine.name, GRACE_S)
        except (EngineError, OSError) as error:
            self.tell("cloud.error", what="terminate", node=machine.name, why=str(error))
        finally:
            with self._lock:
                self._stopping.discard(machine.name)

    def _why_none(
        self,
        settings: Mapping[str, Any],
        how: Mapping[str, Any],
        group: str,
        number: int,
        since_first: float,
    ) -> str:
        closed = read_json(self.folder / CLOSED)
        if group in closed:
            return str(closed[group])
        if since_first < how["capacity_after"]:
            return f"out of capacity for another {how['capacity_after'] - since_first:.1f} s"
        drawn = random.Random(f"{settings.get('seed')}:{group}:request {number}").random()
        return "the request failed" if drawn < how["failure"] else ""

    def _numbers(self, book: dict[str, Any], group: str, count: int) -> list[int]:
        """Numbers that no machine of the group ever had."""
        have = [int(m.name.rpartition("-")[2]) for m in self.engine.machines() if m.group == group]
        last = max([book.setdefault("last", {}).get(group, 0), *have])
        book["last"][group] = last + count
        return list(range(last + 1, last + count + 1))

    # -- what it does by itself ------------------------------------------------------------------

    def look(self) -> None:
        """Start what is due, as many at a time as the machine carries; tell what is ready or gone."""
        machines = [m for m in self.engine.machines() if m.note]
        now = self.wall()
        for machine in machines:
            if machine.state == "exited" and machine.name not in self._ended:
                self._ended.add(machine.name)
                self._booting.pop(machine.name, None)
                self.tell("machine.gone", node=machine.name, exit_code=machine.exit_code)
        states = {m.name: m.state for m in machines}
        for name, since in list(self._booting.items()):
            if states.get(name) is None or now - since > BOOT_S:
                del self._booting[name]
            elif states[name] == "running" and self.engine.ready(name):
                del self._booting[name]
                self.tell("machine.ready", node=name, seconds=round(now - since, 3))
        parallel = int(read_json(self.folder / SETTINGS).get("parallel", 2))
        due = sorted(
            (m for m in machines if m.state == "created" and m.note["due"] <= now),
            key=lambda m: m.note["due"],
        )
        for machine in due[: max(0, parallel - len(self._booting))]:
            if machine.name in self._stopping:
                continue
            self._booting[machine.name] = now
            self.tell("machine.start", node=machine.name, late=round(now - machine.note["due"], 3))
            self.engine.start(machine.name)
        gone = [m for m in machines if m.state == "exited"]
        for machine in sorted(gone, key=lambda m: m.note["due"])[: max(0, len(gone) - KEPT_GONE)]:
            self.engine.remove(machine.name)


class _Server(socketserver.ThreadingUnixStreamServer):
    daemon_threads = True
    cloud: Cloud


class _Handler(socketserver.StreamRequestHandler):
    server: _Server

    def handle(self) -> None:
        for line in self.rfile:
            try:
                request = json.loads(line)
            except ValueError:
                answer: dict[str, Any] = {"error": "that is not JSON"}
            else:
                answer = self.server.cloud.answer(request if isinstance(request, dict) else {})
            with contextlib.suppress(OSError):
                self.wfile.write(json.dumps(answer).encode() + b"\n")


def teller(source: str) -> Callable[..., None]:
    """Tells what happens on standard output, one line each, from any thread."""
    lock = threading.Lock()

    def tell(kind: str, **data: Any) -> None:
        line = {
            "src": source,
            "kind": kind,
            "wall": time.time(),
            "mono": time.monotonic(),
            "host": None,
            "data": data,
        }
        with lock:
            print(json.dumps(line, separators=(",", ":")), flush=True)

    return tell


def serve(engine: Engine, folder: Path) -> int:
    """Be the cloud until SIGTERM."""
    tell = teller("cloud")
    cloud = Cloud(engine, folder, tell)
    path = folder / SOCKET
    # Ray's autoscaler, which is not root, writes what it sees beside it.
    folder.chmod(0o1777)
    with contextlib.suppress(FileNotFoundError):
        path.unlink()
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    with _Server(str(path), _Handler) as server:
        server.cloud = cloud
        path.chmod(0o666)  # whoever can reach it may ask; only Ray's autoscaler can
        threading.Thread(target=server.serve_forever, daemon=True).start()
        tell("cloud.start")
        failed = ""
        while not ended.wait(LOOK_S):
            try:
                cloud.look()
                failed = ""
            except (EngineError, OSError, LookupError, ValueError) as error:  # it may come back
                why = f"{type(error).__name__}: {error}"
                if why != failed:
                    tell("cloud.error", what="look", why=why)
                failed = why
        server.shutdown()
    return 0


def main(argv: list[str]) -> int:
    from simulator.innode.docker_engine import DockerEngine

    if len(argv) != 1:
        print("usage: python -m simulator.innode.cloud CLUSTER", file=sys.stderr)
        return 2
    folder = Path(os.environ["RAY_SIM_CLOUD"])
    return serve(DockerEngine(argv[0], os.environ["RAY_SIM_ENGINE"]), folder)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
