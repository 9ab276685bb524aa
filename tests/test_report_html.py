from __future__ import annotations

import base64
import hashlib
import json
import re
from array import array
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from report_samples import HOSTILE, THOUSAND, change_json, cut_short, make_run

from simulator.errors import BadInput
from simulator.history import read_history
from simulator.report import load_run, write_html
from simulator.report.html import ASSETS, render_html
from simulator.topology import LEAN_LACKS


class Page(HTMLParser):
    """What a browser would see: elements with their attributes and text."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.pieces: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in ("meta", "link", "br"):
            self._open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop() != tag:
            pass

    def handle_data(self, data: str) -> None:
        if "main" in self._open:
            self.pieces.append(data)
        for tag in set(self._open):
            self.texts[tag][-1] += data

    @property
    def words(self) -> str:
        """Everything to read, in order, with single spaces."""
        return " ".join(" ".join(self.pieces).split())

    @property
    def data(self) -> dict[str, Any]:
        data: dict[str, Any] = json.loads(self.texts["script"][0])
        return data


def page_of(folder: Path) -> Page:
    return Page(write_html(folder).read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for verdict in ("valid", "invalid", "unknown"):
        make_run(root / verdict, verdict)
    make_run(root / "cut")
    cut_short(root / "cut")
    return root


@pytest.fixture
def run(tmp_path: Path) -> Path:
    make_run(tmp_path / "run")
    return tmp_path / "run"


@pytest.mark.parametrize("verdict", ["valid", "invalid", "unknown"])
def test_the_page_opens_with_the_verdict_the_claim_and_what_happened(
    runs: Path, verdict: str
) -> None:
    words = page_of(runs / verdict).words
    claim = load_run(runs / verdict).claim
    assert (
        words.index(verdict)
        < words.index(claim)
        < words.index("worker-2 was killed 15.0 s into the work")
    )
    assert "while it ran 1 task" in words


def test_a_valid_run_says_when_the_cluster_was_whole_again(runs: Path) -> None:
    seconds = next(
        p.seconds for p in load_run(runs / "valid").phases if p.name == "full_throughput"
    )
    assert (
        f"The cluster was whole again {seconds:.1f} s after the kill."
        in page_of(runs / "valid").words
    )


def test_an_invalid_run_names_the_lost_tasks_first_and_opens_the_finding(runs: Path) -> None:
    page = page_of(runs / "invalid")
    assert page.words.index("2 of 292 lost") < page.words.index("Where the seconds went")
    opened = [a for tag, a in page.elements if tag == "details" and "open" in a]
    assert [a["class"] for a in opened] == ["finding invalid"]


def test_what_was_not_seen_is_named_and_never_zero(runs: Path) -> None:
    words = page_of(runs / "unknown").words
    unseen = words[words.index("Not seen") : words.index("What every node did")]
    assert "node rejoined required" in unseen
    assert "full throughput required" in unseen
    assert "was not seen" in words[: words.index("Where the seconds went")]


def test_phases_stand_in_the_order_of_their_times_with_their_uncertainty(runs: Path) -> None:
    page = page_of(runs / "valid")
    at = [float(a["data-at"] or "nan") for tag, a in page.elements if a.get("class") == "phase"]
    assert len(at) == 9
    assert at == sorted(at)
    assert "+4.30 s ± 0.10 s" in page.words


def test_a_phase_shows_the_operations_that_it_rests_on(runs: Path) -> None:
    run = load_run(runs / "valid")
    words = page_of(runs / "valid").words
    for phase in run.phases:
        for op in run.cited(phase.cites):
            assert f"{op.kind} {op.node or chr(0x2013)} {op.source}" in words


@pytest.mark.parametrize("gpu", ["simulated", "real", "none"])
def test_the_gpu_is_called_what_it_is(run: Path, gpu: str) -> None:
    for name in ("spec.json", "result.json"):
        change_json(run / name, lambda data: data.update(gpu=gpu))
    words = page_of(run).words
    assert f"GPU {gpu}" in words
    assert ("no device behind it" in words) == (gpu == "simulated")


def test_lean_nodes_are_named_with_what_they_give_up(run: Path) -> None:
    assert "Lean nodes" not in page_of(run).words
    path = run / "history.jsonl"
    text = path.read_text(encoding="utf-8").replace(
        '"group":"worker"', '"group":"worker","profile":"lean"'
    )
    path.write_text(text, encoding="utf-8")
    page = page_of(run)
    assert "Lean nodes worker" in page.words
    assert "worker (lean)" in page.words
    assert [a for _, a in page.elements if LEAN_LACKS in (a.get("title") or "")]


def test_the_page_holds_seed_versions_oversubscription_and_the_replay(runs: Path) -> None:
    words = page_of(runs / "valid").words
    run = load_run(runs / "valid")
    for text in ("Seed 1", "Ray 2.60.0", "python 3.11.7", "Failure detection fast", run.command):
        assert text in words
    assert "4 task slots on a machine with 2 cores: 2.0 slots share each core" in words


def test_nothing_is_loaded_from_anywhere(runs: Path) -> None:
    text = write_html(runs / "valid").read_text(encoding="utf-8")
    page = Page(text)
    for tag, attributes in page.elements:
        assert "src" not in attributes, tag
        assert (attributes.get("href") or "data:").startswith(("data:", "#")), tag
    for style in page.texts["style"]:
        assert "url(" not in style
        assert "@import" not in style
    assert "default-src 'none'" in text


def test_the_policy_lets_exactly_our_two_scripts_run(runs: Path) -> None:
    page = page_of(runs / "valid")
    policy = next(a["content"] for tag, a in page.elements if "http-equiv" in a) or ""
    scripts = page.texts["script"][1:]
    hashes = [base64.b64encode(hashlib.sha256(s.encode()).digest()).decode() for s in scripts]
    assert re.findall(r"'sha256-([^']+)'", policy) == hashes
    assert len(hashes) == 2
    assert "unsafe-inline" not in policy.split("script-src")[1]


def test_hostile_text_of_a_task_stays_text(runs: Path) -> None:
    page = page_of(runs / "valid")
    assert [a for tag, a in page.elements if tag == "script"] == [
        {"type": "application/json", "id": "run-data"}, {}, {},
    ]  # fmt: skip
    shown = " ".join(HOSTILE.replace("\x00", "\ufffd").split())
    assert shown in page.words


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(text=st.text(st.characters(), max_size=60))
@example(text="]]><!--<script>")
@example(text="{{ 7 * 7 }}{% raw %}")
@example(text="\ud800\x1b[31m\r")
def test_any_text_anywhere_leaves_the_page_whole(small: Path, text: str) -> None:
    def everywhere(data: dict[str, Any]) -> None:
        data.update(claim=text, command=text, experiment=text or "x", error=text, status="failed")
        data["params"] = {text: text}
        for finding in data.get("findings", ()):
            finding.update(check=text, summary=text, details=[text], metrics={text: text})
        for phase in data.get("phases", ()):
            phase.update(title=text, note=text)

    for name in ("spec.json", "result.json"):
        change_json(small / name, everywhere)
    page = page_of(small)
    assert [tag for tag, _ in page.elements].count("script") == 3
    assert page.elements[-1][0] == "script"
    assert page.data["lanes"]


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small") / "run"
    make_run(folder)
    return folder


def _column(text: str, code: str) -> array[int]:
    column = array(code)
    column.frombytes(base64.b64decode(text))
    return column


@pytest.mark.parametrize("name", ["valid", "cut"])
def test_every_start_of_the_history_is_drawn(runs: Path, name: str) -> None:
    data = page_of(runs / name).data
    starts = read_history(runs / name / "history.jsonl").of("task.start", "call.start")
    assert len(starts) > 100
    assert sorted(data["keys"].split("\n")) == sorted(op.data["key"] for op in starts)
    for column, code in (("from", "I"), ("length", "I"), ("outcome", "B"), ("attempt", "B")):
        assert len(_column(data[column], code)) == len(starts)


def test_within_a_segment_executions_do_not_overlap(runs: Path) -> None:
    data = page_of(runs / "valid").data
    begin, length = _column(data["from"], "I"), _column(data["length"], "I")
    covered = 0
    for _lane, _call, _row, first, last in data["segments"]:
        covered += last - first
        for i in range(first, last - 1):
            assert begin[i] + length[i] <= begin[i + 1]
    assert covered == len(begin)


def test_a_run_without_a_result_is_judged_and_says_that_it_was_interrupted(runs: Path) -> None:
    words = page_of(runs / "cut").words
    assert words.startswith("? unknown")
    assert "Interrupted. The run ended before it was done" in words
    assert "result.json is missing: judged just now, from the history." in words
    assert re.search(r"The history is incomplete: line \d+ of history.jsonl is cut off", words)
    assert "took effect" in words


@pytest.mark.parametrize("missing", ["spec.json", "history.jsonl", "result.json"])
def test_a_missing_file_is_a_notice_and_not_an_error(run: Path, missing: str) -> None:
    (run / missing).unlink()
    assert f"{missing} is missing" in page_of(run).words


@pytest.mark.parametrize("name", ["spec.json", "result.json"])
@pytest.mark.parametrize(
    "content", ["", "[1, 2]", '{"findings": 3, "phases": [7, {}], "topology": 5}']
)
def test_a_damaged_file_is_shown_as_far_as_it_goes(run: Path, name: str, content: str) -> None:
    (run / name).write_text(content, encoding="utf-8")
    words = page_of(run).words
    assert (f"{name} cannot be read" in words) == (not content.startswith("{"))
    assert "What every node did" in words


def test_a_history_of_nothing_is_a_page_too(run: Path) -> None:
    (run / "history.jsonl").write_text("", encoding="utf-8")
    page = page_of(run)
    assert "What every node did" not in page.words
    assert page.data["lanes"] == []


def test_lines_salvaged_from_the_ledger_are_drawn(run: Path) -> None:
    history = read_history(run / "history.jsonl")
    start = next(op for op in reversed(history.ops) if op.kind == "task.start")
    (run / "ledger").mkdir()
    line: dict[str, Any] = {
        "kind": "task.start", "wall": start.wall + 0.1, "mono": start.mono, "host": "host-worker-1",
        "data": {**start.data, "key": "salvaged", "exec": "salvaged"},
    }  # fmt: skip
    for name in ("file", "line"):
        del line["data"][name]
    (run / "ledger" / "late.jsonl").write_text(json.dumps(line) + "\n", encoding="utf-8")
    assert "salvaged" in page_of(run).data["keys"].split("\n")


def test_a_folder_that_is_no_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"holds no spec\.json"):
        write_html(tmp_path)
    with pytest.raises(BadInput, match="is not a folder"):
        write_html(tmp_path / "nowhere")


def test_the_same_run_gives_the_same_page(runs: Path) -> None:
    run = load_run(runs / "valid")
    assert render_html(run) == render_html(load_run(runs / "valid"))


def test_a_run_of_a_thousand_tasks_takes_less_than_three_megabytes(tmp_path: Path) -> None:
    tasks = make_run(tmp_path / "run", **THOUSAND)["metrics"]["tasks"]
    assert tasks > 950
    assert write_html(tmp_path / "run").stat().st_size < 3_000_000


def test_the_charting_library_comes_with_its_licence(runs: Path) -> None:
    text = write_html(runs / "valid").read_text(encoding="utf-8")
    assert "Copyright (c) 2022 Leon Sorokin" in text
    assert "uPlot 1.6.32" in (ASSETS / "uplot" / "README.md").read_text(encoding="utf-8")


def _luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def _themes() -> dict[str, dict[str, str]]:
    css = (ASSETS / "report.css").read_text(encoding="utf-8")
    found = {}
    starts = {
        "light": ":root {",
        "dark": ':root[data-theme="dark"] {',
        "auto-dark": ':root:not([data-theme="light"]) {',
    }
    for name, start in starts.items():
        block = css[css.index(start) :].split("}")[0]
        found[name] = dict(re.findall(r"--([a-z0-9-]+): (#[0-9a-f]{6});", block))
    return found


def test_the_two_ways_to_dark_have_the_same_colours() -> None:
    assert _themes()["dark"] == _themes()["auto-dark"]
    assert set(_themes()["dark"]) == set(_themes()["light"])


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(
    ("ink", "paper"),
    [
        ("text", "bg"), ("text", "card"), ("quiet", "bg"), ("quiet", "card"), ("quiet", "soft"),
        ("valid", "valid-bg"), ("invalid", "invalid-bg"), ("unknown", "unknown-bg"),
        ("text", "valid-bg"), ("text", "invalid-bg"), ("text", "unknown-bg"), ("valid", "card"),
        ("invalid", "card"), ("unknown", "card"), ("label", "completed"), ("fault", "card"),
        ("seg", "accent"), ("seg", "accent-2"),
        ("text", "state-unnoticed"), ("text", "state-dead"), ("text", "state-starting"), ("text", "state-paused"),
    ],
)  # fmt: skip
def test_text_stands_out_from_what_is_behind_it(theme: str, ink: str, paper: str) -> None:
    colours = _themes()[theme]
    light, dark = sorted((_luminance(colours[ink]), _luminance(colours[paper])), reverse=True)
    assert (light + 0.05) / (dark + 0.05) >= 4.5
