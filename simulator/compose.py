"""Expands ``compose.yaml`` and a topology into the Compose project of one cluster.

``compose.yaml`` says how a head and a worker run, a topology says which nodes exist; here the two
meet: one service per worker group, with `worker`'s definition. Nothing about how a node runs is said
in this module, so the default topology expands to what ``docker compose up`` gives by hand.
All of it is pure: dictionaries in, dictionaries out, no engine asked.
"""

from __future__ import annotations

import copy
import ipaddress
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from simulator.assets import asset_path, innode_path
from simulator.autoscaling import HEAD_ARGUMENTS, HEAD_ENV
from simulator.backends.base import (
    LABEL_CLUSTER,
    LABEL_GPU,
    LABEL_GROUP,
    LABEL_ROLE,
    LABEL_RUN_DIR,
    ClusterSpec,
    definition,
)
from simulator.errors import CannotRun
from simulator.topology import DRIVER, Driver, Gcs, Head, Profile, WorkerGroup, parse_size

#: A hash of what the cluster was asked to be, on every container that the simulator made.
LABEL_DEFINITION = "ray-sim.definition"
#: The `ClusterSpec` as JSON, on the one container that always exists and that no fault hits: init.
LABEL_SPEC = "ray-sim.spec"

#: The role of a container that is never started, and that the cloud copies (`simulator.innode.docker_engine`).
TEMPLATE = "template"

#: Where things are in a node; compose.yaml says so, and a test holds the two together.
INNODE_TARGET = "/opt/ray-sim/simulator/innode"
TOKEN_TARGET = "/run/ray-sim"
LEDGER_TARGET = "/ledger"
#: The head's disk for the tables of its GCS, if its topology says `gcs: rocksdb`.
GCS_TARGET = "/gcs"
#: Where Redis has its data and, as the head, its password, if the topology says `gcs: redis`.
REDIS_TARGET, STORE_TARGET = "/redis", "/run/ray-sim-store"
#: What only the head has of a store in its environment.
STORE_ENV = ("RAY_REDIS_ADDRESS", "RAY_SIM_REDIS_PASSWORD_FILE", "RAY_external_storage_namespace")
#: The disk of its own size that a node has if its topology says `spill_size`.
SPILL_TARGET = "/spill"
DASHBOARD_PORT = 8265
GCS_PORT = 6379

#: Names in compose.yaml that the rest of the simulator relies on.
NETWORK = "cluster"
CLOUD_VOLUME = "cloud"
TOKEN_VOLUME = "token"
LEDGER_VOLUME = "ledger"

_VARIABLE = re.compile(r"\$(?:(?P<dollar>\$)|\{(?P<name>[A-Za-z_]\w*)(?::-(?P<default>[^}]*))?\})")
_OWN_FLAGS = ("--num-cpus", "--num-gpus", "--resources", "--labels")
#: What of a node's shared memory its object store is given: Ray refuses a store that is larger than
#: what is free there, and lays it on disk.
_STORE_SHARE = 0.95


@dataclass(frozen=True, slots=True)
class ClusterNetwork:
    """The addresses of one cluster: its subnet, what is given out freely, and the head's."""

    subnet: str
    ip_range: str
    head_ip: str

    @property
    def redis_ip(self) -> str:
        """The address of the cluster's Redis, if it has one."""
        return str(ipaddress.ip_address(self.head_ip) + 1)


def expand(
    spec: ClusterSpec,
    *,
    network: ClusterNetwork | None = None,
    innode: Path | None = None,
    mount_innode: bool = True,
    cores: float | None = None,
    cdi: Sequence[str] = (),
) -> dict[str, Any]:
    """The Compose project of a cluster, with every variable filled in.

    Parameters
    ----------
    network
        Its addresses; by default those of compose.yaml.
    innode
        Folder of the in-node programs on the engine's machine; by default this package's.
    mount_innode
        False leaves the mount out, for an engine that does not share this machine's files.
    cores
        What the engine has; a CPU limit above it would be refused.
    cdi
        Names of the engine's CDI devices, which are passed then; without any, its NVIDIA runtime passes them.

    Returns
    -------
    dict
        Ready for `to_yaml`.
    """
    variables = {
        "COMPOSE_PROJECT_NAME": spec.name,
        "RAY_SIM_INNODE": str(innode or innode_path()),
    }
    if spec.image:
        variables |= {"RAY_SIM_IMAGE": spec.image, "RAY_SIM_GPU_IMAGE": spec.image}
    if network:
        variables |= {
            "RAY_SIM_SUBNET": network.subnet,
            "RAY_SIM_IP_RANGE": network.ip_range,
            "RAY_SIM_HEAD_IP": network.head_ip,
            "RAY_SIM_REDIS_IP": network.redis_ip,
        }
    project = load_compose(variables)
    if spec.topology.gcs is not Gcs.MEMORY:
        project = _added(project, load_override(spec.topology.gcs.value, variables))
    lean = load_override("lean", variables)["services"]["worker"]
    if spec.gpu == "real":
        _pass_gpu(project, load_override("gpu", variables), spec.topology.head.gpus_declared, cdi)
    project["name"] = spec.name

    services = project["services"]
    worker = services.pop("worker")
    labels = _labels(spec)
    _node(services["head"], "head", spec.topology.head, spec, labels, cores)
    if spec.topology.autoscaling:
        services["head"]["environment"] |= HEAD_ENV
        services["head"]["command"] += HEAD_ARGUMENTS
    if spec.topology.driver is not None:
        services[DRIVER] = copy.deepcopy(worker)
        services[DRIVER]["deploy"]["replicas"] = 1
        _node(services[DRIVER], DRIVER, spec.topology.driver, spec, labels, cores)
        services[DRIVER]["labels"][LABEL_ROLE] = "driver"
    for group in spec.topology.worker_groups:
        # An image of the user's own is what every node has, whatever the profile.
        is_lean = group.profile is Profile.LEAN and not spec.image
        service = _merge(worker, lean) if is_lean else copy.deepcopy(worker)
        _node(service, group.group_name, group, spec, labels, cores)
        if spec.topology.autoscaling:
            # Never started: the cloud's machines are copies of it, and so are the same as any worker.
            service["deploy"]["replicas"] = 1
            service["labels"][LABEL_ROLE] = TEMPLATE
            services[f"{TEMPLATE}-{group.group_name}"] = service
        else:
            service["deploy"]["replicas"] = group.replicas
            services[group.group_name] = service
    services["init"]["labels"] |= {**labels, LABEL_SPEC: spec.to_json()}
    if spec.topology.store is not None:
        services[spec.topology.store.name]["labels"] |= labels
    if not mount_innode:
        for service in services.values():
            service["volumes"] = [v for v in service["volumes"] if v["target"] != INNODE_TARGET]
    # Without the definition, so that Compose finds those of a cluster by hand unchanged.
    del labels[LABEL_DEFINITION]
    for thing in (*project["networks"].values(), *project["volumes"].values()):
        thing["labels"] |= labels
    return project


def load_compose(variables: Mapping[str, str]) -> dict[str, Any]:
    """compose.yaml with its variables filled in; pass-through environment is left out.

    A cluster that the simulator makes must not depend on what the user's shell happens to hold.
    """
    project = _load(asset_path("compose.yaml"), variables)
    for name in [n for n in project if n.startswith("x-")]:
        del project[name]
    for service in project["services"].values():
        environment = service.get("environment", {})
        service["environment"] = {k: v for k, v in environment.items() if v is not None}
    return project


def load_override(name: str, variables: Mapping[str, str]) -> dict[str, Any]:
    """docker/gpu.yaml, lean.yaml, redis.yaml or rocksdb.yaml with its variables filled in."""
    return _load(asset_path("docker") / f"{name}.yaml", variables)


def ray_arguments(node: Head | Driver | WorkerGroup) -> list[str]:
    """What a node offers, as arguments of ``ray start``.

    Examples
    --------
    >>> ray_arguments(Head(resources={"CPU": 2, "disk": 1}, labels={"zone": "a"}))
    ['--num-cpus=2', '--resources={"disk":1}', '--labels=zone=a']
    """
    arguments = [f"--num-cpus={node.cpus}"]
    if node.gpus_declared:
        arguments.append(f"--num-gpus={node.gpus_declared}")
    custom = {
        name: int(amount) if amount == int(amount) else amount
        for name, amount in sorted(node.resources.items())
        if name not in ("CPU", "GPU")
    }
    if custom:
        arguments.append("--resources=" + json.dumps(custom, separators=(",", ":")))
    labels = node.all_labels
    if labels:
        arguments.append("--labels=" + ",".join(f"{k}={v}" for k, v in sorted(labels.items())))
    return arguments


def passed_through() -> list[str]:
    """The variables that compose.yaml hands over from a shell, for a cluster by hand."""
    raw = yaml.safe_load(asset_path("compose.yaml").read_text(encoding="utf-8"))
    return [name for name, value in raw["x-node"]["environment"].items() if value is None]


def labels_of(command: Sequence[str]) -> dict[str, str]:
    """A node's labels for Ray, read back from the arguments that it was made with.

    Examples
    --------
    >>> labels_of(["worker", "--num-cpus=1", "--labels=tier=spot,zone=a"])
    {'tier': 'spot', 'zone': 'a'}
    """
    given = [a.partition("=")[2] for a in command if a.startswith("--labels=")]
    pairs = [pair.partition("=") for text in given for pair in text.split(",")]
    return {key: value for key, equals, value in pairs if equals}


def resources_of(command: Sequence[str]) -> dict[str, float]:
    """What a node offers, read back from the arguments that it was made with."""
    resources: dict[str, float] = {}
    for argument in command:
        flag, _, value = argument.partition("=")
        try:
            if flag == "--num-cpus":
                resources["CPU"] = float(value)
            elif flag == "--num-gpus":
                resources["GPU"] = float(value)
            elif flag == "--resources":
                resources |= {name: float(amount) for name, amount in json.loads(value).items()}
        except (ValueError, AttributeError):
            continue  # written by hand in another form; Ray will say what it makes of it
    return resources


def free_network(taken: Iterable[str], nodes: int, *, skip: int = 0) -> ClusterNetwork:
    """Addresses for a cluster that clash with none of the subnets in `taken`.

    Half of the subnet is given out freely, the head's address lies in the other half, so nothing
    that starts while the head is down can take its address.

    Parameters
    ----------
    nodes
        How many nodes it must hold.
    skip
        Pass over this many free ones: somebody else may just have taken them.

    Raises
    ------
    CannotRun
        Every candidate is taken.
    """
    used = [ipaddress.ip_network(t, strict=False) for t in taken]
    prefix = 24
    while 2 ** (31 - prefix) < nodes + 16:  # 16: gateway, programs, nodes being replaced
        prefix -= 1
    # A private range that neither Docker's default pools nor home routers use.
    for candidate in ipaddress.ip_network("10.208.0.0/12").subnets(new_prefix=prefix):
        if any(candidate.overlaps(u) for u in used if u.version == 4):
            continue
        if skip:
            skip -= 1
            continue
        return ClusterNetwork(
            subnet=str(candidate),
            ip_range=str(list(candidate.subnets(prefixlen_diff=1))[1]),
            head_ip=str(candidate[10]),
        )
    raise CannotRun(
        "no subnet is free for the cluster's network",
        why="every one in 10.208.0.0/12 overlaps a Docker network or a route of this machine",
        remedy="Remove unused networks: docker network prune",
    )


def to_yaml(project: Mapping[str, Any]) -> str:
    """The project as a file for ``docker compose -f``; a ``$`` in a value stays a ``$``."""
    text: str = yaml.safe_dump(
        _map_strings(dict(project), lambda s: s.replace("$", "$$")), sort_keys=False
    )
    return text


# ---- parts of it


def _labels(spec: ClusterSpec) -> dict[str, str]:
    labels = {**spec.labels, LABEL_CLUSTER: spec.name, LABEL_DEFINITION: definition(spec)}
    if spec.run_dir is not None:
        labels[LABEL_RUN_DIR] = str(spec.run_dir.resolve())
    return labels


def _node(
    service: dict[str, Any],
    name: str,
    node: Head | Driver | WorkerGroup,
    spec: ClusterSpec,
    labels: Mapping[str, str],
    cores: float | None,
) -> None:
    role, *arguments = service["command"]
    kept = [a for a in arguments if a.partition("=")[0] not in _OWN_FLAGS]
    service["command"] = [role, *ray_arguments(node), *kept]
    if node.shm_size:
        service["shm_size"] = node.shm_size
        store = int(parse_size(node.shm_size) * _STORE_SHARE)
        service["command"].append(f"--object-store-memory={store}")
    if node.spill_size:
        service["tmpfs"] = [f"{SPILL_TARGET}:size={parse_size(node.spill_size)},mode=1777"]
        service["command"].append(f"--object-spilling-directory={SPILL_TARGET}")
    service["environment"] |= dict(spec.env)
    service["labels"] |= {**labels, LABEL_ROLE: role, LABEL_GROUP: name, LABEL_GPU: spec.gpu}
    if node.memory:
        service["mem_limit"] = node.memory
    if cores is not None:
        service["cpus"] = min(float(service["cpus"]), cores)


def _pass_gpu(
    project: dict[str, Any], override: Mapping[str, Any], count: int, cdi: Sequence[str]
) -> None:
    merged = _merge(project, override)
    project.clear()
    project.update(merged)
    head = project["services"]["head"]
    devices = head["deploy"]["resources"]["reservations"]["devices"]
    # As many as are declared to Ray: an engine that has fewer must refuse, not pretend.
    if cdi:
        names = [f"nvidia.com/gpu={name}" for name in cdi[:count]]
        devices[:] = [{"driver": "cdi", "device_ids": names, "capabilities": ["gpu"]}]
        # Or an NVIDIA runtime that is the engine's default adds what was not asked for.
        head["environment"]["NVIDIA_VISIBLE_DEVICES"] = "void"
    else:
        devices[0]["count"] = count


def _merge(base: Any, over: Any) -> Any:
    """`over` on top of `base`: mappings key by key, anything else replaced."""
    if isinstance(base, Mapping) and isinstance(over, Mapping):
        return {
            key: _merge(base[key], over[key])
            if key in base and key in over
            else copy.deepcopy(over[key] if key in over else base[key])
            for key in [*base, *(k for k in over if k not in base)]
        }
    return copy.deepcopy(over)


def _added(base: Any, more: Any) -> Any:
    """`more` added to `base`, as Compose does with a second file: mappings key by key, lists one after the other."""
    if isinstance(base, Mapping) and isinstance(more, Mapping):
        return {
            key: _added(base[key], more[key])
            if key in base and key in more
            else copy.deepcopy(more[key] if key in more else base[key])
            for key in [*base, *(k for k in more if k not in base)]
        }
    if isinstance(base, list) and isinstance(more, list):
        return copy.deepcopy([*base, *more])
    return copy.deepcopy(more)


def _load(path: Path, variables: Mapping[str, str]) -> dict[str, Any]:
    # YAML's anchors give the same object at several places; each place gets one of its own.
    data = yaml.safe_load(path.read_text(encoding="utf-8"))
    filled: dict[str, Any] = _map_strings(data, lambda s: _fill_in(s, variables))
    return filled


def _fill_in(text: str, variables: Mapping[str, str]) -> str:
    def value(match: re.Match[str]) -> str:
        if match["dollar"]:
            return "$"
        return variables.get(match["name"]) or match["default"] or ""

    return _VARIABLE.sub(value, text)


def _map_strings(data: Any, change: Any) -> Any:
    if isinstance(data, str):
        return change(data)
    if isinstance(data, Mapping):
        return {change(k): _map_strings(v, change) for k, v in data.items()}
    if isinstance(data, (list, tuple)):
        return [_map_strings(v, change) for v in data]
    return data
