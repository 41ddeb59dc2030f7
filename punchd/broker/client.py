"""The client of a session broker, for trio programs.

    async with Broker.open("https://broker.example") as broker:
        made = await broker.create("show", streams=("cam-wide",))
        ...
        async with broker.join("show", token, register=Register(port=5000)) as joined:
            async for event in joined:
                match event:
                    case Peer():
                        srt = ...                       # event.endpoint, event.passphrase, event.local_port
                        await joined.ready()
                    case Start():
                        ...                             # start SRT, then:
                        await joined.status(Srt.CONNECTED)

Joining connects and registers; from then on the library keeps the connection alive, notices when it is dead, comes
back with a growing pause (1 s doubling to 30 s) and registers again. Once media flow they do not need the broker: an
application goes on with them whatever becomes of the connection.

After a `Reconnected` a peer's round is a new one: expect a `Peer`, perhaps equal to the last, and say `ready` and
`status` again. `Session` and `Peer` come in any order, and `Peer` at once or much later.

Nothing takes a timeout: cancel. One request over HTTP is given up after 10 s.

Source: seed 000 §5, §6; broker specification B-046, B-050, B-053, B-060, B-063, B-065, B-072, C-05 to C-07, C-10, C-21.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote, urlencode

import trio

from punchd import knobs
from punchd.broker import client_answers, client_version, strict_json
from punchd.broker.client_address import SessionLink, check_name, check_token
from punchd.broker.client_errors import (
    BrokerError,
    EndedError,
    InsecureError,
    NotBrokerError,
    RefusedError,
    UnreachableError,
    VersionError,
)
from punchd.broker.client_events import (
    Error,
    Event,
    HealthReport,
    Malformed,
    Peer,
    PeerMatch,
    Reconnected,
    Reconnecting,
    Session,
    SessionClosed,
    Start,
    StreamHealth,
    StreamState,
    Tally,
)
from punchd.broker.client_values import ConnectionString, Created, Minted, SessionStatus
from punchd.broker.health import HealthStatus
from punchd.broker.messages import Direction, Light, Register, Srt
from punchd.broker.server_messages import State
from punchd.errors import ConfigError, DecodeError
from punchd.web import client_url
from punchd.web.client_http import HttpClient, Reply, retry_after_s
from punchd.web.client_stream import Server, tls_context

if TYPE_CHECKING:
    import ssl

    from punchd.broker.client_joined import Joined

__all__ = [
    "Broker", "Joined", "SessionLink", "Register",
    "Created", "SessionStatus", "Minted", "ConnectionString",
    "Event", "Peer", "PeerMatch", "Session", "Start", "Tally", "HealthReport", "Error", "SessionClosed", "Malformed",
    "Reconnecting", "Reconnected", "StreamState", "StreamHealth",
    "Direction", "Light", "Srt", "State", "HealthStatus",
    "BrokerError", "EndedError", "InsecureError", "NotBrokerError", "RefusedError", "UnreachableError", "VersionError",
]  # fmt: skip

_ValueT = TypeVar("_ValueT")


def __getattr__(name: str) -> Any:
    """`Joined`, whose WebSockets take 12 ms to import that many programs can do without."""
    if name == "Joined":
        from punchd.broker.client_joined import Joined

        return Joined
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


class Broker:
    """A broker. Made by `open`. Sessions are named, and every call on one needs a token of it.

    Calls raise:
        UnreachableError: no answer within 10 s.
        InsecureError, NotBrokerError, VersionError: what answers is not a broker of this protocol.
        RefusedError: the broker says no: status, code, and when to come back.
        ConfigError: an argument that cannot be right.
    """

    def __init__(self, server: Server, tls: ssl.SSLContext | None) -> None:
        self._server = server
        self._tls = tls
        self._http = HttpClient(server, tls)

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, tls: ssl.SSLContext | None = None, allow_plain: bool = False
    ) -> AsyncIterator[Broker]:
        """A client of the broker at `url`, https://HOST[:PORT]. Opens no connection yet; leaving closes it.

        Args:
            tls: for https; by default the system's certificate authorities, TLS 1.2 or newer.
            allow_plain: http:// to other hosts than this one, too: everybody on the way reads tokens and passphrases.

        Raises:
            ConfigError: `url` is none, or is http:// to another host.
        """
        where = client_url.parse(url, "broker URL")
        if not where.is_tls and not allow_plain and not knobs.is_loopback(where.host):
            raise ConfigError(f"broker URL {where}: expected https://, since everybody on the way can read http://")
        broker = cls(Server(where, "broker", UnreachableError, InsecureError, NotBrokerError), tls_context(where, tls))
        try:
            yield broker
        finally:
            broker._http.close()

    async def version(self) -> str:
        """The protocol version that the broker speaks (GET /api/health)."""
        return await self._call("GET", "/api/health", client_answers.version, also=503)

    async def create(
        self,
        name: str,
        *,
        streams: Iterable[str] = (),
        latency_ms: int | None = None,
        ttl_s: int | None = None,
        turnstile_token: str | None = None,
    ) -> Created:
        """A new session. None, or no streams: the broker's defaults."""
        check_name(name, "session")
        listed = [check_name(stream, "stream") for stream in streams]
        wanted = {"name": name, "streams": listed or None, "latency": latency_ms, "ttl": ttl_s}
        wanted["turnstileToken"] = turnstile_token
        return await self._call("POST", "/api/session", client_answers.created, body=wanted)

    async def status(self, name: str, token: str) -> SessionStatus:
        """How it is."""
        return await self._call("GET", _path(name), client_answers.status, token)

    async def close_session(self, name: str, token: str) -> None:
        """Admin: end it for everybody."""
        await self._call("DELETE", _path(name), client_answers.members, token)

    async def mint(
        self, name: str, token: str, *, stream: str | None = None, ttl_s: int | None = None, label: str | None = None
    ) -> Minted:
        """Admin: another token for a peer."""
        wanted = {"stream": stream, "ttl": ttl_s, "label": label}
        return await self._call("POST", f"{_path(name)}/token", client_answers.minted, token, body=wanted)

    async def revoke(self, name: str, token: str, revoked: str) -> None:
        """Admin: make `revoked` worthless, and close its connections."""
        wanted = {"token": check_token(revoked, "revoked")}
        await self._call("DELETE", f"{_path(name)}/token", bytes, token, body=wanted)

    async def connection_string(
        self,
        name: str,
        token: str,
        *,
        stream: str | None = None,
        form: str | None = None,
        role: Direction | None = None,
        side: str | None = None,
        port: int | None = None,
    ) -> ConnectionString:
        """What to type into a tool: `form` is "url", "ffmpeg", ... An admin names the `side`, "a" or "b"; a peer the
        `port` that it registered."""
        given = {"stream": stream, "format": form, "role": role, "side": side, "port": port}
        query = urlencode({name: value for name, value in given.items() if value is not None})
        path = f"{_path(name)}/connect" + (f"?{query}" if query else "")
        return await self._call("GET", path, client_answers.connection_string, token)

    @asynccontextmanager
    async def _join(
        self, name: str, token: str, register: Register | None, ip_version: int | None
    ) -> AsyncIterator[Joined]:
        from punchd.broker.client_joined import Joined

        path = f"/api/ws/{quote(check_name(name, 'session'), safe='')}"
        given = check_token(token, "token")
        joined = Joined(self._server, self._tls, path=path, token=given, register=register, ip_version=ip_version)
        joined.begin(await joined.open(ip_version))
        failure: Exception | None = None
        async with trio.open_nursery() as nursery:
            nursery.start_soon(joined.run, nursery)
            try:
                yield joined
            except Exception as error:  # noqa: BLE001 (raised again, outside the nursery, which would wrap it)
                failure = error
            finally:
                with trio.CancelScope(shield=True):
                    await joined.leave()
                nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    def join(
        self, name: str, token: str, *, register: Register | None = None, ip_version: int | None = None
    ) -> AbstractAsyncContextManager[Joined]:
        """Take part in a session while the block runs; leaving says goodbye (1000), within a second.

        Args:
            register: a peer's registration, said at once and after each reconnection. Without it: an admin who
                watches, or a peer who calls `Joined.register` within 30 s.
            ip_version: 4 or 6: connect over this family only; by default both are tried, and changed when the other
                peer is seen over the other one.

        Raises:
            As calls do. The first connection is tried once; later ones for ever.
        """
        return self._join(name, token, register, ip_version)

    # --- one request -------------------------------------------------------------------------------------------------

    async def _call(
        self,
        method: str,
        path: str,
        decode: Callable[[bytes], _ValueT],
        token: str | None = None,
        *,
        body: dict[str, Any] | None = None,
        also: int | None = None,
    ) -> _ValueT:
        """The value of a success; members of `body` that are None are left out, and the status `also` is one too."""
        data, kind = b"", None
        if body is not None:
            data = strict_json.encode({name: value for name, value in body.items() if value is not None}).encode()
            kind = "application/json"
        reply = await self._http.ask(
            method,
            path,
            bearer=None if token is None else check_token(token, "token"),
            body=data,
            content_type=kind,
            is_repeatable=method == "GET",
        )
        return self._read(f"{self._server}: {method} {path.partition('?')[0]}", reply, decode, also)

    def _read(self, who: str, reply: Reply, decode: Callable[[bytes], _ValueT], also: int | None) -> _ValueT:
        fields = reply.fields
        if not 200 <= reply.status < 300 and reply.status != also:
            after_s = retry_after_s(fields["retry-after"]) if "retry-after" in fields else None
            raise client_answers.refusal(who, reply.status, fields, reply.body, retry_after_s=after_s)
        client_version.check(str(self._server), fields.get(client_version.FIELD))
        try:
            return decode(reply.body)
        except DecodeError as error:
            raise client_answers.stranger(who, reply.status, fields, str(error)) from None


def _path(name: str) -> str:
    return f"/api/session/{quote(check_name(name, 'session'), safe='')}"
