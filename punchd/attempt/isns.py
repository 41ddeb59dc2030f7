"""Initial sequence numbers for one TCP port, each larger than those before it.

Rounds of an attempt may use the same two ends again, and a NAT may remember the earlier one: it takes a SYN for the
start of something new only if its sequence number is larger, as a stack in TIME-WAIT does. The kernel's own numbers
grow with a clock for that reason; ours have to be larger than those as well, since the kernel's SYN-ACK to an injected
SYN counts like our own SYN.

Pure: chance comes as an argument.

Source: RFC 9293 §3.4.1, RFC 6528; nf_conntrack_proto_tcp.c (a connection that is begun anew).
"""

from __future__ import annotations

_LEAST_STEP, _STEPS = 1 << 16, 1 << 26  # large enough for retries in between, small enough that some rounds fit in 2^31
_HALF, _ALL = 1 << 31, 1 << 32


class InitialNumbers:
    """Of one port."""

    def __init__(self) -> None:
        self._newest: int | None = None

    def note(self, number: int) -> None:
        """This number has left the port, whoever chose it."""
        if self._newest is None or (number - self._newest) % _ALL < _HALF:
            self._newest = number

    def draw(self, entropy: int) -> int:
        """The next number, 1 to 2^32 - 1; `entropy` is 32 bits that nobody can guess."""
        if self._newest is None:
            self._newest = entropy or 1
        else:
            self._newest = (self._newest + _LEAST_STEP + entropy % _STEPS) % _ALL or 1
        return self._newest
