"""A rendezvous server without sockets, under clocks that tests turn."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, replace
from ipaddress import ip_address
from typing import Any

from punchd.endpoint import Endpoint
from punchd.rendezvous import source
from punchd.rendezvous.aliases import Aliases
from punchd.rendezvous.api import Api
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.memory import MemoryStore
from punchd.rendezvous.settings import Limits, Settings
from punchd.rendezvous.signals import Signals
from punchd.web.messages import Answer, Headers, LongPoll, Request, Response

UNIX_S = 1_700_000_000.0
CALLER = Endpoint(ip_address("192.0.2.1"), 4000)
GENEROUS = replace(
    Limits(),
    registrations_per_minute=10**6, registration_burst=10**6, lookups_per_second=10**6, lookup_burst=10**6,
    verifications_per_minute=10**6, verification_burst=10**6, requests_per_second=10**6, request_burst=10**6,
    signals_per_second=10**6, signal_burst=10**6, bindings_per_minute=10**6, binding_burst=10**6,
    connects_per_second=10**6, datagrams_per_second=10**6,
)  # fmt: skip


def origin(text: str = "192.0.2.1", port: int = 4000) -> bytes:
    """A packed source."""
    return source.pack(Endpoint(ip_address(text), port))


class Clock:
    """Seconds since some start, and the Unix time that goes with them."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now

    def unix(self) -> float:
        return UNIX_S + self.now - 1000.0


@dataclass(frozen=True, slots=True)
class Member:
    """A registered client."""

    id: str
    key: str

    @property
    def bearer(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.key}"}

    @property
    def raw_key(self) -> bytes:
        return bytes.fromhex(self.key)


class World:
    """A store and the API around it. `settings` are the defaults with generous limits, unless given."""

    def __init__(
        self, settings: Settings | None = None, clock: Callable[[], float] | None = None, entropy_seed: int = 1
    ) -> None:
        self.settings = settings or Settings(limits=GENEROUS)
        self.clock = Clock()
        limits = self.settings.limits
        self.clients = Clients(limits.clients, self.settings.timing.exact, self.settings.policy)
        self.signals = Signals(limits.signal_queue, limits.signal_memory, float(limits.signal_seconds))
        self.aliases = Aliases(limits.aliases_per_client)
        now = clock or self.clock
        self.store = MemoryStore(
            self.clients,
            self.signals,
            self.aliases,
            clock=now,
            unix_clock=self.clock.unix,
            entropy=random.Random(entropy_seed).randbytes,
        )
        self.limited: list[str] = []
        self.api = Api(
            self.store,
            self.settings,
            clock=now,
            unix_clock=self.clock.unix,
            notice_limited=lambda deed, _ip: self.limited.append(deed.value),
        )

    async def ask(
        self,
        method: str,
        target: str,
        member: Member | None = None,
        *,
        body: bytes = b"",
        headers: dict[str, str] | None = None,
        peer: Endpoint = CALLER,
    ) -> Answer:
        """The API's answer, unawaited if it is a long poll."""
        path, _, query = target.partition("?")
        parts = dict(pair.split("=", 1) for pair in query.split("&") if pair)
        fields = {**(member.bearer if member else {}), **(headers or {})}
        return await self.api(Request(method, target, path, parts, Headers(fields.items()), body, peer))

    async def get(self, method: str, target: str, member: Member | None = None, **more: Any) -> Response:
        """The response; a long poll is waited for."""
        answer = await self.ask(method, target, member, **more)
        if isinstance(answer, LongPoll):
            answer = await answer.wait()
        assert isinstance(answer, Response)
        return answer

    async def register(self, **more: Any) -> Member:
        told = told_by(await self.get("POST", "/register", **more))
        return Member(told["client_id"], told["private_id"])

    async def pulse(self, member: Member, sent_from: bytes | None = None) -> int:
        """The code of the reply to a plain pulse."""
        [reply] = await self.store.pulses([(member.raw_key, sent_from or origin())])
        return int.from_bytes(reply, "big")


def told_by(response: Response) -> dict[str, Any]:
    """The JSON of a 2xx response."""
    assert response.status // 100 == 2, response
    found = json.loads(response.body)
    assert isinstance(found, dict)
    return found


def refused(response: Response) -> tuple[int, str]:
    """Status and code of an error, whose form is checked."""
    found = json.loads(response.body)
    assert set(found) == {"ok", "error", "message"}
    assert found["ok"] is False
    assert found["message"]
    return response.status, found["error"]
