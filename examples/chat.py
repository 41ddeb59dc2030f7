#!/usr/bin/env python3
"""Chat with somebody behind another NAT, over a connection that punchd makes.

    chat.py --rendezvous HOST:PORT --name alice                    waits to be called
    chat.py --rendezvous HOST:PORT --name bob --call alice         calls

Lines of standard input go to the other side, what comes from there goes to standard output; news go to standard
error. The end of input says goodbye. Exit code 0 after a chat, 1 with one line of explanation if there was none.

Over UDP each line is one datagram: on a path that loses packets lines get lost, doubled or swapped, the goodbye too,
and a NAT forgets a connection that is silent for some 30 s. Nothing is encrypted and nobody is authenticated: a
real application adds both, for example with DTLS or Noise.
"""

from __future__ import annotations

import argparse
import os
import socket
import sys
from collections.abc import AsyncIterator
from functools import partial

import trio

from punchd.client import Connected, Event, Failed, Ignored, PunchdError
from punchd.client.trio_client import Daemon, TrioSocket

MAX_CHUNK = 1200  # bytes of one datagram: fits every path


class SideChannel:
    """A connection to examples/rendezvous.py, which says what the lines mean."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self._pending = b""

    async def receive(self, verb: str) -> list[str]:
        """The words of the next line with this verb. An `error` is raised; other lines are passed over.

        Passed over is `undelivered`, too: a peer that has its connection already needs no more tokens.
        """
        while True:
            while b"\n" not in self._pending:
                chunk = await self._stream.receive_some()
                if not chunk:
                    raise ConnectionError("the rendezvous server closed the connection")
                self._pending += chunk
            line, _, self._pending = self._pending.partition(b"\n")
            words = line.decode("ascii", "replace").split(" ")
            if words[0] == "error":
                raise ConnectionError(f"the rendezvous server says: {' '.join(words[1:])}")
            if words[0] == verb:
                return words[1:]

    async def tokens_from(self, peer: str) -> AsyncIterator[str]:
        while True:
            sender, _, token = await self.receive("from")
            if sender == peer:
                yield token

    async def send(self, *words: object) -> None:
        await self._stream.send_all(" ".join(map(str, words)).encode() + b"\n")


def tell(news: str) -> None:
    print(news, file=sys.stderr, flush=True)


def show(event: Event) -> None:
    code = f" {event.code}" if isinstance(event, Failed | Ignored) else ""
    tell(f"round {event.round} {event.technique}: {type(event).__name__.lower()}{code}")


async def connect(arguments: argparse.Namespace) -> Connected[TrioSocket]:
    """The whole use of punchd."""
    host, _, port = arguments.rendezvous.rpartition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream, Daemon.connect(arguments.socket) as daemon:
        side = SideChannel(stream)
        own = await daemon.probe("tcp" if arguments.techniques.startswith("tcp") else "udp")
        tell(f"own address: {own.ip} port {own.ports}")
        await side.send("register", arguments.name, own.ip, own.ports)
        await side.receive("registered")
        tell(f"registered as {arguments.name}")
        if arguments.call:
            peer = arguments.call
            await side.send("lookup", peer)
            _, ip, ports = await side.receive("found")
            starting = daemon.initiate(ip, ports, techniques=arguments.techniques, lport=own.lport)
        else:
            peer, ip, token = await side.receive("from")
            starting = daemon.respond(token, peer=ip, techniques=arguments.techniques, lport=own.lport)
        async with starting as attempt:
            return await attempt.connect(partial(side.send, "send", peer), side.tokens_from(peer), on_event=show)


async def chat(connected: Connected[TrioSocket]) -> None:
    """The socket is ours; rendezvous server and daemon are no longer needed."""
    is_udp = connected.protocol == "udp"
    hole = connected.socket
    send = hole.send if is_udp else trio.SocketStream(hole).send_all

    async def listen(scope: trio.CancelScope) -> None:
        while chunk := await hole.recv(MAX_CHUNK):
            os.write(1, chunk)
        scope.cancel()

    try:
        with hole:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(listen, nursery.cancel_scope)
                while chunk := await trio.to_thread.run_sync(os.read, 0, MAX_CHUNK, abandon_on_cancel=True):
                    await send(chunk)
                if is_udp:
                    await hole.send(b"")  # goodbye: an empty datagram reads like the end of a TCP connection
                else:
                    hole.shutdown(socket.SHUT_WR)
                nursery.cancel_scope.cancel()
    except* (ConnectionError, trio.BrokenResourceError):
        tell("the other side is gone without a goodbye")


async def main(arguments: argparse.Namespace) -> int:
    try:
        connected = await connect(arguments)
    except (PunchdError, OSError) as error:
        tell(f"chat: could not connect: {error}")
        return 1
    tell(f"connected by {connected.technique} to {connected.remote}")
    await chat(connected)
    return 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Chat with somebody behind another NAT.")
    parser.add_argument("--rendezvous", required=True, metavar="HOST:PORT", help="where examples/rendezvous.py runs")
    parser.add_argument("--name", required=True, help="the own name")
    parser.add_argument("--call", metavar="NAME", help="whom to call; without it, wait to be called")
    parser.add_argument("--socket", metavar="PATH", help="of punchd (default: as punchd.client finds it)")
    parser.add_argument("--techniques", default="udp", metavar="LIST", help="what to try, in order (default: udp)")
    sys.exit(trio.run(main, parser.parse_args()))
