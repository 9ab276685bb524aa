"""The experiment task_placement, on the fake backend: what it finds, what it refuses, what its reports show."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from fakes import fake, finding
from rich.console import Console

from simulator.backends.base import ClusterSpec
from simulator.backends.fake import FakeBackend
from simulator.backends.fake.placement import FakePlacement
from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun, Problem
from simulator.experiment import load_experiment
from simulator.history import History
from simulator.report import render_terminal, write_html
from simulator.report.placement import matrix
from simulator.report.run import load_run
from simulator.runner import Listener, Runner, RunRequest, exit_code, judge_run
from simulator.store import RunDir, Store
from simulator.topology import Topology, load_topology, override
from simulator.workload import Placement, TaskKind

EXPERIMENT = load_experiment("task_placement")


def run(
    folder: Path,
    *params: str,
    topology: Topology | None = None,
    backend: FakeBackend | None = None,
    listener: Listener | None = None,
) -> dict[str, Any]:
    request = RunRequest(
        experiment=EXPERIMENT,
        params=EXPERIMENT.parse_params(params),
        topology=topology or load_topology("hybrid"),
        source="task_placement",
        seed=1,
        name="c",
        command="python -m simulator run task_placement",
    )
    return Runner(backend or fake(), Store(folder), listener=listener).run(request)


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("valid"))


@pytest.fixture(scope="module")
def invalid(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return run(tmp_path_factory.mktemp("invalid"), "violation=gpu_not_asked")


def history_of(result: dict[str, Any]) -> History:
    return RunDir(Path(result["run_dir"])).history()


# -- what it finds -----------------------------------------------------------------------------------


def test_every_task_in_its_place_is_valid(valid: dict[str, Any]) -> None:
    assert valid["status"] == "completed", valid["error"]
    assert {f["check"]: f["verdict"] for f in valid["findings"]} == dict.fromkeys(
        EXPERIMENT.checks, "valid"
    )
    assert exit_code(valid) == 0


def test_a_gpu_that_was_not_asked_for_is_found_with_task_and_node(invalid: dict[str, Any]) -> None:
    wrong = {f["check"]: f for f in invalid["findings"] if f["verdict"] != "valid"}
    assert set(wrong) == {"placed_right"}
    assert exit_code(invalid) == 1
    found = wrong["placed_right"]
    assert re.search(r"whole_gpu-\d+ (ran )?on \w+-?\d*: it needs 1 GPU", found["summary"])
    cited = {op.index: op for op in history_of(invalid)}
    assert all(cited[i].data["key"].startswith(("whole_gpu", "half_gpu")) for i in found["cites"])
    # What is needed stands in the spec, whatever the submission asked for.
    spec = RunDir(Path(invalid["run_dir"])).spec()
    kind = spec["workload"]["kinds"][0]
    assert (kind["resources"], kind["omits"]) == ({"CPU": 1, "GPU": 1}, ["GPU"])


def test_a_run_without_faults_goes_straight_through(valid: dict[str, Any]) -> None:
    history = history_of(valid)
    phases = [op.data["phase"] for op in history.of("run.phase")]
    assert phases == ["create", "gate", "load", "work", "heal", "collect"]
    assert history.of("fault.", "workload.go_on") == []
    ended = history.first("driver.end")
    assert ended is not None
    # The work is over when it is over: nobody waits for anything that cannot come.
    assert history.at(history.ops[-1]) - history.at(ended) < 3.0


def test_the_kinds_are_submitted_in_turn(valid: dict[str, Any]) -> None:
    keys = [op.data["key"] for op in history_of(valid).of("driver.submit")]
    assert keys[:7] == [
        *("whole_gpu-1", "half_gpu-1", "cpu_only-1", "custom-1", "labelled-1"),
        *("whole_gpu-2", "half_gpu-2"),
    ]
    assert len(keys) == len(set(keys)) == 100


def test_a_head_that_dies_while_the_work_goes_on_is_said(tmp_path: Path) -> None:
    backend = fake()

    def phase(name: str) -> None:
        if name == "work":
            backend.later(2.0, lambda: backend.crash("c", "head", 1))

    result = run(tmp_path, backend=backend, listener=Listener(phase=phase))
    assert result["status"] == "aborted"
    assert "the head is exited, and no fault of this run did it" in result["error"]


def test_work_that_is_not_done_in_its_time_is_noted_and_not_waited_for_twice(
    tmp_path: Path,
) -> None:
    class Endless(FakePlacement):
        def finish(self) -> None:
            """Its driver waits for something for ever."""

    backend = fake()
    backend.programs["simulator.innode.placement"] = Endless
    history = history_of(run(tmp_path, backend=backend))
    (note,) = history.of("run.note")
    said = re.fullmatch(r"the planned work was not done within (\d+) s", note.data["text"])
    assert said is not None
    begun = next(op for op in history.of("run.phase") if op.data["phase"] == "work")
    (ended,) = history.of("workload.end")
    assert int(said[1]) - 1 < history.at(ended) - history.at(begun) < int(said[1]) + 3


def test_a_task_whose_end_was_never_written_is_unknown(tmp_path: Path) -> None:
    backend = fake()
    backend.lose_line("task.end", "custom-4", where="ledger")
    found = finding(run(tmp_path, backend=backend), "placed_right")
    assert found["verdict"] == "unknown"
    assert re.match("custom-4 on cpu-[12] has no END", found["summary"])


def test_another_topology_that_offers_the_same_serves(tmp_path: Path) -> None:
    topology = override(
        load_topology("two_gpu"),
        [
            "worker_groups.cpu.labels={zone: a}",
            "worker_groups.cpu.resources={CPU: 4, licence: 2}",
        ],
    )
    result = run(tmp_path, "resource=licence", "label=zone=a", topology=topology)
    assert result["verdict"] == "valid", result["findings"]


def test_the_workload_stands_in_the_spec_of_every_run(valid: dict[str, Any]) -> None:
    workload = RunDir(Path(valid["run_dir"])).spec()["workload"]
    assert workload["name"] == "placement"
    assert [k["name"] for k in workload["kinds"]] == [
        *("whole_gpu", "half_gpu", "cpu_only", "custom", "labelled")
    ]


def test_the_experiment_of_the_guide_is_judged(tmp_path: Path) -> None:
    guide = Path(__file__).parent.parent / "docs/guides/task-placement.md"
    (code,) = re.findall(r"```python\n(.*?)```", guide.read_text(encoding="utf-8"), re.DOTALL)
    (tmp_path / "tiers.py").write_text(code, encoding="utf-8")
    experiment = load_experiment(str(tmp_path / "tiers.py"))
    request = RunRequest(
        experiment=experiment,
        params=experiment.parse_params([]),
        topology=load_topology(experiment.topology),
        source="tiers.py",
        name="c",
    )
    result = Runner(fake(), Store(tmp_path / "runs")).run(request)
    assert result["verdict"] == "valid", result["findings"]
    assert [f["check"] for f in result["findings"]] == list(experiment.checks)


def test_a_borrowed_cluster_has_the_labels_that_it_was_started_with() -> None:
    backend = fake()
    topology = load_topology("hybrid")
    Cluster(backend, "c").up(ClusterSpec("c", topology, "simulated"))
    borrowed = backend.spec("c").topology
    assert [n.labels for n in borrowed.nodes()] == [n.labels for n in topology.nodes()]
    assert list(EXPERIMENT.problems(EXPERIMENT.parse_params([]), borrowed)) == []


# -- what it refuses ---------------------------------------------------------------------------------


def problems(topology: Topology, *params: str) -> list[Problem]:
    return list(EXPERIMENT.problems(EXPERIMENT.parse_params(params), topology))


def test_everything_that_a_topology_lacks_is_said_at_once_with_a_remedy() -> None:
    found = problems(load_topology("cpu_only"))
    assert [p.what for p in found] == [
        "offers no GPU",
        "offers no ssd",
        "has no node with the label ray.io/market-type=spot; its nodes have none",
    ]
    assert all("--topology hybrid" in p.remedy for p in found)


def test_nothing_starts_on_a_topology_that_lacks_something(tmp_path: Path) -> None:
    backend = fake()
    with pytest.raises(BadInput, match="offers no ssd"):
        run(tmp_path, topology=load_topology("default"), backend=backend)
    assert not [call for call in backend.calls if call.method == "create"]


@pytest.mark.parametrize(
    ("settings", "params", "said", "remedy"),
    [
        ([], ["tasks=9"], "9 cpu_only tasks fit at once", "tasks=18"),
        ([], ["label=spot"], "is not key=value of a label", "label=ray.io/market-type=spot"),
        ([], ["label=zone=!a"], "is not key=value of a label", "label="),
        ([], ["resource=GPU"], "is not a custom resource", "resource=ssd"),
        ([], ["resource=nvme"], "offers no nvme", "--param resource=ssd"),
        (
            ["head.labels={a: b}", "worker_groups.gpu.labels={a: b}", "worker_groups.cpu.labels={a: b}"],
            ["label=a=b"],
            "no task could be in a wrong place",
            "others do not",
        ),
        (
            ["worker_groups.gpu.resources={GPU: 1}"],
            [],
            "has no node that offers 1 CPU and 1 GPU together",
            "resources.CPU",
        ),
        (
            ["worker_groups.gpu.resources={CPU: 1, GPU: 4}"],
            [],
            "has no node whose GPU can all be in use at once (gpu-1 offers 4, and 1 CPU)",
            "at least as many CPUs",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_tested_is_refused_with_a_remedy(
    settings: list[str], params: list[str], said: str, remedy: str
) -> None:
    found = problems(override(load_topology("hybrid"), settings), *params)
    matching = [p for p in found if said in p.what]
    assert matching, found
    assert remedy in matching[0].remedy


def test_a_violation_that_is_not_known_is_refused() -> None:
    with pytest.raises(BadInput, match="violation"):
        EXPERIMENT.parse_params(["violation=everything"])


def test_the_nominal_time_is_enough_for_all_kinds_one_after_the_other() -> None:
    kinds = (TaskKind("a", {"CPU": 1, "GPU": 1}, 5), TaskKind("b", {"CPU": 1}, 9))
    # Two at a time, and nine at a time.
    hybrid = load_topology("hybrid")
    assert Placement(kinds, task_seconds=2).nominal_seconds(hybrid) == 6 + 2
    # And waits for a fellow on the same GPU, once.
    waiting = replace(kinds[0], company=2)
    assert Placement((waiting, kinds[1]), task_seconds=2).nominal_seconds(hybrid) == 6 + 2 + 60


# -- what its reports show ---------------------------------------------------------------------------


class Matrix(HTMLParser):
    """The text of every cell of the table of who ran where."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.classes: list[list[str]] = []
        self.inside = self.cell = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        css = dict(attrs).get("class") or ""
        self.inside = self.inside or "matrix" in css.split()
        if self.inside and tag == "tr":
            self.rows.append([])
            self.classes.append([])
        if self.inside and tag in ("td", "th"):
            self.cell = True
            self.rows[-1].append("")
            self.classes[-1].append(css)

    def handle_endtag(self, tag: str) -> None:
        if tag in ("td", "th"):
            self.cell = False
        if tag == "table":
            self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside and self.cell:
            self.rows[-1][-1] = f"{self.rows[-1][-1]} {data.strip()}".strip()


def page_of(result: dict[str, Any]) -> str:
    return Path(result["report"]).read_text(encoding="utf-8")


def terminal(result: dict[str, Any], width: int = 80) -> str:
    out = io.StringIO()
    render_terminal(Path(result["run_dir"]), Console(file=out, width=width, no_color=True))
    return out.getvalue()


def test_the_page_shows_who_ran_where_with_peaks_against_capacity(valid: dict[str, Any]) -> None:
    rows = {row[0].split()[0]: row for row in Matrix(page_of(valid)).rows}
    assert rows["head"][1].endswith("not offered here")
    assert rows["gpu-1"][-1] == "CPU 2 of 2 GPU 1 of 1"
    ran = finding(valid, "placed_right")["metrics"]["ran"]
    assert rows["cpu-1"][4] == str(ran["custom"]["cpu-1"])
    assert rows["All"][1:-1] == ["20"] * 5


def test_what_is_wrong_is_said_in_words_and_not_by_colour_alone(invalid: dict[str, Any]) -> None:
    page = Matrix(page_of(invalid))
    wrong = [
        (text, css)
        for row, classes in zip(page.rows, page.classes, strict=True)
        for text, css in zip(row, classes, strict=True)
        if "wrong" in css.split() or "wrong" in text
    ]
    assert wrong
    assert all("wrong" in text and "wrong" in css for text, css in wrong)
    assert "without what they need" in page_of(invalid)
    assert re.search(r"\d ✕", terminal(invalid))


def test_a_run_that_breaks_nothing_shows_no_recovery(valid: dict[str, Any]) -> None:
    page, text = page_of(valid), terminal(valid)
    for told in (page, text):
        assert "No fault was injected: this experiment breaks nothing." in " ".join(
            told.replace("┃", " ").split()
        )
        assert "not seen" not in told.lower()
    assert "Where the seconds went" not in page
    assert "broken on purpose" not in page
    assert 'class="swatch unnoticed"' not in page
    assert "Recovery" not in text


@pytest.mark.parametrize("width", [40, 60, 80, 200])
def test_the_terminals_picture_keeps_to_its_width(invalid: dict[str, Any], width: int) -> None:
    text = terminal(invalid, width)
    assert max(map(len, text.splitlines())) <= width
    assert "Who ran where" in text


def test_at_80_columns_a_node_is_one_line(valid: dict[str, Any]) -> None:
    (line,) = [line for line in terminal(valid).splitlines() if line.startswith(" gpu-1")]
    assert line.rstrip().endswith("CPU 2/2 GPU 1/1")


def test_on_a_narrow_terminal_a_node_is_some_lines(valid: dict[str, Any]) -> None:
    lines = [line.strip() for line in terminal(valid, 40).splitlines()]
    said = " ".join(lines[lines.index("gpu-1") : lines.index("gpu-2")])
    assert said.endswith("most in use CPU 2/2 GPU 1/1")


def change(result: dict[str, Any], folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """A copy of the run with another spec."""
    source = Path(result["run_dir"])
    for name in ("spec.json", "history.jsonl", "result.json"):
        (folder / name).write_bytes((source / name).read_bytes())
    spec = json.loads((folder / "spec.json").read_text())
    edit(spec)
    (folder / "spec.json").write_text(json.dumps(spec))
    return folder


@pytest.mark.parametrize(
    "edit",
    [
        lambda spec: spec.pop("workload"),
        lambda spec: spec["workload"].update(kinds=[{"name": "half a kind"}]),
        lambda spec: spec["workload"].update(kinds="none"),
    ],
)
def test_a_spec_that_says_nothing_of_places_gives_a_report_without_the_picture(
    valid: dict[str, Any], tmp_path: Path, edit: Callable[[dict[str, Any]], object]
) -> None:
    folder = change(valid, tmp_path, edit)
    assert matrix(load_run(folder)) is None
    assert 'id="placement"' not in write_html(folder).read_text(encoding="utf-8")
    judged = judge_run(RunDir(folder))
    assert finding(judged, "placed_right")["verdict"] == "unknown"


def test_names_in_a_hostile_spec_are_shown_as_text(valid: dict[str, Any], tmp_path: Path) -> None:
    def edit(spec: dict[str, Any]) -> None:
        spec["workload"]["kinds"][0]["resources"] = {"<script>alert(1)</script>": 1}

    page = write_html(change(valid, tmp_path, edit)).read_text(encoding="utf-8")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)" in page


def test_a_run_that_was_called_off_has_no_picture_to_show(tmp_path: Path) -> None:
    backend = fake()
    backend.fail_next("ray.submit", CannotRun("no"))
    result = run(tmp_path, backend=backend)
    assert result["status"] == "aborted"
    assert "each on one that offers" not in page_of(result)
