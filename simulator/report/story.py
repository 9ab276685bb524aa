"""A run told in plain sentences, for people who know nothing of this project.

The same sentences open the HTML report and the terminal's. They say only what was recorded:
what was not seen is named as not seen.
"""

from __future__ import annotations

from itertools import pairwise

from simulator.checkers.base import Verdict
from simulator.checkers.phases import Phase
from simulator.report import placement, program
from simulator.report.run import STATUSES, Run, number
from simulator.report.timeline import FAULT_WORDS, FaultBand, Outcome, Timeline

VERDICT_MEANS = {
    Verdict.VALID: "Every check held.",
    Verdict.INVALID: "Something that was promised did not hold.",
    Verdict.UNKNOWN: "The evidence proves it neither way, so this does not count as a pass.",
}

GPU_MEANS = {
    "simulated": "Declared to Ray without a device: scheduling is real, GPU work is not.",
    "real": "A device of this machine was passed to the head.",
    "none": "No node offers a GPU.",
}


def seconds(value: float) -> str:
    """A duration as a person wants it: two digits below 10 s, one below 100 s, then none."""
    size = abs(value)
    return (
        f"{value:.2f} s" if size < 9.995 else f"{value:.1f} s" if size < 99.95 else f"{value:.0f} s"
    )


def uncertainty(phase: Phase) -> str:
    if phase.uncertainty <= 0:
        return ""
    return (
        f"± {phase.uncertainty:.3f} s"
        if phase.uncertainty < 0.1
        else f"± {phase.uncertainty:.2f} s"
    )


def plural(count: int, one: str, many: str = "") -> str:
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def story(run: Run, timeline: Timeline) -> str:
    """What happened, in one to four sentences."""
    parts = [
        *_faults(run, timeline),
        *_consequences(run, timeline),
        *_end(run, timeline),
        program.told(run),
        placement.told(run),
    ]
    return " ".join(part for part in parts if part)


def why(run: Run) -> str:
    """What the verdict rests on, in one sentence."""
    if not run.judged:
        return "Nothing was judged yet."
    decisive = [f for f in run.findings if f.verdict is run.verdict]
    if run.verdict is Verdict.VALID:
        return (
            f"All {len(run.findings)} checks held." if len(run.findings) > 1 else "The check held."
        )
    if not decisive:
        return VERDICT_MEANS[run.verdict]
    total = f"{len(decisive)} of {plural(len(run.findings), 'check')}"
    said = decisive[0].summary.rstrip(".") or decisive[0].check
    outcome = "failed" if run.verdict is Verdict.INVALID else "could not be decided"
    return f"{total} {outcome}: {said}."


def status_means(run: Run) -> str:
    text = STATUSES.get(run.status, f"The run's status is {run.status}.")
    if run.status == "completed":
        return ""
    return f"{text} It said: {run.error}" if run.error else text


def oversubscription(run: Run) -> str:
    """What the machine's size means for the figures; empty when it is not known."""
    host = run.spec.get("host")
    if not isinstance(host, dict):
        return ""
    cores, slots = number(host.get("cores")), number(host.get("slots"))
    ratio = number(host.get("oversubscription"))
    if not cores or slots is None:
        return ""
    ratio = slots / cores if ratio is None else ratio
    fact = f"{plural(round(slots), 'task slot')} on a machine with {plural(round(cores), 'core')}"
    if ratio <= 1:
        return f"{fact}: every slot has a core of its own ({ratio:.1f} slots per core)."
    return (
        f"{fact}: {ratio:.1f} slots share each core. Tasks mostly hold their slot and compute "
        "little, so order and recovery times stand; raw computing speed does not carry over."
    )


def origin(run: Run) -> str:
    """What the seconds of the phases are counted from."""
    return "the first wave of work" if run.grows_unbroken else "the injection"


def what_phases_tell(run: Run) -> str:
    """What the phases are of, as a heading."""
    return "Growth" if run.grows_unbroken else "Recovery"


def longest_wait(run: Run) -> str:
    """Where most of the seconds went: the longest stretch between two phases."""
    seen = run.seen
    if len(seen) < 2:
        return ""
    times = [0.0, *(p.seconds or 0.0 for p in seen)]
    gaps = [after - before for before, after in pairwise(times)]
    longest = max(range(len(gaps)), key=gaps.__getitem__)
    total = times[-1]
    if total <= 0:
        return ""
    since = origin(run) if longest == 0 else f"“{seen[longest - 1].title}”"
    return (
        f"The longest wait was {seconds(gaps[longest])} ({gaps[longest] / total:.0%} of it): "
        f"from {since} to “{seen[longest].title}”."
    )


def _faults(run: Run, timeline: Timeline) -> list[str]:
    if not len(run.history):
        return []
    if not timeline.faults:
        skipped = run.history.first("fault.skipped")
        if skipped is not None:
            return [
                f"The planned fault did not happen: {skipped.data.get('why', 'no reason given')}."
            ]
        if run.breaks_nothing:
            return ["No fault was injected: this experiment breaks nothing."]
        planned = run.spec.get("schedule")
        return ["The planned fault was never injected." if planned else "No fault was injected."]
    return [_fault(f, timeline) for f in timeline.faults[:3]] + (
        [f"{plural(len(timeline.faults) - 3, 'more fault')} followed."]
        if len(timeline.faults) > 3
        else []
    )


def _fault(fault: FaultBand, timeline: Timeline) -> str:
    who = fault.target or "The cluster"
    verb = FAULT_WORDS.get(fault.fault)
    what = f"was {verb}" if verb else f"was hit by the fault {fault.fault}"
    text = f"{who} {what} {seconds(fault.injected)} into the work"
    if fault.fault == "preempt" and fault.verified:
        gone = f"It was gone {seconds(fault.start - fault.injected)} after its notice"
        with_it = f" with {plural(fault.hit, 'task')}" if fault.hit else ", and no task with it"
        return f"{text}. {gone}{with_it}."
    if not fault.verified:
        return f"{text}, but that it took effect was not seen."
    if fault.hit:
        return f"{text}, while it ran {plural(fault.hit, 'task')}."
    running = any(
        e.node == fault.target and e.start <= fault.start < e.end for e in timeline.executions
    )
    return f"{text}." if running or not timeline.executions else f"{text}, when it ran no task."


def _consequences(run: Run, timeline: Timeline) -> list[str]:
    if not timeline.faults:
        return []
    phases = {p.name: p.seconds for p in run.phases}
    parts = []
    declared = phases.get("declared_dead")
    if declared is not None:
        who = "it" if len(timeline.faults) == 1 else timeline.faults[0].target or "it"
        parts.append(f"Ray declared {who} dead after {seconds(declared)}.")
    again = timeline.count(Outcome.AGAIN)
    lost = number(run.metrics.get("work_seconds_lost"))
    if again:
        text = f"{plural(again, 'task')} {'was' if again == 1 else 'were'} run again"
        parts.append(f"{text}; {lost:.1f} seconds of work were lost." if lost else f"{text}.")
    return parts


def _end(run: Run, timeline: Timeline) -> list[str]:
    if not timeline.faults or not run.phases:
        return []
    full = next((p for p in run.phases if p.name == "full_throughput"), None)
    rejoined = next((p for p in run.phases if p.name == "rejoined"), None)
    word = FAULT_WORDS.get(timeline.faults[0].fault, "fault")
    after = {
        "killed": "kill",
        "stopped": "stop",
        "paused": "pause",
        "restarted": "restart",
        "preempted": "notice",
    }.get(word, word)
    if full is not None and full.seconds is not None:
        return [f"The cluster was whole again {seconds(full.seconds)} after the {after}."]
    if rejoined is not None and rejoined.seconds is not None:
        text = f"The node was back {seconds(rejoined.seconds)} after the {after}"
        missing = full is not None and full.mandatory
        return [f"{text}; full throughput was not seen again." if missing else f"{text}."]
    if any(p is not None and p.mandatory for p in (full, rejoined)):
        return ["That the cluster became whole again was not seen."]
    return []
