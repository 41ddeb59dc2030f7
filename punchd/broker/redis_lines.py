"""The lines of sessions that this process has to do with: what is to happen to each waits, and takes place one by one.

A line has a task for as long as something waits in it (`redis_changes.py` does the work). It is here while the session
has connections here or something waits; with it the state, and the passphrases in that, are dropped. When a session's
connections cannot be told by anybody else what has become of it, they are told here.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from itertools import count

import trio

from punchd.broker import redis_scripts, server_messages
from punchd.broker.agenda import Agenda
from punchd.broker.clock import Clock
from punchd.broker.metrics import Counts
from punchd.broker.moves import Close, Probe, Registered
from punchd.broker.redis_changes import Changes, OtherLifeError, OvertakenError, UnreadableError, fail
from punchd.broker.redis_codec import Delivery, Say, State
from punchd.broker.redis_locals import Local, Ticket, Work, left, of_time
from punchd.broker.server_messages import ErrorCode, ErrorMessage, Reason, SessionClosed
from punchd.broker.session import ENDINGS
from punchd.broker.store import Outlet
from punchd.broker.tokens import LimitError
from punchd.errors import StoreError

CHECKED = 500  # sessions that are looked at in one command
_CODES = dict(ENDINGS.values())
_BUG = ErrorMessage(ErrorCode.SERVER_ERROR, "internal error")
_AWAY = ErrorMessage(ErrorCode.SERVER_ERROR, "the server has lost its store, come back")

log = logging.getLogger("punchd.broker.sessions")


class Lines:
    """All of them; a `redis_instances.Host`."""

    def __init__(self, changes: Changes, clock: Clock, agenda: Agenda, counts: Counts) -> None:
        self._changes = changes
        self._clock = clock
        self._agenda = agenda
        self._counts = counts
        self._locals: dict[str, Local] = {}
        self._homes: dict[str, Local] = {}  # by connection
        self._numbers = count(1)
        self._to_start: list[Local] = []
        self._nursery: trio.Nursery | None = None

    @property
    def is_idle(self) -> bool:
        """Whether nothing waits."""
        return not any(local.tickets for local in self._locals.values())

    def start(self, nursery: trio.Nursery) -> None:
        """From now on things take place."""
        self._nursery = nursery
        for local in self._to_start:
            nursery.start_soon(self._work, local)
        self._to_start.clear()

    def look_at_clocks(self) -> None:
        """The wall clock was set anew."""
        for local in self._locals.values():
            self._agenda.look(local)

    # --- what is to happen -------------------------------------------------------------------------------------------

    def ticket(
        self,
        work: Work,
        connection: str | None = None,
        token: bytes = b"",
        *,
        is_patient: bool = False,
        enters: bool = False,
    ) -> Ticket:
        """To be put into a line at once."""
        return Ticket(work, next(self._numbers), connection, token, is_patient, enters)

    def queue(self, name: str, ticket: Ticket) -> None:
        """Something is to happen to a session."""
        self._queue(self._local(name), ticket)

    def hold(self, name: str, connection: str, outlet: Outlet, token: bytes) -> None:
        """A connection is here."""
        local = self._local(name)
        local.outlets[connection] = outlet, token
        self._homes[connection] = local

    def guess(self, name: str, state: State) -> None:
        """How a session was a moment ago."""
        self._local(name).guess(state)

    def home(self, connection: str) -> tuple[str, bytes] | None:
        """The session that a connection is held for, and the digest of its token; None if it is not here."""
        local = self._homes.get(connection)
        return None if local is None else (local.name, local.outlets[connection][1])

    def let_go(self, connection: str) -> None:
        """It is not here any more; nothing reaches its outlet."""
        self._forget(self._homes[connection], connection)

    def turn_away(self, outlet: Outlet) -> None:
        """A connection that is no part of any session."""
        self._give_up(outlet)

    # --- what the instance says: redis_instances.Host ----------------------------------------------------------------

    def tell(self, deliveries: Iterable[Delivery]) -> None:
        """See `Host`."""
        for one in deliveries:
            match one:
                case Say(to, text, code, is_report):
                    for connection in to:
                        outlet = self._outlet(connection)
                        if outlet is not None and is_report:
                            outlet.report(text)
                        elif outlet is not None:
                            outlet.deliver(text, code)
                case Close(connection, code):
                    outlet, local = self._outlet(connection), self._homes.get(connection)
                    if outlet is not None and local is not None:
                        self._forget(local, connection)
                        self._drop_if_idle(local)
                        outlet.close(code)
                case Probe(connection):
                    if (outlet := self._outlet(connection)) is not None:
                        outlet.probe()
                case Registered(connection):
                    if (outlet := self._outlet(connection)) is not None:
                        outlet.registered()

    def read_entry(self, sealed: bytes, place: bytes) -> list[Delivery]:
        """See `Host`."""
        return self._changes.read_entry(sealed, place)

    def offer(self, name: str, version: int, sealed: bytes) -> None:
        """See `Host`."""
        local = self._locals.get(name)
        if local is not None and version > max(local.seen, local.offered[0]):
            local.offered = version, sealed

    def lose(self, name: str) -> None:
        """See `Host`."""
        local = self._locals.get(name)
        for connection, (outlet, _) in [] if local is None else list(local.outlets.items()):
            self.let_go(connection)
            self._counts.closed["store"] += 1
            self._give_up(outlet)
            self.queue(name, self.ticket(left(connection), is_patient=True))

    async def check(self) -> None:
        """See `Host`."""
        known = [(local, local.salt, local.seen) for local in self._locals.values() if local.salt is not None]
        for first in range(0, len(known), CHECKED):
            some = known[first : first + CHECKED]
            names = [local.name for local, _, _ in some]
            found = await self._changes.instance.call(redis_scripts.VERIFY, *names)
            for (local, life, seen), (version, salt, is_open) in zip(some, found, strict=True):
                if local.is_over or local.salt != life:
                    continue
                if salt is None:
                    self._vanish(local, Reason.ERROR)
                elif salt != life:
                    self._end_life(local)
                elif is_open == b"0" or int(version) < seen:
                    local.forget_state()
                    self._queue(local, self.ticket(fail, is_patient=True))

    def abandon(self) -> bool:
        """See `Host`."""
        had_any = bool(self._homes)
        for local in list(self._locals.values()):
            for connection, (outlet, _) in list(local.outlets.items()):
                self._forget(local, connection)
                self._counts.closed["store"] += 1
                self._give_up(outlet)
            self._drop(local, StoreError("redis was away for too long"))
        return had_any

    def bury(self, name: str, connection: str) -> trio.Event:
        """See `Host`."""
        ticket = self.ticket(left(connection), is_patient=True)
        self._queue(self._local(name), ticket)
        return ticket.done

    def swept(self, number: int) -> None:
        """See `Host`."""
        self._counts.ended[Reason.TTL_EXPIRED] += number

    # --- lines -------------------------------------------------------------------------------------------------------

    def _local(self, name: str) -> Local:
        local = self._locals.get(name)
        if local is None:
            local = self._locals[name] = Local(name, self._clock, self._time_out)
        return local

    def _time_out(self, local: Local) -> None:
        self._queue(local, self.ticket(of_time, is_patient=True))

    def _queue(self, local: Local, ticket: Ticket) -> None:
        local.tickets.append(ticket)
        if local.is_busy:
            return
        local.is_busy = True
        if self._nursery is None:
            self._to_start.append(local)
        else:
            self._nursery.start_soon(self._work, local)

    async def _work(self, local: Local) -> None:
        """Until nothing waits any more."""
        while local.tickets:
            ticket = local.tickets[0]
            await self._settle(local, ticket)
            if local.tickets and local.tickets[0] is ticket:
                local.tickets.popleft()
            ticket.done.set()
            self._agenda.look(local)
        local.is_busy = False
        self._drop_if_idle(local)

    async def _settle(self, local: Local, ticket: Ticket) -> None:
        """Let a ticket's work take place, whatever happens."""
        while not ticket.done.is_set():
            try:
                reason = await self._changes.carry_out(local, ticket)
            except OtherLifeError:
                ticket.is_gone = ticket.connection in local.entered
                self._end_life(local)
                if not ticket.is_gone:
                    continue
            except (UnreadableError, OvertakenError, LimitError) as error:
                local.forget_state()
                if self._clock.now_ms() >= local.closes_ms:
                    self._vanish(local, Reason.TTL_EXPIRED)
                    return
                ticket.error = error if isinstance(error, LimitError) else StoreError(str(error))
                self._drop_connection(local, ticket, _AWAY)
            except StoreError:
                local.forget_state()
                if self._clock.now_ms() >= local.closes_ms:
                    self._vanish(local, Reason.TTL_EXPIRED)
                    return
                await self._changes.instance.next_beat()
                continue
            except Exception:
                log.exception("a session failed and is closed")
                local.forget_state()
                if ticket.work is fail:  # not even that
                    self._vanish(local, Reason.ERROR)
                    return
                self._drop_connection(local, ticket, _BUG)
                ticket.work, ticket.is_patient = fail, True
                continue
            else:
                if reason is not None:
                    self._vanish(local, reason)
                elif ticket.enters and ticket.connection in local.outlets:
                    local.entered.add(ticket.connection)
            return

    def _drop_connection(self, local: Local, ticket: Ticket, farewell: ErrorMessage) -> None:
        """End the connection that a ticket came from, if it still is there."""
        connection = ticket.connection or ""
        outlet, _ = local.outlets.get(connection, (None, b""))
        if outlet is not None and farewell is _BUG:
            outlet.deliver(server_messages.encode(_BUG), _BUG.code)  # it is closed with the others
        elif outlet is not None:
            self._forget(local, connection)
            self._give_up(outlet)
            self._queue(local, self.ticket(left(connection), is_patient=True))

    def _vanish(self, local: Local, reason: Reason) -> None:
        """The session is gone, and nobody else will tell our connections."""
        self._bid_farewell(local, list(local.outlets), reason)
        for ticket in local.tickets:
            ticket.is_gone = True
        self._drop(local, None)

    def _end_life(self, local: Local) -> None:
        """It is another session that has the name: for those who are waiting to enter."""
        self._bid_farewell(local, list(local.entered), Reason.ERROR)
        local.begin_anew()
        self._drop_if_idle(local)

    def _bid_farewell(self, local: Local, connections: list[str], reason: Reason) -> None:
        text = server_messages.encode(SessionClosed(reason))
        for connection in connections:
            outlet, _ = local.outlets[connection]
            self._forget(local, connection)
            outlet.deliver(text)
            outlet.close(_CODES[reason])

    def _give_up(self, outlet: Outlet) -> None:
        outlet.deliver(server_messages.encode(_AWAY), _AWAY.code)
        outlet.close(server_messages.CloseCode.ERROR)

    def _drop(self, local: Local, error: Exception | None) -> None:
        """Nothing more is to happen to it here."""
        if self._locals.get(local.name) is local:
            del self._locals[local.name]
        local.is_over = True
        self._agenda.forget(local)
        local.forget_state()
        while local.tickets:
            ticket = local.tickets.popleft()
            ticket.error = error
            ticket.done.set()

    def _drop_if_idle(self, local: Local) -> None:
        if not local.outlets and not local.tickets:
            self._drop(local, None)

    def _outlet(self, connection: str) -> Outlet | None:
        local = self._homes.get(connection)
        return None if local is None else local.outlets[connection][0]

    def _forget(self, local: Local, connection: str) -> None:
        del local.outlets[connection]
        local.entered.discard(connection)
        del self._homes[connection]
