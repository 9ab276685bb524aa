"""Tries out, in a container that nobody uses, what no file of the machine says for certain.

Which Python and Ray are in an image, whether the engine can freeze a container and change its CPU limit, and
what the kernel below it offers for faults on the network (`simulator.innode.kernel`). The engine may be on
another machine or in a virtual one, so nothing is read here: all of it is done there, once, for real.

The container has no network and carries our label. If this process is killed, it ends by itself within a minute
and removes itself; killed at the wrong moment, between making and starting it or while it is frozen, the
process leaves it there, and ``down --all`` removes it like everything with our label.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import docker

from simulator.assets import innode_path
from simulator.backends.base import LABEL_CLUSTER, LABEL_ROLE
from simulator.backends.docker.engine import asking, is_gone
from simulator.errors import CannotRun
from simulator.waiting import wait_until

YES = "yes"
_HOLD_S = 60
_ANSWER_S = 30.0
_QUOTA_US, _PERIOD_US = 50_000, 100_000

#: What a sidecar that shapes a node's network needs, and nothing more.
NETWORK_CAPABILITIES = ("NET_ADMIN", "NET_RAW")


@dataclass(frozen=True, slots=True)
class Probed:
    """What was found; every answer is ``yes``, ``no``, or ``not known: `` and why.

    Attributes
    ----------
    python, ray
        Versions in the image; None where it has none.
    features
        Of the kernel, by the names of `simulator.innode.kernel.FEATURES`.
    freezer, cpu_limit
        Whether a running container could be frozen and thawed, and given another CPU limit.
    """

    python: str | None
    ray: str | None
    features: Mapping[str, str] = field(default_factory=dict)
    freezer: str = "no"
    cpu_limit: str = "no"


def probe(client: docker.APIClient, image: str) -> Probed:
    """Look into an image, and at what can be done to its containers; takes a second or two.

    Raises
    ------
    CannotRun
        No container of it could be started, or it has no Python that answers.
    """
    with _container(client, image) as container:
        answer = _answer(client, container, image)
        return Probed(
            python=answer["python"],
            ray=answer["ray"],
            features=answer["features"],
            freezer=_tried(lambda: _freeze(client, container)),
            cpu_limit=_tried(lambda: _limit(client, container)),
        )


@contextmanager
def _container(client: docker.APIClient, image: str) -> Iterator[str]:
    name = f"doctor-{secrets.token_hex(4)}"
    source = (innode_path() / "kernel.py").read_text(encoding="utf-8")
    with asking(f"a container of {image} was to be looked into"):
        container = cast(
            str,
            client.create_container(
                image=image,
                name=name,
                # Handed over as text: the engine may not see this machine's files.
                entrypoint=["python", "-c", source, "--hold", str(_HOLD_S)],
                user="0:0",
                labels={LABEL_CLUSTER: name, LABEL_ROLE: "program"},
                environment={"NVIDIA_VISIBLE_DEVICES": "void"},
                host_config=client.create_host_config(
                    network_mode="none",
                    cap_drop=["ALL"],
                    cap_add=list(NETWORK_CAPABILITIES),
                    security_opt=["no-new-privileges:true"],
                    mem_limit="256m",
                    pids_limit=64,
                    auto_remove=True,
                ),
            )["Id"],
        )
    try:
        with asking(f"a container of {image} was to be looked into"):
            client.start(container)
        yield container
    finally:
        try:
            with asking(f"container {name} was removed"):
                client.remove_container(container, force=True, v=True)
        except CannotRun as error:
            if not is_gone(error):
                raise


def _answer(client: docker.APIClient, container: str, image: str) -> Mapping[str, Any]:
    what = f"a container of {image} was to be looked into"

    def line() -> str | None:
        try:
            with asking(what):
                text = client.logs(container, stderr=False).decode(errors="replace")
        except CannotRun as error:
            if is_gone(error):
                raise CannotRun(what, why="it ended at once, without an answer") from error
            raise
        return text if text.endswith("\n") else None

    text = wait_until(line, name=f"an answer from {image}", timeout=_ANSWER_S, interval=0.05)
    try:
        found = json.loads(text.splitlines()[-1])
        return {name: found[name] for name in ("python", "ray", "features")}
    except (ValueError, KeyError, TypeError):
        raise CannotRun(what, why="its Python gave no answer") from None


def _freeze(client: docker.APIClient, container: str) -> bool:
    client.pause(container)
    frozen: bool = client.inspect_container(container)["State"]["Status"] == "paused"
    client.unpause(container)
    return frozen


def _limit(client: docker.APIClient, container: str) -> bool:
    client.update_container(container, cpu_quota=_QUOTA_US, cpu_period=_PERIOD_US)
    limited: bool = client.inspect_container(container)["HostConfig"]["CpuQuota"] == _QUOTA_US
    return limited


def _tried(action: Callable[[], bool]) -> str:
    """What came of it; an engine that refuses says why, which is a no."""
    try:
        with asking("it was tried"):
            return YES if action() else "no"
    except CannotRun as error:
        return f"no: {error.why}"
