"""Which nodes a cluster has: one head and groups of workers, in KubeRay's vocabulary.

How a head or a worker container runs (image, mounts, limits, ports) is said once, in
``compose.yaml``; a topology says only *which* nodes exist and what they offer to Ray.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    NonNegativeFloat,
    NonNegativeInt,
    PositiveInt,
    PrivateAttr,
    ValidationError,
    field_validator,
    model_validator,
)

from simulator.assets import asset_names
from simulator.errors import BadInput, NotFound, Problem
from simulator.quantities import Quantity
from simulator.yamltext import NotYaml, read_yaml

#: `store` is no node of Ray's: it is where the GCS of the head keeps its tables.
Role = Literal["head", "worker", "driver", "store"]

_NAME = re.compile(r"^[a-z]([a-z0-9-]{0,30}[a-z0-9])?$")
#: The node of a job's driver, if there is one: its name, and the resource that it alone offers.
DRIVER = "driver"
#: How much of that a driver asks for: as many drivers as there will ever be fit beside each other.
_DRIVERS_SHARE = 0.001
_RESERVED = frozenset({"head", "init", "observer", DRIVER})
_SIZE = re.compile(r"([0-9]{1,15})([kmg])")
#: What a node may be given: Docker takes no less than 6 MiB, and more than a PiB is a slip of the pen.
_LEAST_MEMORY, _MOST_MEMORY = "6m", "1048576g"
#: Ray's object store takes no less than 75 MiB (`OBJECT_STORE_MINIMUM_MEMORY_BYTES`), and not all of the
#: shared memory is given to it. It spills many objects at once, into one file of up to 100 MB or more
#: (`min_spilling_size`): a smaller disk would be full after the first time.
_LEAST_SHM, _LEAST_SPILL = "80m", "128m"
#: Of one resource on one node, and of nodes in one group: more is a slip of the pen.
_MOST, _MOST_REPLICAS = 1_000_000, 1000
#: How long raylets and workers wait for a GCS that is gone and keeps its tables, seconds; the files below docker/ say
#: the same, and a test holds them together.
RECONNECT_S = 180
_UNITS = {"k": 1024, "m": 1024**2, "g": 1024**3}
_LONGEST_S = 30 * 86400.0

#: Resources that Ray measures by itself, and the prefix of those that it gives a node by itself
#: (Ray 2.60, `ResourceAndLabelSpec`): what a topology says of them is overwritten or refused.
RAYS_RESOURCES, _RAYS_PREFIX = ("memory", "object_store_memory"), "node:"

#: Labels by Ray's rule, which is Kubernetes' (Ray 2.60, `ray._private.label_utils.validate_label_key` and
#: `validate_label_value`; a test holds them together), less the prefixes that only a slip in Ray's pattern
#: lets through (`/b`, `a..b/c`). A node's id is Ray's to say; the others below `ray.io/`, such as
#: market-type, are the user's.
_LABEL = re.compile(r"[a-zA-Z0-9]([a-zA-Z0-9_.-]{0,61}[a-zA-Z0-9])?")
_DNS_LABEL = r"[a-zA-Z0-9]([a-zA-Z0-9_-]{0,61}[a-zA-Z0-9])?"
_LABEL_PREFIX = re.compile(rf"(?=.{{1,253}}\Z){_DNS_LABEL}(\.{_DNS_LABEL})*")
_LABEL_OF_RAY = "ray.io/node-id"


class Gpus(str, Enum):
    """Where a node's declared GPUs come from."""

    AUTO = "auto"  # the machine's, if it has any and the backend can pass them; else simulated
    REAL = "real"  # the machine's, or the cluster is refused
    SIMULATED = "simulated"  # declared to Ray, no device


class Gcs(str, Enum):
    """Where Ray's control store keeps its tables."""

    MEMORY = "memory"  # they are gone with the head
    ROCKSDB = "rocksdb"  # on a disk of the head's, which outlives its processes
    REDIS = "redis"  # in a Redis beside the nodes


class Profile(str, Enum):
    """What is installed on the nodes of a worker group."""

    DEFAULT = "default"  # ray[default,serve] and torch
    LEAN = "lean"  # bare ray: starts sooner, takes less memory, gives up what `LEAN_LACKS` says


class Market(str, Enum):
    """How a node's machine is paid for."""

    ON_DEMAND = "on-demand"
    SPOT = "spot"  # cheaper, and taken back when its owner needs it


#: Ray's own label for it, which `market` sets.
LABEL_MARKET = "ray.io/market-type"

#: What a lean node gives up, as found in Ray 2.60 (docs/decisions/0014).
LEAN_LACKS = (
    "no metrics and no HTTP health of the node, none of its logs in the dashboard, no log of a job "
    "whose driver runs there, no torch, Serve, Data, Train or Tune, no pip or uv in runtime environments"
)


def parse_size(text: str) -> int:
    """Bytes of a size as Docker writes it: ``"512m"``, ``"2g"``; ValueError if it is not one."""
    match = _SIZE.fullmatch(text.lower())
    if not match:
        raise ValueError(f'is "{text}"; use a number and k, m or g, such as 512m or 2g')
    return int(match[1]) * _UNITS[match[2]]


def _within(value: str | None, least: str, why: str = "") -> str | None:
    if value is not None and not parse_size(least) <= parse_size(value) <= parse_size(_MOST_MEMORY):
        raise ValueError(f'is "{value}"; use {least} to {_MOST_MEMORY}{f": {why}" if why else ""}')
    return value


Size = Annotated[str, Field(description="a size such as 512m or 2g")]


def _seconds(value: Any) -> Any:
    """Seconds of a time as people write it (``20s``, ``1.5min``, or plain seconds)."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise ValueError(f"is {value!r}; use a time, such as 20s or 5min")
    seconds = Quantity.parse(str(value).strip()).as_unit("s") if isinstance(value, str) else value
    if not 0 <= seconds <= _LONGEST_S:  # NaN too
        raise ValueError(f"is {value}; use a time from 0 s to 30 days")
    return float(seconds)


def _seconds_between(value: Any) -> Any:
    """From when to when, of ``3s..8s``; one time is both."""
    if isinstance(value, str) and ".." in value:
        value = value.split("..", 1)
    low, high = value if isinstance(value, (list, tuple)) and len(value) == 2 else (value, value)
    low, high = _seconds(low), _seconds(high)
    if low > high:
        raise ValueError(f"ends before it begins; use {high:g}s..{low:g}s")
    return low, high


def _share(value: Any) -> Any:
    """A share of 1, of ``20%`` or ``0.2``."""
    if isinstance(value, str):
        quantity = Quantity.parse(value.strip())
        value = quantity.number / 100 if quantity.unit == "%" else quantity.as_unit(None)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 <= value <= 1:
        raise ValueError(f"is {value!r}; use a share from 0 to 1, such as 0.2 or 20%")
    return float(value)


Seconds = Annotated[float, BeforeValidator(_seconds)]
Between = Annotated[tuple[float, float], BeforeValidator(_seconds_between)]
Share = Annotated[float, BeforeValidator(_share)]
Price = Annotated[NonNegativeFloat, Field(le=_MOST)]


class _Node(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)

    resources: Mapping[str, float] = Field(default_factory=lambda: {"CPU": 1})
    labels: Mapping[str, str] = Field(default_factory=dict)
    memory: Size | None = None
    shm_size: Size | None = None
    spill_size: Size | None = None

    @field_validator("resources")
    @classmethod
    def _resources(cls, value: Mapping[str, float]) -> Mapping[str, float]:
        for name, amount in value.items():
            if not name.strip() or not name.isprintable():
                raise ValueError(f"{name!r} is not a name; use letters, digits, - and _")
            if name in RAYS_RESOURCES or name.startswith(_RAYS_PREFIX):
                raise ValueError(f"{name} is Ray's own to say; choose another name")
            if amount < 0:
                raise ValueError(f"{name} is {amount:g}; a node cannot offer less than 0")
            if not amount <= _MOST:  # NaN too
                raise ValueError(f"{name} is {amount:g}; a node cannot offer more than {_MOST}")
            if amount != int(amount):
                raise ValueError(f"{name} is {amount:g}; Ray takes whole amounts per node")
        return {"CPU": 0, **value}

    @field_validator("labels")
    @classmethod
    def _labels(cls, value: Mapping[str, str]) -> Mapping[str, str]:
        for key, text in value.items():
            prefix, slash, name = key.rpartition("/")
            if not _LABEL.fullmatch(name) or (slash and not _LABEL_PREFIX.fullmatch(prefix)):
                raise ValueError(
                    f"{key!r} is not a label's name; use up to 63 letters, digits, -, _ and ., the first and "
                    "the last a letter or a digit, behind a domain and a / if you like"
                )
            if key == _LABEL_OF_RAY:
                raise ValueError(f"{key} is Ray's own to say; choose another name")
            if text and not _LABEL.fullmatch(text):
                raise ValueError(
                    f"{key} is {text!r}; use up to 63 letters, digits, -, _ and ., the first and the last "
                    "a letter or a digit"
                )
        return value

    @field_validator("memory")
    @classmethod
    def _memory(cls, value: str | None) -> str | None:
        return _within(value, _LEAST_MEMORY)

    @field_validator("shm_size")
    @classmethod
    def _shm_size(cls, value: str | None) -> str | None:
        return _within(
            value, _LEAST_SHM, why="Ray's object store lies in it and takes 75 MiB at least"
        )

    @field_validator("spill_size")
    @classmethod
    def _spill_size(cls, value: str | None) -> str | None:
        return _within(value, _LEAST_SPILL, why="Ray spills up to 100 MB at a time")

    @model_validator(mode="after")
    def _fits_in_memory(self) -> _Node:
        parts = {"shm_size": self.shm_size, "spill_size": self.spill_size}
        given = {name: text for name, text in parts.items() if text is not None}
        if self.memory is not None and given:
            if sum(map(parse_size, given.values())) >= parse_size(self.memory):
                said = " and ".join(f'{name} "{text}"' for name, text in given.items())
                raise ValueError(
                    f'{said} lie in the memory of the node, which is "{self.memory}"; make them smaller'
                )
        return self

    @property
    def all_labels(self) -> Mapping[str, str]:
        """Its labels for Ray, with those that follow from something else that is said of it."""
        return self.labels

    @property
    def cpus(self) -> int:
        return int(self.resources.get("CPU", 0))

    @property
    def gpus_declared(self) -> int:
        return int(self.resources.get("GPU", 0))


class Head(_Node):
    """The head node: GCS, dashboard, and by default the driver."""

    gpus: Gpus = Gpus.AUTO
    price: Price | None = None


class Driver(_Node):
    """A node for the drivers of jobs alone: with no CPU and no GPU, no work is placed on it."""

    resources: Mapping[str, float] = Field(default_factory=lambda: {"CPU": 0, DRIVER: 1})


class WorkerGroup(_Node):
    """Workers that are all alike.

    Attributes
    ----------
    replicas
        How many there are; where Ray's autoscaler decides that, how many there may be unless
        `max_replicas` says so.
    provision_delay
        How long a machine that the autoscaler asks for takes to arrive, from when to when: drawn by
        the seed, evenly. Seconds.
    provision_failure
        The share of the autoscaler's requests that end without a machine.
    capacity_after
        There is no machine to be had before this; seconds since the cluster's first request for one.
    market, price
        How a machine is paid for, and how much it costs in an hour.
    on_demand_price
        Of a spot machine: how much it would cost in an hour on demand.
    """

    group_name: str
    profile: Profile = Profile.DEFAULT
    replicas: Annotated[NonNegativeInt, Field(le=_MOST_REPLICAS)] = 1
    min_replicas: NonNegativeInt | None = None
    max_replicas: Annotated[NonNegativeInt, Field(le=_MOST_REPLICAS)] | None = None
    provision_delay: Between = (0.0, 0.0)
    provision_failure: Share = 0.0
    capacity_after: Seconds = 0.0
    market: Market | None = None
    price: Price | None = None
    on_demand_price: Price | None = None

    @field_validator("group_name")
    @classmethod
    def _group_name(cls, value: str) -> str:
        if value in _RESERVED:
            raise ValueError(f'is "{value}", which is reserved; choose another name')
        if not _NAME.match(value):
            raise ValueError(
                f'is "{value}"; use up to 32 lower-case letters, digits and dashes, letter first'
            )
        return value

    @model_validator(mode="after")
    def _limits(self) -> WorkerGroup:
        low = 0 if self.min_replicas is None else self.min_replicas
        high = self.max_replicas
        if high is not None and low > high:
            raise ValueError(f"min_replicas {low} is above max_replicas {high}")
        if self.replicas < low:
            raise ValueError(f"replicas {self.replicas} is below min_replicas {low}")
        if high is not None and self.replicas > high:
            raise ValueError(f"replicas {self.replicas} is above max_replicas {high}")
        return self

    @model_validator(mode="after")
    def _market(self) -> WorkerGroup:
        said = self.labels.get(LABEL_MARKET)
        if self.market is not None and said not in (None, self.market.value):
            raise ValueError(
                f"market is {self.market.value}, and the label {LABEL_MARKET} says {said}; say it once"
            )
        return self

    @model_validator(mode="after")
    def _compared(self) -> WorkerGroup:
        if self.on_demand_price is not None and not self.is_spot:
            raise ValueError(
                "on_demand_price is what a spot machine is compared with; say market: spot, or price alone"
            )
        return self

    @property
    def all_labels(self) -> Mapping[str, str]:
        return (
            self.labels if self.market is None else {LABEL_MARKET: self.market.value, **self.labels}
        )

    @property
    def is_spot(self) -> bool:
        """Whether its machines may be taken back at any time."""
        return self.all_labels.get(LABEL_MARKET) == Market.SPOT.value

    @property
    def least(self) -> int:
        """As few nodes as it may have under Ray's autoscaler."""
        return self.min_replicas or 0

    @property
    def most(self) -> int:
        """As many nodes as it may have under Ray's autoscaler."""
        return self.replicas if self.max_replicas is None else self.max_replicas


class Autoscaling(BaseModel):
    """Ray's own autoscaler decides how many workers there are; these are its settings.

    Attributes
    ----------
    upscaling_speed
        How many nodes of a group it may ask for in one look, once a second, as a multiple of those
        that run; one at least.
    idle_timeout
        After how long without work a node leaves; seconds.
    max_workers
        How many there may be of all groups together; None where the groups' own limits are all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    upscaling_speed: Annotated[NonNegativeFloat, Field(le=1000)] = 1.0
    idle_timeout: Seconds = 60.0
    max_workers: PositiveInt | None = None


@dataclass(frozen=True, slots=True)
class NodeSpec:
    """One node that should exist."""

    name: str
    role: Role
    group: str
    index: int
    resources: Mapping[str, float]
    labels: Mapping[str, str]
    memory: str | None
    profile: Profile = Profile.DEFAULT
    spill_size: str | None = None


class Topology(BaseModel):
    """Which nodes a cluster has.

    Attributes
    ----------
    driver_node
        Whether the drivers of jobs have a node of their own, so that they outlive a head whose tables do.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    name: str = "custom"
    description: str = ""
    head: Head = Field(default_factory=Head)
    worker_groups: Sequence[WorkerGroup] = ()
    autoscaling: Autoscaling | None = None
    gcs: Gcs = Gcs.MEMORY
    driver_node: bool = False

    #: Of the groups that Ray's autoscaler manages: those that are there now, where somebody looked.
    _living: tuple[NodeSpec, ...] = PrivateAttr(default=())

    @model_validator(mode="after")
    def _room_for_the_least(self) -> Topology:
        most = self.autoscaling and self.autoscaling.max_workers
        least = sum(g.least for g in self.worker_groups)
        if most and least > most:
            raise ValueError(
                f"autoscaling.max_workers is {most}, and the groups' min_replicas are {least} together"
            )
        if self.autoscaling and not self.worker_groups:
            raise ValueError("autoscaling needs a worker group; add one to worker_groups")
        return self

    @model_validator(mode="after")
    def _unique(self) -> Topology:
        names = [g.group_name for g in self.worker_groups]
        for name in sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"worker_groups: {name} stands there twice; merge them or rename one")
        return self

    @model_validator(mode="after")
    def _stores_name(self) -> Topology:
        if self.store is not None and self.store.name in {g.group_name for g in self.worker_groups}:
            raise ValueError(
                f"worker_groups: {self.store.name} is the name of the store with gcs: {self.gcs.value}; "
                "rename the group"
            )
        return self

    @model_validator(mode="after")
    def _drivers_own(self) -> Topology:
        others = {"head": self.head, **{g.group_name: g for g in self.worker_groups}}
        for name, node in others.items():
            if self.driver_node and node.resources.get(DRIVER):
                raise ValueError(
                    f"{name} offers {DRIVER}, by which drivers find the driver node; rename the resource"
                )
        return self

    @property
    def driver(self) -> Driver | None:
        """What the node of the drivers is, if there is one."""
        return Driver() if self.driver_node else None

    @property
    def store(self) -> NodeSpec | None:
        """Where the GCS keeps its tables, if that is a thing of its own that can be broken."""
        if self.gcs is not Gcs.REDIS:
            return None
        return NodeSpec(self.gcs.value, "store", self.gcs.value, 1, {}, {}, None)

    @property
    def outlives_head(self) -> bool:
        """Whether a head that is started again knows what the one before knew, and workers wait for it."""
        return self.gcs is not Gcs.MEMORY

    @property
    def managed(self) -> Sequence[WorkerGroup]:
        """The worker groups whose nodes Ray's autoscaler starts and stops: all, or none."""
        return self.worker_groups if self.autoscaling else ()

    def group(self, name: str) -> WorkerGroup:
        """A worker group by name; `NotFound` names the nearest."""
        groups = {g.group_name: g for g in self.worker_groups}
        if name not in groups:
            raise NotFound("worker group", name, groups)
        return groups[name]

    @property
    def most_nodes(self) -> int:
        """How many nodes there may be at one time, the head among them."""
        return 1 + self.driver_node + self.most_workers

    @property
    def most_workers(self) -> int:
        """How many workers there may be at one time."""
        if not self.autoscaling:
            return len(self.workers())
        most = sum(g.most for g in self.worker_groups)
        return min(most, self.autoscaling.max_workers or most)

    def node_of(self, group: WorkerGroup, index: int) -> NodeSpec:
        """What one node of a group is."""
        return NodeSpec(
            f"{group.group_name}-{index}",
            "worker",
            group.group_name,
            index,
            group.resources,
            group.all_labels,
            group.memory,
            group.profile,
            group.spill_size,
        )

    def with_living(self, names: Iterable[str]) -> Topology:
        """The same, with these nodes of groups that Ray's autoscaler manages."""
        made = self.model_copy()
        found = []
        for name in names:
            group, _, number = name.rpartition("-")
            found.append(self.node_of(self.group(group), int(number)))
        made._living = tuple(found)
        return made

    def imagined(self) -> Topology:
        """The same, as if every group had as many nodes as it may."""
        groups = [(g, g.most if self.autoscaling else 0) for g in self.worker_groups]
        return self.with_living(
            f"{g.group_name}-{n}" for g, most in groups for n in range(1, most + 1)
        )

    def nodes(self) -> list[NodeSpec]:
        """Every node that should exist, head first.

        How many there are of the groups that Ray's autoscaler manages is not ours to say: none, unless
        somebody looked (`with_living`).
        """
        head = NodeSpec(
            "head",
            "head",
            "head",
            1,
            self.head.resources,
            self.head.labels,
            self.head.memory,
            spill_size=self.head.spill_size,
        )
        driver = [
            NodeSpec(DRIVER, "driver", DRIVER, 1, node.resources, node.all_labels, node.memory)
            for node in (self.driver,)
            if node is not None
        ]
        return [
            head,
            *driver,
            *(
                self.node_of(g, i)
                for g in self.worker_groups
                if not self.autoscaling
                for i in range(1, g.replicas + 1)
            ),
            *self._living,
        ]

    def breakable(self) -> list[NodeSpec]:
        """Every node that should exist, and the store: all that a fault can hit by its name."""
        return [*self.nodes(), *(s for s in (self.store,) if s is not None)]

    def workers(self) -> list[NodeSpec]:
        return [n for n in self.nodes() if n.role == "worker"]

    @property
    def counted(self) -> str:
        """Its nodes in words."""
        driver = ", a driver node" if self.driver_node else ""
        return f"a head{driver} and {len(self.workers())} workers"

    @property
    def lean_groups(self) -> list[str]:
        """Names of the worker groups whose nodes are lean."""
        return [g.group_name for g in self.worker_groups if g.profile is Profile.LEAN]

    def total(self, resource: str) -> float:
        """How much of a resource all nodes offer together."""
        return sum(n.resources.get(resource, 0.0) for n in self.nodes())

    def with_workers(self, count: int) -> Topology:
        """The same, with `count` replicas in its first worker group.

        Raises
        ------
        BadInput
            There is no worker group, or its limits do not allow so many.
        """
        if not self.worker_groups:
            raise BadInput(
                Problem("--workers", f"topology {self.name} has no worker group", "use another one")
            )
        first = self.worker_groups[0].group_name
        return override(self, [f"worker_groups.{first}.replicas={count}"])


def driver_needs(roles: Iterable[Role]) -> Mapping[str, float] | None:
    """What a driver asks for, so that Ray places it on the driver node; None where there is none.

    Without it, Ray places a job's driver on the head.
    """
    return {DRIVER: _DRIVERS_SHARE} if "driver" in set(roles) else None


def topology_problems(error: ValidationError, where: str) -> list[Problem]:
    """pydantic's findings in the words of this project: where, what, remedy."""
    problems = []
    for item in error.errors():
        path = ""
        for part in item["loc"]:
            path += f"[{part}]" if isinstance(part, int) else f".{part}" if path else str(part)
        text, remedy = item["msg"].removeprefix("Value error, "), ""
        if item["type"] == "extra_forbidden":
            text = "is not a known key"
            remedy = _nearest_keys(item["loc"])
        elif item["type"] == "missing":
            text = "is missing"
        elif "input" in item and not isinstance(item["input"], (dict, list)):
            if not text.startswith("is "):
                text = f"is {item['input']!r}: {text[0].lower()}{text[1:]}"
        problems.append(Problem(f"{where}: {path}" if path else where, text, remedy))
    return problems


def _nearest_keys(path: Sequence[int | str]) -> str:
    """What a key that is not known may have been meant to be."""
    model: type[BaseModel] = Topology
    if tuple(path) == ("head", "profile"):
        return (
            "only a worker group has one: the head needs all of Ray, for its dashboard and for jobs"
        )
    if len(path) > 1:
        models: Mapping[str, type[BaseModel]] = {"head": Head, "autoscaling": Autoscaling}
        model = models.get(str(path[0]), WorkerGroup)
    near = get_close_matches(str(path[-1]), model.model_fields, n=2)
    if near:
        return f"did you mean {' or '.join(near)}?"
    return "known: " + ", ".join(model.model_fields)


def parse_topology(data: Any, where: str) -> Topology:
    """Validate plain data; raises `BadInput` with every problem."""
    if not isinstance(data, dict):
        raise BadInput(Problem(where, "is not a mapping", "it needs head and worker_groups"))
    try:
        return Topology.model_validate(data)
    except ValidationError as error:
        raise BadInput(topology_problems(error, where)) from None


def known_topologies() -> dict[str, Path]:
    """The topologies that come with the package, by name."""
    return asset_names("topologies", ".yaml")


def load_topology(name_or_path: str) -> Topology:
    """A topology by name, or by path to a YAML file.

    Raises
    ------
    NotFound
        There is neither such a name nor such a file.
    BadInput
        The file is not a valid topology; lists every problem.
    """
    known = known_topologies()
    path = known.get(name_or_path, Path(name_or_path))
    if path.is_dir():
        raise BadInput(Problem(str(path), "is a directory", "name a YAML file in it"))
    if not path.is_file():
        raise NotFound("topology", name_or_path, known)
    try:
        data = read_yaml(path.read_bytes())
    except NotYaml as error:
        raise BadInput(Problem(str(path), "is not YAML", str(error))) from None
    except OSError as error:
        raise BadInput(Problem(str(path), f"cannot be read: {error.strerror}")) from None
    if isinstance(data, dict):
        data.setdefault("name", path.stem)
    return parse_topology(data, str(path))


def override(topology: Topology, settings: Iterable[str]) -> Topology:
    """Apply ``key=value`` settings such as ``worker_groups.worker.replicas=5``.

    A group is named by its ``group_name`` or its position; the value is read as YAML.

    Raises
    ------
    BadInput
        Lists every setting that does not fit, or every problem of the topology that results.
    """
    data = topology.model_dump(mode="json")
    problems: list[Problem] = []
    for setting in settings:
        key, equals, raw = setting.partition("=")
        where = f"--set {setting}"
        if not equals or not key:
            problems.append(Problem(where, "is not key=value", "for example head.resources.CPU=2"))
            continue
        try:
            value = read_yaml(raw)
        except NotYaml:
            problems.append(Problem(where, f"{raw!r} is not a YAML value"))
            continue
        problem = _assign(data, key.split("."), value, where)
        if problem:
            problems.append(problem)
    try:
        made = parse_topology(data, f"topology {topology.name} with --set")
    except BadInput as error:
        raise BadInput([*problems, *error.problems]) from None
    if problems:
        raise BadInput(problems)
    return made


def _assign(data: Any, path: list[str], value: Any, where: str) -> Problem | None:
    here = data
    for depth, part in enumerate(path):
        last = depth == len(path) - 1
        if isinstance(here, list):
            names = [str(g.get("group_name")) if isinstance(g, dict) else "" for g in here]
            position = names.index(part) if part in names else None
            if position is None and part.isdecimal() and int(part) < len(here):
                position = int(part)
            if position is None:
                known = ", ".join(names) or "none"
                return Problem(where, f"there is no worker group {part!r}", f"there is {known}")
            key: Any = position
        elif isinstance(here, dict):
            key = part
            if not last and key not in here:
                return Problem(where, f"{part!r} is not a known key", "known: " + ", ".join(here))
        else:
            return Problem(where, f"{'.'.join(path[:depth])} has no keys below it")
        if last:
            here[key] = value
        else:
            if here[key] is None:  # setting a part of what is off turns it on
                here[key] = {}
            here = here[key]
    return None
