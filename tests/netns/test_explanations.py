"""What each side says when it could not connect: the laboratory provokes every finding, with real packets.

Both lines are looked at: `progress … failed` and the `error` that ends the attempt. The initiator gives up and says
why; the responder hears of that, and says what it saw itself.

    a --- a-box --- isp-left --- core --- isp-right --- b-box --- b
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import trio

from punchd.client import Failed
from punchd.kernel.raw import REFUSED
from punchd_techniques.diagnosis import Finding
from tests.natlab import KINDS, Laboratory, Link, Site
from tests.natlab.plan import CORE4
from tests.netns.daemons import Talk
from tests.netns.tcp_pair import DELAY_S, Pair, connected_to, pair
from tests.pair import End, RunningDaemon, attempt, daemons, stun_arguments

pytestmark = pytest.mark.netns

TECHNIQUES = ("--techniques", "tcp-nutss,tcp-syni,tcp-repair,udp")
A, B = "198.51.100.1", "203.0.113.1"  # public addresses of the two sites
ROUTER_A, ROUTER_B, BOX_A = "198.51.100.254", "203.0.113.254", "100.100.1.1"
TTL = 4  # dies at the other side's provider
FORWARD = "type filter hook forward priority -10; policy accept;"
INPUT = "type filter hook input priority -10; policy accept;"
OUTPUT = "type filter hook output priority -10; policy accept;"
SYN, SYN_ACK = "tcp flags & (syn | ack) == syn", "tcp flags & (syn | ack) == (syn | ack)"
TO_A, TO_B = f"ip daddr {A}", f"ip daddr {B}"
DEAD_LOW_A = Finding.DIED_AS_MEANT.format(router=ROUTER_B, hop=TTL)
DEAD_LOW_B = Finding.DIED_AS_MEANT.format(router=ROUTER_A, hop=TTL)
SILENT_A = Finding.SILENCE.format(peer=B)  # what A says
SILENT_B = Finding.SILENCE.format(peer=A)


@dataclass(frozen=True, slots=True)
class Case:
    """What is done to the network, and what each side then says.

    Attributes:
        rules: a hook and an nft rule by node; "b-box output" has both.
        says_a, says_b: with {a} and {b} for the two public endpoints. Several: all of them.
    """

    technique: str
    rules: Mapping[str, tuple[str, str]]
    says_a: tuple[str, ...]
    says_b: tuple[str, ...]
    kinds: tuple[str, str] = ("apdf", "apdf")
    ttl: int = TTL
    loops: tuple[str, ...] = field(default=())  # addresses that the other side's provider sends back


def cut(protocol: str) -> dict[str, tuple[str, str]]:
    """Nothing reaches the other side's box; STUN's answers do."""
    return {
        "isp-right": (FORWARD, f"{TO_B} {protocol} sport != 3478 drop"),
        "isp-left": (FORWARD, f"{TO_A} {protocol} sport != 3478 drop"),
    }


def end(name: str) -> str:
    return f"{{{name}}}"


# fmt: off
CASES = {
    "nothing comes": Case("tcp-nutss",
        cut("tcp"),
        (SILENT_A, DEAD_LOW_A), (SILENT_B, DEAD_LOW_B)),
    "nothing comes, udp": Case("udp",
        cut("udp"),
        (SILENT_A, DEAD_LOW_A), (SILENT_B,)),
    "the low TTL is too low": Case("tcp-nutss",
        cut("tcp"),
        (SILENT_A, Finding.DIED_TOO_EARLY.format(router=BOX_A, hop=1)),
        (SILENT_B, Finding.DIED_TOO_EARLY.format(router="100.100.2.1", hop=1)), ttl=1),
    "our SYN-ACK is unanswered": Case("tcp-nutss",
        {"core": (FORWARD, f"{SYN_ACK} ip saddr {{ {A}, {B} }} drop")},
        (Finding.SYN_ACK_UNANSWERED.format(source=end("b")),), (Finding.SYN_ACK_UNANSWERED.format(source=end("a")),)),
    "our SYN-ACK is refused": Case("tcp-nutss",
        {"core": (FORWARD, f"{SYN_ACK} ip saddr {{ {A}, {B} }} reject with icmpx type admin-prohibited")},
        (Finding.SYN_ACK_UNANSWERED.format(source=end("b")),
         Finding.BESIDES.format(what="ICMP administratively prohibited")),
        (Finding.SYN_ACK_UNANSWERED.format(source=end("a")),)),
    "the own host swallows the SYN": Case("tcp-nutss",
        {"a": (INPUT, f"tcp flags & syn == syn ip saddr {B} drop"),
         "b": (INPUT, f"tcp flags & syn == syn ip saddr {A} drop")},
        (Finding.SYN_NOT_ANSWERED_HERE.format(source=end("b")),),
        (Finding.SYN_NOT_ANSWERED_HERE.format(source=end("a")),)),
    "the own host swallows the SYN-ACK": Case("tcp-nutss",
        {"a": (INPUT, f"tcp flags & syn == syn ip saddr {B} drop")},
        (Finding.SYN_ACK_IN_VAIN.format(source=end("b")),), (Finding.SYN_ACK_UNANSWERED.format(source=end("a")),)),
    "a firewall prohibits": Case("tcp-nutss",
        {"isp-right": (FORWARD, f"{TO_B} tcp sport != 3478 reject with icmpx type admin-prohibited"),
         "isp-left": (FORWARD, f"{TO_A} tcp sport != 3478 drop")},
        (Finding.PROHIBITED.format(router=ROUTER_B, target=end("b")), DEAD_LOW_A), (SILENT_B, DEAD_LOW_B)),
    "a firewall prohibits, udp": Case("udp",
        {"isp-right": (FORWARD, f"{TO_B} udp sport != 3478 reject with icmpx type admin-prohibited"),
         "isp-left": (FORWARD, f"{TO_A} udp sport != 3478 drop")},
        (Finding.PROHIBITED.format(router=ROUTER_B, target=end("b")), DEAD_LOW_A), (SILENT_B,)),
    "nobody is there": Case("tcp-nutss",
        {"isp-right": (FORWARD, f"{TO_B} tcp sport != 3478 reject with icmpx type host-unreachable"),
         "isp-left": (FORWARD, f"{TO_A} tcp sport != 3478 drop")},
        (Finding.UNREACHABLE.format(what="host unreachable", router=ROUTER_B, target=end("b")),), (SILENT_B,)),
    "the path is a loop": Case("tcp-nutss", {"isp-left": (FORWARD, f"{TO_A} tcp sport != 3478 drop")},
        (Finding.DIED_AT_FULL_TTL.format(router="", hop=64, target=end("b")).split("from")[0],
         ", hop 64, on the way to {b}: a routing loop"), (SILENT_B,), loops=(B,)),
    "the path is a loop, udp": Case("udp", {"isp-left": (FORWARD, f"{TO_A} udp sport != 3478 drop")},
        (", hop 64, on the way to {b}: a routing loop",), (SILENT_B,), loops=(B,)),
    "the NAT there resets": Case("tcp-nutss",
        {"b-box": (FORWARD, f'iifname "wan" ip saddr {A} tcp dport != 3478 reject with tcp reset'),
         "isp-left": (FORWARD, f"{TO_A} tcp sport != 3478 tcp flags & (syn | rst) == syn drop")},
        (Finding.RESET.format(source=end("b"), distance="4 hops away"),), (SILENT_B, DEAD_LOW_B)),
    "the own router resets": Case("tcp-nutss",
        {"a-box": (FORWARD, f'iifname "lan" {TO_B} reject with tcp reset'),
         "isp-left": (FORWARD, f"{TO_A} tcp sport != 3478 drop")},
        (Finding.RESET_AT_HOME.format(source=end("b")),), (SILENT_B, DEAD_LOW_B)),
    "only one direction passes, udp": Case("udp",
        {"isp-right": (FORWARD, f"{TO_B} udp sport != 3478 drop")},
        (Finding.ONE_WAY.format(what="a datagram", source=end("b")),), (SILENT_B,)),
    "the peer's port is another one": Case("tcp-nutss",
        {"core": (FORWARD, f"{SYN_ACK} ip saddr {{ {A}, {B} }} drop")},
        (SILENT_A, Finding.OWN_RANDOM), ("SYN came from 198.51.100.1:", "was announced: its NAT changes ports"),
        kinds=("symmetric-random", "full-cone")),
    "random against a filter, udp": Case("udp", {},
        (SILENT_A, Finding.OWN_RANDOM), (SILENT_B, Finding.PEER_GUESSES), kinds=("symmetric-random", "apdf")),
}
# fmt: on


@pytest.fixture(name="ordinary", scope="module")
def _ordinary() -> Iterator[tuple[Laboratory, list[RunningDaemon]]]:
    with Laboratory([Site(name, KINDS["apdf"], wan=Link(delay_s=DELAY_S)) for name in "ab"]) as laboratory:
        words = [*stun_arguments(laboratory.stun), *TECHNIQUES]
        with daemons([(laboratory.site(name).host, words) for name in "ab"]) as running:
            yield laboratory, running


@contextmanager
def disturbed(laboratory: Laboratory, case: Case) -> Iterator[None]:
    """The network as the case wants it, until the block ends."""
    nodes = laboratory.nodes
    back = ["via", CORE4, "dev", "core"]
    try:
        for name, (hook, rule) in case.rules.items():
            table = f"table inet disturbance {{\n chain one {{\n {hook}\n {rule}\n }}\n}}\n"
            nodes[name].run(["nft", "-f", "-"], input=table.encode(), check=True)
        for address in case.loops:
            nodes["isp-right"].run(["ip", "route", "add", "default", *back, "onlink", "table", "7"], check=True)
            nodes["isp-right"].run(["ip", "rule", "add", "to", address, "lookup", "7"], check=True)
        yield
    finally:
        for address in case.loops:
            nodes["isp-right"].run(["ip", "rule", "del", "to", address], check=True)
            nodes["isp-right"].run(["ip", "route", "flush", "table", "7"], check=True)
        for name in case.rules:
            nodes[name].run(["nft", "delete", "table", "inet", "disturbance"], check=True)


def last_words(side: End) -> tuple[str, str]:
    """The text of the last `failed` line ("": there was none) and of the `error` line."""
    failed = [event.text or "" for _, event in side.events if isinstance(event, Failed)]
    assert side.error is not None, "it connected"
    return failed[-1] if failed else "", str(side.error)


@pytest.mark.parametrize("name", CASES)
async def test_each_side_says_what_it_saw(name: str, ordinary: tuple[Laboratory, list[RunningDaemon]]) -> None:
    case = CASES[name]
    if case.kinds == ("apdf", "apdf"):
        async with connected_to(ordinary) as both:
            await provoke(both, case)
    else:
        async with pair(*case.kinds, *TECHNIQUES) as both:
            await provoke(both, case)


async def provoke(both: Pair, case: Case) -> None:
    protocol = "udp" if case.technique == "udp" else "tcp"
    own = await both.a.probe(protocol), await both.b.probe(protocol)
    with disturbed(both.laboratory, case):
        outcome = await attempt(both.a, both.b, own=own, techniques=case.technique, ttl=case.ttl)
    ends = {"a": f"{A}:{own[0].ports}", "b": f"{B}:{own[1].ports}"}
    failed, error = last_words(outcome.initiator)
    for words in case.says_a:
        assert words.format(**ends) in failed
        assert words.format(**ends) in error
    _, error = last_words(outcome.responder)
    for words in case.says_b:
        assert words.format(**ends) in error


# --- what the own host refuses -------------------------------------------------------------------------------------


def refusal(protocol: str, target: str) -> tuple[dict[str, tuple[str, str]], str]:
    """The rule that makes a host refuse to send to `target`, and what it then says."""
    rule = f"ip daddr {target} {protocol.lower()} dport != 3478 drop"
    return {"host": (OUTPUT, rule)}, REFUSED.format(error="EPERM Operation not permitted", protocol=protocol)


@pytest.mark.parametrize(("technique", "protocol"), [("tcp-repair", "TCP"), ("udp", "UDP")])
async def test_an_initiator_whose_own_firewall_refuses_to_send_says_so_and_what_to_do(
    technique: str, protocol: str, ordinary: tuple[Laboratory, list[RunningDaemon]]
) -> None:
    rules, words = refusal(protocol, B)
    laboratory, running = ordinary
    await running[0].until_ready()
    with disturbed(laboratory, Case(technique, {"a": rules["host"]}, (), ())), Talk(Path(running[0].path)) as talk:
        talk.send(f"initiate|x|{technique}|{B}|40000")
        failed = await trio.to_thread.run_sync(talk.until, f"progress|x|1|{technique}|failed|refused|")
        error = await trio.to_thread.run_sync(talk.until, "error|x|exhausted|")
    assert words in failed
    assert f"send to {B}" in failed
    assert words in error


@pytest.mark.parametrize(("technique", "protocol"), [("tcp-repair", "TCP"), ("udp", "UDP")])
async def test_a_responder_whose_own_firewall_refuses_to_send_says_so_and_the_initiator_hears_that_it_cannot(
    technique: str, protocol: str, ordinary: tuple[Laboratory, list[RunningDaemon]]
) -> None:
    rules, words = refusal(protocol, A)
    async with connected_to(ordinary) as both:
        own = await both.a.probe(protocol.lower()), await both.b.probe(protocol.lower())
        with disturbed(both.laboratory, Case(technique, {"b": rules["host"]}, (), ())):
            outcome = await attempt(both.a, both.b, own=own, techniques=technique)
    failed, error = last_words(outcome.responder)
    assert words in failed
    assert words[:100] in error
    failed, error = last_words(outcome.initiator)
    assert failed.startswith("the other side skips it: it cannot do this technique; ")
    assert "peer-skip" in error
