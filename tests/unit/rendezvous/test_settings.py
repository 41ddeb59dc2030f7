"""Every knob of the rendezvous server, and its command line: what they take and what they refuse, in one line."""

from __future__ import annotations

import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.cli import rendezvous as cli
from punchd.errors import ConfigError
from punchd.knobs import key
from punchd.rendezvous import service
from punchd.rendezvous.settings import Limits, Settings, Timing, build, check, parse
from punchd.web import listen
from tests.unit.web.certificates import write_certificate

WHERE = "/etc/punchd-rendezvous.toml"
RIGHT: list[tuple[str, str, object]] = [
    ("http", '["*:80", "[::1]:81", "name.example:82"]', ("*:80", "[::1]:81", "name.example:82")),
    ("udp", '["192.0.2.1:5024"]', ("192.0.2.1:5024",)),
    ("stun", "[]", ()),
    ("metrics", "[]", ()),
    ("ipv6", "false", False),
    ("tls-cert", '"/c"', "/c"),
    ("tls-key", '"/k"', "/k"),
    ("insecure", "true", True),
    ("trusted-proxies", '["127.0.0.1", "2001:DB8::1"]', ("127.0.0.1", "2001:db8::1")),
    ("store", '"memory"', "memory"),
    ("store", '"redis://[::1]:6379/0"', "redis://[::1]:6379/0"),
    ("on-address-change", '"reverify"', "reverify"),
    ("require-same-ip", "true", True),
    ("log-level", '"debug"', "debug"),
    ("log-format", '"text"', "text"),
]
PLACES = ("http", "udp", "stun", "metrics")
WRONG = [
    *((name, text) for name in PLACES for text in ('"*:80"', '["80"]', '["*:0"]', '["a:65536"]', "[1]")),
    *((name, text) for name in ("ipv6", "insecure", "require-same-ip") for text in ("1", '"true"', "[]")),
    *((name, text) for name in ("tls-cert", "tls-key") for text in ('""', "1", '["x"]')),
    *(("trusted-proxies", text) for text in ('"127.0.0.1"', '["localhost"]', '["10.0.0.0/8"]', "[1]")),
    *(("store", text) for text in ('"disk"', "1", '""', '["memory"]', '"http://x"')),
    *(("on-address-change", text) for text in ('"refuse"', "true", "[]")),
    *(("log-level", text) for text in ('"loud"', "1")),
    *(("log-format", text) for text in ('"xml"', "1")),
    *((name, text) for name in ("timing", "limits") for text in ("1", "[]", "{ nonsense = 1 }")),
]  # fmt: skip


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert message.isprintable()
    return message


def test_the_tables_cover_every_knob() -> None:
    knobs = {key(one.name) for one in fields(Settings)}
    assert {name for name, *_ in WRONG} == knobs
    assert {name for name, *_ in RIGHT} == knobs - {"timing", "limits"}


@pytest.mark.parametrize(("name", "text", "value"), RIGHT)
def test_a_right_value_is_taken(name: str, text: str, value: object) -> None:
    found = parse(f"{name} = {text}".encode(), WHERE)
    assert getattr(found, name.replace("-", "_")) == value
    changed = [one.name for one in fields(Settings) if getattr(found, one.name) != getattr(Settings(), one.name)]
    assert changed in ([name.replace("-", "_")], [])


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_knob(name: str, text: str) -> None:
    message = refusal(f"{name} = {text}")
    assert message.startswith(f"{WHERE}: {name}: ")
    assert "expected" in message or "unknown key nonsense" in message


@pytest.mark.parametrize("table", [Timing, Limits])
def test_each_number_has_a_range_that_is_kept(table: Any) -> None:
    name = table.__name__.lower()
    for one in fields(table):
        least, most = one.metadata["least"], one.metadata["most"]
        assert least <= getattr(table(), one.name) <= most
        for value in (least, most):
            found = getattr(parse(f"[{name}]\n{key(one.name)} = {value}".encode(), WHERE), name)
            assert getattr(found, one.name) == value
        for value in (least - 1, most + 1, "true", "1.5"):
            assert f"{name}: {key(one.name)}: expected a whole number" in refusal(
                f"[{name}]\n{key(one.name)} = {value}"
            )


@pytest.mark.parametrize(
    ("wrong", "near"), [("htpp", "http"), ("tls_cert", "tls-cert"), ("on-address-chnage", "on-address-change")]
)
def test_an_unknown_key_is_refused_and_the_nearest_one_named(wrong: str, near: str) -> None:
    assert refusal(f'{wrong} = "x"') == f"{WHERE}: unknown key {wrong}; did you mean {near}?"


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_stands_in_a_file_is_settings_or_one_clear_error(data: bytes) -> None:
    try:
        parse(data, WHERE)
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert message.startswith(WHERE)


@pytest.mark.parametrize(
    ("table", "is_fine"),
    [
        ({}, False),
        ({"http": ["192.0.2.1:80"]}, False),
        ({"http": ["127.0.0.1:80", "*:80"]}, False),
        ({"http": ["rendezvous.example:80"]}, False),
        ({"http": ["127.0.0.1:80", "[::1]:80", "localhost:80", "127.9.9.9:80"]}, True),
        ({"insecure": True}, True),
        ({"tls-cert": "/c", "tls-key": "/k"}, True),
        ({"tls-cert": "/c", "insecure": True}, False),
        ({"http": [], "insecure": True}, False),
        ({"udp": [], "insecure": True}, False),
    ],
)
def test_d_19_plain_http_is_for_loopback_or_on_demand(table: dict[str, object], is_fine: bool) -> None:
    settings = build(table, WHERE)
    if is_fine:
        check(settings)
    else:
        with pytest.raises(ConfigError, match="expected"):
            check(settings)


def test_d_18_without_ipv6_every_address_is_every_ipv4_address() -> None:
    settings = Settings(ipv6=False)
    assert settings.listening(settings.http) == ("0.0.0.0:5025",)
    assert settings.listening(("[::1]:1",)) == ("[::1]:1",)
    assert Settings().listening(Settings().http) == ("*:5025",)


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "attribute", "value"),
    [
        (("--http", "127.0.0.1:1", "--http", "[::1]:1"), "http", ("127.0.0.1:1", "[::1]:1")),
        (("--udp", "*:1"), "udp", ("*:1",)),
        (("--stun", "192.0.2.1:1", "--stun", "192.0.2.2:1"), "stun", ("192.0.2.1:1", "192.0.2.2:1")),
        (("--metrics", "[::1]:1"), "metrics", ("[::1]:1",)),
        (("--store", "redis://x"), "store", "redis://x"),
        (("--log-level", "error"), "log_level", "error"),
        (("--log-format", "text"), "log_format", "text"),
        (("--insecure", "--http", "*:1"), "insecure", True),
        (("--tls-cert", "/a", "--tls-key", "/b"), "tls_cert", "/a"),
        (("--tls-cert", "/a", "--tls-key", "/b"), "tls_key", "/b"),
    ],
)
def test_an_option_sets_its_knob_and_wins_over_the_file(
    argv: tuple[str, ...], attribute: str, value: object, tmp_path: Path
) -> None:
    file = tmp_path / "x.toml"
    file.write_text(
        'insecure = false\nhttp = ["127.0.0.1:9"]\nudp = ["*:9"]\nlog-level = "debug"\n[limits]\nclients = 7\n'
    )
    found = cli.settings(cli.arguments().parse_args([*argv, "--config", str(file)]))
    assert getattr(found, attribute) == value
    assert found.limits.clients == 7


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ((), "http *:5025: expected tls-cert and tls-key, or a loopback address"),
        (("--http", "x"), "command line: http: expected HOST:PORT, got 'x'"),
        (("--tls-cert", "/x", "--insecure"), "tls-cert and tls-key: expected both or none"),
        (("--tls-cert", "/nowhere/c", "--tls-key", "/nowhere/k"), "certificate: /nowhere/c: No such file"),
        (("--config", "/nowhere/x.toml"), "/nowhere/x.toml: No such file or directory"),
        (("--store", "disk"), "command line: store: expected memory"),
        (("--log-level", "two\nlines"), "command line: log-level: expected one of"),
    ],
)
def test_what_it_cannot_start_with_is_one_line_and_78(
    argv: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for checking in (True, False):
        assert cli.main([*argv, *(["--check-config"] if checking else [])]) == 78
        captured = capsys.readouterr()
        assert captured.out == ""
        [line] = captured.err.splitlines()
        assert line.startswith(f"punchd-rendezvous: {text}")


def test_right_settings_are_said_to_be_right_and_nothing_is_opened(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert cli.main(["--http", f"127.0.0.1:{taken.getsockname()[1]}", "--check-config"]) == 0
    assert capsys.readouterr() == ("punchd-rendezvous: the settings are right\n", "")


def test_a_socket_named_metrics_serves_those_and_others_what_they_are_for(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as http, socket.create_server(("127.0.0.1", 0)) as metrics:
        monkeypatch.setattr(listen, "activated", lambda: {"web": [http], "metrics": [metrics]})
        udp = f"127.0.0.1:{free_port()}"
        sockets = service.open_sockets(Settings(http=("127.0.0.1:1",), udp=(udp,), stun=(), metrics=("127.0.0.1:1",)))
        assert (sockets.http, sockets.metrics, len(sockets.udp)) == ([http], [metrics], 1)
        sockets.close()


def test_a_wrong_command_line_is_one_line_and_2(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.main(["--nonsense"])
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("punchd-rendezvous: ")


# --- the process -----------------------------------------------------------------------------------------------------


def free_port() -> int:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


@contextmanager
def process(port: int, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A server on loopback that serves, and is killed at the end if it is still there."""
    udp = free_port()
    command = [
        sys.executable,
        "-m",
        "punchd.cli.rendezvous",
        "--http",
        f"127.0.0.1:{port}",
        "--udp",
        f"127.0.0.1:{udp}",
    ]
    command += ["--stun", f"127.0.0.1:{free_port()}", "--metrics", f"127.0.0.1:{free_port()}", *arguments]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as running:
        try:
            assert running.stderr is not None
            assert '"serving ' in running.stderr.readline()
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_it_with_0_though_a_client_is_connected(number: signal.Signals) -> None:
    port = free_port()
    with process(port) as running, socket.create_connection(("127.0.0.1", port)) as client:
        client.settimeout(10)
        running.send_signal(number)
        assert client.recv(100) == b""
        assert running.wait(20) == 0


def test_a_port_that_is_taken_is_one_line_and_78() -> None:
    port = free_port()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        command = [sys.executable, "-m", "punchd.cli.rendezvous", "--http", f"127.0.0.1:{port}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 78
    assert done.stderr.splitlines() == [
        f"punchd-rendezvous: http: 127.0.0.1:{port}: cannot listen there: Address already in use"
    ]


def common_name(port: int, folder: Path) -> bytes:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    with context.wrap_socket(socket.create_connection(("127.0.0.1", port))) as client:
        client.sendall(b"GET /health HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        assert client.recv(20).startswith(b"HTTP/1.1 200")
        shown = client.getpeercert(binary_form=True)
    assert shown is not None
    return b"first" if b"first" in shown else b"second" if b"second" in shown else b""


def test_d_19_sighup_takes_a_new_certificate_and_a_bad_one_changes_nothing(tmp_path: Path) -> None:
    port = free_port()
    chain, own_key = write_certificate(tmp_path, "first")
    with process(port, "--tls-cert", str(chain), "--tls-key", str(own_key)) as running:
        assert running.stderr is not None
        assert common_name(port, tmp_path) == b"first"
        chain.write_text("nonsense")
        running.send_signal(signal.SIGHUP)
        assert "the old certificate stays in use" in running.stderr.readline()
        assert common_name(port, tmp_path) == b"first"
        write_certificate(tmp_path, "second")
        running.send_signal(signal.SIGHUP)
        assert "were read again" in running.stderr.readline()
        assert common_name(port, tmp_path) == b"second"
        running.terminate()
        assert running.wait(20) == 0


def test_it_tells_the_service_manager_when_it_is_ready_and_when_it_stops(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager, pytest.MonkeyPatch.context() as patch:
        manager.bind(str(tmp_path / "notify"))
        manager.settimeout(20)
        patch.setitem(os.environ, "NOTIFY_SOCKET", str(tmp_path / "notify"))
        with process(free_port()) as running:
            assert manager.recv(100) == b"READY=1"
            running.terminate()
            assert manager.recv(100) == b"STOPPING=1"
            assert running.wait(20) == 0


ACTIVATED = """
import fcntl, os, sys
for target, fd in enumerate([fcntl.fcntl(int(fd), fcntl.F_DUPFD, 50) for fd in sys.argv[1:3]], 3):
    os.dup2(fd, target)
os.environ["LISTEN_PID"] = str(os.getpid())
os.execv(sys.executable, [sys.executable, "-m", "punchd.cli.rendezvous", *sys.argv[3:]])
"""


@pytest.mark.parametrize(("address", "code"), [("127.0.0.1", 0), ("0.0.0.0", 78)])  # noqa: S104
def test_sockets_of_the_service_manager_are_used_and_d_19_holds_for_them(address: str, code: int) -> None:
    with socket.socket() as http, socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as udp:
        for sock in (http, udp):
            sock.bind((address, 0))
        http.listen()
        fds = (http.fileno(), udp.fileno())
        command = [sys.executable, "-c", ACTIVATED, *map(str, fds), "--http", "127.0.0.1:1", "--udp", "127.0.0.1:1"]
        command += ["--stun", f"127.0.0.1:{free_port()}", "--metrics", f"127.0.0.1:{free_port()}"]
        environment = {**os.environ, "LISTEN_FDS": "2"}
        with subprocess.Popen(command, env=environment, pass_fds=fds, stderr=subprocess.PIPE, text=True) as running:
            assert running.stderr is not None
            line = running.stderr.readline()
            if code == 0:
                assert f"http 127.0.0.1:{http.getsockname()[1]}, udp 127.0.0.1:{udp.getsockname()[1]}" in line
                running.terminate()
            else:
                assert "from the service manager: expected tls-cert or insecure" in line
            assert running.wait(20) == code
