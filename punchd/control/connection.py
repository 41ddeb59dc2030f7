"""One application's connection: its lines in order, its attempts side by side, its answers.

The shell around `lines`, `requests` and `answers`: it knows who is connected, which ids are in use and which ports are
kept, and turns requests into attempts. Everything that an application can do wrong ends in one `error` line; nothing
that it can do harms another connection.

Source: line protocol §3, §4, §6, §10, §13.1, §13.6.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace

import trio

from punchd.attempt import moves
from punchd.attempt.runner import Attempt
from punchd.attempt.trace import Recorder
from punchd.control.answers import Answer, Error, OkHello, Progress, Stage, format_answer
from punchd.control.fdpass import Outbox, SlowReaderError
from punchd.control.incoming import Incoming, asks_for_socket
from punchd.control.launch import code_of
from punchd.control.lines import VERBS, VERSION
from punchd.control.policy import ALL, Rule
from punchd.control.probes import Probes
from punchd.control.quotas import Bucket
from punchd.control.requests import Cancel, Hello, Initiate, Probe, Protocol, Request, Respond, parse_request
from punchd.control.state import DaemonState
from punchd.control.voice import AttemptVoice
from punchd.errors import Code, DeniedError, KernelError, ProtocolError, PunchError
from punchd.kernel.closing import close_apart, close_unread, has_unread
from punchd.kernel.passed import PassedSocket

SETTLE_S = 1.0  # how long a request waits for the undoing of what ended before it
CLOSE_S = 1.0  # how long a descriptor that was not wanted may take to be closed
FAREWELL_S = 1.0  # how long a connection that is being closed may take to read its last answers

_STOPPING = "punchd is stopping"

log = logging.getLogger(__name__)


class Connection:
    """Serves one application until it goes, or misbehaves, or the daemon stops. Owns the socket."""

    def __init__(self, stream: trio.socket.SocketType, uid: int, state: DaemonState, rule: Rule = ALL) -> None:
        self.uid = uid
        self._rule = rule
        self._rules = state.rules if rule.private is None else replace(state.rules, allow_private=rule.private)
        self._stream = stream
        self._state = state
        self._limits = state.config.limits
        self._outbox = Outbox(stream, max_bytes=self._limits.unread_bytes, max_wait_s=self._limits.unread_seconds)
        self._bucket = Bucket(self._limits.requests_per_second, self._limits.request_burst)
        self._attempts: dict[str, Attempt] = {}
        self._alive: set[Attempt] = set()  # with those whose verdict is given and that are still being undone
        self._probes: Probes
        self._slots = 0  # attempts, probes and kept ports, and verdicts that were not yet read
        self._lines_seen = 0
        self._incoming = Incoming(stream)
        self._passed: int | None = None  # the descriptor that came with the line that is being taken
        self._tasks: trio.Nursery
        self._closers: trio.Nursery
        self._reading = trio.CancelScope()
        self._stopping = False
        self.was_heard = trio.Event()  # a line has come, or none will

    async def run(self) -> None:
        """Serve until the end, whatever the application does; cancelling this drops everything at once.

        The connection counts until the last descriptor that came through it is closed, however long the kernel takes.
        """
        async with trio.open_nursery() as self._closers:
            try:
                async with trio.open_nursery() as self._tasks:
                    self._probes = Probes(self, self._tasks, self._limits.kept_port_seconds)
                    self._tasks.start_soon(self._write)
                    with self._reading:
                        await self._read()
                    self._end_all()
                    await self._outbox.drain(FAREWELL_S)
                    self._tasks.cancel_scope.cancel()
            finally:
                self.was_heard.set()
                self._end_all()
                self._outbox.close()
                if has_unread(self._stream):
                    self._closers.start_soon(close_unread, self._stream)
                else:
                    self._stream.close()
                self._close_leftovers()

    def shut_down(self) -> None:
        """The daemon stops: every attempt ends with a verdict, then the connection closes."""
        self._stopping = True
        self._reading.cancel()

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

    async def _read(self) -> None:
        """Lines until the end of file, or until a line after which no border can be trusted.

        The connection itself counts as a line, so that coming and going is no way around the pace; who waits for that
        keeps one of the user's places.
        """
        await _rest(self._state.quotas.request(self.uid, trio.current_time()))
        with suppress(EOFError):
            while True:
                for line in await self._incoming.lines():
                    if isinstance(line, ProtocolError):
                        self._close_leftovers()  # at once: there may be hundreds
                        self.answer(Error(None, line.code, str(line)))
                        return
                    await self._pace()
                    await self._take(line)

    async def _pace(self) -> None:
        now = trio.current_time()
        await _rest(max(self._bucket.take(now), self._state.quotas.request(self.uid, now)))

    async def _pace_beginning(self) -> None:
        await _rest(self._state.quotas.beginning(self.uid, trio.current_time()))

    def _end_all(self) -> None:
        """No more requests: the application is gone, or the daemon goes. Everything that runs gets its verdict."""
        for attempt in list(self._attempts.values()):
            attempt.feed(moves.ShutDown() if self._stopping else moves.Vanished())
        code, text = (Code.SHUTDOWN, _STOPPING) if self._stopping else (Code.CANCELLED, "the application is gone")
        self._probes.end_all(code, text)

    # --- requests --------------------------------------------------------------------------------------------------

    async def _take(self, line: bytes) -> None:
        self._lines_seen += 1
        self.was_heard.set()
        self._passed = self._incoming.take() if asks_for_socket(line) else None
        try:
            await self._answer(line)
        finally:
            unwanted, self._passed = self._passed, None
            if unwanted is not None:
                await self._discard(unwanted)

    def _close_leftovers(self) -> None:
        if left := self._incoming.leftovers():
            self._closers.start_soon(close_apart, *left)

    async def _discard(self, fd: int) -> None:
        """Close an application's descriptor that nothing came of.

        Raises:
            EOFError: that takes too long; no more is read, so that one connection can have one such descriptor.
        """
        closed = trio.Event()

        async def close() -> None:
            await close_apart(fd)
            closed.set()

        self._closers.start_soon(close)
        with trio.move_on_after(CLOSE_S):
            await closed.wait()
        if not closed.is_set():
            self.answer(Error(None, Code.BAD_OPTION, "sock: the descriptor cannot be closed"))
            raise EOFError

    async def _answer(self, line: bytes) -> None:
        try:
            request = parse_request(line, self._rules)
        except ProtocolError as error:
            self._complain(line, error)
            return
        try:
            await self._carry_out(request)
        except (DeniedError, KernelError, PunchError) as error:
            self._refuse(request, code_of(error), str(error))
        except Exception:
            log.exception("uid %d: internal error in a request", self.uid)
            self._refuse(request, Code.INTERNAL, "internal error, see the log")
        except trio.Cancelled:
            if self._stopping:
                self._refuse(request, Code.SHUTDOWN, _STOPPING)
            raise

    def _refuse(self, request: Request, code: Code, text: str) -> None:
        self.answer(Error(None if isinstance(request, Hello) else request.id, code, text))

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
        permitted = self._rule.techniques
        names = tuple(name for name in self._state.registry.usable if permitted is None or name in permitted)
        self.answer(OkHello(min(request.version, VERSION), names, self._limits.attempts_per_connection, VERBS))

    def _cancel(self, request: Cancel) -> None:
        if request.id in self._attempts:
            self._attempts[request.id].feed(moves.Cancelled())
        elif request.id in self._probes:
            self._probes.end(request.id, Code.CANCELLED, "cancelled by the application")
        else:
            self.answer(Error(request.id, Code.UNKNOWN_ID, f"no attempt {request.id} is running"))

    def _take_slot(self) -> None:
        self._state.quotas.begin(self.uid, self._slots, self._rule, trio.current_time())
        self._slots += 1

    async def _settle(self) -> None:
        """Until what has its verdict has let go of its port and its nonce: the next request may name the same ones."""
        with trio.move_on_after(SETTLE_S):
            for attempt in [attempt for attempt in self._alive if attempt.has_ended]:
                await attempt.gone.wait()
            await self._probes.settle()

    # --- attempts --------------------------------------------------------------------------------------------------

    async def _begin_attempt(self, request: Initiate | Respond) -> None:
        await self._pace_beginning()
        await self._settle()
        passed = self._look_at_passed() if request.options.sock else None
        kept = await self._probes.take(request, None if passed is None else Protocol(passed.protocol))
        voice = AttemptVoice(self, request.id, Recorder(self._state.config.trace))
        launcher = self._state.launcher
        with ExitStack() as undo:
            if passed is not None:
                undo.callback(passed.restore)
            for port in kept:
                undo.callback(port.close)
            self._take_slot()
            undo.callback(self.release_slot)
            around = (kept, voice, voice.recorder.emit, voice.recorder.record)
            if isinstance(request, Initiate):
                attempt = await launcher.initiate(request, *around, passed=passed, rule=self._rule)
            else:
                self._refuse_own(request.token.nonce)
                self._state.known.begin(request.token, trio.current_time())
                undo.callback(self._state.known.end, request.token.nonce, None, trio.current_time())
                attempt = await launcher.respond(request, *around, passed=passed, rule=self._rule)
            undo.pop_all()
        self._attempts[request.id] = attempt
        self._alive.add(attempt)
        self._tasks.start_soon(self._run_attempt, attempt, voice, self._passed)
        self._passed = None

    def _look_at_passed(self) -> PassedSocket:
        if not self._state.config.accept_sockets:
            raise DeniedError(Code.NOT_PERMITTED, "sock: this daemon takes no sockets of applications (accept-sockets)")
        if self._passed is None:
            raise DeniedError(Code.BAD_OPTION, "sock: no descriptor came with this line")
        return PassedSocket(self._passed, self.uid)

    def _refuse_own(self, nonce: bytes) -> None:
        """An application that hands an attempt its own offer talks to itself."""
        if any(attempt.nonce == nonce for attempt in self._attempts.values()):
            raise DeniedError(Code.DUPLICATE_ATTEMPT, "this offer belongs to an attempt of this connection")

    async def _close_passed(self, fd: int, voice: AttemptVoice) -> None:
        """Not before the descriptor that goes back: closing the last one may take long, and must be done apart."""
        try:
            if voice.won:
                await voice.delivered.wait()
        finally:
            await close_apart(fd)

    async def _run_attempt(self, attempt: Attempt, voice: AttemptVoice, passed: int | None) -> None:
        try:
            await attempt.run()
        except Exception:
            log.exception("attempt %s: internal error", attempt.nonce.hex())
            if not voice.is_over:
                voice.ended(Code.INTERNAL, f"internal error, see the log for {attempt.nonce.hex()}")
        finally:
            if passed is not None:
                self._closers.start_soon(self._close_passed, passed, voice)
            self._alive.discard(attempt)
            if not attempt.machine.is_initiator:
                won = attempt.machine.round if voice.won else None
                self._state.known.end(attempt.nonce, won, trio.current_time())

    async def _begin_probe(self, request: Probe) -> None:
        await self._pace_beginning()
        await self._settle()
        self._take_slot()
        try:
            port = await self._state.launcher.open_port(request, self._rule)
        except BaseException:
            self.release_slot()
            raise
        self._probes.begin(request, port)


async def _rest(seconds: float) -> None:
    if seconds > 0:
        await trio.sleep(seconds)
