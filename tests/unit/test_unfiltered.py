"""What a sniffer saw in the moment before its filter was attached is whoever's, and ends no attempt."""

from __future__ import annotations

from ipaddress import IPv4Address
from types import SimpleNamespace
from typing import Any, cast

import pytest

from punchd.attempt.port import UdpRecording
from punchd.attempt.tcp_port import RoundTcpPort
from punchd.endpoint import Endpoint
from punchd.kernel.sniffer import Captured
from punchd.wire import ip

LOCAL = Endpoint(IPv4Address("192.0.2.1"), 40000)
PEER = IPv4Address("203.0.113.7")


@pytest.mark.parametrize("protocol", [ip.UDP, 47, 50, 132])
def test_a_packet_of_another_protocol_says_nothing_about_a_tcp_port(protocol: int) -> None:
    packet = ip.encode(PEER, LOCAL.ip, protocol, bytes(40), 64)
    port = cast(Any, SimpleNamespace(local=LOCAL))
    assert RoundTcpPort._read(port, Captured(packet, is_outgoing=False)) is None


@pytest.mark.parametrize("protocol", [ip.TCP, 47, 50, 132])
def test_a_packet_of_another_protocol_is_not_recorded_for_a_udp_port(protocol: int) -> None:
    packet = ip.encode(PEER, LOCAL.ip, protocol, bytes(40), 64)
    port = cast(Any, SimpleNamespace(_local=LOCAL))
    assert not UdpRecording._is_ours(port, Captured(packet, is_outgoing=False))
