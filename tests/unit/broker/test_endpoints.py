"""Where a peer can be reached, and its passphrase."""

from __future__ import annotations

import base64
import string
from ipaddress import ip_address

import pytest

from punchd.broker.endpoints import Reported, families_differ, observed_ip, public_endpoint
from punchd.broker.messages import Register
from punchd.broker.passphrases import Passphrases, Scope
from punchd.endpoint import Endpoint

SEEN = ip_address("192.0.2.1")


@pytest.mark.parametrize(
    ("seen", "told"),
    [("192.0.2.1", "192.0.2.1"), ("::ffff:192.0.2.1", "192.0.2.1"), ("2001:db8::1%eth0", "2001:db8::1")],
)
def test_c_07_c_10_the_address_is_the_one_seen_unmapped_and_without_a_zone(seen: str, told: str) -> None:
    assert str(observed_ip(ip_address(seen))) == told


CLAIM = Register(5000, public_port=40_000, public_ip="203.0.113.9")


@pytest.mark.parametrize(
    ("reported", "told"),
    [(Reported.OFF, "192.0.2.1:5000"), (Reported.PORT, "192.0.2.1:40000"), (Reported.IP, "203.0.113.9:40000")],
)
def test_c_07_c_08_as_much_of_what_a_peer_says_is_believed_as_the_operator_allows(
    reported: Reported, told: str
) -> None:
    assert str(public_endpoint(SEEN, CLAIM, reported)) == told
    assert str(public_endpoint(SEEN, Register(5000), reported)) == "192.0.2.1:5000"


NOT_GLOBAL = ("10.0.0.1", "127.0.0.1", "224.0.0.1", "255.255.255.255", "::1", "fe80::1", "::ffff:203.0.113.9")


@pytest.mark.parametrize("claimed", [*NOT_GLOBAL, "2001:db8::1%x", "2001:DB8::1", "nonsense", ""])
def test_c_07_an_address_that_is_not_global_unicast_is_not_believed(claimed: str) -> None:
    register = Register(5000, public_port=40_000, public_ip=claimed)
    assert str(public_endpoint(SEEN, register, Reported.IP)) == "192.0.2.1:40000"


def test_c_10_two_families_are_noticed() -> None:
    four, six = Endpoint(SEEN, 1), Endpoint(ip_address("2001:db8::1"), 1)
    assert [families_differ(*pair) for pair in ((four, six), (six, six), (four, four))] == [True, False, False]


def test_b_102_b_103_c_41_a_passphrase_is_256_bits_in_43_url_safe_characters() -> None:
    sizes: list[int] = []

    def entropy(size: int) -> bytes:
        sizes.append(size)
        return bytes([len(sizes)]) * size

    for scope, draws in ((Scope.SESSION, 1), (Scope.STREAM, 2)):
        sizes.clear()
        passphrases = Passphrases.draw(("a", "b"), scope, entropy)
        assert sizes == [32] * draws
        assert set(passphrases.of("a")) <= set(string.ascii_letters + string.digits + "-_")
        assert base64.urlsafe_b64decode(passphrases.of("a") + "=") == b"\x01" * 32
        assert (passphrases.of("a") == passphrases.of("b")) is (scope is Scope.SESSION)
        assert passphrases.of("a") not in repr(passphrases)
