"""Which connection string a request asks for, and whether it is the asker's: GET /api/session/NAME/connect.

    query     admin                         peer
    stream    of several, which             its own; another one is refused
    side      a or b; a if it is not said   -
    port      -                             what it registered, from the same address
    format    one of `connect.FORMATS`
    role      sender or receiver; else what was registered; else a sends

What the strings look like is `connect.py`.

Source: broker specification §6.2.6.
"""

from __future__ import annotations

import re

from punchd.broker import answers, connect, tokens
from punchd.broker.access import Access
from punchd.broker.answers import HttpCode
from punchd.broker.messages import Direction
from punchd.broker.names import MAX_PORT, MIN_LOCAL_PORT
from punchd.broker.routes import Call
from punchd.broker.store import Match, Store
from punchd.broker.tokens import Role, TokenError
from punchd.web.messages import Answer, Response, json_response

_PORT = re.compile(r"[0-9]{1,5}")


async def answer(call: Call, store: Store, access: Access) -> Answer:
    """The string, or why there is none."""
    query = call.request.query
    view = await store.view(call.name)
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
        return await access.refuse(error, call.ip)
    if stream not in streams:
        return answers.no_stream()
    match = await store.match(call.name, stream)
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
