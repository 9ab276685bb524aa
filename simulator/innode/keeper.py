"""Keeps a program running: starts it again when it ends without being asked. Docker's engine does so by itself.

    python -m simulator.innode.keeper MODULE [ARGUMENT ...]

SIGTERM ends the program and then the keeper. A program that keeps ending is started again ever more slowly.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time

#: Seconds before the next start: after a first end, and at most.
FIRST_S, MOST_S = 0.2, 10.0
#: A program that ran so long is started again as after a first end, seconds.
LONG_S = 30.0
#: How long the program may take to end when it is asked to, seconds.
GRACE_S = 3.0


def main(argv: list[str]) -> int:
    if not argv:
        print(__doc__, file=sys.stderr)
        return 2
    asked = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: asked.set())
    pause = FIRST_S
    while not asked.is_set():
        began = time.monotonic()
        program = subprocess.Popen([sys.executable, "-m", *argv])
        while program.poll() is None and not asked.wait(0.1):
            pass
        if program.poll() is None:
            program.terminate()
            try:
                program.wait(GRACE_S)
            except subprocess.TimeoutExpired:
                program.kill()
                program.wait()
        elif not asked.is_set():
            pause = FIRST_S if time.monotonic() - began > LONG_S else min(2 * pause, MOST_S)
            asked.wait(pause)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
