"""The simulated observer: what `simulator.innode.observer` prints, from the simulated world."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

from simulator.backends.fake.clock import LineStream
from simulator.backends.fake.world import Gcs, World


class FakeObserver:
    """Looks at the GCS and at the ledger of one run, again and again."""

    def __init__(self, world: World, run_id: str, forget: Callable[[], object]) -> None:
        self.world, self.run_id, self._forget = world, run_id, forget
        self.stream: LineStream = world.clock.stream()
        self.blind_until = 0.0
        self._gcs: Gcs | None = None
        self._seen = 0
        self._seeing = True
        self._beats = 0
        self._forwarded: dict[str, int] = {}
        self._read: dict[str, int] = {}
        if not world.script.observer_silent:
            # A Python starts in about half a second.
            world.clock.after(0.5, self._begin)

    # -- the program -----------------------------------------------------------------------------

    def lines(self) -> Iterator[str]:
        return self.stream.read()

    def stop(self, timeout: float) -> int | None:  # noqa: ARG002 - it obeys at once
        if self.stream.ended:
            return None
        with self.world.clock.lock:
            self.look()
            self.say("observer.end", None, files=dict(self._forwarded))
            self.stream.end()
        return 0

    def crash(self) -> None:
        """End without a last word."""
        self.stream.end()

    def remove(self) -> None:
        self.stream.end()
        self._forget()

    # -- what it sees ----------------------------------------------------------------------------

    def _begin(self) -> None:
        self.say("observer.start", None, poll_s=self.world.behaviour.poll_s)
        self.look()
        self._beat()
        self.world.clock.every(self.world.behaviour.poll_s, self._poll)
        self.world.clock.every(self.world.behaviour.beat_s, self._beat)

    def _poll(self) -> bool:
        if not self.stream.ended:
            self.look()
        return not self.stream.ended

    def _beat(self) -> bool:
        if not self.stream.ended:
            self._beats += 1
            self.say("observer.beat", None, n=self._beats, gcs=self._answers)
        return not self.stream.ended

    @property
    def _answers(self) -> bool:
        return self.world.ray_answers and self.world.clock.now >= self.blind_until

    def look(self) -> None:
        """One poll: what the GCS believes now, and every new whole line of the ledger."""
        if not self._answers:
            if self._seeing:
                self._seeing = False
                self.say("observer.blind", None, error="the GCS does not answer")
        else:
            if not self._seeing:
                self._seeing = True
                self.say("observer.seeing", None, error="")
            gcs = self.world.gcs
            assert gcs is not None
            events = gcs.events[self._seen :]
            if gcs is not self._gcs:
                # A GCS that is asked for the first time says how things are, not how they came.
                things = {
                    next(
                        e.data[i] for i in ("actor_id", "group_id", "ray_node_id") if i in e.data
                    ): e
                    for e in gcs.events
                }
                gone = [i for i, e in things.items() if e.data["state"] == "REMOVED"]
                self._gcs, events = gcs, [e for i, e in things.items() if i not in gone]
            for event in events:
                self.say(event.kind, event.hostname, **event.data)
            self._seen = len(gcs.events)
        for path in sorted(self.world.ledger):
            folder, _, name = path.rpartition("/")
            if folder == self.run_id:
                self._forward(name, self.world.ledger[path])

    def _forward(self, name: str, lines: list[str]) -> None:
        begin = self._read.get(name, 0)
        for number, line in enumerate(lines[begin:], begin + 1):
            raw = json.loads(line)
            raw["src"] = "driver" if name.startswith("driver") else "ledger"
            raw["data"].update(file=name, line=number)
            self._forwarded[name] = number
            if not self.world.script.loses("stream", raw["kind"], str(raw["data"].get("key", ""))):
                self.stream.write(json.dumps(raw))
        self._read[name] = len(lines)

    def say(self, kind: str, host: str | None, **data: Any) -> None:
        line = {
            "src": "observer",
            "kind": kind,
            "wall": self.world.wall(),
            "mono": self.world.clock.mono() + self.world.behaviour.clock_offset,
            "host": host,
            "data": data,
        }
        self.stream.write(json.dumps(line))
