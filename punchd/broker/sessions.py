"""The sessions of a server that keeps them in memory: machines, ledgers, passphrases and timers.

What happens to a session is decided and told at once, without a checkpoint, so that every connection hears of events in
their order. What happens while actions are carried out waits for its turn.

A session that is closed is dropped with all that is known of it; frames that its connections have not read yet are the
last of it.

Source: broker specification §2, §9, §10, B-037, B-064, B-103 to B-105, C-32, C-33, C-35, C-49.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter, deque
from collections.abc import Callable, Container
from dataclasses import dataclass, field
from math import inf

import trio

from punchd.broker import server_messages
from punchd.broker.agenda import Agenda
from punchd.broker.clock import CHECK_S, Clock
from punchd.broker.creation import Creation
from punchd.broker.messages import ClientMessage
from punchd.broker.metrics import Counts
from punchd.broker.moves import (
    Action,
    Answered,
    Close,
    Connected,
    Deleted,
    Ended,
    Event,
    Failed,
    Left,
    Probe,
    Received,
    Registered,
    Revoked,
    Send,
)
from punchd.broker.passphrases import Passphrases, Scope
from punchd.broker.secret import Secret
from punchd.broker.server_messages import (
    CloseCode,
    ErrorCode,
    ErrorMessage,
    HealthReport,
    PeerInfo,
    Reason,
    SessionClosed,
)
from punchd.broker.session import REVOKED, Session
from punchd.broker.settings import Settings
from punchd.broker.store import Created, Match, NotCreated, Outlet, View, first_tokens, match_of, view_of
from punchd.broker.tokens import Grant, Ledger, Role

_BUG = ErrorMessage(ErrorCode.SERVER_ERROR, "internal error")

_FORMER_NAMES = 65_536  # some 0.5 KB each

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class Live:
    """A session that is open, and what this process knows of it. A timer of the agenda."""

    session: Session
    ledger: Ledger
    passphrases: Passphrases
    source: bytes
    clock: Clock
    time_out: Callable[[Live], None]
    outlets: dict[str, Outlet] = field(default_factory=dict)
    waiting: deque[Event | None] = field(default_factory=deque)  # None: time has passed
    is_busy: bool = False

    def next_timeout(self) -> float:
        """See `agenda.Timer`."""
        due_ms = self.session.next_timeout()
        return inf if due_ms is None else self.clock.at(due_ms)

    def handle_timeout(self, _now: float) -> None:
        """See `agenda.Timer`."""
        self.time_out(self)


class Sessions:
    """A `store.Store` in this process's memory."""

    def __init__(self, settings: Settings, secret: Secret, clock: Clock, agenda: Agenda, counts: Counts) -> None:
        self._settings = settings
        self._policy = settings.policy
        self._scope = Scope(settings.passphrase_scope)
        self._secret = secret
        self._clock = clock
        self._agenda = agenda
        self._counts = counts
        self._live: dict[str, Live] = {}
        self._former: dict[str, frozenset[tuple[str | None, int]]] = {}  # see tokens.Ledger; the oldest name first
        self._sources: Counter[bytes] = Counter()
        self.prefix = f"{secrets.token_hex(6)}-"
        self.is_healthy = True

    def __len__(self) -> int:
        return len(self._live)

    async def run(self) -> None:
        """See `Store`."""
        while True:
            await trio.sleep(CHECK_S)
            if self._clock.has_stepped():
                log.warning("the wall clock was set anew; sessions end by the new time")
                for live in self._live.values():
                    self._agenda.look(live)

    async def finish(self) -> None:
        """See `Store`: everything takes place at once."""

    # --- what the API asks -------------------------------------------------------------------------------------------

    async def create(self, creation: Creation, source: bytes) -> Created | NotCreated:
        """See `Store`."""
        limits = self._settings.limits
        known = self._find(creation.name)
        if len(self._live) >= limits.sessions:
            return NotCreated.FULL
        if self._sources[source] >= limits.sessions_per_source:
            return NotCreated.SOURCE_FULL
        if known is not None:
            return NotCreated.EXISTS
        plan = creation.plan(self._clock.now_ms())
        former = self._former.pop(plan.name, frozenset())
        ledger, admin_token, peer_tokens = first_tokens(self._secret.keys, plan, former)
        passphrases = Passphrases.draw(plan.streams, self._scope, secrets.token_bytes)
        session = Session(plan, self._policy)
        live = Live(session, ledger, passphrases, source, self._clock, lambda one: self._do(one, None))
        self._live[plan.name] = live
        self._sources[source] += 1
        self._counts.created += 1
        self._agenda.look(live)
        log.debug("session %s: created", plan.name)
        return Created(plan, admin_token, peer_tokens)

    async def issued(self, name: str) -> Container[bytes] | None:
        """See `Store`."""
        live = self._find(name)
        return None if live is None else live.ledger.live

    async def view(self, name: str) -> View | None:
        """See `Store`."""
        live = self._find(name)
        return None if live is None else view_of(live.session, self._clock.now_ms())

    async def match(self, name: str, stream: str) -> Match | None:
        """See `Store`."""
        live = self._find(name)
        return None if live is None else match_of(live.session, live.passphrases, stream)

    async def mint(self, name: str, stream: str, exp: int) -> tuple[str, Grant] | None:
        """See `Store`."""
        live = self._find(name)
        return None if live is None else live.ledger.mint(self._secret.keys, Grant(name, Role.PEER, stream, exp))

    async def revoke(self, name: str, digest: bytes) -> bool:
        """See `Store`."""
        live = self._find(name)
        if live is None or not live.ledger.revoke(digest):
            return False
        self._do(live, Revoked(digest.hex()))
        return True

    async def close(self, name: str) -> bool:
        """See `Store`."""
        live = self._find(name)
        if live is not None:
            self._do(live, Deleted())
        return live is not None

    # --- what connections do -----------------------------------------------------------------------------------------

    async def has_room(self, name: str) -> bool:
        """See `Store`."""
        live = self._find(name)
        return live is not None and live.session.has_room()

    async def enter(self, name: str, event: Connected, outlet: Outlet) -> None:
        """See `Store`."""
        live = self._find(name)
        if live is None:
            outlet.deliver(server_messages.encode(SessionClosed(Reason.TTL_EXPIRED)))
            outlet.close(CloseCode.NORMAL)
            return
        if bytes.fromhex(event.token) not in live.ledger.live:
            error, code = REVOKED
            outlet.deliver(server_messages.encode(error), error.code)
            outlet.close(code)
            return
        live.outlets[event.connection] = outlet
        self._do(live, event)

    async def hear(self, name: str, connection: str, message: ClientMessage) -> bool:
        """See `Store`."""
        live = self._holding(name, connection)
        if live is not None:
            self._do(live, Received(connection, message))
        return True

    def answered(self, name: str, connection: str) -> None:
        """See `Store`."""
        live = self._holding(name, connection)
        if live is not None:
            self._do(live, Answered(connection))

    def leave(self, name: str, connection: str) -> None:
        """See `Store`."""
        live = self._holding(name, connection)
        if live is not None:
            del live.outlets[connection]
            self._do(live, Left(connection))

    # --- the machine -------------------------------------------------------------------------------------------------

    def _find(self, name: str) -> Live | None:
        """The session, if it is open; one whose timer is late is ended here (C-33)."""
        live = self._live.get(name)
        if live is not None and not live.session.is_open(self._clock.now_ms()):
            self._do(live, None)
        return self._live.get(name)

    def _holding(self, name: str, connection: str) -> Live | None:
        """The session that has the connection; a newer one of the same name has not."""
        live = self._live.get(name)
        return live if live is not None and connection in live.outlets else None

    def _do(self, live: Live, event: Event | None) -> None:
        live.waiting.append(event)
        if live.is_busy:
            return
        live.is_busy = True
        try:
            while live.waiting:
                self._happen(live, live.waiting.popleft())
        finally:
            live.is_busy = False
        self._agenda.look(live)

    def _happen(self, live: Live, event: Event | None) -> None:
        now_ms = self._clock.now_ms()
        try:
            session = live.session
            actions = session.handle_timeout(now_ms) if event is None else session.handle(event, now_ms)
            self._count(live, actions)
            for action in actions:
                self._carry_out(live, action)
        except Exception:
            log.exception("a session failed and is closed")
            if isinstance(event, Received) and event.connection in live.outlets:
                live.outlets[event.connection].deliver(server_messages.encode(_BUG), _BUG.code)
            self._give_up(live)

    def _give_up(self, live: Live) -> None:
        """Close it though its machine cannot be trusted any more."""
        try:
            actions = live.session.handle(Failed(), self._clock.now_ms())
        except Exception:
            log.exception("a session failed while it was closed")
            actions = []
        for action in actions:
            self._carry_out(live, action)
        for outlet in live.outlets.values():
            outlet.close(CloseCode.ERROR)
        live.outlets.clear()
        self._forget(live, Reason.ERROR)

    def _carry_out(self, live: Live, action: Action) -> None:
        match action:
            case Send(to, message):
                stream = server_messages.needs_passphrase(message)
                text = server_messages.encode(message, None if stream is None else live.passphrases.of(stream))
                code = message.code if isinstance(message, ErrorMessage) else None
                for connection in to:
                    outlet = live.outlets.get(connection)
                    if outlet is not None and isinstance(message, HealthReport):
                        outlet.report(text)
                    elif outlet is not None:
                        outlet.deliver(text, code)
            case Close(connection, code):
                outlet = live.outlets.pop(connection, None)
                if outlet is not None:
                    outlet.close(code)
            case Probe(connection):
                if connection in live.outlets:
                    live.outlets[connection].probe()
            case Registered(connection):
                if connection in live.outlets:
                    live.outlets[connection].registered()
            case Ended(reason):
                self._forget(live, reason)

    def _count(self, live: Live, actions: list[Action]) -> None:
        told = [one.message.stream for one in actions if isinstance(one, Send) and isinstance(one.message, PeerInfo)]
        self._counts.count_matches(told, live.session.differing_families)

    def _forget(self, live: Live, reason: Reason) -> None:
        name = live.session.plan.name
        live.passphrases.forget()
        live.ledger.live.clear()
        self._agenda.forget(live)
        if self._live.get(name) is not live:
            return
        del self._live[name]
        self._bury(name, live.ledger.unexpired(self._clock.now_ms()))
        self._sources[live.source] -= 1
        if not self._sources[live.source]:
            del self._sources[live.source]
        self._counts.ended[reason] += 1
        log.debug("session %s: closed, %s", name, reason.value)

    def _bury(self, name: str, payloads: frozenset[tuple[str | None, int]]) -> None:
        """Remember what was used of a name until it has expired; of very many names, the latest."""
        if payloads:
            self._former[name] = payloads
        now_s = self._clock.now_ms() / 1000
        while self._former:
            oldest = next(iter(self._former))
            if len(self._former) <= _FORMER_NAMES and max(exp for _, exp in self._former[oldest]) > now_s:
                break
            del self._former[oldest]
