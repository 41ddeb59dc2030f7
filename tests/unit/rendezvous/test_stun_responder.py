"""What the STUN server answers, from where and to which port: RFC 5780 §6.1 as tables, and any bytes at all."""

from __future__ import annotations

from ipaddress import ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.endpoint import Endpoint
from punchd.errors import DecodeError
from punchd.rendezvous.stun_layout import places
from punchd.rendezvous.stun_responder import Answer, Responder
from punchd.wire import stun
from tests.unit.test_stun import ID, attribute, fingerprinted, message
from tests.unit.test_stun_server_codec import (
    CHANGE,
    PADDING,
    REQUEST,
    RESPONSE_PORT,
    classic,
    parsed,
    request_shaped,
)

ADDRESSES = [ip_address("192.0.2.10"), ip_address("192.0.2.20")]
GRID = places([Endpoint(ip, 3478) for ip in ADDRESSES])
DISCOVERY = Responder(GRID)
PLAIN = Responder(places([Endpoint(ADDRESSES[0], 3478)]))
CLIENT = Endpoint(ip_address("203.0.113.7"), 40000)
SEEN = CLIENT.ip.packed, CLIENT.port
SEEN6 = ip_address("2001:db8::7").packed, 40000
ORIGIN, OTHER = 0x802B, 0x802C
IP_UDP_SIZE = {4: 28, 16: 48}  # headers, by the size of an address


def value(endpoint: Endpoint) -> bytes:
    return b"\0\1" + endpoint.port.to_bytes(2) + endpoint.ip.packed


def changed(flags: int) -> bytes:
    return attribute(CHANGE, bytes((0, 0, 0, flags)))


def refused(answer: Answer | bytes | None) -> tuple[int, bytes]:
    """The code of a refusal, and the attributes that it names."""
    assert answer is not None
    payload = answer.payload if isinstance(answer, Answer) else answer
    error = stun.decode_response(payload)
    assert isinstance(error, stun.BindingError)
    return error.code, dict(parsed(payload)).get(0x0A, b"")


@pytest.mark.parametrize("place", range(4))
@pytest.mark.parametrize(("flags", "other_ip", "other_port"), [(0, 0, 0), (4, 1, 0), (2, 0, 1), (6, 1, 1)])
def test_table_1_of_rfc_5780(place: int, flags: int, other_ip: int, other_port: int) -> None:
    asked = GRID[place].endpoint
    ports = {3478: 3479, 3479: 3478}
    far = next(ip for ip in ADDRESSES if ip != asked.ip)
    source = Endpoint(far if other_ip else asked.ip, ports[asked.port] if other_port else asked.port)

    answer = DISCOVERY.answer_datagram(message(REQUEST, changed(flags)), SEEN, place)

    assert answer is not None
    assert GRID[answer.place].endpoint == source
    assert answer.port == CLIENT.port
    attributes = dict(parsed(answer.payload))
    assert attributes[ORIGIN] == value(source)
    assert attributes[OTHER] == value(Endpoint(far, ports[asked.port]))
    assert stun.decode_response(answer.payload) == stun.BindingSuccess(ID, CLIENT)


@pytest.mark.parametrize("place", range(4))
def test_a_bare_request_learns_of_the_other_address_too(place: int) -> None:
    bare = DISCOVERY.answer_datagram(message(REQUEST), SEEN, place)
    assert bare == DISCOVERY.answer_datagram(message(REQUEST, changed(0)), SEEN, place)
    assert bare is not None
    assert bare.place == place


def test_a_classic_client_is_answered_from_where_it_wants_and_told_the_changed_address() -> None:
    answer = DISCOVERY.answer_datagram(classic(changed(6)), SEEN, 0)
    assert answer is not None
    assert answer.place == 3
    here = value(GRID[3].endpoint)
    assert parsed(answer.payload) == [(0x01, value(CLIENT)), (0x04, here), (0x05, here)]


@pytest.mark.parametrize("kind", [CHANGE, PADDING, RESPONSE_PORT])
def test_without_a_second_address_behaviour_discovery_is_refused(kind: int) -> None:
    answer = PLAIN.answer_datagram(message(REQUEST, attribute(kind, bytes(4))), SEEN, 0)
    assert refused(answer) == (420, kind.to_bytes(2))


@pytest.mark.parametrize("kind", [CHANGE, PADDING, RESPONSE_PORT])
def test_over_tcp_behaviour_discovery_is_refused(kind: int) -> None:
    assert refused(DISCOVERY.answer_frame(message(REQUEST, attribute(kind, bytes(4))), SEEN, 0)) == (
        420,
        kind.to_bytes(2),
    )


def test_over_tcp_the_other_address_is_told() -> None:
    answer = DISCOVERY.answer_frame(message(REQUEST), SEEN, 1)
    assert answer is not None
    assert dict(parsed(answer))[OTHER] == value(GRID[2].endpoint)
    assert stun.decode_response(answer) == stun.BindingSuccess(ID, CLIENT)


def test_over_tcp_an_indication_is_not_answered_and_a_malformed_request_ends_the_connection() -> None:
    assert PLAIN.answer_frame(message(0x0011), SEEN, 0) is None
    with pytest.raises(DecodeError):
        PLAIN.answer_frame(message(REQUEST, attribute(6, b"", size=9)), SEEN, 0)


def test_response_port_names_another_port_of_the_same_address() -> None:
    answer = DISCOVERY.answer_datagram(message(REQUEST, attribute(RESPONSE_PORT, b"\x9c\x41\0\0")), SEEN, 0)
    assert answer is not None
    assert (answer.place, answer.port) == (0, 40001)
    assert stun.decode_response(answer.payload) == stun.BindingSuccess(ID, CLIENT)


@pytest.mark.parametrize("port", [0, 53, 1023])
def test_response_port_reaches_no_port_where_services_live(port: int) -> None:
    answer = DISCOVERY.answer_datagram(message(REQUEST, attribute(RESPONSE_PORT, port.to_bytes(2) + b"\0\0")), SEEN, 0)
    assert refused(answer) == (400, b"")
    assert answer is not None
    assert answer.port == CLIENT.port


def test_response_port_with_padding_is_refused() -> None:
    wanted = attribute(RESPONSE_PORT, b"\x9c\x41\0\0"), attribute(PADDING, bytes(100))
    answer = DISCOVERY.answer_datagram(message(REQUEST, *wanted), SEEN, 0)
    assert refused(answer) == (400, b"")
    assert answer is not None
    assert answer.port == CLIENT.port


def test_an_unknown_attribute_is_refused_before_anything_else_is_done() -> None:
    wanted = changed(6), attribute(RESPONSE_PORT, b"\x9c\x41\0\0"), attribute(0x7FFF, b"")
    answer = DISCOVERY.answer_datagram(message(REQUEST, *wanted), SEEN, 0)
    assert refused(answer) == (420, b"\x7f\xff")
    assert answer is not None
    assert (answer.place, answer.port) == (0, CLIENT.port)


@given(st.one_of(st.binary(max_size=200), st.binary(max_size=60).map(lambda rest: b"\0\1" + rest)))
def test_any_bytes_raise_nothing_and_what_is_not_stun_is_not_answered(data: bytes) -> None:
    is_message = data[:2] == b"\0\1" and len(data) >= 20 and int.from_bytes(data[2:4]) == len(data) - 20
    for responder in (DISCOVERY, PLAIN):
        assert responder.answer_datagram(data, SEEN, 0) is None or is_message


@given(
    request_shaped, st.booleans(), st.booleans(), st.sampled_from([SEEN, SEEN6]), st.sampled_from([DISCOVERY, PLAIN])
)
def test_no_request_is_answered_at_a_higher_ratio_than_a_bare_one_with_discovery(
    attributes: list[bytes], is_classic: bool, sealed: bool, seen: tuple[bytes, int], responder: Responder
) -> None:
    data = classic(*attributes) if is_classic else (fingerprinted if sealed else message)(REQUEST, *attributes)
    headers = IP_UDP_SIZE[len(seen[0])]
    bare = DISCOVERY.answer_datagram(message(REQUEST), seen, 0)
    answer = responder.answer_datagram(data, seen, 0)
    assert bare is not None
    if answer is not None:
        assert (len(answer.payload) + headers) / (len(data) + headers) <= (len(bare.payload) + headers) / (20 + headers)


def test_the_answer_to_a_bare_request_is_as_short_as_said() -> None:
    sizes = [
        len(answer.payload)
        for responder in (PLAIN, DISCOVERY)
        for seen in (SEEN, SEEN6)
        if (answer := responder.answer_datagram(message(REQUEST), seen, 0))
    ]
    # the places are IPv4 here: a server's own IPv6 addresses take twelve bytes more each
    assert sizes == [32, 44, 68, 92]
