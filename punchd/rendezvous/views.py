"""What is known of a client, the times its state follows from, and what is demanded of it: values.

Source: rendezvous specification §2, §6, D-07, D-11, D-18.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from punchd.endpoint import Endpoint


class State(Enum):
    """What may be known of a client; a client that is gone has none."""

    NEW = "new"
    ONLINE = "online"
    PENDING = "pending"


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds. `interval`, `error_time` are the seed's; `grace` is for jitter."""

    interval: float = 30.0
    grace: float = 5.0
    error_time: float = 180.0

    @property
    def online(self) -> float:
        """The greatest age of a client that is online."""
        return self.interval + self.grace

    @property
    def lifetime(self) -> float:
        """The age at which a client is gone."""
        return self.error_time + self.interval


@dataclass(frozen=True, slots=True)
class Policy:
    """What is demanded beyond a key.

    Attributes:
        reverify_moves: a pulse from a new address of a known family is answered 1050.
        require_same_ip: pulses must come from the address that registered or verified.
    """

    reverify_moves: bool = False
    require_same_ip: bool = False


@dataclass(frozen=True, slots=True)
class SeenAddress:
    """Where a pulse came from, and how many seconds ago the last one did."""

    endpoint: Endpoint
    age: float


@dataclass(frozen=True, slots=True)
class View:
    """What others may know of a client. `addresses` holds at most one a family, IPv4 first.

    Attributes:
        last_online: seconds since its last accepted pulse; None before the first.
    """

    client_id: bytes
    state: State
    addresses: tuple[SeenAddress, ...]
    last_online: float | None
