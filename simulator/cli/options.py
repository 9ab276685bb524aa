"""Options that several commands share, so that each reads the same everywhere."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated

import typer

from simulator.cli import complete

#: Where nodes may run, and how Ray detects a lost one: `select.NAMES` and `cluster.HEALTH`, which cost
#: too much to load for a help text or a shell that completes a word; a test holds them together.
BACKENDS = ("auto", "docker", "process")
HEALTHS = ("ray", "fast")

#: The name of a cluster that is brought up by hand, unless told otherwise.
DEFAULT_NAME = "ray-sim"

#: The longest that anything may be told to take, seconds: a week, and not inf.
MOST_SECONDS = 7 * 24 * 3600.0


def a_number(value: float | None) -> float | None:
    """Refuse nan, which is above no limit and below none."""
    if value is not None and math.isnan(value):
        raise typer.BadParameter("nan is not a number of seconds.")
    return value


def command_line(words: str, name: str | None) -> str:
    """A command line to do next, naming the cluster if the user had to."""
    return f"python -m simulator {words}{f' --name {name}' if name else ''}"


NameOfExisting = Annotated[
    str | None,
    typer.Option(
        "--name",
        "-n",
        metavar="CLUSTER",
        help="Which cluster; may be left out when there is only one.",
        show_default=False,
        autocompletion=complete.cluster,
    ),
]

BackendOfExisting = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="|".join(BACKENDS),
        autocompletion=complete.choices(*BACKENDS),
        help="Look for the cluster on this backend only; auto looks on all that answer.",
    ),
]

BackendToUse = Annotated[
    str,
    typer.Option(
        "--backend",
        metavar="|".join(BACKENDS),
        autocompletion=complete.choices(*BACKENDS),
        help="Where nodes run: containers or process groups; auto takes Docker if an engine answers.",
    ),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on standard output.")]

NodeArgument = Annotated[
    str,
    typer.Argument(
        metavar="NODE",
        help="Name of the node: head, worker-1, ...",
        autocompletion=complete.node,
    ),
]

WorkersOption = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-w",
        metavar="N",
        min=0,
        help="This many workers in the topology's first worker group.",
        show_default=False,
    ),
]

SetOption = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Change one value of the topology, such as head.resources.CPU=2; may be repeated.",
        show_default=False,
    ),
]

ImageOption = Annotated[
    str | None,
    typer.Option(
        "--image",
        metavar="IMAGE",
        help="Node image of your own, instead of ours, lean ones too (Docker).",
        show_default=False,
    ),
]

RpcFaultOption = Annotated[
    list[str] | None,
    typer.Option(
        "--rpc-fault",
        metavar="FAULT",
        help="Let calls between Ray's own processes fail or be late, for all of the cluster's life: "
        "'RequestWorkerLease fails 25%' or 'PushTask delays 10ms..50ms'; may be repeated.",
        show_default=False,
    ),
]

ParallelismOption = Annotated[
    int | None,
    typer.Option(
        "--start-parallelism",
        metavar="N",
        min=1,
        help="How many nodes may start at a time; by default what the cores carry.",
        show_default=False,
    ),
]

JoinTimeout = Annotated[
    float,
    typer.Option(
        "--timeout",
        metavar="SECONDS",
        min=1.0,
        max=MOST_SECONDS,
        callback=a_number,
        help="How long one node may take to join.",
    ),
]

SeedOption = Annotated[
    int | None,
    typer.Option(
        "--seed",
        metavar="N",
        min=0,
        help="Fixes every draw; without it one is drawn and recorded.",
        show_default=False,
    ),
]

RepeatOption = Annotated[
    int,
    typer.Option(
        "--repeat", metavar="N", min=1, help="N runs on one cluster, then the distribution."
    ),
]

HealthOfRun = Annotated[
    str | None,
    typer.Option(
        "--health",
        metavar="|".join(HEALTHS),
        autocompletion=complete.choices(*HEALTHS),
        help="How Ray detects a lost node: fast (about 4 s, the default) or its own settings.",
        show_default=False,
    ),
]

KeepOption = Annotated[bool, typer.Option("--keep", help="Leave the cluster up at the end.")]

ReuseOption = Annotated[
    str | None,
    typer.Option(
        "--reuse",
        metavar="CLUSTER",
        help="Run on a cluster that is up, and leave it up.",
        show_default=False,
        autocompletion=complete.cluster,
    ),
]

NameOfNew = Annotated[
    str | None,
    typer.Option(
        "--name",
        "-n",
        metavar="CLUSTER",
        help="Name of the cluster that is made; by default one that is free.",
        show_default=False,
    ),
]

WorkingDirOption = Annotated[
    str | None,
    typer.Option(
        "--working-dir",
        metavar="DIR",
        help="Ship this folder too: the script's current folder on every node. Left out is what "
        ".gitignore and .rayignore say.",
        show_default=False,
    ),
]

RuntimeEnvOption = Annotated[
    str | None,
    typer.Option(
        "--runtime-env",
        metavar="FILE|JSON",
        help="Ray's runtime_env: a YAML or JSON file, or JSON itself.",
        show_default=False,
    ),
]

JunitOption = Annotated[
    str | None,
    typer.Option(
        "--junit",
        metavar="FILE",
        help="Also write the findings as JUnit XML.",
        show_default=False,
    ),
]

FaultOption = Annotated[
    list[str] | None,
    typer.Option(
        "--fault",
        metavar="STEPS",
        help='What to break, such as "kill one(worker) @20s for 15s", or random; may be repeated.',
        show_default=False,
        autocompletion=complete.fault,
    ),
]

ScheduleFileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        "-f",
        metavar="FILE",
        help="More faults: a file with one step a line, or a YAML list.",
        show_default=False,
    ),
]

RateOption = Annotated[
    float | None,
    typer.Option(
        "--rate",
        metavar="PER_SECOND",
        help="Of random faults: how many a second on average, 0.1 unless told otherwise.",
        show_default=False,
    ),
]

BudgetOption = Annotated[
    int | None,
    typer.Option(
        "--budget",
        metavar="N",
        help="Of random faults: how many, 5 unless told otherwise.",
        show_default=False,
    ),
]

RunArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run: its directory, its id, node_failure/latest, or latest.",
        autocompletion=complete.run,
    ),
]
