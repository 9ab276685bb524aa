"""Commands about whole clusters: up, down, stop, start, scale, status, nodes, monitor, clusters."""

from __future__ import annotations

import re
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli import complete, output
from simulator.cli.options import (
    DEFAULT_NAME,
    HEALTHS,
    MOST_SECONDS,
    AsJson,
    BackendOfExisting,
    BackendToUse,
    ImageOption,
    JoinTimeout,
    NameOfExisting,
    ParallelismOption,
    RpcFaultOption,
    SetOption,
    WorkersOption,
    a_number,
    command_line,
)

if TYPE_CHECKING:
    from rich.console import RenderableType

    from simulator.backends.base import ClusterSpec
    from simulator.cli.plan import Problems
    from simulator.cli.screen import Screen
    from simulator.cluster import Cluster, Plan, Started, StopEvent


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
    autoscale: Annotated[
        bool,
        typer.Option(
            "--autoscale",
            help="Let Ray's autoscaler decide how many workers there are, from min_replicas to "
            "max_replicas of each group, which is replicas where the topology does not say.",
        ),
    ] = False,
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
    rpc_fault: RpcFaultOption = None,
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
    from simulator.cluster import HEALTH, Cluster, refuse_unable
    from simulator.faults import rpc_environment, rpc_faults

    problems = Problems()
    wanted = load_nodes(problems, topology, workers, settings or (), autoscale=autoscale)
    problems.one_of("--health", health, HEALTH)
    faults = problems.attempt("--rpc-fault", lambda: rpc_faults(rpc_fault or ()))
    problems.one_of("--backend", backend, select.NAMES)
    problems.cluster_name(name)
    problems.raise_any()
    assert wanted is not None

    choice = select.choose(backend)
    output.say(f"Backend: {choice.why}")
    refuse_taken(name, but_on=choice.backend.name)
    cluster = Cluster(choice.backend, name)
    if not any(c.name == name for c in choice.backend.clusters()):
        refuse_unable(choice.backend, wanted)
    spec = ClusterSpec(
        name=name,
        topology=wanted,
        gpu=choice.backend.gpu_kind(wanted),
        image=image,
        env={**HEALTH[health], **rpc_environment(faults or ())},
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


def stop(
    name: NameOfExisting = None,
    grace: Annotated[
        float,
        typer.Option(
            "--grace",
            metavar="SECONDS",
            min=0.0,
            max=MOST_SECONDS,
            callback=a_number,
            help="How long each node has to sign off.",
        ),
    ] = 10.0,
    backend: BackendOfExisting = "auto",
    as_json: AsJson = False,
) -> None:
    """Stop all nodes of a cluster and keep it: the workers first, then the head.

    What is on the nodes' disks stays; start starts them again. Jobs, actors and placement groups
    end with the head, which keeps them in memory. A frozen node cannot sign off and is killed.
    """
    from simulator.cli.find import find

    cluster = find(name, backend).cluster

    def progress(event: StopEvent) -> None:
        why = ": it was frozen, and could not sign off" if event.verb == "killed" else ""
        output.say(f"{event.verb} {event.node}{why}")

    stopped = cluster.stop(grace=grace, progress=progress)
    if as_json:
        output.print_json({"cluster": cluster.name, "stopped": stopped})
    if not stopped:
        output.say(f"no node of {cluster.name} runs; nothing to do")
    else:
        output.say(f"stopped {cluster.name}; start it again with: {command_line('start', name)}")


def start(
    name: NameOfExisting = None,
    start_parallelism: ParallelismOption = None,
    timeout: JoinTimeout = 120.0,
    backend: BackendOfExisting = "auto",
    as_json: AsJson = False,
) -> None:
    """Start all nodes of a cluster that are down, and wait until every node of it is alive.

    The head keeps its address; the port of Ray's HTTP API may be another. A frozen node is left as it
    is.
    """
    from simulator.cli.find import find
    from simulator.cli.screen import Screen
    from simulator.cli.tables import started_words

    cluster = find(name, backend).cluster
    with Screen(f"{cluster.name}: starting").showing() as screen:

        def on_plan(plan: Started) -> None:
            for line in started_words(plan):
                screen.say(line)
            if not (plan.started or plan.renewed):
                screen.say(f"all nodes of {cluster.name} run already")

        cluster.start(
            timeout=timeout,
            parallelism=start_parallelism,
            progress=screen.start,
            on_plan=on_plan,
        )
    _show_status(cluster, as_json)


def scale(
    counts: Annotated[
        list[str],
        typer.Argument(metavar="GROUP=N", help="How many nodes a worker group is to have."),
    ],
    name: NameOfExisting = None,
    start_parallelism: ParallelismOption = None,
    timeout: JoinTimeout = 120.0,
    backend: BackendOfExisting = "auto",
    as_json: AsJson = False,
) -> None:
    """Have more or fewer nodes in a worker group of a cluster that is up.

    New nodes are waited for; if they do not join, they are taken away again. Those with the highest
    numbers are removed, after it was said what runs on them: tasks begin again elsewhere, if they may be
    tried again, and actors too.
    """
    from simulator.cli.find import find
    from simulator.cli.plan import Problems
    from simulator.cli.screen import Screen
    from simulator.cli.tables import removal_words
    from simulator.errors import Interrupted
    from simulator.runner import Interrupts
    from simulator.scaling import scale, scale_problems

    problems = Problems()
    wanted = _counts(counts, problems)
    if not wanted:
        problems.raise_any()
    cluster = find(name, backend).cluster
    problems.found.extend(scale_problems(cluster, wanted))
    problems.raise_any()
    interrupts = Interrupts(
        lambda: output.say(f"\nStopped at once. See: {command_line('status', cluster.name)}")
    )
    plan: Plan | None = None
    with Screen(f"{cluster.name}: scaling").showing() as screen, interrupts.installed():

        def on_plan(made: Plan) -> None:
            nonlocal plan
            plan = made
            if plan:
                screen.say(f"{cluster.name}: {plan}")

        def on_undo() -> None:
            interrupts.cleaning = True
            screen.say("taking away what was added; Ctrl-C stops at once")

        try:
            done = scale(
                cluster,
                wanted,
                timeout=timeout,
                parallelism=start_parallelism,
                progress=screen.start,
                on_plan=on_plan,
                on_removal=lambda removal: screen.say(removal_words(removal)),
                on_undo=on_undo,
            )
        except Interrupted as error:  # which speaks of what a run does then
            again = command_line(" ".join(["scale", *counts]), name)
            raise Interrupted(error.what, **_left_of(cluster, plan, again)) from None
    if as_json:
        output.print_json({"cluster": cluster.name, **done.to_data()})
    if not done:
        have = ", ".join(f"{group} has {count}" for group, count in wanted.items())
        output.say(f"{have} already; nothing to do")
    down = [n.name for n in cluster.record().nodes if n.state in ("created", "exited")]
    if down:
        output.say(f"not running: {', '.join(down)}; start with: {command_line('start', name)}")


def _left_of(cluster: Cluster, plan: Plan | None, again: str) -> dict[str, str]:
    """How far a scaling came that was interrupted, and how to go on."""
    from simulator.errors import SimulatorError

    if not plan:
        return {"why": "nothing was changed"}
    try:
        there = {n.name for n in cluster.record().nodes}
    except SimulatorError as error:
        return {"why": f"what it left is not known, since {error}"}
    if not there.issuperset(plan.create):
        return {"why": "what was being added is taken away again"}
    added = f"added {', '.join(plan.create)}, and " if plan.create else ""
    gone = len(set(plan.superfluous) - there)
    return {
        "why": f"{added}removed {gone} of {len(plan.superfluous)} nodes",
        "remedy": f"Remove the rest with: {again}",
    }


def _counts(given: Sequence[str], problems: Problems) -> dict[str, int]:
    """``GROUP=N`` as numbers; what cannot be read is noted."""
    from simulator.errors import Problem

    counts: dict[str, int] = {}
    for text in given:
        group, equals, number = text.partition("=")
        if not (group and equals):
            problems.found.append(Problem(text, "is not GROUP=N", "for example worker=3"))
        elif not re.fullmatch(r"[+-]?[0-9]{1,9}", number):
            problems.found.append(Problem(text, f"{number!r} is no whole number of nodes"))
        elif group in counts:
            problems.found.append(Problem(text, f"{group} is there twice", "say it once"))
        else:
            counts[group] = int(number)
    return counts


def nodes(
    name: NameOfExisting = None, backend: BackendOfExisting = "auto", as_json: AsJson = False
) -> None:
    """Show the nodes that Ray remembers, the dead ones with why they died.

    A node that was started again is another one to Ray; the engine's view is: status.
    """
    from simulator.cli.find import find
    from simulator.cli.tables import ray_nodes_view

    cluster = find(name, backend).cluster
    records = cluster.ray_nodes()
    if as_json:
        output.print_json(
            {"cluster": cluster.name, "nodes": [record.to_data() for record in records]}
        )
    else:
        output.data_console().print(ray_nodes_view(records))


def monitor(
    name: NameOfExisting = None,
    seconds: Annotated[
        float | None,
        typer.Option(
            "--for",
            metavar="SECONDS",
            min=0.0,
            max=MOST_SECONDS,
            callback=a_number,
            help="End after so long; without it, at Ctrl-C.",
            show_default=False,
        ),
    ] = None,
    backend: BackendOfExisting = "auto",
    as_json: AsJson = False,
) -> None:
    """Follow a cluster: nodes as the engine has them, nodes and actors as Ray has them.

    First the present state, then each change, one a line, with the time on the nodes' clock. With --json
    each line is a JSON object.
    """
    import json

    from simulator.cli.find import find
    from simulator.monitor import Seen, follow

    cluster = find(name, backend).cluster
    width = max([len(n.name) for n in cluster.record().nodes], default=0)

    def show(seen: Seen) -> None:
        if as_json:
            output.print_line(json.dumps(seen.to_data(), ensure_ascii=False))
            return
        now = time.strftime("%H:%M:%S", time.localtime(seen.wall))
        now += f".{int(seen.wall * 1000) % 1000:03d}"
        is_now = "  (now)" if seen.present else ""
        output.print_line(f"{now}  {seen.node or '':{width}}  {seen.words}{is_now}")

    with _until_a_signal():
        follow(cluster, show, seconds=seconds, wanted=output.has_reader)


@contextmanager
def _until_a_signal() -> Iterator[None]:
    """Leave what is inside when somebody ends it: by Ctrl-C, a signal, or by closing the terminal."""

    def leave(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        raise KeyboardInterrupt

    numbers = [signal.SIGTERM, *([signal.SIGHUP] if hasattr(signal, "SIGHUP") else [])]
    if threading.current_thread() is not threading.main_thread():
        numbers = []
    previous = {number: signal.signal(number, leave) for number in numbers}
    try:
        with suppress(KeyboardInterrupt):
            yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def status(
    name: NameOfExisting = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Show it again and again, until Ctrl-C.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(
            "--interval",
            metavar="SECONDS",
            min=0.1,
            max=MOST_SECONDS,
            callback=a_number,
            help="How often, with --watch.",
        ),
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


def autoscaler(name: NameOfExisting = None, backend: BackendOfExisting = "auto") -> None:
    """Print what Ray's autoscaler of a cluster was told: a cluster file, as Ray reads it.

    What it sees and wants now is in: status.
    """
    from simulator.autoscaling import CONFIG
    from simulator.backends.base import HostsAutoscaler
    from simulator.cli.find import find
    from simulator.errors import CannotRun

    found = find(name, backend)
    made = found.backend
    data = made.cloud_file(found.name, CONFIG) if isinstance(made, HostsAutoscaler) else None
    if data is None:
        raise CannotRun(
            f"Ray's autoscaler decides nothing on {found.name}",
            remedy="Bring up a cluster where it does: up --autoscale",
        )
    output.print_line(data.decode().rstrip("\n"))


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
