"""`punch listen` and `punch connect` with everything real, between two NATs. The drawing: punch_parts.py."""

from __future__ import annotations

import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.natlab import Host
from tests.netns.punch_parts import Program, World, service, world

pytestmark = pytest.mark.netns

MEGABYTES = 2


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("punch")) as found:
        yield found


@pytest.fixture
def lab(built: World) -> Iterator[World]:
    yield built
    built.end_all()


def dial(host: Host, place: str) -> socket.socket:
    name, _, port = place.rpartition(":")
    sock = host.socket(socket.AF_INET, socket.SOCK_STREAM)
    sock.settimeout(60)
    sock.connect((name, int(port)))
    return sock


def forwarding(lab: World, address: str, target: str) -> tuple[Program, str]:
    """A connector that forwards a port of b to `target`; where it listens."""
    program = lab.punch("b", "connect", address, "--forward", f"0:{target}")
    return program, str(program.until("forwarding")["local"])


@pytest.mark.parametrize("options", [[], ["--plain"]], ids=["tls", "plain"])
def test_bytes_go_both_ways_and_each_direction_ends_by_itself(lab: World, options: list[str]) -> None:
    listener, address = lab.listen("a", *options)
    connector = lab.punch("b", "connect", address, *options)
    connector.write(b"question\n")
    assert listener.line() == b"question\n"
    connector.close()
    assert listener.read(0) == b""
    time.sleep(0.3)  # the end of one direction has arrived, and is not the end of the other
    listener.write(b"answer\n")
    listener.close()
    assert connector.read() == b"answer\n"
    assert listener.read() == b""
    assert (connector.wait(), listener.wait()) == (0, 0)
    keys = [program.named("connected")[0]["key"] for program in (listener, connector)]
    assert keys == ([None, None] if options else [lab.address("b"), address])
    assert address == lab.address("a")
    assert bool([one for one in connector.named("warning") if "--plain" in one["text"]]) is bool(options)


def test_megabytes_arrive_unaltered(lab: World) -> None:
    sent = bytes(range(256)) * 4096 * MEGABYTES
    listener, address = lab.listen("a", stdin=subprocess.DEVNULL)
    connector = lab.punch("b", "connect", address)

    def write() -> None:
        connector.write(sent)
        connector.close()

    writer = threading.Thread(target=write)
    writer.start()
    assert listener.read() == sent
    writer.join()
    assert (connector.wait(), listener.wait()) == (0, 0)


def test_over_udp_each_chunk_is_a_datagram_and_bye_ends_the_talk(lab: World) -> None:
    listener, address = lab.listen("a", "--udp")
    connector = lab.punch("b", "connect", address, "--udp")
    for program in (listener, connector):
        assert program.until("connected")["technique"] == "udp"
        assert any("nothing is encrypted" in one["text"] for one in program.named("warning"))
    connector.write(b"question\n")
    assert listener.line() == b"question\n"
    listener.write(b"answer\n")
    assert connector.line() == b"answer\n"
    connector.close()
    listener.close()
    assert (connector.wait(), listener.wait()) == (0, 0)


def test_a_talk_over_udp_ends_when_one_side_is_interrupted(lab: World) -> None:
    listener, address = lab.listen("a", "--udp")
    connector = lab.punch("b", "connect", address, "--udp")
    for program in (listener, connector):
        program.until("connected")
    assert connector.interrupt() == 130
    assert listener.wait() == 0


def test_a_listener_forwards_to_what_it_names_for_many_at_once(lab: World) -> None:
    """Twelve connections of one connector, and four connectors besides."""
    with service(lab.host("a"), b"hello ") as target, service(lab.host("a")) as other:
        listener, address = lab.listen("a", "--to", target, "--to", other)
        connector, local = forwarding(lab, address, target)
        others = [forwarding(lab, address, target)[1] for _ in range(4)]
        places = [local] * 12 + others
        socks = [dial(lab.host("b"), place) for place in places]
        for number, sock in enumerate(socks):
            sock.sendall(f"from {number}".encode())
            sock.shutdown(socket.SHUT_WR)
        for number, sock in enumerate(socks):
            assert b"".join(iter(lambda sock=sock: sock.recv(1000), b"")) == f"hello from {number}".encode()  # type: ignore[misc]
            sock.close()
        assert connector.interrupt() == 130
        assert listener.interrupt() == 130
        assert len(listener.named("connected")) == 16


def test_targets_that_are_not_served_or_not_there_are_refused_with_a_reason(lab: World) -> None:
    with service(lab.host("a")) as target:
        _, address = lab.listen("a", "--to", target, "--to", "127.0.0.1:9")
        for wanted, reason in (("127.0.0.1:22", "is not served here"), ("127.0.0.1:9", "Connection refused")):
            connector, local = forwarding(lab, address, wanted)
            with dial(lab.host("b"), local) as sock:
                assert sock.recv(100) == b""
            error = connector.until("error")
            assert error["code"] == 5
            assert reason in error["text"]
        connector = lab.punch("b", "connect", address)
        assert connector.wait() == 5
        assert "several targets" in connector.named("error")[0]["text"]


def test_one_target_needs_no_name(lab: World) -> None:
    with service(lab.host("a"), b"hello ") as target:
        _, address = lab.listen("a", "--to", target)
        for _ in range(2):  # it goes on after the first
            connector = lab.punch("b", "connect", address)
            connector.write(b"there")
            connector.close()
            assert connector.read() == b"hello there"
            assert connector.wait() == 0


def test_only_keys_that_are_allowed_get_in(lab: World) -> None:
    listener, address = lab.listen("a", "--allow", lab.address("b", "friend"))
    stranger = lab.punch("b", "connect", address)
    assert stranger.wait() == 5
    assert stranger.named("error")[0]["text"] == "this listener does not serve your key"
    friend = lab.punch("b", "connect", address, "--as", "friend")
    friend.write(b"hello\n")
    assert listener.line() == b"hello\n"
    assert listener.until("connected")["key"] == lab.address("b", "friend")
    friend.close()
    listener.close()
    assert (friend.wait(), listener.wait()) == (0, 0)


@pytest.mark.parametrize("options", [["--plain"], ["--udp"]])
def test_a_side_that_does_not_want_the_same_is_refused(lab: World, options: list[str]) -> None:
    _, address = lab.listen("a")
    connector = lab.punch("b", "connect", address, *options)
    assert connector.wait() == 5
    assert f"either both sides or none have {options[0]}" in connector.named("error")[0]["text"]


def test_a_listener_that_is_busy_says_so_and_with_keep_takes_the_next_one(lab: World) -> None:
    listener, address = lab.listen("a", "--keep", stdin=subprocess.DEVNULL)
    first = lab.punch("b", "connect", address)
    first.until("connected")
    second = lab.punch("b", "connect", address)
    assert second.wait() == 5
    first.close()
    assert first.wait() == 0
    listener.until("ended")
    third = lab.punch("b", "connect", address)
    third.write(b"third")
    third.close()
    assert third.wait() == 0
    assert listener.interrupt() == 130
    assert listener.read() == b"third"


def test_an_address_that_nobody_has_is_not_online(lab: World) -> None:
    connector = lab.punch("b", "connect", lab.address("b", "nobody"))
    assert connector.wait() == 4
    assert "is not online" in connector.named("error")[0]["text"]


def test_a_listener_that_was_killed_does_not_answer(lab: World) -> None:
    listener, address = lab.listen("a")
    listener.process.kill()
    connector = lab.punch("b", "connect", address, "--timeout", "5")
    assert connector.wait() == 4
    assert "no answer for 5 s" in connector.named("error")[0]["text"]


def test_a_listener_and_its_address_survive_a_restart_of_the_server_that_forgets_all(lab: World) -> None:
    listener, address = lab.listen("a", stdin=subprocess.DEVNULL)
    lab.stop_server()
    time.sleep(1.0)
    lab.serve()
    listener.until("registered")
    connector = lab.punch("b", "connect", address)
    connector.write(b"hello")
    connector.close()
    assert listener.read() == b"hello"
    assert (connector.wait(), listener.wait()) == (0, 0)


def test_a_connector_that_forwards_survives_it_too(lab: World) -> None:
    with service(lab.host("a"), b"hello") as target:
        listener, address = lab.listen("a", "--to", target)
        connector, local = forwarding(lab, address, target)
        lab.stop_server()
        lab.serve()
        for program in (listener, connector):
            program.until("registered")
        with dial(lab.host("b"), local) as sock:
            assert sock.recv(100) == b"hello"


def test_a_listener_that_is_started_again_has_the_same_address(lab: World) -> None:
    listener, address = lab.listen("a")
    assert listener.interrupt() == 130
    again, same = lab.listen("a", stdin=subprocess.DEVNULL)
    assert same == address
    connector = lab.punch("b", "connect", address)
    connector.close()
    assert (connector.wait(), again.wait()) == (0, 0)


def test_glare_both_sides_listen_and_call_each_other_at_the_same_time(lab: World) -> None:
    ends = {name: lab.listen(name, stdin=subprocess.DEVNULL) for name in "ab"}
    callers = {name: lab.punch(name, "connect", ends[other][1]) for name, other in ("ab", "ba")}
    for name, caller in callers.items():
        caller.write(f"from {name}".encode())
        caller.close()
    for name, other in ("ab", "ba"):
        assert ends[other][0].read() == f"from {name}".encode()
        assert callers[name].wait() == ends[other][0].wait() == 0


def test_a_peer_that_vanishes_in_the_middle_is_an_error(lab: World) -> None:
    listener, address = lab.listen("a")
    connector = lab.punch("b", "connect", address)
    connector.write(b"half of it\n")
    assert listener.line() == b"half of it\n"
    connector.process.kill()
    assert listener.wait() == 7
    (error,) = listener.named("error")
    assert "the connection broke" in error["text"]


@pytest.mark.parametrize("when", ["waiting", "calling", "connected"])
def test_an_interrupt_ends_it_cleanly_whenever_it_comes(lab: World, when: str) -> None:
    listener, address = lab.listen("a")
    if when == "waiting":
        assert listener.interrupt() == 130
        assert lab.punch("b", "connect", address).wait() == 4  # it has taken its leave
        return
    connector = lab.punch("b", "connect", address)
    connector.until(when)
    assert connector.interrupt() == 130
    assert not connector.named("error")
    if when == "calling":
        again = lab.punch("b", "connect", address)  # the listener is free again, and still there
        again.until("connected")
        again.close()
        listener.close()
        assert (again.wait(), listener.wait()) == (0, 0)


def test_techniques_that_the_daemon_does_not_have_are_a_reason(lab: World) -> None:
    _, address = lab.listen("a")
    connector = lab.punch("b", "connect", address, "--techniques", "no-such")
    assert connector.wait() == 1
    assert "no-such" in connector.named("error")[0]["text"] or "exhausted" in connector.named("error")[0]["text"]


def test_without_a_daemon_or_a_server_there_is_one_line_and_an_exit_code(lab: World) -> None:
    _, address = lab.listen("a")
    nothing = lab.punch("b", "connect", address, daemon="/nonexistent/socket")
    assert nothing.wait() == 6
    assert "is punchd running?" in nothing.named("error")[0]["text"]
    nobody = lab.punch("b", "connect", address, "--rendezvous", "http://192.0.2.10:1")
    assert nobody.wait() == 3
    for program in (nothing, nobody):
        assert not program.named("text")  # a traceback


def test_a_daemon_without_stun_servers_asks_the_rendezvous_host(tmp_path: Path) -> None:
    with world(tmp_path, stun=()) as lab:
        listener, address = lab.listen("a", stdin=subprocess.DEVNULL)
        connector = lab.punch("b", "connect", address)
        connector.write(b"hello")
        connector.close()
        assert listener.read() == b"hello"
        assert (connector.wait(), listener.wait()) == (0, 0)
