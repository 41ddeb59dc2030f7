"""What a client says, as text: the other direction of `messages.py`, which checks it. Pure.

Source: seed 003, `#/$defs/PeerMessage`; broker specification §4.1, C-06, C-07.
"""

from __future__ import annotations

import json
from dataclasses import fields
from typing import Any

from punchd.broker import messages, strict_json
from punchd.broker.messages import ClientMessage, Register
from punchd.errors import DecodeError


def encode(message: ClientMessage) -> str:
    """The text frame.

    Raises:
        DecodeError: no broker would take it; the text says what was expected.
    """
    members: dict[str, Any] = {"type": type(message).__name__.lower()}
    for one in fields(message):
        value = getattr(message, one.name)
        if value is not None and one.name not in ("meta", "public_port", "public_ip"):
            members[one.name] = value
    if isinstance(message, Register):
        meta = _meta(message)
        if meta is not None:
            members["meta"] = meta
    try:
        text = strict_json.encode(members)
    except (ValueError, TypeError):  # NaN, half a surrogate pair, nothing that JSON has
        raise DecodeError(f"{members['type']}: expected values that JSON has") from None
    messages.decode(text)
    return text


def _meta(register: Register) -> dict[str, Any] | None:
    claim = {"publicPort": register.public_port, "publicIp": register.public_ip}
    claim = {name: value for name, value in claim.items() if value is not None}
    if register.meta is None:
        return {"punch": claim} if claim else None
    try:
        meta = json.loads(register.meta)
    except (ValueError, RecursionError):
        meta = None
    if not isinstance(meta, dict):
        raise DecodeError("meta: expected the text of a JSON object")
    return {**meta, "punch": claim} if claim else meta
