"""Ports that were used lately are not drawn again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.attempt.fresh import TRIES, FreshPorts
from punchd.endpoint import Endpoint


@dataclass
class Bound:
    port: int
    is_open: bool = True

    @property
    def local(self) -> Endpoint:
        return Endpoint(IPv4Address("192.0.2.1"), self.port)

    def close(self) -> None:
        self.is_open = False


@dataclass
class Kernel:
    """Gives out these ports, one after the other, and then the last one for ever."""

    ports: Sequence[int]
    made: list[Bound] = field(default_factory=list)

    def bind(self) -> Bound:
        self.made.append(Bound(self.ports[min(len(self.made), len(self.ports) - 1)]))
        return self.made[-1]


def test_a_port_that_was_used_lately_is_given_back_and_another_one_drawn() -> None:
    kernel = Kernel([40000, 40000, 40001])
    fresh = FreshPorts()

    assert [fresh.draw(kernel.bind).port, fresh.draw(kernel.bind).port] == [40000, 40001]
    assert [bound.is_open for bound in kernel.made] == [True, False, True]


def test_a_port_that_somebody_asked_for_counts_as_used() -> None:
    fresh = FreshPorts()
    fresh.remember(40000)

    assert fresh.draw(Kernel([40000, 40001]).bind).port == 40001


def test_only_so_many_are_remembered() -> None:
    fresh = FreshPorts(remembered=2)
    for port in (1, 2, 3):
        fresh.remember(port)

    assert fresh.draw(Kernel([2, 3, 1]).bind).port == 1


def test_a_narrow_range_gives_what_it_has() -> None:
    kernel = Kernel([40000])
    fresh = FreshPorts()
    fresh.remember(40000)

    assert fresh.draw(kernel.bind).is_open
    assert [bound.is_open for bound in kernel.made] == [False] * (TRIES - 1) + [True]


def test_an_error_of_the_kernel_leaves_nothing_open() -> None:
    first = Bound(40000)
    fresh = FreshPorts()
    fresh.remember(40000)
    binds = iter([lambda: first])

    def bind() -> Bound:
        return next(binds)()

    with pytest.raises(StopIteration):
        fresh.draw(bind)
    assert not first.is_open


@given(st.lists(st.integers(1, 6), max_size=40))
def test_the_memory_is_the_last_different_ports(ports: list[int]) -> None:
    fresh = FreshPorts(remembered=3)
    order: list[int] = []
    for port in ports:
        if port not in order:
            order = [*order, port][-3:]
        fresh.remember(port)

    unused = next(port for port in range(1, 10) if port not in order)
    assert fresh.draw(Kernel([*order, unused]).bind).port == unused
