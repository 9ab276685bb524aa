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
from simulator.cli import (
    catalog,
    chaos,
    clusters,
    healing,
    jobs,
    machine,
    nodes,
    output,
    replays,
    runs,
    schedules,
)
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
_NODES = "One node"
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
     "up --autoscale --set autoscaling.idle_timeout=20s", "up --image rayproject/ray:2.60.0-py311")  # fmt: skip
_add("down", clusters.down, _CLUSTERS, "down", "down --name two", "down --all")
_add("stop", clusters.stop, _CLUSTERS, "stop", "stop --name two --grace 30")
_add("start", clusters.start, _CLUSTERS, "start", "start --name two")
_add("scale", clusters.scale, _CLUSTERS, "scale worker=5", "scale cpu=2 gpu=0 --name two --json")
_add("status", clusters.status, _CLUSTERS, "status", "status --watch", "status --json")
_add("autoscaler", clusters.autoscaler, _CLUSTERS, "autoscaler", "autoscaler --name two")
_add("nodes", clusters.nodes, _CLUSTERS, "nodes", "nodes --json")
_add("monitor", clusters.monitor, _CLUSTERS, "monitor", "monitor --for 60 --json")
_add("submit", jobs.submit, _CLUSTERS, "submit train.py", "submit train.py 3 fast",
     "submit --working-dir . src/train.py",
     """submit --runtime-env '{"env_vars": {"EPOCHS": "3"}}' train.py""",
     "submit --no-wait train.py", cls=jobs.SubmitCommand)  # fmt: skip
_add("dashboard", jobs.dashboard, _CLUSTERS, "dashboard", "dashboard --open",
     "dashboard --token")  # fmt: skip
_add("heal", healing.heal, _CLUSTERS, "heal", "heal two", "heal node_failure/latest")
_add("clusters", clusters.clusters, _CLUSTERS, "clusters", "clusters --json")

_add("kill", nodes.kill, _NODES, "kill worker-1", "kill head --name two")
_add("restart", nodes.restart, _NODES, "restart worker-1")
_add("pause", nodes.pause, _NODES, "pause worker-1")
_add("resume", nodes.resume, _NODES, "resume worker-1")
_add("logs", nodes.logs, _NODES, "logs worker-1", "logs head --tail 20 --follow")
_add("exec", nodes.execute, _NODES, "exec head -- ray status",
     'exec worker-2 -- python -c "import ray; print(ray.__version__)"')  # fmt: skip
_add("attach", nodes.attach, _NODES, "attach worker-1")
_add("cp", nodes.cp, _NODES, "cp my_job.py head:/tmp", "cp data/. worker-1:input",
     "cp worker-1:/tmp/ray/session_latest/logs ./logs-of-worker-1")  # fmt: skip

_add("init", catalog.init, _EXPERIMENTS, "init", "init lab")
_add("topologies", catalog.topologies, _EXPERIMENTS, "topologies", "topologies hybrid",
     "topologies ./mine.yaml --json")  # fmt: skip
_add("faults", schedules.faults, _EXPERIMENTS, "faults", "faults --backend docker --json")
_add("schedule", schedules.schedule, _EXPERIMENTS,
     'schedule "kill one(worker) @20s for 15s; pause worker-1 @60s" --seed 7',
     "schedule --file faults.yaml --backend docker", "schedule random --rate 0.2 --budget 5",
     cls=TyperCommand)  # fmt: skip
_add("experiments", runs.experiments, _EXPERIMENTS, "experiments", "run node_failure --help")
_add("run", runs.run, _EXPERIMENTS, "run node_failure",
     "run node_failure --param tasks=500 --param victim=worker-2 --seed 7",
     "run node_failure --backend docker --repeat 10 --json", "run ./my_experiment.py --workers 5",
     'run node_failure --fault "pause one(worker) @10s until dead"',
     "run node_failure --help", cls=RunCommand)  # fmt: skip
_add("chaos", chaos.chaos, _EXPERIMENTS, 'chaos my_app.py --fault "kill one(worker) @20s for 15s"',
     'chaos my_app.py --baseline --seed 7 --fault "kill one(worker) @20s" -- --epochs 3',
     'chaos src/my_app.py --working-dir . --fault "pause worker-2 @10s for 30s" --repeat 5',
     "chaos my_app.py --fault random --budget 3", cls=chaos.ChaosCommand)  # fmt: skip
_add("replay", replays.replay, _EXPERIMENTS, "replay", "replay node_failure/latest --repeat 5")
_add(
    "shrink",
    replays.shrink,
    _EXPERIMENTS,
    "shrink chaos/latest",
    "shrink latest --budget 20 --json",
)
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
