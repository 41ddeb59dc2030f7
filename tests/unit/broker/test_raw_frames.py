"""Frames that break RFC 6455 in every field, against a running broker: closed with 1011, and nobody else notices.

Those that the shell's own tests have are taken from there, where they end in the codes of the RFC.
"""

from __future__ import annotations

import struct

from tests.unit.broker.peer import Peer, settle
from tests.unit.broker.running import Running, running, settings
from tests.unit.web.raw_websocket import BINARY, CLOSE, CONT, PING, PONG, TEXT, closing, frame
from tests.unit.web.test_websocket import VIOLATIONS

CONTROL = (CLOSE, PING, PONG)


def announced(opcode: int, form: int, size: int) -> bytes:
    """A head whose length is written in the 2 bytes of form 126 or the 8 of form 127, and its masking key."""
    return struct.pack("!BB", 0x80 | opcode, 0x80 | form) + struct.pack("!H" if form == 126 else "!Q", size) + bytes(4)


BROKEN = {
    **{what: data for what, data, _ in VIOLATIONS},
    **{f"reserved bits {rsv:03b} of opcode {op}": frame(op, b"", rsv=rsv) for rsv in range(1, 8) for op in (1, 2, 9)},
    **{f"opcode {op}": frame(op, b"{}") for op in (*range(3, 8), *range(11, 16))},
    **{f"opcode {op} without a mask": frame(op, b"", masked=False) for op in (TEXT, BINARY, *CONTROL)},
    **{f"a fragment of control {op}": frame(op, b"", fin=False) for op in CONTROL},
    **{f"control {op} of 126 bytes": frame(op, b"x" * 126) for op in CONTROL},
    **{f"control {op} of 16 MiB": announced(op, 127, 1 << 24) for op in CONTROL},
    "one byte too many": frame(TEXT, b" " * 16_385),
    "one byte too many, announced": announced(TEXT, 126, 16_385),
    "4 GiB, announced": announced(TEXT, 127, 1 << 32),
    "the sign bit, announced": announced(TEXT, 127, (1 << 63) + 1),
    "too much in two": frame(TEXT, b" " * 16_384, fin=False) + frame(CONT, b" "),
    "too much in a thousand": frame(TEXT, b" ", fin=False) + frame(CONT, b" " * 17, fin=False) * 1000,
    "a message inside another": frame(TEXT, b"{", fin=False) + frame(BINARY, b"}"),
    "a continuation after the end": frame(TEXT, b"{", fin=False) + frame(CONT, b"}") + frame(CONT, b""),
    "a continuation after a ping": frame(PING, b"") + frame(CONT, b""),
    "an overlong character": frame(TEXT, b"\xc0\xaf"),
    "a character beyond U+10FFFF": frame(TEXT, b"\xf4\x90\x80\x80"),
    "a character cut by the end": frame(TEXT, b"\xf0\x9f", fin=False) + frame(CONT, b"\x98"),
    "a reason cut in a character": closing(1000, b"\xf0\x9f"),
    **{
        f"close {code}": closing(code)
        for code in (0, 1, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65_535)
    },
}
# What a client may close with is echoed; a close frame without a code is answered by one without (RFC 6455 §5.5.1).
PARTINGS = {
    **{code: closing(code, b"bye") for code in (1000, 1001, 1002, 1003, *range(1007, 1015), 3000, 3999, 4000, 4999)},
    0: frame(CLOSE),
    1000: closing(1000, b"x" * 123),
}


async def ended(server: Running, token: str, data: bytes) -> Peer:
    """A conversation in which these bytes were said, once the server has closed it."""
    peer = await server.join("show", token)
    peer.write(data)
    await peer.ended()
    return peer


async def test_b_002_b_069_c_05_whatever_is_wrong_with_a_frame_the_connection_is_closed_with_1011() -> None:
    assert len(BROKEN) >= 80
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        for what, data in BROKEN.items():
            peer = await ended(server, made["peerTokens"]["default"], data + frame(TEXT, b'{"type":"ready"}'))
            assert (peer.close_code, peer.texts) == (1011, []), what
        admin.say("tally", state="program")
        assert (await admin.kinds())[-1] == "tally"
        assert len(server.broker.sockets) == 1


async def test_b_069_a_clients_own_close_is_answered_with_its_own_code() -> None:
    async with running() as server:
        made = await server.create()
        for code, data in PARTINGS.items():
            peer = await server.join("show", made["token"])
            await peer.heard()
            peer._asked_to_close = True
            peer.write(data + frame(TEXT, b'{"type":"tally","state":"program"}'))
            assert await peer.ended() == code
            assert len(peer.texts) == 1, "nothing after a close frame is heard"
        await settle()
        assert len(server.broker.sockets) == 0


async def test_b_061_frames_that_look_odd_and_are_allowed_are_taken() -> None:
    tally = b'{"type":"tally","state":"program"}'
    halves = [frame(TEXT, tally[:9], fin=False), frame(CONT, tally[9:])]
    odd = {
        "in two": b"".join(halves),
        "in bytes, with empty fragments": frame(TEXT, b"", fin=False)
        + b"".join(frame(CONT, bytes([byte]), fin=False) + frame(CONT, b"", fin=False) for byte in tally)
        + frame(CONT, b""),
        "around pings": halves[0] + frame(PING, b"x" * 125) + frame(PONG, b"unasked") + halves[1],
        "with blanks up to the limit": frame(TEXT, tally + b" " * (16_384 - len(tally))),
        # RFC 6455 §5.2 wants the shortest form of a sender; what to do with a longer one it does not say.
        "with a length that is longer than need be": announced(TEXT, 127, len(tally)) + tally,
        "with a mask of zeros": frame(TEXT, b"", masked=True)[:1] + bytes([0x80 | len(tally)]) + bytes(4) + tally,
    }
    async with running(settings({"message_burst": 1000})) as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        await admin.heard()
        for what, data in odd.items():
            admin.write(data)
            assert await admin.kinds() == ["tally"], what
            for byte in data[:2000]:
                admin.write(bytes([byte]))
            admin.write(data[2000:])
            assert await admin.kinds() == ["tally"], what
