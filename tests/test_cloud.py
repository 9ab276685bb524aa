"""The cloud that gives machines to Ray's autoscaler: asked as it asks, on an engine in memory."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from simulator.innode import keeper
from simulator.innode.cloud import (
    BOOK,
    BOOT_S,
    CLOSED,
    KEPT_GONE,
    SETTINGS,
    Cloud,
    EngineError,
    Machine,
    _Handler,
    _Server,
    read_json,
    write_json,
)

TAGS = {"ray-node-type": "worker", "ray-user-node-type": "cpu", "ray-launch-request": "r1"}


@dataclass
class MemoryEngine:
    """Machines that are rows; those of `slow` never become ready."""

    rows: dict[str, Machine] = field(
        default_factory=lambda: {"head": Machine("head", "head", "running")}
    )
    slow: set[str] = field(default_factory=set)
    away: bool = False

    def machines(self) -> list[Machine]:
        if self.away:
            raise EngineError("the engine does not answer")
        return list(self.rows.values())

    def make(self, group: str, number: int, note: Mapping[str, Any]) -> str:
        name = f"{group}-{number}"
        assert name not in self.rows
        self.rows[name] = Machine(name, group, "created", note)
        return name

    def start(self, name: str) -> None:
        self.rows[name] = replace(self.rows[name], state="running")

    def ready(self, name: str) -> bool:
        return name not in self.slow

    def stop(self, name: str, grace: float) -> None:
        assert grace > 0
        self.end(name, 0)

    def remove(self, name: str) -> None:
        del self.rows[name]

    def end(self, name: str, code: int) -> None:
        self.rows[name] = replace(self.rows[name], state="exited", exit_code=code)

    def states(self) -> dict[str, str]:
        return {name: row.state for name, row in self.rows.items() if name != "head"}


@dataclass
class Sky:
    """A cloud with its engine, its clock, and what it told."""

    cloud: Cloud
    engine: MemoryEngine
    told: list[tuple[str, dict[str, Any]]]
    now: float = 1000.0

    def look(self, after: float = 0.0) -> None:
        self.now += after
        self.cloud.look()

    def kinds(self) -> list[str]:
        return [kind for kind, _ in self.told]


def sky(folder: Path, *, parallel: int = 2, **how: Any) -> Sky:
    group = {"delay": [0.0, 0.0], "failure": 0.0, "capacity_after": 0.0, **how}
    write_json(
        folder / SETTINGS,
        {"seed": 7, "parallel": parallel, "groups": {"cpu": group, "gpu": {**group}}},
    )
    engine = MemoryEngine()
    told: list[tuple[str, dict[str, Any]]] = []
    made = Sky(Cloud(engine, folder, lambda k, **d: told.append((k, d))), engine, told)
    made.cloud.wall = lambda: made.now
    return made


def test_a_machine_is_made_at_once_started_when_it_is_due_and_listed_all_the_while(
    tmp_path: Path,
) -> None:
    it = sky(tmp_path, delay=[3.0, 3.0])
    assert it.cloud.create("cpu", 1, TAGS) == ["cpu-1"]
    assert it.engine.states() == {"cpu-1": "created"}
    head, machine = it.cloud.present()
    assert (head["id"], head["tags"]["ray-node-type"]) == ("head", "head")
    assert machine == {"id": "cpu-1", "tags": TAGS, "name": "cpu-1", "running": False}
    it.look(after=2.9)
    assert it.engine.states() == {"cpu-1": "created"}
    it.look(after=0.2)
    it.look()
    assert it.engine.states() == {"cpu-1": "running"}
    assert it.kinds() == ["cloud.asked", "machine.start", "machine.ready"]
    assert it.told[0][1]["nodes"] == ["cpu-1"]


def test_no_more_start_at_a_time_than_the_machine_carries(tmp_path: Path) -> None:
    it = sky(tmp_path, parallel=2)
    it.engine.slow = {"cpu-1", "cpu-2"}
    it.cloud.create("cpu", 3, TAGS)
    it.look()
    it.look()
    assert it.engine.states() == {"cpu-1": "running", "cpu-2": "running", "cpu-3": "created"}
    it.engine.slow.discard("cpu-1")
    it.look()
    assert it.engine.states()["cpu-3"] == "running"


def test_one_that_does_not_become_ready_holds_up_no_other_for_ever(tmp_path: Path) -> None:
    it = sky(tmp_path, parallel=1)
    it.engine.slow = {"cpu-1"}
    it.cloud.create("cpu", 2, TAGS)
    it.look()
    it.look(after=BOOT_S + 1)
    assert it.engine.states() == {"cpu-1": "running", "cpu-2": "running"}


def test_numbers_are_never_given_again_whatever_was_removed_and_who_asks(tmp_path: Path) -> None:
    it = sky(tmp_path)
    it.cloud.create("cpu", 2, TAGS)
    it.engine.remove("cpu-2")
    again = Cloud(it.engine, tmp_path, it.cloud.tell)
    assert again.create("cpu", 1, TAGS) == ["cpu-3"]
    (tmp_path / BOOK).unlink()  # then only what there is can tell
    assert again.create("cpu", 1, TAGS) == ["cpu-4"]


def test_a_cloud_that_was_killed_goes_on_where_it_was(tmp_path: Path) -> None:
    it = sky(tmp_path, delay=[5.0, 5.0])
    it.cloud.create("cpu", 1, TAGS)
    again = Sky(Cloud(it.engine, tmp_path, it.cloud.tell), it.engine, it.told, now=it.now + 6)
    again.cloud.wall = lambda: again.now
    again.look()
    assert it.engine.states() == {"cpu-1": "running"}


def test_a_machine_that_is_gone_is_told_of_once_and_not_listed(tmp_path: Path) -> None:
    it = sky(tmp_path)
    it.cloud.create("cpu", 1, TAGS)
    it.look()
    it.engine.end("cpu-1", 137)
    it.look()
    it.look()
    assert it.told[-1] == ("machine.gone", {"node": "cpu-1", "exit_code": 137})
    assert it.kinds().count("machine.gone") == 1
    assert [m["id"] for m in it.cloud.present()] == ["head"]


def test_only_the_latest_of_those_that_are_gone_are_kept(tmp_path: Path) -> None:
    it = sky(tmp_path)
    for n in range(KEPT_GONE + 3):
        it.now += 1
        it.cloud.create("cpu", 1, TAGS)
        it.engine.end(f"cpu-{n + 1}", 12)
    it.look()
    assert len(it.engine.states()) == KEPT_GONE
    assert "cpu-3" not in it.engine.states()
    assert f"cpu-{KEPT_GONE + 3}" in it.engine.states()


def wait_for(it: Sky, name: str, state: str | None) -> None:
    end = time.monotonic() + 10
    while it.engine.states().get(name) != state:
        assert time.monotonic() < end
        time.sleep(0.005)


def test_taking_back_is_idempotent_and_never_takes_the_head(tmp_path: Path) -> None:
    it = sky(tmp_path)
    it.cloud.create("cpu", 2, TAGS)
    it.engine.start("cpu-1")
    it.cloud.terminate(["cpu-1", "cpu-2", "head", "cpu-99"])
    wait_for(it, "cpu-1", "exited")
    wait_for(it, "cpu-2", None)  # it was never started: nothing of it is worth keeping
    it.cloud.terminate(["cpu-1"])
    assert it.kinds().count("cloud.terminate") == 2
    assert it.engine.rows["head"].state == "running"


def test_out_of_capacity_ends_some_time_after_the_first_request(tmp_path: Path) -> None:
    it = sky(tmp_path, capacity_after=30.0)
    assert it.cloud.answer({"do": "create", "group": "cpu", "count": 1, "tags": TAGS}) == {
        "error": "out of capacity for another 30.0 s"
    }
    it.now += 29
    assert "another 1.0 s" in it.cloud.answer(
        {"do": "create", "group": "cpu", "count": 1, "tags": TAGS}
    ).get("error", "")
    it.now += 1.5
    assert it.cloud.create("cpu", 1, TAGS) == ["cpu-1"]
    assert it.told[0][1]["refused"].startswith("out of capacity")


def test_a_group_that_is_closed_gives_none_until_it_is_opened(tmp_path: Path) -> None:
    it = sky(tmp_path)
    write_json(tmp_path / CLOSED, {"gpu": "nobody sells any today"})
    refused = it.cloud.answer({"do": "create", "group": "gpu", "count": 1, "tags": TAGS})
    assert refused == {"error": "nobody sells any today"}
    assert it.cloud.create("cpu", 1, TAGS) == ["cpu-1"]
    (tmp_path / CLOSED).unlink()
    assert it.cloud.create("gpu", 1, TAGS) == ["gpu-1"]


def outcomes(folder: Path, requests: int) -> list[bool]:
    it = sky(folder, failure=0.5, delay=[1.0, 9.0])
    answers = [
        it.cloud.answer({"do": "create", "group": "cpu", "count": 1, "tags": TAGS})
        for _ in range(requests)
    ]
    return ["ids" in answer for answer in answers]


def test_what_is_drawn_follows_from_the_seed(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    for folder in (first, second):
        folder.mkdir()
    drawn = outcomes(first, 40)
    assert drawn == outcomes(second, 40)
    assert 8 < sum(drawn) < 32


@pytest.mark.parametrize(
    ("request_", "said"),
    [
        ({"do": "fly"}, "'fly' is not a request"),
        ({}, "None is not a request"),
        ({"do": "create", "group": "tpu", "count": 1, "tags": {}}, "there is no group tpu"),
        ({"do": "create"}, "KeyError: 'group'"),
        ({"do": "terminate", "ids": 3}, "TypeError"),
    ],
)
def test_a_request_that_makes_no_sense_is_answered(
    tmp_path: Path, request_: dict[str, Any], said: str
) -> None:
    assert said in sky(tmp_path).cloud.answer(request_)["error"]


def test_an_engine_that_is_away_is_an_answer_too(tmp_path: Path) -> None:
    it = sky(tmp_path)
    it.engine.away = True
    assert "does not answer" in it.cloud.answer({"do": "list"})["error"]
    assert it.kinds() == ["cloud.error"]


def test_many_ask_at_once_over_the_socket_and_every_number_is_given_once(tmp_path: Path) -> None:
    it = sky(tmp_path)
    path = tmp_path / "s"
    with _Server(str(path), _Handler) as server:
        server.cloud = it.cloud
        threading.Thread(target=server.serve_forever, daemon=True).start()
        answers: list[dict[str, Any]] = []

        def ask() -> None:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.connect(str(path))
                request = {"do": "create", "group": "cpu", "count": 2, "tags": TAGS}
                connection.sendall(json.dumps(request).encode() + b"\nnonsense\n")
                with connection.makefile("rb") as lines:
                    answers.append(json.loads(lines.readline()))
                    assert json.loads(lines.readline()) == {"error": "that is not JSON"}

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        server.shutdown()
    ids = [name for answer in answers for name in answer["ids"]]
    assert sorted(ids, key=lambda n: int(n[4:])) == [f"cpu-{n}" for n in range(1, 17)]
    assert read_json(tmp_path / BOOK)["last"] == {"cpu": 16}


def test_a_program_that_ends_is_started_again_until_the_keeper_is_asked_to_end(
    tmp_path: Path,
) -> None:
    module = tmp_path / "mayfly.py"
    module.write_text(
        "import sys, time\n"
        "with open('lives', 'a') as file: file.write('x')\n"
        "if len(open('lives').read()) < 3: sys.exit(1)\n"
        "time.sleep(60)\n"
    )
    process = subprocess.Popen(
        [sys.executable, keeper.__file__, "mayfly"], cwd=tmp_path, env={"PYTHONPATH": str(tmp_path)}
    )
    lives = tmp_path / "lives"
    end = time.monotonic() + 20
    while not lives.exists() or len(lives.read_text()) < 3:
        assert time.monotonic() < end
        time.sleep(0.02)
    process.terminate()
    assert process.wait(10) == 0
    assert lives.read_text() == "xxx"
