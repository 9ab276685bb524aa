"""The workloads: their work can be recomputed, and their simulated drivers say what the real ones say."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, topology
from hypothesis import given
from hypothesis import strategies as st

from simulator import assets
from simulator.experiment import load_experiment
from simulator.innode import work
from simulator.innode.observer import LedgerTail
from simulator.innode.work import expected_value
from simulator.topology import load_topology
from simulator.waiting import wait_until
from simulator.workload import TaskKind, TaskStream, Wave, Waves

small = st.integers(0, 300)


@given(small, small)
def test_the_sum_of_squares_is_what_a_loop_gives(start: int, count: int) -> None:
    assert expected_value("square_sum", [start, count]) == sum(
        k * k for k in range(start, start + count)
    )


@given(small, small)
def test_the_sum_of_a_block_is_what_a_loop_gives(seed: int, length: int) -> None:
    assert expected_value("block_sum", [seed, length]) == sum(k * k + seed for k in range(length))


@given(small)
def test_a_counter_has_added_all_numbers_up_to_its_calls(n: int) -> None:
    assert expected_value("counter_add", [n]) == sum(range(n + 1))


def test_an_unknown_function_has_no_right_result() -> None:
    with pytest.raises(KeyError):
        expected_value("sleep", [1])


def test_every_function_that_the_driver_asks_for_can_be_recomputed() -> None:
    asked = {"square_sum", "make_block", "block_sum", "counter_add", "post", "charge", "roll_call"}
    assert asked == set(work.EXPECTED)


def test_the_specification_tells_the_driver_everything_and_where_the_workers_are() -> None:
    spec = TaskStream(tasks=7, max_retries=0).spec({"worker-1": "abc"})
    assert (spec["tasks"], spec["max_retries"], spec["workers"]) == (7, 0, {"worker-1": "abc"})
    read = set(_read_by_the_driver())
    assert read
    assert read <= set(spec)


def _read_by_the_driver() -> Iterator[str]:
    tree = ast.parse((assets.innode_path() / "stream.py").read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("self.spec", "spec"):
            assert isinstance(node.slice, ast.Constant)
            yield str(node.slice.value)


def test_the_nominal_time_counts_both_halves_of_a_chain() -> None:
    workload = TaskStream(tasks=80, task_seconds=0.5, chain_every=8)
    assert workload.nominal_seconds(topology(3)) == pytest.approx((80 + 10) * 0.5 / 4)
    without = TaskStream(tasks=80, task_seconds=0.5, chain_every=0)
    assert without.nominal_seconds(topology(3)) == pytest.approx(80 * 0.5 / 4)


def test_the_driver_is_told_its_run() -> None:
    assert TaskStream().entrypoint("r-1") == "python -m simulator.innode.stream --run r-1"


def _said(path: Path, *calls: str) -> dict[str, set[str]]:
    """Per kind, the fields that a program writes; ``**`` of something is its source text."""
    found: dict[str, set[str]] = {}
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in calls:
            first = next((a for a in node.args if isinstance(a, ast.Constant)), None)
            if first is not None and isinstance(first.value, str) and "." in first.value:
                fields = {k.arg or "**" + ast.unparse(k.value) for k in node.keywords}
                found.setdefault(first.value, set()).update(fields)
    return found


@pytest.mark.parametrize(
    "programs", [("stream.py",), ("placement.py",), ("stream.py", "promises.py")]
)
def test_the_simulated_driver_writes_what_the_real_one_writes(programs: Sequence[str]) -> None:
    simulated = assets.innode_path().parent / "backends/fake"
    fake = _said(simulated / "driver.py", "self.out")
    real: dict[str, set[str]] = {}
    for program in programs:
        real |= _said(assets.innode_path() / program, "self.out.write")
        fake |= _said(simulated / program, "self.out")
    described = "**described(error)"
    for fields in real.values():
        if described in fields:
            fields.remove(described)
            fields.update({"error", "message"})
    assert real == fake


def _promised(path: Path, *calls: str) -> set[tuple[str, ...]]:
    """What a program says of its submissions beyond key, function and arguments."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and ast.unparse(node.func) in calls and node.keywords:
            found.add(tuple(sorted(str(k.arg) for k in node.keywords)))
    return found


def test_the_simulated_driver_of_promises_promises_the_same() -> None:
    simulated = assets.innode_path().parent / "backends/fake/promises.py"
    fake = _promised(simulated, "self._asked")
    assert fake == _promised(assets.innode_path() / "promises.py", "self.submit")
    assert fake == {("effect",), ("bundle", "group")}


@pytest.mark.parametrize("name", ["node_failure", "promises"])
def test_the_simulated_tasks_write_what_the_real_ones_write(tmp_path: Path, name: str) -> None:
    real = _said(assets.innode_path() / "ledger.py", "self.write")
    real |= _said(
        assets.innode_path() / "work.py", "ledger(run_id).write", "ledger(self._run_id).write"
    )
    facts = {"task_id", "demand", "gpu_ids"}
    assert "**facts" in real["task.start"]
    real["task.start"] = real["task.start"] - {"**facts"} | facts
    real["program.effect"] = {"key", "pid", "task_id"}
    lab = Lab(tmp_path, experiment=load_experiment(name))
    history = lab.history(lab.run())
    kinds = ["task.start", "task.end", "actor.start", "call.start", "call.end"]
    for kind in [*kinds, *(("actor.tick", "program.effect") if name == "promises" else ())]:
        fields = {frozenset(op.data) - {"file", "line"} for op in history.of(kind)}
        assert fields == {frozenset(real[kind])}, kind


def test_a_deed_with_an_idempotency_key_is_done_once_however_often_it_is_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path))
    monkeypatch.setattr(work, "_task_id", lambda: "t1")
    for _ in range(3):
        work._effect("deeds", "order-1", idempotent=True)
        work._effect("deeds", "order-2", idempotent=False)
    said = [json.loads(line) for line in LedgerTail(tmp_path / "deeds").new_lines()]
    deeds = [one["data"]["key"] for one in said if one["kind"] == "program.effect"]
    assert sorted(deeds) == ["order-1", "order-2", "order-2", "order-2"]
    # Whoever is killed between making the file and giving it its name has not done the deed.
    assert not list((tmp_path / "deeds").glob(".effect-*"))


def test_a_counter_that_ray_has_given_up_takes_nothing_from_its_successor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path))
    cut_off = work.Counter("r", "counter")
    successor = work.Counter("r", "counter")
    assert [successor.add(n) for n in (1, 2, 3)] == [1, 3, 6]
    assert cut_off.add(1) == 1  # its call lay there while nothing came through
    with (tmp_path / "r" / "state" / "counter.jsonl").open("a") as file:
        file.write("[4, 1")  # and it died in the middle of a line
    assert work.Counter("r", "counter").add(4) == 10


def test_a_teller_says_that_it_lives_though_nobody_calls_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path))
    monkeypatch.setattr(work, "TICK_S", 0.01)
    work.Teller("ticks", "teller-1")
    tail = LedgerTail(tmp_path / "ticks")
    said: list[dict[str, Any]] = []

    def three() -> bool:
        said.extend(json.loads(line) for line in tail.new_lines())
        return [one["kind"] for one in said].count("actor.tick") >= 3

    wait_until(three, name="three ticks", timeout=30)
    (start,) = [one["data"] for one in said if one["kind"] == "actor.start"]
    ticks = [one["data"] for one in said if one["kind"] == "actor.tick"]
    assert {(t["actor"], t["incarnation"]) for t in ticks} == {("teller-1", start["exec"])}


def test_a_task_waits_for_another_of_its_kind_on_its_gpu_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path))
    folder = tmp_path / "r/company/half"
    done: list[str] = []

    def task(key: str) -> None:
        work._await_company("r", key, ["0"], 2)
        done.append(key)

    first = threading.Thread(target=task, args=("half-1",))
    first.start()
    wait_until(lambda: folder.is_dir() and any(folder.glob("*/half-1")), name="half-1", timeout=30)
    assert done == []
    task("half-2")
    first.join(timeout=30)
    task("half-3")  # once is enough, and nobody waits any more
    assert sorted(done) == ["half-1", "half-2", "half-3"]
    assert [p.name for p in folder.glob("*/*")] == []


def test_a_task_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path))
    monkeypatch.setattr(work, "COMPANY_S", 0.0)
    work._await_company("r", "half-1", ["0"], 2)
    assert not (tmp_path / "r/company/half/met").exists()


def test_waves_that_no_node_can_ever_take_are_refused_by_their_shape() -> None:
    topology = load_topology("elastic")
    waves = Waves(
        [
            Wave([TaskKind("cpu", {"CPU": 1}, 9), TaskKind("huge", {"CPU": 1, "GPU": 4}, 1)]),
            Wave(bundles=[{"CPU": 1}, {"CPU": 3}]),
            Wave([TaskKind("far", {"CPU": 1}, 1, labels={"zone": "b"})]),
        ]
    )
    assert [(p.where, p.what) for p in waves.problems(topology)] == [
        ("wave 1: huge", "asks for 1 CPU, 4 GPU, which no node of elastic can ever give"),
        ("wave 2: bundle 1", "asks for 3 CPU, which no node of elastic can ever give"),
        ("wave 3: far", "asks for 1 CPU, zone=b, which no node of elastic can ever give"),
    ]
    fine = Waves([Wave([TaskKind("gpu", {"GPU": 1}, 5)], seconds=2.0, after_s=3.0)], rest_s=4.0)
    assert fine.problems(topology) == []
    assert fine.nominal_seconds(topology) == 4 + 3 + 2 * 3  # five on two, two at a time
