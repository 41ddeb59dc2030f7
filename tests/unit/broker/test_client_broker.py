"""The client and the real broker."""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from punchd.broker.client import (
    Broker,
    Created,
    EndedError,
    Error,
    Event,
    HealthReport,
    HealthStatus,
    InsecureError,
    Joined,
    Light,
    NotBrokerError,
    Peer,
    PeerMatch,
    Reconnected,
    Reconnecting,
    RefusedError,
    Register,
    Session,
    SessionClosed,
    Srt,
    Start,
    State,
    StreamState,
    Tally,
    UnreachableError,
)
from punchd.broker.server_messages import ErrorCode
from punchd.broker.sockets import Line
from punchd.errors import ConfigError, DecodeError, PunchdError
from punchd.web.listen import Certificate
from tests.unit.broker.contract import TAP
from tests.unit.broker.fake_broker import CLOSED, PATIENCE_S, PEER, Conversation, fake
from tests.unit.broker.running import Running, running, settings
from tests.unit.web.certificates import write_certificate


@asynccontextmanager
async def place(**changes: Any) -> AsyncIterator[tuple[Running, Broker]]:
    """A broker, and a client of it."""
    async with running(settings(**changes)) as server, Broker.open(f"http://127.0.0.1:{server.port}") as broker:
        with trio.fail_after(PATIENCE_S):
            yield server, broker


async def create(broker: Broker, **more: Any) -> Created:
    made = await broker.create("show", streams=["wide"], **more)
    for token in (made.token, *made.peer_tokens.values()):
        TAP.token(token)
    return made


async def until(joined: Joined, *kinds: type[Event]) -> list[Event]:
    """What is told up to one of these."""
    found = []
    async for event in joined:
        found.append(event)
        if isinstance(event, kinds):
            return found
    raise AssertionError(f"over before: {found}")


async def test_b_059_b_060_nothing_of_server_and_client_depends_on_which_of_peer_and_session_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The server says them the other way round; all goes on as it does otherwise."""
    deliver, held = Line.deliver, dict[str, str]()

    def swapped(line: Line, text: str, code: ErrorCode | None = None) -> None:
        if json.loads(text)["type"] in ("peer", "peer_match"):
            held[line.id] = text
            return
        deliver(line, text, code)
        if line.id in held:
            deliver(line, held.pop(line.id))

    monkeypatch.setattr(Line, "deliver", swapped)
    async with place() as (_, broker), contextlib.AsyncExitStack() as stack:
        made = await create(broker)
        joined = []
        for port in (5000, 6000):
            entered = broker.join("show", made.peer_tokens["wide"], register=Register(port=port))
            joined.append(await stack.enter_async_context(entered))
        admin = await stack.enter_async_context(broker.join("show", made.token))
        for one in joined:
            told = await until(one, Peer)
            assert [type(event) for event in told][-2:] == [Session, Peer]
            await one.ready()
        for one in joined:
            await until(one, Start)
        await joined[0].status(Srt.CONNECTED)
        states = [event.state async for event in _sessions(admin)]
        assert states[-2:] == [State.READY, State.CONNECTED]
        assert held == {}


async def _sessions(admin: Joined) -> AsyncIterator[Session]:
    """All that an admin is told of the session's state, until it is connected."""
    async for event in admin:
        if isinstance(event, Session):
            yield event
            if event.state is State.CONNECTED:
                return


async def test_a_session_from_its_creation_to_its_end() -> None:
    async with place() as (_, broker), contextlib.AsyncExitStack() as stack:
        made = await create(broker, latency_ms=300, ttl_s=60)
        assert (made.name, made.streams, made.latency_ms, made.ttl_s) == ("show", ("wide",), 300, 60)
        token = made.peer_tokens["wide"]
        admin = await stack.enter_async_context(broker.join("show", made.token))
        assert await until(admin, Session) == [Session(State.WAITING, {"wide": StreamState("WAITING", 0)}, 0, 2)]
        peers = []
        for port in (5000, 6000):
            meta = json.dumps({"name": f"at {port}"})
            peers.append(
                await stack.enter_async_context(
                    broker.join("show", token, register=Register(port=port, meta=meta, public_port=port))
                )
            )
            await until(peers[-1], Session)
        a, b = peers
        assert a.ip_version == 4
        seen = (await until(a, Peer))[-1]
        assert isinstance(seen, Peer)
        assert (str(seen.endpoint), seen.local_port, seen.latency_ms) == ("127.0.0.1:6000", 5000, 300)
        assert seen.meta == {"name": "at 6000"}
        [*_, match] = await until(admin, PeerMatch)
        assert isinstance(match, PeerMatch)
        assert (match.a.port, match.b.port, match.passphrase) == (5000, 6000, seen.passphrase)
        assert seen.passphrase not in repr(seen) + repr(match) + repr(made)
        for one in peers:
            assert await one.ready()
        for one in peers:
            assert (await until(one, Start))[-1] == Start("wide")
        await a.status(Srt.CONNECTED)
        async for event in admin:
            if isinstance(event, Session) and event.state is State.CONNECTED:
                break
        await b.health(rtt=10, retransmit=0.5, bitrate=5e6, dropped=0)
        [*_, report] = await until(b, HealthReport)
        assert isinstance(report, HealthReport)
        assert report.streams["wide"].status is HealthStatus.HEALTHY
        assert await admin.tally(Light.PROGRAM)
        for one in (admin, a, b):
            assert (await until(one, Tally))[-1] == Tally("wide", Light.PROGRAM)
        seen_now = await broker.status("show", made.token)
        assert (seen_now.state, seen_now.tally, seen_now.connected) == (State.CONNECTED, {"wide": Light.PROGRAM}, 2)
        string = await broker.connection_string("show", made.token, form="url", side="b")
        assert string.value.startswith("srt://127.0.0.1:5000?mode=rendezvous&port=6000")
        await broker.close_session("show", made.token)
        for one in (admin, a, b):
            assert (await until(one, SessionClosed))[-1] == SessionClosed("admin_closed")
            assert [event async for event in one] == []


async def test_tokens_are_minted_and_made_worthless() -> None:
    async with place() as (_, broker):
        made = await create(broker)
        minted = await broker.mint("show", made.token, ttl_s=60, label="truck")
        TAP.token(minted.token)
        assert minted.stream == "wide"
        assert minted.token in minted.url
        async with broker.join("show", minted.token, register=Register(port=5000)) as joined:
            await until(joined, Session)
            await broker.revoke("show", made.token, minted.token)
            with pytest.raises(EndedError, match="for good"):
                await until(joined, SessionClosed)
            assert [event async for event in joined] == []
        with pytest.raises(RefusedError, match="401 AUTH_FAILED"):
            await broker.status("show", minted.token)


@pytest.mark.parametrize(
    ("ask", "status", "code"),
    [
        (lambda broker, made: broker.create("show"), 409, "SESSION_EXISTS"),
        (lambda broker, made: broker.create("other", ttl_s=0), 400, "INVALID_REQUEST"),
        (lambda broker, made: broker.close_session("show", made.peer_tokens["wide"]), 403, "AUTH_FAILED"),
        (lambda broker, made: broker.status("other", made.token), 401, "AUTH_FAILED"),
        (lambda broker, made: broker.mint("show", made.token, stream="no"), 404, "STREAM_NOT_FOUND"),
        (lambda broker, made: broker.revoke("show", made.token, "p_a.b"), 404, "NOT_FOUND"),
        (lambda broker, made: broker.connection_string("show", made.token), 409, "NOT_READY"),
        (lambda broker, made: broker.join("show", "p_a.b").__aenter__(), 401, "AUTH_FAILED"),
    ],
)
async def test_a_refusal_has_the_brokers_status_and_code(ask: Callable[..., Any], status: int, code: str) -> None:
    async with place() as (_, broker):
        made = await create(broker)
        with pytest.raises(RefusedError) as caught:
            await ask(broker, made)
        assert (caught.value.status, caught.value.code) == (status, code)
        assert made.token not in str(caught.value)


async def test_a_limit_says_when_to_come_back() -> None:
    async with place(limits={"creations_per_minute": 1}) as (_, broker):
        await create(broker)
        with pytest.raises(RefusedError) as caught:
            await broker.create("other")
        assert (caught.value.status, caught.value.code) == (429, "RATE_LIMITED")
        assert caught.value.retry_after_s is not None
        assert 1 <= caught.value.retry_after_s <= 60


@pytest.mark.parametrize(
    "ask",
    [
        lambda broker: broker.status("a b", "p_a.b"),
        lambda broker: broker.status("show", "p_a\r\nX: y"),
        lambda broker: broker.status("show", "p" * 600),
        lambda broker: broker.create("show", streams=["_"]),
        lambda broker: broker.join("../x", "p_a.b").__aenter__(),
    ],
)
async def test_an_argument_that_cannot_be_right_is_not_even_asked(ask: Callable[..., Any]) -> None:
    async with fake() as url, Broker.open(url) as broker:
        with pytest.raises(ConfigError, match="expected"):
            await ask(broker)


@pytest.mark.parametrize("url", ["http://192.0.2.1", "ftp://127.0.0.1", "broker.example", "https://a/?x", "http://x"])
async def test_a_url_that_cannot_be_used_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match=r"broker URL .*: expected https://"):
        async with Broker.open(url):
            pass


async def test_plain_http_to_another_host_is_used_when_that_is_said() -> None:
    async with Broker.open("http://192.0.2.1", allow_plain=True):
        pass


async def test_it_comes_back_after_a_cut_and_takes_its_slot_again() -> None:
    async with place() as (_, broker):
        made = await create(broker)
        token = made.peer_tokens["wide"]
        async with (
            broker.join("show", token, register=Register(port=5000)) as a,
            broker.join("show", token, register=Register(port=6000)) as b,
        ):
            first = (await until(a, Peer))[-1]
            await until(b, Peer)
            assert a._link is not None
            a._link._stream.tcp.socket.shutdown(socket.SHUT_RDWR)
            told = await until(a, Peer)
            kinds = [type(event) for event in told if not isinstance(event, Session)]
            assert kinds == [Reconnecting, Reconnected, Peer]
            assert told[-1] == first
            assert isinstance((await until(b, Peer))[-1], Peer)  # for b it is a new round, too
            assert (await broker.status("show", made.token)).connected == 2


async def test_a_broker_that_stops_is_left_with_its_reason() -> None:
    async with running(settings()) as server, Broker.open(f"http://127.0.0.1:{server.port}") as broker:
        made = await create(broker)
        with trio.fail_after(PATIENCE_S):
            async with broker.join("show", made.token) as joined:
                await until(joined, Session)
                server.stop.set()
                *_, lost = await until(joined, Reconnecting)
                assert isinstance(lost, Reconnecting)
                assert lost.reason == "the broker closed the connection (1011): shutting down"
                assert not await joined.tally(Light.OFF)


async def test_an_error_of_the_broker_is_an_event() -> None:
    async with place() as (_, broker):
        made = await create(broker)
        async with broker.join("show", made.token) as joined:
            assert await joined.tally(Light.OFF, "nope")
            *_, objection = await until(joined, Error)
            assert isinstance(objection, Error)
            assert objection.code == "INVALID_MESSAGE"
            with pytest.raises(DecodeError):
                await joined.health(rtt=float("nan"), retransmit=0, bitrate=0)


async def test_an_exception_in_the_block_comes_out_as_it_is() -> None:
    async with place() as (_, broker):
        made = await create(broker)
        with pytest.raises(PunchdError, match=r"^mine$"):
            async with broker.join("show", made.token):
                raise PunchdError("mine")


async def test_b_110_over_tls_the_certificate_is_judged(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "first")
    certificate = Certificate(chain, key)
    async with running(settings(), certificate=certificate) as server:
        url = f"https://localhost:{server.port}"
        trusting = ssl.create_default_context(cafile=str(chain))
        with trio.fail_after(PATIENCE_S):
            async with Broker.open(url, tls=trusting) as broker:
                made = await create(broker)
                async with broker.join("show", made.token) as joined:
                    await until(joined, Session)
                    await broker.close_session("show", made.token)
                    await until(joined, SessionClosed)
            async with Broker.open(url) as broker:
                for ask in (broker.version, lambda: broker.join("show", made.token).__aenter__()):
                    with pytest.raises(InsecureError, match="its certificate cannot be trusted"):
                        await ask()
            async with Broker.open(f"http://localhost:{server.port}") as broker:
                with pytest.raises((NotBrokerError, UnreachableError)):
                    await broker.version()


class BothFamilies(trio.abc.HostnameResolver):
    """Every name is this host: IPv4 first, IPv6 for those who ask for it."""

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, *more: Any, **_: Any) -> list[Any]:
        await trio.lowlevel.checkpoint()
        ip = "::1" if family == socket.AF_INET6 else "127.0.0.1"
        found = socket.AF_INET6 if family == socket.AF_INET6 else socket.AF_INET
        return [(found, socket.SOCK_STREAM, socket.IPPROTO_TCP, host, (ip, port))]

    async def getnameinfo(self, sockaddr: Any, flags: int) -> tuple[str, str]:
        raise NotImplementedError


async def test_c_10_it_moves_to_the_family_of_the_other_peer() -> None:
    """The broker is on both families under one name; the other peer has IPv6."""
    seen: list[Any] = []
    peer_6 = {**PEER, "ip": "2001:db8::7"}

    async def over_4(at: Conversation) -> None:
        await at.accept()
        seen.append(("IPv4", await at.heard()))
        await at.say(peer_6)
        assert await at.hear() == ""
        seen.append(at.close_code)

    async def over_6(at: Conversation) -> None:
        await at.accept()
        seen.append(("IPv6", await at.heard()))
        await at.say(peer_6, CLOSED)
        await at.hear()

    trio.socket.set_custom_hostname_resolver(BothFamilies())
    async with fake(over_4) as url:
        port = int(url.rpartition(":")[2])
        async with (
            fake(over_6, host="::1", port=port),
            Broker.open(f"http://both.test:{port}", allow_plain=True) as broker,
        ):
            with trio.fail_after(PATIENCE_S):
                async with broker.join("show", "p_a.b", register=Register(port=5000)) as joined:
                    told = [event async for event in joined]
    register = {"type": "register", "port": 5000}
    assert seen == [("IPv4", register), 1000, ("IPv6", register)]
    assert [type(event) for event in told] == [Reconnecting, Reconnected, Peer, SessionClosed]
    assert isinstance(told[2], Peer)
    assert str(told[2].endpoint) == "[2001:db8::7]:6000"
