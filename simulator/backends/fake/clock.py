"""Time that passes only when somebody sleeps.

A simulated cluster has nothing to wait for, so its minutes need not take minutes: `FakeClock.sleep` runs, in
their order, all events that fall due, and is back at once. No result depends on how busy the machine is.

Some of what happens is read by threads of the orchestrator (the lines of a program). Before time goes on,
everything that was printed has been taken by its readers: a fast clock must not outrun those who watch.
"""

from __future__ import annotations

import heapq
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

#: How long the clock waits for a reader, real seconds; one that takes longer is not waited for again.
PATIENCE = 30.0

#: How long the clock waits for a thread to end that read a stream to its end, real seconds.
LAST_STEPS = 0.1

#: How long the clock waits for somebody to begin reading a new stream, real seconds.
FIRST_READER = 2.0


@dataclass(eq=False)
class Timer:
    """Something that will happen at `due`, unless cancelled."""

    due: float
    action: Callable[[], None]
    cancelled: bool = False

    def cancel(self) -> None:
        self.cancelled = True


@dataclass
class _Reader:
    thread: threading.Thread
    position: int = 0
    waiting: bool = False
    absent: bool = False


class LineStream:
    """Lines that are printed over time, to be read from the beginning by anyone, until it ends."""

    def __init__(self) -> None:
        self._lines: list[str] = []
        self._ended = False
        self._changed = threading.Condition()
        self._readers: list[_Reader] = []
        self._gone: list[_Reader] = []
        self._expected = True

    def write(self, line: str) -> None:
        with self._changed:
            if not self._ended:
                self._lines.append(line)
                self._changed.notify_all()

    def end(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    @property
    def ended(self) -> bool:
        return self._ended

    def so_far(self) -> list[str]:
        with self._changed:
            return self._lines[:]

    def read(self) -> Iterator[str]:
        """Every line, waiting for more until the stream ends."""
        reader = _Reader(threading.current_thread())
        with self._changed:
            self._readers.append(reader)
            self._expected = False
        try:
            while True:
                with self._changed:
                    while reader.position == len(self._lines) and not self._ended:
                        reader.waiting = True
                        self._changed.notify_all()
                        self._changed.wait()
                    reader.waiting = False
                    if reader.position == len(self._lines):
                        return
                    line = self._lines[reader.position]
                    reader.position += 1
                yield line
        finally:
            with self._changed:
                self._readers.remove(reader)
                if self._ended:
                    self._gone.append(reader)
                self._changed.notify_all()

    def taken(self) -> None:
        """Return when every reader has taken all there is and asks for more."""
        here = threading.current_thread()
        with self._changed:
            if self._expected:
                self._changed.wait_for(lambda: not self._expected, timeout=FIRST_READER)
                self._expected = False

            def late() -> list[_Reader]:
                return [
                    r
                    for r in self._readers
                    if r.thread is not here
                    and r.thread.is_alive()
                    and not r.absent
                    and (self._ended or not r.waiting or r.position < len(self._lines))
                ]

            if not self._changed.wait_for(lambda: not late(), timeout=PATIENCE):
                for reader in late():
                    reader.absent = True
            threads = [r.thread for r in self._gone if r.thread is not here]
            self._gone.clear()
        for thread in threads:
            thread.join(LAST_STEPS)


class FakeClock:
    """Simulated time, and everything that will happen in it.

    Parameters
    ----------
    wall
        Wall clock at the beginning, seconds since 1970; the machine's by default.
    """

    def __init__(self, wall: float | None = None) -> None:
        self._wall = time.time() if wall is None else wall
        self._now = 0.0
        self._timers: list[tuple[float, int, Timer]] = []
        self._count = 0
        self._turn = threading.RLock()
        self._streams: list[LineStream] = []
        #: Held while anything of the simulated world changes.
        self.lock = threading.RLock()

    def wall(self) -> float:
        return self._wall + self._now

    def mono(self) -> float:
        return 1000.0 + self._now

    @property
    def now(self) -> float:
        """Seconds since the beginning of this clock."""
        return self._now

    def after(self, seconds: float, action: Callable[[], None]) -> Timer:
        """Let something happen so many seconds from now."""
        with self.lock:
            self._count += 1
            timer = Timer(self._now + max(0.0, seconds), action)
            # The count keeps the order of what falls due at the same moment.
            heapq.heappush(self._timers, (timer.due, self._count, timer))
            return timer

    def every(self, seconds: float, action: Callable[[], bool]) -> None:
        """Let something happen again and again, as long as it returns true."""

        def again() -> None:
            if action():
                self.after(seconds, again)

        self.after(seconds, again)

    def stream(self) -> LineStream:
        """A stream of lines whose readers the clock waits for."""
        stream = LineStream()
        with self.lock:
            self._streams.append(stream)
        return stream

    def sleep(self, seconds: float) -> None:
        """Let time pass: whatever falls due until then has happened, and was read, on return."""
        until = self._now + max(0.0, seconds)
        with self._turn:
            self._settle()
            while (timer := self._next(until)) is not None:
                with self.lock:
                    self._now = max(self._now, timer.due)
                    if not timer.cancelled:
                        timer.action()
                self._settle()
            self._now = max(self._now, until)

    def _next(self, until: float) -> Timer | None:
        with self.lock:
            while self._timers and self._timers[0][2].cancelled:
                heapq.heappop(self._timers)
            if self._timers and self._timers[0][0] <= until:
                return heapq.heappop(self._timers)[2]
            return None

    def _settle(self) -> None:
        for stream in list(self._streams):
            stream.taken()
            if stream.ended:
                self._streams.remove(stream)
