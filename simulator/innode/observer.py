"""Watches a cluster from outside its failure domain: no raylet, a container of its own.

Streams, one JSON object a line on standard output: node and actor transitions as the GCS has them, every
line of the run's ledger, and a heartbeat. It works without the dashboard and goes on while the head is
gone: "no answer" is an observation too. On SIGTERM it takes one last look, says how many lines of which
file it forwarded, and ends.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from simulator.innode.ray_private import ActorInfo, Gcs, NodeInfo

POLL_S = 0.1
BEAT_S = 1.0
ANSWER_S = 1.0


class Output:
    """Standard output; one ``write`` for a batch of lines."""

    def __init__(self) -> None:
        self._lines: list[str] = []

    def emit(
        self,
        kind: str,
        data: dict[str, Any],
        *,
        host: str | None = None,
        src: str = "observer",
        wall: float | None = None,
        mono: float | None = None,
    ) -> None:
        line = {
            "src": src,
            "kind": kind,
            "wall": time.time() if wall is None else wall,
            "mono": time.monotonic() if wall is None else mono,
            "host": host,
            "data": data,
        }
        self._lines.append(json.dumps(line, separators=(",", ":")))

    def flush(self) -> None:
        if self._lines:
            sys.stdout.write("\n".join(self._lines) + "\n")
            sys.stdout.flush()
            self._lines.clear()


class LedgerTail:
    """Forwards every complete line of every file of the run's folder, once."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read: dict[str, int] = {}
        self.lines: dict[str, int] = {}

    def new_lines(self) -> Iterator[tuple[str, int, bytes]]:
        """File name, line number from 1, and the line, in the order of each file."""
        try:
            entries = [e for e in os.scandir(self._folder) if e.name.endswith(".jsonl")]
        except FileNotFoundError:
            return
        for entry in sorted(entries, key=lambda e: e.name):
            done = self._read.get(entry.name, 0)
            if entry.stat().st_size <= done:
                continue
            with open(entry.path, "rb") as file:
                file.seek(done)
                data = file.read()
            whole = data.rfind(b"\n") + 1
            self._read[entry.name] = done + whole
            for line in data[:whole].splitlines():
                self.lines[entry.name] = self.lines.get(entry.name, 0) + 1
                yield entry.name, self.lines[entry.name], line


class Observer:
    """Asks the GCS and reads the ledger, each at its own pace, until told to end."""

    def __init__(self, gcs_address: str, ledger: Path, out: Output) -> None:
        self.gcs_address, self.tail, self.out = gcs_address, LedgerTail(ledger), out
        self.nodes: dict[str, NodeInfo] = {}
        self.actors: dict[str, ActorInfo] = {}
        self.answers = False
        self.ending = asyncio.Event()

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.ending.set)
        self.out.emit("observer.start", {"poll_s": POLL_S})
        self.out.flush()
        asking = asyncio.create_task(self._ask())
        beats, next_beat = 0, 0.0
        while not self.ending.is_set():
            if time.monotonic() >= next_beat:
                beats, next_beat = beats + 1, time.monotonic() + BEAT_S
                self.out.emit("observer.beat", {"n": beats, "gcs": self.answers})
            self.forward()
            self.out.flush()
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self.ending.wait(), POLL_S)
        asking.cancel()
        self.forward()
        self.out.emit("observer.end", {"files": self.tail.lines})
        self.out.flush()

    def forward(self) -> None:
        """Pass on what the ledger has gained."""
        for name, number, line in self.tail.new_lines():
            src = "driver" if name.startswith("driver") else "ledger"
            try:
                raw = json.loads(line)
                data = {**raw["data"], "file": name, "line": number}
                kind, wall, mono, host = raw["kind"], raw["wall"], raw["mono"], raw["host"]
            except (ValueError, KeyError, TypeError):
                self.out.emit("observer.garbled", {"file": name, "line": number})
                continue
            self.out.emit(kind, data, host=host, src=src, wall=wall, mono=mono)

    async def _ask(self) -> None:
        """Ask the GCS over and over; in a task of its own, so that its silence stops nothing else."""
        # Connecting blocks while there is no GCS, so it happens in a thread.
        gcs = await asyncio.to_thread(Gcs, self.gcs_address)
        said = False
        while True:
            began = time.monotonic()
            try:
                nodes, actors = await asyncio.wait_for(
                    asyncio.gather(gcs.nodes(ANSWER_S), gcs.actors(ANSWER_S)),
                    ANSWER_S + 0.5,
                )
            except Exception as error:  # noqa: BLE001 - whatever it is, it is no answer
                if self.answers or not said:
                    self.answers, said = False, True
                    text = f"{type(error).__name__}: {error}"[:300]
                    self.out.emit("observer.blind", {"error": text})
                await asyncio.sleep(POLL_S)
                continue
            if not self.answers:
                self.answers = True
                if said:
                    self.out.emit("observer.seeing", {"error": ""})
                said = True
            self._compare(nodes, actors)
            self.out.flush()
            await asyncio.sleep(max(0.0, began + POLL_S - time.monotonic()))

    def _compare(self, nodes: list[NodeInfo], actors: list[ActorInfo]) -> None:
        for node in nodes:
            if self.nodes.get(node.ray_node_id) != node:
                self.nodes[node.ray_node_id] = node
                self.out.emit(
                    "ray.node",
                    {
                        "ray_node_id": node.ray_node_id,
                        "hostname": node.hostname,
                        "state": node.state,
                        "reason": node.reason if node.state == "DEAD" else "",
                        "message": node.message,
                    },
                    host=node.hostname,
                )
        for actor in actors:
            if self.actors.get(actor.actor_id) != actor:
                self.actors[actor.actor_id] = actor
                home = self.nodes.get(actor.ray_node_id)
                self.out.emit(
                    "ray.actor",
                    {
                        "actor_id": actor.actor_id,
                        "name": actor.name,
                        "class": actor.class_name,
                        "state": actor.state,
                        "restarts": actor.restarts,
                        "hostname": home.hostname if home else None,
                    },
                    host=home.hostname if home else None,
                )


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
    observer = Observer(asked.gcs, Path(asked.ledger) / asked.run, Output())
    asyncio.run(observer.run())


if __name__ == "__main__":
    main()
