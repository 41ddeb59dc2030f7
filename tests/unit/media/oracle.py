"""A second decoder, made from the seed's tables alone: (name, offset, size), and the checks of §8 in their order.

It shares nothing with the first but the seed. It answers in words: what kind, which fields, or why the datagram is to
be dropped.
"""

from __future__ import annotations

HEADER = (("flag", 0, 2), ("sequence", 2, 8), ("qpc", 10, 8), ("qpf", 18, 8))
FRAGMENT = (("offset", 26, 8), ("total", 34, 8))
CONTROL = (("version", 26, 1), ("flags", 27, 1), ("id", 30, 37))
CONNECTION_ID = (("flag", 0, 2), ("id", 2, 37))
KINDS = {0x0000: "data", 0x0001: "fragment", 0x0100: "syn", 0x0101: "syn-ack", 0x0102: "ack"}
OPTION_SIZES = {0x8001: 8, 0x8002: 2, 0x8003: 8}

Answer = str | dict[str, object]


def _number(data: bytes, offset: int, size: int) -> int:
    return sum(byte << 8 * place for place, byte in enumerate(data[offset : offset + size]))


def _fields(data: bytes, *tables: tuple[tuple[str, int, int], ...]) -> dict[str, object]:
    return {
        name: data[offset : offset + size] if name == "id" else _number(data, offset, size)
        for table in tables
        for name, offset, size in table
    }


def _name(field: object) -> bytes | None:
    assert isinstance(field, bytes)
    return field[: field.index(0)] if 0 in field else None


def options(data: bytes) -> dict[int, int]:
    """Known options by type."""
    found: dict[int, int] = {}
    for _ in range(32):
        if len(data) < 4:
            break
        kind, size = _number(data, 0, 2), _number(data, 2, 2)
        if len(data) < 4 + size:
            break
        if OPTION_SIZES.get(kind) == size:
            found.setdefault(kind, _number(data, 4, size))
        data = data[4 + size :]
    return found


def decode(data: bytes) -> Answer:
    """The fields of a datagram, or why it is dropped."""
    if len(data) < 2:
        return "SHORT"
    flag = _number(data, 0, 2)
    if flag == 0x1000:
        if len(data) < 39:
            return "CONNECTION_ID_SHORT"
        name = _name(_fields(data, CONNECTION_ID)["id"])
        return "CONNECTION_ID_UNTERMINATED" if name is None else {"kind": "connection-id", "id": name}
    if flag not in KINDS:
        return "UNKNOWN_FLAG"
    if len(data) < 26:
        return "HEADER_SHORT"
    answer: dict[str, object] = {"kind": KINDS[flag]}
    if flag == 0x0001 and len(data) < 42:
        return "FRAGMENT_SHORT"
    if flag <= 1:
        answer |= _fields(data, HEADER, FRAGMENT if flag else ())
        return answer | {"payload": data[42 if flag else 26 :]}
    if len(data) < 67:
        return "CONTROL_SHORT"
    body = _fields(data, CONTROL)
    if body["version"] != 1:
        return {"kind": "syn", "version": body["version"]} if flag == 0x0100 else "VERSION"
    name = _name(body["id"])
    if name is None:
        return "CONTROL_ID_UNTERMINATED"
    answer |= {"version": 1, "id": name, "options": options(data[67:])}
    if flag == 0x0101:
        assert isinstance(body["flags"], int)
        answer["accept"] = body["flags"] % 2 == 1
        if answer["accept"] and not name:
            return "ASSIGNED_ID_EMPTY"
    return answer
