"""What all HTTP answers have in common: version, error bodies, methods, CORS, order of checks; health, documents."""

from __future__ import annotations

import json
import re
from ipaddress import ip_address

import pytest
import trio

from punchd.broker.api import Api
from punchd.broker.turnstile import Verdict
from punchd.endpoint import IPAddress
from tests.unit.broker.contract import DOCUMENT
from tests.unit.broker.peer import settle
from tests.unit.broker.running import URL, running, settings
from tests.unit.broker.schema import SCHEMA_BYTES


@pytest.mark.parametrize(
    ("raw", "status", "code"),
    [
        (b"GET / HTTP/9.9\r\nHost: x\r\n\r\n", 505, "INVALID_REQUEST"),
        (b"BREW /api/session HTTP/1.1\r\nHost: x\r\n\r\n", 501, "INVALID_REQUEST"),
        (b"GET /\r\n\r\n", 400, "INVALID_REQUEST"),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc", 400, "INVALID_REQUEST"),
        (b"GET / HTTP/1.1\r\n\r\n", 400, "INVALID_REQUEST"),
        (b"GET /%zz HTTP/1.1\r\nHost: x\r\n\r\n", 400, "INVALID_REQUEST"),
        (b"GET /%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400, "INVALID_REQUEST"),
        (
            b"GET / HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n",
            400,
            "INVALID_REQUEST",
        ),
        (b"GET / HTTP/1.1\nHost: x\n\n", 400, "INVALID_REQUEST"),
        (b"GET /nowhere HTTP/1.1\r\nHost: x\r\n\r\n", 404, "NOT_FOUND"),
        (b"PUT /api/session HTTP/1.1\r\nHost: x\r\n\r\n", 405, "METHOD_NOT_ALLOWED"),
        (b"GET /api/session HTTP/1.1\r\nHost: x\r\n\r\n", 405, "METHOD_NOT_ALLOWED"),
        (b"POST /api/session HTTP/1.1\r\nHost: x\r\n\r\n", 415, "UNSUPPORTED_MEDIA_TYPE"),
    ],
)
async def test_b_042_b_044_c_01_every_error_has_the_same_body_and_the_version(
    raw: bytes, status: int, code: str
) -> None:
    async with running() as server:
        answer = await server.raw(raw)
        assert (answer.status, answer.error, answer.json["code"]) == (status, code, code)
        assert set(answer.json) == {"error", "code", "message"}


async def test_b_042_a_handler_that_fails_is_a_500_with_the_same_body(monkeypatch: pytest.MonkeyPatch) -> None:
    async with running() as server:

        async def fail(_self: Api, _request: object) -> None:
            raise ValueError("oops")

        monkeypatch.setattr(Api, "__call__", fail)
        answer = await server.ask("GET", "/api/health")
        assert (answer.status, answer.error) == (500, "SERVER_ERROR")
        assert "oops" not in answer.body.decode()


async def test_b_044_pipelined_slow_and_half_closed_requests_have_it_too() -> None:
    async with running() as server:
        sock = server.connect()
        request = b"GET /api/health HTTP/1.1\r\nHost: x\r\n\r\n"
        sock.sendall(request * 3)
        await settle()
        data = sock.recv(65_536)
        assert data.count(b"Punch-Version: 1.0.0") == data.count(b"HTTP/1.1 200") == 3
        for byte in request:
            sock.sendall(bytes([byte]))
        sock.shutdown(1)
        assert (await server.read(sock, "GET", "/api/health")).status == 200


async def test_b_045_c_52_health_tells_the_version_and_head_the_same_without_a_body() -> None:
    async with running() as server:
        got, head = await server.ask("GET", "/api/health"), await server.ask("HEAD", "/api/health")
        assert got.json == {"status": "ok", "version": got.headers["punch-version"]}
        assert (head.status, head.headers["content-length"]) == (200, str(len(got.body)))
        made = await server.create()
        assert (await server.ask("HEAD", "/api/session/show", token=made["token"])).status == 200


async def test_c_52_options_and_405_name_the_methods_there_are() -> None:
    async with running() as server:
        for target, methods in (
            ("/api/health", "GET, HEAD, OPTIONS"),
            ("/api/session", "POST, OPTIONS"),
            ("/api/session/show", "GET, DELETE, HEAD, OPTIONS"),
            ("/api/ws/show", "GET, HEAD, OPTIONS"),
        ):
            told, refused = await server.ask("OPTIONS", target), await server.ask("PATCH", target)
            assert (told.status, told.headers["allow"]) == (204, methods)
            assert (refused.status, refused.headers["allow"]) == (405, methods)
        assert (await server.ask("HEAD", "/api/ws/show", token=(await server.create())["token"])).status == 426


async def test_cors_is_for_the_origins_that_the_operator_names() -> None:
    async with running(settings(cors_origins=("https://a.example",))) as server:
        for origin, is_let in (("https://a.example", True), ("https://b.example", False)):
            answer = await server.ask("GET", "/api/health", origin=origin)
            preflight = await server.ask("OPTIONS", "/api/session", origin=origin)
            for one in (answer, preflight):
                assert (one.headers.get("access-control-allow-origin") == origin) is is_let
                assert one.headers["vary"] == "Origin"
            assert ("access-control-allow-methods" in preflight.headers) is is_let
            exposed = answer.headers.get("access-control-expose-headers")
            assert exposed == ("Punch-Version, Retry-After" if is_let else None)
        refused = await server.ask("GET", "/nowhere", origin="https://a.example")
        assert refused.headers["access-control-allow-origin"] == "https://a.example"
    async with running() as server:
        assert "vary" not in (await server.ask("GET", "/api/health", origin="https://a.example")).headers


async def test_b_043_b_123_c_03_the_documents_are_served_and_the_routes_are_those_of_the_document() -> None:
    async with running() as server:
        schema = await server.ask("GET", "/spec/punch-messages.schema.json")
        document = (await server.ask("GET", "/spec/openapi.json")).json
        labels = {route.label: route for route in server.broker.api.routes}
    assert schema.body == SCHEMA_BYTES
    assert document["openapi"].startswith("3.1.")
    assert document["servers"] == [{"url": URL}]
    assert set(document["paths"]) == set(labels)
    for path, operations in document["paths"].items():
        told = {name.upper() for name in operations if name in ("get", "post", "delete", "put")}
        assert told == set(labels[path].acts)
    references = re.findall(r'"\$ref": "#/([^"]+)"', json.dumps(DOCUMENT))
    for reference in references:
        node = DOCUMENT
        for part in reference.split("/"):
            node = node[part]


async def test_c_36_what_a_connection_string_is_not_for_is_refused_whoever_asks() -> None:
    async with running() as server:
        made = await server.create(streams=["wide"])
        await server.pair(made)
        for token, good in ((made["token"], ""), (made["peerTokens"]["wide"], "port=5011")):
            for query in (
                "stream=",
                "port=65536",
                "port=1023",
                "port=x",
                "port=",
                "side=c",
                "side=",
                "role=x",
                "format=x",
            ):
                source = "127.0.0.11"
                target = f"/api/session/show/connect?{query}&{good}"
                answer = await server.ask("GET", target, token=token, source=source)
                assert answer.status in (400, 403, 404), target
            target = f"/api/session/show/connect?{good}"
            assert (await server.ask("GET", target, token=token, source=source)).status == 200


async def test_b_111_nothing_ever_redirects() -> None:
    async with running() as server:
        for method in ("GET", "POST", "DELETE", "HEAD"):
            for path in (
                *DOCUMENT["paths"],
                "/",
                "/api",
                "/api/",
                "/API/HEALTH",
                "//api/health",
                "http://x/api/health",
            ):
                answer = await server.ask(method, path.replace("{name}", "show"))
                assert not 300 <= answer.status < 400
                assert "location" not in answer.headers


# --- Turnstile -------------------------------------------------------------------------------------------------------


class Captcha:
    """A verifier that the test plays."""

    def __init__(self, verdict: Verdict) -> None:
        self.verdict = verdict
        self.asked: list[tuple[str, IPAddress]] = []

    async def __call__(self, token: str, ip: IPAddress) -> Verdict:
        self.asked.append((token, ip))
        await trio.lowlevel.checkpoint()
        return self.verdict


async def test_b_039_b_040_without_a_passed_captcha_there_is_no_session() -> None:
    captcha = Captcha(Verdict.REFUSED)
    async with running(verify=captcha) as server:
        for extra in ({}, {"turnstileToken": ""}, {"turnstileToken": 1}, {"turnstileToken": None}):
            answer = await server.ask("POST", "/api/session", {"name": "show", **extra})
            assert (answer.status, answer.error) == (403, "TURNSTILE_FAILED")
        assert captcha.asked == []
        answer = await server.ask("POST", "/api/session", {"name": "show", "turnstileToken": "used"})
        assert (answer.status, answer.error) == (403, "TURNSTILE_FAILED")
        assert captcha.asked == [("used", ip_address("127.0.0.1"))]
        assert len(server.broker.sessions) == 0
        captcha.verdict = Verdict.PASSED
        await server.create(turnstileToken="good")


async def test_b_041_without_a_secret_the_captcha_is_ignored_whatever_it_is() -> None:
    async with running() as server:
        values: list[object] = [123, None, {}, "x"]
        for number, value in enumerate(values):
            await server.create(f"s{number}", turnstileToken=value)


async def test_c_39_when_the_captcha_cannot_be_checked_there_is_no_session_and_nobody_is_blamed() -> None:
    async with running(verify=Captcha(Verdict.UNKNOWN)) as server:
        await_it = await server.ask("POST", "/api/session", {"name": "show", "turnstileToken": "x"})
        assert (await_it.status, await_it.error, await_it.headers["retry-after"]) == (503, "SERVER_ERROR", "5")
        assert len(server.broker.sessions) == 0


async def test_c_39_without_a_passed_captcha_nobody_learns_which_names_are_taken() -> None:
    captcha = Captcha(Verdict.PASSED)
    async with running(verify=captcha) as server:
        await server.create(turnstileToken="good")
        for verdict, status in ((Verdict.REFUSED, 403), (Verdict.UNKNOWN, 503), (Verdict.PASSED, 409)):
            captcha.verdict = verdict
            answer = await server.ask("POST", "/api/session", {"name": "show", "turnstileToken": "x"})
            assert answer.status == status


async def test_the_order_in_which_a_creation_is_refused() -> None:
    captcha = Captcha(Verdict.PASSED)
    chosen = settings({"creations_per_minute": 5, "sessions": 1})
    async with running(chosen, verify=captcha) as server:
        json_type = "application/json"
        good = {"name": "show", "turnstileToken": "x"}
        assert (await server.ask("POST", "/api/session", b"x" * 20_000, content_type="text/plain")).status == 413
        assert (await server.ask("POST", "/api/session", b"x", content_type="text/plain")).status == 415
        assert (await server.ask("POST", "/api/session", b"x", content_type=json_type)).status == 400
        assert (await server.ask("POST", "/api/session", {"name": "show"})).status == 403
        assert (await server.ask("POST", "/api/session", good)).status == 201
        assert (await server.ask("POST", "/api/session", b"x" * 20_000, content_type="text/plain")).status == 429
        assert (await server.ask("POST", "/api/session", good, source="127.0.0.2")).status == 503


# --- proxies ---------------------------------------------------------------------------------------------------------


async def test_c_38_behind_a_proxy_only_what_came_over_tls_is_answered() -> None:
    async with running(settings(behind_tls_proxy=True, trusted_proxies=("127.0.0.1",))) as server:
        for value, status in (
            ("https", 200),
            ("HTTPS", 200),
            ("http, https", 200),
            ("http", 400),
            ("https, http", 400),
        ):
            answer = await server.ask("GET", "/api/health", x_forwarded_proto=value)
            assert answer.status == status
            assert answer.headers["strict-transport-security"] == "max-age=31536000"
        assert (await server.ask("GET", "/api/health")).status == 400


@pytest.mark.parametrize(
    ("forwarded", "source"),
    [
        ("192.0.2.1", "192.0.2.1"),
        ("198.51.100.9, 192.0.2.1", "192.0.2.1"),
        ("192.0.2.1, 127.0.0.1", "192.0.2.1"),
        ("192.0.2.1, 10.0.0.1, 127.0.0.1", "192.0.2.1"),
        ("::ffff:192.0.2.1", "192.0.2.1"),
        ("[2001:db8::1]:443", "2001:db8::1"),
        ("192.0.2.1:5000", "192.0.2.1"),
        ("2001:db8::1", "2001:db8::1"),
        ("nonsense", "127.0.0.1"),
        ("192.0.2.1, nonsense", "127.0.0.1"),
        ("", "127.0.0.1"),
    ],
)
async def test_the_source_is_the_last_forwarded_address_that_is_no_trusted_proxy(forwarded: str, source: str) -> None:
    captcha = Captcha(Verdict.PASSED)
    async with running(settings(trusted_proxies=("127.0.0.1", "10.0.0.1")), verify=captcha) as server:
        await server.ask("POST", "/api/session", {"name": "show", "turnstileToken": "x"}, x_forwarded_for=forwarded)
        strange = {"name": "more", "turnstileToken": "x"}
        await server.ask("POST", "/api/session", strange, x_forwarded_for=forwarded, source="127.0.0.9")
    assert [str(ip) for _, ip in captcha.asked] == [source, "127.0.0.9"]
