"""Which calls a listener takes up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from punchd.control.requests import Protocol
from punchd.punch import admission
from punchd.punch.admission import Admission, Policy, Verdict
from punchd.punch.messages import Call, Code, Reject
from tests.unit.punch.call_pair import PLAIN_CALL, TCP_CALL

ID = "0123456789abcdef"
KEY, OTHER = b"k" * 20, b"o" * 20
A, B = b"a" * 16, b"b" * 16
TLS = Policy(Protocol.TCP, is_plain=False)
UDP_CALL = replace(PLAIN_CALL, protocol=Protocol.UDP)


def judge(policy: Policy, call: Call = TCP_CALL, key: bytes | None = KEY) -> Verdict | Reject:
    return Admission(policy).judge(A, ID, call, key, 0)


@pytest.mark.parametrize(
    ("policy", "call", "key", "code"),
    [
        (TLS, TCP_CALL, KEY, None),
        (TLS, UDP_CALL, None, Code.MODE),
        (TLS, PLAIN_CALL, None, Code.MODE),
        (replace(TLS, is_plain=True), TCP_CALL, KEY, Code.MODE),
        (replace(TLS, is_plain=True), PLAIN_CALL, None, None),
        (replace(TLS, is_plain=True), replace(PLAIN_CALL, target="a:1"), None, Code.TARGET),
        (Policy(Protocol.UDP, is_plain=True), UDP_CALL, None, None),
        (Policy(Protocol.UDP, is_plain=True), TCP_CALL, KEY, Code.MODE),
        (replace(TLS, allowed=(OTHER,)), TCP_CALL, KEY, Code.NOT_ALLOWED),
        (TLS, TCP_CALL, None, Code.NOT_ALLOWED),
        (replace(TLS, allowed=(OTHER, KEY)), TCP_CALL, KEY, None),
    ],
)
def test_who_is_taken_and_who_is_told_no(policy: Policy, call: Call, key: bytes | None, code: Code | None) -> None:
    found = judge(policy, call, key)
    assert found is Verdict.TAKE if code is None else isinstance(found, Reject) and found.code is code


def test_a_call_is_taken_once_while_it_runs_and_when_it_is_over() -> None:
    desk = Admission(TLS)
    assert desk.judge(A, ID, TCP_CALL, KEY, 0) is Verdict.TAKE
    assert desk.judge(A, ID, TCP_CALL, KEY, 0) is Verdict.RUNS
    assert desk.judge(B, ID, TCP_CALL, KEY, 0) is Verdict.TAKE  # somebody else's id
    desk.end(A, ID)
    assert desk.judge(A, ID, TCP_CALL, KEY, 0) is Verdict.IGNORE


def test_an_old_signal_is_nobodys_call() -> None:
    assert Admission(TLS).judge(A, ID, TCP_CALL, KEY, admission.MOST_AGE_S) is Verdict.TAKE
    assert Admission(TLS).judge(A, ID, TCP_CALL, KEY, admission.MOST_AGE_S + 1) is Verdict.IGNORE


def test_one_sender_and_all_of_them_have_a_limit() -> None:
    desk = Admission(TLS)
    verdicts = [desk.judge(A, f"{n:016x}", TCP_CALL, KEY, 0) for n in range(40)]
    assert verdicts.count(Verdict.TAKE) == admission.MOST_OF_SENDER
    verdicts += [desk.judge(bytes([n]) * 16, ID, TCP_CALL, KEY, 0) for n in range(40)]
    assert verdicts.count(Verdict.TAKE) == admission.MOST_CALLS
    assert verdicts[-1] == Reject(Code.BUSY, "too many calls at a time")
    desk.end(A, f"{0:016x}")
    assert desk.judge(B, ID, TCP_CALL, KEY, 0) is Verdict.TAKE


def test_what_is_remembered_of_calls_is_bounded() -> None:
    desk = Admission(TLS)
    for n in range(2000):
        assert desk.judge(A, f"{n:016x}", TCP_CALL, KEY, 0) is Verdict.TAKE
        desk.end(A, f"{n:016x}")
    assert len(desk._over) == admission.REMEMBERED
    assert not desk._running


def test_a_target_is_one_of_those_that_are_named() -> None:
    none, one, two = (replace(TLS, targets=targets) for targets in ((), ("a:1",), ("a:1", "B.example:2")))
    assert none.objection_to_target(None) is None
    assert none.objection_to_target("a:1") == "this listener forwards nothing: it has no --to"
    assert (one.objection_to_target(None), one.target(None)) == (None, "a:1")
    assert one.objection_to_target("a:2") == "a:2 is not served here"
    assert two.objection_to_target(None) == "several targets are served here: name one with --forward"
    assert two.target("b.EXAMPLE:2") == "B.example:2"
