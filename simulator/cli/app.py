"""All commands, in the order in which a newcomer meets them.

Importing this module must stay quick, since every ``--help`` pays for it: commands import what they need
when they run.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from simulator import __version__
from simulator.cli import clusters, machine, output, runs
from simulator.cli.run_help import RunCommand

app = typer.Typer(
    name="ray-sim",
    help="A real multi-node Ray cluster on this machine, broken on purpose: what was lost, what ran "
    "twice, and where the seconds went.",
    epilog="Start with: python -m simulator doctor\n"
    "Then:       python -m simulator run node_failure\n\n"
    "Exit codes: 0 valid or done, 1 invalid, 2 wrong usage, 3 unknown, 4 could not run.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["--help", "-h"]},
)

_CLUSTERS = "Clusters by hand"
_EXPERIMENTS = "Experiments and runs"
_MACHINE = "This machine"


def examples(*lines: str) -> str:
    """An epilog of command lines, each on a line of its own."""
    return "\n".join(["Examples:", *(f"  python -m simulator {line}" for line in lines)])


def _show_version(asked: bool) -> None:
    if asked:
        output.print_line(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", help="Print the version and exit.", callback=_show_version, is_eager=True
        ),
    ] = False,
) -> None:
    """Options of the program itself."""


def paragraphs(function: Callable[..., Any]) -> str:
    """A function's docstring with each paragraph on one line, to be wrapped at any width."""
    text = inspect.cleandoc(function.__doc__ or "")
    return "\n\n".join(" ".join(part.split()) for part in text.split("\n\n"))


def _add(
    name: str,
    function: Callable[..., None],
    panel: str,
    *lines: str,
    to: typer.Typer = app,
    cls: type[TyperCommand] = TyperCommand,
) -> None:
    to.command(
        name, cls=cls, rich_help_panel=panel, epilog=examples(*lines), help=paragraphs(function)
    )(function)


_add("up", clusters.up, _CLUSTERS, "up", "up --workers 16", "up --name two --topology cpu_only",
     "up --image rayproject/ray:2.60.0-py311")  # fmt: skip
_add("down", clusters.down, _CLUSTERS, "down", "down --name two", "down --all")
_add("status", clusters.status, _CLUSTERS, "status", "status --watch", "status --json")
_add("kill", clusters.kill, _CLUSTERS, "kill worker-1", "kill head --name two")
_add("restart", clusters.restart, _CLUSTERS, "restart worker-1")
_add("pause", clusters.pause, _CLUSTERS, "pause worker-1")
_add("resume", clusters.resume, _CLUSTERS, "resume worker-1")
_add("logs", clusters.logs, _CLUSTERS, "logs worker-1", "logs head --tail 20 --follow")
_add("exec", clusters.execute, _CLUSTERS, "exec head -- ray status",
     'exec worker-2 -- python -c "import ray; print(ray.__version__)"')  # fmt: skip
_add("clusters", clusters.clusters, _CLUSTERS, "clusters", "clusters --json")

_add("experiments", runs.experiments, _EXPERIMENTS, "experiments", "run node_failure --help")
_add("run", runs.run, _EXPERIMENTS, "run node_failure",
     "run node_failure --param tasks=500 --param victim=worker-2 --seed 7",
     "run node_failure --backend docker --repeat 10 --json", "run ./my_experiment.py --workers 5",
     "run node_failure --help", cls=RunCommand)  # fmt: skip
_add("check", runs.check, _EXPERIMENTS, "check latest", "check node_failure/latest --json")
_add("report", runs.report, _EXPERIMENTS, "report latest", "report latest --junit report.xml")
_add("runs", runs.runs, _EXPERIMENTS, "runs", "runs --json")

_add(
    "doctor",
    machine.doctor,
    _MACHINE,
    "doctor",
    "doctor --workers 16 --json",
    "doctor --image rayproject/ray:2.60.0",
)
image = typer.Typer(
    help="The node image (Docker).", no_args_is_help=True, pretty_exceptions_enable=False
)
_add("build", machine.build_image, _MACHINE, "image build", "image build --target gpu", to=image)
app.add_typer(image, name="image", rich_help_panel=_MACHINE)
