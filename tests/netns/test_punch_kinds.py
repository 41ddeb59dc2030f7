"""`punch` between hosts behind six typical kinds of NAT, each with each in both directions: TLS over TCP, and UDP.

What does not connect by nature is in docs/auto-tcp-matrix.md and docs/udp-matrix.md; of these six all pairs do.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.netns.punch_parts import World, service, world

pytestmark = [pytest.mark.netns, pytest.mark.timeout(600)]

KINDS = {
    "a": "full-cone",
    "b": "adf",
    "c": "apdf",
    "d": "eim-no-preserve",
    "e": "symmetric-sequential",
    "f": "carrier",
}


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("punch"), KINDS) as found:
        yield found


def test_over_tcp_all_others_reach_a_listener_at_once_whatever_its_nat(lab: World) -> None:
    failed = []
    for name, kind in KINDS.items():
        with service(lab.host(name), b"hello ") as target:
            listener, address = lab.listen(name, "--to", target, "--timeout", "90")
            callers = {
                other: lab.punch(other, "connect", address, "--timeout", "90") for other in KINDS if other != name
            }
            for other, caller in callers.items():
                caller.write(other.encode())
                caller.close()
            for other, caller in callers.items():
                if caller.read() != f"hello {other}".encode() or caller.wait() != 0:
                    failed.append((KINDS[other], kind, caller.named("error"), caller.named("failed")))
            assert listener.interrupt() == 130
        lab.end_all()
    assert failed == []


def rounds() -> Iterator[list[tuple[str, str]]]:
    """All ordered pairs; in each round every site calls one other and is called by one."""
    sites = [*KINDS]
    for shift in range(1, len(sites)):
        yield list(zip(sites, sites[shift:] + sites[:shift], strict=True))


def test_over_udp_each_pair_of_kinds_talks(lab: World) -> None:
    failed = []
    for pairs in rounds():
        listeners = {to: lab.punch(to, "listen", "--udp") for _, to in pairs}  # all at once: starting takes longest
        addresses = {to: str(listener.until("listening")["address"]) for to, listener in listeners.items()}
        callers = {name: lab.punch(name, "connect", addresses[to], "--udp") for name, to in pairs}
        for name, to in pairs:
            caller, listener = callers[name], listeners[to]
            try:
                for one in (caller, listener):
                    one.until("connected")
                for one, other in ((caller, listener), (listener, caller)):
                    one.write(b"hello\n")
                    assert other.line() == b"hello\n"
                for one in (caller, listener):
                    one.close()
            except AssertionError as error:
                failed.append((KINDS[name], KINDS[to], str(error)))
                caller.process.kill()
                listener.process.kill()
        for name, to in pairs:
            if (codes := (callers[name].wait(), listeners[to].wait())) != (0, 0):
                failed.append((KINDS[name], KINDS[to], str(codes)))
        lab.end_all()
    assert failed == []
