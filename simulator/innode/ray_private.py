"""Every call of ours into Ray's private API, in one place.

Ray offers no public way to hear of node and actor transitions without being a driver, which needs a raylet.
Each function here is pinned by a test against the Ray of the node image.

As a program: ``python -m simulator.innode.ray_private drain SECONDS`` drains the node it runs on.
"""

from __future__ import annotations

import os
import sys
import time
from dataclasses import dataclass
from typing import Any

# The GCS client ends its process when the GCS is silent for this long: an observer must outlast that.
os.environ["RAY_gcs_rpc_server_reconnect_timeout_s"] = "86400"  # noqa: SIM112 - Ray's name

_REASONS = {
    0: "UNSPECIFIED",
    1: "EXPECTED_TERMINATION",
    2: "UNEXPECTED_TERMINATION",
    3: "AUTOSCALER_DRAIN_PREEMPTED",
    4: "AUTOSCALER_DRAIN_IDLE",
}


@dataclass(frozen=True)
class NodeInfo:
    """A node as the GCS has it."""

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


class Gcs:
    """Asks the GCS; every call has a timeout in seconds and raises whatever Ray raises."""

    def __init__(self, address: str) -> None:
        from ray._raylet import GcsClient  # type: ignore[attr-defined] # a C extension

        self._client: Any = GcsClient(address=address)

    async def nodes(self, timeout: float) -> list[NodeInfo]:
        from ray.core.generated.gcs_pb2 import GcsNodeInfo

        infos, _ = await self._client.async_get_all_node_info(timeout=timeout)
        return [
            NodeInfo(
                ray_node_id=info.node_id.hex(),
                hostname=info.node_name or info.node_manager_hostname,
                state=GcsNodeInfo.GcsNodeState.Name(info.state),
                reason=_REASONS.get(info.death_info.reason, str(info.death_info.reason)),
                message=info.death_info.reason_message,
            )
            for info in infos.values()
        ]

    async def actors(self, timeout: float) -> list[ActorInfo]:
        from ray.core.generated.gcs_pb2 import ActorTableData

        infos = await self._client.async_get_all_actor_info(timeout=timeout)
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
            for info in infos.values()
        ]


def drain_own_node(address: str, hostname: str, seconds: float) -> bool:
    """Ask the GCS to drain the node of this name, as for a preemption; whether it accepted."""
    from ray._raylet import GcsClient  # type: ignore[attr-defined] # a C extension
    from ray.core.generated import autoscaler_pb2

    client: Any = GcsClient(address=address)
    for info in client.get_all_node_info(timeout=5.0).values():
        if info.node_name == hostname and info.state == 0:
            accepted, why = client.drain_node(
                info.node_id.hex(),
                autoscaler_pb2.DRAIN_NODE_REASON_PREEMPTION,
                "asked to stop",
                int((time.time() + seconds) * 1000),
            )
            if not accepted:
                print(f"drain refused: {why}", flush=True)
            return bool(accepted)
    print(f"no living node is named {hostname}", flush=True)
    return False


def main() -> int:
    if len(sys.argv) != 3 or sys.argv[1] != "drain":
        print(__doc__, file=sys.stderr)
        return 2
    from simulator.innode.ledger import identity

    done = drain_own_node(os.environ["RAY_SIM_HEAD_ADDRESS"], identity()[0], float(sys.argv[2]))
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main())
