"""What the drivers inside a node ask of Ray, with a Ray that only notes it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from simulator.workload import Hoard as HoardWorkload
from simulator.workload import TaskStream

pytest.importorskip("ray", reason="the drivers import Ray (extra local)")

from simulator.innode.hoard import Hoard
from simulator.innode.stream import Stream


class Remote:
    """A remote function that notes how it was submitted and returns a number as its reference."""

    numbers = itertools.count(1)

    def __init__(self) -> None:
        self.asked: list[tuple[dict[str, Any], tuple[Any, ...]]] = []
        self.chosen: dict[str, Any] = {}

    def options(self, **chosen: Any) -> Remote:
        self.chosen = chosen
        return self

    def remote(self, *args: Any) -> int:
        self.asked.append((self.chosen, args))
        return next(self.numbers)


@pytest.fixture
def ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("RAY_SIM_LEDGER", str(tmp_path))
    return tmp_path / "r" / "driver.jsonl"


def submitted(ledger: Path) -> list[str]:
    lines = [json.loads(line) for line in ledger.read_text().splitlines()]
    return [line["data"]["key"] for line in lines if line["kind"] == "driver.submit"]


def a_stream(**settings: Any) -> Stream:
    stream = Stream("r", TaskStream(chain_every=3, **settings).spec({}))
    stream.square_sum = stream.make_block = stream.block_sum = Remote()
    return stream


def test_a_late_task_is_submitted_once_more_and_its_copy_never(ledger: Path) -> None:
    stream = a_stream(speculate_after_s=0.0)
    for number in (1, 2, 3):
        stream.submit_next(number)
    for _ in range(3):
        stream.speculate()
    # The chain (p-3, c-3) is left alone.
    assert submitted(ledger) == ["t-1", "t-2", "p-3", "c-3", "t-1-copy", "t-2-copy"]
    asked = {chosen["name"]: (chosen, args) for chosen, args in stream.square_sum.asked}
    assert asked["t-1-copy"][0]["scheduling_strategy"] == "SPREAD"
    original, copy = asked["t-1"][1], asked["t-1-copy"][1]
    assert (original[1], copy[1]) == ("t-1", "t-1-copy")
    assert original[2:] == copy[2:]


@pytest.mark.parametrize("patience", [None, 3600.0])
def test_without_need_nothing_is_submitted_twice(ledger: Path, patience: float | None) -> None:
    stream = a_stream(speculate_after_s=patience)
    stream.submit_next(1)
    stream.speculate()
    assert submitted(ledger) == ["t-1"]


def test_a_hoard_reads_its_oldest_block_again_for_each_new_one(ledger: Path) -> None:
    hoard = Hoard("r", HoardWorkload(kept=2).spec({}))
    remote = hoard.make_block = hoard.block_sum = Remote()
    hoard.prepare({"worker-1": "id-1", "worker-2": "id-2"})
    for number in range(1, 7):
        hoard.submit_next(number)
        asked = next(a for a in hoard.pending.values() if a.key == f"s-{number}")
        # What failed is not kept; the others are, each on its worker.
        hoard.came_back(asked, failed=number == 2)
    assert [key for key in submitted(ledger) if key.startswith("r-")] == ["r-1"]
    assert [[number for number, _ in kept] for kept in hoard.kept] == [[4, 6], [3, 5]]
    places = {c["name"]: c["label_selector"]["ray.io/node-id"] for c, _ in remote.asked}
    assert places["b-1"] == places["s-1"] == places["r-1"] == "id-2"
    assert places["b-2"] == "id-1"
    assert not hoard.new
