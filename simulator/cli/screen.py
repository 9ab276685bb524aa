"""Shows progress on standard error: lines that stay, and on a terminal a live block below them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from rich.console import Console, ConsoleOptions, Group, RenderableType, RenderResult
from rich.live import Live
from rich.text import Text

from simulator.cli.output import progress_console
from simulator.cli.progress import PHASES, RunProgress, Starting
from simulator.cluster import StartEvent
from simulator.history import History
from simulator.runner import Listener

#: A log file gets the state of the work once in so many seconds.
LOG_EVERY_S = 10.0

_VERDICT_STYLES = {"valid": "green", "invalid": "red", "unknown": "yellow"}


class Screen:
    """Progress of one command.

    Parameters
    ----------
    title
        Shown in the block, such as ``node_failure on docker``.
    runs
        How many runs are to be seen; above 1 each one is announced by its number.
    console
        Standard error unless a test passes another.
    clock, wall
        Monotonic and wall seconds.
    """

    def __init__(
        self,
        title: str = "",
        *,
        runs: int = 1,
        console: Console | None = None,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.title = title
        self.runs = runs
        self.console = progress_console() if console is None else console
        self._clock, self._wall = clock, wall
        self._began = clock()
        self._phase = ""
        self._number = 0
        self._starting = Starting()
        self._run = RunProgress()
        self._building = ""
        self._last_log = self._began
        self._live: Live | None = None

    @contextmanager
    def showing(self) -> Iterator[Screen]:
        """Draw the block while inside; nothing of it stays behind."""
        if not self.console.is_terminal:
            yield self
            return
        with Live(
            self, console=self.console, refresh_per_second=4, transient=True, redirect_stdout=False,
            redirect_stderr=False,
        ) as live:  # fmt: skip
            self._live = live
            try:
                yield self
            finally:
                self._live = None

    def listener(self) -> Listener:
        """What the runner tells of a run."""
        return Listener(
            say=self.say, phase=self.phase, start=self.start, tick=self.tick, result=self.result
        )

    # -- what happens ------------------------------------------------------------------------------

    def say(self, text: str) -> None:
        """A sentence; the many lines of an image being built only pass by in the block."""
        if text.startswith("#") and self.console.is_terminal:
            self._building = text
            return
        self._line(text, "dim" if text.startswith("#") else "")

    def phase(self, phase: str) -> None:
        if phase == "create":
            self._number += 1
            self._run, self._starting = RunProgress(), Starting()
            if self.runs > 1:
                self._line(f"run {self._number} of {self.runs}", "bold")
        self._phase = phase
        self._building = ""
        self._line(PHASES.get(phase, phase), "bold" if self.console.is_terminal else "")

    def start(self, event: StartEvent) -> None:
        self._building = ""
        line = self._starting.feed(event, self._clock())
        if line:
            self._line(f"  {line}", "red" if event.verb == "failed" else "")
        elif not self.console.is_terminal:
            self._line(f"  {event.node} is starting", "")

    def tick(self, history: History) -> None:
        for line in self._run.feed(history):
            self._line(f"  {line}", "yellow" if line.startswith("fault") else "")
        now = self._clock()
        if not self.console.is_terminal and now - self._last_log >= LOG_EVERY_S:
            self._last_log = now
            self._line(f"  tasks: {self._run.done_words}", "")

    def result(self, result: Mapping[str, Any]) -> None:
        """A run of several is over."""
        if self.runs > 1:
            verdict = str(result["verdict"])
            text = f"run {self._number} of {self.runs}: {verdict}, {result['status']}, "
            self._line(text + f"seed {result['seed']}", _VERDICT_STYLES.get(verdict, ""))

    # -- showing it --------------------------------------------------------------------------------

    def _line(self, text: str, style: str) -> None:
        seconds = self._clock() - self._began
        first, *rest = text.splitlines() or [""]
        line = Text(f"{seconds:7.1f} s  ", "dim")
        line.append(first, style or "default")
        for more in rest:
            line.append(f"\n           {more}", "dim")
        self.console.print(line, soft_wrap=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield Group(*self._block(options.max_width))

    def _block(self, width: int) -> list[RenderableType]:
        head = Text("\n")
        head.append(f"  {self.title}" if self.title else "  ", "bold")
        if self.runs > 1 and self._number:
            head.append(f"  run {self._number} of {self.runs}")
        if self._phase:
            head.append(f"  {self._phase}", "cyan")
        head.append(f"  {_elapsed(self._clock() - self._began)}", "dim")
        parts: list[RenderableType] = [head]
        if self._building:
            text = Text(f"  {self._building}", "dim", no_wrap=True, overflow="ellipsis")
            parts.append(text)
        if self._starting.busy and self._phase in ("", "create"):
            if self._starting.joined:
                head.append(f"  {self._starting.joined} joined", "green")
            parts.append(self._starting.render(self._clock()))
        if self._run.nodes:
            parts.append(self._run.render(width, self._wall()))
        return parts


def _elapsed(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes}:{rest:02d}"
