"""Taking a cluster down after its orchestrator was killed: nothing that was recorded is lost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import runner_of, use_backends
from fakes import Killed, Lab, cluster_up

from simulator.errors import CannotRun
from simulator.history import History
from simulator.report import load_run
from simulator.rescue import take_down, unfinished_runs
from simulator.store import RunDir


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    monkeypatch.setenv("RAY_SIM_RUNS", str(tmp_path / "elsewhere"))
    return Lab(tmp_path / "runs")


def kill_in_mid_run(lab: Lab, **more: Any) -> RunDir:
    """Run until the fault is in and end there, as SIGKILL would."""

    def kill(history: History) -> None:
        if history.first("fault.effect") and len(history.of("task.start")) > 40:
            raise Killed

    lab.on_tick = kill
    with pytest.raises(Killed):
        lab.run(**({"keep": True} if "reuse" not in more else {}), **more)
    lab.on_tick = lambda history: None
    return lab.latest()


def take(lab: Lab, say: Callable[[str], None] = lambda text: None) -> list[Path]:
    return take_down(lab.backend, lab.backend.cluster("c"), say, store=lab.store)


def test_a_killed_run_is_saved_judged_and_its_cluster_removed(lab: Lab) -> None:
    run = kill_in_mid_run(lab)
    received = sum('"task.start"' in line for line in run.history_path.open())
    lab.backend.simulated_clock.sleep(5.0)  # the cluster goes on without its orchestrator
    assert take(lab) == [run.path]
    assert lab.backend.clusters() == []
    result = run.result()
    assert result is not None
    assert (result["status"], result["verdict"]) == ("interrupted", "unknown")
    written = [
        json.loads(line)["kind"]
        for path in (run.path / "ledger").glob("*.jsonl")
        for line in path.read_text().splitlines()
    ]
    shown = load_run(run.path).history.of("task.start")
    assert len(shown) == written.count("task.start") > received
    assert (run.path / "report.html").is_file()
    assert (run.path / "logs" / "worker-1" / "pid1.log").is_file()


def test_a_run_that_ended_is_left_as_it_is(lab: Lab) -> None:
    result = lab.run(keep=True)
    before = (Path(result["run_dir"]) / "result.json").read_bytes()
    assert take(lab) == []
    assert (Path(result["run_dir"]) / "result.json").read_bytes() == before
    assert lab.backend.clusters() == []


def test_of_several_runs_on_one_cluster_the_killed_one_is_saved(lab: Lab) -> None:
    first = lab.run(keep=True)
    second = kill_in_mid_run(lab, reuse="c", seed=8)
    record = lab.backend.cluster("c")
    assert record.run_dir == Path(first["run_dir"])
    assert [r.path for r in unfinished_runs(record, store=lab.store)] == [second.path]
    assert take(lab) == [second.path]
    assert load_run(second.path).status == "interrupted"
    assert load_run(Path(first["run_dir"])).status == "completed"


def test_a_run_that_borrowed_a_cluster_by_hand_is_saved(lab: Lab) -> None:
    cluster_up(lab.backend)
    run = kill_in_mid_run(lab, reuse="c")
    assert lab.backend.cluster("c").run_dir is None
    assert take(lab) == [run.path]
    assert load_run(run.path).status == "interrupted"


def test_a_run_of_another_cluster_of_the_same_name_is_not_touched(lab: Lab) -> None:
    run = kill_in_mid_run(lab)
    spec = run.spec()
    run.write_spec({**spec, "backend": "docker"})
    assert unfinished_runs(lab.backend.cluster("c"), store=lab.store) == []
    take(lab)
    assert run.result() is None


def test_what_cannot_be_saved_is_said_and_the_cluster_is_removed_all_the_same(lab: Lab) -> None:
    run = kill_in_mid_run(lab)
    lab.backend.fail_next("fetch_ledger", CannotRun("the volume is gone"))
    said: list[str] = []
    assert take(lab, said.append) == [run.path]
    assert "not saved: ledger: the volume is gone" in said
    assert lab.backend.clusters() == []
    assert load_run(run.path).status == "interrupted"


def test_a_run_whose_files_are_damaged_does_not_keep_its_cluster_up(lab: Lab) -> None:
    run = kill_in_mid_run(lab)
    (run.path / "spec.json").write_text("{")
    assert take(lab) == []
    assert lab.backend.clusters() == []


def test_down_names_the_report_of_what_it_saved(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = kill_in_mid_run(lab)
    use_backends(monkeypatch, lab.backend)
    done = runner_of(capsys)("down", "--all")
    assert (done.code, done.out) == (0, "")
    assert f"saved and judged: {run.path}" in done.err
    assert f"its report: {run.path / 'report.html'}" in done.err
