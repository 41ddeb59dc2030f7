"""Which client an address stands for now.

An alias lives as long as the client it is bound to, and a client has few, so the table is bounded by that of the
clients. Nothing has to be kept over a restart: a client binds anew after it has registered. The newer binding wins;
whether one is authentic and timely is for the caller to see to.

Pure. Source: rendezvous specification §8.
"""

from __future__ import annotations

from enum import Enum

from punchd.rendezvous.identity import Binding


class Bound(Enum):
    """What became of a binding."""

    BOUND = "bound"
    UNKNOWN = "unknown"  # no such client
    STALE = "stale"  # there is a newer one
    TOO_MANY = "too many"  # the client has as many as it may


class Aliases:
    """The table.

    Args:
        per_client: aliases that one client may have.
    """

    def __init__(self, per_client: int) -> None:
        self._per_client = per_client
        self._bindings: dict[bytes, Binding] = {}
        self._of_client: dict[bytes, list[bytes]] = {}

    def __len__(self) -> int:
        return len(self._bindings)

    def bind(self, binding: Binding) -> Bound:
        """Take a binding. The same one twice is as good as once."""
        known = self._bindings.get(binding.fingerprint)
        if known == binding:
            return Bound.BOUND
        if known is not None and known.timestamp >= binding.timestamp:
            return Bound.STALE
        own = self._of_client.get(binding.client_id, [])
        if binding.fingerprint not in own:
            if len(own) >= self._per_client:
                return Bound.TOO_MANY
            self._of_client[binding.client_id] = [*own, binding.fingerprint]
            if known is not None:
                self._unlist(known)
        self._bindings[binding.fingerprint] = binding
        return Bound.BOUND

    def resolve(self, fingerprint: bytes) -> Binding | None:
        """The binding of an address; None if there is none."""
        return self._bindings.get(fingerprint)

    def forget(self, client_id: bytes) -> None:
        """Drop all aliases of a client."""
        for fingerprint in self._of_client.pop(client_id, ()):
            del self._bindings[fingerprint]

    def _unlist(self, binding: Binding) -> None:
        own = [fingerprint for fingerprint in self._of_client[binding.client_id] if fingerprint != binding.fingerprint]
        if own:
            self._of_client[binding.client_id] = own
        else:
            del self._of_client[binding.client_id]
