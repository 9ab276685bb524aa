"""Every call of ours into Ray's private API, in one place.

Ray offers no public way to hear of node and actor transitions without being a driver, which needs a raylet.
What is used here is what Ray's own dashboard uses: the GCS's gRPC services and its publisher. They want no
cluster id, so a GCS that was replaced is simply another one that answers, and a silent GCS costs a timeout
and nothing else (Ray's own `GcsClient` ends its process after a minute of silence). Each function is
pinned by a test against the Ray of the node image.

As a program: ``drain SECONDS`` drains the node that it runs on, ``drain SECONDS RAY_NODE_ID`` another one (0 seconds
are no deadline), ``drain-by MS RAY_NODE_ID`` one with a deadline that is fixed already (milliseconds since 1970); exit
code 0 if Ray accepted, 1 if not. ``draining`` prints, as one line of JSON, the deadline of each node that Ray holds
for draining: milliseconds since 1970, by Ray's id of the node, 0 where there is none.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import dataclass
from typing import Any

_REASONS = {
    0: "UNSPECIFIED",
    1: "EXPECTED_TERMINATION",
    2: "UNEXPECTED_TERMINATION",
    3: "AUTOSCALER_DRAIN_PREEMPTED",
    4: "AUTOSCALER_DRAIN_IDLE",
}

_CHANNEL = [
    # Seconds of back-off would be seconds of blindness after a head came back.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 500),
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 512 * 1024**2),
]


@dataclass(frozen=True)
class NodeInfo:
    """A node as the GCS has it: `state` is ALIVE or DEAD, `reason` and `message` say why dead."""

    ray_node_id: str
    hostname: str
    state: str
    reason: str
    message: str


@dataclass(frozen=True)
class ActorInfo:
    """An actor as the GCS has it; `ray_node_id` is where it lives, "" while nowhere."""

    actor_id: str
    name: str
    class_name: str
    state: str
    restarts: int
    ray_node_id: str


@dataclass(frozen=True)
class GroupInfo:
    """A placement group as the GCS has it.

    Attributes
    ----------
    state
        PENDING, PREPARED, CREATED, RESCHEDULING or REMOVED.
    places
        Ray node id of each bundle, in order; "" for one that is placed nowhere.
    """

    group_id: str
    name: str
    namespace: str
    strategy: str
    state: str
    places: tuple[str, ...]


class Gcs:
    """Asks the GCS, from a running event loop; raises whatever gRPC raises.

    Making one connects to nothing and waits for nobody. Credentials are those of Ray's environment
    variables (``RAY_AUTH_MODE``, ``RAY_AUTH_TOKEN_PATH``).
    """

    def __init__(self, address: str) -> None:
        from ray._private.grpc_utils import init_grpc_channel
        from ray.core.generated import gcs_service_pb2_grpc as services

        channel = init_grpc_channel(address, options=_CHANNEL, asynchronous=True)
        self._nodes: Any = services.NodeInfoGcsServiceStub(channel)
        self._actors: Any = services.ActorInfoGcsServiceStub(channel)
        self._groups: Any = services.PlacementGroupInfoGcsServiceStub(channel)
        self._publisher: Any = services.ControlPlanePubSubGcsServiceStub(channel)

    async def nodes(self, timeout: float) -> list[NodeInfo]:
        """Every node that ever joined, the dead included."""
        from ray.core.generated.gcs_pb2 import GcsNodeInfo
        from ray.core.generated.gcs_service_pb2 import GetAllNodeInfoRequest

        reply = await self._nodes.GetAllNodeInfo(GetAllNodeInfoRequest(), timeout=timeout)
        return [
            NodeInfo(
                ray_node_id=info.node_id.hex(),
                hostname=info.node_name or info.node_manager_hostname,
                state=GcsNodeInfo.GcsNodeState.Name(info.state),
                reason=_reason(info.death_info.reason) if info.state else "",
                message=info.death_info.reason_message if info.state else "",
            )
            for info in reply.node_info_list
        ]

    async def actors(self, timeout: float) -> list[ActorInfo]:
        """Every actor of a job that has not ended, and every detached one."""
        from ray.core.generated.gcs_pb2 import ActorTableData
        from ray.core.generated.gcs_service_pb2 import GetAllActorInfoRequest

        reply = await self._actors.GetAllActorInfo(GetAllActorInfoRequest(), timeout=timeout)
        return [
            ActorInfo(
                actor_id=info.actor_id.hex(),
                name=info.name,
                class_name=info.class_name,
                state=ActorTableData.ActorState.Name(info.state),
                restarts=info.num_restarts,
                ray_node_id=info.address.node_id.hex()
                if info.state == ActorTableData.ActorState.ALIVE
                else "",
            )
            for info in reply.actor_table_data
        ]

    async def groups(self, timeout: float) -> list[GroupInfo]:
        """Every placement group, and those that were removed not long ago."""
        from ray.core.generated.common_pb2 import PlacementStrategy
        from ray.core.generated.gcs_pb2 import PlacementGroupTableData
        from ray.core.generated.gcs_service_pb2 import GetAllPlacementGroupRequest

        reply = await self._groups.GetAllPlacementGroup(
            GetAllPlacementGroupRequest(), timeout=timeout
        )
        return [
            GroupInfo(
                group_id=info.placement_group_id.hex(),
                name=info.name,
                namespace=info.ray_namespace,
                strategy=PlacementStrategy.Name(info.strategy),
                state=PlacementGroupTableData.PlacementGroupState.Name(info.state),
                places=tuple(
                    bundle.node_id.hex()
                    for bundle in sorted(info.bundles, key=lambda b: b.bundle_id.bundle_index)
                ),
            )
            for info in reply.placement_group_table_data
        ]

    async def subscribe(self, timeout: float) -> Announcements:
        """Have the GCS announce transitions of nodes and actors from now on."""
        from ray.core.generated import gcs_service_pb2, pubsub_pb2

        subscriber = os.urandom(28)
        commands = [
            pubsub_pb2.Command(channel_type=channel, subscribe_message={})
            for channel in (pubsub_pb2.GCS_NODE_INFO_CHANNEL, pubsub_pb2.GCS_ACTOR_CHANNEL)
        ]
        await self._publisher.GcsSubscriberCommandBatch(
            gcs_service_pb2.GcsSubscriberCommandBatchRequest(
                subscriber_id=subscriber, commands=commands
            ),
            timeout=timeout,
        )
        return Announcements(self._publisher, subscriber)


class PublisherChanged(Exception):
    """Another GCS answers, which knows nothing of the subscription."""


class Announcements:
    """A subscription; says that something changed, not what: who hears it asks."""

    def __init__(self, publisher: Any, subscriber: bytes) -> None:
        self._publisher, self._subscriber = publisher, subscriber
        self._publisher_id = b""
        self._seen = 0

    async def next(self) -> int:
        """Wait for the next announcements, however long; returns how many came."""
        from ray.core.generated.gcs_service_pb2 import GcsSubscriberPollRequest

        reply = await self._publisher.GcsSubscriberPoll(
            GcsSubscriberPollRequest(
                subscriber_id=self._subscriber,
                max_processed_sequence_id=self._seen,
                publisher_id=self._publisher_id,
            )
        )
        if self._publisher_id not in (b"", reply.publisher_id):
            raise PublisherChanged
        self._publisher_id = reply.publisher_id
        for message in reply.pub_messages:
            self._seen = max(self._seen, message.sequence_id)
        return len(reply.pub_messages)


def _reason(number: int) -> str:
    return _REASONS.get(number, str(number))


def drain_own_node(address: str, name: str, seconds: float) -> bool:
    """Ask the GCS to drain the living node of this name, as for a preemption; whether it accepted."""
    for info in _gcs_client(address).get_all_node_info(timeout=5.0).values():
        if info.node_name == name and info.state == 0:
            return drain_node(address, info.node_id.hex(), _deadline(seconds), "asked to stop")
    print(f"no living node is named {name}", flush=True)
    return False


def _deadline(seconds: float) -> int:
    """So many seconds from now, in ms since 1970; 0 for none."""
    return int((time.time() + seconds) * 1000) if seconds else 0


def drain_node(address: str, ray_node_id: str, deadline_ms: int, message: str) -> bool:
    """Ask the GCS to drain a node, as for a preemption; whether it accepted.

    It accepts for a node that it does not know as well: who asks must look what became of it.

    Parameters
    ----------
    deadline_ms
        Since 1970; Ray does nothing at it by itself. 0 for none.
    """
    from ray.core.generated import autoscaler_pb2

    accepted, why = _gcs_client(address).drain_node(
        ray_node_id,
        autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
        message,
        deadline_ms,
    )
    if not accepted:
        print(f"drain refused: {why}", flush=True)
    return bool(accepted)


def draining_nodes(address: str, timeout: float = 5.0) -> dict[str, int]:
    """The nodes that Ray holds for draining: deadline in ms since 1970 by Ray's node id, 0 for none."""
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2 as messages
    from ray.core.generated import gcs_service_pb2_grpc as services

    channel = init_grpc_channel(address, options=_CHANNEL)
    stub: Any = services.NodeResourceInfoGcsServiceStub(channel)
    reply = stub.GetDrainingNodes(messages.GetDrainingNodesRequest(), timeout=timeout)
    found = {
        node.node_id.hex(): int(node.draining_deadline_timestamp_ms)
        for node in reply.draining_nodes
    }
    # Ray has the largest number that there is for a deadline that is none.
    return {node: 0 if ms >= 2**62 else ms for node, ms in found.items()}


def kv_put(key: str, value: str) -> None:
    """Keep a value in the GCS's key-value store; in a process that is connected to a cluster, as all three."""
    from ray.experimental.internal_kv import _internal_kv_put

    _internal_kv_put(key, value, overwrite=True)


def kv_get(key: str) -> str | None:
    """That value; None if there is none. Raises what Ray does where the GCS does not answer."""
    from ray.experimental.internal_kv import _internal_kv_get

    value = _internal_kv_get(key)
    return None if value is None else value.decode()


def kv_del(key: str) -> None:
    from ray.experimental.internal_kv import _internal_kv_del

    _internal_kv_del(key)


def _gcs_client(address: str) -> Any:
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # a C extension

    return GcsClient(address=address)


def main(argv: list[str]) -> int:
    address = os.environ.get("RAY_SIM_HEAD_ADDRESS", "")
    if argv == ["draining"]:
        print(json.dumps(draining_nodes(address)))
        return 0
    if len(argv) == 3 and argv[0] == "drain":
        return 0 if drain_node(address, argv[2], _deadline(float(argv[1])), "preempted") else 1
    if len(argv) == 3 and argv[0] == "drain-by":
        return 0 if drain_node(address, argv[2], int(argv[1]), "preempted") else 1
    if len(argv) == 2 and argv[0] == "drain":
        from simulator.innode.ledger import identity

        return 0 if drain_own_node(address, identity()[0], float(argv[1])) else 1
    print(__doc__, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
