"""Faults of the network on the fake backend: what is asked for, seen, healed and refused. The logic, not the fact."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from fakes import Lab, cluster_up, fake, fake_of, finding, kinds, only, state

from simulator.backends.base import DISCONNECT, SHAPE_NETWORK
from simulator.checkers.base import RunView
from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun
from simulator.experiment import Experiment
from simulator.experiment import Params as BaseParams
from simulator.faults import (
    FAULTS,
    Bandwidth,
    Delay,
    Disconnect,
    Duplicate,
    Fault,
    Kill,
    Loss,
    Partition,
    Pause,
    Reorder,
    Restart,
    Site,
    fault_from_data,
)
from simulator.healing import heal as healed_by_another
from simulator.netrules import Drop, Flow, Shape
from simulator.schedule import After, Named, Step, WhenDeclaredDead
from simulator.topology import Topology
from simulator.workload import TaskStream

RULES = [
    Partition(), Partition(direction="in"), Partition(scope="gcs"), Partition(scope="objects"),
    Loss(percent=5), Loss(percent=5, direction="out", correlation=25), Bandwidth(rate="2mbit"),
    Delay(delay=0.05, jitter=0.01), Reorder(), Duplicate(),
]  # fmt: skip
ALL: list[Fault] = [*RULES, Disconnect()]

#: A fault of worker-1, whose far side are all others.
SITE = Site("worker-1", "f1", ("head", "worker-2", "worker-3"))


@pytest.fixture
def cluster() -> Cluster:
    return cluster_up(fake())


def ray_id(cluster: Cluster, node: str) -> str:
    host = cluster.node(node).hostname
    (found,) = (n.ray_node_id for n in cluster.ray.nodes() if n.hostname == host and n.alive)
    return found


def strike(cluster: Cluster, fault: Fault, site: Site = SITE) -> Site:
    site = fault.locate(cluster, site)
    fault.inject(cluster, site)
    assert fault.holds(cluster, site)
    return site


def heal(cluster: Cluster, fault: Fault, site: Site) -> str:
    how = fault.heal(cluster, site, timeout=60)
    assert fault.lingers(cluster, site) == ""
    assert not fault.holds(cluster, site)
    return how


# ---- every one of them


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_it_shows_is_healed_and_healed_again(cluster: Cluster, fault: Fault) -> None:
    before = ray_id(cluster, "worker-1")
    site = fault.locate(cluster, SITE)
    assert not fault.holds(cluster, site)
    assert fault.lingers(cluster, site) == ""
    strike(cluster, fault)
    assert fault.lingers(cluster, site)
    fault.inject(cluster, site)  # twice is once
    assert heal(cluster, fault, site).endswith("it was running already")
    heal(cluster, fault, site)
    assert ray_id(cluster, "worker-1") == before
    assert state(cluster, "worker-1") == "alive"


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_one_without_effect_does_not_show(cluster: Cluster, fault: Fault) -> None:
    method = "disconnect" if isinstance(fault, Disconnect) else "add_rule"
    fake_of(cluster).without_effect(method, "worker-1")
    site = fault.locate(cluster, SITE)
    fault.inject(cluster, site)
    assert not fault.holds(cluster, site)


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_one_whose_healing_had_no_effect_lingers(cluster: Cluster, fault: Fault) -> None:
    site = strike(cluster, fault)
    method = "connect" if isinstance(fault, Disconnect) else "remove_rule"
    fake_of(cluster).without_effect(method, "worker-1")
    with suppress(CannotRun):  # nothing that is cut off can join
        fault.heal(cluster, site, timeout=1)
    assert fault.lingers(cluster, site)


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_what_another_process_reads_is_the_same_fault_at_the_same_site(
    cluster: Cluster, fault: Fault
) -> None:
    assert fault_from_data(json.loads(json.dumps(fault.to_data()))) == fault
    site = fault.locate(cluster, SITE)
    assert Site.from_data(json.loads(json.dumps(site.to_data()))) == site


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_a_backend_without_networks_of_its_own_is_refused_by_name(fault: Fault) -> None:
    class Bare:
        name = "bare"

    needs = DISCONNECT if isinstance(fault, Disconnect) else SHAPE_NETWORK
    said = f"{fault.name} needs a backend that {needs.means}; bare does not"
    assert fault.unable(Bare()) == said  # type: ignore[arg-type]
    assert fault.unable(fake()) is None


# ---- what the machine must be able to do


@pytest.mark.parametrize(
    "fault",
    [Delay(), Reorder(), Duplicate(), Loss(direction="out", correlation=10)],
    ids=lambda f: f.name,
)
def test_a_kernel_without_netem_refuses_what_needs_it_by_name_and_nothing_else(
    fault: Fault,
) -> None:
    backend = fake()
    backend.lacks["delay"] = "Error: Specified qdisc kind is unknown."
    said = fault.unable(backend)
    assert said is not None
    assert said.startswith(f"{fault.name} needs what the kernel below fake lacks, tc netem")
    assert "sch_netem" in said
    assert "qdisc kind is unknown" in said
    for other in (Partition(), Loss(), Bandwidth(), Disconnect(), Kill()):
        assert other.unable(backend) is None


def test_each_feature_is_missed_by_those_that_need_it() -> None:
    backend = fake()
    backend.lacks["share"] = backend.lacks["rate"] = "no"
    refused = [f.name for f in ALL if f.unable(backend)]
    assert refused == ["loss", "bandwidth"]


def test_missing_tools_are_named_before_anything_starts() -> None:
    backend = fake()
    backend.fail_next("network_lacks", CannotRun("faults need the image x", remedy="Build it: y"))
    assert Partition().unable(backend) == "faults need the image x. Build it: y"


# ---- parameters


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda: Partition(direction="up", scope="ray"), "2 problems"),  # type: ignore[arg-type]
        (lambda: Loss(percent=0), "loss: percent: is 0; use a number above 0 and up to 100"),
        (lambda: Loss(percent=101), "up to 100"),
        (lambda: Loss(correlation=10), "direction=out"),
        (lambda: Bandwidth(rate="10"), "such as 10mbit"),
        (lambda: Delay(delay=0), "above 0, such as 0.1"),
        (lambda: Delay(delay=float("nan")), "above 0"),
        (lambda: Delay(delay=0.1, jitter=0.2), "from 0 to the delay, 0.1"),
        (lambda: Reorder(percent=-1, delay=-1), "2 problems"),
        (lambda: Duplicate(percent=1000), "duplicate: percent: is 1000"),
    ],
)
def test_wrong_parameters_are_refused_together(make: Any, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        make()
    assert said in str(caught.value)


# ---- the rules that are asked for


def rule_of(cluster: Cluster, node: str = "worker-1", site: str = "f1") -> Any:
    return fake_of(cluster).rules("c", node)[site]


def address(cluster: Cluster, node: str) -> str:
    return cluster.node(node).address


def test_a_partition_names_its_peers_and_nobody_else(cluster: Cluster) -> None:
    strike(cluster, Partition(), replace(SITE, peers=("head", "worker-3")))
    far = sorted(address(cluster, n) for n in ("head", "worker-3"))
    assert rule_of(cluster) == Drop(tuple(map(Flow, far)), "both")


def test_a_partition_from_the_gcs_is_its_port_and_the_nodes_own(cluster: Cluster) -> None:
    strike(cluster, Partition(scope="gcs"))
    head = address(cluster, "head")
    assert rule_of(cluster).flows == (
        Flow(head, local_port=7001), Flow(head, remote_port=6379)
    )  # fmt: skip


def test_a_partition_of_objects_is_the_object_managers_ports_on_both_sides(
    cluster: Cluster,
) -> None:
    strike(cluster, Partition(scope="objects", direction="out"), replace(SITE, peers=("worker-2",)))
    there = address(cluster, "worker-2")
    assert rule_of(cluster) == Drop(
        (Flow(there, local_port=7002), Flow(there, remote_port=7002)), "out"
    )


def test_a_loss_concerns_its_peers_and_a_correlated_one_all_that_is_sent(cluster: Cluster) -> None:
    strike(cluster, Loss(percent=5), replace(SITE, peers=("worker-2",)))
    assert rule_of(cluster) == Drop((Flow(address(cluster, "worker-2")),), "both", 5)
    strike(cluster, Loss(percent=5, direction="out", correlation=25), replace(SITE, id="f2"))
    assert rule_of(cluster, site="f2") == Shape(loss=5, loss_after_loss=25)


def test_the_head_has_no_link_with_the_gcs_that_could_be_cut(cluster: Cluster) -> None:
    with pytest.raises(CannotRun, match="the GCS is on the head"):
        Partition(scope="gcs").locate(cluster, Site("head", "f1", ("worker-1",)))
    with pytest.raises(CannotRun, match="not among worker-2"):
        Partition(scope="gcs").locate(cluster, Site("worker-1", "f1", ("worker-2",)))


def test_without_a_peer_that_has_an_address_there_is_nothing_to_cut(cluster: Cluster) -> None:
    fake_of(cluster).disconnect("c", "worker-2")
    for fault in (Partition(), Loss()):
        with pytest.raises(CannotRun, match="worker-2 has no address"):
            fault.locate(cluster, replace(SITE, peers=("worker-2",)))


def test_where_raylets_listen_is_remembered_while_ray_does_not_answer(cluster: Cluster) -> None:
    fault = Partition(scope="gcs")
    site = fault.locate(cluster, SITE)
    assert site.details["ports"]["worker-1"] == [7001, 7002]
    no_answer = CannotRun("Ray does not answer")
    fake_of(cluster).fail_next("ray.ports", no_answer)
    fault.inject(cluster, site)
    assert len(rule_of(cluster).flows) == 2
    fake_of(cluster).fail_next("ray.ports", no_answer)
    with pytest.raises(CannotRun, match="does not answer"):
        fault.locate(cluster, SITE)


# ---- what Ray makes of it


@pytest.mark.parametrize("direction", ["both", "in", "out"])
@pytest.mark.parametrize("scope", ["all", "gcs"])
def test_a_node_that_the_gcs_does_not_hear_is_given_up_and_comes_back_as_a_new_one(
    cluster: Cluster, direction: Any, scope: Any
) -> None:
    before = ray_id(cluster, "worker-1")
    fault = Partition(direction, scope)
    site = strike(cluster, fault)
    cluster.clock.sleep(3)
    assert state(cluster, "worker-1") == "alive"
    cluster.clock.sleep(3)
    assert state(cluster, "worker-1") == "dead"
    assert "joined as a new node" in heal(cluster, fault, site)
    assert ray_id(cluster, "worker-1") != before


@pytest.mark.parametrize("fault", [Partition(), Partition(scope="gcs"), Disconnect()], ids=str)
def test_healed_before_that_it_lives_on(cluster: Cluster, fault: Fault) -> None:
    before = ray_id(cluster, "worker-1")
    site = strike(cluster, fault)
    cluster.clock.sleep(1.5)
    heal(cluster, fault, site)
    cluster.clock.sleep(20)
    assert ray_id(cluster, "worker-1") == before


@pytest.mark.parametrize(
    ("fault", "peers"),
    [
        (Partition(scope="objects"), SITE.peers),
        (Partition(), ("worker-2", "worker-3")),
        (Loss(), SITE.peers),
        (Bandwidth(), ()),
    ],
    ids=str,
)
def test_a_node_that_the_gcs_hears_is_not_given_up(
    cluster: Cluster, fault: Fault, peers: tuple[str, ...]
) -> None:
    strike(cluster, fault, replace(SITE, peers=peers))
    cluster.clock.sleep(30)
    assert state(cluster, "worker-1") == "alive"


def test_one_that_hears_no_gcs_for_long_ends_by_itself_and_comes_back(cluster: Cluster) -> None:
    site = strike(cluster, Partition())
    cluster.clock.sleep(70)
    assert state(cluster, "worker-1") == "exited"
    assert not Partition().holds(cluster, site), "its network went with it"
    assert "joined as a new node" in heal(cluster, Partition(), site)


def test_a_head_that_was_cut_off_has_back_all_that_it_gave_up(cluster: Cluster) -> None:
    site = Site("head", "f1", ("worker-1", "worker-2"))
    Kill().inject(cluster, Site("worker-3"))
    before = {n: ray_id(cluster, n) for n in ("head", "worker-1", "worker-2")}
    site = strike(cluster, Partition(), site)
    cluster.clock.sleep(10)
    assert [state(cluster, n) for n in before] == ["alive", "dead", "dead"]
    how = heal(cluster, Partition(), site)
    assert how.endswith("worker-1, worker-2, given up meanwhile, joined as new nodes")
    assert ray_id(cluster, "head") == before["head"]
    assert [state(cluster, n) for n in before] == ["alive"] * 3
    assert state(cluster, "worker-3") == "exited", "that is another fault's"


# ---- several at once


def test_healing_one_partition_leaves_the_other_and_the_node_to_it(cluster: Cluster) -> None:
    first = strike(cluster, Partition())
    second = strike(cluster, Partition(direction="in"), replace(SITE, id="f2"))
    cluster.clock.sleep(10)
    how = Partition().heal(cluster, first, timeout=60)
    assert how == "its rule is gone; f2 still cuts it off from the head"
    assert Partition().lingers(cluster, first) == ""
    assert Partition(direction="in").holds(cluster, second)
    assert state(cluster, "worker-1") == "dead", "nobody has started it in the dark"
    assert "joined as a new node" in heal(cluster, Partition(direction="in"), second)


def test_both_sides_of_one_link_may_be_broken_and_each_is_healed_by_itself(
    cluster: Cluster,
) -> None:
    here = strike(cluster, Partition(), replace(SITE, peers=("head",)))
    there = strike(cluster, Partition(), Site("head", "f2", ("worker-1",)))
    assert "f2 still cuts it off" in Partition().heal(cluster, here, timeout=60)
    heal(cluster, Partition(), there)
    assert state(cluster, "worker-1") == "alive"


def test_shapes_and_drops_of_one_node_do_not_know_of_each_other(cluster: Cluster) -> None:
    faults: list[Fault] = [Bandwidth(), Loss(percent=1), Partition(scope="objects"), Delay()]
    sites = [strike(cluster, f, replace(SITE, id=f"f{i}")) for i, f in enumerate(faults)]
    healed: set[int] = set()
    for i in (2, 0, 3, 1):
        heal(cluster, faults[i], sites[i])
        healed.add(i)
        assert all(
            f.holds(cluster, s)
            for j, (f, s) in enumerate(zip(faults, sites, strict=True))
            if j not in healed
        )
    assert fake_of(cluster).rules("c", "worker-1") == {}


def test_clearing_takes_all_of_them_without_knowing_their_names(cluster: Cluster) -> None:
    for i, fault in enumerate(RULES):
        strike(cluster, fault, replace(SITE, id=f"f{i}"))
    fake_of(cluster).clear_rules("c", "worker-1")
    fake_of(cluster).clear_rules("c", "worker-1")
    assert fake_of(cluster).rules("c", "worker-1") == {}


def test_a_partition_of_a_frozen_node_is_healed_by_itself(cluster: Cluster) -> None:
    site = strike(cluster, Partition())
    Pause().inject(cluster, Site("worker-1", "f2"))
    assert Partition().holds(cluster, site)
    assert "resumed" in Partition().heal(cluster, site, timeout=60)


# ---- unplugged


def test_an_unplugged_node_gets_back_the_address_that_ray_knows_it_by(cluster: Cluster) -> None:
    before = address(cluster, "worker-1")
    site = strike(cluster, Disconnect())
    assert address(cluster, "worker-1") == ""
    assert heal(cluster, Disconnect(), site).startswith(f"plugged in as {before};")
    site = strike(cluster, Disconnect())
    blank = replace(site, details={})  # as whoever has no history knows it
    assert heal(cluster, Disconnect(), blank).startswith(f"plugged in as {before};")


def test_one_whose_address_was_taken_comes_back_as_a_new_node_and_it_is_said(
    cluster: Cluster,
) -> None:
    before = address(cluster, "worker-1")
    site = strike(cluster, Disconnect())
    fake_of(cluster).taken.add(before)
    how = heal(cluster, Disconnect(), site)
    assert f"since {before} was taken" in how
    assert "joined as a new node" in how
    assert address(cluster, "worker-1") not in ("", before)


def test_a_head_that_cannot_have_its_address_back_is_an_error(cluster: Cluster) -> None:
    site = strike(cluster, Disconnect(), Site("head", "f1"))
    assert not cluster.status().ray["answers"]
    fake_of(cluster).taken.add(site.details["address"])
    with pytest.raises(CannotRun, match="head cannot have its address"):
        Disconnect().heal(cluster, site, timeout=60)


def test_an_unplugged_head_has_back_all_that_it_gave_up(cluster: Cluster) -> None:
    site = strike(cluster, Disconnect(), Site("head", "f1"))
    cluster.clock.sleep(10)
    how = heal(cluster, Disconnect(), site)
    assert "worker-1, worker-2, worker-3, given up meanwhile" in how
    assert {n.state for n in cluster.status().nodes} == {"alive"}


def test_a_node_that_died_unplugged_is_started_and_joins_when_it_is_plugged_in(
    cluster: Cluster,
) -> None:
    site = strike(cluster, Disconnect())
    Kill().inject(cluster, Site("worker-1", "f2"))
    assert "can join once it is plugged in" in Kill().heal(cluster, Site("worker-1", "f2"), 60)
    assert Disconnect().holds(cluster, site)
    heal(cluster, Disconnect(), site)
    assert state(cluster, "worker-1") == "alive"


# ---- by somebody who knows of none


def test_sweeping_takes_away_what_is_found_and_says_so_once(cluster: Cluster) -> None:
    strike(cluster, Partition())
    strike(cluster, Bandwidth(), replace(SITE, id="f2"))
    strike(cluster, Disconnect(), Site("worker-2", "f3"))
    strike(cluster, Disconnect(), Site("head", "f4"))
    found = {
        node: [how for kind in FAULTS.values() if (how := kind.sweep(cluster, node))]
        for node in ("head", "worker-1", "worker-2", "worker-3")
    }
    assert found == {
        "head": ["plugged in as 10.77.0.10"],
        "worker-1": ["the rules of f1, f2 taken out of its network"],
        "worker-2": ["plugged in as 10.77.0.12"],
        "worker-3": [],
    }
    assert not any(kind.sweep(cluster, node) for kind in FAULTS.values() for node in found)


def test_a_killed_orchestrators_partition_is_healed_by_another_process(cluster: Cluster) -> None:
    strike(cluster, Partition())
    cluster.clock.sleep(10)
    healing = healed_by_another(cluster)
    assert healing.problems == []
    assert healing.done == [
        "worker-1: the rules of f1 taken out of its network",
        "worker-1: started again; it joined as a new node",
    ]
    assert {n.state for n in cluster.status().nodes} == {"alive"}


# ---- in a run


@pytest.fixture
def lab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Lab:
    def page(path: Path, view: RunView) -> Path:
        return path / "report.html"

    monkeypatch.setattr("simulator.runner.judging.write_html", page)
    return Lab(tmp_path)


class Scheduled(Experiment):
    name = "scheduled"
    claim = "What is scheduled happens."
    steps: ClassVar[Sequence[Step]] = ()

    class Params(BaseParams):
        at: float = 4
        tasks: int = 100

    def workload(self, params: Params) -> TaskStream:
        return TaskStream(tasks=params.tasks)

    def schedule(self, params: Params, topology: Topology) -> Sequence[Step]:
        return self.steps

    def mandatory_phases(self, params: Params) -> Sequence[str]:
        return ("effect",)


def scheduled(*steps: Step) -> Experiment:
    class Here(Scheduled):
        pass

    Here.steps = steps
    return Here()


@pytest.mark.parametrize("fault", ALL, ids=str)
def test_a_run_verifies_it_heals_it_and_is_valid(lab: Lab, fault: Fault) -> None:
    lab.experiment = scheduled(Step(4, fault, Named("worker-1"), After(8)))
    result = lab.run()
    history = lab.history(result)
    assert (result["status"], result["verdict"]) == ("completed", "valid"), result["findings"]
    assert only(history, "fault.effect").data["verified"] is True
    assert only(history, "fault.healed").data["verified"] is True
    assert finding(result, "healed")["verdict"] == "valid"
    plan = only(history, "fault.plan")
    if fault.between_nodes:
        assert plan.data["site"]["peers"] == ["head", "worker-2", "worker-3"]
        assert set(plan.data["site"]["details"]["addresses"]) == {"head", "worker-2", "worker-3"}


def test_a_result_that_could_not_be_sent_is_not_the_owners(lab: Lab) -> None:
    """A partitioned node goes on with what it has; the task runs a second time elsewhere."""
    step = Step(4, Partition(), Named("worker-1"), WhenDeclaredDead(), when_busy=True)
    lab.experiment = scheduled(step)
    result = lab.run()
    history = lab.history(result)
    keys = [op.data["key"] for op in history.of("task.end")]
    assert len(keys) > len(set(keys))
    assert finding(result, "no_task_lost")["verdict"] == "valid"


def test_a_machine_that_cannot_do_it_is_refused_before_anything_is_made(lab: Lab) -> None:
    lab.backend.lacks["delay"] = "unknown"
    lab.experiment = scheduled(Step(4, Delay(), Named("worker-1")), Step(5, Loss(), Named("head")))
    with pytest.raises(CannotRun, match="delay needs what the kernel below fake lacks, tc netem"):
        lab.run()
    methods = [call.method for call in lab.backend.calls]
    assert methods.index("prepare_network") < methods.index("network_lacks")
    assert "create" not in methods


def test_two_faults_of_one_name_are_both_asked_whether_they_can_be(lab: Lab) -> None:
    lab.backend.lacks["delay"] = "unknown"
    bursts = Loss(direction="out", correlation=50)
    lab.experiment = scheduled(
        Step(4, Loss(), Named("worker-1")), Step(5, bursts, Named("worker-2"))
    )
    with pytest.raises(CannotRun, match="loss needs"):
        lab.run()


def test_a_run_without_network_faults_needs_no_tools(lab: Lab) -> None:
    lab.experiment = scheduled(Step(4, Kill(), Named("worker-1")))
    lab.run()
    assert not {"prepare_network", "network_lacks"} & {call.method for call in lab.backend.calls}


@pytest.mark.parametrize(
    ("fault", "when"), [(Kill(), "healed"), (Restart(), "struck")], ids=["killed", "restarted"]
)
def test_a_node_that_starts_again_under_a_partition_is_struck_again(
    lab: Lab, fault: Fault, when: str
) -> None:
    apart = Partition()
    lab.experiment = scheduled(
        Step(4, apart, Named("worker-1"), After(20), against=Named("worker-2")),
        Step(6, fault, Named("worker-1"), After(3)),
    )
    result = lab.run()
    history = lab.history(result)
    again = history.of("fault.again")
    assert again
    assert {op.data["id"] for op in again} == {"f1"}
    assert result["status"] == "completed"
    order = kinds(history)
    assert order.index("fault.again") < [i for i, k in enumerate(order) if k == "fault.heal"][-1]


def test_a_peer_that_comes_back_under_another_address_is_cut_off_there(lab: Lab) -> None:
    lab.experiment = scheduled(
        Step(4, Partition(), Named("worker-1"), After(25), against=Named("worker-2")),
        Step(6, Kill(), Named("worker-2"), After(3)),
    )

    def moves() -> None:
        world = lab.backend.world("c")
        if world.nodes["worker-2"].state == "exited":
            world.nodes["worker-2"].address = "10.77.9.9"

    lab.backend.before("start", moves)
    seen: list[set[str]] = []

    def look() -> None:
        rule = lab.backend.world("c").nodes["worker-1"].rules.get("f1")
        if isinstance(rule, Drop):
            seen.append({flow.address for flow in rule.flows})

    lab.backend.before("remove_rule", look)
    history = lab.history(lab.run())
    assert only(history, "fault.again").node == "worker-1"
    assert seen[0] == {"10.77.9.9"}


def test_a_stranger_that_takes_a_peers_address_is_not_cut_off(lab: Lab) -> None:
    """The peer stays down; a third node dies, starts again, and has what was the peer's address."""
    lab.experiment = scheduled(
        Step(4, Partition(), Named("worker-1"), After(25), against=Named("worker-2")),
        Step(6, Kill(), Named("worker-2"), After(25)),
        Step(8, Kill(), Named("worker-3"), After(3)),
    )
    nodes = lab.backend.world

    def swapped() -> None:
        two, three = (nodes("c").nodes[n] for n in ("worker-2", "worker-3"))
        if three.state == two.state == "exited" and three.starts == 1:
            two.address, three.address = three.address, two.address

    lab.backend.before("start", swapped)
    seen: list[tuple[Any, str]] = []

    def look() -> None:
        rule = nodes("c").nodes["worker-1"].rules.get("f1")
        seen.append((rule, nodes("c").nodes["worker-3"].address))

    lab.backend.before("remove_rule", look)
    history = lab.history(lab.run())
    assert history.of("fault.again")
    (first, stranger), *_, (last, _) = seen
    assert first.flows == (Flow(stranger),), "that is what had to be put right"
    assert last is None, "nobody is left whom it concerns"
