"""Commands that do a recorded run again: the same faults, or as few of them as still make it fail."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli import complete, output
from simulator.cli.options import BACKENDS, AsJson, JunitOption, RunArgument

if TYPE_CHECKING:
    from simulator.backends.base import Backend

BackendOfRun = Annotated[
    str | None,
    typer.Option(
        "--backend",
        metavar="|".join(BACKENDS),
        autocompletion=complete.choices(*BACKENDS),
        help="Where nodes run; by default where they ran.",
        show_default=False,
    ),
]


def replay(
    run: RunArgument = "latest",
    repeat: Annotated[
        int, typer.Option("--repeat", metavar="N", min=1, help="N runs on one cluster, all alike.")
    ] = 1,
    backend: BackendOfRun = None,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the cluster up at the end.")] = False,
    as_json: AsJson = False,
    junit: JunitOption = None,
) -> None:
    """Do a run again: the same faults on the same targets, at the same times or conditions.

    What depended on the cluster (the node of an actor, the busiest) is taken from what was recorded. How
    tasks interleave is not promised: that is up to Ray and the machine. Exit codes as of `run`.
    """
    from dataclasses import replace

    from simulator.cli.runs import exit_code_of, refuse_unwritable, say_kept, show_results
    from simulator.cli.screen import Screen
    from simulator.runner import Runner, replay_request
    from simulator.store import Store

    refuse_unwritable(junit)
    found = Store().find(run)
    request = replace(replay_request(found), keep=keep)
    chosen = _backend(backend, found.spec()["backend"])
    output.say(f"Replaying {found.path.name} on {chosen.name}")
    title = f"replay of {request.experiment.name} on {chosen.name}"
    with Screen(title, runs=repeat).showing() as screen:
        results = Runner(chosen, Store(), listener=screen.listener()).repeat(request, repeat)
    show_results(results, as_json, junit, several=repeat > 1)
    if keep:
        say_kept(results[-1])
    raise typer.Exit(exit_code_of(results))


def shrink(
    run: RunArgument = "latest",
    budget: Annotated[
        int, typer.Option("--budget", metavar="N", min=1, help="At most this many runs.")
    ] = 30,
    backend: BackendOfRun = None,
    as_json: AsJson = False,
) -> None:
    """Find the smallest part of a failing run's schedule that still makes it fail.

    Each try is a whole run, all on one cluster. The smallest failing run is kept and can be replayed. Exit
    codes: 0 it was found, 3 the budget ended before that was certain, 4 it did not fail again.
    """
    from simulator.cli.screen import Screen
    from simulator.runner import shrink_run
    from simulator.store import Store

    found = Store().find(run)
    chosen = _backend(backend, found.spec()["backend"])
    with Screen(f"shrinking {found.path.name} on {chosen.name}", runs=budget).showing() as screen:
        shrunk = shrink_run(
            chosen, Store(), found, budget=budget, listener=screen.listener(), say=screen.say
        )
    assert shrunk.smallest is not None
    steps = [p.to_data() for p in shrunk.plan]
    if as_json:
        output.print_json(
            {
                "faults": steps,
                "runs": shrunk.runs,
                "complete": shrunk.complete,
                "run_dir": str(shrunk.smallest.path),
            }
        )
    else:
        for step in steps:
            output.print_line(f"{step['id']}: {step['fault']} of {step['target']} {step['when']}")
    more = "" if shrunk.complete else "; the budget ended, and there may be less (--budget)"
    output.say(f"{len(steps)} faults are enough, found in {shrunk.runs} runs{more}")
    output.say(f"Replay it: python -m simulator replay {shrunk.smallest.path}")
    raise typer.Exit(0 if shrunk.complete else 3)


def _backend(asked: str | None, recorded: str) -> Backend:
    from simulator.backends import select
    from simulator.cli.plan import Problems

    if asked is not None:
        problems = Problems()
        problems.one_of("--backend", asked, select.NAMES)
        problems.raise_any()
    return select.choose(asked or recorded).backend
