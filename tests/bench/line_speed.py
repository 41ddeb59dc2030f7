"""Reading a request line, beside json.loads on a message of the same content."""

from __future__ import annotations

import json
import timeit
from ipaddress import ip_address

import trio

from punchd.control.requests import Rules, format_respond, parse_request
from punchd.endpoint import PortSet
from punchd.wire import token as tokens

ROUNDS = 20_000


async def main() -> None:
    card = tokens.Card(ip_address("203.0.113.7"), PortSet((40000,)), (50000,), body=bytes(16))
    text = tokens.encode(tokens.Token(tokens.Kind.OFFER, bytes(8), 1, 3, card))
    line = format_respond("r9", text).encode() + b"|peer=203.0.113.7;lport=40000"
    message = json.dumps({"verb": "respond", "id": "r9", "token": text, "peer": "203.0.113.7", "lport": 40000})
    rules = Rules(("udp",))
    ours = min(timeit.repeat(lambda: parse_request(line, rules), number=ROUNDS, repeat=3)) / ROUNDS
    reference = min(timeit.repeat(lambda: json.loads(message), number=ROUNDS, repeat=3)) / ROUNDS
    await trio.lowlevel.checkpoint()
    print(f"lines: a respond line, token decoded and addresses checked: {ours * 1e6:.1f} us")
    print(f"  ratio       {ours / reference:.1f} of json.loads on the same content, nothing checked")
