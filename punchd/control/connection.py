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
from punchd.attempt.runner import Attempt
from punchd.attempt.trace import Recorder
from punchd.control.answers import Answer, Error, OkHello, OkProbe, Progress, Stage, format_answer
from punchd.control.fdpass import Outbox, SlowReaderError
from punchd.control.launch import KeptPort, code_of
from punchd.control.lines import VERBS, VERSION, LineSplitter
from punchd.control.quotas import Bucket
from punchd.control.requests import Cancel, Hello, Initiate, Probe, Protocol, Request, Respond, parse_request
from punchd.control.state import DaemonState
from punchd.control.voice import AttemptVoice
from punchd.endpoint import Endpoint
from punchd.errors import Code, DeniedError, KernelError, ProtocolError, PunchError

READ_SIZE = 4096  # bytes
SETTLE_S = 1.0  # how long a request waits for the undoing of what ended before it
FAREWELL_S = 1.0  # how long a connection that is being closed may take to read its last answers

_STOPPING = "punchd is stopping"

log = logging.getLogger(__name__)


@dataclass(slots=True, eq=False)
class _Probed:
    """A port that is being asked about, and then waits for the attempt that names it."""

    port: KeptPort
    asking: trio.CancelScope = field(default_factory=trio.CancelScope)
    keeping: trio.CancelScope = field(default_factory=trio.CancelScope)  # cancelled: the port is somebody else's now
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
        self._alive: set[Attempt] = set()  # with those whose verdict is given and that are still being undone
        self._probes: dict[str, _Probed] = {}
        self._kept: dict[tuple[Protocol, Endpoint], _Probed] = {}
        self._ending: set[_Probed] = set()  # cancelled, and not yet closed
        self._slots = 0  # attempts, probes and kept ports, and verdicts that were not yet read
        self._lines_seen = 0
        self._tasks: trio.Nursery
        self._reading = trio.CancelScope()
        self._stopping = False

    async def run(self) -> None:
        """Serve until the end, whatever the application does; cancelling this drops everything at once."""
        try:
            async with trio.open_nursery() as self._tasks:
                self._tasks.start_soon(self._write)
                with self._reading:
                    await self._read()
                self._end_all()
                await self._outbox.drain(FAREWELL_S)
                self._tasks.cancel_scope.cancel()
        finally:
            self._end_all()
            self._outbox.close()
            self._stream.close()

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

    def _end_all(self) -> None:
        """No more requests: the application is gone, or the daemon goes. Everything that runs gets its verdict."""
        for attempt in list(self._attempts.values()):
            attempt.feed(moves.ShutDown() if self._stopping else moves.Vanished())
        code, text = (Code.SHUTDOWN, _STOPPING) if self._stopping else (Code.CANCELLED, "the application is gone")
        for attempt_id in list(self._probes):
            self._end_probe(attempt_id, code, text)

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
        names = tuple(self._state.registry.usable)
        self.answer(OkHello(min(request.version, VERSION), names, self._limits.attempts_per_connection, VERBS))

    def _cancel(self, request: Cancel) -> None:
        if request.id in self._attempts:
            self._attempts[request.id].feed(moves.Cancelled())
        elif request.id in self._probes:
            self._end_probe(request.id, Code.CANCELLED, "cancelled by the application")
        else:
            self.answer(Error(request.id, Code.UNKNOWN_ID, f"no attempt {request.id} is running"))

    def _take_slot(self) -> None:
        self._state.quotas.begin(self.uid, self._slots)
        self._slots += 1

    async def _settle(self) -> None:
        """Until what has its verdict has let go of its port and its nonce: the next request may name the same ones."""
        with trio.move_on_after(SETTLE_S):
            for attempt in [attempt for attempt in self._alive if attempt.has_ended]:
                await attempt.gone.wait()
            for probed in list(self._ending):
                await probed.released.wait()

    # --- attempts --------------------------------------------------------------------------------------------------

    async def _begin_attempt(self, request: Initiate | Respond) -> None:
        await self._settle()
        kept = await self._take_kept(request)
        voice = AttemptVoice(self, request.id, Recorder(self._state.config.trace))
        launcher = self._state.launcher
        with ExitStack() as undo:
            for port in kept:
                undo.callback(port.close)
            self._take_slot()
            undo.callback(self.release_slot)
            if isinstance(request, Initiate):
                attempt = await launcher.initiate(request, kept, voice, voice.recorder.emit, voice.recorder.record)
            else:
                self._refuse_own(request.token.nonce)
                self._state.known.begin(request.token, trio.current_time())
                undo.callback(self._state.known.end, request.token.nonce, None, trio.current_time())
                attempt = await launcher.respond(request, kept, voice, voice.recorder.emit, voice.recorder.record)
            undo.pop_all()
        self._attempts[request.id] = attempt
        self._alive.add(attempt)
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
            if not voice.is_over:
                voice.ended(Code.INTERNAL, f"internal error, see the log for {attempt.nonce.hex()}")
        finally:
            self._alive.discard(attempt)
            if not attempt.machine.is_initiator:
                won = attempt.machine.round if voice.won else None
                self._state.known.end(attempt.nonce, won, trio.current_time())

    # --- probed ports ----------------------------------------------------------------------------------------------

    async def _begin_probe(self, request: Probe) -> None:
        await self._settle()
        self._take_slot()
        try:
            port = await self._state.launcher.open_port(request)
        except BaseException:
            self.release_slot()
            raise
        probed = self._probes[request.id] = _Probed(port)
        self._tasks.start_soon(self._probe, request, probed)

    def _end_probe(self, attempt_id: str, code: Code, text: str) -> None:
        probed = self._probes.pop(attempt_id)
        probed.asking.cancel()
        self._ending.add(probed)
        self.answer(Error(attempt_id, code, text))

    async def _probe(self, request: Probe, probed: _Probed) -> None:
        """Ask what a port looks like, say so, and keep it for the attempt that will name it."""
        port = probed.port
        failure: PunchError | None = None
        try:
            with probed.asking:
                try:
                    known = await port.learn()
                except PunchError as error:
                    failure = error
            if self._probes.get(request.id) is not probed:
                return  # it was cancelled, maybe in the very moment of its success, and that was answered
            del self._probes[request.id]
            if failure is not None:
                self.answer(Error(request.id, failure.reason, str(failure)))
                return
            self._kept[request.protocol, port.local] = probed
            public = (known.address, known.ports(), known.behaviour)
            self.answer(OkProbe(request.id, request.protocol, *public, port.local.port))
            with probed.keeping, trio.move_on_after(self._limits.kept_port_seconds):
                await port.keep_alive()
        finally:
            self._kept.pop((request.protocol, port.local), None)
            self._ending.discard(probed)
            if not probed.keeping.cancel_called:
                port.close()
            self.release_slot()
            probed.released.set()

    async def _take_kept(self, request: Initiate | Respond) -> list[KeptPort]:
        """The probed ports that the request names, at most one of each protocol; they are the caller's then."""
        if isinstance(request, Initiate):
            version = request.ip.version
        elif request.token.card is not None:
            version = request.token.card.address.version
        else:
            return []
        options = request.options
        wanted = (options.lport, version)
        fitting: dict[Protocol, tuple[Protocol, Endpoint]] = {}
        for protocol, at in self._kept:
            if (at.port, at.ip.version) == wanted and options.local in (None, at.ip):
                fitting.setdefault(protocol, (protocol, at))
        taken = [self._kept.pop(key) for key in fitting.values()]
        for probed in taken:
            probed.keeping.cancel()
        try:
            for probed in taken:
                await probed.released.wait()
        except trio.Cancelled:
            for probed in taken:
                probed.port.close()
            raise
        return [probed.port for probed in taken]
