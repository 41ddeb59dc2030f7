"""punchd for trio programs.

    async with Daemon.connect() as daemon:
        own = await daemon.probe("udp")                 # tell the other side: own.ip, own.ports
        async with daemon.initiate(peer_ip, peer_ports, techniques="udp", lport=own.lport) as attempt:
            connected = await attempt.connect(send_token, tokens)
    await connected.socket.send(b"hello")               # a trio socket, yours

Tokens travel both ways over the application's own side channel. Those that this side has to send come as `Relay`
events; those that arrive are handed in with `respond` (the first one of a new attempt) or `Attempt.deliver`. Keep one
`Attempt` per attempt of a remote application: its tokens belong to it and to no other.

Nothing here takes a timeout: cancel. An attempt whose block is left, cancelled or not, is cancelled in the daemon
without waiting; a socket that was already on its way is closed. Besides, the daemon ends every attempt after its own
`timeout_ms`. Several tasks may use one `Daemon`; each `Attempt` is iterated by one task at a time.

To have a socket of your own connected (`sock=`), see `AttemptOptions`.

`connected.socket` is a trio socket; for TCP, `trio.SocketStream(connected.socket)` makes a stream of it.
"""

from __future__ import annotations

import socket
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager
from typing import Unpack

import trio

from punchd.client.errors import AttemptError, DaemonProtocolError, RequestRefusedError
from punchd.client.events import Connected, Event, Failed, Ignored, News, Relay, Trying
from punchd.client.options import (
    Address,
    AttemptOptions,
    PortOptions,
    Ports,
    Techniques,
    descriptor,
    to_ip,
    to_options,
    to_ports,
    to_techniques,
)
from punchd.client.session import Granted, Item, Refused
from punchd.client.transport import adopt, cookie_of, open_socket, socket_path
from punchd.client.trio_link import TrioLink
from punchd.control.answers import OkHello, OkProbe
from punchd.control.requests import Protocol

TrioSocket = trio.socket.SocketType


class Daemon:
    """A connection to punchd. Made by `connect`.

    Attributes:
        greeting: what the daemon said of itself (version, techniques usable here, attempts per connection); None
            for a daemon without `hello`.
    """

    def __init__(self, link: TrioLink, greeting: OkHello | None) -> None:
        self._link = link
        self.greeting = greeting

    @classmethod
    @asynccontextmanager
    async def connect(
        cls, path: str | None = None, *, client: str | None = None, trusted_uids: Collection[int] | None = None
    ) -> AsyncIterator[Daemon]:
        """Connect, check who listens, and say hello. Leaving the block closes the connection.

        Closing cancels what still runs; tasks elsewhere that wait get DaemonGoneError. Sockets that were received
        stay open: they are the application's.

        Args:
            path: of the Unix socket. Default: $PUNCHD_SOCKET, else /run/punchd/punchd.socket if that exists, else
                /tmp/punchd.socket.
            client: this program's name for the daemon's log: 1 to 32 letters, digits and `_.+/-`.
            trusted_uids: the users whose daemon is trusted. Default: root, `_punchd` and the own user.

        Raises:
            DaemonUnreachableError: nobody listens there, or not for this user.
            UntrustedDaemonError: the listener runs as somebody else; nothing was sent or read.
            RequestRefusedError: the daemon does not want this program (for example "busy").
            DaemonGoneError, DaemonProtocolError: whatever listens there is no punchd, or it just ended.
        """
        link = TrioLink(open_socket(path or socket_path(), trusted_uids, blocking=False))
        try:
            hello = link.session.hello(client)
            link.open(hello)
            yield cls(link, _greeting(await link.wait(hello)))
        finally:
            link.close()

    async def probe(self, protocol: Protocol | str, **options: Unpack[PortOptions]) -> OkProbe:
        """Learn the own public address and ports: what to tell the other side before it can initiate.

        The daemon keeps `OkProbe.lport` for 120 s, for the next attempt on this connection that names it; NATs often
        forget the mapping earlier (UDP: after some 30 s), in which case that attempt makes a new one. Cancelled, the
        answer is dropped when it comes.

        Args:
            protocol: "udp" or "tcp".
            options: see `PortOptions`.

        Raises:
            AttemptError: for example "no-address" (no STUN server answers), "port-in-use".
            DecodeError: an option is not what its name says; nothing was sent.
            DaemonGoneError, DaemonProtocolError: the connection has ended.
        """
        request_id = self._link.session.probe(Protocol(protocol), to_options(options))
        self._link.open(request_id)
        try:
            item = await self._link.wait(request_id)
        finally:
            self._link.leave(request_id)
        match item:
            case OkProbe():
                return item
            case Refused():
                raise AttemptError(item.code, item.text)
            case _:
                raise DaemonProtocolError(f"punchd answered a probe with {type(item).__name__}")

    @asynccontextmanager
    async def initiate(
        self, ip: Address, ports: Ports, *, techniques: Techniques = "auto", **options: Unpack[AttemptOptions]
    ) -> AsyncIterator[Attempt]:
        """Start an attempt towards another side, on entering the block; leaving it early cancels the attempt.

        Leaving after success leaves the socket alone. Leaving early tells the daemon but not the other side, which
        goes on until its own timeout; to spare it that, call `Attempt.cancel` first and relay what still comes.

        Args:
            ip: the other side's public address, a literal or a value.
            ports: its public port or ports, 1 to 16, the most likely first.
            techniques: "auto" (the daemon's order), "all", or names to try in this order.
            options: see `AttemptOptions`; `lport` of an earlier probe is the usual one.

        Raises:
            DecodeError: an argument is not what its name says; nothing was sent. What the daemon has against the
                request comes as AttemptError from the attempt.
        """
        target, where = to_ip(ip), to_ports(ports)
        names, wanted = to_techniques(techniques), to_options(options)
        async with self._attempt(
            lambda: self._link.session.initiate(target, where, names, wanted), descriptor(options)
        ) as attempt:
            yield attempt

    @asynccontextmanager
    async def respond(
        self,
        token: str,
        *,
        peer: Address | None,
        techniques: Techniques | None = None,
        **options: Unpack[AttemptOptions],
    ) -> AsyncIterator[Attempt]:
        """Take up an attempt that another side has initiated; otherwise like `initiate`.

        A token that comes from the same remote attempt *after* success means that the other side has given up that
        connection: close the socket and call `respond` again.

        Args:
            token: the first one that came from the other side.
            peer: the address that the other side is known to have, from the rendezvous server. A token is somebody
                else's word and makes this host send packets to the address it names; with `peer` the daemon refuses
                every other. None only where nothing is known of the other side.
            techniques: what this application agrees to; None = all that the daemon has.

        Raises:
            DecodeError: the token or an argument is not what its name says; nothing was sent.
        """
        wanted = to_options(options, peer=peer, techniques=techniques)
        async with self._attempt(lambda: self._link.session.respond(token, wanted), descriptor(options)) as attempt:
            yield attempt

    @asynccontextmanager
    async def _attempt(self, ask: Callable[[], str], passed: int | None) -> AsyncIterator[Attempt]:
        cookie = cookie_of(passed)
        self._link.flush()
        attempt_id = ask()
        try:
            self._link.open(attempt_id, passed)
            await trio.lowlevel.checkpoint()
            yield Attempt(self._link, attempt_id, cookie)
        finally:
            self._link.leave(attempt_id)


class Attempt:
    """One attempt, alive inside the block of `Daemon.initiate` or `Daemon.respond`. Iterate it, or call `connect`.

    Iterating (`async for`) waits for news, yields `Relay`, `Trying`, `Failed`, `Ignored` or `News`, and ends after
    `Connected`, whose socket then belongs to the caller. It raises AttemptError where the attempt fails, and
    DaemonGoneError or DaemonProtocolError where the connection to the daemon ends first. Cancelled while waiting, it
    has taken nothing: iterate on, or leave the block.

    Attributes:
        id: the daemon's name for this attempt, as in its log.
    """

    def __init__(self, link: TrioLink, attempt_id: str, cookie: bytes | None = None) -> None:
        self._link = link
        self._cookie = cookie  # of the socket that was passed in
        self._over = False
        self.id = attempt_id

    def __aiter__(self) -> Attempt:
        return self

    async def __anext__(self) -> Event | Connected[TrioSocket]:
        if self._over:
            await trio.lowlevel.checkpoint()
            raise StopAsyncIteration
        return self._take(await self._link.wait(self.id))

    def deliver(self, token: str) -> None:
        """Hand in a token that came from the other side. At any time, from any task; does not wait.

        Never fails: what is no token comes back as an `Ignored` event, and after the end it is dropped.
        """
        self._link.deliver(self.id, token)

    def cancel(self) -> None:
        """Give up, and go on iterating: a last `Relay` tells the other side, then comes AttemptError("cancelled").

        A socket that was already on its way is closed. Does not wait; does nothing after the end. To just stop,
        cancel the task or leave the block instead.
        """
        self._link.cancel(self.id)

    async def connect(
        self,
        send: Callable[[str], Awaitable[object]],
        tokens: AsyncIterable[str] | None = None,
        *,
        on_event: Callable[[Event], object] = lambda _: None,
    ) -> Connected[TrioSocket]:
        """Wait for the connection and relay tokens meanwhile.

        Args:
            send: is awaited with each token for the other side, in order.
            tokens: the other side's later tokens, for example a memory channel; read only while this runs. When it
                ends, the attempt goes on. Without it another task calls `deliver`.
            on_event: is called with each event, tokens included, before it is acted on.

        Returns:
            The connected socket and what is known of it; the caller owns it. Cancelled, no socket is left behind.

        Raises:
            AttemptError, DaemonGoneError, DaemonProtocolError: as iterating does.
            Exception: whatever `send`, `tokens` and `on_event` raise. The attempt then goes on until its block ends.
        """
        connected: Connected[TrioSocket] | None = None
        try:
            async with trio.open_nursery() as nursery:
                if tokens is not None:
                    nursery.start_soon(self._deliver_all, tokens)
                connected = await self._relay_until_connected(send, on_event)
                nursery.cancel_scope.cancel()
        except BaseException as error:
            if connected is not None:
                connected.socket.close()
            if isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
                raise error.exceptions[0] from None  # the nursery's wrapping says nothing here
            raise
        return connected

    async def _relay_until_connected(
        self, send: Callable[[str], Awaitable[object]], on_event: Callable[[Event], object]
    ) -> Connected[TrioSocket]:
        async for event in self:
            if isinstance(event, Connected):
                return event
            on_event(event)
            if isinstance(event, Relay):
                await send(event.token)
        raise RuntimeError(f"attempt {self.id} was over before connect() was called")

    async def _deliver_all(self, tokens: AsyncIterable[str]) -> None:
        async for token in tokens:
            self.deliver(token)

    def _take(self, item: Item) -> Event | Connected[TrioSocket]:
        match item:
            case Relay() | Trying() | Failed() | Ignored() | News():
                return item
            case Granted():
                self._over = True
                return _for_trio(adopt(item, self._cookie))
            case Refused():
                self._over = True
                raise AttemptError(item.code, item.text)
            case _:
                self._over = True
                raise DaemonProtocolError(f"punchd answered an attempt with {type(item).__name__}")


def _for_trio(plain: Connected[socket.socket]) -> Connected[TrioSocket]:
    wrapped = trio.socket.from_stdlib_socket(plain.socket)
    return Connected(wrapped, plain.technique, plain.protocol, plain.local, plain.remote)


def _greeting(item: Item) -> OkHello | None:
    match item:
        case OkHello() | None:
            return item
        case Refused():
            raise RequestRefusedError(item.code, item.text)
        case _:
            raise DaemonProtocolError(f"punchd answered hello with {type(item).__name__}")
