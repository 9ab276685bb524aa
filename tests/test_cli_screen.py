"""What is seen while nodes start and a run goes on: lines that stay, and a block that fits."""

from __future__ import annotations

from collections.abc import Sequence
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab
from rich.console import Console

from simulator.cli.progress import RunProgress, Starting
from simulator.cli.screen import LOG_EVERY_S, Screen
from simulator.cluster import StartEvent
from simulator.history import History, Op


class Ticking:
    """A clock that stands still until told otherwise."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def console(width: int = 80, terminal: bool = False) -> Console:
    return Console(
        file=StringIO(), width=width, force_terminal=terminal, color_system=None, highlight=False
    )


def text_of(shown: Console) -> str:
    assert isinstance(shown.file, StringIO)
    return shown.file.getvalue()


def rendered(what: Any, width: int = 80) -> list[str]:
    shown = console(width)
    shown.print(what)
    return text_of(shown).splitlines()


def op(index: int, kind: str, node: str | None = None, received: float = 1000.0, **data: Any) -> Op:
    return Op(index, kind, "orchestrator", received, None, received, node, data)


Happening = tuple[str, str | None, dict[str, Any]]


def history(*kinds: Happening) -> History:
    return History([op(i, kind, node, **data) for i, (kind, node, data) in enumerate(kinds)])


NODES: Happening = (
    "cluster.nodes",
    None,
    {"nodes": [{"name": n} for n in ("head", "worker-1", "worker-2")]},
)
LOAD: Happening = ("driver.start", None, {"tasks": 160, "slots": 3})
FAULT = {"id": "f1", "fault": "kill"}


def test_each_thing_that_happens_becomes_a_line_once() -> None:
    progress = RunProgress()
    so_far: list[Happening] = [NODES, LOAD, ("fault.inject", "worker-2", FAULT)]
    assert progress.feed(history(*so_far)) == [
        "the work began: 160 tasks on 3 slots", "fault: kill worker-2"
    ]  # fmt: skip
    assert progress.feed(history(*so_far)) == []
    more: list[Happening] = [
        ("fault.effect", "worker-2", {**FAULT, "verified": True}),
        ("engine.die", "worker-2", {"exit_code": 137}),
        ("ray.node", "worker-2", {"state": "DEAD"}),
        ("fault.heal", "worker-2", {**FAULT, "how": "start"}),
    ]
    assert progress.feed(history(*so_far, *more)) == [
        "fault: kill worker-2 took effect",
        "Ray declared worker-2 dead",
        "healing worker-2: start",
    ]


@pytest.mark.parametrize(
    ("ops", "state"),
    [
        ([], "alive"),
        ([("engine.die", {})], "gone"),
        ([("engine.die", {}), ("ray.node", {"state": "DEAD"})], "dead"),
        ([("engine.die", {}), ("engine.start", {})], "starting"),
        ([("engine.die", {}), ("engine.start", {}), ("ray.node", {"state": "DEAD"})], "starting"),
        ([("engine.die", {}), ("engine.start", {}), ("ray.node", {"state": "ALIVE"})], "alive"),
        ([("engine.pause", {})], "paused"),
        ([("engine.pause", {}), ("engine.unpause", {})], "alive"),
    ],
)
def test_a_node_is_shown_as_it_is(ops: Sequence[tuple[str, dict[str, Any]]], state: str) -> None:
    progress = RunProgress()
    progress.feed(history(NODES, *((kind, "worker-2", data) for kind, data in ops)))
    assert progress.nodes == {"head": "alive", "worker-1": "alive", "worker-2": state}


def test_a_fault_without_proof_is_said_loudly() -> None:
    progress = RunProgress()
    lines = progress.feed(
        history(
            ("fault.inject", "worker-2", FAULT),
            ("fault.effect", "worker-2", {**FAULT, "verified": False}),
        )
    )
    assert lines[-1] == "fault: kill worker-2 could NOT be shown to have taken effect"


def test_a_task_that_failed_for_good_is_named() -> None:
    progress = RunProgress()
    lines = progress.feed(history(LOAD, ("driver.failure", None, {"key": "t-9", "error": "Died"})))
    assert lines[-1] == "t-9 failed for good: Died"
    assert "1 failed for good" in " ".join(rendered(progress.render(80, 0.0)))


def test_work_beyond_its_plan_is_said_to_be_that() -> None:
    progress = RunProgress()
    progress.feed(history(LOAD, *[("driver.result", None, {})] * 172))
    assert progress.done_words == "172 done, beyond the 160 planned"


@pytest.mark.parametrize("width", [80, 120])
def test_the_block_fits_the_window(width: int) -> None:
    names = [{"name": f"worker-{i}"} for i in range(1, 17)]
    progress = RunProgress()
    progress.feed(
        history(
            ("cluster.nodes", None, {"nodes": [{"name": "head"}, *names]}),
            LOAD,
            *[("driver.submit", None, {})] * 80,
            *[("driver.result", None, {})] * 40,
            ("fault.inject", "worker-2", FAULT),
            ("engine.die", "worker-2", {}),
        )
    )
    lines = rendered(progress.render(width, 1012.0), width)
    assert max(len(line.rstrip()) for line in lines) <= width
    text = "\n".join(lines)
    assert "40 done of 160 planned, 40 in flight" in text
    assert "16 alive   worker-2 gone, Ray has not noticed" in text
    assert "kill worker-2, 12 s ago, injected" in text


def test_nodes_that_start_get_a_line_each_with_their_seconds() -> None:
    starting = Starting()
    for name in ("head", "worker-1", "worker-2"):
        assert starting.feed(StartEvent(name, "starting"), 100.0) == ""
    assert starting.feed(StartEvent("head", "joined", 7.25), 107.25) == "head joined after 7.2 s"
    lines = rendered(starting.render(110.0))
    assert [line.split() for line in lines] == [
        ["worker-1", "starting", "10", "s"], ["worker-2", "starting", "10", "s"]
    ]  # fmt: skip


def test_a_start_that_failed_shows_its_last_lines() -> None:
    starting = Starting()
    said = starting.feed(
        StartEvent("worker-1", "failed", 9.0, 2, ["worker-1 exited with 1", "no port", "bye"]), 0.0
    )
    assert said == "worker-1 exited with 1 (attempt 2)\n    no port\n    bye"


def test_many_nodes_do_not_fill_the_window() -> None:
    starting = Starting()
    for i in range(64):
        starting.feed(StartEvent(f"worker-{i}", "starting"), 0.0)
    lines = rendered(starting.render(1.0))
    assert len(lines) < 24
    assert "47 more" in lines[-1]


def test_a_log_file_gets_plain_lines_with_their_time() -> None:
    clock, shown = Ticking(), console()
    screen = Screen("lab", console=shown, clock=clock)
    with screen.showing():
        screen.phase("create")
        clock.now += 1.5
        screen.start(StartEvent("head", "starting"))
        clock.now += 7
        screen.start(StartEvent("head", "joined", 7.0))
    assert text_of(shown).splitlines() == [
        "    0.0 s  starting the cluster",
        "    1.5 s    head is starting",
        "    8.5 s    head joined after 7.0 s",
    ]


def test_a_log_file_gets_the_state_of_the_work_now_and_then() -> None:
    clock, shown = Ticking(), console()
    screen = Screen("lab", console=shown, clock=clock)
    seen = history(LOAD, ("driver.result", None, {}))
    screen.tick(seen)
    screen.tick(seen)
    clock.now += LOG_EVERY_S
    screen.tick(seen)
    assert text_of(shown).count("tasks: 1 done of 160 planned") == 1


def test_the_lines_of_an_image_build_only_pass_by_on_a_terminal() -> None:
    for terminal, kept in ((True, 0), (False, 1)):
        shown = console(terminal=terminal)
        screen = Screen("lab", console=shown)
        screen.say("#12 RUN pip install ray")
        screen.say("image is ready")
        assert text_of(shown).count("pip install") == kept
        assert "image is ready" in text_of(shown)


def test_a_whole_run_is_told_from_its_beginning_to_its_end(tmp_path: Path) -> None:
    lab, shown = Lab(tmp_path), console(120)
    screen = Screen("node_failure on fake", console=shown)
    runner = lab.runner()
    runner.listener = screen.listener()
    assert runner.run(lab.request())["verdict"] == "valid"
    lines = [line[11:] for line in text_of(shown).splitlines()]
    order = [
        "starting the cluster",
        "  head joined after",
        "gate: is the cluster at rest?",
        "load: starting the work",
        "warm-up, then the faults",
        "  fault: kill worker-",
        "recovery: until the last phase was seen",
        "  Ray declared worker-",
        "  healing worker-",
        "  healed worker-",
        "healing",
        "collecting ledger and logs",
        "taking the cluster down",
    ]
    positions = [next((i for i, t in enumerate(lines) if t.startswith(o)), None) for o in order]
    assert None not in positions
    assert positions[0] == 0
    assert positions[-1] == len(lines) - 1
