"""Commands about clusters: up, down, status, and what is done to one node."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli import complete, output
from simulator.cli.options import (
    DEFAULT_NAME,
    HEALTHS,
    AsJson,
    BackendOfExisting,
    BackendToUse,
    ImageOption,
    NameOfExisting,
    NodeArgument,
    ParallelismOption,
    SetOption,
    WorkersOption,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from simulator.backends.base import ClusterSpec
    from simulator.cli.screen import Screen
    from simulator.cluster import Cluster, Plan

JoinTimeout = Annotated[
    float,
    typer.Option(
        "--timeout", metavar="SECONDS", min=1.0, help="How long one node may take to join."
    ),
]


def up(
    name: Annotated[
        str, typer.Option("--name", "-n", metavar="CLUSTER", help="Name of the cluster.")
    ] = DEFAULT_NAME,
    topology: Annotated[
        str,
        typer.Option(
            "--topology",
            "-t",
            metavar="NAME|FILE",
            help="Which nodes: the name of a topology (list them with: topologies), or a file.",
            autocompletion=complete.topology,
        ),
    ] = "default",
    workers: WorkersOption = None,
    settings: SetOption = None,
    backend: BackendToUse = "auto",
    health: Annotated[
        str,
        typer.Option(
            "--health",
            metavar="|".join(HEALTHS),
            autocompletion=complete.choices(*HEALTHS),
            help="How Ray detects a lost node: its own settings (half a minute and more), or fast "
            "(about 4 s).",
        ),
    ] = "ray",
    image: ImageOption = None,
    start_parallelism: ParallelismOption = None,
    timeout: JoinTimeout = 120.0,
    as_json: AsJson = False,
) -> None:
    """Start a cluster and wait until every node of it is alive.

    Where it is up already, what has exited is started again. If nodes do not join, what was started is
    taken down again.
    """
    from simulator.backends import select
    from simulator.backends.base import ClusterSpec
    from simulator.cli.find import refuse_taken
    from simulator.cli.plan import Problems, load_nodes
    from simulator.cli.screen import Screen
    from simulator.cluster import HEALTH, Cluster
    from simulator.errors import CannotRun

    problems = Problems()
    wanted = load_nodes(problems, topology, workers, settings or ())
    problems.one_of("--health", health, HEALTH)
    problems.one_of("--backend", backend, select.NAMES)
    problems.cluster_name(name)
    problems.raise_any()
    assert wanted is not None

    choice = select.choose(backend)
    output.say(f"Backend: {choice.why}")
    refuse_taken(name, but_on=choice.backend.name)
    cluster = Cluster(choice.backend, name)
    if not any(c.name == name for c in choice.backend.clusters()):
        blocking = [c for c in choice.backend.check(wanted) if c.level == "problem"]
        if blocking:
            raise CannotRun(
                "this machine cannot run it", why="; ".join(str(c.as_problem()) for c in blocking)
            )
    spec = ClusterSpec(
        name=name,
        topology=wanted,
        gpu=choice.backend.gpu_kind(wanted),
        image=image,
        env=HEALTH[health],
    )
    with Screen(f"{name} on {choice.backend.name}").showing() as screen:
        _bring_up(cluster, spec, screen, timeout, start_parallelism)
    _show_status(cluster, as_json)


def _bring_up(
    cluster: Cluster, spec: ClusterSpec, screen: Screen, timeout: float, parallelism: int | None
) -> None:
    """Start it; whatever goes wrong, nothing that this command made is left half-started."""
    from simulator.errors import Interrupted
    from simulator.runner import Interrupts

    made = False

    def on_plan(plan: Plan) -> None:
        nonlocal made
        made = "head" in plan.create
        screen.say(f"{cluster.name}: {_in_short(plan)}")

    interrupts = Interrupts(
        lambda: output.say(
            f"\nStopped at once. Remove what is left with: python -m simulator down --name "
            f"{cluster.name}"
        )
    )
    with interrupts.installed():
        try:
            spec = cluster.backend.prepare(spec, screen.say)
            cluster.up(
                spec,
                timeout=timeout,
                parallelism=parallelism,
                progress=screen.start,
                on_plan=on_plan,
            )
        except BaseException as error:
            interrupts.cleaning = True
            if made:
                screen.say("taking down what was started; Ctrl-C stops at once")
                cluster.down()
            if isinstance(error, Interrupted):  # which speaks of what a run does then
                done = "what was started is taken down again" if made else "nothing was started"
                raise Interrupted(error.what, why=done) from None
            raise


def _in_short(plan: Plan) -> str:
    """A plan as a sentence; of many nodes the first and the last are named."""
    names = plan.start
    if len(names) <= 6:
        return f"starting {', '.join(names)}" if names else "all nodes run already"
    return f"starting {len(names)} nodes, {names[0]}, {names[1]} ... {names[-1]}"


def down(
    name: NameOfExisting = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All clusters of the simulator, on every backend.")
    ] = False,
    backend: BackendOfExisting = "auto",
) -> None:
    """Remove a cluster with everything that carries its label.

    If a run on it was killed, its ledger and logs are saved into the run's directory first, and what
    was recorded is judged.
    """
    from simulator.cli.find import Found, find, search
    from simulator.errors import BadInput, NotFound, Problem, SimulatorError
    from simulator.rescue import take_down

    if everything and name is not None:
        raise BadInput(Problem("--all", f"and --name {name} contradict each other", "use one"))
    looked = search(backend)
    for reason in looked.not_looked:
        output.say(f"not looked: {reason}", "dim")
    there = "was found" if looked.not_looked else "is there"
    if not looked.found and name is None:
        output.say(f"no cluster {there}; nothing to do")
        return
    found: list[Found] = list(looked.found)
    if not everything:
        try:
            found = [find(name, backend)]
        except NotFound as error:
            # Taking down twice is no mistake; a name that is nearly another's may be one.
            if error.near:
                raise
            output.say(f"no cluster {name} {there}; nothing to do")
            return
    failed: list[SimulatorError] = []
    for one in found:
        output.say(f"taking down {one.name} ({one.record.backend})")
        try:
            saved = take_down(one.backend, one.record, output.say)
        except SimulatorError as error:
            failed.append(error)
            continue
        for path in saved:
            output.say(f"saved and judged: {path}")
            output.say(f"  its report: {path / 'report.html'}")
    if failed:
        for other_error in failed[1:]:
            output.show_error(other_error)
        raise failed[0]
    output.say(f"removed {', '.join(f.name for f in found)}")


def status(
    name: NameOfExisting = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option("--interval", metavar="SECONDS", min=0.1, help="How often, with --watch."),
    ] = 1.0,
    backend: BackendOfExisting = "auto",
    as_json: AsJson = False,
) -> None:
    """Show each node: desired, running, alive, resources in use, address, GPU real or simulated."""
    from simulator.cli.find import find

    cluster = find(name, backend).cluster
    if not watch:
        _show_status(cluster, as_json)
        return
    try:
        _watch(cluster, interval, as_json)
    except KeyboardInterrupt:
        return  # that is how one leaves


def _watch(cluster: Cluster, interval: float, as_json: bool) -> None:
    from rich.live import Live

    console = output.data_console()
    if as_json or not console.is_terminal:
        while True:
            _show_status(cluster, as_json)
            time.sleep(interval)
    with Live(console=console, auto_refresh=False, vertical_overflow="visible") as live:
        while True:
            live.update(_watched(cluster), refresh=True)
            time.sleep(interval)


def _watched(cluster: Cluster) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from simulator.cli.tables import status_view

    now = Text(time.strftime("%H:%M:%S   Ctrl-C ends"), "dim")
    return Group(status_view(cluster.status()), now)


def _show_status(cluster: Cluster, as_json: bool) -> None:
    from simulator.cli.tables import status_view

    found = cluster.status()
    if as_json:
        output.print_json(found.to_data())
    else:
        output.data_console().print(status_view(found))


def _command(verb: str, node: str, name: str | None) -> str:
    """A command line about one node, naming the cluster if the user had to."""
    return f"python -m simulator {verb} {node}{f' --name {name}' if name else ''}"


def kill(
    node: NodeArgument, name: NameOfExisting = None, backend: BackendOfExisting = "auto"
) -> None:
    """Kill a node with SIGKILL, as when a machine loses power."""
    from simulator.cli.find import find

    find(name, backend).cluster.kill(node)
    output.say(f"killed {node}; start it again with: {_command('restart', node, name)}")


def restart(
    node: NodeArgument,
    name: NameOfExisting = None,
    backend: BackendOfExisting = "auto",
    timeout: JoinTimeout = 120.0,
) -> None:
    """Stop a node if it runs, start it, and wait until it has joined."""
    from simulator.cli.find import find
    from simulator.cli.screen import Screen

    cluster = find(name, backend).cluster
    with Screen(f"{cluster.name}: restarting {node}").showing() as screen:
        cluster.restart(node, timeout=timeout, progress=screen.start)


def pause(
    node: NodeArgument, name: NameOfExisting = None, backend: BackendOfExisting = "auto"
) -> None:
    """Freeze a node: it keeps its memory and address but runs nothing."""
    from simulator.cli.find import find

    find(name, backend).cluster.pause(node)
    output.say(f"paused {node}; thaw it with: {_command('resume', node, name)}")


def resume(
    node: NodeArgument, name: NameOfExisting = None, backend: BackendOfExisting = "auto"
) -> None:
    """Thaw a node that was paused. One that Ray gave up meanwhile exits by itself: restart it."""
    from simulator.cli.find import find

    find(name, backend).cluster.resume(node)
    output.say(f"resumed {node}")


def logs(
    node: NodeArgument,
    name: NameOfExisting = None,
    follow: Annotated[
        bool, typer.Option("--follow", "-f", help="Go on until the node ends or Ctrl-C.")
    ] = False,
    tail: Annotated[
        int | None,
        typer.Option(
            "--tail", metavar="N", min=0, help="Only the last N lines.", show_default=False
        ),
    ] = None,
    backend: BackendOfExisting = "auto",
) -> None:
    """Print what a node's first process wrote: its supervisor and the start of Ray."""
    from simulator.cli.find import find

    found = find(name, backend)
    found.cluster.node(node)
    if not follow:
        for line in found.backend.logs(found.name, node, tail).splitlines():
            output.print_line(line)
        return
    try:
        for line in found.backend.follow_logs(found.name, node, tail):
            output.print_line(line)
    except KeyboardInterrupt:
        return  # that is how one leaves


def execute(
    node: NodeArgument,
    command: Annotated[
        list[str], typer.Argument(metavar="-- COMMAND...", help="What to run, after two dashes.")
    ],
    name: NameOfExisting = None,
    backend: BackendOfExisting = "auto",
) -> None:
    """Run a command in a node; the exit code is the command's own.

    On a terminal it gets the terminal, so that a shell or an editor works.
    """
    from simulator.cli.find import find

    found = find(name, backend)
    found.cluster.node(node)
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    done = found.backend.execute(found.name, node, command, interactive=interactive)
    with output.reader_may_leave():
        output.write(done.output)
    raise typer.Exit(done.code)


def clusters(backend: BackendOfExisting = "auto", as_json: AsJson = False) -> None:
    """List all clusters of the simulator, on every backend that answers."""
    from simulator.cli.find import search
    from simulator.cli.tables import cluster_data, clusters_view

    looked = search(backend)
    for reason in looked.not_looked:
        output.say(f"not looked: {reason}", "dim")
    if as_json:
        output.print_json([cluster_data(f.record) for f in looked.found])
    elif looked.found:
        output.data_console().print(clusters_view([f.record for f in looked.found]))
    else:
        output.say("there is no cluster; start one with: python -m simulator up")
