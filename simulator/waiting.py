"""Waiting for named conditions, with monotonic deadlines and nothing slept away.

Time is passed in as a `Clock`, so that a simulated backend can keep its own: what takes a minute of
its time takes a moment of ours, and no test depends on how busy the machine is.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Protocol, TypeVar

from simulator.errors import CannotRun

T = TypeVar("T")


class Clock(Protocol):
    """Tells the time and lets it pass; all in seconds."""

    def wall(self) -> float:
        """Since 1970, as people count."""

    def mono(self) -> float:
        """Since some moment, never going back."""

    def sleep(self, seconds: float) -> None: ...

    def after(self, seconds: float, action: Callable[[], None]) -> Alarm:
        """Have something done so many seconds from now, whatever its caller does by then.

        From another thread, perhaps; what it raises, nobody hears.
        """


class Alarm(Protocol):
    """Something that will be done, unless it is cancelled before."""

    def cancel(self) -> None: ...


class RealClock:
    """The machine's own clock."""

    def wall(self) -> float:
        return time.time()

    def mono(self) -> float:
        return time.monotonic()

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)

    def after(self, seconds: float, action: Callable[[], None]) -> Alarm:
        timer = threading.Timer(seconds, action)
        timer.daemon = True
        timer.start()
        return timer


class WaitTimeout(CannotRun):
    """A condition did not come true in time; `name` says which."""

    def __init__(self, name: str, seconds: float, last: str = "") -> None:
        self.name, self.seconds, self.last = name, seconds, last
        super().__init__(f"{name} did not happen within {seconds:g} s", why=last)


def within(seconds: float, what: str, action: Callable[[], None]) -> None:
    """Do something that may hang, and leave it behind when it takes longer than real `seconds`.

    Raises
    ------
    WaitTimeout
        It goes on in a thread that nobody waits for; what it raises then, nobody hears.
    """
    raised: list[BaseException] = []

    def act() -> None:
        try:
            action()
        except BaseException as error:  # noqa: BLE001 - raised again below
            raised.append(error)

    thread = threading.Thread(target=act, daemon=True, name=what)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise WaitTimeout(what, seconds, "it hangs, and was left behind")
    if raised:
        raise raised[0]


class Deadline:
    """A point on a monotonic clock."""

    def __init__(self, seconds: float, *, clock: Callable[[], float] = time.monotonic) -> None:
        self.seconds = seconds
        self._clock = clock
        self._end = clock() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._end - self._clock())

    @property
    def passed(self) -> bool:
        return self._clock() >= self._end


def wait_until(
    condition: Callable[[], T | None],
    *,
    name: str,
    timeout: float,
    interval: float = 0.1,
    last: Callable[[], str] = lambda: "",
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Ask `condition` every `interval` seconds until it gives something true, and return that.

    Raises
    ------
    WaitTimeout
        After `timeout` seconds, with ``last()`` as the explanation. The condition is asked once
        more at the very end, so a slow last interval cannot turn a success into a failure.
    """
    deadline = Deadline(timeout, clock=clock)
    while True:
        passed = deadline.passed
        value = condition()
        if value:
            return value
        if passed:
            raise WaitTimeout(name, timeout, last())
        sleep(min(interval, deadline.left) or 0.001)
