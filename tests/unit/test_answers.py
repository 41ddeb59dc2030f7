"""Answers: the client reads what the daemon wrote, more than it knows, and nothing that is no answer."""

from __future__ import annotations

from ipaddress import IPv6Address

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from punchd.control.answers import (
    Answer,
    Error,
    Ok,
    OkHello,
    OkProbe,
    Progress,
    Stage,
    format_answer,
    parse_answer,
    parse_ports,
)
from punchd.control.lines import MAX_LINE, VERBS, LineSplitter, clean_text
from punchd.control.requests import Protocol
from punchd.endpoint import Endpoint, IPAddress, PortSet, parse_ip
from punchd.errors import Code, DecodeError
from tests.unit import strategies
from tests.unit.strategies import ALNUM, NAMES

names = st.sampled_from(NAMES)
protocols = st.sampled_from(Protocol)
words = st.text(ALNUM + "-+_", min_size=1, max_size=30)
texts = st.text(st.characters(min_codepoint=32, max_codepoint=126, exclude_characters="|"), min_size=1, max_size=200)


def literal(version: int) -> st.SearchStrategy[IPAddress]:
    return strategies.addresses(version).filter(lambda ip: not (isinstance(ip, IPv6Address) and ip.ipv4_mapped))


addresses = st.one_of(literal(4), literal(6))
endpoints = st.builds(Endpoint, addresses, st.integers(0, 65535))
answers: st.SearchStrategy[Answer] = st.one_of(
    st.builds(
        OkHello,
        st.integers(1, 999),
        st.lists(names, max_size=8).map(tuple),
        st.integers(1, 10_000),
        st.lists(st.sampled_from(VERBS)).map(tuple),
    ),
    st.builds(
        OkProbe,
        strategies.ids,
        protocols,
        addresses,
        strategies.port_sets(),
        words,
        strategies.ports,
    ),
    st.builds(Ok, strategies.ids, names, protocols, endpoints, endpoints),
    st.builds(
        Progress,
        strategies.ids,
        st.integers(1, 255),
        names,
        st.one_of(st.sampled_from(Stage), words),
        words,
        st.none() | texts,
    ),
    st.builds(Error, st.none() | strategies.ids, st.one_of(st.sampled_from(Code), words), texts),
)


@settings(max_examples=500)
@given(answers)
def test_an_answer_that_is_written_is_one_line_and_read_as_the_same(answer: Answer) -> None:
    line = format_answer(answer)
    assert LineSplitter().feed(line.encode("ascii") + b"\n") == [line.encode()]
    assert all(line.split("|"))  # fields are never empty
    assert parse_answer(line) == answer


@given(answers, st.lists(st.text("abc -;=", max_size=10), min_size=1, max_size=3))
def test_fields_added_at_the_end_are_ignored(answer: Answer, more: list[str]) -> None:
    if isinstance(answer, Progress) and answer.text is None:
        return  # there the first one is the text
    assert parse_answer("|".join((format_answer(answer), *more))) == answer


LINES = [
    ("ok|-|hello|1|tcp-syni,udp|8", OkHello(1, ("tcp-syni", "udp"), 8)),
    ("ok|-|hello|1|-|8|hello,probe", OkHello(1, (), 8, ("hello", "probe"))),
    (
        "ok|p1|probe|udp|198.51.100.4|40000-40003,7|sequential+1|5000",
        OkProbe(
            "p1", Protocol.UDP, parse_ip("198.51.100.4"), PortSet((40000, 40001, 40002, 40003, 7)), "sequential+1", 5000
        ),
    ),
    (
        "ok|c1|udp|udp|192.168.1.10|50000|203.0.113.7|40000",
        Ok(
            "c1",
            "udp",
            Protocol.UDP,
            Endpoint(parse_ip("192.168.1.10"), 50000),
            Endpoint(parse_ip("203.0.113.7"), 40000),
        ),
    ),
    ("progress|c1|1|udp|trying|-", Progress("c1", 1, "udp", "trying", "-")),
    ("progress|c1|2|moon|waxing|half|as it does", Progress("c1", 2, "moon", "waxing", "half", "as it does")),
    ("error|-|bad-message|expected more", Error(None, "bad-message", "expected more")),
    ("error|c1|out-of-cheese|redo from start", Error("c1", "out-of-cheese", "redo from start")),
]


@pytest.mark.parametrize(("line", "answer"), LINES, ids=[line[:30] for line, _ in LINES])
def test_a_line_means_what_the_protocol_says(line: str, answer: Answer) -> None:
    assert parse_answer(line) == answer


NO_ANSWERS = [
    *("", "|", "ok", "ok|-", "ok|-|hello", "ok|-|hello|1|udp", "ok|-|hello|x|udp|8", "ok|-|hello|1|udp|-1"),
    *("ok|-|hello|1|udp|1_0", "ok|-|hello| 1|udp|8", "hello|1", "OK|c1|udp|udp|192.0.2.1|1|192.0.2.2|2"),
    *("ok|c1|udp|udp|192.0.2.1|1|192.0.2.2", "ok|c1|udp|sctp|192.0.2.1|1|192.0.2.2|2", "ok|c1|udp|udp|x|1|192.0.2.2|2"),
    *("ok|c1|udp|udp|192.0.2.1|65536|192.0.2.2|2", "ok|c1|udp|udp|192.0.2.1|1|192.0.2.2|-2", "ok|c1|udp|udp|1|1|1|1"),
    *("ok|c1|udp|udp|192.0.2.1|+1|192.0.2.2|2", "ok|c1|udp|udp|::ffff:1.2.3.4|1|::ffff:1.2.3.4|2"),
    *(
        "ok|p1|probe|udp|192.0.2.1|0|open|5000",
        "ok|p1|probe|udp|192.0.2.1|1-99|open|5000",
        "ok|p1|probe|udp|192.0.2.1|7",
    ),
    *("ok|p1|probe|udp|192.0.2.1|1,,2|open|5000", "ok|p1|probe|udp|192.0.2.1|7|open|99999"),
    *(
        "progress|c1|1|udp|trying",
        "progress|c1|x|udp|trying|-",
        "progress|c1||udp|trying|-",
        "error|c1|timeout",
        "error",
    ),
    *("ok|p1|probe|udp|192.0.2.1|7|open|" + "9" * 5000, "error\u0000"),
]


@pytest.mark.parametrize("line", NO_ANSWERS, ids=[line[:40] for line in NO_ANSWERS])
def test_what_is_no_answer_is_a_decode_error(line: str) -> None:
    with pytest.raises(DecodeError):
        parse_answer(line)


pieces = st.one_of(
    st.sampled_from(
        ["ok", "progress", "error", "-", "hello", "probe", "udp", "tcp", "192.0.2.1", "::1", "1-5", "7", "c1"]
    ),
    st.text(max_size=8),
)


@settings(max_examples=1000)
@given(st.lists(pieces, max_size=10).map("|".join))
@example("ok|-|hello|\u0661|udp|8")
@example("ok|-|hello|\u00b2|udp|8")
def test_any_line_gives_an_answer_or_a_decode_error(line: str) -> None:
    try:
        outcome = format_answer(parse_answer(line))
    except DecodeError as error:
        outcome = str(error)
    assert 0 < len(outcome) < MAX_LINE


def test_free_text_is_made_fit_for_a_line_where_it_is_written() -> None:
    text = "a|b\nc\u00e9" + "x" * 300
    assert format_answer(Error("c1", Code.INTERNAL, text)) == f"error|c1|internal|{clean_text(text)}"
    assert format_answer(Progress("c1", 1, "udp", Stage.FAILED, Code.TIMEOUT, "a|b")).endswith("|timeout|a?b")


def test_an_empty_text_leaves_no_empty_field() -> None:
    assert format_answer(Error(None, Code.INTERNAL, "")) == "error|-|internal|-"
    assert format_answer(Progress("c1", 1, "udp", Stage.FAILED, Code.TIMEOUT, "")) == "progress|c1|1|udp|failed|timeout"
    assert format_answer(OkHello(1, (), 8)) == "ok|-|hello|1|-|8|-"


@given(strategies.port_sets())
def test_ports_that_are_written_are_read_as_the_same(ports: PortSet) -> None:
    assert parse_ports(str(ports)) == ports


WRONG_PORTS = [
    "",
    ",",
    "0",
    "65536",
    "1-65535",
    "5-4",
    "5-5",
    "5-4,7",
    "1,1",
    "1,3,5,7,9",
    "-5",
    "5-",
    " 5",
    "+5",
    "5_0",
]


@pytest.mark.parametrize("text", [*WRONG_PORTS, "1-99999999999", "\u0665"])
def test_other_port_lists_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_ports(text)
