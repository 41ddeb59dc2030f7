"""What one side saw, and the sentence that comes of it: a table, the priorities between findings, and the bounds."""

from __future__ import annotations

import string
from collections.abc import Callable
from ipaddress import ip_address
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.kernel.raw import REFUSED
from punchd.technique import Complaint
from punchd.wire.icmp import Kind
from punchd_techniques.diagnosis import MAX_DIFFERENT, MAX_SENTENCE, Finding, Seen

DOCUMENT = Path(__file__).resolve().parents[2] / "docs" / "explanations.md"
PEER = ip_address("203.0.113.7")
ROUTER, INSIDE = ip_address("198.51.100.254"), ip_address("192.168.1.1")
PORT, OTHER, LOW = 40000, 41234, 4
SYN, SYN_ACK, RST = "SYN", "SYN-ACK", "RST"

Script = Callable[[Seen], object]


def explained(*script: Script, random: bool = False, guesses: bool = False, private: bool = True) -> str:
    seen = Seen(PEER, LOW)
    for step in script:
        step(seen)
    return seen.explain([PORT], own_is_random=random, peer_guesses=guesses, is_private_here=private)


def sent(what: str = SYN, ttl: int | None = 64, seq: int | None = 1000) -> Script:
    return lambda seen: seen.sent(what, PORT, ttl, seq)


def came(what: str, port: int = PORT, ttl: int | None = 60) -> Script:
    return lambda seen: seen.came(what, port, ttl)


def complained(kind: Kind, router: object = ROUTER, seq: int | None = 1000, port: int = PORT) -> Script:
    return lambda seen: seen.complained(Complaint(kind, router, port, seq))  # type: ignore[arg-type]


low = sent(ttl=LOW, seq=999)
died_low = complained(Kind.TIME_EXCEEDED, seq=999)
died_full = complained(Kind.TIME_EXCEEDED)
prohibited = complained(Kind.ADMIN_PROHIBITED)
AS_MEANT = "low-TTL packets died at 198.51.100.254, hop 4, as meant"
UNANSWERED = "SYN came from 203.0.113.7:40000, but our SYN-ACK is unanswered: a NAT on the way drops it"
PROHIBITED = "ICMP prohibited by 198.51.100.254: a firewall there lets nothing through to 203.0.113.7:40000"
LOOP = "time exceeded from 198.51.100.254, hop 64, on the way to 203.0.113.7:40000: a routing loop"
RESET = "RST came from 203.0.113.7:40000, 4 hops away: the NAT there refuses what it does not expect"
SILENCE = "no answer at all from 203.0.113.7"

TABLE: dict[str, tuple[tuple[Script, ...], str]] = {
    "nothing": ((low, sent()), SILENCE),
    "low-TTL packets died as meant": ((low, died_low), f"{SILENCE}; {AS_MEANT}"),
    "they never left the own network": (
        (low, complained(Kind.TIME_EXCEEDED, INSIDE, 999)),
        f"{SILENCE}; low-TTL packets died at 192.168.1.1, hop 4, still inside: raise ttl",
    ),
    "a loop": ((low, died_low, sent(), died_full), f"{LOOP}; {AS_MEANT}"),
    "each low-TTL packet accounts for one error": ((low, low, died_low, died_low), f"{SILENCE}; {AS_MEANT}"),
    "one error too many for them": (
        (low, sent(seq=999), died_low, died_low),
        f"{LOOP}; {AS_MEANT}",
    ),
    "a rule": ((sent(), prohibited), PROHIBITED),
    "nobody there": (
        (sent(), complained(Kind.HOST_UNREACHABLE)),
        "ICMP host unreachable from 198.51.100.254: nobody there takes packets to 203.0.113.7:40000",
    ),
    "an RST from afar": ((sent(), came(RST)), RESET),
    "an RST of a system that starts at 128": (
        (sent(), came(RST, ttl=120)),
        "RST came from 203.0.113.7:40000, 8 hops away: the NAT there refuses what it does not expect",
    ),
    "an RST of which only the kernel tells": (
        (came(RST, ttl=None),),
        "RST came from 203.0.113.7:40000, of unknown distance: the NAT there refuses what it does not expect",
    ),
    "an RST that was seen and told": ((came(RST), came(RST, ttl=None)), RESET),
    "an RST of the own router": (
        (sent(), came(RST, ttl=255)),
        "RST in the name of 203.0.113.7:40000, but from the next hop: the own router refuses the connection",
    ),
    "a SYN that is answered in vain": ((came(SYN), sent(SYN_ACK)), UNANSWERED),
    "a SYN that nobody here answers": (
        (came(SYN), sent()),
        "SYN came from 203.0.113.7:40000, but no SYN-ACK left this host: its own firewall may drop one of them",
    ),
    "a SYN-ACK in vain": (
        (came(SYN), sent(SYN_ACK), came(SYN_ACK)),
        "SYN-ACK came from 203.0.113.7:40000, but in vain: a firewall here drops it, or a NAT rewrites numbers",
    ),
    "one way": (
        (came("ACK"),),
        "ACK came from 203.0.113.7:40000, but nothing shows that ours reach it: a NAT on the way drops them",
    ),
    "another port": (
        (came(SYN, OTHER), sent(SYN_ACK)),
        "SYN came from 203.0.113.7:41234, but 40000 was announced: its NAT changes ports",
    ),
    "another port, and the one that was announced": ((came(SYN, OTHER), came(SYN), sent(SYN_ACK)), UNANSWERED),
    "an RST from another port is no news of the peer's": ((came(RST, OTHER),), RESET.replace("40000", "41234")),
    "what the peer sent counts more than errors before it": (
        (sent(), prohibited, came(RST), came(SYN), sent(SYN_ACK)),
        f"{UNANSWERED}; besides: ICMP administratively prohibited, RST",
    ),
    "a rule before a loop": ((sent(), died_full, prohibited), PROHIBITED),
    "a loop before nobody there": ((sent(), complained(Kind.NET_UNREACHABLE), died_full), LOOP),
    "nobody there before an RST": (
        (sent(), came(RST), complained(Kind.PORT_UNREACHABLE)),
        "ICMP port unreachable from 198.51.100.254: nobody there takes packets to 203.0.113.7:40000",
    ),
    "a packet that was too big says nothing": ((sent(), complained(Kind.TOO_BIG)), SILENCE),
    "an error about what was never sent is forged": ((sent(), complained(Kind.ADMIN_PROHIBITED, seq=77)), SILENCE),
    "an error about another port is forged": ((sent(), complained(Kind.ADMIN_PROHIBITED, port=OTHER)), SILENCE),
    "what this host refused": ((lambda seen: seen.failed("EADDRINUSE"),), f"{SILENCE}; besides: EADDRINUSE"),
}


@pytest.mark.parametrize("name", TABLE)
def test_each_observation_has_its_words(name: str) -> None:
    script, words = TABLE[name]
    assert explained(*script) == words


def test_what_is_known_of_the_nats_stands_behind_it() -> None:
    assert explained(random=True) == (
        f"{SILENCE}; the own NAT picks a random port for each destination, so the peer cannot know ours"
    )
    assert explained(guesses=True) == (
        f"{SILENCE}; the peer's ports are guesses: its NAT may have a new one for each destination"
    )
    assert "guesses" not in explained(came("ACK"), guesses=True), "its port is known now"


def test_a_low_ttl_packet_may_die_at_a_private_address_where_the_own_one_is_public() -> None:
    died_inside = complained(Kind.TIME_EXCEEDED, INSIDE, 999)
    assert explained(low, died_inside, private=False) == (
        f"{SILENCE}; low-TTL packets died at 192.168.1.1, hop 4, as meant"
    )


# --- bounds ---------------------------------------------------------------------------------------------------------

ADDRESSES = st.sampled_from([PEER, ip_address("2001:db8:ffff:ffff:ffff:ffff:ffff:ffff")])
PORTS = st.sampled_from([PORT, OTHER, 65535, 1])
SEQS = st.sampled_from([None, 0, 2**32 - 1])
STEPS = st.one_of(
    st.tuples(st.just("sent"), st.sampled_from([SYN, SYN_ACK, "ACK"]), PORTS, st.sampled_from([LOW, 64, None]), SEQS),
    st.tuples(st.just("came"), st.sampled_from([SYN, SYN_ACK, RST, "ACK"]), PORTS, st.integers(1, 255) | st.none()),
    st.tuples(st.just("complained"), st.builds(Complaint, st.sampled_from(Kind), ADDRESSES, PORTS, SEQS)),
    st.tuples(st.just("failed"), st.sampled_from(["EADDRINUSE", "x" * 300])),
)


@given(
    peer=ADDRESSES,
    steps=st.lists(STEPS, max_size=30),
    named=st.lists(st.integers(10000, 65535), max_size=40, unique=True),
    known=st.tuples(st.booleans(), st.booleans(), st.booleans()),
)
def test_whatever_is_seen_the_sentence_fits_and_is_whole(
    peer: object, steps: list[tuple[object, ...]], named: list[int], known: tuple[bool, bool, bool]
) -> None:
    seen = Seen(peer, LOW)  # type: ignore[arg-type]
    for name, *arguments in steps:
        getattr(seen, str(name))(*arguments)
    random, guesses, private = known
    sentence = seen.explain(named, own_is_random=random, peer_guesses=guesses, is_private_here=private)
    assert 1 <= len(sentence) <= MAX_SENTENCE
    assert set(sentence) <= set(string.printable) - set("|{}\n\r\t")


def test_strangers_cannot_make_it_remember_without_end() -> None:
    seen = Seen(PEER, LOW)
    for port in range(1, 5000):
        seen.came(SYN, port)
        seen.complained(Complaint(Kind.TIME_EXCEEDED, ROUTER, port, port))
    assert len(seen._came[SYN]) == MAX_DIFFERENT
    assert not seen._died


# --- the document ---------------------------------------------------------------------------------------------------


def test_every_sentence_is_explained_in_the_document_and_no_other() -> None:
    rows = [line.split("|")[1].strip() for line in DOCUMENT.read_text().splitlines() if line.startswith("| `")]
    told = [row.strip("`") for row in rows]
    sentences = [str(finding) for finding in Finding] + [REFUSED]
    assert sorted(told) == sorted(as_told(sentence) for sentence in sentences)


def as_told(sentence: str) -> str:
    """With words in capitals where values stand."""
    parts = string.Formatter().parse(sentence)
    return "".join(text + (field.upper() if field else "") for text, field, _, _ in parts)
