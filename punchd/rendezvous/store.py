"""What the server keeps, as its HTTP and UDP sides see it. `memory.py` keeps it in this process.

Everything is async, so that a database can stand behind it; a store that knows the answer gives it without a
checkpoint. A store has its own clocks: several servers that share one must agree on the time.

Cancellation: a call that is cancelled either took place as a whole or not at all.

Errors: each call raises `errors.StoreError` where the store cannot be reached. HTTP clients hear 503 then, pulses stay
unanswered and are repeated, and a WebSocket is closed with 1013.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Protocol

from punchd.endpoint import IPAddress
from punchd.rendezvous.aliases import Bound
from punchd.rendezvous.identity import Binding
from punchd.rendezvous.signals import Posted, Signal
from punchd.rendezvous.views import View


@dataclass(frozen=True, slots=True)
class Registered:
    """A new client's id and its secret."""

    client_id: bytes
    key: bytes

    def __repr__(self) -> str:
        return f"Registered({self.client_id.hex()})"


class Ended(Enum):
    """Why a wait for signals is over without any."""

    REPLACED = "replaced"  # a newer wait of the same client took its place
    GONE = "gone"  # the client is


class Store(Protocol):
    """Clients, signals and aliases. Keys, ids and fingerprints are bytes; a source is packed (see source.py)."""

    async def register(self, ip: IPAddress) -> Registered | None:
        """A new client, registered from `ip`; None if there is no room."""
        ...

    async def authenticate(self, key: bytes) -> bytes | None:
        """The id of the client with that key; None if there is none."""
        ...

    async def verify(self, key: bytes, ip: IPAddress) -> bytes | None:
        """The client says, from `ip`, that it is there. Its id; None if it is gone."""
        ...

    async def logout(self, key: bytes) -> bytes | None:
        """Remove the client with all that belongs to it. Its id; None if it is gone."""
        ...

    async def pulses(self, batch: Sequence[tuple[bytes, bytes]]) -> list[bytes]:
        """The replies to datagrams with their sources, in the same order; `pulse.NO_REPLY` to what is no pulse."""
        ...

    async def lookup(self, client_id: bytes) -> View | None:
        """What is known of a client; None if there is none."""
        ...

    async def post_signal(self, sender: bytes, target: bytes, data: str) -> Posted:
        """Queue a signal, and wake whoever waits for it."""
        ...

    async def take_signals(self, client_id: bytes, wait_s: float) -> list[Signal] | Ended:
        """The signals for a client, at most once each; waits for the first one, and after `wait_s` gives none.

        The newest wait of a client is the one that counts, since an older one may belong to a dead connection.
        """
        ...

    async def return_signals(self, client_id: bytes, signals: Sequence[Signal]) -> None:
        """Signals that were taken, and that certainly did not get out, wait again."""
        ...

    async def age(self, signal: Signal) -> float:
        """How many seconds ago a signal was posted."""
        ...

    async def bind_alias(self, binding: Binding) -> Bound:
        """Take a binding that was found authentic and timely."""
        ...

    async def resolve_alias(self, fingerprint: bytes) -> Binding | None:
        """The binding of an address to a client that is there; None if there is none."""
        ...

    async def count_online(self) -> int:
        """How many clients are online; may be some seconds old."""
        ...

    async def is_healthy(self) -> bool:
        """Whether it can do its work."""
        ...

    async def run(self) -> None:
        """What is to be done in the background, until cancelled."""
        ...
