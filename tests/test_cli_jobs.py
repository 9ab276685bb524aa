"""`submit` and `dashboard`: what goes to which stream, exit codes, wrong input, Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import webbrowser
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cli import Command
from fakes import cluster_up, fake

from simulator.backends.base import Endpoint
from simulator.backends.fake import FakeBackend
from simulator.backends.fake.ray import FakeRay, jobs_of
from simulator.cli.jobs import SubmitCommand
from simulator.rayapi import RayUnreachable


@pytest.fixture
def backend() -> FakeBackend:
    backend = fake()
    cluster_up(backend, "lab")
    return backend


@pytest.fixture
def command(command: Command) -> Command:
    Path("train.py").write_text("print('hello')\n")
    return command


# ---- submit


def test_the_job_s_words_and_exit_code_are_the_command_s(
    command: Command, backend: FakeBackend
) -> None:
    backend.job_prints("hello\n", "world\n", exit_code=7)
    done = command("submit", "train.py")
    assert (done.code, done.out) == (7, "hello\nworld\n")
    assert "failed with exit code 7 after" in done.err
    backend.job_prints("fine\n")
    done = command("submit", "train.py")
    assert (done.code, done.out) == (0, "fine\n")


def test_a_program_that_a_signal_ended_is_reported_as_a_shell_does(
    command: Command, backend: FakeBackend
) -> None:
    backend.job_prints(exit_code=-9)
    assert command("submit", "train.py").code == 137


def test_what_follows_the_script_is_the_script_s(command: Command, backend: FakeBackend) -> None:
    backend.job_prints()
    done = command(
        "submit", "--name", "lab", "train.py", "--epochs", "3", "--json", "-n", "two words"
    )
    (job,) = jobs_of(backend.world("lab")).values()
    assert shlex.split(job.entrypoint)[3:] == ["--epochs", "3", "--json", "-n", "two words"]
    assert "note: the script gets --json; options of submit stand before SCRIPT" in done.err
    assert done.out == ""


def test_json_is_one_object_and_the_job_s_words_go_to_the_other_stream(
    command: Command, backend: FakeBackend
) -> None:
    backend.job_prints("hello\n", exit_code=3)
    done = command("submit", "--json", "train.py")
    assert done.code == 3
    assert "hello\n" in done.err
    assert done.data.pop("job_id").startswith("train-")
    assert (done.data["status"], done.data["exit_code"]) == ("FAILED", 3)
    assert done.data["seconds"] == pytest.approx(2.0)


def test_without_waiting_it_prints_the_id_and_how_to_go_on(
    command: Command, backend: FakeBackend
) -> None:
    done = command("submit", "--no-wait", "train.py")
    (job_id,) = jobs_of(backend.world("lab"))
    assert (done.code, done.out) == (0, f"{job_id}\n")
    assert f"python -m simulator exec head -- ray job logs {job_id}" in done.err
    assert command("submit", "--no-wait", "--json", "train.py").data["status"] == "PENDING"


def test_the_runtime_env_and_the_folder_go_along(command: Command, backend: FakeBackend) -> None:
    backend.job_prints()
    Path("lib.py").write_text("x = 1\n")
    env = json.dumps({"env_vars": {"A": "1"}, "excludes": ["*.csv"]})
    done = command("submit", "--working-dir", ".", "--runtime-env", env, "train.py")
    (job,) = jobs_of(backend.world("lab")).values()
    assert job.runtime_env["env_vars"] == {"A": "1"}
    assert job.runtime_env["working_dir"].startswith("gcs://_ray_pkg_")
    assert "uploading 2 files" in done.err


def test_a_job_that_somebody_stops_is_exit_code_4(command: Command, backend: FakeBackend) -> None:
    def stop() -> None:
        for job in jobs_of(backend.world("lab")).values():
            job.end(backend.world("lab"), "STOPPED", "Job was intentionally stopped.")

    for arguments in ((), ("--json",)):
        backend.job_prints("begun\n", *["more\n"] * 50)
        backend.later(8.0, stop)
        done = command("submit", *arguments, "train.py")
        assert done.code == 4
        assert "was stopped: Job was intentionally stopped." in done.err
        assert "    begun" in done.err
    assert (done.data["status"], done.data["exit_code"]) == ("STOPPED", None)


def test_ctrl_c_asks_ray_to_stop_the_job_and_says_so(
    command: Command, backend: FakeBackend
) -> None:
    backend.job_prints(*["more\n"] * 50)
    backend.later(5.0, lambda: os.kill(os.getpid(), signal.SIGINT))
    done = command("submit", "train.py")
    assert done.code == 4
    assert "asking Ray to stop the job; Ctrl-C once more leaves at once" in done.err
    assert "was stopped" in done.err
    assert {j.status for j in jobs_of(backend.world("lab")).values()} == {"STOPPED"}


@pytest.mark.parametrize(("method", "said"), [
    ("put_package", "nothing was submitted"), ("job", "asking Ray to stop the job"),
])  # fmt: skip
def test_ctrl_c_at_any_moment_leaves_no_job_running(
    command: Command, backend: FakeBackend, method: str, said: str
) -> None:
    sent: list[int] = []

    def interrupt() -> None:
        if not sent:
            sent.append(os.getpid())
            os.kill(os.getpid(), signal.SIGINT)

    backend.job_prints(*["more\n"] * 50)
    backend.before(f"ray.{method}", interrupt)
    done = command("submit", "train.py")
    assert done.code == 4
    assert said in done.err
    assert {j.status for j in jobs_of(backend.world("lab")).values()} <= {"STOPPED"}


@pytest.fixture
def interrupted(monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], None]:
    """Ctrl-C right after the job was sent, which arrives or does not."""

    def interrupt(arrives: bool) -> None:
        real = FakeRay.submit

        def submit(*args: Any, **more: Any) -> None:
            if arrives:
                real(*args, **more)
            os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(FakeRay, "submit", submit)

    return interrupt


def test_ctrl_c_while_the_job_is_sent_stops_the_one_that_arrived(
    command: Command, backend: FakeBackend, interrupted: Callable[[bool], None]
) -> None:
    backend.job_prints(*["more\n"] * 50)
    interrupted(True)
    done = command("submit", "train.py")
    assert done.code == 4
    assert "had been submitted, and is " in done.err
    assert {j.status for j in jobs_of(backend.world("lab")).values()} == {"STOPPED"}


def test_ctrl_c_while_the_job_is_sent_says_what_is_not_known(
    command: Command, backend: FakeBackend, interrupted: Callable[[bool], None]
) -> None:
    interrupted(False)
    done = command("submit", "--name", "lab", "train.py")
    said = " ".join(done.err.split())
    assert done.code == 4
    assert "may have been submitted. If it runs, stop it with:" in said
    assert "python -m simulator exec head --name lab -- ray job stop train-" in said


@pytest.mark.timeout(60)
def test_ctrl_c_while_a_job_is_sent_that_is_over_at_once_comes_back(
    command: Command,
    backend: FakeBackend,
    interrupted: Callable[[bool], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(FakeRay, "stop_job", lambda ray, job_id: False)  # as of one that ended
    backend.job_prints("done\n")
    interrupted(True)
    done = command("submit", "train.py")
    assert done.code == 4
    assert "had been submitted, and is over" in done.err


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("submit", "Missing argument"),
        ("submit nothing.py", "nothing.py: there is no such file"),
        ("submit --working-dir nowhere train.py", "there is no such folder"),
        ("submit --runtime-env nowhere.yaml train.py", "there is no such file"),
        ("submit --working-dir '' train.py", "--working-dir: is empty; name a folder"),
        ("submit --runtime-env '' train.py", "--runtime-env: is empty; name a file"),
        ("submit ''", "SCRIPT: is empty"),
        ("submit --name other train.py", "no cluster named 'other': there is lab"),
        ("dashboard --name other", "no cluster named 'other': there is lab"),
    ],
)
def test_wrong_input_is_said_and_is_exit_code_2(command: Command, line: str, said: str) -> None:
    done = command(*shlex.split(line))
    assert (done.code, done.out) == (2, "")
    assert said in " ".join(done.err.split())


def test_all_that_is_wrong_is_said_at_once(command: Command) -> None:
    done = command("submit", "--runtime-env", '{"env_vars": {"A": 1}}', "nothing.py")
    assert "2 problems" in done.err


def test_without_a_head_nothing_is_submitted(command: Command, backend: FakeBackend) -> None:
    backend.kill("lab", "head")
    for line in (["submit", "train.py"], ["dashboard"]):
        done = command(*line)
        assert (done.code, done.out) == (4, "")
        assert "exited" in done.err


def test_the_note_knows_every_option_of_submit() -> None:
    from typer.main import get_command

    from simulator.cli import jobs
    from simulator.cli.app import app

    command = get_command(app).commands["submit"]  # type: ignore[attr-defined]
    assert isinstance(command, SubmitCommand)
    options = {o for p in command.params for o in p.opts if o.startswith("--")}
    assert options == set(jobs.OPTIONS)


# ---- dashboard


def test_the_dashboard_s_address_is_data_and_how_to_log_in_is_said(command: Command) -> None:
    done = command("dashboard")
    assert (done.code, done.out) == (0, "http://simulated.invalid\n")
    assert "python -m simulator dashboard --token" in done.err
    assert command("dashboard", "--json").data == {
        "cluster": "lab",
        "url": "http://simulated.invalid",
        "relayed": False,
    }


def test_the_token_is_printed_alone_and_only_when_asked_for(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backend, "endpoint", lambda name: Endpoint("http://x", "s3cret"))
    assert command("dashboard", "--token").out == "s3cret\n"
    assert command("dashboard", "--token", "--json").data == {"cluster": "lab", "token": "s3cret"}
    shown = [command("dashboard"), command("dashboard", "--json")]
    assert not any("s3cret" in done.out + done.err for done in shown)


@pytest.mark.parametrize("opens", [True, False])
def test_open_opens_the_browser_or_says_that_there_is_none(
    command: Command, monkeypatch: pytest.MonkeyPatch, opens: bool
) -> None:
    opened: list[str] = []

    def open_it(url: str) -> bool:
        opened.append(url)
        return opens

    monkeypatch.setattr(webbrowser, "open", open_it)
    done = command("dashboard", "--open")
    assert opened == ["http://simulated.invalid"]
    assert ("no browser could be opened" in done.err) is not opens


def test_an_address_that_leads_through_the_command_lasts_until_ctrl_c(
    command: Command, backend: FakeBackend, monkeypatch: pytest.MonkeyPatch
) -> None:
    slept: list[float] = []

    def sleep(seconds: float) -> None:
        slept.append(seconds)
        raise KeyboardInterrupt

    monkeypatch.setattr(backend, "endpoint", lambda name: Endpoint("http://x", "t", relayed=True))
    monkeypatch.setattr("simulator.cli.jobs.time.sleep", sleep)
    done = command("dashboard")
    assert (done.code, done.out, len(slept)) == (0, "http://x\n", 1)
    assert "leads through this command. Ctrl-C ends it" in done.err
    command("dashboard", "--token")
    assert len(slept) == 1


def test_a_head_that_does_not_answer_is_said(command: Command, backend: FakeBackend) -> None:
    backend.fail_next("ray.version", RayUnreachable("Ray does not answer at http://x"))
    done = command("dashboard")
    assert (done.code, done.out) == (4, "")
    backend.pause("lab", "head")
    assert "the head is paused. Resume it first: resume head" in command("dashboard").err
    backend.kill("lab", "head")
    assert "the head is exited. Start it first: start" in command("dashboard").err
