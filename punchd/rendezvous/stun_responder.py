"""What a STUN server answers, from which place and to which port. Pure: bytes in, bytes out.

    a request arrives                                          the answer
    anything but one whole Binding request                     none
    no attributes                                              success, from here
    CHANGE-REQUEST, UDP, second address there                  success, from the place that it names
    CHANGE-REQUEST, PADDING or RESPONSE-PORT over TCP          error 420: a connection has its two ends
    the same without a second address                          error 420 (RFC 5780 §6.1)
    RESPONSE-PORT and PADDING                                  error 400 (the same section)
    RESPONSE-PORT below 1024                                   error 400
    RESPONSE-PORT else                                         success, to that port of the same address
    an attribute that must be understood and is not            error 420

**Reflection.** Whoever forges a source address has the answer sent there. A bare request of 20 bytes is answered by 32
(IPv4) where there is no second address, by 68 where there is one; with IP and UDP headers that is 48 bytes against 60
or 96, so a factor of 1.25 or 2.0 (IPv6: 68 against 92 or 164, 1.4 or 2.4). RFC 5780 wants each of these attributes in
each answer; coturn's is longer by SOFTWARE. An error 420 answers 24 bytes by 56: a factor of 1.6. No request is
answered at a higher ratio than these, and nobody faster than the limit on each source allows
(`punchd.rendezvous.stun_server`).

**RESPONSE-PORT** sends the answer to a port that did not ask. It reaches no further than a forged source would, and
not even another address; but it needs no forging. So it is honoured, as the lifetime test of RFC 5780 §4.6 cannot
do without, for the ports where clients live, and not for those below 1024, where services answer strangers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from punchd.errors import DecodeError
from punchd.rendezvous.stun_layout import Place
from punchd.wire import stun, stun_server

_LEAST_RESPONSE_PORT = 1024
_BARE_SIZE = stun.HEADER_SIZE


class Answer(NamedTuple):
    """What to send: from which place (its index), and to which port of the address that asked."""

    payload: bytes
    place: int
    port: int


class Responder:
    """Answers for a server on these places (`punchd.rendezvous.stun_layout.places`)."""

    def __init__(self, places: Sequence[Place]) -> None:
        self._turns = [place.turns for place in places]
        # [asked][flags]: OTHER-ADDRESS is the other of the place that was asked, whoever answers (RFC 5780 table 1)
        addresses = [(place.endpoint.ip.packed, place.endpoint.port) for place in places]
        self._origins = [
            [stun_server.Origin.of(addresses[turn], addresses[place.turns[3]]) for turn in place.turns]
            for place in places
        ]

    def answer_datagram(self, data: bytes, seen: stun_server.Address, place: int) -> Answer | None:
        """What a datagram is answered that came from `seen` to `place`."""
        origins = self._origins[place]
        if len(data) == _BARE_SIZE and data.startswith(stun_server.BARE_REQUEST):
            origin = origins[0] if origins else None
            return Answer(stun_server.encode_bare_success(data[4:], seen, origin), place, seen[1])
        if not stun_server.is_request(data):
            return None
        try:
            request = stun_server.decode_request(data, behaviour=bool(origins))
        except DecodeError:
            return None
        if request.unknown:
            return Answer(stun_server.encode_refusal(request, 420), place, seen[1])
        port = seen[1]
        if request.response_port is not None:
            if request.padding is not None or request.response_port < _LEAST_RESPONSE_PORT:
                return Answer(stun_server.encode_refusal(request, 400), place, port)
            port = request.response_port
        if not origins:
            return Answer(stun_server.encode_success(request, seen, None), place, port)
        flags = request.change_address << 1 | request.change_port
        return Answer(stun_server.encode_success(request, seen, origins[flags]), self._turns[place][flags], port)

    def answer_frame(self, data: bytes, seen: stun_server.Address, place: int) -> bytes | None:
        """What one message on a TCP connection is answered.

        Args:
            data: a whole message with the magic cookie (`punchd.wire.stun.frame_size`).

        Raises:
            DecodeError: a request that is malformed: the connection is of no use any more.
        """
        if not stun_server.is_request(data):
            return None
        request = stun_server.decode_request(data, behaviour=False)
        if request.unknown:
            return stun_server.encode_refusal(request, 420)
        origins = self._origins[place]
        return stun_server.encode_success(request, seen, origins[0] if origins else None)
