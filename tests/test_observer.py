"""The observer's reading of the ledger: every complete line once, whatever is written when."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.innode.observer import LedgerTail, Observer, Output


def line(kind: str, **data: object) -> str:
    return json.dumps({"kind": kind, "wall": 1.5, "mono": 0.5, "host": "abc", "data": data}) + "\n"


def test_a_partial_line_waits_for_its_end(tmp_path: Path) -> None:
    tail = LedgerTail(tmp_path)
    file = tmp_path / "abc-1-7.jsonl"
    whole, part = line("task.start", key="t-1"), line("task.end", key="t-1")
    file.write_text(whole + part[:20])
    assert [(n, i) for n, i, _ in tail.new_lines()] == [(file.name, 1)]
    assert list(tail.new_lines()) == []
    file.write_text(whole + part)
    assert [(n, i) for n, i, _ in tail.new_lines()] == [(file.name, 2)]
    assert tail.lines == {file.name: 2}


def test_files_that_appear_late_are_read_from_their_beginning(tmp_path: Path) -> None:
    tail = LedgerTail(tmp_path / "not-there-yet")
    assert list(tail.new_lines()) == []
    (tmp_path / "not-there-yet").mkdir()
    (tmp_path / "not-there-yet" / "b.jsonl").write_text(line("task.start") * 3)
    assert [i for _, i, _ in tail.new_lines()] == [1, 2, 3]


def test_only_ledger_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "workload.json").write_text("{}\n")
    (tmp_path / "state").mkdir()
    assert list(LedgerTail(tmp_path).new_lines()) == []


def test_lines_keep_their_own_clock_and_say_where_they_stand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "abc-1-7.jsonl").write_text(line("task.start", key="t-1"))
    (tmp_path / "driver.jsonl").write_text(line("driver.submit", key="t-1"))
    out = Output()
    Observer("127.0.0.1:1", tmp_path, out).forward()
    out.flush()
    said = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [(s["src"], s["kind"], s["wall"], s["host"]) for s in said] == [
        ("ledger", "task.start", 1.5, "abc"),
        ("driver", "driver.submit", 1.5, "abc"),
    ]
    assert said[0]["data"] == {"key": "t-1", "file": "abc-1-7.jsonl", "line": 1}


def test_a_garbled_line_is_reported_and_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "abc-1-7.jsonl").write_text("{nonsense\n" + line("task.end", key="t-1"))
    out = Output()
    observer = Observer("127.0.0.1:1", tmp_path, out)
    observer.forward()
    out.flush()
    said = [json.loads(text) for text in capsys.readouterr().out.splitlines()]
    assert [s["kind"] for s in said] == ["observer.garbled", "task.end"]
    assert said[0]["data"] == {"file": "abc-1-7.jsonl", "line": 1}
    assert observer.tail.lines == {"abc-1-7.jsonl": 2}


def test_a_large_ledger_is_forwarded_once(tmp_path: Path) -> None:
    tail = LedgerTail(tmp_path)
    for host in ("a", "b", "c"):
        (tmp_path / f"{host}.jsonl").write_text(line("task.start", key="x") * 20_000)
    assert sum(1 for _ in tail.new_lines()) == 60_000
    assert sum(1 for _ in tail.new_lines()) == 0
