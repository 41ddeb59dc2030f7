"""Descriptors that applications send: which are taken, what is said of the others, and that none is kept."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from punchd.control.incoming import asks_for_socket
from tests.unit.daemon_fixture import PEER, RunningServer, descriptors, offer, server
from tests.unit.passing import INITIATE, TAKES, bound, send, udp

UID = os.geteuid()
as_root = pytest.mark.skipif(UID != 0, reason="needs root")


@pytest.fixture(name="running")
async def _running(tmp_path: Path) -> AsyncIterator[RunningServer]:
    async with server(tmp_path, TAKES) as running:
        yield running


def connected(kind: int) -> socket.socket:
    """To itself, which either protocol can."""
    found = bound(socket.socket(socket.AF_INET, kind))
    found.connect(found.getsockname())
    return found


def listening() -> socket.socket:
    found = bound(socket.socket())
    found.listen()
    return found


def of_another_user() -> socket.socket:
    os.seteuid(54321)
    try:
        return udp()
    finally:
        os.seteuid(0)


def of_another_network() -> socket.socket:
    made: list[socket.socket] = []

    def make() -> None:
        _unshare_network()
        made.append(udp())

    thread = threading.Thread(target=make)
    thread.start()
    thread.join()
    return made[0]


def _unshare_network() -> None:
    import ctypes

    assert ctypes.CDLL(None).unshare(0x40000000) == 0


def pipe() -> int:
    read, write = os.pipe()
    os.close(write)
    return read


HOSTILE: list[tuple[str, Callable[[], int | socket.socket], str, str]] = [
    ("pipe", pipe, "bad-option", "a pipe"),
    ("file", lambda: os.open(__file__, os.O_RDONLY), "bad-option", "a file"),
    ("directory", lambda: os.open("/", os.O_RDONLY | os.O_DIRECTORY), "bad-option", "a directory"),
    ("device", lambda: os.open("/dev/null", os.O_RDWR), "bad-option", "a device"),
    ("event", lambda: os.eventfd(0), "bad-option", "another descriptor"),
    ("path only", lambda: os.open("/", os.O_PATH), "bad-option", "a directory"),
    ("unix", lambda: socket.socket(socket.AF_UNIX), "bad-option", "another kind of socket"),
    ("netlink", lambda: socket.socket(socket.AF_NETLINK, socket.SOCK_RAW), "bad-option", "another kind of socket"),
    ("listening", listening, "bad-option", "one that listens"),
    ("connected UDP", lambda: connected(socket.SOCK_DGRAM), "bad-option", "one that is connected"),
    ("connected TCP", lambda: connected(socket.SOCK_STREAM), "bad-option", "one that is connected"),
    ("bound TCP", lambda: bound(socket.socket()), "bad-option", "a TCP socket that is bound; name its port as lport"),
    ("TCP for UDP", socket.socket, "bad-option", "sock: expected a socket for UDP, got one for TCP"),
    ("IPv6 for IPv4", lambda: udp(socket.AF_INET6), "bad-option", "expected an IPv4 socket, got one of IPv6"),
    ("bound IPv6", lambda: bound(udp(socket.AF_INET6), "::"), "bad-option", "takes IPv4, too; set IPV6_V6ONLY"),
]
PRIVILEGED: list[tuple[str, Callable[[], int | socket.socket], str, str]] = [
    ("raw", lambda: socket.socket(socket.AF_INET, socket.SOCK_RAW, 1), "bad-option", "another kind of socket"),
    ("packets", lambda: socket.socket(socket.AF_PACKET, socket.SOCK_RAW), "bad-option", "another kind of socket"),
    ("low port", lambda: bound(udp(), port=1023), "bad-port", "expected a port from 1024 on, got 1023"),
    ("another user's", of_another_user, "bad-option", "one that uid 54321 has made; you are uid 0"),
    ("another network's", of_another_network, "bad-option", "one of another network namespace"),
]


@contextmanager
def held(found: int | socket.socket) -> Iterator[int]:
    """Its descriptor; closed at the end."""
    if isinstance(found, socket.socket):
        with found:
            yield found.fileno()
        return
    try:
        yield found
    finally:
        os.close(found)


@pytest.mark.parametrize(
    ("make", "code", "text"),
    [
        *(pytest.param(*row[1:], id=row[0]) for row in HOSTILE),
        *(pytest.param(*row[1:], id=row[0], marks=as_root) for row in PRIVILEGED),
    ],
)
async def test_what_is_no_unused_socket_of_the_users_own_is_refused_in_one_line_and_closed(
    running: RunningServer, make: Callable[[], int | socket.socket], code: str, text: str
) -> None:
    with await running.connect() as application, held(make()) as fd:
        await application.send("cancel|z")
        await application.line()
        before = descriptors()
        for _ in range(3):
            await send(application, INITIATE + "\n", fd)
            answer = await application.line()
            assert answer.startswith(f"error|a|{code}|sock: expected ")
            assert text in answer
        await application.send("cancel|z")
        assert await application.line() == "error|z|unknown-id|no attempt z is running", "the connection goes on"
        await running.settle(lambda: descriptors() == before)


@pytest.mark.parametrize("make", [udp, lambda: bound(udp()), lambda: bound(udp(), "")], ids=["new", "bound", "any"])
@pytest.mark.parametrize("is_blocking", [True, False])
async def test_a_udp_socket_is_taken_bound_and_given_back_as_it_was(
    running: RunningServer, make: Callable[[], socket.socket], is_blocking: bool
) -> None:
    with await running.connect() as application, make() as own:
        await application.send("cancel|z")
        await application.line()
        own.setblocking(is_blocking)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 9))
        where = own.getsockname()[1]
        before = descriptors()
        await send(application, INITIATE + "\n", own.fileno())
        await application.until_relay("a")
        assert where in (0, own.getsockname()[1])
        assert own.getsockname()[1] >= 1024
        assert not os.get_blocking(own.fileno())
        assert own.getsockopt(socket.SOL_SOCKET, socket.SO_LINGER) == 0
        await application.send("cancel|a")
        await application.until("error|a|cancelled")
        await running.settle(lambda: descriptors() == before)
        assert os.get_blocking(own.fileno()) is is_blocking
        own.sendto(b"still usable", ("127.0.0.1", own.getsockname()[1]))


async def test_a_responder_takes_one_too(running: RunningServer) -> None:
    with await running.connect() as application, udp() as own:
        await send(application, f"respond|b|{offer('bound')}|sock=1\n", own.fileno())
        await application.until_relay("b")
        assert own.getsockname()[1]


@pytest.mark.parametrize(
    ("options", "code"),
    [("lport=40123", "bad-port"), ("local=127.0.0.2", "bad-address"), ("lport=0", None), ("local=127.0.0.1", None)],
)
async def test_what_the_line_says_of_the_port_has_to_agree_with_the_socket(
    running: RunningServer, options: str, code: str | None
) -> None:
    with await running.connect() as application, bound(udp()) as own:
        await send(application, f"{INITIATE};{options}\n", own.fileno())
        answer = await application.line()
        assert answer.startswith(f"error|a|{code}|" if code else "progress|a|1|bound|trying")


async def test_a_technique_of_another_protocol_is_unsupported_and_gets_no_socket_of_the_daemons(
    running: RunningServer,
) -> None:
    """In a sequence; `bound` is for UDP, and asks for a port; the scripted TCP techniques do not."""
    with await running.connect() as application, udp() as own:
        await send(application, INITIATE.replace("bound", "breaks,bound") + "\n", own.fileno())
        await application.until("progress|a|2|bound|trying")
        await application.until_relay("a")


# --- against the rule -----------------------------------------------------------------------------------------------


async def test_no_descriptor_is_one_line(running: RunningServer) -> None:
    with await running.connect() as application:
        await application.send(INITIATE, "cancel|z")
        assert await application.line() == "error|a|bad-option|sock: no descriptor came with this line"
        assert (await application.line()).startswith("error|z|unknown-id")


@pytest.mark.parametrize("count", [2, 3, 253])
async def test_several_descriptors_at_once_end_the_connection(running: RunningServer, count: int) -> None:
    with await running.connect() as application, udp() as own:
        await application.send("cancel|z")
        await application.line()
        before = descriptors()
        await send(application, INITIATE + "\n", *[own.fileno()] * count)
        assert await application.rest() == ["error|-|bad-message|more descriptors came than lines with sock=1 for them"]
        await running.settle(lambda: descriptors() < before)


async def test_a_descriptor_that_no_line_asks_for_ends_the_connection(running: RunningServer) -> None:
    with await running.connect() as application, udp() as own:
        await send(application, "cancel|z\n", own.fileno())
        assert await application.rest() == [
            "error|z|unknown-id|no attempt z is running",
            "error|-|bad-message|a descriptor came, and no line with sock=1 for it",
        ]


@pytest.mark.parametrize(
    "line",
    [
        INITIATE.replace(PEER, "127.0.0.1"),
        INITIATE.replace("bound", "nosuch"),
        INITIATE.replace("sock=1", "sock=2"),
        INITIATE + ";sock=1",
        "respond|a|notatoken|sock=1",
    ],
)
async def test_a_wrong_line_takes_its_descriptor_with_it(running: RunningServer, line: str) -> None:
    with await running.connect() as application, udp() as own:
        await application.send("cancel|z")
        await application.line()
        before = descriptors()
        await send(application, line + "\n", own.fileno())
        assert (await application.line()).startswith("error|a|bad-")
        await running.settle(lambda: descriptors() == before)
        await send(application, INITIATE + "\n", own.fileno())
        await application.until_relay("a")


async def test_an_id_that_is_running_takes_no_descriptor(running: RunningServer) -> None:
    with await running.connect() as application, udp() as own, udp() as other:
        await send(application, INITIATE + "\n", own.fileno())
        await application.until_relay("a")
        before = descriptors()
        await send(application, INITIATE + "\n", other.fileno())
        assert (await application.line()).startswith("error|a|duplicate-id|")
        await running.settle(lambda: descriptors() == before)
        assert other.getsockname()[1] == 0


async def test_a_line_that_comes_in_pieces_keeps_its_descriptor(running: RunningServer) -> None:
    with await running.connect() as application, udp() as own:
        await application.send("cancel|y")
        await send(application, INITIATE[:5], own.fileno())
        await application.line()
        await send(application, INITIATE[5:] + "\ncancel|z\n")
        await application.until_relay("a")


async def test_two_lines_with_a_descriptor_each_keep_them_apart(running: RunningServer) -> None:
    with await running.connect() as application, bound(udp()) as one, bound(udp()) as two:
        for name, own in (("a", one), ("b", two)):
            line = INITIATE.replace("|a|", f"|{name}|") + f";lport={own.getsockname()[1]}\n"
            await send(application, line, own.fileno())
        await application.until_relay("a")
        await application.until_relay("b")


@pytest.mark.parametrize("data", [INITIATE + "\n", INITIATE, "i", "cancel|z\n"])
async def test_an_application_that_is_gone_leaves_no_descriptor(running: RunningServer, data: str) -> None:
    before = descriptors()
    with await running.connect() as application, udp() as own:
        await send(application, data, own.fileno())
    await running.settle(lambda: descriptors() == before)


async def test_by_default_no_socket_is_taken(tmp_path: Path) -> None:
    async with server(tmp_path) as running:
        with await running.connect() as application, udp() as own:
            await send(application, INITIATE + "\n", own.fileno())
            answer = "error|a|not-permitted|sock: this daemon takes no sockets of applications (accept-sockets)"
            assert await application.line() == answer


CHUNKS = st.lists(
    st.tuples(
        st.sampled_from(["", "initiate|", "cancel|z\n", "x\n", "\n", INITIATE + "\n", INITIATE, "|sock=1\n", "sock="]),
        st.integers(0, 3),
    ),
    max_size=8,
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(CHUNKS)
def test_whatever_comes_in_whatever_pieces_nothing_is_kept_and_others_are_served(
    tmp_path_factory: pytest.TempPathFactory, chunks: list[tuple[str, int]]
) -> None:
    async def play() -> None:
        async with server(tmp_path_factory.mktemp("s"), TAKES) as running:
            before = descriptors()
            with await running.connect() as application, udp() as own:
                with suppress(BrokenPipeError, ConnectionResetError):
                    for data, count in chunks:
                        await send(application, data or "\n", *[own.fileno()] * count)
                with await running.connect() as other:
                    await other.send("hello|1")
                    assert (await other.line()).startswith("ok|-|hello|1|")
            await running.settle(lambda: descriptors() <= before)

    trio.run(play)


@given(st.binary(max_size=60))
def test_any_bytes_can_be_asked_whether_they_ask_for_a_socket(line: bytes) -> None:
    assert asks_for_socket(line) in (True, False)
    assert not asks_for_socket(b"cancel|" + line)
