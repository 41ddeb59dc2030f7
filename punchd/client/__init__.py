"""What an application imports to use punchd: `punchd.client.blocking` or `punchd.client.trio_client`.

Both have a `Daemon` with the same methods; events, errors and values are shared and found here. A program behind a
NAT asks its daemon for a connection, carries a few short tokens to and from the other side over any channel it has
(a rendezvous server, a chat, a sheet of paper), and gets a connected socket:

    from punchd.client import AttemptError, Connected, Relay
    from punchd.client.blocking import Daemon

Nothing here needs a privilege. Names are loaded when they are first used, so that `import punchd.client` costs next to
nothing, and trio is imported only by `punchd.client.trio_client`.

session.py is the protocol without I/O, for a flavour of your own; examples/chat.c shows it without Python.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from punchd.client.errors import (
        AttemptError,
        ClientError,
        DaemonGoneError,
        DaemonProtocolError,
        DaemonUnreachableError,
        RequestRefusedError,
        UntrustedDaemonError,
    )
    from punchd.client.events import Connected, Event, Failed, Ignored, News, Relay, Trying
    from punchd.control.answers import OkHello, OkProbe
    from punchd.control.requests import Protocol
    from punchd.endpoint import Endpoint, PortSet
    from punchd.errors import Code, DecodeError, PunchdError

__all__ = [
    "Connected", "Event", "Failed", "Ignored", "News", "Relay", "Trying",
    "OkHello", "OkProbe", "Code", "Endpoint", "PortSet", "Protocol",
    "AttemptError", "ClientError", "DaemonGoneError", "DaemonProtocolError", "DaemonUnreachableError",
    "RequestRefusedError", "UntrustedDaemonError", "DecodeError", "PunchdError",
]  # fmt: skip

_HOMES = {
    "punchd.client.events": ("Connected", "Event", "Failed", "Ignored", "News", "Relay", "Trying"),
    "punchd.client.errors": (
        "AttemptError",
        "ClientError",
        "DaemonGoneError",
        "DaemonProtocolError",
        "DaemonUnreachableError",
        "RequestRefusedError",
        "UntrustedDaemonError",
    ),
    "punchd.control.answers": ("OkHello", "OkProbe"),
    "punchd.control.requests": ("Protocol",),
    "punchd.endpoint": ("Endpoint", "PortSet"),
    "punchd.errors": ("Code", "DecodeError", "PunchdError"),
}


def __getattr__(name: str) -> object:
    for home, names in _HOMES.items():
        if name in names:
            value: object = getattr(importlib.import_module(home), name)
            globals()[name] = value
            return value
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
