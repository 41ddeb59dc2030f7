#!/usr/bin/env python3
"""Chat with somebody behind another NAT, over a connection that punchd makes.

    chat.py --rendezvous http://HOST:5025                  says its id, and waits to be called
    chat.py --rendezvous http://HOST:5025 --call ID        calls

Lines of standard input go to the other side, what comes from there goes to standard output; news go to standard
error. The end of input says goodbye. Exit code 0 after a chat, 1 with one line of explanation if there was none.

The rendezvous server (punchd-rendezvous) carries the first words. The caller sends `call ADDRESS PORTS`, where it can
be reached; the other side starts an attempt, and from then on each sends the other the tokens that its daemon gives
out.

Over UDP each line is one datagram: on a path that loses packets lines get lost, doubled or swapped, the goodbye too,
and a NAT forgets a connection that is silent for some 30 s. Nothing is encrypted and nobody is authenticated: a
real application adds both, for example with DTLS or Noise; the tool `punch` does it with TLS.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import re
import socket
import sys
from collections.abc import AsyncGenerator
from urllib.parse import urlsplit

import trio

from punchd.client import Connected, Event, Failed, Ignored, PunchdError
from punchd.client.trio_client import Daemon, TrioSocket
from punchd.endpoint import IPAddress
from punchd.rendezvous.client import PeerGoneError, Rendezvous

MAX_CHUNK = 1200  # bytes of one datagram: fits every path
CALL = "call "


def tell(news: str) -> None:
    print(news, file=sys.stderr, flush=True)


def show(event: Event) -> None:
    code = f" {event.code}" if isinstance(event, Failed | Ignored) else ""
    tell(f"round {event.round} {event.technique}: {type(event).__name__.lower()}{code}")


def client_id(text: str) -> bytes:
    if not re.fullmatch("[0-9a-f]{32}", text):
        raise argparse.ArgumentTypeError(f"expected the 32 hex digits that the other side shows, got {text!r}")
    return bytes.fromhex(text)


async def tokens_from(service: Rendezvous, peer: bytes) -> AsyncGenerator[str]:
    while True:
        signal = await service.receive()
        if signal.sender == peer and not signal.text.startswith(CALL):
            yield signal.text


async def next_call(service: Rendezvous) -> tuple[bytes, str, str]:
    """Who calls, from which address and ports."""
    while True:
        signal = await service.receive()
        words = signal.text.split(" ")
        if signal.text.startswith(CALL) and len(words) == 3:
            return signal.sender, words[1], words[2]


async def address_of(service: Rendezvous, peer: bytes, version: int) -> IPAddress:
    """Where the server sees somebody: the only address that a token of theirs may make us send packets to."""
    for seen in await service.look_up(peer) or ():
        if seen.endpoint.ip.version == version:
            return seen.endpoint.ip
    raise PunchdError(f"the rendezvous server knows no IPv{version} address of {peer.hex()}")


async def connect(arguments: argparse.Namespace) -> Connected[TrioSocket]:
    """The whole use of punchd."""
    is_tcp = arguments.techniques.startswith("tcp")
    udp = (urlsplit(arguments.rendezvous).hostname or "", arguments.pulse_port)
    async with Rendezvous.open(arguments.rendezvous, udp=udp) as service, Daemon.connect(arguments.socket) as daemon:
        own = await daemon.probe("tcp" if is_tcp else "udp")
        tell(f"own address: {own.ip} port {own.ports}")
        if arguments.call:
            peer = arguments.call
            await service.send(peer, f"{CALL}{own.ip} {own.ports}")
            tokens = tokens_from(service, peer)
            seen = await address_of(service, peer, own.ip.version)
            starting = daemon.respond(await anext(tokens), peer=seen, techniques=arguments.techniques, lport=own.lport)
        else:
            await service.mapped()  # from now on the server knows our address, too
            tell(f"waiting as {service.client_id.hex()}")
            peer, ip, ports = await next_call(service)
            tokens = tokens_from(service, peer)
            starting = daemon.initiate(ip, ports, techniques=arguments.techniques, lport=own.lport)

        async def relay(token: str) -> None:
            with contextlib.suppress(PeerGoneError):  # it has its connection already, and left
                await service.send(peer, token)

        async with starting as attempt, contextlib.aclosing(tokens):
            return await attempt.connect(relay, tokens, on_event=show)


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
    parser.add_argument("--rendezvous", required=True, metavar="URL", help="where punchd-rendezvous serves HTTP")
    parser.add_argument("--pulse-port", type=int, default=5024, metavar="PORT", help="and UDP (default: 5024)")
    parser.add_argument("--call", type=client_id, metavar="ID", help="whom to call; without it, wait to be called")
    parser.add_argument("--socket", metavar="PATH", help="of punchd (default: as punchd.client finds it)")
    parser.add_argument("--techniques", default="udp", metavar="LIST", help="what to try, in order (default: udp)")
    sys.exit(trio.run(main, parser.parse_args()))
