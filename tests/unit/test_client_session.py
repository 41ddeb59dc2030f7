"""The client's protocol without I/O. Descriptors are invented numbers here: nothing opens or closes them."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.client.errors import DaemonGoneError, DaemonProtocolError, RequestRefusedError
from punchd.client.events import Failed, Ignored, News, Relay, Trying
from punchd.client.session import Delivery, Granted, Refused, Session
from punchd.control.answers import OkProbe
from punchd.control.requests import Options, Protocol
from punchd.endpoint import PortSet, parse_ip
from punchd.errors import DecodeError

TOKEN = "AgF_OpwC0ehLVQEBAATGM2QEAcNQ"  # noqa: S105 (a token of the line protocol)
OK = b"ok|%b|udp|udp|10.0.0.5|40000|198.51.100.4|50000\n"


def initiate(session: Session) -> str:
    return session.initiate(parse_ip("203.0.113.7"), PortSet((40000,)), ("udp",), Options())


def test_requests_are_written_in_order_with_ids_of_their_own() -> None:
    session = Session()
    session.hello("demo")
    session.probe(Protocol.UDP, Options(lport=5000))
    attempt = initiate(session)
    session.respond(TOKEN, Options(peer=parse_ip("203.0.113.7")))
    session.deliver(attempt, TOKEN)
    session.cancel(attempt)
    session.cancel(attempt)  # once is enough
    lines = session.take_outgoing().decode().splitlines()
    assert lines == [
        "hello|1|demo",
        "probe|p1|udp|lport=5000",
        "initiate|i2|udp|203.0.113.7|40000",
        f"respond|r3|{TOKEN}|peer=203.0.113.7",
        f"respond|i2|{TOKEN}",
        "cancel|i2",
    ]
    assert session.take_outgoing() == b""


def test_every_stage_becomes_its_event_and_unknown_ones_become_news() -> None:
    session = Session()
    attempt = initiate(session)
    stages = f"relay|{TOKEN}", "trying|-", "failed|timeout|no answer|more|and more", "ignored|moon-phase", "waxing|x"
    data = "".join(f"progress|{attempt}|{number}|udp|{stage}\n" for number, stage in enumerate(stages, 1))
    assert [delivery.item for delivery in session.feed(data.encode())] == [
        Relay(1, "udp", TOKEN),
        Trying(2, "udp"),
        Failed(3, "udp", "timeout", "no answer"),
        Ignored(4, "udp", "moon-phase"),
        News(5, "udp", "waxing", "x"),
    ]


def test_a_token_is_not_shown_when_an_event_is_printed() -> None:
    assert TOKEN not in repr(Relay(1, "udp", TOKEN)) + repr(News(1, "udp", "relay2", TOKEN))


def test_each_ok_line_takes_the_descriptor_at_the_head_of_the_queue() -> None:
    session = Session()
    first, second = initiate(session).encode(), initiate(session).encode()
    found = session.feed(OK % second + OK % first, [71, 72])
    assert [(delivery.id, item.descriptor) for delivery in found if isinstance(item := delivery.item, Granted)] == [
        (second.decode(), 71),
        (first.decode(), 72),
    ]
    assert session.take_surplus() == []


def test_an_answer_to_a_probe_takes_no_descriptor() -> None:
    session = Session()
    probe = session.probe(Protocol.UDP, Options())
    found = session.feed(f"ok|{probe}|probe|udp|198.51.100.4|40000-40003|sequential+1|5000|later\n".encode())
    expected = OkProbe(
        probe, Protocol.UDP, parse_ip("198.51.100.4"), PortSet((40000, 40001, 40002, 40003)), "sequential+1", 5000
    )
    assert found == [Delivery(probe, expected)]


@pytest.mark.parametrize(
    ("data", "descriptors", "message"),
    [
        (OK % b"i1", [], "an ok line without its descriptor"),
        (b"progress|i1|1|udp|trying|-\n", [7], "1 descriptor\\(s\\) without an ok line"),
        (OK % b"i1", [7, 8], "1 descriptor\\(s\\) without an ok line"),
        (b"hallo\n", [], "expected version 1 of the line protocol, got 'hallo'"),
        (b"\n", [], "expected version 1"),
        (b"progress|i1|one|udp|trying|-\n", [], "'one'"),
        (b"progress|i1|1|udp|trying|\xc3\xa4\n", [], "byte 0xc3 at position 26"),
        (b"x" * 501, [], "at most 500 bytes"),
        (b"ok|i1|probe|udp|198.51.100.4|40000|open|5000\n", [], "answered attempt i1 as if it were a probe"),
    ],
)
def test_what_the_protocol_forbids_ends_the_connection(data: bytes, descriptors: list[int], message: str) -> None:
    session = Session()
    initiate(session)
    session.feed(data, descriptors)
    assert session.failure is not None
    with pytest.raises(DaemonProtocolError, match=message):
        raise session.failure()
    assert session.feed(OK % b"i1", [9]) == []
    assert session.take_surplus()[-1] == 9


def test_answers_before_a_broken_line_are_still_delivered() -> None:
    session = Session()
    attempt = initiate(session)
    found = session.feed(OK % attempt.encode() + b"garbage\n", [7])
    assert [delivery.id for delivery in found] == [attempt]
    assert session.failure is not None
    assert session.take_surplus() == []  # the application owns it now


def test_truncated_descriptors_end_the_connection_and_are_closed() -> None:
    session = Session()
    attempt = initiate(session)
    assert session.feed(OK % attempt.encode(), [7, 8], truncated=True) == []
    assert session.take_surplus() == [7, 8]
    assert session.failure is not None
    with pytest.raises(DaemonProtocolError, match="MSG_CTRUNC"):
        raise session.failure()


def test_an_ok_after_the_application_left_is_closed_and_what_follows_is_passed_over() -> None:
    session = Session()
    attempt = initiate(session)
    session.take_outgoing()
    session.leave(attempt)
    assert session.take_outgoing() == f"cancel|{attempt}\n".encode()
    assert session.feed(OK % attempt.encode() + f"error|{attempt}|unknown-id|none\n".encode(), [7]) == []
    assert session.take_surplus() == [7]
    assert session.take_outgoing() == b""
    assert session.failure is None


def test_after_a_cancel_the_abort_token_still_comes_and_a_late_ok_is_closed() -> None:
    session = Session()
    attempt = initiate(session)
    session.cancel(attempt)
    found = session.feed(f"progress|{attempt}|1|udp|relay|{TOKEN}\n".encode() + OK % attempt.encode(), [7])
    assert session.take_surplus() == [7]
    assert [type(delivery.item) for delivery in found] == [Relay, Refused]
    assert isinstance(found[1].item, Refused)
    assert found[1].item.code == "cancelled"


def test_news_of_an_attempt_that_a_late_token_started_under_an_old_id_are_answered_with_one_cancel() -> None:
    session = Session()
    attempt = initiate(session)
    session.feed(OK % attempt.encode(), [7])
    session.take_outgoing()
    news = f"progress|{attempt}|2|udp|trying|-\n".encode()
    assert session.feed(news + news) == []
    assert session.take_outgoing() == f"cancel|{attempt}\n".encode()
    assert session.feed(f"error|{attempt}|cancelled|by the application\n".encode()) == []
    assert session.feed(news) == []
    assert session.take_outgoing() == f"cancel|{attempt}\n".encode()  # a new one: the old one had ended


def test_news_of_an_attempt_that_is_being_cancelled_are_passed_over_without_another_cancel() -> None:
    session = Session()
    left, cancelled = initiate(session), initiate(session)
    session.leave(left)
    session.cancel(cancelled)
    session.leave(cancelled)
    session.take_outgoing()
    for attempt in (left, cancelled):
        assert session.feed(f"progress|{attempt}|1|udp|relay|{TOKEN}\n".encode()) == []
    assert session.take_outgoing() == b""


def test_cancelling_and_then_leaving_says_it_once() -> None:
    session = Session()
    attempt = initiate(session)
    session.take_outgoing()
    session.cancel(attempt)
    session.leave(attempt)
    assert session.take_outgoing() == f"cancel|{attempt}\n".encode()


def test_leaving_after_the_end_says_nothing_to_the_daemon() -> None:
    session = Session()
    attempt, probe, refused = initiate(session), session.probe(Protocol.UDP, Options()), initiate(session)
    session.take_outgoing()
    session.feed(OK % attempt.encode(), [7])
    session.feed(f"ok|{probe}|probe|udp|198.51.100.4|40000|open|5000\nerror|{refused}|busy|too many\n".encode())
    for finished in (attempt, probe, refused):
        session.leave(finished)
    assert session.take_outgoing() == b""


def test_a_probe_that_nobody_waits_for_any_more_is_cancelled_and_its_answer_passed_over() -> None:
    session = Session()
    probe = session.probe(Protocol.UDP, Options())
    session.take_outgoing()
    session.leave(probe)
    assert session.take_outgoing() == f"cancel|{probe}\n".encode()
    late = f"ok|{probe}|probe|udp|198.51.100.4|40000|open|5000\nerror|{probe}|unknown-id|no such attempt\n"
    assert session.feed(late.encode()) == []
    assert session.failure is None


@pytest.mark.parametrize("code", ["bad-message", "unknown-id", "duplicate-id", "too-long"])
def test_codes_that_end_nothing_leave_a_running_attempt_alone_but_refuse_a_new_one(code: str) -> None:
    session = Session()
    running, refused = initiate(session), initiate(session)
    session.feed(f"progress|{running}|3|udp|trying|-\n".encode())
    assert session.feed(f"error|{running}|{code}|oh\nerror|{refused}|{code}|oh\n".encode()) == [
        Delivery(running, Ignored(3, "udp", code, "oh")),
        Delivery(refused, Refused(code, "oh")),
    ]


def test_a_complaint_about_no_attempt_ends_the_connection_since_somebody_would_wait_for_ever() -> None:
    session = Session()
    initiate(session)
    session.feed(b"error|-|bad-message|what?\n")
    assert session.failure is not None
    with pytest.raises(RequestRefusedError, match="bad-message: what\\?"):
        raise session.failure()


@pytest.mark.parametrize(
    "token", ["", "short", "A" * 201, TOKEN + "\n", TOKEN + "|peer=1.2.3.4", TOKEN + "\ncancel|i1"]
)
def test_what_is_no_token_never_gets_into_a_line(token: str) -> None:
    session = Session()
    attempt = initiate(session)
    session.take_outgoing()
    assert [delivery.item for delivery in session.deliver(attempt, token)] == [
        Ignored(0, "-", "bad-token", "expected 19-200 characters of base64url; not handed to the daemon")
    ]
    with pytest.raises(DecodeError, match="token: expected 19-200"):
        session.respond(token, Options())
    assert session.take_outgoing() == b""


def test_the_end_of_the_stream_is_told_as_the_daemon_being_gone() -> None:
    session = Session()
    session.feed(b"")
    assert session.failure is not None
    with pytest.raises(DaemonGoneError, match="closed the connection"):
        raise session.failure()


# --- segmentation -----------------------------------------------------------------------------------------------------

LINES = st.sampled_from(
    [
        b"progress|i1|1|udp|relay|AgF_OpwC0ehLVQEBAATGM2QEAcNQ\n",
        b"progress|i2|1|udp|trying|-\n",
        b"progress|i3|2|udp|failed|timeout|for a reason\n",
        b"error|i3|exhausted|no technique succeeded\n",
        b"error|i9|unknown-id|none\n",
        b"ok|p4|probe|udp|198.51.100.4|40000|open|5000\n",
        OK % b"i1",
        OK % b"i2",
        OK % b"i7",  # nobody waits for this one
        b"garbage\n",
        b"error|-|busy|too many\n",
    ]
)


def feed_in_pieces(stream: list[bytes], cuts: set[int]) -> tuple[list[Delivery], list[int], bool]:
    """As the kernel may hand the stream out: cut anywhere; a descriptor comes with its line's first byte."""
    session = Session()
    for _ in range(3):
        initiate(session)
    session.probe(Protocol.UDP, Options())
    descriptors: dict[int, int] = {}
    position = 0
    for number, line in enumerate(stream):
        if line.startswith(b"ok|i"):
            descriptors[position] = 100 + number
        position += len(line)
    data = b"".join(stream)
    borders = sorted({0, len(data)} | {cut for cut in cuts if cut < len(data)})
    found: list[Delivery] = []
    for start, end in pairwise(borders):
        arriving = [descriptor for at, descriptor in descriptors.items() if start <= at < end]
        found += session.feed(data[start:end], arriving)
    return found, sorted(session.take_surplus()), session.failure is None


@given(st.lists(LINES, max_size=8), st.sets(st.integers(0, 600)))
def test_segmentation_changes_nothing(stream: list[bytes], cuts: set[int]) -> None:
    whole = feed_in_pieces(stream, set())
    assert feed_in_pieces(stream, cuts) == whole
    assert feed_in_pieces(stream, set(range(1000))) == whole
    delivered = [item.descriptor for delivery in whole[0] if isinstance(item := delivery.item, Granted)]
    handed_out = [100 + number for number, line in enumerate(stream) if line.startswith(b"ok|i")]
    assert sorted(delivered + whole[1]) == handed_out  # none is lost, none is used twice


@given(st.lists(st.binary(max_size=40) | LINES, max_size=8), st.booleans())
def test_no_stream_of_bytes_raises_or_loses_a_descriptor(pieces: list[bytes], truncated: bool) -> None:
    session = Session()
    initiate(session)
    found = []
    for number, piece in enumerate(pieces):
        found += session.feed(piece, [number], truncated=truncated)
    session.close()
    delivered = [item.descriptor for delivery in found if isinstance(item := delivery.item, Granted)]
    assert sorted(delivered + session.take_surplus()) == list(range(len(pieces)))
