"""Drives one attempt: the machine decides, this does.

Every event, wherever it comes from (a token handed in, a technique's word, time), goes into the machine at once and
its actions are carried out before anything else happens: decide synchronously, act afterwards, no queue in between.
Only a technique runs as a task of its own; it is cancelled when its round is over.

What an attempt owns (ports, a hole that came too late) is closed when `run` ends, however it ends. A hole that came in
time belongs to the application from `Voice.succeeded` on.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol, assert_never

import trio

from punchd import events
from punchd.attempt import machine, moves
from punchd.attempt.kit import AttemptPorts, RoundKit
from punchd.attempt.machine import Machine, State
from punchd.endpoint import PortSet
from punchd.errors import Code, PunchdError, PunchError
from punchd.technique import Facts, Hole, Role, Technique, Unsuitable
from punchd.wire import token as tokens

log = logging.getLogger(__name__)


_Turns = tuple[trio.Event | None, trio.Event]  # the technique before is gone; this one is


class Voice(Protocol):
    """Where an attempt's news goes. Nothing here may block or raise."""

    def relay(self, round_number: int, technique: str, token: tokens.Token) -> None: ...
    def trying(self, round_number: int, technique: str) -> None: ...
    def failed(self, round_number: int, technique: str, reason: Code, text: str) -> None: ...
    def ignored(self, round_number: int, technique: str, reason: Code) -> None: ...
    def succeeded(self, technique: Technique[Any], hole: Hole) -> None:
        """The verdict is ok; the voice owns the hole's descriptor now, unless this raises."""

    def ended(self, code: Code, text: str) -> None:
        """The verdict is an error."""


class Attempt:
    """One side of one attempt.

    Args:
        plan: for the machine.
        techniques: those of the plan, by name.
        ports: the attempt's, which owns them from now on.
        peer_ports: the peer's as the application named them (initiator); an offer names its own.
        ttl: the low TTL, asked for when a round begins.
        packets_per_port, packets: see `punchd.technique.Facts`.
        voice: where news goes.
        emit: told of every event, for logs and traces.
        record: gets a copy of every packet, for traces.
    """

    def __init__(
        self,
        *,
        plan: machine.Plan,
        techniques: Mapping[str, Technique[Any]],
        ports: AttemptPorts,
        peer_ports: PortSet | None,
        ttl: Callable[[], int],
        packets_per_port: int,
        packets: int,
        voice: Voice,
        emit: Callable[[events.Event], None],
        record: Callable[[bytes], None] | None = None,
    ) -> None:
        self.machine = Machine(plan)
        self._plan = plan
        self._techniques = techniques
        self._ports = ports
        self._peer_ports = peer_ports
        self._ttl = ttl
        self._packets_per_port = packets_per_port
        self._packets = packets
        self._voice = voice
        self._emit_outside = emit
        self._record = record
        self._nursery: trio.Nursery | None = None
        self._running: trio.CancelScope | None = None  # the technique's; None when none runs
        self._quiet: trio.Event | None = None  # set when the last technique's task is gone, and with it its readers
        self._kit: RoundKit | None = None
        self._hole: Hole | None = None  # the technique's, until the machine's verdict takes it
        self._stirred = trio.Event()
        self._early: list[moves.Arrived] = []
        self.gone = trio.Event()  # `run` has ended: what the attempt owned is closed

    @property
    def nonce(self) -> bytes:
        return self._plan.nonce

    @property
    def has_ended(self) -> bool:
        return self.machine.state is State.ENDED

    def feed(self, event: moves.Event) -> None:
        """Let the machine know, and do what it says.

        A token may come in the same read as the request that it follows, when `run` has not begun: it is kept.
        """
        if self.machine.state is State.NEW and isinstance(event, moves.Arrived):
            self._early.append(event)
            return
        self._perform(self.machine.handle(event, trio.current_time()))
        self._stirred.set()

    async def run(self) -> None:
        """Run to the verdict. Cancelling this ends the attempt without one: use `feed` to end it with one."""
        role = Role.INITIATOR if self.machine.is_initiator else Role.RESPONDER
        peer = f"{self._plan.peer}:{self._peer_ports}" if self._peer_ports else str(self._plan.peer)
        self._emit(events.AttemptStarted(self._plan.nonce.hex(), role.value, peer))
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                if self.machine.state is State.NEW:
                    self.feed(moves.Begin())
                for event in self._early:
                    self.feed(event)
                while not self.has_ended:
                    self._stirred = trio.Event()
                    with trio.move_on_at(self.machine.next_timeout() or trio.current_time()):
                        await self._stirred.wait()
                    self._perform(self.machine.handle_timeout(trio.current_time()))
                nursery.cancel_scope.cancel()
        finally:
            self._ports.close()
            self._drop_hole()
            self.gone.set()

    # --- actions ---------------------------------------------------------------------------------------------------

    def _perform(self, actions: list[moves.Action]) -> None:
        for action in actions:
            match action:
                case moves.StartTechnique():
                    self._start(action)
                case moves.StopTechnique():
                    self._stop()
                case moves.Deliver(card):
                    if self._kit is not None:
                        self._kit.deliver(card)
                case moves.Relay(round_number, technique, token):
                    self._emit(events.Told(token.kind.name.lower(), round_number))
                    self._voice.relay(round_number, technique, token)
                case moves.Trying(round_number, technique):
                    self._emit(events.RoundStarted(round_number, technique))
                    self._voice.trying(round_number, technique)
                case moves.Failed(round_number, technique, reason, text):
                    self._emit(events.RoundFailed(round_number, technique, reason, text))
                    self._voice.failed(round_number, technique, reason, text)
                case moves.Ignored(round_number, technique, reason):
                    self._voice.ignored(round_number, technique, reason)
                case moves.Succeed():
                    self._succeed(action)
                case moves.Fail(code, text):
                    self._emit(events.AttemptEnded(code, text))
                    self._voice.ended(code, text)
                case _:
                    assert_never(action)

    def _succeed(self, verdict: moves.Succeed) -> None:
        if self._hole is None:
            raise AssertionError("a verdict of ok without a hole")
        self._emit(events.Punched(verdict.technique, verdict.local, verdict.remote))
        self._emit(events.AttemptEnded("ok", verdict.technique))
        self._voice.succeeded(self._techniques[verdict.technique], self._hole)
        self._hole = None

    def _start(self, action: moves.StartTechnique) -> None:
        if self._nursery is None:
            raise AssertionError("a technique starts before its attempt")
        self._stop()
        self._running = trio.CancelScope()
        self._kit = RoundKit(
            nonce=self._plan.nonce,
            peer=self._plan.peer,
            packets=self._packets,
            ports=self._ports,
            tell=lambda card: self.feed(moves.Said(card)),
            emit=self._emit,
            record=self._record,
        )
        before, self._quiet = self._quiet, trio.Event()
        self._nursery.start_soon(self._take_turns, action, self._kit, self._running, (before, self._quiet))

    def _stop(self) -> None:
        if self._running is not None:
            self._running.cancel()
        if self._kit is not None:
            self._kit.retire()
        self._running = None
        self._kit = None

    def _drop_hole(self) -> None:
        """A hole that no verdict wanted, for instance because the round ended in the same moment."""
        if self._hole is not None:
            os.close(self._hole.fd)
            self._hole = None

    # --- the technique's task --------------------------------------------------------------------------------------

    async def _take_turns(
        self, action: moves.StartTechnique, kit: RoundKit, scope: trio.CancelScope, turns: _Turns
    ) -> None:
        """Run a technique once the one before has let go of the ports."""
        before, quiet = turns
        try:
            if before is not None:
                await before.wait()
            await self._run_technique(self._techniques[action.technique], action, kit, scope)
        finally:
            if kit.hole is not None:  # nobody wanted it, or it was lost on the way out of a cancelled technique
                os.close(kit.hole.fd)
            quiet.set()

    async def _run_technique(
        self, technique: Technique[Any], action: moves.StartTechnique, kit: RoundKit, scope: trio.CancelScope
    ) -> None:
        outcome: moves.Event | None = None
        hole: Hole | None = None
        with scope:
            try:
                hole = kit.keep(await self._halves(technique, action, kit))
                outcome = moves.Holed(hole.local, hole.remote)
            except BaseExceptionGroup as group:
                outcome = self._blame(technique, group)
                if outcome is None:
                    raise
            except Exception as error:  # noqa: BLE001 (foreign code; logged by _blame)
                outcome = self._blame(technique, error)
        if outcome is None or self._running is not scope:
            return
        self._running = None
        self._hole, kit.hole = hole or kit.hole, None
        self.feed(outcome)
        self._drop_hole()

    async def _halves(self, technique: Technique[Any], action: moves.StartTechnique, kit: RoundKit) -> Hole:
        offer = action.offer
        peer_ports = offer.ports if offer is not None else self._peer_ports
        if peer_ports is None:
            raise AssertionError("neither an offer nor the application names the peer's ports")
        facts = Facts(
            role=Role.INITIATOR if offer is None else Role.RESPONDER,
            peer=self._plan.peer,
            peer_ports=peer_ports,
            ttl=self._ttl(),
            packets_per_port=self._packets_per_port,
            packets=self._packets,
            reversed_roles=action.reversed_roles,
        )
        plan = technique.plan(facts)
        if isinstance(plan, Unsuitable):
            raise PunchError(plan.reason, plan.text)
        if offer is None:
            return await technique.initiate(plan, kit)
        return await technique.respond(plan, offer, kit)

    def _blame(self, technique: Technique[Any], error: BaseException) -> moves.Broke | None:
        """A technique's error as the machine's event; None where it is not the technique's to end."""
        if isinstance(error, BaseExceptionGroup):
            leaves = list(_leaves(error))
            punch = next((leaf for leaf in leaves if isinstance(leaf, PunchdError)), None)
            foreign = [leaf for leaf in leaves if not isinstance(leaf, Exception)]
            if any(not isinstance(leaf, trio.Cancelled) for leaf in foreign) or (foreign and punch is None):
                return None  # an interrupt, or a cancellation on its way out
            error = punch or leaves[0]
        if isinstance(error, PunchError):
            return moves.Broke(error.reason, str(error))
        if isinstance(error, PunchdError):
            return moves.Broke(Code.NETWORK, str(error))
        log.error("technique %s: internal error, attempt %s", technique.name, self._plan.nonce.hex(), exc_info=error)
        return moves.Broke(Code.INTERNAL, f"internal error, see the log for {self._plan.nonce.hex()}")

    def _emit(self, event: events.Event) -> None:
        if isinstance(event, events.Explained):
            self.machine.explain(event.text)
        self._emit_outside(event)


def _leaves(group: BaseExceptionGroup[BaseException]) -> list[BaseException]:
    found: list[BaseException] = []
    for error in group.exceptions:
        found.extend(_leaves(error) if isinstance(error, BaseExceptionGroup) else [error])
    return found
