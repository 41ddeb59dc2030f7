"""The explanation of an attempt: what happened when, in order, and its packets, as two files when it has ended.

For people who ask why it did not connect. `NONCE-ROLE.txt` holds the attempt's events, `NONCE-ROLE.pcap` the packets of
its port: those of TCP and UDP from and to it, STUN's among them, what was injected into the own stack, and the ICMP
errors about them. A packet's time is when this process read it, on the clock of the text.

Neither file holds a token or a key. Of packets the headers are kept, and the payload only of punch datagrams (whose MAC
tells nothing about its key) and of STUN: early data of the peer's application is cut off. Both can be read by the
daemon's user only, since they tell who talked to whom.

Packets are kept in memory, up to a bound, and written when the attempt ends. scapy writes the file; it is loaded by
`prepare`, when the daemon starts with a trace directory, and never else.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import trio

from punchd.errors import DecodeError
from punchd.events import AttemptEnded, AttemptStarted, Event, RoundFailed, RoundStarted, describe
from punchd.wire import ip, probe, stun, tcp

MAX_EVENTS = 2000  # of one attempt; a longer one is cut, and says so before its verdict
# Packets of one attempt: a round may send 512, its copies and answers come on top. Written within 10 ms (measured).
MAX_PACKETS = 2000
MAX_PACKET_BYTES = 512 * 1024
LINKTYPE_RAW = 101  # packets begin with their IP header; pcap-linktype(7)
_UDP_HEADER = 8
_LONGEST = 1500  # bytes kept of one packet: an ICMP error quotes no more

log = logging.getLogger("punchd.attempt")


def prepare() -> None:
    """Load what writes packets: a tenth of a second and more, which no running attempt should pay."""
    try:
        _writer()
    except ImportError:
        log.warning("trace: packets are not written, only texts: scapy is not installed")


class Recorder:
    """Takes the events of one attempt: into the log at once, into a file at the end; and its packets."""

    def __init__(self, directory: str | None) -> None:
        self._directory = directory
        self._started_at = trio.current_time()
        self._name = "attempt"
        self._lines: list[str] = []
        self._epoch_s = time.time() - self._started_at
        self._packets: list[tuple[float, bytes, int]] = []  # seconds of trio's clock, what is kept, its whole size
        self._packet_bytes = 0
        self._has_more_packets = False

    @property
    def record(self) -> Callable[[bytes], None] | None:
        """Takes an IP packet of the attempt; None: nobody wants any."""
        return None if self._directory is None else self._record

    def emit(self, event: Event) -> None:
        if isinstance(event, AttemptStarted):
            self._name = f"{event.nonce}-{event.role}"
        public = isinstance(event, (AttemptStarted, AttemptEnded, RoundStarted, RoundFailed))
        level = logging.INFO if public else logging.DEBUG
        if self._directory is None and not log.isEnabledFor(level):
            return
        text = describe(event)
        log.log(level, "%s %s", self._name, text)
        if self._directory is None:
            return
        line = f"{trio.current_time() - self._started_at:9.4f} s  {text}"
        if len(self._lines) < MAX_EVENTS:
            self._lines.append(line)
        elif isinstance(event, AttemptEnded):
            self._lines += ["cut here: more events than are kept", line]
        if isinstance(event, AttemptEnded):
            self._write(Path(self._directory))

    def _record(self, packet: bytes) -> None:
        if not (kept := clip(packet)):
            return
        if len(self._packets) >= MAX_PACKETS or self._packet_bytes + len(kept) > MAX_PACKET_BYTES:
            self._has_more_packets = True
            return
        self._packets.append((trio.current_time(), kept, len(packet)))
        self._packet_bytes += len(kept)

    def _write(self, directory: Path) -> None:
        for name, write in ((f"{self._name}.pcap", self._write_packets), (f"{self._name}.txt", self._write_text)):
            if name.endswith(".pcap") and not self._packets:
                continue
            try:
                write(directory / name)
            except OSError as error:
                log.warning("trace: %s: %s", directory / name, error.strerror)
            except ImportError:
                self._lines.insert(-1, "no packets: scapy is not installed")  # the verdict stays last

    def _write_text(self, path: Path) -> None:
        with open(path, "w", opener=_private) as file:
            file.write("\n".join(self._lines) + "\n")

    def _write_packets(self, path: Path) -> None:
        make = _writer()
        with open(path, "wb", opener=_private) as file:
            writer = make(file, linktype=LINKTYPE_RAW)
            writer.write_header(None)
            for at, packet, size in self._packets:
                seconds, microseconds = divmod(round((self._epoch_s + at) * 1_000_000), 1_000_000)
                writer.write_packet(packet, sec=seconds, usec=microseconds, wirelen=size)
        first_s = self._packets[0][0] - self._started_at
        said = f"{len(self._packets)} packets in {path.name}, the first of them at {first_s:.4f} s"
        self._lines.insert(-1, f"{said}; cut there: more packets than are kept" if self._has_more_packets else said)


def clip(packet: bytes) -> bytes:
    """What a trace keeps of an IP packet: no payload of applications."""
    kept = packet[:_LONGEST]
    try:
        decoded = ip.decode(kept, truncated=True)
        header = len(kept) - len(decoded.payload)
        match decoded.protocol:
            case ip.ICMP | ip.ICMPV6:
                return kept
            case ip.TCP:
                return kept[: len(kept) - len(tcp.decode(decoded.payload).payload)]
            case ip.UDP:
                data = decoded.payload[_UDP_HEADER:]
                return kept if probe.is_probe(data) or stun.is_stun(data) else kept[: header + _UDP_HEADER]
            case _:
                return kept[:header]
    except DecodeError:
        return b""


def _writer() -> Any:
    """scapy's PcapWriter.

    Raises:
        ImportError: scapy is not installed.
    """
    from scapy.utils import PcapWriter

    return PcapWriter


def _private(path: str, flags: int) -> int:
    """For `open`: readable by the owner only."""
    return os.open(path, flags | os.O_CLOEXEC, 0o600)
