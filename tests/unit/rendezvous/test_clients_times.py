"""Section 2 of the specification: every state at each of its boundaries, to the millisecond."""

from __future__ import annotations

import pytest

from punchd.rendezvous import pulse
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.pulse import ACCEPTED, UNKNOWN, VERIFY
from punchd.rendezvous.views import State, Timing
from tests.unit.rendezvous.parts import origin

ID, KEY = bytes(16), bytes(32)
START = 12_345.678  # so that differences are rounded as they are in life
HERE, THERE = origin(port=4000), origin(port=4001)


class Subject:
    """One client, and the seconds since it registered."""

    def __init__(self, *, pulsed: bool = True, timing: Timing | None = None) -> None:
        self.clients = Clients(10, timing)
        assert self.clients.register(ID, KEY, START) == []
        if pulsed:
            assert self.pulse(0) == ACCEPTED

    def pulse(self, at: float, where: bytes = HERE) -> bytes:
        return self.clients.pulse(KEY, where, START + at)

    def verify(self, at: float) -> bool:
        return self.clients.verify(KEY, START + at) == ID

    def state(self, at: float) -> State | None:
        view = self.clients.view(ID, START + at)
        return None if view is None else view.state

    def port(self, at: float) -> int | None:
        view = self.clients.view(ID, START + at)
        assert view is not None
        return view.addresses[0].endpoint.port if view.addresses else None

    def last_online(self, at: float) -> float | None:
        view = self.clients.view(ID, START + at)
        assert view is not None
        return view.last_online


ONLINE, PENDING, NEW, GONE = State.ONLINE, State.PENDING, State.NEW, None


@pytest.mark.parametrize(
    ("at", "state"),
    [(0, ONLINE), (30, ONLINE), (34.999, ONLINE), (35, ONLINE), (35.001, PENDING), (100, PENDING), (209.999, PENDING),
     (210, GONE), (210.001, GONE)],
)  # fmt: skip
def test_v_013_d_07_a_client_that_pulsed_at_0_is(at: float, state: State | None) -> None:
    assert Subject().state(at) is state


@pytest.mark.parametrize(("at", "state"), [(0, NEW), (35.001, NEW), (209.999, NEW), (210, GONE)])
def test_d_08_a_client_that_never_pulsed_is(at: float, state: State | None) -> None:
    assert Subject(pulsed=False).state(at) is state


@pytest.mark.parametrize("at", [0, 0.001, 30, 34.999, 35])
def test_v_004_a_pulse_on_time_is_accepted_and_renews_address_and_lease(at: float) -> None:
    subject = Subject()
    assert subject.pulse(at, THERE) == ACCEPTED
    assert subject.port(at) == 4001
    assert subject.state(at + 35) is ONLINE
    assert subject.state(at + 209.999) is PENDING


@pytest.mark.parametrize("at", [35.001, 100, 209.999])
def test_v_005_d_09_a_late_pulse_is_told_to_verify_and_changes_nothing(at: float) -> None:
    subject = Subject()
    assert subject.pulse(at, THERE) == VERIFY
    assert subject.port(at) == 4000
    assert subject.last_online(at) == pytest.approx(at)
    assert subject.state(210) is GONE


@pytest.mark.parametrize("at", [210, 210.001, 1e6])
def test_v_006_d_14_a_client_that_is_gone_is_unknown_in_every_way(at: float) -> None:
    subject = Subject()
    assert subject.pulse(at) == UNKNOWN
    assert not subject.verify(at)
    assert subject.clients.authenticate(KEY, START + at) is None
    assert subject.clients.logout(KEY, START + at) is None
    assert subject.clients.view(ID, START + at) is None


@pytest.mark.parametrize("at", [0, 35.001, 209.999])
def test_d_08_the_first_pulse_is_always_in_time(at: float) -> None:
    subject = Subject(pulsed=False)
    assert subject.pulse(at) == ACCEPTED
    assert subject.state(at + 35) is ONLINE


@pytest.mark.parametrize(("at", "is_there"), [(209.9, True), (209.999, True), (210, False)])
def test_v_009_verify_is_possible_until_210_s(at: float, is_there: bool) -> None:
    subject = Subject()
    assert subject.verify(at) is is_there
    assert subject.state(at) is (ONLINE if is_there else GONE)


@pytest.mark.parametrize("at", [0, 20, 35])
def test_d_10_verify_changes_nothing_while_online(at: float) -> None:
    subject = Subject()
    assert subject.verify(at)
    assert subject.state(35.001) is PENDING


def test_d_10_verify_changes_nothing_while_new() -> None:
    subject = Subject(pulsed=False)
    assert subject.verify(200)
    assert subject.state(200) is NEW
    assert subject.state(210) is GONE


def test_the_time_line_of_the_specification() -> None:
    subject = Subject()
    assert subject.pulse(100, THERE) == VERIFY
    assert subject.verify(101)
    assert subject.state(101) is ONLINE
    assert subject.port(101.5) == 4000
    assert subject.pulse(102, THERE) == ACCEPTED
    assert subject.port(102) == 4001
    assert [subject.state(at) for at in (137, 137.001, 311.999, 312)] == [ONLINE, PENDING, PENDING, GONE]


def test_d_10_after_a_verify_without_a_pulse_the_lease_runs_from_there() -> None:
    subject = Subject()
    assert subject.verify(101)
    states = [subject.state(at) for at in (136, 136.001, 310.999, 311)]
    assert states == [ONLINE, PENDING, PENDING, GONE]


def test_d_10_who_lives_on_verify_alone_shows_it() -> None:
    subject = Subject()
    for at in range(40, 400, 40):
        assert subject.verify(at)
        assert subject.last_online(at) == pytest.approx(at)
    assert subject.port(209.999) == 4000
    assert subject.port(210) is None


def test_d_11_a_new_address_is_accepted() -> None:
    subject = Subject()
    assert subject.pulse(5, THERE) == ACCEPTED
    assert subject.state(5) is ONLINE


def test_all_times_can_be_chosen() -> None:
    subject = Subject(timing=Timing(interval=2, grace=1, error_time=4))
    states = [subject.state(at) for at in (3, 3.001, 5.999, 6)]
    assert states == [ONLINE, PENDING, PENDING, GONE]


def test_v_010_after_logout_nothing_is_known_in_any_state() -> None:
    for at, pulsed in ((0, False), (10, True), (100, True)):
        subject = Subject(pulsed=pulsed)
        assert subject.clients.logout(KEY, START + at) == ID
        assert subject.pulse(at) == pulse.UNKNOWN
        assert subject.state(at) is GONE
        assert not subject.verify(at)
