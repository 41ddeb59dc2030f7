"""The ports that one connection has probed: being asked about, kept for the attempt that names them, let go of.

Source: line protocol §13.1, §13.12.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol as Interface

import trio

from punchd.control.answers import Answer, Error, OkProbe
from punchd.control.launch import KeptPort
from punchd.control.requests import Initiate, Probe, Protocol, Respond
from punchd.endpoint import Endpoint
from punchd.errors import Code, PunchError


class Line(Interface):
    """The connection, as far as its probes are concerned."""

    def answer(self, answer: Answer, fd: int | None = None, written: Callable[[], None] | None = None) -> None: ...

    def release_slot(self) -> None:
        """One probe less counts against the quotas."""


@dataclass(slots=True, eq=False)
class _Probed:
    """A port that is being asked about, and then waits for the attempt that names it."""

    port: KeptPort
    asking: trio.CancelScope = field(default_factory=trio.CancelScope)
    keeping: trio.CancelScope = field(default_factory=trio.CancelScope)  # cancelled: the port is somebody else's now
    released: trio.Event = field(default_factory=trio.Event)  # nobody reads the port any more


class Probes:
    """Owns the ports until an attempt takes them.

    Args:
        line: whose they are.
        tasks: the connection's; a port lives no longer than these.
        keep_s: how long a port is kept.
    """

    def __init__(self, line: Line, tasks: trio.Nursery, keep_s: float) -> None:
        self._line = line
        self._tasks = tasks
        self._keep_s = keep_s
        self._asking: dict[str, _Probed] = {}
        self._kept: dict[tuple[Protocol, Endpoint], _Probed] = {}
        self._ending: set[_Probed] = set()  # cancelled, and not yet closed

    def __contains__(self, attempt_id: str) -> bool:
        return attempt_id in self._asking

    def begin(self, request: Probe, port: KeptPort) -> None:
        """Ask about a port; it is ours now, and so is the slot that it counts as."""
        probed = self._asking[request.id] = _Probed(port)
        self._tasks.start_soon(self._probe, request, probed)

    def end(self, attempt_id: str, code: Code, text: str) -> None:
        """Give up asking, and say so."""
        probed = self._asking.pop(attempt_id)
        probed.asking.cancel()
        self._ending.add(probed)
        self._line.answer(Error(attempt_id, code, text))

    def end_all(self, code: Code, text: str) -> None:
        for attempt_id in list(self._asking):
            self.end(attempt_id, code, text)

    async def settle(self) -> None:
        """Until what was given up has let go of its port."""
        for probed in list(self._ending):
            await probed.released.wait()

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
            if self._asking.get(request.id) is not probed:
                return  # it was cancelled, maybe in the very moment of its success, and that was answered
            del self._asking[request.id]
            if failure is not None:
                self._line.answer(Error(request.id, failure.reason, str(failure)))
                return
            self._kept[request.protocol, port.local] = probed
            public = (known.address, known.ports(), known.behaviour)
            self._line.answer(OkProbe(request.id, request.protocol, *public, port.local.port))
            with probed.keeping, trio.move_on_after(self._keep_s):
                await port.keep_alive()
        finally:
            self._kept.pop((request.protocol, port.local), None)
            self._ending.discard(probed)
            if not probed.keeping.cancel_called:
                port.close()
            self._line.release_slot()
            probed.released.set()

    async def take(self, request: Initiate | Respond, passed: Protocol | None) -> list[KeptPort]:
        """The kept ports that the request names, at most one of each protocol; they are the caller's then.

        A UDP socket that the application passes in is its own port; one for TCP goes where the probed one was.
        """
        if passed is Protocol.UDP:
            return []
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
            if (at.port, at.ip.version) == wanted and options.local in (None, at.ip) and passed in (None, protocol):
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
