"""docs/dialogues.md: what applications and daemons say to each other, taken from runs of the real code.

`tests/virtual.py` is the world they run in. `python -m tests.dialogues` writes the file; tests/unit/test_docs.py
asserts that it is what this gives.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from textwrap import fill
from typing import ClassVar

import trio
from trio.testing import MockClock

from punchd.endpoint import parse_ip
from punchd.technique import Capability, Facts, Hole, Kit
from punchd.wire import probe
from punchd.wire import token as tokens
from punchd.wire.token import Card
from tests.unit.fake_network import RANDOM, SEQUENTIAL
from tests.virtual import SIDE_S, Place, World, world

TARGET = Path(__file__).resolve().parent.parent / "docs" / "dialogues.md"
PLUGIN = "my-method"
A4 = Place(parse_ip("192.168.1.10"), parse_ip("198.51.100.4"))
B4 = Place(parse_ip("10.0.0.5"), parse_ip("203.0.113.7"))
A6 = Place(parse_ip("2001:db8:1::4"), parse_ip("2001:db8:1::4"))
B6 = Place(parse_ip("2001:db8:2::7"), parse_ip("2001:db8:2::7"))

HEADER = """# Dialogues

What two applications and their daemons say to each other, line by line; [line-protocol.md](line-protocol.md) explains
the lines. Written by `python -m tests.dialogues` from runs of the real code under a virtual clock; the tests assert
that this file is what the code says.

`>`: from an application to its daemon; `<`: from the daemon. `[fd]`: the line carries a file descriptor. The arrows
are tokens on the applications' side channel, with the kind of token that only the daemons know. A's application
initiates, at 192.168.1.10 behind 198.51.100.4; B's responds, at 10.0.0.5 behind 203.0.113.7. The side channel takes
31 ms, the path between the hosts 19 ms.
"""


class MyMethod:
    """A technique of somebody else, as a plug-in of A's daemon only."""

    name: ClassVar[str] = PLUGIN
    number: ClassVar[int] = tokens.FIRST_PLUGIN_NUMBER
    protocol: ClassVar[str] = "udp"
    needs: ClassVar[Capability] = Capability.NONE
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> Facts:
        return facts

    async def initiate(self, plan: Facts, kit: Kit) -> Hole:
        async with kit.udp() as port:
            known = await port.learn()
            kit.tell_peer(Card(known.address, known.ports(), body=b"hi"))
            await trio.sleep_forever()
        raise AssertionError

    async def respond(self, plan: Facts, offer: Card, kit: Kit) -> Hole:
        return await self.initiate(plan, kit)


# --- the dialogues ---------------------------------------------------------------------------------------------------


async def with_probe(world: World) -> None:
    a, b = world.a, world.b
    await a.ask("hello|1|chat/1.0", "ok|-|hello")
    await b.ask("probe|p1|udp|lport=40000", "ok|p1")
    await a.ask("probe|p1|udp|lport=50000", "ok|p1")
    world.note("        A ◀──(rendezvous server: B is at 203.0.113.7, port 40000)")
    a.say("initiate|c1|udp|203.0.113.7|40000|lport=50000")
    await a.hear("ok|c1")


async def with_a_note(world: World) -> None:
    world.a.say("initiate|c1|udp|203.0.113.7|40000|lport=50000")
    await world.a.hear("ok|c1")


async def with_other_techniques(world: World) -> None:
    world.a.say(f"initiate|c1|tcp-syni,{PLUGIN},udp|203.0.113.7|40000|lport=50000")
    await world.a.hear("ok|c1")


async def exhausted(world: World) -> None:
    world.a.say("initiate|c1|udp|203.0.113.7|40000|lport=50000")
    await world.b.hear("error|r9")


async def unheard(world: World) -> None:
    world.b.listens = False
    await world.a.ask("initiate|c1|udp|203.0.113.7|40000|lport=50000", "error|c1")


async def cancelled(world: World) -> None:
    world.a.say("initiate|c1|udp|203.0.113.7|40000|lport=50000")
    await world.a.hear("progress|c1|1|udp|relay")
    world.later(SIDE_S + 0.04, partial(world.a.say, "cancel|c1"))
    await world.b.hear("error|r9")


async def repeated(world: World) -> None:
    a, b = world.a, world.b
    world.loses = lambda data: data.startswith(probe.MAGIC + bytes((probe.Type.DONE,)))
    a.say("initiate|c1|udp,udp|203.0.113.7|40000|lport=50000")
    await b.hear("ok|r9")
    world.loses = lambda data: False
    await a.hear("ok|c1")
    [offer, *_] = [line.split("|")[5] for line in world.lines if line.startswith("A< progress|c1|2|udp|relay")]
    await trio.sleep(0.5)
    b.take(offer)
    await b.hear("error|r9")


async def ipv6(world: World) -> None:
    world.a.attempt_id = "v6"
    world.a.say("initiate|v6|udp|2001:db8:2::7|40000-40007|local=2001:db8:1::4;lport=50000;timeout=20000")
    await world.a.hear("ok|v6")


REFUSED = (
    ("hello|0", "error|-"),
    ("connect|c1", "error|-"),
    ("initiate|c 1|udp|203.0.113.7|40000", "error|-"),
    ("initiate|c1|udp|203.0.113.7", "error|c1"),
    ("initiate|c1|quic|203.0.113.7|70000", "error|c1"),
    ("initiate|c1|udp|192.168.7.7|40000", "error|c1"),
    ("initiate|c1|udp|203.0.113.7|70000", "error|c1"),
    ("initiate|c1|udp|203.0.113.7|40000|lport=80", "error|c1"),
    ("initiate|c1|udp|203.0.113.7|40000|local=2001:db8:1::4", "error|c1"),
    ("initiate|c1|udp|203.0.113.7|40000|speed=9", "error|c1"),
    ("initiate|c1|tcp-nutss|203.0.113.7|40000", "error|c1"),
    ("respond|c1|AQF_OpwC0ehLVQMDAADGM2QEAcNQABEiM0RVZneImaq7zN3u_w", "error|c1"),
    ("cancel|c1", "error|c1"),
    ("initiate|c1|udp|203.0.113.7|40000|lport=50000", "progress|c1|1|udp|relay"),
    ("initiate|c1|udp|203.0.113.7|40001", "error|c1"),
    ("respond|c1|nonsense", "progress|c1"),
    ("cancel|c1|now", "error|c1"),
    ("hello|1", "error|-"),
)


async def refused(world: World) -> None:
    world.b.listens = False
    for line, answer in REFUSED:
        await world.a.ask(line, answer)


@dataclass(frozen=True)
class Dialogue:
    title: str
    about: str
    script: Callable[[World], Awaitable[None]]
    a: Place = A4
    b: Place = B4
    language: str = "dialogue"


DIALOGUES = (
    Dialogue(
        "UDP, both ports probed before",
        "Each application asks for its public address first, and the rendezvous server passes it on. A's offer says "
        "that A's NAT is open for B's port, so B sends at full TTL at once. The answer goes back beside the datagrams.",
        with_probe,
    ),
    Dialogue(
        "A wrong hint, mended by a note",
        "B's NAT gives every destination the next port, and A was told an old one. B's answer names the ports to be "
        "expected; A opens its NAT for them and says so in a note; only then does B send at full TTL.",
        with_a_note,
        b=replace(B4, kind=SEQUENTIAL),
    ),
    Dialogue(
        "Techniques that are not there",
        "A's application asks for three. A's own daemon declines the first, so B never hears of it. The second is a "
        f"plug-in of A's daemon (`{PLUGIN}`); B's daemon does not have it and skips the round: A need not wait for the "
        "round's time to pass.",
        with_other_techniques,
        a=replace(A4, plugins=(MyMethod(),)),
    ),
    Dialogue(
        "Exhausted: two NATs with random ports",
        "Neither side can know the port that the other's NAT will pick.",
        exhausted,
        a=replace(A4, kind=RANDOM),
        b=replace(B4, kind=RANDOM),
    ),
    Dialogue("Exhausted: nobody at the other end", "B's application does not take part.", unheard),
    Dialogue(
        "Cancelled",
        "The daemon says goodbye to the other side before it gives the verdict: the `abort` is a token like any other.",
        cancelled,
        b=replace(B4, kind=RANDOM),
    ),
    Dialogue(
        "A socket that is dead, and a token that came twice",
        "All datagrams that tell A of B's success are lost. A's round ends, while B's application has its socket "
        "already. So A goes on to its next round, and that offer tells B's application that its socket is dead: it "
        "closes it and responds again. Later the side channel delivers the same offer once more; `stale` says that "
        "nothing is wrong with the socket.",
        repeated,
    ),
    Dialogue(
        "IPv6",
        "No NATs, but two firewalls that let in only what they expect. A names a range of ports.",
        ipv6,
        a=A6,
        b=B6,
    ),
    Dialogue(
        "Lines that are refused",
        "Each wrong line gets one answer. The last four come while the attempt `c1` is running, and leave it running; "
        "a token for it that is none is `ignored`.",
        refused,
        language="refused",
    ),
)


def document() -> str:
    """The whole text of docs/dialogues.md."""
    sections = "".join(
        f"\n## {dialogue.title}\n\n{fill(dialogue.about, 118)}\n\n```{dialogue.language}\n{text}\n```\n"
        for dialogue, text in ((dialogue, "\n".join(play(dialogue))) for dialogue in DIALOGUES)
    )
    return HEADER + sections


def play(dialogue: Dialogue) -> list[str]:
    """The lines of one dialogue."""
    return trio.run(_play, dialogue, clock=MockClock(autojump_threshold=0))


async def _play(dialogue: Dialogue) -> list[str]:
    async with world(dialogue.a, dialogue.b) as made:
        await dialogue.script(made)
    return made.lines


if __name__ == "__main__":
    TARGET.write_text(document())
