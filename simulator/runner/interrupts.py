"""What Ctrl-C means while a run goes on, and what it means while the run is being cleaned up.

Healing, collecting and taking down must happen however the run ends, so the first signal becomes an
exception at a place that cleans up, and only the second gives up at once.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from simulator.errors import Interrupted


class Interrupts:
    """Ctrl-C once: heal, collect, take down, report what there is. Twice: stop now.

    While `cleaning`, the first Ctrl-C is only noted, since what it asks for is being done already.
    """

    def __init__(self, on_second: Callable[[], None]) -> None:
        self.count = 0
        self.cleaning = False
        self._on_second = on_second

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.count += 1
        if self.count >= 2:
            self._on_second()
            os._exit(4)
        if not self.cleaning:
            self.cleaning = True
            raise Interrupted(f"interrupted by {signal.Signals(number).name}")

    @contextmanager
    def installed(self) -> Iterator[None]:
        """Handle SIGINT and SIGTERM while inside; only the main thread can."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = {s: signal.signal(s, self._handle) for s in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
