"""Local ports that no NAT remembers.

A NAT keeps a mapping for minutes after its last packet (RFC 4787 REQ-5: five by default, RFC 5382 REQ-5: four for a
half-open TCP connection), and the kernel draws ephemeral ports at random: after 150 attempts in that time two of them
have shared a port with even odds. A NAT that counts its ports then answers STUN out of an old mapping while its
counter is far ahead, and the prediction is wrong (seen in the laboratory: told 40074 to 40081, got 40216).

So a port that was used lately is not used again. The memory is counted, not timed: 2,048 ports are five minutes at
seven attempts a second, and a seventh of what Linux chooses from by default (the odd half of its range for TCP), so
that eight draws miss once in five million times. A host whose range is narrower gets what it has.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Protocol, TypeVar

from punchd.endpoint import Endpoint

REMEMBERED = 2048
TRIES = 8


class _Bound(Protocol):
    """What is bound to a local port: a socket, or something that owns one."""

    @property
    def local(self) -> Endpoint: ...

    def close(self) -> None: ...


_BoundT = TypeVar("_BoundT", bound=_Bound)


class FreshPorts:
    """The local ports that were used last. One for a daemon: NATs do not care which attempt it was."""

    def __init__(self, remembered: int = REMEMBERED) -> None:
        self._order: deque[int] = deque(maxlen=remembered)
        self._recent: set[int] = set()

    def draw(self, bind: Callable[[], _BoundT]) -> _BoundT:
        """What `bind` makes at a port of the kernel's choice, with a port that was not used lately; the caller owns it.

        Whatever `bind` raises is raised, and nothing is left open.
        """
        bound = bind()
        for _ in range(TRIES - 1):
            if bound.local.port not in self._recent:
                break
            bound.close()
            bound = bind()
        self.remember(bound.local.port)
        return bound

    def remember(self, port: int) -> None:
        """This port is in use from now on."""
        if port in self._recent:
            return
        if len(self._order) == self._order.maxlen:
            self._recent.discard(self._order[0])
        self._order.append(port)
        self._recent.add(port)
