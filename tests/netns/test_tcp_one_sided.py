"""A path that dies at the decisive moment of a handshake: no socket is handed over that only one side believes in.

The last one to speak cannot know that it was heard, so one case is left, and it is always the same one: the responder
holds a socket and the initiator does not (race rule 1 of the line protocol). Then the initiator has reset that
connection, and the responder's application learns it from TCP, or from the initiator's next offer.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import pytest
import trio

from tests.natlab import Link, Node
from tests.netns.daemons import until
from tests.netns.tcp_pair import HANG_S, TECHNIQUES, Pair, assert_carries, pair, sockets, tcp_sockets
from tests.pair import Channel, Outcome, attempt

pytestmark = [pytest.mark.netns, pytest.mark.timeout(300)]

# What an nft rule matches. A bare ACK is the last segment of a handshake, and the word that it is finished.
SEGMENTS = {"ack": "tcp flags & (syn | ack | rst | fin) == ack", "syn-ack": "tcp flags & (syn | ack) == syn | ack"}
LINKS = (Link(delay_s=0.01),) * 2
CHANNEL_S = 0.03
TIMEOUT_MS = 4000
_RANDOM = random.Random(40)
MOMENTS_S = sorted(round(_RANDOM.uniform(0.02, 0.2), 4) for _ in range(12))  # after the offer, until all is over


@contextmanager
def cut(core: Node, matches: str) -> Iterator[None]:
    """What matches is lost in the middle of the Internet."""
    rules = f"table inet cut {{\n chain forward {{\n type filter hook forward priority 0;\n {matches} drop\n }}\n}}\n"
    core.run(["nft", "-f", "-"], input=rules.encode(), check=True)
    try:
        yield
    finally:
        core.run(["nft", "delete", "table", "inet", "cut"], check=True)


def believers(outcome: Outcome) -> tuple[bool, bool]:
    """Whether the initiator and the responder hold a socket."""
    return outcome.initiator.connected is not None, outcome.responder.connected is not None


def direction(both: Pair, way: str) -> str:
    sender, receiver = (both.host(name).public_ipv4 for name in way.split(" to "))
    return f"ip saddr {sender} ip daddr {receiver}"


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_a_kind_of_segment_that_never_arrives_leaves_no_initiator_with_a_socket_of_its_own(
    technique: str,
) -> None:
    seen: dict[str, tuple[bool, bool]] = {}
    async with pair("apdf", "apdf", links=LINKS) as both:
        for name, matches in SEGMENTS.items():
            for way in ("a to b", "b to a"):
                with cut(both.laboratory.nodes["core"], f"{direction(both, way)} {matches}"):
                    channel = Channel(delay_s=CHANNEL_S)
                    outcome = await attempt(
                        both.a, both.b, channel=channel, techniques=technique, timeout_ms=TIMEOUT_MS
                    )
                seen[f"{name} {way}"] = believers(outcome)
                if seen[f"{name} {way}"] == (False, True):
                    await assert_reset(outcome)
                outcome.close()
    print(technique, seen)
    assert (True, False) not in seen.values(), seen


async def assert_reset(outcome: Outcome) -> None:
    """The responder's application reads an error, or the end, from the socket that the initiator has given up."""
    assert outcome.responder.connected is not None
    with trio.fail_after(HANG_S), suppress(ConnectionResetError):
        assert await outcome.responder.connected.socket.recv(1) == b""


@pytest.mark.parametrize("technique", TECHNIQUES)
async def test_a_path_that_dies_at_any_moment_leaves_both_or_neither_or_the_responder_alone(technique: str) -> None:
    """Of tcp-repair one moment is known where the initiator alone is left: while its last words are on their way."""
    counts: dict[tuple[bool, bool], int] = {}
    async with pair("apdf", "apdf", links=LINKS) as both:
        for after_s in MOMENTS_S:
            outcome = await attempt_until_the_path_dies(both, technique, after_s)
            held = believers(outcome)
            counts[held] = counts.get(held, 0) + 1
            if held == (True, True):
                await assert_carries(sockets(outcome), 1000, f"{technique}, path dead for a while after {after_s} s")
            outcome.close()
        for name in "ab":
            host = both.host(name)
            await trio.to_thread.run_sync(until, lambda host=host: not tcp_sockets(host), f"no socket stays in {name}")
    print(technique, counts)
    assert technique == "tcp-repair" or (True, False) not in counts
    assert len(counts) > 1, "the moments lie on both sides of the decisive one"


async def attempt_until_the_path_dies(both: Pair, technique: str, after_s: float) -> Outcome:
    """An attempt whose path loses everything so long after the responder began, until both have their verdicts."""
    outcomes: list[Outcome] = []
    began = trio.Event()
    ended = trio.Event()

    def watch(_: str, from_initiator: bool) -> bool:
        if from_initiator:
            began.set()
        return True

    async def punch() -> None:
        outcomes.append(
            await attempt(both.a, both.b, channel=Channel(watch=watch), techniques=technique, timeout_ms=2000)
        )
        ended.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(punch)
        await began.wait()
        await trio.sleep(after_s)
        with cut(both.laboratory.nodes["core"], "meta l4proto tcp"):
            await ended.wait()
    return outcomes[0]
