"""What `punch session` prints: lines for people, members for programs. Pure.

No passphrase is ever printed; tokens are only where somebody asked for them.
"""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any, assert_never

from punchd.broker.client_address import SessionLink
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
from punchd.broker.client_values import Created, Minted, SessionStatus
from punchd.broker.messages import Light

# Where an encoder sends and a player listens. Two ports, so that both peers may be one host.
INPUT, OUTPUT = "udp://127.0.0.1:5100", "udp://127.0.0.1:5101"
HINT = "Media are MPEG-TS at UDP ports of each peer's own host; files and other tools: punch session join --help"

_REASONS = {"admin_closed": "by an admin", "ttl_expired": "its time is over", "error": "the broker failed"}


def created(made: Created, saved: str | None) -> list[str]:
    """What a producer hands out. `saved`: the file that has the admin's token."""
    streams = f"{len(made.streams)} streams" if len(made.streams) > 1 else f"stream {made.streams[0]}"
    found = [f"session {made.name}: {streams}, latency {made.latency_ms} ms, until {until(made.expires_ms)}", ""]
    if saved is None:
        found += ["admin, to watch and close it; shown once, and the key to the media:", f"  {url(made, made.token)}"]
    else:
        found.append(f"admin, to watch and close it: --token-file {saved}")
    for name, token in made.peer_tokens.items():
        found += ["", f"{name}, for the peer that sends and the one that receives:", *joining(url(made, token))]
    return [*found, "", HINT]


def created_members(made: Created, saved: str | None) -> dict[str, Any]:
    admin = {"token": made.token, "url": url(made, made.token)} if saved is None else {"file": saved}
    streams = {name: {"token": token, "url": url(made, token)} for name, token in made.peer_tokens.items()}
    times = {"latency": made.latency_ms, "ttl": made.ttl_s, "expiresAt": made.expires_ms}
    return {"session": made.name, "url": made.url, "admin": admin, "streams": streams, **times}


def url(made: Created, token: str) -> str:
    """To hand out: what stands behind # gets into no server's log."""
    return f"{made.url}#t={token}"


def joining(address: str) -> list[str]:
    """Commands that run as they are: one to send, one to receive."""
    command = f"  punch session join {shlex.quote(address)}"
    return [f"{command} --input {INPUT}", f"{command} --output {OUTPUT}"]


def minted(link: SessionLink, made: Minted) -> list[str]:
    return [f"{made.stream}, until {until(made.exp * 1000)}, to send or to receive:", *joining(str(link)), "", HINT]


def minted_members(link: SessionLink, made: Minted) -> dict[str, Any]:
    return {"stream": made.stream, "token": made.token, "url": str(link), "exp": made.exp}


def status(seen: SessionStatus) -> list[str]:
    """A line for the session, one for each stream, one for each warning."""
    peers = f"{seen.connected} of {seen.total} peers"
    found = [f"{seen.name}: {seen.state}, {peers}, latency {seen.latency_ms} ms, until {until(seen.expires_ms)}"]
    width = max(map(len, seen.streams), default=0)
    for name, stream in seen.streams.items():
        light = seen.tally.get(name, Light.OFF)
        more = [] if light is Light.OFF else [light.value]
        if name in seen.health:
            more.append(health(seen.health[name]))
        found.append(f"  {name:{width}}  {stream_state(stream)}{', '.join(['', *more])}")
    return found + [f"warning: {warning}" for warning in seen.warnings]


def status_members(seen: SessionStatus) -> dict[str, Any]:
    return {
        "session": seen.name,
        **_overview(seen.state, seen.streams, seen.connected, seen.total),
        "latency": seen.latency_ms,
        "created": seen.created,
        "expiresAt": seen.expires_ms,
        "health": {name: _health(one) for name, one in seen.health.items()},
        "tally": {name: one.value for name, one in seen.tally.items()},
        "warnings": list(seen.warnings),
    }


def event(happened: Event) -> str:
    """One line."""
    match happened:
        case Session(state, streams, connected, total):
            each = ", ".join(f"{name} {stream_state(one)}" for name, one in streams.items())
            return f"{state}, {connected} of {total} peers: {each}"
        case PeerMatch(stream, a, b, _, _, latency_ms):
            return f"{stream}: matched {a} and {b}, latency {latency_ms} ms"
        case Peer(stream, endpoint):
            return f"{stream}: the other peer is {endpoint}"
        case Start(stream):
            return f"{stream}: both peers start SRT"
        case Tally(stream, light):
            return f"{stream}: tally {light}"
        case HealthReport(streams):
            return ", ".join(f"{name}: {health(one)}" for name, one in streams.items()) or "no news of health"
        case Error(code, message):
            return f"the broker objects: {message} ({code})"
        case SessionClosed(reason):
            return f"closed: {_REASONS.get(reason, reason)}"
        case Malformed(why):
            return f"warning: the broker said what is no message: {why}"
        case Reconnecting(reason, wait_s):
            return f"connection lost: {reason}; again in {wait_s:.1f} s"
        case Reconnected():
            return "connected again"
        case _:
            assert_never(happened)


def event_members(happened: Event) -> dict[str, Any]:
    """The same for programs: the protocol's own words, without passphrases."""
    match happened:
        case Session(state, streams, connected, total):
            return {"event": "session", **_overview(state, streams, connected, total)}
        case PeerMatch(stream, a, b, local_port, _, latency_ms):
            sides = {"peer_a": {"ip": str(a.ip), "port": a.port}, "peer_b": {"ip": str(b.ip), "port": b.port}}
            return {"event": "peer_match", "stream": stream, **sides, "localPort": local_port, "latency": latency_ms}
        case Peer(stream, endpoint, local_port, _, latency_ms):
            where = {"ip": str(endpoint.ip), "port": endpoint.port, "localPort": local_port}
            return {"event": "peer", "stream": stream, **where, "latency": latency_ms}
        case Start(stream):
            return {"event": "start", "stream": stream}
        case Tally(stream, light):
            return {"event": "tally", "stream": stream, "state": light.value}
        case HealthReport(streams):
            return {"event": "health_report", "streams": {name: _health(one) for name, one in streams.items()}}
        case Error(code, message):
            return {"event": "error", "code": code, "message": message}
        case SessionClosed(reason):
            return {"event": "session_closed", "reason": reason}
        case Malformed(why):
            return {"event": "malformed", "why": why}
        case Reconnecting(reason, wait_s, tries):
            return {"event": "reconnecting", "reason": reason, "seconds": round(wait_s, 3), "tries": tries}
        case Reconnected():
            return {"event": "reconnected"}
        case _:
            assert_never(happened)


def stream_state(stream: StreamState) -> str:
    return f"{stream.state} {stream.peers}/2"


def health(one: StreamHealth) -> str:
    return f"{one.status}, {one.rtt:.1f} ms, {one.retransmit:.1f} % again, {one.bitrate / 1e6:.2f} Mbit/s"


def until(unix_ms: int) -> str:
    """A time of day, UTC. Broker's clock."""
    try:
        return datetime.fromtimestamp(unix_ms // 1000, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (ValueError, OverflowError):  # beyond the year 9999
        return "the end of days"


def _overview(state: str, streams: Mapping[str, StreamState], connected: int, total: int) -> dict[str, Any]:
    each = {name: {"state": one.state, "peers": one.peers} for name, one in streams.items()}
    return {"state": str(state), "streams": each, "connected": connected, "total": total}


def _health(one: StreamHealth) -> dict[str, Any]:
    return {"rtt": one.rtt, "retransmit": one.retransmit, "bitrate": one.bitrate, "status": one.status.value}
