"""`--trace DIR` with real daemons: an attempt's packets are those of its diagram, its text tells them in order."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.utils import RawPcapReader, rdpcap

from tests.natlab import KINDS, Laboratory, Link, Site
from tests.netns.daemons import open_to_all
from tests.pair import Outcome, applications, attempt, daemons, stun_arguments

pytestmark = pytest.mark.netns

TECHNIQUES = "tcp-nutss,tcp-syni,tcp-repair,udp"
LINKTYPE_RAW = 101
TTL, FULL = 4, 64
STUN = 3478
DELAY_S = 0.01


@asynccontextmanager
async def traced(directory: Path, technique: str) -> AsyncIterator[Outcome]:
    """An attempt through two ordinary routers; A's and B's traces are in `directory`/a and /b."""
    wan = Link(delay_s=DELAY_S)
    with Laboratory([Site(name, KINDS["apdf"], wan=wan) for name in "ab"]) as laboratory:
        places = []
        for name in "ab":
            open_to_all(directory)
            (directory / name).mkdir()
            (directory / name).chmod(0o1777)
            words = [*stun_arguments(laboratory.stun), "--techniques", TECHNIQUES, "--trace", str(directory / name)]
            places.append((laboratory.site(name).host, words))
        with daemons(places) as running:
            for daemon in running:
                await daemon.until_ready()
            async with applications(running[0].path, running[1].path) as (a, b):
                outcome = await attempt(a, b, techniques=technique, ttl=TTL, late_s=0.1)
                yield outcome
                outcome.close()


def files(directory: Path) -> tuple[str, Path]:
    """The text of the one attempt there, and its packets."""
    [text] = directory.glob("*.txt")
    [packets] = directory.glob("*.pcap")
    assert re.fullmatch(r"[0-9a-f]{16}-(initiator|responder)", text.stem)
    assert packets.stem == text.stem
    assert [path.stat().st_mode & 0o777 for path in (text, packets)] == [0o600, 0o600]
    return text.read_text(), packets


def in_order(wanted: list[str], got: list[str]) -> bool:
    """Whether `wanted` stands in `got`, with anything in between."""
    rest = iter(got)
    return all(word in rest for word in wanted)


def told(path: Path, own: str) -> list[str]:
    """Packets as `out SYN 4`: direction, flags or kind, and the TTL of what went out; STUN's are left out."""
    lines: list[str] = []
    for packet in rdpcap(str(path)):
        ip = packet[IP]
        way = f"out {{}} {ip.ttl}" if ip.src == own else "in {}"
        if ICMP in packet:
            lines.append(way.format("time-exceeded" if packet[ICMP].type == 11 else f"icmp-{packet[ICMP].type}"))
        elif TCP in packet and STUN not in (packet[TCP].sport, packet[TCP].dport):
            assert not bytes(packet[TCP].payload)
            lines.append(way.format(str(packet[TCP].flags)))
        elif UDP in packet and STUN not in (packet[UDP].sport, packet[UDP].dport):
            kind = {1: "PROBE", 2: "ACK", 3: "DONE"}[bytes(packet[UDP].payload)[4]]
            lines.append(way.format(kind))
    return lines


def assert_times_and_format(path: Path, began_at: float) -> None:
    with RawPcapReader(str(path)) as reader:
        assert reader.linktype == LINKTYPE_RAW
        times = [meta.sec + meta.usec / 1e6 for _, meta in reader]
    assert times == sorted(times)
    assert began_at - 1 <= times[0] <= times[-1] <= began_at + 60
    listed = subprocess.run(["tcpdump", "-n", "-r", str(path)], capture_output=True, text=True, check=True)
    assert "link-type RAW" in listed.stderr
    assert len(listed.stdout.splitlines()) >= len(times)


def events(text: str) -> list[str]:
    """The names of the events, a packet's with its way and its kind."""
    named: list[str] = []
    for line in text.splitlines():
        if (found := re.fullmatch(r" *[\d.]+ s  (\w+)(.*)", line)) is None:
            continue
        name, rest = found.groups()
        passed = re.match(r" way=(\w+) what=([\w-]+)", rest)
        named.append(f"{name} {passed[1]} {passed[2]}" if name == "Passed" and passed else name)
    return named


async def test_tcp_nutss_is_traced_as_in_its_diagram(tmp_path: Path) -> None:
    began_at = time.time()
    async with traced(tmp_path, "tcp-nutss") as outcome:
        assert outcome.connected, outcome.explain()
        text, packets = files(tmp_path / "a")
        own = str(outcome.initiator.connected.local.ip)  # type: ignore[union-attr]
        assert_times_and_format(packets, began_at)
        lines = told(packets, own)
        low, full = f"out S {TTL}", f"out S {FULL}"
        assert lines[0] == low
        assert "in time-exceeded" in lines, "about the low-TTL SYN"
        assert in_order([low, full, f"out A {FULL}"], lines) or in_order([low, full, f"out SA {FULL}"], lines), lines
        assert any(line in ("in S", "in SA") for line in lines)
        seen = events(text)
        assert seen[0] == "AttemptStarted"
        assert in_order(["MappingLearned", "Opened", "Told", "Passed sent SYN", "Complained"], seen) or in_order(
            ["Opened", "Told", "MappingLearned", "Passed sent SYN", "Complained"], seen
        ), seen
        assert in_order(["Passed sent SYN", "Heard", "Tried", "Punched", "AttemptEnded"], seen), seen
        assert f"ttl={TTL}" in next(line for line in text.splitlines() if "Passed way=sent what=SYN " in line)
        assert re.search(rf"^\d+ packets in {packets.name}, the first of them at [\d.]+ s$", text, re.MULTILINE)


async def test_udp_is_traced_as_in_its_diagram(tmp_path: Path) -> None:
    began_at = time.time()
    async with traced(tmp_path, "udp") as outcome:
        assert outcome.connected, outcome.explain()
        text, packets = files(tmp_path / "a")
        own = str(outcome.initiator.connected.local.ip)  # type: ignore[union-attr]
        assert_times_and_format(packets, began_at)
        lines = told(packets, own)
        assert lines[0] == f"out PROBE {TTL}"
        assert in_order([f"out PROBE {TTL}", "in PROBE", f"out ACK {FULL}", "in DONE"], lines), lines
        assert "in time-exceeded" in lines
        seen = events(text)
        wanted = ["Opened", "Told", "Complained", "Passed came PROBE", "Heard", "Passed sent ACK", "Passed came DONE"]
        assert in_order([*wanted, "Punched", "AttemptEnded"], seen), seen
        _, packets = files(tmp_path / "b")
        lines = told(packets, str(outcome.responder.connected.local.ip))  # type: ignore[union-attr]
        assert in_order([f"out PROBE {FULL}", "in ACK", f"out DONE {FULL}"], lines), lines


async def test_tcp_syni_shows_what_was_injected_once_and_apart_from_what_came(tmp_path: Path) -> None:
    async with traced(tmp_path, "tcp-syni") as outcome:
        assert outcome.connected, outcome.explain()
        text, packets = files(tmp_path / "b")
        own = str(outcome.responder.connected.local.ip)  # type: ignore[union-attr]
        lines = told(packets, own)
        assert lines[0] == "in S", "the injected SYN"
        assert lines[1] != "in S", "it crosses lo, where each packet is seen twice"
        assert in_order(["in S", f"out SA {FULL}", f"out S {TTL}", "in A"], lines), lines
        seen = events(text)
        assert in_order(["Passed injected SYN", "Passed sent SYN-ACK", "Passed sent SYN", "Tried"], seen), seen
        assert seen.count("Passed injected SYN") == 1


async def test_tcp_repair_is_told_with_its_acks(tmp_path: Path) -> None:
    async with traced(tmp_path, "tcp-repair") as outcome:
        assert outcome.connected, outcome.explain()
        text, packets = files(tmp_path / "a")
        lines = told(packets, str(outcome.initiator.connected.local.ip))  # type: ignore[union-attr]
        assert in_order([f"out A {TTL}", f"out A {FULL}", "in A"], lines), lines
        assert not [line for line in lines if " S" in line], "no SYN at all"
        assert in_order(["Passed sent ACK", "Heard", "Passed came ACK", "Tried", "Punched"], events(text)) or in_order(
            ["Passed sent ACK", "Passed came ACK", "Heard", "Tried", "Punched"], events(text)
        )
