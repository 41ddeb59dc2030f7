"""TLS with pinned keys over socket pairs: who gets in, and how a direction, a connection and a program end."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from punchd.errors import PunchdError
from punchd.punch import tls
from punchd.punch.messages import Code, Reject
from punchd.punch.records import Wish
from punchd.punch.tls import Peer, RejectedError, UnsafeError
from punchd.rendezvous.identity import Identity, fingerprint, generate

PATIENCE_S = 30.0
WISH = Wish("0123456789abcdef", "localhost:22")

ALICE, BOB, EVE = generate(), generate(), generate()  # connector, listener, somebody else

Judge = Callable[[Wish], Awaitable[Reject | None]]


async def agree(wish: Wish) -> Reject | None:
    return None


def print_of(identity: Identity) -> bytes:
    return fingerprint(identity.public_key)


async def both(
    alice: Identity = ALICE,
    bob: Identity = BOB,
    *,
    wanted: Identity = BOB,
    announced: Identity = ALICE,
    judge: Judge = agree,
) -> tuple[Peer | Exception, Peer | Exception]:
    """What the connector and the listener get.

    `alice`, `bob`: the keys they have; `wanted`: by the connector; `announced`: in the call.
    """
    ours, theirs = trio.socket.socketpair()
    found: list[Any] = [None, None]

    async def note(index: int, what: Awaitable[Peer]) -> None:
        try:
            found[index] = await what
        except PunchdError as error:
            found[index] = error

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(note, 0, tls.connect(ours, alice, print_of(wanted), WISH))
            nursery.start_soon(note, 1, tls.accept(theirs, bob, tls.certificate(announced), judge))
    for sock, peer in ((ours, found[0]), (theirs, found[1])):
        assert (sock.fileno() < 0) == isinstance(peer, Exception)  # closed unless it is somebody's
    return found[0], found[1]


async def connected() -> tuple[tls.RecordStream, tls.RecordStream]:
    one, other = await both()
    assert isinstance(one, Peer)
    assert isinstance(other, Peer)
    return one.stream, other.stream


async def close(*streams: trio.abc.AsyncResource) -> None:
    for stream in streams:
        await stream.aclose()


async def test_each_side_knows_the_key_of_the_other_one_and_tls_is_1_3() -> None:
    one, other = await both()
    assert isinstance(one, Peer)
    assert isinstance(other, Peer)
    assert (one.key, other.key) == (print_of(BOB), print_of(ALICE))
    assert one.stream._stream.version() == other.stream._stream.version() == "TLSv1.3"
    await close(one.stream, other.stream)


async def test_nothing_is_kept_to_resume_a_connection_without_its_keys() -> None:
    one, other = await both()
    assert isinstance(one, Peer)
    assert isinstance(other, Peer)
    async with trio.open_nursery() as nursery:  # tickets come after the handshake, with what is read then
        nursery.start_soon(other.stream.send_all, b"x")
        assert await one.stream.receive_some() == b"x"
    assert not one.stream._stream.session.has_ticket
    await close(one.stream, other.stream)


async def test_a_listener_with_another_key_than_the_address_gets_nothing() -> None:
    heard = []

    async def judge(wish: Wish) -> None:
        heard.append(wish)

    one, _ = await both(bob=EVE, judge=judge)
    assert isinstance(one, UnsafeError)
    assert str(one) == f"the other side proved another key: expected {BOB.address}, got {EVE.address}"
    assert heard == []


async def test_a_connector_with_another_key_than_its_call_gets_nothing() -> None:
    heard = []

    async def judge(wish: Wish) -> None:
        heard.append(wish)

    one, other = await both(alice=EVE, judge=judge)
    assert isinstance(one, PunchdError)
    assert isinstance(other, UnsafeError)
    assert heard == []


async def test_a_connector_without_a_certificate_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = ssl.SSLContext.load_cert_chain

    def only_for_servers(context: ssl.SSLContext, *arguments: Any) -> None:
        if context.protocol is ssl.PROTOCOL_TLS_SERVER:
            original(context, *arguments)

    monkeypatch.setattr(ssl.SSLContext, "load_cert_chain", only_for_servers)
    one, other = await both()
    assert isinstance(one, PunchdError)
    assert isinstance(other, PunchdError)


async def test_the_listener_hears_what_is_wanted_and_its_no_is_heard_with_the_reason() -> None:
    heard = []

    async def judge(wish: Wish) -> Reject:
        heard.append(wish)
        return Reject(Code.TARGET, "localhost:22 is not served here")

    one, other = await both(judge=judge)
    assert heard == [WISH]
    for found in (one, other):
        assert isinstance(found, RejectedError)
        assert found.verdict == Reject(Code.TARGET, "localhost:22 is not served here")


async def test_a_side_that_knows_only_tls_1_2_gets_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    original = tls._context

    def ancient(protocol: Any, own: Identity) -> ssl.SSLContext:
        context = original(protocol, own)
        if protocol is ssl.PROTOCOL_TLS_CLIENT:
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_2
        return context

    monkeypatch.setattr(tls, "_context", ancient)
    assert all(isinstance(found, tls.BrokenHandshakeError) for found in await both())


@pytest.mark.parametrize("der", [b"", b"x" * 100, tls.certificate(ALICE)[:-1]])
async def test_what_is_no_certificate_is_no_caller(der: bytes) -> None:
    ours, theirs = trio.socket.socketpair()
    with ours, pytest.raises(UnsafeError):
        await tls.accept(theirs, BOB, der, agree)
    assert theirs.fileno() < 0


Side = Callable[[trio.socket.SocketType], Awaitable[Peer]]
either_side = pytest.mark.parametrize(
    "side",
    [
        lambda sock: tls.connect(sock, ALICE, print_of(BOB), WISH),
        lambda sock: tls.accept(sock, BOB, tls.certificate(ALICE), agree),
    ],
    ids=["connector", "listener"],
)


@either_side
async def test_a_connection_that_ends_in_the_handshake_is_one_line(side: Side) -> None:
    ours, theirs = trio.socket.socketpair()
    theirs.close()
    with pytest.raises(tls.BrokenHandshakeError, match="broke while keys were compared"):
        await side(ours)


@either_side
async def test_something_else_than_tls_is_one_line(side: Side) -> None:
    ours, theirs = trio.socket.socketpair()
    await theirs.send(b"SSH-2.0-OpenSSH_9.2\r\n" * 20)
    with theirs, pytest.raises(PunchdError, match="TLS failed"):
        await side(ours)


@pytest.mark.parametrize("first", [0, 1])
async def test_one_direction_ends_while_the_other_goes_on(first: int) -> None:
    streams = await connected()
    one, other = streams[first], streams[1 - first]
    await one.send_all(b"question")
    await one.send_eof()
    assert await other.receive_some() == b"question"
    assert await other.receive_some() == b""
    await other.send_all(b"answer")
    assert await one.receive_some() == b"answer"
    await other.send_eof()
    assert await one.receive_some() == b""
    assert await other.receive_some() == b""
    await close(one, other)


async def test_five_megabytes_go_both_ways_at_once_unaltered() -> None:
    streams = await connected()
    sent = [bytes(range(256)) * 20_480, bytes(reversed(range(256))) * 20_480]
    received = [bytearray(), bytearray()]

    async def send(index: int) -> None:
        for start in range(0, len(sent[index]), 100_000):
            await streams[index].send_all(sent[index][start : start + 100_000])
        await streams[index].send_eof()

    async def receive(index: int) -> None:
        while data := await streams[index].receive_some():
            received[1 - index] += data

    with trio.fail_after(PATIENCE_S):
        async with trio.open_nursery() as nursery:
            for index in (0, 1):
                nursery.start_soon(send, index)
                nursery.start_soon(receive, index)
    assert received == sent
    await close(*streams)


@pytest.mark.parametrize("after", [b"", b"half"])
async def test_a_peer_that_vanishes_is_an_error_and_not_an_end(after: bytes) -> None:
    one, other = await connected()
    if after:
        await other.send_all(after)
        assert await one.receive_some() == after
    await other.aclose()
    with pytest.raises(trio.BrokenResourceError):
        await one.receive_some()
    await one.aclose()


async def test_the_end_of_tcp_that_somebody_on_the_way_makes_is_an_error() -> None:
    one, other = await connected()
    other._stream.transport_stream.socket.shutdown(trio.socket.SHUT_WR)
    with pytest.raises(trio.BrokenResourceError, match="without a goodbye"):
        await one.receive_some()
    await close(one, other)


async def test_even_a_proper_end_of_tls_is_no_end_of_a_direction() -> None:
    one, other = await connected()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(other._stream.unwrap)
        with pytest.raises(trio.BrokenResourceError, match="without a goodbye"):
            await one.receive_some()
        nursery.cancel_scope.cancel()
    await close(one, other)


def test_a_key_has_one_certificate_which_fits_into_a_signal_and_is_valid_whatever_the_clock_says() -> None:
    from cryptography import x509

    der = tls.certificate(ALICE)
    assert der == tls.certificate(ALICE) != tls.certificate(BOB)
    assert len(der) < 300
    assert tls.fingerprint_of(der) == print_of(ALICE)
    found = x509.load_der_x509_certificate(der)
    assert (found.not_valid_before_utc.year, found.not_valid_after_utc.year) == (1970, 9999)


def test_a_certificate_of_another_kind_of_key_has_no_fingerprint() -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([])
    builder = x509.CertificateBuilder(name, name, key.public_key(), 1, tls._BEGIN, tls._NO_END)
    der = builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)
    with pytest.raises(UnsafeError, match="expected an Ed25519 key"):
        tls.fingerprint_of(der)
