"""All benchmarks, one after the other, and one table at the end.

    make bench                          # all of them; keeps the figures
    make bench ARGS="--only start"      # one; --only may be repeated
    make bench ARGS="--list"

Each is a program of its own, so that none measures with what another left in memory; with --help it says what it
measures and takes. Ends with 1 if a target was missed, 3 if something could not be measured. Ctrl-C ends the one
that runs, which takes down what it started.
"""

from __future__ import annotations

import argparse
import signal
import subprocess
import sys
import time
from pathlib import Path

from figures import exit_code, kept, say, table

HERE = Path(__file__).resolve().parent

#: In this order: what wants a quiet machine first.
BENCHMARKS = (
    "start", "growth", "memory", "kill", "orchestrator", "judge", "report_page", "detection",
)  # fmt: skip


def main() -> int:
    arguments = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    arguments.add_argument("--only", action="append", choices=BENCHMARKS, help="this one only")
    arguments.add_argument("--list", action="store_true", help="name the benchmarks")
    chosen = arguments.parse_args()
    if chosen.list:
        print("\n".join(BENCHMARKS))
        return 0
    began = time.strftime("%Y-%m-%dT%H:%M:%S%z")
    names = chosen.only or BENCHMARKS
    broken = []
    for name in names:
        say(f"== {name}")
        code = run(name)
        if code in (130, -signal.SIGINT):
            say("stopped")
            return 130
        if code not in (0, 1, 3):
            broken.append(name)
    results = [r for r in kept() if r["bench"] in names and r["when"] >= began]
    found = [figure for result in results for figure in result["figures"]]
    print()
    print(table(found))
    for name in broken:
        print(f"{name}: broke; see above")
    return 4 if broken else exit_code(found)


def run(name: str) -> int:
    process = subprocess.Popen([sys.executable, str(HERE / f"{name}.py"), "--save"])
    while True:
        try:
            return process.wait()
        except KeyboardInterrupt:
            # It got the same Ctrl-C, and cleans up; we wait for that.
            say(f"{name} is cleaning up")


if __name__ == "__main__":
    sys.exit(main())
