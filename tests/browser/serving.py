"""A broker in a thread of its own, since a driven browser blocks the one that drives it."""

from __future__ import annotations

import http.client
import json
import logging
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import trio

from punchd.broker.secret import Secret
from punchd.broker.service import Broker, Listening
from punchd.broker.settings import Limits, Settings
from tests.unit.broker.contract import check_answer

_START_S = 30.0


@dataclass(slots=True)
class Site:
    """A broker that serves plain HTTP on loopback."""

    port: int
    lines: list[str] = field(default_factory=list)  # of its log, at debug

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, method: str, target: str, body: Any = None, token: str = "") -> tuple[int, Any]:
        """One request to the API, and its JSON."""
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {token}"} if token else {})}
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=_START_S)) as client:
            client.request(method, target, None if body is None else json.dumps(body), headers)
            answer = client.getresponse()
            text = answer.read()
            fields = {name.lower(): value for name, value in answer.getheaders()}
            check_answer(method, target.partition("?")[0], answer.status, fields, text)
            return answer.status, json.loads(text) if text else None

    def create(self, name: str, **members: Any) -> dict[str, Any]:
        status, made = self.ask("POST", "/api/session", {"name": name, **members})
        assert status == 201, made
        return dict(made)


class _Kept(logging.Handler):
    def __init__(self, lines: list[str]) -> None:
        super().__init__(logging.DEBUG)
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        self._lines.append(f"{record.getMessage()} {record.args!r}")


@contextmanager
def site(turnstile: tuple[str | None, str | None] = (None, None), **limits: int) -> Iterator[Site]:
    """A broker with its defaults, but for some `limits`, since those of requests are not for a whole test run.

    Args:
        turnstile: its secret and site key.
    """
    logger = logging.getLogger("punchd")
    before = logger.level
    with closing(socket.create_server(("127.0.0.1", 0))) as listener:
        found = Site(listener.getsockname()[1])
        kept = _Kept(found.lines)
        logger.addHandler(kept)
        logger.setLevel(logging.DEBUG)
        chosen = Settings(
            listen=(f"127.0.0.1:{found.port}",),
            insecure_dev=True,
            limits=replace(Limits(drain_seconds=0), **limits),
            turnstile_secret=turnstile[0],
            turnstile_site_key=turnstile[1],
        )
        running: list[tuple[trio.lowlevel.TrioToken, trio.Event]] = []
        has_begun = threading.Event()

        async def serve() -> None:
            stop = trio.Event()
            running.append((trio.lowlevel.current_trio_token(), stop))
            has_begun.set()
            await Broker(chosen, Secret(None)).serve(Listening([listener], []), stop)

        thread = threading.Thread(target=trio.run, args=(serve,), daemon=True)
        thread.start()
        assert has_begun.wait(_START_S)
        try:
            yield found
        finally:
            token, stop = running[0]
            token.run_sync_soon(stop.set)
            thread.join(_START_S)
            logger.removeHandler(kept)
            logger.setLevel(before)
        assert not thread.is_alive()
