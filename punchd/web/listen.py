"""Where a server listens: HOST:PORT texts or the service manager's sockets, and the certificate for TLS.

Every address gets a socket of its own, and IPv6 sockets take no IPv4 (IPV6_V6ONLY): what a listener accepts is then
what its address says, whatever net.ipv6.bindv6only is. `*:PORT` means both families, or IPv4 where the host lacks IPv6.

These calls block for as long as a name takes to resolve, and belong before the event loop.

Source: RFC 3493 §5.3; TLS per RFC 9325 §3.1.1 (1.2 and later).
"""

from __future__ import annotations

import errno
import os
import socket
import ssl
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

from punchd import systemd
from punchd.config import host_port
from punchd.errors import ConfigError, KernelError

BACKLOG = 1024  # clients that wait for accept; the kernel cuts it to net.core.somaxconn

_NO_IPV6 = frozenset({errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL})


def tcp_listeners(texts: Sequence[str], where: str) -> list[socket.socket]:
    """Listening TCP sockets for HOST:PORT, [IPV6]:PORT, NAME:PORT or *:PORT; the caller owns them.

    Args:
        texts: the addresses.
        where: the knob that they come from; errors name it.

    Raises:
        ConfigError: a text of another form, or a name that does not resolve. Nothing stays open.
        KernelError: an address that cannot be had, in use for example. Nothing stays open.
    """
    return _sockets(texts, where, socket.SOCK_STREAM)


def udp_sockets(texts: Sequence[str], where: str) -> list[socket.socket]:
    """Bound UDP sockets, as `tcp_listeners`."""
    return _sockets(texts, where, socket.SOCK_DGRAM)


def activated(environment: Mapping[str, str] = os.environ) -> dict[str, list[socket.socket]]:
    """The listening TCP sockets and the UDP sockets that the service manager passed; the caller owns them.

    Returns:
        Sockets by the name that `FileDescriptorName=` gave them; empty if the process was not started that way.

    Raises:
        ConfigError: something else was passed.
    """
    found: dict[str, list[socket.socket]] = {}
    try:
        for name, item in systemd.internet_sockets(environment):
            found.setdefault(name, []).append(item)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    return found


def _sockets(texts: Sequence[str], where: str, kind: socket.SocketKind) -> list[socket.socket]:
    with ExitStack() as until_all_are_there:
        found: list[socket.socket] = []
        for text in texts:
            for family, sockaddr, is_optional in _addresses(text, where, kind):
                item = _socket(family, kind, sockaddr, f"{where}: {text}", is_optional=is_optional and bool(found))
                if item is not None:
                    found.append(until_all_are_there.enter_context(item))
        until_all_are_there.pop_all()
        return found


def _addresses(
    text: str, where: str, kind: socket.SocketKind
) -> list[tuple[socket.AddressFamily, tuple[object, ...], bool]]:
    """(family, address, whether it may be missing) for each address of `text`."""
    if text.startswith("*:"):
        _, port = host_port("any" + text[1:], where)
        return [(socket.AF_INET, ("0.0.0.0", port), False), (socket.AF_INET6, ("::", port), True)]  # noqa: S104
    host, port = host_port(text, where)
    try:
        infos = socket.getaddrinfo(host, port, type=kind)
    except (OSError, UnicodeError) as error:
        raise ConfigError(f"{where}: {text}: {getattr(error, 'strerror', None) or error}") from None
    return [(family, sockaddr, False) for family, sockaddr in dict.fromkeys((info[0], info[4]) for info in infos)]


def _socket(
    family: socket.AddressFamily,
    kind: socket.SocketKind,
    sockaddr: tuple[object, ...],
    what: str,
    *,
    is_optional: bool,
) -> socket.socket | None:
    item = None
    try:
        item = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        if family == socket.AF_INET6:
            item.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        if kind == socket.SOCK_STREAM:  # a restart must not wait for the TIME-WAIT of the last run
            item.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        item.bind(sockaddr)
        if kind == socket.SOCK_STREAM:
            item.listen(BACKLOG)
    except OSError as error:
        if item is not None:
            item.close()
        if is_optional and error.errno in _NO_IPV6:
            return None
        raise KernelError(f"{what}: cannot listen there: {error.strerror}") from None
    return item


class Certificate:
    """A certificate with its chain, and its key, in PEM files. The method `context` is what WebServer takes as `tls`.

    Raises:
        ConfigError: a file that cannot be read, is no PEM, or a key that does not fit.
    """

    def __init__(self, chain: Path, key: Path) -> None:
        self._chain = chain
        self._key = key
        self._context = self._load()

    def context(self) -> ssl.SSLContext:
        """The context for a new connection."""
        return self._context

    def reload(self) -> None:
        """Read both files again. Connections go on with what they began with; new ones get the new certificate.

        Raises:
            ConfigError: as above; the old pair stays in use.
        """
        self._context = self._load()

    def _load(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.options |= ssl.OP_NO_RENEGOTIATION | ssl.OP_NO_COMPRESSION
        context.set_alpn_protocols(["http/1.1"])
        for path in (self._chain, self._key):
            try:
                path.open("rb").close()
            except OSError as error:
                raise ConfigError(f"certificate: {path}: {error.strerror}") from None
        try:
            context.load_cert_chain(self._chain, self._key, password=_no_password)
        except (ssl.SSLError, OSError, ValueError) as error:
            reason = getattr(error, "reason", None) or error
            raise ConfigError(f"certificate: {self._chain} with {self._key}: {reason}") from None
        return context


def _no_password() -> str:
    """OpenSSL asks the terminal otherwise."""
    raise ValueError("the key is encrypted, expected one without a passphrase")
