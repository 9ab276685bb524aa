"""Watches a cluster from outside its failure domain: no raylet, a container of its own.

Streams, one JSON object a line on standard output: transitions of nodes, actors and placement groups as the GCS
has them, every line of the run's ledger, and a heartbeat. It works without the dashboard and goes on while the head is
gone: "no answer" is an observation too. On SIGTERM it takes one last look, says how many lines of which
file it forwarded, and ends.

The GCS announces that a node or an actor changed and is asked at once what; while it announces nothing to us, it
is asked ten times a second. Of placement groups it announces nothing: they are asked for with the others, and
ten times a second while one of them is not placed. All that happens in a thread of its own, so that no silence
of the GCS keeps the ledger or the heartbeat waiting.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, Protocol

from simulator.innode.ray_private import ActorInfo, Announcements, Gcs, GroupInfo, NodeInfo

#: How late a transition may be seen, seconds: the time between two questions to the GCS.
POLL_S = 0.1
#: The same while the GCS announces changes by itself: only to see that it still answers.
CHECK_S = 1.0
#: A GCS that takes longer than this has not answered. On a crowded machine a second is too short.
ANSWER_S = 3.0
BEAT_S = 1.0
#: The most that is read of one file at a time, bytes.
CHUNK = 1 << 20
#: Lines that are written together.
BATCH = 500


class Asked(Protocol):
    """What is asked of the GCS; see `simulator.innode.ray_private.Gcs`."""

    async def nodes(self, timeout: float) -> list[NodeInfo]: ...

    async def actors(self, timeout: float) -> list[ActorInfo]: ...

    async def groups(self, timeout: float) -> list[GroupInfo]: ...

    async def subscribe(self, timeout: float) -> Announcements: ...


class Output:
    """Standard output, written to by two threads; flushed after each batch of lines."""

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, lines: list[str]) -> None:
        if lines:
            with self._lock:
                self._stream.write("\n".join(lines) + "\n")
                self._stream.flush()

    def say(self, kind: str, host: str | None = None, **data: Any) -> None:
        """One line of the observer's own."""
        self.write([_line("observer", kind, time.time(), time.monotonic(), host, data)])


def _line(src: str, kind: str, wall: float, mono: float | None, host: str | None, data: Any) -> str:
    return json.dumps(
        {"src": src, "kind": kind, "wall": wall, "mono": mono, "host": host, "data": data},
        separators=(",", ":"),
    )


class LedgerTail:
    """Forwards every complete line of every file of the run's folder, once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, int] = {}
        self.lines: dict[str, int] = {}

    def new_lines(self) -> Iterator[str]:
        """What the files have gained, as lines of output, in the order of each file."""
        try:
            with os.scandir(self._folder) as entries:
                sizes = {
                    entry.name: entry.stat().st_size
                    for entry in entries
                    if entry.name.endswith(".jsonl")
                }
        except FileNotFoundError:
            return
        for name in sorted(sizes):
            if sizes[name] > self._read.get(name, 0):
                yield from self._of(name)

    def _of(self, name: str) -> Iterator[str]:
        with (self._folder / name).open("rb") as file:
            file.seek(self._read.get(name, 0))
            rest = b""
            while data := file.read(CHUNK):
                *whole, rest = (rest + data).split(b"\n")
                for line in whole:
                    number = self.lines[name] = self.lines.get(name, 0) + 1
                    self._read[name] = self._read.get(name, 0) + len(line) + 1
                    yield _forwarded(name, number, line)


def _forwarded(name: str, number: int, line: bytes) -> str:
    try:
        raw = json.loads(line)
        data = {**raw["data"], "file": name, "line": number}
        src = "driver" if name.startswith("driver") else "ledger"
        return _line(src, raw["kind"], raw["wall"], raw["mono"], raw["host"], data)
    except (ValueError, KeyError, TypeError):
        data = {"file": name, "line": number}
        return _line("observer", "observer.garbled", time.time(), time.monotonic(), None, data)


class GcsWatch:
    """Says what changes in the GCS, and when it falls silent; for an event loop of its own."""

    def __init__(self, out: Output, ending: threading.Event) -> None:
        self.out, self.ending = out, ending
        self.nodes: dict[str, NodeInfo] = {}
        self.actors: dict[str, ActorInfo] = {}
        self.groups: dict[str, GroupInfo] = {}
        self.answers = False
        self.started, self.done = threading.Event(), threading.Event()
        self._hears = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._news = asyncio.Event()

    def start(self) -> None:
        """Say that it watches from now on: the first question was answered, or was not."""
        if not self.started.is_set():
            self.out.say("observer.start", poll_s=POLL_S)
            self.started.set()

    def wake(self) -> None:
        """Have it look now; from any thread."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._news.set)

    async def run(self, gcs: Asked) -> None:
        """Watch until `ending`, then look once more."""
        self._loop = asyncio.get_running_loop()
        hearing = asyncio.create_task(self._hear(gcs))
        heard = True
        while not self.done.is_set():
            last = self.ending.is_set()
            began = time.monotonic()
            answered = self.answers
            changes = await self._look(gcs)
            if last:
                self.done.set()
            elif self.answers > answered or (changes and self._hears and not heard):
                # A GCS that came back knows no subscriber; one that changed in silence forgot us.
                hearing.cancel()
                self._hears = False
                hearing = asyncio.create_task(self._hear(gcs))
            # However many announcements come, a look costs something.
            await asyncio.sleep(max(0.0, began + 0.02 - time.monotonic()))
            settled = self._hears and not self._placing
            heard = await self._wait(CHECK_S if settled else POLL_S)
        hearing.cancel()

    @property
    def _placing(self) -> bool:
        """Whether a placement group waits for a place."""
        return any(group.state not in ("CREATED", "REMOVED") for group in self.groups.values())

    async def _wait(self, seconds: float) -> bool:
        """Wait for news; whether there is any."""
        if not self.ending.is_set():
            try:
                await asyncio.wait_for(self._news.wait(), seconds)
            except asyncio.TimeoutError:
                return False
        self._news.clear()
        return True

    async def _hear(self, gcs: Asked) -> None:
        while True:
            try:
                announcements = await gcs.subscribe(ANSWER_S)
                self._hears = True
                self._news.set()  # what changed before the subscription
                while True:
                    await announcements.next()
                    self._news.set()
            except Exception:  # noqa: BLE001 - whatever it is, nothing is heard any more
                self._hears = False
                self._news.set()
                await asyncio.sleep(5 * POLL_S)

    async def _look(self, gcs: Asked) -> int:
        """Ask once and say what is different; returns how much was."""
        try:
            nodes, actors, groups = await asyncio.gather(
                gcs.nodes(ANSWER_S), gcs.actors(ANSWER_S), gcs.groups(ANSWER_S)
            )
        except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
            if self.answers or not self.started.is_set():
                self.start()
                self.out.say("observer.blind", error=_short(error))
            self.answers = False
            return 0
        if not self.answers and self.started.is_set():
            self.out.say("observer.seeing", error="")
        self.answers = True
        self.start()
        changes = self._compare(nodes, actors)
        self._compare_groups(groups)
        return changes

    def _compare(self, nodes: list[NodeInfo], actors: list[ActorInfo]) -> int:
        changes = 0
        for node in nodes:
            if self.nodes.get(node.ray_node_id) != node:
                self.nodes[node.ray_node_id] = node
                changes += 1
                self.out.say("ray.node", node.hostname, **vars(node))
        for actor in actors:
            if self.actors.get(actor.actor_id) != actor:
                self.actors[actor.actor_id] = actor
                changes += 1
                place = self.nodes.get(actor.ray_node_id)
                host = place.hostname if place else None
                self.out.say(
                    "ray.actor",
                    host,
                    **{
                        "actor_id": actor.actor_id,
                        "name": actor.name,
                        "class": actor.class_name,
                        "state": actor.state,
                        "restarts": actor.restarts,
                        "hostname": host,
                    },
                )
        return changes

    def _compare_groups(self, groups: list[GroupInfo]) -> None:
        for group in groups:
            known = self.groups.get(group.group_id)
            # One that was removed before it was ever seen is of a run before this one.
            if known == group or (known is None and group.state == "REMOVED"):
                continue
            self.groups[group.group_id] = group
            places = [self.nodes.get(place) for place in group.places]
            self.out.say(
                "ray.group",
                None,
                group_id=group.group_id,
                name=group.name,
                namespace=group.namespace,
                strategy=group.strategy,
                state=group.state,
                hosts=[place.hostname if place else None for place in places],
            )


def _short(error: Exception) -> str:
    """What kind of silence it was; gRPC's own words go on for lines."""
    code = getattr(error, "code", None)
    text = f"{code().name}: {error.details()}" if callable(code) else str(error)  # type: ignore[attr-defined]
    return f"{type(error).__name__}: {text}"[:300]


def observe(address: str, ledger: Path, out: Output, ending: threading.Event) -> None:
    """Watch both until `ending`; the heartbeat and the ledger do not wait for the GCS."""
    watch = GcsWatch(out, ending)

    def ask() -> None:
        async def main() -> None:
            await watch.run(Gcs(address))

        try:
            asyncio.run(main())
        except Exception as error:  # noqa: BLE001 - the ledger is still to be forwarded
            watch.answers = False
            watch.start()
            out.say("observer.blind", error=_short(error))
            watch.done.set()

    threading.Thread(target=ask, name="gcs", daemon=True).start()
    tail, beats, next_beat = LedgerTail(ledger), 0, 0.0

    def forward() -> None:
        batch = []
        for line in tail.new_lines():
            batch.append(line)
            if len(batch) == BATCH:
                out.write(batch)
                batch = []
                beat()
        out.write(batch)

    def beat() -> None:
        nonlocal beats, next_beat
        if time.monotonic() >= next_beat:
            beats, next_beat = beats + 1, time.monotonic() + BEAT_S
            out.say("observer.beat", n=beats, gcs=watch.answers)

    # Loading Ray takes seconds on a crowded machine; that is no silence of the GCS.
    while not (watch.started.wait(POLL_S) or ending.is_set()):
        pass
    while not ending.wait(POLL_S):
        beat()
        forward()
    watch.wake()
    watch.done.wait(ANSWER_S + 1.0)
    watch.start()
    forward()
    out.say("observer.end", files=tail.lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--gcs",
        default=os.environ.get("RAY_SIM_HEAD_ADDRESS"),
        help="address of the GCS, ip:port; by default the node's environment says it",
    )
    parser.add_argument("--run", required=True, help="id of the run whose ledger is forwarded")
    parser.add_argument("--ledger", default=os.environ.get("RAY_SIM_LEDGER", "/ledger"))
    asked = parser.parse_args()
    if not asked.gcs:
        parser.error("--gcs is needed where RAY_SIM_HEAD_ADDRESS is not set")
    ending = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, frame: ending.set())
    observe(asked.gcs, Path(asked.ledger) / asked.run, Output(sys.stdout), ending)
    # gRPC's threads may be in the middle of something that nobody wants to know any more.
    os._exit(0)


if __name__ == "__main__":
    main()
