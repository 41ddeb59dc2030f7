"""srt-live-transmit's statistics (`-statspf:json`): lines of JSON to what a broker is told of a stream's health.

One object a line, written after every so many packets (`-stats-report-frequency`), to standard output or the file of
`-statsout`; each line is flushed. Without `-fullstats` counters begin anew with each line; with it they never do, and
`mbitRate` is the mean since the beginning, of no use here.

    sid                          of the connection; another one after a reconnection
    time                         ms since the connection was made
    link.rtt                     ms
    send, recv                   both always there; the direction that carries media counts
      packetsUnique              of the media
      packetsRetransmitted       sent again
      packetsDropped             too late to be of use, since the last line
      bytes                      with all headers, 44 a packet: 8 * bytes / time is mbitRate
      msBuf                      ms of media that wait

`packetsRetransmitted` of a receiver counts what arrived of them.

Measured with srt-tools 1.5.1 of Debian 12. Pure.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from punchd.broker import strict_json
from punchd.broker.messages import Direction, Health
from punchd.broker.names import MAX_JSON_INTEGER
from punchd.errors import DecodeError

MAX_LINE_BYTES = 4096  # they have 750
_SIDES = {Direction.SENDER: "send", Direction.RECEIVER: "recv"}


@dataclass(frozen=True, slots=True)
class Sample:
    """One line, for one direction: what happened since the line before. Times in ms, the rest packets and bytes."""

    connection: int
    time_ms: int
    rtt_ms: float
    packets: int
    again: int
    dropped: int
    size_bytes: int
    buffer_ms: int


def read(line: bytes, direction: Direction) -> Sample | None:
    """The sample of a line; None if it is none, whatever it is."""
    if not line.startswith(b"{") or len(line) > MAX_LINE_BYTES:
        return None
    try:
        members = strict_json.decode(line)
        side = _part(members, _SIDES[direction])
        return Sample(
            _count(members, "sid"),
            _count(members, "time"),
            _amount(_part(members, "link"), "rtt"),
            _count(side, "packetsUnique"),
            _count(side, "packetsRetransmitted"),
            _count(side, "packetsDropped"),
            _count(side, "bytes"),
            _count(side, "msBuf"),
        )
    except DecodeError:
        return None


class Window:
    """Samples since the last report. `dropped` alone is a total, since a broker looks for its growth."""

    def __init__(self) -> None:
        self._last: Sample | None = None
        self._dropped = 0
        self._clear()

    def add(self, sample: Sample) -> None:
        """Take one; its predecessor is the last one of the same connection."""
        before_ms = self._last.time_ms if self._last is not None and self._last.connection == sample.connection else 0
        self._span_ms += max(0, sample.time_ms - before_ms)
        self._packets += sample.packets
        self._again += sample.again
        self._size_bytes += sample.size_bytes
        self._dropped += sample.dropped
        self._last = sample

    def report(self) -> Health | None:
        """The health since the last report; None without a sample ever. Without a new one nothing flows."""
        if self._last is None:
            return None
        found = Health(
            rtt=self._last.rtt_ms,
            retransmit=100 * self._again / self._packets if self._packets else 0.0,
            bitrate=8000 * self._size_bytes / self._span_ms if self._span_ms else 0.0,
            dropped=self._dropped,
            buffer=self._last.buffer_ms,
        )
        self._clear()
        return found

    def _clear(self) -> None:
        self._span_ms = self._packets = self._again = self._size_bytes = 0


def _part(members: Any, name: str) -> Mapping[str, Any]:
    value = members.get(name) if isinstance(members, dict) else None
    if not isinstance(value, dict):
        raise DecodeError(f"{name}: expected an object")
    return value


def _amount(members: Mapping[str, Any], name: str) -> float:
    value = members.get(name)
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= MAX_JSON_INTEGER:
        raise DecodeError(f"{name}: expected a number of 0 or more")
    return value


def _count(members: Mapping[str, Any], name: str) -> int:
    value = members.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise DecodeError(f"{name}: expected a whole number of 0 or more")
    return value
