"""What changes of a session, as plain data for JSON, and back: for another process to go on with.

Holds addresses and `meta`; no passphrase, no token. Whoever keeps it decides for how long, and where.
"""

from __future__ import annotations

from ipaddress import ip_address
from typing import Any

from punchd.broker.health import Sample
from punchd.broker.messages import Direction, Light, Register, Srt
from punchd.broker.server_messages import Reason, State
from punchd.broker.state import Claim, Facts, Member, Plan
from punchd.broker.streams import Phase, Slot, Stream
from punchd.broker.tokens import Role
from punchd.endpoint import Endpoint

VERSION = 1  # of the layout: a process that meets another one must not guess


def dump(facts: Facts) -> dict[str, Any]:
    """Dictionaries, lists, texts, numbers, None; the order of dictionaries matters."""
    return {
        "version": VERSION,
        "state": facts.state.value,
        "reason": None if facts.reason is None else facts.reason.value,
        "streams": {name: _dump_stream(stream) for name, stream in facts.streams.items()},
        "members": [_dump_member(member) for member in facts.members.values()],
        "claims": {connection: _dump_claim(claim) for connection, claim in facts.claims.items()},
    }


def load(plain: dict[str, Any]) -> Facts:
    """From what `dump` gave.

    Raises:
        ValueError: the layout of another version.
    """
    if plain["version"] != VERSION:
        raise ValueError(f"snapshot of a session: expected version {VERSION}, got {plain['version']!r}")
    members = [_load_member(member) for member in plain["members"]]
    return Facts(
        state=State(plain["state"]),
        reason=None if plain["reason"] is None else Reason(plain["reason"]),
        streams={name: _load_stream(stream) for name, stream in plain["streams"].items()},
        members={member.connection: member for member in members},
        claims={connection: _load_claim(claim) for connection, claim in plain["claims"].items()},
    )


def dump_plan(plan: Plan) -> dict[str, Any]:
    """What a session was made with, likewise."""
    return {**_flat(plan), "streams": list(plan.streams)}


def load_plan(plain: dict[str, Any]) -> Plan:
    """From what `dump_plan` gave."""
    return Plan(**{**plain, "streams": tuple(plain["streams"])})


def _dump_stream(stream: Stream) -> dict[str, Any]:
    slots = [_dump_slot(slot) for slot in stream.slots]
    return {"phase": stream.phase.value, "slots": slots, "tally": stream.tally.value}


def _load_stream(plain: dict[str, Any]) -> Stream:
    return Stream(Phase(plain["phase"]), [_load_slot(slot) for slot in plain["slots"]], Light(plain["tally"]))


def _dump_slot(slot: Slot) -> dict[str, Any]:
    return {
        "connection": slot.connection,
        "ip": str(slot.ip),
        "endpoint": [str(slot.endpoint.ip), slot.endpoint.port],
        "register": _dump_register(slot.register),
        "is_ready": slot.is_ready,
        "srt": None if slot.srt is None else slot.srt.value,
        "health": None if slot.health is None else _flat(slot.health),
    }


def _load_slot(plain: dict[str, Any]) -> Slot:
    ip, port = plain["endpoint"]
    return Slot(
        connection=plain["connection"],
        ip=ip_address(plain["ip"]),
        endpoint=Endpoint(ip_address(ip), port),
        register=_load_register(plain["register"]),
        is_ready=plain["is_ready"],
        srt=None if plain["srt"] is None else Srt(plain["srt"]),
        health=None if plain["health"] is None else Sample(**plain["health"]),
    )


def _dump_member(member: Member) -> dict[str, Any]:
    return {**_flat(member), "role": member.role.value, "ip": str(member.ip)}


def _load_member(plain: dict[str, Any]) -> Member:
    return Member(**{**plain, "role": Role(plain["role"]), "ip": ip_address(plain["ip"])})


def _dump_claim(claim: Claim) -> dict[str, Any]:
    return {
        "stream": claim.stream,
        "register": _dump_register(claim.register),
        "awaiting": sorted(claim.awaiting),
        "until_ms": claim.until_ms,
    }


def _load_claim(plain: dict[str, Any]) -> Claim:
    return Claim(plain["stream"], _load_register(plain["register"]), set(plain["awaiting"]), plain["until_ms"])


def _dump_register(register: Register) -> dict[str, Any]:
    return {**_flat(register), "role": None if register.role is None else register.role.value}


def _load_register(plain: dict[str, Any]) -> Register:
    return Register(**{**plain, "role": None if plain["role"] is None else Direction(plain["role"])})


def _flat(value: Any) -> dict[str, Any]:
    """The fields of a slotted dataclass whose values are plain; `dataclasses.asdict` copies them deeply, for a third of
    the time that a change takes."""
    return {name: getattr(value, name) for name in value.__slots__}
