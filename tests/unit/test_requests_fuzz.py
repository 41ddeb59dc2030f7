"""Requests against a second reading of the protocol: a million mutated lines, and every request written and read.

A wrong verdict is one that `request_oracle` does not share: taken or refused, with which code, under which id.
"""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings

from punchd.control.fields import Options, Rules
from punchd.control.lines import MAX_LINE, LineSplitter
from punchd.control.requests import (
    Cancel,
    Hello,
    Initiate,
    Probe,
    Protocol,
    Request,
    Respond,
    format_request,
    parse_request,
)
from punchd.endpoint import PortSet, parse_ip
from punchd.errors import ProtocolError
from punchd.wire import token as tokens
from tests.unit import request_oracle, strategies
from tests.unit.strategies import NAMES, PLUGIN, RULES

OFFER = "AgF_OpwC0ehLVQEDAAQAAADGM2QEAcNQABERERERERERERERERERERE"
SKIP = "AgN_OpwC0ehLVQEDAAc"
NOTE = "AgV_OpwC0ehLVQECAUABABQgAQ24AAAAAAAAAAAAAAAEAsNQw1EBnEAE"

CORPUS = [
    "hello|1",
    "hello|999|demo-app/1.0",
    "cancel|c1",
    "probe|p1|udp",
    "probe|p1|tcp|lport=5000;local=192.0.2.4;stun=stun.example.net:3478",
    "initiate|c1|auto|203.0.113.7|40000",
    "initiate|c1|tcp-syni,udp,udp|203.0.113.7|40000-40007,50000|lport=50000;public=198.51.100.4;pports=50000",
    "initiate|v6|all|2001:db8:2::7|1,3,5-7,65535|local=2001:db8:1::4;lport=0;timeout=20000;ttl=4;stun=2001:db8::5:3478",
    f"initiate|A_.9|{PLUGIN},tcp-repair|192.0.2.1|65535|stun=192.0.2.9:65535;timeout=120000;ttl=64",
    f"respond|r9|{OFFER}",
    f"respond|r9|{OFFER}|peer=198.51.100.4;lport=40000;tech=udp,tcp-nutss;timeout=1000;ttl=1",
    f"respond|r9|{SKIP}|local=2001:db8::1;public=2001:db8::2;peer=2001:db8::3",
    f"respond|r9|{NOTE}|pports=1-16",
    "respond|r9|AgF_OpwC0ehLVQEBAAQAAADGM2QEAcNQAZxAARorPE0FtAcB",  # tcp-syni, a SYN's numbers
    "respond|r9|AgJ_OpwC0ehLVQIEAAQAAADGM2QEAcNQAZxAAQAAAAA|peer=198.51.100.4",  # tcp-repair
]
# What fields hold at their edges. A mutated line often gets one of these for one of its own pieces.
PIECES = [
    *("", "-", "0", "1", "4", "64", "65", "999", "1000", "1023", "1024", "65535", "65536", "120000", "120001", "99999"),
    *("auto", "all", "udp", "tcp", "tcp-syni", "tcp-nutss", "tcp-repair", PLUGIN, "udp,udp", "udp,udp,udp"),
    *("203.0.113.7", "10.0.0.1", "172.32.0.1", "127.0.0.1", "0.0.0.0", "255.255.255.255", "100.128.0.1", "1.2.3"),  # noqa: S104
    *("2001:db8::1", "::1", "::", "fe80::1", "fc00::1", "::ffff:1.2.3.4", "2001:DB8::1", "2001:db8::1:0:0:1", "1::1%1"),
    *("1-16", "1-17", "5-5", "6-5", "1,2,3,4", "1,2,3,4,5", "1,1", "01", "65535-65536", OFFER, SKIP, NOTE, "A" * 19),
    *(
        "ttl=4",
        "lport=80",
        "local=0.0.0.0",
        "public=2001:db8::9",
        "peer=192.0.2.1",
        "tech=auto",
        "stun=a:1",
        "stun=::1",
    ),
    *(
        "stun=a-b.c_d:65535",
        "stun=2001:db8::1:80",
        "timeout=1000",
        "pports=1,2",
        "ttl=4;ttl=5",
        "x" * 450,
        "hello",
        "|",
    ),
]
SEPARATORS = "|;,-=:."
CHARACTERS = SEPARATORS + "0123456789abcdefxyzAZ_/+ ~\t\r\0\x7f\x80\xff"
LINES_PER_SEED = 50_000
SEEDS = [1, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(2, 21))]  # a million lines in all


def take(line: bytes, rules: Rules = RULES) -> Request:
    """As the daemon does: framing first, then the line."""
    [found] = LineSplitter().feed(line + b"\n")
    if isinstance(found, ProtocolError):
        raise found
    return parse_request(found, rules)


def outcome(line: bytes) -> tuple[Request | None, str | None, str | None]:
    """The request, or the code and the id of the error line."""
    try:
        return take(line), None, None
    except ProtocolError as error:
        return None, error.code, error.attempt_id


def mutate(line: str, rng: random.Random) -> str:
    """One small change; mostly between separators, for lines that come near to being right."""
    separator = rng.choice("||||;;,=")
    pieces = line.split(separator)
    at = rng.randrange(len(pieces))
    place = rng.randrange(len(line) + 1)
    match rng.randrange(10):
        case 0 | 1 | 2:
            pieces[at] = rng.choice(PIECES)
        case 3:
            pieces.insert(at, rng.choice(PIECES))
        case 4:
            del pieces[at]
        case 5:
            pieces[at] = rng.choice(pieces)
        case 6:
            return line[:place] + rng.choice(CHARACTERS) + line[place:]
        case 7:
            return line[:place] + rng.choice(CHARACTERS) + line[place + 1 :]
        case 8:
            return line[:place] + line[place + rng.randrange(1, 4) :]
        case _:
            other = rng.choice(CORPUS).split(separator)
            pieces[at:] = other[at:]
    return separator.join(pieces)


@pytest.mark.parametrize("seed", SEEDS)
def test_mutated_lines_get_the_verdict_of_a_second_reading(seed: int) -> None:
    rng = random.Random(seed)
    taken = 0
    codes: set[str] = set()
    for _ in range(LINES_PER_SEED):
        text = rng.choice(CORPUS)
        for _ in range(rng.choice((1, 1, 2, 3))):
            text = mutate(text, rng)
        line = text.encode("latin-1")
        expected = request_oracle.verdict(line, NAMES)
        request, code, attempt_id = outcome(line)
        assert code == expected[0], line
        if request is None:
            assert attempt_id == expected[1], line
            codes.add(str(code))
        else:
            taken += 1
            assert take(format_request(request).encode()) == request, line
    assert 0.1 < taken / LINES_PER_SEED < 0.6  # a mutator that only breaks, or never does, asks nothing
    assert codes == {
        *("bad-message", "too-long", "bad-version", "bad-technique", "bad-address", "bad-port", "bad-option"),
        *("bad-token", "token-version"),
    }


@pytest.mark.parametrize("line", CORPUS, ids=[line[:40] for line in CORPUS])
def test_the_lines_that_are_mutated_are_right(line: str) -> None:
    assert format_request(take(line.encode())) != ""
    assert request_oracle.verdict(line.encode(), NAMES)[0] is None


@settings(max_examples=1500)
@given(strategies.requests())
def test_a_request_that_is_written_is_read_as_the_same(request: Request) -> None:
    check_round_trip(request)


@pytest.mark.long
@settings(max_examples=10_000)
@given(strategies.requests())
def test_ten_thousand_requests_that_are_written_are_read_as_the_same(request: Request) -> None:
    check_round_trip(request)


def check_round_trip(request: Request) -> None:
    line = format_request(request).encode()
    if len(line) <= MAX_LINE:
        assert take(line) == request
        assert request_oracle.verdict(line, NAMES)[0] is None
    else:
        assert parse_request(line, RULES) == request


ACCEPTED: list[tuple[str, Request]] = [
    ("hello|1", Hello(1)),
    ("hello|999|demo-app/1.0+x", Hello(999, "demo-app/1.0+x")),
    ("cancel|_.aZ9", Cancel("_.aZ9")),
    ("cancel|" + "c" * 16, Cancel("c" * 16)),
    ("probe|p1|tcp", Probe("p1", Protocol.TCP)),
    ("probe|p1|udp|lport=65535", Probe("p1", Protocol.UDP, Options(lport=65535))),
    ("probe|p1|udp|local=127.0.0.1", Probe("p1", Protocol.UDP, Options(local=parse_ip("127.0.0.1")))),
    ("probe|p1|udp|stun=a:1", Probe("p1", Protocol.UDP, Options(stun=("a", 1)))),
    ("probe|p1|udp|stun=2001:db8::1:80", Probe("p1", Protocol.UDP, Options(stun=("2001:db8::1", 80)))),
    ("initiate|c|auto|203.0.113.7|1", Initiate("c", ("auto",), parse_ip("203.0.113.7"), PortSet((1,)))),
    (
        "initiate|c|udp,tcp-syni,udp|2001:db8::7|9,65535,4-5,1|ttl=64;timeout=1000;lport=1024",
        Initiate(
            "c",
            ("udp", "tcp-syni", "udp"),
            parse_ip("2001:db8::7"),
            PortSet((9, 65535, 4, 5, 1)),
            Options(lport=1024, timeout_ms=1000, ttl=64),
        ),
    ),
    (f"respond|r|{OFFER}", Respond("r", tokens.decode(OFFER))),
    (f"respond|r|{SKIP}|tech=all", Respond("r", tokens.decode(SKIP), Options(techniques=("all",)))),
]


@pytest.mark.parametrize(("line", "request_"), ACCEPTED, ids=[line[:40] for line, _ in ACCEPTED])
def test_a_line_means_what_the_protocol_says(line: str, request_: Request) -> None:
    assert take(line.encode()) == request_


@pytest.mark.parametrize("text", ["10.0.0.1", "172.31.255.255", "192.168.0.0", "100.127.0.1", "fdff::1"])
def test_private_addresses_are_taken_where_the_configuration_allows_them(text: str) -> None:
    generous = Rules(NAMES, allow_private=True)
    request = take(f"initiate|c1|udp|{text}|40000|public={text}".encode(), generous)
    assert isinstance(request, Initiate)
    assert request.ip == request.options.public == parse_ip(text)


@pytest.mark.parametrize("text", ["127.0.0.1", "224.0.0.1", "169.254.1.1", "::1", "fe80::1", "0.0.0.0"])  # noqa: S104
def test_what_is_never_a_peer_is_refused_there_too(text: str) -> None:
    with pytest.raises(ProtocolError, match=r" is an? .* address"):
        take(f"initiate|c1|udp|{text}|40000".encode(), Rules(NAMES, allow_private=True))
