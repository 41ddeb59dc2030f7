"""The daemon's event loop, from trio's start to a stop.

All that it needs is imported with this module, before privileges are dropped: where punchd lies may be for root's
eyes only, as a checkout in somebody's home is.
"""

from __future__ import annotations

import logging
import signal
import socket

import trio

from punchd import systemd
from punchd.config import Config
from punchd.control.launch import Launcher
from punchd.control.policy import Policy
from punchd.control.quotas import Quotas
from punchd.control.registry import Registry
from punchd.control.requests import Rules
from punchd.control.server import Server
from punchd.control.state import DaemonState
from punchd.kernel.firewall import Firewall
from punchd.kernel.route_changes import RouteChanges
from punchd.kernel.routes import Routes
from punchd.nat.low_ttl import LowTtls
from punchd.nat.servers import StunServers

STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger("punchd")


def run(
    chosen: Config,
    registry: Registry,
    firewall: Firewall,
    users: tuple[Policy, frozenset[int] | None],
    sockets: list[socket.socket],
) -> None:
    """Serve until a signal. Capabilities have to be dropped before: they belong to threads, and trio makes some."""
    trio.run(_serve, chosen, registry, firewall, users, sockets)


async def _serve(
    chosen: Config,
    registry: Registry,
    firewall: Firewall,
    users: tuple[Policy, frozenset[int] | None],
    sockets: list[socket.socket],
) -> None:
    stop = trio.Event()
    with Routes() as routes, RouteChanges() as changes:
        low_ttls = None if chosen.ttl_was_named else LowTtls(changes.happened)
        state = DaemonState(
            config=chosen,
            registry=registry,
            rules=Rules(registry.names, chosen.allow_private),
            launcher=Launcher(chosen, registry, routes, StunServers(chosen.stun), low_ttls=low_ttls, firewall=firewall),
            quotas=Quotas(chosen.limits),
            policy=users[0],
        )
        async with trio.open_nursery() as nursery:
            await nursery.start(_stop_on_signal, stop)  # READY means that a signal is heard, too
            nursery.start_soon(systemd.heartbeat)
            if low_ttls is not None:
                nursery.start_soon(low_ttls.run)
            systemd.notify("READY=1")
            places = ", ".join(str(item.getsockname()) for item in sockets)
            log.info("serving %s with %s", places, ", ".join(registry.usable))
            await Server(state, users[1]).run(sockets, stop)
            nursery.cancel_scope.cancel()


async def _stop_on_signal(stop: trio.Event, task_status: trio.TaskStatus[None]) -> None:
    """The first signal asks every attempt to end with a verdict; the second one ends the process as it is."""
    with trio.open_signal_receiver(*STOPPING) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPPING)
        task_status.started()
        async for number in signals:
            log.info("stopping on %s", signal.Signals(number).name)
            systemd.notify("STOPPING=1")
            stop.set()
            break
    await trio.sleep_forever()
