"""From a request to an attempt that is ready to run: addresses checked, port bound, plan made.

Whatever is wrong with a request beyond its form is found here, before the attempt starts: the host's own address as a
target, no route, a local port that is taken, no technique that could be used.

Source: line protocol §2 (options), §4, §6, §13.1, §13.3, §13.11, §13.12.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from punchd.attempt import machine
from punchd.attempt.fresh import FreshPorts
from punchd.attempt.kit import AttemptPorts
from punchd.attempt.outlook import KnownSide
from punchd.attempt.port import LearningPort
from punchd.attempt.runner import Attempt, Voice
from punchd.attempt.tcp_port import LearningTcpPort
from punchd.config import Config
from punchd.control.policy import ALL, Rule
from punchd.control.registry import Registry
from punchd.control.requests import Initiate, Options, Probe, Protocol, Respond
from punchd.endpoint import Endpoint, IPAddress, PortSet, objection
from punchd.errors import Code, DeniedError, KernelError, PunchError
from punchd.events import Event, TtlChosen
from punchd.kernel.firewall import Firewall, NoFirewall
from punchd.kernel.passed import PassedSocket
from punchd.kernel.routes import Routes
from punchd.kernel.tcp import reserve
from punchd.kernel.udp import UdpSocket
from punchd.nat.low_ttl import LowTtls
from punchd.nat.servers import StunServers
from punchd.wire.token import NONCE_SIZE, Card, Kind, Token

INITIATE_TIMEOUT_MS = 30_000
RESPOND_TIMEOUT_MS = 45_000  # outlives the initiator, who decides when it is over

KeptPort = LearningPort | LearningTcpPort
_PortT = TypeVar("_PortT", LearningPort, LearningTcpPort)


@dataclass(frozen=True, slots=True)
class Launcher:
    """Makes attempts of requests. Shared by all connections."""

    config: Config
    registry: Registry
    routes: Routes
    servers: StunServers
    fresh: FreshPorts = field(default_factory=FreshPorts)
    low_ttls: LowTtls | None = None  # None: the configured TTL is used
    firewall: Firewall = field(default_factory=NoFirewall)

    async def initiate(
        self,
        request: Initiate,
        kept: Sequence[KeptPort],
        voice: Voice,
        emit: Callable[[Event], None],
        record: Callable[[bytes], None] | None = None,
        *,
        passed: PassedSocket | None = None,
        rule: Rule = ALL,
    ) -> Attempt:
        """An attempt that leads. It owns `kept`, ports probed before, and `passed`, the application's own socket,
        unless this raises. `rule`: the policy's for the user.

        Raises:
            DeniedError, KernelError, PunchError: the request cannot be carried out; the message says why.
        """
        names = rule.check_techniques(request.techniques, self.registry.resolve(request.techniques))
        rule.check_target(request.ip)
        rounds = self._rounds(names)
        plan = machine.Plan(
            nonce=os.urandom(NONCE_SIZE),
            peer=request.ip,
            timeout_s=(request.options.timeout_ms or INITIATE_TIMEOUT_MS) / 1000,
            techniques=tuple((name, self.registry.by_name[name].number) for name, _ in rounds),
            reversed_rounds=frozenset(number for number, (_, is_reversed) in enumerate(rounds, 1) if is_reversed),
        )
        self._check_usable(names)
        ports = await self._ports(plan.peer, names, request.options, kept, passed=passed, rule=rule)
        return self._attempt(plan, request.options, request.ports, ports, rule, voice=voice, emit=emit, record=record)

    async def respond(
        self,
        request: Respond,
        kept: Sequence[KeptPort],
        voice: Voice,
        emit: Callable[[Event], None],
        record: Callable[[bytes], None] | None = None,
        *,
        passed: PassedSocket | None = None,
        rule: Rule = ALL,
    ) -> Attempt:
        """An attempt that follows the offer in `request`. Ownership and errors as in `initiate`."""
        token, options = request.token, request.options
        card = self._offer(token, options)
        asked = options.techniques or ()
        names = rule.check_techniques(asked, self.registry.resolve(asked) if asked else self.registry.names)
        rule.check_target(card.address)
        plan = machine.Plan(
            nonce=token.nonce,
            peer=card.address,
            timeout_s=(options.timeout_ms or RESPOND_TIMEOUT_MS) / 1000,
            known=self.registry.by_number,
            agreed=frozenset(names),
            first_offer=token,
        )
        self._check_usable(names)
        ports = await self._ports(plan.peer, names, options, kept, passed=passed, rule=rule)
        ports.renew_tcp = None
        return self._attempt(plan, options, None, ports, rule, voice=voice, emit=emit, record=record)

    async def open_port(self, request: Probe, rule: Rule = ALL) -> KeptPort:
        """A port that has been asked about at the STUN servers; the caller owns it.

        Raises:
            DeniedError, KernelError, PunchError: no server, a port that is taken, no privilege (TCP).
        """
        options = request.options
        if request.protocol is Protocol.TCP:
            self._check_tcp()
        version = options.local.version if options.local is not None else None
        servers = await self._stun(options, version or 4, rule)
        if not servers and not version:
            servers = await self._stun(options, 6, rule)
        if options.local is not None:
            local = options.local
        elif servers:
            local = self.routes.to(servers[0].ip).source
        else:
            raise DeniedError(Code.NO_ADDRESS, "no STUN server is known: use --stun or the configuration, or local=")
        if request.protocol is Protocol.UDP:
            port: KeptPort = self._bound(_udp_port, local, options)
        else:
            port = self._bound(_tcp_port, local, options)
        self._heed(port, servers)
        port.ask(servers)
        return port

    def _rounds(self, names: Sequence[str]) -> list[tuple[str, bool]]:
        """Each technique once, and those whose two sides differ once more, with the sides swapped."""
        rounds: list[tuple[str, bool]] = []
        for name in names:
            rounds.append((name, False))
            if self.registry.by_name[name].is_reversible:
                rounds.append((name, True))
        return rounds

    def _check_usable(self, names: Sequence[str]) -> None:
        if any(name in self.registry.usable for name in names):
            return
        lacking = [f"{name} needs {self.registry.lacking[name]}" for name in names if name in self.registry.lacking]
        if lacking:
            raise DeniedError(Code.NO_PRIVILEGE, f"no technique can be used: {'; '.join(lacking)}")
        text = f"none of {', '.join(names) or 'the techniques'} is loaded here, only {', '.join(self.registry.usable)}"
        raise DeniedError(Code.EXHAUSTED, text)

    def _check_tcp(self) -> None:
        """A TCP port that no technique can use would be of no use to anybody."""
        if any(self.registry.by_name[name].protocol == "tcp" for name in self.registry.usable):
            return
        if lacking := [f"{name} needs {what}" for name, what in self.registry.lacking.items()]:
            raise DeniedError(Code.NO_PRIVILEGE, f"no technique for TCP can be used: {'; '.join(lacking)}")

    async def _ports(
        self,
        peer: IPAddress,
        names: Sequence[str],
        options: Options,
        kept: Sequence[KeptPort],
        *,
        passed: PassedSocket | None,
        rule: Rule,
    ) -> AttemptPorts:
        """The attempt's ports; binding comes last, so that nothing is left open when something else is wrong."""
        source = self.routes.to(peer).source
        wanted = {self.registry.by_name[name].protocol for name in names}
        if passed is not None:
            _check_passed(passed, peer, wanted, options)
            wanted &= {passed.protocol}
        servers = await self._stun(options, peer.version, rule)
        ports = AttemptPorts(None, servers, firewall=self.firewall, passed=passed)
        for port in kept:
            port.outlook = replace(port.outlook, given_address=options.public, given_ports=options.pports)
            if isinstance(port, LearningPort):
                ports.udp = port
            else:
                ports.tcp = port
        local = options.local or source
        try:
            if passed is not None and passed.protocol == "udp":
                ports.udp = self._adopted(passed, local, options)
            elif "udp" in wanted and ports.udp is None:
                ports.udp = self._bound(_udp_port, local, options)
            if "tcp" in wanted and ports.tcp is None:
                ports.tcp = self._bound(_tcp_port, local, options)
        except PunchError:
            if ports.udp is not None and ports.udp not in kept:
                ports.udp.close()
            raise
        if ports.tcp is not None and options.pports is None and passed is None:
            fresh = replace(options, lport=0)
            ports.renew_tcp = lambda: self._bound(_tcp_port, local, fresh)
        for bound in (ports.udp, ports.tcp):
            if bound is not None:
                self._heed(bound, servers)
        return ports

    def _adopted(self, passed: PassedSocket, local: IPAddress, options: Options) -> LearningPort:
        """The application's UDP socket, bound as asked for unless it is bound already."""
        at = Endpoint(local, options.lport)
        if passed.bound is not None:
            at = Endpoint(local if passed.bound.ip.is_unspecified else passed.bound.ip, passed.bound.port)
        adopted = UdpSocket(at, passed)
        self.fresh.remember(adopted.local.port)
        return LearningPort(adopted, KnownSide(adopted.local, options.public, options.pports))

    def _bound(self, bind: Callable[[IPAddress, Options], _PortT], local: IPAddress, options: Options) -> _PortT:
        """A port as asked for, or one that no NAT remembers."""
        if options.lport == 0:
            return self.fresh.draw(lambda: bind(local, options))
        port = bind(local, options)
        self.fresh.remember(port.local.port)
        return port

    def _heed(self, port: KeptPort, servers: Sequence[Endpoint]) -> None:
        """What STUN says of this port is a reason to learn the low TTL, towards a server that is asked anyway."""
        if self.low_ttls is not None and servers:
            port.on_discovered = partial(self.low_ttls.consider, target=servers[0].ip)

    def _ttl(self, options: Options, source: IPAddress | None, emit: Callable[[Event], None]) -> int:
        """The low TTL of a round that begins: the application's, or what was learnt by now, or the configured one."""
        ttl, why = self.config.ttl, "configured" if self.config.ttl_was_named else "the default, none is learnt"
        if options.ttl is not None:
            ttl, why = options.ttl, "asked for by the application"
        elif self.low_ttls is not None and source is not None and (learnt := self.low_ttls.known(source)):
            ttl, why = learnt.ttl, str(learnt)
        emit(TtlChosen(ttl, why))
        return ttl

    def _attempt(
        self,
        plan: machine.Plan,
        options: Options,
        peer_ports: PortSet | None,
        ports: AttemptPorts,
        rule: Rule,
        *,
        voice: Voice,
        emit: Callable[[Event], None],
        record: Callable[[bytes], None] | None,
    ) -> Attempt:
        own = ports.udp or ports.tcp
        limits = self.config.limits
        packets = limits.packets_per_round if rule.packets is None else min(rule.packets, limits.packets_per_round)
        return Attempt(
            plan=plan,
            techniques=self.registry.by_name,
            ports=ports,
            peer_ports=peer_ports,
            ttl=partial(self._ttl, options, own.local.ip if own is not None else None, emit),
            packets_per_port=min(packets, limits.packets_per_port),
            packets=packets,
            voice=voice,
            emit=emit,
            record=record,
        )

    def _offer(self, token: Token, options: Options) -> Card:
        card = token.card
        if token.kind is not Kind.OFFER or card is None:
            raise DeniedError(Code.BAD_TOKEN, f"field 3: expected an offer for a new id, got {token.kind.name.lower()}")
        if options.peer is not None and card.address != options.peer:
            raise DeniedError(Code.TOKEN_MISMATCH, f"the token names {card.address}, expected {options.peer}")
        for name, address in (("local", options.local), ("public", options.public)):
            if address is not None and address.version != card.address.version:
                text = f"the token is IPv{card.address.version}, {name} is IPv{address.version}"
                raise DeniedError(Code.TOKEN_MISMATCH, text)
        return card

    async def _stun(self, options: Options, version: int, rule: Rule) -> list[Endpoint]:
        """The request's own server, checked like any other target, or else the configured ones."""
        if options.stun is None:
            return await self.servers.of_family(version)
        found = [endpoint for endpoint in await self.servers.resolve(options.stun) if endpoint.ip.version == version]
        for endpoint in found:
            private = self.config.allow_private if rule.private is None else rule.private
            if (why := objection(endpoint.ip, allow_private=private)) is not None:
                raise DeniedError(Code.BAD_ADDRESS, f"stun: {why}")
            rule.check_target(endpoint.ip)
            self.routes.to(endpoint.ip)
        return found


def _check_passed(passed: PassedSocket, peer: IPAddress, wanted: set[str], options: Options) -> None:
    """Whether the application's socket fits the rest of the request.

    Raises:
        DeniedError: bad-option, bad-address, bad-port.
    """
    if passed.version != peer.version:
        raise DeniedError(
            Code.BAD_OPTION, f"sock: expected an IPv{peer.version} socket, got one of IPv{passed.version}"
        )
    if passed.protocol not in wanted:
        text = (
            f"sock: expected a socket for {' or '.join(sorted(wanted)).upper()}, got one for {passed.protocol.upper()}"
        )
        raise DeniedError(Code.BAD_OPTION, text)
    if passed.bound is None:
        return
    if options.lport not in (0, passed.bound.port):
        raise DeniedError(Code.BAD_PORT, f"lport: expected {passed.bound.port}, where the socket is bound")
    if options.local is not None and not passed.bound.ip.is_unspecified and options.local != passed.bound.ip:
        raise DeniedError(Code.BAD_ADDRESS, f"local: expected {passed.bound.ip}, where the socket is bound")


def _udp_port(local: IPAddress, options: Options) -> LearningPort:
    socket = UdpSocket(Endpoint(local, options.lport))
    return LearningPort(socket, KnownSide(socket.local, options.public, options.pports))


def _tcp_port(local: IPAddress, options: Options) -> LearningTcpPort:
    placeholder = reserve(Endpoint(local, options.lport))
    return LearningTcpPort(placeholder, KnownSide(placeholder.local, options.public, options.pports))


def code_of(error: Exception) -> Code:
    """The code of an `error` line for what a launch may raise."""
    match error:
        case DeniedError():
            return error.code
        case KernelError():
            return Code.NETWORK
        case _:
            return getattr(error, "reason", Code.INTERNAL)
