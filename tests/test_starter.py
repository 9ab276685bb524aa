"""What `init` writes works as it stands, and what `topologies` lists is what there is."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cli import Command, runner_of, use_backends
from fakes import fake

from simulator.starter import write_starter
from simulator.topology import LEAN_LACKS, known_topologies

FILES = ["my_experiment.py", "my_topology.yaml", "test_my_experiment.py"]
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture
def command(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> Command:
    monkeypatch.setenv("RAY_SIM_RUNS", str(tmp_path / "runs"))
    monkeypatch.chdir(tmp_path)
    use_backends(monkeypatch, fake())
    return runner_of(capsys)


def test_the_starter_s_own_tests_pass_in_an_empty_folder(tmp_path: Path) -> None:
    write_starter(tmp_path)
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    env = {"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(tmp_path)}
    done = subprocess.run(words, cwd=tmp_path, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "4 passed" in done.stdout


def test_the_starter_runs_as_it_is_from_anywhere(command: Command) -> None:
    written = command("init", "lab")
    assert written.out.splitlines() == [f"lab/{name}" for name in FILES]
    assert "python -m simulator run ./lab/my_experiment.py" in written.err
    done = command("run", "./lab/my_experiment.py", "--json")
    assert (done.code, done.data["verdict"]) == (0, "valid")
    assert done.data["topology"] == "my_topology"
    assert {f["check"] for f in done.data["findings"]} >= {"little_redone", "no_task_lost"}
    shown = command("run", "lab/my_experiment.py", "--help")
    assert "at_most" in shown.out
    assert command("run", "lab/my_experiment.py", "--param", "at_most=0").code == 1


def test_nothing_is_overwritten_and_all_that_is_in_the_way_is_named(command: Command) -> None:
    Path("my_topology.yaml").write_text("mine")
    Path("test_my_experiment.py").symlink_to("nowhere")
    done = command("init")
    assert (done.code, done.out) == (2, "")
    assert "2 problems" in done.err
    assert "my_topology.yaml: is there already" in done.err
    assert not Path("my_experiment.py").exists()
    assert Path("my_topology.yaml").read_text() == "mine"
    Path("a file").write_text("")
    assert "a file: is a file; name a folder" in command("init", "a file").err


@pytest.mark.parametrize(
    ("folder", "said"),
    [
        ("", "DIR: is empty; name a folder"),
        ("dangling", "dangling: is a link to nowhere, which does not exist; make that folder"),
        ("dangling/x", "dangling: is a link to nowhere, which does not exist; make that folder"),
        ("f.txt/x", "f.txt: is a file; name a folder"),
    ],
)
def test_what_can_be_no_folder_is_refused(command: Command, folder: str, said: str) -> None:
    Path("dangling").symlink_to("nowhere")
    Path("f.txt").write_text("")
    done = command("init", folder)
    assert (done.code, done.out) == (2, "")
    assert said in " ".join(done.err.split())


def test_the_commands_to_do_next_can_be_copied(command: Command) -> None:
    said = " ".join(command("init", "my $lab; 1").err.split())
    assert "run './my $lab; 1/my_experiment.py' #" in said
    assert "pytest 'my $lab; 1/test_my_experiment.py' #" in said


def test_what_cannot_be_written_leaves_nothing_behind(
    command: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Path.read_text

    def full(path: Path, encoding: str | None = None) -> str:
        if path.name == FILES[1]:
            raise OSError(28, "No space left on device", str(path))
        return read(path, encoding)

    monkeypatch.setattr(Path, "read_text", full)
    done = command("init", "lab")
    assert done.code == 4
    assert "No space left on device" in done.err
    assert list(Path("lab").iterdir()) == []


# ---- topologies


def test_the_topologies_are_listed_with_what_they_offer(command: Command) -> None:
    rows = {row["name"]: row for row in command("topologies", "--json").data}
    assert set(rows) == set(known_topologies())
    assert rows["hybrid"]["resources"] == {"CPU": 9.0, "GPU": 2.0, "ssd": 2.0}
    assert (rows["wide"]["nodes"], rows["wide"]["resources"]) == (17, {"CPU": 17.0})
    shown = command("topologies")
    assert shown.code == 0
    for name, row in rows.items():
        assert name in shown.out
        assert row["description"].split(",")[0][:30] in shown.out


def test_one_topology_is_shown_with_its_groups(command: Command) -> None:
    shown = command("topologies", "two_gpu").out
    assert "GPUs auto" in shown
    assert "server=2" in shown
    Path("mine.yaml").write_text(
        "worker_groups: [{group_name: fat, replicas: 2, memory: 2g, resources: {CPU: 4}}]\n"
    )
    shown = command("topologies", "mine.yaml").out
    assert "3 nodes, 9 CPU in all" in shown
    assert "2g" in shown
    data = command("topologies", "mine.yaml", "--json").data
    assert (data["name"], data["worker_groups"][0]["group_name"]) == ("mine", "fat")
    wrong = command("topologies", "hybird")
    assert (wrong.code, wrong.out) == (2, "")
    assert "did you mean hybrid?" in wrong.err


def test_a_lean_group_is_shown_as_such_with_what_it_lacks(command: Command) -> None:
    shown = " ".join(command("topologies", "lean").out.split())
    assert "worker (lean)" in shown
    assert shown.count(f"lean: {LEAN_LACKS}") == 1
    assert "(lean)" not in command("topologies", "default").out
