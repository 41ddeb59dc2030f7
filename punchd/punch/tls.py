"""TLS 1.3 between two keys that know each other by fingerprint, and records in it that let one direction end.

There is no authority: each side makes its own certificate from its key, always the same one, valid at all times (clocks
may be wrong). The connector is the client. It accepts any certificate, and afterwards compares the key with the ADDRESS
that it was given. The listener has got the connector's certificate with the call, trusts that one alone, and compares,
too; whether that key may call is for the caller of this file to decide (`--allow`).

Left out: hiding the certificates' keys from the rendezvous server (it keeps them anyway, to resolve addresses), and
renegotiation of keys in a connection: TLS 1.3 changes them by itself.

Source: RFC 8446, RFC 8410 (Ed25519 in certificates), RFC 5280 §4.1.2.5 (the date that means "no end").
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import trio

from punchd.errors import DecodeError, PunchdError
from punchd.punch import records
from punchd.rendezvous.identity import fingerprint, raw

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

    from punchd.punch.messages import Reject
    from punchd.rendezvous.identity import Identity

RECEIVE_SIZE = 65_536
_NO_END = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
_BEGIN = datetime(1970, 1, 1, tzinfo=UTC)


class UnsafeError(PunchdError):
    """The other side is not who it should be. No byte of the application's was sent."""


class BrokenHandshakeError(PunchdError):
    """The connection broke before both sides knew each other."""


class RejectedError(PunchdError):
    """The listener has said no.

    Attributes:
        verdict: why.
    """

    def __init__(self, verdict: Reject) -> None:
        super().__init__(verdict.text)
        self.verdict = verdict


class RecordStream(trio.abc.HalfCloseableStream):
    """Records over TLS. Closing it is abrupt; whoever is done sends the end and waits for the other's.

    Raises:
        trio.BrokenResourceError: the connection ended, or failed, without the end having been said.
    """

    def __init__(self, stream: trio.SSLStream[trio.SocketStream]) -> None:
        self._stream = stream
        self._decoder = records.Decoder()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        view = memoryview(data)
        for start in range(0, len(view), records.CHUNK):
            await self.send_record(records.encode(bytes(view[start : start + records.CHUNK])))

    async def send_record(self, record: bytes) -> None:
        """What `records.encode` and its like have made."""
        await self._stream.send_all(record)

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await self._stream.send_all(records.END)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """The next record, whatever `max_bytes`; b"" at the end."""
        while (record := self._decoder.take()) is None:
            data = bytes(await self._stream.receive_some(RECEIVE_SIZE))
            if not data:
                raise trio.BrokenResourceError("the connection ended without a goodbye")
            self._decoder.feed(data)
        return record

    async def aclose(self) -> None:
        await trio.aclose_forcefully(self._stream)


@dataclass(frozen=True, slots=True)
class Peer:
    """Who is at the other end, proven."""

    stream: RecordStream
    key: bytes  # its fingerprint


def certificate(identity: Identity) -> bytes:
    """The certificate of a key, DER: always the same bytes."""
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding
    from cryptography.x509.oid import NameOID

    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "punch")])
    builder = x509.CertificateBuilder(
        issuer_name=name,
        subject_name=name,
        public_key=identity.private_key.public_key(),
        serial_number=int.from_bytes(fingerprint(identity.public_key)[:8], "big") or 1,
        not_valid_before=_BEGIN,
        not_valid_after=_NO_END,
    )
    return builder.sign(identity.private_key, None).public_bytes(Encoding.DER)


def fingerprint_of(der: bytes) -> bytes:
    """The fingerprint of the key in a certificate.

    Raises:
        UnsafeError: there is no Ed25519 key in it.
    """
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        key = x509.load_der_x509_certificate(der).public_key()
    except Exception:  # noqa: BLE001 (foreign bytes: ValueError, UnsupportedAlgorithm and whatever comes to be)
        raise UnsafeError("certificate: expected one of X.509 in DER") from None
    if not isinstance(key, Ed25519PublicKey):
        raise UnsafeError("certificate: expected an Ed25519 key, got another kind")
    return fingerprint(raw(key))


async def connect(sock: trio.socket.SocketType, own: Identity, listener: bytes, wish: records.Wish) -> Peer:
    """The connector's side. `listener`: fingerprint of the key that must be there.

    Raises:
        UnsafeError: it is not.
        RejectedError: it does not want this call.
        BrokenHandshakeError: the connection broke.

    Resource handling: `sock` is closed unless a `Peer` comes of it.
    """
    context = _context(ssl.PROTOCOL_TLS_CLIENT, own)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE  # compared below, before anything is sent

    async def greet(stream: trio.SSLStream[trio.SocketStream]) -> Peer:
        peer = _peer(stream, listener)
        await peer.stream.send_record(records.encode_wish(wish))
        verdict = records.decode_verdict(await peer.stream.receive_some())
        if verdict is not None:
            raise RejectedError(verdict)
        return peer

    return await _shake_hands(sock, context, greet, is_server=False)


async def accept(
    sock: trio.socket.SocketType,
    own: Identity,
    connector: bytes,
    judge: Callable[[records.Wish], Awaitable[Reject | None]],
) -> Peer:
    """The listener's side.

    Args:
        connector: the certificate that came with the call.
        judge: what to say to the connector's greeting; it is proven who it is.

    Raises:
        UnsafeError: the connector has another key.
        RejectedError: `judge` has said no, and the connector was told.
        BrokenHandshakeError: the connection broke.

    Resource handling: `sock` is closed unless a `Peer` comes of it.
    """
    try:
        context = _context(ssl.PROTOCOL_TLS_SERVER, own)
        context.verify_mode = ssl.CERT_REQUIRED
        context.num_tickets = 0  # each connection proves its keys anew
        context.load_verify_locations(cadata=connector)
        key = fingerprint_of(connector)
    except (ssl.SSLError, ValueError):  # ValueError: empty
        sock.close()
        raise UnsafeError("certificate: expected one that TLS takes") from None
    except BaseException:
        sock.close()
        raise

    async def greet(stream: trio.SSLStream[trio.SocketStream]) -> Peer:
        peer = _peer(stream, key)
        verdict = await judge(records.decode_wish(await peer.stream.receive_some()))
        await peer.stream.send_record(records.encode_verdict(verdict))
        if verdict is not None:
            raise RejectedError(verdict)
        return peer

    return await _shake_hands(sock, context, greet, is_server=True)


def _peer(stream: trio.SSLStream[trio.SocketStream], expected: bytes) -> Peer:
    from punchd.rendezvous.identity import address

    der = stream.getpeercert(binary_form=True)
    key = b"" if der is None else fingerprint_of(der)
    if key != expected:
        found = address(key) if key else "none"
        raise UnsafeError(f"the other side proved another key: expected {address(expected)}, got {found}")
    return Peer(RecordStream(stream), key)


async def _shake_hands(
    sock: trio.socket.SocketType,
    context: ssl.SSLContext,
    greet: Callable[[trio.SSLStream[trio.SocketStream]], Awaitable[Peer]],
    *,
    is_server: bool,
) -> Peer:
    stream = trio.SSLStream(trio.SocketStream(sock), context, server_side=is_server, https_compatible=True)
    is_good = False
    try:
        await stream.do_handshake()
        peer = await greet(stream)
        is_good = True
    except trio.BrokenResourceError as error:
        raise _broken(error) from None
    except DecodeError as error:
        raise BrokenHandshakeError(str(error)) from None
    else:
        return peer
    finally:
        if not is_good:
            sock.close()


def _broken(error: trio.BrokenResourceError) -> PunchdError:
    reason = error.__cause__
    if isinstance(reason, ssl.SSLCertVerificationError):
        return UnsafeError(
            f"the other side proved another key than the one that it called with: {reason.verify_message}"
        )
    if isinstance(reason, ssl.SSLError) and reason.reason is not None:
        return BrokenHandshakeError(f"TLS failed: {reason.reason.lower().replace('_', ' ')}")
    return BrokenHandshakeError(f"the connection broke while keys were compared: {reason or error}")


def _context(protocol: ssl._SSLMethod, own: Identity) -> ssl.SSLContext:
    from cryptography import x509
    from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    pem = own.private_key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    pem += x509.load_der_x509_certificate(certificate(own)).public_bytes(Encoding.PEM)
    # ssl takes keys from files only; this one is memory, and goes with its descriptor.
    fd = os.memfd_create("punch", os.MFD_CLOEXEC)
    with open(fd, "wb", buffering=0) as file:
        file.write(pem)
        context.load_cert_chain(f"/proc/self/fd/{fd}")
    return context
