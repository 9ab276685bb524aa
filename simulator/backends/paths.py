"""Where a copy goes: the rules of ``docker cp``, said once for all backends and both directions.

A *file* lands in the folder that is named, under its own name, or takes the name that is given. A *folder*
that is copied to what does not exist takes that name; copied to a folder it lands in there, under its own
name, unless its source ends with ``/.``, which means what is in it.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Literal

from simulator.errors import BadInput, Problem

Kind = Literal["file", "folder", "none"]


def kind_of(path: Path) -> Kind:
    """What there is at a path of this machine."""
    return "folder" if path.is_dir() else "file" if path.exists() else "none"


def means_content(source: str) -> bool:
    """Whether what is in the folder is meant, and not the folder."""
    return source == "." or source.endswith("/.")


def destination(
    source: str, source_kind: Kind, target: str, kind: Callable[[str], Kind]
) -> PurePosixPath:
    """The path that the file gets, or the folder whose files they will be.

    Parameters
    ----------
    source, target
        As they were written: a ``/`` or ``/.`` at the end means something.
    kind
        Tells what there is at a path on the other side.

    Raises
    ------
    BadInput
        The source does not exist, or nothing can be put there.

    Examples
    --------
    >>> destination("a/x.py", "file", "/tmp", lambda path: "folder")
    PurePosixPath('/tmp/x.py')
    """
    if source_kind == "none":
        raise BadInput(Problem(source, "does not exist"))
    if source_kind == "file" and source.endswith(("/", "/.")):
        raise BadInput(Problem(source, "is a file, not a folder", "leave out the / at its end"))
    there = kind(target)
    path = PurePosixPath(target)
    if there == "file":
        if source_kind == "folder":
            raise BadInput(Problem(target, "is a file; a folder cannot be put in its place"))
        if target.endswith("/"):
            raise BadInput(Problem(target, "is a file, not a folder"))
        return path
    if there == "folder":
        return path if means_content(source) else path / name_of(source)
    if kind(str(path.parent)) != "folder":
        raise BadInput(Problem(target, f"there is no folder {path.parent}", "make it first"))
    if source_kind == "file" and target.endswith("/"):
        raise BadInput(Problem(target, "there is no such folder", "make it, or leave out the /"))
    return path


def name_of(source: str) -> str:
    """The name that a source keeps: of ``..`` or ``/``, that of the folder they stand for."""
    name = PurePosixPath(source).name
    if name in ("", ".."):
        name = Path(source).resolve().name
    if not name:
        raise BadInput(Problem(source, "has no name of its own", f"use {source.rstrip('/')}/."))
    return name
