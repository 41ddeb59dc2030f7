"""How much of the server one client, one source and all of them may use. Every number with its unit and reason."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of a web server. Whoever passes one hears why, if there is a way to say it, and is let go."""

    connections: int = 10_000  # in all; each costs a descriptor and some 15 KiB
    connections_per_source: int = 200  # of one IPv4 address or one IPv6 /64; an office behind one NAT fits in
    connects_per_second: int = 200  # of such a source; who connects more often is not heard for 10 s
    head_bytes: int = 16_384  # request line and fields
    target_bytes: int = 8_192  # of the request line; RFC 9110 §4.1 asks for 8,000 octets at least
    fields: int = 100  # of one head
    body_bytes: int = 65_536  # of a request, once its chunks are joined
    tls_s: float = 10.0  # for the TLS handshake
    head_s: float = 10.0  # for a head, from the connection or from its first byte
    idle_s: float = 75.0  # between two requests of a connection
    body_s: float = 20.0  # for a whole body
    write_s: float = 20.0  # how long a client may leave what it was sent unread
    linger_s: float = 1.0  # after the last answer: what still comes in is read away, so that no RST destroys the answer
    message_bytes: int = 65_536  # of a WebSocket message
    unread_bytes: int = 1 << 20  # of messages queued for a WebSocket client
    ping_s: float = 30.0  # of silence before a WebSocket client is pinged; as long again without a sign ends it
    close_s: float = 5.0  # for the client's half of the closing handshake
