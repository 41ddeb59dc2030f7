"""The timers of one connection, at their exact times."""

from __future__ import annotations

from math import inf

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker.connections import TRANSITIONS, Keeper, Phase, Step
from punchd.broker.tokens import Role


def run(keeper: Keeper, until: float) -> list[tuple[float, Step]]:
    """What its timers do up to and including a time."""
    done = []
    while (due := keeper.next_timeout()) <= until:
        steps = keeper.handle_timeout(due)
        assert steps
        assert keeper.next_timeout() > due
        done += [(due, step) for step in steps]
    return done


def test_b_054_c_05_a_peer_that_has_not_registered_after_30_s_is_ended() -> None:
    keeper = Keeper(Role.PEER, 100.0)
    keeper.hear(129.0)
    assert run(keeper, 129.9) == []
    assert keeper.handle_timeout(129.9) == []
    assert run(keeper, 130.1) == [(130.0, Step.END)]
    assert keeper.farewell is not None
    assert (keeper.farewell.code.value, "register" in keeper.farewell.text) == ("INVALID_MESSAGE", True)


def test_b_054_a_peer_that_has_registered_stays() -> None:
    keeper = Keeper(Role.PEER, 0.0)
    keeper.register()
    assert run(keeper, 89.0) == [(30.0, Step.PING), (60.0, Step.PING)]


def test_b_054_c_14_an_admin_need_not_register() -> None:
    keeper = Keeper(Role.ADMIN, 0.0)
    for second in range(20, 320, 20):
        assert run(keeper, second) == []
        keeper.hear(second)
    assert keeper.phase is Phase.LIVE


@pytest.mark.parametrize("role", Role)
def test_b_061_b_062_c_50_silence_is_pinged_every_30_s_and_ends_after_90(role: Role) -> None:
    keeper = Keeper(role, 0.0)
    keeper.register()
    keeper.hear(7.0)
    assert run(keeper, 1000.0) == [(37.0, Step.PING), (67.0, Step.PING), (97.0, Step.END)]
    assert (keeper.phase, keeper.next_timeout()) == (Phase.OVER, inf)
    assert keeper.farewell is not None
    assert keeper.farewell.code.value == "INVALID_MESSAGE"


def test_b_062_any_frame_resets_the_clock() -> None:
    keeper = Keeper(Role.ADMIN, 0.0)
    keeper.hear(89.0)
    assert keeper.handle_timeout(91.0) == []
    assert keeper.handle_timeout(178.9) == [Step.PING]
    assert keeper.handle_timeout(179.0) == [Step.END]


def test_c_24_a_connection_that_was_heard_of_lately_is_alive_when_probed() -> None:
    keeper = Keeper(Role.ADMIN, 0.0)
    assert keeper.probe(35.0) == [Step.ALIVE]
    assert keeper.next_timeout() == 30.0


def test_c_24_another_one_is_pinged_and_any_frame_within_2_s_shows_that_it_lives() -> None:
    keeper = Keeper(Role.ADMIN, 0.0)
    assert keeper.probe(36.0) == [Step.PING]
    assert keeper.probe(36.5) == []
    assert keeper.handle_timeout(37.9) == [Step.PING]  # the ordinary one was due
    assert keeper.hear(37.9) == [Step.ALIVE]
    assert keeper.hear(38.0) == []
    assert keeper.next_timeout() == 68.0


def test_c_24_silence_for_2_s_after_a_probe_ends_it() -> None:
    keeper = Keeper(Role.ADMIN, 0.0)
    keeper.handle_timeout(30.0)
    keeper.probe(36.0)
    assert run(keeper, 100.0) == [(38.0, Step.END)]


@pytest.mark.parametrize("role", Role)
def test_nothing_is_decided_any_more_for_a_connection_that_left(role: Role) -> None:
    keeper = Keeper(role, 0.0)
    keeper.leave()
    assert (keeper.hear(1.0), keeper.probe(50.0), keeper.handle_timeout(99.0)) == ([], [], [])
    assert (keeper.next_timeout(), keeper.farewell) == (inf, None)


def test_the_table_leads_from_every_phase_but_the_last_to_it() -> None:
    assert {phase for phase, _ in TRANSITIONS} == set(Phase) - {Phase.OVER}
    assert Phase.OVER in TRANSITIONS.values()


@given(
    st.sampled_from(Role),
    st.lists(st.tuples(st.sampled_from(["hear", "probe", "register", "timer"]), st.integers(0, 40_000)), max_size=40),
)
def test_whatever_happens_a_timer_that_went_off_is_not_due_again_and_90_s_of_silence_always_end_it(
    role: Role, deeds: list[tuple[str, int]]
) -> None:
    keeper = Keeper(role, 0.0)
    now = heard = 0.0
    for deed, gap_ms in deeds:
        now += gap_ms / 1000
        while keeper.next_timeout() <= now:
            due = keeper.next_timeout()
            keeper.handle_timeout(due)
            assert keeper.next_timeout() > due
        if keeper.phase is Phase.OVER:
            return
        assert now - heard < 90
        match deed:
            case "hear":
                keeper.hear(now)
                heard = now
            case "probe":
                keeper.probe(now)
            case "register":
                keeper.register()
            case _:
                pass
    assert run(keeper, now + 90)[-1][1] is Step.END
