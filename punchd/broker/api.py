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

Decides only: the store keeps, `sockets.py` talks, `punchd.web` reads and writes. What a route and a request to it are
stands in `routes.py`; which connection string somebody gets, in `strings.py`.

Source: seed 000 §5, §6.1; broker specification §6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from ipaddress import ip_address
from typing import Any

from punchd.broker import answers, creation, openapi, strict_json, strings, tokens
from punchd.broker.access import Access, bearer, source_ip
from punchd.broker.answers import Dress, HttpCode
from punchd.broker.clock import Clock
from punchd.broker.names import MAX_TTL_S, MIN_TTL_S, is_name
from punchd.broker.page import WebPage, qr
from punchd.broker.routes import Act, Call, Route, body, json_object
from punchd.broker.settings import Settings
from punchd.broker.sockets import CLOSE_CODES, MAX_FRAME_BYTES, Sockets
from punchd.broker.store import NotCreated, Store
from punchd.broker.tokens import LimitError, Role
from punchd.broker.turnstile import Verdict, Verifier
from punchd.broker.windows import Deed
from punchd.endpoint import IPAddress
from punchd.errors import DecodeError, StoreError
from punchd.web.messages import Answer, Request, Response, Upgrade, json_response
from punchd.web.rate import source_key

_TURNSTILE_S = 5  # Retry-After when its service is away, C-39
_HEALTH = "/api/health"


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
        any_token, admin = partial(Act, needs_token=True), partial(Act, needs_token=True, admin_only=True)
        table: tuple[tuple[str, Mapping[str, Act]], ...] = (
            (_HEALTH, {"GET": Act(self._health)}),
            ("/api/session", {"POST": Act(self._create, Deed.CREATE)}),
            ("/api/session/{name}", {"GET": any_token(self._view), "DELETE": admin(self._close)}),
            ("/api/session/{name}/token", {"POST": admin(self._mint), "DELETE": admin(self._revoke)}),
            ("/api/session/{name}/connect", {"GET": any_token(self._strings)}),
            ("/api/ws/{name}", {"GET": Act(self._open, Deed.UPGRADE)}),
            ("/spec/openapi.json", {"GET": Act(self._openapi)}),
            ("/spec/punch-messages.schema.json", {"GET": Act(self._schema)}),
            *((label, {"GET": Act(self._web, Deed.PAGE)}) for label in ("/", "/s/{name}", "/page/{name}")),
            ("/s/{name}/qr", {"GET": Act(self._qr)}),
        )
        self.routes = tuple(Route.of(label, acts) for label, acts in table)

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
        data = body(call.request)
        if isinstance(data, Response):
            return data
        try:
            wanted = creation.read(data)
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
        view, members = await self._store.view(call.name), json_object(call.request)
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
        members = json_object(call.request)
        if isinstance(members, Response):
            return members
        token = members.get("token")
        if not isinstance(token, str):
            return answers.invalid("token: expected text")
        if not await self._store.revoke(call.name, tokens.digest(token)):
            return answers.error(404, HttpCode.NOT_FOUND, "the session has no such token")
        return Response(204, (("Cache-Control", "no-store"),))

    async def _strings(self, call: Call) -> Answer:
        return await strings.answer(call, self._store, self._access)

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
        audience = f"session:{name}".encode()
        return Upgrade(converse, close_codes=CLOSE_CODES, max_message=MAX_FRAME_BYTES, audience=audience)


def _forwarded_proto(request: Request) -> str:
    return ",".join(request.headers.get_all("x-forwarded-proto")).rpartition(",")[2].strip().lower()


def _away(*, is_health: bool) -> Response:
    """The store does not answer."""
    if is_health:
        return answers.health(answers.UNAVAILABLE)
    return answers.retry(503, HttpCode.SERVER_ERROR, "the server's store does not answer", answers.STOPPING_S)


def _stopping() -> Response:
    return answers.retry(503, HttpCode.SERVER_ERROR, "the server stops", answers.STOPPING_S)
