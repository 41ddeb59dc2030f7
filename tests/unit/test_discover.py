"""Discovery under a virtual clock: schedules and verdicts as tables. Networks: test_discover_network.py."""

from __future__ import annotations

from ipaddress import ip_address

import pytest

from punchd.endpoint import Endpoint
from punchd.nat.discover import (
    DEADLINE_S,
    LAST_WAIT_S,
    MAX_SENDS,
    MAX_SERVERS,
    PATIENCE_S,
    RTO_S,
    Datagram,
    Discovered,
    Discovery,
    Failure,
)
from punchd.nat.mapping import Behaviour
from punchd.wire import stun
from tests.unit.discover_parts import (
    LOCAL,
    SIX,
    STRANGER,
    A,
    B,
    C,
    D,
    answer,
    discovery,
    id_of,
    run_out,
    schedule,
    seen,
    started,
)

# --- asking ----------------------------------------------------------------------------------------------------------


def test_all_servers_are_asked_at_once_and_in_order() -> None:
    assert discovery(A, B, C).start(7.0) == [
        Datagram(stun.encode_request(id_of(0)), A),
        Datagram(stun.encode_request(id_of(1)), B),
        Datagram(stun.encode_request(id_of(2)), C),
    ]


def test_silent_servers_are_asked_after_100_ms_doubling_until_the_deadline() -> None:
    machine = started(A, B)
    assert schedule(machine) == ({A: [100, 300, 700, 1500], B: [100, 300, 700, 1500]}, 2000)


def test_a_repeated_question_is_the_same_question() -> None:
    machine = discovery(A, B)
    first = machine.start(0.0)
    assert machine.handle_timeout(0.1) == first


def test_without_a_near_deadline_a_server_is_asked_seven_times_and_given_1600_ms_more() -> None:
    machine = discovery(A, deadline_s=60.0)
    machine.start(0.0)
    assert schedule(machine) == ({A: [100, 300, 700, 1500, 3100, 6300]}, 6300 + 1600)
    assert run_out(machine).failures == (Failure(A, "no answer"),)
    assert LAST_WAIT_S == 16 * RTO_S
    assert MAX_SENDS == 7


def test_after_the_first_answer_a_silent_server_is_asked_every_100_ms_and_no_longer_than_patience() -> None:
    machine = started(A, B)
    assert machine.handle_datagram(answer(0), A, 0.05)
    assert schedule(machine) == ({B: [100, 200, 300, 400, 500, 600]}, 850)
    assert PATIENCE_S == 0.8


def test_a_late_first_answer_does_not_move_the_deadline() -> None:
    machine = started(A, B)
    for wake_s in (0.1, 0.3, 0.7, 1.5):
        machine.handle_timeout(wake_s)
    machine.handle_datagram(answer(0), A, 1.6)
    assert schedule(machine) == ({}, 2000)


def test_a_second_answer_does_not_renew_patience() -> None:
    machine = started(A, B, C)
    machine.handle_datagram(answer(0), A, 0.05)
    machine.handle_datagram(answer(1), B, 0.5)
    assert schedule(machine)[1] == 850


def test_an_early_call_sends_nothing_and_a_late_one_asks_each_server_once() -> None:
    machine = started(A, B)
    assert machine.handle_timeout(0.099) == []
    assert [datagram.destination for datagram in machine.handle_timeout(1.2)] == [A, B]
    assert machine.next_timeout() == pytest.approx(1.4)


def test_nothing_happens_before_the_start() -> None:
    machine = discovery(A)
    assert machine.next_timeout() is None
    assert machine.handle_timeout(99.0) == []
    assert machine.handle_datagram(answer(0), A, 0.0) is False
    assert machine.handle_unreachable(A, "port unreachable") is False
    assert machine.result() is None
    assert machine.so_far() == Discovered(None, None, ())


def test_a_discovery_starts_once() -> None:
    machine = started(A)
    with pytest.raises(RuntimeError, match="starts once"):
        machine.start(1.0)


# --- verdicts --------------------------------------------------------------------------------------------------------

VERDICTS = [
    pytest.param([5000, 5000], "endpoint-independent", id="the same"),
    pytest.param([5000, 5001], "sequential+1", id="counting"),
    pytest.param([5000, 9000], "random", id="far apart"),
]


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["A answers first", "B answers first"])
@pytest.mark.parametrize(("ports", "verdict"), VERDICTS)
def test_observations_stand_in_the_order_of_asking_whoever_answers_first(
    ports: list[int], verdict: str, order: tuple[int, int]
) -> None:
    machine = started(A, B)
    for place in order:
        assert machine.handle_datagram(answer(place, ports[place]), (A, B)[place], 0.05)
    result = machine.result()
    assert result is not None
    assert result.mapping is not None
    assert result.mapping.observed == (seen(ports[0]), seen(ports[1]))
    assert str(result.mapping) == verdict
    assert result.failures == ()
    assert result.reason == ""


def test_the_local_endpoint_itself_is_open_even_from_one_server() -> None:
    machine = started(A)
    machine.handle_datagram(stun.encode_success(id_of(0), LOCAL), A, 0.02)
    assert str(run_out(machine).mapping) == "open"


def test_two_ports_of_one_server_do_not_prove_endpoint_independence() -> None:
    other_port = Endpoint(A.ip, 3479)
    machine = started(A, other_port)
    machine.handle_datagram(answer(0), A, 0.02)
    machine.handle_datagram(answer(1), other_port, 0.02)
    assert str(run_out(machine).mapping) == "unknown"


def test_a_dead_server_leaves_the_address_and_an_unknown_behaviour() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(1, 5001), B, 0.03)
    assert machine.result() is None
    result = run_out(machine)
    assert result.mapping is not None
    assert result.mapping.observed == (seen(5001),)
    assert result.mapping.behaviour is Behaviour.UNKNOWN
    assert result.failures == (Failure(A, "no answer"),)


def test_what_is_known_so_far_can_be_had_before_the_end() -> None:
    machine = started(A, B, C)
    machine.handle_datagram(stun.encode_error(id_of(2), 500, "Server Error"), C, 0.01)
    machine.handle_datagram(answer(0), A, 0.02)
    known = machine.so_far()
    assert machine.result() is None
    assert known.mapping is not None
    assert str(known.mapping) == "unknown"
    assert known.rtt_s == 0.02
    assert known.failures == (Failure(C, "error 500 Server Error"),)
    machine.handle_datagram(answer(1), B, 0.03)
    assert machine.so_far() is machine.result()


def test_the_result_never_changes_again() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0), A, 0.05)
    result = run_out(machine)
    assert machine.handle_datagram(answer(1), B, 1.0) is True
    assert machine.handle_unreachable(B, "port unreachable") is True
    assert machine.handle_timeout(1.1) == []
    assert machine.next_timeout() is None
    assert machine.result() is result


# --- round-trip times ------------------------------------------------------------------------------------------------


def test_the_smallest_round_trip_time_counts() -> None:
    machine = discovery(A, B)
    machine.start(100.0)
    machine.handle_datagram(answer(1), B, 100.0625)
    machine.handle_datagram(answer(0), A, 100.09375)
    assert run_out(machine).rtt_s == 0.0625


def test_after_a_repeated_question_the_time_counts_from_the_first() -> None:
    machine = started(A)
    machine.handle_timeout(0.1)
    machine.handle_datagram(answer(0), A, 0.125)
    assert run_out(machine).rtt_s == 0.125


def test_an_answer_found_late_counts_but_its_time_is_at_most_the_deadline() -> None:
    """The program was stopped for an hour; the answer waited in the socket."""
    machine = started(A)
    machine.handle_datagram(answer(0), A, 3600.0)
    result = run_out(machine)
    assert str(result.mapping) == "unknown"
    assert result.rtt_s == DEADLINE_S


# --- which servers are asked -----------------------------------------------------------------------------------------


def test_without_servers_the_result_is_there_from_the_beginning() -> None:
    machine = discovery()
    result = machine.result()
    assert result == Discovered(None, None, ())
    assert result.reason == "no STUN server is known: use --stun or the configuration"
    assert machine.start(0.0) == []
    assert machine.next_timeout() is None


def test_a_server_of_another_address_family_is_skipped_and_named() -> None:
    machine = discovery(SIX, A)
    assert [datagram.destination for datagram in machine.start(0.0)] == [A]
    machine.handle_datagram(answer(1), A, 0.02)
    result = machine.result()
    assert result is not None
    assert result.failures == (Failure(SIX, "not asked from an IPv4 address"),)


def test_with_servers_of_another_family_only_the_result_says_so() -> None:
    result = discovery(A, B, local=Endpoint(ip_address("2001:db8::2"), 4000)).result()
    assert result is not None
    assert result.reason == (
        "no STUN server answered: 192.0.2.1:3478 (not asked from an IPv6 address), "
        "192.0.2.2:3478 (not asked from an IPv6 address)"
    )


def test_at_most_four_servers_are_asked() -> None:
    machine = discovery(A, B, C, D, STRANGER)
    assert len(machine.start(0.0)) == MAX_SERVERS == 4
    assert run_out(machine).failures[-1] == Failure(STRANGER, "not asked, only 4 are")


def test_a_server_that_is_named_twice_is_asked_once() -> None:
    machine = discovery(A, A, B)
    assert machine.start(0.0) == [
        Datagram(stun.encode_request(id_of(0)), A),
        Datagram(stun.encode_request(id_of(2)), B),
    ]
    assert len(run_out(machine).failures) == 2


@pytest.mark.parametrize("ids", [[], [id_of(0)], [id_of(0), id_of(0)], [id_of(0), id_of(1), id_of(2)]])
def test_each_server_needs_a_transaction_id_of_its_own(ids: list[bytes]) -> None:
    with pytest.raises(ValueError, match="expected 2 distinct transaction ids"):
        Discovery([A, B], LOCAL, ids)


def test_a_transaction_id_has_twelve_bytes() -> None:
    with pytest.raises(ValueError, match="expected 12 bytes"):
        Discovery([A], LOCAL, [b"short"])


# --- failures --------------------------------------------------------------------------------------------------------


def test_if_nobody_answers_the_reason_names_the_servers() -> None:
    result = run_out(started(A, B))
    assert result.mapping is None
    assert result.rtt_s is None
    assert result.reason == "no STUN server answered: 192.0.2.1:3478, 192.0.2.2:3478"


def test_a_refusing_server_has_failed_with_its_own_words_at_once() -> None:
    machine = started(A, B)
    assert machine.handle_datagram(stun.encode_error(id_of(0), 420, "Unknown Attribute"), A, 0.02)
    machine.handle_datagram(stun.encode_error(id_of(1), 500, ""), B, 0.03)
    result = machine.result()
    assert result is not None
    assert result.reason == (
        "no STUN server answered: 192.0.2.1:3478 (error 420 Unknown Attribute), 192.0.2.2:3478 (error 500)"
    )


def test_an_unreachable_server_is_not_waited_for() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0), A, 0.02)
    assert machine.handle_unreachable(B, "port unreachable") is True
    result = machine.result()
    assert result is not None
    assert str(result.mapping) == "unknown"
    assert result.failures == (Failure(B, "port unreachable"),)


def test_an_icmp_error_after_the_answer_or_about_others_changes_nothing() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0), A, 0.02)
    assert machine.handle_unreachable(A, "port unreachable") is True
    assert machine.handle_unreachable(STRANGER, "port unreachable") is False
    machine.handle_datagram(answer(1), B, 0.03)
    assert run_out(machine).failures == ()


# --- forged and strange datagrams ------------------------------------------------------------------------------------

UNKNOWN_FAMILY = answer(0)[:25] + b"\x03" + answer(0)[26:]
IGNORED = [
    pytest.param(answer(0), STRANGER, True, id="our id from elsewhere"),
    pytest.param(answer(0), Endpoint(A.ip, 3479), True, id="our id from another port of the server"),
    pytest.param(answer(0), B, True, id="A's id from B"),
    pytest.param(answer(9), A, True, id="a wrong id from the server"),
    pytest.param(stun.encode_error(id_of(9), 500, ""), A, True, id="a refusal with a wrong id"),
    pytest.param(answer(9), STRANGER, False, id="STUN between others"),
    pytest.param(b"", A, False, id="nothing"),
    pytest.param(b"hello", A, False, id="no STUN from the server"),
    pytest.param(answer(0) + b"\0", A, False, id="STUN and one byte more"),
]


@pytest.mark.parametrize(("data", "source", "consumed"), IGNORED)
def test_a_datagram_that_answers_no_question_changes_nothing(data: bytes, source: Endpoint, consumed: bool) -> None:
    machine, untouched = started(A, B), started(A, B)
    assert machine.handle_datagram(data, source, 0.01) is consumed
    assert schedule(machine) == schedule(untouched)
    assert run_out(machine) == run_out(untouched)


NONSENSE = [
    pytest.param(stun.encode_request(id_of(0)), "expected a Binding response", id="our own question comes back"),
    pytest.param(stun.encode_success(id_of(0), seen(0)), "says that we are 203.0.113.1:0", id="port 0"),
    pytest.param(stun.encode_success(id_of(0), SIX), "says that we are [2001:db8::1]:3478", id="another family"),
    pytest.param(
        stun.encode_success(id_of(0), Endpoint(ip_address(0), 5000)), "we are 0.0.0.0:5000", id="unspecified address"
    ),
    pytest.param(UNKNOWN_FAMILY, "STUN address", id="malformed"),
]


@pytest.mark.parametrize(("data", "complaint"), NONSENSE)
def test_nonsense_from_a_server_is_its_failure_only_if_nothing_better_comes(data: bytes, complaint: str) -> None:
    silent, talking = started(A), started(A)
    for machine in (silent, talking):
        assert machine.handle_datagram(data, A, 0.01) is True
        assert machine.result() is None
    assert complaint in run_out(silent).reason
    talking.handle_datagram(answer(0), A, 0.02)
    assert run_out(talking).failures == ()


def test_of_two_good_answers_the_first_counts() -> None:
    machine = started(A, B)
    machine.handle_datagram(answer(0, 5000), A, 0.01)
    assert machine.handle_datagram(answer(0, 6000), A, 0.02) is True
    machine.handle_datagram(answer(1, 5000), B, 0.03)
    assert str(run_out(machine).mapping) == "endpoint-independent"
