"""What Ray's autoscaler and the cloud are told, and what is made of their words; no Ray runs."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml
from cli import Command
from rich.console import Console

from simulator.autoscaling import can_ever, cloud_settings, ray_yaml
from simulator.backends.base import ClusterSpec, resolve_gpus
from simulator.backends.fake import FakeBackend
from simulator.cli.tables import status_view
from simulator.cluster import AutoscalerStatus, Cluster, ClusterStatus, NodeStatus
from simulator.compose import expand
from simulator.errors import CannotRun
from simulator.topology import load_topology, override, parse_topology

ELASTIC = load_topology("elastic")


def test_ray_is_told_the_groups_their_limits_and_where_machines_come_from() -> None:
    told = yaml.safe_load(ray_yaml("mine", ELASTIC, "/cloud"))
    assert told["cluster_name"] == "mine"
    assert told["max_workers"] == 5
    assert told["idle_timeout_minutes"] * 60 == 20
    assert told["provider"]["folder"] == "/cloud"
    assert told["available_node_types"] == {
        "head": {"resources": {}, "node_config": {}, "max_workers": 0},
        "cpu": {
            "resources": {"CPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 4,
            "labels": {"ray.io/market-type": "on-demand"},
        },
        "gpu": {
            "resources": {"CPU": 1, "GPU": 1},
            "node_config": {},
            "min_workers": 0,
            "max_workers": 2,
            "labels": {"ray.io/market-type": "spot"},
        },
    }


def test_ray_takes_what_it_is_told() -> None:
    config = pytest.importorskip("ray.autoscaler.v2.instance_manager.config")
    found = config.AutoscalingConfig(yaml.safe_load(ray_yaml("mine", ELASTIC, "/cloud")))
    types = found.get_node_type_configs()
    assert {name: (t.min_worker_nodes, t.max_worker_nodes) for name, t in types.items()} == {
        "head": (0, 1),
        "cpu": (0, 4),
        "gpu": (0, 2),
    }
    assert found.get_idle_timeout_s() == pytest.approx(20)
    assert found.get_max_num_worker_nodes() == 5
    assert found.disable_node_updaters()


def test_what_ray_reports_becomes_plain_data() -> None:
    messages = pytest.importorskip("ray.core.generated.autoscaler_pb2")
    from simulator.innode.autoscaler import state_of

    seen, wanted = messages.ClusterResourceState(), messages.AutoscalingState()
    demand = seen.pending_resource_requests.add(count=3)
    demand.request.resources_bundle["CPU"] = 2
    node = seen.node_states.add(
        instance_id="cpu-1",
        ray_node_type_name="cpu",
        status=messages.IDLE,
        node_id=bytes.fromhex("ab"),
    )
    node.total_resources.update({"CPU": 2.0, "memory": 1e9, "node:10.0.0.1": 1.0})
    node.available_resources.update({"CPU": 1.0, "memory": 1e9})
    seen.node_states.add(instance_id="cpu-2", status=messages.DEAD)
    wanted.pending_instance_requests.add(ray_node_type_name="cpu", count=2)
    wanted.failed_instance_requests.add(ray_node_type_name="gpu", count=1, reason="sold out")
    wanted.infeasible_resource_requests.add().resources_bundle["GPU"] = 9
    state = state_of(seen, wanted)
    assert json.loads(json.dumps(state)) == state
    assert state["demand"] == [{"needs": {"CPU": 2.0}, "count": 3}]
    assert state["nodes"] == [
        {
            "id": "cpu-1",
            "group": "cpu",
            "state": "idle",
            "ray_node_id": "ab",
            "total": {"CPU": 2.0},
            "available": {"CPU": 1.0},
        }
    ]
    assert state["launching"] == [{"group": "cpu", "count": 2}]
    assert state["failed"] == [{"group": "gpu", "count": 1, "why": "sold out"}]
    assert state["infeasible"] == [{"needs": {"GPU": 9.0}}]


def test_the_cloud_is_told_how_machines_come() -> None:
    told = cloud_settings(ELASTIC, seed=3, parallel=2)
    assert (told["seed"], told["parallel"]) == (3, 2)
    assert told["groups"]["cpu"] == {"delay": [1.0, 3.0], "failure": 0.0, "capacity_after": 0.0}


@pytest.mark.parametrize(
    ("wanted", "ever"),
    [
        ({"needs": {"CPU": 1}}, True),
        ({"needs": {"CPU": 1, "GPU": 1, "memory": 1e9}}, True),
        ({"needs": {"CPU": 2}}, False),
        ({"needs": {"CPU": 1}, "labels": {"ray.io/market-type": ["spot"]}}, True),
        ({"needs": {"CPU": 1}, "labels": {"zone": ["a"]}}, False),
        ({"group": "g:SPREAD|PENDING", "bundles": [{"CPU": 1}] * 9}, True),
        ({"group": "g:STRICT_PACK|PENDING", "bundles": [{"CPU": 1}] * 2}, False),
        ({"group": "g:PACK|PENDING", "bundles": [{"GPU": 2}]}, False),
    ],
)
def test_what_no_node_can_ever_give_is_told_from_what_must_wait(
    wanted: dict[str, Any], ever: bool
) -> None:
    assert can_ever(ELASTIC, wanted) is ever


def test_compose_makes_the_head_and_a_template_of_each_group() -> None:
    project = expand(ClusterSpec("mine", ELASTIC, "simulated"))
    services = project["services"]
    assert set(services) == {"head", "init", "template-cpu", "template-gpu"}
    assert services["head"]["environment"]["RAY_CLOUD_INSTANCE_ID"] == "head"
    assert services["head"]["command"][-1] == "--no-monitor"
    template = services["template-gpu"]
    assert template["labels"]["ray-sim.role"] == "template"
    assert template["labels"]["ray-sim.group"] == "gpu"
    assert template["deploy"]["replicas"] == 1
    assert "--num-gpus=1" in template["command"]
    assert not any("docker.sock" in str(s) for s in services.values())


def test_what_a_cluster_was_made_as_keeps_its_autoscaler_and_its_seed() -> None:
    spec = ClusterSpec("mine", ELASTIC, "simulated", seed=9)
    assert ClusterSpec.from_json(spec.to_json()) == spec


def test_gpus_of_workers_that_may_come_are_simulated() -> None:
    assert resolve_gpus(ELASTIC, lambda: 1, "", "") == "simulated"
    without = override(
        ELASTIC, ["worker_groups.gpu.max_replicas=0", "worker_groups.gpu.replicas=0"]
    )
    assert resolve_gpus(without, lambda: 1, "", "") == "none"


def status(**state: Any) -> str:
    nodes = [
        NodeStatus("head", "head", "head", "alive", "10.0.0.1", "h", "a" * 8, {"CPU": 0}, {}, None),
        NodeStatus(
            "cpu-1", "worker", "cpu", "exited", "", "x", None, {"CPU": 1}, {}, 12, managed=True
        ),
    ]
    auto = AutoscalerStatus(True, 0.4, ELASTIC, state)
    ray = {"answers": True, "version": "2.60.0", "why": "", "remedy": ""}
    seen = ClusterStatus("mine", "docker", "simulated", nodes, ray, auto)
    assert seen.to_data()["count"] == {"desired": 1, "running": 1, "alive": 1}
    console = Console(width=100, force_terminal=False)
    with console.capture() as capture:
        console.print(status_view(seen))
    return capture.get()


def test_status_says_what_waits_and_what_can_never_be() -> None:
    said = status(
        demand=[{"needs": {"CPU": 1}, "count": 9}, {"needs": {"GPU": 4}, "count": 1}],
        groups=[{"group": "g:PACK|PENDING", "bundles": [{"CPU": 1}] * 2}],
        nodes=[{"id": "cpu-2", "group": "cpu", "state": "busy"}],
        launching=[{"group": "gpu", "count": 2}],
        failed=[{"group": "gpu", "count": 1, "why": "sold out"}],
        infeasible=[{"needs": {"GPU": 4}}, {"needs": {"CPU": 1}}],
    )
    assert "waiting: 9 x {CPU: 1}" in said
    assert "waiting: a placement group of 2 x {CPU: 1}" in said
    assert "no node of any group can ever give: {GPU: 4}" in said
    assert said.count("can ever give") == 1
    assert "came to nothing: 1 of gpu: sold out" in said
    assert "exited" not in said  # it does not come back, and only its logs are left
    (row,) = [line.split() for line in said.splitlines() if line.strip().startswith("cpu")]
    assert row == ["cpu", "0", "to", "4", "1", "-", "-", "-", "-", "1"]


def test_a_backend_without_nodes_of_its_own_is_refused_before_anything_starts() -> None:
    backend = FakeBackend()
    with pytest.raises(CannotRun, match="no nodes that an autoscaler could start"):
        Cluster(backend, "mine").up(ClusterSpec("mine", ELASTIC, "simulated"))
    assert backend.clusters() == []


def test_up_with_autoscale_turns_it_on_for_any_topology(command: Command) -> None:
    outcome = command("up", "--autoscale", "--backend", "fake", "--name", "mine")
    assert outcome.code == 4
    assert "no nodes that an autoscaler could start" in outcome.err
    assert "Use --backend docker or --backend process" in outcome.err


def test_without_an_autoscaler_there_is_nothing_to_print(command: Command) -> None:
    assert command("up", "--backend", "fake", "--name", "mine").code == 0
    outcome = command("autoscaler", "--name", "mine")
    assert outcome.code == 4
    assert "Ray's autoscaler decides nothing on mine" in outcome.err
    assert "up --autoscale" in outcome.err


def test_limits_that_contradict_each_other_are_all_said(command: Command) -> None:
    outcome = command(
        "up", "--topology", "elastic", "--set", "autoscaling.max_workers=1",
        "--set", "worker_groups.cpu.min_replicas=2", "--set", "worker_groups.gpu.provision_delay=9s..1s",
        "--backend", "fake",
    )  # fmt: skip
    assert outcome.code == 2
    assert "ends before it begins" in outcome.err


def test_a_topology_that_leaves_it_to_ray_wants_no_worker_by_name() -> None:
    assert [n.name for n in parse_topology(ELASTIC.model_dump(mode="json"), "t").nodes()] == [
        "head"
    ]
