"""Ray's own autoscaler, run outside of every node, with the cloud for its machines.

What decides is `ray.autoscaler.v2.monitor`, as it does on a real cluster: nothing here scales. The node provider
hands its requests on to the cloud (`simulator.innode.cloud`), and after every round what Ray's autoscaler saw and
wants is told, if it has changed: one JSON object a line on standard output, in the form of the observer's lines.

Calls into Ray's private API are pinned by a test against the Ray of the node image.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ray.autoscaler._private.constants import AUTOSCALER_UPDATE_INTERVAL_S
from ray.autoscaler.node_provider import NodeProvider
from ray.autoscaler.v2.instance_manager.config import FileConfigReader
from ray.autoscaler.v2.monitor import AutoscalerMonitor
from ray.core.generated import autoscaler_pb2 as messages

from simulator.innode.cloud import SOCKET, teller, write_json

#: Ray's settings, in the cloud's folder; read anew in every round.
CONFIG = "autoscaling.yaml"
#: What was seen and wanted at the last look, as `state_of` has it; in the cloud's folder.
STATE = "state.json"
#: How long the cloud may take to answer, seconds.
ANSWER_S = 30.0


class CloudError(Exception):
    """The cloud has no machine to give, or does not answer; the text says which."""


def ask(folder: str, **request: Any) -> dict[str, Any]:
    """Ask the cloud; raises `CloudError` unless it answers."""
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(ANSWER_S)
            connection.connect(str(Path(folder) / SOCKET))
            connection.sendall(json.dumps(request).encode() + b"\n")
            with connection.makefile("rb") as answers:
                answer: dict[str, Any] = json.loads(answers.readline())
    except (OSError, ValueError) as error:
        raise CloudError(f"the cloud does not answer: {error}") from error
    if "error" in answer:
        raise CloudError(answer["error"])
    return answer


class CloudProvider(NodeProvider):  # type: ignore[misc] # Ray has no types
    """What Ray's autoscaler calls; it calls from several threads, and nothing is kept between calls."""

    def __init__(self, provider_config: dict[str, Any], cluster_name: str) -> None:
        super().__init__(provider_config, cluster_name)
        self._folder = str(provider_config["folder"])

    def _machines(self) -> dict[str, dict[str, Any]]:
        return {m["id"]: m for m in ask(self._folder, do="list")["machines"]}

    def non_terminated_nodes(self, tag_filters: Mapping[str, str]) -> list[str]:
        return [
            name
            for name, machine in self._machines().items()
            if tag_filters.items() <= machine["tags"].items()
        ]

    def is_running(self, node_id: str) -> bool:
        return bool(self._machines().get(node_id, {}).get("running"))

    def is_terminated(self, node_id: str) -> bool:
        return node_id not in self._machines()

    def node_tags(self, node_id: str) -> dict[str, str]:
        tags: dict[str, str] = self._machines().get(node_id, {}).get("tags", {})
        return tags

    def create_node_with_resources_and_labels(
        self,
        node_config: Mapping[str, Any],  # noqa: ARG002 - Ray's signature
        tags: Mapping[str, str],
        count: int,
        resources: Mapping[str, float],  # noqa: ARG002 - what a machine offers stands in its template
        labels: Mapping[str, str],  # noqa: ARG002
    ) -> None:
        group = tags["ray-user-node-type"]
        ask(self._folder, do="create", group=group, count=count, tags=dict(tags))

    def terminate_node(self, node_id: str) -> None:
        self.terminate_nodes([node_id])

    def terminate_nodes(self, node_ids: Sequence[str]) -> None:
        ask(self._folder, do="terminate", ids=list(node_ids))


class Monitor(AutoscalerMonitor):  # type: ignore[misc]
    """Ray's own loop; tells what it reports to the GCS, when that has changed."""

    def __init__(self, address: str, folder: Path, logs: str) -> None:
        self._tell, self._folder = teller("autoscaler"), folder
        self._told: dict[str, Any] = {}
        config = FileConfigReader(str(folder / CONFIG))
        super().__init__(address, config, log_dir=logs)

    def _report_autoscaling_state(
        self, gcs_client: Any, autoscaling_state: messages.AutoscalingState
    ) -> None:
        AutoscalerMonitor._report_autoscaling_state(gcs_client, autoscaling_state)
        reply = messages.GetClusterStatusReply.FromString(
            gcs_client.get_cluster_status(timeout_s=5)
        )
        state = state_of(reply.cluster_resource_state, autoscaling_state)
        write_json(self._folder / STATE, {"wall": time.time(), **state})
        if state != self._told:
            self._told = state
            self._tell("autoscaler.state", **state)


def state_of(
    seen: messages.ClusterResourceState, wanted: messages.AutoscalingState
) -> dict[str, Any]:
    """What Ray's autoscaler saw and what it makes of it, in plain data.

    ``demand`` is what work waits for, ``asked`` what somebody asked for explicitly, ``groups`` the placement
    groups that are not placed; ``launching`` what was asked of the cloud, ``starting`` the machines on which
    Ray is not up, ``failed`` the requests that came to nothing, ``infeasible`` what no group can give.
    """
    status = {
        messages.RUNNING: "busy",
        messages.IDLE: "idle",
        messages.DRAINING: "draining",
    }
    return {
        "demand": [
            {**_request(item.request), "count": item.count}
            for item in seen.pending_resource_requests
        ],
        "groups": [_gang(gang) for gang in seen.pending_gang_resource_requests],
        "asked": [
            {**_request(item.request), "count": item.count}
            for constraint in seen.cluster_resource_constraints
            for item in constraint.resource_requests
        ],
        "nodes": [
            {
                "id": node.instance_id,
                "group": node.ray_node_type_name,
                "state": status[node.status],
                "ray_node_id": node.node_id.hex(),
                "total": _rounded(node.total_resources),
                "available": _rounded(node.available_resources),
            }
            # Ray gives them in any order, and another order is no news.
            for node in sorted(seen.node_states, key=lambda n: str(n.instance_id))
            if node.status in status
        ],
        "launching": [
            {"group": item.ray_node_type_name, "count": item.count}
            for item in wanted.pending_instance_requests
        ],
        "starting": [
            {"id": item.instance_id, "group": item.ray_node_type_name}
            for item in wanted.pending_instances
        ],
        "failed": [
            {"group": item.ray_node_type_name, "count": item.count, "why": item.reason}
            for item in wanted.failed_instance_requests
        ],
        "infeasible": [
            *(_request(item) for item in wanted.infeasible_resource_requests),
            *(_gang(gang) for gang in wanted.infeasible_gang_resource_requests),
            *(
                _request(item.request)
                for constraint in wanted.infeasible_cluster_resource_constraints
                for item in constraint.resource_requests
            ),
        ],
    }


def _rounded(resources: Mapping[str, float]) -> dict[str, float]:
    """Of a node, what somebody declared: Ray's own, such as its name and its memory, say nothing here."""
    return {
        name: round(amount, 4)
        for name, amount in sorted(resources.items())
        if not name.startswith("node:") and name not in ("memory", "object_store_memory")
    }


def _request(request: messages.ResourceRequest) -> dict[str, Any]:
    found: dict[str, Any] = {"needs": dict(sorted(request.resources_bundle.items()))}
    labels = {
        constraint.label_key: list(constraint.label_values)
        for selector in request.label_selectors
        for constraint in selector.label_constraints
    }
    return {**found, "labels": labels} if labels else found


def _gang(gang: messages.GangResourceRequest) -> dict[str, Any]:
    requests = gang.requests or [r for s in gang.bundle_selectors for r in s.resource_requests]
    return {"group": gang.details, "bundles": [_request(request)["needs"] for request in requests]}


def main() -> int:
    folder, address = Path(os.environ["RAY_SIM_CLOUD"]), os.environ["RAY_SIM_HEAD_ADDRESS"]
    # Ray's own words go where they go on a cluster: into a log file.
    logs = Path(os.environ.get("RAY_SIM_HOME", "/tmp/ray-sim")) / "autoscaler"
    logs.mkdir(parents=True, exist_ok=True)
    # It warns at every look of two fields that its own defaults have.
    logging.getLogger("ray.autoscaler._private.util").setLevel(logging.ERROR)
    logging.basicConfig(filename=str(logs / "monitor.log"), level=logging.INFO)
    teller("autoscaler")("autoscaler.start", interval_s=AUTOSCALER_UPDATE_INTERVAL_S)
    # Without a GCS it ends, and is started again: there is nothing to scale.
    Monitor(address, folder, str(logs)).run()
    return 1


if __name__ == "__main__":
    sys.exit(main())
