"""The codec against anything: round trips, every truncation, every bit flip, and a second decoder that must agree."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from punchd.media.counters import VALIDATION_ERRORS
from punchd.media.datagrams import (
    Ack,
    ConnectionId,
    Datagram,
    DatagramError,
    Media,
    Start,
    Syn,
    SynAck,
    encode,
    parse,
)
from punchd.media.options import Options
from tests.unit.media import oracle
from tests.unit.media.test_options import options


def _view(payload: bytes) -> memoryview:
    return memoryview(payload)


u64 = st.integers(0, 2**64 - 1) | st.sampled_from([0, 1, 2**32, 2**63, 2**64 - 1])
ids = st.binary(max_size=36).map(lambda text: text.replace(b"\0", b"n"))
payloads = st.binary(max_size=80).map(_view)
frames = st.one_of(
    st.tuples(u64, u64, u64, payloads).map(lambda fields: Media(*fields)),
    st.tuples(u64, u64, u64, payloads, u64, u64).map(lambda fields: Media(*fields)),
    st.builds(Syn, ids, options),
    st.builds(SynAck, st.just(True), ids.filter(bool), options),
    st.builds(SynAck, st.just(False), ids, options),
    st.builds(Ack, ids, options),
    st.builds(ConnectionId, ids),
)
shaped = st.builds(
    lambda flag, rest: flag.to_bytes(2, "little") + rest,
    st.sampled_from([0x0000, 0x0001, 0x0100, 0x0101, 0x0102, 0x1000]) | st.integers(0, 65535),
    st.binary(max_size=90) | st.binary(max_size=45).map(lambda tail: bytes(24) + b"\x01\x01\0\0" + tail + bytes(20)),
)


def _option_numbers(value: Options) -> dict[int, int]:
    numbers = {0x8001: value.max_total, 0x8002: value.max_datagram, 0x8003: value.rate}
    return {kind: number for kind, number in numbers.items() if number is not None}


def as_words(value: Datagram) -> dict[str, object]:
    """A value in the words of the other decoder."""
    match value:
        case Media(sequence, qpc, qpf, payload, offset, total):
            numbers = {"flag": int(total is not None), "sequence": sequence, "qpc": qpc, "qpf": qpf}
            block = {} if total is None else {"offset": offset, "total": total}
            return {"kind": "data" if total is None else "fragment", **numbers, **block, "payload": bytes(payload)}
        case Syn(desired, found, version):
            if version != 1:
                return {"kind": "syn", "version": version}
            return {"kind": "syn", "version": 1, "id": desired, "options": _option_numbers(found)}
        case SynAck(accept, text, found):
            words = {"kind": "syn-ack", "version": 1, "id": text, "options": _option_numbers(found)}
            return {**words, "accept": accept}
        case Ack(confirmed, found):
            return {"kind": "ack", "version": 1, "id": confirmed, "options": _option_numbers(found)}
        case ConnectionId(text):
            return {"kind": "connection-id", "id": text}
        case Start():
            raise AssertionError("START was not configured")


def agree(data: bytes) -> None:
    """Both decoders say the same; the first raises nothing but its own error."""
    answer: oracle.Answer
    try:
        answer = as_words(parse(data))
    except DatagramError as error:
        answer = error.reason.name if error.reason in VALIDATION_ERRORS else "not a validation error"
    assert answer == oracle.decode(data)


@settings(deadline=None)
@given(frames)
def test_what_is_encoded_is_parsed(frame: Datagram) -> None:
    assert parse(encode(frame)) == frame
    assert parse(memoryview(encode(frame))) == frame
    assert oracle.decode(encode(frame)) == as_words(frame)


@settings(deadline=None)
@given(frames)
def test_msp_c40_every_truncation_is_parsed_or_is_the_codecs_error(frame: Datagram) -> None:
    data = encode(frame)
    for size in range(len(data)):
        agree(data[:size])


@settings(deadline=None)
@given(frames)
def test_msp_c41_every_bit_flip_is_parsed_or_is_the_codecs_error(frame: Datagram) -> None:
    data = encode(frame)
    for bit in range(8 * min(len(data), 80)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        agree(bytes(flipped))


@settings(deadline=None)
@given(shaped)
def test_a_second_decoder_agrees_about_everything(data: bytes) -> None:
    agree(data)
