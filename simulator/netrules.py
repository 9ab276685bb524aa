"""What can be done to a node's network, as values, and the iptables and tc commands that do it.

Pure: text in, text out; who runs the commands, and where, is a backend's business. They are meant for a
network namespace that has one node in it and nothing else of importance: chains and a queueing discipline
of ours, told from anything else by their names.

Every rule is there under the id of the fault that wants it, so that taking one away leaves the others:

- A `Drop` is two chains of its own, hooked in before everything else, so that connections that exist are
  cut like new ones. Written by one iptables-restore, it is there as a whole or not at all.
- A `Shape` cannot be: a device has one queueing discipline, and that has no room for a name. So each shape
  stands as a comment in a chain that no packet ever passes, and the discipline is made from all of them
  together, anew whenever one comes or goes: netem at the root with tbf below it, or the one that is
  needed. Of several limits the lowest holds, delays add up, and the other shares combine as chances do.

What is said to be there was read from the kernel (`read`), not remembered.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import pairwise
from math import prod
from typing import Any, Literal, get_args

Direction = Literal["both", "in", "out"]
Feature = Literal["drop", "share", "rate", "delay"]

DIRECTIONS: tuple[Direction, ...] = get_args(Direction)
FEATURES: tuple[Feature, ...] = get_args(Feature)

#: What each feature is called where it is missing, and the kernel's module that has it.
MEANS: Mapping[Feature, str] = {
    "drop": "iptables (nf_tables or ip_tables)",
    "share": "iptables' match statistic (xt_statistic)",
    "rate": "tc tbf (sch_tbf)",
    "delay": "tc netem (sch_netem)",
}

TOOLS = ("iptables-nft", "iptables-legacy")

_PREFIX = "RS-"
_COMMENT = "ray-sim"
_ROOT, _LEAF = "7a51:", "7a52:"  # handles of our own disciplines
_QUEUE = 100_000  # packets that netem may hold back: its default of 1000 would drop some
_BURST, _LATENCY_MS = 16_384, 100


@dataclass(frozen=True, slots=True, order=True)
class Flow:
    """Packets between a node and an address: all of them, or those of one TCP port of either side.

    Attributes
    ----------
    remote_port, local_port
        At most one of them: a port of the other side's, or one of the node's own. 0 is any.
    """

    address: str
    remote_port: int = 0
    local_port: int = 0


@dataclass(frozen=True, slots=True)
class Drop:
    """Packets of these flows get lost: all, or `percent` of them, drawn one by one.

    Attributes
    ----------
    direction
        ``in`` is what the node would receive, ``out`` what it sends.
    """

    flows: tuple[Flow, ...]
    direction: Direction = "both"
    percent: float = 100.0

    @property
    def features(self) -> tuple[Feature, ...]:
        return ("drop",) if self.percent >= 100 else ("drop", "share")

    def covers(self, wanted: Drop) -> bool:
        """Whether all that `wanted` drops is dropped."""
        return (
            set(wanted.flows) <= set(self.flows)
            and self.direction in ("both", wanted.direction)
            and abs(self.percent - wanted.percent) < 0.01
        )


@dataclass(frozen=True, slots=True)
class Shape:
    """What becomes of everything that the node sends. Nothing, while all of it is 0.

    Attributes
    ----------
    rate
        At most so many bits a second.
    delay, jitter
        Seconds that every packet waits, and by how much that varies up or down.
    loss, loss_after_loss
        Percent of packets that get lost, and by how many percent each depends on the one before it.
    reorder
        Percent of packets that go at once, while the others wait for `delay`.
    duplicate
        Percent of packets that are sent twice.
    """

    rate: int = 0
    delay: float = 0.0
    jitter: float = 0.0
    loss: float = 0.0
    loss_after_loss: float = 0.0
    reorder: float = 0.0
    duplicate: float = 0.0

    @property
    def features(self) -> tuple[Feature, ...]:
        """``drop`` as well: the packet filter is where the shape is noted down."""
        kinds: tuple[Feature, ...] = ("drop",)
        if self.rate:
            kinds += ("rate",)
        if self.netem:
            kinds += ("delay",)
        return kinds

    @property
    def netem(self) -> bool:
        """Whether it takes more than a limit of the rate."""
        return any((self.delay, self.jitter, self.loss, self.reorder, self.duplicate))


NetRule = Drop | Shape


# ---- rates, as people write them

_UNITS = {"kbit": 10**3, "mbit": 10**6, "gbit": 10**9}


def parse_rate(text: str) -> int:
    """Bits a second.

    Raises
    ------
    ValueError
        It is not a positive number and one of kbit, mbit, gbit.

    Examples
    --------
    >>> parse_rate("1.5mbit")
    1500000
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(kbit|mbit|gbit)\s*", text, re.IGNORECASE)
    rate = round(float(match[1]) * _UNITS[match[2].lower()]) if match else 0
    if not rate:
        raise ValueError(f'is "{text}"; use a number with kbit, mbit or gbit, such as 10mbit')
    return rate


# ---- what is there


@dataclass(frozen=True, slots=True)
class Device:
    """A network device: its name, its IPv4 address, and the kind of its discipline if that is ours."""

    name: str
    address: str
    disciplines: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """What `read` found in a namespace.

    Attributes
    ----------
    chains
        The rules of every chain of ours, as words, by its name.
    hooks
        Which chains INPUT and OUTPUT go through, as pairs such as ``("INPUT", "RS-f1-in")``.
    """

    chains: Mapping[str, Sequence[Sequence[str]]] = field(default_factory=dict)
    hooks: Sequence[tuple[str, str]] = ()
    devices: Sequence[Device] = ()

    @property
    def untouched(self) -> bool:
        """Whether nothing of ours is there, in whatever state."""
        return not (self.chains or self.hooks or any(d.disciplines for d in self.devices))

    @property
    def sites(self) -> set[str]:
        """The faults that have something there, whole or not."""
        comments = (_comment_of(words) for lines in self.chains.values() for words in lines)
        return {comment.partition(":")[0] for comment in comments if comment}

    @property
    def rules(self) -> dict[str, NetRule]:
        """What holds, by the id of the fault that wants it.

        What is there only in part is not listed, or only the part that holds: a chain that nothing
        leads to drops nothing, and a shape that the device does not have shapes nothing.
        """
        found: dict[str, NetRule] = {
            site: shape for site, shape in self.shapes.items() if self.shaped(shape)
        }
        inward, outward = self._dropped("in"), self._dropped("out")
        for site in {**inward, **outward}:
            if site not in outward or site not in inward:
                side: Direction = "in" if site in inward else "out"
                flows, percent = {**inward, **outward}[site]
                found[site] = Drop(tuple(sorted(flows)), side, percent)
            elif both := inward[site][0] & outward[site][0]:
                found[site] = Drop(tuple(sorted(both)), "both", inward[site][1])
        return found

    def _dropped(self, side: Direction) -> dict[str, tuple[set[Flow], float]]:
        """By fault, what really is dropped on one side, and how many percent of it."""
        dropped: dict[str, tuple[set[Flow], float]] = {}
        for hook, chain in self.hooks:
            for words in self.chains.get(chain, ()) if hook == _hook(side) else ():
                site = _comment_of(words)
                if site and list(words[-2:]) == ["-j", "DROP"]:
                    flow, percent = _flow_of(words)
                    flows, _ = dropped.setdefault(site, (set(), percent))
                    flows.add(flow)
        return dropped

    @property
    def shapes(self) -> dict[str, Shape]:
        """Every shape that is noted down, whether the device has it or not, by its fault's id."""
        return {
            site: shape
            for name, lines in self.chains.items()
            if name.endswith("-tc")
            for words in lines
            for site, _, text in [_comment_of(words).partition(":")]
            if site and (shape := _shape_of(text)) is not None
        }

    def shaped(self, shape: Shape) -> bool:
        """Whether the device has a discipline that does at least what `shape` asks for."""
        if not self.devices or not all(d.disciplines for d in self.devices):
            return False
        for device in self.devices:
            tbf = device.disciplines.get("tbf")
            if shape.rate and (tbf is None or tbf.get("rate", 0) * 8 > shape.rate * 1.01):
                return False
            if shape.netem and "netem" not in device.disciplines:
                return False
        return True


#: Prints all that `read` wants to know; the tool that speaks to the packet filter is to be filled in.
_MARK = "--ray-sim--"
_READ = (
    f"{{tool}}-save -t filter && echo {_MARK} && tc -j qdisc show && echo {_MARK} && ip -j -4 addr"
)


def read_script(tool: str) -> str:
    """A shell script whose output `read` understands."""
    return _READ.format(tool=tool)


def read(text: str) -> Found:
    """What the output of `read_script` says.

    Raises
    ------
    ValueError
        It is something else.
    """
    try:
        saved, disciplines, addresses = text.split(_MARK)
        queues = json.loads(disciplines)
        links = json.loads(addresses)
    except ValueError as error:
        raise ValueError(f"this is not the state of a network namespace: {text[:200]!r}") from error
    chains: dict[str, list[list[str]]] = {}
    hooks: list[tuple[str, str]] = []
    for line in saved.splitlines():
        words = shlex.split(line) if line[:1] in (":", "-") else []
        if line.startswith(f":{_PREFIX}"):
            chains[words[0][1:]] = []
        elif words[:1] == ["-A"] and words[1] in chains:
            chains[words[1]].append(words[2:])
        elif words[:1] == ["-A"] and words[2:3] == ["-j"] and words[3].startswith(_PREFIX):
            hooks.append((words[1], words[3]))
    devices = []
    for link in links:
        found = [a["local"] for a in link.get("addr_info", ()) if a.get("scope") == "global"]
        if found:
            ours = {
                q["kind"]: q.get("options", {})
                for q in queues
                if q.get("dev") == link["ifname"] and q.get("handle") in (_ROOT, _LEAF)
            }
            devices.append(Device(link["ifname"], found[0], ours))
    return Found(chains, hooks, devices)


# ---- the commands


def add_script(tool: str, cluster: str, site: str, rule: NetRule, found: Found) -> str:
    """A shell script that puts a rule there; one of the same fault that is there already is replaced."""
    if isinstance(rule, Drop):
        return _restore(tool, _drop_lines(cluster, site, rule, found))
    shapes = {**found.shapes, site: rule}
    note = f"{_COMMENT}:{cluster}:{site}:{_text_of(rule)}"
    chain = chain_of(site, "tc")
    lines = [f":{chain} - [0:0]", f'-A {chain} -m comment --comment "{note}"']
    wanted = " && ".join([*_disciplines(shapes.values(), found), _restore(tool, lines)])
    # A kernel that cannot do it must not cost those that hold already what they have.
    gone = [f"tc qdisc del dev {device.name} root 2>/dev/null" for device in found.devices]
    bare = replace(found, devices=[replace(device, disciplines={}) for device in found.devices])
    as_before = "; ".join([*gone, *_disciplines(found.shapes.values(), bare), "false"])
    return f"{{ {wanted}; }} || {{ {as_before}; }}"


def remove_script(tool: str, site: str, found: Found) -> str:
    """A shell script that takes a fault's rule away, and nothing else; "" if there is nothing."""
    chains = [c for side in ("in", "out", "tc") if (c := chain_of(site, side)) in found.chains]
    if not chains:
        return ""
    steps = []
    if chain_of(site, "tc") in chains:
        left = {s: shape for s, shape in found.shapes.items() if s != site}
        steps = _disciplines(left.values(), found)
    return " && ".join([*steps, _restore(tool, _gone_lines(chains, found))])


def clear_script(tool: str, found: Found) -> str:
    """A shell script that takes all of ours away, whoever's it is; "" if there is nothing."""
    if found.untouched:
        return ""
    steps = _disciplines([], found)
    if found.chains or found.hooks:
        steps.append(_restore(tool, _gone_lines(found.chains, found)))
    return " && ".join(steps)


def chain_of(site: str, side: str) -> str:
    """The name of one of a fault's chains.

    Raises
    ------
    ValueError
        The fault's id cannot be part of one: the kernel takes 28 characters, and ours are four kinds.
    """
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,20}", site):
        raise ValueError(
            f"{site!r} is no id of a fault: letters, digits, _ . - and at most 20 of them"
        )
    return f"{_PREFIX}{site}-{side}"


def _hook(side: Direction) -> str:
    return "INPUT" if side == "in" else "OUTPUT"


def _drop_lines(cluster: str, site: str, rule: Drop, found: Found) -> list[str]:
    """Replaces both chains, also where the fault had another direction before."""
    comment = f'-m comment --comment "{_COMMENT}:{cluster}:{site}"'
    lines: list[str] = []
    sides: tuple[Direction, ...] = ("in", "out")
    for side in sides:
        chain = chain_of(site, side)
        if rule.direction not in ("both", side):
            if chain in found.chains:
                lines += _gone_lines([chain], found)
            continue
        lines.append(f":{chain} - [0:0]")
        for flow in rule.flows:
            address, port = ("-s", "sport") if side == "in" else ("-d", "dport")
            own = "dport" if side == "in" else "sport"
            words = [f"-A {chain} {address} {flow.address}/32"]
            if flow.remote_port:
                words.append(f"-p tcp -m tcp --{port} {flow.remote_port}")
            elif flow.local_port:
                words.append(f"-p tcp -m tcp --{own} {flow.local_port}")
            if rule.percent < 100:
                words.append(f"-m statistic --mode random --probability {rule.percent / 100:.8f}")
            lines.append(" ".join([*words, comment, "-j DROP"]))
        if (_hook(side), chain) not in found.hooks:
            lines.append(f"-I {_hook(side)} 1 -j {chain}")
    return lines


def _gone_lines(chains: Iterable[str], found: Found) -> list[str]:
    names = list(chains)
    unhooked = [f"-D {hook} -j {chain}" for hook, chain in found.hooks if chain in names]
    emptied = [line for chain in names for line in (f":{chain} - [0:0]", f"-X {chain}")]
    return [*unhooked, *emptied]


def _restore(tool: str, lines: Sequence[str]) -> str:
    text = "".join(f"{line}\n" for line in ["*filter", *lines, "COMMIT"])
    return f"printf %s {shlex.quote(text)} | {tool}-restore --wait --noflush"


# ---- queueing disciplines


def combined(shapes: Iterable[Shape]) -> Shape:
    """What several shapes come to together.

    Examples
    --------
    >>> combined([Shape(rate=8, delay=1), Shape(rate=4, delay=1, loss=50), Shape(loss=50)])
    Shape(rate=4, delay=2.0, jitter=0.0, loss=75.0, loss_after_loss=0.0, reorder=0.0, duplicate=0.0)
    """
    given = list(shapes)

    def either(name: str) -> float:
        spared = prod(1 - float(getattr(s, name)) / 100 for s in given)
        return round(100 - 100 * spared, 6)

    return Shape(
        rate=min((s.rate for s in given if s.rate), default=0),
        delay=sum(s.delay for s in given),
        jitter=sum(s.jitter for s in given),
        loss=either("loss"),
        loss_after_loss=max((s.loss_after_loss for s in given), default=0),
        reorder=either("reorder"),
        duplicate=either("duplicate"),
    )


def _disciplines(shapes: Iterable[Shape], found: Found) -> list[str]:
    """Commands after which every device has exactly these, each without what it had of ours."""
    wanted = combined(shapes)
    steps = []
    for device in found.devices:
        if device.disciplines:
            steps.append(f"tc qdisc del dev {device.name} root")
        place, handle = "root", _ROOT
        if wanted.netem:
            steps.append(
                f"tc qdisc add dev {device.name} {place} handle {handle} {netem_words(wanted)}"
            )
            place, handle = f"parent {_ROOT}1", _LEAF
        if wanted.rate:
            steps.append(
                f"tc qdisc add dev {device.name} {place} handle {handle} {tbf_words(wanted.rate)}"
            )
    return steps


def tbf_words(rate: int) -> str:
    """A token bucket: what does not fit waits for at most a tenth of a second, and is dropped then."""
    burst = max(_BURST, rate // 8 // 100)  # a hundredth of a second's worth: timers are no finer
    return f"tbf rate {rate}bit burst {burst} latency {_LATENCY_MS}ms"


def netem_words(shape: Shape) -> str:
    """A discipline that delays, loses, reorders or doubles.

    Examples
    --------
    >>> netem_words(Shape(delay=0.1, jitter=0.02, reorder=25))
    'netem limit 100000 delay 100000us 20000us reorder 25%'
    """
    words = [f"netem limit {_QUEUE}"]
    if shape.delay or shape.jitter:
        words.append(f"delay {_microseconds(shape.delay)}")
        if shape.jitter:
            words.append(_microseconds(shape.jitter))
    if shape.loss:
        words.append(f"loss {_percent(shape.loss)}")
        if shape.loss_after_loss:
            words.append(_percent(shape.loss_after_loss))
    if shape.duplicate:
        words.append(f"duplicate {_percent(shape.duplicate)}")
    if shape.reorder:
        words.append(f"reorder {_percent(shape.reorder)}")
    return " ".join(words)


def _microseconds(seconds: float) -> str:
    return f"{round(seconds * 1e6)}us"


def _percent(share: float) -> str:
    return f"{share:g}%"


# ---- a shape as a comment, and a rule read back


def _text_of(shape: Shape) -> str:
    values = {f.name: getattr(shape, f.name) for f in fields(shape)}
    return ",".join(f"{name}={value}" for name, value in values.items() if value)


def _shape_of(text: str) -> Shape | None:
    try:
        values = {
            name: float(value) for name, _, value in (p.partition("=") for p in text.split(","))
        }
        return Shape(rate=int(values.pop("rate", 0)), **values)
    except (ValueError, TypeError):
        return None


def _comment_of(words: Sequence[str]) -> str:
    """``<site>`` or ``<site>:<shape>`` of a rule of ours, else ""."""
    if "--comment" not in words:
        return ""
    mark, _, rest = words[words.index("--comment") + 1].partition(":")
    return rest.partition(":")[2] if mark == _COMMENT else ""


def _flow_of(words: Sequence[str]) -> tuple[Flow, float]:
    """What a rule drops, and how many percent of it; `words` as iptables-save prints them."""
    given = dict(pairwise(words))
    inward = "-s" in given
    address = given.get("-s" if inward else "-d", "").removesuffix("/32")
    theirs, ours = ("--sport", "--dport") if inward else ("--dport", "--sport")
    percent = 100 * float(given.get("--probability", 1))
    flow = Flow(address, int(given.get(theirs, 0)), int(given.get(ours, 0)))
    return flow, round(percent, 4)


# ---- what the kernel can do


def probe_script() -> str:
    """A shell script that tries everything in a namespace that nobody uses; see `read_probe`."""
    filters = "; ".join(
        f"try {tool} {tool} -w -A INPUT -p tcp --dport 1 -m comment --comment {_COMMENT} -j DROP; "
        f"try {tool}+share {tool} -w -A INPUT -m statistic --mode random --probability 0.5 -j DROP"
        for tool in TOOLS
    )
    tbf, netem = tbf_words(10**6), netem_words(Shape(delay=0.001))
    return (
        'try() { name=$1; shift; said=$("$@" 2>&1) && said=yes; '
        'printf "%s\\t%s\\n" "$name" "$(echo "$said" | head -n 1)"; }; '
        f"{filters}; "
        f"try rate tc qdisc add dev lo root {tbf}; tc qdisc del dev lo root 2>/dev/null; "
        f"try delay tc qdisc add dev lo root {netem}"
    )


@dataclass(frozen=True, slots=True)
class Ability:
    """What can be done to networks on a machine.

    Attributes
    ----------
    tool
        The iptables that its kernel understands; "" if there is none.
    lacks
        The features that it does not have, with the kernel's own words.
    """

    tool: str
    lacks: Mapping[Feature, str] = field(default_factory=dict)


def read_probe(text: str) -> Ability:
    """What the output of `probe_script` says."""
    said = dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line)
    tool = next((t for t in TOOLS if said.get(t) == "yes"), "")
    answers: dict[Feature, str] = {
        "drop": "yes" if tool else said.get(TOOLS[0], ""),
        "share": said.get(f"{tool or TOOLS[0]}+share", ""),
        "rate": said.get("rate", ""),
        "delay": said.get("delay", ""),
    }
    return Ability(
        tool, {feature: why or "no answer" for feature, why in answers.items() if why != "yes"}
    )


# ---- connections that got no answer


def unanswered(table: str, address: str) -> int:
    """How many TCP connections with an address have sent something again and still wait for an answer.

    Parameters
    ----------
    table
        The text of ``/proc/net/tcp`` of a namespace, and of ``/proc/net/tcp6``: Ray's sockets speak both.

    Examples
    --------
    >>> head = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt"
    >>> line = "0: 0200000A:A1B2 0100000A:18EB 01 00000042:00000000 01:00000010 00000003 0 0 1"
    >>> unanswered(f"{head}\\n{line}", "10.0.0.1"), unanswered(f"{head}\\n{line}", "10.0.0.9")
    (1, 0)
    """
    number = "".join(f"{int(part):02X}" for part in reversed(address.split(".")))
    count = 0
    for line in table.splitlines():
        words = line.split()
        if len(words) > 6 and words[2].partition(":")[0].endswith(number) and words[3] == "01":
            waits = int(words[4].split(":")[0], 16) > 0
            # What the node's own packet filter drops counts as not sent yet, and is probed for.
            count += waits and (int(words[6], 16) > 0 or words[5].startswith("04:"))
    return count
