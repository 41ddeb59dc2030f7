"""A session with its connections played: what each was sent, and how it was closed."""

from __future__ import annotations

import json
from ipaddress import ip_address
from typing import Any

from punchd.broker import server_messages, snapshot
from punchd.broker.messages import KeepAlive, decode
from punchd.broker.moves import (
    Action,
    Answered,
    Close,
    Connected,
    Ended,
    Event,
    Left,
    Probe,
    Received,
    Registered,
    Send,
)
from punchd.broker.passphrases import Passphrases, Scope
from punchd.broker.session import Session
from punchd.broker.state import Plan, Policy
from punchd.broker.tokens import Role
from tests.unit.broker.schema import check_server_message

CREATED_MS = 1_777_810_000_000
TTL_MS = 1_800_000
CLOSES_MS = CREATED_MS + TTL_MS - 100


class Room:
    """A session whose every frame is checked against the schema, and that goes on from a snapshot after every event."""

    def __init__(
        self, *streams: str, policy: Policy | None = None, latency_ms: int = 200, scope: Scope = Scope.SESSION
    ) -> None:
        names = streams or ("cam",)
        self.plan = Plan("show", names, CREATED_MS, CREATED_MS + TTL_MS, latency_ms)
        self.policy = policy or Policy()
        self.session = Session(self.plan, self.policy)
        draws = iter(range(1, 100))
        self.passphrases = Passphrases.draw(names, scope, lambda size: bytes([next(draws)]) * size)
        self.now_ms = CREATED_MS
        self.frames: dict[str, list[dict[str, Any]]] = {}
        self.sent: dict[str, str] = {}  # all that a connection ever got
        self.closed: dict[str, int] = {}
        self.probed: list[str] = []
        self.registered: set[str] = set()
        self.ended: str | None = None

    # --- what happens ------------------------------------------------------------------------------------------------

    def do(self, event: Event) -> list[Action]:
        """An event, now."""
        return self._carry_out(self.session.handle(event, self.now_ms))

    def wait(self, ms: int) -> list[Action]:
        """Time passes; timers go off when they are due."""
        end = self.now_ms + ms
        actions = []
        while (due := self.session.next_timeout()) is not None and due <= end:
            self.now_ms = max(self.now_ms, due)
            actions += self._carry_out(self.session.handle_timeout(self.now_ms))
            after = self.session.next_timeout()
            assert after is None or after > self.now_ms, "a timer that went off is due again"
        self.now_ms = end
        return actions

    def admin(self, name: str = "admin", ip: str = "192.0.2.100") -> str:
        self.do(Connected(name, Role.ADMIN, None, ip_address(ip), f"token-{name}"))
        return name

    def peer(self, name: str, ip: str, stream: str | None = None) -> str:
        self.do(Connected(name, Role.PEER, stream or self.plan.streams[0], ip_address(ip), f"token-{name}"))
        return name

    def say(self, name: str, kind: str, **members: Any) -> None:
        """A message from a connection, as it would come over the wire."""
        message = decode(json.dumps({"type": kind, **members}))
        assert not isinstance(message, KeepAlive)
        self.do(Received(name, message))

    def leave(self, name: str) -> None:
        self.do(Left(name))

    def answer(self, name: str) -> None:
        self.do(Answered(name))

    def pair(self, stream: str | None = None, first: str = "one", second: str = "two") -> None:
        """Two peers, matched; what they were told on the way is dropped."""
        number = 10 * (1 + self.plan.streams.index(stream or self.plan.streams[0]))
        for name, last in ((first, number + 1), (second, number + 2)):
            self.peer(name, f"192.0.2.{last}", stream)
            self.say(name, "register", port=5000 + last)
        self.drop_frames()

    # --- what came of it ---------------------------------------------------------------------------------------------

    def take(self, name: str) -> list[dict[str, Any]]:
        """What a connection was sent since the last time."""
        return self.frames.pop(name, [])

    def kinds(self, name: str) -> list[str]:
        """The types of that."""
        return [frame["type"] for frame in self.take(name)]

    def only(self, name: str) -> dict[str, Any]:
        """The one frame that a connection was sent since the last time."""
        (frame,) = self.take(name)
        return frame

    def drop_frames(self) -> None:
        self.frames.clear()

    @property
    def state(self) -> str:
        return self.session.overview().state.value

    def stream_state(self, name: str = "cam") -> tuple[str, int]:
        state, peers = self.session.overview().streams[name]
        return state.value, peers

    def _carry_out(self, actions: list[Action]) -> list[Action]:
        for action in actions:
            match action:
                case Send(to, message):
                    stream = server_messages.needs_passphrase(message)
                    text = server_messages.encode(message, stream and self.passphrases.of(stream))
                    for name in to:
                        assert name not in self.closed, f"{text} after the close of {name}"
                        self.frames.setdefault(name, []).append(check_server_message(text))
                        self.sent[name] = self.sent.get(name, "") + text
                case Close(name, code):
                    assert name not in self.closed
                    self.closed[name] = code.value
                case Probe(name):
                    self.probed.append(name)
                case Registered(name):
                    self.registered.add(name)
                case Ended(reason):
                    assert action is actions[-1]
                    self.ended = reason.value
        plain = json.loads(json.dumps(snapshot.dump(self.session.facts)))
        facts = snapshot.load(plain)
        assert facts == self.session.facts
        self.session = Session(self.plan, self.policy, facts)
        return actions
