"""What stands of sessions in Redis, before it is sealed and after it was opened: JSON, in these shapes.

    a session    plan, machine, ledger, passphrases, the source that created it, and what of each instance was done
    a tombstone  reason and used payloads, under the key of a session that has ended, until its last token expires
    an entry     what an instance has to tell its connections, in order, of one event

An instance is a process for as long as it is heard of; its connections are named INSTANCE-NUMBER.

`done` has, of each instance, the number of its last event that went into the state. An instance whose command was cut
off looks there whether it took place, so that nothing happens twice.

Pure. What was sealed by us is trusted; a layout that is not ours raises DecodeError.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from punchd.broker import server_messages, snapshot
from punchd.broker.moves import Action, Close, Probe, Registered, Send
from punchd.broker.passphrases import Passphrases
from punchd.broker.server_messages import CloseCode, ErrorCode, ErrorMessage, HealthReport, Reason
from punchd.broker.session import Session
from punchd.broker.state import Policy
from punchd.broker.tokens import Ledger
from punchd.errors import DecodeError

_T = TypeVar("_T")
_JSON = json.JSONEncoder(ensure_ascii=False, check_circular=False, separators=(",", ":"))

Payloads = frozenset[tuple[str | None, int]]


@dataclass(slots=True)
class State:
    """A session as it stood in Redis at `version`. What works on it owns it."""

    session: Session
    ledger: Ledger
    passphrases: Passphrases = field(repr=False)
    source: bytes = field(repr=False)
    salt: bytes = field(repr=False)  # which life of the name it is
    version: int = 0
    done: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Tombstone:
    """What is left of a session: why it ended, and payloads that must not be used again (`tokens.Ledger.former`)."""

    reason: Reason
    former: Payloads


@dataclass(frozen=True, slots=True)
class Say:
    """A text frame for some connections."""

    to: tuple[str, ...]
    text: str = field(repr=False)
    code: ErrorCode | None = None
    is_report: bool = False


Delivery = Say | Close | Probe | Registered


@dataclass(frozen=True, slots=True)
class Wake:
    """A message about a new entry of a stream. `former` is the entry before it; `state` is sealed, or empty."""

    instance: str
    former: bytes
    place: bytes
    fields: tuple[bytes, ...] = field(repr=False)  # as they stand in the stream
    name: str
    version: int
    state: bytes = field(repr=False)


def instance_of(connection: str) -> str:
    """Where a connection is."""
    return connection.rpartition("-")[0]


def place_of_session(name: str, version: int) -> bytes:
    """What a session's state is sealed for."""
    return f"session {name} {version}".encode()


def place_of_entry(instance: str, name: str, version: int) -> bytes:
    """What an entry is sealed for."""
    return f"entry {instance} {name} {version}".encode()


def dump(state: State) -> bytes:
    """A session."""
    return _encode(
        {
            "plan": snapshot.dump_plan(state.session.plan),
            "facts": snapshot.dump(state.session.facts),
            "ledger": state.ledger.to_plain(),
            "passphrases": state.passphrases.to_plain(),
            "source": state.source.hex(),
            "done": state.done,
        }
    )


def load(text: bytes, policy: Policy, salt: bytes, version: int) -> State:
    """A session.

    Raises:
        DecodeError: no such thing; of another version of punchd, perhaps.
    """
    return _read(text, lambda plain: _load(plain, policy, salt, version))


def dump_tombstone(stone: Tombstone) -> bytes:
    """What is left of a session."""
    return _encode({"reason": stone.reason.value, "former": sorted(stone.former, key=repr)})


def load_tombstone(text: bytes) -> Tombstone:
    """What is left of a session.

    Raises:
        DecodeError: no such thing.
    """
    return _read(
        text, lambda plain: Tombstone(Reason(plain["reason"]), frozenset((one, exp) for one, exp in plain["former"]))
    )


def deliveries(actions: Iterable[Action], passphrases: Passphrases) -> dict[str, list[Delivery]]:
    """What actions mean for connections, by instance, in their order."""
    found: dict[str, list[Delivery]] = {}
    for action in actions:
        match action:
            case Send(to, message):
                stream = server_messages.needs_passphrase(message)
                text = server_messages.encode(message, None if stream is None else passphrases.of(stream))
                code = message.code if isinstance(message, ErrorMessage) else None
                by_instance: dict[str, list[str]] = {}
                for connection in to:
                    by_instance.setdefault(instance_of(connection), []).append(connection)
                for instance, ones in by_instance.items():
                    told = Say(tuple(ones), text, code, isinstance(message, HealthReport))
                    found.setdefault(instance, []).append(told)
            case Close(connection) | Probe(connection) | Registered(connection):
                found.setdefault(instance_of(connection), []).append(action)
            case _:
                pass
    return found


def dump_deliveries(ones: Iterable[Delivery]) -> bytes:
    """An entry."""
    return _encode([_dump_delivery(one) for one in ones])


def load_deliveries(text: bytes) -> list[Delivery]:
    """An entry.

    Raises:
        DecodeError: no such thing.
    """
    return _read(text, lambda plain: [_load_delivery(one) for one in plain])


def load_wake(message: bytes) -> Wake:
    """A message; see `redis_scripts`.

    Raises:
        DecodeError: no such thing.
    """
    head, _, rest = message.partition(b"\n")
    try:
        instance, former, place, name, version, size = head.split(b" ")
        end = int(size)
        fields = (b"n", name, b"v", version, b"b", rest[:end])
        return Wake(instance.decode(), former, place, fields, name.decode(), int(version), rest[end:])
    except ValueError:
        raise DecodeError("a message of another layout") from None


def _dump_delivery(one: Delivery) -> list[Any]:
    match one:
        case Say(to, text, code, is_report):
            return ["say", to, text, None if code is None else code.value, is_report]
        case Close(connection, code):
            return ["close", connection, code.value]
        case Probe(connection):
            return ["probe", connection]
        case Registered(connection):
            return ["registered", connection]


def _load_delivery(plain: list[Any]) -> Delivery:
    match plain:
        case ["say", to, text, code, is_report]:
            return Say(tuple(to), text, None if code is None else ErrorCode(code), is_report)
        case ["close", connection, code]:
            return Close(connection, CloseCode(code))
        case ["probe", connection]:
            return Probe(connection)
        case ["registered", connection]:
            return Registered(connection)
        case _:
            raise ValueError("a delivery of another layout")


def _load(plain: dict[str, Any], policy: Policy, salt: bytes, version: int) -> State:
    plan, facts = snapshot.load_plan(plain["plan"]), snapshot.load(plain["facts"])
    return State(
        Session(plan, policy, facts),
        Ledger.from_plain(plain["ledger"]),
        Passphrases(plain["passphrases"]),
        bytes.fromhex(plain["source"]),
        salt,
        version,
        plain["done"],
    )


def _encode(value: Any) -> bytes:
    return _JSON.encode(value).encode()


def _read(text: bytes, read: Callable[[Any], _T]) -> _T:
    try:
        return read(json.loads(text))
    except (ValueError, KeyError, TypeError) as error:
        raise DecodeError(f"a session of another layout ({type(error).__name__})") from None
