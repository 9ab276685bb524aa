"""The history: what is recorded can be read again, wherever the file was cut."""

from __future__ import annotations

import json
import threading
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.history import SOURCES, ClockOffset, History, Op, Recorder, read_history

names = st.text(max_size=12)
times = st.floats(0, 4e9, allow_nan=False).map(lambda t: round(t, 6))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | names,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
ops = st.builds(
    Op,
    index=st.integers(0, 10**6),
    kind=names,
    source=st.sampled_from(SOURCES),
    wall=times,
    mono=st.none() | times,
    received=times,
    node=st.none() | names,
    data=st.dictionaries(names, values, max_size=4),
)


def op(kind: str, wall: float = 0.0, source: str = "orchestrator", **data: object) -> Op:
    return Op(0, kind, source, wall, None, wall, None, data)


@given(ops)
def test_an_operation_survives_its_line(operation: Op) -> None:
    line = operation.to_json()
    assert "\n" not in line
    assert Op.from_json(line) == operation


@given(st.lists(ops, min_size=1, max_size=8), st.data())
def test_a_history_cut_anywhere_is_read_up_to_there(
    tmp_path_factory: pytest.TempPathFactory, written: list[Op], data: st.DataObject
) -> None:
    path = tmp_path_factory.mktemp("h") / "history.jsonl"
    raw = "".join(o.to_json() + "\n" for o in written).encode()
    cut = data.draw(st.integers(0, len(raw)))
    path.write_bytes(raw[:cut])
    history = read_history(path)
    whole = raw[:cut].count(b"\n")
    rest = raw[:cut].rpartition(b"\n")[2]
    if rest and len(history) == whole:
        assert history.truncated == (
            f"line {whole + 1} of history.jsonl is cut off; judged up to line {whole}"
        )
    elif not rest and not whole:
        assert history.truncated == "history.jsonl is empty"
    else:
        # Cut right before its end, a line says all that it has to say.
        assert history.truncated is None
        assert len(history) == whole + bool(rest)
    assert history.ops == written[: len(history)]


def test_a_line_in_the_middle_that_cannot_be_read_is_left_out_and_reported(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    lines = [op("run.start").to_json(), "{broken", op("run.end").to_json()]
    path.write_text("\n".join(lines) + "\n")
    history = read_history(path)
    assert [o.kind for o in history] == ["run.start", "run.end"]
    assert history.truncated == "1 lines of history.jsonl cannot be read (line 2)"


def test_lines_that_are_no_operations_are_counted(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    path.write_text("[]\n{}\n\n" + op("run.end").to_json() + "\n")
    assert read_history(path).truncated == "3 lines of history.jsonl cannot be read (line 1, 2, 3)"


def test_what_was_recorded_is_in_the_file_before_record_returns(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    recorder = Recorder(path, wall=lambda: 100.0, mono=lambda: 5.0)
    recorder.record("run.start", run_id="r1")
    (line,) = path.read_text().splitlines()
    assert json.loads(line) == {
        "i": 0,
        "kind": "run.start",
        "src": "orchestrator",
        "wall": 100.0,
        "mono": 5.0,
        "recv": 100.0,
        "node": None,
        "data": {"run_id": "r1"},
    }


def test_an_operation_of_another_source_keeps_that_sources_clocks(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "h", wall=lambda: 100.0, mono=lambda: 5.0)
    told = recorder.record("engine.die", source="engine", node="worker-1", wall=90.0)
    assert (told.wall, told.mono, told.received, told.node) == (90.0, None, 100.0, "worker-1")


def test_recording_from_many_threads_gives_each_operation_an_index_of_its_own(
    tmp_path: Path,
) -> None:
    path = tmp_path / "history.jsonl"
    recorder = Recorder(path)

    def write(name: str) -> None:
        for i in range(200):
            recorder.record("beat", n=i, who=name)

    threads = [threading.Thread(target=write, args=(str(t),)) for t in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    recorder.close()
    history = read_history(path)
    assert history.truncated is None
    assert [o.index for o in history] == list(range(800))
    for name in "0123":
        assert [o.data["n"] for o in history if o.data["who"] == name] == list(range(200))


def test_a_closed_history_refuses_more_and_can_be_closed_again(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "h")
    recorder.close()
    recorder.close()
    assert recorder.closed
    with pytest.raises(ValueError, match="closed"):
        recorder.record("run.end")


def test_a_snapshot_does_not_grow(tmp_path: Path) -> None:
    recorder = Recorder(tmp_path / "h")
    recorder.record("run.start")
    snapshot = recorder.snapshot()
    recorder.record("run.end")
    assert [o.kind for o in snapshot] == ["run.start"]


def test_operations_are_found_by_kind_and_by_family() -> None:
    history = History([op("fault.plan"), op("fault.inject"), op("faulty"), op("run.end")])
    assert [o.kind for o in history.of("fault.")] == ["fault.plan", "fault.inject"]
    assert [o.kind for o in history.of("run.end", "fault.plan")] == ["fault.plan", "run.end"]
    assert history.first("run.end") == history.last("run.end")
    assert history.first("nothing") is None
    assert history.last("nothing") is None


def test_offsets_are_the_mean_and_wide_enough_for_all_measurements() -> None:
    history = History(
        [
            op("clock.offset", sources=["ledger", "ray"], offset=10.0, uncertainty=0.1),
            op("clock.offset", sources=["ledger"], offset=12.0, uncertainty=0.5),
        ]
    )
    assert history.offsets["ledger"] == ClockOffset(11.0, 1.5)
    assert history.offsets["ray"] == ClockOffset(10.0, 0.1)
    mine, theirs = op("run.start", 100.0), op("task.start", 111.0, "ledger")
    assert (history.at(mine), history.at(theirs)) == (100.0, 100.0)
    assert history.uncertainty(mine, theirs) == 1.5


def test_a_later_measurement_counts_at_once() -> None:
    history = History([op("clock.offset", sources=["ledger"], offset=10.0, uncertainty=0.0)])
    assert history.at(op("task.start", 20.0, "ledger")) == 10.0
    history.append(op("clock.offset", sources=["ledger"], offset=20.0, uncertainty=0.0))
    assert history.at(op("task.start", 20.0, "ledger")) == 5.0


def test_operations_of_a_kind_are_found_again_after_the_history_has_grown() -> None:
    history = History([Op(0, "engine.start", "engine", 1.0, None, 1.0, "head")])
    assert [op.index for op in history.of("engine.")] == [0]
    for index, kind in enumerate(("ray.node", "engine.die", "ray.node", "engine.start"), 1):
        history.append(Op(index, kind, "engine", 1.0, None, 1.0, "head"))
    assert [op.index for op in history.of("engine.")] == [0, 2, 4]
    assert [op.index for op in history.of("engine.start", "ray.node")] == [0, 1, 3, 4]
    assert [op.index for op in history.of("ray.node")] == [1, 3]
    assert (history.first("ray.node"), history.last("engine.")) == (history.ops[1], history.ops[4])
    assert history.of("no.such") == []
    assert history.first("no.such", "nor.this.") is None
    assert history.last("no.such") is None
