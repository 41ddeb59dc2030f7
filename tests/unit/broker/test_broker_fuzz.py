"""Whatever comes over a socket, the server answers as its documents say, logs no traceback, and goes on."""

from __future__ import annotations

import json
import random
import socket
from typing import Any

import pytest

from tests.unit.broker.contract import TAP
from tests.unit.broker.peer import Peer, settle
from tests.unit.broker.running import running, settings
from tests.unit.web.raw_websocket import frame

COUNTS = [400, pytest.param(20_000, marks=[pytest.mark.long, pytest.mark.timeout(900)])]
KINDS = ("register", "ready", "status", "health", "tally", "session", "punch.ping", "", None, 7)
NAMES = ("port", "stream", "role", "meta", "srt", "rtt", "retransmit", "bitrate", "dropped", "buffer", "state", "x")
VALUES: tuple[Any, ...] = (
    0, 1, -1, 1023, 1024, 5000, 5000.0, 65_535, 65_536, 0.5, 1e300, 2**53, True, None, "", "wide", "close", "none",
    "sender", "receiver", "connected", "error", "program", "off", {}, {"punch": {"publicPort": 1}}, {"a": {"b": []}},
    [], "ä\n",
)  # fmt: skip
GENEROUS = {"messages_per_second": 10**6, "message_burst": 10**6, "violations": 10**6, "outbound_messages": 10**6}


def message(chance: random.Random) -> str:
    names = chance.sample(NAMES, chance.randrange(5))
    members = {"type": chance.choice(KINDS), **{name: chance.choice(VALUES) for name in names}}
    text = json.dumps(members)
    return text if chance.random() < 0.9 else text[: chance.randrange(len(text))]


@pytest.mark.parametrize("count", COUNTS)
async def test_b_010_b_120_b_121_whatever_peers_and_admins_say_the_answers_are_valid(count: int) -> None:
    chance = random.Random(1935)
    before = len(TAP.lines)
    async with running(settings(GENEROUS)) as server:
        made = await server.create(streams=["wide", "close"])
        tokens = [made["token"], *made["peerTokens"].values()]
        peers: list[Peer] = []
        for _ in range(count):
            for one in peers:
                one.pull()
            peers = [peer for peer in peers if peer.is_open]
            if len(peers) < 9:
                peers.append(await server.join("show", chance.choice(tokens), f"127.0.2.{chance.randrange(1, 5)}"))
            peer = chance.choice(peers)
            peer.send(message(chance))
            if chance.random() < 0.03:
                peer.close()
            if chance.random() < 0.1:
                for one in peers:
                    await one.heard()
        state = (await server.ask("GET", "/api/session/show", token=made["token"])).json["state"]
        assert state in ("WAITING", "READY", "CONNECTED")
    assert [line for _, line in TAP.lines[before:] if "failed" in line or "could not be handled" in line] == []


async def test_b_002_b_042_b_069_random_bytes_are_answered_or_closed_and_others_are_served() -> None:
    chance = random.Random(1935)
    before = len(TAP.lines)
    async with running() as server:
        made = await server.create()
        admin = await server.join("show", made["token"])
        for number in range(60):
            sock = server.connect()
            head = b"" if number % 2 else b"POST /api/session HTTP/1.1\r\nHost: x\r\n"
            sock.sendall(head + chance.randbytes(chance.randrange(1, 300)) + b"\r\n\r\n")
            sock.shutdown(socket.SHUT_WR)
            peer = await server.join("show", made["peerTokens"]["default"])
            opcode, mask = chance.randrange(16), chance.random() < 0.8
            peer.write(
                frame(opcode, chance.randbytes(chance.randrange(200)), masked=mask, rsv=chance.choice((0, 0, 0, 4)))
            )
            await settle()
            peer.pull()
            peer.cut()
            sock.close()
        admin.say("tally", state="program")
        assert (await admin.kinds())[-1] == "tally"
    assert [line for _, line in TAP.lines[before:] if "failed" in line or "internal error" in line] == []
