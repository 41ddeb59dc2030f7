"""When a client pulses, when it verifies, and when its identity is lost. Decides only; `client.py` does it.

Theory of operation. A client rests for an interval (25 s: the server allows 30 and a grace of 5), then pulses until
an answer comes: again after 1, 2 and 4 s, so that one lost datagram costs nothing, and from then on less and less
often, at least once an interval. So whatever was broken, a client is back within an interval after it was mended.

    phase     event      step
    LOST      registered start: pulse
    RESTING   timer      start: pulse
    ASKING    timer      pulse again; from the fifth pulse on, over another way (a new socket, the server's next
                         address), and verify: is the server there, does it know us?
    ASKING    1020       rest
    ASKING    1051       pulse with the cookie, at most twice a timer
    ASKING    1050 1060  verify, at most once a timer and not while one is under way
    ASKING    verified   pulse: a verified client has no fresh address yet
    any       moved      the own address changed, or there is one again: a new socket, start
    any       rejected   the identity is lost

What a datagram says is never believed further than that: replies to pulses are not authenticated, and anybody who
can send one could end a client with a forged 1060. Only the answer to an HTTP request, 401, means that the identity is
lost. Replies that come while resting are late or forged.

A server that answers 1050 to each pulse, or 1051 to each cookie, gets one more for each timer, and the timers back off.

Pure: `now` is in seconds of a clock that never goes back.

Source: rendezvous specification §2, §6, D-07, D-10, D-24.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from math import inf

FIRST_REPEATS = 3  # D-07: after 1, 2 and 4 s; then something is wrong
_COOKIES = 2  # pulses for one timer because of a cookie: the first one, and one that the server's minute made stale


@dataclass(frozen=True, slots=True)
class Timing:
    """Seconds.

    Attributes:
        interval_s: between two pulses that are answered.
        repeat_s: until one that is not is repeated for the first time; doubled each time, up to the interval.
    """

    interval_s: float = 25.0
    repeat_s: float = 1.0


class Phase(Enum):
    """What a client is doing."""

    LOST = "lost"  # no identity: not registered yet, or not any more
    RESTING = "resting"  # the last pulse was accepted
    ASKING = "asking"  # pulses are out that nobody accepted


class Event(Enum):
    """What a client hears."""

    TIMER = "timer"  # the time of `next_timeout` has come
    REGISTERED = "registered"
    ACCEPTED = "1020"
    MUST_VERIFY = "1050"
    COOKIE = "1051"
    UNKNOWN = "1060"
    VERIFIED = "verified"
    UNVERIFIED = "unverified"  # the server did not answer, or something else
    REJECTED = "rejected"  # 401 over HTTP
    MOVED = "moved"  # another own address leads to the server, or there is a way again where there was none


class Action(Enum):
    """What is to be done about it, at once and in this order."""

    RECONNECT = "reconnect"  # another socket
    ADVANCE = "advance"  # another socket, to the server's next address if it has several
    PULSE = "pulse"
    VERIFY = "verify"  # over HTTP; ends with VERIFIED, UNVERIFIED or REJECTED
    LOSE = "lose"  # tell everybody


class _Step(Enum):
    START = "start"
    REPEAT = "repeat"
    REST = "rest"
    BAKE = "bake"
    VERIFY = "verify"
    PULSE = "pulse"
    RESTART = "restart"
    LOSE = "lose"


# What is not here changes nothing.
TRANSITIONS: Mapping[tuple[Phase, Event], _Step] = {
    (Phase.LOST, Event.REGISTERED): _Step.START,
    (Phase.RESTING, Event.TIMER): _Step.START,
    (Phase.RESTING, Event.MOVED): _Step.RESTART,
    (Phase.RESTING, Event.REJECTED): _Step.LOSE,
    (Phase.ASKING, Event.TIMER): _Step.REPEAT,
    (Phase.ASKING, Event.ACCEPTED): _Step.REST,
    (Phase.ASKING, Event.COOKIE): _Step.BAKE,
    (Phase.ASKING, Event.MUST_VERIFY): _Step.VERIFY,
    (Phase.ASKING, Event.UNKNOWN): _Step.VERIFY,
    (Phase.ASKING, Event.VERIFIED): _Step.PULSE,
    (Phase.ASKING, Event.MOVED): _Step.RESTART,
    (Phase.ASKING, Event.REJECTED): _Step.LOSE,
}


class Keeper:
    """One client's pulse. LOST until it is told REGISTERED."""

    def __init__(self, timing: Timing | None = None) -> None:
        self._timing = timing or Timing()
        self.phase = Phase.LOST
        self._due = inf
        self._sent_at = 0.0
        self._unanswered = 0  # timers since the last accepted pulse
        self._is_verifying = False
        self._may_verify = False
        self._cookies = 0

    @property
    def next_timeout(self) -> float:
        """When TIMER is due; inf for never."""
        return self._due

    def handle(self, event: Event, now: float) -> list[Action]:
        """What to do about an event."""
        if event in (Event.VERIFIED, Event.UNVERIFIED, Event.REJECTED, Event.REGISTERED):
            self._is_verifying = False
        match TRANSITIONS.get((self.phase, event)):
            case None:
                return []
            case _Step.START:
                return self._start(now)
            case _Step.RESTART:
                return [Action.RECONNECT, *self._start(now)]
            case _Step.REPEAT:
                return self._repeat(now)
            case _Step.REST:
                self.phase = Phase.RESTING
                self._due = self._sent_at + self._timing.interval_s
                return []
            case _Step.BAKE:
                self._cookies -= 1
                return self._pulse(now) if self._cookies >= 0 else []
            case _Step.VERIFY:
                return self._verify()
            case _Step.PULSE:
                return self._pulse(now)
            case _Step.LOSE:
                self.phase = Phase.LOST
                self._due = inf
                return [Action.LOSE]

    def _start(self, now: float) -> list[Action]:
        self.phase = Phase.ASKING
        self._unanswered = 0
        return self._ask(now)

    def _repeat(self, now: float) -> list[Action]:
        self._unanswered += 1
        if self._unanswered <= FIRST_REPEATS:
            return self._ask(now)
        return [Action.ADVANCE, *self._ask(now), *self._verify()]

    def _ask(self, now: float) -> list[Action]:
        """A pulse of the timer's, after which one verification and some cookies are free again."""
        # The bound of the exponent only keeps the number small.
        self._due = now + min(self._timing.repeat_s * 2 ** min(self._unanswered, 30), self._timing.interval_s)
        self._may_verify = True
        self._cookies = _COOKIES
        return self._pulse(now)

    def _pulse(self, now: float) -> list[Action]:
        self._sent_at = now
        return [Action.PULSE]

    def _verify(self) -> list[Action]:
        if self._is_verifying or not self._may_verify:
            return []
        self._is_verifying, self._may_verify = True, False
        return [Action.VERIFY]
