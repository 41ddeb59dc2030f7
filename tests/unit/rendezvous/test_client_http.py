"""What else may answer where a rendezvous server should: a web server, garbage, silence, a stranger's certificate."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from punchd.rendezvous.client import (
    InsecureError,
    NotRendezvousError,
    Rendezvous,
    RendezvousError,
    UnreachableError,
)
from punchd.rendezvous.client_requests import server
from punchd.web import client_connection, client_http, client_url
from punchd.web.client_http import HttpClient
from tests.unit.rendezvous.client_parts import PATIENCE_S, place, read_request, server_tls, tcp_server
from tests.unit.web.certificates import write_certificate

GOOD = b'{"client_id":"%s","private_id":"%s","timestamp":1700000000,"ok":true}' % (b"ab" * 16, b"cd" * 32)
HTML = b"<html>Welcome to nginx!</html>"


def response(body: bytes, status: bytes = b"200 OK", fields: bytes = b"Content-Type: application/json\r\n") -> bytes:
    return b"HTTP/1.1 %s\r\n%sContent-Length: %d\r\n\r\n%s" % (status, fields, len(body), body)


def answering(data: bytes) -> Callable[[trio.SocketStream], Any]:
    """Says that to whatever it is asked, and is done."""

    async def serve(stream: trio.SocketStream) -> None:
        await read_request(stream)
        await stream.send_all(data)

    return serve


async def failure(url: str, **more: Any) -> RendezvousError:
    """Why a client cannot be opened: one line that names the server."""
    with trio.fail_after(PATIENCE_S), pytest.raises(RendezvousError) as caught:
        async with Rendezvous.open(url, udp=("127.0.0.1", 9), **more):
            pass
    message = str(caught.value)
    assert message.startswith(f"rendezvous server {url}: ")
    assert message.isprintable()
    assert len(message) < 400
    return caught.value


@pytest.mark.parametrize(
    ("answer", "kind", "says"),
    [
        (response(HTML, b"404 Not Found", b"Content-Type: text/html\r\n"), NotRendezvousError,
         "POST /register: expected JSON, got status 404 ('text/html'): is this a rendezvous server?"),
        (response(HTML), NotRendezvousError, "expected JSON, got status 200"),
        (response(b"", b"301 Moved", b"Location: https://x/\r\n"), NotRendezvousError,
         "301 ('no content type'), location 'https://x/'"),
        (response(b"{}"), NotRendezvousError, "client_id: expected 32 hexadecimal digits"),
        (response(GOOD.replace(b"cd", b"c")), NotRendezvousError, "private_id: expected 64 hexadecimal digits"),
        (response(GOOD.replace(b"1700000000", b"-1")), NotRendezvousError, "timestamp: expected a number"),
        (response(b"[" * 100_000), NotRendezvousError, "expected JSON"),
        (response(b"x" * (client_connection.BODY_BYTES + 1)), NotRendezvousError, "at most 1048576 bytes, got more"),
        (response(HTML, b"502 Bad Gateway", b""), UnreachableError, "got a proxy's status 502"),
        (response(b'{"ok":false,"error":"OOPS","message":"a\\u001b[31mb\\n"}', b"400 Bad"), RendezvousError,
         "refused: a [31mb  (400 OOPS)"),
        (b"SSH-2.0-OpenSSH_9.2\r\n", NotRendezvousError,
         "expected HTTP, got b'SSH-2.0-OpenSSH_9.2\\r'; maybe it is https://"),
        (b"\x15\x03\x01\x00\x02\x02\x46", NotRendezvousError, "expected HTTP, got b'\\x15\\x03\\x01"),
        (b"HTTP/1.1 abc\r\n\r\n", NotRendezvousError, "expected HTTP, got illegal"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", NotRendezvousError, "Content-Length"),
        (b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000, NotRendezvousError, "expected HTTP"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nshort", UnreachableError, "got the end of the connection"),
        (b"HTTP/1.1 200", UnreachableError, "got the end of the connection"),
        (b"", UnreachableError, "expected an answer, got the end of the connection"),
    ],
)  # fmt: skip
async def test_what_is_no_rendezvous_server_is_told_in_one_line(
    answer: bytes, kind: type[RendezvousError], says: str
) -> None:
    async with tcp_server(answering(answer)) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert isinstance(error, kind)
    assert says in str(error)


def heads() -> st.SearchStrategy[bytes]:
    """Almost HTTP."""
    lines = st.sampled_from(
        [b"HTTP/1.1 200 OK", b"HTTP/1.0 200", b"HTTP/1.1 100 Continue", b"HTTP/1.1 101 x", b"HTTP/1.1 204 x", b"\xff",
         b"Content-Length: 4", b"Content-Length: -1", b"Transfer-Encoding: chunked", b"Connection: close", b"a:b",
         b" c", b"", b"{}", b"4", b"0", b"FFFFFFFFFFFFFFFFF", b"retry-after: 9"]
    )  # fmt: skip
    return st.lists(lines, max_size=12).map(lambda some: b"HTTP/1.1 200 OK\r\n" + b"\r\n".join(some))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.one_of(heads(), st.binary(max_size=60), st.binary(max_size=60).map(lambda rest: b"HTTP/1.1 " + rest)))
def test_whatever_bytes_come_back_the_end_is_an_answer_or_one_of_our_errors(data: bytes) -> None:
    async def run() -> None:
        async with tcp_server(answering(data)) as port:
            client = HttpClient(server(client_url.parse(f"http://127.0.0.1:{port}", "rendezvous URL")), None)
            with trio.fail_after(PATIENCE_S):
                complaint = ""
                try:
                    await client.ask("GET", "/x")
                except RendezvousError as error:
                    complaint = str(error)
            client.close()
            assert not complaint or complaint.isprintable()

    trio.run(run)


@pytest.mark.parametrize(
    "said", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 100 Continue\r\n\r\n" * 9]
)
async def test_a_server_that_is_slow_to_answer_is_given_up(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_http, "ANSWER_S", 0.2)

    async def slow(stream: trio.SocketStream) -> None:
        await stream.send_all(said)
        while await stream.receive_some():
            pass

    async with tcp_server(slow) as port:
        error = await failure(f"http://127.0.0.1:{port}")
    assert isinstance(error, UnreachableError)
    assert "expected an answer within 0.2 s, got none" in str(error)


async def test_a_tls_handshake_that_does_not_come_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_http, "CONNECT_S", 0.3)

    async def silent(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass

    async with tcp_server(silent) as port:
        error = await failure(f"https://127.0.0.1:{port}")
    assert "expected a connection within 0.3 s, got none" in str(error)


async def test_a_name_that_nobody_knows_is_named() -> None:
    class NoNames(trio.abc.HostnameResolver):
        async def getaddrinfo(self, *_: Any) -> Any:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        async def getnameinfo(self, *_: Any) -> Any:
            raise NotImplementedError

    trio.socket.set_custom_hostname_resolver(NoNames())
    expected = "the name rendezvous.invalid cannot be resolved: Name or service not known"
    error = await failure("https://rendezvous.invalid:5025")  # the address for pulses is a literal
    assert str(error).endswith(expected)
    with pytest.raises(UnreachableError, match=expected):
        async with Rendezvous.open("https://rendezvous.invalid:5025"):
            pass


@pytest.mark.parametrize("name", ["a" * 70 + ".example", "a..example"])
async def test_what_cannot_be_a_name_is_no_crash(name: str) -> None:
    with pytest.raises(UnreachableError, match="cannot be resolved: not a host name"):
        async with Rendezvous.open(f"https://{name}"):
            pass
    assert isinstance(await failure(f"https://{name}"), UnreachableError)


# --- one connection for many requests --------------------------------------------------------------------------------


async def test_a_connection_is_kept_and_one_that_the_server_closed_meanwhile_costs_nothing() -> None:
    requests: list[int] = []

    async def two_each(stream: trio.SocketStream) -> None:
        for number in (1, 2):
            if not await read_request(stream):
                return
            requests.append(number)
            await stream.send_all(response(b"{}"))

    async with tcp_server(two_each) as port:
        client = HttpClient(server(client_url.parse(f"http://127.0.0.1:{port}", "rendezvous URL")), None)
        for _ in range(5):
            assert (await client.ask("GET", "/")).status == 200
        client.close()
    assert requests == [1, 2, 1, 2, 1]


async def test_an_answer_with_more_behind_it_ends_the_connection() -> None:
    connections: list[object] = []

    async def doubled(stream: trio.SocketStream) -> None:
        connections.append(stream)
        while await read_request(stream):
            await stream.send_all(response(b"{}") + response(b"[]"))

    async with tcp_server(doubled) as port:
        client = HttpClient(server(client_url.parse(f"http://127.0.0.1:{port}", "rendezvous URL")), None)
        assert [(await client.ask("GET", "/")).body for _ in range(3)] == [b"{}"] * 3
        client.close()
    assert len(connections) == 3


async def test_a_request_that_was_given_up_leaves_no_connection_behind() -> None:
    ends: list[str] = []

    async def silent(stream: trio.SocketStream) -> None:
        while await stream.receive_some():
            pass
        ends.append("end")

    async with tcp_server(silent) as port:
        client = HttpClient(server(client_url.parse(f"http://127.0.0.1:{port}", "rendezvous URL")), None)
        with trio.move_on_after(0.1):
            await client.ask("GET", "/")
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(UnreachableError, match="the network changed"):
                    await client.ask("GET", "/")

            nursery.start_soon(ask)
            await trio.testing.wait_all_tasks_blocked(0.05)
            client.drop()
        with trio.fail_after(PATIENCE_S):
            while len(ends) < 2:  # noqa: ASYNC110 (the other side's own business)
                await trio.sleep(0.01)


# --- TLS -------------------------------------------------------------------------------------------------------------


async def test_with_tls_everything_works_for_who_trusts_the_authority(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "the test's own", address="192.0.2.1")
    trusting = ssl.create_default_context(cafile=chain)
    async with place(None) as server:
        await server.start(tls=server_tls(chain, key))
        server.url = f"https://localhost:{server.http}"
        async with server.client(tls=trusting) as one:
            assert (await one.mapped()).port
            await one.send(one.client_id, "x" * 1000)
            assert (await one.receive()).text == "x" * 1000
            await server.stop()
            await server.start(store=server.store, tls=server_tls(chain, key))
            assert await one.status(one.client_id)

        server.url = f"https://127.0.0.1:{server.http}"
        error = await failure(server.url, tls=trusting)
        assert isinstance(error, InsecureError)
        assert "its certificate cannot be trusted: IP address mismatch" in str(error)

        error = await failure(f"https://localhost:{server.http}")
        assert isinstance(error, InsecureError)
        assert "its certificate cannot be trusted: self-signed certificate" in str(error)

        error = await failure(f"http://localhost:{server.http}")
        assert isinstance(error, UnreachableError | NotRendezvousError)

        ancient = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        ancient.maximum_version = ssl.TLSVersion.TLSv1_2
        ancient.set_ciphers("AES128-SHA")
        error = await failure(f"https://localhost:{server.http}", tls=ancient)
        assert "TLS handshake" in str(error)


async def test_https_to_a_server_without_tls_says_so() -> None:
    async with place() as server:
        error = await failure(f"https://127.0.0.1:{server.http}")
    assert isinstance(error, InsecureError)
    assert f"expected TLS, got something else; maybe it is http://127.0.0.1:{server.http}" in str(error)
