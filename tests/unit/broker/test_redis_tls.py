"""Redis over TLS, `rediss://`: a broker works over it, and with nobody whose certificate is not good for the name."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest
import trio

from punchd.redis import url as redis_url
from punchd.redis.link import Link
from punchd.redis.script import Use
from tests.unit.broker.redis_parts import created, pair, servers, until
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis, redis_server
from tests.unit.web.certificates import write_certificate

pytestmark = needs_redis


@contextmanager
def tls_redis(folder: Path, address: str = "127.0.0.1") -> Iterator[tuple[RedisServer, int]]:
    """A Redis whose certificate is good for localhost and an address, and its port on 127.0.0.1."""
    chain, key = write_certificate(folder, "redis", address=address)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    options = (
        "--bind", "127.0.0.1", "--tls-port", str(port), "--tls-auth-clients", "no",
        "--tls-cert-file", str(chain), "--tls-key-file", str(key), "--tls-ca-cert-file", str(chain),
    )  # fmt: skip
    with redis_server(options=options) as redis:
        yield redis, port


async def test_servers_share_sessions_over_tls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "chain.pem"))
    with tls_redis(tmp_path) as (redis, port):
        async with servers(redis, url=f"rediss://localhost:{port}") as [one, two]:
            first, second = await pair(one, two, await created(one))
            assert await one.store.close("show")
            assert await first.is_closed() == await second.is_closed() == 1000


@pytest.mark.parametrize(
    ("address", "is_trusted", "said"),
    [
        (
            "192.0.2.1",
            True,
            "its certificate is not good: IP address mismatch, certificate is not valid for '127.0.0.1'",
        ),
        ("127.0.0.1", False, "its certificate is not good: self-signed certificate"),
    ],
)
async def test_a_certificate_of_another_name_or_authority_is_refused_with_a_line_that_says_so(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    *,
    address: str,
    is_trusted: bool,
    said: str,
) -> None:
    if is_trusted:
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "chain.pem"))
    with tls_redis(tmp_path, address) as (_, port):
        place = redis_url.parse(f"rediss://broker:hunter2@127.0.0.1:{port}", "store")
        link = Link(place, Use(b"c", b"p", "punchd.test", "nothing goes on"), hear=lambda _: None, resync=lambda: None)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.run)
            await until(lambda: bool(caplog.messages))
            assert not link.is_up
            nursery.cancel_scope.cancel()
    assert caplog.messages == [f"store: redis at 127.0.0.1:{port}: {said}; until it is back, nothing goes on"]


async def test_what_speaks_no_tls_is_told_of_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    async def talk(stream: trio.SocketStream) -> None:
        await stream.send_all(b"-ERR unknown command\r\n")
        await stream.receive_some()

    async with trio.open_nursery() as nursery:
        [listener] = await nursery.start(partial(trio.serve_tcp, talk, 0, host="127.0.0.1"))
        port = listener.socket.getsockname()[1]
        place = redis_url.parse(f"rediss://127.0.0.1:{port}", "store")
        link = Link(place, Use(b"c", b"p", "punchd.test", "nothing goes on"), hear=lambda _: None, resync=lambda: None)
        nursery.start_soon(link.run)
        await until(lambda: bool(caplog.messages))
        nursery.cancel_scope.cancel()
    [line] = caplog.messages
    assert line.startswith(f"store: redis at 127.0.0.1:{port}: TLS failed: ")
