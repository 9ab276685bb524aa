"""Throughput as nominal work-seconds completed per second, from the effect ledger.

Counting finished tasks per second is noisy: with one-second tasks on four slots, a window of two
seconds sees seven, eight or nine. Here each finished execution spreads its nominal seconds evenly
over the time that it took, so that a slot that is busy with undisturbed work counts as 1 at every
moment, a slot whose work is slowed down counts as less, and an idle slot as 0.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Collection, Iterable
from statistics import median

from simulator.checkers.index import Execution


class Curve:
    """Throughput over time: a step function, work-seconds per second.

    Parameters
    ----------
    spans
        ``(start, end, pace)`` of each piece of work, seconds and work-seconds per second.
    """

    def __init__(self, spans: Iterable[tuple[float, float, float]]) -> None:
        changes: list[tuple[float, float]] = []
        for start, end, pace in spans:
            if end > start and pace > 0:
                changes.append((start, pace))
                changes.append((end, -pace))
        changes.sort()
        #: From ``times[i]`` on, the throughput is ``rates[i]``, until ``times[i + 1]``.
        self.times: list[float] = []
        self.rates: list[float] = []
        rate = 0.0
        for when, change in changes:
            rate += change
            if self.times and self.times[-1] == when:
                self.rates[-1] = rate
            else:
                self.times.append(when)
                self.rates.append(rate)

    def work(self, begin: float, end: float) -> float:
        """Work-seconds completed between two times."""
        times = self.times
        total = 0.0
        first = max(0, bisect_right(times, begin) - 1)
        for i in range(first, bisect_right(times, end)):
            until = times[i + 1] if i + 1 < len(times) else times[i]
            total += self.rates[i] * max(0.0, min(until, end) - max(times[i], begin))
        return total

    def mean(self, begin: float, end: float) -> float:
        """Mean throughput between two times; 0 for an empty span."""
        return self.work(begin, end) / (end - begin) if end > begin else 0.0

    def first_window(self, since: float, width: float, wanted: float) -> float | None:
        """Start of the first window of `width` seconds, from `since` on, whose mean is `wanted`.

        The mean over a moving window is linear between the curve's steps, so the answer is exact
        and does not depend on a grid. None if there is no such window.
        """
        if not self.times or width <= 0:
            return None
        # Counted from `since`: next to seconds since 1970, a microsecond would be rounding.
        times, rates = [when - since for when in self.times], self.rates
        target = wanted * width - 1e-9
        at, inside = 0.0, self.work(since, since + width)
        # i, j: the next step after the window's start and end; low, high: the rates there.
        i = j = 0
        low = high = 0.0
        while True:
            while i < len(times) and times[i] <= at + 1e-9:
                low = rates[i]
                i += 1
            while j < len(times) and times[j] <= at + width + 1e-9:
                high = rates[j]
                j += 1
            if inside >= target:
                return since + at
            if i == len(times):
                return None
            step = times[i] - at
            if j < len(times):
                step = min(step, times[j] - (at + width))
            slope = high - low
            if slope > 0 and inside + slope * step >= target:
                return since + at + (target - inside) / slope
            inside += slope * step
            at += step

    def lowest(self, since: float, until: float, width: float) -> float | None:
        """The lowest mean of the windows that lie within a span; None if none fits."""
        if until - since < width:
            return None
        starts = {since, until - width}
        for when in self.times:
            starts.update(s for s in (when, when - width) if since <= s <= until - width)
        # Prefix sums keep this linear in the steps.
        total, sums = 0.0, []
        for i, when in enumerate(self.times):
            if i:
                total += self.rates[i - 1] * (when - self.times[i - 1])
            sums.append(total)
        done = _Cumulative(self.times, self.rates, sums)
        return min((done(s + width) - done(s)) / width for s in sorted(starts))


class _Cumulative:
    """Work done up to a time, for times asked in any order."""

    def __init__(self, times: list[float], rates: list[float], sums: list[float]) -> None:
        self._times, self._rates, self._sums = times, rates, sums

    def __call__(self, when: float) -> float:
        i = bisect_right(self._times, when) - 1
        if i < 0:
            return 0.0
        return self._sums[i] + self._rates[i] * (when - self._times[i])


def finished(executions: Iterable[Execution], without: Collection[str] = ()) -> Curve:
    """The curve of all finished executions on nodes that are not in `without`."""
    return Curve(
        (e.start, e.end, e.pace)
        for e in executions
        if e.end is not None and e.nominal_s > 0 and (not without or e.node not in without)
    )


def baselines(
    executions: Iterable[Execution], since: float, until: float, struck: Collection[str]
) -> tuple[float, float]:
    """Mean throughput of a span that ends with a fault: of all nodes, and of those not `struck`.

    Work that the fault cut off was being done until then, so it counts there, at the median pace
    of the work that finished and for as long as that takes: a baseline without it would be too
    low, and too easily reached.
    """
    running = [
        e
        for e in executions
        if e.nominal_s > 0 and e.start < until and (e.end is None or e.end > since)
    ]
    paces = [pace for e in running if (pace := e.pace) > 0]
    if not paces or until <= since:
        return 0.0, 0.0
    usual = median(paces)
    total = surviving = 0.0
    for e in running:
        end, pace = e.end, e.pace
        if end is None:
            end, pace = e.start + e.nominal_s / usual, usual
        work = pace * max(0.0, min(end, until) - max(e.start, since))
        total += work
        if e.node not in struck:
            surviving += work
    return total / (until - since), surviving / (until - since)


def ramp_end(executions: Iterable[Execution], slots: int | None, until: float) -> float | None:
    """When the cluster was fully busy for the first time: the end of ramp-up.

    Fully busy means as many executions at once as there are slots; where that never happened
    before `until` (or nobody said how many slots there are), that every node which did any work
    had begun some.
    """
    changes: list[tuple[float, int]] = []
    first_on: dict[str | None, float] = {}
    for e in executions:
        if e.nominal_s <= 0 or e.start >= until:
            continue
        changes.append((e.start, 1))
        if e.end is not None:
            changes.append((e.end, -1))
        first_on[e.node] = min(e.start, first_on.get(e.node, e.start))
    busy = 0
    for when, change in sorted(changes):
        busy += change
        if slots and busy >= slots and when < until:
            return when
    return max(first_on.values(), default=None)
