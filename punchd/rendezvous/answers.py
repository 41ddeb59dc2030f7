"""The bodies of the HTTP answers, written in one place: what a client may rely on.

Source: seed 001, "Routes"; rendezvous specification §5, D-03 to D-06, D-12, D-13, D-18.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from punchd.rendezvous import identity
from punchd.rendezvous.identity import Binding
from punchd.rendezvous.signals import Signal
from punchd.rendezvous.store import Registered
from punchd.rendezvous.views import SeenAddress, State, View
from punchd.web.messages import Response, json_response

AUTH_FAILED_HEADER = ("WWW-Authenticate", "Bearer")


def error(status: int, code: str, message: str, headers: tuple[tuple[str, str], ...] = ()) -> Response:
    return json_response({"ok": False, "error": code, "message": message}, status, headers)


def auth_failed() -> Response:
    return error(401, "AUTH_FAILED", "expected Authorization: Bearer with the key of a client", (AUTH_FAILED_HEADER,))


def not_found(what: str) -> Response:
    return error(404, "NOT_FOUND", what)


def no_address() -> Response:
    return error(404, "NO_ADDRESS", "this client has no such address: no pulse of it came from one lately")


def bad_request(message: str) -> Response:
    return error(400, "BAD_REQUEST", message)


def unhealthy() -> Response:
    return error(503, "UNHEALTHY", "the store does not answer", (("Retry-After", "1"),))


def rate_limited(wait_s: float) -> Response:
    seconds = max(1, math.ceil(wait_s))
    message = f"too many of these requests; again in {seconds} s"
    return error(429, "RATE_LIMITED", message, (("Retry-After", str(seconds)),))


def registered(new: Registered, timestamp: int) -> Response:
    return json_response(
        {"client_id": new.client_id.hex(), "private_id": new.key.hex(), "timestamp": timestamp, "ok": True}
    )


def verified(client_id: bytes, timestamp: int) -> Response:
    return json_response({"client_id": client_id.hex(), "timestamp": timestamp, "ok": True})


def logged_out(client_id: bytes) -> Response:
    return json_response({"client_id": client_id.hex(), "ok": True})


def udp_address(view: View, chosen: SeenAddress, timestamp: int) -> Response:
    return json_response(
        {
            "client_id": view.client_id.hex(),
            "host": str(chosen.endpoint.ip),
            "port": chosen.endpoint.port,
            "timestamp": timestamp,
            "addresses": [_address(seen) for seen in view.addresses],
            "ok": True,
        }
    )


def _address(seen: SeenAddress) -> dict[str, Any]:
    endpoint = seen.endpoint
    return {"family": endpoint.ip.version, "host": str(endpoint.ip), "port": endpoint.port, "age": int(seen.age)}


def status(view: View, timestamp: int) -> Response:
    return json_response(
        {
            "client_id": view.client_id.hex(),
            "status": "ONLINE" if view.state is State.ONLINE else "PENDING",
            "last_online": None if view.last_online is None else int(view.last_online),
            "timestamp": timestamp,
            "ok": True,
        }
    )


def signal_taken(timestamp: int) -> Response:
    return json_response({"timestamp": timestamp, "ok": True}, 202)


def signals(found: Sequence[tuple[Signal, float]]) -> Response:
    """Signals with the seconds since they were posted."""
    return json_response({"signals": [signal(one, age) for one, age in found], "ok": True})


def signal(one: Signal, age: float) -> dict[str, Any]:
    return {"from": one.sender.hex(), "data": one.data, "age": int(age)}


def alias(binding: Binding, timestamp: int) -> Response:
    """A binding with all that is needed to check it."""
    return json_response(
        {
            "alias": identity.address(binding.fingerprint),
            "client_id": binding.client_id.hex(),
            "public_key": binding.public_key.hex(),
            "signed_at": binding.timestamp,
            "signature": binding.signature.hex(),
            "timestamp": timestamp,
            "ok": True,
        }
    )
