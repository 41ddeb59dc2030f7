"""Values to and from what stands in Redis. The layouts:

    signal    sender's id 16 | time of posting in us 8 | text in UTF-8
    binding   client's id 16 | timestamp 8 | public key 32 | signature 64
    message   letter 1 | client's id 16 | number of a wait, in digits (of W only)

Pure. What the scripts answer is trusted as far as they made it; what does not fit raises ValueError.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from punchd.rendezvous import redis_scripts, source
from punchd.rendezvous.identity import Binding
from punchd.rendezvous.pulse import ID_SIZE
from punchd.rendezvous.signals import Signal
from punchd.rendezvous.views import SeenAddress, State, Timing, View

_US = 1_000_000
_TIME_SIZE = 8
_HEAD_SIZE = ID_SIZE + _TIME_SIZE
_KEY_END = _HEAD_SIZE + 32


class Kind(Enum):
    """What a message says of a client."""

    SIGNAL = b"S"
    GONE = b"G"
    WAIT = b"W"


@dataclass(frozen=True, slots=True)
class Message:
    """A message to all servers; `number` is that of the client's newest wait."""

    kind: Kind
    client_id: bytes
    number: int = 0


def to_us(seconds: float) -> int:
    return round(seconds * _US)


def to_s(us: bytes | int) -> float:
    return int(us) / _US


def pack_signal(signal: Signal) -> bytes:
    return signal.sender + to_us(signal.posted).to_bytes(_TIME_SIZE, "big") + signal.data.encode()


def read_signal(packed: bytes) -> Signal:
    posted = int.from_bytes(packed[ID_SIZE:_HEAD_SIZE], "big")
    return Signal(packed[:ID_SIZE], packed[_HEAD_SIZE:].decode(), to_s(posted))


def pack_binding(binding: Binding) -> bytes:
    time = binding.timestamp.to_bytes(_TIME_SIZE, "big")
    return binding.client_id + time + binding.public_key + binding.signature


def read_binding(packed: bytes) -> Binding:
    timestamp = int.from_bytes(packed[ID_SIZE:_HEAD_SIZE], "big")
    return Binding(packed[:ID_SIZE], packed[_HEAD_SIZE:_KEY_END], timestamp, packed[_KEY_END:])


def read_message(packed: bytes) -> Message:
    kind = Kind(packed[:1])
    number = int(packed[1 + ID_SIZE :]) if kind is Kind.WAIT else 0
    return Message(kind, packed[1 : 1 + ID_SIZE], number)


def read_view(client_id: bytes, fields: Sequence[bytes | None], timing: Timing) -> View:
    """A client as the script LOOKUP shows it: time, flags, lease, then source and time of each family."""
    now, flags, lease = (int(field or 0) for field in fields[:3])
    addresses: list[SeenAddress] = []
    pulses: list[int] = []
    for origin, seen in (fields[3:5], fields[5:7]):
        if origin is not None and seen is not None:
            pulses.append(int(seen))
            if now - int(seen) < to_us(timing.lifetime):
                addresses.append(SeenAddress(source.unpack(origin), to_s(now - int(seen))))
    last_online = to_s(now - max(pulses)) if pulses else None
    return View(client_id, _state(flags, now - lease, timing), tuple(addresses), last_online)


def _state(flags: int, age_us: int, timing: Timing) -> State:
    if flags & redis_scripts.NEW:
        return State.NEW
    is_late = age_us > to_us(timing.online)
    return State.PENDING if is_late or flags & redis_scripts.MUST_VERIFY else State.ONLINE
