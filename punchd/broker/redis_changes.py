"""Changes of sessions that stand in Redis: read, compute, compare-and-set, and again if somebody was faster.

The machine is pure, so its work can be thrown away: on a mismatch the newest state has come back, and the same work is
done on that. Of N servers that change a session at the same time one gets on with every round trip.

    answer    then
    ok        it has taken place; what comes of it is in the streams
    stale     again, on the newest state
    over      the session has ended, or is another one of that name
    limited   nothing has happened: the token says too much
    none      nobody knows. When Redis is back the state tells whether it took place (`State.done`)

A state that is older than one seen before means that Redis has lost changes that were told. Then the session is ended
for everybody, since nobody knows any more what its connections believe.

Source: broker specification §2.1, B-064, C-33, C-49.
"""

from __future__ import annotations

import contextlib
import logging
import random
import secrets
from dataclasses import dataclass
from enum import Enum

import trio

from punchd.broker import redis_codec as codec
from punchd.broker import redis_scripts
from punchd.broker.clock import Clock
from punchd.broker.metrics import Counts
from punchd.broker.moves import Action, Close, Ended, Failed, Send, send
from punchd.broker.redis_codec import Delivery, State, Tombstone
from punchd.broker.redis_instances import Instance
from punchd.broker.redis_locals import Local, Ticket
from punchd.broker.redis_seal import NONCE_SIZE, Sealer, salt_of
from punchd.broker.secret import Secret
from punchd.broker.server_messages import CloseCode, PeerInfo, Reason, SessionClosed
from punchd.broker.state import Policy
from punchd.errors import DecodeError, PunchdError, StoreError

TRIES = 100  # of a change that others keep overtaking
_PAUSE_S = 0.001  # before another try, times how many there were, at random
_NOTICE_S = 10.0  # between two lines about what cannot be read
KEEP_MS = 1000  # that a session's key lives longer than its tokens

log = logging.getLogger("punchd.broker.sessions")


class OvertakenError(PunchdError):
    """Others changed the session again and again."""


class OtherLifeError(PunchdError):
    """The session has ended, and another one has its name."""


class UnreadableError(StoreError):
    """What stands in Redis was sealed under a secret that this server does not have, or is of another version."""


class Outcome(Enum):
    """What became of a change."""

    DONE = "done"
    NOTHING = "nothing to do"
    AGAIN = "again"
    OVER = "over"
    LIMITED = "limited"


@dataclass(frozen=True, slots=True)
class Found:
    """What stands under a name."""

    version: int
    salt: bytes
    what: State | Tombstone


class Changes:
    """Reads and changes sessions.

    Args:
        step_us: that a message moves the bucket of its token; ahead_us: by how much that may be ahead.
    """

    def __init__(
        self, policy: Policy, secret: Secret, clock: Clock, counts: Counts, *, step_us: int, ahead_us: int
    ) -> None:
        self.instance: Instance
        self._policy = policy
        self._secret = secret
        self._clock = clock
        self._counts = counts
        self._bucket = (step_us, ahead_us)
        self._sealer = Sealer(secret.keys)
        self._quiet_until = 0.0

    @property
    def sealer(self) -> Sealer:
        """Under the secrets as they are now."""
        if self._sealer.keys is not self._secret.keys:
            self._sealer = Sealer(self._secret.keys)
        return self._sealer

    # --- reading -----------------------------------------------------------------------------------------------------

    async def find(self, name: str) -> Found | None:
        """What stands under a name.

        Raises:
            StoreError: it cannot be known.
        """
        version, salt, is_open, sealed = await self.instance.call(redis_scripts.LOAD, name)
        return None if version is None else self.read(name, version, salt, is_open, sealed)

    def read(self, name: str, version: bytes, salt: bytes, is_open: bytes, sealed: bytes) -> Found:
        """What LOAD has found.

        Raises:
            UnreadableError: it is not for us, or was written by somebody else.
        """
        try:
            number = int(version)
            text = self.sealer.open(sealed, codec.place_of_session(name, number))
            if is_open == b"1":
                return Found(number, salt, codec.load(text, self._policy, salt, number))
            return Found(number, salt, codec.load_tombstone(text))
        except (DecodeError, ValueError, TypeError) as error:  # no number; something is missing
            self._complain(error)
            raise UnreadableError("a session cannot be read") from None

    def read_entry(self, sealed: bytes, place: bytes) -> list[Delivery]:
        """What another server says.

        Raises:
            DecodeError: it cannot be read.
        """
        try:
            return codec.load_deliveries(self.sealer.open(sealed, place))
        except DecodeError as error:
            self._complain(error)
            raise

    def _complain(self, error: Exception) -> None:
        if self._clock.now() >= self._quiet_until:
            self._quiet_until = self._clock.now() + _NOTICE_S
            log.warning("a session cannot be read, have all servers the same secret file and version? %s", error)

    async def state(self, name: str) -> State | None:
        """The open session of a name."""
        found = await self.find(name)
        if found is None or not isinstance(found.what, State):
            return None
        return found.what if found.what.session.is_open(self._clock.now_ms()) else None

    def seal(self, state: State, version: int) -> bytes:
        """A state as it stands in Redis."""
        place = codec.place_of_session(state.session.plan.name, version)
        return self._seal(codec.dump(state), state.salt, place)

    def life_ms(self, state: State) -> int:
        """For how long it is kept there: until its last token has expired, C-32."""
        exps = [exp for _, exp in (*state.ledger.used, *state.ledger.former)]
        last_ms = max([state.session.plan.expires_ms, *(exp * 1000 for exp in exps)])
        return max(1, last_ms - self._clock.now_ms() + KEEP_MS)

    def _seal(self, text: bytes, salt: bytes, place: bytes) -> bytes:
        return self.sealer.seal(text, salt, secrets.token_bytes(NONCE_SIZE), place)

    # --- changing ----------------------------------------------------------------------------------------------------

    async def carry_out(self, local: Local, ticket: Ticket) -> Reason | None:
        """Let a ticket's work take place. Why the session is gone for whoever still has connections to it, if it is.

        Raises:
            StoreError: it cannot be known whether it did.
            OvertakenError: it did not.
            OtherLifeError: the session has ended, and there is another one of its name.
        """
        tries = 0
        while True:
            state = self._known(local)
            is_fresh = state is None
            if state is None:
                found = await self.find(local.name)
                if found is None or not isinstance(found.what, State):
                    ticket.is_gone = True
                    await self.instance.catch_up()
                    return self._farewell(local, found)
                if local.salt not in (None, found.salt):
                    await self.instance.catch_up()
                    raise OtherLifeError("another session has the name")
                state = found.what
                if state.version < local.seen:
                    log.error("a session is ended: redis has lost changes of it")
                    ticket.work = fail
                local.know(state)
            if state.done.get(self.instance.id, 0) >= ticket.number:
                return None  # it took place before the answer was lost
            if ticket.done.is_set():
                return None  # it was given up meanwhile, and so was its connection
            outcome = await self._try(local, state, ticket)
            if outcome is Outcome.OVER or (outcome is Outcome.NOTHING and not is_fresh):
                local.forget_state()  # others may have changed what made it look so
                continue
            if outcome is not Outcome.AGAIN:
                ticket.is_limited = outcome is Outcome.LIMITED
                return Reason.ERROR if ticket.work is fail else None  # whoever was no member of what was ended
            tries += 1
            if tries >= TRIES and not ticket.is_patient:
                raise OvertakenError("too many changes at once")
            if tries > 1:
                await trio.sleep(random.random() * _PAUSE_S * min(tries, TRIES))  # noqa: S311 (no secret)

    def _known(self, local: Local) -> State | None:
        """The state as far as it is known here."""
        (version, sealed), local.offered = local.offered, (0, b"")
        if sealed and version > local.seen and local.salt == salt_of(sealed):
            with contextlib.suppress(UnreadableError):
                found = self.read(local.name, b"%d" % version, salt_of(sealed), b"1", sealed)
                if isinstance(found.what, State):
                    local.know(found.what)
        return local.state

    async def _try(self, local: Local, state: State, ticket: Ticket) -> Outcome:
        local.forget_state()  # what comes now is ours alone until it has taken place
        before = dict.fromkeys(state.session.facts.members)
        now_ms = self._clock.now_ms()
        actions = ticket.work(state, now_ms)
        if actions is None:
            local.know(state)
            return Outcome.NOTHING
        name, me, version = local.name, self.instance.id, state.version + 1
        after = state.session.facts.members
        here = {codec.instance_of(connection) for connection in after}
        state.done = {one: number for one, number in state.done.items() if one in here} | {me: ticket.number}
        reason = next((action.reason for action in actions if isinstance(action, Ended)), None)
        if reason is None:
            sealed = self.seal(state, version)
        else:
            stone = Tombstone(reason, state.ledger.unexpired(now_ms))
            place = codec.place_of_session(name, version)
            sealed = self._seal(codec.dump_tombstone(stone), state.salt, place)
        told = codec.deliveries(actions, state.passphrases)
        own = told.pop(me, [])
        others = [word for pair in self._entries(told, name, version, state.salt) for word in pair]
        came = [connection for connection in after if connection not in before]
        gone = [connection for connection in before if connection not in after]
        status, newest, blob = await self.instance.commit(
            own, name, state.version, state.salt, sealed, self.life_ms(state), int(reason is None),
            state.source, self.sealer.blind(ticket.token) if ticket.token else b"", *self._bucket,
            len(told), *others, len(came), *came, *gone,
        )  # fmt: skip
        if status == b"ok":
            state.version = version
            self._count(local.name, state, actions, reason)
            if reason is None:
                local.know(state)
            else:
                state.passphrases.forget()
            return Outcome.DONE
        if status == b"stale":
            found = self.read(name, newest, state.salt, b"1", blob)
            if int(newest) >= local.seen and isinstance(found.what, State):
                local.know(found.what)
            return Outcome.AGAIN
        return Outcome.LIMITED if status == b"limited" else Outcome.OVER

    def _entries(
        self, told: dict[str, list[Delivery]], name: str, version: int, salt: bytes
    ) -> list[tuple[bytes, bytes]]:
        return [
            (
                instance.encode(),
                self._seal(codec.dump_deliveries(ones), salt, codec.place_of_entry(instance, name, version)),
            )
            for instance, ones in told.items()
        ]

    def _farewell(self, local: Local, found: Found | None) -> Reason:
        """Why the session that `local` is about is not there."""
        if found is not None and isinstance(found.what, Tombstone) and local.salt in (None, found.salt):
            return found.what.reason
        is_lost = local.salt is not None and self._clock.now_ms() < local.closes_ms
        return Reason.ERROR if is_lost else Reason.TTL_EXPIRED

    def _count(self, name: str, state: State, actions: list[Action], reason: Reason | None) -> None:
        told = [one.message.stream for one in actions if isinstance(one, Send) and isinstance(one.message, PeerInfo)]
        self._counts.count_matches(told, state.session.differing_families)
        if reason is not None:
            self._counts.ended[reason] += 1
            log.debug("session %s: closed, %s", name, reason.value)


def fail(state: State, now_ms: int) -> list[Action]:
    """End a session that cannot go on, even if its machine cannot either."""
    members = tuple(state.session.facts.members)
    try:
        return state.session.handle(Failed(), now_ms)
    except Exception:
        log.exception("a session failed while it was closed")
        state.session.facts.members.clear()
        told = send(members, SessionClosed(Reason.ERROR))
        return [*told, *(Close(one, CloseCode.ERROR) for one in members), Ended(Reason.ERROR)]
