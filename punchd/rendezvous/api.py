"""The HTTP side: which request gets which answer.

    POST /register                    a new client: id and key
    POST /verify, /logout             Bearer KEY
    GET  /peer/ID/udp                 Bearer; where a client is; also /peer/ID/udp/address, ?family=4|6
    GET  /peer/ID/udp/status          Bearer; how it is
    POST /peer/ID/signal              Bearer; a text for it
    GET  /signals?wait=SECONDS        Bearer; the texts for the caller: a long poll, or a WebSocket
    PUT  /alias/ADDRESS               Bearer; an address with its signature
    GET  /alias/ADDRESS               Bearer; which client it is
    GET  /health, /                   for machines, for people

What is wrong is found in this order: too many requests of the source (429), no such route (404), wrong method (405), no
good key (401), too many of the client's (429), a request that makes no sense (400, 413), no such target (404). HEAD is
answered as GET, OPTIONS with the methods there are. A body where none is expected is ignored.

Decides only: the store keeps, `punchd.web` reads and writes.

Source: seed 001, "Routes"; rendezvous specification §5, §8, V-008 to V-017, D-12 to D-17, D-25, D-26.
"""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, replace
from ipaddress import ip_address

from punchd import __version__
from punchd.endpoint import IPAddress
from punchd.errors import DecodeError, StoreError
from punchd.rendezvous import answers, identity, page
from punchd.rendezvous.access import Deed, Rates
from punchd.rendezvous.aliases import Bound
from punchd.rendezvous.feed import Feed
from punchd.rendezvous.identity import Binding
from punchd.rendezvous.settings import Settings
from punchd.rendezvous.signals import Posted
from punchd.rendezvous.store import Store
from punchd.rendezvous.views import View
from punchd.web.messages import Answer, LongPoll, Request, Response, Upgrade, json_response

BINDING_AGE_S = 300  # how far the time of a signature may be off: clocks are wrong by minutes more often than not

_KEY = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([0-9A-Fa-f]{64}) *")
_ID = re.compile(r"[0-9A-Fa-f]{32}")
_SECONDS = re.compile(r"[0-9]{1,6}")
_BODY_BYTES = 1024  # of what is not a signal
_FORWARDED_IP = re.compile(r"\[?([0-9A-Fa-f:.]+)\]?")


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a route: the words of its path that the route leaves open, and whom it comes from."""

    request: Request
    ip: IPAddress
    name: str = ""  # of the route's variable
    key: bytes = b""  # of the caller, with `client_id`, where the route asks for one
    client_id: bytes = b""


_Act = Callable[[Call], Awaitable[Answer]]


@dataclass(frozen=True, slots=True)
class _Route:
    label: str
    path: re.Pattern[str]
    acts: Mapping[str, _Act]
    needs_key: bool = True


class Api:
    """Answers requests.

    Args:
        clock: seconds that never go back.
        unix_clock: seconds since 1970.
        notice_limited: told of each deed that was refused, and whose it was.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        clock: Callable[[], float],
        unix_clock: Callable[[], float],
        notice_limited: Callable[[Deed, IPAddress], None] = lambda _deed, _ip: None,
    ) -> None:
        self._store = store
        self._limits = settings.limits
        self._proxies = frozenset(ip_address(text) for text in settings.trusted_proxies)
        self._rates = Rates(settings.limits)
        self._clock = clock
        self._unix_clock = unix_clock
        self._notice_limited = notice_limited
        routes: tuple[tuple[str, str, Mapping[str, _Act], bool], ...] = (
            ("register", r"/register()", {"POST": self._register}, False),
            ("verify", r"/verify()", {"POST": self._verify}, True),
            ("logout", r"/logout()", {"POST": self._logout}, True),
            ("udp", r"/peer/([^/]*)/udp(?:/address)?", {"GET": self._udp}, True),
            ("status", r"/peer/([^/]*)/udp/status", {"GET": self._status}, True),
            ("signal", r"/peer/([^/]*)/signal", {"POST": self._signal}, True),
            ("signals", r"/signals()", {"GET": self._signals}, True),
            ("alias", r"/alias/([^/]*)", {"GET": self._resolve, "PUT": self._bind}, True),
            ("health", r"/health()", {"GET": self._health}, False),
            ("page", r"/()", {"GET": self._page}, False),
        )
        self._routes = tuple(_Route(label, re.compile(path), acts, key) for label, path, acts, key in routes)

    async def __call__(self, request: Request) -> Answer:
        ip = self.source_ip(request)
        wait_s = self._rates.of_source(Deed.REQUEST, ip, self._clock())
        if wait_s:
            refusal = self._limited(Deed.REQUEST, ip, wait_s)
            # A proxy's connection is many people's.
            return replace(refusal, pause_s=max(1.0, wait_s)) if ip == request.peer.ip else refusal
        for route in self._routes:
            match = route.path.fullmatch(request.path)
            if match is not None:
                try:
                    return await self._take(route, Call(request, ip, match[1]))
                except StoreError:
                    return answers.unhealthy()
        return answers.not_found("there is nothing of that name here; GET / says what there is")

    def label(self, request: Request) -> str:
        """The route's name, for metrics and logs: paths hold ids."""
        return next((route.label for route in self._routes if route.path.fullmatch(request.path)), "none")

    def source_ip(self, request: Request) -> IPAddress:
        """Whom a request counts for: the sender, or whom a trusted proxy names as the last in X-Forwarded-For."""
        if request.peer.ip not in self._proxies:
            return request.peer.ip
        named = ",".join(request.headers.get_all("x-forwarded-for")).rpartition(",")[2].strip()
        match = _FORWARDED_IP.fullmatch(named)
        try:
            return request.peer.ip if match is None else ip_address(match[1])
        except ValueError:
            return request.peer.ip

    async def _take(self, route: _Route, call: Call) -> Answer:
        methods = [*route.acts, *(["HEAD"] if "GET" in route.acts else []), "OPTIONS"]
        allow = ("Allow", ", ".join(methods))
        method = call.request.method
        if method == "OPTIONS":
            return Response(204, (allow,))
        act = route.acts.get("GET" if method == "HEAD" else method)
        if act is None:
            return answers.error(405, "METHOD_NOT_ALLOWED", f"expected one of {', '.join(methods)}", (allow,))
        if not route.needs_key:
            return await act(call)
        match = _KEY.fullmatch(", ".join(call.request.headers.get_all("authorization")))
        key = b"" if match is None else bytes.fromhex(match[1])
        client_id = await self._store.authenticate(key) if key else None
        if client_id is None:
            return answers.auth_failed()
        return await act(Call(call.request, call.ip, call.name, key, client_id))

    def _limited(self, deed: Deed, ip: IPAddress, wait_s: float) -> Response:
        self._notice_limited(deed, ip)
        return answers.rate_limited(wait_s)

    def _too_often(self, deed: Deed, call: Call) -> Response | None:
        """The refusal, if the caller does something more often than it may."""
        if call.client_id:
            wait_s = self._rates.of_client(deed, call.client_id, self._clock())
        else:
            wait_s = self._rates.of_source(deed, call.ip, self._clock())
        return self._limited(deed, call.ip, wait_s) if wait_s else None

    def _now(self) -> int:
        return int(self._unix_clock())

    # --- the seed's routes -------------------------------------------------------------------------------------------

    async def _register(self, call: Call) -> Answer:
        refusal = self._too_often(Deed.REGISTER, call)
        if refusal is not None:
            return refusal
        new = await self._store.register(call.ip)
        if new is None:
            return answers.error(503, "FULL", "there is no room for another client", (("Retry-After", "60"),))
        return answers.registered(new, self._now())

    async def _verify(self, call: Call) -> Answer:
        refusal = self._too_often(Deed.VERIFY, call)
        if refusal is not None:
            return refusal
        client_id = await self._store.verify(call.key, call.ip)
        return answers.auth_failed() if client_id is None else answers.verified(client_id, self._now())

    async def _logout(self, call: Call) -> Answer:
        client_id = await self._store.logout(call.key)
        return answers.auth_failed() if client_id is None else answers.logged_out(client_id)

    async def _udp(self, call: Call) -> Answer:
        family = call.request.query.get("family")
        if family not in (None, "4", "6"):
            return answers.bad_request("family: expected 4 or 6")
        view = await self._look_up(call)
        if isinstance(view, Response):
            return view
        for seen in view.addresses:
            if family is None or seen.endpoint.ip.version == int(family):
                return answers.udp_address(view, seen, self._now())
        return answers.no_address()

    async def _status(self, call: Call) -> Answer:
        view = await self._look_up(call)
        return view if isinstance(view, Response) else answers.status(view, self._now())

    async def _look_up(self, call: Call) -> View | Response:
        refusal = self._too_often(Deed.LOOKUP, call)
        if refusal is not None:
            return refusal
        view = await self._store.lookup(bytes.fromhex(call.name)) if _ID.fullmatch(call.name) else None
        return answers.not_found("no client has this id") if view is None else view

    # --- signals -----------------------------------------------------------------------------------------------------

    async def _signal(self, call: Call) -> Answer:
        refusal = self._too_often(Deed.SIGNAL, call)
        if refusal is not None:
            return refusal
        body = call.request.body
        if len(body) > self._limits.signal_bytes:
            return answers.error(413, "TOO_LARGE", f"expected at most {self._limits.signal_bytes} bytes")
        try:
            data = body.decode()
        except UnicodeDecodeError:
            return answers.bad_request("expected text in UTF-8")
        if not data:
            return answers.bad_request("expected text in the body, got none")
        posted = Posted.UNKNOWN
        if _ID.fullmatch(call.name):
            posted = await self._store.post_signal(call.client_id, bytes.fromhex(call.name), data)
        match posted:
            case Posted.SENT:
                return answers.signal_taken(self._now())
            case Posted.UNKNOWN:
                return answers.not_found("no client has this id")
            case Posted.FULL:
                retry = (("Retry-After", "1"),)
                return answers.error(429, "QUEUE_FULL", "the client does not fetch its signals", retry)
            case Posted.EXHAUSTED:
                return answers.error(503, "FULL", "there is no room for more signals", (("Retry-After", "10"),))

    async def _signals(self, call: Call) -> Answer:
        if call.request.method == "HEAD":  # its answer has no body to carry them
            return answers.signals([])
        feed = Feed(self._store, call.client_id)
        if call.request.headers.get("upgrade", "").lower() == "websocket":
            return Upgrade(feed.stream, max_message=_BODY_BYTES, cancel_when_closed=True)
        wait = call.request.query.get("wait", "0")
        if not _SECONDS.fullmatch(wait):
            return answers.bad_request("wait: expected whole seconds")
        wait_s = min(int(wait), self._limits.wait_seconds)
        return LongPoll(lambda: feed.poll(wait_s), stopping=answers.signals([]), unsent=feed.take_back)

    # --- aliases -----------------------------------------------------------------------------------------------------

    async def _bind(self, call: Call) -> Answer:
        refusal = self._too_often(Deed.BIND, call)
        if refusal is not None:
            return refusal
        try:
            binding = read_binding(call.name, call.client_id, call.request.body)
        except DecodeError as error:
            return answers.bad_request(str(error))
        if abs(binding.timestamp - self._unix_clock()) > BINDING_AGE_S:
            return answers.error(409, "STALE", f"timestamp: expected {self._now()}, {BINDING_AGE_S} s more or less")
        if not binding.is_authentic():
            return answers.error(403, "BAD_SIGNATURE", "the key did not sign that the address is this client")
        match await self._store.bind_alias(binding):
            case Bound.BOUND:
                return answers.alias(binding, self._now())
            case Bound.UNKNOWN:
                return answers.auth_failed()
            case Bound.STALE:
                return answers.error(409, "STALE", "there is a newer binding of this address")
            case Bound.TOO_MANY:
                message = f"expected at most {self._limits.aliases_per_client} addresses of one client"
                return answers.error(409, "TOO_MANY", message)

    async def _resolve(self, call: Call) -> Answer:
        refusal = self._too_often(Deed.LOOKUP, call)
        if refusal is not None:
            return refusal
        try:
            binding = await self._store.resolve_alias(identity.read_address(call.name))
        except DecodeError:
            binding = None
        return (
            answers.not_found("no client has this address") if binding is None else answers.alias(binding, self._now())
        )

    # --- about the server --------------------------------------------------------------------------------------------

    async def _health(self, _call: Call) -> Answer:
        if not await self._store.is_healthy():
            return answers.unhealthy()
        return json_response({"ok": True, "version": __version__})

    async def _page(self, call: Call) -> Answer:
        return page.response(await self._store.count_online(), call.request)


def read_binding(address: str, client_id: bytes, body: bytes) -> Binding:
    """What a PUT claims: `{"public_key": HEX, "timestamp": SECONDS, "signature": HEX}`.

    Raises:
        DecodeError: it makes no sense, or the key is not that of the address.
    """
    print_of_key = identity.read_address(address)
    try:
        value = json.loads(body) if len(body) <= _BODY_BYTES else None
    except (ValueError, RecursionError):  # ValueError: not UTF-8, not JSON
        value = None
    if not isinstance(value, dict):
        raise DecodeError("expected a JSON object with public_key, timestamp and signature")
    timestamp = value.get("timestamp")
    if not isinstance(timestamp, int) or isinstance(timestamp, bool) or not 0 <= timestamp < 1 << 63:
        raise DecodeError("timestamp: expected whole seconds since 1970")
    public_key = _hex(value, "public_key", identity.PUBLIC_KEY_SIZE)
    signature = _hex(value, "signature", identity.SIGNATURE_SIZE)
    if identity.fingerprint(public_key) != print_of_key:
        raise DecodeError("public_key: this is not the key of the address")
    return Binding(client_id, public_key, timestamp, signature)


def _hex(value: dict[str, object], name: str, size: int) -> bytes:
    text = value.get(name)
    if not isinstance(text, str) or not re.fullmatch(f"[0-9A-Fa-f]{{{size * 2}}}", text):
        raise DecodeError(f"{name}: expected {size * 2} hexadecimal digits")
    return bytes.fromhex(text)
