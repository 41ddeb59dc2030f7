"""Which remote attempts are known: no attempt runs twice, and a round that is won is not played again."""

from __future__ import annotations

import pytest

from punchd.control.state import REMEMBER_MOST, REMEMBER_S, KnownAttempts
from punchd.endpoint import PortSet, parse_ip
from punchd.errors import Code, DeniedError
from punchd.wire.token import Card, Kind, Token

ONE, TWO = b"nonce--1", b"nonce--2"
CARD = Card(parse_ip("198.51.100.4"), PortSet((50000,)))


def offer(nonce: bytes, number: int = 1) -> Token:
    return Token(Kind.OFFER, nonce, number, 1, CARD)


def refusal(known: KnownAttempts, token: Token, now: float) -> Code:
    with pytest.raises(DeniedError) as caught:
        known.begin(token, now)
    return caught.value.code


def test_an_attempt_that_runs_cannot_begin_again_in_any_round() -> None:
    known = KnownAttempts()
    known.begin(offer(ONE), 0)
    assert refusal(known, offer(ONE), 1) is Code.DUPLICATE_ATTEMPT
    assert refusal(known, offer(ONE, 2), 1) is Code.DUPLICATE_ATTEMPT
    known.begin(offer(TWO), 1)


def test_an_attempt_that_failed_may_begin_again_at_once() -> None:
    known = KnownAttempts()
    known.begin(offer(ONE), 0)
    known.end(ONE, None, 1)
    known.begin(offer(ONE), 1)


def test_a_won_round_and_earlier_ones_are_stale_and_later_ones_are_not() -> None:
    known = KnownAttempts()
    known.begin(offer(ONE, 2), 0)
    known.end(ONE, 2, 10)
    for number in (1, 2):
        assert refusal(known, offer(ONE, number), 10) is Code.STALE
        assert refusal(known, offer(ONE, number), 10 + REMEMBER_S - 0.001) is Code.STALE
    known.begin(offer(TWO, 1), 11)
    known.begin(offer(ONE, 3), 11)  # race rule 1: the earlier socket is dead


def test_a_refused_begin_leaves_nothing_behind() -> None:
    known = KnownAttempts()
    known.begin(offer(ONE), 0)
    known.end(ONE, 1, 0)
    assert refusal(known, offer(ONE), 1) is Code.STALE
    assert refusal(known, offer(ONE), 1) is Code.STALE  # and not: it is running
    known.begin(offer(ONE, 2), 1)


def test_a_later_attempt_that_failed_does_not_forget_the_won_round() -> None:
    known = KnownAttempts()
    known.begin(offer(ONE), 0)
    known.end(ONE, 1, 0)
    known.begin(offer(ONE, 2), 1)
    known.end(ONE, None, 2)
    assert refusal(known, offer(ONE, 1), 3) is Code.STALE
    known.begin(offer(ONE, 2), 3)


def test_a_won_round_is_forgotten_after_its_time() -> None:
    known = KnownAttempts()
    known.begin(offer(ONE), 0)
    known.end(ONE, 1, 0)
    known.begin(offer(ONE), REMEMBER_S)


def test_those_whose_time_is_over_take_no_room() -> None:
    known = KnownAttempts()
    for number in range(100):
        known.end(number.to_bytes(8), 1, float(number))
    known.end(ONE, 1, REMEMBER_S + 49.5)
    assert list(known._won) == [*(number.to_bytes(8) for number in range(50, 100)), ONE]


def test_the_oldest_are_forgotten_when_there_are_too_many() -> None:
    known = KnownAttempts()
    for number in range(REMEMBER_MOST):
        known.end(number.to_bytes(8), 1, 0)
    known.end((0).to_bytes(8), 2, 1)  # again: now the newest
    known.end(ONE, 1, 1)
    assert len(known._won) == REMEMBER_MOST
    known.begin(offer((1).to_bytes(8)), 1)
    assert refusal(known, offer((0).to_bytes(8)), 1) is Code.STALE
    assert refusal(known, offer((2).to_bytes(8)), 1) is Code.STALE


def test_ending_what_never_began_harms_nothing() -> None:
    known = KnownAttempts()
    known.end(ONE, None, 0)
    known.begin(offer(ONE), 0)
