"""A stand-in for ``ray start``: real processes, no Ray.

A package named ray, put on PYTHONPATH before the real one. Its raylet and GCS are shell scripts of those names,
so what is done with processes can be tested for real, in seconds, on a machine without Ray.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path

START = """
import os, subprocess, sys, time

def cli(args, prog_name):
    print("ray start", *args, flush=True)
    here = os.path.dirname(os.path.abspath(__file__))
    if os.path.exists(os.path.join(here, "fails")):
        temp = next(a.partition("=")[2] for a in args if a.startswith("--temp-dir="))
        logs = os.path.join(temp, "session_latest", "logs")
        os.makedirs(logs, exist_ok=True)
        with open(os.path.join(logs, "raylet.out"), "w") as file:
            file.write("the raylet's last words\\n")
        sys.exit("the GCS did not answer")
    if os.path.exists(os.path.join(here, "hangs")):
        time.sleep(90)
    names = ["raylet"] if "--head" not in args else ["gcs_server", "raylet"]
    for name in [*names, "orphan"]:
        subprocess.Popen([os.path.join(here, name)])
    if os.path.exists(os.path.join(here, "lingers")):
        time.sleep(90)
"""


class FakeRay:
    """The package, and what its programs do.

    Parameters
    ----------
    folder
        An empty folder; `path` below it belongs on PYTHONPATH.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / "fake"
        self._scripts = self.path / "ray" / "scripts"
        self._scripts.mkdir(parents=True)
        for package in (self._scripts.parent, self._scripts):
            (package / "__init__.py").touch()
        (self._scripts / "scripts.py").write_text(START)
        for name in ("raylet", "gcs_server"):
            self.lives(name, "trap 'exit 0' TERM; while :; do sleep 0.05; done")
        self.lives("orphan", "exit 0")

    def lives(self, name: str, script: str) -> None:
        """Say what a program of Ray's does from its next start on."""
        path = self._scripts / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)

    def start(self, how: str) -> None:
        """``ray start`` "fails" or "hangs" from now on, or "lingers" once Ray's processes are there."""
        (self._scripts / how).touch()

    def pids(self, name: str) -> list[int]:
        """The living processes of one of its programs."""
        parents = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes().split(b"\0")
                    parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                except OSError:
                    continue
                if str(self._scripts / name).encode() in command:
                    parents[int(entry.name)] = parent
        # A shell's child looks like the shell until it becomes what the shell wants of it.
        return [pid for pid, parent in parents.items() if parent not in parents]


def until(condition: Callable[[], object], what: str = "it", seconds: float = 30.0) -> None:
    """Wait for something that must happen; how long it takes proves nothing."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.01)


def gone(pid: int) -> bool:
    """Whether a process has ended and was reaped."""
    return not Path(f"/proc/{pid}").exists()


LINUX = sys.platform == "linux"
