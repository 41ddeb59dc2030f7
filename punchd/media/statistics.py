"""What a session has done so far, as numbers for people and programs. Pure."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Sent:
    """A sender's.

    Attributes:
        seconds: since the session began.
        bytes: of payloads.
        datagrams: of media.
        logical_sends: that went out, whole as far as the system knows.
        unsent: datagrams that the system did not take.
        rate_bps: that is kept to, headers included, bit/s; None: no limit.
        datagram_size: longest datagram in use, bytes of UDP payload.
        path: how datagrams leave, `gso+numpy` at best.
    """

    seconds: float
    bytes: int
    datagrams: int
    logical_sends: int
    unsent: int
    rate_bps: float | None
    datagram_size: int
    path: str


@dataclass(frozen=True, slots=True)
class Received:
    """A receiver's. Times in seconds; None where nothing is known.

    Attributes:
        seconds: since the session began.
        bytes, logical_sends: that were delivered.
        datagrams: of media, duplicates included.
        lost: logical sends that are missing: not seen at all, given up incomplete, or too late for their turn. What
            was lost at the very end is not known, since nothing tells that there was more.
        duplicates: datagrams, and fragments, of what was there already.
        timeouts, evictions: logical sends given up because of time and room; `lost` includes them.
        invalid: datagrams that were none.
        kernel_drops: datagrams that found the socket's buffer full; those that GRO has put together count as one.
        jitter_s: RFC 3550's.
        queueing_s: one-way delay above its least of late.
        trend: slope of the one-way delay, seconds a second; above 0 a queue grows.
        path: how datagrams come in, `gro+recvmmsg+numpy` at best.
    """

    seconds: float
    bytes: int
    datagrams: int
    logical_sends: int
    lost: int
    duplicates: int
    timeouts: int
    evictions: int
    invalid: int
    kernel_drops: int
    jitter_s: float | None
    queueing_s: float | None
    trend: float | None
    path: str
