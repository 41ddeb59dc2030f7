"""Which requests are taken, and what is said about the others. No sockets."""

from __future__ import annotations

import pytest

from punchd.web.head import Head, RefusedError
from punchd.web.http import RequestReader
from punchd.web.limits import Limits

HOST = b"Host: example.net\r\n"


def outcome(data: bytes, limits: Limits | None = None) -> list[tuple[Head, bytes] | int | None]:
    """What the requests in `data` come to: (head, body), the status of a refusal, None for an unfinished one."""
    reader = RequestReader(limits or Limits())
    reader.feed(data)
    return drain(reader)


def drain(reader: RequestReader) -> list[tuple[Head, bytes] | int | None]:
    found: list[tuple[Head, bytes] | int | None] = []
    try:
        while (head := reader.head()) is not None:
            body = reader.body()
            if body is None:
                return [*found, None]
            found.append((head, body))
    except RefusedError as refused:
        return [*found, refused.problem.status]
    return [*found, None] if len(reader) else found


def taken(data: bytes) -> tuple[Head, bytes]:
    [only] = outcome(data)
    assert isinstance(only, tuple), only
    return only


def request(line: bytes = b"GET / HTTP/1.1", fields: bytes = HOST, body: bytes = b"") -> bytes:
    return line + b"\r\n" + fields + b"\r\n" + body


MALFORMED = [
    # the request line
    (b"\x16\x03\x01\x02\x00\x01", 400),  # TLS, spoken to a server without it
    (b"get / HTTP/1.1\r\n", 400),
    (request(b"BREW / HTTP/1.1"), 501),
    (request(b"GET  / HTTP/1.1"), 400),
    (request(b"GET / HTTP/1.1 "), 400),
    (request(b"GET /\tHTTP/1.1"), 400),
    (request(b"GET / x HTTP/1.1"), 400),
    (request(b"GET /"), 400),
    (request(b"GET / HTTP/0.9"), 505),
    (request(b"GET / HTTP/1.2"), 505),
    (request(b"GET / HTTP/2.0"), 505),
    (request(b"PRI * HTTP/2.0"), 505),
    (request(b"GET / RTSP/1.0"), 400),
    (request(b"SOURCE / ICE/1.0"), 400),
    (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\n\r\n", 400),
    (b"GET / HTTP/1.1\r\nHost: a\r\r\n\r\n", 400),
    # the target
    (request(b"GET x HTTP/1.1"), 400),
    (request(b"GET * HTTP/1.1"), 400),
    (request(b"GET /a#b HTTP/1.1"), 400),
    (request(b"GET /\xc3\xa4 HTTP/1.1"), 400),
    (request(b"GET /%zz HTTP/1.1"), 400),
    (request(b"GET /% HTTP/1.1"), 400),
    (request(b"GET /?a=%4 HTTP/1.1"), 400),
    (request(b"GET /%ff HTTP/1.1"), 400),
    (request(b"GET /?%c3 HTTP/1.1"), 400),
    (request(b"GET /%00 HTTP/1.1"), 400),
    (request(b"GET /%0d%0a HTTP/1.1"), 400),
    (request(b"GET ftp://a/ HTTP/1.1"), 400),
    (request(b"GET http:///a HTTP/1.1"), 400),
    (request(b"GET http://u@a/ HTTP/1.1"), 400),
    (request(b"CONNECT a:1 HTTP/1.1"), 501),
    # fields
    (request(fields=HOST + b"A : b\r\n"), 400),
    (request(fields=HOST + b"A: b\r\n c\r\n"), 400),
    (request(fields=b" " + HOST), 400),
    (request(fields=HOST + b"A: b\0\r\n"), 400),
    (request(fields=HOST + b"A: b\x7f\r\n"), 400),
    (request(fields=HOST + b"A: b\rc\r\n"), 400),
    (request(fields=HOST + b"A\r\n"), 400),
    (request(fields=HOST + b": b\r\n"), 400),
    (request(fields=HOST + b"A(: b\r\n"), 400),
    (request(fields=HOST + b"Expect: a-miracle\r\n"), 417),
    # Host
    (request(fields=b""), 400),
    (request(fields=HOST + HOST), 400),
    (request(fields=b"Host:\r\n"), 400),
    (request(fields=b"Host: a b\r\n"), 400),
    (request(fields=b"Host: a/b\r\n"), 400),
    (request(fields=b"Host: u@a\r\n"), 400),
    (request(fields=b"Host: a:b\r\n"), 400),
    (request(fields=b"Host: a, b\r\n"), 400),
    # where the body ends
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: 1\r\nContent-Length: 1\r\n", b"x"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: 1\r\nContent-Length: 2\r\n", b"xx"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: 1, 1\r\n", b"x"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: +1\r\n", b"x"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: -1\r\n", b"x"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: 0x1\r\n", b"x"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: \r\n", b"x"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: 99999999999999999999\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: 3\r\nTransfer-Encoding: chunked\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: chunked\r\nContent-Length: 3\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: chunked, chunked\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: chunked, identity\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: xchunked\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding:\x0bchunked\r\n"), 400),
    (request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: gzip, chunked\r\n"), 501),
    (request(b"POST / HTTP/1.0", b"Transfer-Encoding: chunked\r\n"), 400),
    # sizes
    (request(b"GET /" + b"x" * 8200 + b" HTTP/1.1"), 414),
    (b"GET /" + b"x" * 20_000, 414),
    (request(fields=HOST + b"A: " + b"x" * 17_000 + b"\r\n"), 431),
    (request(fields=HOST + b"A: b\r\n" * 101), 431),
    (request(b"POST / HTTP/1.1", HOST + b"Content-Length: 65537\r\n"), 413),
]


@pytest.mark.parametrize(("data", "status"), MALFORMED)
def test_what_is_no_request_is_refused_with_its_status_however_it_is_cut(data: bytes, status: int) -> None:
    assert outcome(data) == [status]
    reader = RequestReader(Limits())
    answers: list[tuple[Head, bytes] | int | None] = []
    for byte in data:
        reader.feed(bytes([byte]))
        answers = drain(reader)
        if isinstance(answers[-1], int):
            break
    assert answers == [status]


BAD_CHUNKS = [
    (b"5 \r\nhello\r\n0\r\n\r\n", 400),
    (b"0x5\r\nhello\r\n0\r\n\r\n", 400),
    (b"-1\r\n", 400),
    (b"\r\n", 400),
    (b"000000005\r\nhello\r\n0\r\n\r\n", 400),
    (b"ffffffff\r\n", 413),
    (b"10001\r\n", 413),
    (b"8000\r\n" + b"x" * 0x8000 + b"\r\n8001\r\n", 413),
    (b"5\nhello\r\n0\r\n\r\n", 400),
    (b"5\r\nhello0\r\n\r\n", 400),
    (b"5\r\nhelloxx0\r\n\r\n", 400),
    (b"5;" + b"x" * 300 + b"\r\nhello\r\n0\r\n\r\n", 400),
    (b"5;\0\r\nhello\r\n0\r\n\r\n", 400),
    (b"1;" + b"x" * 200 + b"\r\nx\r\n" + (b"1;" + b"x" * 200 + b"\r\nx\r\n") * 100, 400),
    (b"0\r\nnot a trailer\r\n\r\n", 400),
    (b"0\r\nA : b\r\n\r\n", 400),
    (b"0\r\n" + b"A: b\r\n" * 5000 + b"\r\n", 400),
    (b"0\r\nA: " + b"x" * 17_000, 400),
]


@pytest.mark.parametrize(("body", "status"), BAD_CHUNKS)
def test_a_chunked_body_that_is_none_is_refused_however_it_is_cut(body: bytes, status: int) -> None:
    data = request(b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: chunked\r\n", body)
    assert outcome(data) == [status]
    for size in (1, 7):
        reader = RequestReader(Limits())
        with pytest.raises(RefusedError) as refused:
            feed_in_pieces(reader, data, size)
        assert refused.value.problem.status == status


def feed_in_pieces(reader: RequestReader, data: bytes, size: int) -> list[tuple[Head, bytes]]:
    found: list[tuple[Head, bytes]] = []
    head: Head | None = None
    for start in range(0, len(data), size):
        reader.feed(data[start : start + size])
        while True:
            head = head or reader.head()
            body = None if head is None else reader.body()
            if head is None or body is None:
                break
            found.append((head, body))
            head = None
    return found


def test_a_request_is_what_its_head_says() -> None:
    fields = HOST + b"X-One: 1\r\nx-one:\t2 \r\nX-Latin: \xe4\r\nEmpty:\r\n"
    head, body = taken(request(b"GET /a%20b/%C3%A4?x=1&x=2&y=%26+z&flag&=e HTTP/1.1", fields))
    assert head.method == "GET"
    assert head.target == "/a%20b/%C3%A4?x=1&x=2&y=%26+z&flag&=e"
    assert head.path == "/a b/ä"
    assert head.query == {"x": "1", "y": "& z", "flag": "", "": "e"}
    assert head.headers["x-one"] == "1"
    assert head.headers.get_all("x-one") == ["1", "2"]
    assert head.headers["x-latin"] == "ä"
    assert head.headers["empty"] == ""
    assert list(head.headers) == ["host", "x-one", "x-latin", "empty"]
    assert len(head.headers) == 4
    assert "x-two" not in head.headers
    assert head.is_http11
    assert not head.expects_continue
    assert body == b""


@pytest.mark.parametrize(
    ("target", "path", "host"),
    [
        (b"http://a.example", "/", "a.example"),
        (b"HTTPS://a.example:81/b?c", "/b", "a.example:81"),
        (b"http://[2001:db8::1]?c", "/", "[2001:db8::1]"),
    ],
)
def test_the_host_of_an_absolute_target_overrides_the_field(target: bytes, path: str, host: str) -> None:
    head, _ = taken(request(b"GET " + target + b" HTTP/1.1"))
    assert (head.path, head.headers.get_all("host")) == (path, [host])


@pytest.mark.parametrize("host", [b"a", b"a.example:5025", b"192.0.2.1", b"[2001:db8::1]:80", b"a_b-c~", b"a:"])
def test_a_host_may_be_a_name_or_an_address_with_or_without_a_port(host: bytes) -> None:
    assert taken(request(fields=b"Host: " + host + b"\r\n"))[0].headers["host"] == host.decode()


@pytest.mark.parametrize(
    ("line", "fields", "keeps"),
    [
        (b"GET / HTTP/1.1", HOST, True),
        (b"GET / HTTP/1.1", HOST + b"Connection: close\r\n", False),
        (b"GET / HTTP/1.1", HOST + b"Connection: Close, x\r\n", False),
        (b"GET / HTTP/1.0", b"", False),
        (b"GET / HTTP/1.0", b"Connection: keep-alive\r\n", True),
        (b"GET / HTTP/1.0", b"Connection: keep-alive\r\nConnection: close\r\n", False),
    ],
)
def test_whether_the_connection_goes_on_is_for_the_client_to_say(line: bytes, fields: bytes, keeps: bool) -> None:
    assert taken(request(line, fields))[0].keep_alive is keeps


def test_an_upgrade_that_nobody_wants_is_a_plain_request_with_its_body() -> None:
    fields = HOST + b"Connection: upgrade\r\nUpgrade: h2c\r\nContent-Length: 3\r\n"
    assert taken(request(b"POST / HTTP/1.1", fields, b"abc"))[1] == b"abc"


@pytest.mark.parametrize("size", [1, 2, 3, 50, 10_000])
def test_requests_in_a_row_come_out_in_order_however_they_are_cut(size: int) -> None:
    chunked = HOST + b"Transfer-Encoding: Chunked\r\n"
    data = (
        request(b"GET /1 HTTP/1.1")
        + b"\r\n\r\n"
        + request(b"POST /2 HTTP/1.1", HOST + b"Content-Length: 5\r\n", b"GET /")
        + request(b"POST /3 HTTP/1.1", chunked, b"5;a=b\r\nhel\r\n\r\n00A ;x\r\n0123456789\r\n0\r\nA: b\r\nC:\r\n\r\n")
        + request(b"POST /4 HTTP/1.1", chunked, b"0;last\r\n\r\n")
        + request(b"OPTIONS * HTTP/1.1")
    )
    reader = RequestReader(Limits())
    found = [(head.path, body) for head, body in feed_in_pieces(reader, data, size)]
    assert found == [("/1", b""), ("/2", b"GET /"), ("/3", b"hel\r\n0123456789"), ("/4", b""), ("*", b"")]
    assert len(reader) == 0


def test_bodies_heads_and_targets_may_be_as_large_as_the_limits_say() -> None:
    limits = Limits(head_bytes=1000, target_bytes=100, fields=3, body_bytes=100)
    length = request(b"POST / HTTP/1.1", HOST + b"Content-Length: 100\r\n", b"x" * 100)
    chunked = request(
        b"POST / HTTP/1.1", HOST + b"Transfer-Encoding: chunked\r\n", b"64\r\n" + b"x" * 100 + b"\r\n0\r\n\r\n"
    )
    target = request(b"GET /" + b"x" * 99 + b" HTTP/1.1")
    fill = 1000 - len(request(fields=HOST + b"A: \r\n"))
    head = request(fields=HOST + b"A: " + b"x" * fill + b"\r\n")
    fields = request(fields=HOST + b"A: b\r\nC: d\r\n")
    for data in (length, chunked, target, head, fields):
        assert [type(item) for item in outcome(data, limits)] == [tuple]
    assert outcome(request(fields=HOST + b"A: " + b"x" * (fill + 1) + b"\r\n"), limits) == [431]
    assert outcome(request(b"GET /" + b"x" * 100 + b" HTTP/1.1"), limits) == [414]
