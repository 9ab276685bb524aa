"""The commands that shape a network, and what is made of the kernel's answers; nothing is run here."""

from __future__ import annotations

import json
import re
import shlex
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator import netrules
from simulator.netrules import Device, Drop, Flow, Found, Shape

TOOL = "iptables-nft"
ETH0 = Device("eth0", "10.0.0.2")


def restored(script: str) -> list[str]:
    """The lines that a script hands to iptables-restore."""
    words = shlex.split(script.split(" && ")[-1])
    assert words[:2] == ["printf", "%s"]
    assert words[3:] == ["|", f"{TOOL}-restore", "--wait", "--noflush"]
    lines = words[2].splitlines()
    assert (lines[0], lines[-1]) == ("*filter", "COMMIT")
    return lines[1:-1]


class Refused(Exception):
    """The kernel does not know what it was asked for."""


class Kernel:
    """A packet filter and a device that do what the commands say, and print it as the real ones do."""

    def __init__(self, *, knows: tuple[str, ...] = ("tbf", "netem")) -> None:
        self.chains: dict[str, list[str]] = {}
        self.hooks: list[tuple[str, str]] = []
        self.disciplines: list[tuple[str, str, str]] = []  # handle, kind, all of it
        self.knows = knows

    def run(self, script: str) -> None:
        either = re.fullmatch(r"\{ (.*); \} \|\| \{ (.*); \}", script, re.DOTALL)
        if either is None:
            self._all(script.split(" && "))
            return
        try:
            self._all(either[1].split(" && "))
        except Refused:
            *commands, last = either[2].split("; ")
            assert last == "false"
            self._all(commands)
            raise

    def _all(self, commands: list[str]) -> None:
        for command in commands:
            if command.startswith("tc "):
                self._tc(command.split())
            elif command:
                self._restore(restored(command))

    def _tc(self, words: list[str]) -> None:
        assert words[1] == "qdisc"
        if words[2] == "del":
            assert words[3:6] == ["dev", "eth0", "root"]
            assert self.disciplines or words[6:] == ["2>/dev/null"], "there is none"
            self.disciplines.clear()
            return
        assert words[2:5] == ["add", "dev", "eth0"]
        at_root = words[5] == "root"
        assert at_root is not bool(self.disciplines), "one device, one root"
        handle, kind = (words[7], words[8]) if at_root else (words[8], words[9])
        if not at_root:
            assert words[6] == f"{self.disciplines[0][0]}1"
        if kind not in self.knows:
            raise Refused
        self.disciplines.append((handle, kind, " ".join(words[words.index(kind) :])))

    def _restore(self, lines: list[str]) -> None:
        for line in lines:
            words = line.split()
            if line.startswith(":"):
                self.chains[words[0][1:]] = []
            elif words[0] == "-A":
                self.chains[words[1]].append(" ".join(words[2:]))
            elif words[0] == "-I":
                assert words[2] == "1"
                self.hooks.insert(0, (words[1], words[4]))
            elif words[0] == "-D":
                self.hooks.remove((words[1], words[3]))
            else:
                assert words[0] == "-X"
                assert not self.chains.pop(words[1])
                assert words[1] not in [chain for _, chain in self.hooks]

    def read(self) -> Found:
        saved = ["# a comment that isn't a rule", "*filter", ":INPUT ACCEPT [0:0]"]
        saved += [f":{chain} - [0:0]" for chain in self.chains]
        saved += [f"-A {hook} -j {chain}" for hook, chain in self.hooks]
        saved += [f"-A {chain} {rule}" for chain, rules in self.chains.items() for rule in rules]
        rates = {
            k: text.split("rate ")[1].split("bit")[0]
            for _, k, text in self.disciplines
            if k == "tbf"
        }
        queues: list[dict[str, Any]] = [{"kind": "noqueue", "handle": "0:", "dev": "lo"}]
        queues += [
            {"kind": kind, "handle": handle, "dev": "eth0",
             "options": {"rate": int(rates[kind]) // 8} if kind == "tbf" else {}}
            for handle, kind, _ in self.disciplines
        ]  # fmt: skip
        links = [
            {"ifname": "lo", "addr_info": [{"local": "127.0.0.1", "scope": "host"}]},
            {"ifname": "eth0", "addr_info": [{"local": "10.0.0.2", "scope": "global"}]},
        ]
        parts = ["\n".join([*saved, "COMMIT"]), json.dumps(queues), json.dumps(links)]
        return netrules.read(f"\n{netrules._MARK}\n".join(parts))

    def add(self, site: str, rule: netrules.NetRule) -> None:
        self.run(netrules.add_script(TOOL, "c", site, rule, self.read()))

    def remove(self, site: str) -> None:
        self.run(netrules.remove_script(TOOL, site, self.read()))

    def clear(self) -> None:
        self.run(netrules.clear_script(TOOL, self.read()))

    @property
    def is_clean(self) -> bool:
        return not (self.chains or self.hooks or self.disciplines)


# ---- dropping


def test_a_drop_is_two_chains_before_all_else_each_line_with_its_faults_name() -> None:
    drop = Drop((Flow("10.0.0.10"), Flow("10.0.0.3")))
    assert restored(netrules.add_script(TOOL, "my-c", "f2.1", drop, Found())) == [
        ":RS-f2.1-in - [0:0]",
        '-A RS-f2.1-in -s 10.0.0.10/32 -m comment --comment "ray-sim:my-c:f2.1" -j DROP',
        '-A RS-f2.1-in -s 10.0.0.3/32 -m comment --comment "ray-sim:my-c:f2.1" -j DROP',
        "-I INPUT 1 -j RS-f2.1-in",
        ":RS-f2.1-out - [0:0]",
        '-A RS-f2.1-out -d 10.0.0.10/32 -m comment --comment "ray-sim:my-c:f2.1" -j DROP',
        '-A RS-f2.1-out -d 10.0.0.3/32 -m comment --comment "ray-sim:my-c:f2.1" -j DROP',
        "-I OUTPUT 1 -j RS-f2.1-out",
    ]


@pytest.mark.parametrize(("direction", "hook"), [("in", "INPUT"), ("out", "OUTPUT")])
def test_one_way_touches_one_side_only(direction: netrules.Direction, hook: str) -> None:
    lines = restored(
        netrules.add_script(TOOL, "c", "f1", Drop((Flow("10.0.0.3"),), direction), Found())
    )
    assert lines[0] == f":RS-f1-{direction} - [0:0]"
    assert lines[-1] == f"-I {hook} 1 -j RS-f1-{direction}"
    assert len(lines) == 3


def test_a_port_is_the_others_on_one_side_of_the_filter_and_the_nodes_on_the_other() -> None:
    """To the GCS, from the GCS, and its health checks, each with the answers to it."""
    gcs = Drop((Flow("10.0.0.10", remote_port=6379), Flow("10.0.0.10", local_port=41234)))
    lines = restored(netrules.add_script(TOOL, "c", "f1", gcs, Found()))
    assert [line.split(" -m comment")[0] for line in lines if line.startswith("-A")] == [
        "-A RS-f1-in -s 10.0.0.10/32 -p tcp -m tcp --sport 6379",
        "-A RS-f1-in -s 10.0.0.10/32 -p tcp -m tcp --dport 41234",
        "-A RS-f1-out -d 10.0.0.10/32 -p tcp -m tcp --dport 6379",
        "-A RS-f1-out -d 10.0.0.10/32 -p tcp -m tcp --sport 41234",
    ]


def test_a_share_of_the_packets_is_drawn_one_by_one() -> None:
    lines = restored(
        netrules.add_script(TOOL, "c", "f1", Drop((Flow("10.0.0.3"),), "in", 12.5), Found())
    )
    assert "-m statistic --mode random --probability 0.12500000 " in lines[1]


@pytest.mark.parametrize(
    "rule",
    [
        Drop((Flow("10.0.0.10"), Flow("10.0.0.3"))),
        Drop((Flow("10.0.0.3"),), "in"),
        Drop((Flow("10.0.0.3"),), "out", 10.0),
        Drop((Flow("10.0.0.3", 0, 7001), Flow("10.0.0.3", 6379))),
        Shape(rate=1_234_567),
        Shape(delay=0.1, jitter=0.02, loss=1.5, loss_after_loss=25.0, reorder=5.0, duplicate=0.1),
        Shape(rate=10**6, delay=0.005),
    ],
    ids=str,
)
def test_what_is_read_back_is_what_was_put_there(rule: netrules.NetRule) -> None:
    kernel = Kernel()
    kernel.add("f1", rule)
    assert kernel.read().rules == {"f1": rule}
    before = dict(kernel.chains), list(kernel.hooks), list(kernel.disciplines)
    kernel.add("f1", rule)
    assert (kernel.chains, kernel.hooks, kernel.disciplines) == before, "twice is once"
    kernel.remove("f1")
    assert kernel.is_clean
    kernel.remove("f1")
    assert kernel.is_clean


def test_another_direction_of_the_same_fault_takes_the_place_of_the_first() -> None:
    kernel = Kernel()
    for direction in ("both", "in", "out", "both"):
        drop = Drop((Flow("10.0.0.3"),), direction)
        kernel.add("f1", drop)
        assert kernel.read().rules == {"f1": drop}
    assert sorted(kernel.hooks) == [("INPUT", "RS-f1-in"), ("OUTPUT", "RS-f1-out")]


def test_what_holds_in_part_is_not_taken_for_the_whole() -> None:
    kernel = Kernel()
    kernel.add("f1", Drop((Flow("10.0.0.3"), Flow("10.0.0.4"))))
    kernel.hooks.remove(("INPUT", "RS-f1-in"))  # nothing leads to that chain any more
    assert kernel.read().rules["f1"] == Drop((Flow("10.0.0.3"), Flow("10.0.0.4")), "out")
    kernel.chains["RS-f1-out"].pop()
    assert kernel.read().rules["f1"] == Drop((Flow("10.0.0.3"),), "out")
    kernel.chains["RS-f1-out"][0] = kernel.chains["RS-f1-out"][0].replace("DROP", "ACCEPT")
    assert kernel.read().rules == {}
    assert not kernel.read().untouched
    kernel.clear()
    assert kernel.is_clean


def test_a_shape_whose_discipline_is_gone_does_not_hold() -> None:
    kernel = Kernel()
    kernel.add("f1", Shape(rate=10**6))
    kernel.disciplines.clear()
    assert kernel.read().rules == {}
    kernel.add("f1", Shape(rate=10**6))
    assert kernel.read().rules == {"f1": Shape(rate=10**6)}


def test_covering_is_all_that_is_wanted_and_perhaps_more() -> None:
    one, two = Flow("10.0.0.3"), Flow("10.0.0.4")
    assert Drop((one, two)).covers(Drop((one,), "in"))
    assert not Drop((one,)).covers(Drop((one, two)))
    assert not Drop((one,), "in").covers(Drop((one,), "both"))
    assert not Drop((one,), "in").covers(Drop((one,), "out"))
    assert not Drop((one,), percent=10).covers(Drop((one,)))


# ---- queueing disciplines


def test_two_shapes_of_one_node_are_netem_with_tbf_below_it_and_each_leaves_by_itself() -> None:
    kernel = Kernel()
    kernel.add("f1", Shape(rate=8 * 10**6))
    assert [kind for _, kind, _ in kernel.disciplines] == ["tbf"]
    kernel.add("f2", Shape(delay=0.1))
    assert [kind for _, kind, _ in kernel.disciplines] == ["netem", "tbf"]
    kernel.add("f3", Shape(rate=10**6, delay=0.05))
    assert kernel.disciplines[0][2] == "netem limit 100000 delay 150000us"
    assert kernel.disciplines[1][2].startswith("tbf rate 1000000bit ")
    kernel.remove("f3")
    assert kernel.read().rules == {"f1": Shape(rate=8 * 10**6), "f2": Shape(delay=0.1)}
    assert kernel.disciplines[1][2].startswith("tbf rate 8000000bit ")
    kernel.remove("f1")
    assert [kind for _, kind, _ in kernel.disciplines] == ["netem"]
    kernel.remove("f2")
    assert kernel.is_clean


def test_what_the_kernel_refuses_costs_nothing_that_holds_already() -> None:
    kernel = Kernel(knows=("tbf",))
    kernel.add("f1", Shape(rate=10**6))
    before = list(kernel.disciplines)
    with pytest.raises(Refused):
        kernel.add("f2", Shape(delay=0.1))
    assert kernel.disciplines == before
    assert kernel.read().rules == {"f1": Shape(rate=10**6)}


def test_a_node_that_is_unplugged_has_nothing_to_shape() -> None:
    script = netrules.add_script(TOOL, "c", "f1", Shape(rate=10**6), Found(devices=()))
    assert "tc" not in script.split()
    assert not Found(devices=()).shaped(Shape(rate=10**6))


def test_netem_says_each_thing_in_its_own_words() -> None:
    assert netrules.netem_words(Shape(delay=0.1)) == "netem limit 100000 delay 100000us"
    assert netrules.netem_words(Shape(delay=0.1, jitter=0.02)).endswith("delay 100000us 20000us")
    assert netrules.netem_words(Shape(loss=1.5)).endswith("loss 1.5%")
    assert netrules.netem_words(Shape(loss=1.5, loss_after_loss=25)).endswith("loss 1.5% 25%")
    assert netrules.netem_words(Shape(duplicate=2)).endswith("duplicate 2%")
    assert netrules.netem_words(Shape(delay=0.01, reorder=25)).endswith("delay 10000us reorder 25%")


@pytest.mark.parametrize(
    ("text", "rate"),
    [("10mbit", 10**7), ("1.5 Mbit", 1_500_000), ("56kbit", 56_000), ("1gbit", 10**9)],
)
def test_a_rate_is_written_in_bits(text: str, rate: int) -> None:
    assert netrules.parse_rate(text) == rate


@pytest.mark.parametrize("text", ["10", "mbit", "0mbit", "-1mbit", "10mbps", "10 MB", "", "nan"])
def test_what_is_no_rate_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ValueError, match="such as 10mbit"):
        netrules.parse_rate(text)


# ---- many at once

_FLOWS = st.builds(
    Flow, st.sampled_from(["10.0.0.3", "10.0.0.4", "10.0.0.10"]), st.sampled_from([0, 6379])
)
_RULES = st.one_of(
    st.builds(
        Drop,
        st.sets(_FLOWS, min_size=1).map(lambda flows: tuple(sorted(flows))),
        st.sampled_from(netrules.DIRECTIONS),
        st.sampled_from([100.0, 10.0]),
    ),
    st.builds(Shape, rate=st.sampled_from([10**6, 2 * 10**6])),
    st.builds(Shape, delay=st.sampled_from([0.1, 0.2]), loss=st.sampled_from([0.0, 5.0])),
)


@given(
    st.lists(
        st.tuples(st.sampled_from(["f1", "f2", "f3.1"]), st.one_of(st.none(), _RULES)), max_size=12
    )
)
def test_whatever_comes_and_goes_each_rule_holds_until_it_is_taken_away(
    steps: list[tuple[str, netrules.NetRule | None]],
) -> None:
    kernel, wanted = Kernel(), dict[str, netrules.NetRule]()
    for site, rule in steps:
        if rule is None:
            kernel.remove(site)
            wanted.pop(site, None)
        elif site in wanted and type(wanted[site]) is not type(rule):
            continue  # a fault has one kind of rule
        else:
            kernel.add(site, rule)
            wanted[site] = rule
        assert kernel.read().rules == wanted
        assert kernel.read().untouched is not bool(wanted)
    kernel.clear()
    assert kernel.is_clean
    assert netrules.clear_script(TOOL, kernel.read()) == ""


# ---- what stands beside ours


def test_rules_and_disciplines_of_somebody_else_are_left_alone() -> None:
    saved = "*filter\n:INPUT DROP [0:0]\n:OTHERS - [0:0]\n-A INPUT -j OTHERS\n-A OTHERS -s 10.0.0.3/32 -j DROP\nCOMMIT"
    queues = [{"kind": "tbf", "handle": "1:", "dev": "eth0", "options": {"rate": 1}}]
    links = [{"ifname": "eth0", "addr_info": [{"local": "10.0.0.2", "scope": "global"}]}]
    mark = netrules._MARK
    found = netrules.read(f"{saved}\n{mark}\n{json.dumps(queues)}\n{mark}\n{json.dumps(links)}")
    assert found.untouched
    assert found.rules == {}
    assert netrules.clear_script(TOOL, found) == ""
    assert netrules.remove_script(TOOL, "f1", found) == ""


def test_an_answer_that_is_none_is_an_error() -> None:
    with pytest.raises(ValueError, match="not the state of a network namespace: 'sh: 1: tc'"):
        netrules.read("sh: 1: tc")


@pytest.mark.parametrize("site", ["", "f 1", "f1;reboot", 'f"1', "x" * 21])
def test_an_id_that_could_be_no_chains_name_is_refused(site: str) -> None:
    with pytest.raises(ValueError, match="is no id of a fault"):
        netrules.add_script(TOOL, "c", site, Drop((Flow("10.0.0.3"),)), Found())


def test_the_longest_id_still_fits_the_kernels_limit() -> None:
    assert len(netrules.chain_of("x" * 20, "out")) <= 28


# ---- what the kernel can do


def test_each_feature_is_tried_by_the_command_that_would_be_used() -> None:
    script = netrules.probe_script()
    assert "tc qdisc add dev lo root netem limit 100000 delay 1000us" in script
    assert "tc qdisc add dev lo root tbf rate 1000000bit" in script
    for tool in netrules.TOOLS:
        assert f"{tool} -w -A INPUT -m statistic --mode random" in script


def test_a_kernel_without_netem_lacks_delay_and_nothing_else() -> None:
    ability = netrules.read_probe(
        "iptables-nft\tyes\niptables-nft+share\tyes\niptables-legacy\tyes\n"
        "iptables-legacy+share\tyes\nrate\tyes\n"
        "delay\tError: Specified qdisc kind is unknown.\n"
    )
    assert ability.tool == "iptables-nft"
    assert ability.lacks == {"delay": "Error: Specified qdisc kind is unknown."}


def test_the_older_iptables_serves_where_the_newer_does_not_work() -> None:
    ability = netrules.read_probe(
        "iptables-nft\tnot supported\niptables-nft+share\tnot supported\n"
        "iptables-legacy\tyes\niptables-legacy+share\tno such match\nrate\tyes\ndelay\tyes\n"
    )
    assert ability.tool == "iptables-legacy"
    assert ability.lacks == {"share": "no such match"}


def test_no_answer_is_a_feature_that_is_not_there() -> None:
    assert netrules.read_probe("") == netrules.Ability(
        "", dict.fromkeys(netrules.FEATURES, "no answer")
    )


# ---- connections that repeat themselves

TABLE = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 8100D00A:A1B2 0A00D00A:18EB 01 00000042:00000000 01:00000400 00000004     0        0 1 4 x
   1: 8100D00A:A1B4 0A00D00A:18EB 01 00000042:00000000 01:00000014 00000000     0        0 2 4 x
   2: 8100D00A:A1B6 0A00D00A:18EB 01 00000000:00000000 02:00000014 00000000     0        0 3 4 x
   3: 8100D00A:A1B8 0B00D00A:18EB 01 00000042:00000000 01:00000014 00000002     0        0 4 4 x
   4: 8100D00A:A1BA 0A00D00A:18EB 02 00000001:00000000 01:00000014 00000003     0        0 5 4 x
"""

TABLE6 = """\
  sl  local_address     remote_address                        st tx_queue rx_queue tr tm->when retrnsmt
   0: FFFF0000...:A1B2 0000000000000000FFFF00000A00D00A:18EB 01 00000042:00000000 01:00000400 00000004
   1: FFFF0000...:A1B2 0000000000000000FFFF00000C00D00A:18EB 01 00000000:00000000 00:00000000 00000000
"""


def test_a_connection_waits_for_an_answer_once_it_has_sent_something_again() -> None:
    """One on its first try, one with nothing to send and one that is not made yet do not count."""
    assert netrules.unanswered(TABLE, "10.208.0.10") == 1
    assert netrules.unanswered(TABLE, "10.208.0.11") == 1
    assert netrules.unanswered(TABLE, "10.208.0.129") == 0


def test_one_whose_own_side_drops_what_it_sends_waits_too() -> None:
    probing = "0: 8100D00A:A1B2 0A00D00A:18EB 01 00000042:00000000 04:00000400 00000000 0 3 1"
    assert netrules.unanswered(probing, "10.208.0.10") == 1


def test_a_socket_that_speaks_both_protocols_counts_as_well() -> None:
    assert netrules.unanswered(TABLE + TABLE6, "10.208.0.10") == 2
    assert netrules.unanswered(TABLE6, "10.208.0.12") == 0
