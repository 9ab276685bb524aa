"""The run store: where runs are kept, and how they are found again."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from simulator.errors import BadInput, NotFound
from simulator.history import SCHEMA, Op, Recorder
from simulator.store import RunDir, Store, default_root


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def made(store: Store, experiment: str = "node_failure", seed: int = 7) -> RunDir:
    run = store.create(experiment, seed)
    run.write_spec({"experiment": experiment, "seed": seed})
    Recorder(run.history_path).close()
    return run


def test_a_run_lies_under_its_experiment_by_time_and_seed(store: Store) -> None:
    run = made(store)
    assert run.path.parent == store.root / "node_failure"
    stamp, _, seed = run.path.name.rpartition("-")
    assert seed == "7"
    assert len(stamp) == len("20260101-120000")


def test_two_runs_of_one_second_have_directories_of_their_own(store: Store) -> None:
    assert len({made(store).path for _ in range(5)}) == 5


def test_latest_is_the_run_made_last_of_all_and_of_its_experiment(store: Store) -> None:
    first, second = made(store, "a"), made(store, "b")
    assert store.find("latest") == second
    assert store.find("a/latest") == first
    third = made(store, "a", 8)
    assert store.find("latest") == store.find("a/latest") == third
    assert (store.root / "latest").is_symlink()
    assert not list(store.root.rglob(".latest-*"))


def test_a_run_is_found_by_path_by_name_and_by_id(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made(store)
    assert store.find(str(run.path)) == run
    assert store.find(f"node_failure/{run.path.name}") == run
    assert store.find(run.path.name) == run
    monkeypatch.chdir(run.path.parent)
    assert store.find(f"./{run.path.name}") == run


def test_an_unknown_run_names_those_that_there_are(store: Store) -> None:
    run = made(store)
    with pytest.raises(NotFound, match=run.path.name):
        store.find("node_failure/nonsense")


def test_without_any_run_it_says_how_to_make_one(store: Store) -> None:
    with pytest.raises(
        NotFound, match="there is no run yet; make one with: python -m simulator run"
    ):
        store.find("latest")


def test_a_folder_that_is_no_run_is_refused_with_what_is_missing(
    store: Store, tmp_path: Path
) -> None:
    folder = tmp_path / "holidays"
    folder.mkdir()
    with pytest.raises(BadInput, match=r"it has no spec\.json and no history\.jsonl"):
        store.find(str(folder))
    (folder / "spec.json").write_text("{}")
    with pytest.raises(BadInput, match=r"it has no history\.jsonl"):
        store.find(str(folder))


def test_runs_are_listed_once_each_oldest_first(store: Store) -> None:
    assert store.list() == []
    runs = [made(store, "b", seed) for seed in range(3)]
    assert [r.path for r in store.list()] == sorted(r.path for r in runs)


def test_the_root_can_be_set_from_outside(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_SIM_RUNS", raising=False)
    assert default_root() == tmp_path / "runs"
    monkeypatch.setenv("RAY_SIM_RUNS", str(tmp_path / "elsewhere"))
    assert Store().root == tmp_path / "elsewhere"


def test_a_root_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match=r"cannot be written.*set RAY_SIM_RUNS"):
        Store(tmp_path / "file").create("node_failure", 1)


def test_a_spec_that_is_not_json_is_said(store: Store) -> None:
    run = made(store)
    (run.path / "spec.json").write_text("{")
    with pytest.raises(BadInput, match="is not JSON"):
        run.spec()
    (run.path / "spec.json").write_text("[]")
    with pytest.raises(BadInput, match="is not an object"):
        run.spec()


def test_a_run_of_a_later_version_is_refused_with_a_remedy(store: Store) -> None:
    run = made(store)
    run.write_spec({"schema": SCHEMA})
    assert run.spec()["schema"] == SCHEMA
    run.write_spec({"schema": SCHEMA + 1})
    with pytest.raises(BadInput, match=r"recorded with schema 2; .* up to 1; update the simulator"):
        run.spec()


def test_a_result_is_none_until_it_is_written(store: Store) -> None:
    run = made(store)
    assert run.result() is None
    run.write_result({"verdict": "valid"})
    assert run.result() == {"verdict": "valid"}
    assert not list(run.path.glob("*.part"))


def ledger_line(kind: str, wall: float, host: str = "h-1", **data: object) -> str:
    return json.dumps({"kind": kind, "wall": wall, "mono": wall, "host": host, "data": data})


@pytest.fixture
def killed(store: Store) -> RunDir:
    """A run that received the first of three lines of the ledger before it was killed."""
    run = store.create("node_failure", 7)
    run.write_spec({})
    recorder = Recorder(run.history_path)
    recorder.record("cluster.nodes", nodes=[{"hostname": "h-1", "name": "worker-1"}])
    recorder.record(
        "task.start", source="ledger", wall=1.0, data={"key": "t-1", "file": "h-1.jsonl", "line": 1}
    )
    recorder.close()
    ledger = run.path / "ledger" / "deeper"
    ledger.mkdir(parents=True)
    (ledger / "h-1.jsonl").write_text(
        ledger_line("task.start", 1.0, key="t-1")
        + "\n"
        + ledger_line("task.end", 3.0, key="t-1")
        + "\n"
        + ledger_line("task.start", 4.0, key="t-2")
        + "\n"
        + '{"kind": "task.en'
    )
    (ledger / "driver.jsonl").write_text(
        ledger_line("driver.result", 3.5, host="h-0", key="t-1") + "\n"
    )
    return run


def test_salvaged_lines_are_added_in_the_order_of_time_and_marked(killed: RunDir) -> None:
    history = killed.history()
    added = history.ops[2:]
    assert [(o.kind, o.data["key"], o.source, o.node) for o in added] == [
        ("task.end", "t-1", "ledger", "worker-1"),
        ("driver.result", "t-1", "driver", "h-0"),
        ("task.start", "t-2", "ledger", "worker-1"),
    ]
    assert [o.index for o in history] == list(range(5))
    assert all(o.data["salvaged"] for o in added)
    assert (added[0].data["file"], added[0].data["line"]) == ("h-1.jsonl", 2)


def test_reading_does_not_change_what_was_recorded(killed: RunDir) -> None:
    before = killed.history_path.read_bytes()
    assert killed.history().ops == killed.history().ops
    assert killed.history_path.read_bytes() == before


def test_an_operation_added_is_an_operation(killed: RunDir) -> None:
    assert all(Op.from_json(o.to_json()) == o for o in killed.history())
