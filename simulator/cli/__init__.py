"""The command line: a thin layer over the library.

Data goes to standard output, progress and errors to standard error. Exit codes: 0 valid (or done), 1
invalid, 2 wrong usage, 3 unknown, 4 could not run; an error of our own is 4, never 1.
"""

from __future__ import annotations

from simulator.cli.main import main

__all__ = ["main"]
