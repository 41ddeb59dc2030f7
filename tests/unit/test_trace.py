"""The packets of a trace: what is kept of each, how many, in which form, and that nobody else pays for it."""

from __future__ import annotations

import logging
import subprocess
import sys
from ipaddress import ip_address
from pathlib import Path

import pytest
import trio
from scapy.utils import RawPcapReader

from punchd import events
from punchd.attempt import trace
from punchd.attempt.trace import MAX_PACKET_BYTES, MAX_PACKETS, Recorder, clip
from punchd.endpoint import IPAddress
from punchd.wire import icmp, ip, probe, stun, tcp
from punchd.wire.tcp import Flags, Segment

HERE, THERE = ip_address("192.0.2.1"), ip_address("203.0.113.7")
HERE6, THERE6 = ip_address("2001:db8::1"), ip_address("2001:db8::2")
SECRET = b"what an application says"
PROBE = probe.encode(probe.Probe(probe.Type.PROBE, probe.Role.INITIATOR, bytes(8)), bytes(16))
QUESTION = stun.encode_request(bytes(12))
LONG = ip.encode(THERE, HERE, ip.ICMP, icmp.encode(icmp.Kind.PORT_UNREACHABLE, bytes(1000), THERE, HERE), 64)


def udp(data: bytes, source: IPAddress = HERE, destination: IPAddress = THERE) -> bytes:
    header = (40000).to_bytes(2) + (40001).to_bytes(2) + (8 + len(data)).to_bytes(2) + bytes(2)
    return ip.encode(source, destination, ip.UDP, header + data, 64)


def segment(data: bytes, source: IPAddress = HERE, destination: IPAddress = THERE) -> bytes:
    made = Segment(40000, 40001, 1, 2, Flags.ACK, 100, payload=data)
    return ip.encode(source, destination, ip.TCP, tcp.encode(made, source, destination), 64)


def record(recorder: Recorder, *packets: bytes) -> None:
    """A whole attempt with these packets."""
    recorder.emit(events.AttemptStarted("00112233", "initiator", "203.0.113.7:40000"))
    for packet in packets:
        assert recorder.record is not None
        recorder.record(packet)
    recorder.emit(events.AttemptEnded("ok", "udp"))


def read(directory: Path) -> list[tuple[float, bytes, int]]:
    """Time, bytes and size on the wire of each packet."""
    with RawPcapReader(str(directory / "00112233-initiator.pcap")) as reader:
        assert reader.linktype == 101
        return [(meta.sec + meta.usec / 1e6, data, meta.wirelen) for data, meta in reader]


def written(directory: Path) -> dict[str, int]:
    """Endings and modes of the files there."""
    return {path.suffix: path.stat().st_mode & 0o777 for path in directory.iterdir()}


def text(directory: Path) -> list[str]:
    return (directory / "00112233-initiator.txt").read_text().splitlines()


# --- what is kept ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("packet", [udp(PROBE), udp(QUESTION), segment(b"")], ids=["probe", "STUN", "segment"])
def test_what_punching_sends_is_kept_whole(packet: bytes) -> None:
    assert clip(packet) == packet


@pytest.mark.parametrize(
    ("packet", "size"),
    [
        (udp(SECRET), 28),
        (udp(SECRET, HERE6, THERE6), 48),
        (udp(b"PCH1" + SECRET[:20]), 28),
        (segment(SECRET), 40),
        (segment(SECRET, HERE6, THERE6), 60),
        (ip.encode(HERE, THERE, 132, SECRET, 64), 20),
    ],
)
def test_of_an_applications_packet_the_headers_are_kept(packet: bytes, size: int) -> None:
    assert clip(packet) == packet[:size]
    assert SECRET[:4] not in clip(packet)


def test_an_icmp_error_is_kept_with_its_quote() -> None:
    failed = udp(PROBE)
    message = icmp.encode(icmp.Kind.TIME_EXCEEDED, failed, THERE, HERE)
    packet = ip.encode(THERE, HERE, ip.ICMP, message, 64)
    assert clip(packet) == packet


@pytest.mark.parametrize("junk", [b"", b"\x45", bytes(100), ip.encode(HERE, THERE, ip.TCP, b"short", 64)])
def test_what_is_no_packet_is_not_kept(junk: bytes) -> None:
    assert clip(junk) == b""


# --- the file -------------------------------------------------------------------------------------------------------


async def test_packets_are_written_in_order_with_their_times_and_sizes(tmp_path: Path) -> None:
    record(Recorder(str(tmp_path)), udp(PROBE), segment(SECRET))
    (first, second) = read(tmp_path)
    assert [first[1], second[1]] == [udp(PROBE), clip(segment(SECRET))]
    assert [first[2], second[2]] == [len(udp(PROBE)), len(segment(SECRET))]
    written_at = (tmp_path / "00112233-initiator.pcap").stat().st_mtime
    assert first[0] <= second[0]
    assert abs(written_at - first[0]) < 60


async def test_times_are_those_of_the_text(tmp_path: Path, autojump_clock: trio.testing.MockClock) -> None:
    recorder = Recorder(str(tmp_path))
    recorder.emit(events.AttemptStarted("00112233", "initiator", "203.0.113.7:40000"))
    assert recorder.record is not None
    await trio.sleep(1.5)
    recorder.record(udp(PROBE))
    await trio.sleep(0.25)
    recorder.record(udp(PROBE))
    recorder.emit(events.AttemptEnded("ok", "udp"))
    times = [at for at, _, _ in read(tmp_path)]
    assert times[1] - times[0] == pytest.approx(0.25, abs=1e-5)
    assert text(tmp_path)[-2] == "2 packets in 00112233-initiator.pcap, the first of them at 1.5000 s"


async def test_both_files_are_the_owners_alone(tmp_path: Path) -> None:
    record(Recorder(str(tmp_path)), udp(PROBE))
    assert written(tmp_path) == {".txt": 0o600, ".pcap": 0o600}


async def test_without_packets_there_is_no_file_for_them(tmp_path: Path) -> None:
    record(Recorder(str(tmp_path)))
    assert list(written(tmp_path)) == [".txt"]


@pytest.mark.parametrize(("packet", "most"), [(udp(PROBE), MAX_PACKETS), (LONG, MAX_PACKET_BYTES // len(LONG))])
async def test_a_trace_has_a_bound_and_says_that_it_was_cut(tmp_path: Path, packet: bytes, most: int) -> None:
    record(Recorder(str(tmp_path)), *[packet] * (MAX_PACKETS + 1))
    assert len(read(tmp_path)) == most
    assert text(tmp_path)[-2].endswith("; cut there: more packets than are kept")


async def test_a_trace_of_exactly_the_bound_is_not_called_cut(tmp_path: Path) -> None:
    record(Recorder(str(tmp_path)), *[udp(PROBE)] * MAX_PACKETS)
    assert "cut" not in text(tmp_path)[-2]


async def test_a_file_that_cannot_be_written_is_a_warning_and_the_text_is_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "00112233-initiator.pcap").mkdir()
    record(Recorder(str(tmp_path)), udp(PROBE))
    warnings = [entry.getMessage() for entry in caplog.records if entry.levelno == logging.WARNING]
    assert warnings == [f"trace: {tmp_path}/00112233-initiator.pcap: Is a directory"]
    assert text(tmp_path)[-1].endswith("AttemptEnded verdict=ok text=udp")


# --- who pays -------------------------------------------------------------------------------------------------------


async def test_without_a_directory_no_packet_is_taken() -> None:
    assert Recorder(None).record is None


async def test_without_scapy_the_text_says_why_there_are_no_packets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "scapy.utils", None)
    trace.prepare()
    assert "trace: packets are not written, only texts: scapy is not installed" in caplog.text
    record(Recorder(str(tmp_path)), udp(PROBE))
    assert text(tmp_path)[-2] == "no packets: scapy is not installed"


PROGRAM = """
import sys, trio, pkgutil, importlib
import punchd, punchd_techniques
for package in (punchd, punchd_techniques):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if module.name.startswith(("punchd.attempt", "punchd.control", "punchd.kernel", "punchd.cli.p", "punchd_t")):
            importlib.import_module(module.name)
from punchd import events
from punchd.attempt.trace import Recorder, prepare
async def attempt(directory):
    recorder = Recorder(directory)
    recorder.emit(events.AttemptStarted("00", "initiator", "x"))
    recorder.emit(events.AttemptEnded("ok", "udp"))
trio.run(attempt, None)
print("scapy" in sys.modules)
prepare()
print("scapy.utils" in sys.modules, "scapy.all" in sys.modules)
"""


def test_scapy_is_loaded_only_when_a_trace_is_asked_for() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "True", "False"]
