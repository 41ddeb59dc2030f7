"""What both commands need before there is any call: key, daemon, rendezvous server."""

from __future__ import annotations

import ipaddress
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from punchd.errors import ConfigError
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.settings import Settings, server

if TYPE_CHECKING:
    from punchd.punch.holes import Puncher
    from punchd.rendezvous.client import Rendezvous

STUN_PORT = 3478  # where punchd-rendezvous has it


def puncher(settings: Settings, *, is_udp: bool) -> Puncher:
    """The daemon; the rendezvous host's STUN is asked if it knows none.

    Raises:
        ConfigError: no URL, or none that can be used.
    """
    from punchd.control.requests import Protocol  # a connector asks the rendezvous server first
    from punchd.punch.holes import Puncher

    protocol = Protocol.UDP if is_udp else Protocol.TCP
    spare = (server(settings).host, STUN_PORT)
    return Puncher(settings.socket, protocol, techniques=settings.techniques, stun=settings.stun, spare_stun=spare)


@asynccontextmanager
async def rendezvous(settings: Settings, news: News) -> AsyncIterator[Rendezvous]:
    """A registration at the rendezvous server.

    Raises:
        EndedError: no server, or it does not want us; also for what it refuses in the block.
        ConfigError: the URL or the authority's file are wrong.
    """
    from punchd.rendezvous.client import Rendezvous, RendezvousError  # a listener asks its daemon first

    where = server(settings)
    if not where.is_tls and not _is_loopback(where.host):
        news.warn(f"{where}: without https everybody on the way can read and change signals")
    try:
        async with Rendezvous.open(str(where), tls=authority(settings.ca) if settings.ca else None) as service:
            yield service
    except RendezvousError as error:
        raise EndedError(Exit.RENDEZVOUS, str(error)) from None


def authority(path: str) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=path)
    except ssl.SSLError:
        raise ConfigError(f"ca {path}: expected certificates in PEM") from None
    except OSError as error:
        raise ConfigError(f"ca {path}: {error.strerror}") from None


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
