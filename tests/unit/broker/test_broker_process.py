"""`punchd-broker` as a process under a service manager: TLS, signals, draining, and what it writes to its log."""

from __future__ import annotations

import contextlib
import fcntl
import http.client
import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from tests.unit.broker.contract import check_answer
from tests.unit.broker.running import listener, secret_file
from tests.unit.broker.schema import check_server_message
from tests.unit.web.certificates import write_certificate

START_S = 60.0
OLD = "punch-test-secret-A-0123456789abcdef0123456789abcdef"
NEW = "punch-test-secret-B-fedcba9876543210fedcba9876543210"

# Its sockets become descriptors 3 and 4, as a service manager passes them.
ACTIVATE = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.environ.update(LISTEN_PID=str(os.getpid()), LISTEN_FDS="2", LISTEN_FDNAMES="api:metrics")
os.execv(sys.executable, [sys.executable, "-m", "punchd.cli.broker", *sys.argv[3:]])
"""


@dataclass(slots=True)
class Process:
    """A server that serves."""

    process: subprocess.Popen[bytes]
    notified: socket.socket
    log: Path
    port: int
    metrics: int
    context: ssl.SSLContext

    def ask(self, method: str, target: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        client = http.client.HTTPSConnection("localhost", self.port, context=self.context, timeout=START_S)
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {token}"}
        with closing(client):
            client.request(method, target, None if body is None else json.dumps(body), headers)
            answer = client.getresponse()
            text = answer.read()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            check_answer(method, target.partition("?")[0], answer.status, fields, text)
            assert answer.headers["Strict-Transport-Security"] == "max-age=31536000"
            return answer.status, json.loads(text)

    def udp_sockets(self) -> list[str]:
        """Lines of /proc/net about those that the process has."""
        own = {os.readlink(one) for one in Path(f"/proc/{self.process.pid}/fd").iterdir()}
        assert any(one.startswith("socket:") for one in own)
        tables = [table for kind in ("udp", "raw") for table in Path(f"/proc/{self.process.pid}/net").glob(f"{kind}*")]
        assert len(tables) >= 2
        lines = [line for table in tables for line in table.read_text().splitlines()[1:]]
        return [line for line in lines if f"socket:[{line.split()[9]}]" in own]

    def wait_for_log(self, words: str) -> None:
        deadline = time.monotonic() + START_S
        while words not in self.log.read_text():
            assert time.monotonic() < deadline, self.log.read_text()
            time.sleep(0.02)


@contextmanager
def server(folder: Path, *argv: str) -> Iterator[Process]:
    chain, key = write_certificate(folder, "first")
    secret = secret_file(folder, OLD)
    listening, metrics = listener(), listener()
    above = [fcntl.fcntl(sock, fcntl.F_DUPFD, 10) for sock in (listening, metrics)]
    options = ["--tls-cert", chain, "--tls-key", key, "--secret-file", secret, "--public-url", "https://localhost"]
    command = [sys.executable, "-c", ACTIVATE, *map(str, above), *map(str, options), "--log-level", "debug", *argv]
    context = ssl.create_default_context(cafile=str(chain))
    log = folder / "log"
    with (
        tempfile.TemporaryDirectory(prefix="punchd-notify-") as directory,
        closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notified,
        log.open("wb") as stderr,
    ):
        notified.bind(f"{directory}/notify")
        notified.settimeout(START_S)
        environment = os.environ | {"NOTIFY_SOCKET": f"{directory}/notify"}
        process = subprocess.Popen(command, pass_fds=above, stderr=stderr, env=environment)
        for fd in above:
            os.close(fd)
        ports = [sock.getsockname()[1] for sock in (listening, metrics)]
        listening.close()
        metrics.close()
        try:
            while b"READY=1" not in notified.recv(4096):
                pass
            yield Process(process, notified, log, ports[0], ports[1], context)
        finally:
            process.kill()
            process.wait(START_S)


def test_b_085_b_087_b_106_b_110_b_112_b_117_a_whole_life_over_tls_with_rotation_drain_and_a_silent_log(
    tmp_path: Path,
) -> None:
    config = tmp_path / "x.toml"
    config.write_text("[limits]\ndrain-seconds = 2\n")
    with contextlib.ExitStack() as clients, server(tmp_path, "--config", str(config)) as at:
        status, made = at.ask("POST", "/api/session", {"name": "show"})
        assert (status, made["ws"]) == (201, "wss://localhost/api/ws/show")
        token, admin = made["peerTokens"]["default"], made["token"]
        peers = []
        passphrases = set()
        for port in (5000, 6000):
            url = f"wss://localhost:{at.port}/api/ws/show?t={token}"
            client = connect(url, ssl=at.context, open_timeout=START_S, close_timeout=1)
            peers.append(clients.enter_context(client))
            peers[-1].send(json.dumps({"type": "register", "port": port, "meta": {"canary": "in-a-meta-0123456789"}}))
        for peer in peers:
            while "passphrase" not in (told := check_server_message(str(peer.recv(START_S)))):
                pass
            passphrases.add(told["passphrase"])
        assert len(passphrases) == 1
        assert at.udp_sockets() == []

        secret_file(tmp_path, NEW, OLD)
        write_certificate(tmp_path, "second")
        at.process.send_signal(signal.SIGHUP)
        at.wait_for_log("the secrets were read again")
        at.context = ssl.create_default_context(cafile=str(tmp_path / "chain.pem"))
        assert at.ask("GET", "/api/session/show", token=admin)[0] == 200  # over the new certificate, by the old key
        _, newer = at.ask("POST", "/api/session", {"name": "other"})
        secret_file(tmp_path, NEW)
        (tmp_path / "key.pem").write_text("nonsense")
        at.process.send_signal(signal.SIGHUP)
        at.wait_for_log("the old certificate stays in use")
        deadline = time.monotonic() + START_S
        while at.ask("GET", "/api/session/show", token=admin)[0] != 401:
            assert time.monotonic() < deadline
        assert at.ask("GET", "/api/session/other", token=newer["token"])[0] == 200

        metrics = http.client.HTTPConnection("127.0.0.1", at.metrics, timeout=START_S)
        metrics.request("GET", "/metrics")
        assert b"punch_sessions 2.0" in metrics.getresponse().read()
        metrics.close()

        at.process.send_signal(signal.SIGTERM)
        assert at.notified.recv(4096) == b"STOPPING=1"
        assert at.ask("GET", "/api/health") == (503, {"status": "draining", "version": "1.0.0"})
        assert at.ask("POST", "/api/session", {"name": "late"})[0] == 503
        for peer in peers:
            told = {}
            with contextlib.suppress(ConnectionClosed):
                while True:
                    told = check_server_message(str(peer.recv(START_S)))
            assert (told["code"], told["message"]) == ("SERVER_ERROR", "shutting down")
            assert peer.close_code == 1011
        assert at.process.wait(START_S) == 0
        said = at.log.read_text()
    canaries = [OLD, NEW, token, admin, *token[2:].split("."), *passphrases, "in-a-meta", "?t=", "Bearer", "5000"]
    assert [canary for canary in canaries if canary in said] == []
    assert "127.0.0.1:" not in said.replace(f"http 127.0.0.1:{at.port}", "").replace(f"127.0.0.1:{at.metrics}", "")
    for line in said.splitlines():
        assert json.loads(line)["logger"].startswith("punchd")


def test_b_110_b_111_nothing_older_than_tls_1_2_and_nothing_in_clear(tmp_path: Path) -> None:
    with server(tmp_path) as at:
        for version, is_fine in (
            (ssl.TLSVersion.TLSv1_1, False),
            (ssl.TLSVersion.TLSv1_2, True),
            (ssl.TLSVersion.TLSv1_3, True),
        ):
            context = ssl.create_default_context(cafile=str(tmp_path / "chain.pem"))
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)
                context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
                context.maximum_version = version
            context.set_ciphers("ALL:@SECLEVEL=0")
            with socket.create_connection(("127.0.0.1", at.port), START_S) as plain:
                try:
                    with context.wrap_socket(plain, server_hostname="localhost") as sock:
                        found = sock.version()
                except (ssl.SSLError, ConnectionError):
                    found = None
            assert (found is not None) is is_fine
        with socket.create_connection(("127.0.0.1", at.port), START_S) as sock:
            sock.sendall(b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n")
            data = b""
            with contextlib.suppress(ConnectionError):
                while more := sock.recv(4096):
                    data += more
        assert b"HTTP" not in data


def test_without_a_secret_file_it_says_that_tokens_end_with_it(tmp_path: Path) -> None:
    folder, log = tmp_path, tmp_path / "said"
    with closing(listener()) as free:
        port = free.getsockname()[1]
    with log.open("wb") as stderr:
        command = [sys.executable, "-m", "punchd.cli.broker", "--insecure-dev", "--listen", f"127.0.0.1:{port}"]
        empty = folder / "x.toml"
        empty.write_text("metrics = []\n[limits]\ndrain-seconds = 0\n")
        process = subprocess.Popen([*command, "--config", str(empty)], stderr=stderr)
        try:
            deadline = time.monotonic() + START_S
            while "serving" not in log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGHUP)
            while "there is no secret-file to read again" not in log.read_text():
                assert time.monotonic() < deadline
                time.sleep(0.02)
            process.send_signal(signal.SIGINT)
            assert process.wait(START_S) == 0
        finally:
            process.kill()
            process.wait(START_S)
    said = log.read_text()
    assert "signed with a secret that ends with this process" in said
    assert "Traceback" not in said
