"""Commands about what can be broken, and about when what will be: nothing is broken by them."""

from __future__ import annotations

import secrets
from typing import Annotated, Any

import typer

from simulator.cli import complete, output
from simulator.cli.options import (
    BACKENDS,
    AsJson,
    BackendToUse,
    BudgetOption,
    RateOption,
    ScheduleFileOption,
    SetOption,
    WorkersOption,
)

TopologyOption = Annotated[
    str,
    typer.Option(
        "--topology",
        "-t",
        metavar="NAME|FILE",
        help="The nodes that there would be.",
        autocompletion=complete.topology,
    ),
]


def faults(
    backend: BackendToUse = "auto",
    topology: TopologyOption = "default",
    as_json: AsJson = False,
) -> None:
    """List every way to break a node: what it does, its parameters, whether it can be done here, an example.

    Where only a trial can tell, it is tried. Examples name the topology's first group of workers.
    """
    from simulator.backends import select
    from simulator.cli.plan import Problems
    from simulator.cli.timetables import faults_view
    from simulator.faults import FAULTS
    from simulator.topology import load_topology

    problems = Problems()
    problems.one_of("--backend", backend, select.NAMES)
    nodes = problems.attempt(f"--topology {topology}", lambda: load_topology(topology))
    problems.raise_any()
    assert nodes is not None
    choice = select.choose(backend)
    output.say(f"Backend: {choice.why}")
    group = next((g.group_name for g in nodes.worker_groups), "worker")
    rows = [_fault_row(kind, choice.backend, group) for kind in FAULTS.values()]
    if as_json:
        output.print_json(rows)
        return
    output.data_console().print(faults_view(rows, choice.backend.name))
    output.say('Whom, when and how long: python -m simulator schedule "..."', "dim")


def _fault_row(kind: Any, backend: Any, group: str) -> dict[str, Any]:
    from simulator.cli.params import type_name
    from simulator.faults.parameters import parameters
    from simulator.schedule import example_of

    why_not = kind().unable(backend)
    return {
        "name": kind.name,
        "summary": kind.summary,
        "parameters": [
            {
                "name": p.name,
                "type": type_name(p.hint),
                "default": p.default,
                "unit": p.unit,
                "description": p.means,
            }
            for p in parameters(kind).values()
        ],
        "undo": kind.undo,
        "able": why_not is None,
        "why_not": why_not,
        "example": example_of(kind, group),
    }


def schedule(
    steps: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[STEPS]...",
            help="What to break, whom and when, in the language of schedules, or random.",
            show_default=False,
            autocompletion=complete.fault,
        ),
    ] = None,
    topology: TopologyOption = "default",
    workers: WorkersOption = None,
    settings: SetOption = None,
    seed: Annotated[
        int | None,
        typer.Option(
            "--seed",
            metavar="N",
            min=0,
            help="Fixes every draw; without it one is drawn and shown.",
            show_default=False,
        ),
    ] = None,
    file: ScheduleFileOption = None,
    rate: RateOption = None,
    budget: BudgetOption = None,
    backend: Annotated[
        str | None,
        typer.Option(
            "--backend",
            metavar="|".join(BACKENDS),
            autocompletion=complete.choices(*BACKENDS),
            help="Refuse what cannot be done there; random faults are drawn from what can.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Show the timeline of a schedule without running it: when what hits whom, and when it is undone.

    What is drawn, by `run` too, depends on the seed alone. Whom only the running cluster can tell is said so.
    """
    from random import Random

    from simulator.backends import select
    from simulator.cli.asked import AskedFaults
    from simulator.cli.plan import Problems, load_nodes
    from simulator.cli.timetables import schedule_view
    from simulator.errors import CannotRun, Problem
    from simulator.report.console import show
    from simulator.schedule import misplaced, resolve, unable

    problems = Problems()
    if backend is not None:
        problems.one_of("--backend", backend, select.NAMES)
    if not steps and file is None:
        example = 'python -m simulator schedule "kill one(worker) @20s"'
        problems.found.append(Problem("STEPS", "are missing", f"for example: {example}"))
    nodes = load_nodes(problems, topology, workers, settings or [])
    asked = AskedFaults.read(problems, steps or [], file, rate, budget, nodes, where="STEPS")
    problems.raise_any()
    assert nodes is not None
    seed = secrets.randbelow(2**31) if seed is None else seed
    chosen = None
    if backend is not None or asked.chance is not None:
        choice = select.choose(backend or "auto")
        chosen = choice.backend
        output.say(f"Backend: {choice.why}")
    planned = resolve(asked.all_steps(chosen, nodes, seed), nodes, Random(seed))
    problems.found.extend(misplaced(planned, nodes))
    problems.raise_any()
    refused = unable(planned, chosen) if chosen is not None else []
    if refused:
        raise CannotRun("this backend cannot do it", why="; ".join(refused))
    if as_json:
        output.print_json(
            {
                "topology": nodes.name,
                "seed": seed,
                "backend": chosen.name if chosen is not None else None,
                "faults": [p.to_data() for p in planned],
            }
        )
        return
    console = output.data_console()
    show(console, schedule_view(planned, nodes, seed, console.width))
    if chosen is None:
        output.say("Whether it can be done here: --backend auto", "dim")
