"""punchd for programs with blocking sockets and threads, or with a select loop of their own.

    with Daemon.connect() as daemon:
        own = daemon.probe("udp")                       # tell the other side: own.ip, own.ports
        with daemon.initiate(peer_ip, peer_ports, techniques="udp", lport=own.lport) as attempt:
            connected = attempt.connect(send_token)     # while another thread calls attempt.deliver(token)
    connected.socket.send(b"hello")                     # a plain socket, yours

Tokens travel both ways over the application's own side channel. Those that this side has to send come as `Relay`
events; those that arrive are handed in with `respond` (the first one of a new attempt) or `Attempt.deliver`. Keep one
`Attempt` per attempt of a remote application: its tokens belong to it and to no other.

Threads: everything here may be called from any thread. Each `Attempt` is iterated by one thread at a time; several
attempts may be iterated by several threads at once.

To have a socket of your own connected (`sock=`), see `punchd.client.options.AttemptOptions`.

Nothing here takes a timeout: the daemon ends every attempt after its own (`timeout_ms`), and closing the `Daemon` from
another thread ends every wait at once.
"""

from __future__ import annotations

import selectors
import socket
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol as Interface
from typing import Unpack

from punchd.client.blocking_link import BlockingLink
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
from punchd.control.answers import OkHello, OkProbe
from punchd.control.requests import Protocol


class Inbox(Interface):
    """The receiving half of a side channel, for `Attempt.connect` in a program with one thread."""

    def fileno(self) -> int:
        """A descriptor that is readable when tokens may have come."""

    def receive(self) -> Iterable[str]:
        """The tokens that have come from the other side, in order, maybe none; does not wait.

        Called once at the start and then whenever `fileno()` is readable. Raise something when the channel has
        ended: a closed socket stays readable for ever.
        """


class Daemon:
    """A connection to punchd. Made by `connect`.

    Attributes:
        greeting: what the daemon said of itself (version, techniques usable here, attempts per connection); None
            for a daemon without `hello`.
    """

    def __init__(self, link: BlockingLink, greeting: OkHello | None) -> None:
        self._link = link
        self.greeting = greeting

    @classmethod
    def connect(
        cls, path: str | None = None, *, client: str | None = None, trusted_uids: Collection[int] | None = None
    ) -> Daemon:
        """Connect, check who listens, and say hello.

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
        link = BlockingLink(open_socket(path or socket_path(), trusted_uids, blocking=True))
        try:
            with link.changed:
                hello = link.session.hello(client)
                link.open(hello)
            link.flush()
            return cls(link, _greeting(link.wait(hello)))
        except BaseException:
            link.close()
            raise

    def __enter__(self) -> Daemon:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection. Attempts that still run are cancelled; threads that wait get DaemonGoneError.

        Sockets that were received stay open: they are the application's. From any thread, but not from a signal
        handler; may be called twice.
        """
        self._link.close()

    def fileno(self) -> int:
        """The connection's descriptor, to wait on (not to read from): see `Attempt.poll`."""
        return self._link.fileno()

    def probe(self, protocol: Protocol | str, **options: Unpack[PortOptions]) -> OkProbe:
        """Learn the own public address and ports: what to tell the other side before it can initiate.

        The daemon keeps `OkProbe.lport` for 120 s, for the next attempt on this connection that names it; NATs often
        forget the mapping earlier (UDP: after some 30 s), in which case that attempt makes a new one.

        Args:
            protocol: "udp" or "tcp".
            options: see `PortOptions`.

        Raises:
            AttemptError: for example "no-address" (no STUN server answers), "port-in-use".
            DecodeError: an option is not what its name says; nothing was sent.
            DaemonGoneError, DaemonProtocolError: the connection has ended.
        """
        kind, wanted = Protocol(protocol), to_options(options)
        with self._link.changed:
            request_id = self._link.session.probe(kind, wanted)
            self._link.open(request_id)
        try:
            self._link.flush()
            item = self._link.wait(request_id)
        finally:
            self._link.leave(request_id)
        match item:
            case OkProbe():
                return item
            case Refused():
                raise AttemptError(item.code, item.text)
            case _:
                raise DaemonProtocolError(f"punchd answered a probe with {type(item).__name__}")

    @contextmanager
    def initiate(
        self, ip: Address, ports: Ports, *, techniques: Techniques = "auto", **options: Unpack[AttemptOptions]
    ) -> Iterator[Attempt]:
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
        passed = descriptor(options)
        cookie = cookie_of(passed)
        attempt_id = self._link.request(lambda: self._link.session.initiate(target, where, names, wanted), passed)
        try:
            yield Attempt(self._link, attempt_id, cookie)
        finally:
            self._link.leave(attempt_id)

    @contextmanager
    def respond(
        self,
        token: str,
        *,
        peer: Address | None,
        techniques: Techniques | None = None,
        **options: Unpack[AttemptOptions],
    ) -> Iterator[Attempt]:
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
        passed = descriptor(options)
        cookie = cookie_of(passed)
        attempt_id = self._link.request(lambda: self._link.session.respond(token, wanted), passed)
        try:
            yield Attempt(self._link, attempt_id, cookie)
        finally:
            self._link.leave(attempt_id)


class Attempt:
    """One attempt, alive inside the block of `Daemon.initiate` or `Daemon.respond`. Iterate it, or call `connect`.

    Iterating waits for news, yields `Relay`, `Trying`, `Failed`, `Ignored` or `News`, and ends after `Connected`,
    whose socket then belongs to the caller. It raises AttemptError where the attempt fails, and DaemonGoneError or
    DaemonProtocolError where the connection to the daemon ends first.

    Attributes:
        id: the daemon's name for this attempt, as in its log.
    """

    def __init__(self, link: BlockingLink, attempt_id: str, cookie: bytes | None = None) -> None:
        self._link = link
        self._cookie = cookie  # of the socket that was passed in
        self._over = False
        self.id = attempt_id

    def __iter__(self) -> Attempt:
        return self

    def __next__(self) -> Event | Connected[socket.socket]:
        if self._over:
            raise StopIteration
        return self._take(self._link.wait(self.id))

    def poll(self) -> Event | Connected[socket.socket] | None:
        """The next event if there is one now, else None; also None after the last. For select loops in one thread.

        What arrives for one attempt may be read on behalf of another: whenever `fileno()` is readable, poll every
        attempt of the connection until it returns None.

        Raises:
            RuntimeError: another thread is iterating an attempt of the same `Daemon`.
            AttemptError, DaemonGoneError, DaemonProtocolError: as iterating does.
        """
        if self._over:
            return None
        delivery = self._link.poll(self.id)
        return None if delivery is None else self._take(delivery.item)

    def fileno(self) -> int:
        """The connection's descriptor, the same for all attempts of a `Daemon`; wait for it with select or poll."""
        return self._link.fileno()

    def deliver(self, token: str) -> None:
        """Hand in a token that came from the other side. From any thread, at any time.

        Never fails: what is no token comes back as an `Ignored` event, and after the end it is dropped.
        """
        self._link.deliver(self.id, token)

    def cancel(self) -> None:
        """Give up, and go on iterating: a last `Relay` tells the other side, then comes AttemptError("cancelled").

        A socket that was already on its way is closed. From any thread; does nothing after the end.
        """
        self._link.cancel(self.id)

    def connect(
        self,
        send: Callable[[str], object],
        inbox: Inbox | None = None,
        *,
        on_event: Callable[[Event], object] = lambda _: None,
    ) -> Connected[socket.socket]:
        """Wait for the connection and relay tokens meanwhile.

        Args:
            send: is called with each token for the other side, in order, in this thread.
            inbox: where the other side's tokens arrive, for a program with one thread. Without it another thread
                calls `deliver`.
            on_event: is called with each event, tokens included, before it is acted on.

        Returns:
            The connected socket and what is known of it; the caller owns it.

        Raises:
            AttemptError, DaemonGoneError, DaemonProtocolError: as iterating does.
            Exception: whatever `send`, `inbox` and `on_event` raise. The attempt then goes on until its block ends.
        """
        for event in self if inbox is None else self._events_with(inbox):
            if isinstance(event, Connected):
                return event
            on_event(event)
            if isinstance(event, Relay):
                send(event.token)
        raise RuntimeError(f"attempt {self.id} was over before connect() was called")

    def _events_with(self, inbox: Inbox) -> Iterator[Event | Connected[socket.socket]]:
        with selectors.DefaultSelector() as selector:
            selector.register(self.fileno(), selectors.EVENT_READ)
            selector.register(inbox.fileno(), selectors.EVENT_READ, inbox)
            ready = [inbox]
            while not self._over:
                for source in ready:
                    for token in source.receive():
                        self.deliver(token)
                while (event := self.poll()) is not None:
                    yield event
                if not self._over:
                    ready = [key.data for key, _ in selector.select() if key.data is not None]

    def _take(self, item: Item) -> Event | Connected[socket.socket]:
        match item:
            case Relay() | Trying() | Failed() | Ignored() | News():
                return item
            case Granted():
                self._over = True
                return adopt(item, self._cookie)
            case Refused():
                self._over = True
                raise AttemptError(item.code, item.text)
            case _:
                self._over = True
                raise DaemonProtocolError(f"punchd answered an attempt with {type(item).__name__}")


def _greeting(item: Item) -> OkHello | None:
    match item:
        case OkHello() | None:
            return item
        case Refused():
            raise RequestRefusedError(item.code, item.text)
        case _:
            raise DaemonProtocolError(f"punchd answered hello with {type(item).__name__}")
