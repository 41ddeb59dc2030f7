"""Random events against a model that says in sixty lines what the specification says of slots, rounds and states."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from punchd.broker.moves import Deleted
from tests.unit.broker.parts import CREATED_MS, TTL_MS, Room

STREAMS = ("cam", "close")
IPS = ("192.0.2.1", "192.0.2.2", "192.0.2.3", "2001:db8::1")
NAMES = st.integers(0, 20)
ORDER = ("WAITING", "READY", "CONNECTED", "CLOSED")


@dataclass
class Peer:
    name: str
    ip: str
    port: int
    role: str | None
    ready: bool = False
    up: bool = False


class Model:
    """What there is, and what the last event told: (to whom, type, what counts of it)."""

    def __init__(self) -> None:
        self.state = "WAITING"
        self.here: dict[str, tuple[str | None, str]] = {}  # name: (stream, ip); no stream: an admin
        self.pairs: dict[str, list[Peer]] = {stream: [] for stream in STREAMS}
        self.claims: dict[str, list[Any]] = {}  # name: [stream, port, role, who has not answered, until]
        self.told: list[tuple[str, str, object]] = []

    def stream_of(self, name: str) -> str | None:
        return next((one for one, pair in self.pairs.items() if any(peer.name == name for peer in pair)), None)

    def peer(self, name: str) -> Peer | None:
        return next((peer for pair in self.pairs.values() for peer in pair if peer.name == name), None)

    def forget(self, name: str) -> None:
        self.here.pop(name, None)
        self.claims.pop(name, None)
        for pair in self.pairs.values():
            pair[:] = [peer for peer in pair if peer.name != name]

    def seat(self, name: str, stream: str, port: int, role: str | None) -> bool:
        """C-24, C-25; False if the stream is full of others."""
        pair, ip, own = self.pairs[stream], self.here[name][1], self.peer(name)
        if own is not None and (own.port, own.role) == (port, role):
            return True
        ghosts = [
            peer
            for peer in pair
            if peer.name != name
            and (peer.ip, peer.port) == (ip, port)
            and not {peer.role, role} >= {"sender", "receiver"}
        ]
        if len(pair) == 2 and own is None and not ghosts:
            return False
        for ghost in ghosts[:1]:
            self.forget(ghost.name)
            self.told.append((ghost.name, "error", "STREAM_TAKEN"))
        pair[:] = [*(peer for peer in pair if peer.name != name), Peer(name, ip, port, role)]
        self.claims.pop(name, None)
        for peer in pair:
            peer.ready = peer.up = False
        if len(pair) == 2:
            self.state = max(self.state, "READY", key=ORDER.index)
            a, b = pair
            self.told += [(me.name, "peer", (it.ip, it.port, me.port)) for me, it in ((a, b), (b, a))]
            self.told += [(one, "peer_match", (a.ip, a.port, b.ip, b.port)) for one in self.admins()]
        return True

    def settle(self, now_ms: int) -> None:
        for name, (stream, port, role, silent, until) in list(self.claims.items()):
            silent &= {peer.name for peer in self.pairs[stream]}
            if len(self.pairs[stream]) == 2 and silent and now_ms < until:
                continue
            if len(self.pairs[stream]) == 2:
                for one in silent:
                    self.forget(one)
                    self.told.append((one, "error", "INVALID_MESSAGE"))
            del self.claims[name]
            if not self.seat(name, stream, port, role):
                self.told.append((name, "error", "STREAM_TAKEN"))

    def admins(self) -> list[str]:
        return [name for name, (stream, _) in self.here.items() if stream is None]

    def streams(self) -> dict[str, dict[str, Any]]:
        def state(pair: list[Peer]) -> str:
            up = any(peer.up for peer in pair)
            return "WAITING" if len(pair) < 2 else "CONNECTED" if up else "READY"

        return {one: {"state": state(pair), "peers": len(pair)} for one, pair in self.pairs.items()}


def gist(frame: dict[str, Any]) -> tuple[str, object]:
    """What counts of a frame for the model; `session` and lights have tests of their own."""
    match frame["type"]:
        case "peer":
            return "peer", (frame["ip"], frame["port"], frame["localPort"])
        case "peer_match":
            a, b = frame["peer_a"], frame["peer_b"]
            return "peer_match", (a["ip"], a["port"], b["ip"], b["port"])
        case "error":
            return "error", frame["code"]
        case "session":
            return "session", frame["state"]
        case kind:
            return kind, None


class Broker(RuleBasedStateMachine):
    """Two streams and whoever comes."""

    def __init__(self) -> None:
        super().__init__()
        self.begin()

    def begin(self) -> None:
        self.room = Room(*STREAMS)
        self.model = Model()
        self.count = 0

    def some(self, number: int) -> str | None:
        here = list(self.model.here)
        return here[number % len(here)] if here else None

    def compare(self) -> None:
        """What the event told is what the model says; each connection's frames end with the newest state."""
        self.model.settle(self.room.now_ms)
        frames, self.room.frames = self.room.frames, {}
        told = Counter((name, *gist(frame)) for name, sent in frames.items() for frame in sent)
        sessions = {name: [frame for frame in sent if frame["type"] == "session"] for name, sent in frames.items()}
        assert Counter(self.model.told) == Counter({one: n for one, n in told.items() if one[1] != "session"})
        self.model.told = []
        for sent, seen in ((frames[name], seen) for name, seen in sessions.items() if seen):
            assert seen == [sent[-1]]
            assert seen[0]["streams"] == self.model.streams()
            assert seen[0]["connected"] == sum(len(pair) for pair in self.model.pairs.values())

    @precondition(lambda self: len(self.model.here) < 12)
    @rule(kind=st.sampled_from([*STREAMS, *STREAMS, None]), ip=st.sampled_from(IPS))
    def join(self, kind: str | None, ip: str) -> None:
        name = f"c{self.count}"
        self.count += 1
        if kind is None:
            self.room.admin(name, ip)
            matched = [pair for pair in self.model.pairs.values() if len(pair) == 2]
            self.model.told += [(name, "peer_match", (a.ip, a.port, b.ip, b.port)) for a, b in matched]
        else:
            self.room.peer(name, ip, kind)
        self.model.here[name] = (kind, ip)
        self.compare()

    @rule(
        number=NAMES,
        port=st.sampled_from([5000, 5001]),
        role=st.sampled_from([None, None, "sender", "receiver"]),
        stream=st.sampled_from(STREAMS),
    )
    def register(self, number: int, port: int, role: str | None, stream: str) -> None:
        name = self.some(number)
        if name is None:
            return
        own = self.model.here[name][0] or stream
        self.room.say(name, "register", port=port, stream=own, **({} if role is None else {"role": role}))
        held = self.model.stream_of(name)
        if held not in (None, own):
            self.model.told.append((name, "error", "INVALID_MESSAGE"))
        elif not self.model.seat(name, own, port, role):
            claim = self.model.claims.get(name)
            if claim is not None and claim[0] == own:
                claim[1:3] = [port, role]
            else:
                holders = {peer.name for peer in self.model.pairs[own]}
                self.model.claims[name] = [own, port, role, holders, self.room.now_ms + 3000]
        self.compare()

    @rule(number=NAMES, srt=st.sampled_from(["ready", "connecting", "connected", "connected", "disconnected", "error"]))
    def say_ready_or_status(self, number: int, srt: str) -> None:
        name = self.some(number)
        if name is None:
            return
        stream = self.model.stream_of(name)
        where = {"stream": stream or self.model.here[name][0] or "cam"}
        self.room.say(name, "ready", **where) if srt == "ready" else self.room.say(name, "status", srt=srt, **where)
        me, pair = self.model.peer(name), self.model.pairs[stream or "cam"]
        if me is None or len(pair) < 2:
            self.model.told.append((name, "error", "INVALID_MESSAGE"))
        elif srt != "ready":
            me.up = srt == "connected"
            self.model.state = "CONNECTED" if me.up else self.model.state
        elif not me.ready:
            me.ready = True
            self.model.told += [(peer.name, "start", None) for peer in pair if all(one.ready for one in pair)]
        self.compare()

    @rule(number=NAMES)
    def leave(self, number: int) -> None:
        name = self.some(number)
        if name is not None:
            self.room.leave(name)
            self.model.forget(name)
            self.compare()

    @rule(number=NAMES)
    def answer(self, number: int) -> None:
        name = self.some(number)
        if name is not None:
            self.room.answer(name)
            for claim in self.model.claims.values():
                claim[3].discard(name)
            self.compare()

    @rule(ms=st.sampled_from([1, 1000, 2999, 3000]))
    def wait(self, ms: int) -> None:
        end = self.room.now_ms + ms
        while (due := min((claim[4] for claim in self.model.claims.values()), default=end + 1)) <= end:
            self.room.wait(due - self.room.now_ms)
            self.compare()
        self.room.wait(end - self.room.now_ms)
        self.compare()

    @precondition(lambda self: self.count > 6)
    @rule(by_time=st.booleans())
    def end(self, by_time: bool) -> None:
        if by_time:
            self.room.wait(CREATED_MS + TTL_MS - self.room.now_ms)
        else:
            self.room.do(Deleted())
        assert {name for name in self.model.here if name not in self.room.closed} == set()
        assert self.room.state == "CLOSED"
        self.begin()

    @invariant()
    def what_there_is_is_what_the_model_says(self) -> None:
        facts = self.room.session.facts
        assert self.room.state == self.model.state
        assert set(facts.members) == set(self.model.here)
        for stream, pair in self.model.pairs.items():
            slots = [(slot.connection, str(slot.ip), slot.register.port) for slot in facts.streams[stream].slots]
            assert slots == [(peer.name, peer.ip, peer.port) for peer in pair]
            assert self.room.stream_state(stream) == tuple(self.model.streams()[stream].values())
        assert set(facts.claims) == set(self.model.claims)

    @invariant()
    def peers_hear_only_of_their_own_stream_and_only_admins_of_both_ends(self) -> None:
        for name, (own, _) in self.model.here.items():
            if own is not None:
                sent = self.room.sent.get(name, "")
                assert "peer_match" not in sent
                assert not any(f'"stream":"{other}"' in sent for other in STREAMS if other != own)


TestBroker = Broker.TestCase
TestBroker.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
