"""The table of clients: what it holds, whom it evicts, what it leaves behind, and the stricter policies."""

from __future__ import annotations

import random
from ipaddress import ip_address

import pytest

from punchd.rendezvous import pulse
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.pulse import ACCEPTED, UNKNOWN, VERIFY, read_signed
from punchd.rendezvous.views import Policy, State
from tests.unit.rendezvous.parts import origin

SECRET = b"s" * 32
UNIX_MS = 1_700_000_000_000
HERE, THERE, HERE6 = origin(port=1), origin(port=2), origin("2001:db8::1", 3)


def member(number: int) -> tuple[bytes, bytes]:
    return number.to_bytes(16, "big"), number.to_bytes(32, "little")


def table(count: int, capacity: int = 1000, policy: Policy | None = None) -> Clients:
    clients = Clients(capacity, policy=policy)
    for number in range(count):
        clients.register(*member(number), float(number), ip_address("192.0.2.1"))
    return clients


def test_when_full_the_oldest_that_never_pulsed_makes_room_and_is_forgotten() -> None:
    clients = table(3, capacity=3)
    assert clients.pulse(member(0)[1], HERE, 3) == ACCEPTED
    assert clients.register(*member(7), 4) == [member(1)[0]]
    assert clients.pulse(member(1)[1], HERE, 5) == UNKNOWN
    assert [number for number in range(8) if member(number)[0] in clients] == [0, 2, 7]
    assert len(clients) == 3


def test_when_full_of_those_that_pulsed_nobody_is_let_in() -> None:
    clients = table(3, capacity=3)
    for number in range(3):
        clients.pulse(member(number)[1], HERE, 3)
    assert clients.register(*member(7), 4) is None
    assert clients.logout(member(1)[1], 4) is not None
    assert clients.register(*member(7), 4) == []


def test_v_020_clients_that_expired_leave_no_trace() -> None:
    chance = random.Random(1)
    clients = Clients(200_000)
    for number in range(100_000):
        clients.register(*member(number), number / 1000)
        if chance.random() < 0.7:
            clients.pulse(member(number)[1], HERE if number % 2 else HERE6, number / 1000)
    gone: set[bytes] = set()
    is_more = True
    while is_more:
        found, is_more = clients.sweep(1000, 5000)
        gone.update(found)
    assert gone == {member(number)[0] for number in range(100_000)}
    assert len(clients) == 0
    assert not clients._row_of_id
    assert not clients._row_of_key
    assert not clients._newcomers
    assert not clients._calendar
    assert not any(clients._keys)
    assert not any(clients._ids)
    assert not any(clients._sources4)
    assert not any(clients._sources6)
    rows = len(clients._flags)
    for number in range(100_000):
        clients.register(*member(number), 2000)
    assert len(clients._flags) == rows  # memory is used again


def test_sweeping_looks_at_no_more_rows_than_it_may_and_spares_the_living() -> None:
    clients = table(100)
    clients.pulse(member(5)[1], HERE, 100)
    gone, is_more = clients.sweep(212.5, 1)
    assert is_more
    while is_more:
        found, is_more = clients.sweep(212.5, 1)
        gone += found
    assert gone == [member(0)[0], member(1)[0]]
    for now in range(213, 600):
        found, _ = clients.sweep(now, 1000)
        gone += found
        assert (member(5)[0] in clients) is (now < 311)  # its lease ends at 310, its second in the calendar is 311
    assert len(gone) == 100


def test_a_row_that_is_used_again_has_nothing_of_the_client_before() -> None:
    clients = table(1)
    clients.pulse(member(0)[1], HERE, 0)
    clients.pulse(member(0)[1], HERE6, 0)
    clients.logout(member(0)[1], 1)
    clients._free = type(clients._free)("I", [0])
    clients.register(*member(9), 2)
    view = clients.view(member(9)[0], 3)
    assert view is not None
    assert (view.state, view.addresses, view.last_online) == (State.NEW, (), None)
    for now in range(3, 212):
        assert clients.sweep(now, 1000)[0] == []
    assert clients.sweep(214, 1000)[0] == [member(9)[0]]


def test_coming_and_going_for_long_takes_no_more_rows_than_clients_at_one_time() -> None:
    clients = Clients(100)
    for number in range(5000):
        clients.register(*member(number), number / 100)
        if number % 3 == 0:
            clients.logout(member(number)[1], number / 100)
    assert len(clients) <= 100
    assert len(clients._flags) == 1024
    assert sum(map(len, clients._calendar.values())) <= 1024


def test_d_18_the_newest_address_of_each_family_is_kept_ipv4_first_and_grows_old_by_itself() -> None:
    clients = table(1)
    key = member(0)[1]
    clients.pulse(key, HERE6, 0)
    clients.pulse(key, HERE, 10)
    for now in range(30, 200, 30):
        assert clients.pulse(key, HERE, now) == ACCEPTED
    view = clients.view(member(0)[0], 209.999)
    assert view is not None
    assert [str(seen.endpoint) for seen in view.addresses] == ["192.0.2.1:1", "[2001:db8::1]:3"]
    assert [seen.age for seen in view.addresses] == pytest.approx([29.999, 209.999])
    later = clients.view(member(0)[0], 210)
    assert later is not None
    assert [str(seen.endpoint) for seen in later.addresses] == ["192.0.2.1:1"]


def test_counting_those_online_in_parts_is_counting_them() -> None:
    clients = Clients(10_000)
    for number in range(3000):
        clients.register(*member(number), 0)
        if number % 3:
            clients.pulse(member(number)[1], HERE, float(number % 2) * 40)
    for rows in (1, 100, 5000):
        online, first, is_more = 0, 0, True
        while is_more:
            found, is_more = clients.count_online(41, first, rows)
            online, first = online + found, first + rows
        states = [clients.view(member(number)[0], 41) for number in range(3000)]
        assert online == sum(view is not None and view.state is State.ONLINE for view in states) == 1000


# --- policies --------------------------------------------------------------------------------------------------------


def test_d_11_with_reverify_a_new_address_takes_a_verify_and_then_one_pulse() -> None:
    clients = table(1, policy=Policy(reverify_moves=True))
    client_id, key = member(0)
    assert clients.pulse(key, HERE, 0) == ACCEPTED
    assert clients.pulse(key, HERE6, 0) == ACCEPTED  # of the other family: no change
    assert clients.pulse(key, THERE, 1) == VERIFY
    view = clients.view(client_id, 1)
    assert view is not None
    assert view.state is State.PENDING
    assert view.addresses[0].endpoint.port == 1
    assert clients.pulse(key, HERE, 2) == VERIFY  # also from the old one
    assert clients.verify(key, 3) == client_id
    assert clients.pulse(key, THERE, 4) == ACCEPTED
    assert clients.pulse(key, THERE, 5) == ACCEPTED
    assert clients.pulse(key, HERE, 6) == VERIFY


@pytest.mark.parametrize("ip", ["192.0.2.1", "2001:db8::1"])
def test_with_require_same_ip_pulses_come_from_where_http_did(ip: str) -> None:
    clients = Clients(10, policy=Policy(require_same_ip=True))
    client_id, key = member(0)
    clients.register(client_id, key, 0, ip_address(ip))
    assert clients.pulse(key, origin(ip, 7), 1) == ACCEPTED
    assert clients.pulse(key, origin("192.0.2.9", 7), 2) == VERIFY
    assert clients.verify(key, 3, ip_address("192.0.2.9")) == client_id
    assert clients.pulse(key, origin("192.0.2.9", 7), 4) == ACCEPTED
    assert clients.pulse(key, origin(ip, 7), 5) == VERIFY


# --- signed pulses ---------------------------------------------------------------------------------------------------


class Signer:
    """A client that signs; `answer` gives the server's reply."""

    def __init__(self) -> None:
        self.clients = table(1)
        self.id, self.key = member(0)

    def send(
        self,
        at: float,
        *,
        cookie: bytes = pulse.NO_COOKIE,
        where: bytes = HERE,
        off_ms: int = 0,
        key: bytes | None = None,
    ) -> bytes:
        ms = UNIX_MS + int(at * 1000)
        signed = read_signed(pulse.sign(key or self.key, self.id, ms + off_ms, cookie))
        assert signed is not None
        return self.clients.signed_pulse(signed, where, at, ms, SECRET)

    def cookie(self, at: float, where: bytes = HERE) -> bytes:
        reply = pulse.read_reply(self.send(at, where=where))
        assert reply.code is pulse.Code.COOKIE
        assert reply.cookie is not None
        return reply.cookie


def test_a_signed_pulse_teaches_an_address_only_with_the_cookie_that_went_there() -> None:
    signer = Signer()
    cookie = signer.cookie(1)
    assert signer.clients.view(signer.id, 1).addresses == ()  # type: ignore[union-attr]
    assert pulse.read_reply(signer.send(2, cookie=cookie, where=THERE)).code is pulse.Code.COOKIE
    assert signer.send(3, cookie=cookie) == ACCEPTED
    assert signer.clients.view(signer.id, 3).state is State.ONLINE  # type: ignore[union-attr]


def test_a_cookie_serves_for_its_minute_and_the_next() -> None:
    signer = Signer()
    cookie = signer.cookie(1)
    accepted = [at for at in range(2, 200, 2) if signer.send(at, cookie=cookie) == ACCEPTED]
    assert 60 <= accepted[-1] < 120


def test_after_a_signed_pulse_plain_ones_no_longer_count() -> None:
    signer = Signer()
    assert signer.clients.pulse(signer.key, HERE, 0) == ACCEPTED
    cookie = signer.cookie(1)
    assert signer.clients.pulse(signer.key, HERE, 1) == ACCEPTED  # a 1051 is not yet a pulse
    assert signer.send(2, cookie=cookie) == ACCEPTED
    assert signer.clients.pulse(signer.key, THERE, 3) == VERIFY
    assert signer.clients.view(signer.id, 3).addresses[0].endpoint.port == 1  # type: ignore[union-attr]


def test_a_signed_pulse_counts_once_and_in_order() -> None:
    signer = Signer()
    cookie = signer.cookie(1)
    assert signer.send(2, cookie=cookie) == ACCEPTED
    assert signer.send(2, cookie=cookie) == VERIFY
    assert signer.send(3, cookie=cookie, off_ms=-1001) == VERIFY
    assert signer.send(3, cookie=cookie, off_ms=-999) == ACCEPTED


@pytest.mark.parametrize(("off_ms", "is_good"), [(-60_001, False), (-60_000, True), (60_000, True), (60_001, False)])
def test_the_time_of_a_signed_pulse_may_be_60_s_off(off_ms: int, is_good: bool) -> None:
    signer = Signer()
    cookie = signer.cookie(70)
    assert signer.send(71, cookie=cookie, off_ms=off_ms) == (ACCEPTED if is_good else VERIFY)


def test_a_signature_by_another_key_is_as_an_unknown_client() -> None:
    signer = Signer()
    assert signer.send(1, key=b"x" * 32) == UNKNOWN
    signer.clients.logout(signer.key, 2)
    assert signer.send(3) == UNKNOWN


def test_a_late_signed_pulse_is_told_to_verify() -> None:
    signer = Signer()
    assert signer.send(2, cookie=signer.cookie(1)) == ACCEPTED
    cookie = pulse.make_cookie(SECRET, HERE, UNIX_MS // 1000 + 50)
    assert signer.send(37.001, cookie=cookie) == VERIFY
    assert signer.clients.verify(signer.key, 40) == signer.id
    assert signer.send(41, cookie=cookie) == ACCEPTED
