"""`punch media` between two NATs, with everything real. The drawing: punch_parts.py.

The short tests ask what the long ones ask, of seconds instead of minutes.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder
from tests.natlab import KINDS, Laboratory, Link, Site
from tests.netns.punch_parts import Program, World, world
from tests.netns.session_parts import continuity_errors, probed

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]

PACKET = 188
LOSSY = Link(delay_s=0.02, loss=0.01, reorder=0.02, seed=7)
MEMBERS = {"goodput_bps", "bytes", "datagrams", "logical_sends", "lost", "duplicates", "kernel_drops", "path"}
PORT = 7000


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("media")) as found:
        yield found


@pytest.fixture(autouse=True)
def _ended(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "clean" in request.fixturenames:
        request.getfixturevalue("clean").end_all()


def ffmpeg_words(seconds: int, *, is_live: bool = False) -> list[str]:
    """A test picture as MPEG-TS of 8 Mbit/s to standard output, most of it stuffing."""
    words = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", *(["-re"] if is_live else [])]
    words += ["-f", "lavfi", "-i", "testsrc=size=160x120:rate=10", "-t", str(seconds)]
    return [*words, "-c:v", "mpeg2video", "-b:v", "400k", "-muxrate", "8M", "-f", "mpegts", "-"]


def mpeg_ts(seconds: int, directory: Path) -> Path:
    file = directory / "sent.ts"
    with file.open("wb") as out:
        subprocess.run(ffmpeg_words(seconds), stdout=out, check=True)
    return file


def receiving(lab: World, *words: str) -> tuple[Program, str]:
    """A receiver, as soon as it can be called, and its ADDRESS."""
    program = lab.punch("b", "media", "receive", *words)
    return program, str(program.until("listening")["address"])


def totals(sender: Program, receiver: Program) -> tuple[dict[str, Any], dict[str, Any]]:
    """What both say at their end, which was a good one."""
    assert (sender.wait(), receiver.wait()) == (0, 0)
    [sent], [received] = sender.named("total"), receiver.named("total")
    assert set(sent) & set(received) >= MEMBERS
    return sent, received


def is_in_order_within(part: bytes, whole: bytes) -> bool:
    """Whether the packets of one stream come in the other, each once and in this order."""
    at = 0
    for start in range(0, len(part), PACKET):
        at = whole.find(part[start : start + PACKET], at)
        while at % PACKET and at >= 0:
            at = whole.find(part[start : start + PACKET], at + 1)
        if at < 0:
            return False
        at += PACKET
    return True


@pytest.mark.parametrize(
    "seconds", [5, pytest.param(60, marks=pytest.mark.long), pytest.param(600, marks=pytest.mark.long)]
)
@pytest.mark.timeout(900)
def test_over_a_path_that_loses_and_reorders_what_arrives_is_exact_and_what_is_lost_is_counted(
    seconds: int, tmp_path: Path
) -> None:
    file, copy = mpeg_ts(seconds, tmp_path), tmp_path / "received.ts"
    with world(tmp_path, wan=LOSSY) as lab:
        receiver, address = receiving(lab, str(copy))
        sender = lab.punch("a", "media", "send", str(file), address, "--rate", "9M")
        sender.process.wait(seconds + 120)
        sent, received = totals(sender, receiver)
        lab.end_all()
    whole, part = file.read_bytes(), copy.read_bytes()
    assert sent["bytes"] == len(whole)
    assert received["bytes"] == len(part)
    assert is_in_order_within(part, whole)
    lost = sent["logical_sends"] - received["logical_sends"]
    assert received["lost"] == sent["lost"] == lost
    assert PACKET * lost <= len(whole) - len(part) <= 6 * PACKET * lost
    assert 0 < lost < sent["logical_sends"] / 20
    assert (received["duplicates"], received["kernel_drops"], received["invalid"]) == (0, 0, 0)
    assert len(receiver.named("statistics")) >= 0.8 * seconds  # it is sent a little faster than it would play


def test_ffmpeg_at_both_ends_of_the_pipe(clean: World, tmp_path: Path) -> None:
    receiver, address = receiving(clean)
    copy = tmp_path / "copy.ts"
    words = ["ffmpeg", "-hide_banner", "-loglevel", "error", "-f", "mpegts", "-i", "-", "-c", "copy", "-y", str(copy)]
    assert receiver.process.stdout is not None
    taker = subprocess.Popen(words, stdin=receiver.process.stdout)
    giver = subprocess.Popen(ffmpeg_words(4, is_live=True), stdout=subprocess.PIPE)
    assert giver.stdout is not None
    sender = clean.punch("a", "media", "send", "-", address, "--rate", "20M", stdin=giver.stdout.fileno())
    giver.stdout.close()
    assert giver.wait(60) == 0
    sent, received = totals(sender, receiver)
    assert taker.wait(60) == 0
    assert received["lost"] == 0
    assert sent["bytes"] == received["bytes"] > 3_500_000
    assert probed(copy.read_bytes(), tmp_path)[0] == 40
    assert continuity_errors(copy.read_bytes()) == []


@pytest.mark.parametrize(("megabytes", "rate"), [(30, "150M"), pytest.param(1000, "1G", marks=pytest.mark.long)])
@pytest.mark.timeout(300)
def test_a_file_arrives_byte_for_byte_over_a_clean_path(
    clean: World, megabytes: int, rate: str, tmp_path: Path
) -> None:
    file, copy = tmp_path / "sent", tmp_path / "received"
    with file.open("wb") as out:
        for _ in range(megabytes):
            out.write(os.urandom(1_000_000))
    receiver, address = receiving(clean, str(copy))
    sender = clean.punch("a", "media", "send", str(file), address, "--rate", rate)
    sender.process.wait(200)
    sent, received = totals(sender, receiver)
    assert sent["bytes"] == received["bytes"] == megabytes * 1_000_000
    assert (sent["lost"], received["lost"], received["kernel_drops"]) == (0, 0, 0)
    assert subprocess.run(["cmp", str(file), str(copy)], check=False).returncode == 0


@pytest.mark.parametrize("side", ["a", "b"])
def test_who_is_interrupted_ends_the_other_side_as_well(clean: World, side: str) -> None:
    receiver, address = receiving(clean)
    sender = clean.punch("a", "media", "send", "-", address)
    sender.until("sending")
    receiver.until("receiving")
    one, other = (sender, receiver) if side == "a" else (receiver, sender)
    assert one.interrupt() == 130
    assert other.wait() == 7
    assert "given up" in other.named("error")[0]["text"]


def test_straight_to_a_place_without_daemon_or_rendezvous(clean: World, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(os.urandom(100_001))
    command = [sys.executable, "-m", "punchd.cli.punch", "media"]
    address = f"192.0.2.10:{PORT}"
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    server = clean.laboratory.server.popen([*command, "send", str(file), "--direct", address, "--json"], **options)
    receiver = clean.host("b").popen([*command, "receive", "--direct", address], **options)
    assert receiver.communicate(timeout=60)[0] == file.read_bytes()
    server.communicate(timeout=60)
    assert (server.returncode, receiver.returncode) == (0, 0)


async def test_d_31_when_the_paths_mtu_shrinks_the_session_cuts_smaller_datagrams(tmp_path: Path) -> None:
    with Laboratory([Site("a", KINDS["apdf"])], stun=False) as lab:
        host = lab.site("a").host
        with lab.server.socket() as there, host.socket() as here:
            there.bind((lab.server.ipv4, PORT))
            here.connect((lab.server.ipv4, PORT))
            with trio.fail_after(60):
                async with (
                    Responder.open(here, rate_bps=None, datagram_size=1400) as responder,
                    trio.open_nursery() as nursery,
                ):
                    there.setblocking(False)
                    here.send(b"open the NAT")
                    await trio.lowlevel.wait_readable(there)
                    peer = there.recvfrom(100)[1]
                    told, sizes = trio.open_memory_channel[int](3)

                    async def receive() -> None:
                        async with Initiator.open(there, peer=peer) as initiator:
                            async for delivery in initiator:
                                await told.send(len(delivery.payload))

                    nursery.start_soon(receive)
                    stream = await responder.accept()
                    for mtu, size in ((1500, 1400), (1000, 972), (1500, 972)):
                        host.run(["ip", "link", "set", "eth0", "mtu", str(mtu)], check=True)
                        await stream.send(bytes(200_000))
                        assert stream.statistics().datagram_size == size
                        assert await sizes.receive() == 200_000
                    assert stream.statistics().path.startswith("gso")
                    nursery.cancel_scope.cancel()
