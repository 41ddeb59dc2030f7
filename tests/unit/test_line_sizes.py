"""The largest lines there can be, computed: which of them fit into 500 bytes (daemon-api §8, with §13.11's `stun`)."""

from __future__ import annotations

from dataclasses import replace

import pytest

from punchd.control.answers import Answer, Error, Ok, OkHello, OkProbe, Progress, Stage, format_answer
from punchd.control.fields import Options, Rules
from punchd.control.lines import MAX_LINE, VERBS, LineSplitter
from punchd.control.requests import (
    Cancel,
    Hello,
    Initiate,
    Probe,
    Protocol,
    Request,
    format_request,
    format_respond,
    parse_request,
)
from punchd.endpoint import Endpoint, PortSet, parse_ip
from punchd.errors import Code, ProtocolError
from punchd.wire.token import MAX_CHARACTERS, TECHNIQUE_NUMBERS, Card, Kind, Token, encode
from tests.unit.strategies import BODY_SIZES

ID = "c" * 16
PLUGINS = tuple(f"{letter}-plugin-of-16-c" for letter in "abcdefgh")
IPV6 = parse_ip("2001:db80:1111:2222:3333:4444:5555:6666")  # 39 characters, the most there are
PORTS = PortSet(tuple(first + more for first in (65000, 65100, 65200, 65300) for more in range(4)))
OPTIONS = Options(IPV6, 65535, IPV6, PORTS, timeout_ms=120_000, ttl=64, stun=("h" * 58, 65535))
RESPONDING = replace(OPTIONS, peer=IPV6)
DEFAULT = ("tcp-syni", "tcp-nutss", "udp")
BUILT_IN = tuple(TECHNIQUE_NUMBERS)


def largest_token(technique: int, body: int = 0) -> str:
    card = Card(IPV6, PORTS, PORTS.ports, ttl=64, rtt_ms=65535, body=bytes(body))
    return encode(Token(Kind.OFFER, bytes(8), 255, technique, card))


UDP_TOKEN = largest_token(TECHNIQUE_NUMBERS["udp"], 16)
PLUGIN_TOKEN = largest_token(255, 70)


def test_the_largest_token_of_each_technique_stays_under_200_characters() -> None:
    assert {name: len(largest_token(number, BODY_SIZES[name])) for name, number in TECHNIQUE_NUMBERS.items()} == {
        "tcp-syni": 116,
        "tcp-nutss": 106,
        "udp": 127,
        "tcp-repair": 111,
    }


def test_a_plugin_has_70_bytes_for_itself_in_the_largest_token() -> None:
    assert len(PLUGIN_TOKEN) == MAX_CHARACTERS
    with pytest.raises(ValueError, match="token of 202 characters, at most 200"):
        largest_token(255, 71)


REQUESTS: list[tuple[str, Request, int]] = [
    ("hello", Hello(999, "x" * 32), 42),
    ("cancel", Cancel(ID), 23),
    ("probe", Probe(ID, Protocol.UDP, Options(IPV6, 65535, stun=OPTIONS.stun)), 154),
    ("initiate, the default techniques", Initiate(ID, DEFAULT, IPV6, PORTS, OPTIONS), 388),
    ("initiate, all built-in techniques twice", Initiate(ID, BUILT_IN * 2, IPV6, PORTS, OPTIONS), 433),
    ("initiate, eight long names, no stun", Initiate(ID, PLUGINS, IPV6, PORTS, replace(OPTIONS, stun=None)), 431),
]


@pytest.mark.parametrize(("request_", "size"), [row[1:] for row in REQUESTS], ids=[row[0] for row in REQUESTS])
def test_the_largest_requests_fit_into_a_line(request_: Request, size: int) -> None:
    line = format_request(request_).encode()
    assert len(line) == size <= MAX_LINE
    [whole] = LineSplitter().feed(line + b"\n")
    assert isinstance(whole, bytes)
    assert parse_request(whole, Rules((*BUILT_IN, *PLUGINS))) == request_


RESPONDS = [
    ("every option, each built-in technique", UDP_TOKEN, replace(RESPONDING, techniques=BUILT_IN), 488),
    (
        "a plugin's token, every option of \u00a78",
        PLUGIN_TOKEN,
        replace(RESPONDING, techniques=DEFAULT, stun=None),
        480,
    ),
    ("a plugin's token, nothing agreed", PLUGIN_TOKEN, replace(RESPONDING, stun=None), 452),
    ("the peer and the techniques pinned", PLUGIN_TOKEN, Options(peer=IPV6, techniques=BUILT_IN), 309),
]


@pytest.mark.parametrize(("token", "options", "size"), [row[1:] for row in RESPONDS], ids=[row[0] for row in RESPONDS])
def test_the_largest_responds_fit_into_a_line(token: str, options: Options, size: int) -> None:
    line = format_respond(ID, token, options).encode()
    assert len(line) == size <= MAX_LINE
    assert parse_request(line, Rules(BUILT_IN)).options == options  # type: ignore[union-attr]


# Every field of these is right, the line is not: the limit of 500 bytes comes first (\u00a71), and the daemon hangs up.
# A client must look before it writes, as punchd.client does.
TOO_LONG = [
    ("initiate, eight longest names and stun", format_request(Initiate(ID, PLUGINS, IPV6, PORTS, OPTIONS)), 501),
    (
        "respond, techniques repeated",
        format_respond(
            ID, UDP_TOKEN, replace(RESPONDING, techniques=("tcp-repair", "tcp-nutss", "tcp-syni") * 2 + ("udp",))
        ),
        518,
    ),
    (
        "respond, a plugin's token and stun",
        format_respond(ID, PLUGIN_TOKEN, replace(RESPONDING, techniques=DEFAULT)),
        550,
    ),
]


@pytest.mark.parametrize(("line", "size"), [row[1:] for row in TOO_LONG], ids=[row[0] for row in TOO_LONG])
def test_some_combinations_of_right_fields_are_longer_than_a_line(line: str, size: int) -> None:
    assert len(line) == size
    assert not isinstance(parse_request(line.encode(), Rules((*BUILT_IN, *PLUGINS))), Hello)
    [complaint] = LineSplitter().feed(line.encode() + b"\n")
    assert isinstance(complaint, ProtocolError)
    assert complaint.code is Code.TOO_LONG


END = Endpoint(IPV6, 65535)
LONGEST_CODE = max(Code, key=len)
ANSWERS: list[tuple[str, Answer, int]] = [
    ("ok", Ok(ID, PLUGINS[0], Protocol.UDP, END, END), 132),
    ("ok probe", OkProbe(ID, Protocol.UDP, IPV6, PORTS, "endpoint-independent", 65535), 144),
    ("ok hello", OkHello(999, PLUGINS, 10_000, VERBS), 192),
    ("progress, relay", Progress(ID, 255, PLUGINS[0], Stage.RELAY, PLUGIN_TOKEN), 253),
    ("progress, failed", Progress(ID, 255, PLUGINS[0], Stage.FAILED, LONGEST_CODE, "\u00e9" * 999), 272),
    ("error", Error(ID, LONGEST_CODE, "x" * 999), 241),
]


@pytest.mark.parametrize(("answer", "size"), [row[1:] for row in ANSWERS], ids=[row[0] for row in ANSWERS])
def test_the_largest_answers_fit_into_a_line(answer: Answer, size: int) -> None:
    line = format_answer(answer).encode("ascii")
    assert len(line) == size <= MAX_LINE
    assert LineSplitter().feed(line + b"\n") == [line]
