"""Where STUN listens, and who answers in whose stead."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from punchd.endpoint import Endpoint
from punchd.errors import ConfigError
from punchd.rendezvous.stun_layout import Place, places


def at(*texts: str) -> list[Endpoint]:
    ends = [text.rpartition(":") for text in texts]
    return [Endpoint(ip_address(host.strip("[]")), int(port)) for host, _, port in ends]


ONE, TWO = "192.0.2.10", "192.0.2.20"
PLAIN = [
    pytest.param((f"{ONE}:3478",), id="one"),
    pytest.param((f"{ONE}:3478", f"{ONE}:5000"), id="two ports of one address"),
    pytest.param(("0.0.0.0:3478", "[::]:3478"), id="one of each family"),
    pytest.param((f"{ONE}:0",), id="any port"),
]


@pytest.mark.parametrize("named", PLAIN)
def test_without_a_second_address_of_a_family_nobody_answers_for_another(named: tuple[str, ...]) -> None:
    assert places(at(*named, *named)) == tuple(map(Place, at(*named)))


GRIDS = [
    pytest.param((f"{ONE}:3478", f"{TWO}:3478"), 3478, 3479, id="the next port"),
    pytest.param((f"{ONE}:3478", f"{TWO}:5000"), 3478, 5000, id="the second port that is named"),
    pytest.param((f"{ONE}:3478", f"{ONE}:5000", f"{TWO}:3478", f"{TWO}:5000"), 3478, 5000, id="all four are named"),
]


@pytest.mark.parametrize(("named", "first", "second"), GRIDS)
def test_two_addresses_have_the_same_two_ports(named: tuple[str, ...], first: int, second: int) -> None:
    found = places(at(*named))
    assert [place.endpoint for place in found] == at(*(f"{ip}:{port}" for ip in (ONE, TWO) for port in (first, second)))


def test_each_place_of_a_grid_knows_the_other_port_the_other_address_and_both() -> None:
    found = places(at(f"{ONE}:3478", "[2001:db8::1]:3478", f"{TWO}:3478", "[2001:db8::2]:3478"))
    assert len(found) == 8
    for place in found:
        here, port, address, both = (found[turn].endpoint for turn in place.turns)
        assert here == place.endpoint
        assert (port.ip, address.port) == (here.ip, here.port)
        assert port.port != here.port
        assert address.ip != here.ip
        assert both == Endpoint(address.ip, port.port)
        assert both.ip.version == here.ip.version


IMPOSSIBLE = [
    pytest.param((f"{ONE}:1", f"{TWO}:1", "192.0.2.30:1"), "at most two IPv4 addresses", id="three addresses"),
    pytest.param((f"{ONE}:1", f"{TWO}:2", f"{TWO}:3"), "with two ports, got 192.0.2.10:1, ", id="three ports"),
    pytest.param(("0.0.0.0:3478", f"{TWO}:3478"), "two real ones", id="a wildcard"),
    pytest.param((f"{ONE}:0", f"{TWO}:0"), "no port 0", id="a port that is not known yet"),
    pytest.param((f"{ONE}:65535", f"{TWO}:65535"), "no next one", id="the last port"),
]


@pytest.mark.parametrize(("named", "why"), IMPOSSIBLE)
def test_endpoints_that_do_not_go_together_are_refused(named: tuple[str, ...], why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        places(at(*named))
