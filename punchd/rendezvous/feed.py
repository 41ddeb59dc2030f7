"""Signals on their way to a client: as the answer of a long poll, or one by one over a WebSocket.

A signal is delivered at most once: what the kernel took is not sent again, though the client may have died meanwhile.
But what certainly did not get out goes back to the queue: the client left while its answer was made, or does not read.

The server speaks, the client listens: a message from it ends the conversation.
"""

from __future__ import annotations

import contextlib
import json

import trio

from punchd.errors import StoreError
from punchd.rendezvous import answers
from punchd.rendezvous.signals import Signal
from punchd.rendezvous.store import Ended, Store
from punchd.web.messages import Response
from punchd.web.websocket import WebSocket, WebSocketClosedError

WAIT_S = 60.0  # of a WebSocket for its next signals, and then again
RETURN_S = 1.0  # how long a store may take to have signals back
REPLACED = 4001  # close codes of our own (RFC 6455 §7.4.2)
GONE = 4004
_POLICY = 1008
_TRY_AGAIN = 1013


class Feed:
    """One long poll or one WebSocket of a client."""

    def __init__(self, store: Store, client_id: bytes) -> None:
        self._store = store
        self._client_id = client_id
        self._taken: list[Signal] = []  # and not yet written

    async def poll(self, wait_s: float) -> Response:
        """The signals that wait, or come within `wait_s`."""
        try:
            found = await self._store.take_signals(self._client_id, wait_s)
        except StoreError:
            return answers.unhealthy()
        if found is Ended.REPLACED:
            return answers.error(409, "REPLACED", "another request for the signals of this client took its place")
        if found is Ended.GONE:
            return answers.auth_failed()
        self._taken = found
        return answers.signals([(signal, await self._store.age(signal)) for signal in found])

    async def take_back(self) -> None:
        """What was taken did not get out: it waits for the next one who asks."""
        taken, self._taken = self._taken, []
        with trio.move_on_after(RETURN_S) as scope, contextlib.suppress(StoreError):
            scope.shield = True
            await self._store.return_signals(self._client_id, taken)

    async def stream(self, socket: WebSocket) -> None:
        """Send signals until the conversation ends."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_only_listen, socket)
            await self._send_all(socket)
            nursery.cancel_scope.cancel()

    async def _send_all(self, socket: WebSocket) -> None:
        while True:
            try:
                found = await self._store.take_signals(self._client_id, WAIT_S)
            except StoreError:
                return await socket.close(_TRY_AGAIN, "the store does not answer")
            if found is Ended.REPLACED:
                return await socket.close(REPLACED, "another took its place")
            if found is Ended.GONE:
                return await socket.close(GONE, "no such client")
            self._taken = found
            try:
                while self._taken:
                    signal = self._taken[0]
                    await socket.send(json.dumps(answers.signal(signal, await self._store.age(signal))))
                    await socket.drain()
                    del self._taken[0]
            except (WebSocketClosedError, trio.Cancelled):
                await self.take_back()
                raise


async def _only_listen(socket: WebSocket) -> None:
    await socket.receive()
    await socket.close(_POLICY, "expected no messages")
