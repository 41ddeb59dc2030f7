"""A client's way to a server: names, TCP, TLS, and what to say when it does not lead there.

Several addresses are tried as RFC 8305 has it (trio's); over one address family alone, one after the other.
"""

from __future__ import annotations

import os
import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING

import trio

from punchd.errors import PunchdError
from punchd.web.client_url import Url

if TYPE_CHECKING:
    import ssl

_KEEPALIVE = (  # tcp(7): a dead path is found after 8 + 3 * 4 s of silence, or 20 s after what was not acknowledged
    (socket.TCP_KEEPIDLE, 8),
    (socket.TCP_KEEPINTVL, 4),
    (socket.TCP_KEEPCNT, 3),
    (socket.TCP_USER_TIMEOUT, 20_000),
)
_FAMILIES = {4: socket.AF_INET, 6: socket.AF_INET6}
_MOST_ADDRESSES = 4  # of one family that are tried


@dataclass(frozen=True, slots=True)
class Server:
    """Who is asked, and the errors of its client. Its `str` is how their messages begin.

    Attributes:
        kind: "rendezvous server".
        unreachable: no answer; it may be better in a moment.
        insecure: TLS failed.
        foreign: an answer that no such server gives.
    """

    url: Url
    kind: str
    unreachable: type[PunchdError]
    insecure: type[PunchdError]
    foreign: type[PunchdError]

    def __str__(self) -> str:
        return f"{self.kind} {self.url}"


@dataclass(frozen=True, slots=True)
class Stream:
    """A connection. Owns its socket; `close` closes it at once, without TLS' goodbye."""

    tcp: trio.SocketStream
    tls: trio.SSLStream[trio.SocketStream] | None

    async def send_all(self, data: bytes) -> None:
        await (self.tls or self.tcp).send_all(data)

    async def receive_some(self, most_bytes: int) -> bytes:
        return bytes(await (self.tls or self.tcp).receive_some(most_bytes))

    def close(self) -> None:
        self.tcp.socket.close()


def tls_context(url: Url, given: ssl.SSLContext | None = None) -> ssl.SSLContext | None:
    """For `url`: what is given, else the system's certificate authorities and TLS 1.2 or newer; None for http."""
    if not url.is_tls or given is not None:
        return given if url.is_tls else None
    import ssl

    return ssl.create_default_context()


async def connect(server: Server, tls: ssl.SSLContext | None, ip_version: int | None = None) -> Stream:
    """A connection to the server, TLS on it where the URL says so.

    Args:
        ip_version: 4 or 6: over this family only.

    Raises:
        `server.unreachable`, `server.insecure`: there is none.
    """
    url = server.url
    try:
        tcp = await _tcp(url, ip_version)
    except socket.gaierror as error:
        raise server.unreachable(f"{server}: the name {url.host} cannot be resolved: {error.strerror}") from None
    except (OSError, UnicodeError) as error:  # UnicodeError: a label of more than 63 characters
        raise server.unreachable(f"{server}: {reason(error)}") from None
    try:
        tcp.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in _KEEPALIVE:
            tcp.setsockopt(socket.IPPROTO_TCP, option, value)
        if tls is None:
            return Stream(tcp, None)
        # https_compatible: web servers just close; what an answer is long is said by HTTP.
        stream = trio.SSLStream(tcp, tls, server_hostname=url.host, https_compatible=True)
        await stream.do_handshake()
    except trio.BrokenResourceError as error:
        tcp.socket.close()
        raise _tls_error(server, error.__cause__) from None
    except BaseException:
        tcp.socket.close()
        raise
    return Stream(tcp, stream)


async def _tcp(url: Url, ip_version: int | None) -> trio.SocketStream:
    if ip_version is None:
        return await trio.open_tcp_stream(url.host, url.port)
    family = _FAMILIES[ip_version]
    found = await trio.socket.getaddrinfo(url.host, url.port, family=family, type=socket.SOCK_STREAM)
    failure = OSError(f"no address of IPv{ip_version}")
    for *_, sockaddr in found[:_MOST_ADDRESSES]:
        sock = trio.socket.socket(family, socket.SOCK_STREAM)
        try:
            await sock.connect(sockaddr)
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
        else:
            return trio.SocketStream(sock)
    raise failure


def _tls_error(server: Server, cause: BaseException | None) -> PunchdError:
    import ssl

    match cause:
        case ssl.SSLCertVerificationError():
            return server.insecure(f"{server}: its certificate cannot be trusted: {cause.verify_message}")
        case ssl.SSLError() if cause.reason == "WRONG_VERSION_NUMBER":
            hint = f"maybe it is http://{server.url.authority}"
            return server.insecure(f"{server}: expected TLS, got something else; {hint}")
        case ssl.SSLEOFError() | ssl.SSLZeroReturnError() | None:
            return server.unreachable(f"{server}: expected a TLS handshake, got the end of the connection")
        case ssl.SSLError():
            return server.insecure(f"{server}: the TLS handshake failed: {cause.reason or cause}")
        case _:
            return server.unreachable(f"{server}: the TLS handshake broke: {reason(cause)}")


def reason(error: BaseException) -> str:
    """Why, in a few words; the operating system's, where it was the one."""
    cause = error.__cause__
    if isinstance(cause, ExceptionGroup):  # one for each address that was tried
        return ", ".join(dict.fromkeys(reason(one) for one in cause.exceptions))
    if isinstance(error, trio.BrokenResourceError) and cause is not None:
        return reason(cause)
    if isinstance(error, OSError) and error.errno and not hasattr(error, "library"):  # ssl's numbers are its own
        return os.strerror(error.errno)  # error.strerror has what trio put before it
    return str(error) or type(error).__name__
