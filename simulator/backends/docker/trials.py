"""What a doctor says after trying: image, versions, addresses, and what the kernel offers faults.

`checks` is what every start asks, in milliseconds; this takes seconds, and what could not be found out is
said to be not known, never to be well.
"""

from __future__ import annotations

import ipaddress
import os
import platform
from collections.abc import Callable, Iterator, Mapping
from importlib import metadata

import docker

from simulator.backends.base import Check
from simulator.backends.docker.addresses import taken_subnets
from simulator.backends.docker.engine import Connection, connect, find_connection
from simulator.backends.docker.image import (
    DEFAULT_IMAGE,
    IMAGES,
    LEAN_IMAGE,
    image_is_current,
    image_present,
)
from simulator.backends.docker.probe import YES, Probed, probe
from simulator.compose import NETWORK, free_network, load_compose
from simulator.errors import CannotRun
from simulator.topology import LEAN_LACKS, Topology


def trials(topology: Topology, image: str | None, say: Callable[[str], None]) -> list[Check]:
    """Every line about Docker that needs more than a question to the engine."""
    connection = find_connection()
    client = connect(connection, timeout=30.0)
    try:
        found = [*_addresses(client, connection, topology)]
        tag = image or DEFAULT_IMAGE
        there, line = _image("image", tag)
        found.append(line)
        if topology.lean_groups and image is None:
            names = ", ".join(topology.lean_groups)
            found.append(_image("lean image", LEAN_IMAGE)[1])
            found.append(
                Check("ok", "lean nodes", f"bare Ray on the nodes of {names}: {LEAN_LACKS}")
            )
        if not there:
            text = "not known: that is tried in a container of the image"
            remedy = "Have the image (see above), then ask the doctor again"
            return [*found, Check("warning", "versions, faults", text, remedy)]
        say(f"trying what faults need, in a short-lived container of {tag}")
        try:
            probed = probe(client, tag)
        except CannotRun as error:
            text = (
                f"not known: {error.what}: {error.why}" if error.why else f"not known: {error.what}"
            )
            remedy = error.remedy or "Is there a python on the PATH of the image?"
            return [*found, Check("warning", "versions, faults", text, remedy)]
        return [*found, versions(probed), *fault_needs(probed)]
    finally:
        client.close()


# ---- addresses


def _addresses(
    client: docker.APIClient, connection: Connection, topology: Topology
) -> Iterator[Check]:
    try:
        taken = taken_subnets(client, connection)
    except CannotRun as error:
        yield Check("warning", "subnets", f"not known: {error.why}", error.remedy)
        return
    yield from subnet_checks(taken, topology, os.environ)
    if connection.shares_loopback:
        yield Check(
            "ok", "ports", "the dashboard's is chosen free at every start, on 127.0.0.1 only"
        )
    else:
        yield Check("ok", "ports", "none of this machine: Ray is reached by docker exec")


def subnet_checks(
    taken: Mapping[str, str], topology: Topology, environ: Mapping[str, str]
) -> Iterator[Check]:
    """Is one free for a cluster, and is compose.yaml's own, which is fixed?

    Parameters
    ----------
    taken
        Whose each subnet is that exists, in words.
    environ
        Where a user may have set another for ``docker compose up``.
    """
    nodes = len(topology.nodes())
    try:
        network = free_network(taken, nodes)
    except CannotRun as error:
        yield Check("problem", "subnet", f"{error.what}: {error.why}", error.remedy)
    else:
        yield Check("ok", "subnet", f"{network.subnet} is free for a cluster of {nodes} nodes")
    names = ("RAY_SIM_SUBNET", "RAY_SIM_IP_RANGE", "RAY_SIM_HEAD_IP")
    project = load_compose({name: environ[name] for name in names if environ.get(name)})
    fixed = project["networks"][NETWORK]["ipam"]["config"][0]["subnet"]
    try:
        wanted = ipaddress.ip_network(fixed)
    except ValueError as error:
        yield Check("warning", "subnet by hand", f"RAY_SIM_SUBNET: {error}", f"unset {names[0]}")
        return
    owners = {
        whose: subnet
        for subnet, whose in taken.items()
        if (other := ipaddress.ip_network(subnet, strict=False)).version == 4
        and wanted.overlaps(other)
    }
    ours = next((whose for whose in owners if whose.startswith("cluster ")), None)
    text = f"{wanted}, for `docker compose up`"
    if ours is not None:
        # Its network is a route of this machine as well.
        yield Check("ok", "subnet by hand", f"{text}: {ours} has it")
    elif owners:
        whose, subnet = next(iter(owners.items()))
        clash = f"{text}, overlaps {subnet}: {whose}"
        remedy = f"Set all of {', '.join(names)}; `python -m simulator up` is not concerned"
        yield Check("warning", "subnet by hand", clash, remedy)
    else:
        yield Check("ok", "subnet by hand", f"{text}, is free")


# ---- the image


def _image(name: str, tag: str) -> tuple[bool, Check]:
    """Whether it is there, and the line that says so."""
    target = next((target for target, ours in IMAGES.items() if ours == tag), None)
    build = "python -m simulator image build" + (f" --target {target}" if target != "cpu" else "")
    try:
        if not image_present(tag):
            remedy = f"It is built when it is needed; to do it now: {build}"
            if target is None:
                remedy = f"It is pulled when it is needed; to do it now: docker pull {tag}"
            return False, Check("warning", name, f"{tag} is not on the engine", remedy)
        if image_is_current(tag) is False:
            text = f"{tag} is older than its Dockerfile"
            return True, Check("warning", name, text, f"Build it anew: {build}")
    except CannotRun as error:
        return False, Check("warning", name, f"{tag}: not known: {error.why}", error.remedy)
    return True, Check("ok", name, tag)


def versions(
    probed: Probed,
    host_python: str | None = None,
    host_ray: str | None = None,
) -> Check:
    """Image and this machine compared; what differs matters only to a driver or client here.

    Parameters
    ----------
    host_python, host_ray
        By default those of the Python that runs this; no Ray is "".
    """
    if host_python is None:
        host_python = platform.python_version()
    if host_ray is None:
        host_ray = _host_ray()
    if probed.ray is None:
        return Check(
            "problem",
            "versions",
            f"the image has Python {probed.python} and no Ray",
            "Name an image in which `python` or the command `ray` has Ray",
        )
    image = f"the image has Python {probed.python} and Ray {probed.ray}"
    if not host_ray:
        return Check("ok", "versions", f"{image}; no Ray here, and none is needed")
    here = f"here: Python {host_python} and Ray {host_ray}"
    if (host_python, host_ray) == (probed.python, probed.ray):
        return Check("ok", "versions", f"{image}, as here")
    return Check(
        "warning",
        "versions",
        f"{image}; {here}",
        "A driver of yours, or ray://, must match Ray and the Python patch; jobs and experiments "
        "go by HTTP and do not mind",
    )


def _host_ray() -> str:
    try:
        return metadata.version("ray")
    except metadata.PackageNotFoundError:
        return ""


# ---- what faults need


def fault_needs(probed: Probed) -> Iterator[Check]:
    """A line for each thing that faults need from the engine and its kernel."""
    kernel = probed.features.get
    yield _line("freezer", probed.freezer, "containers can be frozen: pause", "no pause")
    yield _line("CPU limits", probed.cpu_limit, "can be changed while a node runs", "are fixed")
    for name, answer, can, lacks, module in (
        (
            "packet filter",
            _either(kernel("nf_tables"), kernel("ip_tables")),
            "the kernel can drop packets: partitions",
            "the kernel drops no packets: no partitions",
            "nf_tables",
        ),
        (
            "packet loss",
            _either(kernel("nft_statistic"), kernel("ipt_statistic")),
            "the kernel can drop a share of packets",
            "the kernel drops no share of packets: no random loss",
            "xt_statistic",
        ),
        (
            "delay",
            kernel("netem"),
            "the kernel has tc netem",
            "the kernel has no tc netem: no delay, no jitter",
            "sch_netem",
        ),
        (
            "bandwidth",
            kernel("tbf"),
            "the kernel has tc tbf",
            "the kernel has no tc tbf: no limit of bandwidth",
            "sch_tbf",
        ),
    ):
        yield _line(name, answer, can, lacks, f"Needs an engine whose kernel has {module}")


def _either(*answers: str | None) -> str:
    """The best of several ways to have something."""
    known = [answer for answer in answers if answer is not None]
    return YES if YES in known else next((a for a in known if a != "no"), known[0] if known else "")


def _line(
    name: str, answer: str | None, can: str, lacks: str, remedy: str = "See: docker info"
) -> Check:
    if answer == YES:
        return Check("ok", name, can)
    if not answer or answer.startswith("not known"):
        return Check("warning", name, answer or "not known", "A rootless engine may not allow it")
    why = answer.partition(": ")[2]
    text = f"{lacks} ({why})" if why else lacks
    return Check("warning", name, text, f"{remedy}; other faults are not concerned")
