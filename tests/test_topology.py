"""Topologies: which nodes exist, and every problem of a wrong one at once."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.errors import BadInput, NotFound
from simulator.topology import (
    DRIVER,
    Gpus,
    Head,
    Topology,
    WorkerGroup,
    driver_needs,
    known_topologies,
    load_topology,
    override,
    parse_size,
    parse_topology,
)

group_names = st.from_regex(r"[a-z][a-z0-9]{0,8}", fullmatch=True).filter(
    lambda n: n not in ("head", "init", "observer", "driver")
)
resources = st.dictionaries(
    st.sampled_from(["CPU", "GPU", "memory_gb", "special"]),
    st.integers(0, 64).map(float),
    max_size=3,
)
groups = st.builds(
    WorkerGroup,
    group_name=group_names,
    replicas=st.integers(0, 20),
    max_replicas=st.none() | st.integers(20, 64),
    resources=resources,
    memory=st.none() | st.sampled_from(["512m", "2g"]),
)
topologies = st.builds(
    Topology,
    name=group_names,
    head=st.builds(Head, resources=resources, gpus=st.sampled_from(Gpus)),
    worker_groups=st.lists(groups, max_size=3, unique_by=lambda g: g.group_name),
)


@given(topologies)
def test_a_topology_survives_being_written_as_data(topology: Topology) -> None:
    assert parse_topology(topology.model_dump(mode="json"), "t") == topology


@given(topologies)
def test_every_node_has_a_name_of_its_own_and_the_head_comes_first(topology: Topology) -> None:
    nodes = topology.nodes()
    assert nodes[0].role == "head"
    assert len({n.name for n in nodes}) == len(nodes)
    assert len(topology.workers()) == sum(g.replicas for g in topology.worker_groups)
    assert topology.total("CPU") == sum(n.resources["CPU"] for n in nodes)


@given(topologies.filter(lambda t: t.worker_groups), st.integers(0, 20))
def test_overriding_the_replicas_changes_nothing_else(topology: Topology, count: int) -> None:
    group = topology.worker_groups[-1]
    changed = override(topology, [f"worker_groups.{group.group_name}.replicas={count}"])
    assert changed.worker_groups[-1].replicas == count
    back = override(
        changed, [f"worker_groups.{len(topology.worker_groups) - 1}.replicas={group.replicas}"]
    )
    assert back == topology


def test_the_default_is_a_head_with_a_gpu_and_three_workers() -> None:
    topology = load_topology("default")
    assert [n.name for n in topology.nodes()] == ["head", "worker-1", "worker-2", "worker-3"]
    assert topology.head.gpus_declared == 1
    assert topology.total("CPU") == 4


@pytest.mark.parametrize("name", sorted(known_topologies()))
def test_every_topology_that_comes_along_is_valid_and_described(name: str) -> None:
    topology = load_topology(name)
    assert topology.name == name
    assert topology.description


def test_more_workers_are_replicas_of_the_first_group() -> None:
    assert len(load_topology("default").with_workers(16).workers()) == 16


def test_workers_of_a_topology_without_groups_cannot_be_counted() -> None:
    with pytest.raises(BadInput, match="has no worker group"):
        Topology().with_workers(2)


def test_an_unknown_name_gives_the_nearest() -> None:
    with pytest.raises(NotFound, match="did you mean default"):
        load_topology("defualt")


def test_a_file_of_ones_own_is_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("worker_groups: [{group_name: spot, replicas: 2}]\n")
    topology = load_topology(str(path))
    assert topology.name == "mine"
    assert [n.name for n in topology.workers()] == ["spot-1", "spot-2"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("head: [", "is not YAML"),
        ("- 1\n", "is not a mapping"),
        ("", "is not a mapping"),
        ("a: 2020-13-45", "is not YAML; month must be in 1..12"),
        ("a: !!int xx", "is not YAML; invalid literal"),
        ("a: !!bool xx", "is not YAML; a value is not of the type that its tag"),
        ("a: !!timestamp xx", "is not YAML; a value is not of the type that its tag"),
        ("[" * 3000, "is not YAML; is nested too deeply"),
    ],
    ids=["open", "list", "empty", "date", "int", "bool", "timestamp", "deep"],
)
def test_a_file_that_is_no_topology_is_refused(tmp_path: Path, text: str, said: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(BadInput, match=said):
        load_topology(str(path))


def test_every_problem_comes_at_once_with_its_place() -> None:
    data = {
        "head": {"resources": {"CPU": -1}, "colour": "red"},
        "worker_groups": [
            {"group_name": "Big Ones"},
            {"group_name": "w", "memory": "2x"},
            {"replicas": 3},
            {"group_name": "v", "replicas": 5, "max_replicas": 2},
            {"group_name": "head"},
        ],
    }
    with pytest.raises(BadInput) as caught:
        parse_topology(data, "mine.yaml")
    problems = {p.where: p.what for p in caught.value.problems}
    assert problems == {
        "mine.yaml: head.resources": "CPU is -1; a node cannot offer less than 0",
        "mine.yaml: head.colour": "is not a known key",
        "mine.yaml: worker_groups[0].group_name": (
            'is "Big Ones"; use up to 32 lower-case letters, digits and dashes, letter first'
        ),
        "mine.yaml: worker_groups[1].memory": 'is "2x"; use a number and k, m or g, such as 512m or 2g',
        "mine.yaml: worker_groups[2].group_name": "is missing",
        "mine.yaml: worker_groups[3]": "replicas 5 is above max_replicas 2",
        "mine.yaml: worker_groups[4].group_name": 'is "head", which is reserved; choose another name',
    }
    assert str(caught.value).startswith("7 problems:\n  - ")


def test_a_group_that_stands_there_twice_is_refused() -> None:
    with pytest.raises(BadInput, match="spot stands there twice; merge them or rename one"):
        parse_topology({"worker_groups": [{"group_name": "spot"}] * 2}, "t")


@pytest.mark.parametrize(
    ("group", "said"),
    [
        ({"min_replicas": 3, "max_replicas": 2}, "min_replicas 3 is above max_replicas 2"),
        ({"replicas": 1, "min_replicas": 2}, "replicas 1 is below min_replicas 2"),
        ({"resources": {"GPU": 0.5}}, "GPU is 0.5; Ray takes whole amounts per node"),
        ({"resources": {"disk": 0.5}}, "disk is 0.5; Ray takes whole amounts per node"),
        ({"resources": {"": 1}}, "'' is not a name"),
        ({"resources": {"a\nb": 1}}, "'a\\nb' is not a name"),
        ({"resources": {"memory": 1}}, "memory is Ray's own to say"),
        ({"resources": {"object_store_memory": 1}}, "object_store_memory is Ray's own to say"),
        ({"resources": {"node:__internal_head__": 1}}, "is Ray's own to say"),
        ({"labels": {"a b": "x"}}, "'a b' is not a label's name"),
        ({"labels": {"": "x"}}, "'' is not a label's name"),
        ({"labels": {"/a": "x"}}, "'/a' is not a label's name"),
        ({"labels": {"a": "x\n,zone=a,gpu=fake"}}, "a is 'x\\n,zone=a,gpu=fake'; use up to 63"),
        ({"labels": {"a": "x,zone=a"}}, "a is 'x,zone=a'; use up to 63"),
        ({"labels": {"a": "x\n"}}, "a is 'x\\n'; use up to 63"),
        ({"labels": {"ray.io/node-id": "x"}}, "ray.io/node-id is Ray's own to say"),
        ({"memory": "0g"}, 'is "0g"; use 6m to 1048576g'),
        ({"memory": "99999999999999g"}, 'is "99999999999999g"; use 6m to 1048576g'),
        ({"memory": "٣g"}, 'is "٣g"; use a number and k, m or g'),
        ({"memory": "2g\n"}, "use a number and k, m or g"),
        ({"shm_size": "64m"}, "use 80m to 1048576g: Ray's object store lies in it"),
        ({"shm_size": "lots"}, 'is "lots"; use a number and k, m or g'),
        (
            {"spill_size": "64m"},
            'is "64m"; use 128m to 1048576g: Ray spills up to 100 MB at a time',
        ),
        (
            {"memory": "512m", "shm_size": "256m", "spill_size": "256m"},
            'shm_size "256m" and spill_size "256m" lie in the memory of the node, which is "512m"',
        ),
        ({"provision_delay": "9s..3s"}, "'9s..3s': ends before it begins; use 3s..9s"),
        ({"provision_delay": "5m"}, "is 5m, a size; use a time"),
        ({"provision_failure": "120%"}, "is 1.2; use a share from 0 to 1"),
        ({"capacity_after": "-1s"}, "is -1s; use a time from 0 s"),
        ({"capacity_after": True}, "is True; use a time"),
        ({"market": "sport"}, "'on-demand' or 'spot'"),
        ({"price": -1}, "greater than or equal to 0"),
        (
            {"market": "spot", "labels": {"ray.io/market-type": "on-demand"}},
            "market is spot, and the label ray.io/market-type says on-demand; say it once",
        ),
    ],
)
def test_a_contradiction_is_refused(group: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse_topology({"worker_groups": [{"group_name": "w", **group}]}, "t")
    assert said in str(caught.value)


@pytest.mark.parametrize("key", ["zone", "a" * 63, "ray.io/market-type", "a.b-c.d/e_f.g"])
@pytest.mark.parametrize("value", ["", "spot", "A-1_b.c", "a" * 63])
def test_a_label_of_kubernetes_syntax_is_taken(key: str, value: str) -> None:
    topology = parse_topology({"head": {"labels": {key: value}}}, "t")
    assert topology.head.labels == {key: value}


@given(st.text("aZ0-_./, \n=²", max_size=12), st.text("aZ0-_./, \n=²", max_size=12))
def test_every_label_that_is_taken_is_one_to_ray(key: str, value: str) -> None:
    rule = pytest.importorskip("ray._private.label_utils")
    try:
        parse_topology({"head": {"labels": {key: value}}}, "t")
    except BadInput:
        return
    assert rule.validate_label_key(key) is None
    rule.validate_label_value(value)


def test_every_problem_of_the_overrides_comes_at_once() -> None:
    with pytest.raises(BadInput) as caught:
        override(
            load_topology("default"),
            [
                "workers",
                "worker_groups.gpu.replicas=2",
                "haed.resources.CPU=2",
                "head.gpus.x=1",
                "head.gpus=[",
            ],
        )
    assert [str(p) for p in caught.value.problems] == [
        "--set workers: is not key=value; for example head.resources.CPU=2",
        "--set worker_groups.gpu.replicas=2: there is no worker group 'gpu'; there is worker",
        "--set haed.resources.CPU=2: 'haed' is not a known key; "
        "known: name, description, head, worker_groups, autoscaling, gcs, driver_node",
        "--set head.gpus.x=1: head.gpus has no keys below it",
        "--set head.gpus=[: '[' is not a YAML value",
    ]


@pytest.mark.parametrize("value", ["2020-13-45", "!!int x", "!!bool x", "[" * 3000])
def test_a_setting_that_only_looks_like_a_value_is_refused(value: str) -> None:
    with pytest.raises(BadInput, match="is not a YAML value"):
        override(load_topology("default"), [f"head.resources.CPU={value}"])


def test_a_position_is_written_in_digits() -> None:
    with pytest.raises(BadInput, match="there is no worker group '²'"):
        override(load_topology("default"), ["worker_groups.²=1"])


def test_a_setting_that_is_none_hides_no_other_problem() -> None:
    with pytest.raises(BadInput) as caught:
        override(load_topology("default"), ["nonsense", "a=b", "head.resources.CPU=-2"])
    text = str(caught.value)
    for said in ("nonsense: is not key=value", "a: is not a known key", "CPU is -2"):
        assert said in text


def test_an_override_is_validated_like_the_file() -> None:
    with pytest.raises(BadInput, match="replicas 99 is above max_replicas 64"):
        override(load_topology("default"), ["worker_groups.worker.replicas=99"])
    with pytest.raises(BadInput, match="is not a known key"):
        override(load_topology("default"), ["head.colour=red"])


def test_a_resource_of_ones_own_can_be_added() -> None:
    topology = override(load_topology("default"), ["worker_groups.0.resources.spot=1"])
    assert {n.resources["spot"] for n in topology.workers()} == {1.0}


@pytest.mark.parametrize(("text", "size"), [("512m", 512 * 2**20), ("2g", 2 * 2**30), ("1K", 1024)])
def test_sizes_are_read_as_docker_writes_them(text: str, size: int) -> None:
    assert parse_size(text) == size


@pytest.mark.parametrize(
    ("data", "remedy"),
    [
        ({"heads": {}}, "did you mean head?"),
        ({"worker_groups": [{"group_name": "w", "replica": 2}]}, "did you mean replicas"),
        (
            {"head": {"colour": "red"}},
            "known: resources, labels, memory, shm_size, spill_size, gpus",
        ),
        ({"head": {"profile": "lean"}}, "only a worker group has one: the head needs all of Ray"),
    ],
)
def test_a_key_that_is_not_known_comes_with_the_nearest(
    data: dict[str, object], remedy: str
) -> None:
    with pytest.raises(BadInput) as caught:
        parse_topology(data, "t")
    assert caught.value.problems[0].remedy.startswith(remedy)


@pytest.mark.parametrize("name", known_topologies())
def test_every_topology_that_comes_with_the_package_is_on_its_page(name: str) -> None:
    topology = load_topology(name)
    assert topology.name == name
    assert topology.description
    page = Path(__file__).parent.parent / "docs" / "reference" / "topology.md"
    assert f"| `{name}` |" in page.read_text(encoding="utf-8")


def test_only_spot_workers_of_hybrid_have_gpus_and_only_the_others_an_ssd() -> None:
    market = {
        n.name: (n.labels["ray.io/market-type"], "GPU" in n.resources, "ssd" in n.resources)
        for n in load_topology("hybrid").workers()
    }
    spot, on_demand = ("spot", True, False), ("on-demand", False, True)
    assert market == {"gpu-1": spot, "gpu-2": spot, "cpu-1": on_demand, "cpu-2": on_demand}


def test_two_gpu_is_server_1_with_the_gpus_and_server_2_with_cpus() -> None:
    head, worker = load_topology("two_gpu").nodes()
    assert (head.resources["GPU"], "GPU" in worker.resources) == (2, False)
    assert (head.labels["server"], worker.labels["server"]) == ("1", "2")


def test_a_profile_that_is_not_known_is_refused_with_those_there_are() -> None:
    with pytest.raises(BadInput, match=r"worker_groups\[0\].profile: is 'thin'.*default.*lean"):
        parse_topology({"worker_groups": [{"group_name": "w", "profile": "thin"}]}, "t")


def test_only_the_workers_of_a_lean_group_are_lean() -> None:
    topology = load_topology("lean")
    assert topology.lean_groups == ["worker"]
    assert [n.profile.value for n in topology.nodes()] == ["default", "lean", "lean", "lean"]
    assert override(topology, ["worker_groups.worker.profile=default"]).lean_groups == []


def elastic(**more: object) -> Topology:
    group = {"group_name": "w", "replicas": 3, "min_replicas": 1}
    return parse_topology({"autoscaling": {}, "worker_groups": [group], **more}, "t")


def test_where_ray_decides_how_many_there_are_only_the_head_should_exist() -> None:
    topology = elastic()
    assert [n.name for n in topology.nodes()] == ["head"]
    assert (topology.worker_groups[0].least, topology.worker_groups[0].most) == (1, 3)
    assert [g.group_name for g in topology.managed] == ["w"]
    assert topology.most_nodes == 4
    assert topology.node_of(topology.worker_groups[0], 7).name == "w-7"
    assert override(topology, ["autoscaling.max_workers=2"]).most_nodes == 3
    assert not override(topology, ["autoscaling=null"]).managed
    again = override(topology, ["autoscaling=null", "autoscaling.idle_timeout=20s"])
    assert again.autoscaling is not None
    assert again.autoscaling.idle_timeout == 20


def test_times_and_shares_are_read_as_people_write_them() -> None:
    topology = elastic(
        autoscaling={"idle_timeout": "1.5min"},
        worker_groups=[
            {
                "group_name": "w",
                "provision_delay": "500ms..3s",
                "provision_failure": "20%",
                "capacity_after": 30,
            }
        ],
    )
    (group,) = topology.worker_groups
    assert topology.autoscaling is not None
    assert topology.autoscaling.idle_timeout == 90
    assert (group.provision_delay, group.provision_failure) == ((0.5, 3.0), 0.2)
    assert group.capacity_after == 30
    assert parse_topology(topology.model_dump(mode="json"), "t") == topology


def test_a_market_is_a_label_of_ray_and_the_other_way_round() -> None:
    spot, said, none = parse_topology(
        {
            "worker_groups": [
                {"group_name": "a", "market": "spot"},
                {"group_name": "b", "labels": {"ray.io/market-type": "spot"}},
                {"group_name": "c"},
            ]
        },
        "t",
    ).worker_groups
    assert spot.all_labels == said.all_labels == {"ray.io/market-type": "spot"}
    assert (spot.is_spot, said.is_spot, none.is_spot) == (True, True, False)
    assert none.all_labels == {}


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"autoscaling": {}}, "autoscaling needs a worker group"),
        (
            {
                "autoscaling": {"max_workers": 1},
                "worker_groups": [{"group_name": "w", "replicas": 2, "min_replicas": 2}],
            },
            "autoscaling.max_workers is 1, and the groups' min_replicas are 2 together",
        ),
        ({"autoscaling": {"idle_timeut": 1}}, "did you mean idle_timeout"),
    ],
)
def test_autoscaling_that_cannot_be_is_refused(data: dict[str, object], said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_topology(data, "t")


def test_a_control_store_that_is_not_known_is_refused_with_those_there_are() -> None:
    assert parse_topology({"gcs": "rocksdb"}, "t").outlives_head
    assert not parse_topology({}, "t").outlives_head
    with pytest.raises(BadInput, match=r"gcs: is 'etcd'.*memory.*rocksdb"):
        parse_topology({"gcs": "etcd"}, "t")


def test_a_driver_node_is_one_node_that_offers_a_place_to_drivers_and_nothing_else() -> None:
    topology = override(load_topology("default"), ["driver_node=true"])
    head, driver, *workers = topology.nodes()
    assert (driver.name, driver.role, driver.group) == (DRIVER, "driver", DRIVER)
    assert driver.resources == {"CPU": 0, DRIVER: 1}
    assert (head.role, {n.role for n in workers}) == ("head", {"worker"})
    assert [n.name for n in topology.workers()] == [n.name for n in workers]
    assert topology.total("CPU") == load_topology("default").total("CPU")
    assert topology.most_nodes == 5
    assert topology.counted == "a head, a driver node and 3 workers"
    assert load_topology("default").counted == "a head and 3 workers"


def test_what_a_driver_asks_for_is_what_the_driver_node_alone_offers() -> None:
    topology = override(load_topology("default"), ["driver_node=true"])
    needs = driver_needs(n.role for n in topology.nodes())
    assert needs is not None
    able = [n.name for n in topology.nodes() if all(n.resources.get(r) for r in needs)]
    assert able == [DRIVER]
    assert driver_needs(n.role for n in load_topology("default").nodes()) is None


@pytest.mark.parametrize(
    "setting", ["head.resources.driver=1", "worker_groups.worker.resources.driver=2"]
)
def test_nobody_else_may_offer_what_drivers_find_their_node_by(setting: str) -> None:
    with pytest.raises(BadInput, match="offers driver, by which drivers find the driver node"):
        override(load_topology("default"), ["driver_node=true", setting])
    override(load_topology("default"), [setting])  # without one, it is a resource like any other


def test_redis_is_where_the_head_keeps_its_tables_and_no_node() -> None:
    topology = override(load_topology("default"), ["gcs=redis"])
    assert topology.store is not None
    assert (topology.store.name, topology.store.role) == ("redis", "store")
    assert topology.outlives_head
    assert "redis" not in [n.name for n in topology.nodes()]
    assert [n.name for n in topology.breakable()][-1] == "redis"
    for gcs in ("memory", "rocksdb"):
        assert override(topology, [f"gcs={gcs}"]).store is None


def test_a_group_may_not_have_the_name_of_the_store() -> None:
    groups = {"worker_groups": [{"group_name": "redis"}]}
    with pytest.raises(BadInput, match="redis is the name of the store with gcs: redis"):
        parse_topology({"gcs": "redis", **groups}, "t")
    assert parse_topology(groups, "t").worker_groups[0].group_name == "redis"


def test_the_autoscaler_is_not_given_the_place_of_the_driver_node() -> None:
    topology = elastic(driver_node=True)
    assert [n.name for n in topology.nodes()] == ["head", DRIVER]
    assert (topology.most_workers, topology.most_nodes) == (3, 5)
