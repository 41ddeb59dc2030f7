"""Random operations at random times against a model that says in thirty lines what the specification says."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from punchd.rendezvous.clients import Clients
from punchd.rendezvous.pulse import ACCEPTED, UNKNOWN, VERIFY
from tests.unit.rendezvous.parts import origin

CLIENTS = 3
PORTS = (4000, 4001, 4002)
# Milliseconds: the boundaries of section 2, just before and just after them, and anything.
STEPS_MS = st.sampled_from([1, 30_000, 34_999, 35_000, 35_001, 100_000, 209_999, 210_000]) | st.integers(1, 250_000)
NUMBERS = st.integers(0, CLIENTS - 1)


class Model:
    """One client, in whole milliseconds."""

    def __init__(self, now: int) -> None:
        self.lease = now
        self.last_pulse: int | None = None
        self.port: int | None = None
        self.is_out = False

    def state(self, now: int) -> str | None:
        age = now - self.lease
        if self.is_out or age >= 210_000:
            return None
        if self.last_pulse is None:
            return "new"
        return "online" if age <= 35_000 else "pending"

    def pulse(self, now: int, port: int) -> bytes:
        state = self.state(now)
        if state is None or state == "pending":
            return UNKNOWN if state is None else VERIFY
        self.lease, self.last_pulse, self.port = now, now, port
        return ACCEPTED

    def verify(self, now: int) -> bool:
        state = self.state(now)
        if state == "pending":
            self.lease = now
        return state is not None


class Rendezvous(RuleBasedStateMachine):
    """Three clients, registered anew when they are gone."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 0
        self.clients = Clients(1000)
        self.names = 0
        self.known = [self.registered() for _ in range(CLIENTS)]

    def registered(self) -> tuple[bytes, bytes, Model]:
        self.names += 1
        client_id, key = self.names.to_bytes(16, "big"), self.names.to_bytes(32, "big")
        assert self.clients.register(client_id, key, self.now / 1000) is not None
        return client_id, key, Model(self.now)

    @rule(number=NUMBERS, port=st.sampled_from(PORTS))
    def pulse(self, number: int, port: int) -> None:
        _, key, model = self.known[number]
        assert self.clients.pulse(key, origin(port=port), self.now / 1000) == model.pulse(self.now, port)

    @rule(number=NUMBERS)
    def verify(self, number: int) -> None:
        client_id, key, model = self.known[number]
        assert (self.clients.verify(key, self.now / 1000) == client_id) == model.verify(self.now)

    @rule(number=NUMBERS)
    def log_out(self, number: int) -> None:
        client_id, key, model = self.known[number]
        was_there = model.state(self.now) is not None
        assert (self.clients.logout(key, self.now / 1000) == client_id) == was_there
        model.is_out = True

    @rule(step_ms=STEPS_MS)
    def advance(self, step_ms: int) -> None:
        self.now += step_ms

    @rule()
    def sweep(self) -> None:
        gone, _ = self.clients.sweep(self.now / 1000, 1000)
        for client_id, _, model in self.known:
            assert client_id not in gone or model.state(self.now) is None

    @rule(number=NUMBERS)
    def register_anew(self, number: int) -> None:
        if self.known[number][2].state(self.now) is None:
            self.known[number] = self.registered()

    @invariant()
    def every_lookup_is_what_the_model_says(self) -> None:
        for client_id, key, model in self.known:
            view = self.clients.view(client_id, self.now / 1000)
            assert (None if view is None else view.state.value) == model.state(self.now)
            assert (self.clients.authenticate(key, self.now / 1000) is None) == (view is None)
            if view is not None:
                fresh = model.last_pulse is not None and self.now - model.last_pulse < 210_000
                assert [seen.endpoint.port for seen in view.addresses] == ([model.port] if fresh else [])
                since = None if model.last_pulse is None else (self.now - model.last_pulse) / 1000
                assert (view.last_online is None) == (since is None)
                assert abs((view.last_online or 0) - (since or 0)) < 1e-6


TestRendezvous = Rendezvous.TestCase
TestRendezvous.settings = settings(max_examples=100, stateful_step_count=40, deadline=None)
