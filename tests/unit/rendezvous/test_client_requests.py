"""When a request is sent again, under virtual time, and what its answers mean."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock

from punchd.errors import DecodeError
from punchd.rendezvous import client_answers
from punchd.rendezvous.client_answers import Membership
from punchd.rendezvous.client_errors import IdentityLostError, NotRendezvousError, RefusedError, UnreachableError
from punchd.rendezvous.client_requests import MOST_PAUSE_S, PATIENCE_S, Requests, server
from punchd.web import client_url
from punchd.web.client_http import Reply

URL = server(client_url.parse("https://rendezvous.example:5025", "rendezvous URL"))
KEY = bytes(32)


def refusal(status: int, code: str, **fields: str) -> Reply:
    body = json.dumps({"ok": False, "error": code, "message": "no"}).encode()
    return Reply(status, {name.replace("_", "-"): value for name, value in fields.items()}, body)


TAKEN = Reply(202, {}, b'{"ok":true,"timestamp":1}')
SILENCE = UnreachableError("nobody")


class Server:
    """Answers as told, the last word again and again; knows when it was asked."""

    def __init__(self, *answers: Reply | Exception) -> None:
        self.answers = list(answers)
        self.asked_at: list[float] = []

    async def ask(self, _method: str, _path: str, **_: Any) -> Reply:
        await trio.lowlevel.checkpoint()
        self.asked_at.append(trio.current_time() - self._began)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def send(self) -> None:
        """A client sends a signal."""
        self._began = trio.current_time()
        await Requests(URL, self).send(KEY, bytes(16), "x")  # type: ignore[arg-type]


async def test_429_is_waited_out_at_the_servers_pace(autojump_clock: MockClock) -> None:
    del autojump_clock
    limited = [refusal(429, "RATE_LIMITED", retry_after="7"), refusal(429, "QUEUE_FULL", retry_after="1")]
    for unclear in ("", "soon", "-5", "Wed, 21 Oct 2026 07:28:00 GMT"):
        limited.append(refusal(429, "RATE_LIMITED", retry_after=unclear))
    limited.append(refusal(429, "RATE_LIMITED", retry_after="999999999"))
    server = Server(*limited, TAKEN)
    await server.send()
    assert server.asked_at == pytest.approx([0, 7, 8, 9, 10, 11, 12, 72])


async def test_silence_is_borne_for_15_s_with_pauses_that_grow(autojump_clock: MockClock) -> None:
    del autojump_clock
    server = Server(SILENCE)
    with pytest.raises(UnreachableError, match="nobody"):
        await server.send()
    assert PATIENCE_S - MOST_PAUSE_S <= server.asked_at[-1] <= PATIENCE_S
    assert 6 <= len(server.asked_at) <= 14
    server = Server(SILENCE, SILENCE, SILENCE, TAKEN)
    await server.send()
    assert server.asked_at[-1] <= 0.25 + 0.5 + 1


@pytest.mark.parametrize("status", [502, 503, 504])
async def test_a_server_behind_a_proxy_may_be_away_for_as_long(status: int, autojump_clock: MockClock) -> None:
    del autojump_clock
    busy = Reply(status, {"retry-after": "3", "content-type": "text/html"}, b"<html>")
    await Server(busy, busy, TAKEN).send()
    server = Server(busy)
    with pytest.raises(UnreachableError, match=f"expected its answer, got a proxy's status {status}"):
        await server.send()
    assert server.asked_at == pytest.approx([0, 3, 6, 9, 12, 15])


async def test_a_server_whose_store_is_away_counts_as_one_that_does_not_answer(autojump_clock: MockClock) -> None:
    del autojump_clock
    away = refusal(503, "UNHEALTHY", retry_after="1")
    await Server(away, away, TAKEN).send()
    server = Server(away)
    with pytest.raises(UnreachableError, match=r"POST /peer/0+/signal: no \(503 UNHEALTHY\)$"):
        await server.send()
    assert server.asked_at == pytest.approx(range(16))


async def test_what_time_does_not_change_is_not_tried_again(autojump_clock: MockClock) -> None:
    del autojump_clock
    for answer, error in (
        (refusal(401, "AUTH_FAILED"), IdentityLostError),
        (refusal(413, "BODY_TOO_LARGE"), RefusedError),
        (Reply(401, {}, b"<html>login</html>"), NotRendezvousError),  # a proxy's; nobody was forgotten
        (Reply(404, {}, b"<html>"), NotRendezvousError),
        (refusal(401, "LOGIN_FIRST"), RefusedError),
    ):
        server = Server(answer)
        with pytest.raises(error):
            await server.send()
        assert server.asked_at == [0]


async def test_a_server_without_signals_says_404(autojump_clock: MockClock) -> None:
    del autojump_clock
    server = Server(Reply(404, {}, b"<html>"))
    server._began = 0
    with pytest.raises(RefusedError, match="expected signals, but this server has none"):
        await Requests(URL, server).signals(KEY, 25)  # type: ignore[arg-type]


# --- answers ---------------------------------------------------------------------------------------------------------

READERS: list[Callable[[bytes], object]] = [
    client_answers.membership,
    client_answers.timestamp,
    client_answers.addresses,
    client_answers.presence,
    client_answers.signals,
    client_answers.binding,
    client_answers.objection,
]
HEX = st.sampled_from(["ab" * 16, "cd" * 32, "ef" * 64, "AB" * 16, "xy" * 16, "ab"])


def members(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    names = (
        "client_id private_id timestamp addresses family host port age status last_online signals from data "
        "public_key signed_at signature error message"
    )
    return st.dictionaries(st.sampled_from(names.split()), values, max_size=8)


VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), HEX, st.text(max_size=5), st.just("192.0.2.1")),
    lambda inner: st.one_of(st.lists(inner, max_size=3), members(inner)),
    max_leaves=10,
)


@given(st.one_of(st.binary(max_size=30), members(VALUES).map(lambda value: json.dumps(value).encode())))
def test_an_answer_is_read_or_refused_with_one_line_and_nothing_else_happens(body: bytes) -> None:
    for read in READERS:
        complaint = ""
        try:
            read(body)
        except DecodeError as error:
            complaint = str(error)
        assert not complaint or complaint.isprintable()


def test_an_answer_of_the_seed_names_one_address_and_may_have_times_with_fractions() -> None:
    [seen] = client_answers.addresses(b'{"client_id":"x","host":"192.0.2.1","port":4000,"timestamp":1.5,"ok":true}')
    assert (str(seen.endpoint), seen.age) == ("192.0.2.1:4000", 0.0)
    assert client_answers.timestamp(b'{"timestamp":1700000000.7}') == 1_700_000_000


def test_the_key_is_not_shown() -> None:
    assert repr(Membership(b"\1" * 16, b"\2" * 32)) == f"Membership({'01' * 16})"
