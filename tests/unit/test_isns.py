"""Initial sequence numbers only grow, as RFC 9293 compares them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from punchd.attempt.isns import InitialNumbers

ALL = 1 << 32
NUMBERS = st.integers(0, ALL - 1)


def is_larger(number: int, than: int) -> bool:
    return 0 < (number - than) % ALL < ALL // 2


@given(NUMBERS, st.lists(NUMBERS, max_size=20))
def test_each_is_larger_than_the_one_before_and_never_zero(first: int, entropies: list[int]) -> None:
    numbers = InitialNumbers()
    before = numbers.draw(first)
    for entropy in entropies:
        after = numbers.draw(entropy)
        assert 0 < after < ALL
        assert is_larger(after, before)
        before = after


@given(NUMBERS, NUMBERS, st.integers(1, 1 << 24), NUMBERS)
def test_it_is_larger_than_what_the_kernel_sent_and_copies_of_old_segments_change_nothing(
    first: int, entropy: int, ahead: int, more: int
) -> None:
    numbers = InitialNumbers()
    ours = numbers.draw(first)
    kernels = (ours + ahead) % ALL
    numbers.note(kernels)
    numbers.note((ours - 1) % ALL)  # the low-TTL SYN of an earlier round
    numbers.note(ours)
    assert is_larger(numbers.draw(entropy), kernels)
    assert is_larger(numbers.draw(more), kernels)


@given(NUMBERS)
def test_the_first_is_all_chance(entropy: int) -> None:
    assert InitialNumbers().draw(entropy) == (entropy or 1)
