"""What goes on in the background of a rendezvous client: pulses, verifications, long polls, changes of the network.

The keeper (keeper.py) decides about pulses. Whoever has news for it (a reply, a timer, a verification, netlink, a 401
to whatever was asked) tells it at once, and what it says is done at once; nothing is queued in between.

Signals are fetched by a long poll over a connection of its own, and wait here for the application; when too many wait,
no more are fetched. An answer that breaks off on its way is lost: signals are delivered at most once.
"""

from __future__ import annotations

import contextlib
import random
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import trio

from punchd.rendezvous import pulse
from punchd.rendezvous.client_answers import Membership, Signal
from punchd.rendezvous.client_errors import IdentityLostError, RendezvousError, UnreachableError
from punchd.rendezvous.client_pulses import PulsePort
from punchd.rendezvous.client_requests import Requests, server
from punchd.rendezvous.keeper import Action, Event, Keeper, Timing
from punchd.rendezvous.network_watch import NetworkWatch
from punchd.web.client_http import CONNECT_S, HttpClient
from punchd.web.client_url import Url

if TYPE_CHECKING:
    import ssl

POLL_S = 25  # of a long poll; many a proxy forgets connections that are silent for a minute
INBOX = 64  # signals that the application has not received; then no more are fetched, and the server keeps them
FIRST_PAUSE_S = 0.25  # between long polls that fail or bring nothing at once; doubled
MOST_PAUSE_S = 8.0
LOG_OUT_S = 1.0  # how long leaving may take

_EVENTS = {
    pulse.Code.ACCEPTED: Event.ACCEPTED,
    pulse.Code.VERIFY: Event.MUST_VERIFY,
    pulse.Code.COOKIE: Event.COOKIE,
    pulse.Code.UNKNOWN: Event.UNKNOWN,
}


class Session:
    """One client's state and tasks.

    Args:
        udp: host and port for the pulses.
        is_signed: whether they are signed.

    Attributes:
        name: of the server, as errors begin.
        client_id: the present id, or the one that was lost.
        requests: the server's routes.

    Resource handling: owns connections and sockets until `end`.
    """

    def __init__(
        self, url: Url, udp: tuple[str, int], tls: ssl.SSLContext | None, timing: Timing, *, is_signed: bool
    ) -> None:
        where = server(url)
        self.name = str(where)
        self.client_id = b""
        self._http = HttpClient(where, tls)
        self._poll_http = HttpClient(where, tls)
        self.requests = Requests(where, self._http)
        self._polls = Requests(where, self._poll_http)
        self._keeper = Keeper(timing)
        self._pulses = PulsePort(*udp, self._on_reply)
        self._watch = NetworkWatch()
        self._nursery: trio.Nursery | None = None  # None: not open
        self._me: Membership | None = None  # None: lost
        self._is_signed = is_signed
        self._cookie = pulse.NO_COOKIE
        self._signed_ms = 0  # of the last pulse
        self._server_s = 0.0  # what to add to trio's clock for the server's Unix time
        self._is_heard = False  # a pulse from the present socket was accepted
        self._inbox: deque[Signal] = deque()
        self._poll_failure: RendezvousError | None = None
        self._news = trio.lowlevel.ParkingLot()  # something changed: look again
        self._mended = trio.lowlevel.ParkingLot()  # there is a way to the server, maybe again
        self._rescheduled = trio.Event()

    # --- for calls ---------------------------------------------------------------------------------------------------

    @property
    def is_lost(self) -> bool:
        """Whether there is no identity.

        Raises:
            trio.ClosedResourceError: after the end.
        """
        if self._nursery is None:
            raise trio.ClosedResourceError("the block of Rendezvous.open was left")
        return self._me is None

    @contextmanager
    def identity(self) -> Iterator[Membership]:
        """Who we are. A call inside that finds out that we are not any more ends it for everybody.

        Raises:
            IdentityLostError: it is lost.
            trio.ClosedResourceError: after the end.
        """
        me = self._me
        if self.is_lost or me is None:
            raise IdentityLostError(f"{self.name}: expected to be known there, but it has forgotten this client")
        try:
            yield me
        except IdentityLostError:
            self._reject(me)
            raise

    def unix_s(self) -> int:
        """The server's time of day. Our own may be wrong, and would be refused in signatures."""
        return int(trio.current_time() + self._server_s)

    def set_clock(self, unix_s: int) -> None:
        """The server just said what time it is."""
        self._server_s = unix_s - trio.current_time()

    async def wait_heard(self) -> int:
        """Wait until the server has accepted a pulse from the present network; over which version of IP."""
        while True:
            with self.identity():
                if self._is_heard:
                    return self._pulses.server.ip.version
                await self._news.park()

    async def receive(self) -> Signal:
        """See `Rendezvous.receive`."""
        await trio.lowlevel.checkpoint()
        while not self._inbox:
            with self.identity():
                if self._poll_failure is not None:
                    raise self._poll_failure
                await self._news.park()
        signal = self._inbox.popleft()
        self._news.unpark_all()  # there is room
        return signal

    # --- from the beginning to the end -------------------------------------------------------------------------------

    async def start(self, nursery: trio.Nursery) -> None:
        """Register, and run in `nursery`.

        Raises:
            UnreachableError, InsecureError, NotRendezvousError, RefusedError: could not register.
        """
        try:
            with trio.fail_after(CONNECT_S):
                await self._pulses.resolve()
        except (OSError, trio.TooSlowError) as error:
            reason = getattr(error, "strerror", None) or "no answer"
            raise UnreachableError(f"{self.name}: the name {self._pulses.host} cannot be resolved: {reason}") from None
        self._nursery = nursery
        await self.register(patience_s=0.0)
        for task in (self._pulses.read, self._run_timer, self._watch_network, self._poll):
            nursery.start_soon(task)

    async def register(self, patience_s: float) -> None:
        """Become a new client; tried again for so long."""
        me, timestamp = await self.requests.register(patience_s=patience_s)
        self._me, self.client_id = me, me.client_id
        self._cookie, self._signed_ms = pulse.NO_COOKIE, 0
        self.set_clock(timestamp)
        self._tell(Event.REGISTERED)

    async def end(self) -> None:
        """Log out, and close everything; the tasks have ended. Those who wait hear that it is closed."""
        me, self._me, self._nursery = self._me, None, None
        self._news.unpark_all()
        try:
            if me is not None:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + LOG_OUT_S):
                    await self.requests.log_out(me.key)
        except RendezvousError:
            pass  # then it forgets us by itself
        finally:
            for owned in (self._http, self._poll_http, self._pulses, self._watch):
                owned.close()

    # --- pulses ------------------------------------------------------------------------------------------------------

    def _tell(self, event: Event) -> None:
        """Tell the keeper, and do what it says."""
        if event is Event.ACCEPTED:
            self._is_heard = True
            self._mended.unpark_all()
        for action in self._keeper.handle(event, trio.current_time()):
            match action:
                case Action.PULSE:
                    self._pulse()
                case Action.VERIFY:
                    self._start_soon_verify()
                case Action.RECONNECT:
                    self._is_heard = False
                    self._pulses.reconnect()
                    self._http.drop()
                    self._poll_http.drop()
                case Action.ADVANCE:
                    self._is_heard = False
                    self._pulses.reconnect(to_next=True)
                    if self._nursery is not None:
                        self._nursery.start_soon(self._resolve_again)
                case Action.LOSE:
                    self._me = None
                    self._is_heard = False
                    self._poll_http.drop()
        self._news.unpark_all()
        self._rescheduled.set()

    def _on_reply(self, reply: pulse.Reply) -> None:
        if reply.cookie is not None:
            self._cookie = reply.cookie
        self._tell(_EVENTS[reply.code])

    def _pulse(self) -> None:
        me = self._me
        if me is None:
            return
        if not self._is_signed:
            self._pulses.send(me.key)
            return
        self._signed_ms = max(self._signed_ms + 1, int((trio.current_time() + self._server_s) * 1000))
        self._pulses.send(pulse.sign(me.key, me.client_id, self._signed_ms, self._cookie))

    async def _run_timer(self) -> None:
        while True:
            self._rescheduled = trio.Event()
            with trio.move_on_at(self._keeper.next_timeout):
                await self._rescheduled.wait()
                continue
            self._tell(Event.MOVED if self._pulses.has_moved() else Event.TIMER)

    async def _watch_network(self) -> None:
        while True:
            await self._watch.change()
            if self._pulses.has_moved():
                self._tell(Event.MOVED)

    async def _resolve_again(self) -> None:
        with contextlib.suppress(OSError):
            await self._pulses.resolve()

    def _start_soon_verify(self) -> None:
        if self._me is not None and self._nursery is not None:
            self._nursery.start_soon(self._verify, self._me)

    async def _verify(self, me: Membership) -> None:
        try:
            timestamp = await self.requests.verify(me.key)
        except IdentityLostError:
            self._reject(me)
        except RendezvousError:
            if me is self._me:
                self._tell(Event.UNVERIFIED)
        else:
            if me is self._me:
                self.set_clock(timestamp)
                self._tell(Event.VERIFIED)

    def _reject(self, me: Membership) -> None:
        if me is self._me:
            self._tell(Event.REJECTED)

    # --- signals -----------------------------------------------------------------------------------------------------

    async def _poll(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            me = self._me
            if me is None or len(self._inbox) >= INBOX:
                await self._news.park()
                continue
            asked_at = trio.current_time()
            try:
                found = await self._polls.signals(me.key, POLL_S)
            except IdentityLostError:
                self._reject(me)
                continue
            except RendezvousError as error:
                # Silence passes; anything else is worth telling whoever waits for signals, though it may pass, too.
                self._poll_failure = None if isinstance(error, UnreachableError) else error
                is_good = False
            else:
                self._poll_failure = None
                self._inbox.extend(found)
                is_good = bool(found) or trio.current_time() - asked_at > FIRST_PAUSE_S
            self._news.unpark_all()
            if is_good:
                pause_s = FIRST_PAUSE_S
                continue
            with trio.move_on_after(random.uniform(pause_s / 2, pause_s)):  # noqa: S311 (no secret)
                await self._mended.park()
            pause_s = min(2 * pause_s, MOST_PAUSE_S)
