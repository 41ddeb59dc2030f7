"""The broker as a whole: HTTP, WebSockets and metrics around one store.

`open_sockets` blocks and belongs before the event loop; `Broker.serve` runs until it is told to stop. Then health says
503 and nothing new is begun, for as long as `drain-seconds`; after that WebSockets hear why and are closed with 1011,
and HTTP takes its leave in at most 2 s, and so does the store, if it is shared.

What is logged, §10: the access log with method, route, status, time and size, never a path or a query; names of
sessions at debug; addresses only by `punchd.security`, for who was refused or limited. No token, passphrase, secret,
`meta` or message, at any level.

Source: broker specification §8 to §10.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address
from math import inf

import trio
from prometheus_client import CollectorRegistry

from punchd import systemd
from punchd.broker.access import Access, Notice
from punchd.broker.agenda import Agenda
from punchd.broker.api import Api
from punchd.broker.clock import Clock
from punchd.broker.metrics import PREFIX, BrokerCollector, Counts
from punchd.broker.secret import Secret
from punchd.broker.sessions import Sessions
from punchd.broker.settings import MEMORY, Settings, check_plain
from punchd.broker.sockets import Sockets
from punchd.broker.store import Store
from punchd.broker.turnstile import Turnstile, Verifier
from punchd.broker.windows import LocalRates, Rates
from punchd.endpoint import Endpoint
from punchd.errors import ConfigError, StoreError
from punchd.redis import url as redis_url
from punchd.web import limits as web_limits
from punchd.web import listen
from punchd.web.messages import Answer, Handler, Request, Response
from punchd.web.metrics import WebCollector, metrics_handler
from punchd.web.server import WebServer

_FINISH_S = 2.0  # for a store that others share to hear of the end
_BODY_BYTES = 65_536  # that the shell reads, so that the API may say 413 after 429

log = logging.getLogger("punchd.broker")
access_log = logging.getLogger("punchd.access")


@dataclass(slots=True)
class Listening:
    """What the server listens on. Owns the sockets: `close`."""

    http: list[socket.socket] = field(default_factory=list)
    metrics: list[socket.socket] = field(default_factory=list)

    def close(self) -> None:
        for owned in (*self.http, *self.metrics):
            owned.close()

    @property
    def places(self) -> str:
        """For a log: what is served where."""
        named = (("http", self.http), ("metrics", self.metrics))
        return ", ".join(f"{name} {Endpoint.from_sockaddr(one.getsockname())}" for name, ones in named for one in ones)


def open_sockets(settings: Settings) -> Listening:
    """The sockets that the service manager passed, and those that are still missing.

    Those that were passed serve the API; one named "metrics" serves those.

    Raises:
        ConfigError, KernelError: they cannot be had, or would serve in clear. Nothing stays open.
    """
    found = Listening()
    with ExitStack() as until_all_are_there:
        until_all_are_there.callback(found.close)
        for name, passed in listen.activated().items():
            (found.metrics if name == "metrics" else found.http).extend(passed)
        check_plain(settings, [str(one.getsockname()[0]) for one in found.http])
        found.http = found.http or listen.tcp_listeners(settings.listen, "listen")
        found.metrics = found.metrics or listen.tcp_listeners(settings.metrics, "metrics")
        until_all_are_there.pop_all()
    return found


class Broker:
    """A server. To be made inside the event loop.

    Args:
        wall: Unix seconds.
        verify: in place of Turnstile.
    """

    def __init__(
        self,
        settings: Settings,
        secret: Secret,
        *,
        certificate: listen.Certificate | None = None,
        wall: Callable[[], float] = time.time,
        verify: Verifier | None = None,
    ) -> None:
        limits = settings.limits
        self._drain_s = limits.drain_seconds
        self._agenda, self.counts = Agenda(), Counts()
        clock = Clock(wall)
        self.sessions, rates = _open_store(settings, secret, clock, self._agenda, self.counts)
        self.sockets = Sockets(self.sessions, limits, clock, self._agenda, self.counts)
        notice = Notice(settings.log_addresses, clock)
        access = Access(self.sessions, secret, rates, clock, counts=self.counts, notice=notice)
        if verify is None and settings.turnstile_secret is not None:
            verify = Turnstile(settings.turnstile_secret)
        self.api = Api(self.sessions, self.sockets, access, settings, clock, verify=verify)
        self.web = WebServer(
            _observed(self.api, self.counts),
            limits=web_limits.Limits(
                connections=limits.connections,
                connections_per_source=limits.connections_per_source,
                connects_per_second=limits.connects_per_second,
                body_bytes=_BODY_BYTES,
                ping_s=inf,  # `connections.py` has the protocol's own times
            ),
            tls=None if certificate is None else certificate.context,
            problem=self.api.problem,
            trusted=frozenset(ip_address(text) for text in settings.trusted_proxies),
            notice_shunned=notice.shunned,
        )

    async def serve(self, listening: Listening, stop: trio.Event) -> None:
        """Serve until `stop` is set. The sockets stay the caller's."""
        registry = CollectorRegistry(auto_describe=False)
        registry.register(BrokerCollector(self.counts, lambda: len(self.sessions)))
        registry.register(WebCollector(self.web.counts, PREFIX))
        web_stop = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._agenda.run)
            nursery.start_soon(self.sessions.run)
            if listening.metrics:
                nursery.start_soon(WebServer(metrics_handler(registry)).serve, listening.metrics, web_stop)
            nursery.start_soon(self._drain, stop, web_stop)
            systemd.notify("READY=1")
            log.info("serving %s", listening.places)
            await self.web.serve(listening.http, web_stop)
            with trio.move_on_after(_FINISH_S), contextlib.suppress(StoreError):
                await self.sessions.finish()
            nursery.cancel_scope.cancel()

    async def _drain(self, stop: trio.Event, web_stop: trio.Event) -> None:
        await stop.wait()
        self.api.is_draining = True
        await trio.sleep(self._drain_s)
        self.sockets.stop()
        web_stop.set()


def check_store(settings: Settings) -> None:
    """Whether the store that the settings name can be had.

    Raises:
        ConfigError: it takes what is not installed.
    """
    if settings.store != MEMORY:
        try:
            import punchd.broker.redis_sessions  # noqa: F401 (a tenth of a second, and an extra)
        except ModuleNotFoundError as error:
            raise ConfigError(f"store: expected the extra `redis`: pip install 'punchd[redis]' ({error})") from None


def _open_store(
    settings: Settings, secret: Secret, clock: Clock, agenda: Agenda, counts: Counts
) -> tuple[Store, Rates]:
    if settings.store == MEMORY:
        return Sessions(settings, secret, clock, agenda, counts), LocalRates(settings.limits)
    from punchd.broker.redis_rates import RedisRates
    from punchd.broker.redis_sessions import RedisSessions

    place = redis_url.parse(settings.store, "store")
    shared = RedisSessions(place, settings, secret, clock=clock, agenda=agenda, counts=counts)
    return shared, RedisRates(shared.instance, shared.changes, settings.limits)


def _observed(api: Api, counts: Counts) -> Handler:
    async def handle(request: Request) -> Answer:
        begun = trio.current_time()
        answer = await api(request)
        label = api.label(request)
        counts.requests[label] += 1
        status, size = (answer.status, len(answer.body)) if isinstance(answer, Response) else (101, 0)
        took_ms = (trio.current_time() - begun) * 1000
        access_log.info("%s %s %d, %.1f ms, %d bytes", request.method, label, status, took_ms, size)
        return answer

    return handle
