"""The command line: help, wrong input, exit codes, and what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from cli import SHORT, Command, another, runner_of, use_backends
from fakes import fake

from simulator.backends.base import Check, Completed
from simulator.backends.fake import FakeBackend
from simulator.cli.app import app
from simulator.errors import CannotRun
from simulator.store import Store

ROOT = Path(__file__).resolve().parent.parent


# ---- help


def all_commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from all_commands(command, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", command


COMMANDS = dict(all_commands(typer.main.get_command(app)))


def test_the_commands_are_those_of_the_documentation() -> None:
    assert list(COMMANDS) == [
        "up", "down", "stop", "start", "scale", "status", "autoscaler", "nodes", "monitor",
        "submit", "dashboard", "heal", "clusters",
        "kill", "restart", "pause", "resume", "logs", "exec", "attach", "cp",
        "init", "topologies", "faults", "schedule", "experiments", "run", "chaos", "replay",
        "shrink", "check", "report", "runs", "doctor",
        "image build",
    ]  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_and_option_has_help(name: str) -> None:
    command = COMMANDS[name]
    assert len(command.help) > 20
    for parameter in command.params:
        assert parameter.help, f"{name} {parameter.name}"
    assert f"python -m simulator {name}" in command.epilog


def command_lines(text: str) -> list[list[str]]:
    """Every ``python -m simulator ...`` in a text, as words."""
    found = re.findall(r"python -m simulator ([^`\n#|(]*)", text)
    return [line.replace('"', "").replace("...", "").split() for line in found]


def documents() -> list[Path]:
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize(
    ("where", "text"),
    [
        *((name, command.epilog) for name, command in COMMANDS.items()),
        *((str(p.relative_to(ROOT)), p.read_text(encoding="utf-8")) for p in documents()),
    ],
)
def test_every_command_line_that_is_shown_exists(where: str, text: str) -> None:
    for words in command_lines(text):
        if not words or words[0].startswith("-"):
            continue
        name = " ".join(words[:2]) if words[0] == "image" else words[0]
        assert name in COMMANDS, f"{where}: {words}"
        options = {option for p in COMMANDS[name].params for option in p.opts} | {"--help"}
        end = words.index("--") if "--" in words else len(words)
        used = {word for word in words[:end] if word.startswith("--")}
        assert used <= options, f"{where}: {words}"


def test_every_make_target_that_is_shown_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    shown = {
        target
        for path in documents()
        for target in re.findall(r"(?:\$ |`)make ([a-z-]+)", path.read_text(encoding="utf-8"))
    }
    assert shown
    assert shown <= targets


def test_make_help_lists_every_target() -> None:
    makefile = (ROOT / "Makefile").read_text()
    phony = re.search(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert phony
    listed = subprocess.run(
        ["make", "--no-print-directory", "help"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    for target in set(phony[1].split()) - {"ready"}:
        assert re.search(rf"make {target} +\S", listed), target


def test_the_help_of_an_experiment_lists_its_parameters(command: Command) -> None:
    shown = command("run", "node_failure", "--help")
    assert shown.code == 0
    for words in ("max_retries", "true|false", "comes_back", "at least 0.05", "A worker dies"):
        assert words in shown.out
    assert "max_retries" not in command("run", "--help").out
    before = command("run", "--seed", "7", "--help", "node_failure")
    assert "max_retries" in before.out
    wrong = command("run", "node_failur", "--help")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean node_failure or head_failure?" in wrong.err


def test_help_loads_none_of_what_commands_need() -> None:
    program = (
        "import sys; from simulator.cli import main; main(['--help']); "
        "print(*sys.modules, sep='\\n', file=sys.stderr)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    loaded = set(done.stderr.split())
    assert "simulator.cli.clusters" in loaded
    heavy = {"docker", "python_on_whales", "requests", "yaml", "jinja2", "ray", "simulator.runner"}
    assert loaded & heavy == set()


def test_the_program_runs_as_a_module_and_says_its_version() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "simulator", "--version"], cwd=ROOT, capture_output=True, text=True,
        check=True,
    )  # fmt: skip
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", done.stdout)


# ---- wrong input


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "run node_failur",
            "no experiment named 'node_failur': did you mean node_failure or head_failure?",
        ),
        (
            "run ./nothing.py",
            "nothing.py: there is no such file; python -m simulator init writes one",
        ),
        ("run node_failure --param taks=5", "did you mean tasks"),
        ("run node_failure --param tasks", "is not key=value"),
        ("run node_failure --param tasks=many", "valid integer"),
        ("run node_failure --param victim=worker-9", "no worker named 'worker-9': did you mean"),
        ("run node_failure --topology defalt", "did you mean default?"),
        ("run node_failure --workers 1", "has 1 workers; one dies and another must take over"),
        ("run node_failure --set head.resource.CPU=2", "is not a known key"),
        ("run node_failure --set head.resources.CPU=-1", "cannot offer less than 0"),
        ("run node_failure --set head.resources.CPU=.inf", "cannot offer more than 1000000"),
        ("run node_failure --set head.resources.disk=.nan", "cannot offer more than 1000000"),
        ("run node_failure --set worker_groups.worker.max_replicas=null --workers 1001", "1000"),
        ("run node_failure --param at=.inf", "finite"),
        ("run node_failure --param at=1e300", "less than or equal to 86400"),
        ("run node_failure --param max_retries=99999999999999999999", "1000000"),
        ("run node_failure --param recovery_timeout=.nan", "finite"),
        ("run .", "is a directory; name a Python file in it"),
        ("up --topology .", "is a directory; name a YAML file in it"),
        ("check .", "is not a run directory"),
        ("run node_failure --health fats", "did you mean fast?"),
        ("run node_failure --backend dokcer", "is not known"),
        ("run node_failure --reuse lab --name two", "contradict each other"),
        ("run node_failure --repeat 0", "--repeat"),
        ("run node_failure --reuse nothing", "there is no cluster"),
        ("run", "Missing argument"),
        ("runn", "Did you mean"),
        ("run node_failure --sead 7", "No such option"),
        ("up --topology cpu_onyl", "did you mean cpu_only?"),
        ("up --workers -1", "--workers"),
        ("status --name lab", "there is no cluster; start one with: python -m simulator up"),
        ("status", "cluster: there is none; start one with: python -m simulator up"),
        ("kill worker-1", "cluster: there is none"),
        ("stop", "cluster: there is none"),
        ("start --name lab", "there is no cluster"),
        ("scale", "Missing argument"),
        ("scale worker", "worker: is not GROUP=N; for example worker=3"),
        ("scale worker=two", "worker=two: 'two' is no whole number of nodes"),
        ("scale worker=1.5", "'1.5' is no whole number of nodes"),
        ("scale worker=2", "cluster: there is none"),
        ("nodes", "cluster: there is none"),
        ("monitor", "cluster: there is none"),
        ("attach", "Missing argument"),
        ("attach worker-1", "cluster: there is none"),
        ("cp a", "Missing argument"),
        ("cp a worker-1:/tmp", "cluster: there is none"),
        ("exec head", "Missing argument"),
        ("down --all --name lab", "contradict each other"),
        ("check latest", "there is no run yet"),
        ("report nothing", "no run named 'nothing'"),
        (
            "doctor --topology nowhere",
            "no topology named 'nowhere': there is cpu_only, default, elastic, hybrid",
        ),
        ("run node_failure --junit /no/such/x.xml", "there is no folder /no/such"),
        ("report latest --junit .", "--junit .: is a folder"),
        ("image build --target tpu", "--target tpu: is not known"),
    ],
)
def test_wrong_input_is_said_and_is_exit_code_2(command: Command, line: str, said: str) -> None:
    done = command(*line.split())
    assert done.code == 2
    assert said in " ".join(done.err.split())
    assert done.out == ""


BAD_NAMES = ("", "a/b", "a b", "../x", "Upper", ".x", "-x", "x-", "ä", "a\n", "a" * 64)


@pytest.mark.parametrize("name", BAD_NAMES)
@pytest.mark.parametrize("start", [("up",), ("run", "node_failure")])
def test_a_name_that_no_cluster_can_have_is_refused_before_anything_starts(
    command: Command, backend: FakeBackend, tmp_path: Path, start: tuple[str, ...], name: str
) -> None:
    done = command(*start, f"--name={name}")
    assert done.code == 2
    assert "is no name for a cluster; use at most 63 of a-z" in done.err
    assert done.out == ""
    assert "starting" not in done.err
    assert backend.clusters() == []
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("name", ["a", "1a", "a_b", "a-1", "a" * 63])
def test_a_name_that_a_cluster_can_have_is_taken(command: Command, name: str) -> None:
    assert command("up", "--name", name).code == 0


RAISES = """
import sys
from simulator import Experiment, TaskStream

class Mine(Experiment):
    name = "mine"
    claim = "Nothing is lost."

    def workload(self, params):
        return {workload}

    def schedule(self, params, topology):
        return {schedule}
"""


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("import sys; sys.exit(3)", "mine.py: cannot be imported: SystemExit: 3 (line 1)"),
        (
            RAISES.format(workload="1 / 0", schedule="[]"),
            "mine.py: workload: raises ZeroDivisionError: division by zero (line 10)",
        ),
        (
            RAISES.format(workload="TaskStream()", schedule="params.nothing"),
            "mine.py: schedule: raises AttributeError",
        ),
        (
            RAISES.format(workload="TaskStream()", schedule="sys.exit(0)"),
            "mine.py: schedule: raises SystemExit: 0 (line 13)",
        ),
    ],
)
def test_an_experiment_that_raises_is_no_defect_of_ours(
    command: Command, backend: FakeBackend, tmp_path: Path, text: str, said: str
) -> None:
    (tmp_path / "mine.py").write_text(text)
    done = command("run", "./mine.py")
    assert (done.code, done.out) == (2, "")
    assert said in done.err
    assert "defect" not in done.err
    assert backend.clusters() == []
    assert not (tmp_path / "runs").exists()


def test_all_problems_of_a_command_line_are_said_at_once(command: Command) -> None:
    done = command(
        "run", "node_failure", "--param", "taks=5", "--param", "at=-1", "--topology", "defalt",
        "--health", "fats", "--backend", "dokcer", "--rpc-fault", "PushTusk fails 5%",
    )  # fmt: skip
    assert done.code == 2
    assert "6 problems:" in done.err
    for said in ("taks", "at", "defalt", "fats", "dokcer", "did you mean PushTask"):
        assert said in done.err


def test_all_problems_of_a_topology_file_are_said_at_once(command: Command, tmp_path: Path) -> None:
    path = tmp_path / "lab.yaml"
    path.write_text(
        """
        head: {resources: {CPU: 1.5}, gpuz: auto}
        worker_groups:
          - {group_name: head, replicas: -1}
          - {group_name: small, memory: 2x, replicas: 5, max_replicas: 2}
        """
    )
    done = command("up", "--topology", str(path))
    assert done.code == 2
    for said in ("gpuz", "whole amounts", "reserved", "replicas", '"2x"'):
        assert said in done.err
    assert command("clusters", "--json").data == []


def test_a_node_that_does_not_exist_is_named_with_the_nearest(command: Command) -> None:
    command("up")
    for verb in ("kill", "pause", "restart", "resume", "logs", "attach"):
        done = command(verb, "worker-11")
        assert done.code == 2
        assert "no node named 'worker-11': did you mean worker-1" in done.err
    assert "no node named 'haed': did you mean head?" in command("exec", "haed", "--", "ls").err


def test_several_clusters_must_be_told_apart(command: Command) -> None:
    command("up", "--name", "one")
    command("up", "--name", "two")
    done = command("status")
    assert done.code == 2
    assert "there are 2 clusters: one (fake), two (fake)" in done.err
    assert command("status", "--name", "two", "--json").data["cluster"] == "two"
    assert "did you mean two?" in command("status", "--name", "twoo").err


def test_what_has_no_nodes_is_no_cluster_to_be_told_apart_but_is_removed(
    command: Command, backend: FakeBackend
) -> None:
    command("up", "--name", "lab")
    command("up", "--name", "doctor-1")
    world = backend.world("doctor-1")
    for node in list(world.nodes.values()):
        world.remove(node)
    assert command("status", "--json").data["cluster"] == "lab"
    assert command("down", "--all").code == 0
    assert command("clusters", "--json").data == []


def test_a_name_on_two_backends_must_be_told_apart(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = fake(), another("other", fake())
    command = runner_of(capsys)
    use_backends(monkeypatch, first)
    command("up")
    use_backends(monkeypatch, first, second)
    taken = command("up", "--backend", "other")
    assert taken.code == 2
    assert "is taken by a cluster on the fake backend" in taken.err
    use_backends(monkeypatch, second)
    command("up")
    use_backends(monkeypatch, first, second)
    assert "say which with --backend" in command("status", "--name", "ray-sim").err
    assert command("status", "--backend", "other", "--json").data["backend"] == "other"


# ---- clusters by hand


def test_a_cluster_by_hand(command: Command) -> None:
    up = command("up", "--workers", "2", "--json")
    assert up.code == 0
    assert up.data["count"] == {"desired": 3, "running": 3, "alive": 3}
    assert "Backend: fake, for this test" in up.err
    assert "worker-2 joined after" in up.err

    assert command("kill", "worker-1").code == 0
    states = {n["name"]: n["state"] for n in command("status", "--json").data["nodes"]}
    assert states == {"head": "alive", "worker-1": "exited", "worker-2": "alive"}
    assert "3 desired, 2 running, 2 alive" in command("status").out

    again = command("kill", "worker-1")
    assert (again.code, again.out) == (2, "")
    assert "start it with: restart worker-1" in again.err
    assert command("restart", "worker-1").code == 0
    assert command("pause", "worker-2").code == 0
    assert command("status", "--json").data["nodes"][2]["state"] == "paused"
    assert command("resume", "worker-2").code == 0

    assert command("clusters", "--json").data[0]["cluster"] == "ray-sim"
    assert "by hand" in command("clusters").out
    assert command("down").code == 0
    assert command("clusters", "--json").data == []
    assert command("down").code == 0
    assert command("down", "--all").code == 0
    assert "nothing to do" in command("down", "--name", "ray-sim").err


def test_status_says_that_a_gpu_is_simulated(command: Command) -> None:
    command("up")
    assert "GPU simulated" in command("status").out
    assert "0/1 simulated" in command("status").out
    nodes = command("status", "--json").data["nodes"]
    assert {n["name"]: n["gpu"] for n in nodes}["head"] == "simulated"
    assert {n["name"]: n["gpu"] for n in nodes}["worker-1"] == "none"


def test_status_says_which_nodes_are_lean(command: Command) -> None:
    command("up", "--topology", "lean")
    out = command("status").out
    assert out.count("(lean)") == 3
    nodes = command("status", "--json").data["nodes"]
    assert [n["profile"] for n in nodes] == ["default", "lean", "lean", "lean"]


def test_up_again_starts_what_exited(command: Command) -> None:
    command("up")
    command("kill", "worker-3")
    again = command("up", "--json")
    assert again.data["count"]["alive"] == 4
    assert "ray-sim: starting worker-3" in again.err
    other = command("up", "--workers", "5")
    assert other.code == 2
    assert "take it down first" in other.err


def test_a_cluster_whose_nodes_do_not_join_is_taken_down_again(
    command: Command, backend: FakeBackend
) -> None:
    backend.never_joins("worker-2", times=3)
    done = command("up", "--timeout", "5")
    assert done.code == 4
    assert done.out == ""
    assert "missing worker-2" in done.err
    assert "--start-parallelism 1" in done.err
    assert backend.clusters() == []


def test_an_interrupted_up_leaves_nothing_and_says_so(
    command: Command, backend: FakeBackend
) -> None:
    backend.before("start", lambda: os.kill(os.getpid(), signal.SIGINT))
    done = command("up")
    assert done.code == 4
    assert "taking down what was started" in done.err
    assert done.err.endswith("interrupted by SIGINT: what was started is taken down again\n")
    assert backend.clusters() == []


def test_a_cluster_that_was_up_stays_when_a_node_does_not_come_back(
    command: Command, backend: FakeBackend
) -> None:
    command("up")
    command("kill", "worker-2")
    backend.never_joins("worker-2", times=3)
    assert command("up", "--timeout", "5").code == 4
    assert [c.name for c in backend.clusters()] == ["ray-sim"]


def test_a_machine_that_cannot_run_it_is_said_before_anything_starts(
    command: Command, backend: FakeBackend
) -> None:
    backend.checks = [Check("problem", "memory", "1 GB of 4 GB", "use fewer workers")]
    for line in (["up"], ["run", "node_failure"]):
        done = command(*line)
        assert done.code == 4
        assert "memory: 1 GB of 4 GB; use fewer workers" in done.err
        assert backend.clusters() == []
    assert not (Path("runs")).exists()


def test_one_cluster_that_cannot_be_removed_does_not_keep_the_others(
    command: Command, backend: FakeBackend
) -> None:
    command("up", "--name", "one")
    command("up", "--name", "two")
    backend.fail_next("remove", CannotRun("the engine is busy"))
    done = command("down", "--all")
    assert done.code == 4
    assert "the engine is busy" in done.err
    assert [c.name for c in backend.clusters()] == ["one"]


def test_logs_and_exec_give_the_node_s_own_words(command: Command, backend: FakeBackend) -> None:
    command("up")
    logs = command("logs", "worker-1")
    assert logs.code == 0
    assert logs.out.strip()
    last = command("logs", "worker-1", "--tail", "1").out
    assert last == logs.out.splitlines()[-1] + "\n"
    backend.answers["ray status -v"] = Completed(3, "three\n")
    done = command("exec", "head", "--", "ray", "status", "-v")
    assert (done.code, done.out) == (3, "three\n")


# ---- experiments


def test_experiments_are_listed_with_their_claims(command: Command) -> None:
    assert "no task is lost and no result is wrong" in command("experiments").out
    rows = command("experiments", "--json").data
    (row,) = [row for row in rows if row["name"] == "node_failure"]
    assert {p["name"] for p in row["params"]} >= {"tasks", "max_retries", "victim"}


def test_a_run_prints_one_object_and_nothing_else(command: Command, backend: FakeBackend) -> None:
    done = command("run", "node_failure", "--seed", "7", "--json", *SHORT)
    assert done.code == 0
    assert list(done.data) == [
        "experiment", "backend", "status", "verdict", "seed", "run_dir", "report", "topology",
        "ray_version", "health", "gpu", "findings", "recovery", "params", "rpc_faults", "losses",
    ]  # fmt: skip
    assert done.data["verdict"] == "valid"
    assert done.data["seed"] == 7
    assert done.data["gpu"] == "simulated"
    assert done.data["health"] == "fast"
    assert {frozenset(f) for f in done.data["findings"]} == {
        frozenset({"check", "verdict", "summary"})
    }
    assert all(name.endswith("_s") for name in done.data["recovery"])
    assert Path(done.data["report"]).is_file()
    assert backend.clusters() == []


def test_a_run_whose_orchestrator_is_gone_is_judged_when_its_report_is_asked_for(
    command: Command,
) -> None:
    assert command("run", "node_failure", *SHORT).code == 0
    run = Store().find("latest")
    (run.path / "result.json").unlink()
    lines = run.history_path.read_text().splitlines(keepends=True)
    run.history_path.write_text("".join(line for line in lines if '"run.end"' not in line))
    told = command("report", "latest")
    assert told.code == 0
    assert "judged as interrupted" in told.err
    result = run.result()
    assert result is not None
    assert (result["status"], result["verdict"]) == ("interrupted", "unknown")
    assert "judged" not in command("report", "latest").err


def test_a_run_ends_with_the_report_and_its_path(command: Command) -> None:
    done = command("run", "node_failure", "--seed", "7", *SHORT)
    assert done.code == 0
    assert "VALID" in done.out
    assert "report.html" in done.out
    for words in ("Backend: fake", "fault: kill", "healed worker", "taking the cluster down"):
        assert words in done.err
        assert words not in done.out


def test_the_replay_command_gives_the_same_plan(command: Command) -> None:
    first = command("run", "node_failure", "--json", "--workers", "4", *SHORT).data
    spec = json.loads((Path(first["run_dir"]) / "spec.json").read_text())
    words = shlex.split(spec["command"])
    assert words[:5] == ["python", "-m", "simulator", "run", "node_failure"]
    assert words[words.index("--seed") + 1] == str(first["seed"])
    again = command(*words[3:], "--json").data
    replayed = json.loads((Path(again["run_dir"]) / "spec.json").read_text())
    same = ("seed", "params", "topology", "schedule", "health", "backend", "command")
    assert {k: replayed[k] for k in same} == {k: spec[k] for k in same}


def test_lost_tasks_are_invalid_and_exit_code_1(command: Command, backend: FakeBackend) -> None:
    backend.lose_task("t-20")
    done = command("run", "node_failure", "--json", *SHORT)
    assert done.code == 1
    assert done.data["verdict"] == "invalid"


def test_a_fault_that_hit_no_work_is_unknown_and_exit_code_3(command: Command) -> None:
    done = command("run", "node_failure", "--json", "-p", "tasks=4", "-p", "at=60")
    assert done.code == 3
    assert done.data["verdict"] == "unknown"


def test_a_run_that_could_not_run_is_exit_code_4(command: Command, backend: FakeBackend) -> None:
    backend.never_joins("worker-1", times=3)
    done = command("run", "node_failure", "--json", *SHORT)
    assert done.code == 4
    assert done.data["status"] == "aborted"
    assert "missing worker-1" in done.err
    assert backend.clusters() == []


def test_repeats_print_runs_and_their_distribution(command: Command, tmp_path: Path) -> None:
    junit = tmp_path / "runs.xml"
    done = command(
        "run",
        "node_failure",
        "--repeat",
        "2",
        "--seed",
        "7",
        "--json",
        "--junit",
        str(junit),
        *SHORT,
    )
    assert done.code == 0
    assert list(done.data) == ["runs", "summary"]
    assert [r["seed"] for r in done.data["runs"]] == [7, 8]
    assert done.data["summary"]["verdicts"] == {"valid": 2, "unknown": 0, "invalid": 0}
    assert "run 2 of 2: valid, completed, seed 8" in done.err
    assert junit.read_text().count("<testsuite ") == 2
    commands = [
        json.loads((Path(r["run_dir"]) / "spec.json").read_text())["command"]
        for r in done.data["runs"]
    ]
    assert [c.split("--seed ")[1] for c in commands] == ["7", "8"]


def test_repeats_show_a_table(command: Command) -> None:
    done = command("run", "node_failure", "--repeat", "2", "--seed", "7", *SHORT)
    assert "2 runs: 2 valid" in done.out
    assert done.out.count("report.html") == 2


def test_a_kept_cluster_stays_and_can_be_run_on(command: Command, backend: FakeBackend) -> None:
    kept = command("run", "node_failure", "--keep", "--name", "lab", "--json", *SHORT)
    assert kept.code == 0
    assert "python -m simulator down --name lab" in kept.err
    assert [c.name for c in backend.clusters()] == ["lab"]
    taken = command("run", "node_failure", "--name", "lab", *SHORT)
    assert taken.code == 2
    assert "--reuse lab" in taken.err
    names = "\n".join(
        [
            "RAY_health_check_initial_delay_ms=1000",
            "RAY_health_check_period_ms=500",
            "RAY_health_check_timeout_ms=1000",
            "RAY_health_check_failure_threshold=3",
            "RAY_ray_syncer_message_refresh_interval_ms=500",
        ]
    )
    backend.answers["env"] = Completed(0, names)
    reused = command("run", "node_failure", "--reuse", "lab", "--json", *SHORT)
    assert reused.code == 0
    assert reused.data["health"] == "fast"
    assert [c.name for c in backend.clusters()] == ["lab"]
    other = command("run", "node_failure", "--reuse", "lab", "--health", "ray", *SHORT)
    assert other.code == 2
    assert "was started with --health fast" in other.err


def test_rpc_faults_are_set_for_a_cluster_and_said_of_its_runs(
    command: Command, backend: FakeBackend
) -> None:
    fault = "RequestWorkerLease fails 20%"
    said = "NodeManagerService.RequestWorkerLease fails 20%"
    command("up", "--name", "lab", "--rpc-fault", fault, "--rpc-fault", "Pull delays 5ms")
    env = backend.spec("lab").env
    assert json.loads(env["RAY_testing_rpc_failure"])
    assert env["RAY_testing_asio_delay_us"] == "ObjectManagerService.grpc_server.Pull=5000:5000"
    backend.answers["env"] = Completed(0, "\n".join(f"{k}={v}" for k, v in env.items()))
    done = command("run", "node_failure", "--reuse", "lab", "--json", *SHORT)
    assert done.data["rpc_faults"] == [said, "ObjectManagerService.Pull delays 5ms..5ms"]
    other = command("run", "node_failure", "--reuse", "lab", "--rpc-fault", fault, *SHORT)
    assert other.code == 2
    assert f"was started with --rpc-fault {said}" in other.err

    done = command("run", "node_failure", "--rpc-fault", fault, "--json", *SHORT)
    assert done.data["rpc_faults"] == [said]
    made = json.loads((Path(done.data["run_dir"]) / "spec.json").read_text())
    assert f"--rpc-fault {shlex.quote(fault)}" in made["command"]
    wrong = command("up", "--name", "other", "--rpc-fault", "PushTask fails 500%")
    assert wrong.code == 2
    assert "use 1% to 100%" in wrong.err


@pytest.mark.parametrize(
    ("verb", "node", "remedy"),
    [
        ("pause", "worker-1", "resume worker-1"),
        ("pause", "head", "resume head"),
        ("kill", "head", "start"),
    ],
)
def test_a_cluster_that_cannot_be_borrowed_is_refused_at_once(
    command: Command, tmp_path: Path, verb: str, node: str, remedy: str
) -> None:
    command("up", "--name", "lab", "--health", "fast")
    command(verb, node)
    done = command("run", "node_failure", "--reuse", "lab")
    assert done.code == 2
    assert f"first: python -m simulator {remedy} --name lab" in done.err
    assert not (tmp_path / "runs").exists()


def test_a_run_on_a_borrowed_cluster_reports_its_failure_detection(command: Command) -> None:
    command("up")
    done = command("run", "node_failure", "--reuse", "ray-sim", "--json", *SHORT)
    assert done.data["health"] == "ray"


# ---- runs


@pytest.fixture
def one_run(command: Command) -> Path:
    return Path(command("run", "node_failure", "--seed", "7", "--json", *SHORT).data["run_dir"])


def test_a_run_is_judged_again_from_its_directory(command: Command, one_run: Path) -> None:
    before = json.loads((one_run / "result.json").read_text())
    (one_run / "result.json").unlink()
    done = command("check", "latest", "--json")
    assert done.code == 0
    assert json.loads((one_run / "result.json").read_text()) == before
    assert "VALID" in command("check", one_run.name).out
    assert command("check", str(one_run), "--json").data["run_dir"] == str(one_run)


def test_a_damaged_result_is_made_again(command: Command, one_run: Path) -> None:
    before = command("check", "latest", "--json")
    (one_run / "result.json").write_text("[1")
    after = command("check", "latest", "--json")
    assert (after.code, after.data) == (before.code, before.data)
    assert json.loads((one_run / "result.json").read_text())["verdict"] == "valid"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{}", "lacks run_id, experiment, backend, seed, topology"),
        ('{"a":', "is not JSON"),
        ("null", "is not an object"),
        ("", "is not JSON"),
    ],
)
def test_a_spec_that_cannot_be_judged_by_is_said(
    command: Command, one_run: Path, text: str, said: str
) -> None:
    (one_run / "spec.json").write_text(text)
    done = command("check", str(one_run))
    assert (done.code, done.out) == (2, "")
    assert str(one_run / "spec.json") in done.err
    assert said in done.err


def test_a_history_that_is_cut_off_is_judged_up_to_there(command: Command, one_run: Path) -> None:
    lines = (one_run / "history.jsonl").read_text().splitlines()
    cut = len(lines) * 2 // 3
    (one_run / "history.jsonl").write_text("\n".join([*lines[:cut], lines[cut][:20]]))
    done = command("check", "latest")
    assert done.code == 4  # without its end it is an interrupted run
    assert f"line {cut + 1} of history.jsonl is cut off" in " ".join(done.out.split())
    assert command("check", "latest", "--json").data["verdict"] != "valid"


def test_an_empty_history_is_unknown_and_says_so(command: Command, one_run: Path) -> None:
    (one_run / "history.jsonl").write_text("")
    done = command("check", "latest")
    assert done.code == 4  # without its end it is an interrupted run
    assert "UNKNOWN" in done.out
    assert "history.jsonl is empty" in " ".join(done.out.split())


def test_a_directory_that_is_no_run_says_what_is_missing(command: Command, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for verb in ("check", "report"):
        done = command(verb, str(tmp_path / "folder"))
        assert (done.code, done.out) == (2, "")
        assert "is not a run directory: it has no spec.json and no history.jsonl" in done.err


def test_report_prints_its_path_and_nothing_else(
    command: Command, one_run: Path, tmp_path: Path
) -> None:
    (one_run / "report.html").unlink()
    done = command("report", "--junit", str(tmp_path / "x.xml"))
    assert done.code == 0
    assert done.out == f"{one_run / 'report.html'}\n"
    assert (one_run / "report.html").is_file()
    assert "<testsuite " in (tmp_path / "x.xml").read_text()


def test_runs_are_listed_damaged_ones_too(command: Command, one_run: Path) -> None:
    broken = one_run.parent / "20200101-000000-1"
    broken.mkdir()
    (broken / "spec.json").write_text("{")
    rows = command("runs", "--json").data
    assert [(r["run_id"], r["verdict"]) for r in rows] == [
        (broken.name, None), (one_run.name, "valid")
    ]  # fmt: skip
    shown = command("runs").out
    assert f"node_failure/{one_run.name}" in shown
    assert "not judged" in shown


# ---- this machine, and what nobody foresaw


def test_the_doctor_names_each_problem_and_its_remedy(
    command: Command, backend: FakeBackend
) -> None:
    assert command("doctor").code == 0
    backend.checks = [
        Check("ok", "engine", "answers"),
        Check("problem", "memory", "1 GB of 4 GB", "use fewer workers"),
    ]
    done = command("doctor")
    assert done.code == 4
    assert "cannot be used" in done.out
    assert "use fewer workers" in done.out
    assert command("doctor", "--json").data["able"] is False


def test_an_error_of_ours_is_exit_code_4_and_says_how_to_report_it(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "clusters", lambda: 1 / 0)
    done = command("clusters")
    assert done.code == 4
    assert "ZeroDivisionError" in done.err
    assert "report it" in done.err
    assert "Traceback" not in done.err
    (file,) = re.findall(r"stack trace is in (\S+);", done.err)
    assert "Traceback" in Path(file).read_text()
    Path(file).unlink()
    monkeypatch.setenv("RAY_SIM_DEBUG", "1")
    assert "Traceback" in command("clusters").err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no full device")
def test_a_file_that_cannot_be_written_is_no_defect(command: Command, one_run: Path) -> None:
    done = command("report", "--junit", "/dev/full")
    assert done.code == 4
    assert "cannot be written: No space left" in done.err
    assert "defect" not in done.err


def test_an_interrupted_command_is_exit_code_4(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted() -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "clusters", interrupted)
    assert command("clusters").code == 4


# ---- readers that leave, streams that are closed


def in_a_shell(line: str, runs: Path) -> subprocess.CompletedProcess[str]:
    """A command line of its own process, whose streams a shell can break."""
    return subprocess.run(
        ["bash", "-c", line.replace("SIM", f"{shlex.quote(sys.executable)} -m simulator")],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "RAY_SIM_RUNS": str(runs), "DOCKER_HOST": "unix:///nonexistent"},
        cwd=ROOT,
    )


#: Makes descriptor 3 a pipe whose reader has gone before anything is written.
UNREAD = "mkfifo {pipe}; (: <{pipe}) & exec 3>{pipe}; wait;"


@pytest.mark.parametrize(
    ("line", "code"),
    [("SIM check latest", 3), ("SIM check latest --json", 3), ("SIM --help", 0),
     ("SIM --version", 0), ("SIM run --repeat 0 2>&3", 2),
     ("SIM runs", 0), ("SIM runs --json", 0), ("SIM report latest", 0)],
)  # fmt: skip
def test_a_reader_that_leaves_does_not_change_the_exit_code(
    command: Command, tmp_path: Path, line: str, code: int
) -> None:
    command("run", "node_failure", "--param", "tasks=8", "--param", "at=60")
    unread = UNREAD.format(pipe=tmp_path / "pipe")
    done = in_a_shell(f"{unread} {line} >&3", tmp_path / "runs")
    assert (done.returncode, done.stdout) == (code, "")
    assert "error" not in done.stderr


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("SIM runs --json >&-", 0),
        ("SIM runs >&- 2>&-", 0),
        ("SIM check nothing >&- 2>&-", 2),
        ("SIM check nothing 2>&-", 2),
        ("SIM experiments > /dev/full", 4),
    ],
)
def test_closed_and_full_streams_are_no_defect(tmp_path: Path, line: str, code: int) -> None:
    done = in_a_shell(line, tmp_path)
    assert done.returncode == code
    assert "defect" not in done.stderr
    assert "Traceback" not in done.stderr


def test_progress_that_nobody_reads_ends_nothing(tmp_path: Path) -> None:
    unread = UNREAD.format(pipe=tmp_path / "pipe")
    done = in_a_shell(f"{unread} SIM runs 2>&3; echo $?", tmp_path)
    assert done.stdout == "0\n"
