"""From addresses and the service manager's descriptors to sockets."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from contextlib import ExitStack

import pytest

from punchd.errors import ConfigError, KernelError
from punchd.web import listen

SHOWS = """
import os
from punchd.errors import ConfigError
from punchd.web import listen
os.environ["LISTEN_PID"] = str(os.getpid())
try:
    found = listen.activated()
except ConfigError as error:
    print("ConfigError:", error)
else:
    for name, sockets in found.items():
        for item in sockets:
            print(name, item.fileno(), item.type.name, item.getsockname()[0], item.getblocking())
            item.close()
"""


def free_port(family: int = socket.AF_INET) -> int:
    with socket.socket(family) as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


def activated(sockets: list[socket.socket], names: str) -> str:
    """What a program finds that inherits `sockets` as descriptors 3, 4, ..."""
    with ExitStack() as high:
        fds = [high.enter_context(item.dup()).fileno() for item in sockets for _ in range(1)]
        moves = "".join(f"exec {20 + index}<&{fd}; " for index, fd in enumerate(fds))
        moves += "".join(f"exec {3 + index}<&{20 + index}; " for index in range(len(fds)))
        done = subprocess.run(
            ["/bin/bash", "-c", f'{moves}exec "$0" -W error -c "$1"', sys.executable, SHOWS],
            env={**os.environ, "LISTEN_FDS": str(len(fds)), "LISTEN_FDNAMES": names},
            pass_fds=fds,
            capture_output=True,
            text=True,
            check=True,
        )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(
    ("text", "families"),
    [
        ("127.0.0.1:{}", [socket.AF_INET]),
        ("[::1]:{}", [socket.AF_INET6]),
        ("*:{}", [socket.AF_INET, socket.AF_INET6]),
    ],
)
@pytest.mark.parametrize("kind", [socket.SOCK_STREAM, socket.SOCK_DGRAM])
def test_an_address_becomes_a_socket_of_its_family_only(text: str, families: list[int], kind: int) -> None:
    port = free_port()
    open_them = listen.tcp_listeners if kind == socket.SOCK_STREAM else listen.udp_sockets
    sockets = open_them([text.format(port)], "listen")
    try:
        assert [item.family for item in sockets] == families
        for item in sockets:
            assert item.type == kind
            assert item.getsockname()[1] == port
            assert not item.getblocking()
            assert not os.get_inheritable(item.fileno())
            if item.family == socket.AF_INET6:
                assert item.getsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY) == 1
            if kind == socket.SOCK_STREAM:
                assert item.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
                assert item.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
    finally:
        for item in sockets:
            item.close()


def test_a_name_becomes_all_of_its_addresses() -> None:
    port = free_port()
    sockets = listen.tcp_listeners([f"localhost:{port}"], "listen")
    addresses = {item.getsockname()[0] for item in sockets}
    for item in sockets:
        item.close()
    assert addresses
    assert addresses <= {"127.0.0.1", "::1"}


@pytest.mark.parametrize(
    "text", ["", "5025", ":5025", "localhost", "localhost:", "a:0", "a:70000", "::1:80", "*", "*:"]
)
def test_a_text_of_another_form_is_one_clear_line(text: str) -> None:
    with pytest.raises(ConfigError, match="listen: expected HOST:PORT, got "):
        listen.tcp_listeners([text], "listen")


def test_a_name_that_does_not_resolve_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fails)
    with pytest.raises(ConfigError, match=r"^listen: no\.invalid:80: Name or service not known$"):
        listen.tcp_listeners(["no.invalid:80"], "listen")


def test_an_address_that_is_taken_is_one_clear_line_and_nothing_stays_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        before = len(os.listdir("/proc/self/fd"))
        port = taken.getsockname()[1]
        words = f"^listen: 127.0.0.1:{port}: cannot listen there: Address already in use$"
        with pytest.raises(KernelError, match=words):
            listen.tcp_listeners([f"127.0.0.1:{free_port()}", f"127.0.0.1:{port}"], "listen")
        assert len(os.listdir("/proc/self/fd")) == before


def test_a_host_without_ipv6_listens_on_ipv4_for_both(monkeypatch: pytest.MonkeyPatch) -> None:
    real = socket.socket

    def without_ipv6(family: int, kind: int) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, os.strerror(errno.EAFNOSUPPORT))
        return real(family, kind)

    port = free_port()
    monkeypatch.setattr(socket, "socket", without_ipv6)
    [only] = listen.tcp_listeners([f"*:{port}"], "listen")
    only.close()
    assert only.family == socket.AF_INET
    with pytest.raises(KernelError, match="Address family not supported"):
        listen.tcp_listeners([f"[::1]:{port}"], "listen")


def test_the_service_managers_sockets_come_by_their_names() -> None:
    with (
        socket.create_server(("127.0.0.1", 0)) as http,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as http6,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as pulses,
    ):
        pulses.bind(("127.0.0.1", 0))
        assert activated([http, http6, pulses], "http:http:pulses").splitlines() == [
            "http 3 SOCK_STREAM 127.0.0.1 False",
            "http 4 SOCK_STREAM ::1 False",
            "pulses 5 SOCK_DGRAM 127.0.0.1 False",
        ]
        assert activated([http], "") == " 3 SOCK_STREAM 127.0.0.1 False\n"


def test_a_descriptor_of_another_kind_is_one_clear_line() -> None:
    wanted = "ConfigError: descriptor 3 from the service manager: expected a listening TCP socket or a UDP socket, got "
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as deaf:
        assert activated([deaf], "http") == wanted + "AF_INET SOCK_STREAM that does not listen\n"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as unix:
        assert activated([unix], "http") == wanted + "AF_UNIX SOCK_DGRAM that does not listen\n"


def test_without_a_service_manager_there_are_none() -> None:
    assert listen.activated({}) == {}
    assert listen.activated({"LISTEN_PID": "1", "LISTEN_FDS": "1"}) == {}
