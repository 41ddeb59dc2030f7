"""The server's half of the STUN codec: tables from the RFCs, a published vector, our own client, hostile requests."""

from __future__ import annotations

import contextlib
import struct
import zlib
from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.endpoint import Endpoint
from punchd.errors import DecodeError
from punchd.wire import stun, stun_server
from tests.unit.test_stun import ID, RFC_ID, RFC_REQUEST, attribute, endpoints, fingerprinted, message, transaction_ids

REQUEST, CHANGE, PADDING, RESPONSE_PORT, INTEGRITY = 0x0001, 0x0003, 0x0026, 0x0027, 0x0008
ECHO = b"\x21\x12\xa4\x42" + ID
CLASSIC = bytes(range(100, 116))
SEEN = (bytes([203, 0, 113, 7]), 40000)
SEEN_VALUE = bytes.fromhex("00019c40cb007107")
ORIGIN = stun_server.Origin.of((bytes([192, 0, 2, 10]), 3478), (bytes([192, 0, 2, 20]), 3479))
HERE_VALUE, OTHER_VALUE = bytes.fromhex("00010d96c000020a"), bytes.fromhex("00010d97c0000214")


def classic(*attributes: bytes) -> bytes:
    """A request of RFC 3489: no magic cookie."""
    body = b"".join(attributes)
    return struct.pack("!HH", REQUEST, len(body)) + CLASSIC + body


def parsed(data: bytes) -> list[tuple[int, bytes]]:
    """All attributes of a message, read by other code than the codec's."""
    assert len(data) == 20 + int.from_bytes(data[2:4])
    found: list[tuple[int, bytes]] = []
    rest = data[20:]
    while rest:
        kind, size = struct.unpack("!HH", rest[:4])
        found.append((kind, rest[4 : 4 + size]))
        rest = rest[4 + size + -size % 4 :]
    return found


Bare = stun_server.BindingRequest
UNDERSTOOD = [
    pytest.param(message(REQUEST), Bare(ECHO), id="nothing"),
    pytest.param(message(REQUEST, attribute(CHANGE, b"\0\0\0\6")), Bare(ECHO, False, True, True), id="both flags"),
    pytest.param(message(REQUEST, attribute(CHANGE, b"\0\0\0\4")), Bare(ECHO, change_address=True), id="change IP"),
    pytest.param(message(REQUEST, attribute(CHANGE, b"\0\0\0\2")), Bare(ECHO, change_port=True), id="change port"),
    pytest.param(message(REQUEST, attribute(CHANGE, b"\xff\xff\xff\xf9")), Bare(ECHO), id="reserved bits mean nothing"),
    pytest.param(message(REQUEST, attribute(PADDING, bytes(1500))), Bare(ECHO, padding=1500), id="PADDING"),
    pytest.param(message(REQUEST, attribute(PADDING, b"")), Bare(ECHO, padding=0), id="empty PADDING"),
    pytest.param(
        message(REQUEST, attribute(RESPONSE_PORT, b"\x9c\x41\0\0")), Bare(ECHO, response_port=40001), id="RESPONSE-PORT"
    ),
    pytest.param(
        message(REQUEST, attribute(RESPONSE_PORT, b"\x9c\x41")), Bare(ECHO, response_port=40001), id="of two bytes"
    ),
    pytest.param(fingerprinted(REQUEST), Bare(ECHO, is_fingerprinted=True), id="FINGERPRINT"),
    pytest.param(message(REQUEST, attribute(0x7FFF, b"")), Bare(ECHO, unknown=(0x7FFF,)), id="unknown"),
    pytest.param(
        message(REQUEST, *(attribute(0x7000 + n % 20, b"") for n in range(40))),
        Bare(ECHO, unknown=tuple(range(0x7000, 0x7008))),
        id="of many unknown ones, the first eight",
    ),
    pytest.param(message(REQUEST, attribute(0x8022, b"abc"), attribute(0xFFFF, b"")), Bare(ECHO), id="optional ones"),
    pytest.param(
        message(REQUEST, attribute(0x06, b"user"), attribute(INTEGRITY, bytes(20)), attribute(0x7FFF, b"")),
        Bare(ECHO),
        id="credentials are skipped, and what follows them",
    ),
    pytest.param(classic(), Bare(CLASSIC, True), id="RFC 3489"),
    pytest.param(classic(attribute(CHANGE, bytes(4))), Bare(CLASSIC, True), id="RFC 3489, no flag"),
    pytest.param(classic(attribute(CHANGE, b"\0\0\0\6")), Bare(CLASSIC, True, True, True), id="RFC 3489, both flags"),
    pytest.param(
        classic(attribute(0x0002, bytes(8))), Bare(CLASSIC, True, unknown=(0x0002,)), id="RESPONSE-ADDRESS is unknown"
    ),
]


@pytest.mark.parametrize(("data", "request_"), UNDERSTOOD)
def test_a_request_asks_for_what_its_attributes_say(data: bytes, request_: stun_server.BindingRequest) -> None:
    assert stun_server.decode_request(data, behaviour=True) == request_


def test_without_behaviour_discovery_its_attributes_are_unknown() -> None:
    wanted = attribute(CHANGE, bytes(4)), attribute(PADDING, bytes(4)), attribute(RESPONSE_PORT, bytes(4))
    modern = stun_server.decode_request(message(REQUEST, *wanted), behaviour=False)
    assert modern.unknown == (CHANGE, PADDING, RESPONSE_PORT)
    assert stun_server.decode_request(classic(wanted[0]), behaviour=False).unknown == ()
    flagged = stun_server.decode_request(classic(attribute(CHANGE, b"\0\0\0\4")), behaviour=False)
    assert flagged.unknown == (CHANGE,)


def test_the_request_of_rfc_5769_is_understood_but_for_priority_which_is_ices() -> None:
    request = stun_server.decode_request(RFC_REQUEST, behaviour=True)
    assert request == Bare(b"\x21\x12\xa4\x42" + RFC_ID, unknown=(0x0024,), is_fingerprinted=True)


IGNORED = [
    pytest.param(b"", id="nothing"),
    pytest.param(message(REQUEST)[:19], id="19 bytes"),
    pytest.param(message(REQUEST) + b"\0\0\0\0", id="more than announced"),
    pytest.param(b"\0\1\0\3" + ECHO + bytes(3), id="a length that is no multiple of four"),
    pytest.param(message(0x0011), id="an indication"),
    pytest.param(message(0x0101), id="a success"),
    pytest.param(message(0x0111), id="an error"),
    pytest.param(message(0x0003), id="another method"),
    pytest.param(message(REQUEST, attribute(CHANGE, bytes(4), size=8)), id="an attribute that is cut off"),
    pytest.param(message(REQUEST, attribute(CHANGE, bytes(8))), id="CHANGE-REQUEST of eight bytes"),
    pytest.param(message(REQUEST, attribute(RESPONSE_PORT, bytes(3))), id="RESPONSE-PORT of three bytes"),
    pytest.param(fingerprinted(REQUEST)[:-1] + b"?", id="a wrong FINGERPRINT"),
]


@pytest.mark.parametrize("data", IGNORED)
def test_what_is_not_one_whole_request_is_refused_by_the_codec(data: bytes) -> None:
    with pytest.raises(DecodeError):
        stun_server.decode_request(data, behaviour=True)


# --- answers ---------------------------------------------------------------------------------------------------------


def test_a_bare_request_is_answered_by_one_attribute_or_by_four() -> None:
    xored = bytes.fromhex("0001bd52ea12d545")  # 40000 ^ 0x2112, 203.0.113.7 ^ the cookie
    assert parsed(stun_server.encode_bare_success(ECHO, SEEN, None)) == [(0x20, xored)]
    with_discovery = stun_server.encode_bare_success(ECHO, SEEN, ORIGIN)
    assert parsed(with_discovery) == [(0x20, xored), (0x01, SEEN_VALUE), (0x802B, HERE_VALUE), (0x802C, OTHER_VALUE)]
    assert with_discovery[:20] == b"\x01\x01\x00\x30" + ECHO


def test_a_classic_client_gets_the_old_attributes_and_its_sixteen_bytes_back() -> None:
    request = stun_server.decode_request(classic(), behaviour=True)
    alone = stun_server.encode_success(request, SEEN, None)
    assert alone[4:20] == CLASSIC
    assert parsed(alone) == [(0x01, SEEN_VALUE)]
    with_discovery = stun_server.encode_success(request, SEEN, ORIGIN)
    assert parsed(with_discovery) == [(0x01, SEEN_VALUE), (0x04, HERE_VALUE), (0x05, OTHER_VALUE)]


@pytest.mark.parametrize(("asked", "given"), [(0, 0), (1, 4), (4, 4), (1499, 1500), (1500, 1500), (2000, 1500)])
def test_padding_is_answered_by_as_much_and_at_most_an_mtu(asked: int, given: int) -> None:
    request = stun_server.decode_request(message(REQUEST, attribute(PADDING, b"x" * asked)), behaviour=True)
    assert parsed(stun_server.encode_success(request, SEEN, ORIGIN))[-1] == (PADDING, bytes(given))


@pytest.mark.parametrize("refused", [True, False])
def test_a_fingerprint_is_answered_by_a_right_one(refused: bool) -> None:
    request = stun_server.decode_request(fingerprinted(REQUEST), behaviour=True)
    answer = stun_server.encode_refusal(request, 400) if refused else stun_server.encode_success(request, SEEN, ORIGIN)
    kind, value = parsed(answer)[-1]
    assert (kind, int.from_bytes(value)) == (0x8028, zlib.crc32(answer[:-8]) ^ 0x5354554E)


def test_a_refusal_names_its_code_and_what_was_unknown() -> None:
    request = stun_server.decode_request(message(REQUEST, attribute(0x7FFE, b""), attribute(7, b"")), behaviour=True)
    refusal = stun_server.encode_refusal(request, 420)
    assert stun.decode_response(refusal) == stun.BindingError(ID, 420, "Unknown Attribute")
    assert parsed(refusal)[1] == (0x0A, b"\x7f\xfe\x00\x07")
    assert parsed(stun_server.encode_refusal(request, 400)) == [(0x09, b"\0\0\4\0Bad Request")]


def test_a_refusal_for_a_classic_client_has_no_padding() -> None:
    request = stun_server.decode_request(classic(attribute(2, bytes(8))), behaviour=True)
    code, unknown = parsed(stun_server.encode_refusal(request, 420))
    assert code == (0x09, b"\0\0\4\x14Unknown Attribute   ")
    assert unknown == (0x0A, b"\0\2\0\2")


@given(transaction_ids, endpoints, st.booleans(), st.booleans())
def test_our_own_client_reads_back_what_the_server_saw(
    transaction_id: bytes, seen: Endpoint, discovery: bool, sealed: bool
) -> None:
    address = seen.ip.packed, seen.port
    origin = stun_server.Origin.of(address, address) if discovery else None
    echo = b"\x21\x12\xa4\x42" + transaction_id
    request = stun_server.BindingRequest(echo, is_fingerprinted=sealed)
    for answer in (
        stun_server.encode_bare_success(echo, address, origin),
        stun_server.encode_success(request, address, origin),
    ):
        assert stun.decode_response(answer) == stun.BindingSuccess(transaction_id, seen)


def test_both_encoders_give_a_bare_request_the_same_bytes() -> None:
    request = stun_server.BindingRequest(ECHO)
    for seen in (SEEN, (ip_address("2001:db8::7").packed, 40000)):
        for origin in (None, ORIGIN):
            bare = stun_server.encode_bare_success(ECHO, seen, origin)
            assert bare == stun_server.encode_success(request, seen, origin)


request_shaped = st.lists(
    st.builds(
        lambda kind, value, lie: attribute(kind, value, size=len(value) if lie is None else lie),
        st.sampled_from([CHANGE, PADDING, RESPONSE_PORT, INTEGRITY, 0x02, 0x06, 0x1C, 0x7FFF, 0x8022, 0x8028]),
        st.one_of(st.binary(max_size=8), st.integers(0, 7).map(lambda flags: bytes((0, 0, 0, flags)))),
        st.one_of(st.none(), st.none(), st.integers(0, 40), st.just(0xFFFF)),
    ),
    max_size=6,
)


@given(request_shaped, st.booleans(), st.booleans(), st.booleans())
def test_a_hostile_request_never_raises_anything_but_the_codecs_own_error(
    attributes: list[bytes], behaviour: bool, is_classic: bool, sealed: bool
) -> None:
    data = classic(*attributes) if is_classic else (fingerprinted if sealed else message)(REQUEST, *attributes)
    with contextlib.suppress(DecodeError):
        request = stun_server.decode_request(data, behaviour=behaviour)
        assert request.echo == data[4:20]
        assert len(request.unknown) <= 8
        for answer in (
            stun_server.encode_success(request, SEEN, ORIGIN if behaviour else None),
            stun_server.encode_refusal(request, 420),
        ):
            assert answer[4:20] == request.echo
            assert parsed(answer)
