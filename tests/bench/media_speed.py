"""How fast media go, beside srt-live-transmit and what the kernel can do at all, on the same path in the same run.

Sender and receiver have a core each; datagrams have 1,400 bytes. What counts is payload of whole logical sends that the
receiver was given. Nothing slows a sender down by itself, so several rates are tried and the best goodput is taken.

SRT acknowledges, sends again what was lost, and controls congestion; it can also encrypt, which is off here. The media
protocol does none of that. Compare what they cost, not what they are.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from tests.natlab import KINDS, Laboratory, Site

SECONDS = 1.5
ROUNDS = 3
SHARES = (0.85, 0.7, 0.55, 0.4)  # of what the sender sends if nothing holds it back
DATAGRAM = 1400
SRT_PAYLOAD = DATAGRAM - 16
MIB = 1 << 20
PORTS = iter(range(7100, 7900, 2))
TICKS_S = os.sysconf("SC_CLK_TCK")
# The machine may have other things to do, and niceness counts for little between sessions (autogroups). A receiver that
# does not run loses datagrams. The same for everybody, for a second and a half at a time.
FIRST_IN_LINE = ("chrt", "-r", "1")
NO_OFFLOAD = {"gso": False, "gro": False}

Popen = Callable[..., "subprocess.Popen[Any]"]


@dataclass(frozen=True, slots=True)
class Route:
    """A way from a sender's to a receiver's host: how programs are started there, and the receiver's address."""

    name: str
    near: Popen
    far: Popen
    address: str
    is_behind_nat: bool


@dataclass(frozen=True, slots=True)
class Speed:
    """Of one run: goodput in bit/s; CPU seconds of sender and receiver for each GB that came."""

    goodput_bps: float
    cpu_s_per_gb: float
    note: str = ""
    tick_p99_s: float = 0.0


def ours(path: Route, size: int, rate: float | None, fast: dict[str, bool]) -> tuple[Speed, float]:
    """One run, and what the sender sent, bit/s."""
    here, there = next(PORTS), next(PORTS)
    chosen = json.dumps(
        {"seconds": SECONDS, "size": size, "rate": rate, "fast": fast, "is_behind_nat": path.is_behind_nat}
    )
    command = [*FIRST_IN_LINE, sys.executable, "-m", "tests.bench.media_end"]
    options = {"stdout": subprocess.PIPE, "text": True}
    cores = sorted(os.sched_getaffinity(0))
    # Whoever has to hear the other's first datagram is there first.
    receiver = [*command, "receive", path.address, here, cores[-1], there, chosen]
    sender = [*command, "send", path.address, there, cores[0], here, chosen]
    first, second = (receiver, sender) if path.is_behind_nat else (sender, receiver)
    one = (path.far if path.is_behind_nat else path.near)([str(word) for word in first], **options)
    time.sleep(0.8)
    other = (path.near if path.is_behind_nat else path.far)([str(word) for word in second], **options)
    told = [json.loads(process.communicate(timeout=60)[0]) for process in (one, other)]
    sent, came = reversed(told) if path.is_behind_nat else told
    seconds = max(came["seconds"], 1e-9)
    lost = came["lost"] / max(came["lost"] + came["sends"], 1)
    speed = Speed(
        8 * came["bytes"] / seconds,
        (sent["cpu_s"] + came["cpu_s"]) / max(came["bytes"] / 1e9, 1e-9),
        f"{sent['path']} to {came['path']}, {lost:.1%} lost",
        max(sent["tick_p99_s"] or 0.0, came["tick_p99_s"] or 0.0),
    )
    return speed, 8 * sent["bytes"] / SECONDS


def best(path: Route, size: int, fast: dict[str, bool] | None = None) -> Speed:
    """At the rate that suits the path: the median of some runs at it."""
    found, sent_bps = ours(path, size, None, fast or {})
    tried: list[tuple[float, float | None, Speed]] = [(found.goodput_bps, None, found)]
    for share in SHARES:
        speed, _ = ours(path, size, share * sent_bps, fast or {})
        tried.append((speed.goodput_bps, share * sent_bps, speed))
    _, rate, speed = max(tried, key=lambda one: one[0])
    speeds = sorted(
        [speed, *(ours(path, size, rate, fast or {})[0] for _ in range(ROUNDS - 1))], key=lambda one: one.goodput_bps
    )
    return speeds[len(speeds) // 2]


def kernel(path: Route, program: Path) -> Speed:
    """UDP_SEGMENT to UDP_GRO in C."""
    port, cores = str(next(PORTS)), sorted(os.sched_getaffinity(0))
    options = {"stdout": subprocess.PIPE, "text": True}
    receiver = path.far([*FIRST_IN_LINE, str(program), "receive", port, str(cores[-1])], **options)
    time.sleep(0.3)
    words = ["send", path.address, port, str(cores[0]), str(SECONDS), str(DATAGRAM)]
    sender = path.near([*FIRST_IN_LINE, str(program), *words], **options)
    sent, came = (json.loads(process.communicate(timeout=60)[0]) for process in (sender, receiver))
    return Speed(8 * came["bytes"] / came["seconds"], (sent["cpu_s"] + came["cpu_s"]) / (came["bytes"] / 1e9))


def srt(path: Route, directory: Path) -> Speed:
    """srt-live-transmit, from /dev/zero to /dev/null."""
    port, cores = next(PORTS), sorted(os.sched_getaffinity(0))
    log = directory / f"srt-{port}"
    common = f"payloadsize={SRT_PAYLOAD}&rcvbuf=50000000&sndbuf=50000000&fc=60000"
    tool = ["srt-live-transmit", "-q", f"-chunk:{SRT_PAYLOAD}"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    receiver = path.far(
        [*FIRST_IN_LINE, "taskset", "-c", str(cores[-1]), *tool, "-statspf:json", "-stats-report-frequency:5000",
         f"-statsout:{log}", f"srt://:{port}?mode=listener&{common}", "file://con"],
        stdin=subprocess.DEVNULL, **quiet,
    )  # fmt: skip
    time.sleep(0.5)
    zeros = subprocess.Popen(
        [*FIRST_IN_LINE, "cat", "/dev/zero"], stdout=subprocess.PIPE
    )  # the tool polls, which a device does not do
    assert zeros.stdout is not None
    sender = path.near(
        [*FIRST_IN_LINE, "taskset", "-c", str(cores[0]), *tool, "file://con", f"srt://{path.address}:{port}?{common}"],
        stdin=zeros.stdout.fileno(), **quiet,
    )  # fmt: skip
    zeros.stdout.close()
    time.sleep(2 * SECONDS)
    cpu_s = spent(sender.pid) + spent(receiver.pid)
    for process in (sender, receiver, zeros):
        process.kill()
        process.wait()
    lines = [json.loads(line) for line in log.read_text().splitlines() if line.startswith("{") and line.endswith("}")]
    size = sum(line["recv"]["packetsUnique"] for line in lines[1:]) * SRT_PAYLOAD
    seconds = (lines[-1]["time"] - lines[0]["time"]) / 1000
    total = sum(line["recv"]["packetsUnique"] for line in lines) * SRT_PAYLOAD
    return Speed(8 * size / seconds, cpu_s / (total / 1e9))


def spent(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS_S


def middle(measure: Callable[[], Speed]) -> Speed:
    return sorted((measure() for _ in range(ROUNDS)), key=lambda one: one.goodput_bps)[ROUNDS // 2]


def most(measure: Callable[[], Speed]) -> Speed:
    """Of a limit, which a run that was disturbed does not lower: single runs were seen to differ by three."""
    return max((measure() for _ in range(ROUNDS)), key=lambda one: one.goodput_bps)


def show(name: str, speed: Speed, reference: Speed | None = None) -> None:
    ratio = "" if reference is None else f"  {speed.goodput_bps / reference.goodput_bps:5.1f} x srt-live-transmit"
    tick = f"  1 ms ticks p99 {speed.tick_p99_s * 1000:.1f} ms late" if speed.tick_p99_s else ""
    print(
        f"  {name:34} {speed.goodput_bps / 1e9:6.2f} Gbit/s  {speed.cpu_s_per_gb:6.2f} CPU s/GB{ratio}{tick}"
        f"{speed.note and f'  ({speed.note})'}",
        flush=True,
    )


def verdict(what: str, found: float, least: float, *, is_most: bool = False) -> None:
    is_met = found <= least if is_most else found >= least
    print(
        f"  goal  {what}: {found:.2f}, {'at most' if is_most else 'at least'} {least}: {'met' if is_met else 'MISSED'}"
    )


def loopback(directory: Path, program: Path) -> None:
    path = Route("loopback", subprocess.Popen, subprocess.Popen, "127.0.0.1", is_behind_nat=False)
    print(f"media, loopback, datagrams of {DATAGRAM} bytes, a core each (SRT also retransmits and controls congestion)")
    other = middle(lambda: srt(path, directory))
    limit = most(lambda: kernel(path, program))
    show("srt-live-transmit", other)
    show("the kernel's limit, GSO to GRO in C", limit)
    large, small = best(path, MIB), best(path, 1 << 16)
    plain, slow = best(path, MIB, {"numpy": False}), best(path, 1 << 16, NO_OFFLOAD)
    show("logical sends of 1 MiB", large, other)
    show("logical sends of 64 KiB", small, other)
    show("1 MiB without NumPy", plain, other)
    show("64 KiB without GSO and GRO", slow, other)
    verdict("1 MiB, times srt-live-transmit", large.goodput_bps / other.goodput_bps, 12)
    verdict("1 MiB, of the kernel's limit", large.goodput_bps / limit.goodput_bps, 0.4)
    verdict("64 KiB, times srt-live-transmit", small.goodput_bps / other.goodput_bps, 8)
    verdict("without GSO and GRO, times srt-live-transmit", slow.goodput_bps / other.goodput_bps, 1.5)
    verdict("1 ms ticks beside it, 99th percentile late, ms", large.tick_p99_s * 1000, 10, is_most=True)


def behind_nat(directory: Path, program: Path) -> None:
    with Laboratory([Site("a", KINDS["apdf"])], stun=False) as laboratory:
        near, far = laboratory.site("a").host, laboratory.server
        path = Route("NAT", near.popen, far.popen, far.ipv4, is_behind_nat=True)
        print("media, through a port-restricted NAT of the laboratory (conntrack, veth)")
        other = middle(lambda: srt(path, directory))
        limit = most(lambda: kernel(path, program))
        large = best(path, MIB)
        show("srt-live-transmit", other)
        show("the kernel's limit, GSO to GRO in C", limit)
        show("logical sends of 1 MiB", large, other)
        verdict("1 MiB, times srt-live-transmit", large.goodput_bps / other.goodput_bps, 8)


def measure() -> None:
    missing = [name for name in ("srt-live-transmit", "gcc") if shutil.which(name) is None]
    if missing:
        print(f"media: {', '.join(missing)} is missing: apt-get install srt-tools gcc libc6-dev")
        return
    with tempfile.TemporaryDirectory() as name:
        program = Path(name) / "udp_reference"
        source = Path(__file__).with_name("udp_reference.c")
        subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
        loopback(Path(name), program)
        behind_nat(Path(name), program)


async def main() -> None:
    """Print it all."""
    await trio.to_thread.run_sync(measure)
