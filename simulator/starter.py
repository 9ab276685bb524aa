"""Writes a starter into a user's project: an experiment, the topology that it runs on, a test of it.

The files travel with the package as what they are, linted and tested, and are copied as they stand.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from simulator.assets import asset_path
from simulator.errors import BadInput, Problem


def write_starter(folder: Path) -> list[Path]:
    """Copy the starter into a folder, which is made if it is missing; returns what was written.

    Raises
    ------
    BadInput
        Something is in the way: names all of it. Then nothing was written.
    OSError
        It cannot be written; nothing is left of it.
    """
    for place in (folder, *folder.parents):
        if place.is_symlink() and not place.exists():
            what = f"is a link to {place.readlink()}, which does not exist"
            raise BadInput(Problem(str(place), what, "make that folder, or name another one"))
        if place.exists():
            if not place.is_dir():
                raise BadInput(Problem(str(place), "is a file", "name a folder"))
            break
    sources = sorted(p for p in asset_path("starter").iterdir() if p.suffix in (".py", ".yaml"))
    targets = [folder / source.name for source in sources]
    # A link that leads nowhere is in the way too.
    taken = [path for path in targets if path.exists() or path.is_symlink()]
    if taken:
        raise BadInput(
            [
                Problem(str(path), "is there already", "move it, or name another folder")
                for path in taken
            ]
        )
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for source, target in zip(sources, targets, strict=True):
            with target.open("x", encoding="utf-8") as out:
                written.append(target)
                out.write(source.read_text(encoding="utf-8"))
    except OSError:
        for path in written:
            with suppress(OSError):
                path.unlink()
        raise
    return written
