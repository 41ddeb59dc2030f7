"""Names of STUN servers: what they resolve to, what is remembered, and that no name server holds an attempt up."""

from __future__ import annotations

import socket
from typing import Any

import pytest
import trio
import trio.testing

from punchd.nat.servers import FOREIGN_LOOKUPS, LOOKUP_S, REMEMBER_FAILURE_S, REMEMBER_S, StunServers


class NameServer(trio.abc.HostnameResolver):
    """Answers like getaddrinfo after a delay, and counts."""

    def __init__(self, names: dict[str, list[str]], delay_s: float = 0.0) -> None:
        self._names = names
        self._delay_s = delay_s
        self.asked: list[str] = []

    async def getaddrinfo(self, host: Any, port: Any, family: int = 0, type: int = 0, *_: Any) -> Any:  # noqa: A002
        name = host.decode() if isinstance(host, bytes) else host
        self.asked.append(name)
        assert type == socket.SOCK_DGRAM
        await trio.sleep(self._delay_s)
        if name not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        found = []
        for text in self._names[name]:
            version6 = ":" in text
            address = (text, port, 0, 0) if version6 else (text, port)
            found.append((socket.AF_INET6 if version6 else socket.AF_INET, type, 17, "", address))
        return found

    async def getnameinfo(self, *_: Any) -> Any:
        raise NotImplementedError


def texts(endpoints: Any) -> list[str]:
    return [str(endpoint) for endpoint in endpoints]


async def test_literal_addresses_are_themselves_and_ask_nobody() -> None:
    names = NameServer({})
    trio.socket.set_custom_hostname_resolver(names)
    servers = StunServers([("192.0.2.10", 3478), ("2001:db8::1", 3479), ("192.0.2.20", 3478)])
    assert texts(await servers.of_family(4)) == ["192.0.2.10:3478", "192.0.2.20:3478"]
    assert texts(await servers.of_family(6)) == ["[2001:db8::1]:3479"]
    assert names.asked == []


async def test_localhost_is_found_in_the_hosts_file() -> None:
    found = texts(await StunServers([("localhost", 3478)]).of_family(4))
    assert found == ["127.0.0.1:3478"]


async def test_a_name_gives_the_first_address_of_each_family() -> None:
    trio.socket.set_custom_hostname_resolver(
        NameServer({"stun.test": ["192.0.2.1", "2001:db8::1", "192.0.2.2", "2001:db8::2"]})
    )
    servers = StunServers([("stun.test", 3478)])
    assert texts(await servers.of_family(4)) == ["192.0.2.1:3478"]
    assert texts(await servers.of_family(6)) == ["[2001:db8::1]:3478"]


async def test_two_names_of_one_server_are_asked_once() -> None:
    trio.socket.set_custom_hostname_resolver(NameServer({"a.test": ["192.0.2.1"], "b.test": ["192.0.2.1"]}))
    servers = StunServers([("a.test", 3478), ("b.test", 3478), ("192.0.2.1", 3478), ("b.test", 3479)])
    assert texts(await servers.of_family(4)) == ["192.0.2.1:3478", "192.0.2.1:3479"]


@pytest.mark.parametrize(("names", "remember_s"), [({"a.test": ["192.0.2.1"]}, REMEMBER_S), ({}, REMEMBER_FAILURE_S)])
async def test_configured_names_are_remembered_for_a_while_and_failures_for_less(
    autojump_clock: trio.testing.MockClock, names: dict[str, list[str]], remember_s: float
) -> None:
    name_server = NameServer(names)
    trio.socket.set_custom_hostname_resolver(name_server)
    servers = StunServers([("a.test", 3478)])
    for _ in range(3):
        await servers.of_family(4)
    assert len(name_server.asked) == 1
    await trio.sleep(remember_s - 0.1)
    await servers.of_family(4)
    assert len(name_server.asked) == 1
    await trio.sleep(0.2)
    await servers.of_family(4)
    assert len(name_server.asked) == 2


async def test_names_of_requests_are_not_remembered_since_nothing_bounds_them() -> None:
    name_server = NameServer({"a.test": ["192.0.2.1"]})
    trio.socket.set_custom_hostname_resolver(name_server)
    servers = StunServers([])
    for _ in range(3):
        assert texts(await servers.resolve(("a.test", 3478))) == ["192.0.2.1:3478"]
    assert len(name_server.asked) == 3


async def test_a_name_server_that_is_silent_costs_one_bounded_wait_for_all_names(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    trio.socket.set_custom_hostname_resolver(NameServer({}, delay_s=3600))
    servers = StunServers([("a.test", 3478), ("192.0.2.1", 3478), ("b.test", 3478), ("c.test", 3478)])
    started = trio.current_time()
    assert texts(await servers.of_family(4)) == ["192.0.2.1:3478"]
    assert trio.current_time() - started == pytest.approx(LOOKUP_S)
    assert "no name server answered" in caplog.text


@pytest.mark.parametrize("name", ["under_score.test", "a..b", ".", "x" * 64, "-", "xn--a", "a" * 300])
async def test_a_name_that_can_be_no_name_is_a_failure_like_any_other(
    name: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An application may name any server: nothing that it writes may raise more than what a launch handles."""
    trio.socket.set_custom_hostname_resolver(NameServer({}))
    assert await StunServers([]).resolve((name, 3478)) == ()
    assert "STUN server" in caplog.text


async def test_names_of_requests_that_nobody_answers_are_few_at_a_time_and_hold_up_no_configured_one() -> None:
    """libc goes on waiting when nobody else does; a name server of an attacker's never answers."""
    names = NameServer({"stun.test": ["192.0.2.1"]}, delay_s=0)
    never = trio.Event()

    class Silent(NameServer):
        async def getaddrinfo(self, host: Any, port: Any, *more: Any, **options: Any) -> Any:
            if host == b"stun.test":
                return await names.getaddrinfo(host, port, *more, **options)
            self.asked.append(str(host))
            with trio.CancelScope(shield=True):
                await never.wait()
            raise socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")

    silent = Silent({})
    trio.socket.set_custom_hostname_resolver(silent)
    servers = StunServers([("stun.test", 3478)])
    async with trio.open_nursery() as nursery:
        for number in range(3 * FOREIGN_LOOKUPS):
            nursery.start_soon(servers.resolve, (f"{number}.test", 3478))
        assert texts(await servers.of_family(4)) == ["192.0.2.1:3478"]
    assert len(silent.asked) == FOREIGN_LOOKUPS
    assert await servers.resolve(("more.test", 3478)) == ()
    never.set()
    await trio.testing.wait_all_tasks_blocked()
    assert await servers.resolve(("again.test", 3478)) == ()
    assert len(silent.asked) == FOREIGN_LOOKUPS + 1, "those that have ended make room"
