"""What `punch session join` does when things change: peers that come back, brokers that go, tools that die, signals.

The NAT of b gives ports another number, so nothing connects there without STUN.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.netns.punch_parts import PATIENCE_S, Program
from tests.netns.session_parts import Sink, Source, World, until_all, world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(
        tmp_path_factory.mktemp("session"), {"a": "apdf", "b": "eim-no-preserve", "c": "symmetric-random"}
    ) as found:
        yield found


@pytest.fixture(autouse=True)
def _ended(lab: World) -> Iterator[None]:
    yield
    lab.end_all()


def tools(lab: World, site: str) -> list[int]:
    """Processes of srt-live-transmit on a host."""
    listed = subprocess.run(["ip", "netns", "pids", lab.host(site).name], capture_output=True, text=True, check=True)
    names = {pid: Path(f"/proc/{pid}/comm") for pid in map(int, listed.stdout.split())}
    return [pid for pid, name in names.items() if name.exists() and name.read_text().startswith("srt-live")]


def wait_until(is_so: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not is_so():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def pair(lab: World) -> tuple[str, Program, Program]:
    """An admin's URL, and two ends that are connected."""
    admin, peers = lab.session()
    sender, receiver = lab.sender("a", peers), lab.receiver("b", peers)
    until_all([sender, receiver], "connected")
    return admin, sender, receiver


def state(lab: World, admin: str) -> str:
    return str(json.loads(lab.punch("server", "status", admin, "--json").line())["state"])


def test_a_receiver_that_was_killed_comes_back_with_another_port_and_gets_media_again(lab: World) -> None:
    _, peers = lab.session()
    sender, receiver = lab.sender("a", peers), lab.receiver("b", peers)
    until_all([sender, receiver], "connected")
    (first,) = tools(lab, "a")
    receiver.process.kill()
    for pid in tools(lab, "b"):
        os.kill(pid, signal.SIGKILL)
    again = lab.receiver("b", peers)
    sender.until("restarting")
    until_all([sender, again], "connected")
    assert tools(lab, "a") != [first]
    sink, source = Sink(lab.host("b")), Source(lab.host("a"), 2)
    sent = source.wait()
    assert sink.until(len(sent)) == sent
    source.close()
    sink.close()


def test_media_are_not_touched_when_a_connection_to_the_broker_breaks_and_comes_back(lab: World) -> None:
    _, sender, receiver = pair(lab)
    before = tools(lab, "a") + tools(lab, "b")
    sink, source = Sink(lab.host("b")), Source(lab.host("a"), 6)
    lab.host("a").run(["ss", "-K", "dport", "=", "8443"], capture_output=True, check=True)
    sender.until("reconnected")
    receiver.until("matched")
    sent = source.wait()
    assert sink.until(len(sent)) == sent
    source.close()
    sink.close()
    assert tools(lab, "a") + tools(lab, "b") == before
    assert not sender.named("restarting") + receiver.named("restarting")


def test_a_tool_that_dies_is_started_again_on_both_sides(lab: World) -> None:
    admin, sender, receiver = pair(lab)
    (pid,) = tools(lab, "a")
    os.kill(pid, signal.SIGKILL)
    assert sender.until("ended")["code"] == -signal.SIGKILL
    until_all([sender, receiver], "connected")
    assert state(lab, admin) == "CONNECTED"


def test_the_session_s_end_is_the_end_of_both_and_of_their_tools(lab: World) -> None:
    admin, sender, receiver = pair(lab)
    assert lab.punch("server", "close", admin).wait() == 0
    assert (sender.wait(), receiver.wait()) == (0, 0)
    assert sender.named("closed")[0]["reason"] == "admin_closed"
    assert not tools(lab, "a") + tools(lab, "b")


def test_a_signal_ends_the_tool_with_us(lab: World) -> None:
    _, sender, receiver = pair(lab)
    sender.process.terminate()
    assert sender.wait() == 143
    assert not tools(lab, "a")
    receiver.until("left")
    assert receiver.interrupt() == 130
    assert not tools(lab, "b")


@pytest.mark.long
def test_a_tool_does_not_outlive_us_for_long_even_if_we_are_killed(lab: World) -> None:
    _, sender, _ = pair(lab)
    source = Source(lab.host("a"), 10)
    sender.process.kill()
    wait_until(lambda: not tools(lab, "a"))
    source.close()


def test_with_print_the_strings_are_there_to_paste_and_the_user_says_how_it_goes(lab: World) -> None:
    """The other side asks STUN at the broker's host, as it does by default."""
    admin, peers = lab.session()
    other = lab.punch("b", "join", peers, "--json", "--output", "udp://127.0.0.1:5200")
    hand = lab.join("a", peers, "--role", "sender", "--print", "url", stdin=subprocess.PIPE)
    hand.until("set-up")
    uri = hand.line().decode().strip()
    assert not other.named("start")
    hand.write(b"\n")
    hand.until("start")
    tool = lab.host("a").popen(["srt-live-transmit", "-q", "udp://127.0.0.1:5100", uri])
    other.until("connected")
    hand.write(b"connected\n")
    hand.until("connected")
    assert state(lab, admin) == "CONNECTED"
    tool.terminate()
    tool.wait()


def test_a_nat_that_gives_each_destination_another_port_is_warned_of(lab: World) -> None:
    _, peers = lab.session()
    program = lab.receiver("c", peers)
    assert "gives each destination another port" in program.until("warning")["text"]


@pytest.mark.long
def test_without_stun_the_port_is_registered_as_it_is(lab: World) -> None:
    _, peers = lab.session()
    command = ["join", peers, "--json", "--stun", "stun.invalid:3478", "--input", "udp://127.0.0.1:5100"]
    programs = [lab.punch("a", *command), lab.receiver("b", peers)]
    assert "no STUN server's name has an address here" in programs[0].until("warning")["text"]
    until_all(programs, "connected")
    assert not programs[0].named("text")  # what is no JSON


def test_a_port_that_is_in_use_and_a_session_that_is_not_there_are_one_line(lab: World) -> None:
    admin, peers = lab.session()
    with lab.host("a").socket() as taken:
        taken.bind(("", 6000))
        program = lab.sender("a", peers, "--port", "6000")
        assert program.wait() == 2
        assert program.events == [{"event": "error", "code": 2, "text": "UDP port 6000: Address already in use"}]
    lab.punch("server", "close", admin).wait()
    program = lab.sender("a", peers)
    assert program.wait() == 4
    assert len(program.events) == 1
