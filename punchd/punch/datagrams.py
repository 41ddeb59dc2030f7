"""A talk over UDP: what is read is sent, each chunk a datagram, and what comes is written.

Nothing is encrypted, repeated or put in order. Empty datagrams keep the NATs' mappings. The end of the input cannot be
told by a datagram that may get lost, and any datagram could be somebody's data; so it goes as a `bye` through the
rendezvous server. If that is lost, too, silence ends the talk.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress

import trio

from punchd.punch.messages import Bye, Message
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.stdio import Stdio

MAX_DATAGRAM = 1200  # bytes; fits every path (RFC 8085 §3.2, and what QUIC relies on)
KEEP_S = 15.0  # between empty datagrams; many a NAT forgets after 30 s
SILENCE_S = 60.0
LINGER_S = 0.5  # for datagrams that a `bye` has overtaken
_RECEIVE_SIZE = 65_535

Post = Callable[[Message], Awaitable[object]]


class Talk:
    """One talk. `take` hears the call's later signals.

    Args:
        post: sends a signal of the call.
    """

    def __init__(self, sock: trio.socket.SocketType, stdio: Stdio, post: Post) -> None:
        self._socket = sock
        self._stdio = stdio
        self._post = post
        self._heard_at = trio.current_time()
        self._peer_ended = trio.Event()
        self._own_ended = trio.Event()
        self._is_cut = False
        self._is_writing = False

    def take(self, message: Message) -> None:
        if isinstance(message, Bye):
            self._is_cut = self._is_cut or message.is_cut
            self._peer_ended.set()

    async def run(self) -> None:
        """Talk until both sides have said that they have nothing more to say. Closes the socket.

        Raises:
            EndedError: silence, or nobody takes what we write.
        """
        failures: list[EndedError] = []
        is_over = False
        try:
            with self._socket:
                async with trio.open_nursery() as nursery:

                    async def watch(task: Callable[[], Awaitable[None]]) -> None:
                        try:
                            await task()
                        except EndedError as error:
                            failures.append(error)
                            nursery.cancel_scope.cancel()

                    for task in (self._send, self._receive, self._keep, self._watch_silence):
                        nursery.start_soon(watch, task)
                    await self._end()
                    nursery.cancel_scope.cancel()
            is_over = True
        finally:
            if not is_over:
                with trio.CancelScope(shield=True, deadline=trio.current_time() + 1.0):
                    await self._say(Bye(is_cut=True))
        if failures:
            raise failures[0]

    async def _end(self) -> None:
        await self._peer_ended.wait()
        await trio.sleep(LINGER_S)
        await self._stdio.send_eof()
        if not self._is_cut:
            await self._own_ended.wait()

    async def _send(self) -> None:
        try:
            while chunk := await self._stdio.receive_some(MAX_DATAGRAM):
                await self._datagram(chunk)
        except OSError as error:
            raise EndedError(Exit.BROKEN, f"reading failed: {error}") from None
        await self._say(Bye())
        self._own_ended.set()

    async def _receive(self) -> None:
        while True:
            try:
                datagram = await self._socket.recv(_RECEIVE_SIZE)
            except OSError:  # an ICMP error, which anybody can forge; silence tells
                await trio.sleep(0.05)
                continue
            self._is_writing = True
            try:
                if datagram:
                    await self._stdio.send_all(datagram)
            except OSError as error:
                raise EndedError(Exit.BROKEN, f"nobody takes what comes through it: {error}") from None
            self._is_writing, self._heard_at = False, trio.current_time()

    async def _keep(self) -> None:
        while True:
            await self._datagram(b"")
            await trio.sleep(KEEP_S)

    async def _watch_silence(self) -> None:
        since, last = -1.0, self._last_sign()
        while since != last:
            await trio.sleep_until(last + SILENCE_S)
            since, last = last, self._last_sign()
        raise EndedError(Exit.BROKEN, f"nothing was heard for {SILENCE_S:.0f} s")

    def _last_sign(self) -> float:
        """While somebody has our output stopped, nothing is read: that is no silence of the other side's."""
        return trio.current_time() if self._is_writing else self._heard_at

    async def _datagram(self, data: bytes) -> None:
        with suppress(OSError):  # lost, as datagrams may be
            await self._socket.send(data)

    async def _say(self, message: Message) -> None:
        await self._post(message)
