"""What a technique is, what it may do to the world, and how techniques are found.

A technique is stateless and reads like its paper. It has two halves, `initiate` and `respond`, and everything it does
goes through the `Kit` of one attempt: one bound port, notes to the peer's half, events. A technique imports neither
socket nor kernel code, so a fake kit with a virtual clock can run it, and the real kit can check every effect against
policy: own port, own address, the attempt's peer, so many packets.

There are no timeout parameters: the caller cancels. Leaving a `Scope`, cancelled or not, undoes it.

How techniques are found: `punchd.plugins`.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractAsyncContextManager as Scope
from dataclasses import dataclass
from enum import Enum, Flag, auto
from typing import Protocol, TypeVar, runtime_checkable

from punchd.endpoint import Endpoint, IPAddress, PortSet
from punchd.errors import Code
from punchd.events import Event
from punchd.wire import icmp
from punchd.wire.tcp import Flags, Options, Segment
from punchd.wire.token import Card

PlanT = TypeVar("PlanT")


class Capability(Flag):
    """Privileges that a technique needs; checked when it is loaded, not in mid-punch.

    LOW_TTL_SYN: a SYN whose death on the way the own stack does not believe, either raw (CAP_NET_RAW) or by an
    exemption in the host's firewall; see `TcpPort.can_send_raw` and `TcpPort.exempt`.
    """

    NONE = 0
    NET_RAW = auto()
    NET_ADMIN = auto()
    LOW_TTL_SYN = auto()


class Role(Enum):
    INITIATOR = "initiator"
    RESPONDER = "responder"


@dataclass(frozen=True, slots=True)
class Facts:
    """What is known when a technique is asked for its plan.

    Attributes:
        role: which half will run.
        peer: the peer's public address.
        peer_ports: the peer's public ports as far as they are known, best first.
        ttl: the low TTL: large enough to leave the own NAT, too small to reach the peer's. 1-64.
        packets_per_port: most packets towards one port in this round.
        packets: most packets in this round.
        reversed_roles: the technique's two sides are swapped in this round.
    """

    role: Role
    peer: IPAddress
    peer_ports: PortSet
    ttl: int
    packets_per_port: int
    packets: int
    reversed_roles: bool = False


@dataclass(frozen=True, slots=True)
class Unsuitable:
    """A technique cannot help here, and why."""

    reason: Code
    text: str


@dataclass(frozen=True, slots=True)
class Hole:
    """A connected socket, proven in both directions.

    Attributes:
        fd: the socket. Whoever holds the Hole owns it and closes it.
        local: its own end.
        remote: the peer's real public end.
    """

    fd: int
    local: Endpoint
    remote: Endpoint


@dataclass(frozen=True, slots=True)
class Datagram:
    data: bytes
    source: Endpoint


class Outlook(Protocol):
    """What is known of the own public side of a port."""

    @property
    def address(self) -> IPAddress:
        """The own public address; unspecified while nobody could tell it."""

    @property
    def behaviour(self) -> str:
        """`open`, `endpoint-independent`, `sequential+N`, `random` or `unknown`."""

    @property
    def is_predicted(self) -> bool:
        """The ports are predictions; none of them was seen for the peer."""

    @property
    def rtt_ms(self) -> int:
        """Round trip to the nearest STUN server, 0 = unknown."""

    def ports(self, later: int = 0) -> PortSet:
        """The public ports for the peer, best first, after `later` new destinations since STUN was asked."""


class UdpPort(Protocol):
    """One bound UDP port. It sends to the attempt's peer only."""

    @property
    def local(self) -> Endpoint: ...

    @property
    def outlook(self) -> Outlook:
        """What is known now; STUN may still be under way."""

    async def learn(self) -> Outlook:
        """What is known once STUN has answered.

        Raises:
            PunchError: no-address, when nothing tells the own public address.
        """

    def send(self, data: bytes, port: int, ttl: int | None = None) -> None:
        """Send to that port of the peer; None is the system's TTL. Beyond the packets of a round nothing is sent.

        Raises:
            PunchError: network, when the kernel refuses.
        """

    async def peek(self) -> Datagram | Complaint | Outlook:
        """The next datagram, which stays queued until `discard`; or an ICMP error; or, once, what STUN had to say.

        A datagram that is left in the queue is the application's to read.
        """

    def discard(self) -> None:
        """Remove the datagram that `peek` returned."""

    def hand_over(self, port: int) -> Hole:
        """Connect to that port of the peer; the hole owns the socket, this port is done.

        The socket is blocking, its TTL the system's, and a filter keeps late probes from the application.
        """


@dataclass(frozen=True, slots=True)
class Sighted:
    """A TCP segment between the attempt's port and the peer, as the sniffer saw it.

    Attributes:
        segment: what it says.
        port: the peer's.
        is_outgoing: ours, on its way out (or injected into our own stack); else the peer's, or a NAT's in its name.
        ttl: as it was when the sniffer saw it.
        is_injected: it never left this host.
    """

    segment: Segment
    port: int
    is_outgoing: bool
    ttl: int
    is_injected: bool = False


@dataclass(frozen=True, slots=True)
class Complaint:
    """An ICMP error about a packet of ours.

    Attributes:
        kind: what became of the packet.
        router: who says so.
        port: the peer's port that it was for.
        seq: its sequence number, where the error quotes one.
    """

    kind: icmp.Kind
    router: IPAddress
    port: int
    seq: int | None = None


@dataclass(frozen=True, slots=True)
class Agreed:
    """What two sides of a connection agree on that neither of them asked the other for.

    Attributes:
        send_next: sequence number of the first byte that this side will send.
        receive_next: sequence number of the first byte that the other side will send.
        mss: the largest segment that either side may send, bytes.
        window_scale: both sides' shift count, 0 to 14.
        window: bytes that may be in flight at first, both ways.
    """

    send_next: int
    receive_next: int
    mss: int
    window_scale: int
    window: int


class Connection(Protocol):
    """A connection that is being made. The port that made it owns it until it is handed over."""

    @property
    def port(self) -> int:
        """The peer's."""

    async def result(self) -> int:
        """Wait for the end of the handshake: 0 when the connection stands, else the errno that ended it."""

    def announce(self) -> None:
        """Tell the peer that it is established here: an ACK one below the next sequence number."""

    def drop(self) -> None:
        """Give it up: silently while the handshake lasts, with RST after it."""


class TcpPort(Protocol):
    """One TCP port, held so that it answers nothing until `listen`. It speaks to the attempt's peer only.

    Raw segments leave from this port towards the peer, injected ones come to this port as if from the peer; there is
    no way to name another address.
    """

    @property
    def can_send_raw(self) -> bool:
        """Without CAP_NET_RAW `send`, `inject` and `repeat` do not work, and `sight` tells of no packets."""

    @property
    def can_exempt(self) -> bool:
        """Whether `exempt` changes anything on this host."""

    def exempt(self) -> Scope[None]:
        """Inside this scope the own stack does not hear that segments of this port died on the way (time exceeded).

        Raises:
            KernelError: the host's firewall cannot be changed now.
        """

    @property
    def local(self) -> Endpoint: ...

    @property
    def outlook(self) -> Outlook:
        """What is known now; STUN may still be under way."""

    @property
    def syn_options(self) -> Options:
        """What our SYNs say, raw ones and, but for timestamps, the kernel's."""

    async def learn(self) -> Outlook:
        """What is known once STUN has answered.

        Raises:
            PunchError: no-address, when nothing tells the own public address.
        """

    def isn(self) -> int:
        """An initial sequence number that nobody can guess, 1 to 2^32 - 1, larger than those of this port before.

        RFC 9293 §3.4.1; a NAT that remembers an earlier round takes a SYN for new only if its number is larger.
        """

    def send(self, flags: Flags, port: int, *, seq: int, ack: int = 0, ttl: int | None = None) -> None:
        """Send a raw segment to that port of the peer, with our usual options if it is a SYN.

        Raises:
            PunchError: refused, when a local firewall forbids it; no-privilege; network, for anything else.
        """

    def inject(self, flags: Flags, port: int, *, seq: int, ack: int = 0, options: Options) -> None:
        """Let the own stack see a segment of that port of the peer.

        Raises:
            PunchError: refused, while the port does not listen; or as `send`.
        """

    async def sight(self) -> Sighted | Complaint | Outlook:
        """What the sniffer saw next; or, once, what STUN had to say."""

    def listen(self, deaf_to: Iterable[int] = ()) -> None:
        """Take connections of the peer from now on, but not from these of its ports."""

    async def accept(self) -> Connection:
        """The peer's next connection, established."""

    def connect(self, port: int, isn: int, ttl: int | None = None) -> Connection:
        """Send a SYN with this initial sequence number (1 to 2^32 - 1); what follows it goes at the system's TTL.

        Args:
            ttl: the SYN's; None is the system's.

        Raises:
            PunchError: network, when the kernel refuses at once; refused, when the round may send no more.
        """

    def reconnect(self, connection: Connection, isn: int, ttl: int | None = None) -> None:
        """Send the SYN again, now, unless the peer's SYN has met the connection; `result` goes on waiting.

        Args and errors: as in `connect`.
        """

    def repeat(self, port: int) -> None:
        """Send a copy of the last SYN or SYN-ACK that our stack sent to that port of the peer.

        Not once a connection to there stands: to a NAT that watches closely, a SYN is the end of what it knew.
        """

    def forge(self, port: int, agreed: Agreed) -> Connection:
        """A connection without a handshake.

        Raises:
            PunchError: network, when the kernel refuses.
        """

    def hand_over(self, connection: Connection) -> Hole:
        """The hole owns the established connection's socket: blocking, nothing exchanged, no option left."""


class Kit(Protocol):
    """One attempt's effects."""

    @property
    def nonce(self) -> bytes:
        """The attempt's, 8 bytes, the same on both sides."""

    def now(self) -> float:
        """Seconds, trio's clock."""

    def random(self, size: int) -> bytes:
        """Bytes that nobody can guess."""

    def udp(self) -> Scope[UdpPort]:
        """The attempt's UDP port."""

    def tcp(self) -> Scope[TcpPort]:
        """The attempt's TCP port; leaving drops what was not handed over."""

    def tell_peer(self, card: Card) -> None:
        """Becomes a token: the offer or answer first, then notes. The kit fills in `rtt_ms`."""

    async def hear_peer(self) -> Card:
        """What the peer's half told next."""

    def emit(self, event: Event) -> None: ...


@runtime_checkable
class Technique(Protocol[PlanT]):
    """One way to punch. Its attributes:

    name: as in the line protocol; number: as in tokens (128-255 for techniques of others); protocol: "tcp" or "udp";
    needs: capabilities of the daemon's process; is_reversible: its sides differ, and swapping them is worth a round.
    """

    @property
    def name(self) -> str: ...
    @property
    def number(self) -> int: ...
    @property
    def protocol(self) -> str: ...
    @property
    def needs(self) -> Capability: ...
    @property
    def is_reversible(self) -> bool: ...

    def plan(self, facts: Facts) -> PlanT | Unsuitable:
        """Pure: what to do with these facts, or why it cannot help."""

    async def initiate(self, plan: PlanT, kit: Kit) -> Hole:
        """Ends with a proven socket or raises PunchError; the first thing it tells the peer is the offer."""

    async def respond(self, plan: PlanT, offer: Card, kit: Kit) -> Hole:
        """The other half; the first thing it tells the peer is the answer."""
