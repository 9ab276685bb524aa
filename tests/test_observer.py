"""The observer: its reading of the ledger, its watch of a scripted GCS, and the program itself."""

from __future__ import annotations

import asyncio
import io
import json
import signal
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from fake_ray import until

from simulator.innode import observer
from simulator.innode.observer import GcsWatch, LedgerTail, Output
from simulator.innode.ray_private import ActorInfo, Announcements, GroupInfo, NodeInfo

PACKAGE_ROOT = Path(observer.__file__).parents[2]


def line(kind: str, **data: object) -> str:
    return json.dumps({"kind": kind, "wall": 1.5, "mono": 0.5, "host": "abc", "data": data}) + "\n"


def read(tail: LedgerTail) -> list[dict[str, Any]]:
    return [json.loads(text) for text in tail.new_lines()]


# ---- the ledger


def test_a_partial_line_waits_for_its_end(tmp_path: Path) -> None:
    tail = LedgerTail(tmp_path)
    file = tmp_path / "abc-1-7.jsonl"
    whole, part = line("task.start", key="t-1"), line("task.end", key="t-1")
    file.write_text(whole + part[:20])
    assert [said["kind"] for said in read(tail)] == ["task.start"]
    assert read(tail) == []
    file.write_text(whole + part)
    assert [(said["kind"], said["data"]["line"]) for said in read(tail)] == [("task.end", 2)]
    assert tail.lines == {file.name: 2}


def test_a_line_longer_than_what_is_read_at_once_arrives_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observer, "CHUNK", 64)
    (tmp_path / "a.jsonl").write_text(line("task.start", key="x" * 1000) + line("task.end"))
    said = read(LedgerTail(tmp_path))
    assert [s["kind"] for s in said] == ["task.start", "task.end"]
    assert said[0]["data"]["key"] == "x" * 1000


def test_files_that_appear_late_are_read_from_their_beginning(tmp_path: Path) -> None:
    tail = LedgerTail(tmp_path / "not-there-yet")
    assert read(tail) == []
    (tmp_path / "not-there-yet").mkdir()
    (tmp_path / "not-there-yet" / "b.jsonl").write_text(line("task.start") * 3)
    assert [said["data"]["line"] for said in read(tail)] == [1, 2, 3]


def test_only_ledger_files_are_read(tmp_path: Path) -> None:
    (tmp_path / "workload.json").write_text("{}\n")
    (tmp_path / "state").mkdir()
    assert read(LedgerTail(tmp_path)) == []


def test_lines_keep_their_own_clock_and_say_where_they_stand(tmp_path: Path) -> None:
    (tmp_path / "abc-1-7.jsonl").write_text(line("task.start", key="t-1"))
    (tmp_path / "driver.jsonl").write_text(line("driver.submit", key="t-1"))
    said = read(LedgerTail(tmp_path))
    assert [(s["src"], s["kind"], s["wall"], s["mono"], s["host"]) for s in said] == [
        ("ledger", "task.start", 1.5, 0.5, "abc"),
        ("driver", "driver.submit", 1.5, 0.5, "abc"),
    ]
    assert said[0]["data"] == {"key": "t-1", "file": "abc-1-7.jsonl", "line": 1}


@pytest.mark.parametrize(
    "garbled",
    ["{nonsense", "[]", '"text"', '{"kind": "task.end"}', "\xff\xfe", '{"kind":1,"data":null}'],
)
def test_a_garbled_line_is_reported_and_counted(tmp_path: Path, garbled: str) -> None:
    text = f"{garbled}\n{line('task.end', key='t-1')}"
    (tmp_path / "abc-1-7.jsonl").write_bytes(text.encode("latin-1"))
    tail = LedgerTail(tmp_path)
    said = read(tail)
    assert [s["kind"] for s in said] == ["observer.garbled", "task.end"]
    assert (said[0]["src"], said[0]["data"]) == ("observer", {"file": "abc-1-7.jsonl", "line": 1})
    assert tail.lines == {"abc-1-7.jsonl": 2}


def test_a_large_ledger_is_forwarded_once(tmp_path: Path) -> None:
    tail = LedgerTail(tmp_path)
    for host in ("a", "b", "c"):
        (tmp_path / f"{host}.jsonl").write_text(line("task.start", key="x") * 20_000)
    assert sum(1 for _ in tail.new_lines()) == 60_000
    assert sum(1 for _ in tail.new_lines()) == 0
    assert tail.lines == {"a.jsonl": 20_000, "b.jsonl": 20_000, "c.jsonl": 20_000}


# ---- the GCS

HEAD = NodeInfo("aa" * 14, "head", "ALIVE", "", "")
WORKER = NodeInfo("bb" * 14, "worker-1", "ALIVE", "", "")
DEAD = replace(WORKER, state="DEAD", reason="UNEXPECTED_TERMINATION", message="no heartbeat")
ACTOR = ActorInfo("cc" * 8, "counter", "Counter", "PENDING_CREATION", 0, "")


class Script:
    """A GCS that has what a test says, and announces when a test says so."""

    def __init__(self) -> None:
        self.has_nodes, self.has_actors = [HEAD, WORKER], [ACTOR]
        self.has_groups: list[GroupInfo] = []
        self.silent = self.deaf = False
        self.looks = self.subscriptions = 0
        self.announced = asyncio.Event()

    async def nodes(self, timeout: float) -> list[NodeInfo]:
        self.looks += 1
        if self.silent:
            raise TimeoutError("nobody there")
        return list(self.has_nodes)

    async def actors(self, timeout: float) -> list[ActorInfo]:
        if self.silent:
            raise TimeoutError("nobody there")
        return list(self.has_actors)

    async def groups(self, timeout: float) -> list[GroupInfo]:
        if self.silent:
            raise TimeoutError("nobody there")
        return list(self.has_groups)

    async def subscribe(self, timeout: float) -> Announcements:
        if self.silent or self.deaf:
            raise TimeoutError("nobody there")
        self.subscriptions += 1
        self.announced = asyncio.Event()
        return cast(Announcements, Ear(self))


class Ear:
    """One subscription; a later one takes its place."""

    def __init__(self, script: Script) -> None:
        self.event = script.announced

    async def next(self) -> int:
        await self.event.wait()
        self.event.clear()
        return 1


class Watched:
    """A watch of a script, running, and what it has said."""

    def __init__(self, script: Script, watch: GcsWatch, stream: io.StringIO) -> None:
        self.script, self.watch, self.stream = script, watch, stream

    def said(self, *kinds: str) -> list[dict[str, Any]]:
        lines = [json.loads(text) for text in self.stream.getvalue().splitlines()]
        return [one for one in lines if not kinds or one["kind"] in kinds]

    async def until(self, condition: Callable[[], object]) -> None:
        for _ in range(3000):
            if condition():
                return
            await asyncio.sleep(0.01)
        raise AssertionError(f"it did not happen; said was {self.said()}")

    async def settled(self) -> None:
        """It has looked, heard that it may listen, and waits."""
        await self.until(lambda: self.script.subscriptions and self.watch._hears)
        looks = self.script.looks
        self.watch.wake()
        await self.until(lambda: self.script.looks > looks)


def watched(story: Callable[[Watched], Awaitable[None]]) -> list[dict[str, Any]]:
    """Run a watch beside a story, end it, and give all that was said."""

    async def main() -> list[dict[str, Any]]:
        stream, ending = io.StringIO(), threading.Event()
        script, watch = Script(), GcsWatch(Output(stream), ending)
        seen = Watched(script, watch, stream)
        running = asyncio.create_task(watch.run(script))
        await story(seen)
        ending.set()
        watch.wake()
        await asyncio.wait_for(running, 30)
        assert watch.done.is_set()
        return seen.said()

    return asyncio.run(main())


@pytest.fixture
def never_asks_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observer, "CHECK_S", 3600.0)


def test_what_is_there_at_the_start_is_told_once() -> None:
    async def story(seen: Watched) -> None:
        await seen.settled()

    said = watched(story)
    assert [(s["kind"], s["host"], s["data"].get("state")) for s in said] == [
        ("observer.start", None, None),
        ("ray.node", "head", "ALIVE"),
        ("ray.node", "worker-1", "ALIVE"),
        ("ray.actor", None, "PENDING_CREATION"),
    ]
    assert said[3]["data"] == {
        "actor_id": "cc" * 8,
        "name": "counter",
        "class": "Counter",
        "state": "PENDING_CREATION",
        "restarts": 0,
        "hostname": None,
    }


def test_an_announced_change_is_told_without_waiting(never_asks_by_itself: None) -> None:
    async def story(seen: Watched) -> None:
        await seen.settled()
        seen.script.has_nodes[1] = DEAD
        seen.script.announced.set()
        await seen.until(lambda: len(seen.said("ray.node")) == 3)
        alive = replace(ACTOR, state="ALIVE", restarts=1, ray_node_id=HEAD.ray_node_id)
        seen.script.has_actors[0] = alive
        seen.script.announced.set()
        await seen.until(lambda: len(seen.said("ray.actor")) == 2)

    *_, node, actor = watched(story)
    assert (node["host"], node["data"]) == (
        "worker-1",
        {
            "ray_node_id": "bb" * 14,
            "hostname": "worker-1",
            "state": "DEAD",
            "reason": "UNEXPECTED_TERMINATION",
            "message": "no heartbeat",
        },
    )
    assert (actor["host"], actor["data"]["hostname"]) == ("head", "head")
    assert actor["data"]["restarts"] == 1


def test_without_announcements_it_keeps_asking() -> None:
    async def story(seen: Watched) -> None:
        seen.script.deaf = True
        await seen.until(lambda: seen.said("ray.node"))
        seen.script.has_nodes[1] = DEAD
        await seen.until(lambda: len(seen.said("ray.node")) == 3)

    assert watched(story)[-1]["data"]["state"] == "DEAD"


def test_a_change_that_was_not_announced_makes_it_subscribe_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(observer, "CHECK_S", 0.05)

    async def story(seen: Watched) -> None:
        await seen.settled()
        before = seen.script.subscriptions
        seen.script.has_nodes[1] = DEAD
        await seen.until(lambda: seen.script.subscriptions > before)

    assert watched(story)[-1]["data"]["state"] == "DEAD"


GROUP = GroupInfo("dd" * 18, "all", "r", "STRICT_SPREAD", "PENDING", ("", ""))


def test_a_group_is_told_with_the_hosts_of_its_bundles(never_asks_by_itself: None) -> None:
    async def story(seen: Watched) -> None:
        await seen.settled()
        seen.script.has_groups = [GROUP]
        seen.watch.wake()
        await seen.until(lambda: len(seen.said("ray.group")) == 1)
        # While it waits for a place it is asked for often: nothing is announced of groups.
        placed = replace(GROUP, state="CREATED", places=(WORKER.ray_node_id, HEAD.ray_node_id))
        seen.script.has_groups = [placed]
        await seen.until(lambda: len(seen.said("ray.group")) == 2)

    pending, created = [s["data"] for s in watched(story) if s["kind"] == "ray.group"]
    assert pending == {
        "group_id": "dd" * 18,
        "name": "all",
        "namespace": "r",
        "strategy": "STRICT_SPREAD",
        "state": "PENDING",
        "hosts": [None, None],
    }
    assert (created["state"], created["hosts"]) == ("CREATED", ["worker-1", "head"])


def test_a_group_that_was_removed_before_anybody_looked_is_old_news() -> None:
    async def story(seen: Watched) -> None:
        seen.script.has_groups = [replace(GROUP, state="REMOVED")]
        await seen.settled()
        seen.script.has_groups = [replace(GROUP, group_id="ee" * 18, state="CREATED")]
        seen.watch.wake()
        await seen.until(lambda: seen.said("ray.group"))

    assert [s["data"]["group_id"] for s in watched(story) if s["kind"] == "ray.group"] == [
        "ee" * 18
    ]


def test_silence_is_told_once_and_so_is_its_end() -> None:
    async def story(seen: Watched) -> None:
        await seen.settled()
        before = seen.script.subscriptions
        seen.script.silent = True
        seen.watch.wake()
        await seen.until(lambda: seen.said("observer.blind"))
        looks = seen.script.looks
        await seen.until(lambda: seen.script.looks > looks + 3)  # it goes on asking
        seen.script.has_nodes[1] = DEAD
        seen.script.silent = False
        # The GCS that answers may be another one, which knows no subscribers.
        await seen.until(lambda: seen.script.subscriptions > before)

    said = watched(story)
    blind, seeing, dead = said[4:]
    assert (blind["kind"], blind["data"]) == (
        "observer.blind",
        {"error": "TimeoutError: nobody there"},
    )
    assert seeing["kind"] == "observer.seeing"
    assert dead["data"]["state"] == "DEAD"


def test_a_gcs_that_never_answered_is_not_seen_to_come_back() -> None:
    async def story(seen: Watched) -> None:
        seen.script.silent = True
        await seen.until(lambda: seen.script.looks >= 3)

    assert [s["kind"] for s in watched(story)] == ["observer.start", "observer.blind"]


def test_it_looks_once_more_at_the_end(never_asks_by_itself: None) -> None:
    async def story(seen: Watched) -> None:
        await seen.settled()
        seen.script.has_nodes[1] = DEAD  # and nobody announces it

    assert watched(story)[-1]["data"]["state"] == "DEAD"


# ---- the program


def test_it_forwards_the_ledger_while_there_is_no_gcs(tmp_path: Path) -> None:
    (tmp_path / "r1").mkdir()
    early, late = tmp_path / "r1" / "abc-1-7.jsonl", tmp_path / "r1" / "driver.jsonl"
    early.write_text(line("task.start", key="t-1"))
    out = tmp_path / "out"
    with out.open("w") as stdout:
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "simulator.innode.observer"),
                *("--gcs", "127.0.0.1:1", "--run", "r1", "--ledger", str(tmp_path)),
            ],
            stdout=stdout,
            cwd=PACKAGE_ROOT,
        )

    def said(kind: str) -> list[dict[str, Any]]:
        text = out.read_text()
        lines = [json.loads(one) for one in text[: text.rfind("\n") + 1].splitlines()]
        return [one for one in lines if one["kind"] == kind]

    try:
        until(lambda: said("task.start"), "the first line")
        until(lambda: said("observer.blind"), "blindness", 120)
        late.write_text(line("driver.submit", key="t-1") + '{"kind": "cut of')
        until(lambda: said("driver.submit"), "the late file")
        until(lambda: len(said("observer.beat")) >= 2, "the heartbeat")
        with early.open("a") as file:
            file.write(line("task.end", key="t-1"))
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 0
    finally:
        process.kill()
        process.wait()
    assert len(said("task.end")) == 1  # the last look
    assert '"kind":"observer.start"' in out.read_text().splitlines()[0]
    assert [s["data"]["poll_s"] for s in said("observer.start")] == [observer.POLL_S]
    assert len(said("observer.blind")) == 1
    beats = said("observer.beat")
    assert [b["data"]["n"] for b in beats] == list(range(1, len(beats) + 1))
    assert not any(b["data"]["gcs"] for b in beats)
    assert out.read_text().splitlines()[-1] == json.dumps(
        said("observer.end")[0], separators=(",", ":")
    )
    assert said("observer.end")[0]["data"] == {"files": {early.name: 2, late.name: 1}}
