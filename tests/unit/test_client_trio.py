"""The trio flavour against a daemon that plays a script, over real Unix sockets with real descriptors."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
import trio

from punchd.client import (
    AttemptError,
    Connected,
    DaemonGoneError,
    DaemonProtocolError,
    Ignored,
    Relay,
    RequestRefusedError,
    Trying,
    UntrustedDaemonError,
)
from punchd.client.trio_client import Daemon, TrioSocket
from tests.unit.test_client_fake_daemon import (
    ANSWER,
    OFFER,
    SCRIPT_TIMEOUT_S,
    Conversation,
    fake_daemon,
    id_of,
    no_descriptor_leaks,
    ok_line,
    tcp_pair,
    udp_pair,
)

PEER = "203.0.113.7"


async def nowhere(token: str) -> None:
    """Relays nowhere."""


async def test_connect_relays_both_ways_and_gives_a_trio_socket(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        probe = daemon.expect("probe|p1|udp")
        daemon.send(f"ok|{id_of(probe)}|probe|udp|198.51.100.4|40000|endpoint-independent|5000\n")
        attempt = id_of(daemon.expect(f"initiate|i2|udp|{PEER}|40000|lport=5000"))
        daemon.send(f"progress|{attempt}|1|udp|trying|-\nprogress|{attempt}|1|udp|relay|{OFFER}\n")
        daemon.expect(f"respond|{attempt}|{ANSWER}")
        with udp_pair() as (granted, other):
            daemon.send(f"progress|{attempt}|1|udp|ignored|stale\n" + ok_line(attempt), granted)
            assert other.recv(100) == b"ping"
            other.send(b"pong")

    answers, tokens = trio.open_memory_channel[str](1)
    events: list[object] = []

    async def send(token: str) -> None:
        assert token == OFFER
        await answers.send(ANSWER)

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon:
            assert daemon.greeting is not None
            own = await daemon.probe("udp")
            async with daemon.initiate(PEER, 40000, techniques="udp", lport=own.lport) as attempt:
                connected = await attempt.connect(send, tokens, on_event=events.append)
                assert [event async for event in attempt] == []
        with connected.socket as hole:  # outlives the connection to the daemon
            await hole.send(b"ping")
            assert await hole.recv(100) == b"pong"
    assert events == [Trying(1, "udp"), Relay(1, "udp", OFFER), Ignored(1, "udp", "stale")]


async def test_a_responder_pins_the_address_and_tcp_makes_a_stream(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        assert daemon.read() == f"respond|r1|{OFFER}|peer={PEER};tech=tcp-nutss"
        with tcp_pair() as (granted, other):
            daemon.send(ok_line("r1", "tcp"), granted)
            assert other.recv(100) == b"ping"

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with (
            Daemon.connect(path) as daemon,
            daemon.respond(OFFER, peer=PEER, techniques="tcp-nutss") as attempt,
        ):
            connected = await attempt.connect(nowhere)
        async with trio.SocketStream(connected.socket) as stream:
            await stream.send_all(b"ping")


async def test_attempts_in_several_tasks_each_get_their_own_events_and_socket(tmp_path: Path) -> None:
    count = 6

    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempts = [id_of(daemon.expect("initiate|")) for _ in range(count)]
        for attempt in reversed(attempts):
            daemon.send(f"progress|{attempt}|1|udp|relay|{attempt}{'T' * 20}\n")
        assert {id_of(daemon.expect("respond|")) for _ in range(count)} == set(attempts)
        for attempt in attempts:
            with udp_pair() as (granted, other):
                other.send(attempt.encode())
                daemon.send(ok_line(attempt), granted)
                assert other.recv(100) == b"seen"

    found: list[tuple[str, bytes]] = []

    async def run(daemon: Daemon) -> None:
        async with daemon.initiate(PEER, 40000) as attempt:

            async def send(token: str) -> None:
                assert token.startswith(attempt.id)
                attempt.deliver(token)

            connected = await attempt.connect(send)
        with connected.socket as hole:
            found.append((attempt.id, await hole.recv(100)))
            await hole.send(b"seen")

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon, trio.open_nursery() as nursery:
            for _ in range(count):
                nursery.start_soon(run, daemon)
    assert len(found) == count
    assert all(first.encode() == second for first, second in found)


async def test_a_cancelled_reader_leaves_its_place_to_the_next(tmp_path: Path) -> None:
    go = threading.Event()

    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|i1")
        daemon.expect("initiate|i2")
        daemon.expect("cancel|i1")
        go.wait(SCRIPT_TIMEOUT_S)
        daemon.send("error|i1|cancelled|by the application\nprogress|i2|1|udp|trying|-\n")
        assert daemon.rest() == ["cancel|i2"]

    async def wait_for_ever(daemon: Daemon, scope: trio.CancelScope) -> None:
        with scope:
            async with daemon.initiate(PEER, 40000) as attempt:
                await attempt.connect(nowhere)

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon, trio.open_nursery() as nursery:
            scope = trio.CancelScope()
            nursery.start_soon(wait_for_ever, daemon, scope)
            await trio.testing.wait_all_tasks_blocked()
            async with daemon.initiate(PEER, 40000) as second:

                async def stop_the_first() -> None:
                    await trio.testing.wait_all_tasks_blocked()
                    scope.cancel()
                    await trio.testing.wait_all_tasks_blocked()
                    go.set()

                nursery.start_soon(stop_the_first)
                assert await second.__anext__() == Trying(1, "udp")


async def test_a_cancelled_attempt_tells_the_daemon_and_closes_a_late_socket(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        daemon.expect(f"cancel|{attempt}")
        with udp_pair() as (granted, _):
            daemon.send(ok_line(attempt), granted)
        daemon.send(f"error|{attempt}|unknown-id|no such attempt\n")
        daemon.expect("probe|")
        daemon.send("error|p2|no-address|no STUN server: use --stun\n")
        assert daemon.rest() == []

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon:
            with no_descriptor_leaks():  # already while the connection goes on
                with trio.move_on_after(0.05) as scope:
                    async with daemon.initiate(PEER, 40000) as attempt:
                        await attempt.connect(nowhere)
                assert scope.cancelled_caught
                with pytest.raises(AttemptError, match="no-address"):
                    await daemon.probe("udp")


async def test_a_socket_that_arrived_but_was_not_fetched_is_closed_with_its_block(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|i1")
        daemon.expect("initiate|i2")
        with udp_pair() as (granted, _):
            daemon.send(ok_line("i1"), granted)
            daemon.send("progress|i2|1|udp|trying|-\n")
        assert daemon.rest() == ["cancel|i2"]

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with (
            Daemon.connect(path) as daemon,
            daemon.initiate(PEER, 40000),
            daemon.initiate(PEER, 40000) as second,
        ):
            assert await second.__anext__() == Trying(1, "udp")


async def test_connect_that_is_cancelled_after_success_leaves_no_socket(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        with udp_pair() as (granted, _):
            daemon.send(ok_line(id_of(daemon.expect("initiate|"))), granted)
        daemon.rest()

    class Stubborn:
        """Tokens of a channel that takes a while to close."""

        def __aiter__(self) -> Stubborn:
            return self

        async def __anext__(self) -> str:
            try:
                await trio.sleep_forever()
            finally:
                with trio.CancelScope(shield=True):
                    scope.cancel()
                    await trio.sleep(0.01)
            raise AssertionError

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon:
            with trio.CancelScope() as scope:
                async with daemon.initiate(PEER, 40000) as attempt:
                    await attempt.connect(nowhere, Stubborn())
            assert scope.cancelled_caught


async def test_errors_come_out_of_connect_as_they_are_not_in_groups(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.send(f"error|{id_of(daemon.expect('initiate|'))}|exhausted|tried all\n")
        daemon.send(f"progress|{id_of(daemon.expect('initiate|'))}|1|udp|relay|{OFFER}\n")
        daemon.expect("cancel|")
        daemon.expect("initiate|")
        daemon.rest()

    async def fail(token: str) -> None:
        raise LookupError(token)

    class FailingTokens:
        def __aiter__(self) -> FailingTokens:
            return self

        async def __anext__(self) -> str:
            raise KeyError("side channel")

    _, tokens = trio.open_memory_channel[str](0)
    with fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon:
            async with daemon.initiate(PEER, 40000) as attempt:
                with pytest.raises(AttemptError, match="exhausted: tried all"):
                    await attempt.connect(nowhere, tokens)
                with pytest.raises(RuntimeError, match="was over before"):
                    await attempt.connect(nowhere)
            async with daemon.initiate(PEER, 40000) as attempt:
                with pytest.raises(LookupError, match=OFFER):
                    await attempt.connect(fail, tokens)
            async with daemon.initiate(PEER, 40000) as attempt:
                with pytest.raises(KeyError, match="side channel"):
                    await attempt.connect(nowhere, FailingTokens())


async def test_when_the_daemon_dies_everyone_who_waits_is_told(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|")
        daemon.expect("initiate|")

    async def run(daemon: Daemon) -> None:
        async with daemon.initiate(PEER, 40000) as attempt:
            with pytest.raises(DaemonGoneError, match="punchd closed the connection"):
                await attempt.connect(nowhere)

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(run, daemon)
                nursery.start_soon(run, daemon)
            with pytest.raises(DaemonGoneError):
                await daemon.probe("udp")


async def test_leaving_the_connection_ends_the_waits_of_other_tasks(tmp_path: Path) -> None:
    async def run(daemon: Daemon) -> None:
        with pytest.raises(DaemonGoneError, match="closed by this program"):
            await daemon.probe("udp")

    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "socket", Conversation.greet_and_listen) as path,
    ):
        async with trio.open_nursery() as nursery, Daemon.connect(path) as daemon:
            nursery.start_soon(run, daemon)
            nursery.start_soon(run, daemon)
            await trio.testing.wait_all_tasks_blocked()


async def test_a_daemon_that_takes_no_more_requests_is_given_up(tmp_path: Path) -> None:
    stop = threading.Event()

    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|")
        stop.wait(SCRIPT_TIMEOUT_S)

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon, daemon.initiate(PEER, 40000) as attempt:
            for _ in range(5000):
                attempt.deliver("t" * 200)
            with pytest.raises(DaemonGoneError, match="takes no more requests"):
                await attempt.connect(nowhere)
            stop.set()


async def test_a_slow_daemon_still_gets_every_request_in_order(tmp_path: Path) -> None:
    count = 1200  # more than the socket takes at once, less than the buffer for the rest
    tokens = [f"{number:019d}" for number in range(count)]
    go = threading.Event()

    def script(daemon: Conversation) -> None:
        daemon.greet()
        attempt = id_of(daemon.expect("initiate|"))
        go.wait(SCRIPT_TIMEOUT_S)
        for token in tokens:
            assert daemon.read() == f"respond|{attempt}|{token}"
        daemon.send(f"error|{attempt}|exhausted|enough\n")

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with Daemon.connect(path) as daemon, daemon.initiate(PEER, 40000) as attempt:
            for token in tokens:
                attempt.deliver(token)
            go.set()
            with pytest.raises(AttemptError, match="enough"):
                await attempt.connect(nowhere)


async def test_an_untrusted_or_unwilling_daemon_is_refused(tmp_path: Path) -> None:
    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "one", Conversation.rest) as path,
        pytest.raises(UntrustedDaemonError),
    ):
        async with Daemon.connect(path, trusted_uids={4294967294}):
            pass
    with (
        no_descriptor_leaks(),
        fake_daemon(tmp_path / "two", lambda daemon: daemon.send("error|-|not-permitted|uid 1000\n")) as path,
        pytest.raises(RequestRefusedError, match="not-permitted"),
    ):
        async with Daemon.connect(path):
            pass


async def test_a_broken_answer_is_told_to_every_attempt_after_what_came_before_it(tmp_path: Path) -> None:
    def script(daemon: Conversation) -> None:
        daemon.greet()
        daemon.expect("initiate|i1")
        daemon.expect("initiate|i2")
        with udp_pair() as (granted, _):
            daemon.send(ok_line("i1") + ok_line("i2"), granted)

    with no_descriptor_leaks(), fake_daemon(tmp_path / "socket", script) as path:
        async with (
            Daemon.connect(path) as daemon,
            daemon.initiate(PEER, 40000) as first,
            daemon.initiate(PEER, 40000) as second,
        ):
            with pytest.raises(DaemonProtocolError, match="without its descriptor"):
                await second.connect(nowhere)
            connected = await first.__anext__()
            assert isinstance(connected, Connected)
            assert isinstance(connected.socket, TrioSocket)
            connected.socket.close()
