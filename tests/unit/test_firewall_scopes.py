"""Exemptions as scopes, over a backend that is a list: what is made, when it is undone, what is owed."""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable

import pytest
import trio

from punchd.errors import KernelError
from punchd.kernel.firewall import Exemption, Exemptions, NoFirewall, exemptions

V4, V6 = socket.AF_INET, socket.AF_INET6
NONCE = b"8 bytes."


class List:
    """A backend: what is exempt, every change in order, and whether another program holds the lock."""

    name = "list"
    families: frozenset[int] = frozenset({V4})
    limit = 3

    def __init__(self) -> None:
        self.made: list[int] = []
        self.changes: list[str] = []
        self.locked = False
        self.refuses = False
        self.closed = False
        self.threads: set[int] = set()
        self.delay_s = 0.0

    def make(self, exemption: Exemption) -> bool:
        def make() -> None:
            if exemption.port not in self.made:
                self.made.append(exemption.port)

        return self._change(f"make {exemption.port}", make)

    def undo(self, exemption: Exemption) -> bool:
        return self._change(f"undo {exemption.port}", lambda: self.made.remove(exemption.port))

    def close(self) -> None:
        self.closed = True

    def _change(self, name: str, change: Callable[[], None]) -> bool:
        self.threads.add(threading.get_ident())
        time.sleep(self.delay_s)
        if self.locked:
            return False
        if self.refuses:
            raise KernelError("the kernel refuses")
        change()
        self.changes.append(name)
        return True


@pytest.fixture
def backend() -> List:
    return List()


@pytest.fixture
def firewall(backend: List) -> Exemptions:
    return Exemptions(backend)


async def test_a_scope_makes_and_undoes(backend: List, firewall: Exemptions) -> None:
    async with firewall.exempt(80, V4, NONCE):
        assert backend.made == [80]
    assert backend.made == []
    assert threading.get_ident() not in backend.threads


async def test_an_exception_undoes_and_goes_on(backend: List, firewall: Exemptions) -> None:
    with pytest.raises(ZeroDivisionError):
        async with firewall.exempt(80, V4, NONCE):
            raise ZeroDivisionError
    assert backend.changes == ["make 80", "undo 80"]


async def test_cancellation_undoes(backend: List, firewall: Exemptions) -> None:
    with trio.CancelScope() as scope:
        async with firewall.exempt(80, V4, NONCE):
            scope.cancel()
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert backend.changes == ["make 80", "undo 80"]


async def test_cancellation_in_the_middle_of_making_undoes_what_was_made(backend: List, firewall: Exemptions) -> None:
    backend.delay_s = 0.05
    with trio.move_on_after(0.01) as scope:
        async with firewall.exempt(80, V4, NONCE):
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert backend.changes == ["make 80", "undo 80"]


async def test_cancellation_before_making_makes_nothing(backend: List, firewall: Exemptions) -> None:
    with trio.CancelScope() as scope:
        scope.cancel()
        async with firewall.exempt(80, V4, NONCE):
            raise AssertionError("entered")
    assert backend.changes == []
    assert not firewall._ports


async def test_scopes_of_one_port_share_an_exemption_until_the_last_ends(backend: List, firewall: Exemptions) -> None:
    async with firewall.exempt(80, V4, NONCE):
        async with firewall.exempt(80, V4, b"another"):
            assert backend.made == [80]
        assert backend.made == [80]
    assert backend.made == []
    assert backend.changes.count("undo 80") == 1


async def test_a_scope_that_comes_while_the_last_is_being_undone_has_its_exemption(
    backend: List, firewall: Exemptions
) -> None:
    backend.delay_s = 0.02
    inside = trio.Event()

    async def second() -> None:
        async with firewall.exempt(80, V4, NONCE):
            assert backend.made == [80]
            inside.set()
            await trio.sleep(0.1)
            assert backend.made == [80]

    for pause_s in (0.0, 0.005, 0.015, 0.025, 0.03):
        async with trio.open_nursery() as nursery:
            async with firewall.exempt(80, V4, NONCE):
                nursery.start_soon(second)
                await trio.sleep(pause_s)
            await inside.wait()
        assert backend.made == []
        assert not firewall._ports


async def test_many_scopes_at_once_leave_nothing(backend: List, firewall: Exemptions) -> None:
    async def one(port: int) -> None:
        for _ in range(30):
            with trio.move_on_after(0.003):
                async with firewall.exempt(port, V4, NONCE):
                    assert port in backend.made
                    await trio.sleep(0.001)

    async with trio.open_nursery() as nursery:
        for port in (1, 1, 1, 2, 2, 3):
            nursery.start_soon(one, port)
    assert backend.made == []
    assert not firewall._ports


async def test_a_lock_is_waited_for(backend: List, firewall: Exemptions) -> None:
    backend.locked = True
    async with trio.open_nursery() as nursery:
        entered = trio.Event()

        async def scope() -> None:
            async with firewall.exempt(80, V4, NONCE):
                entered.set()

        nursery.start_soon(scope)
        await trio.sleep(0.05)
        assert not entered.is_set()
        backend.locked = False
    assert backend.changes == ["make 80", "undo 80"]


async def test_a_lock_that_stays_is_an_error(
    backend: List, firewall: Exemptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exemptions, "MAKE_PATIENCE_S", 0.05)
    backend.locked = True
    with pytest.raises(KernelError, match=r"^firewall list: another program has held its lock for 0\.05 s$"):
        async with firewall.exempt(80, V4, NONCE):
            raise AssertionError("entered")
    assert not firewall._ports


async def test_waiting_for_a_lock_can_be_cancelled_at_once(backend: List, firewall: Exemptions) -> None:
    backend.locked = True
    start = trio.current_time()
    with trio.move_on_after(0.05):
        async with firewall.exempt(80, V4, NONCE):
            raise AssertionError("entered")
    assert trio.current_time() - start < 0.5
    assert not firewall._ports


@pytest.mark.parametrize("obstacle", ["locked", "refuses"])
async def test_what_cannot_be_undone_is_owed_and_undone_with_the_next_scope(
    backend: List,
    firewall: Exemptions,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    obstacle: str,
) -> None:
    monkeypatch.setattr(exemptions, "UNDO_PATIENCE_S", 0.05)
    async with firewall.exempt(80, V4, NONCE):
        setattr(backend, obstacle, True)
    assert "the exemption of port 80 (IPv4) is ended later" in caplog.text
    setattr(backend, obstacle, False)
    async with firewall.exempt(81, V4, NONCE):
        assert backend.made == [81]
    assert backend.made == []
    assert not firewall._ports


async def test_what_is_owed_and_needed_again_stays(
    backend: List, firewall: Exemptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exemptions, "UNDO_PATIENCE_S", 0.02)
    async with firewall.exempt(80, V4, NONCE):
        backend.locked = True
    backend.locked = False
    async with firewall.exempt(80, V4, NONCE), firewall.exempt(81, V4, NONCE):
        assert backend.made == [80, 81]
    assert backend.made == []


async def test_what_is_owed_counts_against_the_limit_and_is_undone_at_the_end(
    backend: List, firewall: Exemptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exemptions, "UNDO_PATIENCE_S", 0.02)
    for port in range(1, 4):
        async with firewall.exempt(port, V4, NONCE):
            backend.locked = True
        backend.locked = False
        monkeypatch.setattr(firewall, "_settle", trio.lowlevel.checkpoint)
    with pytest.raises(KernelError, match="3 ports are exempt"):
        async with firewall.exempt(4, V4, NONCE):
            raise AssertionError("entered")
    firewall.close()
    assert backend.made == []
    assert backend.closed


def test_the_end_does_not_wait_for_ever(
    backend: List, firewall: Exemptions, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(exemptions, "UNDO_PATIENCE_S", 0.02)
    monkeypatch.setattr(exemptions, "CLOSE_PATIENCE_S", 0.05)

    async def owe() -> None:
        async with firewall.exempt(80, V4, NONCE):
            backend.locked = True

    trio.run(owe)
    start = time.monotonic()
    firewall.close()
    assert time.monotonic() - start < 1
    assert "the exemption of port 80 (IPv4) stays behind" in caplog.text
    assert caplog.records[-1].levelno == logging.ERROR


async def test_no_more_than_the_limit(backend: List, firewall: Exemptions) -> None:
    async with firewall.exempt(1, V4, NONCE), firewall.exempt(2, V4, NONCE), firewall.exempt(3, V4, NONCE):
        async with firewall.exempt(3, V4, NONCE):
            assert backend.made == [1, 2, 3]
        with pytest.raises(KernelError, match=r"^firewall list: 3 ports are exempt, no more can be$"):
            async with firewall.exempt(4, V4, NONCE):
                raise AssertionError("entered")


async def test_a_family_that_the_host_cannot_do_is_said(firewall: Exemptions) -> None:
    with pytest.raises(KernelError, match=r"^firewall list: IPv6 is not available on this host$"):
        async with firewall.exempt(80, V6, NONCE):
            raise AssertionError("entered")


async def test_a_refusal_is_told_and_leaves_nothing(backend: List, firewall: Exemptions) -> None:
    backend.refuses = True
    with pytest.raises(KernelError, match="the kernel refuses"):
        async with firewall.exempt(80, V4, NONCE):
            raise AssertionError("entered")
    assert not firewall._ports


async def test_none_makes_nothing_but_notices_mistakes() -> None:
    firewall = NoFirewall()
    async with firewall.exempt(80, V4, NONCE), firewall.exempt(80, V6, NONCE):
        pass
    with pytest.raises(ValueError, match="port"):
        async with firewall.exempt(0, V4, NONCE):
            raise AssertionError("entered")
    assert firewall.families == frozenset()
    firewall.close()
