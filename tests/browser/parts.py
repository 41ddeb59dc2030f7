"""A session in windows, and a peer without a window."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from websockets.exceptions import ConnectionClosed
from websockets.sync.client import ClientConnection, connect

from tests.browser.chromium import Window
from tests.browser.serving import Site
from tests.unit.broker.schema import check_server_message


def produce(window: Window, name: str, streams: str = "cam-wide") -> dict[str, str]:
    """Create a session on the page that is open; the peers' links, by stream."""
    window.fill("Name of the session", name)
    window.fill("Streams", streams)
    window.press("Create session")
    window.wait_for("Links for the peers")
    return {stream: window.value(f"Link for {stream}") for stream in streams.split(", ")}


def join(window: Window, port: int) -> None:
    """Register by hand."""
    window.fill("Local UDP port", str(port))
    window.press("Register")


def token_of(link: str) -> str:
    return link.partition("#t=")[2]


@contextmanager
def raw_peers(broker: Site, session: str, token: str, *ports: int) -> Iterator[list[ClientConnection]]:
    """Peers that are registered, over plain WebSockets."""
    with contextlib.ExitStack() as stack:
        peers = []
        for port in ports:
            url = f"ws://127.0.0.1:{broker.port}/api/ws/{session}?t={token}"
            peer = stack.enter_context(connect(url, close_timeout=1))
            say(peer, "register", port=port)
            hear(peer, "session")
            peers.append(peer)
        yield peers


def say(peer: ClientConnection, kind: str, **members: Any) -> None:
    peer.send(json.dumps({"type": kind, **members}))


def hear(peer: ClientConnection, kind: str) -> dict[str, Any]:
    """The next message of a kind; those before it are lost."""
    with contextlib.suppress(ConnectionClosed):
        while True:
            members = check_server_message(str(peer.recv(timeout=30)))
            if members["type"] == kind:
                return members
    raise AssertionError(f"closed before a {kind} came")
