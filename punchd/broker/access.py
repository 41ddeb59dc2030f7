"""Who a request comes from, and what its token lets it do.

The source is the TCP connection's other end, unless that is a trusted proxy: then the last address in X-Forwarded-For
that is none. What stands before it anybody could have written.

A token is checked as `tokens.py` says; the answer to one that fails has its status. Failures are counted by source:
beyond the limit it hears 429 in place of 401, while others behind the same address go on with good tokens.

Source: broker specification §9, §10, B-030, B-031, B-051, B-113, C-30 to C-32, C-40.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Collection
from ipaddress import ip_address, ip_network

from punchd.broker import answers, tokens
from punchd.broker.clock import Clock
from punchd.broker.endpoints import observed_ip
from punchd.broker.metrics import Counts
from punchd.broker.secret import Secret
from punchd.broker.settings import LOG_ADDRESSES
from punchd.broker.store import Store
from punchd.broker.tokens import Grant, Refusal, TokenError
from punchd.broker.windows import Deed, Rates
from punchd.endpoint import IPAddress
from punchd.web.messages import Headers, Request, Response
from punchd.web.rate import Limiter, source_key

SECURITY = "punchd.security"  # the only logger that names addresses
_LINES_PER_S = 1 / 60  # about one source
_LOGGED_SOURCES = 1024

_BEARER = re.compile(r"[Bb][Ee][Aa][Rr][Ee][Rr] +([^ ]+) *")
_FORWARDED = re.compile(r"\[?([0-9A-Fa-f:.]+?)\]?(?:(?<=[\].0-9]):[0-9]{1,5})?")

log = logging.getLogger(SECURITY)


def source_ip(request: Request, proxies: Collection[IPAddress]) -> IPAddress:
    """Whom a request counts for, as peers are told it: IPv4 where it is mapped into IPv6."""
    seen = observed_ip(request.peer.ip)
    if seen not in proxies:
        return seen
    named = ",".join(request.headers.get_all("x-forwarded-for")).split(",")
    for text in reversed(named):
        ip = _address(text.strip())
        if ip is None:
            return seen
        if ip not in proxies:
            return ip
        seen = ip
    return seen


def _address(text: str) -> IPAddress | None:
    for candidate in (text, *(match[1] for match in [_FORWARDED.fullmatch(text)] if match)):
        try:
            return observed_ip(ip_address(candidate))
        except ValueError:
            continue
    return None


def bearer(headers: Headers) -> str | None:
    """The token in Authorization; "" if what stands there is none, None if nothing does."""
    given = headers.get_all("authorization")
    if not given:
        return None
    match = _BEARER.fullmatch(", ".join(given))
    return "" if match is None else match[1]


class Notice:
    """Logs who was refused or limited, now and then; `form` is one of LOG_ADDRESSES."""

    def __init__(self, form: str, clock: Clock) -> None:
        self._form = form
        self._clock = clock
        self._lines = Limiter(_LINES_PER_S, 1, _LOGGED_SOURCES)

    def tell(self, what: str, ip: IPAddress) -> None:
        """At most a line a minute and source."""
        if not self._lines.allow(source_key(ip), self._clock.now()):
            log.info("%s%s", what, self._of(ip))

    def shunned(self, source: bytes) -> None:
        """See `punchd.web.shun`: 4 or 8 bytes."""
        self.tell(
            "not heard for a while, connects too often", ip_address(source if len(source) == 4 else source + bytes(8))
        )

    def _of(self, ip: IPAddress) -> str:
        if self._form == LOG_ADDRESSES[0]:
            return f": {ip}"
        if self._form == LOG_ADDRESSES[1]:
            return f": {ip_network((ip, 24 if ip.version == 4 else 48), strict=False)}"
        return ""


class Access:
    """Checks tokens, and counts those that fail."""

    def __init__(
        self, store: Store, secret: Secret, rates: Rates, clock: Clock, *, counts: Counts, notice: Notice
    ) -> None:
        self._store = store
        self._secret = secret
        self._rates = rates
        self._clock = clock
        self._counts = counts
        self._notice = notice

    async def limit(self, deed: Deed, ip: IPAddress) -> Response | None:
        """Count a deed; the refusal, if there were too many."""
        wait_s = await self._rates.allow(deed, source_key(ip), self._clock.now())
        if not wait_s:
            return None
        self._counts.limited[deed] += 1
        self._notice.tell(f"limited: {deed.value}", ip)
        return answers.retry(429, answers.HttpCode.RATE_LIMITED, f"too many of these requests ({deed.value})", wait_s)

    async def grant(self, token: str | None, name: str, ip: IPAddress, *, admin_only: bool = False) -> Grant | Response:
        """What a token lets its holder do in the session `name`, or the answer if it is no good."""
        if not token:
            return await self.refuse(TokenError(Refusal.FORM, "expected Authorization: Bearer with a token"), ip)
        try:
            grant = tokens.read(token, self._secret.keys)
            tokens.check_session(grant, name)
            issued = await self._store.issued(name)
            tokens.check(grant, tokens.digest(token), issued, self._clock.now_ms())
            if admin_only:
                tokens.check_admin(grant)
        except TokenError as error:
            return await self.refuse(error, ip)
        return grant

    async def refuse(self, error: TokenError, ip: IPAddress) -> Response:
        """The answer to a token that is no good."""
        self._counts.refused[error.refusal] += 1
        status = error.refusal.status
        if status == 404:
            return answers.no_session()
        if status == 401:
            limited = await self.limit(Deed.FAIL, ip)
            if limited is not None:
                return limited
        self._notice.tell(f"refused: {error.refusal.value}", ip)
        return answers.auth_failed(str(error), status)
