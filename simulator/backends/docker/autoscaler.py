"""Ray's own autoscaler, and the cloud that gives it machines, each in a container of its own.

The engine's socket is in the cloud's container alone, which runs no Ray and nobody's code, has no network and
no capability, and answers to whoever reaches its own socket: that lies in a volume that only Ray's autoscaler
mounts beside it. The engine starts both again when they die, and when it was restarted itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import docker
from docker.types import LogConfig, Mount

from simulator.autoscaling import AUTOSCALER, AUTOSCALER_ENV, CLOUD
from simulator.backends.base import LABEL_CLUSTER, LABEL_ROLE
from simulator.backends.docker.engine import Connection
from simulator.backends.docker.programs import LABEL_PROGRAM
from simulator.compose import CLOUD_VOLUME

#: Where the cloud's folder is in both containers, and the engine's socket in the cloud's.
FOLDER, ENGINE = "/run/ray-sim-cloud", "/run/ray-sim-engine.sock"
#: Where an engine listens on its own machine, wherever that is.
_USUAL_SOCKET = "/var/run/docker.sock"


@dataclass(frozen=True, slots=True)
class Beside:
    """What a program beside the nodes has of theirs.

    Attributes
    ----------
    labels
        That everything of the cluster carries.
    environment, mounts
        Of the head.
    """

    cluster: str
    image: str
    user: str
    network: str
    labels: Mapping[str, str]
    environment: Mapping[str, str]
    mounts: Sequence[Mount]


def socket_of(connection: Connection) -> str:
    """The path of the engine's socket on its own machine."""
    path = connection.host.removeprefix("http+unix://").removeprefix("unix://")
    # Docker Desktop's machine has it at the usual place, whatever this one's path to it.
    return path if connection.is_this_kernel and path.startswith("/") else _USUAL_SOCKET


def make_volume(api: docker.APIClient, cluster: str, labels: Mapping[str, str]) -> str:
    """The volume of the cloud's folder; one that exists is taken."""
    name = f"{cluster}_{CLOUD_VOLUME}"
    made: Mapping[str, Any] = api.create_volume(
        name=name, labels={**labels, LABEL_CLUSTER: cluster}
    )
    return str(made["Name"])


def make_cloud(api: docker.APIClient, beside: Beside, volume: str, socket: str) -> str:
    """The container of the cloud, not started; returns its id."""
    innode = [m for m in beside.mounts if m["Target"].startswith("/opt/ray-sim")]
    return _make(
        api,
        beside,
        CLOUD,
        ["simulator.innode.cloud", beside.cluster],
        {
            "PYTHONPATH": beside.environment["PYTHONPATH"],
            "RAY_SIM_CLOUD": FOLDER,
            "RAY_SIM_ENGINE": ENGINE,
        },
        # Root without a capability: who owns the engine's socket may use it, and that is all.
        user="0:0",
        network="none",
        mounts=[
            *innode,
            Mount(target=FOLDER, source=volume, type="volume"),
            Mount(target=ENGINE, source=socket, type="bind"),
        ],
        memory="128m",
    )


def make_autoscaler(api: docker.APIClient, beside: Beside, volume: str) -> str:
    """The container of Ray's autoscaler, not started; returns its id."""
    return _make(
        api,
        beside,
        AUTOSCALER,
        ["simulator.innode.autoscaler"],
        {**beside.environment, **AUTOSCALER_ENV, "RAY_SIM_CLOUD": FOLDER},
        user=beside.user,
        network=beside.network,
        mounts=[*beside.mounts, Mount(target=FOLDER, source=volume, type="volume")],
        memory="512m",
    )


def _make(
    api: docker.APIClient,
    beside: Beside,
    name: str,
    argv: Sequence[str],
    environment: Mapping[str, str],
    *,
    user: str,
    network: str,
    mounts: Sequence[Mount],
    memory: str,
) -> str:
    made: Mapping[str, Any] = api.create_container(
        image=beside.image,
        name=f"{beside.cluster}-program-{name}",
        entrypoint=["python", "-m"],
        command=list(argv),
        environment={**environment, "NVIDIA_VISIBLE_DEVICES": "void"},
        labels={
            **beside.labels,
            LABEL_CLUSTER: beside.cluster,
            LABEL_ROLE: "program",
            LABEL_PROGRAM: name,
        },
        user=user,
        host_config=api.create_host_config(
            network_mode=network,
            mounts=list(mounts),
            cap_drop=["ALL"],
            security_opt=["no-new-privileges:true"],
            mem_limit=memory,
            pids_limit=256,
            restart_policy={"Name": "unless-stopped"},
            log_config=LogConfig(type="json-file", config={"max-size": "64m", "max-file": "2"}),
        ),
    )
    return str(made["Id"])
