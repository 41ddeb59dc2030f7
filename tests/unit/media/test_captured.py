"""What goes over real sockets, read on the way: both decoders agree, and the other one's tables make the same bytes."""

from __future__ import annotations

import random
import socket
from contextlib import ExitStack
from typing import Any

import trio

from punchd.media.datagrams import parse
from punchd.media.options import Options
from punchd.media.settings import ResponderSettings
from punchd.media.trio_initiator import Initiator
from punchd.media.trio_responder import Responder
from tests.unit.media import oracle
from tests.unit.media.pairs import PATIENCE_S, connected, until
from tests.unit.media.parts import B
from tests.unit.media.test_codec_properties import as_words

FLAGS = {kind: flag for flag, kind in oracle.KINDS.items()} | {"connection-id": 0x1000}


def rebuilt(words: dict[str, Any]) -> bytes:
    """The datagram of these words, by the tables of the other decoder."""
    kind = words["kind"]
    tables: dict[str, tuple[tuple[tuple[str, int, int], ...], ...]] = {
        "data": (oracle.HEADER,),
        "fragment": (oracle.HEADER, oracle.FRAGMENT),
        "connection-id": (oracle.CONNECTION_ID,),
    }
    values: dict[str, Any] = {
        "flag": FLAGS[kind],
        "flags": int(words.get("accept", False)),
        "sequence": 0,
        "qpc": 0,
        "qpf": 0,
    } | words
    fields = [field for table in tables.get(kind, (oracle.HEADER, oracle.CONTROL)) for field in table]
    data = bytearray(max(offset + size for _, offset, size in fields))
    for name, offset, size in fields:
        value = values[name]
        data[offset : offset + size] = value.ljust(size, b"\0") if name == "id" else value.to_bytes(size, "little")
    for option, number in words.get("options", {}).items():
        size = oracle.OPTION_SIZES[option]
        data += option.to_bytes(2, "little") + size.to_bytes(2, "little") + number.to_bytes(size, "little")
    payload: bytes = words.get("payload", b"")
    return bytes(data) + payload


async def copy(source: socket.socket, target: socket.socket, captured: list[bytes]) -> None:
    """A relay that sees every datagram."""
    source.setblocking(False)
    while True:
        await trio.lowlevel.wait_readable(source)
        captured.append(source.recv(65_536))
        target.send(captured[-1])


async def test_msp_c03_msp_c06_msp_c12_msp_c13_msp_c14_msp_c31_both_decoders_agree_on_a_captured_session() -> None:
    payloads = [random.Random(size).randbytes(size) for size in (0, 1, 1174, 1175, 5000)]
    captured: list[bytes] = []
    told = ResponderSettings(options=Options(max_total=7_000_000))
    with ExitStack() as stack:
        (here, near), (far, there) = connected(stack), connected(stack)
        with trio.fail_after(PATIENCE_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(copy, near, far, captured)
                nursery.start_soon(copy, far, near, captured)
                async with (
                    Responder.open(here, rate_bps=None, settings=told) as responder,
                    Initiator.open(there, options=Options(max_datagram=1200, rate=8_000_000_000)) as initiator,
                ):
                    stream = await responder.accept()
                    for payload in payloads:
                        await stream.send(payload)
                        assert (await initiator.receive()).take() == payload
                    initiator.reidentify(B)
                    await until(lambda: stream.id == B)
                nursery.cancel_scope.cancel()
    kinds = []
    for data in captured:
        answer = oracle.decode(data)
        assert isinstance(answer, dict)
        assert as_words(parse(data)) == answer
        assert rebuilt(answer) == data
        kinds.append(str(answer["kind"]))
    assert set(kinds) == set(FLAGS)
    assert kinds.count("fragment") == 2 + 5
