"""Commands about what there is to start from: the topologies, and a starter for one's own project."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from simulator.cli import complete, output
from simulator.cli.options import AsJson

if TYPE_CHECKING:
    from simulator.topology import Topology


def topologies(
    topology: Annotated[
        str | None,
        typer.Argument(
            metavar="NAME|FILE",
            help="Show this one with its groups.",
            autocompletion=complete.topology,
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """List the topologies that come with the package, with the resources that each offers."""
    from simulator.cli.tables import topologies_view, topology_view
    from simulator.topology import known_topologies, load_topology

    if topology is not None:
        shown = load_topology(topology)
        path = known_topologies().get(topology, Path(topology))
        row = {
            **_row(shown, path),
            **shown.model_dump(mode="json", include={"head", "driver_node", "worker_groups"}),
        }
        if as_json:
            output.print_json(row)
        else:
            output.data_console().print(topology_view(row))
        return
    rows = [_row(load_topology(name), path) for name, path in known_topologies().items()]
    if as_json:
        output.print_json(rows)
        return
    output.data_console().print(topologies_view(rows))
    output.say("One in full: python -m simulator topologies NAME; "
               "start it: python -m simulator up --topology NAME", "dim")  # fmt: skip


def _row(topology: Topology, path: Path) -> dict[str, Any]:
    nodes = topology.nodes()
    names = dict.fromkeys(name for node in nodes for name in node.resources)
    return {
        "name": topology.name,
        "description": topology.description,
        "path": str(path.absolute()),
        "nodes": len(nodes),
        "resources": {name: topology.total(name) for name in names},
    }


def init(
    folder: Annotated[
        str, typer.Argument(metavar="DIR", help="Where to write; made if it is missing.")
    ] = ".",
) -> None:
    """Write a starter into your project: an experiment, its topology, and a test of it.

    It runs as it is. Nothing is overwritten: if a file of these names is there, nothing is written.
    """
    from simulator.errors import BadInput, Problem
    from simulator.starter import write_starter

    if not folder:
        raise BadInput(
            Problem(
                "DIR", "is empty", "name a folder, . for this one; is a shell variable not set?"
            )
        )
    written = write_starter(Path(folder))
    for path in written:
        output.print_line(str(path))
    experiment = next(path for path in written if path.name == "my_experiment.py")
    shown = shlex.quote(str(experiment) if experiment.is_absolute() else f"./{experiment}")
    test = next(path for path in written if path.name.startswith("test_"))
    tested = str(test) if not str(test).startswith("-") else f"./{test}"
    output.say(
        "\nNext:\n"
        f"  python -m simulator run {shown}          # on this machine, for real\n"
        f"  python -m simulator run {shown} --help   # its parameters\n"
        f"  python -m pytest {shlex.quote(tested)}   # its test, with pytest: in memory, seconds\n"
        "Then change the claim, the fault and the check to your own."
    )
