"""Commands about this machine: can it do it, and the node image."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated, cast

import typer

from simulator.cli import complete, output
from simulator.cli.options import BACKENDS, AsJson, ImageOption, SetOption, WorkersOption


def doctor(
    topology: Annotated[
        str,
        typer.Option(
            "--topology",
            "-t",
            metavar="NAME|FILE",
            help="The nodes that it must carry.",
            autocompletion=complete.topology,
        ),
    ] = "default",
    workers: WorkersOption = None,
    settings: SetOption = None,
    backend: Annotated[
        str,
        typer.Option(
            "--backend",
            metavar="|".join(BACKENDS),
            help="Look at this backend only.",
            autocompletion=complete.choices(*BACKENDS),
        ),
    ] = "auto",
    image: ImageOption = None,
    as_json: AsJson = False,
) -> None:
    """Look whether this machine can do it: engine, image, memory, addresses, what faults need.

    Each line is ok, a warning or a problem, with its remedy; what could not be found out is a warning.
    What no file says for certain is tried, in a container that is removed. Exit code 4 if no backend
    can be used.
    """
    from simulator.backends import select
    from simulator.cli.plan import Problems, load_nodes
    from simulator.cli.screen import Screen
    from simulator.cli.tables import doctor_view
    from simulator.doctor import examine

    problems = Problems()
    wanted = load_nodes(problems, topology, workers, settings or ())
    problems.one_of("--backend", backend, select.NAMES)
    problems.raise_any()
    assert wanted is not None
    with Screen("doctor").showing() as screen:
        diagnosis = examine(wanted, backend, image, screen.say)
    with output.reader_may_leave():
        if as_json:
            output.print_json({"able": diagnosis.able, **asdict(diagnosis)})
        else:
            output.data_console().print(doctor_view(diagnosis))
    if not diagnosis.able:
        raise typer.Exit(4)


def build_image(
    target: Annotated[
        str,
        typer.Option(
            "--target",
            metavar="cpu|gpu|lean|netfault|redis",
            help="cpu, gpu with CUDA's libraries, lean: bare Ray, for workers, netfault: the tools of "
            "faults on the network, or redis: where a head may keep its tables.",
            autocompletion=complete.choices("cpu", "gpu", "lean", "netfault", "redis"),
        ),
    ] = "cpu",
    base: Annotated[
        str | None,
        typer.Option(
            "--base",
            metavar="IMAGE",
            help="Base image; by default the official Python image, or one made from Debian packages.",
            show_default=False,
        ),
    ] = None,
    tag: Annotated[
        str | None,
        typer.Option("--tag", metavar="IMAGE", help="Name of the result.", show_default=False),
    ] = None,
    no_cache: Annotated[bool, typer.Option("--no-cache", help="Build every layer again.")] = False,
) -> None:
    """Build the node image and print its name; in a checkout, `make image` is the same.

    Those of a real GPU, of lean workers and of faults on the network are built when they are first needed,
    before anything starts; to build one before that, name it with --target.
    """
    from simulator.backends import select
    from simulator.backends.docker.image import IMAGES, Target
    from simulator.backends.docker.image import build_image as build
    from simulator.cli.plan import Problems
    from simulator.cli.screen import Screen

    problems = Problems()
    problems.one_of("--target", target, IMAGES)
    problems.raise_any()
    select.choose("docker")  # says plainly when no engine answers
    with Screen(f"building the image {target}").showing() as screen:
        built = build(
            target=cast(Target, target),
            say=screen.say,
            tag=tag,
            base=base,
            cache=not no_cache,
        )
    output.print_line(built)
