"""The command that runs a script of the user's, unchanged, under faults."""

from __future__ import annotations

import secrets
import shlex
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from simulator.cli import complete, output
from simulator.cli.options import (
    MOST_SECONDS,
    AsJson,
    BackendToUse,
    BudgetOption,
    FaultOption,
    HealthOfRun,
    ImageOption,
    JunitOption,
    KeepOption,
    NameOfNew,
    ParallelismOption,
    RateOption,
    RepeatOption,
    ReuseOption,
    RpcFaultOption,
    RuntimeEnvOption,
    ScheduleFileOption,
    SeedOption,
    SetOption,
    WorkersOption,
    WorkingDirOption,
    a_number,
)
from simulator.cli.runs import exit_code_of, say_kept, show_results

if TYPE_CHECKING:
    from simulator.chaos import Chaos
    from simulator.cli.place import Place
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
    faults: FaultOption = None,
    file: ScheduleFileOption = None,
    rate: RateOption = None,
    budget: BudgetOption = None,
    rpc_fault: RpcFaultOption = None,
    working_dir: WorkingDirOption = None,
    runtime_env: RuntimeEnvOption = None,
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
    seed: SeedOption = None,
    repeat: RepeatOption = 1,
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
    health: HealthOfRun = None,
    keep: KeepOption = False,
    reuse: ReuseOption = None,
    name: NameOfNew = None,
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
    from simulator.cli.asked import AskedFaults
    from simulator.cli.place import choose, refuse_contradictions
    from simulator.cli.plan import Problems, load_nodes
    from simulator.cli.screen import Screen
    from simulator.faults import rpc_faults
    from simulator.runner import Runner, RunRequest
    from simulator.store import Store
    from simulator.workload import Script

    problems = Problems()
    program = _program(problems, script, arguments or (), working_dir, runtime_env)
    problems.attempt("--rpc-fault", lambda: rpc_faults(rpc_fault or ()))
    refuse_contradictions(problems, backend, health, name, reuse, image)
    problems.output_file("--junit", junit)
    shaped = topology != "default" or workers is not None or bool(settings)
    nodes = load_nodes(problems, topology, workers, settings or []) if shaped or not reuse else None
    asked = AskedFaults.read(problems, faults or (), file, rate, budget, nodes)
    problems.raise_any()
    assert program is not None

    place = choose(problems, backend, health, name, reuse, nodes, rpc_asked=rpc_fault or ())
    seed = secrets.randbelow(2**31) if seed is None else seed
    experiment = Chaos(
        Script(program, timeout),
        asked.all_steps(place.backend, place.nodes, seed),
        may_lose_tasks=may_lose_tasks,
        said={"script": script, "working_dir": working_dir, "runtime_env": runtime_env},
    )
    _say_what_is_broken(experiment, place.nodes)
    request = RunRequest(
        experiment=experiment,
        params=experiment.params,
        topology=place.nodes,
        source=experiment.name,
        seed=seed,
        health=place.health,
        name=name,
        reuse=reuse,
        keep=keep,
        image=image,
        command=_command(
            experiment, place, baseline=baseline, topology=topology if shaped else None,
            workers=workers, settings=settings or (), image=image, reuse=reuse,
        ),
        rpc_faults=place.rpc_faults,
        start_parallelism=start_parallelism,
    )  # fmt: skip
    alone = experiment.undisturbed()
    title = f"{program.script} on {place.backend.name}"
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
    experiment: Chaos,
    place: Place,
    *,
    baseline: bool,
    topology: str | None,
    workers: int | None,
    settings: Sequence[str],
    image: str | None,
    reuse: str | None,
) -> str:
    """The command line that does it again; faults that were drawn stand in it as they were drawn."""
    from simulator.cli.plan import replay_command

    params = experiment.params
    what = ["chaos", params.script]
    for option, value in (
        ("--working-dir", params.working_dir),
        ("--runtime-env", params.runtime_env),
        ("--timeout", None if params.timeout_s == TIMEOUT_S else f"{params.timeout_s:g}"),
    ):
        if value is not None:
            what += [option, str(value)]
    what += ["--baseline"] * baseline + ["--may-lose-tasks"] * params.may_lose_tasks
    line = replay_command(
        what, place.backend.name, topology=topology, workers=workers, settings=settings, params=(),
        health=place.health, image=image, reuse=reuse, faults=params.faults,
        rpc_faults=place.rpc_faults,
    )  # fmt: skip
    return f"{line} -- {shlex.join(params.arguments)}" if params.arguments else line
