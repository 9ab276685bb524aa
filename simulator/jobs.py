"""Runs a program of the user's as a Ray job: packs it, submits it, follows it to its end.

What is packed is what Ray's own client would pack: a zip file that is named by its content, so that
the same folder is uploaded once, and of which Ray makes the job's working directory on every node. The
orchestrator imports no Ray, so the rules are written down here again, each with where it stands in Ray.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import shlex
import stat
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import Any

from pathspec import GitIgnoreSpec

from simulator.errors import BadInput, CannotRun, Problem
from simulator.rayapi import UPLOAD_LIMIT, Job, JobLog, NoSuchJob, RayApi, RayUnreachable
from simulator.waiting import Clock, Deadline, RealClock, T, WaitTimeout
from simulator.yamltext import NotYaml, read_yaml

#: Never part of a package, as in Ray (RAY_RUNTIME_ENV_DEFAULT_EXCLUDES); nor is a folder that has a
#: pyvenv.cfg, however it is called: the nodes have a Python of their own.
LEFT_OUT = (".git", "__pycache__", ".venv", "venv")
_VENV = "pyvenv.cfg"

#: Files that say what else to leave out, in every folder (Ray's get_excludes_from_ignore_files).
IGNORE_FILES = (".gitignore", ".rayignore")

#: How often a job is asked how it stands, seconds.
POLL_S = 0.5

#: How long a job may be pending before it is said what it waits for, seconds.
PENDING_S = 3.0

#: How long Ray may be silent before a job is given up, seconds: as long as a head takes to restart.
PATIENCE_S = 30.0

#: How long to look for a job whose submission was interrupted, seconds.
WITHDRAW_S = 2.0

#: What most likely happened where nothing was given.
_UNSET = "is a shell variable not set?"

_URI = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_MIB = 1024**2


# -- what is to run --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Program:
    """A program as it is to run.

    Attributes
    ----------
    script
        Its path in the job's working directory.
    folder
        What is packed as the job's working directory; None if the runtime_env names a URI for it.
    only_script
        Whether nothing but the script is packed.
    excludes
        Patterns, as in .gitignore, of what is not packed.
    """

    script: str
    arguments: Sequence[str] = ()
    runtime_env: Mapping[str, Any] = field(default_factory=dict)
    folder: Path | None = None
    only_script: bool = False
    excludes: Sequence[str] = ()

    @property
    def entrypoint(self) -> str:
        """Its command line, unbuffered: what it prints is to be seen when it prints it."""
        return shlex.join(["python", "-u", self.script, *self.arguments])

    def new_job_id(self) -> str:
        """An id for a job that runs it: the script's name and some hex digits."""
        stem = re.sub(r"[^A-Za-z0-9_-]+", "-", PurePosixPath(self.script).stem)
        return f"{stem.strip('-')[:40] or 'job'}-{secrets.token_hex(4)}"


def read_runtime_env(text: str) -> Mapping[str, Any]:
    """A runtime_env from a YAML or JSON file, or from JSON itself.

    Files that pip, uv and conda entries name are read here, as Ray's client does: they are on this
    machine and not on the nodes.

    Raises
    ------
    BadInput
        Lists every problem.
    """
    where = "--runtime-env"
    if not text.strip():
        raise BadInput(Problem(where, "is empty", f"name a file, or give JSON; {_UNSET}"))
    if text.lstrip().startswith("{"):
        try:
            data = json.loads(text)
        except ValueError as error:
            raise BadInput(Problem(where, f"is not JSON: {error}")) from None
        except RecursionError:
            raise BadInput(Problem(where, "is not JSON: is nested too deeply")) from None
    else:
        where = f"{where} {text}"
        data = _yaml_file(Path(text), where)
    if not isinstance(data, dict):
        raise BadInput(
            Problem(where, "is not a mapping", 'it needs keys such as {"env_vars": {"A": "1"}}')
        )
    env: Mapping[str, Any] = data
    problems = list(_env_problems(env, where))
    for key in ("pip", "uv", "conda"):
        try:
            env = _with_files_read(env, key, where)
        except BadInput as error:
            problems.extend(error.problems)
    _raise(problems or list(_json_problems(env, where)))
    return env


def _json_problems(env: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """What YAML and Python can hold, and JSON, as which it is sent to Ray, cannot."""
    for key, value in env.items():
        try:
            json.dumps({key: value}, allow_nan=False, ensure_ascii=False).encode()
        except (TypeError, ValueError, RecursionError) as error:
            yield Problem(
                f"{where}: {key!s}".encode(errors="replace").decode(),
                f"cannot be sent as JSON: {error}",
                "use text, numbers, true and false, lists and mappings",
            )


def _yaml_file(path: Path, where: str) -> Any:
    if path.is_dir():
        raise BadInput(Problem(where, "is a folder", "name a YAML or JSON file, or give JSON"))
    if not path.is_file():
        raise BadInput(
            Problem(where, "there is no such file", "name a YAML or JSON file, or give JSON: {...}")
        )
    try:
        return read_yaml(path.read_bytes())
    except NotYaml as error:
        raise BadInput(Problem(where, "is neither YAML nor JSON", str(error))) from None
    except OSError as error:
        raise BadInput(Problem(where, f"cannot be read: {error.strerror}")) from None


def _env_problems(data: Mapping[str, Any], where: str) -> Iterator[Problem]:
    """What Ray would refuse after the upload, or take in silence and never find on its nodes."""
    variables = {} if data.get("env_vars") is None else data["env_vars"]
    if not isinstance(variables, dict):
        yield Problem(f"{where}: env_vars", "is not a mapping", 'such as {"A": "1"}')
    else:
        for name, value in variables.items():
            yield from _variable_problems(name, value, f"{where}: env_vars")
    excludes = [] if data.get("excludes") is None else data["excludes"]
    if not (isinstance(excludes, list) and all(isinstance(e, str) for e in excludes)):
        yield Problem(f"{where}: excludes", "is not a list of patterns", 'such as ["*.csv"]')
    folder = data.get("working_dir")
    if folder is not None and not isinstance(folder, str):
        yield Problem(f"{where}: working_dir", "is not text", "name a folder, or a URI")
    modules = [] if data.get("py_modules") is None else data["py_modules"]
    if not isinstance(modules, list):
        yield Problem(f"{where}: py_modules", "is not a list", "of URIs")
        return
    for module in modules:
        if not (isinstance(module, str) and _URI.match(module)):
            yield Problem(
                f"{where}: py_modules",
                f"{module!r} is on this machine, and is not uploaded",
                "put it below the working directory, or name a URI",
            )


def _variable_problems(name: Any, value: Any, where: str) -> Iterator[Problem]:
    if not isinstance(name, str):
        yield Problem(where, f"the name {name!r} is not text", "write it in quotation marks")
    elif not name or "=" in name or "\0" in name:
        yield Problem(where, f"{name!r} is not a variable's name", "such as MY_VARIABLE")
    elif isinstance(value, str):
        if "\0" in value:
            yield Problem(f"{where}.{name}", "holds a NUL, which no variable can")
    elif isinstance(value, (dict, list, tuple, set)):
        yield Problem(
            f"{where}.{name}", f"is a {type(value).__name__}, and Ray takes text only", "write text"
        )
    else:
        shown = json.dumps(value, default=str)
        yield Problem(
            f"{where}.{name}",
            f"is {shown}, and Ray takes text only",
            f'write "{str(value).strip()}" in quotation marks',
        )


def _with_files_read(data: Mapping[str, Any], key: str, where: str) -> Mapping[str, Any]:
    named = data.get(key)
    if not isinstance(named, str):
        return data
    path = Path(named)
    if key == "conda":
        if path.suffix not in (".yaml", ".yml"):
            return data  # the name of an environment that the nodes have
        return {**data, key: _yaml_file(path, f"{where}: {key} {named}")}
    if not path.is_file():
        raise BadInput(
            Problem(
                f"{where}: {key} {named}", "there is no such file", "or give a list of packages"
            )
        )
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BadInput(
            Problem(f"{where}: {key} {named}", f"cannot be read: {error.strerror}")
        ) from None
    except UnicodeDecodeError as error:
        raise BadInput(
            Problem(f"{where}: {key} {named}", f"is not UTF-8: {error}", "save it as UTF-8")
        ) from None
    lines = (line.strip() for line in text.splitlines())
    return {**data, key: [line for line in lines if line and not line.startswith("#")]}


def plan_program(
    script: str,
    arguments: Sequence[str] = (),
    *,
    working_dir: str | None = None,
    runtime_env: Mapping[str, Any] | None = None,
) -> Program:
    """What to pack, and how to call it.

    Parameters
    ----------
    script
        A Python file: by its path here, or by its path inside the working directory.
    working_dir
        The folder that the job sees as its current one; without it, only the script is shipped. A
        ``working_dir`` of the runtime_env is the same.

    Raises
    ------
    BadInput
        Lists every problem.
    """
    env = dict(runtime_env or {})
    excludes = tuple(env.pop("excludes", None) or ())
    in_env = env.pop("working_dir", None)
    problems = [
        Problem(
            "runtime_env: excludes", f"{pattern!r} is not a pattern", "write it as in .gitignore"
        )
        for pattern in excludes
        if not _is_pattern(pattern)
    ]
    if working_dir is not None and in_env is not None:
        problems.append(
            Problem("--working-dir", "stands in the runtime_env too", "leave one of them out")
        )
    where = "--working-dir" if working_dir is not None else "runtime_env: working_dir"
    folder = working_dir if working_dir is not None else in_env
    problems.extend(_json_problems(env, "runtime_env"))
    path = Path(script)
    if not script:
        problems.append(Problem("SCRIPT", "is empty", f"name a Python script; {_UNSET}"))
    if folder == "":
        problems.append(Problem(where, "is empty", f"name a folder; {_UNSET}"))
    if not script or folder == "":
        _raise(problems)
    if folder is not None and _URI.match(folder):
        if where == "--working-dir":
            problems.append(
                Problem(where, f"{folder} is a URI", "name it as working_dir in --runtime-env")
            )
        if path.is_absolute():
            problems.append(Problem(script, "is not a path inside the working directory"))
        _raise(problems)
        return Program(path.as_posix(), arguments, {**env, "working_dir": folder})
    if folder is None:
        problems.extend(_script_problems(path, script))
        _raise(problems)
        return Program(path.name, arguments, env, path.absolute().parent, only_script=True)
    root = Path(folder)
    if not root.is_dir():
        what = "is a file" if root.exists() else "there is no such folder"
        problems.append(Problem(f"{where} {folder}", what, "name a folder"))
        _raise(problems)
    inside = _inside(path, root)
    if inside is None:
        problems.extend(_script_problems(path, script) or [_outside(script, folder)])
    _raise(problems)
    assert inside is not None
    return Program(inside.as_posix(), arguments, env, root.absolute(), excludes=excludes)


def _inside(path: Path, root: Path) -> Path | None:
    """Where a script is below the working directory; None if it is not, or is no file."""
    if not path.is_absolute() and ".." not in path.parts and (root / path).is_file():
        return path
    if path.is_file():
        with suppress(ValueError):
            return path.resolve().relative_to(root.resolve())
    return None


def _script_problems(path: Path, script: str) -> list[Problem]:
    if path.is_dir():
        return [
            Problem(script, "is a folder", "name the script, and the folder with --working-dir")
        ]
    if not path.is_file():
        return [Problem(script, "there is no such file", "name a Python script")]
    return []


def _outside(script: str, folder: str) -> Problem:
    return Problem(
        script, f"is not inside the working directory {folder}", "name a folder that holds it"
    )


def _raise(problems: Sequence[Problem]) -> None:
    if problems:
        raise BadInput(problems)


# -- packing ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Package:
    """A packed working directory: a zip file, and the name by which Ray knows its content."""

    path: Path
    name: str
    files: int
    size: int

    @property
    def uri(self) -> str:
        return f"gcs://{self.name}"


def pack(program: Program, into: Path, *, limit: int = UPLOAD_LIMIT) -> Package:
    """Write a program's working directory as a zip file into a folder.

    The same content gives the same name, whenever and wherever it is packed.

    Raises
    ------
    BadInput
        The script is left out by what says what to leave out, or it is all too large: says how
        large, and which parts are.
    """
    assert program.folder is not None
    root = program.folder
    if program.only_script:
        entries = [(program.script, root / program.script)]
    else:
        entries = sorted(_entries(root, GitIgnoreSpec.from_lines(program.excludes)))
        if program.script not in {name for name, _ in entries}:
            raise BadInput(
                Problem(
                    program.script,
                    f"is left out of {root} by {', '.join(IGNORE_FILES)} or excludes",
                    "let them take it in (!name), or name another script",
                )
            )
    target = into / "package.zip"
    digest = hashlib.sha256()

    def refuse_too_large() -> None:
        if target.stat().st_size > limit:
            raise _too_large(root, entries, limit)

    with zipfile.ZipFile(target, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in entries:
            try:
                _add(archive, digest, name, path, refuse_too_large)
            except OSError as error:
                raise _unreadable(path, error) from None
            except UnicodeEncodeError:
                what = "has a name that is no UTF-8"
                raise BadInput(
                    Problem(repr(str(path)), what, "rename it, or leave it out")
                ) from None
    refuse_too_large()  # now with the table of contents
    size = target.stat().st_size
    name = f"_ray_pkg_{digest.hexdigest()[:40]}.zip"
    return Package(target, name, sum(not name.endswith("/") for name, _ in entries), size)


def _entries(root: Path, excludes: GitIgnoreSpec) -> Iterator[tuple[str, Path]]:
    """Names in the package (folders that are empty end with a slash), and where they are.

    As in Ray, links are followed, wherever they lead; unlike there, not in circles, which only the
    operating system's limit would end: of folders that link to each other, a path holds one link.
    """
    circles: set[Path] = set()

    def walk(
        folder: Path,
        ignores: Sequence[tuple[Path, GitIgnoreSpec]],
        above: tuple[Path, ...],
        links: tuple[Path, ...],
    ) -> Iterator[tuple[str, Path]]:
        """`above` are the real folders that lead here, this one last; `links` where links lead."""
        try:
            children = sorted(folder.iterdir())
            ignores = [*ignores, *_ignore_files(folder)]
        except OSError as error:
            raise _unreadable(folder, error) from None
        if not children and folder != root:
            yield folder.relative_to(root).as_posix() + "/", folder
        for child in children:
            name = child.relative_to(root).as_posix()

            def left_out(slash: str, name: str = name, child: Path = child) -> bool:
                return excludes.match_file(name + slash) or _ignored(child, slash, ignores)

            try:
                is_folder = child.is_dir()
                if left_out("/" * is_folder) or (is_folder and child.name in LEFT_OUT):
                    continue
                if not is_folder:
                    if child.is_file():  # no sockets, pipes, links that lead nowhere
                        yield name, child
                    continue
                if (child / _VENV).is_file():
                    continue
                is_link = child.is_symlink()
                real = child.resolve() if is_link else above[-1] / child.name
            except OSError as error:
                if child.name in LEFT_OUT or left_out("") or left_out("/"):
                    continue
                raise _unreadable(child, error) from None
            if real in above:  # a link to a folder that holds it
                circles.update(above[above.index(real) :])
            elif not (is_link and real in circles and circles.intersection(links)):
                yield from walk(child, ignores, (*above, real), links + (real,) * is_link)

    return walk(root, [], (root.resolve(),), ())


def _unreadable(path: Path, error: OSError) -> BadInput:
    return BadInput(
        Problem(
            str(path),
            f"cannot be read: {error.strerror}",
            f"leave it out: with {' or '.join(IGNORE_FILES)}, or the runtime_env's excludes",
        )
    )


def _ignore_files(folder: Path) -> list[tuple[Path, GitIgnoreSpec]]:
    found = []
    for name in IGNORE_FILES:
        path = folder / name
        if path.is_file():
            # As git: a line ends at a newline only, and one that is no pattern is skipped.
            text = path.read_text(encoding="utf-8-sig", errors="replace")
            lines = [line.removesuffix("\r") for line in text.split("\n")]
            found.append((folder, GitIgnoreSpec.from_lines(filter(_is_pattern, lines))))
    return found


def _is_pattern(line: str) -> bool:
    """Whether a line is one that a .gitignore may have: `!`, `foo\\` and `[z-a]` are not."""
    try:
        GitIgnoreSpec.from_lines([line])
    except (ValueError, re.error):
        return False
    return True


def _ignored(path: Path, slash: str, ignores: Sequence[tuple[Path, GitIgnoreSpec]]) -> bool:
    """As in git, the file that is nearest has the last word."""
    answer = False
    for folder, spec in ignores:
        said = spec.check_file(path.relative_to(folder).as_posix() + slash).include
        answer = answer if said is None else said
    return answer


def _add(
    archive: zipfile.ZipFile, digest: Any, name: str, path: Path, written: Callable[[], None]
) -> None:
    """Put a file or a folder into an archive; tells after each piece that it was written."""
    info = zipfile.ZipInfo(name)  # of 1980: when a file was written is not what it is
    mode = path.stat().st_mode
    info.external_attr = (
        mode & 0o777 | (stat.S_IFDIR if name.endswith("/") else stat.S_IFREG)
    ) << 16
    digest.update(f"{name}\0{mode & 0o111:o}\0".encode())
    if name.endswith("/"):
        archive.writestr(info, b"")
        return
    info.compress_type = zipfile.ZIP_DEFLATED
    info.file_size = path.stat().st_size
    digest.update(f"{info.file_size}\0".encode())
    with path.open("rb") as source, archive.open(info, "w") as target:
        while block := source.read(_MIB):
            digest.update(block)
            target.write(block)
            written()


def _too_large(root: Path, entries: Sequence[tuple[str, Path]], limit: int) -> BadInput:
    parts: dict[str, int] = {}
    for name, path in entries:
        if not name.endswith("/"):
            first, slash, _ = name.partition("/")
            parts[first + slash] = parts.get(first + slash, 0) + path.stat().st_size
    biggest = sorted(parts.items(), key=lambda part: -part[1])[:5]
    total = sum(parts.values())
    return BadInput(
        Problem(
            f"working directory {root}",
            f"is {total / _MIB:.0f} MiB, and packed still more than the {limit / _MIB:.0f} MiB that "
            "Ray takes; its biggest parts are "
            + ", ".join(f"{name} ({size / _MIB:.1f} MiB)" for name, size in biggest),
            "leave out what the program does not need with .rayignore, .gitignore or the "
            "runtime_env's excludes, and put data into the image",
        )
    )


# -- submitting and following ----------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Submitted:
    """A job that Ray took: its id, and the command line that it begins with."""

    job_id: str
    entrypoint: str


def submit(
    ray: RayApi,
    program: Program,
    *,
    job_id: str | None = None,
    resources: Mapping[str, float] | None = None,
    say: Callable[[str], None] = lambda text: None,
    asking: Callable[[], None] = lambda: None,
) -> Submitted:
    """Pack a program, upload it unless it is there already, and start it as a job.

    Parameters
    ----------
    resources
        Custom resources that the driver's node must have, by name; on the head without them.
    say
        Told about the upload.
    asking
        Called right before Ray is asked to start it: until then there is no job.

    Raises
    ------
    BadInput
        It cannot be packed, or there is a job of this id.
    RayUnreachable
        Ray does not answer.
    """
    job_id = job_id or program.new_job_id()
    env = dict(program.runtime_env)
    if program.folder is not None:
        with TemporaryDirectory(prefix="ray-sim-") as folder:
            package = pack(program, Path(folder))
            if not _once_more(lambda: ray.has_package(package.name)):
                if not program.only_script:
                    what = f"{package.files} file{'s' * (package.files != 1)}"
                    say(f"uploading {what}, {_size(package.size)}")
                _once_more(lambda: ray.put_package(package.name, package.path))
        env["working_dir"] = package.uri

    def start() -> None:
        ray.submit(program.entrypoint, job_id, resources=resources, runtime_env=env)

    asking()
    try:
        start()
    except RayUnreachable:
        try:
            ray.job(job_id)  # Ray took it, and only its answer was lost
        except NoSuchJob:
            start()
    return Submitted(job_id, program.entrypoint)


def withdraw(
    ray: RayApi, job_id: str, *, clock: Clock | None = None, patience: float = WITHDRAW_S
) -> Job | None:
    """Stop a job whose submission was interrupted, perhaps before Ray heard of it.

    Parameters
    ----------
    patience
        How long to look for it, seconds: what was sent may arrive a little later.

    Returns
    -------
    Job or None
        The job, which is over or was told to stop; None if Ray did not say that there is one.
    """
    clock = clock or RealClock()
    silence: Deadline | None = None
    while True:
        try:
            stopping = ray.stop_job(job_id)
            job = ray.job(job_id)
            if stopping or job.over:
                return job
            silence = None  # it is being set up, and cannot be stopped yet
        except CannotRun:
            silence = silence or Deadline(patience, clock=clock.mono)
            if silence.passed:
                return None
        clock.sleep(POLL_S)


def _once_more(ask: Callable[[], T]) -> T:
    """The answer, if need be at a second try: a connection that Ray closes while it is used again."""
    try:
        return ask()
    except RayUnreachable:
        return ask()


def _size(size: int) -> str:
    return f"{size / _MIB:.1f} MiB" if size >= _MIB else f"{max(1, size // 1024)} KiB"


class JobLost(CannotRun):
    """A job did not come to an end of its own; `job` is what Ray last said of it."""

    def __init__(self, what: str, job: Job | None, **more: Any) -> None:
        self.job = job
        super().__init__(what, **more)


def follow(
    ray: RayApi,
    submitted: Submitted,
    *,
    output: Callable[[bytes], None],
    say: Callable[[str], None] = lambda text: None,
    stop: Callable[[], bool] = lambda: False,
    clock: Clock | None = None,
    patience: float = PATIENCE_S,
    timeout: float | None = None,
) -> Job:
    """Follow a job to its end, and return how it ended; its exit code is the program's own.

    Parameters
    ----------
    output
        Given what the program prints as it comes: exactly that, nothing lost and nothing twice.
    say
        Told what is waited for.
    stop
        Asked again and again; once it is true, Ray is asked to stop the job, which is then followed on.
    patience
        How long Ray may be silent, seconds.
    timeout
        How long to follow it, seconds; by default to its end.

    Raises
    ------
    JobLost
        It has no exit code: stopped, never begun, lost with its node; or Ray is gone.
    WaitTimeout
        It was not over in time, and goes on.
    """
    clock = clock or RealClock()
    limit = None if timeout is None else Deadline(timeout, clock=clock.mono)
    log = JobOutput(ray, submitted, output)
    silence: Deadline | None = None
    pending: Deadline | None = Deadline(PENDING_S, clock=clock.mono)
    stopping = whole = read_twice = False
    job: Job | None = None

    def refuse_late(last: str) -> None:
        if limit is not None and limit.passed:
            raise WaitTimeout(f"the end of job {submitted.job_id}", limit.seconds, last)

    try:
        while True:
            try:
                if stop() and not stopping:
                    stopping = ray.stop_job(submitted.job_id)
                job = ray.job(submitted.job_id)
            except NoSuchJob:  # and yet Ray had taken it
                if job is not None and job.over:
                    break
                raise JobLost(
                    f"Ray knows of no job {submitted.job_id}",
                    job,
                    why="its head was started anew, and knows no earlier job",
                    details=log.last,
                ) from None
            except CannotRun as error:
                if silence is None:
                    silence = Deadline(patience, clock=clock.mono)
                    say(f"{error}; waiting up to {patience:.0f} s")
                refuse_late(str(error))
                if silence.passed:
                    if job is not None and job.over:
                        break
                    raise JobLost(
                        f"job {submitted.job_id} is lost from sight",
                        job,
                        why=str(error),
                        details=log.last,
                    ) from None
                read_twice = False
                clock.sleep(POLL_S)
                continue
            silence = None
            if job.over:
                whole = log.finish(job)
                if whole or read_twice:
                    break
                read_twice = True  # Ray is silent, or only the log's node: asked again, Ray tells
                continue
            refuse_late(f"it is {job.status}")
            if pending is not None and (job.status != "PENDING" or pending.passed):
                if job.status == "PENDING":
                    say(job.message)
                pending = None
            log.follow(job, Deadline(POLL_S, clock=clock.mono), clock)
    finally:
        log.close()
        log.hand_on_the_rest()
    if not whole:
        say("the end of the job's log cannot be read: its node is gone")
    if job.status == "STOPPED" or job.exit_code is None:
        ended = "was stopped" if job.status == "STOPPED" else "did not come to an end of its own"
        # Of a long message, the end says what went wrong: a stack trace, or what pip wrote.
        first, *more = job.message.strip().splitlines() or [""]
        raise JobLost(f"job {job.job_id} {ended}", job, why=first, details=[*more[-10:], *log.last])
    return job


#: A line that Ray's JobManager writes into a job's log before it starts the program.
_MANAGER = re.compile(
    rb"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d{3}\s+\w+ job_manager\.py:\d+ -- [^\n]*\n"
)
_STAMP = b"0000-00-00 00:00:00,000"


class JobOutput:
    """Hands on what the program writes into its job's log, and not what Ray writes there.

    Ray's stream of a log has no end of its own and may break off, so the last part, and whatever
    follows an interruption, is read from the whole log, less what was handed on already.
    """

    def __init__(self, ray: RayApi, submitted: Submitted, output: Callable[[bytes], None]) -> None:
        self._ray, self._output = ray, output
        # Ray's JobSupervisor writes this line, and may be slower to than the program that it starts.
        self._announced = (
            f"Running entrypoint for job {submitted.job_id}: {submitted.entrypoint}\n".encode()
        )
        self._stream: JobLog | None = None
        self._position = 0
        self._skip = 0
        self._held = b""
        self._begun = False
        self._tail = b""

    @property
    def last(self) -> list[str]:
        """The last lines that were handed on."""
        return self._tail.decode("utf-8", errors="replace").splitlines()[-10:]

    def follow(self, job: Job, until: Deadline, clock: Clock) -> None:
        """Hand on what comes before a deadline; that there is no log yet is no error."""
        while not until.passed:
            try:
                if self._stream is None:
                    if not job.driver_node:
                        break
                    self._stream, self._skip = self._ray.follow_job_log(job), self._position
                self._take(self._stream.read(until.left))
            except CannotRun:
                self.close()
                break
        clock.sleep(until.left)

    def catch_up(self, job: Job) -> None:
        """Hand on what has come, without waiting for more."""
        try:
            if self._stream is None and job.driver_node:
                self._stream, self._skip = self._ray.follow_job_log(job), self._position
            while self._stream is not None and (chunk := self._stream.read(0.0)):
                self._take(chunk)
        except CannotRun:
            self.close()

    def finish(self, job: Job) -> bool:
        """Hand on what came meanwhile, once the job is over; whether all of it could be read."""
        self.close()
        self._skip = self._position
        try:
            if job.driver_node:
                for chunk in self._ray.read_job_log(job):
                    self._take(chunk)
        except CannotRun:
            return False
        return True

    def hand_on_the_rest(self) -> None:
        """Hand on what was kept because more might have made it one of Ray's own lines."""
        self._hand_on(self._held)
        self._held = b""

    def close(self) -> None:
        if self._stream is not None:
            self._stream.close()
            self._stream = None

    def _take(self, chunk: bytes) -> None:
        skipped = min(self._skip, len(chunk))
        self._skip -= skipped
        self._position += len(chunk) - skipped
        held = self._held + chunk[skipped:]
        if not self._begun:
            while line := _MANAGER.match(held):
                held = held[line.end() :]
            self._begun = not _may_be_the_manager(held)
        keep = len(held) if not self._begun else 0
        if self._begun and self._announced:
            before, found, after = held.partition(self._announced)
            if found:
                held, self._announced = before + after, b""
            else:
                keep = _overlap(held, self._announced)
        self._held = held[len(held) - keep :]
        self._hand_on(held[: len(held) - keep])

    def _hand_on(self, data: bytes) -> None:
        if data:
            self._tail = (self._tail + data)[-4000:]
            self._output(data)


def _may_be_the_manager(text: bytes) -> bool:
    """Whether this may become a line of the manager's when more of it has come."""
    if b"\n" in text or len(text) > 300:
        return False
    return all(
        (48 <= byte < 58) if pattern == _STAMP[0] else byte == pattern
        for byte, pattern in zip(text, _STAMP, strict=False)
    )


def _overlap(text: bytes, line: bytes) -> int:
    """How many bytes at the end of a text may be the beginning of a line."""
    longest = min(len(text), len(line) - 1)
    return next((n for n in range(longest, 0, -1) if line.startswith(text[-n:])), 0)
