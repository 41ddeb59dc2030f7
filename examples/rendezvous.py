#!/usr/bin/env python3
"""A naive rendezvous server: the side channel of examples/chat.py and examples/chat.c.

    rendezvous.py [--host ADDRESS] [--port NUMBER]

Naive on purpose: no authentication (whoever comes first has a name), no TLS (whoever listens on the way reads the
tokens and could answer them), nothing is kept for those who are away. Use it to try punchd out; the real one comes
as punchd-rendezvous.

One TCP connection per client, lines of at most 500 bytes:

    client: register NAME IP PORTS      server: registered NAME      the own public address, as `probe` told it
    client: lookup NAME                 server: found NAME IP PORTS
    client: send NAME TEXT              server, to NAME: from SENDER IP TEXT     the sender's name and address
    whatever cannot be done             server: undelivered NAME     after a `send`, when NAME is away or does not read
                                                error TEXT
"""

from __future__ import annotations

import argparse
import re
from collections.abc import AsyncGenerator
from contextlib import aclosing
from functools import partial

import trio

MAX_LINE = 500  # bytes; the longest token has 200
MAX_CLIENTS = 100
MAX_QUEUED = 16  # lines for one client that does not read; more are refused
NAME = re.compile(r"[A-Za-z0-9_-]{1,32}")


class Client:
    """One connection: its name and address once registered, and the lines on their way to it."""

    def __init__(self) -> None:
        self.name = ""
        self.address = ""
        self.outgoing, self.to_send = trio.open_memory_channel[str](MAX_QUEUED)

    def tell(self, line: str) -> bool:
        """Queue a line; False when too many are waiting already."""
        try:
            self.outgoing.send_nowait(line)
        except trio.WouldBlock:
            return False
        return True


def answer(clients: dict[str, Client], client: Client, line: str) -> str | None:
    """What the server says to one line of a client; None where it says nothing."""
    match line.split(" ", 2):
        case ["register", name, address] if NAME.fullmatch(name) and len(address.split(" ")) == 2:
            if clients.get(name, client) is not client:
                return f"error the name {name} is taken"
            clients.pop(client.name, None)
            client.name, client.address = name, address
            clients[name] = client
            return f"registered {name}"
        case ["lookup", name] if name in clients:
            return f"found {name} {clients[name].address}"
        case ["send", name, text] if name in clients and client.name:
            ip = client.address.split(" ")[0]
            return None if clients[name].tell(f"from {client.name} {ip} {text}") else f"undelivered {name}"
        case ["send", name, _] if client.name:
            return f"undelivered {name}"
        case ["lookup", name] if NAME.fullmatch(name):
            return f"error nobody is called {name}"
        case _:
            return "error expected register NAME IP PORTS, then lookup NAME or send NAME TEXT"


async def lines_of(stream: trio.SocketStream) -> AsyncGenerator[str, None]:
    """The lines of a client, until it goes away or sends one that is too long."""
    pending = b""
    async for chunk in stream:
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            yield line[:MAX_LINE].decode("ascii", "replace")
        if len(pending) > MAX_LINE:
            return


async def write(client: Client, stream: trio.SocketStream) -> None:
    async for line in client.to_send:
        await stream.send_all(line.encode() + b"\n")


async def serve(clients: dict[str, Client], places: trio.Semaphore, stream: trio.SocketStream) -> None:
    """One client from its first line to its last. What happens to it must not disturb the others."""
    client = Client()
    try:
        places.acquire_nowait()
    except trio.WouldBlock:
        return await stream.aclose()
    try:
        async with stream, trio.open_nursery() as nursery, aclosing(lines_of(stream)) as lines:
            nursery.start_soon(write, client, stream)
            async for line in lines:
                if (said := answer(clients, client, line)) is not None:
                    await client.outgoing.send(said)
            nursery.cancel_scope.cancel()
    except* trio.BrokenResourceError:
        pass  # gone without a goodbye
    finally:
        places.release()
        if clients.get(client.name) is client:
            del clients[client.name]


async def main(host: str, port: int) -> None:
    clients: dict[str, Client] = {}
    listeners = await trio.open_tcp_listeners(port, host=host)
    print(f"listening on {host} port {listeners[0].socket.getsockname()[1]}", flush=True)
    await trio.serve_listeners(partial(serve, clients, trio.Semaphore(MAX_CLIENTS)), listeners)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="A naive rendezvous server, to try punchd out.")
    parser.add_argument("--host", default="0.0.0.0", help="address to listen on")  # noqa: S104 (a server for others)
    parser.add_argument("--port", type=int, default=5026, help="TCP port, 0 = any (default: 5026)")
    arguments = parser.parse_args()
    trio.run(main, arguments.host, arguments.port)
