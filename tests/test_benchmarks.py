"""What benchmarks make of their figures: verdicts, targets, the table. Nothing is measured here."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT / "benchmarks"))

import bench  # noqa: E402
import growth  # noqa: E402
from figures import Figure, exit_code, keep, kept, markdown, relative, table  # noqa: E402
from kill import DOCKER, OURS, pairs_of  # noqa: E402
from memory import anonymous  # noqa: E402
from start import CLUSTER_UTILS, COMPOSE, LEAN, Start, figures_of  # noqa: E402
from start import OURS as OUR_START  # noqa: E402


def test_a_figure_is_met_up_to_its_target_and_missed_above_it() -> None:
    assert Figure("x", 10.0, "s", 10.0).verdict == "met"
    assert Figure("x", 10.01, "s", 10.0).verdict == "missed"
    assert Figure("x", 10.0, "s").verdict == "reported"


def test_what_was_not_measured_or_not_compared_is_never_met() -> None:
    assert Figure("x", None, "s", 10.0, why="no engine").verdict == "not measured: no engine"
    alone = relative("x", 5.0, "s", 1.0, "peer", None)
    assert alone.verdict == "not compared: peer was not measured"
    assert alone.target == "<= 1 x peer"
    assert exit_code([alone]) == 3


def test_a_relative_target_is_the_peers_figure_times_its_factor() -> None:
    figure = relative("x", 9.6, "s", 1.1, "peer", 8.8)
    assert figure.at_most == pytest.approx(9.68)
    assert (figure.verdict, figure.target) == ("met", "<= 9.68 s (1.1 x peer)")


def test_a_missed_target_outranks_what_was_not_measured() -> None:
    missed, unknown, met = (
        Figure("x", 2.0, "s", 1.0),
        Figure("x", None, "s", 1.0, why="?"),
        Figure("x", 1.0, "s", 1.0),
    )
    assert exit_code([met, unknown, missed]) == 1
    assert exit_code([met, unknown]) == 3
    assert exit_code([met]) == 0


def test_the_table_has_a_line_for_every_figure_with_its_verdict() -> None:
    lines = table(
        [Figure("alive", 9.5, "s", 10.0, note="1 of 5 failed"), Figure("big", 1234.0, "MB")]
    )
    assert [line.split() for line in lines.splitlines()] == [
        ["figure", "measured", "target", "verdict"],
        ["alive", "9.5", "s", "<=", "10", "s", "met;", "1", "of", "5", "failed"],
        ["big", "1234", "MB", "-", "reported"],
    ]


def test_kept_figures_are_read_again_as_they_were_and_told_with_their_machine(
    tmp_path: Path,
) -> None:
    figures = [Figure("alive | all", 9.5, "s", 10.0), Figure("y", None, "MB", why="none")]
    keep("start", figures, began_load=0.5, options={"pairs": 5}, folder=tmp_path)
    (result,) = kept(tmp_path)
    assert result["figures"] == figures
    text = markdown([result])
    assert "| alive \\| all | 9.5 s | ≤ 10 s | met |" in text
    assert "not measured: none" in text
    assert f"commit {result['commit']}" in text
    assert f"Python {result['machine']['python']}" in text


def test_starts_are_compared_by_their_medians_and_failed_ones_are_told() -> None:
    def starts(*seconds: float | None) -> list[Start]:
        return [Start(s, 4 if s else 0, "" if s else "0 of 4 alive") for s in seconds]

    found = {
        CLUSTER_UTILS: starts(10.0, 8.0, 9.0),
        OUR_START: starts(9.9, 30.0, 9.0),
        LEAN: starts(8.5, None, 8.6),
        COMPOSE: starts(None),
    }
    rows = figures_of(3, found)
    told = {(f.name.rpartition(", ")[2], f.basis): f for f in rows}
    assert told["ours", "1.1 x cluster_utils"].verdict == "met"
    assert told["ours", "1 x plain Compose"].verdict.startswith("not compared")
    lean = next(f for f in rows if f.basis == "0.9 x cluster_utils")
    assert (lean.value, lean.verdict) == (8.55, "missed")
    assert lean.note == "1 of 3 starts failed"
    compose = next(f for f in rows if f.name.endswith("plain Compose"))
    assert compose.verdict == "not measured: 0 of 4 alive"


def test_both_killers_kill_both_nodes_and_are_first_equally_often() -> None:
    rounds = [pairs_of(number) for number in range(4)]
    assert sorted(who for pairs in rounds for who, _ in pairs[:1]) == [DOCKER, DOCKER, OURS, OURS]
    assert {pair for pairs in rounds for pair in pairs} == {
        (who, node) for who in (OURS, DOCKER) for node in ("worker-1", "worker-2")
    }


def test_anonymous_memory_is_read_from_both_versions_of_cgroups() -> None:
    assert anonymous({"memory_stats": {"stats": {"total_rss": 128_000_000}}}) == 128.0
    assert anonymous({"memory_stats": {"stats": {"anon": 98_500_000, "file": 1}}}) == 98.5


def test_every_benchmark_is_one_that_make_bench_runs() -> None:
    shared = {"bench", "figures", "contenders"}
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert files - shared == set(bench.BENCHMARKS)


def test_growth_is_compared_with_a_start_by_itself() -> None:
    found: dict[str, list[float]] = {
        "asked": [0.5, 1.0, 0.9],
        "first_task": [5.0, 6.0, 7.0],
        "worker": [5.0, 4.0, 5.0],
        "head": [6.0, 6.0, 6.0],
        "first_call": [8.0, 10.0, 8.5],
        "surplus": [1, 0, 0],
        "late": [0.4, 22.5],
        "late_by_ray": [0.4, 2.5],
    }
    made = {f.name: f for f in growth.figures_of(found, "")}
    assert {name: f.verdict for name, f in made.items() if f.at_most} == {
        "demand to the first machine asked for": "met",
        "demand to the first task on a new node": "met",
        "idle nodes leave late by at most, by Ray's own count": "missed",
        "head killed and started again, to the first call that needs it": "met",
    }
    task = made["demand to the first task on a new node"]
    assert (task.value, task.target) == (6.0, "<= 6.5 s (1.3 x a worker added by itself)")
    nothing = growth.figures_of({}, "no engine")
    assert {f.verdict for f in nothing} == {"not measured: no engine"}
