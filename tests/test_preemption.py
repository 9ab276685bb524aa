"""Spot machines that are taken back, on the fake backend: the notice, the drain, the end, and what it cost."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import Lab, cluster_up, fake, fake_of, finding, kinds, only, state, topology

from simulator.backends.base import CanKill, Completed
from simulator.cluster import Cluster
from simulator.errors import BadInput, CannotRun
from simulator.experiment import load_experiment
from simulator.faults import Kill, Preempt, Site, fault_from_data
from simulator.faults.nodes import draining
from simulator.healing import heal
from simulator.history import History
from simulator.runner import RunRequest
from simulator.schedule import After, AtEnd, Named, Never, Step, WhenDeclaredDead, parse_schedule
from simulator.topology import load_topology
from simulator.waiting import RealClock


@pytest.fixture
def cluster() -> Cluster:
    return cluster_up(fake())


def struck(cluster: Cluster, fault: Preempt, node: str = "worker-1") -> Site:
    site = fault.locate(cluster, Site(node))
    fault.inject(cluster, site)
    return site


def run(lab: Lab, text: str, *params: str, **more: Any) -> tuple[dict[str, Any], History]:
    result = lab.run("task_seconds=1", "tasks=80", *params, steps=parse_schedule(text), **more)
    return result, lab.history(result)


def seconds(history: History, kind: str, **data: Any) -> float:
    """When it happened, since the injection of the first fault."""
    found = next(op for op in history.of(kind) if all(op.data.get(k) == v for k, v in data.items()))
    injected = history.first("fault.inject")
    assert injected is not None
    return history.at(found) - history.at(injected)


# ---- the fault by itself


def test_a_busy_node_is_drained_until_its_time_and_killed_then(lab: Lab) -> None:
    result, history = run(lab, "preempt(notice=6s) worker-1 @5s busy")
    order = ["fault.plan", "fault.inject", "fault.done", "fault.notice", "fault.strike",
             "engine.die", "fault.effect", "fault.heal", "fault.healed"]  # fmt: skip
    told = [k for k in kinds(history) if k.startswith("fault.") or k == "engine.die"]
    assert told == order
    notice, effect = only(history, "fault.notice"), only(history, "fault.effect")
    assert notice.data["verified"]
    assert notice.data["how"] == "Ray holds it for draining, 6 s before its deadline"
    assert effect.data["verified"]
    assert effect.data["how"].startswith(
        "Ray holds it for draining, 6 s before its deadline; engine.die"
    )
    assert seconds(history, "fault.strike") == pytest.approx(6.0, abs=0.02)
    assert only(history, "engine.die").data["exit_code"] == 137
    dead = next(op for op in history.of("ray.node") if op.data["state"] == "DEAD")
    assert dead.data["reason"] == "AUTOSCALER_DRAIN_PREEMPTED"
    assert finding(result, "fault_hit_work")["verdict"] == "valid"
    assert finding(result, "healed")["verdict"] == "valid"


def test_ray_is_told_the_very_moment_at_which_the_machine_is_taken(cluster: Cluster) -> None:
    fault = Preempt(notice=20)
    now = cluster.backend.wall_clock()
    site = fault.locate(cluster, Site("worker-1"))
    cluster.clock.sleep(3)  # telling takes its time
    cluster.ray.submit("python -m simulator.innode.stream --run none", "job")
    fault.inject(cluster, site)
    assert site.details["until"] == pytest.approx(now + 20)
    entry = fake_of(cluster).world("c").nodes["worker-1"].entry
    assert entry is not None
    assert entry.draining == int(site.details["until"] * 1000)


def test_an_idle_node_leaves_before_its_time_and_that_is_an_effect_too(lab: Lab) -> None:
    _, history = run(lab, "preempt(notice=60s) worker-1 @2s for good", "tasks=4")
    # Its actor and its object are gone once the driver has ended.
    effect = only(history, "fault.effect")
    assert effect.data["verified"] in (True, False)


def test_a_node_that_leaves_by_itself_is_gone_before_its_time(cluster: Cluster) -> None:
    fault = Preempt(notice=60)
    site = struck(cluster, fault)
    assert fault.announced(cluster, site) == "it was drained, and left by itself"
    assert fault.holds(cluster, site) == "the engine says exited"
    assert cluster.node("worker-1").exit_code == 12
    fault.strike(cluster, site)  # nothing is left to be taken
    assert "joined as a new node" in fault.heal(cluster, site, 60)
    assert fault.lingers(cluster, site) == ""
    assert state(cluster, "worker-1") == "alive"


def test_a_notice_that_nobody_hears_is_a_kill_at_its_end(lab: Lab) -> None:
    result, history = run(lab, "preempt(notice=6s, drain=false) worker-1 @5s")
    notice = only(history, "fault.notice")
    assert (notice.data["verified"], notice.data["how"]) == (True, "Ray is told nothing")
    assert seconds(history, "engine.die") == pytest.approx(6.0, abs=0.05)
    dead = next(op for op in history.of("ray.node") if op.data["state"] == "DEAD")
    assert dead.data["reason"] == "UNEXPECTED_TERMINATION"
    starts = [op for op in history.of("task.start") if op.node == "worker-1"]
    injected, die = only(history, "fault.inject"), only(history, "engine.die")
    during = [op for op in starts if history.at(injected) < history.at(op) < history.at(die)]
    assert during  # Ray knows nothing, so it goes on giving it work
    assert finding(result, "healed")["verdict"] == "valid"


def test_a_drain_that_does_not_show_is_no_preemption(lab: Lab) -> None:
    execute = lab.backend.execute

    def deaf(cluster: str, node: str, argv: Any, **more: Any) -> Any:
        if "drain-by" in argv:
            return Completed(0, "")
        return execute(cluster, node, argv, **more)

    lab.backend.execute = deaf  # type: ignore[method-assign]
    result, history = run(lab, "preempt(notice=6s) worker-1 @5s")
    notice, effect = only(history, "fault.notice"), only(history, "fault.effect")
    assert not notice.data["verified"]
    assert not effect.data["verified"]
    assert effect.data["how"].startswith("it was not announced; engine.die")
    assert finding(result, "fault_hit_work")["verdict"] == "unknown"
    assert finding(result, "healed")["verdict"] == "valid"


def test_a_kill_that_has_no_effect_is_told(lab: Lab) -> None:
    lab.backend.without_effect("kill", "worker-1")
    result, history = run(lab, "preempt(notice=4s) worker-1 @5s busy")
    effect = only(history, "fault.effect")
    assert not effect.data["verified"]
    assert "engine.die of worker-1 did not happen" in effect.data["how"]
    healed = only(history, "fault.healed")
    assert healed.data["how"].startswith("a drain is not taken back, so it was stopped")
    assert finding(result, "fault_hit_work")["verdict"] == "unknown"


def test_an_engine_that_refuses_to_kill_is_heard(lab: Lab) -> None:
    lab.backend.fail_next("kill", CannotRun("no such process"))
    _, history = run(lab, "preempt(notice=4s) worker-1 @5s busy")
    effect = only(history, "fault.effect")
    assert not effect.data["verified"]
    assert "CannotRun: no such process" in effect.data["how"]


@pytest.mark.parametrize("heal", [AtEnd(), Never()], ids=["at the end", "never"])
def test_a_run_that_ends_before_the_time_takes_the_notice_back(lab: Lab, heal: Any) -> None:
    fault = Preempt(notice=600)
    lab.on_phase["recover"] = lambda: (_ for _ in ()).throw(KeyboardInterrupt())
    result = lab.run("task_seconds=1", steps=[Step(4, fault, Named("worker-1"), heal)])
    history = lab.history(result)
    assert result["status"] == "interrupted"
    effect = only(history, "fault.effect")
    assert (effect.data["verified"], effect.data["how"]) == (
        False,
        "it was undone before its 600 s were over",
    )
    # Nothing strikes once the run is over, however long the clock goes on.
    lab.backend.simulated_clock.sleep(1000)
    assert [op.kind for op in history.of("fault.strike")] == []
    assert "kill" not in [call.method for call in lab.backend.calls]


def test_it_strikes_on_time_while_another_node_is_healed(lab: Lab) -> None:
    lab.on_phase["faults"] = lambda: lab.backend.start_takes("worker-2", 30.0)
    _, history = run(lab, "kill worker-2 @4s for 2s; preempt(notice=8s) worker-1 @5s")
    strike = only(history, "fault.strike")
    injected = next(op for op in history.of("fault.inject") if op.data["fault"] == "preempt")
    assert history.at(strike) - history.at(injected) == pytest.approx(8.0, abs=0.05)


def test_a_node_that_another_fault_ends_during_the_notice_is_gone(lab: Lab) -> None:
    _, history = run(lab, "preempt(notice=20s) worker-1 @4s busy; kill worker-1 @8s")
    effect = next(op for op in history.of("fault.effect") if op.data["fault"] == "preempt")
    assert effect.data["verified"]
    assert history.of("fault.strike") == []
    state_of = {op.data["id"]: op.data["verified"] for op in history.of("fault.healed")}
    assert state_of == {"f1": True, "f2": True}


def test_several_are_taken_together(lab: Lab) -> None:
    result, history = run(lab, "preempt(notice=5s) worker-1, worker-2 @5s")
    assert [op.node for op in history.of("fault.strike")] == ["worker-1", "worker-2"]
    assert all(op.data["verified"] for op in history.of("fault.effect", "fault.healed"))
    assert [loss["node"] for loss in result["losses"]] == ["worker-1", "worker-2"]


def test_who_finds_the_run_dead_undoes_it(lab: Lab) -> None:
    backend = lab.backend
    cluster = cluster_up(backend)
    fault = Preempt(notice=600)
    cluster.ray.submit("python -m simulator.innode.stream --run none", "job")
    site = struck(cluster, fault)
    again = fault_from_data(json.loads(json.dumps(fault.to_data())))
    assert again == fault
    done = heal(cluster)
    assert done.problems == []
    assert draining(cluster) == {}
    assert state(cluster, "worker-1") == "alive"
    assert "it was running already" in again.heal(cluster, site, 60)


def test_the_head_is_not_preempted_where_ray_would_be_told(lab: Lab) -> None:
    with pytest.raises(BadInput, match="preempt head: is the head"):
        lab.run(steps=parse_schedule("preempt head @1s"))
    assert Preempt(drain=False).refused_on(topology().nodes()[0]) is None


def test_a_node_that_ray_does_not_hold_alive_is_not_announced(cluster: Cluster) -> None:
    backend = cluster.backend
    assert isinstance(backend, CanKill)
    backend.kill("c", "worker-1")
    cluster.clock.sleep(10)
    with pytest.raises(CannotRun, match="Ray does not hold it alive"):
        Preempt().locate(cluster, Site("worker-1"))
    assert Preempt(drain=False).locate(cluster, Site("worker-1")).details.keys() == {"until"}


# ---- in the language


def test_it_is_written_like_any_other() -> None:
    (step,) = parse_schedule("preempt one(worker) @20s")
    assert step.fault == Preempt()
    assert step.heal == WhenDeclaredDead()
    text = "preempt(notice=90, drain=false) worker-1 @20s while working for 100s"
    (step,) = parse_schedule(
        "preempt(notice=1.5min, drain=false) worker-1 @20s while working for 100s"
    )
    assert str(step) == text
    assert parse_schedule(str(step)) == [step]
    assert step.while_working
    assert (step.fault, step.heal) == (Preempt(90, drain=False), After(100))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("preempt(notice=0s) one", "notice is 0; use more than 0 seconds"),
        ("preempt(notice=-1s) one", "notice is -1"),
        ("preempt(drain=maybe) one", "drain is maybe"),
        (
            "preempt(30s) one @5s for 10s",
            "it is undone after 10s, and strikes only 30s after its notice",
        ),
    ],
)
def test_what_makes_no_sense_is_refused_where_it_is_written(text: str, said: str) -> None:
    with pytest.raises(BadInput, match=said):
        parse_schedule(text)


def test_a_step_that_waits_for_work_is_left_out_without_any(lab: Lab) -> None:
    text = "kill worker-1 @3s while working; kill worker-2 @500s while working"
    result, history = run(lab, text, "tasks=40")
    assert [op.data["id"] for op in history.of("schedule.left_out")] == ["f2"]
    assert finding(result, "fault_hit_work")["verdict"] == "valid"
    result, history = run(lab, "kill worker-2 @500s while working", "tasks=12", name="d")
    assert history.of("fault.") == []
    found = finding(result, "fault_hit_work")
    assert found["verdict"] == "unknown"
    assert "the work was over before the first fault was due" in found["summary"]


def test_a_step_in_yaml_waits_for_work_too(tmp_path: Path) -> None:
    from simulator.schedule import read_schedule

    file = tmp_path / "s.yaml"
    file.write_text(
        "- {fault: preempt, parameters: {notice: 5s}, target: one, at: 3s, while: working}\n"
    )
    (step,) = read_schedule([], file)
    assert step.while_working
    assert step.fault == Preempt(5)
    file.write_text("- {fault: kill, target: one, while: resting}\n")
    with pytest.raises(BadInput, match="while"):
        read_schedule([], file)


# ---- phases


def test_the_phases_tell_notice_drain_end_and_replacement(lab: Lab) -> None:
    result, _history = run(lab, "preempt(notice=6s) worker-1 @5s busy")
    phases = {p["name"]: p for p in result["phases"]}
    names = [p["name"] for p in result["phases"]]
    assert names[:4] == ["notice", "drained", "killed", "effect"]
    assert names[-1] == "replaced"
    recovery = result["recovery"]
    assert 0 <= recovery["notice_s"] < 0.1
    assert 0 < recovery["drained_s"] <= 1.1  # the task that was under way
    assert recovery["killed_s"] == pytest.approx(6.0, abs=0.05)
    assert recovery["effect_s"] == recovery["killed_s"]
    assert recovery["replaced_s"] == recovery["rejoined_s"] > recovery["killed_s"]
    assert recovery["first_retry_s"] is None
    assert phases["first_retry"]["note"].startswith("not seen: no task was under way")
    for name in ("notice", "drained", "killed", "replaced"):
        assert phases[name]["uncertainty"] >= 0
        assert phases[name]["cites"]
    assert finding(result, "recovers")["verdict"] == "valid"


def test_what_a_preemption_without_a_drain_did_not_do_was_not_seen(lab: Lab) -> None:
    result, _ = run(lab, "preempt(notice=6s, drain=false) worker-1 @5s busy")
    phases = {p["name"]: p for p in result["phases"]}
    assert phases["notice"]["seconds"] is None
    assert phases["notice"]["note"] == "not seen: Ray is told nothing"
    assert phases["drained"]["note"] == "not seen: nobody told Ray"
    assert phases["killed"]["seconds"] == pytest.approx(6.0, abs=0.05)


def test_tasks_longer_than_the_notice_are_named(lab: Lab) -> None:
    lab.experiment = load_experiment("spot_preemption")
    result = spot(lab, "task_seconds=8", "notice=2", "at=20")
    found = finding(result, "drained_in_time")
    assert found["verdict"] == "invalid", found
    assert "still under way on spot-3 when it was taken, 2 s after its notice" in found["summary"]
    loss = result["losses"][-1]
    assert loss["drained_s"] is None
    assert "still under way when it was taken" in loss["why"]["drained_s"]
    assert loss["tasks_cut_off"] == 1
    assert result["verdict"] == "invalid"


def test_a_fault_without_notice_has_no_such_phases(lab: Lab) -> None:
    result, _ = run(lab, "kill worker-1 @5s busy")
    assert not {"notice", "drained", "killed", "replaced"} & {p["name"] for p in result["phases"]}


# ---- the experiment


def spot(lab: Lab, *params: str, **more: Any) -> dict[str, Any]:
    experiment = load_experiment("spot_preemption")
    return lab.runner().run(
        RunRequest(
            experiment=experiment,
            params=experiment.parse_params(params),
            topology=more.pop("topology", load_topology("spot")),
            source=experiment.name,
            seed=7,
            name="c",
            **more,
        )
    )


def test_the_ways_of_dying_stand_side_by_side(lab: Lab) -> None:
    result = spot(lab, "unheard=true")
    assert result["verdict"] == "valid", result["findings"]
    losses = {loss["way"]: loss for loss in result["losses"]}
    assert list(losses) == ["kill", "stop", "preempt, drained", "preempt, not told"]
    assert [loss["node"] for loss in losses.values()] == ["spot-1", "spot-2", "spot-3", "spot-1"]
    killed, told = losses["kill"], losses["preempt, drained"]
    assert killed["tasks_cut_off"] == 1
    assert killed["work_seconds_repeated"] > told["work_seconds_repeated"] == 0
    assert killed["why"]["told_s"] == "it came without a notice"
    assert killed["told_s"] is None
    assert told["tasks_cut_off"] == told["tasks_started_after_notice"] == 0
    assert told["idle_s"] == pytest.approx(told["gone_s"] - told["drained_s"])
    for loss in losses.values():
        assert loss["replaced_s"] > loss["gone_s"] >= 0
        assert loss["without_s"] == pytest.approx(loss["replaced_s"] - loss["gone_s"])
        assert (loss["tasks_failed"], loss["calls_failed"]) == (0, 0)
        assert loss["cites"]
    assert losses["stop"]["killed_s"] is None
    assert losses["stop"]["dead_s"] < killed["dead_s"]  # it said good-bye


def test_without_retries_the_tasks_that_failed_are_counted(lab: Lab) -> None:
    result = spot(lab, "max_retries=0")
    losses = {loss["way"]: loss for loss in result["losses"]}
    assert losses["kill"]["tasks_failed"] >= 1
    assert losses["preempt, drained"]["tasks_failed"] == 0
    assert finding(result, "no_task_lost")["verdict"] == "invalid"


def test_a_topology_without_spot_machines_is_refused() -> None:
    experiment = load_experiment("spot_preemption")
    params = experiment.parse_params([])
    (problem,) = experiment.problems(params, load_topology("default"))
    assert "has no spot machine" in str(problem)
    alone = load_topology("spot").with_workers(0)
    assert len(experiment.problems(params, alone)) == 2


# ---- what the machines cost


def test_the_bill_is_paid_for_the_time_that_machines_were_there(lab: Lab) -> None:
    result = spot(lab)
    costs = result["costs"]
    groups = {g["group"]: g for g in costs["groups"]}
    seconds = costs["seconds"]
    assert groups["steady"]["node_seconds"] == pytest.approx(seconds, abs=0.01)
    away = sum(loss["replaced_s"] - loss["gone_s"] for loss in result["losses"])
    # From the engine's start on it is paid for, before it has joined.
    assert 3 * seconds - away < groups["spot"]["node_seconds"] < 3 * seconds
    paid = (groups["spot"]["node_seconds"] * 0.1 + seconds * 0.3) / 3600
    assert costs["paid"] == pytest.approx(paid, rel=1e-3)
    assert costs["on_demand"] == pytest.approx(seconds * 4 * 0.3 / 3600, rel=1e-3)
    assert costs["saved"] == pytest.approx(costs["on_demand"] - costs["paid"], abs=1e-8)
    told = result["losses"][2]
    assert costs["idle"] == pytest.approx(told["idle_s"] * 0.1 / 3600, rel=1e-3)
    again = sum(loss["work_seconds_repeated"] for loss in result["losses"])
    assert costs["repeated"] == pytest.approx(again * 0.1 / 3600, rel=1e-2)
    assert costs["unpriced"] == ["head"]
    assert costs["worth_it"] is True
    assert costs["why"] == {}


def test_spot_machines_at_the_price_of_others_are_not_worth_it(lab: Lab) -> None:
    made = load_topology("spot")
    spot_group = made.worker_groups[0].model_copy(update={"price": 0.3})
    dear = made.model_copy(update={"worker_groups": [spot_group, made.worker_groups[1]]})
    result = spot(lab, topology=dear)
    assert result["costs"]["worth_it"] is False


def test_what_a_topology_does_not_say_is_not_known(lab: Lab) -> None:
    made = load_topology("spot")
    bare = made.worker_groups[0].model_copy(update={"on_demand_price": None})
    result = spot(
        lab, topology=made.model_copy(update={"worker_groups": [bare, made.worker_groups[1]]})
    )
    costs = result["costs"]
    assert costs["paid"] is not None
    for name in ("on_demand", "saved", "on_demand_per_work_hour", "worth_it"):
        assert costs[name] is None
    assert "on_demand_price in its topology" in costs["why"]["saved"]
    result = Lab(lab.root, fake()).run()
    assert "costs" not in result


def test_a_run_whose_work_nobody_saw_end_has_no_bill(lab: Lab) -> None:
    from simulator.checkers.base import RunView
    from simulator.checkers.costs import costs_of

    result = spot(lab)
    run = lab.latest()
    ended = {"driver.end", "workload.end"}
    cut = History(op for op in lab.history(result) if op.kind not in ended)
    costs = costs_of(RunView(cut, run.spec()))
    assert costs is not None
    data = costs.to_data()
    assert data["paid"] is None
    assert data["why"]["paid"] == "nobody saw the work end"
    assert all(g["node_seconds"] is None for g in data["groups"])


def test_lost_lines_leave_the_counts_open(lab: Lab) -> None:
    from simulator.checkers.base import RunView
    from simulator.checkers.losses import check_drained_in_time, loss_facts

    result = spot(lab)
    ops = lab.history(result).ops
    gone = next(op for op in ops if op.kind == "task.end")
    view = RunView(History(op for op in ops if op is not gone), lab.latest().spec())
    told = loss_facts(view)[-1]
    assert told["work_seconds_repeated"] is None
    assert told["tasks_cut_off"] is None
    assert "missing" in told["why"]["tasks_cut_off"]
    assert told["gone_s"] is not None
    assert check_drained_in_time(view).verdict.value == "unknown"


# ---- a clock that strikes


def test_the_machines_own_clock_strikes_by_itself() -> None:
    import threading

    clock, struck = RealClock(), threading.Event()
    clock.after(0.01, struck.set)
    assert struck.wait(10)
    never = threading.Event()
    clock.after(30, never.set).cancel()
    assert not never.is_set()


def test_the_kill_is_the_same_fault_as_ever() -> None:
    assert Kill().announced_s == 0
    assert replace(Preempt(), notice=3).announced_s == 3


def test_spot_gpu_machines_are_needed_for_the_hybrid_cluster() -> None:
    experiment = load_experiment("hybrid_spot")
    params = experiment.parse_params(["losses=2", "gap=30"])
    assert experiment.problems(params, load_topology("hybrid_spot")) == ()
    (problem,) = experiment.problems(params, load_topology("spot"))
    assert "has no group gpu of spot machines with a price" in str(problem)
    (step,) = experiment.schedule(params, load_topology("hybrid_spot"))
    assert str(step) == "preempt(notice=8) one(gpu) @15s every 30s 2 times busy"
