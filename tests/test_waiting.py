"""Waiting for named conditions."""

from __future__ import annotations

import threading

import pytest

from simulator.backends.base import clock_of
from simulator.backends.fake import FakeBackend, FakeClock
from simulator.waiting import Deadline, RealClock, WaitTimeout, wait_until, within


def wait(condition, clock: FakeClock, **more):  # type: ignore[no-untyped-def]
    return wait_until(condition, name="it", clock=clock.mono, sleep=clock.sleep, **more)


def test_what_the_condition_gives_is_returned() -> None:
    clock = FakeClock()
    assert wait(lambda: "yes" if clock.now >= 3 else None, clock, timeout=5) == "yes"
    assert clock.now == pytest.approx(3, abs=0.11)


def test_a_timeout_names_the_condition_and_its_last_state() -> None:
    clock = FakeClock()
    with pytest.raises(
        WaitTimeout, match="it did not happen within 5 s: two are missing"
    ) as caught:
        wait(lambda: False, clock, timeout=5, last=lambda: "two are missing")
    assert (caught.value.name, caught.value.seconds) == ("it", 5)
    assert clock.now == pytest.approx(5, abs=0.01)


def test_the_condition_is_asked_once_more_at_the_very_end() -> None:
    clock = FakeClock()
    asked: list[float] = []

    def only_at_the_end() -> bool:
        asked.append(clock.now)
        return clock.now >= 5

    assert wait(only_at_the_end, clock, timeout=5, interval=4)
    assert asked[-1] == pytest.approx(5)


def test_a_condition_is_asked_even_without_any_time() -> None:
    assert wait(lambda: 1, FakeClock(), timeout=0) == 1


def test_an_error_of_the_condition_is_not_swallowed() -> None:
    def broken() -> bool:
        raise KeyError("x")

    with pytest.raises(KeyError):
        wait(broken, FakeClock(), timeout=5)


def test_a_deadline_counts_down_to_nothing() -> None:
    clock = FakeClock()
    deadline = Deadline(2, clock=clock.mono)
    clock.sleep(1.5)
    assert deadline.left == pytest.approx(0.5)
    assert not deadline.passed
    clock.sleep(1)
    assert deadline.left == 0
    assert deadline.passed


def test_only_a_simulated_backend_has_a_clock_of_its_own() -> None:
    fake = FakeBackend()
    assert clock_of(fake) is fake.simulated_clock
    assert isinstance(clock_of(object()), RealClock)  # type: ignore[arg-type]


def test_the_real_clock_goes_forward() -> None:
    clock = RealClock()
    wall, mono = clock.wall(), clock.mono()
    clock.sleep(0.001)
    assert clock.mono() > mono
    assert clock.wall() >= wall - 1


def test_what_hangs_is_left_behind_and_named() -> None:
    release = threading.Event()
    with pytest.raises(WaitTimeout, match=r"cleaning did not happen within 0\.01 s: it hangs"):
        within(0.01, "cleaning", lambda: (release.wait(60), None)[1])
    release.set()


def test_what_ends_in_time_is_done_and_its_error_raised() -> None:
    done: list[int] = []
    within(60, "it", lambda: done.append(1))
    assert done == [1]
    with pytest.raises(KeyError, match="x"):
        within(60, "it", lambda: dict[str, None]().__getitem__("x"))
