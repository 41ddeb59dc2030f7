"""Settings of the rendezvous server: a TOML file and the command line become one frozen value, or one clear error.

Pure: `parse` takes the file's bytes. How knobs are declared and refused: `punchd.knobs`.

Source: rendezvous specification, constants, §5, §6, D-07, D-11, D-18, D-19.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from punchd import knobs
from punchd.errors import ConfigError
from punchd.knobs import knob
from punchd.redis import url as redis_url
from punchd.rendezvous import views

HTTP = ("*:5025",)
UDP = ("*:5024",)
STUN = ("*:3478",)
METRICS = ("127.0.0.1:5026",)
ON_ADDRESS_CHANGE = ("accept", "reverify")
MEMORY = redis_url.MEMORY
_PLACES = ("http", "udp", "stun", "metrics")
_PATHS = ("tls_cert", "tls_key")


@dataclass(frozen=True, slots=True)
class Timing:
    """The seed's times; every client must know of a change."""

    interval: int = knob(30, "seconds between two pulses of a client", 1, 3600)
    grace: int = knob(5, "seconds that a pulse may be late before its client is PENDING", 0, 3600)
    error_time: int = knob(180, "seconds after a missed pulse until a client is removed", 1, 86_400)

    @property
    def exact(self) -> views.Timing:
        """For the table of clients."""
        return views.Timing(float(self.interval), float(self.grace), float(self.error_time))


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the server one client, one source (an IPv4 address, an IPv6 /64) and all of them may use."""

    clients: int = knob(100_000, "clients at one time, 0.5 KB each; ones that never sent a pulse make room", 1, 10**7)
    registrations_per_minute: int = knob(30, "registrations a minute and source", 1, 10**6)
    registration_burst: int = knob(10, "registrations of a source at once", 1, 10**6)
    verifications_per_minute: int = knob(60, "calls of /verify a minute and client", 1, 10**6)
    verification_burst: int = knob(10, "calls of /verify of a client at once", 1, 10**6)
    lookups_per_second: int = knob(10, "look-ups of clients and aliases a second and client", 1, 10**6)
    lookup_burst: int = knob(30, "look-ups of a client at once", 1, 10**6)
    signals_per_second: int = knob(10, "signals sent a second and client", 1, 10**6)
    signal_burst: int = knob(20, "signals sent by a client at once", 1, 10**6)
    bindings_per_minute: int = knob(10, "bindings of an alias a minute and client; each is a signature", 1, 10**6)
    binding_burst: int = knob(5, "bindings of a client at once", 1, 10**6)
    requests_per_second: int = knob(200, "HTTP requests a second and source", 1, 10**6)
    request_burst: int = knob(400, "HTTP requests of a source at once", 1, 10**6)
    unknown_replies_per_second: int = knob(20, "replies a second and source to pulses with unknown keys", 1, 10**6)
    sources: int = knob(65_536, "sources or clients that each of these limits remembers", 16, 10**7)
    aliases_per_client: int = knob(4, "aliases bound to one client", 1, 1000)
    signal_bytes: int = knob(1024, "bytes of a signal", 256, 65_536)
    signal_queue: int = knob(32, "signals that wait for one client", 1, 10_000)
    signal_seconds: int = knob(180, "how long a signal waits", 1, 86_400)
    signal_memory: int = knob(64 << 20, "bytes that all waiting signals may cost", 1 << 16, 1 << 40)
    wait_seconds: int = knob(60, "how long a long poll may wait", 1, 600)
    connections: int = knob(10_000, "HTTP connections in all", 1, 10**6)
    connections_per_source: int = knob(200, "HTTP connections of one source", 1, 10**6)
    connects_per_second: int = knob(
        200, "HTTP connections that a source may open a second; beyond, it is not heard for 10 s", 1, 10**6
    )
    datagrams_per_second: int = knob(
        1000,
        "datagrams a second of one address and port; one that sends more is not heard for 10 s",
        1,
        10**6,
    )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the server is told from outside."""

    http: tuple[str, ...] = knob(HTTP, "where HTTP is served, HOST:PORT; `*` is every address")
    udp: tuple[str, ...] = knob(UDP, "where pulses are taken, as above")
    stun: tuple[str, ...] = knob(STUN, "where STUN is served, UDP and TCP, ADDRESS:PORT; none without")
    ipv6: bool = knob(True, "whether `*` includes IPv6, where the host has it")
    tls_cert: str | None = knob(None, "certificate chain in PEM; read again on SIGHUP")
    tls_key: str | None = knob(None, "its private key in PEM")
    insecure: bool = knob(False, "serve plain HTTP to others than this host: everybody on the way reads all keys")
    trusted_proxies: tuple[str, ...] = knob((), "addresses of reverse proxies whose X-Forwarded-For is believed")
    store: str = knob(
        MEMORY, "memory, or the URL of a Redis that servers share: redis://HOST:PORT/NUMBER, rediss://, unix://"
    )
    metrics: tuple[str, ...] = knob(METRICS, "where /metrics is served, HOST:PORT; none without")
    on_address_change: str = knob("accept", "what a pulse from a new address gets: accept, or reverify for 1050")
    require_same_ip: bool = knob(False, "take pulses only from the address that registered or verified over HTTP")
    log_level: str = knob("info", "least level that is logged; addresses only at debug")
    log_format: str = knob("json", "text or json")
    timing: Timing = field(default_factory=Timing, metadata={"doc": "a table, see Timing"})
    limits: Limits = field(default_factory=Limits, metadata={"doc": "a table, see Limits"})

    @property
    def policy(self) -> views.Policy:
        """What is demanded beyond a key."""
        return views.Policy(self.on_address_change == "reverify", self.require_same_ip)

    @property
    def plain_places(self) -> tuple[str, ...]:
        """Where HTTP would be served in clear to others than this host."""
        if self.tls_cert is not None:
            return ()
        return tuple(place for place in self.http if not knobs.is_loopback(place.rpartition(":")[0].strip("[]")))

    def listening(self, places: tuple[str, ...]) -> tuple[str, ...]:
        """`places` as `punchd.web.listen` takes them: without IPv6, `*` is 0.0.0.0."""
        return places if self.ipv6 else tuple(re.sub(r"^\*:", "0.0.0.0:", place) for place in places)


def parse(text: bytes, where: str) -> Settings:
    """Settings from a configuration file's bytes; `where` names it in errors.

    Raises:
        ConfigError: not TOML, a key that is not known, a value that does not fit.
    """
    return build(knobs.toml(text, where), where)


def build(table: Mapping[str, Any], where: str, base: Settings | None = None) -> Settings:
    """`base` (or the defaults) with the values of `table` (named as in the file) put over it.

    Raises:
        ConfigError: a key that is not known, a value that does not fit.
    """
    return knobs.overlay(base or Settings(), table, where, tables=("timing", "limits"), read=_value)


def check(settings: Settings) -> None:
    """Whether the settings go together.

    Raises:
        ConfigError: they do not.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("tls-cert and tls-key: expected both or none, got one")
    if not settings.http:
        raise ConfigError("http: expected one HOST:PORT or more, got none")
    if not settings.udp:
        raise ConfigError("udp: expected one HOST:PORT or more, got none")
    if settings.plain_places and not settings.insecure:
        raise ConfigError(
            f"http {settings.plain_places[0]}: expected tls-cert and tls-key, or a loopback address behind a proxy: "
            "over plain HTTP everybody on the way reads the clients' keys (insecure = true permits it)"
        )


def _value(attribute: str, value: Any, where: str) -> Any:
    if attribute in _PLACES:
        return tuple(knobs.place(text, where) for text in knobs.strings(value, where))
    if attribute in _PATHS:
        return knobs.path(value, where)
    match attribute:
        case "ipv6" | "insecure" | "require_same_ip":
            return knobs.boolean(value, where)
        case "trusted_proxies":
            return tuple(knobs.ip(text, where) for text in knobs.strings(value, where))
        case "on_address_change":
            return knobs.choice(value, where, ON_ADDRESS_CHANGE)
        case "log_level":
            return knobs.choice(value, where, knobs.LOG_LEVELS)
        case "log_format":
            return knobs.choice(value, where, knobs.LOG_FORMATS)
        case _:
            return redis_url.choice(value, where)
