"""Where a copy goes: the rules of docker cp, as values."""

from __future__ import annotations

from pathlib import Path

import pytest

from simulator.backends.paths import Kind, destination, kind_of
from simulator.errors import BadInput

THERE: dict[str, Kind] = {"/": "folder", "/tmp": "folder", "/tmp/old": "file", ".": "folder"}


def kind(path: str) -> Kind:
    return THERE.get(path.rstrip("/") or "/", "none")


@pytest.mark.parametrize(
    ("source", "source_kind", "target", "path"),
    [
        ("a.py", "file", "/tmp", "/tmp/a.py"),
        ("a.py", "file", "/tmp/", "/tmp/a.py"),
        ("a.py", "file", "/tmp/b.py", "/tmp/b.py"),
        ("a.py", "file", "/tmp/old", "/tmp/old"),
        ("x/a.py", "file", ".", "a.py"),
        ("x/a.py", "file", "new", "new"),
        ("data", "folder", "/tmp", "/tmp/data"),
        ("data/", "folder", "/tmp", "/tmp/data"),
        ("data", "folder", "/tmp/new", "/tmp/new"),
        ("data", "folder", "/tmp/new/", "/tmp/new"),
        ("data/.", "folder", "/tmp", "/tmp"),
        (".", "folder", "/tmp", "/tmp"),
        ("data/.", "folder", "/tmp/new", "/tmp/new"),
    ],
)
def test_a_copy_goes_where_docker_cp_puts_it(
    source: str, source_kind: Kind, target: str, path: str
) -> None:
    assert str(destination(source, source_kind, target, kind)) == path


@pytest.mark.parametrize(
    ("source", "source_kind", "target", "said"),
    [
        ("gone", "none", "/tmp", "gone: does not exist"),
        ("a.py/", "file", "/tmp", "is a file, not a folder; leave out the /"),
        ("a.py", "file", "/tmp/old/", "/tmp/old/: is a file, not a folder"),
        ("a.py", "file", "/tmp/new/", "there is no such folder"),
        ("a.py", "file", "/no/where", "there is no folder /no; make it first"),
        ("data", "folder", "/no/where", "there is no folder /no; make it first"),
        ("data", "folder", "/tmp/old", "a folder cannot be put in its place"),
        ("/", "folder", "/tmp", "has no name of its own; use /."),
    ],
)
def test_what_cannot_be_put_there_is_refused(
    source: str, source_kind: Kind, target: str, said: str
) -> None:
    with pytest.raises(BadInput) as caught:
        destination(source, source_kind, target, kind)
    assert said in str(caught.value)


def test_the_folder_above_keeps_its_own_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "above" / "here").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "above" / "here")
    assert str(destination("..", "folder", "/tmp", kind)) == "/tmp/above"


def test_what_is_here_is_a_file_a_folder_or_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert [kind_of(tmp_path), kind_of(tmp_path / "file"), kind_of(tmp_path / "gone")] == [
        "folder",
        "file",
        "none",
    ]
