"""The shell of `join`: a broker of this process, and small shell scripts as tools."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
import trio

from punchd.broker.client import BrokerError, Error, Joined, Peer, RefusedError, Register, SessionClosed, Srt, Start
from punchd.broker.client_events import Event
from punchd.broker.messages import Direction
from punchd.endpoint import Endpoint
from punchd.punch.news import News
from punchd.punch.outcomes import Exit
from punchd.session import child, moves
from punchd.session.join import _Joining
from punchd.session.options import JoinOptions
from punchd.session.port import HeldPort
from punchd.session.tools import Choice
from tests.unit.session.test_statistics import SENT

PEER = Peer("cam", Endpoint(ip_address("127.0.0.1"), 6000), 5000, "0123456789", 20, {"punchd": {"run": "ab-0"}})
LIMIT_S = 30.0


class FakeJoined(Joined):
    """A part in a session whose events the test makes up. `said` is what the broker hears."""

    def __init__(self) -> None:
        self.said: list[Any] = []
        self._to_come, self._coming = trio.open_memory_channel[Event | BrokerError](64)
        self._was_said = trio.Event()

    @property
    def ip_version(self) -> int | None:
        return 4

    def __aiter__(self) -> AsyncIterator[Event]:
        return self

    async def __anext__(self) -> Event:
        event = await self._coming.receive()
        if isinstance(event, BrokerError):
            raise event
        return event

    def happens(self, *events: Event | BrokerError) -> None:
        for event in events:
            self._to_come.send_nowait(event)

    async def heard(self, what: object) -> None:
        """Wait until the broker has heard it."""
        with trio.fail_after(LIMIT_S):
            while what not in [type(one) if isinstance(what, type) else one for one in self.said]:
                await self._was_said.wait()

    def _note(self, what: object) -> bool:
        self.said.append(what)
        self._was_said.set()
        self._was_said = trio.Event()
        return True

    async def register(self, registration: Register) -> bool:
        return self._note(registration)

    async def ready(self, stream: str | None = None) -> bool:
        return self._note("ready")

    async def status(self, srt: Srt, stream: str | None = None) -> bool:
        return self._note(srt)

    async def health(self, **figures: Any) -> bool:
        return self._note(figures)


class Run:
    """A running join: its broker, its news, and in the end how it ended."""

    def __init__(self, options: JoinOptions) -> None:
        self.joined = FakeJoined()
        self.news: list[dict[str, Any]] = []
        self.printed: list[str] = []
        self.end: moves.End | None = None
        held = HeldPort(0, (), lambda port: None)
        held.bind()
        self._was_told = trio.Event()
        self._joining = _Joining(self.joined, held, options, News(self._tell, is_json=True), self.printed.append)

    def _tell(self, line: str) -> None:
        self.news.append(json.loads(line))
        self._was_told.set()
        self._was_told = trio.Event()

    async def told(self, name: str) -> None:
        """Wait until there is news of that name."""
        while not any(one["event"] == name for one in self.news):
            await self._was_told.wait()

    async def run(self) -> None:
        self.end = await self._joining.run()


@asynccontextmanager
async def joining(script: str, *, form: str | None = None, keep: bool = False) -> AsyncIterator[Run]:
    """A sender with this script as its tool, registered; to its end."""
    choice = Choice(Direction.SENDER, "", None, (script,), is_shell=True)
    run = Run(JoinOptions(choice, None, 0, (), form, keep))
    with trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run.run)
            await run.joined.heard(Register)
            yield run


async def test_a_tool_s_words_and_statistics_become_status_and_health(tmp_path: Path) -> None:
    (tmp_path / "sample").write_bytes(SENT + b"\n")
    script = (
        f"echo SRT target connected >&2; cat {tmp_path}/sample > {{stats}}; echo hello {{passphrase}} >&2; sleep 600"
    )
    async with joining(script) as run:
        run.joined.happens(PEER)
        await run.joined.heard("ready")
        run.joined.happens(Start("cam"))
        await run.joined.heard(dict)
        await run.told("tool")
        run.joined.happens(SessionClosed("admin_closed"))
    assert run.end == moves.End(Exit.DONE, "")
    register, *said = run.joined.said
    assert (register.role, register.public_port) == (Direction.SENDER, None)
    assert json.loads(register.meta)["punchd"]["run"].endswith("-0")
    assert [one for one in said if not isinstance(one, dict)] == [
        "ready", Srt.CONNECTING, Srt.CONNECTED, Srt.DISCONNECTED,
    ]  # fmt: skip
    (health,) = [one for one in said if isinstance(one, dict)]
    assert (health["rtt"], health["stream"]) == (44.935, None)
    assert [one["text"] for one in run.news if one["event"] == "tool"] == ["hello ***"]


async def test_a_tool_that_has_done_its_work_is_the_end() -> None:
    async with joining("echo SRT target connected >&2") as run:
        run.joined.happens(PEER, Start("cam"))
        await run.joined.heard("ready")
        run.joined.happens(Start("cam"))
    assert run.end == moves.End(Exit.DONE, "")
    assert run.joined.said[-1] is Srt.DISCONNECTED


async def test_a_tool_that_floods_is_cut_short() -> None:
    async with joining("yes word | head -n 1000 >&2; echo SRT target connected >&2") as run:
        run.joined.happens(PEER)
        await run.joined.heard("ready")
        run.joined.happens(Start("cam"))
    assert 0 < len([one for one in run.news if one["event"] == "tool"]) <= 40


@pytest.mark.parametrize("passphrase", ["0123456789&adapter=x", "0123456789 ! filesink location=x"])
async def test_a_passphrase_that_means_something_to_tools_is_refused(passphrase: str) -> None:
    async with joining("exit 1") as run:
        run.joined.happens(replace(PEER, passphrase=passphrase))
    assert run.end is not None
    assert run.end.code is Exit.REFUSED
    assert passphrase not in str(run.news) + run.end.text


@pytest.mark.parametrize(
    ("event", "code"),
    [
        (RefusedError("no such session", 404, "SESSION_NOT_FOUND"), Exit.NOT_ONLINE),
        (Error("AUTH_FAILED", "no"), Exit.REFUSED),
        (SessionClosed("ttl_expired"), Exit.NO_CONNECTION),
    ],
)
async def test_what_the_broker_says_for_good_is_the_end(event: Event | BrokerError, code: Exit) -> None:
    async with joining("exit 0") as run:
        run.joined.happens(event)
    assert run.end is not None
    assert run.end.code is code


@pytest.mark.parametrize("is_hidden", [False, True])
async def test_a_passphrase_in_a_command_line_is_warned_of_unless_nobody_can_see_it(
    is_hidden: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "is_private", lambda: is_hidden)
    async with joining("echo SRT target connected >&2; : {uri}") as run:
        run.joined.happens(PEER)
        await run.joined.heard("ready")
        run.joined.happens(Start("cam"))
    assert any("hidepid" in one["text"] for one in run.news if one["event"] == "warning") is not is_hidden


async def test_by_hand_without_anybody_to_ask_it_is_ready_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refuse(fd: int) -> None:
        raise PermissionError  # what epoll says of a file

    monkeypatch.setattr(trio.lowlevel, "wait_readable", refuse)
    async with joining("exit 1", form="vmix") as run:
        run.joined.happens(PEER)
        await run.joined.heard("ready")
        run.joined.happens(Start("cam"))
        await run.joined.heard(Srt.CONNECTING)
        run.joined.happens(SessionClosed("admin_closed"))
    assert "Passphrase: 0123456789" in run.printed[0]
