"""What the tests of the media protocol share: tuples, builders, and what came out of a machine."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TypeVar

from punchd.media.buffers import Memory
from punchd.media.counters import Counters
from punchd.media.datagrams import Ack, Control, Datagram, Media, Syn, SynAck, encode, parse
from punchd.media.initiator import Initiator
from punchd.media.moves import Action, PacketTuple, Send
from punchd.media.receiving import Receiver
from punchd.media.responder import Responder
from punchd.media.settings import ReceiverSettings, ResponderSettings

PEER = ("192.0.2.1", 40000, "198.51.100.7", 5000)
OTHER = ("192.0.2.1", 40000, "203.0.113.9", 5000)
A = b"6ba7b810-9dad-11d1-80b4-00c04fd430c8"
B = b"7d444840-9dc0-11d1-b245-5ffdce74fad2"
C = b"not a UUID"
ENTROPY = bytes(range(16))
MIB = 1 << 20
DEFAULT = ReceiverSettings()

_ActionT = TypeVar("_ActionT", bound=Action)


def named(counters: Counters) -> dict[str, int]:
    """What was counted, without the datagrams themselves."""
    return {name: number for name, number in counters.named().items() if name != "datagrams"}


def only(actions: Iterable[Action], kind: type[_ActionT]) -> list[_ActionT]:
    return [action for action in actions if isinstance(action, kind)]


def sent(actions: Iterable[Action]) -> list[Datagram]:
    """The datagrams that go out, parsed."""
    return [parse(action.data) for action in only(actions, Send)]


def kinds(actions: Iterable[Action]) -> list[str]:
    """Actions by name, datagrams by theirs."""
    return [type(parse(one.data) if isinstance(one, Send) else one).__name__ for one in actions]


def data(sequence: int, payload: bytes = b"x", qpc: int = 0, qpf: int = 0) -> bytes:
    return encode(Media(sequence, qpc, qpf, memoryview(payload)))


def fragment(sequence: int, offset: int, total: int, payload: bytes) -> bytes:
    return encode(Media(sequence, 0, 0, memoryview(payload), offset, total))


def media(sequence: int, payload: bytes = b"x", offset: int = 0, total: int | None = None) -> Media:
    return Media(sequence, 0, 0, memoryview(payload), offset, total)


def initiator(desired: bytes = A, **more: object) -> tuple[Initiator, Counters]:
    counters = Counters()
    return Initiator(PEER, desired, counters, **more), counters  # type: ignore[arg-type]


def established(desired: bytes = A, **more: object) -> tuple[Initiator, Counters]:
    """An initiator at 0 s, accepted under `desired`."""
    machine, counters = initiator(desired, **more)
    machine.open(0.0)
    machine.handle(PEER, SynAck(True, desired), 0.0)
    return machine, counters


def responder(settings: ResponderSettings | None = None, **more: object) -> tuple[Responder, Counters]:
    counters = Counters()
    return Responder(settings or ResponderSettings(), counters, ENTROPY, **more), counters  # type: ignore[arg-type]


def tell(machine: Responder, datagram: Control, now: float = 0.0, peer: PacketTuple = PEER) -> list[Action]:
    """The datagram, with the size that it has."""
    return machine.handle(peer, datagram, len(encode(datagram)), now)


def opened(settings: ResponderSettings | None = None, **more: object) -> tuple[Responder, Counters]:
    """A responder at 0 s with one session A."""
    machine, counters = responder(settings, **more)
    tell(machine, Syn(A))
    tell(machine, Ack(A))
    return machine, counters


def receiver(settings: ReceiverSettings = DEFAULT, limit: int = 512 * MIB) -> tuple[Receiver, Counters, Memory]:
    counters, memory = Counters(), Memory(limit)
    return Receiver(settings, memory, counters), counters, memory


def delivered(machine: Receiver, datagram: Media, now: float = 0.0) -> list[tuple[int, bytes]]:
    """Number and bytes of what is delivered; the memory is given back."""
    return [(one.sequence, one.take()) for one in machine.receive(datagram, now)]
