"""A NAT as a pure function of packets and time: mapping key, filter key and clock.

- The *mapping key* says which packets from inside share an outside port: protocol and inside endpoint, and for
  dependent mappings the remote address, or address and port (RFC 4787 §4.1).
- The *filter key* says which remotes may answer: none, address, or address and port of those sent to (§5).
- The *clock* comes in with every packet; mappings and sessions end when idle.

A session is one remote endpoint of a mapping. TCP's states and the shift of its sequence numbers belong to it.

Left out: hairpinning, answers to the unsolicited, timers that follow TCP's states (all TCP sessions live equally
long), refreshing by outbound packets only (inbound ones refresh too, as on Linux).
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field
from typing import Final

from .model import Filtering, InboundSyn, Mapping, Nat, Ports, TcpTracking
from .packet import ACK, ICMP, RST, SYN, TCP, UDP, Endpoint, Packet
from .rules import PORT_SCRAMBLE
from .tcp_states import TRANSITIONS, TcpState, event

UDP_TIMEOUT_S: Final = 120.0  # RFC 4787 REQ-5: not less than two minutes
TCP_TIMEOUT_S: Final = 7440.0  # RFC 5382 REQ-5: not less than 2 h 4 min
ICMP_TIMEOUT_S: Final = 60.0  # RFC 5508 REQ-2
MOST_MAPPINGS: Final = 16_384

_Key = tuple[int, ...]


@dataclass(slots=True)
class _Session:
    expires: float
    state: TcpState = TcpState.CLOSED
    shift: int = 0  # what outbound sequence numbers gain


@dataclass(slots=True)
class _Mapping:
    key: _Key
    protocol: int
    inside: Endpoint
    port: int
    expires: float
    sessions: dict[Endpoint, _Session] = field(default_factory=dict)


class Translator:
    """The tables of one NAT.

    Args:
        nat: its behaviour; the engine is taken to be userspace.
        public: its outside address, as an integer.
        seed: of the random ports and sequence shifts.
    """

    def __init__(self, nat: Nat, public: int, seed: int = 0) -> None:
        self._nat = nat
        self._public = public
        self._random = random.Random(seed)
        self._by_key: dict[_Key, _Mapping] = {}
        self._by_port: dict[tuple[int, int], _Mapping] = {}
        self._next_port = nat.port_range[0]

    def handle(self, packet: Packet, now: float) -> Packet | None:
        """Translates a packet in place, inwards if it is addressed to the public address, else outwards.

        Returns:
            The packet, or None if it is dropped.
        """
        inbound = packet.target[0] == self._public
        if packet.is_error:
            return self._error_in(packet, now) if inbound else self._error_out(packet, now)
        return self._inwards(packet, now) if inbound else self._outwards(packet, now)

    def _outwards(self, packet: Packet, now: float) -> Packet | None:
        mapping = self._mapping(packet, now)
        if mapping is None:
            return None
        session = self._session(mapping, packet.target, now)
        if not self._follow(session, packet, outbound=True):
            return None
        self._refresh(mapping, session, now)
        packet.set_source((self._public, mapping.port))
        if session.shift:
            packet.shift_sequence(session.shift)
        return packet

    def _inwards(self, packet: Packet, now: float) -> Packet | None:
        mapping = self._alive(self._by_port.get((packet.protocol, packet.target[1])), now)
        if mapping is None or not self._admits(mapping, packet.source, now):
            return None
        plain_syn = packet.protocol == TCP and packet.flags & (SYN | ACK | RST) == SYN
        if plain_syn and self._nat.syn is InboundSyn.DROPPED_UNTRACKED:
            return None
        session = self._session(mapping, packet.source, now)
        if not self._follow(session, packet, outbound=False):
            return None
        if plain_syn and self._nat.syn is InboundSyn.DROPPED:
            return None
        self._refresh(mapping, session, now)
        packet.set_target(mapping.inside)
        if session.shift:
            packet.shift_acknowledgement(-session.shift)
        if self._nat.dies_of_errors and packet.protocol == TCP and packet.flags & RST:
            self._remove(mapping)
        return packet

    def _error_in(self, packet: Packet, now: float) -> Packet | None:
        """An error about a packet that went out: what it quotes has the public source."""
        quoted = packet.quote()
        if quoted is None or quoted.is_error or quoted.source[0] != self._public:
            return None
        mapping = self._alive(self._by_port.get((quoted.protocol, quoted.source[1])), now)
        session = mapping.sessions.get(quoted.target) if mapping else None
        if mapping is None or session is None or session.expires <= now:
            return None
        quoted.set_source(mapping.inside)
        if session.shift:
            quoted.shift_sequence(-session.shift)
        packet.set_quote(quoted)
        packet.set_target((mapping.inside[0], 0))
        if self._nat.dies_of_errors:
            self._remove(mapping)
        return packet

    def _error_out(self, packet: Packet, now: float) -> Packet | None:
        """An error of the inside host about a packet that came in: what it quotes has the inside target."""
        quoted = packet.quote()
        if quoted is None or quoted.is_error:
            return None
        mapping = self._alive(self._by_key.get(self._key(quoted.protocol, quoted.target, quoted.source)), now)
        session = mapping.sessions.get(quoted.source) if mapping else None
        if mapping is None or session is None:
            return None
        quoted.set_target((self._public, mapping.port))
        if session.shift:
            quoted.shift_acknowledgement(session.shift)
        packet.set_quote(quoted)
        packet.set_source((self._public, 0))
        return packet

    def _follow(self, session: _Session, packet: Packet, *, outbound: bool) -> bool:
        """Whether TCP's states, if the NAT knows them, let the segment pass."""
        if packet.protocol != TCP or self._nat.tcp is not TcpTracking.STRICT:
            return True
        successor = TRANSITIONS[session.state].get(event(packet.flags, outbound=outbound))
        if successor is None:
            return False
        session.state = successor
        return True

    def _admits(self, mapping: _Mapping, remote: Endpoint, now: float) -> bool:
        match self._nat.filtering:
            case Filtering.NONE | Filtering.ENDPOINT_INDEPENDENT:
                return True
            case Filtering.ADDRESS_DEPENDENT:
                return any(key[0] == remote[0] and s.expires > now for key, s in mapping.sessions.items())
            case Filtering.ADDRESS_AND_PORT_DEPENDENT:
                session = mapping.sessions.get(remote)
                return session is not None and session.expires > now

    def _mapping(self, packet: Packet, now: float) -> _Mapping | None:
        key = self._key(packet.protocol, packet.source, packet.target)
        mapping = self._alive(self._by_key.get(key), now)
        if mapping is None:
            if len(self._by_key) >= MOST_MAPPINGS:
                self._purge(now)
            port = self._free_port(packet.protocol, packet.source[1], now)
            if port is None:
                return None
            mapping = _Mapping(key, packet.protocol, packet.source, port, now + self._timeout(packet.protocol))
            self._by_key[key] = self._by_port[packet.protocol, port] = mapping
        return mapping

    def _session(self, mapping: _Mapping, remote: Endpoint, now: float) -> _Session:
        session = mapping.sessions.get(remote)
        if session is None or session.expires <= now:
            shift = self._random.getrandbits(32) if self._nat.rewrites_sequence and mapping.protocol == TCP else 0
            session = mapping.sessions[remote] = _Session(now, shift=shift)
        return session

    def _refresh(self, mapping: _Mapping, session: _Session, now: float) -> None:
        mapping.expires = session.expires = now + self._timeout(mapping.protocol)

    def _key(self, protocol: int, inside: Endpoint, remote: Endpoint) -> _Key:
        match self._nat.mapping:
            case Mapping.NONE | Mapping.ENDPOINT_INDEPENDENT:
                return protocol, *inside
            case Mapping.ADDRESS_DEPENDENT:
                return protocol, *inside, remote[0]
            case Mapping.ADDRESS_AND_PORT_DEPENDENT:
                return protocol, *inside, *remote

    def _free_port(self, protocol: int, inside_port: int, now: float) -> int | None:
        first, last = self._nat.port_range
        for attempt in range(last - first + 1):
            match self._nat.ports:
                case Ports.PRESERVED if not attempt:
                    port = inside_port
                case Ports.SCRAMBLED if not attempt:
                    port = inside_port ^ PORT_SCRAMBLE
                case Ports.SEQUENTIAL:
                    port = self._next_port
                    following = port + self._nat.port_step
                    self._next_port = following if following <= last else first
                case _:
                    port = self._random.randint(first, last)
            if self._alive(self._by_port.get((protocol, port)), now) is None:
                return port
        return None

    def _timeout(self, protocol: int) -> float:
        if protocol == UDP:
            return UDP_TIMEOUT_S if self._nat.udp_timeout_s is None else float(self._nat.udp_timeout_s)
        return ICMP_TIMEOUT_S if protocol == ICMP else TCP_TIMEOUT_S

    def _alive(self, mapping: _Mapping | None, now: float) -> _Mapping | None:
        if mapping is not None and mapping.expires <= now:
            self._remove(mapping)
            return None
        return mapping

    def _remove(self, mapping: _Mapping) -> None:
        self._by_key.pop(mapping.key, None)
        self._by_port.pop((mapping.protocol, mapping.port), None)

    def _purge(self, now: float) -> None:
        for mapping in list(self._by_key.values()):
            self._alive(mapping, now)
        if len(self._by_key) >= MOST_MAPPINGS:  # all in use: the oldest goes
            self._remove(next(iter(self._by_key.values())))
