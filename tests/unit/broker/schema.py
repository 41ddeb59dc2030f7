"""The normative schema as an oracle, one validator for each direction and each message."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.resources import files
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA_BYTES = (files("punchd.broker") / "punch-messages.schema.json").read_bytes()
SCHEMA: Mapping[str, Any] = json.loads(SCHEMA_BYTES)


def validator(definition: str) -> Draft202012Validator:
    """Of one of the schema's `$defs`; never of its root, which refuses a tally (C-26a)."""
    return Draft202012Validator({"$defs": SCHEMA["$defs"], "$ref": f"#/$defs/{definition}"})


CLIENT = validator("PeerMessage")
SERVER = validator("ServerMessage")
_OF_SERVER = {
    SCHEMA["$defs"][name]["properties"]["type"]["const"]: validator(name)
    for name in (one["$ref"].rpartition("/")[2] for one in SCHEMA["$defs"]["ServerMessage"]["oneOf"])
}


def check_server_message(text: str) -> dict[str, Any]:
    """The members of a frame that the server may send."""
    members: dict[str, Any] = json.loads(text)
    _OF_SERVER[members["type"]].validate(members)
    return members
