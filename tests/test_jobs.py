"""Programs as Ray jobs: what is packed, what is refused, and how a job is followed to its end."""

from __future__ import annotations

import json
import os
import socket
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fakes import cluster_up, fake

from simulator.backends.fake import FakeBackend
from simulator.backends.fake.ray import FakeRay, jobs_of, packages_of
from simulator.errors import BadInput
from simulator.jobs import (
    LEFT_OUT,
    JobLost,
    JobOutput,
    Program,
    Submitted,
    follow,
    pack,
    plan_program,
    read_runtime_env,
    submit,
    withdraw,
)
from simulator.rayapi import UPLOAD_LIMIT, Job, RayApi, RayUnreachable
from simulator.waiting import WaitTimeout


def write(root: Path, *names: str, **files: str) -> None:
    """Empty files of these names below a folder; a ``gitignore`` with this text."""
    for name, text in {
        **dict.fromkeys(names, ""),
        **{f".{k}": v for k, v in files.items()},
    }.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def packed(folder: Path, into: Path, script: str = "main.py", **more: object) -> set[str]:
    program = plan_program(script, working_dir=str(folder), runtime_env=more)
    with zipfile.ZipFile(pack(program, into).path) as archive:
        assert archive.testzip() is None
        return set(archive.namelist())


@pytest.fixture
def project(tmp_path: Path) -> Path:
    root = tmp_path / "project"
    write(root, "main.py", "lib/tool.py", "data/big")
    return root


@pytest.fixture
def into(tmp_path: Path) -> Path:
    folder = tmp_path / "into"
    folder.mkdir()
    return folder


# ---- what is packed


def test_without_a_working_directory_only_the_script_is_packed(project: Path, into: Path) -> None:
    program = plan_program(str(project / "main.py"), ["a b", "--fast"])
    assert program.entrypoint == "python -u main.py 'a b' --fast"
    with zipfile.ZipFile(pack(program, into).path) as archive:
        assert archive.namelist() == ["main.py"]


def test_the_working_directory_is_packed_without_what_no_node_needs(
    project: Path, into: Path
) -> None:
    write(
        project, ".git/config", "__pycache__/x.pyc", "lib/__pycache__/x.pyc", ".venv/a",
        "myenv/pyvenv.cfg", "myenv/lib/x.py", "lib/rows.csv", "lib/keep.csv", "lib/notes.txt",
        gitignore="*.csv\n/data/\n!keep.csv\n",
    )  # fmt: skip
    write(project / "lib", rayignore="*.txt\n")
    (project / "empty").mkdir()
    assert packed(project, into) == {
        ".gitignore", "main.py", "lib/.rayignore", "lib/tool.py", "lib/keep.csv", "empty/",
    }  # fmt: skip


def test_excludes_of_the_runtime_env_are_left_out(project: Path, into: Path) -> None:
    assert packed(project, into, excludes=["data", "*.txt"]) == {"main.py", "lib/tool.py"}


def test_a_nearer_ignore_file_has_the_last_word(project: Path, into: Path) -> None:
    write(project, "gone.log", "lib/kept.log", "lib/gone.log", gitignore="*.log\n")
    write(project / "lib", gitignore="!kept.log\n")
    assert {n for n in packed(project, into) if n.endswith(".log")} == {"lib/kept.log"}


def test_links_are_followed_but_not_in_circles(
    project: Path, into: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "again").symlink_to(project)
    (project / "lib" / "data").symlink_to(project / "data")
    (project / "nowhere").symlink_to(project / "missing")
    monkeypatch.chdir(project)  # a socket's path may not be long
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind("socket")
    assert packed(project, into) == {"main.py", "lib/tool.py", "data/big", "lib/data/big"}


def test_folders_that_link_to_each_other_are_followed_one_link_deep(
    project: Path, into: Path
) -> None:
    names = [f"f{n}" for n in range(12)]
    write(project, *(f"{name}/own" for name in names))
    for name in names:
        for other in set(names) - {name}:
            (project / name / f"to-{other}").symlink_to(project / other)
    found = packed(project, into)
    assert {f"{a}/to-{b}/own" for a in names for b in names if a != b} < found
    assert len(found) < 500  # and not one for each order in which 12 links may be followed


def test_two_links_to_one_folder_are_both_followed_behind_a_link_too(
    project: Path, into: Path, tmp_path: Path
) -> None:
    write(tmp_path / "store", "v1/big")
    (tmp_path / "store" / "latest").symlink_to("v1")
    (tmp_path / "store" / "stable").symlink_to("v1")
    (project / "store").symlink_to(tmp_path / "store")
    found = {name for name in packed(project, into) if name.startswith("store/")}
    assert found == {"store/v1/big", "store/latest/big", "store/stable/big"}


@pytest.mark.parametrize("line", ["!", "\\", "foo\\", "[z-a]"])
def test_a_line_that_is_no_pattern_is_skipped_in_a_file_and_refused_in_excludes(
    project: Path, into: Path, line: str
) -> None:
    write(project, gitignore=f"{line}\r\ndata\u2028x\n\ndata\n")
    assert packed(project, into) == {"main.py", "lib/tool.py", ".gitignore"}
    with pytest.raises(BadInput) as caught:
        plan_program("main.py", working_dir=str(project), runtime_env={"excludes": [line]})
    assert f"excludes: {line!r} is not a pattern" in str(caught.value)


@pytest.mark.parametrize("closed", ["iterdir", "is_dir", "is_file"])
def test_what_cannot_be_read_is_in_the_way_only_if_it_is_to_be_packed(
    project: Path, into: Path, monkeypatch: pytest.MonkeyPatch, closed: str
) -> None:
    usual = getattr(Path, closed)

    def refuse(path: Path) -> Any:  # as for a user who may not; root always may
        if "data" in path.parts[-2:]:
            raise PermissionError(13, "Permission denied")
        return usual(path)

    monkeypatch.setattr(Path, closed, refuse)
    with pytest.raises(BadInput, match="data: cannot be read: Permission denied; leave it out"):
        packed(project, into)
    assert packed(project, into, excludes=["data/"]) == {"main.py", "lib/tool.py"}
    write(project, gitignore="data\n")
    assert packed(project, into) == {"main.py", "lib/tool.py", ".gitignore"}


def test_the_same_content_has_the_same_name_and_any_change_another(
    project: Path, tmp_path: Path
) -> None:
    def name() -> str:
        folder = tmp_path / os.urandom(4).hex()
        folder.mkdir()
        return pack(plan_program("main.py", working_dir=str(project)), folder).name

    first = name()
    os.utime(project / "main.py", (1, 1))
    assert name() == first
    assert first.startswith("_ray_pkg_")
    (project / "lib" / "tool.py").rename(project / "lib" / "tools.py")
    renamed = name()
    (project / "main.py").write_text("print(2)")
    assert len({first, renamed, name()}) == 3


def test_what_is_too_large_is_refused_with_its_biggest_parts(project: Path, into: Path) -> None:
    (project / "data" / "big").write_bytes(os.urandom(3 * 1024**2))
    (project / "lib" / "weights").write_bytes(os.urandom(2 * 1024**2))
    program = plan_program("main.py", working_dir=str(project))
    with pytest.raises(BadInput) as caught:
        pack(program, into, limit=1024**2)
    said = str(caught.value)
    assert "is 5 MiB" in said
    assert "more than the 1 MiB that Ray takes" in said
    assert "data/ (3.0 MiB), lib/ (2.0 MiB), main.py (0.0 MiB)" in said
    assert ".rayignore" in said


def test_one_file_that_is_too_large_is_not_packed_to_its_end(project: Path, into: Path) -> None:
    (project / "data" / "big").write_bytes(os.urandom(8 * 1024**2))
    program = plan_program("main.py", working_dir=str(project))
    with pytest.raises(BadInput, match="more than the 1 MiB that Ray takes"):
        pack(program, into, limit=1024**2)
    assert sum(file.stat().st_size for file in into.iterdir()) < 3 * 1024**2


def test_a_name_that_no_archive_can_hold_is_refused(project: Path, into: Path) -> None:
    try:
        (project / os.fsdecode(b"caf\xe9")).touch()
    except OSError:
        pytest.skip("this file system has no such names")
    with pytest.raises(BadInput, match="has a name that is no UTF-8"):
        pack(plan_program("main.py", working_dir=str(project)), into)


def test_a_script_that_is_left_out_is_refused(project: Path, into: Path) -> None:
    write(project, gitignore="main.py\n")
    with pytest.raises(BadInput, match=r"main.py: is left out of .* by .gitignore"):
        pack(plan_program("main.py", working_dir=str(project)), into)


def test_the_limit_is_that_of_rays_dashboard() -> None:
    constants = pytest.importorskip("ray._private.ray_constants")
    assert constants.DASHBOARD_CLIENT_MAX_SIZE == UPLOAD_LIMIT


def test_what_is_always_left_out_is_what_ray_leaves_out() -> None:
    constants = pytest.importorskip("ray._private.ray_constants")
    assert set(constants.get_runtime_env_default_excludes()) == set(LEFT_OUT)


# ---- what is refused


def test_a_script_may_be_named_as_it_is_seen_from_here(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(project.parent)
    named = [
        plan_program(script, working_dir=folder).script
        for script, folder in (
            ("lib/tool.py", "project"),
            ("project/lib/tool.py", "project"),
            (str(project / "lib" / "tool.py"), "project"),
            ("./project/../project/lib/tool.py", str(project)),
        )
    ]
    assert named == ["lib/tool.py"] * 4
    assert plan_program("./project/lib/tool.py", working_dir=".").script == "project/lib/tool.py"


@pytest.mark.parametrize(
    ("script", "options", "said"),
    [
        ("nothing.py", {}, "nothing.py: there is no such file"),
        ("lib", {}, "lib: is a folder; name the script, and the folder with --working-dir"),
        ("nothing.py", {"working_dir": "lib"}, "nothing.py: there is no such file"),
        ("main.py", {"working_dir": "lib"}, "main.py: is not inside the working directory lib"),
        ("main.py", {"working_dir": "nowhere"}, "nowhere: there is no such folder"),
        ("main.py", {"working_dir": "main.py"}, "--working-dir main.py: is a file; name a folder"),
        ("main.py", {"working_dir": "s3://b/x.zip"}, "name it as working_dir in --runtime-env"),
        (
            "main.py",
            {"working_dir": ".", "runtime_env": {"working_dir": "."}},
            "--working-dir: stands in the runtime_env too",
        ),
        ("/main.py", {"runtime_env": {"working_dir": "s3://b/x.zip"}}, "is not a path inside"),
    ],
)
def test_what_cannot_run_is_said_before_anything_is_sent(
    project: Path,
    monkeypatch: pytest.MonkeyPatch,
    script: str,
    options: dict[str, object],
    said: str,
) -> None:
    monkeypatch.chdir(project)
    with pytest.raises(BadInput) as caught:
        plan_program(script, **options)  # type: ignore[arg-type]
    assert said in str(caught.value)


def test_a_working_directory_that_is_a_uri_is_rays_to_fetch() -> None:
    program = plan_program("src/train.py", runtime_env={"working_dir": "s3://b/x.zip"})
    assert program.folder is None
    assert (program.script, program.runtime_env) == (
        "src/train.py",
        {"working_dir": "s3://b/x.zip"},
    )


def test_a_runtime_env_is_read_from_json_and_from_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    env = {"env_vars": {"A": "1"}, "pip": ["emoji"]}
    Path("env.yaml").write_text("env_vars: {A: '1'}\npip: requirements.txt\n")
    Path("env.json").write_text(json.dumps(env))
    Path("requirements.txt").write_text("# what it needs\nemoji\n\n")
    assert read_runtime_env("env.yaml") == read_runtime_env("env.json") == env
    assert read_runtime_env(json.dumps(env)) == env


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{'a': 1}", "--runtime-env: is not JSON: "),
        ("nothing.yaml", "--runtime-env nothing.yaml: there is no such file"),
        (".", "is a folder"),
        ("list.yaml", "is not a mapping"),
        ("broken.yaml", "is neither YAML nor JSON"),
        ("", "--runtime-env: is empty"),
        ('{"a": ' + "[" * 100_000, "--runtime-env: is not JSON: is nested too deeply"),
        ("day.yaml", "day.yaml: conda: cannot be sent as JSON: Object of type date"),
        ("set.yaml", "set.yaml: conda: cannot be sent as JSON: Object of type set"),
        ("circle.yaml", "circle.yaml: conda: cannot be sent as JSON: Circular reference"),
        ('{"config": {"a": NaN}}', "config: cannot be sent as JSON: Out of range float"),
        ('{"config": "\\ud800"}', "config: cannot be sent as JSON: 'utf-8' codec can't encode"),
        ('{"env_vars": []}', "env_vars: is not a mapping"),
        ('{"env_vars": {"A": ["1"]}}', "env_vars.A: is a list, and Ray takes text only"),
        ('{"env_vars": {"": "1"}}', "env_vars: '' is not a variable's name"),
        ('{"env_vars": {"A=B": "1"}}', "env_vars: 'A=B' is not a variable's name"),
        ('{"env_vars": {"A\\u0000": "1"}}', "env_vars: 'A\\x00' is not a variable's name"),
        ('{"env_vars": {"A": "\\u0000"}}', "env_vars.A: holds a NUL"),
        ('{"pip": "latin.txt"}', "pip latin.txt: is not UTF-8"),
        ("date.yaml", "is neither YAML nor JSON; month must be in 1..12"),
        ('{"env_vars": {"A": 1}}', 'env_vars.A: is 1, and Ray takes text only; write "1"'),
        ('{"env_vars": ["A"]}', "env_vars: is not a mapping"),
        ('{"excludes": "data"}', "excludes: is not a list of patterns"),
        ('{"py_modules": ["./lib"]}', "'./lib' is on this machine, and is not uploaded"),
        ('{"pip": "missing.txt"}', "pip missing.txt: there is no such file"),
        ('{"conda": "missing.yml"}', "conda missing.yml: there is no such file"),
        ('{"working_dir": 7}', "working_dir: is not text"),
    ],
)
def test_what_is_wrong_with_a_runtime_env_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, said: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("list.yaml").write_text("[1]")
    Path("broken.yaml").write_text("{a: [")
    Path("day.yaml").write_text("conda: {a: 2020-01-01}")
    Path("set.yaml").write_text("conda: !!set {a}")
    Path("circle.yaml").write_text("conda: &it [*it]")
    Path("latin.txt").write_bytes(b"caf\xe9")
    Path("date.yaml").write_text("env_vars: {A: 2020-13-45}")
    with pytest.raises(BadInput) as caught:
        read_runtime_env(text)
    assert said in str(caught.value)


def test_what_a_program_of_ones_own_asks_for_must_be_json_too(project: Path) -> None:
    with pytest.raises(BadInput, match="runtime_env: config: cannot be sent as JSON"):
        plan_program(str(project / "main.py"), runtime_env={"config": {1, 2}})


def test_what_is_empty_is_said_to_be(project: Path) -> None:
    with pytest.raises(BadInput) as caught:
        plan_program("", working_dir="")
    assert [p.where for p in caught.value.problems] == ["SCRIPT", "--working-dir"]


def test_all_problems_of_a_runtime_env_are_said_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        read_runtime_env('{"env_vars": {"A": 1, "B": true}, "pip": "no.txt", "excludes": "x"}')
    assert len(caught.value.problems) == 4


# ---- submitted and followed, on the fake backend


@pytest.fixture
def backend() -> FakeBackend:
    return fake()


class Followed:
    """A job on the fake backend, followed: what it printed and how it ended."""

    def __init__(self, backend: FakeBackend, script: Path) -> None:
        self.backend = backend
        self.cluster = cluster_up(backend)
        self.program: Program = plan_program(str(script))
        self.said: list[str] = []
        self.printed = b""

    def __call__(self, stop: Callable[[], bool] = lambda: False) -> Job:
        submitted = submit(self.cluster.ray, self.program, job_id="j", say=self.said.append)
        return follow(
            self.cluster.ray,
            submitted,
            output=self.take,
            say=self.said.append,
            stop=stop,
            clock=self.cluster.clock,
        )

    def stop(self) -> None:
        self.cluster.ray.stop_job("j")

    def take(self, data: bytes) -> None:
        self.printed += data


@pytest.fixture
def followed(backend: FakeBackend, project: Path) -> Followed:
    return Followed(backend, project / "main.py")


def test_a_job_prints_exactly_what_its_program_prints(
    backend: FakeBackend, followed: Followed
) -> None:
    backend.job_prints("one\n", "two\rthree", "\nfour\n", every=0.7)
    job = followed()
    assert followed.printed == b"one\ntwo\rthree\nfour\n"
    assert (job.status, job.exit_code) == ("SUCCEEDED", 0)
    assert job.seconds == pytest.approx(1.0 + 3 * 0.7)


def test_what_a_job_printed_so_far_is_taken_without_waiting(
    backend: FakeBackend, followed: Followed
) -> None:
    """By whoever has other things to do than to follow it."""
    ray, clock = followed.cluster.ray, followed.cluster.clock
    backend.job_prints("one\n", "two\n", "three\n", every=2.0)
    submitted = submit(ray, followed.program, job_id="j")
    output = JobOutput(ray, submitted, followed.take)
    clock.sleep(1.5)
    began = clock.mono()
    output.catch_up(ray.job("j"))
    output.catch_up(ray.job("j"))
    assert followed.printed == b"one\n"
    backend.fail_next("ray.follow_job_log", RayUnreachable("broke"))
    clock.sleep(2.0)
    output.catch_up(ray.job("j"))  # breaks off, and loses nothing
    output.catch_up(ray.job("j"))
    assert followed.printed == b"one\ntwo\n"
    assert clock.mono() == began + 2.0
    clock.sleep(5.0)
    assert output.finish(ray.job("j"))
    output.hand_on_the_rest()
    assert followed.printed == b"one\ntwo\nthree\n"


def test_a_failed_program_is_no_error_of_ours(backend: FakeBackend, followed: Followed) -> None:
    backend.job_prints("so far\n", exit_code=7)
    job = followed()
    assert (job.status, job.exit_code, followed.printed) == ("FAILED", 7, b"so far\n")


def test_a_package_is_uploaded_once(backend: FakeBackend, followed: Followed) -> None:
    ray = followed.cluster.ray
    for job_id in ("a", "b"):
        submit(ray, followed.program, job_id=job_id)
    world = backend.world("c")
    (name,) = packages_of(world)
    assert {j.runtime_env["working_dir"] for j in jobs_of(world).values()} == {f"gcs://{name}"}
    assert [c.method for c in backend.calls].count("ray.put_package") == 1


@pytest.mark.parametrize("method", ["has_package", "put_package", "submit"])
def test_a_connection_that_breaks_once_costs_nothing(
    backend: FakeBackend, followed: Followed, method: str
) -> None:
    backend.fail_next(f"ray.{method}", RayUnreachable("closed without response"))
    submit(followed.cluster.ray, followed.program, job_id="a")
    assert list(jobs_of(backend.world("c"))) == ["a"]
    backend.fail_next(f"ray.{method}", RayUnreachable("closed without response"), times=2)
    write(followed.program.folder or Path(), "other.py")
    other = plan_program("other.py", working_dir=str(followed.program.folder))
    with pytest.raises(RayUnreachable):
        submit(followed.cluster.ray, other, job_id="b")


def test_a_job_whose_acceptance_was_lost_is_submitted_once(
    backend: FakeBackend, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = FakeRay.submit

    def lost(*args: Any, **more: Any) -> None:
        real(*args, **more)
        raise RayUnreachable("closed without response")

    monkeypatch.setattr(FakeRay, "submit", lost)
    assert submit(followed.cluster.ray, followed.program, job_id="a").job_id == "a"
    assert list(jobs_of(backend.world("c"))) == ["a"]


def test_an_id_that_is_taken_is_refused(followed: Followed) -> None:
    submit(followed.cluster.ray, followed.program, job_id="a")
    with pytest.raises(BadInput, match="job a: is known to this cluster already"):
        submit(followed.cluster.ray, followed.program, job_id="a")


def test_ids_say_the_script_and_differ() -> None:
    ids = {Program("src/my job.py").new_job_id() for _ in range(5)}
    assert len(ids) == 5
    assert all(i.startswith("my-job-") for i in ids)


def test_a_stopped_job_is_lost_and_says_why(backend: FakeBackend, followed: Followed) -> None:
    backend.job_prints("begun\n", *["more\n"] * 50)
    backend.later(6.0, followed.stop)
    with pytest.raises(JobLost, match="job j was stopped: Job was intentionally stopped") as lost:
        followed()
    assert lost.value.details[0] == "begun"
    assert lost.value.job is not None
    assert lost.value.job.status == "STOPPED"


def test_who_asks_to_stop_it_sees_it_to_its_end(backend: FakeBackend, followed: Followed) -> None:
    backend.job_prints(*[f"{n}\n" for n in range(50)])
    with pytest.raises(JobLost, match="was stopped"):
        followed(stop=lambda: b"3\n" in followed.printed)
    assert followed.printed.startswith(b"0\n1\n2\n3\n")
    assert [c.method for c in backend.calls].count("ray.stop_job") == 1


def test_a_job_that_is_being_set_up_is_asked_to_stop_until_it_can(
    backend: FakeBackend, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.job_prints(*["more\n"] * 50)
    real = FakeRay.stop_job
    asked: list[str] = []

    def not_yet(ray: FakeRay, job_id: str) -> bool:
        asked.append(job_id)
        return len(asked) > 2 and real(ray, job_id)

    monkeypatch.setattr(FakeRay, "stop_job", not_yet)
    with pytest.raises(JobLost, match="was stopped"):
        followed(stop=lambda: True)
    assert asked == ["j"] * 3


def test_a_job_that_is_withdrawn_is_asked_to_stop_until_it_can(
    backend: FakeBackend, followed: Followed, monkeypatch: pytest.MonkeyPatch
) -> None:
    backend.job_prints(*["more\n"] * 50)
    submit(followed.cluster.ray, followed.program, job_id="j")
    real = FakeRay.stop_job
    asked: list[str] = []

    def not_yet(ray: FakeRay, job_id: str) -> bool:
        asked.append(job_id)
        return len(asked) > 20 and real(ray, job_id)

    monkeypatch.setattr(FakeRay, "stop_job", not_yet)
    backend.fail_next("ray.job", RayUnreachable("hush"), times=3)
    assert withdraw(followed.cluster.ray, "j", clock=followed.cluster.clock) is not None
    assert jobs_of(backend.world("c"))["j"].status == "STOPPED"
    assert withdraw(followed.cluster.ray, "other", clock=followed.cluster.clock) is None


def test_a_job_that_never_ran_has_no_exit_code(backend: FakeBackend, followed: Followed) -> None:
    trace = "".join(f"  frame {n}\n" for n in range(40))
    backend.job_ends("FAILED", f"runtime_env setup failed\n{trace}pip: no such package\n")
    with pytest.raises(JobLost, match="not come to an end of its own: runtime_env setup") as lost:
        followed()
    assert followed.printed == b""
    assert len(lost.value.details) == 10
    assert lost.value.details[-1] == "pip: no such package"


def test_what_a_pending_job_waits_for_is_said_once(
    backend: FakeBackend, followed: Followed
) -> None:
    backend.job_never_starts()
    backend.later(20.0, followed.stop)
    with pytest.raises(JobLost):
        followed()
    assert followed.said == ["Job has not started yet."]


def test_a_short_silence_of_ray_costs_nothing(backend: FakeBackend, followed: Followed) -> None:
    backend.job_prints("a\n", "b\n", "c\n", every=3.0)
    backend.later(4.0, lambda: backend.fail_next("ray.job", RayUnreachable("hush"), times=20))
    assert followed().exit_code == 0
    assert followed.printed == b"a\nb\nc\n"
    assert followed.said == ["hush; waiting up to 30 s"]


def test_a_log_that_breaks_off_is_read_on_where_it_was(
    backend: FakeBackend, followed: Followed
) -> None:
    backend.job_prints(*[f"{n}\n" for n in range(8)])
    backend.later(
        3.2, lambda: backend.fail_next("ray.follow_job_log", RayUnreachable("broke"), times=2)
    )
    followed()
    assert followed.printed == b"".join(b"%d\n" % n for n in range(8))


def test_a_log_that_died_with_its_node_is_said_and_the_job_s_end_is_told(
    backend: FakeBackend, followed: Followed
) -> None:
    backend.job_prints("done\n", exit_code=3)
    backend.fail_next("ray.follow_job_log", RayUnreachable("no such node"), times=99)
    backend.fail_next("ray.read_job_log", RayUnreachable("no such node"), times=99)
    assert followed().exit_code == 3
    assert followed.said == ["the end of the job's log cannot be read: its node is gone"]


def test_a_log_that_only_ray_s_silence_kept_is_read_when_ray_is_back(
    backend: FakeBackend, followed: Followed
) -> None:
    def hush() -> None:
        if not silenced:
            silenced.append(True)
            backend.fail_next("ray.read_job_log", RayUnreachable("hush"))
            backend.fail_next("ray.job", RayUnreachable("hush"), times=9)

    silenced: list[bool] = []
    backend.before("ray.read_job_log", hush)
    backend.job_prints("one\n", "two\n")
    backend.fail_next("ray.follow_job_log", RayUnreachable("broke"), times=99)
    assert followed().exit_code == 0
    assert followed.printed == b"one\ntwo\n"
    assert followed.said == ["hush; waiting up to 30 s"]


def test_who_has_not_the_time_leaves_the_job_to_go_on(
    backend: FakeBackend, followed: Followed
) -> None:
    backend.job_prints(*["more\n"] * 9)
    submitted = submit(followed.cluster.ray, followed.program, job_id="j")
    with pytest.raises(WaitTimeout, match="the end of job j did not happen within 4 s: it is RUN"):
        follow(
            followed.cluster.ray,
            submitted,
            output=followed.take,
            clock=followed.cluster.clock,
            timeout=4,
        )
    assert followed.printed.startswith(b"more\n")
    assert jobs_of(backend.world("c"))["j"].status == "RUNNING"


def test_a_head_that_is_gone_takes_its_jobs_along(backend: FakeBackend, followed: Followed) -> None:
    backend.job_prints(*["more\n"] * 500)
    backend.later(5.0, lambda: backend.kill("c", "head"))
    with pytest.raises(JobLost, match="job j is lost from sight: Ray does not answer") as lost:
        followed()
    assert "more" in lost.value.details


def test_a_head_that_came_back_knows_no_earlier_job(
    backend: FakeBackend, followed: Followed
) -> None:
    backend.job_prints(*["more\n"] * 500)
    backend.later(5.0, lambda: backend.kill("c", "head"))
    backend.later(6.0, lambda: backend.start("c", "head"))
    with pytest.raises(JobLost, match="Ray knows of no job j: its head was started anew"):
        followed()


# ---- what Ray's log holds beside the program's words


class Scripted:
    """A Ray whose job is over at the second look, with this log."""

    def __init__(self, log: bytes, job: Job, *, stream: bytes = b"") -> None:
        self.log, self.jobs, self.stream = (
            log,
            [Job("j", "RUNNING", "", driver_node="n"), job],
            stream,
        )

    def job(self, job_id: str) -> Job:
        return self.jobs.pop(0) if len(self.jobs) > 1 else self.jobs[0]

    def follow_job_log(self, job: Job) -> Scripted:
        return self

    def read(self, wait: float) -> bytes:
        if not self.stream:
            raise RayUnreachable("broke off")
        first, self.stream = self.stream[:5], self.stream[5:]
        return first

    def close(self) -> None:
        pass

    def read_job_log(self, job: Job) -> list[bytes]:
        return [self.log[i : i + 7] for i in range(0, len(self.log), 7)]


def handed_on(ray: Scripted) -> bytes:
    got: list[bytes] = []
    real: RayApi = ray  # type: ignore[assignment]
    follow(real, Submitted("j", "python -u x.py"), output=got.append, clock=fake().simulated_clock)
    return b"".join(got)


MANAGER = b"2026-01-01 10:00:00,123\tINFO job_manager.py:581 -- Runtime env is setting up.\n"
ANNOUNCED = b"Running entrypoint for job j: python -u x.py\n"
DONE = Job("j", "SUCCEEDED", "", exit_code=0, driver_node="n")


@pytest.mark.parametrize("seen", range(0, 170, 9))
@pytest.mark.parametrize(
    "log",
    [
        MANAGER + ANNOUNCED + b"hello\r\n\xff\xfe world",
        # The program may be quicker than the line that announces it, and in the middle of its own.
        MANAGER + b"hello\r\n\xff" + ANNOUNCED + b"\xfe world",
        ANNOUNCED + b"hello\r\n\xff\xfe world",
    ],
    ids=["first", "late", "elsewhere"],
)
def test_ray_s_own_lines_are_not_the_program_s_wherever_the_stream_breaks(
    log: bytes, seen: int
) -> None:
    assert handed_on(Scripted(log, DONE, stream=log[:seen])) == b"hello\r\n\xff\xfe world"


@pytest.mark.parametrize(
    "words", [b"2026", b"2026-01-01 10:00:00,123 INFO mine\n", b"Running", b""]
)
def test_words_that_look_like_ray_s_are_the_program_s(words: bytes) -> None:
    assert handed_on(Scripted(MANAGER + ANNOUNCED + words, DONE)) == words
    assert handed_on(Scripted(MANAGER + words + ANNOUNCED, DONE)) == words


def test_a_ray_that_announces_it_in_other_words_loses_nothing() -> None:
    assert handed_on(Scripted(b"Starting j\nhello\n", DONE)) == b"Starting j\nhello\n"
