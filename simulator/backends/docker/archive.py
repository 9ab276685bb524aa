"""Moves files into and out of containers: the engine speaks tar, also for containers that exited.

Nothing here needs a running container or a program inside it, so a ledger or a log can be fetched
when every node is dead.
"""

from __future__ import annotations

import io
import shutil
import tarfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import IO


def tar_of_file(path: str, data: bytes) -> bytes:
    """An archive that puts a file in place whole or not at all, making its folders.

    The engine extracts in order: the data first, under a name that nobody reads, then a hard link
    to it under the real name. Whoever reads sees the old file, none, or the whole new one.
    """
    target = PurePosixPath(path)
    part = target.with_name(f".{target.name}.part")
    now = int(time.time())
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for folder in [p for p in reversed(target.parents) if str(p) != "."]:
            entry = tarfile.TarInfo(str(folder))
            entry.type = tarfile.DIRTYPE
            entry.mode, entry.mtime = 0o777, now  # nodes are not root, and write here too
            tar.addfile(entry)
        entry = tarfile.TarInfo(str(part))
        entry.size, entry.mode, entry.mtime = len(data), 0o644, now
        tar.addfile(entry, io.BytesIO(data))
        link = tarfile.TarInfo(str(target))
        link.type, link.linkname = tarfile.LNKTYPE, str(part)
        link.mode, link.mtime = 0o644, now
        tar.addfile(link)
    return buffer.getvalue()


def tar_of_folder(folder: Path, into: str) -> bytes:
    """An archive of a folder's files (no caches), to be extracted at ``/``, below `into`."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for file in sorted(folder.rglob("*")):
            if not file.is_file() or "__pycache__" in file.parts:
                continue
            name = PurePosixPath(into.lstrip("/"), *file.relative_to(folder).parts)
            entry = tarfile.TarInfo(str(name))
            entry.size, entry.mode = file.stat().st_size, 0o644
            with file.open("rb") as data:
                tar.addfile(entry, data)
    return buffer.getvalue()


def tar_for(out: IO[bytes], source: Path, name: str | None, owner: tuple[int, int]) -> list[str]:
    """Write an archive of a file or folder; returns what was left out: sockets and devices.

    Parameters
    ----------
    name
        What it is to be called; None for what is in the folder without the folder itself.
    owner
        User and group that all of it shall belong to.
    """
    left_out: list[str] = []

    def owned(entry: tarfile.TarInfo) -> tarfile.TarInfo | None:
        if not (entry.isreg() or entry.isdir() or entry.issym() or entry.islnk()):
            left_out.append(entry.name)
            return None
        entry.uid, entry.gid = owner
        entry.uname = entry.gname = ""
        return entry

    with tarfile.open(fileobj=out, mode="w") as tar:
        if name is not None:
            tar.add(source, arcname=name, filter=owned)
        else:
            for child in sorted(source.iterdir()):
                tar.add(child, arcname=child.name, filter=owned)
    return left_out


def extract(chunks: Iterable[bytes], into: Path) -> list[str]:
    """Write the files of an archive below a folder, leaving out its topmost path part.

    Symbolic links, sockets and devices are left out, and so is any path that would lead elsewhere:
    what a node put there is not trusted. Returns the names of what was left out.
    """
    into.mkdir(parents=True, exist_ok=True)
    written: set[Path] = set()
    left_out: list[str] = []
    with tarfile.open(fileobj=_Chunks(chunks), mode="r|") as tar:
        for member in tar:
            target = _below(into, member.name)
            # The second name of a file: the archive holds its data under the first.
            first = _below(into, member.linkname) if member.islnk() else None
            if target is not None and member.isdir():
                target.mkdir(parents=True, exist_ok=True)
            elif target is not None and first is not None and first in written:
                shutil.copy(first, target)
                written.add(target)
            elif target is not None and member.isreg() and target != into:
                _save(tar, member, target)
                written.add(target)
            else:
                left_out.append(member.name)
    return left_out


def save_file(chunks: Iterable[bytes], target: Path) -> None:
    """Write the only file of an archive."""
    with tarfile.open(fileobj=_Chunks(chunks), mode="r|") as tar:
        for member in tar:
            if member.isreg():
                _save(tar, member, target)
                return


def _save(tar: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = tar.extractfile(member)
    assert source is not None
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as out:
        shutil.copyfileobj(source, out, 1 << 20)
    if member.mode & 0o100:  # the only thing of its mode that is worth keeping: it is a program
        target.chmod(target.stat().st_mode | 0o111)


def only_file(chunks: Iterable[bytes]) -> bytes:
    """The content of the only file in an archive."""
    with tarfile.open(fileobj=_Chunks(chunks), mode="r|") as tar:
        for member in tar:
            source = tar.extractfile(member)
            if source is not None:
                return source.read()
    return b""


def lines_of(chunks: Iterable[bytes]) -> Iterator[str]:
    """Whole lines with their newline, however the engine cut the stream; the last may lack it."""
    rest: list[bytes] = []
    for chunk in chunks:
        *whole, tail = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line, b"\n"]).decode("utf-8", errors="replace")
            rest.clear()
        if tail:
            rest.append(tail)
    if rest:
        yield b"".join(rest).decode("utf-8", errors="replace")


def _below(folder: Path, name: str) -> Path | None:
    """Where a member goes, without its topmost path part; None if that would be elsewhere."""
    parts = [p for p in PurePosixPath(name).parts if p not in (".", "/")][1:]
    return None if ".." in parts else folder.joinpath(*parts)


class _Chunks(io.RawIOBase):
    """An iterator of bytes as the file that `tarfile` wants to read."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)
        self._rest = b""

    def read(self, size: int = -1) -> bytes:
        parts = [self._rest]
        have = len(self._rest)
        while size < 0 or have < size:
            chunk = next(self._chunks, None)
            if chunk is None:
                break
            parts.append(chunk)
            have += len(chunk)
        data = b"".join(parts)
        if size < 0:
            size = len(data)
        self._rest = data[size:]
        return data[:size]
