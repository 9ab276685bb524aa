"""Commands about what runs on a cluster by hand: a program as a Ray job, and Ray's own dashboard."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from threading import Event
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from simulator.cli import output
from simulator.cli.options import (
    AsJson,
    BackendOfExisting,
    NameOfExisting,
    RuntimeEnvOption,
    WorkingDirOption,
    command_line,
)

if TYPE_CHECKING:
    from simulator.cluster import Cluster
    from simulator.jobs import Submitted
    from simulator.rayapi import Job
    from simulator.runner import Interrupts


#: The options of `submit`, to tell a script's own from those that landed there by mistake.
OPTIONS = ("--working-dir", "--runtime-env", "--no-wait", "--name", "--backend", "--json")


class SubmitCommand(TyperCommand):
    """The command ``submit``: what follows the script is the script's, options too."""

    allow_interspersed_args = False


def submit(
    script: Annotated[
        str, typer.Argument(metavar="SCRIPT", help="A Python file of yours; it calls ray.init().")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS...",
            help="Arguments of the script; all that follows it is the script's.",
            show_default=False,
        ),
    ] = None,
    working_dir: WorkingDirOption = None,
    runtime_env: RuntimeEnvOption = None,
    no_wait: Annotated[
        bool,
        typer.Option("--no-wait", help="Print the job's id and return, instead of following it."),
    ] = False,
    name: NameOfExisting = None,
    backend: BackendOfExisting = "auto",
    as_json: AsJson = False,
) -> None:
    """Run a script of yours as a Ray job on a cluster that is up; the exit code is the script's.

    What it prints comes out as it prints it; with --json it goes to standard error, and standard
    output gets one object at the end. A job that is stopped, or lost with its node, is exit code 4.
    Ctrl-C stops the job.
    """
    from simulator import jobs
    from simulator.cli.find import find
    from simulator.cli.plan import Problems

    problems = Problems()
    env = problems.attempt(
        "--runtime-env", lambda: jobs.read_runtime_env("{}" if runtime_env is None else runtime_env)
    )
    program = problems.attempt(
        script,
        lambda: jobs.plan_program(
            script, arguments or (), working_dir=working_dir, runtime_env=env
        ),
    )
    problems.raise_any()
    assert program is not None
    _say_what_the_script_gets(arguments or ())

    cluster = find(name, backend).cluster
    job_id = program.new_job_id()
    asked = Event()
    with _interruptible(cluster, job_id, name, asked) as interrupts:
        submitted = jobs.submit(
            cluster.ray,
            program,
            job_id=job_id,
            resources=cluster.driver_needs(),
            say=output.say,
            asking=asked.set,
        )
        if no_wait:
            output.say(f"its log: {_in_head('logs', job_id, name)}", "dim")
            output.say(f"stop it: {_in_head('stop', job_id, name)}", "dim")
            if as_json:
                output.print_json(_job_data(job_id, None, "PENDING"))
            else:
                output.print_line(job_id)
            return
        output.say(f"job {job_id} on {cluster.name}; Ctrl-C stops it", "dim")
        interrupts.cleaning = True  # from now on it is only counted: Ray is asked to stop the job
        job = _follow(cluster, submitted, lambda: interrupts.count > 0, as_json)
    assert job.exit_code is not None
    # A program that a signal ended is reported as a shell reports it.
    raise typer.Exit(job.exit_code if job.exit_code >= 0 else 128 - job.exit_code)


def _say_what_the_script_gets(arguments: Sequence[str]) -> None:
    """An option of ours behind the script is most likely a slip: say who gets it."""
    given = [word for word in arguments if word.partition("=")[0] in OPTIONS]
    if given:
        output.say(
            f"note: the script gets {', '.join(given)}; options of submit stand before SCRIPT",
            "yellow",
        )


def _in_head(verb: str, job_id: str, name: str | None) -> str:
    return f"{command_line('exec head', name)} -- ray job {verb} {job_id}"


@contextmanager
def _interruptible(
    cluster: Cluster, job_id: str, name: str | None, asked: Event
) -> Iterator[Interrupts]:
    """Ctrl-C while the job is being submitted leaves none behind; twice leaves at once."""
    from simulator.errors import Interrupted
    from simulator.jobs import withdraw
    from simulator.runner import Interrupts

    stop = _in_head("stop", job_id, name)
    interrupts = Interrupts(
        lambda: output.say(f"\nLeft at once. If the job goes on, stop it with: {stop}")
    )
    with interrupts.installed():
        try:
            yield interrupts
        except Interrupted as error:  # which speaks of what a run does then
            if not asked.is_set():
                raise Interrupted(error.what, why="nothing was submitted") from None
            output.say("asking Ray whether it took the job, to stop it; Ctrl-C once more leaves")
            job = withdraw(cluster.ray, job_id, clock=cluster.clock)
            if job is None:
                raise Interrupted(
                    error.what,
                    why=f"job {job_id} may have been submitted",
                    remedy=f"If it runs, stop it with: {stop}",
                ) from None
            done = "is over" if job.over else "is being stopped"
            raise Interrupted(
                error.what, why=f"job {job_id} had been submitted, and {done}"
            ) from None


def _follow(
    cluster: Cluster, submitted: Submitted, asked: Callable[[], bool], as_json: bool
) -> Job:
    from simulator import jobs

    told = False

    def stop() -> bool:
        nonlocal told
        if asked() and not told:
            told = True
            output.say("asking Ray to stop the job; Ctrl-C once more leaves at once")
        return told

    def show(data: bytes) -> None:
        with output.reader_may_leave():
            output.write_bytes(data, progress=as_json)

    try:
        job = jobs.follow(
            cluster.ray, submitted, output=show, say=output.say, stop=stop, clock=cluster.clock
        )
    except jobs.JobLost as error:
        if as_json:
            status = "LOST" if error.job is None or not error.job.over else error.job.status
            output.print_json(_job_data(submitted.job_id, error.job, status))
        raise
    took = "" if job.seconds is None else f" after {job.seconds:.1f} s"
    if job.exit_code == 0:
        output.say(f"job {job.job_id} succeeded{took}", "dim")
    else:
        output.say(f"job {job.job_id} failed with exit code {job.exit_code}{took}", "yellow")
    if as_json:
        output.print_json(_job_data(job.job_id, job, job.status))
    return job


def _job_data(job_id: str, job: Job | None, status: str) -> dict[str, Any]:
    return {
        "job_id": job_id,
        "status": status,
        "exit_code": job.exit_code if job else None,
        "seconds": job.seconds if job else None,
        "message": job.message if job else "",
    }


def dashboard(
    token: Annotated[
        bool,
        typer.Option("--token", help="Print the token alone, to be piped into the clipboard."),
    ] = False,
    open_it: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    name: NameOfExisting = None,
    backend: BackendOfExisting = "auto",
    as_json: AsJson = False,
) -> None:
    """Print the address of Ray's dashboard; the page asks for the cluster's token.

    Where the engine is on another machine, the address leads through this command, which then stays
    until Ctrl-C.
    """
    from simulator.cli.find import find

    found = find(name, backend)
    found.cluster.need_head(f"the dashboard of {found.name} cannot answer")
    endpoint = found.backend.endpoint(found.name)
    if token:
        if as_json:
            output.print_json({"cluster": found.name, "token": endpoint.token})
        else:
            output.print_line(endpoint.token)
        return
    found.cluster.ray.version()  # says plainly when it does not answer
    if as_json:
        output.print_json({"cluster": found.name, "url": endpoint.url, "relayed": endpoint.relayed})
    else:
        output.print_line(endpoint.url)
    output.say(f"The page asks for a token; it is: {command_line('dashboard --token', name)}")
    if open_it:
        _open(endpoint.url)
    if endpoint.relayed:
        output.say(
            "The engine is elsewhere: the address leads through this command. Ctrl-C ends it."
        )
        try:
            while True:
                time.sleep(3600)
        except KeyboardInterrupt:
            return  # that is how one leaves


def _open(url: str) -> None:
    import webbrowser

    if not webbrowser.open(url):
        output.say("no browser could be opened here; open the address by hand", "yellow")
