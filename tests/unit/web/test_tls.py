"""TLS: what is spoken, what a stuck handshake costs, and how a certificate is replaced."""

from __future__ import annotations

import ssl
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio
from websockets.trio.client import connect

from punchd.errors import ConfigError
from punchd.web.limits import Limits
from punchd.web.listen import Certificate
from tests.unit.web.certificates import write_certificate
from tests.unit.web.site import (
    GET,
    LAST_GET,
    PATIENCE_S,
    Site,
    emptied,
    read_all,
    read_answer,
    serving,
    status,
    statuses,
)

Secure = trio.SSLStream[trio.SocketStream]


def trusting(chain: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=chain)


@asynccontextmanager
async def secure(site: Site, context: ssl.SSLContext) -> AsyncIterator[Secure]:
    stream = trio.SSLStream(await site.connect(), context, server_hostname="localhost", https_compatible=True)
    try:
        with trio.fail_after(PATIENCE_S):
            await stream.do_handshake()
        yield stream
    finally:
        await trio.aclose_forcefully(stream)


def common_name(stream: Secure) -> object:
    subject = stream.getpeercert()["subject"]
    return subject[0][0][1]


async def test_http_and_websocket_go_through_tls(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "one")
    context = trusting(chain)
    async with serving(tls=Certificate(chain, key).context) as site:
        async with secure(site, context) as stream:
            await stream.send_all(GET)
            assert b'"tls":true' in await read_answer(stream)
            await stream.send_all(b"GET /big?size=1000000 HTTP/1.1\r\nHost: a\r\n\r\n")
            assert len(await read_answer(stream)) > 1_000_000
            await stream.send_all(LAST_GET)
            assert status(await read_all(stream)) == 200
        async with connect(f"wss://localhost:{site.port}/ws", ssl=context) as ws:
            for message in ("hello", b"x" * 60_000):
                await ws.send(message)
                with trio.fail_after(PATIENCE_S):
                    assert await ws.recv() == message


async def test_a_refusal_gets_through_tls_to_a_client_that_is_still_sending(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "one")
    async with (
        serving(tls=Certificate(chain, key).context) as site,
        secure(site, trusting(chain)) as stream,
    ):
        await stream.send_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n")
        await trio.sleep(0.05)
        await stream.send_all(b"x" * 500_000)
        assert statuses(await read_answer(stream)) == [413]


async def test_nothing_older_than_tls_1_2_is_spoken(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "one")
    certificate = Certificate(chain, key)
    assert certificate.context().minimum_version == ssl.TLSVersion.TLSv1_2
    context = trusting(chain)
    context.set_ciphers("ALL:@SECLEVEL=0")
    async with serving(tls=certificate.context) as site:
        context.maximum_version = ssl.TLSVersion.TLSv1_2
        async with secure(site, context) as stream:
            assert stream.version() == "TLSv1.2"
        with warnings.catch_warnings(category=DeprecationWarning, action="ignore"):
            context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
        with pytest.raises(trio.BrokenResourceError):
            async with secure(site, context):
                pass
        await emptied(site)
        assert site.server.counts.failed_handshakes == 1


async def test_a_stuck_handshake_is_given_up(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "one")
    limits = Limits(tls_s=0.3)
    async with serving(tls=Certificate(chain, key).context, limits=limits) as site:
        for data in (b"", b"\x16\x03\x01\x02\x00\x01"):
            assert await site.exchange(data) == b""
        await emptied(site)
        assert site.server.counts.failed_handshakes == 2


async def test_plain_http_spoken_to_a_server_with_tls_ends_at_once(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "one")
    async with serving(tls=Certificate(chain, key).context) as site:
        async with await site.connect() as stream:
            await stream.send_all(GET)
            await emptied_after_one(site)
        assert site.server.counts.failed_handshakes == 1


async def emptied_after_one(site: Site) -> None:
    with trio.fail_after(PATIENCE_S):
        while not site.server.counts.failed_handshakes:  # noqa: ASYNC110 (what is tested has no event)
            await trio.sleep(0.01)
    await emptied(site)


async def test_a_certificate_is_replaced_without_dropping_connections(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "one")
    certificate = Certificate(chain, key)
    old = trusting(chain)
    async with serving(tls=certificate.context) as site, secure(site, old) as first:
        assert common_name(first) == "one"
        write_certificate(tmp_path, "two")
        certificate.reload()
        async with secure(site, trusting(chain)) as second:
            assert common_name(second) == "two"
        await first.send_all(GET)
        assert status(await read_answer(first)) == 200


def test_a_pair_that_cannot_be_used_is_one_clear_line_and_the_old_one_stays(tmp_path: Path) -> None:
    chain, key = write_certificate(tmp_path, "one")
    certificate = Certificate(chain, key)
    context = certificate.context()
    good = chain.read_bytes(), key.read_bytes()
    other = tmp_path / "other"
    other.mkdir()
    other_chain, _ = write_certificate(other, "two")
    encrypted = tmp_path / "encrypted"
    encrypted.mkdir()
    _, encrypted_key = write_certificate(encrypted, "three", b"secret")

    def fails(words: str) -> None:
        with pytest.raises(ConfigError, match=words) as error:
            certificate.reload()
        assert "\n" not in str(error.value)
        assert certificate.context() is context
        chain.write_bytes(good[0])
        key.write_bytes(good[1])

    chain.write_bytes(other_chain.read_bytes())
    fails("certificate: .*chain.pem with .*key.pem: ")
    key.write_text("no key")
    fails("certificate: .*chain.pem with .*key.pem: ")
    chain.write_text("no certificate")
    fails("certificate: .*chain.pem with .*key.pem: ")
    key.write_bytes(encrypted_key.read_bytes())
    fails("encrypted, expected one without a passphrase")
    chain.unlink()
    fails("certificate: .*chain.pem: No such file or directory")
    certificate.reload()
    assert certificate.context() is not context
