"""The command that restores a cluster after its orchestrator is gone."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli import complete, output
from simulator.cli.options import AsJson, BackendOfExisting, JoinTimeout

if TYPE_CHECKING:
    from simulator.cli.find import Found
    from simulator.store import RunDir


def heal(
    what: Annotated[
        str | None,
        typer.Argument(
            metavar="CLUSTER|RUN",
            help="A cluster, or a run whose cluster is meant; may be left out when there is only one "
            "cluster.",
            show_default=False,
            autocompletion=complete.cluster,
        ),
    ] = None,
    backend: BackendOfExisting = "auto",
    timeout: JoinTimeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Undo every fault that holds on a cluster, and have all of its nodes alive.

    For a cluster whose run was killed, and for one that was broken by hand. What was injected is read from
    the run's history; what is found without it (frozen nodes, network rules, limits) is undone too. Doing it
    again changes nothing.
    """
    from simulator.errors import CannotRun
    from simulator.healing import heal as heal_cluster
    from simulator.rescue import unfinished_runs

    found, run = _meant(what, backend)
    if found is None:
        assert run is not None
        if as_json:
            output.print_json({"cluster": None, "done": [], "problems": []})
        output.say(f"the cluster of run {run.path.name} is gone; nothing to heal")
        return
    runs = unfinished_runs(found.record)
    healing = heal_cluster(found.cluster, runs, timeout=timeout, say=output.say)
    if as_json:
        output.print_json(
            {"cluster": found.name, "done": healing.done, "problems": healing.problems}
        )
    if healing.problems:
        raise CannotRun(
            f"{found.name} could not be healed",
            why=healing.problems[0],
            details=healing.problems[1:],
            remedy=f"Take it down: python -m simulator down --name {found.name}",
        )
    output.say(
        f"{found.name}: " + ("every node is alive" if healing.done else "nothing was to be healed")
    )


def _meant(what: str | None, backend: str) -> tuple[Found | None, RunDir | None]:
    """The cluster of this name, or that of the run of this name; None for a cluster that is gone."""
    from simulator.cli.find import find, search
    from simulator.errors import NotFound
    from simulator.store import Store

    try:
        return find(what, backend), None
    except NotFound as no_cluster:
        assert what is not None
        try:
            run = Store().find(what)
        except NotFound:
            raise no_cluster from None
    spec = run.spec()
    there = [
        f
        for f in search(backend).found
        if (f.name, f.record.backend) == (spec.get("cluster"), spec.get("backend"))
    ]
    return (there[0] if there else None), run
