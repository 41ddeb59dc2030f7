"""Verdicts on observed mappings, and the ports guessed from them."""

from __future__ import annotations

from ipaddress import IPv4Address, ip_address

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.endpoint import MAX_RUNS, Endpoint, runs
from punchd.nat.mapping import MAX_STEP, Behaviour, Mapping, judge, predict

LOCAL = Endpoint(ip_address("10.0.0.2"), 4000)
PUBLIC, POOLED = ip_address("203.0.113.1"), ip_address("203.0.113.2")


def seen(*ports: int) -> list[Endpoint]:
    return [Endpoint(PUBLIC, port) for port in ports]


VERDICTS = [
    pytest.param([LOCAL], "open", id="one server sees the local endpoint"),
    pytest.param([LOCAL, LOCAL], "open", id="two servers see the local endpoint"),
    pytest.param(seen(4000), "unknown", id="one server"),
    pytest.param(seen(4000, 4000), "endpoint-independent", id="the port is preserved"),
    pytest.param(seen(50000, 50000, 50000), "endpoint-independent", id="three servers see the same"),
    pytest.param(seen(50000, 50001), "sequential+1", id="counting by one"),
    pytest.param(seen(50000, 50002), "sequential+2", id="keeping the parity"),
    pytest.param(seen(50000, 50016), "sequential+16", id="the largest step"),
    pytest.param(seen(50000, 50017), "random", id="just too far"),
    pytest.param(seen(50001, 50000), "sequential+65535", id="counting down, or overtaken"),
    pytest.param(seen(50016, 50000), "sequential+65520", id="the largest step down"),
    pytest.param(seen(50017, 50000), "random", id="just too far down"),
    pytest.param(seen(50000, 50001, 50003), "sequential+1", id="a stranger's mapping in between"),
    pytest.param(seen(50003, 50002, 50000), "sequential+65535", id="falling throughout"),
    pytest.param(seen(50001, 50000, 50002), "sequential+1", id="one of three overtaken"),
    pytest.param(seen(50000, 50000, 50001), "sequential+1", id="two of three servers share an address"),
    pytest.param(seen(50000, 50016, 50032), "sequential+16", id="it is neighbours that must be near"),
    pytest.param(seen(50000, 50001, 60000), "random", id="one of three far away"),
    pytest.param(seen(65535, 1024), "random", id="wrap-around is not recognised"),
    pytest.param([Endpoint(PUBLIC, 50000), Endpoint(POOLED, 50000)], "random", id="two addresses, one port"),
    pytest.param([Endpoint(PUBLIC, 50000), Endpoint(POOLED, 50001)], "random", id="two addresses, neighbouring ports"),
    pytest.param([LOCAL, Endpoint(LOCAL.ip, 4001)], "sequential+1", id="open for one server only"),
]


@pytest.mark.parametrize(("observed", "verdict"), VERDICTS)
def test_the_verdict_follows_from_what_was_observed(observed: list[Endpoint], verdict: str) -> None:
    mapping = judge(LOCAL, observed)
    assert str(mapping) == verdict
    assert mapping.local == LOCAL
    assert mapping.observed == tuple(observed)
    assert mapping.public_ip == observed[-1].ip


def test_two_ports_at_one_address_prove_nothing_about_other_addresses() -> None:
    assert str(judge(LOCAL, seen(5000, 5000), one_address=True)) == "unknown"
    assert str(judge(LOCAL, seen(5000, 5001), one_address=True)) == "sequential+1"
    assert str(judge(LOCAL, [LOCAL, LOCAL], one_address=True)) == "open"


def test_an_unspecified_local_address_is_never_found_open() -> None:
    assert str(judge(Endpoint(IPv4Address(0), 4000), [LOCAL, LOCAL])) == "endpoint-independent"


def test_without_answers_there_is_nothing_to_judge() -> None:
    with pytest.raises(ValueError, match="nothing to judge"):
        judge(LOCAL, [])


def test_steps_have_their_sign() -> None:
    assert judge(LOCAL, seen(50000, 50003)).step == 3
    assert judge(LOCAL, seen(50003, 50000)).step == -3
    assert judge(LOCAL, seen(50000, 50000)).step == 0


@pytest.mark.parametrize(
    ("observed", "is_guess"),
    [
        ([LOCAL], False),
        (seen(5000), False),
        (seen(5000, 5000), False),
        (seen(5000, 5001), True),
        (seen(5000, 9000), True),
    ],
)
def test_only_sequential_and_random_ports_are_guesses(observed: list[Endpoint], is_guess: bool) -> None:
    assert judge(LOCAL, observed).is_guess is is_guess


PREDICTIONS = [
    pytest.param([LOCAL], 0, 8, "4000", id="open"),
    pytest.param(seen(5000), 3, 8, "5000", id="unknown"),
    pytest.param(seen(5000, 5000), 3, 8, "5000", id="endpoint-independent"),
    pytest.param(seen(5000, 9000), 0, 8, "9000", id="random: the last, of little use"),
    pytest.param(seen(50000, 50001), 0, 8, "50002-50009", id="the next eight"),
    pytest.param(seen(50000, 50001), 0, 1, "50002", id="the next one"),
    pytest.param(seen(50000, 50001), 2, 3, "50004-50006", id="two destinations later"),
    pytest.param(seen(50000, 50001), 0, 99, "50002-50017", id="never more than a list holds"),
    pytest.param(seen(50000, 50002), 0, 8, "50004,50006,50008,50010", id="steps of two: four runs"),
    pytest.param(seen(50000, 50002), 1, 2, "50006,50008", id="steps of two, one destination later"),
    pytest.param(seen(50001, 50000, 50002), 0, 2, "50003-50004", id="from the highest port on"),
    pytest.param(seen(50000, 50002, 50001), 0, 2, "50003-50004", id="from the highest port on, overtaken last"),
    pytest.param(seen(50001, 50000), 0, 8, "50002-50005,49999,49998,49997", id="down by one: both readings"),
    pytest.param(seen(50001, 50000), 1, 2, "50003,49998", id="down by one, one destination later"),
    pytest.param(seen(50001, 50000), 0, 1, "50002", id="down by one, one port only"),
    pytest.param(seen(50003, 50000), 0, 8, "50006,50009,49997,49994", id="down by three: both readings"),
    pytest.param(seen(65530, 65532), 0, 8, "65534", id="nothing above 65535"),
    pytest.param(seen(65534, 65535), 0, 8, "65535", id="the end is reached: the last port seen"),
    pytest.param(seen(3, 1), 0, 8, "5,7", id="nothing below 1"),
]


@pytest.mark.parametrize(("observed", "later", "count", "ports"), PREDICTIONS)
def test_the_next_ports_continue_what_was_observed(
    observed: list[Endpoint], later: int, count: int, ports: str
) -> None:
    assert str(predict(judge(LOCAL, observed), later, count)) == ports


def test_eight_ports_are_predicted_unless_told_otherwise() -> None:
    assert predict(judge(LOCAL, seen(50000, 50001))).ports == tuple(range(50002, 50010))


@pytest.mark.parametrize(("later", "count"), [(-1, 8), (0, 0)])
def test_no_ports_or_past_ports_cannot_be_predicted(later: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"got {later} and {count}"):
        predict(judge(LOCAL, seen(50000, 50001)), later, count)


near = st.integers(1, 65535).flatmap(
    lambda port: st.lists(st.integers(max(1, port - 20), min(65535, port + 20)), min_size=1, max_size=4)
)
endpoints = st.builds(Endpoint, st.sampled_from([PUBLIC, POOLED, LOCAL.ip]), st.integers(1, 65535))
observations = st.one_of(near.map(lambda ports: seen(*ports)), st.lists(endpoints, min_size=1, max_size=4))


@given(observations, st.booleans(), st.integers(0, 5), st.integers(1, 20))
def test_every_observation_gets_a_verdict_and_ports_that_fit_a_list(
    observed: list[Endpoint], one_address: bool, later: int, count: int
) -> None:
    mapping = judge(LOCAL, observed, one_address=one_address)
    ports = predict(mapping, later, count)
    assert 1 <= len(ports) <= count
    assert len(runs(ports)) <= MAX_RUNS
    if mapping.behaviour is Behaviour.SEQUENTIAL:
        assert 1 <= abs(mapping.step) <= MAX_STEP
        assert 1 <= int(str(mapping).removeprefix("sequential+")) <= 65535
    else:
        assert mapping.step == 0
        assert ports.ports == (observed[-1].port,)


@given(
    first=st.integers(1024, 60000),
    step=st.integers(1, MAX_STEP),
    servers=st.integers(2, 4),
    later=st.integers(0, 3),
    strangers=st.integers(0, 3),
)
def test_a_counting_nat_is_predicted_through_three_strangers_mappings(
    first: int, step: int, servers: int, later: int, strangers: int
) -> None:
    """The NAT is played: a counter, the servers' mappings, `later` other ones of ours, strangers', then the peer's."""
    counter = iter(range(first, 65536, step))
    mapping = judge(LOCAL, seen(*(next(counter) for _ in range(servers))))
    for _ in range(later + strangers):
        next(counter)
    assert next(counter) in predict(mapping, later)


@given(st.integers(2000, 60000), st.sampled_from([-1, 1]), st.integers(1, MAX_STEP), st.integers(0, 1))
def test_a_negative_step_is_predicted_whether_the_nat_counts_down_or_was_asked_in_the_wrong_order(
    first: int, sign: int, size: int, strangers: int
) -> None:
    made = [first + sign * size * number for number in range(3 + strangers)]
    asked = made[:2] if sign < 0 else [made[1], made[0]]
    mapping = judge(LOCAL, seen(*asked))
    assert mapping.step == -size
    assert made[-1] in predict(mapping)


def test_a_mapping_is_a_value() -> None:
    assert judge(LOCAL, seen(5000)) == Mapping(LOCAL, (Endpoint(PUBLIC, 5000),), Behaviour.UNKNOWN)
