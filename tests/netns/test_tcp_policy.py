"""Policy stands in the kit: whatever a technique does, packets leave from the attempt's port, to the peer, only.

A technique without any scruples gets the real kit, in a host of the laboratory, and tries all that the interface lets
it; a capture on the host's every interface holds what left.
"""

from __future__ import annotations

import itertools
import socket
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from ipaddress import ip_address

import pytest
import trio

from punchd.attempt.kit import AttemptPorts, RoundKit
from punchd.attempt.outlook import KnownSide
from punchd.attempt.tcp_port import CONNECTIONS, LearningTcpPort, RoundTcpPort
from punchd.endpoint import Endpoint, PortSet
from punchd.errors import Code, DecodeError, PunchError
from punchd.kernel.tcp import reserve
from punchd.technique import Agreed, Hole, Sighted
from punchd.wire import ip, tcp
from punchd.wire.tcp import Flags, Options
from tests.natlab import Laboratory, Site

pytestmark = pytest.mark.netns

PACKETS = 400
EVERY = 0x0003  # ETH_P_ALL
OUTGOING = 4
MTU = 65536
PORTS = (-1, 0, 1, 22, 443, 40000, 65535, 65536, 2**31)
NUMBERS = (0, 1, 2**31, 2**32 - 1)
AGREED = Agreed(send_next=1000, receive_next=2000, mss=1460, window_scale=7, window=64240)

Scenario = Callable[["Stage", RoundTcpPort], Awaitable[None]]


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    with Laboratory([Site("a"), Site("b")], stun=False) as laboratory:
        yield laboratory


@dataclass(slots=True)
class Stage:
    """An attempt's kit, and the capture."""

    local: Endpoint
    peer: Endpoint
    kit: RoundKit
    capture: socket.socket
    left: list[ip.Packet] = field(default_factory=list)

    def collect(self) -> list[ip.Packet]:
        """All IP packets that left by now, and injected ones as they came out of `lo`."""
        with suppress(BlockingIOError):
            while True:
                data, (device, _, kind, *_) = self.capture.recvfrom(MTU)
                with suppress(DecodeError):
                    if kind == OUTGOING and device != "lo":
                        self.left.append(ip.decode(data))
        return self.left

    def segments(self) -> list[tcp.Segment]:
        """What left by now."""
        return [tcp.decode(packet.payload) for packet in self.left if packet.protocol == ip.TCP]

    def strays(self) -> list[str]:
        """What left from another address or port than the attempt's, or to another address than the peer's."""
        found = []
        for packet in self.left:
            if packet.protocol == ip.ICMPV6:
                continue  # neighbour discovery is the kernel's
            if packet.protocol != ip.TCP or packet.source != self.local.ip or packet.destination != self.peer.ip:
                found.append(f"protocol {packet.protocol}, {packet.source} -> {packet.destination}")
            elif (segment := tcp.decode(packet.payload)).source_port != self.local.port:
                found.append(f"port {segment.source_port} -> {segment.destination_port}")
        return found


def perform(
    laboratory: Laboratory,
    scenario: Scenario,
    *,
    version: int = 4,
    packets: int = PACKETS,
    afterwards: Scenario | None = None,
) -> Stage:
    """Run a hostile technique in host a, and something after it has left its port's scope.

    The whole trio program is in the host's namespace.
    """
    a, b = laboratory.site("a").host, laboratory.site("b").host
    with a.entered(), captured() as capture:
        addresses = [ip_address(str(host.ipv6 if version == 6 else host.ipv4)) for host in (a, b)]
        placeholder = reserve(Endpoint(addresses[0], 0))
        known = KnownSide(placeholder.local, addresses[0], PortSet((placeholder.local.port,)))
        ports = AttemptPorts(None, (), LearningTcpPort(placeholder, known))
        kit = RoundKit(
            nonce=bytes(8),
            peer=addresses[1],
            packets=packets,
            ports=ports,
            tell=lambda card: None,
            emit=lambda event: None,
        )
        stage = Stage(placeholder.local, Endpoint(addresses[1], 40000), kit, capture)

        async def punch() -> None:
            async with kit.tcp() as port:
                await scenario(stage, port)
            if afterwards is not None:
                await afterwards(stage, port)

        try:
            trio.run(punch)
        finally:
            ports.close()
        stage.collect()
    return stage


@contextmanager
def captured() -> Iterator[socket.socket]:
    kind = socket.SOCK_DGRAM | socket.SOCK_NONBLOCK
    with socket.socket(socket.AF_PACKET, kind, socket.htons(EVERY)) as capture:
        capture.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        yield capture


def dare(effect: Callable[[], object]) -> BaseException | None:
    """Do it; the exception with which it was refused, if it was."""
    try:
        effect()
    except (PunchError, ValueError, OverflowError) as error:
        return error
    return None


# --- the scenarios --------------------------------------------------------------------------------------------------


async def send_everything(stage: Stage, port: RoundTcpPort) -> None:
    """Every combination of flags, odd ports, odd TTLs."""
    for bits, number in zip(range(256), itertools.cycle(NUMBERS), strict=False):
        dare(lambda bits=bits, number=number: port.send(Flags(bits), 40000, seq=number, ack=number))  # type: ignore[misc]
    for target, ttl in itertools.product(PORTS, (None, -1, 0, 1, 255, 256)):
        dare(lambda target=target, ttl=ttl: port.send(Flags.SYN, target, seq=1, ttl=ttl))  # type: ignore[misc]
    await trio.sleep(0.05)


async def connect_everywhere(stage: Stage, port: RoundTcpPort) -> None:
    """Connections, forged ones, copies, given up with RST or silently."""
    for target, number in itertools.product(PORTS, NUMBERS):
        dare(lambda target=target, number=number: port.connect(target, number))  # type: ignore[misc]
        dare(lambda target=target, number=number: port.connect(target, number, ttl=2))  # type: ignore[misc]
        dare(lambda target=target: connect_again(port, target))  # type: ignore[misc]
        dare(lambda target=target: port.forge(target, AGREED))  # type: ignore[misc]
        dare(lambda target=target: port.repeat(target))  # type: ignore[misc]
    await trio.sleep(0.1)
    for target in PORTS:
        dare(lambda target=target: port.repeat(target))  # type: ignore[misc]


def connect_again(port: RoundTcpPort, target: int) -> None:
    connection = port.connect(target, 5)
    for ttl in (None, -1, 0, 2, 256):
        port.reconnect(connection, 9, ttl)


async def inject_while_listening(stage: Stage, port: RoundTcpPort) -> None:
    """The own stack is made to answer segments from all over the peer's ports."""
    port.listen()
    for bits, target in itertools.product(range(64), PORTS):
        dare(lambda bits=bits, target=target: port.inject(Flags(bits), target, seq=7, ack=9, options=Options(mss=1)))  # type: ignore[misc]
    await trio.sleep(0.1)


async def hand_over_and_go_on(stage: Stage, port: RoundTcpPort) -> None:
    """What was handed over is used behind the port's back; the port goes on beside it."""
    connection = port.forge(40000, AGREED)
    hole: Hole = port.hand_over(connection)
    dare(lambda: port.forge(40000, AGREED))
    dare(lambda: port.connect(40001, 5))
    with socket.socket(fileno=hole.fd) as own:
        stage.kit.hole = None
        own.send(b"data")
        await trio.sleep(0.05)


SCENARIOS = (send_everything, connect_everywhere, inject_while_listening, hand_over_and_go_on)


@pytest.mark.parametrize("version", [4, 6])
@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda scenario: scenario.__name__)
def test_whatever_a_technique_does_packets_leave_from_its_port_to_the_peer_only(
    laboratory: Laboratory, scenario: Scenario, version: int
) -> None:
    stage = perform(laboratory, scenario, version=version)
    assert not stage.strays(), stage.strays()
    assert stage.segments(), "it did send something, else this would prove nothing"


def test_the_capture_sees_what_would_break_the_policy(laboratory: Laboratory) -> None:
    async def go_behind_the_kits_back(stage: Stage, port: RoundTcpPort) -> None:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as other:
            other.sendto(b"x", (laboratory.server.ipv4, 9))
        with socket.socket() as other:
            other.setblocking(False)
            with suppress(BlockingIOError):
                other.connect(stage.peer.sockaddr)
        await trio.sleep(0.02)

    assert len(perform(laboratory, go_behind_the_kits_back).strays()) >= 2


@pytest.mark.parametrize("version", [4, 6])
def test_nothing_is_injected_while_nothing_waits_for_it(laboratory: Laboratory, version: int) -> None:
    refusals: list[object] = []

    async def inject_early(stage: Stage, port: RoundTcpPort) -> None:
        for target in range(40000, 40050):
            refusals.append(
                dare(lambda target=target: port.inject(Flags.SYN, target, seq=1, options=Options()))  # type: ignore[misc]
            )
        await trio.sleep(0.05)

    stage = perform(laboratory, inject_early, version=version)
    assert [error.reason for error in refusals if isinstance(error, PunchError)] == [Code.REFUSED] * 50
    assert not stage.segments()


def test_what_is_injected_comes_to_the_own_port_and_to_no_other_listener(laboratory: Laboratory) -> None:
    """Another listener of the host hears nothing; it would be reached on a port of its own only."""
    accepted: list[bool] = []

    async def inject_beside_another_listener(stage: Stage, port: RoundTcpPort) -> None:
        with socket.create_server((str(stage.local.ip), 0)) as other:
            other.setblocking(False)
            port.listen()
            for target in range(40000, 40100):
                port.inject(Flags.SYN, target, seq=1, options=Options())
                port.inject(Flags.ACK, target, seq=2, ack=1, options=Options())
            await trio.sleep(0.05)
            with suppress(BlockingIOError):
                other.accept()[0].close()
                accepted.append(True)

    stage = perform(laboratory, inject_beside_another_listener)
    assert not accepted
    assert not stage.strays(), stage.strays()


def test_raw_segments_and_copies_end_with_the_rounds_packets(laboratory: Laboratory) -> None:
    async def flood(stage: Stage, port: RoundTcpPort) -> None:
        for number in range(500):
            port.send(Flags.ACK, 1024 + number, seq=number)
            port.repeat(40000)
            if number % 50 == 0:
                stage.collect()
        await trio.sleep(0.02)

    stage = perform(laboratory, flood, packets=100)
    # the peer's answers are RSTs, which need no packet of ours
    assert len(stage.segments()) == 100


def test_no_copy_of_a_syn_follows_once_the_connection_stands(laboratory: Laboratory) -> None:
    async def connect_and_repeat(stage: Stage, port: RoundTcpPort) -> None:
        connection = port.connect(stage.peer.port, 5)
        assert await connection.result() == 0
        while not is_our_syn(await port.sight()):
            pass
        for _ in range(3):
            port.repeat(stage.peer.port)
        await trio.sleep(0.02)

    def is_our_syn(what: object) -> bool:
        """Our SYN: what there would be a copy of."""
        return isinstance(what, Sighted) and what.is_outgoing and bool(what.segment.flags & Flags.SYN)

    with laboratory.site("b").host.entered():
        listener = socket.create_server(("", 40000))
    with listener:
        stage = perform(laboratory, connect_and_repeat)
    assert len([segment for segment in stage.segments() if segment.flags & Flags.SYN]) == 1


def test_connections_end_with_the_rounds_packets_and_with_a_number_that_are_open(laboratory: Laboratory) -> None:
    reasons: list[object] = []

    async def connect_without_end(stage: Stage, port: RoundTcpPort) -> None:
        for number in range(CONNECTIONS + 1):
            reasons.append(dare(lambda number=number: port.connect(1024 + number, 5)))  # type: ignore[misc]

    async def connect_and_drop(stage: Stage, port: RoundTcpPort) -> None:
        for number in range(101):
            error = dare(lambda number=number: port.connect(1024 + number, 5).drop())  # type: ignore[misc]
            reasons.append(error)

    for scenario, allowed in ((connect_without_end, CONNECTIONS), (connect_and_drop, 100)):
        reasons.clear()
        stage = perform(laboratory, scenario, packets=100)
        assert reasons[:-1] == [None] * allowed
        assert isinstance(reasons[-1], PunchError)
        assert reasons[-1].reason is Code.REFUSED
        first = [segment for segment in stage.segments() if segment.flags & Flags.SYN]
        assert len({segment.destination_port for segment in first}) == allowed


def test_the_port_does_nothing_more_once_its_scope_is_left(laboratory: Laboratory) -> None:
    answers: list[object] = []

    async def nothing(stage: Stage, port: RoundTcpPort) -> None:
        await trio.lowlevel.checkpoint()

    async def leave(stage: Stage, port: RoundTcpPort) -> None:
        effects: tuple[Callable[[], object], ...] = (
            lambda: port.send(Flags.SYN, 40000, seq=1),
            lambda: port.inject(Flags.SYN, 40000, seq=1, options=Options()),
            lambda: port.connect(40000, 1),
            lambda: port.forge(40000, AGREED),
            port.listen,
            port.exempt,
        )
        answers.extend(dare(effect) for effect in effects)
        await trio.sleep(0.05)

    stage = perform(laboratory, nothing, afterwards=leave)
    assert [error.reason for error in answers if isinstance(error, PunchError)] == [Code.REFUSED] * 6
    assert not stage.segments()
