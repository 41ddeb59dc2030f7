"""The rendezvous server as a whole: HTTP, pulses, STUN and metrics around one store.

`open_sockets` blocks and belongs before the event loop; `serve` runs until it is told to stop: then HTTP takes its
leave (at most 2 s), and everything else ends with it.

What is logged: starting and stopping, and at info who was limited, at most once a minute and source. Requests are
logged at debug, with the sender's address and the route's name: a path holds ids, a query may, a header holds keys.

Source: rendezvous specification V-001, V-022, D-18, D-19.
"""

from __future__ import annotations

import contextlib
import logging
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from ipaddress import ip_address

import trio
from prometheus_client import CollectorRegistry

from punchd import knobs, systemd
from punchd.endpoint import Endpoint, IPAddress
from punchd.errors import ConfigError, StoreError
from punchd.redis import url as redis_url
from punchd.rendezvous import pulses, stun_server
from punchd.rendezvous.access import Deed
from punchd.rendezvous.aliases import Aliases
from punchd.rendezvous.api import Api
from punchd.rendezvous.clients import Clients
from punchd.rendezvous.memory import MemoryStore
from punchd.rendezvous.metrics import PREFIX, Counts, RendezvousCollector
from punchd.rendezvous.settings import MEMORY, Settings
from punchd.rendezvous.signals import Signals
from punchd.rendezvous.store import Store
from punchd.web import limits as web_limits
from punchd.web import listen
from punchd.web.messages import Answer, Handler, Request
from punchd.web.metrics import WebCollector, metrics_handler
from punchd.web.rate import Limiter, source_key
from punchd.web.server import WebServer

_BODY_BYTES = 1024  # of a request, or those of a signal if that is more
_NOTICES_PER_S = 1 / 60  # log lines about one limited source
_NOTICED_SOURCES = 1024
_ONLINE_S = 1.0  # how often the metrics ask how many clients are online

log = logging.getLogger("punchd.rendezvous")


@dataclass(slots=True)
class Sockets:
    """What the server listens on. Owns them: `close`."""

    http: list[socket.socket] = field(default_factory=list)
    udp: list[socket.socket] = field(default_factory=list)
    metrics: list[socket.socket] = field(default_factory=list)
    stun: stun_server.Listening = field(default_factory=stun_server.Listening)

    def close(self) -> None:
        for owned in (*self.http, *self.udp, *self.metrics):
            owned.close()
        self.stun.close()

    @property
    def places(self) -> str:
        """For a log: what is served where."""
        named = (("http", self.http), ("udp", self.udp), ("metrics", self.metrics))
        words = [f"{name} {Endpoint.from_sockaddr(one.getsockname())}" for name, ones in named for one in ones]
        return ", ".join([*words, *(f"stun {place.endpoint}" for place in self.stun.places)])


def open_sockets(settings: Settings) -> Sockets:
    """The sockets that the service manager passed, and those that are still missing.

    TCP sockets that were passed serve HTTP, UDP ones pulses; one named "metrics" serves those.

    Raises:
        ConfigError, KernelError: they cannot be had, or HTTP would be served in clear. Nothing stays open.
    """
    sockets = Sockets()
    with ExitStack() as until_all_are_there:
        until_all_are_there.callback(sockets.close)
        for name, passed in listen.activated().items():
            for one in passed:
                kind = "udp" if one.type == socket.SOCK_DGRAM else "metrics" if name == "metrics" else "http"
                getattr(sockets, kind).append(one)
        for one in sockets.http:
            if settings.tls_cert is None and not settings.insecure and not knobs.is_loopback(str(one.getsockname()[0])):
                raise ConfigError(
                    f"http {one.getsockname()[0]}, from the service manager: expected tls-cert or insecure"
                )
        for name, open_them in (("http", listen.tcp_listeners), ("udp", listen.udp_sockets)):
            if not getattr(sockets, name):
                getattr(sockets, name).extend(open_them(settings.listening(getattr(settings, name)), name))
        sockets.metrics = sockets.metrics or listen.tcp_listeners(settings.listening(settings.metrics), "metrics")
        sockets.stun = stun_server.listen(_stun_endpoints(settings))
        for one in sockets.udp:
            pulses.prepare(one)
        until_all_are_there.pop_all()
    return sockets


def open_store(settings: Settings) -> Store:
    """The store that the settings name.

    Raises:
        ConfigError: it cannot be had.
    """
    limits = settings.limits
    if settings.store != MEMORY:
        try:
            from punchd.rendezvous.redis_store import RedisStore  # a tenth of a second, and an extra
        except ModuleNotFoundError as error:
            raise ConfigError(f"store: expected the extra `redis`: pip install 'punchd[redis]' ({error})") from None
        place = redis_url.parse(settings.store, "store")
        return RedisStore(place, settings.timing.exact, settings.policy, limits)
    return MemoryStore(
        Clients(limits.clients, settings.timing.exact, settings.policy),
        Signals(limits.signal_queue, limits.signal_memory, float(limits.signal_seconds)),
        Aliases(limits.aliases_per_client),
    )


async def serve(
    settings: Settings,
    sockets: Sockets,
    store: Store,
    stop: trio.Event,
    *,
    certificate: listen.Certificate | None = None,
    unix_clock: Callable[[], float] = time.time,
) -> None:
    """Serve until `stop` is set. The sockets stay the caller's; STUN's are closed."""
    counts = Counts()
    limits = settings.limits
    notice = _Notice(counts)
    api = Api(store, settings, clock=trio.current_time, unix_clock=unix_clock, notice_limited=notice.limited)
    web = WebServer(
        _observed(api, counts),
        limits=web_limits.Limits(
            connections=limits.connections,
            connections_per_source=limits.connections_per_source,
            connects_per_second=limits.connects_per_second,
            body_bytes=max(_BODY_BYTES, limits.signal_bytes),
        ),
        tls=None if certificate is None else certificate.context,
        trusted=frozenset(ip_address(text) for text in settings.trusted_proxies),
        notice_shunned=notice.shunned,
    )
    unknown_replies = Limiter(limits.unknown_replies_per_second, limits.unknown_replies_per_second, limits.sources)
    online = _Online(store)
    registry = CollectorRegistry(auto_describe=False)
    registry.register(RendezvousCollector(counts, lambda: online.number))
    registry.register(WebCollector(web.counts, PREFIX))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(store.run)
        nursery.start_soon(online.follow)
        for one in sockets.udp:
            taking = pulses.PulseServer(
                one,
                store,
                unknown_replies,
                counts.pulses,
                most=limits.datagrams_per_second,
                notice_shunned=notice.shunned,
            )
            nursery.start_soon(taking.run)
        nursery.start_soon(_serve_stun, sockets.stun, counts)
        if sockets.metrics:
            nursery.start_soon(WebServer(metrics_handler(registry)).serve, sockets.metrics, stop)
        systemd.notify("READY=1")
        log.info("serving %s", sockets.places)
        await web.serve(sockets.http, stop)
        nursery.cancel_scope.cancel()


async def _serve_stun(listening: stun_server.Listening, counts: Counts) -> None:
    await stun_server.serve(listening, trio.Event(), counters=counts.stun)  # until cancelled


def _stun_endpoints(settings: Settings) -> Sequence[Endpoint]:
    endpoints: list[Endpoint] = []
    for place in settings.listening(settings.stun):
        if place.startswith("*:"):
            port = int(place[2:])
            endpoints.append(Endpoint(ip_address("0.0.0.0"), port))  # noqa: S104
            if _has_ipv6():
                endpoints.append(Endpoint(ip_address("::"), port))
            continue
        host, port = knobs.host_port(place, "stun")
        try:
            endpoints.append(Endpoint(ip_address(host), port))
        except ValueError:
            raise ConfigError(f"stun: {place}: expected an IP address: clients are told it") from None
    return endpoints


def _has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as sock:
            sock.bind(("::", 0))
    except OSError:
        return False
    return True


class _Online:
    """How many clients are online: prometheus-client asks without awaiting."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.number = 0

    async def follow(self) -> None:
        while True:
            with contextlib.suppress(StoreError):
                self.number = await self._store.count_online()
            await trio.sleep(_ONLINE_S)


class _Notice:
    """Counts who was limited, and logs it now and then."""

    def __init__(self, counts: Counts) -> None:
        self._counts = counts
        self._lines = Limiter(_NOTICES_PER_S, 1, _NOTICED_SOURCES)

    def limited(self, deed: Deed, ip: IPAddress) -> None:
        self._counts.limited[deed] += 1
        if not self._lines.allow(source_key(ip), trio.current_time()):
            log.info("limited: %s of %s", deed.value, ip)

    def shunned(self, source: bytes) -> None:
        """4, 6, 8 or 18 bytes, see `punchd.web.shun`."""
        ip = ip_address(source[:4] if len(source) < 8 else source[:16].ljust(16, b"\0"))
        if not self._lines.allow(source_key(ip), trio.current_time()):
            log.info("limited: %s sends or connects far too often, and is not heard for a while", ip)


def _observed(api: Api, counts: Counts) -> Handler:
    async def handle(request: Request) -> Answer:
        answer = await api(request)
        label = api.label(request)
        counts.requests[label] += 1
        if log.isEnabledFor(logging.DEBUG):
            status = getattr(answer, "status", type(answer).__name__)
            log.debug("%s: %s %s: %s", request.peer, request.method, label, status)
        return answer

    return handle
