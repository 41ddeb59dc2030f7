"""The STUN codec: published vectors, recorded answers, an independent implementation, and hostile attributes."""

from __future__ import annotations

import contextlib
import struct
import zlib
from ipaddress import IPv4Address, IPv6Address, ip_address

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy

from punchd.endpoint import Endpoint
from punchd.errors import DecodeError
from punchd.wire import stun

ID = bytes(range(1, 13))
SEEN = Endpoint(ip_address("192.0.2.1"), 32853)
SEEN6 = Endpoint(ip_address("2001:db8:1234:5678:11:2233:4455:6677"), 32853)

SUCCESS, ERROR = 0x0101, 0x0111
MAPPED, INTEGRITY, CODE, SHA256, XORED, SOFTWARE, FINGERPRINT = 0x01, 0x08, 0x09, 0x1C, 0x20, 0x8022, 0x8028
XORED_SEEN = bytes.fromhex("0001a147e112a643")  # 192.0.2.1:32853; the IPv4 form does not depend on the id
MAPPED_OTHER = bytes.fromhex("00011388cb007109")  # 203.0.113.9:5000

# RFC 5769: §2.1 request, §2.2 IPv4 response, §2.3 IPv6 response.
RFC_ID = bytes.fromhex("b7e7a701bc34d686fa87dfae")
RFC_REQUEST = bytes.fromhex(
    "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b1"
    "51263b36000600096576746a3a68367659202020000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf"
)
RFC_RESPONSE4 = bytes.fromhex(
    "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643000800142b91f599"
    "fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96"
)
RFC_RESPONSE6 = bytes.fromhex(
    "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5"
    "bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c"
)
# What coturn 4.6.1 answered on loopback to 127.0.0.1:45678, with ID as transaction id.
COTURN_PLAIN = bytes.fromhex(
    "0101003c2112a4420102030405060708090a0b0c002000080001937c5e12a443000100080001b26e7f000001802b0008000187dc7f000001"
    "80220014436f7475726e2d342e362e312027476f72737427"
)
COTURN_FINGERPRINTED = bytes.fromhex(
    "010100442112a4420102030405060708090a0b0c002000080001937c5e12a443000100080001b26e7f000001802b0008000187dc7f000001"
    "80220014436f7475726e2d342e362e312027476f72737427802800048d02e99b"
)
COTURN_ERROR = bytes.fromhex(
    "0111003c2112a4420102030405060708090a0b0c0009001800000414556e6b6e6f776e20417474726962757465000000000a00027fff0000"
    "80220014436f7475726e2d342e362e312027476f72737427"
)
# The same server speaking RFC 3489 (MAPPED-, SOURCE-, CHANGED-ADDRESS); it echoes 16 bytes, here our cookie and ID.
COTURN_RFC3489 = bytes.fromhex(
    "010100402112a4420102030405060708090a0b0c000100080001b26e7f00000100040008000187dc7f00000100050008000187dc7f000001"
    "80220018436f7475726e2d342e362e312027476f7273742700000000"
)


def attribute(kind: int, value: bytes, *, size: int | None = None) -> bytes:
    """One attribute as it stands on the wire; `size` lies about its length."""
    return struct.pack("!HH", kind, len(value) if size is None else size) + value + bytes(-len(value) % 4)


def message(kind: int, *attributes: bytes) -> bytes:
    body = b"".join(attributes)
    return struct.pack("!HH", kind, len(body)) + b"\x21\x12\xa4\x42" + ID + body


def fingerprinted(kind: int, *attributes: bytes) -> bytes:
    """The message with a right FINGERPRINT behind its attributes."""
    unfinished = message(kind, *attributes, attribute(FINGERPRINT, bytes(4)))
    return unfinished[:-4] + struct.pack("!I", zlib.crc32(unfinished[:-8]) ^ 0x5354554E)


endpoints = st.builds(
    Endpoint,
    st.one_of(st.builds(IPv4Address, st.integers(0, 2**32 - 1)), st.builds(IPv6Address, st.integers(0, 2**128 - 1))),
    st.integers(0, 65535),
)
transaction_ids = st.binary(min_size=12, max_size=12)


def attribute_shaped() -> SearchStrategy[bytes]:
    """Attributes that look right and are wrong in one place: type, family, length of the value, announced length."""
    kinds = st.sampled_from([MAPPED, XORED, CODE, INTEGRITY, SHA256, FINGERPRINT, SOFTWARE, 0x05, 0x2B, 0x7FFF, 0xFFFF])
    addresses = st.builds(
        lambda family, port, rest: bytes((0, family)) + port + rest,
        st.sampled_from([0, 1, 2, 3]),
        st.binary(min_size=2, max_size=2),
        st.one_of(*(st.binary(min_size=size, max_size=size) for size in (0, 3, 4, 5, 15, 16, 17, 20))),
    )
    codes = st.builds(
        lambda hundreds, rest, reason: bytes((0, 0, hundreds, rest)) + reason,
        st.integers(0, 255),
        st.integers(0, 255),
        st.binary(max_size=12),
    )
    values = st.one_of(addresses, codes, st.binary(max_size=24))
    sizes = st.one_of(st.none(), st.none(), st.integers(0, 40), st.just(0xFFFF))
    return st.builds(lambda kind, value, size: attribute(kind, value, size=size), kinds, values, sizes)


message_shaped = st.builds(
    lambda kind, attributes, sealed: (fingerprinted if sealed else message)(kind, *attributes),
    st.sampled_from([SUCCESS, SUCCESS, ERROR, 0x0001, 0x0011, 0x0103]),
    st.lists(attribute_shaped(), max_size=4),
    st.booleans(),
)


# --- what others say -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("data", "mapped"), [(RFC_RESPONSE4, SEEN), (RFC_RESPONSE6, SEEN6)])
def test_the_responses_of_rfc_5769_are_understood(data: bytes, mapped: Endpoint) -> None:
    assert stun.decode_response(data) == stun.BindingSuccess(RFC_ID, mapped)


@pytest.mark.parametrize("data", [COTURN_PLAIN, COTURN_FINGERPRINTED, COTURN_RFC3489])
def test_recorded_answers_of_coturn_are_understood(data: bytes) -> None:
    assert stun.decode_response(data) == stun.BindingSuccess(ID, Endpoint(ip_address("127.0.0.1"), 45678))


def test_a_recorded_refusal_of_coturn_is_understood_though_it_pads_its_reason_inside() -> None:
    assert stun.decode_response(COTURN_ERROR) == stun.BindingError(ID, 420, "Unknown Attribute")


def test_the_request_of_rfc_5769_is_refused_for_the_attributes_of_ice() -> None:
    with pytest.raises(DecodeError, match="0x0024: must be understood"):
        stun.decode_request(RFC_REQUEST)


@given(transaction_ids, endpoints)
@settings(deadline=None)  # the first example imports scapy
def test_scapy_reads_the_same_address_from_our_answer(transaction_id: bytes, mapped: Endpoint) -> None:
    from scapy.contrib.stun import STUN

    packet = STUN(stun.encode_success(transaction_id, mapped))
    (shown,) = packet.attributes
    assert packet.sprintf("%STUN.stun_message_type%") == "Binding success response"
    assert packet.transaction_id.to_bytes(12) == transaction_id
    assert (ip_address(shown.xip), shown.xport) == (mapped.ip, mapped.port)


@given(transaction_ids, endpoints)
@settings(deadline=None)  # the first example imports scapy
def test_we_read_the_same_address_from_scapys_rfc_3489_answer(transaction_id: bytes, mapped: Endpoint) -> None:
    from scapy.contrib.stun import STUN, STUNMappedAddress

    family = 1 if mapped.ip.version == 4 else 2
    shown = STUNMappedAddress(address_family=family, port=mapped.port, ip=str(mapped.ip))
    packet = STUN(stun_message_type=SUCCESS, transaction_id=int.from_bytes(transaction_id), attributes=[shown])
    assert stun.decode_response(bytes(packet)) == stun.BindingSuccess(transaction_id, mapped)


# --- encoding --------------------------------------------------------------------------------------------------------


def test_a_request_and_an_indication_are_bare_headers() -> None:
    assert stun.encode_request(ID).hex() == "000100002112a442" + ID.hex()
    assert stun.encode_indication(ID).hex() == "001100002112a442" + ID.hex()


@given(transaction_ids, endpoints)
def test_every_success_is_read_as_it_was_written(transaction_id: bytes, mapped: Endpoint) -> None:
    data = stun.encode_success(transaction_id, mapped)
    assert stun.is_stun(data)
    assert stun.decode_response(data) == stun.BindingSuccess(transaction_id, mapped)


def test_our_answer_hides_the_address_as_rfc_5769_does() -> None:
    assert stun.encode_success(RFC_ID, SEEN)[24:] == RFC_RESPONSE4[40:48]
    assert stun.encode_success(RFC_ID, SEEN6)[24:] == RFC_RESPONSE6[40:60]


@given(transaction_ids, st.integers(300, 699), st.text(st.characters(categories=["L", "N"]), max_size=127))
def test_every_error_is_read_as_it_was_written(transaction_id: bytes, code: int, reason: str) -> None:
    data = stun.encode_error(transaction_id, code, reason)
    assert stun.decode_response(data) == stun.BindingError(transaction_id, code, reason)


@given(transaction_ids)
def test_every_request_is_read_as_it_was_written(transaction_id: bytes) -> None:
    assert stun.decode_request(stun.encode_request(transaction_id)) == transaction_id


@pytest.mark.parametrize("size", [0, 11, 13, 16])
def test_a_transaction_id_has_twelve_bytes(size: int) -> None:
    with pytest.raises(ValueError, match="expected 12 bytes"):
        stun.encode_request(bytes(size))


@pytest.mark.parametrize(("code", "reason"), [(299, ""), (700, ""), (400, "x" * 128)])
def test_an_error_that_the_rfc_does_not_know_is_not_written(code: int, reason: str) -> None:
    with pytest.raises(ValueError, match="error code"):
        stun.encode_error(ID, code, reason)


# --- the header ------------------------------------------------------------------------------------------------------

HEADERS = [
    pytest.param(b"", "at least 20 bytes, got 0", id="nothing"),
    pytest.param(stun.encode_request(ID)[:19], "at least 20 bytes, got 19", id="one byte short"),
    pytest.param(b"\x80" + stun.encode_request(ID)[1:], "first two bits", id="RTP"),
    pytest.param(b"\x40" + stun.encode_request(ID)[1:], "first two bits", id="TURN channel data"),
    pytest.param(b"\0\1\0\0\x21\x12\xa4\x43" + ID, "magic cookie", id="wrong cookie"),
    pytest.param(b"\0\1\0\2\x21\x12\xa4\x42" + ID + b"\0\0", "multiple of 4, got 2", id="odd length"),
]


@pytest.mark.parametrize(("data", "why"), HEADERS)
def test_what_has_no_stun_header_is_told_from_stun(data: bytes, why: str) -> None:
    assert not stun.is_stun(data)
    with pytest.raises(DecodeError, match=why):
        stun.frame_size(data)
    with pytest.raises(DecodeError, match=why):
        stun.decode_response(data)


@pytest.mark.parametrize("data", [RFC_RESPONSE4[:-4], RFC_RESPONSE4 + bytes(4), RFC_RESPONSE4[:20]])
def test_a_message_that_is_not_whole_or_followed_by_more_is_refused(data: bytes) -> None:
    assert not stun.is_stun(data)
    with pytest.raises(DecodeError, match=f"announces 80 bytes, got {len(data)}"):
        stun.decode_response(data)


@pytest.mark.parametrize("data", [RFC_RESPONSE4, RFC_RESPONSE6, RFC_REQUEST, COTURN_ERROR, stun.encode_indication(ID)])
def test_the_first_twenty_bytes_say_how_long_a_frame_is(data: bytes) -> None:
    assert stun.is_stun(data)
    assert stun.frame_size(data[:20]) == len(data)


def test_a_frame_has_at_most_4096_bytes() -> None:
    def head(length: int) -> bytes:
        return struct.pack("!HH", SUCCESS, length) + b"\x21\x12\xa4\x42" + ID

    assert stun.frame_size(head(4076)) == stun.MAX_SIZE == 4096
    with pytest.raises(DecodeError, match="at most 4096 bytes, the header announces 4100"):
        stun.frame_size(head(4080))


@pytest.mark.parametrize("kind", [0x0001, 0x0011, 0x0103, 0x3FFF])
def test_only_binding_responses_are_responses(kind: int) -> None:
    with pytest.raises(DecodeError, match=f"got type 0x{kind:04x}"):
        stun.decode_response(message(kind, attribute(XORED, XORED_SEEN)))


@pytest.mark.parametrize("kind", [0x0101, 0x0111, 0x0011, 0x0003])
def test_only_binding_requests_are_requests(kind: int) -> None:
    with pytest.raises(DecodeError, match=f"got type 0x{kind:04x}"):
        stun.decode_request(message(kind))


def test_a_request_with_credentials_is_taken_and_one_that_wants_another_source_is_not() -> None:
    assert stun.decode_request(fingerprinted(0x0001, attribute(0x06, b"user"), attribute(INTEGRITY, bytes(20)))) == ID
    with pytest.raises(DecodeError, match="0x0003: must be understood"):
        stun.decode_request(message(0x0001, attribute(0x0003, bytes(4))))


# --- attributes ------------------------------------------------------------------------------------------------------

XOR = attribute(XORED, XORED_SEEN)
CLEAR = attribute(MAPPED, MAPPED_OTHER)
OTHER = Endpoint(ip_address("203.0.113.9"), 5000)

ANSWERS = [
    pytest.param(message(SUCCESS, XOR), SEEN, id="XOR-MAPPED-ADDRESS"),
    pytest.param(message(SUCCESS, CLEAR), OTHER, id="MAPPED-ADDRESS"),
    pytest.param(message(SUCCESS, CLEAR, XOR), SEEN, id="the XORed one is preferred wherever it stands"),
    pytest.param(message(SUCCESS, XOR, attribute(XORED, bytes(8))), SEEN, id="of a repeated one the first counts"),
    pytest.param(message(SUCCESS, XOR, attribute(XORED, b"?")), SEEN, id="the repeated one is not even looked at"),
    pytest.param(message(SUCCESS, attribute(SOFTWARE, b"abcde"), XOR), SEEN, id="padding of three bytes"),
    pytest.param(message(SUCCESS, attribute(0xFFFF, b""), XOR), SEEN, id="unknown optional attribute, empty"),
    pytest.param(message(SUCCESS, attribute(0x802C, MAPPED_OTHER), XOR), SEEN, id="OTHER-ADDRESS is ignored"),
    pytest.param(message(SUCCESS, attribute(XORED, b"\xff" + XORED_SEEN[1:])), SEEN, id="the reserved byte is ignored"),
    pytest.param(message(SUCCESS, XOR, attribute(INTEGRITY, b""), attribute(0x7FFF, b"")), SEEN, id="after INTEGRITY"),
    pytest.param(message(SUCCESS, CLEAR, attribute(SHA256, bytes(32)), XOR), OTHER, id="after INTEGRITY-SHA256"),
    pytest.param(fingerprinted(SUCCESS, XOR), SEEN, id="right FINGERPRINT"),
    pytest.param(fingerprinted(SUCCESS, XOR, attribute(INTEGRITY, bytes(20))), SEEN, id="FINGERPRINT after INTEGRITY"),
]


@pytest.mark.parametrize(("data", "mapped"), ANSWERS)
def test_a_success_means_the_address_that_it_names(data: bytes, mapped: Endpoint) -> None:
    assert stun.decode_response(data) == stun.BindingSuccess(ID, mapped)


WRONG_SEAL = fingerprinted(SUCCESS, XOR)[:-1] + b"\0"
REFUSED = [
    pytest.param(message(SUCCESS), "neither XOR-MAPPED-ADDRESS", id="no attribute"),
    pytest.param(message(SUCCESS, attribute(INTEGRITY, b""), XOR), "neither", id="the address after INTEGRITY"),
    pytest.param(message(SUCCESS, XOR, attribute(0x7FFF, b"")), "0x7fff: must be understood", id="unknown attribute"),
    pytest.param(message(SUCCESS, XOR, attribute(SOFTWARE, b"", size=1)), "1 bytes announced, 0 left", id="overrun"),
    pytest.param(message(SUCCESS, attribute(XORED, XORED_SEEN, size=0xFFFF)), "65535 bytes announced", id="far"),
    pytest.param(message(SUCCESS, attribute(XORED, b"")), "STUN address", id="empty address"),
    pytest.param(message(SUCCESS, attribute(XORED, XORED_SEEN[:3])), "STUN address", id="half a port"),
    pytest.param(message(SUCCESS, attribute(XORED, b"\0\2" + bytes(6))), "STUN address", id="IPv6 in four bytes"),
    pytest.param(message(SUCCESS, attribute(XORED, b"\0\1" + bytes(18))), "STUN address", id="IPv4 in sixteen bytes"),
    pytest.param(message(SUCCESS, attribute(XORED, b"\0\2" + bytes(22))), "STUN address", id="IPv6 in twenty bytes"),
    pytest.param(message(SUCCESS, attribute(XORED, b"\0\3" + bytes(6))), "STUN address", id="unknown family"),
    pytest.param(
        message(SUCCESS, attribute(XORED, b""), CLEAR), "STUN address", id="a broken XORed one has no substitute"
    ),
    pytest.param(WRONG_SEAL, "FINGERPRINT: expected 0x", id="wrong FINGERPRINT"),
    pytest.param(fingerprinted(SUCCESS, XOR)[:28] + b"?" + WRONG_SEAL[29:], "FINGERPRINT", id="changed in transit"),
    pytest.param(message(SUCCESS, attribute(FINGERPRINT, bytes(4)), XOR), "message's end", id="FINGERPRINT not last"),
    pytest.param(message(SUCCESS, XOR, attribute(FINGERPRINT, bytes(8))), "4 bytes at", id="FINGERPRINT of 8 bytes"),
    pytest.param(message(SUCCESS, XOR, attribute(FINGERPRINT, b"abc")), "4 bytes at", id="FINGERPRINT of 3 bytes"),
    pytest.param(message(ERROR), "expected an ERROR-CODE of at least 4 bytes, got 0", id="error without a code"),
    pytest.param(message(ERROR, attribute(CODE, b"\0\0\4")), "at least 4 bytes, got 3", id="half a code"),
    pytest.param(message(ERROR, attribute(CODE, b"\0\0\2\0")), "300 to 699, got 2 hundreds", id="code 200"),
    pytest.param(message(ERROR, attribute(CODE, b"\0\0\7\0")), "300 to 699, got 7 hundreds", id="code 700"),
    pytest.param(message(ERROR, attribute(CODE, b"\0\0\4\x64")), "4 hundreds and 100", id="code 4 and 100"),
    pytest.param(message(ERROR, attribute(0x7FFF, b"")), "0x7fff: must be understood", id="unknown in an error"),
]


@pytest.mark.parametrize(("data", "why"), REFUSED)
def test_a_malformed_answer_is_refused_with_a_reason(data: bytes, why: str) -> None:
    with pytest.raises(DecodeError, match=why):
        stun.decode_response(data)


def test_the_reserved_bits_of_an_error_code_are_ignored() -> None:
    assert stun.decode_response(message(ERROR, attribute(CODE, b"\xff\xff\xfc\x01no"))) == stun.BindingError(
        ID, 401, "no"
    )


def test_a_reason_is_cut_and_cannot_forge_log_lines() -> None:
    answer = stun.decode_response(message(ERROR, attribute(CODE, b"\0\0\5\0a\nb\x1b[0m\xff" + b"x" * 600)))
    assert isinstance(answer, stun.BindingError)
    assert answer.reason.startswith("a?b?[0m\ufffdx")
    assert len(answer.reason) == 127


# --- hostile answers -------------------------------------------------------------------------------------------------


@given(message_shaped)
def test_a_hostile_answer_never_raises_anything_but_the_codecs_own_error(data: bytes) -> None:
    assert stun.is_stun(data)
    with contextlib.suppress(DecodeError):
        answer = stun.decode_response(data)
        assert answer.transaction_id == ID
        assert isinstance(answer, stun.BindingSuccess) or (300 <= answer.code <= 699 and answer.reason.isprintable())


@given(message_shaped)
def test_a_hostile_request_never_raises_anything_but_the_codecs_own_error(data: bytes) -> None:
    with contextlib.suppress(DecodeError):
        assert stun.decode_request(data) == ID


@given(st.sampled_from([RFC_RESPONSE4, RFC_RESPONSE6, COTURN_PLAIN, COTURN_ERROR, COTURN_RFC3489]), st.data())
def test_a_cut_or_changed_answer_never_raises_anything_but_the_codecs_own_error(
    data: bytes, draw: st.DataObject
) -> None:
    place = draw.draw(st.integers(0, len(data) - 1))
    changed = data[:place] + bytes((draw.draw(st.integers(0, 255)),)) + data[place + 1 :]
    for hostile in (changed, data[:place], changed[:20] + data[place:]):
        with contextlib.suppress(DecodeError):
            stun.decode_response(hostile)


@given(st.integers(0, 71), st.integers(1, 255))
def test_a_fingerprint_finds_every_changed_byte_of_the_message(place: int, difference: int) -> None:
    changed = bytearray(RFC_RESPONSE4)
    changed[place] ^= difference
    with pytest.raises(DecodeError):
        stun.decode_response(bytes(changed))
