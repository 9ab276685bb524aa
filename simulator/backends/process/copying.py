"""Copies files to and from process nodes, whose paths are paths of this machine."""

from __future__ import annotations

import shutil
from pathlib import Path

from simulator.backends.paths import destination, kind_of
from simulator.errors import BadInput, CannotRun, Problem


def copy(source: str, target: str, *, from_: Path, to: Path) -> list[str]:
    """Copy a file or folder; returns what was left out because it is neither.

    Parameters
    ----------
    from_, to
        Where a relative `source` and a relative `target` begin.
    """
    path = from_ / source
    into = to / destination(source, kind_of(path), target, lambda there: kind_of(to / there))
    left_out: list[str] = []

    def special(folder: str, names: list[str]) -> list[str]:
        entries = [Path(folder, name) for name in names]
        odd = [e for e in entries if not (e.is_symlink() or e.is_file() or e.is_dir())]
        left_out.extend(str(e.relative_to(path)) for e in odd)
        return [e.name for e in odd]

    try:
        if path.is_file():
            shutil.copy2(path, into)
            return []
        if into.resolve().is_relative_to(path.resolve()):
            raise BadInput(Problem(target, "is inside of what is to be copied"))
        shutil.copytree(path, into, symlinks=True, dirs_exist_ok=True, ignore=special)
    except OSError as error:  # of a whole folder: a list of everything that failed
        first = error.args[0][0] if error.args and isinstance(error.args[0], list) else None
        why = str(first[2]) if first else error.strerror or str(error)
        raise CannotRun(f"{source} cannot be copied to {target}", why=why) from error
    return left_out
