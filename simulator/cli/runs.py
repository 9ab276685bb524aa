"""Commands about experiments and their runs: run one, judge it again, show it, list them."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli import complete, output
from simulator.cli.options import (
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
    RunArgument,
    ScheduleFileOption,
    SeedOption,
    SetOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from simulator.runner import RunRequest


def experiments(as_json: AsJson = False) -> None:
    """List the experiments that come with the package, each with what it claims."""
    from simulator.cli.params import param_rows
    from simulator.cli.tables import experiments_view
    from simulator.errors import SimulatorError
    from simulator.experiment import known_experiments, load_experiment

    rows: list[dict[str, Any]] = []
    for name, path in known_experiments().items():
        try:
            experiment = load_experiment(name)
        except SimulatorError as error:
            rows.append({"name": name, "claim": None, "path": str(path), "error": str(error)})
            continue
        rows.append(
            {
                "name": experiment.name,
                "claim": experiment.claim,
                "path": str(path),
                "topology": experiment.topology,
                "params": param_rows(experiment),
            }
        )
    if as_json:
        output.print_json(rows)
        return
    output.data_console().print(experiments_view(rows))
    output.say("Parameters of one: python -m simulator run NAME --help", "dim")


def run(
    experiment: Annotated[
        str,
        typer.Argument(
            metavar="NAME|FILE",
            help="An experiment's name, or a Python file with one.",
            autocompletion=complete.experiment,
        ),
    ],
    params: Annotated[
        list[str] | None,
        typer.Option(
            "--param",
            "-p",
            metavar="NAME=VALUE",
            help="Set a parameter of the experiment; may be repeated. `run NAME --help` lists them.",
            show_default=False,
            autocompletion=complete.param,
        ),
    ] = None,
    seed: SeedOption = None,
    repeat: RepeatOption = 1,
    topology: Annotated[
        str | None,
        typer.Option(
            "--topology",
            "-t",
            metavar="NAME|FILE",
            help="Which nodes, instead of the experiment's own.",
            show_default=False,
            autocompletion=complete.topology,
        ),
    ] = None,
    workers: WorkersOption = None,
    settings: SetOption = None,
    backend: BackendToUse = "auto",
    health: HealthOfRun = None,
    rpc_fault: RpcFaultOption = None,
    keep: KeepOption = False,
    reuse: ReuseOption = None,
    name: NameOfNew = None,
    image: ImageOption = None,
    start_parallelism: ParallelismOption = None,
    faults: FaultOption = None,
    file: ScheduleFileOption = None,
    rate: RateOption = None,
    budget: BudgetOption = None,
    as_json: AsJson = False,
    junit: JunitOption = None,
) -> None:
    """Run an experiment: start a cluster, load it, break it, judge, report, take it down.

    With `--fault` or `--file` other faults than the experiment's own are done; `schedule` shows them without
    running anything.

    Ctrl-C once heals, collects and takes down, then reports what there is; twice stops at once. Exit
    codes: 0 valid, 1 invalid, 3 unknown, 4 could not run.
    """
    from simulator.cli.screen import Screen
    from simulator.runner import Runner
    from simulator.store import Store

    backend_chosen, request = _request(
        experiment, params or [], seed, topology, workers, settings or [], backend, health, keep,
        reuse, name, image, start_parallelism, junit, (faults or [], file, rate, budget),
        rpc_fault or (),
    )  # fmt: skip
    title = f"{request.experiment.name} on {backend_chosen.name}"
    with Screen(title, runs=repeat).showing() as screen:
        runner = Runner(backend_chosen, Store(), listener=screen.listener())
        results = runner.repeat(request, repeat)
    show_results(results, as_json, junit, several=repeat > 1)
    if request.keep and not reuse:
        say_kept(results[-1])
    raise typer.Exit(exit_code_of(results))


def _request(
    source: str,
    params: Sequence[str],
    seed: int | None,
    topology: str | None,
    workers: int | None,
    settings: Sequence[str],
    backend: str,
    health: str | None,
    keep: bool,
    reuse: str | None,
    name: str | None,
    image: str | None,
    start_parallelism: int | None,
    junit: str | None,
    faults: tuple[Sequence[str], Path | None, float | None, int | None],
    rpc_texts: Sequence[str],
) -> tuple[Any, RunRequest]:
    """The backend and what is to be run on it; raises `BadInput` with every problem."""
    from simulator.cli.asked import AskedFaults
    from simulator.cli.place import choose, refuse_contradictions
    from simulator.cli.plan import Problems, load_nodes, replay_command
    from simulator.experiment import load_experiment, plan_problems
    from simulator.faults import rpc_faults
    from simulator.runner import RunRequest

    problems = Problems()
    loaded = problems.attempt(source, lambda: load_experiment(source))
    parsed = problems.attempt("--param", lambda: loaded.parse_params(params)) if loaded else None
    refuse_contradictions(problems, backend, health, name, reuse, image)
    problems.output_file("--junit", junit)
    problems.attempt("--rpc-fault", lambda: rpc_faults(rpc_texts))

    nodes = None
    shaped = topology is not None or workers is not None or bool(settings)
    if loaded is not None and (reuse is None or shaped):
        nodes = load_nodes(problems, topology or loaded.topology, workers, settings)
    elif loaded is None and topology is not None:
        load_nodes(problems, topology, workers, settings)
    texts, file, rate, budget = faults
    if loaded is not None and parsed is not None and nodes is not None:
        own = not texts and file is None
        problems.found.extend(plan_problems(loaded, parsed, nodes, own_faults=own))
    # The experiment's file may have registered faults of its own.
    asked = AskedFaults.read(problems, texts, file, rate, budget, nodes)
    problems.raise_any()
    assert loaded is not None

    place = choose(
        problems, backend, health, name, reuse, nodes,
        rpc_asked=rpc_texts, rpc_own=loaded.rpc_faults,
    )  # fmt: skip
    seed = secrets.randbelow(2**31) if seed is None else seed
    steps = None
    if texts or file is not None:
        steps = asked.all_steps(place.backend, place.nodes, seed)
    return place.backend, RunRequest(
        experiment=loaded,
        params=parsed,
        topology=place.nodes,
        source=source,
        seed=seed,
        health=place.health,
        name=name,
        reuse=reuse,
        keep=keep,
        image=image,
        command=replay_command(
            ["run", source], place.backend.name, topology=topology, workers=workers,
            settings=settings, params=params, health=place.health, image=image, reuse=reuse,
            rpc_faults=place.rpc_faults,
            faults=[str(step) for step in steps or ()],
        ),
        rpc_faults=place.rpc_faults,
        start_parallelism=start_parallelism,
        steps=steps,
    )  # fmt: skip


def show_results(
    results: Sequence[Mapping[str, Any]], as_json: bool, junit: str | None, *, several: bool
) -> None:
    from simulator.report import render_repeats, render_terminal, summarise

    if junit is not None:
        _write_junit([Path(r["run_dir"]) for r in results], junit)
    with output.reader_may_leave():
        if as_json:
            objects = [run_data(r) for r in results]
            summary = {"runs": objects, "summary": summarise(results)}
            output.print_json(summary if several else objects[0])
        elif several:
            console = output.data_console()
            render_repeats(results, console)
            for result in results:
                output.print_line(f"{result['verdict']:8} {result['report']}")
        else:
            render_terminal(Path(results[0]["run_dir"]), output.data_console())
    for result in results:
        if result["error"]:
            output.say(f"error: {result['error']}", "red")
        if as_json:
            output.say(f"{result['verdict']}; report: {result['report']}")


def run_data(result: Mapping[str, Any]) -> dict[str, Any]:
    """The object that ``run --json`` prints: what a program needs of ``result.json``."""
    keys = (
        "experiment", "backend", "status", "verdict", "seed", "run_dir", "report", "topology",
        "ray_version", "health", "gpu",
    )  # fmt: skip
    return {
        **{key: result[key] for key in keys},
        "findings": [
            {key: finding[key] for key in ("check", "verdict", "summary")}
            for finding in result["findings"]
        ],
        "recovery": dict(result["recovery"]),
        "params": dict(result["params"]),
        "rpc_faults": list(result.get("rpc_faults", ())),
        **{key: result[key] for key in ("program", "losses", "costs") if key in result},
    }


def exit_code_of(results: Sequence[Mapping[str, Any]]) -> int:
    from simulator.runner import EXIT_ORDER, exit_code

    codes = {exit_code(result) for result in results}
    return next(code for code in EXIT_ORDER if code in codes)


def say_kept(result: Mapping[str, Any]) -> None:
    from simulator.store import RunDir

    cluster = RunDir(Path(result["run_dir"])).spec()["cluster"]
    output.say(
        f"Cluster {cluster} stays up; take it down with: python -m simulator down --name {cluster}"
    )


def refuse_unwritable(junit: str | None) -> None:
    from simulator.cli.plan import Problems

    problems = Problems()
    problems.output_file("--junit", junit)
    problems.raise_any()


def _write_junit(runs: Sequence[Path], file: str) -> None:
    from simulator.report import junit_xml

    Path(file).write_text(junit_xml(runs), encoding="utf-8")
    output.say(f"JUnit XML: {file}")


def check(run: RunArgument, as_json: AsJson = False, junit: JunitOption = None) -> None:
    """Judge a run again, from its directory alone.

    A history that is cut off is judged up to there. Exit codes as of `run`.
    """
    from simulator.runner import judge_run
    from simulator.store import Store

    refuse_unwritable(junit)
    found = Store().find(run)
    found.whole_spec()
    result = judge_run(found)
    show_results([result], as_json, junit, several=False)
    raise typer.Exit(exit_code_of([result]))


def report(
    run: RunArgument = "latest",
    open_it: Annotated[
        bool, typer.Option("--open/--no-open", help="Open it in a browser.")
    ] = False,
    junit: JunitOption = None,
) -> None:
    """Write a run's HTML report again and print its path.

    It needs the run's directory only, no cluster and no network.
    """
    from simulator.report import write_html
    from simulator.rescue import conclude
    from simulator.store import Store

    refuse_unwritable(junit)
    found = Store().find(run)
    if conclude(found):
        output.say("its orchestrator ended before it did: judged as interrupted")
    path = write_html(found.path)
    if junit is not None:
        _write_junit([found.path], junit)
    output.print_line(str(path))
    if open_it:
        typer.launch(path.as_uri())


def runs(as_json: AsJson = False) -> None:
    """List all runs in ./runs (or $RAY_SIM_RUNS), oldest first."""
    from simulator.cli.tables import runs_view
    from simulator.store import Store

    store = Store()
    rows = [_run_row(found) for found in store.list()]
    if as_json:
        output.print_json(rows)
    elif rows:
        output.data_console().print(runs_view(rows))
    else:
        output.say(
            f"there is no run in {store.root}; make one with: python -m simulator run node_failure"
        )


def _run_row(found: Any) -> dict[str, Any]:
    """One run as far as its files can be read; a damaged one is listed too."""
    from simulator.errors import SimulatorError

    spec: Mapping[str, Any] = {}
    result: Mapping[str, Any] = {}
    with suppress(SimulatorError, OSError):  # what could be read is shown
        spec = found.spec()
        result = found.result() or {}
    return {
        "run_id": found.path.name,
        "experiment": spec.get("experiment", found.path.parent.name),
        "started": spec.get("started"),
        "backend": spec.get("backend"),
        "seed": spec.get("seed"),
        "status": result.get("status", "no end"),
        "verdict": result.get("verdict"),
        "run_dir": str(found.path),
    }
