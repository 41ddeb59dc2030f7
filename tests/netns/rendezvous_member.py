"""A program with a rendezvous client: tells what becomes of it on stdout, a JSON object a line. It renews what is lost.

python -m tests.netns.rendezvous_member URL INTERVAL_S

{"id": HEX}     whom it is, at the beginning and after each `renew`
{"lost": ID}    that the server has forgotten it
{"signal": …}   what came
"""

from __future__ import annotations

import json
import sys

import trio

from punchd.rendezvous.client import IdentityLostError, Rendezvous, Timing


def say(**word: str) -> None:
    print(json.dumps(word), flush=True)


async def main(url: str, interval_s: float) -> None:
    async with Rendezvous.open(url, timing=Timing(interval_s=interval_s, repeat_s=0.5)) as service:
        while True:
            say(id=service.client_id.hex())
            try:
                while True:
                    say(signal=(await service.receive()).text)
            except IdentityLostError:
                say(lost=service.client_id.hex())
            await service.renew()


if __name__ == "__main__":
    trio.run(main, sys.argv[1], float(sys.argv[2]))
