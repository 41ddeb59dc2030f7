"""The sessions of servers that share a Redis or Valkey: peers of one session may be connected to different servers.

A session's state stands in Redis, sealed; what happens to it here waits in its line (`redis_lines.py`) and takes place
one by one (`redis_changes.py`). What connections are told comes back through this server's stream
(`redis_instances.py`), whoever's doing it was, so each connection hears of events in their order.

HTTP callers hear StoreError when Redis does not answer. Connections wait: an outage of 10 s disconnects nobody. If it
lasts, they are closed with 1011. When Redis is back without a session, or with an older state of it than was told, its
connections hear `session_closed`, reason error.

This process keeps of a session what its connections need; with the last of them, the state and the passphrases in it
are dropped here. What was read for a request is kept for two seconds at most.

Source: broker specification §2, §9, §10, B-037, B-064, B-103 to B-105, C-32, C-33, C-35, C-49.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Container
from typing import TypeVar

import trio

from punchd.broker import redis_codec as codec
from punchd.broker import redis_scripts
from punchd.broker.agenda import Agenda
from punchd.broker.clock import CHECK_S, Clock
from punchd.broker.creation import Creation
from punchd.broker.messages import ClientMessage
from punchd.broker.metrics import Counts
from punchd.broker.moves import Action, Answered, Close, Connected, Deleted, Received, Revoked, Send
from punchd.broker.passphrases import Passphrases, Scope
from punchd.broker.redis_changes import Changes
from punchd.broker.redis_codec import State, Tombstone
from punchd.broker.redis_instances import Instance
from punchd.broker.redis_lines import Lines
from punchd.broker.redis_locals import Glances, Ticket, left, of_event
from punchd.broker.redis_seal import SALT_SIZE
from punchd.broker.secret import Secret
from punchd.broker.session import REVOKED, Session
from punchd.broker.settings import Settings
from punchd.broker.store import Created, Match, NotCreated, Outlet, View, first_tokens, match_of, view_of
from punchd.broker.tokens import Grant, Role
from punchd.errors import StoreError
from punchd.redis.url import Place

ANSWER_S = 3.0  # that an HTTP caller waits for a change
_US = 1_000_000

_T = TypeVar("_T")

log = logging.getLogger("punchd.broker.sessions")


class RedisSessions:
    """A `store.Store` that several servers share."""

    def __init__(
        self, place: Place, settings: Settings, secret: Secret, *, clock: Clock, agenda: Agenda, counts: Counts
    ) -> None:
        limits = settings.limits
        step_us = round(_US / limits.messages_per_second)
        self._limits = limits
        self._policy = settings.policy
        self._scope = Scope(settings.passphrase_scope)
        self._secret = secret
        self._clock = clock
        self._counts = counts
        self.changes = Changes(
            settings.policy, secret, clock, counts, step_us=step_us, ahead_us=(limits.message_burst - 1) * step_us
        )
        self.lines = Lines(self.changes, clock, agenda, counts)
        self._glances = Glances()
        self.instance = self.changes.instance = Instance(place, clock, self.lines)

    def __len__(self) -> int:
        return self.instance.sessions

    @property
    def prefix(self) -> str:
        """See `Store`."""
        return f"{self.instance.id}-"

    @property
    def is_healthy(self) -> bool:
        """See `Store`."""
        return self.instance.is_well

    async def run(self) -> None:
        """See `Store`."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.instance.run)
            self.lines.start(nursery)
            while True:
                await trio.sleep(CHECK_S)
                self._glances.forget_old(self._clock.now())
                if self._clock.has_stepped():
                    log.warning("the wall clock was set anew; sessions end by the new time")
                    self.lines.look_at_clocks()

    async def finish(self) -> None:
        """See `Store`."""
        while not self.lines.is_idle:  # noqa: ASYNC110 (once in a life)
            await trio.sleep(0.01)
        await self.instance.resign()

    # --- what the API asks -------------------------------------------------------------------------------------------

    async def create(self, creation: Creation, source: bytes) -> Created | NotCreated:
        """See `Store`."""
        blind, limits, changes = self.changes.sealer.blind(source), self._limits, self.changes
        version, former = 0, frozenset[tuple[str | None, int]]()
        while True:
            plan = creation.plan(self._clock.now_ms())
            ledger, admin_token, peer_tokens = first_tokens(self._secret.keys, plan, former)
            passphrases = Passphrases.draw(plan.streams, self._scope, secrets.token_bytes)
            salt = secrets.token_bytes(SALT_SIZE)
            state = State(Session(plan, self._policy), ledger, passphrases, blind, salt)
            try:
                status, *rest = await self.instance.call(
                    redis_scripts.CREATE, plan.name, b"%d" % version, state.salt, changes.seal(state, version + 1),
                    changes.life_ms(state), self._clock.now_ms(), plan.closes_ms, blind, limits.sessions,
                    limits.sessions_per_source,
                )  # fmt: skip
            except StoreError:
                self._withdraw(plan.name, salt)
                raise
            if status == b"ok":
                self._counts.created += 1
                log.debug("session %s: created", plan.name)
                return Created(plan, admin_token, peer_tokens)
            if status != b"stale":
                return NotCreated.FULL if status == b"full" else NotCreated.SOURCE_FULL
            version, former = 0, frozenset()
            if rest[0] is not None:
                found = changes.read(plan.name, *rest)
                if isinstance(found.what, State) and found.what.session.is_open(self._clock.now_ms()):
                    return NotCreated.EXISTS
                version, former = found.version, self._former(found.what)

    def _withdraw(self, name: str, salt: bytes) -> None:
        """End a session whose creator heard of a failure, if it was created, as soon as Redis answers."""

        def work(state: State, now_ms: int) -> list[Action] | None:
            return state.session.handle(Deleted(), now_ms) if state.salt == salt else None

        self.lines.queue(name, self.lines.ticket(work, is_patient=True))

    def _former(self, what: State | Tombstone) -> codec.Payloads:
        return what.former if isinstance(what, Tombstone) else what.ledger.unexpired(self._clock.now_ms())

    async def issued(self, name: str) -> Container[bytes] | None:
        """See `Store`."""
        state = await self.changes.state(name)
        if state is None:
            return None
        self._glances.keep(name, state, self._clock.now())
        return state.ledger.live

    async def view(self, name: str) -> View | None:
        """See `Store`."""
        state = await self.changes.state(name)
        return None if state is None else view_of(state.session, self._clock.now_ms())

    async def match(self, name: str, stream: str) -> Match | None:
        """See `Store`."""
        state = await self.changes.state(name)
        return None if state is None else match_of(state.session, state.passphrases, stream)

    async def mint(self, name: str, stream: str, exp: int) -> tuple[str, Grant] | None:
        """See `Store`."""
        grant = Grant(name, Role.PEER, stream, exp)
        return await self._ask(name, lambda state: state.ledger.mint(self._secret.keys, grant))

    async def revoke(self, name: str, digest: bytes) -> bool:
        """See `Store`."""

        def work(state: State, now_ms: int) -> list[Action] | None:
            ticket.is_gone = not state.ledger.revoke(digest)
            if ticket.is_gone:
                return None
            return state.session.handle(Revoked(digest.hex()), now_ms)

        ticket = self.lines.ticket(work)
        await self._wait(name, ticket)
        return not ticket.is_gone

    async def close(self, name: str) -> bool:
        """See `Store`."""
        ticket = self.lines.ticket(of_event(Deleted()))
        await self._wait(name, ticket)
        return not ticket.is_gone

    async def has_room(self, name: str) -> bool:
        """See `Store`."""
        state = self._glances.at(name, self._clock.now()) or await self.changes.state(name)
        return state is not None and state.session.has_room()

    async def _ask(self, name: str, ask: Callable[[State], _T]) -> _T | None:
        """What a change that tells nobody anything gives; None if there is no such session."""
        answers: list[_T] = []

        def work(state: State, _now_ms: int) -> list[Action]:
            answers[:] = [ask(state)]
            return []

        ticket = self.lines.ticket(work)
        await self._wait(name, ticket)
        return None if ticket.is_gone else answers[0]

    async def _wait(self, name: str, ticket: Ticket) -> None:
        """Until a change has taken place, for an HTTP caller."""
        self.lines.queue(name, ticket)
        with trio.move_on_after(ANSWER_S):
            await ticket.done.wait()
        if not ticket.done.is_set():
            raise StoreError("redis did not answer in time")
        if ticket.error is not None:
            raise ticket.error

    # --- what connections do -----------------------------------------------------------------------------------------

    async def enter(self, name: str, event: Connected, outlet: Outlet) -> None:
        """See `Store`."""
        connection, token = event.connection, bytes.fromhex(event.token)
        if codec.instance_of(connection) != self.instance.id:
            self.lines.turn_away(outlet)
            return
        self.lines.hold(name, connection, outlet, token)
        glance = self._glances.take(name, self._clock.now())
        if glance is not None:
            self.lines.guess(name, glance)

        def work(state: State, now_ms: int) -> list[Action]:
            if token in state.ledger.live:
                return state.session.handle(event, now_ms)
            error, code = REVOKED
            return [Send((connection,), error), Close(connection, code)]

        ticket = self.lines.ticket(work, connection, enters=True)
        self.lines.queue(name, ticket)
        await ticket.done.wait()

    async def hear(self, name: str, connection: str, message: ClientMessage) -> bool:
        """See `Store`."""
        home = self.lines.home(connection)
        if home is None:
            return True
        ticket = self.lines.ticket(of_event(Received(connection, message)), connection, home[1])
        self.lines.queue(name, ticket)
        await ticket.done.wait()
        return not ticket.is_limited

    def answered(self, name: str, connection: str) -> None:
        """See `Store`."""
        if self.lines.home(connection) is not None:
            self.lines.queue(name, self.lines.ticket(of_event(Answered(connection)), connection, is_patient=True))

    def leave(self, name: str, connection: str) -> None:
        """See `Store`."""
        if self.lines.home(connection) is not None:
            self.lines.let_go(connection)
            self.lines.queue(name, self.lines.ticket(left(connection), is_patient=True))
