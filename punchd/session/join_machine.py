"""`punch session join`: when to register, when to run the tool, when to stop it, when to give up. Pure.

Two things go on independently: the broker's rounds (a `peer`, our `ready`, a `start`) and the tool.

    tool      event                                    action                                       then
    absent    the port is held (STUN has answered)     register, if anything is new; else ready     absent
    absent    peer                                     ready, as soon as the port is held           absent
    absent    start                                    let go of the port, run the tool             running
    running   peer, equal, while SRT is connected      ready: only a connection to the broker       running
                                                       was made anew; media go on
    running   peer, otherwise                          stop the tool                                ending
    running   SRT not connected for STUCK_S            stop the tool                                ending, backoff
    running   the tool ends: code 0, had connected     done, unless --keep                          over
    running   the tool ends: otherwise                 status, hold the port                        absent, backoff
    ending    the tool ends                            hold the port                                absent
    absent    the backoff is over                      register as a new run                        absent
    any       the session is closed                    stop the tool                                over
    running   the broker does not want us back         media go on to the tool's end                running

**Rounds that change nothing.** After a lost connection to the broker the library registers again, which is a new round
for both sides. Each side's `meta` names its run of the tool; if the new `peer` is the old one, run included, and our
SRT is connected, then so is theirs, and both go on. Whoever starts its tool again by its own decision registers as a
new run, so that the other side does, too. Of a peer that names no run each round is new.

**Retry.** The pause before a new run doubles from 1 to 30 s while no run connects. A tool that ends by itself
MOST_FAILURES times in a row without having connected will not do better the next time: that is the end. One that runs
but does not connect is tried for as long as the session lives: the other side may yet come.

**The slot is taken**, for up to 90 s, by the ghost of our own connection after a change of network: the broker is asked
again every TAKEN_S for TAKEN_LIMIT_S.

Times are seconds of one clock. Feed events to the methods, carry out what they return in that order, and call `timeout`
at `next_timeout`.

Source: broker specification §2.2, C-07, C-22 to C-25; what tools do: docs/session.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum, auto

from punchd.broker.client_events import Peer
from punchd.broker.messages import Srt
from punchd.punch.outcomes import Exit
from punchd.session.moves import (
    Action,
    End,
    HoldPort,
    Register,
    RunTool,
    SayHealth,
    SayReady,
    SayStatus,
    ShowStrings,
    StopTool,
    Tell,
)
from punchd.session.statistics import Sample, Window

HEALTH_S = 5.0  # between two reports: "every 5 s or so", seed 000
SILENT_S = 10.0  # without statistics, which come with packets: then nothing flows
STUCK_S = 45.0  # libsrt gives up a rendezvous after 30 s, and the tool begins again; after that the mapping is suspect
LEAST_PAUSE_S, MOST_PAUSE_S = 1.0, 30.0
MOST_FAILURES = 5
TAKEN_S, TAKEN_LIMIT_S = 5.0, 120.0  # a broker finds a dead connection within 90 s


class Tool(Enum):
    """What the tool does."""

    ABSENT = auto()
    RUNNING = auto()
    ENDING = auto()


class JoinMachine:
    """One peer's part in one stream.

    Args:
        keep: go on after the tool has ended well.
        by_hand: the user runs the tool, and says when it is set up.
    """

    def __init__(self, *, keep: bool = False, by_hand: bool = False) -> None:
        self._keep = keep
        self._by_hand = by_hand
        self._tool = Tool.ABSENT
        self._srt = Srt.DISCONNECTED
        self._is_held = False
        self._is_registered = False
        self._public: int | None = None
        self._run = 0
        self._peer: Peer | None = None
        self._is_matched = False  # as far as the broker knows: only then it takes a status
        self._is_ready = False
        self._is_shown = False  # by hand
        self._has_connected = False  # in this run
        self._ever_connected = False
        self._pauses = 0  # since SRT was last connected
        self._failures = 0  # of them, runs that ended by themselves
        self._again_at: float | None = None
        self._stuck_at: float | None = None
        self._silent_at: float | None = None
        self._health_at = 0.0
        self._taken_until: float | None = None
        self._window = Window()
        self._last_words: End | None = None  # when the tool has ended
        self._is_alone = False  # the broker does not want us back

    def begin(self) -> list[Action]:
        """At the beginning, and when the connection to the broker changed its address family."""
        if self._tool is not Tool.ABSENT:
            return []
        self._is_held = self._is_registered = False
        self._public = None
        return [HoldPort()]

    def port_held(self, public_port: int | None) -> list[Action]:
        """The port is ours, and STUN has said what it knows; again with every keep-alive."""
        if self._tool is not Tool.ABSENT:
            return []
        self._is_held = True
        has_moved = public_port is not None and public_port != self._public
        if has_moved:
            self._public = public_port
        if self._again_at is not None:
            return []
        if has_moved or not self._is_registered:
            return self._register()
        return self._get_ready()

    def peer(self, peer: Peer) -> list[Action]:
        """The stream is matched."""
        is_same = _run(peer) is not None and peer == self._peer
        self._peer = peer
        self._is_matched, self._is_ready, self._is_shown = True, False, False
        self._again_at = self._taken_until = None
        if self._tool is Tool.RUNNING:
            if is_same and self._srt is Srt.CONNECTED:
                return [SayReady()]
            self._tool = Tool.ENDING
            return [Tell("restarting", "the other side begins anew"), StopTool()]
        return self._get_ready()

    def set_up(self) -> list[Action]:
        """By hand: the user's tool is."""
        if not self._is_shown or self._is_ready or not self._is_held:
            return []
        self._is_ready = True
        return [SayReady()]

    def populated(self, peers: int) -> list[Action]:
        """How many peers of the stream are registered, ourselves included."""
        was, self._is_matched = self._is_matched, self._is_matched and peers > 1
        return [Tell("left", "the other side has left")] if was and not self._is_matched else []

    def start(self, now: float) -> list[Action]:
        """Both are ready."""
        if self._tool is Tool.RUNNING:
            return self._status(self._srt)
        if self._tool is Tool.ENDING or self._peer is None or not self._is_ready:
            return []
        self._tool, self._srt = Tool.RUNNING, Srt.CONNECTING
        self._is_held = self._has_connected = False
        self._stuck_at = None if self._by_hand else now + STUCK_S
        return [RunTool(self._peer), *self._status(Srt.CONNECTING)]

    def linked(self, is_connected: bool, now: float) -> list[Action]:
        """What the tool says of its connection."""
        if self._tool is not Tool.RUNNING:
            return []
        if is_connected and self._srt is not Srt.CONNECTED:
            self._srt = Srt.CONNECTED
            self._has_connected = self._ever_connected = True
            self._pauses = self._failures = 0
            self._stuck_at, self._silent_at = None, now + SILENT_S
            return [*self._status(Srt.CONNECTED), Tell("connected", "SRT is connected")]
        if not is_connected and self._srt is Srt.CONNECTED:
            self._srt = Srt.DISCONNECTED
            self._stuck_at, self._silent_at = (None if self._by_hand else now + STUCK_S), None
            return [*self._status(Srt.DISCONNECTED), Tell("disconnected", "SRT has lost the other side")]
        return []

    def sampled(self, sample: Sample, now: float) -> list[Action]:
        """A line of statistics."""
        actions = self.linked(True, now)
        if self._tool is not Tool.RUNNING:
            return []
        self._window.add(sample)
        self._silent_at = now + SILENT_S
        if now >= self._health_at:
            actions += self._report(now)
        return actions

    def tool_ended(self, code: int, why: str, now: float) -> list[Action]:
        """All of the tool is gone. `why`: in words."""
        was, self._tool = self._tool, Tool.ABSENT
        self._stuck_at = self._silent_at = None
        if self._last_words is not None:
            return [*self._status(Srt.DISCONNECTED), self._last_words]
        self._srt = Srt.DISCONNECTED
        if was is Tool.ENDING:
            return [*self._status(Srt.DISCONNECTED), HoldPort()]
        ended: list[Action] = [
            *self._status(Srt.DISCONNECTED if code == 0 else Srt.ERROR),
            Tell("ended", f"the tool has ended: {why}", {"code": code}, is_warning=code != 0),
        ]
        if code == 0 and self._has_connected and not self._keep:
            return [*ended, End(Exit.DONE, "")]
        if self._is_alone:
            return [*ended, End(Exit.BROKEN, f"the tool has ended, and the broker does not want us back: {why}")]
        self._failures += not self._has_connected
        if self._failures >= MOST_FAILURES:
            return [*ended, End(Exit.BROKEN, f"the tool failed {MOST_FAILURES} times in a row: {why}")]
        self._pause(now)
        return [*ended, HoldPort()]

    def reconnected(self) -> list[Action]:
        """There is a new connection to the broker, and we are registered there again."""
        self._is_matched = False
        if self._tool is not Tool.RUNNING:
            self._forget_peer()
        return []

    def refused(self, code: str, text: str, now: float) -> list[Action]:
        """The broker objects to what we said."""
        if code == "AUTH_FAILED":
            return self._finish(End(Exit.REFUSED, f"the broker refuses: {text}"))
        if code != "STREAM_TAKEN" or self._tool is Tool.RUNNING:
            return [Tell("refused", f"the broker objects: {text}", {"code": code}, is_warning=True)]
        said: list[Action] = []
        if self._taken_until is None:
            self._taken_until = now + TAKEN_LIMIT_S
            said = [Tell("taken", "both places of the stream are taken; trying again", is_warning=True)]
        if now >= self._taken_until:
            return self._finish(End(Exit.REFUSED, "both places of the stream are taken"))
        self._again_at = now + TAKEN_S
        return said

    def closed(self, reason: str) -> list[Action]:
        """The session is over."""
        code = Exit.DONE if self._ever_connected and reason != "error" else Exit.NO_CONNECTION
        why = {"admin_closed": "its admin closed it", "ttl_expired": "its time is over"}.get(reason, reason)
        return [
            Tell("closed", f"the session is over: {why}", {"reason": reason}),
            *self._finish(End(code, "the session was over before SRT had connected" if code else "")),
        ]

    def dismissed(self, code: Exit, text: str) -> list[Action]:
        """The broker does not want us back."""
        if self._tool is Tool.RUNNING and self._srt is Srt.CONNECTED:
            self._is_alone = True
            return [Tell("alone", f"{text}; media go on without the broker", is_warning=True)]
        return self._finish(End(code, text))

    def next_timeout(self) -> float | None:
        """When to call `timeout`."""
        times = (self._again_at, self._stuck_at, self._silent_at)
        return min((time for time in times if time is not None), default=None)

    def timeout(self, now: float) -> list[Action]:
        """Whatever is due."""
        actions: list[Action] = []
        if self._again_at is not None and now >= self._again_at:
            self._again_at = None
            self._run += 1
            self._is_registered = False
            actions += self._register() if self._is_held else []
        if self._silent_at is not None and now >= self._silent_at:
            self._silent_at = now + HEALTH_S
            actions += self._report(now)
        if self._stuck_at is not None and now >= self._stuck_at:
            self._stuck_at = None
            self._tool = Tool.ENDING
            self._pause(now)
            if self._is_alone:
                self._last_words = End(Exit.BROKEN, "SRT has lost the other side, and the broker does not want us back")
            text = f"SRT has not connected for {STUCK_S:.0f} s; beginning anew"
            actions += [Tell("stuck", text, is_warning=True), StopTool()]
        return actions

    def _register(self) -> list[Action]:
        self._is_registered = True
        self._forget_peer()
        return [Register(self._public, self._run)]

    def _forget_peer(self) -> None:
        self._peer, self._is_ready, self._is_shown = None, False, False

    def _get_ready(self) -> list[Action]:
        """Once for each `peer`, as soon as the port is held."""
        if self._peer is None or not self._is_held or self._is_ready or self._tool is not Tool.ABSENT:
            return []
        if self._by_hand:
            shown, self._is_shown = self._is_shown, True
            return [] if shown else [ShowStrings(self._peer)]
        self._is_ready = True
        return [SayReady()]

    def _status(self, srt: Srt) -> list[Action]:
        return [SayStatus(srt)] if self._is_matched else []

    def _report(self, now: float) -> list[Action]:
        health = self._window.report()
        self._health_at = now + HEALTH_S
        return [] if health is None else [SayHealth(health)]

    def _pause(self, now: float) -> None:
        self._again_at = now + min(MOST_PAUSE_S, LEAST_PAUSE_S * 2**self._pauses)
        self._pauses = min(self._pauses + 1, 8)

    def _finish(self, last: End) -> list[Action]:
        if self._tool is Tool.ABSENT:
            return [last]
        self._last_words = last
        if self._tool is Tool.ENDING:
            return []
        self._tool = Tool.ENDING
        return [StopTool()]


def _run(peer: Peer) -> object:
    """Which run of its tool the other side says that this is; None if it says nothing of the kind."""
    said = peer.meta.get("punchd") if peer.meta is not None else None
    return said.get("run") if isinstance(said, Mapping) else None
