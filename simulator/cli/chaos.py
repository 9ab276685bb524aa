"""The command that runs a script of the user's, unchanged, under faults."""

from __future__ import annotations

import json
import secrets
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from simulator.cli import complete, output
from simulator.cli.options import (
    HEALTHS,
    MOST_SECONDS,
    AsJson,
    BackendToUse,
    ImageOption,
    JunitOption,
    ParallelismOption,
    SetOption,
    WorkersOption,
    a_number,
)
from simulator.cli.runs import exit_code_of, say_kept, show_results

if TYPE_CHECKING:
    from simulator.chaos import Chaos
    from simulator.cli.plan import Problems
    from simulator.jobs import Program
    from simulator.topology import Topology


#: How long a script may take unless told otherwise, seconds.
TIMEOUT_S = 1800.0


class ChaosCommand(TyperCommand):
    """The command ``chaos``: options are ours, wherever they stand; behind ``--`` all is the script's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            # By its name: where it comes from (click, or typer's copy of it) depends on typer's version.
            if type(error).__name__ == "NoSuchOption":
                given = str(getattr(error, "option_name", ""))
                error.message = (  # type: ignore[attr-defined]
                    f"chaos has no option {given}. Those of the script stand behind two dashes: "
                    f"chaos SCRIPT ... -- {given}"
                )
            raise


def chaos(
    script: Annotated[
        str, typer.Argument(metavar="SCRIPT", help="A Python file of yours; it calls ray.init().")
    ],
    arguments: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="ARGS...",
            help="Arguments of the script; its options stand behind --.",
            show_default=False,
        ),
    ] = None,
    faults: Annotated[
        list[str] | None,
        typer.Option(
            "--fault",
            "-f",
            metavar="FAULT",
            help='What breaks, and when, such as "kill worker @20s restart +15s"; may be repeated.',
            show_default=False,
        ),
    ] = None,
    schedule: Annotated[
        Path | None,
        typer.Option(
            "--schedule", metavar="FILE", help="A file of such faults.", show_default=False
        ),
    ] = None,
    working_dir: Annotated[
        str | None,
        typer.Option(
            "--working-dir",
            metavar="DIR",
            help="Ship this folder too: the script's current folder on every node. Left out is what "
            ".gitignore and .rayignore say.",
            show_default=False,
        ),
    ] = None,
    runtime_env: Annotated[
        str | None,
        typer.Option(
            "--runtime-env",
            metavar="FILE|JSON",
            help="Ray's runtime_env: a YAML or JSON file, or JSON itself.",
            show_default=False,
        ),
    ] = None,
    baseline: Annotated[
        bool,
        typer.Option("--baseline", help="Run it once undisturbed before, to compare with."),
    ] = False,
    timeout: Annotated[
        float,
        typer.Option(
            "--timeout",
            metavar="SECONDS",
            min=1.0,
            max=MOST_SECONDS,
            callback=a_number,
            help="How long the script may take; then it is stopped, and the run invalid.",
        ),
    ] = TIMEOUT_S,
    may_lose_tasks: Annotated[
        bool,
        typer.Option(
            "--may-lose-tasks",
            help="Tasks may fail for good: the script deals with that by itself.",
        ),
    ] = False,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="Fixes every draw; without it one is drawn and recorded.",
            show_default=False,
        ),
    ] = None,
    repeat: Annotated[
        int,
        typer.Option(
            "--repeat", metavar="N", min=1, help="N runs on one cluster, then the distribution."
        ),
    ] = 1,
    topology: Annotated[
        str,
        typer.Option(
            "--topology",
            "-t",
            metavar="NAME|FILE",
            help="Which nodes.",
            autocompletion=complete.topology,
        ),
    ] = "default",
    workers: WorkersOption = None,
    settings: SetOption = None,
    backend: BackendToUse = "auto",
    health: Annotated[
        str | None,
        typer.Option(
            "--health",
            metavar="|".join(HEALTHS),
            autocompletion=complete.choices(*HEALTHS),
            help="How Ray detects a lost node: fast (about 4 s, the default) or its own settings.",
            show_default=False,
        ),
    ] = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster up at the end.")] = False,
    reuse: Annotated[
        str | None,
        typer.Option(
            "--reuse",
            metavar="CLUSTER",
            help="Run on a cluster that is up, and leave it up.",
            show_default=False,
            autocompletion=complete.cluster,
        ),
    ] = None,
    name: Annotated[
        str | None,
        typer.Option(
            "--name",
            "-n",
            metavar="CLUSTER",
            help="Name of the cluster that is made; by default one that is free.",
            show_default=False,
        ),
    ] = None,
    image: ImageOption = None,
    start_parallelism: ParallelismOption = None,
    as_json: AsJson = False,
    junit: JunitOption = None,
) -> None:
    """Run a Ray script of yours, unchanged, while nodes break, and judge it from outside.

    Did it end, how, and how long did it take; which of its tasks were cut off, tried again, lost; when was the
    cluster whole again. What it prints goes to a file of the run's. Exit codes as of `run`; a script
    that fails is invalid.
    """
    from simulator.chaos import Chaos
    from simulator.cli.place import choose, refuse_contradictions
    from simulator.cli.plan import Problems, load_nodes
    from simulator.cli.screen import Screen
    from simulator.experiment import plan_problems
    from simulator.jobs import Program
    from simulator.runner import Runner, RunRequest
    from simulator.schedule.language import read_schedule
    from simulator.store import Store
    from simulator.workload import Script

    problems = Problems()
    program = _program(problems, script, arguments or (), working_dir, runtime_env)
    steps = problems.attempt("--fault", lambda: read_schedule(faults or (), schedule))
    refuse_contradictions(problems, backend, health, name, reuse, image)
    problems.output_file("--junit", junit)
    shaped = topology != "default" or workers is not None or bool(settings)
    nodes = load_nodes(problems, topology, workers, settings or []) if shaped or not reuse else None
    # What is wrong with the faults shows on any program.
    ran = Script(program or Program(script), timeout)
    experiment = Chaos(ran, steps or (), may_lose_tasks=may_lose_tasks)
    if nodes is not None:
        problems.found.extend(plan_problems(experiment, experiment.params, nodes))
    problems.raise_any()

    place = choose(problems, backend, health, name, reuse, nodes)
    _say_what_is_broken(experiment, place.nodes)
    command = _command(
        script, arguments or (), faults or (), schedule, working_dir, runtime_env, baseline, timeout,
        may_lose_tasks, place.backend.name, place.health, topology if shaped else None, workers,
        settings or (), image, reuse,
    )  # fmt: skip
    request = RunRequest(
        experiment=experiment,
        params=experiment.params,
        topology=place.nodes,
        source=experiment.name,
        seed=secrets.randbelow(2**31) if seed is None else seed,
        health=place.health,
        name=name,
        reuse=reuse,
        keep=keep,
        image=image,
        command=command,
        start_parallelism=start_parallelism,
    )
    alone = experiment.undisturbed()
    title = f"{ran.program.script} on {place.backend.name}"
    with Screen(title, runs=repeat + baseline).showing() as screen:
        runner = Runner(place.backend, Store(), listener=screen.listener())
        results = runner.repeat(
            request,
            repeat,
            baseline=replace(request, experiment=alone, params=alone.params) if baseline else None,
        )
    results = _without_baseline(results) if baseline else results
    show_results(results, as_json, junit, several=repeat > 1 and len(results) > 1)
    if keep and not reuse:
        say_kept(results[-1])
    raise typer.Exit(exit_code_of(results))


def _program(
    problems: Problems,
    script: str,
    arguments: Sequence[str],
    working_dir: str | None,
    runtime_env: str | None,
) -> Program | None:
    """The program, or None and what is wrong with it; packed once to see that it can be."""
    from simulator import jobs

    env = problems.attempt(
        "--runtime-env", lambda: jobs.read_runtime_env("{}" if runtime_env is None else runtime_env)
    )
    program = problems.attempt(
        script,
        lambda: jobs.plan_program(script, arguments, working_dir=working_dir, runtime_env=env),
    )
    if program is not None and program.folder is not None:
        with TemporaryDirectory(prefix="ray-sim-") as folder:
            problems.attempt(script, lambda: jobs.pack(program, Path(folder)))
    return program


def _say_what_is_broken(experiment: Chaos, nodes: Topology) -> None:
    """What a user may not have meant: no fault at all, or one that hits the script itself."""
    from random import Random

    from simulator.schedule import resolve

    if not experiment.steps:
        output.say("note: no fault was asked for (--fault); the script runs undisturbed", "yellow")
    hit = {node for fault in resolve(experiment.steps, nodes, Random(0)) for node in fault.nodes}
    if "head" in hit:
        output.say(
            "note: the script's driver runs on the head; a fault there hits the script itself, and "
            "a head that is killed takes Ray's memory of it along",
            "yellow",
        )


def _without_baseline(results: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs that were compared with the first; that one alone where it did not end well."""
    first, *others = results
    if others:
        seconds = first["program"]["seconds"]
        output.say(f"Undisturbed: {seconds:.1f} s; {first['report']}")
        return others
    output.say(
        "The script does not end well undisturbed, so nothing was broken. This is that run:", "red"
    )
    return [first]


def _command(
    script: str,
    arguments: Sequence[str],
    faults: Sequence[str],
    schedule: Path | None,
    working_dir: str | None,
    runtime_env: str | None,
    baseline: bool,
    timeout: float,
    may_lose_tasks: bool,
    backend: str,
    health: str,
    topology: str | None,
    workers: int | None,
    settings: Sequence[str],
    image: str | None,
    reuse: str | None,
) -> str:
    """The command line that does it again."""
    from simulator.cli.plan import replay_command

    what = ["chaos", script]
    for fault in faults:
        what += ["--fault", fault]
    for option, value in (
        ("--schedule", schedule),
        ("--working-dir", working_dir),
        ("--runtime-env", None if runtime_env is None else _without_secrets(runtime_env)),
        ("--timeout", None if timeout == TIMEOUT_S else f"{timeout:g}"),
    ):
        if value is not None:
            what += [option, str(value)]
    what += ["--baseline"] * baseline + ["--may-lose-tasks"] * may_lose_tasks
    line = replay_command(
        what, backend, topology=topology, workers=workers, settings=settings, params=(),
        health=health, image=image, reuse=reuse,
    )  # fmt: skip
    return f"{line} -- {shlex.join(arguments)}" if arguments else line


def _without_secrets(runtime_env: str) -> str:
    """A runtime_env as it may stand in a report: variables that were given on the command line, by name."""
    if not runtime_env.lstrip().startswith("{"):
        return runtime_env
    env = json.loads(runtime_env)
    variables = env.get("env_vars")
    if isinstance(variables, Mapping):
        env["env_vars"] = dict.fromkeys(variables, "...")
    return json.dumps(env)
