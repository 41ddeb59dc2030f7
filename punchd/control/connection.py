"""One application's connection: its lines in order, its attempts side by side, its answers.

The shell around `lines`, `requests` and `answers`: it knows who is connected, which ids are in use and which ports are
kept, and turns requests into attempts. Everything that an application can do wrong ends in one `error` line; nothing
that it can do harms another connection.

Source: line protocol §3, §4, §6, §10, §13.1, §13.6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field

import trio

from punchd.attempt import moves
from punchd.attempt.port import LearningPort
from punchd.attempt.runner import Attempt
from punchd.attempt.trace import Recorder
from punchd.control.answers import Answer, Error, OkHello, OkProbe, Progress, Stage, format_answer
from punchd.control.fdpass import Outbox, SlowReaderError
from punchd.control.launch import code_of
from punchd.control.lines import VERBS, VERSION, LineSplitter
from punchd.control.quotas import Bucket
from punchd.control.requests import Cancel, Hello, Initiate, Probe, Request, Respond, parse_request
from punchd.control.state import DaemonState
from punchd.control.voice import AttemptVoice
from punchd.errors import Code, DeniedError, KernelError, ProtocolError, PunchError

READ_SIZE = 4096  # bytes
FAREWELL_S = 1.0  # how long a connection that is being closed may take to read its last answers

log = logging.getLogger(__name__)


@dataclass(slots=True)
class _Kept:
    """A probed port that waits for the attempt that names it."""

    port: LearningPort
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    released: trio.Event = field(default_factory=trio.Event)  # nobody reads the port any more


class Connection:
    """Serves one application until it goes, or misbehaves, or the daemon stops. Owns the socket."""

    def __init__(self, stream: trio.socket.SocketType, uid: int, state: DaemonState) -> None:
        self.uid = uid
        self._stream = stream
        self._state = state
        self._limits = state.config.limits
        self._outbox = Outbox(stream, max_bytes=self._limits.unread_bytes, max_wait_s=self._limits.unread_seconds)
        self._bucket = Bucket(self._limits.requests_per_second, self._limits.request_burst)
        self._attempts: dict[str, Attempt] = {}
        self._probes: dict[str, trio.CancelScope] = {}
        self._kept: dict[int, _Kept] = {}
        self._slots = 0  # attempts, probes and kept ports, and verdicts that were not yet read
        self._lines_seen = 0
        self._tasks: trio.Nursery
        self._leaving = trio.Event()

    async def run(self) -> None:
        """Serve until the end, whatever the application does; cancelling this drops everything at once."""
        try:
            async with trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._write)
                self._tasks.start_soon(self._leave)
                await self._read()
                self._feed_all(moves.Vanished())
                self._leaving.set()
        finally:
            self._feed_all(moves.Vanished())
            self._outbox.close()
            self._stream.close()

    def shut_down(self) -> None:
        """The daemon stops: every attempt ends with a verdict, then the connection closes."""
        self._feed_all(moves.ShutDown())
        for attempt_id, scope in self._probes.items():
            scope.cancel()
            self.answer(Error(attempt_id, Code.SHUTDOWN, "punchd is stopping"))
        self._leaving.set()

    # --- what an attempt's voice needs -----------------------------------------------------------------------------

    def answer(self, answer: Answer, fd: int | None = None, written: Callable[[], None] | None = None) -> None:
        self._outbox.put(format_answer(answer), fd, written)

    def forget(self, attempt_id: str) -> None:
        self._attempts.pop(attempt_id, None)

    def release_slot(self) -> None:
        self._slots -= 1
        self._state.quotas.end(self.uid)

    # --- tasks -----------------------------------------------------------------------------------------------------

    async def _write(self) -> None:
        try:
            await self._outbox.run()
        except SlowReaderError as error:
            log.warning("uid %d: connection dropped: %s", self.uid, error)
        except OSError as error:
            log.debug("uid %d: connection lost while writing: %s", self.uid, error)
        self._tasks.cancel_scope.cancel()

    async def _leave(self) -> None:
        await self._leaving.wait()
        await self._outbox.drain(FAREWELL_S)
        self._tasks.cancel_scope.cancel()

    async def _read(self) -> None:
        """Lines until the end of file, or until a line after which no border can be trusted."""
        splitter = LineSplitter()
        while True:
            try:
                data = await self._stream.recv(READ_SIZE)
            except OSError:
                return
            if not data:
                return
            for line in splitter.feed(data):
                if isinstance(line, ProtocolError):
                    self.answer(Error(None, line.code, str(line)))
                    return
                await self._pace()
                await self._take(line)

    async def _pace(self) -> None:
        now = trio.current_time()
        wait_s = max(self._bucket.take(now), self._state.quotas.request(self.uid, now))
        if wait_s > 0:
            await trio.sleep(wait_s)

    def _feed_all(self, event: moves.Event) -> None:
        for attempt in list(self._attempts.values()):
            attempt.feed(event)

    # --- requests --------------------------------------------------------------------------------------------------

    async def _take(self, line: bytes) -> None:
        self._lines_seen += 1
        try:
            request = parse_request(line, self._state.rules)
        except ProtocolError as error:
            self._complain(line, error)
            return
        try:
            await self._carry_out(request)
        except (DeniedError, KernelError, PunchError) as error:
            attempt_id = None if isinstance(request, Hello) else request.id
            self.answer(Error(attempt_id, code_of(error), str(error)))

    def _complain(self, line: bytes, error: ProtocolError) -> None:
        """A malformed line never ends a running attempt, nor looks as if it had (§13.6)."""
        attempt_id = error.attempt_id
        if attempt_id is None or error.code is Code.BAD_MESSAGE or not self._is_running(attempt_id):
            self.answer(Error(attempt_id, error.code, str(error)))
        elif line.startswith(b"respond|") and attempt_id in self._attempts:
            current = self._attempts[attempt_id].machine
            self.answer(
                Progress(attempt_id, max(current.round, 1), current.technique, Stage.IGNORED, error.code, str(error))
            )
        else:
            self.answer(Error(attempt_id, Code.DUPLICATE_ID, f"{attempt_id} is running; besides, {error}"))

    def _is_running(self, attempt_id: str) -> bool:
        return attempt_id in self._attempts or attempt_id in self._probes

    async def _carry_out(self, request: Request) -> None:
        match request:
            case Hello():
                self._greet(request)
            case Cancel():
                self._cancel(request)
            case Respond() if request.id in self._attempts:
                self._attempts[request.id].feed(moves.Arrived(request.token))
            case _ if self._is_running(request.id):
                raise DeniedError(Code.DUPLICATE_ID, f"{request.id} is running")
            case Probe():
                await self._begin_probe(request)
            case Initiate() | Respond():
                await self._begin_attempt(request)

    def _greet(self, request: Hello) -> None:
        if self._lines_seen > 1:
            self.answer(Error(None, Code.BAD_MESSAGE, "hello is for the first line only"))
            return
        names = tuple(self._state.registry.usable)
        self.answer(OkHello(min(request.version, VERSION), names, self._limits.attempts_per_connection, VERBS))

    def _cancel(self, request: Cancel) -> None:
        if request.id in self._attempts:
            self._attempts[request.id].feed(moves.Cancelled())
        elif request.id in self._probes:
            self._probes.pop(request.id).cancel()
            self.answer(Error(request.id, Code.CANCELLED, "cancelled by the application"))
        else:
            self.answer(Error(request.id, Code.UNKNOWN_ID, f"no attempt {request.id} is running"))

    def _take_slot(self) -> None:
        self._state.quotas.begin(self.uid, self._slots)
        self._slots += 1

    # --- attempts --------------------------------------------------------------------------------------------------

    async def _begin_attempt(self, request: Initiate | Respond) -> None:
        kept = await self._take_kept(request)
        voice = AttemptVoice(self, request.id, Recorder(self._state.config.trace))
        launcher = self._state.launcher
        with ExitStack() as undo:
            if kept is not None:
                undo.callback(kept.close)
            self._take_slot()
            undo.callback(self.release_slot)
            if isinstance(request, Initiate):
                attempt = await launcher.initiate(request, kept, voice, voice.recorder.emit)
            else:
                self._refuse_own(request.token.nonce)
                self._state.known.begin(request.token, trio.current_time())
                undo.callback(self._state.known.end, request.token.nonce, None, trio.current_time())
                attempt = await launcher.respond(request, kept, voice, voice.recorder.emit)
            undo.pop_all()
        self._attempts[request.id] = attempt
        self._tasks.start_soon(self._run_attempt, attempt, voice)

    def _refuse_own(self, nonce: bytes) -> None:
        """An application that hands an attempt its own offer talks to itself."""
        if any(attempt.nonce == nonce for attempt in self._attempts.values()):
            raise DeniedError(Code.DUPLICATE_ATTEMPT, "this offer belongs to an attempt of this connection")

    async def _run_attempt(self, attempt: Attempt, voice: AttemptVoice) -> None:
        try:
            await attempt.run()
        except Exception:
            log.exception("attempt %s: internal error", attempt.nonce.hex())
            if not attempt.has_ended:
                voice.ended(Code.INTERNAL, f"internal error, see the log for {attempt.nonce.hex()}")
        finally:
            if not attempt.machine.is_initiator:
                won = attempt.machine.round if voice.won else None
                self._state.known.end(attempt.nonce, won, trio.current_time())

    # --- probed ports ----------------------------------------------------------------------------------------------

    async def _begin_probe(self, request: Probe) -> None:
        self._take_slot()
        try:
            port = await self._state.launcher.open_port(request)
        except BaseException:
            self.release_slot()
            raise
        scope = self._probes[request.id] = trio.CancelScope()
        self._tasks.start_soon(self._probe, request, port, scope)

    async def _probe(self, request: Probe, port: LearningPort, scope: trio.CancelScope) -> None:
        """Ask what a port looks like, say so, and keep it for the attempt that will name it."""
        kept = _Kept(port)
        try:
            with scope:
                known = await port.learn()
            if scope.cancelled_caught:
                return
            del self._probes[request.id]
            lport = port.local.port
            self._kept[lport] = kept
            public = (known.address, known.ports(), known.behaviour)
            self.answer(OkProbe(request.id, request.protocol, *public, lport))
            with kept.scope, trio.move_on_after(self._limits.kept_port_seconds):
                await port.keep_alive()
        except PunchError as error:
            del self._probes[request.id]
            self.answer(Error(request.id, error.reason, str(error)))
        finally:
            kept.released.set()
            if self._kept.get(port.local.port) is kept:
                del self._kept[port.local.port]
            if not kept.scope.cancel_called:
                port.close()
            self.release_slot()

    async def _take_kept(self, request: Initiate | Respond) -> LearningPort | None:
        """The probed port that the request names; it is the caller's then."""
        version = request.ip.version if isinstance(request, Initiate) else None
        if version is None and isinstance(request, Respond) and request.token.card is not None:
            version = request.token.card.address.version
        kept = self._kept.get(request.options.lport)
        if kept is None or kept.port.local.ip.version != version:
            return None
        if request.options.local not in (None, kept.port.local.ip):
            return None
        del self._kept[request.options.lport]
        kept.scope.cancel()
        await kept.released.wait()
        return kept.port
