"""The punch datagram: only what was made with the key, unchanged, is ever taken."""

from __future__ import annotations

import hashlib
import hmac

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.errors import DecodeError
from punchd.wire.probe import KEY_SIZE, MAGIC, SIZE, Probe, Role, Type, decode, encode, is_probe

KEY = bytes(range(16))
PROBE = Probe(Type.PROBE, Role.INITIATOR, bytes.fromhex("7f3a9c02d1e84b55"))

probes = st.builds(Probe, st.sampled_from(Type), st.sampled_from(Role), st.binary(min_size=8, max_size=8))
keys = st.binary(min_size=KEY_SIZE, max_size=KEY_SIZE)


def signed(data: bytes, key: bytes = KEY) -> bytes:
    return data + hmac.new(key, data, hashlib.sha256).digest()[:16]


def test_a_datagram_stands_in_bytes_as_the_appendix_says() -> None:
    assert encode(PROBE, KEY) == signed(b"PCH1\x01\x01\x7f\x3a\x9c\x02\xd1\xe8\x4b\x55")


@given(probes, keys)
def test_what_is_encoded_decodes_to_the_same_and_is_told_from_other_datagrams(probe: Probe, key: bytes) -> None:
    data = encode(probe, key)
    assert len(data) == SIZE
    assert is_probe(data)
    assert decode(data, key) == probe


@given(probes, keys, keys)
def test_another_key_opens_nothing(probe: Probe, key: bytes, other: bytes) -> None:
    if key != other:
        with pytest.raises(DecodeError, match="wrong MAC"):
            decode(encode(probe, key), other)


@given(probes, keys)
def test_no_flipped_bit_is_ever_accepted(probe: Probe, key: bytes) -> None:
    data = encode(probe, key)
    for position in range(SIZE * 8):
        flipped = bytearray(data)
        flipped[position // 8] ^= 1 << position % 8
        with pytest.raises(DecodeError):
            decode(bytes(flipped), key)


@given(probes, st.binary(min_size=1, max_size=40))
def test_no_other_length_is_ever_accepted(probe: Probe, more: bytes) -> None:
    data = encode(probe, KEY)
    for wrong in (*(data[:size] for size in range(SIZE)), data + more, more + data, data[1:] + more[:1]):
        with pytest.raises(DecodeError):
            decode(wrong, KEY)


@given(st.binary(max_size=60))
def test_any_bytes_give_a_decode_error(data: bytes) -> None:
    for wrong in (data, MAGIC + data, MAGIC + data.ljust(26, b"\0")[:26]):
        with pytest.raises(DecodeError):
            decode(wrong, KEY)


@pytest.mark.parametrize(("kind", "role"), [(0, 1), (4, 1), (255, 1), (1, 0), (1, 3), (1, 255)])
def test_an_unknown_type_or_role_is_refused_even_with_a_right_mac(kind: int, role: int) -> None:
    data = signed(MAGIC + bytes((kind, role)) + PROBE.nonce)
    with pytest.raises(DecodeError, match=f"unknown type {kind} or role {role}"):
        decode(data, KEY)


def test_a_datagram_cannot_be_sent_back_to_its_sender_as_the_peers() -> None:
    data = encode(PROBE, KEY)
    assert decode(data, KEY).role is Role.INITIATOR  # and what is expected there is a responder's
    with pytest.raises(DecodeError):
        decode(data[:5] + bytes((Role.RESPONDER,)) + data[6:], KEY)


@pytest.mark.parametrize(("nonce", "key"), [(bytes(7), KEY), (bytes(9), KEY), (bytes(8), bytes(15)), (bytes(8), b"")])
def test_a_wrong_nonce_or_key_is_this_daemons_fault(nonce: bytes, key: bytes) -> None:
    with pytest.raises(ValueError, match="nonce of"):
        encode(Probe(Type.ACK, Role.RESPONDER, nonce), key)


@pytest.mark.parametrize("key", [b"", bytes(15), bytes(17)])
def test_no_datagram_is_checked_with_a_key_of_another_size(key: bytes) -> None:
    with pytest.raises(ValueError, match="key of"):
        decode(signed(MAGIC + bytes((1, 1)) + PROBE.nonce, key), key)


@pytest.mark.parametrize(
    ("data", "verdict"),
    [
        (b"", False),
        (MAGIC, False),
        (MAGIC + bytes(25), False),
        (MAGIC + bytes(26), True),
        (MAGIC + bytes(2000), True),
        (b"PCH2" + bytes(26), False),
        (b"\0" + MAGIC + bytes(26), False),
    ],
)
def test_what_the_filter_of_a_handed_over_socket_drops(data: bytes, verdict: bool) -> None:
    assert is_probe(data) is verdict
