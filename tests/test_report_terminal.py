from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from report_samples import change_json, cut_short, make_run
from rich.console import Console

from simulator.report import render_repeats, render_terminal, summarise


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for verdict in ("valid", "invalid", "unknown"):
        make_run(root / verdict, verdict)
    make_run(root / "cut")
    cut_short(root / "cut")
    return root


def text_of(run: Path, width: int = 80, encoding: str = "utf-8", *, colour: bool = False) -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    render_terminal(
        run, Console(file=stream, width=width, force_terminal=colour, no_color=not colour)
    )
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("name", ["valid", "invalid", "unknown", "cut"])
@pytest.mark.parametrize("width", [40, 60, 80, 120, 200])
def test_no_line_is_longer_than_the_terminal(runs: Path, name: str, width: int) -> None:
    lines = text_of(runs / name, width).splitlines()
    whole = [line for line in lines if line.startswith(("Report  ", "Replay  "))]
    assert max(len(line) for line in lines if line not in whole) <= width
    assert len(lines) > 20
    # Whoever copies these has all of them.
    assert [line for line in whole if line.startswith("Report")] in (
        [], [f"Report  {runs / name / 'report.html'}"],
    )  # fmt: skip


@pytest.mark.parametrize("verdict", ["valid", "invalid", "unknown"])
def test_the_verdict_is_a_word_and_comes_first(runs: Path, verdict: str) -> None:
    assert verdict.upper() in text_of(runs / verdict).splitlines()[1]


def test_without_colour_there_is_not_one_escape_sequence(runs: Path) -> None:
    assert "\x1b" not in text_of(runs / "invalid")
    assert "\x1b" in text_of(runs / "invalid", colour=True)


def test_a_console_of_ascii_gets_ascii_in_the_same_columns(runs: Path) -> None:
    plain = text_of(runs / "valid", encoding="ascii")
    assert plain.isascii()
    full = text_of(runs / "valid")
    assert [len(line.rstrip()) for line in plain.splitlines()] == [
        len(line.rstrip()) for line in full.splitlines()
    ]


def test_each_node_has_a_strip_with_the_fault_below_it(runs: Path) -> None:
    text = text_of(runs / "valid")
    strip = next(line for line in text.splitlines() if line.startswith("worker-2 "))
    # Busy, cut off, not noticed, starting, busy: in this order.
    order = [strip.index(c) for c in "█x!~"]
    assert order == sorted(order)
    assert strip.rindex("█") > order[-1]
    assert "^ kill worker-2" in text
    assert "! gone, Ray has not noticed" in text


def test_phases_have_seconds_and_uncertainty_or_are_not_seen(runs: Path) -> None:
    lines = text_of(runs / "unknown").splitlines()
    assert any(line.startswith("declared DEAD") and "+4.30 s ± 0.10 s" in line for line in lines)
    assert any(
        line.startswith("node rejoined") and "required" in line and "not seen" in line
        for line in lines
    )


def test_a_narrow_terminal_gets_each_finding_on_lines_of_its_own(runs: Path) -> None:
    lines = [line.rstrip() for line in text_of(runs / "invalid", 40).splitlines()]
    at = lines.index("✕ invalid  no_task_lost")
    assert lines[at + 1] == "  2 of 292 lost: p-50: NodeDiedError:"
    assert "declared DEAD         +4.30 s ± 0.10 s" in lines  # and no bar


def test_it_names_the_report_once_it_was_written(runs: Path) -> None:
    assert "report.html" not in text_of(runs / "valid", 300)
    (runs / "valid" / "report.html").touch()
    assert str(runs / "valid" / "report.html") in text_of(runs / "valid", 300)
    (runs / "valid" / "report.html").unlink()


def test_what_a_task_wrote_cannot_drive_the_terminal(runs: Path, tmp_path: Path) -> None:
    make_run(tmp_path / "run", "invalid")
    evil = "\x1b[2J\x1b]0;owned\x07[bold]x[/nothing]"

    def write(result: dict[str, object]) -> None:
        result["findings"][0].update(summary=evil, details=[evil])  # type: ignore[index]

    change_json(tmp_path / "run" / "result.json", write)
    text = text_of(tmp_path / "run")
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "[/nothing]" in text


def results(runs: Path, *names: str) -> list[dict[str, Any]]:
    return [json.loads((runs / n / "result.json").read_text(encoding="utf-8")) for n in names]


def test_a_summary_gives_the_spread_of_what_was_seen(runs: Path) -> None:
    several = results(runs, "valid", "valid", "unknown")
    several[1]["phases"][1]["seconds"] = 5.0
    several[1]["seed"] = 2
    found = summarise(several)
    assert found["runs"] == 3
    assert found["verdict"] == "unknown"
    assert found["verdicts"] == {"valid": 2, "unknown": 1, "invalid": 0}
    assert found["seeds"] == [1, 2, 1]
    failure = found["phases"]["first_failure"]
    assert (failure["seen"], failure["min"], failure["median"], failure["max"]) == (
        3,
        0.16,
        0.16,
        5.0,
    )
    assert found["phases"]["rejoined"]["seen"] == 2
    assert found["metrics"]["tasks"]["max"] == 115
    json.dumps(found)


def test_a_phase_that_no_run_saw_has_no_numbers(runs: Path) -> None:
    phase = summarise(results(runs, "unknown"))["phases"]["rejoined"]
    assert (phase["seen"], phase["min"], phase["median"], phase["max"]) == (0, None, None, None)


def test_of_no_runs_the_verdict_is_unknown() -> None:
    assert summarise([])["verdict"] == "unknown"


def test_the_table_of_repeats_says_how_often_each_phase_was_seen(runs: Path) -> None:
    out = io.StringIO()
    render_repeats(results(runs, "valid", "unknown"), Console(file=out, width=80))
    text = out.getvalue()
    assert "2 runs: 1 valid, 1 unknown" in text
    rejoined = next(line for line in text.splitlines() if "node rejoined" in line)
    assert rejoined.split() == [
        "node",
        "rejoined",
        "1",
        "of",
        "2",
        "9.00",
        "s",
        "9.00",
        "s",
        "9.00",
        "s",
    ]


def test_repeats_without_a_fault_have_no_table_of_phases(runs: Path) -> None:
    calm = [
        {**r, "phases": [{**p, "seconds": None, "mandatory": False} for p in r["phases"]]}
        for r in results(runs, "valid", "valid")
    ]
    out = io.StringIO()
    render_repeats(calm, Console(file=out, width=80))
    assert out.getvalue().split() == ["2", "runs:", "2", "valid"]
