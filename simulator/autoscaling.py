"""Ray's own autoscaler, told about a cluster: its settings, and how the cloud gives it machines.

Ray decides how many nodes there are, from what its settings say here and what its work asks for. The
machines come from a small cloud beside the nodes (`simulator.innode.cloud`), which has the topology's
word on how long they take and when there are none. All of it is pure: a topology in, data out.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from simulator.backends.base import ClusterSpec
from simulator.errors import CannotRun
from simulator.innode.cloud import SETTINGS
from simulator.topology import RAYS_RESOURCES, Topology

#: Ray's settings for its autoscaler, in the cloud's folder.
CONFIG = "autoscaling.yaml"
#: What Ray's autoscaler saw and wants, as it said last (`simulator.innode.autoscaler.state_of`).
STATE = "state.json"
#: The programs beside the nodes.
CLOUD, AUTOSCALER = "cloud", "autoscaler"

#: Of the head: its own autoscaler stays off, and Ray knows which machine it is.
HEAD_ENV: Mapping[str, str] = {
    "RAY_enable_autoscaler_v2": "1",
    "RAY_CLOUD_INSTANCE_ID": "head",
    "RAY_NODE_TYPE_NAME": "head",
}
HEAD_ARGUMENTS = ("--no-monitor",)

#: Of Ray's autoscaler: it looks once a second, not every five, and gives up a machine on which Ray does not
#: come up after minutes, not an hour.
AUTOSCALER_ENV: Mapping[str, str] = {
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_AUTOSCALER_RECONCILE_ALLOCATE_STATUS_TIMEOUT_S": "300",
    "RAY_AUTOSCALER_RECONCILE_REQUEST_STATUS_TIMEOUT_S": "60",
    "RAY_AUTOSCALER_RECONCILE_TERMINATING_STATUS_TIMEOUT_S": "60",
}


def settings_of(topology: Topology) -> Any:
    """The topology's `Autoscaling`; raises `CannotRun` where there is none."""
    if topology.autoscaling is None:
        raise CannotRun(
            f"topology {topology.name} has no autoscaler",
            remedy="Add one: --autoscale, or autoscaling: {} in the file",
        )
    return topology.autoscaling


def ray_config(name: str, topology: Topology, folder: str) -> dict[str, Any]:
    """What Ray's autoscaler is given, in the form of Ray's own cluster files.

    Parameters
    ----------
    name
        The cluster's.
    folder
        Where the cloud's files are to the autoscaler.
    """
    settings = settings_of(topology)
    types: dict[str, Any] = {
        "head": {"resources": _whole(topology.head.resources), "node_config": {}, "max_workers": 0}
    }
    for group in topology.worker_groups:
        types[group.group_name] = {
            "resources": _whole(group.resources),
            "node_config": {},
            "min_workers": group.least,
            "max_workers": group.most,
        }
        if group.all_labels:
            types[group.group_name]["labels"] = dict(group.all_labels)
    return {
        "cluster_name": name,
        "max_workers": topology.most_workers,
        "upscaling_speed": settings.upscaling_speed,
        "idle_timeout_minutes": settings.idle_timeout / 60,
        "provider": {
            "type": "external",
            "module": "simulator.innode.autoscaler.CloudProvider",
            "folder": folder,
            # Ray starts by itself on a machine; nobody logs in to install it.
            "disable_node_updaters": True,
        },
        "available_node_types": types,
        "head_node_type": "head",
        # Ray wants these to be said, and nothing comes of them.
        "cluster_synced_files": [],
        "setup_commands": [],
        "head_setup_commands": [],
        "worker_setup_commands": [],
    }


def ray_yaml(name: str, topology: Topology, folder: str) -> str:
    """`ray_config` as a file, for a person as well."""
    text: str = yaml.safe_dump(ray_config(name, topology, folder), sort_keys=False)
    return f"# What Ray's autoscaler of cluster {name} is told; made from topology {topology.name}.\n{text}"


def cloud_settings(topology: Topology, seed: int, parallel: int) -> dict[str, Any]:
    """What the cloud is told: how its machines come, group by group, and how many may start at a time."""
    return {
        "seed": seed,
        "parallel": parallel,
        "groups": {
            g.group_name: {
                "delay": list(g.provision_delay),
                "failure": g.provision_failure,
                "capacity_after": g.capacity_after,
            }
            for g in topology.managed
        },
    }


def files(spec: ClusterSpec, folder: str, seed: int, parallel: int) -> dict[str, bytes]:
    """The files that the cloud's folder begins with."""
    return {
        CONFIG: ray_yaml(spec.name, spec.topology, folder).encode(),
        SETTINGS: json.dumps(cloud_settings(spec.topology, seed, parallel)).encode(),
    }


def can_ever(topology: Topology, wanted: Mapping[str, Any]) -> bool:
    """Whether some node that there may be could give this, if it were free.

    Parameters
    ----------
    wanted
        One demand or one placement group, as `simulator.innode.autoscaler.state_of` has them. Ray calls both
        infeasible: what no node can give, and what would take more nodes than its limits allow.
    """
    offers = [
        *((n.resources, n.all_labels) for n in (topology.head, topology.driver) if n),
        *((g.resources, g.all_labels) for g in topology.worker_groups if g.most),
    ]
    if "bundles" not in wanted:
        labels = wanted.get("labels", {})
        return any(
            _has(resources, wanted["needs"]) and _is(has, labels) for resources, has in offers
        )
    bundles: Sequence[Mapping[str, float]] = wanted["bundles"]
    if "STRICT_PACK" in wanted.get("group", ""):
        together: Counter[str] = Counter()
        for bundle in bundles:
            together.update(bundle)
        bundles = [together]
    return all(any(_has(resources, bundle) for resources, _ in offers) for bundle in bundles)


def _has(resources: Mapping[str, float], needs: Mapping[str, float]) -> bool:
    # Ray's own, such as memory, a topology says nothing of.
    return all(
        resources.get(name, 0.0) >= amount
        for name, amount in needs.items()
        if name not in RAYS_RESOURCES
    )


def _is(has: Mapping[str, str], wanted: Mapping[str, Sequence[str]]) -> bool:
    """Whether labels are as wanted; conditions other than *one of these* are Ray's to judge."""
    return all(
        has.get(key) in values
        for key, values in wanted.items()
        if values and not key.startswith("ray.io/node")
    )


def _whole(resources: Mapping[str, float]) -> dict[str, int]:
    return {name: int(amount) for name, amount in resources.items() if amount}
