"""The userspace NATs' packet patching, with scapy as the oracle: after every change, all checksums are still right."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scapy.layers.inet import ICMP, IP, TCP, UDP, IPerror

from tests.natlab.packet import Packet, ones_sum, shifted_sack

addresses = st.integers(1, 2**32 - 1)
ports = st.integers(0, 65535)
endpoints = st.tuples(addresses, ports)
numbers = st.integers(0, 2**32 - 1)
payloads = st.binary(max_size=60)


def dotted(address: int) -> str:
    return ".".join(str(byte) for byte in address.to_bytes(4, "big"))


def parse(packet: IP) -> Packet:
    parsed = Packet.parse(bytes(packet))
    assert parsed is not None
    return parsed


def assert_checksums_are_right(data: bytes | bytearray) -> IP:
    """Lets scapy compute them anew and compares."""
    packet = IP(bytes(data))
    again = IP(bytes(data))
    for layer in (IP, TCP, UDP, ICMP, IPerror):
        if again.haslayer(layer):
            del again[layer].chksum
    assert bytes(again) == bytes(data)
    return packet


@given(protocol=st.sampled_from([TCP, UDP]), old=endpoints, new=endpoints, remote=endpoints, payload=payloads)
def test_a_new_source_or_target_keeps_every_checksum_right(
    protocol: type[TCP | UDP],
    old: tuple[int, int],
    new: tuple[int, int],
    remote: tuple[int, int],
    payload: bytes,
) -> None:
    made = IP(src=dotted(old[0]), dst=dotted(remote[0])) / protocol(sport=old[1], dport=remote[1]) / payload
    packet = parse(made)
    assert (packet.source, packet.target) == (old, remote)
    packet.set_source(new)
    seen = assert_checksums_are_right(packet.data)
    assert (seen.src, seen[protocol].sport) == (dotted(new[0]), new[1])
    packet.set_target(old)
    seen = assert_checksums_are_right(packet.data)
    assert (seen.dst, seen[protocol].dport) == (dotted(old[0]), old[1])


@given(old=endpoints, new=endpoints, payload=payloads)
def test_an_echo_has_its_identifier_for_a_port(old: tuple[int, int], new: tuple[int, int], payload: bytes) -> None:
    packet = parse(IP(src=dotted(old[0]), dst="192.0.2.1") / ICMP(type=8, id=old[1], seq=7) / payload)
    assert packet.source == old
    packet.set_source(new)
    seen = assert_checksums_are_right(packet.data)
    assert (seen.src, seen[ICMP].id, seen[ICMP].seq) == (dotted(new[0]), new[1], 7)


def test_a_datagram_without_checksum_stays_without() -> None:
    made = bytearray(bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2) / b"x"))
    made[26:28] = b"\0\0"
    packet = Packet.parse(bytes(made))
    assert packet is not None
    packet.set_source((5, 6))
    assert packet.data[26:28] == b"\0\0"


@given(sequence=numbers, acknowledgement=numbers, edges=st.lists(numbers, min_size=2, max_size=2), amount=numbers)
def test_shifted_sequence_numbers_keep_the_checksum_right(
    sequence: int, acknowledgement: int, edges: list[int], amount: int
) -> None:
    options = [("SAck", tuple(edges)), ("NOP", None), ("Timestamp", (1, 2))]  # the blocks lie at an even offset,
    for placed in (options, [("NOP", None), *options]):  # and at an odd one
        made = IP(src="192.0.2.1", dst="192.0.2.2") / TCP(flags="A", seq=sequence, ack=acknowledgement, options=placed)
        packet = parse(made / b"data")
        packet.shift_sequence(amount)
        packet.shift_acknowledgement(-amount)
        seen = assert_checksums_are_right(packet.data)
        assert seen[TCP].seq == (sequence + amount) % 2**32
        assert seen[TCP].ack == (acknowledgement - amount) % 2**32
        assert dict(seen[TCP].options)["SAck"] == tuple((edge - amount) % 2**32 for edge in edges)


def test_an_acknowledgement_number_without_the_flag_is_left_alone() -> None:
    packet = parse(IP(src="192.0.2.1", dst="192.0.2.2") / TCP(flags="S", ack=5))
    before = bytes(packet.data)
    packet.shift_acknowledgement(1)
    assert packet.data == before


@given(inside=endpoints, public=endpoints, cut=st.integers(8, 40), sequence=numbers, shift=numbers)
def test_the_quote_of_an_error_is_translated_and_the_error_stays_right(
    inside: tuple[int, int], public: tuple[int, int], cut: int, sequence: int, shift: int
) -> None:
    sent = IP(src=dotted(public[0]), dst="192.0.2.9") / TCP(sport=public[1], dport=80, flags="S", seq=sequence)
    whole = bytes(sent / b"some data that may be cut off")
    error = IP(src="203.0.113.254", dst=dotted(public[0])) / ICMP(type=11) / whole[: 20 + cut]
    packet = parse(error)
    assert packet.is_error
    quoted = packet.quote()
    assert quoted is not None
    assert quoted.source == public
    quoted.set_source(inside)
    quoted.shift_sequence(shift)
    packet.set_quote(quoted)
    packet.set_target((inside[0], 0))
    seen = IP(bytes(packet.data))
    assert ones_sum(bytes(packet.data[20:])) == 0xFFFF
    assert seen.dst == dotted(inside[0])
    assert seen[IPerror].src == dotted(inside[0])
    # scapy does not dissect a TCP header that was cut off, so by hand: the port, and four bytes on the sequence number
    port, number = bytes(packet.data[48:50]), bytes(packet.data[52:56])
    assert (int.from_bytes(port, "big"), int.from_bytes(number, "big")) == (inside[1], (sequence + shift) % 2**32)
    assert ones_sum(bytes(packet.data[28:48])) == 0xFFFF


def test_an_error_about_udp_is_understood() -> None:
    sent = IP(src="198.51.100.1", dst="192.0.2.9") / UDP(sport=5000, dport=9) / b"x"
    quoted = parse(IP(src="192.0.2.9", dst="198.51.100.1") / ICMP(type=3, code=3) / bytes(sent)).quote()
    assert quoted is not None
    assert quoted.source[1] == IP(bytes(quoted.data))[UDP].sport == 5000


@given(ttl=st.integers(1, 254))
def test_a_hop_is_taken_back(ttl: int) -> None:
    packet = parse(IP(src="192.0.2.1", dst="192.0.2.2", ttl=ttl) / UDP(sport=1, dport=2))
    packet.raise_ttl()
    assert assert_checksums_are_right(packet.data).ttl == ttl + 1


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x45" + bytes(18),
        bytes(20),
        bytes([0x65]) + bytes(39),
        bytes(IP(src="192.0.2.1", dst="192.0.2.2", proto=47) / bytes(20)),
        bytes(IP(src="192.0.2.1", dst="192.0.2.2", flags="MF") / UDP(sport=1, dport=2)),
        bytes(IP(src="192.0.2.1", dst="192.0.2.2", frag=1) / UDP(sport=1, dport=2)),
        bytes(IP(src="192.0.2.1", dst="192.0.2.2") / UDP(sport=1, dport=2))[:-1],
        bytes(IP(src="192.0.2.1", dst="192.0.2.2") / ICMP(type=13)),
        bytes(IP(src="192.0.2.1", dst="192.0.2.2", ihl=4, len=28) / UDP(sport=1, dport=2)),
    ],
)
def test_what_is_no_whole_packet_is_refused(data: bytes) -> None:
    assert Packet.parse(data) is None


@given(data=st.binary(max_size=120), quoted=st.booleans())
def test_no_bytes_break_the_parser(data: bytes, quoted: bool) -> None:
    packet = Packet.parse(b"\x45" + data, quoted=quoted)
    if packet:
        packet.set_source((1, 2))
        packet.set_target((3, 4))
        packet.shift_sequence(5) if packet.protocol == 6 else None
        packet.shift_acknowledgement(5)
        if packet.is_error:
            packet.quote()


@given(options=st.binary(max_size=40), amount=numbers)
def test_malformed_options_keep_their_size(options: bytes, amount: int) -> None:
    assert len(shifted_sack(options, amount)) == len(options)
