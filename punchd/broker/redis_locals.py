"""What this process has of a session that stands in Redis: connections, what is to happen, the state as last seen."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf

import trio

from punchd.broker.clock import Clock
from punchd.broker.moves import Action, Event, Left
from punchd.broker.redis_codec import State
from punchd.broker.store import Outlet

Work = Callable[[State, int], list[Action] | None]

GLANCE_S = 1.0  # that a request may take from its first question to its last
GLANCES = 1024


@dataclass(slots=True, eq=False)
class Ticket:
    """Something that is to happen to a session.

    Attributes:
        work: changes a state at a time, and says what comes of it; None if nothing has changed.
        number: grows; see `redis_codec.State.done`.
        connection: whose doing it is.
        token: whose messages are counted.
        is_patient: goes on for as long as it takes.
        enters: it is the first of its connection.
    """

    work: Work
    number: int
    connection: str | None = None
    token: bytes = b""
    is_patient: bool = False
    enters: bool = False
    done: trio.Event = field(default_factory=trio.Event)
    error: Exception | None = None
    is_gone: bool = False  # there was no such session
    is_limited: bool = False


@dataclass(slots=True, eq=False)
class Local:
    """A session as this process has it. A timer of the agenda."""

    name: str
    clock: Clock
    time_out: Callable[[Local], None]
    state: State | None = None  # None if it has to be asked for
    offered: tuple[int, bytes] = (0, b"")  # version and sealed state that came with a message
    salt: bytes | None = None  # which life of the name, once that is known
    seen: int = 0  # version
    closes_ms: float = inf
    due_ms: float = inf
    outlets: dict[str, tuple[Outlet, bytes]] = field(default_factory=dict)  # with the digests of their tokens
    tickets: deque[Ticket] = field(default_factory=deque)
    entered: set[str] = field(default_factory=set)  # connections that are part of the session
    is_busy: bool = False
    is_over: bool = False  # nothing more is to happen to it here

    def next_timeout(self) -> float:
        """See `agenda.Timer`."""
        return inf if self.is_over or self.due_ms == inf else self.clock.at(self.due_ms)

    def handle_timeout(self, _now: float) -> None:
        """See `agenda.Timer`."""
        self.due_ms = inf  # until it has been dealt with
        self.time_out(self)

    def know(self, state: State) -> None:
        """This is how the session is now."""
        self.state, self.salt, self.seen = state, state.salt, state.version
        self.closes_ms = state.session.plan.closes_ms
        due_ms = state.session.next_timeout()
        self.due_ms = inf if due_ms is None else due_ms

    def guess(self, state: State) -> None:
        """This is how it was a moment ago. If it has changed since, that is found when it is changed again."""
        if self.state is None and self.salt in (None, state.salt) and state.version >= self.seen:
            self.know(state)

    def begin_anew(self) -> None:
        """The name is that of another session."""
        self.state, self.salt, self.seen, self.closes_ms, self.due_ms = None, None, 0, inf, inf
        self.offered = 0, b""

    def forget_state(self) -> None:
        """It may have changed, or is of no more use."""
        self.state = None


class Glances:
    """States that were read for requests: a request's next question is answered from what its last one found.

    Good for what is checked again when it takes effect, and for nothing else.
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[float, State]] = {}  # the oldest first

    def keep(self, name: str, state: State, now: float) -> None:
        """It was read just now."""
        self._found.pop(name, None)
        if len(self._found) >= GLANCES:
            del self._found[next(iter(self._found))]
        self._found[name] = now, state

    def at(self, name: str, now: float) -> State | None:
        """If it was read a moment ago. It is not to be changed."""
        since, state = self._found.get(name, (-inf, None))
        return state if now - since <= GLANCE_S else None

    def take(self, name: str, now: float) -> State | None:
        """The same; it is the caller's."""
        state = self.at(name, now)
        self._found.pop(name, None)
        return state

    def forget_old(self, now: float) -> None:
        """Whatever is kept for nobody any more."""
        self._found = {name: one for name, one in self._found.items() if now - one[0] <= GLANCE_S}


def of_event(event: Event) -> Work:
    """Let the session's machine handle an event."""

    def work(state: State, now_ms: int) -> list[Action]:
        return state.session.handle(event, now_ms)

    return work


def of_time(state: State, now_ms: int) -> list[Action] | None:
    """Let it see what time it is."""
    return state.session.handle_timeout(now_ms) or None


def left(connection: str) -> Work:
    """Of a connection that may not be there any more."""

    def work(state: State, now_ms: int) -> list[Action] | None:
        if connection not in state.session.facts.members:
            return None
        return state.session.handle(Left(connection), now_ms)

    return work
