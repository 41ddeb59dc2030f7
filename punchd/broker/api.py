"""The HTTP side: which request gets which answer.

    GET    /api/health                  whether the server serves
    POST   /api/session                 a new session
    GET    /api/session/NAME            any token of it; how it is
    DELETE /api/session/NAME            admin; close it
    POST   /api/session/NAME/token      admin; another token for a peer
    DELETE /api/session/NAME/token      admin; make one worthless
    GET    /api/session/NAME/connect    any token; what to type into a tool
    GET    /api/ws/NAME?t=TOKEN         any token; the WebSocket
    GET    /spec/openapi.json, /spec/punch-messages.schema.json
    GET    /                            the page to create a session
    GET    /s/NAME                      the page of one; its token is in the address's fragment
    GET    /s/NAME/qr                   that address as a QR code, with a token if the request has one
    GET    /page/FILE                   what the pages are made of

What is wrong is found in this order: too many requests of the source (429), no such route (404), wrong method (405),
the token (401, 404, 403), the body (413, 415, 400), the thing itself. HEAD is answered as GET, OPTIONS with the methods
there are. A session is created in the order of §6.2.2.

Decides only: the store keeps, `sockets.py` talks, `punchd.web` reads and writes.

Source: seed 000 §5, §6.1; broker specification §6.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from ipaddress import ip_address
from typing import Any

from punchd.broker import answers, connect, creation, openapi, strict_json, tokens
from punchd.broker.access import Access, bearer, source_ip
from punchd.broker.answers import Dress, HttpCode
from punchd.broker.clock import Clock
from punchd.broker.messages import Direction
from punchd.broker.names import MAX_PORT, MAX_TTL_S, MIN_LOCAL_PORT, MIN_TTL_S, is_name
from punchd.broker.page import WebPage, qr
from punchd.broker.settings import Settings
from punchd.broker.sockets import CLOSE_CODES, MAX_FRAME_BYTES, Sockets
from punchd.broker.store import Match, NotCreated, Store
from punchd.broker.tokens import Grant, LimitError, Role, TokenError
from punchd.broker.turnstile import Verdict, Verifier
from punchd.broker.windows import Deed
from punchd.endpoint import IPAddress
from punchd.errors import DecodeError, StoreError
from punchd.web.messages import Answer, Request, Response, Upgrade, json_response
from punchd.web.rate import source_key

MAX_BODY_BYTES = 16_384  # §6.1
_TURNSTILE_S = 5  # Retry-After when its service is away, C-39
_HEALTH = "/api/health"
_PORT = re.compile(r"[0-9]{1,5}")
_ADMIN = Grant("", Role.ADMIN, None, 0)  # of routes that take no token


@dataclass(frozen=True, slots=True)
class Call:
    """A request to a route: whom it comes from, and what its token says where the route asks for one."""

    request: Request = field(repr=False)
    ip: IPAddress = field(repr=False)
    name: str = ""
    grant: Grant = _ADMIN


@dataclass(frozen=True, slots=True)
class _Act:
    do: Callable[[Call], Awaitable[Answer]]
    deed: Deed = Deed.REQUEST
    needs_token: bool = False
    admin_only: bool = False


@dataclass(frozen=True, slots=True)
class Route:
    """A path. `label` is its template, for logs, metrics and the OpenAPI document."""

    label: str
    path: re.Pattern[str]
    acts: Mapping[str, _Act]

    @property
    def methods(self) -> tuple[str, ...]:
        """That are answered."""
        return (*self.acts, *(("HEAD",) if "GET" in self.acts else ()), "OPTIONS")


class Api:
    """Answers requests. `is_draining` is set when the server is about to stop."""

    def __init__(
        self,
        store: Store,
        sockets: Sockets,
        access: Access,
        settings: Settings,
        clock: Clock,
        *,
        verify: Verifier | None = None,
    ) -> None:
        self.is_draining = False
        self._store = store
        self._sockets = sockets
        self._access = access
        self._settings = settings
        self._clock = clock
        self._verify = verify
        self._dress = Dress(settings)
        self._page = WebPage(settings)
        self._proxies = frozenset(ip_address(text) for text in settings.trusted_proxies)
        any_token, admin = partial(_Act, needs_token=True), partial(_Act, needs_token=True, admin_only=True)
        table: tuple[tuple[str, Mapping[str, _Act]], ...] = (
            (_HEALTH, {"GET": _Act(self._health)}),
            ("/api/session", {"POST": _Act(self._create, Deed.CREATE)}),
            ("/api/session/{name}", {"GET": any_token(self._view), "DELETE": admin(self._close)}),
            ("/api/session/{name}/token", {"POST": admin(self._mint), "DELETE": admin(self._revoke)}),
            ("/api/session/{name}/connect", {"GET": any_token(self._connect)}),
            ("/api/ws/{name}", {"GET": _Act(self._open, Deed.UPGRADE)}),
            ("/spec/openapi.json", {"GET": _Act(self._openapi)}),
            ("/spec/punch-messages.schema.json", {"GET": _Act(self._schema)}),
            *((label, {"GET": _Act(self._web, Deed.PAGE)}) for label in ("/", "/s/{name}", "/page/{name}")),
            ("/s/{name}/qr", {"GET": _Act(self._qr)}),
        )
        self.routes = tuple(
            Route(label, re.compile(re.escape(label).replace(r"\{name\}", "([^/]*)")), acts) for label, acts in table
        )

    async def __call__(self, request: Request) -> Answer:
        route = self._route(request.path)
        ip = source_ip(request, self._proxies)
        try:
            answer = await self._answer(request, ip, route)
        except StoreError:
            answer = _away(is_health=route is not None and route.label == _HEALTH)
        fields = self._dress.fields(request, () if route is None else route.methods)
        return replace(answer, headers=(*answer.headers, *fields)) if isinstance(answer, Response | Upgrade) else answer

    def problem(self, problem: Any) -> Response:
        """What the shell itself objects, as `WebServer` wants it."""
        return self._dress.problem(problem)

    def label(self, request: Request) -> str:
        """The route's name, for metrics and logs: paths hold names."""
        route = self._route(request.path)
        return "none" if route is None else route.label

    def _route(self, path: str) -> Route | None:
        return next((route for route in self.routes if route.path.fullmatch(path)), None)

    async def _answer(self, request: Request, ip: IPAddress, route: Route | None) -> Answer:
        if self._settings.behind_tls_proxy and _forwarded_proto(request) != "https":
            return answers.invalid("X-Forwarded-Proto: expected https, this server is served over TLS only")
        method = "GET" if request.method == "HEAD" else request.method
        act = None if route is None else route.acts.get(method)
        limited = await self._access.limit(Deed.REQUEST if act is None else act.deed, ip)
        if limited is not None:
            return limited
        if route is None:
            return answers.not_found()
        allow = ("Allow", ", ".join(route.methods))
        if method == "OPTIONS":
            return Response(204, (allow, ("Cache-Control", "no-store")))
        if act is None:
            text = f"expected one of {', '.join(route.methods)}"
            return answers.error(405, HttpCode.METHOD_NOT_ALLOWED, text, (allow,))
        match = route.path.fullmatch(request.path)
        name = match[1] if match is not None and match.re.groups else ""
        if not act.needs_token:
            return await act.do(Call(request, ip, name))
        grant = await self._access.grant(bearer(request.headers), name, ip, admin_only=act.admin_only)
        return grant if isinstance(grant, Response) else await act.do(Call(request, ip, name, grant))

    # --- about the server --------------------------------------------------------------------------------------------

    async def _health(self, _call: Call) -> Answer:
        if not self._store.is_healthy:
            return _away(is_health=True)
        return answers.health(answers.DRAINING if self.is_draining else answers.OK)

    async def _openapi(self, _call: Call) -> Answer:
        return json_response(openapi.document(self._settings.base_url))

    async def _schema(self, _call: Call) -> Answer:
        fields = (("Content-Type", "application/schema+json"), ("Cache-Control", "no-store"))
        return Response(200, fields, openapi.SCHEMA_BYTES)

    # --- the web page ------------------------------------------------------------------------------------------------

    async def _web(self, call: Call) -> Answer:
        return self._page.answer(call.request, call.name) or answers.not_found()

    async def _qr(self, call: Call) -> Answer:
        if not is_name(call.name):
            return answers.not_found()
        url, token = f"{self._settings.base_url}/s/{call.name}", bearer(call.request.headers)
        if token is None:
            return qr(url)
        grant = await self._access.grant(token, call.name, call.ip)
        return grant if isinstance(grant, Response) else qr(f"{url}#t={token}")

    # --- sessions ----------------------------------------------------------------------------------------------------

    async def _create(self, call: Call) -> Answer:
        if self.is_draining:
            return _stopping()
        body = _body(call.request)
        if isinstance(body, Response):
            return body
        try:
            wanted = creation.read(body)
        except DecodeError as error:
            return answers.invalid(str(error))
        refusal = await self._captcha(wanted.turnstile, call.ip)
        if refusal is not None:
            return refusal
        match await self._store.create(wanted, source_key(call.ip)):
            case NotCreated.FULL:
                text = "there is no room for another session"
                return answers.retry(503, HttpCode.SESSION_FULL, text, answers.BUSY_S)
            case NotCreated.SOURCE_FULL:
                text = f"expected at most {self._settings.limits.sessions_per_source} sessions of one address"
                return answers.retry(429, HttpCode.RATE_LIMITED, text, answers.BUSY_S)
            case NotCreated.EXISTS:
                return answers.error(409, HttpCode.SESSION_EXISTS, "an open session has this name")
            case new:
                return answers.created(new, self._settings.base_url)

    async def _captcha(self, token: str | None, ip: IPAddress) -> Response | None:
        if self._verify is None:
            return None
        verdict = await self._verify(token, ip) if token else Verdict.REFUSED
        if verdict is Verdict.UNKNOWN:
            text = "the captcha cannot be checked now"
            return answers.retry(503, HttpCode.SERVER_ERROR, text, _TURNSTILE_S)
        if verdict is Verdict.REFUSED:
            return answers.error(403, HttpCode.TURNSTILE_FAILED, "turnstileToken: expected a passed captcha")
        return None

    async def _view(self, call: Call) -> Answer:
        view = await self._store.view(call.name)
        if view is None:
            return answers.no_session()
        return answers.session(view, is_admin=call.grant.role is Role.ADMIN, stream=call.grant.stream)

    async def _close(self, call: Call) -> Answer:
        if not await self._store.close(call.name):
            return answers.no_session()
        return json_response({"session": call.name, "state": "CLOSED"})

    # --- tokens ------------------------------------------------------------------------------------------------------

    async def _mint(self, call: Call) -> Answer:
        view, members = await self._store.view(call.name), _object(call.request)
        if view is None:
            return answers.no_session()
        if isinstance(members, Response):
            return members
        streams, label = view.plan.streams, members.get("label", "")
        stream = members.get("stream", streams[0] if len(streams) == 1 else None)
        ttl = strict_json.integer(members.get("ttl", MAX_TTL_S))
        if not isinstance(stream, str):
            return answers.invalid("stream: expected a name, since the session has several")
        if ttl is None or not MIN_TTL_S <= ttl <= MAX_TTL_S:
            return answers.invalid(f"ttl: expected a whole number from {MIN_TTL_S} to {MAX_TTL_S}")
        if not isinstance(label, str):
            return answers.invalid("label: expected text")
        if stream not in streams:
            return answers.no_stream()
        exp = min(tokens.expiry(view.plan.expires_ms), tokens.expiry(self._clock.now_ms() + ttl * 1000))
        try:
            minted = await self._store.mint(call.name, stream, exp)
        except LimitError as error:
            return answers.error(409, HttpCode.LIMIT_REACHED, str(error))
        if minted is None:
            return answers.no_session()
        token, grant = minted
        url = f"{self._settings.base_url}/s/{call.name}?t={token}"
        return json_response({"token": token, "stream": stream, "exp": grant.exp, "url": url}, 201)

    async def _revoke(self, call: Call) -> Answer:
        members = _object(call.request)
        if isinstance(members, Response):
            return members
        token = members.get("token")
        if not isinstance(token, str):
            return answers.invalid("token: expected text")
        if not await self._store.revoke(call.name, tokens.digest(token)):
            return answers.error(404, HttpCode.NOT_FOUND, "the session has no such token")
        return Response(204, (("Cache-Control", "no-store"),))

    # --- connection strings ------------------------------------------------------------------------------------------

    async def _connect(self, call: Call) -> Answer:
        query = call.request.query
        view = await self._store.view(call.name)
        if view is None:
            return answers.no_session()
        form, role = query.get("format", connect.DEFAULT_FORMAT), query.get("role")
        if form not in connect.FORMATS:
            return answers.invalid(f"format: expected one of {', '.join(connect.FORMATS)}")
        if role not in (None, *Direction):
            return answers.invalid("role: expected sender or receiver")
        streams = view.plan.streams
        stream = query.get("stream", call.grant.stream or (streams[0] if len(streams) == 1 else None))
        if stream is None:
            return answers.invalid("stream: expected a name, since the session has several")
        try:
            tokens.check_stream(call.grant, stream)
        except TokenError as error:
            return await self._access.refuse(error, call.ip)
        if stream not in streams:
            return answers.no_stream()
        match = await self._store.match(call.name, stream)
        if match is None:
            return answers.error(409, HttpCode.NOT_READY, "the stream does not have both its peers")
        which = _which(call, match)
        if isinstance(which, Response):
            return which
        side = match.sides[which]
        direction = Direction(role) if role else side.direction or (Direction.SENDER, Direction.RECEIVER)[which]
        end = connect.End(side.remote, side.local_port, direction, match.latency_ms, match.passphrase)
        value = {"stream": stream, "format": form, "role": direction.value, "value": connect.string(form, end)}
        return json_response(value)

    # --- the WebSocket -----------------------------------------------------------------------------------------------

    async def _open(self, call: Call) -> Answer:
        request, name = call.request, call.name
        given = [token for token in (request.query.get("t"), bearer(request.headers)) if token is not None]
        token = given[0] if given and all(one == given[0] for one in given) else None
        grant = await self._access.grant(token, name, call.ip)
        if isinstance(grant, Response) or token is None:
            return grant if isinstance(grant, Response) else answers.no_session()
        if request.method != "GET" or request.headers.get("upgrade", "").lower() != "websocket":
            fields = (("Upgrade", "websocket"),)
            return answers.error(426, HttpCode.UPGRADE_REQUIRED, "a WebSocket is served here", fields)
        if self.is_draining:
            return _stopping()
        if not self._sockets.has_room(call.ip) or not await self._store.has_room(name):
            text = "as many connections as there may be are open"
            return answers.retry(503, HttpCode.SESSION_FULL, text, answers.BUSY_S)
        converse = partial(self._sockets.converse, grant=grant, digest=tokens.digest(token), ip=call.ip)
        return Upgrade(converse, close_codes=CLOSE_CODES, max_message=MAX_FRAME_BYTES)


def _which(call: Call, match: Match) -> int | Response:
    """The end that a connection string is asked for: an admin names it, a peer proves that it is its own."""
    side, port = call.request.query.get("side", "a"), call.request.query.get("port")
    if side not in ("a", "b"):
        return answers.invalid("side: expected a or b")
    is_port = port is not None and _PORT.fullmatch(port) and MIN_LOCAL_PORT <= int(port) <= MAX_PORT
    if not is_port and (port is not None or call.grant.role is not Role.ADMIN):
        return answers.invalid("port: expected the port that was registered")
    if port is None or call.grant.role is Role.ADMIN:
        return ("a", "b").index(side)
    for number, one in enumerate(match.sides):
        if (one.seen_ip, one.local_port) == (call.ip, int(port)):
            return number
    return answers.auth_failed("no peer registered this port from this address", 403)


def _body(request: Request) -> bytes | Response:
    """The body, if it is JSON and not too large."""
    if len(request.body) > MAX_BODY_BYTES:
        text = f"expected a body of at most {MAX_BODY_BYTES} bytes"
        return answers.error(413, HttpCode.PAYLOAD_TOO_LARGE, text)
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        return answers.error(415, HttpCode.UNSUPPORTED_MEDIA_TYPE, "Content-Type: expected application/json")
    return request.body


def _object(request: Request) -> dict[str, Any] | Response:
    body = _body(request)
    if isinstance(body, Response):
        return body
    try:
        value = strict_json.decode(body)
    except DecodeError as error:
        return answers.invalid(str(error))
    return value if isinstance(value, dict) else answers.invalid("expected a JSON object")


def _forwarded_proto(request: Request) -> str:
    return ",".join(request.headers.get_all("x-forwarded-proto")).rpartition(",")[2].strip().lower()


def _away(*, is_health: bool) -> Response:
    """The store does not answer."""
    if is_health:
        return answers.health(answers.UNAVAILABLE)
    return answers.retry(503, HttpCode.SERVER_ERROR, "the server's store does not answer", answers.STOPPING_S)


def _stopping() -> Response:
    return answers.retry(503, HttpCode.SERVER_ERROR, "the server stops", answers.STOPPING_S)
