"""How far away the public Internet begins: a traceroute of a few hops that needs no capability.

Theory of operation. A packet with a low TTL is to leave the own NATs and to die before the peer's. How many hops that
takes is nowhere written, but every router on the way says where it is: a datagram whose TTL runs out there comes back
as ICMP time exceeded. Behind a NAT the routers have private addresses as far as the last NAT; so the first one with a
public address is the first behind it, and its index is the low TTL.

- **Asking.** An ordinary UDP socket: the TTL is an ancillary value of `sendmsg`, and with IP_RECVERR the kernel keeps
  the ICMP errors for us in the socket's error queue, with the address of the router (`punchd.kernel.udp`). No
  capability is needed: measured as uid 65534 without any. All hops are asked at once, and those that matter and were
  silent once more.
- **Ports.** Hop N is asked at port 33434 + N - 1, as traceroute(8) does. A router must quote no more
  than the first 8 bytes behind the IP header (RFC 792), the ports and not the payload: only the port can tell which
  hop an error is about. Nobody listens there, firewalls know these ports, and an operator who sees them knows what
  they are. The price: a NAT that maps by destination makes a mapping for each hop, so a NAT that counts its ports must
  not be asked while they are being predicted (`punchd.nat.low_ttl`).
- **At least 2.** A datagram with TTL 1 dies in the nearest box before its NAT has noted it: Linux conntrack confirms a
  flow only when the packet leaves (measured: a stranger's answer to a mapping so "opened" is dropped, to one opened
  with TTL 2 it comes through). So hop 1 counts as 2, even where a home router answers with its public address.
- **The NAT itself.** A router may answer with its outside address. One that has the address which STUN saw is the NAT,
  not what stands behind it, and does not count.
- **Silence.** A hop that does not answer is passed over: the TTL is then that of the first public hop that does, which
  has left the NATs just as well. A NAT that swallows ICMP, or does not translate it, leaves nothing to learn.
- **Not by TTL.** A port unreachable or an administrative prohibition is no hop. It is the target, or a firewall that
  refuses: nothing behind it can be seen, and if no public hop came before, nothing is learnt. So a server in the same
  private network teaches nothing.

What it cannot see: a firewall that does not translate, and a carrier's NAT that answers with a public address other
than its customer's. Either may be the first public hop, and the packet dies there unnoted. The techniques then need a
message more, since they go to full TTL when the peer says that it is ready.

Anyone who sees our datagrams, or guesses the port, can forge an answer; all that is won is another TTL from 2 to
MOST_HOPS.

Source: ip(7) IP_RECVERR, RFC 792, RFC 4443 §3.3. Which addresses are public is decided by the tables in
`punchd.endpoint`: RFC 1918, RFC 6598, RFC 4193 and link-local ones are not, documentation ranges are.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass

import trio

from punchd.endpoint import Endpoint, IPAddress, is_global
from punchd.kernel.udp import UdpSocket
from punchd.wire import icmp

MOST_HOPS = 8  # carriers put several private hops before their NAT; a NAT further away is not found
FIRST_PORT = 33_434  # traceroute(8): 32768 + 666
ROUNDS = 2  # a hop is asked again once: the datagram, or its answer, may have been lost
PATIENCE_S = 0.5  # of each round; nearby routers answer in milliseconds, geostationary satellites take 0.6 s
LEAST = 2

_PAYLOAD = b"punchd traceroute"  # for whoever looks at a capture


@dataclass(frozen=True, slots=True)
class Hop:
    """Who answered for one TTL.

    Attributes:
        address: the sender of the ICMP error.
        expired: the TTL ran out there; False: it came to an end for another reason.
    """

    address: IPAddress
    expired: bool


def first_public_hop(hops: Mapping[int, Hop], own_public: IPAddress | None) -> int | None:
    """The index of the first hop behind the own NATs; None if that is not to be seen.

    Args:
        hops: who answered, by TTL, 1 to MOST_HOPS; the silent ones are missing.
        own_public: the address that STUN servers saw.
    """
    for index in sorted(hops):
        hop = hops[index]
        if not hop.expired:
            return None
        if is_global(hop.address) and hop.address != own_public:
            return index
    return None


def low_ttl(hops: Mapping[int, Hop], own_public: IPAddress | None) -> int | None:
    """The low TTL that these hops teach, 2 to MOST_HOPS; None if they teach nothing."""
    index = first_public_hop(hops, own_public)
    return None if index is None else max(index, LEAST)


def undecided(hops: Mapping[int, Hop], own_public: IPAddress | None) -> list[int]:
    """The hops whose answer could still change `low_ttl`, in ascending order."""
    index = first_public_hop(hops, own_public)
    if index is not None and index <= LEAST:
        return []
    ends = [number for number, hop in hops.items() if not hop.expired]
    border = index if index is not None else min(ends, default=MOST_HOPS + 1)
    return [number for number in range(1, border) if number not in hops]


async def trace(source: IPAddress, target: IPAddress, own_public: IPAddress | None) -> dict[int, Hop]:
    """Who stands on the way from `source`, one of this host's addresses, to `target`: what `low_ttl` takes.

    Returns as soon as nothing more could matter, at the latest after ROUNDS * PATIENCE_S. Sends at most
    ROUNDS * MOST_HOPS datagrams, from a port of its own. Cancelling it leaves nothing behind.

    Raises:
        PunchError: no such local address, no route, a local firewall that forbids it.
    """
    hops: dict[int, Hop] = {}
    with contextlib.closing(UdpSocket(Endpoint(source, 0))) as asking:
        for _ in range(ROUNDS):
            for index in undecided(hops, own_public):
                asking.send(_PAYLOAD, Endpoint(target, FIRST_PORT + index - 1), index)
            with trio.move_on_after(PATIENCE_S):
                while undecided(hops, own_public):
                    await asking.readable()
                    if asking.peek() is not None:
                        asking.discard()  # somebody sends to us; nobody was asked to
                    hops = _answers(asking, target) | hops
    return hops


def _answers(asking: UdpSocket, target: IPAddress) -> dict[int, Hop]:
    """The errors that wait, at most a round's number of them."""
    found: dict[int, Hop] = {}
    for _ in range(MOST_HOPS):
        if (error := asking.complained()) is None:
            break
        index = error.complaint.port - FIRST_PORT + 1
        if error.about == target and 1 <= index <= MOST_HOPS:
            found.setdefault(index, Hop(error.complaint.router, error.complaint.kind is icmp.Kind.TIME_EXCEEDED))
    return found
