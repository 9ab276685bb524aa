"""Commands about one node: kill, restart, pause, resume, logs, exec, attach, cp."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Annotated

import typer

from simulator.cli import output
from simulator.cli.options import (
    BackendOfExisting,
    JoinTimeout,
    NameOfExisting,
    NodeArgument,
    command_line,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

    from simulator.cluster import Started


def kill(
    node: NodeArgument, name: NameOfExisting = None, backend: BackendOfExisting = "auto"
) -> None:
    """Kill a node with SIGKILL, as when a machine loses power."""
    from simulator.cli.find import find

    find(name, backend).cluster.kill(node)
    output.say(f"killed {node}; start it again with: {command_line(f'restart {node}', name)}")


def restart(
    node: NodeArgument,
    name: NameOfExisting = None,
    backend: BackendOfExisting = "auto",
    timeout: JoinTimeout = 120.0,
) -> None:
    """Stop a node if it runs, start it, and wait until it has joined.

    With the head, the workers that run are started anew too: no new head takes them back.
    """
    from simulator.cli.find import find
    from simulator.cli.screen import Screen
    from simulator.cli.tables import started_words

    cluster = find(name, backend).cluster
    with Screen(f"{cluster.name}: restarting {node}").showing() as screen:

        def on_plan(plan: Started) -> None:
            for line in started_words(plan):
                screen.say(line)

        cluster.restart(node, timeout=timeout, progress=screen.start, on_plan=on_plan)


def pause(
    node: NodeArgument, name: NameOfExisting = None, backend: BackendOfExisting = "auto"
) -> None:
    """Freeze a node: it keeps its memory and address but runs nothing."""
    from simulator.cli.find import find

    find(name, backend).cluster.pause(node)
    output.say(f"paused {node}; thaw it with: {command_line(f'resume {node}', name)}")


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


def attach(
    node: NodeArgument, name: NameOfExisting = None, backend: BackendOfExisting = "auto"
) -> None:
    """Open a shell in a node; leave it with exit or Ctrl-D. The exit code is the shell's own.

    The prompt begins with the node's name. It needs a terminal; without one, use exec.
    """
    from simulator.cli.find import find
    from simulator.errors import BadInput, Problem

    cluster = find(name, backend).cluster
    cluster.node(node)
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise BadInput(
            Problem(
                "attach",
                "needs a terminal",
                f"without one, run commands with: {command_line(f'exec {node}', name)} -- COMMAND",
            )
        )
    raise typer.Exit(cluster.attach(node))


def cp(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="What to copy: PATH here, or NODE:PATH.")
    ],
    target: Annotated[
        str, typer.Argument(metavar="TARGET", help="Where to: NODE:PATH, or PATH here.")
    ],
    name: NameOfExisting = None,
    backend: BackendOfExisting = "auto",
) -> None:
    """Copy a file or folder to or from a node, as docker cp does; also of a node that is down.

    A relative path in a node begins where exec begins: in the working folder of its container, or in
    the home of a process node, whose other paths are those of this machine. A folder is copied into a
    folder that exists, under its own name; FOLDER/. means what is in it. What is copied in belongs to
    the node's user. Links that are copied out of a container are left out, and listed.
    """
    from simulator.cli.find import find
    from simulator.errors import BadInput, Problem

    found = find(name, backend)
    nodes = [n.name for n in found.record.nodes]
    from_node, from_path = _in_node(source, nodes)
    to_node, to_path = _in_node(target, nodes)
    if from_node is not None and to_node is not None:
        remedy = f"copy {source} to this machine first, and from here to {to_node}"
        raise BadInput(Problem(f"cp {source} {target}", "both are in nodes", remedy))
    if to_node is not None:
        left_out = found.backend.copy_in(found.name, to_node, from_path, to_path)
    elif from_node is not None:
        left_out = found.backend.copy_out(found.name, from_node, from_path, to_path)
    else:
        raise BadInput(
            Problem(
                f"cp {source} {target}",
                "neither is in a node",
                f"write one of them as NODE:PATH, such as {nodes[-1] if nodes else 'head'}:/tmp",
            )
        )
    output.say(f"copied {source} to {target}{_left_out(left_out)}")


def _in_node(argument: str, nodes: Iterable[str]) -> tuple[str | None, str]:
    """The node and the path of ``NODE:PATH``; None and the argument for a path of this machine."""
    from simulator.errors import BadInput, NotFound, Problem

    node, colon, path = argument.partition(":")
    if not colon or argument.startswith(("/", ".")) or "/" in node:
        if not argument:
            raise BadInput(Problem("cp", "an empty path names nothing"))
        return None, argument
    if node not in nodes:
        error = NotFound("node", node, nodes)
        raise BadInput(
            Problem(argument, str(error), f"a file of that name is written ./{argument}")
        )
    if not path:
        raise BadInput(Problem(argument, "names no path", f"for example {node}:/tmp"))
    return node, path


def _left_out(names: list[str]) -> str:
    if not names:
        return ""
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return f"; left out, since neither file nor folder: {shown}"
