"""Probes a NAT of a running laboratory with real packets and says what they prove (proof.py).

How absence is proven: nothing in an undelayed laboratory overtakes, so when a later packet on the same path has
arrived (a *fence*), an earlier one that has not will not. No probe waits for silence, except where no UDP passes.

Every question uses an inside port of its own, so that no answer depends on an earlier question.
"""

from __future__ import annotations

import contextlib
import itertools
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from .host import Host
from .laboratory import Laboratory
from .measured_path import (
    NEAR_OTHER_PORT,
    NEAR_PORT,
    REMOTE_SEQUENCE,
    SEQUENCE,
    MeasuredPath,
    ProbeError,
    arrival,
    arrived,
    arrived_until,
    new_token,
    text,
)
from .model import Filtering, Mapping, Ports
from .packet import ACK, RST, SYN, TCP, UDP, Endpoint
from .proof import Answer, Proof

_LARGEST_STEP: Final = 64
_FAR_AHEAD: Final = 1_000_000  # more than any window without scaling
_LOW_TTL: Final = 4  # the daemon's default
_UNREACHABLE, _PORT_UNREACHABLE, _PROHIBITED = 3, 3, 13


def probe(lab: Laboratory, name: str) -> Proof:
    """Probes the site of that name, in some tens of milliseconds.

    The laboratory must be idle and without impaired links, and needs a site on the other side.

    Raises:
        ProbeError: the site cannot reach the server at all.
    """
    with contextlib.ExitStack() as stack:
        return _Probe(lab, name, stack).prove()


class _Probe(MeasuredPath):
    """One site and the server: one method a question."""

    def prove(self) -> Proof:
        tcp_ports, sequence_kept = self.tcp_ports()
        udp_ports = self.udp_ports() if self.udp_passes else None
        ports, step = _choice(*(udp_ports or tcp_ports))
        udp_answer, tcp_answer, takes_port = self.stranger()
        inbound_syn, syn_ack = self.simultaneous_open()
        survives_icmp, errors_reach_host, dies_at = self.low_ttl() if self.udp_passes else (None, None, None)
        translated = self.public != self.own
        kept = ports is Ports.PRESERVED and len({port for _, port in tcp_ports[1]}) == 1
        return Proof(
            udp_mapping=_mapping(*udp_ports) if udp_ports else None,
            tcp_mapping=_mapping(*tcp_ports),
            ports=ports,
            port_step=step,
            sequence_kept=sequence_kept,
            udp_filtering=self.udp_filtering() if self.udp_passes else None,
            tcp_filtering=self.tcp_filtering(),
            ipv6_filtering=self.ipv6_filtering() if self.udp_passes and self.host.ipv6 else None,
            udp_answer=udp_answer if self.udp_passes else None,
            tcp_answer=tcp_answer,
            stranger_takes_port=takes_port if kept and self.udp_passes else None,
            inbound_syn_passes=inbound_syn,
            syn_ack_then_passes=syn_ack,
            bare_ack_opens=self.opens(ACK),
            syn_ack_opens=self.opens(SYN | ACK),
            checks_window=self.checks_window(),
            survives_rst=self.survives_rst(),
            survives_icmp=survives_icmp,
            errors_reach_host=errors_reach_host,
            hairpins=self.hairpins() if self.udp_passes and translated else None,
            low_ttl_dies_at=dies_at,
        )

    def udp_ports(self) -> tuple[Endpoint, list[Endpoint]]:
        """The inside endpoint, and what the four remotes saw."""
        own = (self.own, next(self.ports))
        bound = self.udp(self.host, own)
        found: list[Endpoint] = []
        for remote in self.remotes:
            token = new_token()
            bound.sendto(token, (text(remote[0]), remote[1]))
            source = arrival(self.servers[remote], token)
            if source is None:
                raise ProbeError(f"{self.site.name}: UDP does not reach {text(remote[0])}:{remote[1]}")
            found.append(source)
        return own, found

    def tcp_ports(self) -> tuple[tuple[Endpoint, list[Endpoint]], bool]:
        """As `udp_ports`, for SYNs, and whether sequence numbers were kept."""
        own = (self.own, next(self.ports))
        found: list[Endpoint] = []
        kept = True
        for remote in self.remotes:
            segment = self.syn_out(own, remote)
            kept = kept and segment.sequence == SEQUENCE
            found.append(segment.source)
        return (own, found), kept

    def udp_filtering(self) -> Filtering:
        bound = self.udp(self.host, (self.own, next(self.ports)))
        if self.delivered_uninvited():
            return Filtering.NONE
        token = new_token()
        bound.sendto(token, (text(self.near[0]), self.near[1]))
        outside = arrival(self.servers[self.near], token)
        if outside is None:
            raise ProbeError(f"{self.site.name}: UDP does not reach the server")
        tokens = {remote: new_token() for remote in (self.near, self.near_other, self.far)}
        for remote, token in tokens.items():
            self.servers[remote].sendto(token, (text(outside[0]), outside[1]))
        self.fence()
        came = arrived(bound)
        return _filtering(*(tokens[remote] in came for remote in (self.near, self.near_other, self.far)))

    def delivered_uninvited(self) -> bool:
        port = next(self.ports)
        bound = self.udp(self.host, (self.own, port))
        token = new_token()
        self.servers[self.near].sendto(token, (text(self.public), port))
        self.fence()
        return token in arrived(bound)

    def tcp_filtering(self) -> Filtering:
        own = (self.own, next(self.ports))
        if self.delivered_syn(next(self.ports)):
            return Filtering.NONE
        outside = self.syn_out(own, self.near)
        for remote in (self.near_other, self.far):
            self.outside.send_flags(remote, outside.source, SYN, REMOTE_SEQUENCE)
        self.outside.send_flags(self.near, outside.source, SYN | ACK, REMOTE_SEQUENCE, outside.sequence)
        self.fence()
        answered = bool(self.seen(self.inside, own, SYN | ACK, self.near))
        strangers = (bool(self.seen(self.inside, own, SYN, remote)) for remote in (self.near_other, self.far))
        return _filtering(answered, *strangers)

    def delivered_syn(self, port: int) -> bool:
        self.outside.send_flags(self.near, (self.public, port), SYN, REMOTE_SEQUENCE)
        self.fence()
        return bool(self.seen(self.inside, (self.own, port), SYN))

    def ipv6_filtering(self) -> Filtering:
        assert self.host.ipv6 is not None
        near, far = self.lab.server.ipv6_addresses
        remotes = ((near, NEAR_PORT), (near, NEAR_OTHER_PORT), (far, NEAR_PORT))
        own, port = (self.host.ipv6, next(self.ports)), next(self.ports)
        bound, stranger = (self.udp6(self.host, end) for end in (own, (self.host.ipv6, port)))
        servers = [self.udp6(self.lab.server, remote) for remote in remotes]
        uninvited, opening = new_token(), new_token()
        servers[0].sendto(uninvited, (self.host.ipv6, port))
        bound.sendto(opening, remotes[0])
        if arrival(servers[0], opening) is None:
            raise ProbeError(f"{self.site.name}: IPv6 does not reach the server")
        tokens = [new_token() for _ in remotes]
        # The one that is let in for certain comes last and is the fence.
        for server, token in reversed(list(zip(servers, tokens, strict=True))):
            server.sendto(token, own)
        came = arrived_until(bound, tokens[0])
        if uninvited in arrived(stranger):
            return Filtering.NONE
        return _filtering(*(token in came for token in tokens))

    def udp6(self, host: Host, endpoint: tuple[str, int]) -> socket.socket:
        bound = self.stack.enter_context(host.socket(socket.AF_INET6))
        bound.bind(endpoint)
        bound.setblocking(False)
        return bound

    def stranger(self) -> tuple[Answer, Answer, bool]:
        """Answers to a datagram and to a SYN for an unused port, and whether the datagram took the port."""
        port = next(self.ports)
        self.outside.errors.clear()
        bound = self.udp(self.host, (self.own, port))
        token = new_token()
        self.servers[self.far].sendto(token, (text(self.public), port))
        self.outside.send_flags(self.far, (self.public, port), SYN, REMOTE_SEQUENCE)
        self.fence()
        udp_answer = Answer.DELIVERED if token in arrived(bound) else self.refusal(UDP, port)
        resets = [one for one in self.outside.segments if one.flags & RST and one.source == (self.public, port)]
        tcp_answer = self.refusal(TCP, port) if not resets else Answer.RESET
        if self.seen(self.inside, (self.own, port), SYN):
            tcp_answer = Answer.DELIVERED
        takes_port = False
        if self.udp_passes:
            token = new_token()
            bound.sendto(token, (text(self.far[0]), self.far[1]))
            source = arrival(self.servers[self.far], token)
            takes_port = source is None or source[1] != port
        return udp_answer, tcp_answer, takes_port

    def refusal(self, protocol: int, port: int) -> Answer:
        for error in self.outside.errors:
            if error.quoted.protocol == protocol and error.quoted.target == (self.public, port):
                if (error.kind, error.code) == (_UNREACHABLE, _PORT_UNREACHABLE):
                    return Answer.PORT_UNREACHABLE
                if (error.kind, error.code) == (_UNREACHABLE, _PROHIBITED):
                    return Answer.PROHIBITED
        return Answer.SILENCE

    def simultaneous_open(self) -> tuple[bool, bool]:
        """Own SYN, then the remote's: does it arrive, and does a SYN-ACK get out after it?"""
        own = (self.own, next(self.ports))
        outside = self.syn_out(own, self.near)
        self.outside.send_flags(self.near, outside.source, SYN, REMOTE_SEQUENCE)
        self.fence()
        passes = bool(self.seen(self.inside, own, SYN, self.near))
        self.inside.send_flags(own, self.near, SYN | ACK, SEQUENCE, REMOTE_SEQUENCE)
        self.fence()
        return passes, bool(self.seen(self.outside, self.near, SYN | ACK, outside.source))

    def opens(self, flags: int) -> bool:
        """Whether such a segment, without anything before, lets an answer in."""
        own = (self.own, next(self.ports))
        before = len(self.outside.segments)
        self.inside.send_flags(own, self.near, flags, SEQUENCE, REMOTE_SEQUENCE)
        self.fence()
        for segment in self.outside.segments[before:]:
            if segment.target == self.near and segment.flags == flags and segment.source[0] == self.public:
                self.outside.send_flags(self.near, segment.source, ACK, REMOTE_SEQUENCE + 1, segment.sequence)
                self.fence()
                return bool(self.seen(self.inside, own, ACK, self.near))
        return False

    def checks_window(self) -> bool:
        own = (self.own, next(self.ports))
        outside = self.syn_out(own, self.near)
        never_sent = outside.sequence + _FAR_AHEAD
        self.outside.send_flags(self.near, outside.source, SYN | ACK, REMOTE_SEQUENCE, never_sent)
        self.fence()
        return not self.seen(self.inside, own, SYN | ACK, self.near)

    def survives_rst(self) -> bool:
        own = (self.own, next(self.ports))
        outside = self.syn_out(own, self.near)
        self.outside.send_flags(self.near, outside.source, RST | ACK, 0, outside.sequence)
        self.fence()
        self.outside.send_flags(self.near, outside.source, SYN | ACK, REMOTE_SEQUENCE, outside.sequence)
        self.fence()
        return bool(self.seen(self.inside, own, SYN | ACK, self.near))

    def low_ttl(self) -> tuple[bool, bool, str | None]:
        """A mapping, then a datagram from its port that dies on the way to the other side.

        Returns:
            Whether the mapping survives the ICMP error, whether the error reaches the host, and where it died.
        """
        own = (self.own, next(self.ports))
        bound = self.udp(self.host, own)
        token = new_token()
        bound.sendto(token, (text(self.near[0]), self.near[1]))
        outside = arrival(self.servers[self.near], token)
        assert outside is not None
        before = {node: self.expired(node) for node in self.lab.nodes}
        bound.setsockopt(socket.IPPROTO_IP, socket.IP_TTL, _LOW_TTL)
        bound.sendto(token, (self.other_side(), NEAR_PORT))
        # The error comes back on the path of the fence, but from nearer: it is there before the fence is.
        self.fence()
        died_at = [node for node, count in before.items() if self.expired(node) > count]
        reached = any(error.quoted.protocol == UDP and error.quoted.source == own for error in self.inside.errors)
        token = new_token()
        self.servers[self.near].sendto(token, (text(outside[0]), outside[1]))
        self.fence()
        return token in arrived(bound), reached, died_at[0] if len(died_at) == 1 else None

    def expired(self, node: str) -> int:
        """ICMP time-exceeded messages that the node has sent."""
        with self.lab.nodes[node].entered():
            text = Path("/proc/thread-self/net/snmp").read_text()
        names, values = (line.split() for line in text.splitlines() if line.startswith("Icmp:"))
        return int(values[names.index("OutTimeExcds")])

    def other_side(self) -> str:
        for site in self.lab.sites():
            if site.side is not self.site.side:
                return site.host.public_ipv4
        raise ProbeError(f"expected a site on the other side than {self.site.side.value}")

    def hairpins(self) -> bool:
        bound, other = (self.udp(self.host, (self.own, next(self.ports))) for _ in range(2))
        token = new_token()
        bound.sendto(token, (text(self.near[0]), self.near[1]))
        outside = arrival(self.servers[self.near], token)
        assert outside is not None
        token = new_token()
        other.sendto(token, (text(outside[0]), outside[1]))
        self.fence()
        return token in arrived(bound)


def _filtering(answered: bool, other_port: bool, other_address: bool) -> Filtering:
    if not answered:
        raise ProbeError("the one that was sent to cannot answer")
    if other_address:
        return Filtering.ENDPOINT_INDEPENDENT
    return Filtering.ADDRESS_DEPENDENT if other_port else Filtering.ADDRESS_AND_PORT_DEPENDENT


def _mapping(own: Endpoint, seen: Sequence[Endpoint]) -> Mapping:
    first, second, third, fourth = seen
    if first == second == third == fourth:
        return Mapping.NONE if first[0] == own[0] else Mapping.ENDPOINT_INDEPENDENT
    if first == second and third == fourth:
        return Mapping.ADDRESS_DEPENDENT
    return Mapping.ADDRESS_AND_PORT_DEPENDENT


def _choice(own: Endpoint, seen: Sequence[Endpoint]) -> tuple[Ports, int | None]:
    """How outside ports were chosen for one inside endpoint, and the step of sequential ones."""
    ports = [port for _, port in seen]
    if set(ports) == {own[1]}:
        return Ports.PRESERVED, None
    if len(set(ports)) == 1:
        return Ports.SCRAMBLED, None
    steps = {after - before for before, after in itertools.pairwise(ports)}
    if len(steps) == 1 and 1 <= (step := steps.pop()) <= _LARGEST_STEP:
        return Ports.SEQUENTIAL, step
    return Ports.RANDOM, None
