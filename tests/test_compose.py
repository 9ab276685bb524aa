"""How compose.yaml and a topology become the Compose project of one cluster; asks no engine."""

from __future__ import annotations

import ipaddress
import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.assets import asset_path, innode_path
from simulator.backends.base import (
    LABEL_CLUSTER,
    LABEL_GPU,
    LABEL_GROUP,
    LABEL_PROFILE,
    LABEL_ROLE,
    LABEL_RUN_DIR,
    ClusterSpec,
    GpuKind,
    definition,
)
from simulator.backends.docker.image import DEFAULT_IMAGE, GPU_IMAGE, LEAN_IMAGE, REDIS_IMAGE
from simulator.compose import (
    DASHBOARD_PORT,
    GCS_PORT,
    GCS_TARGET,
    INNODE_TARGET,
    LABEL_DEFINITION,
    LABEL_SPEC,
    LEDGER_TARGET,
    SPILL_TARGET,
    STORE_ENV,
    STORE_TARGET,
    TOKEN_TARGET,
    ClusterNetwork,
    expand,
    free_network,
    labels_of,
    load_compose,
    load_override,
    ray_arguments,
    resources_of,
    to_yaml,
)
from simulator.errors import CannotRun
from simulator.topology import (
    DRIVER,
    RECONNECT_S,
    Head,
    Topology,
    WorkerGroup,
    load_topology,
    override,
    parse_topology,
)


def spec(topology: Topology | None = None, gpu: GpuKind = "simulated", **more: Any) -> ClusterSpec:
    return ClusterSpec("lab", topology or load_topology("default"), gpu, **more)


def by_hand() -> dict[str, Any]:
    """What `docker compose -p lab up` reads."""
    return load_compose({"COMPOSE_PROJECT_NAME": "lab", "RAY_SIM_INNODE": str(innode_path())})


def without_definition(project: dict[str, Any]) -> dict[str, Any]:
    for kind in ("services", "networks", "volumes"):
        for thing in project[kind].values():
            for label in (LABEL_DEFINITION, LABEL_SPEC):
                thing["labels"].pop(label, None)
    return project


def test_the_default_topology_is_what_compose_yaml_says() -> None:
    expanded = without_definition(expand(spec()))
    hand = by_hand()
    assert expanded["services"] == hand["services"]
    assert expanded["networks"] == hand["networks"]
    assert expanded["volumes"] == hand["volumes"]


def test_a_gcs_that_keeps_its_tables_has_a_volume_of_its_own_and_nobody_else_does() -> None:
    topology = override(load_topology("default"), ["gcs=rocksdb"])
    project = expand(ClusterSpec("lab", topology, "simulated"))
    having = {
        name
        for name, service in project["services"].items()
        if any(v["target"] == GCS_TARGET for v in service["volumes"])
    }
    assert having == {"init", "head"}
    assert project["services"]["head"]["environment"]["RAY_gcs_storage_path"] == GCS_TARGET
    assert "RAY_gcs_storage" not in project["services"]["worker"]["environment"]
    waits = {
        name: service["environment"].get("RAY_gcs_rpc_server_reconnect_timeout_s")
        for name, service in project["services"].items()
        if name != "init"
    }
    assert waits == {"head": str(RECONNECT_S), "worker": str(RECONNECT_S)}
    assert project["volumes"]["gcs"]["labels"][LABEL_CLUSTER] == "lab"
    # What a service has anyway, it still has.
    plain = expand(ClusterSpec("lab", load_topology("default"), "simulated"))["services"]["head"]
    assert plain["volumes"] == project["services"]["head"]["volumes"][:-1]
    assert set(plain["environment"]) < set(project["services"]["head"]["environment"])


def with_redis(*settings: str, **more: Any) -> dict[str, Any]:
    return expand(spec(override(load_topology("default"), ["gcs=redis", *settings])), **more)


def test_redis_is_beside_the_nodes_with_a_disk_and_as_few_rights_as_they() -> None:
    project = with_redis()
    redis, worker = project["services"]["redis"], project["services"]["worker"]
    assert redis["image"] == REDIS_IMAGE
    assert (redis["labels"][LABEL_ROLE], redis["labels"][LABEL_GROUP]) == ("store", "redis")
    for key in ("cap_drop", "security_opt", "restart"):
        assert redis[key] == worker[key]
    assert redis["user"] == "1000:1000"
    assert redis["read_only"] is True
    assert not {"ports", "cap_add", "privileged"} & set(redis)
    assert redis["labels"][LABEL_CLUSTER] == "lab"
    for name in ("redis", "redis-password"):
        assert project["volumes"][name]["labels"][LABEL_CLUSTER] == "lab"


def test_only_redis_and_the_head_have_its_password_and_nothing_but_the_volume_has_it() -> None:
    project = with_redis("driver_node=true", "worker_groups.worker.profile=lean")
    services = project["services"]
    having = {
        name: [v.get("read_only", False) for v in s["volumes"] if v["target"] == STORE_TARGET]
        for name, s in services.items()
    }
    assert having == {"init": [False], "head": [True], "redis": [True], "worker": [], DRIVER: []}
    knowing = {n for n, s in services.items() if set(STORE_ENV) & set(s.get("environment", {}))}
    assert knowing == {"head"}
    assert set(STORE_ENV) <= set(services["head"]["environment"])
    assert services["head"]["environment"]["RAY_external_storage_namespace"] == "lab"


def test_every_node_waits_for_a_head_that_keeps_its_tables() -> None:
    for gcs in ("redis", "rocksdb"):
        topology = override(load_topology("default"), [f"gcs={gcs}", "driver_node=true"])
        services = expand(spec(topology))["services"]
        waits = {
            name: service["environment"].get("RAY_gcs_rpc_server_reconnect_timeout_s")
            for name, service in services.items()
            if name not in ("init", "redis")
        }
        assert waits == dict.fromkeys(("head", "worker", DRIVER), str(RECONNECT_S))


def test_redis_has_an_address_of_its_own_that_nobody_else_is_given() -> None:
    network = free_network([], 4)
    services = with_redis(network=network)["services"]
    address = services["redis"]["networks"]["cluster"]["ipv4_address"]
    assert address == network.redis_ip
    assert ipaddress.ip_address(address) not in ipaddress.ip_network(network.ip_range)
    assert address != network.head_ip
    assert services["head"]["environment"]["RAY_REDIS_ADDRESS"] == f"{address}:6379"
    assert services["redis"]["environment"]["RAY_SIM_ADDRESS"] == address


def test_the_addresses_by_hand_are_those_of_the_simulator() -> None:
    hand = load_override("redis", {})["services"]["redis"]["networks"]["cluster"]["ipv4_address"]
    head = by_hand()["services"]["head"]["networks"]["cluster"]["ipv4_address"]
    assert hand == ClusterNetwork("", "", head).redis_ip


def test_a_driver_node_is_a_worker_that_nothing_but_a_driver_runs_on() -> None:
    topology = override(load_topology("default"), ["driver_node=true", "gcs=rocksdb"])
    services = expand(ClusterSpec("lab", topology, "simulated"))["services"]
    driver, worker = services[DRIVER], services["worker"]
    assert driver["command"] == ["worker", "--num-cpus=0", '--resources={"driver":1}']
    assert (driver["labels"][LABEL_ROLE], driver["labels"][LABEL_GROUP]) == ("driver", DRIVER)
    assert driver["deploy"]["replicas"] == 1
    # It waits for a head as long as workers do, and is as little of a host.
    assert driver["environment"] == worker["environment"]
    apart = {"command", "labels", "deploy"}
    assert {k: v for k, v in driver.items() if k not in apart} == {
        k: v for k, v in worker.items() if k not in apart
    }


def test_a_cluster_by_hand_carries_the_labels_that_find_it() -> None:
    hand = by_hand()
    for kind in ("services", "networks", "volumes"):
        for name, thing in hand[kind].items():
            assert thing["labels"][LABEL_CLUSTER] == "lab", name
    roles = {name: s["labels"][LABEL_ROLE] for name, s in hand["services"].items()}
    assert roles == {"init": "init", "head": "head", "worker": "worker"}
    assert hand["services"]["head"]["labels"][LABEL_GPU] == "simulated"


def test_names_that_python_relies_on_are_those_of_compose_yaml() -> None:
    services = by_hand()["services"]
    for role in ("head", "worker"):
        mounts = {v["target"]: v.get("read_only", False) for v in services[role]["volumes"]}
        assert mounts == {INNODE_TARGET: True, TOKEN_TARGET: True, LEDGER_TARGET: False}
        assert services[role]["image"] == DEFAULT_IMAGE
    assert services["head"]["ports"] == [f"127.0.0.1::{DASHBOARD_PORT}"]


def test_the_health_settings_by_hand_are_those_of_fast_and_of_nothing_else() -> None:
    from simulator.cluster import HEALTH

    raw = yaml.safe_load(asset_path("compose.yaml").read_text(encoding="utf-8"))
    passed_through = {name for name, value in raw["x-node"]["environment"].items() if value is None}
    assert passed_through == set(HEALTH["fast"])


@pytest.mark.parametrize("role", ["init", "head", "worker"])
def test_no_container_has_rights_that_it_does_not_need(role: str) -> None:
    service = by_hand()["services"][role]
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert service["restart"] == "no"
    assert not {"cap_add", "privileged", "devices", "pid", "env_file"} & set(service)
    assert "docker.sock" not in yaml.safe_dump(service)
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", []))


def test_a_worker_group_is_a_service_with_the_definition_of_worker() -> None:
    topology = parse_topology(
        {
            "head": {"resources": {"CPU": 0}, "memory": "4g"},
            "worker_groups": [
                {"group_name": "small", "replicas": 2, "memory": "1g"},
                {
                    "group_name": "big",
                    "replicas": 1,
                    "resources": {"CPU": 4, "GPU": 2, "disk": 3},
                    "labels": {"zone": "b", "tier": "spot"},
                },
            ],
        },
        "test",
    )
    services = expand(spec(topology, env={"RAY_x": "1"}))["services"]
    assert set(services) == {"init", "head", "small", "big"}
    assert services["head"]["command"] == ["head", "--num-cpus=0"]
    assert services["head"]["mem_limit"] == "4g"
    assert services["small"]["deploy"]["replicas"] == 2
    assert services["small"]["mem_limit"] == "1g"
    assert services["big"]["mem_limit"] == by_hand()["services"]["worker"]["mem_limit"]
    assert services["big"]["command"] == [
        "worker",
        "--num-cpus=4",
        "--num-gpus=2",
        '--resources={"disk":3}',
        "--labels=tier=spot,zone=b",
    ]
    assert services["big"]["labels"][LABEL_GROUP] == "big"
    assert services["big"]["labels"][LABEL_ROLE] == "worker"
    assert services["big"]["environment"]["RAY_x"] == "1"
    assert "RAY_x" not in services["init"]["environment"]


def test_what_a_node_offers_is_read_back_from_its_command() -> None:
    group = WorkerGroup(group_name="g", resources={"CPU": 2, "GPU": 1, "disk": 3, "TPU": 4})
    assert resources_of(["worker", *ray_arguments(group)]) == dict(group.resources)
    assert resources_of(["head", *ray_arguments(Head(resources={}))]) == {"CPU": 0}
    assert resources_of(["worker", "--resources={broken", "--num-cpus=2"]) == {"CPU": 2}


def test_what_a_node_is_labelled_is_read_back_from_its_command() -> None:
    group = WorkerGroup(group_name="g", labels={"ray.io/market-type": "spot", "zone": "a"})
    assert labels_of(["worker", *ray_arguments(group)]) == dict(group.labels)
    assert labels_of(["head", *ray_arguments(Head())]) == {}


def test_the_shell_of_the_user_does_not_reach_into_a_cluster() -> None:
    environment = expand(spec())["services"]["head"]["environment"]
    assert None not in environment.values()
    assert not [name for name in environment if name.startswith("RAY_health")]


def test_an_image_of_the_users_own_serves_for_every_node() -> None:
    services = expand(spec(image="my/ray:1"))["services"]
    assert {s["image"] for s in services.values()} == {"my/ray:1"}


def test_a_real_gpu_goes_to_the_head_alone() -> None:
    services = expand(spec(gpu="real"))["services"]
    assert services["head"]["image"] == GPU_IMAGE
    assert services["worker"]["image"] == DEFAULT_IMAGE
    assert services["head"]["environment"]["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert services["worker"]["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"
    assert services["head"]["labels"][LABEL_GPU] == "real"
    devices = services["head"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "resources" not in services["worker"]["deploy"]


def test_a_real_gpu_can_come_by_cdi() -> None:
    head = expand(spec(gpu="real"), cdi=["1", "3"])["services"]["head"]
    assert head["deploy"]["resources"]["reservations"]["devices"] == [
        {"driver": "cdi", "device_ids": ["nvidia.com/gpu=1"], "capabilities": ["gpu"]}
    ]
    assert head["environment"]["NVIDIA_VISIBLE_DEVICES"] == "void"


def test_only_workers_of_a_lean_group_run_bare_ray() -> None:
    topology = parse_topology(
        {"worker_groups": [{"group_name": "whole"}, {"group_name": "bare", "profile": "lean"}]},
        "test",
    )
    services = expand(spec(topology, gpu="none"))["services"]
    images = {name: service["image"] for name, service in services.items()}
    assert images == {
        **dict.fromkeys(("init", "head", "whole"), DEFAULT_IMAGE),
        "bare": LEAN_IMAGE,
    }
    assert services["bare"]["labels"][LABEL_PROFILE] == "lean"
    assert not [n for n in ("head", "whole") if LABEL_PROFILE in services[n]["labels"]]
    assert {**services["bare"], "image": "", "labels": {}} == {
        **services["whole"],
        "image": "",
        "labels": {},
    }


def test_an_image_of_the_users_own_wins_over_the_profile() -> None:
    services = expand(spec(load_topology("lean"), gpu="none", image="my/ray:1"))["services"]
    assert {s["image"] for s in services.values()} == {"my/ray:1"}
    assert LABEL_PROFILE not in services["worker"]["labels"]


def test_the_lean_topology_is_what_compose_gives_by_hand_with_its_override() -> None:
    hand = by_hand()["services"]["worker"]
    over = load_override("lean", {})["services"]["worker"]
    expanded = without_definition(expand(spec(load_topology("lean"), gpu="simulated")))
    worker = expanded["services"]["worker"]
    assert worker == {
        **hand,
        "image": over["image"],
        "labels": {**hand["labels"], **over["labels"]},
    }


def test_a_cpu_limit_is_never_above_what_the_engine_has() -> None:
    services = expand(spec(), cores=1)["services"]
    assert services["head"]["cpus"] == 1
    assert services["worker"]["cpus"] == 1


def test_where_files_are_not_shared_nothing_is_mounted_from_this_machine() -> None:
    services = expand(spec(), mount_innode=False)["services"]
    kinds = {v["type"] for s in services.values() for v in s["volumes"]}
    assert kinds == {"volume"}


def test_the_run_that_owns_a_cluster_is_on_everything_of_it(tmp_path: Path) -> None:
    project = expand(spec(run_dir=tmp_path))
    for kind in ("services", "networks", "volumes"):
        for thing in project[kind].values():
            assert thing["labels"][LABEL_RUN_DIR] == str(tmp_path.resolve())


def test_labels_of_somebody_elses_are_on_everything_of_it() -> None:
    project = expand(spec(labels={"reaper": "session-1", LABEL_CLUSTER: "not-to-be-hidden"}))
    things = [*project["services"].values(), *project["networks"].values()]
    for thing in [*things, *project["volumes"].values()]:
        assert thing["labels"]["reaper"] == "session-1"
        assert thing["labels"][LABEL_CLUSTER] == "lab"
    assert definition(spec(labels={"reaper": "session-1"})) == definition(spec())


def test_the_addresses_are_those_that_were_chosen() -> None:
    project = expand(spec(), network=ClusterNetwork("10.9.0.0/24", "10.9.0.128/25", "10.9.0.10"))
    head = project["services"]["head"]
    assert head["networks"]["cluster"]["ipv4_address"] == "10.9.0.10"
    for role in ("head", "worker"):
        environment = project["services"][role]["environment"]
        assert environment["RAY_SIM_HEAD_ADDRESS"] == f"10.9.0.10:{GCS_PORT}"
    assert project["networks"]["cluster"]["ipam"]["config"] == [
        {"subnet": "10.9.0.0/24", "ip_range": "10.9.0.128/25"}
    ]


@pytest.mark.parametrize("nodes", [4, 100, 300])
def test_a_free_network_clashes_with_nothing_and_holds_every_node(nodes: int) -> None:
    taken = ["10.208.0.0/14", "172.17.0.0/16", "fd00::/64", "10.212.1.0/24"]
    found = free_network(taken, nodes)
    subnet = ipaddress.ip_network(found.subnet)
    free = ipaddress.ip_network(found.ip_range)
    assert not any(subnet.overlaps(ipaddress.ip_network(t)) for t in taken if ":" not in t)
    assert subnet.supernet_of(free)  # type: ignore[arg-type]
    assert free.num_addresses - 2 >= nodes
    assert ipaddress.ip_address(found.head_ip) in subnet
    assert ipaddress.ip_address(found.head_ip) not in free
    assert free_network(taken, nodes, skip=1).subnet != found.subnet


def test_that_no_network_is_free_is_said() -> None:
    with pytest.raises(CannotRun, match="no subnet is free"):
        free_network(["10.0.0.0/8"], 4)


def test_the_definition_tells_clusters_apart_by_what_was_asked_for() -> None:
    default = spec()
    assert definition(default) == definition(spec(run_dir=Path("/elsewhere")))
    others = [
        spec(override(load_topology("default"), ["worker_groups.worker.resources.CPU=2"])),
        spec(override(load_topology("default"), ["worker_groups.worker.labels.zone=a"])),
        spec(image="other"),
        spec(env={"RAY_x": "1"}),
        spec(gpu="none"),
    ]
    assert len({definition(s) for s in [default, *others]}) == 6


def test_how_many_nodes_there_are_is_no_part_of_the_definition() -> None:
    limits = ["worker_groups.worker.min_replicas=1", "worker_groups.worker.max_replicas=9"]
    more = override(load_topology("default").with_workers(4), limits)
    assert definition(spec()) == definition(spec(more))


def test_init_keeps_what_the_cluster_was_made_as(tmp_path: Path) -> None:
    more: dict[str, Any] = {"env": {"RAY_x": "$1"}, "run_dir": tmp_path, "labels": {"mine": "$2"}}
    made = spec(load_topology("hybrid"), image="mine:1", **more)
    services = expand(made)["services"]
    assert ClusterSpec.from_json(services["init"]["labels"][LABEL_SPEC]) == made
    assert LABEL_SPEC not in services["head"]["labels"]


def test_nodes_that_were_removed_by_hand_do_not_keep_it_from_being_read() -> None:
    limits = ["worker_groups.worker.min_replicas=2", "worker_groups.worker.max_replicas=3"]
    made = spec(override(load_topology("default"), limits))
    for count in (0, 1, 7):
        counted = made.with_counts({"worker": count})
        assert ClusterSpec.from_json(counted.to_json()) == counted


def test_what_an_earlier_version_kept_is_read_and_what_cannot_be_is_an_error_of_ours() -> None:
    kept = json.loads(spec().to_json())
    assert kept.pop("labels") == {}
    assert ClusterSpec.from_json(json.dumps(kept)) == spec()
    kept["topology"]["head"]["of a later version"] = 1
    for text in (json.dumps(kept), "{}", "[]", '{"topology": {"worker_groups": [{}]}}', "nothing"):
        with pytest.raises(CannotRun, match="what the cluster was made as cannot be read"):
            ClusterSpec.from_json(text)


def test_what_a_node_was_made_as_is_read_back_from_its_arguments() -> None:
    node = Head(resources={"CPU": 2, "GPU": 1, "disk": 3}, labels={"zone": "a", "tier": "spot"})
    command = ["head", *ray_arguments(node)]
    assert resources_of(command) == node.resources
    assert labels_of(command) == node.labels
    assert labels_of(["head", "--num-cpus=1"]) == {}


def test_a_dollar_in_a_value_stays_a_dollar() -> None:
    text = to_yaml(expand(spec(env={"PRICE": "$5 ${HOME}"})))
    head = yaml.safe_load(text)["services"]["head"]
    assert head["environment"]["PRICE"] == "$$5 $${HOME}"


def test_small_shared_memory_holds_an_object_store_that_fits(tmp_path: Path) -> None:
    small = override(load_topology("default"), ["worker_groups.worker.shm_size=80m"])
    worker = expand(spec(small))["services"]["worker"]
    assert worker["shm_size"] == "80m"
    (store,) = [a for a in worker["command"] if a.startswith("--object-store-memory=")]
    # Ray's own least (OBJECT_STORE_MINIMUM_MEMORY_BYTES), and less than what is free in /dev/shm.
    assert 75 * 1024**2 <= int(store.partition("=")[2]) < 80 * 1024**2
    head = expand(spec(small))["services"]["head"]
    assert head["shm_size"] == by_hand()["services"]["head"]["shm_size"]
    assert not [a for a in head["command"] if a.startswith("--object-store-memory")]


def test_a_disk_to_spill_to_is_one_of_its_own_size() -> None:
    disks = override(load_topology("default"), ["worker_groups.worker.spill_size=128m"])
    services = expand(spec(disks))["services"]
    assert services["worker"]["tmpfs"] == [f"{SPILL_TARGET}:size={128 * 1024**2},mode=1777"]
    assert f"--object-spilling-directory={SPILL_TARGET}" in services["worker"]["command"]
    assert "tmpfs" not in services["head"]
    assert not [a for a in services["head"]["command"] if "spilling" in a]
    assert definition(spec(disks)) != definition(spec())
