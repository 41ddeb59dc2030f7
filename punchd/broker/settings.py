"""Settings of the session broker: a TOML file and the command line become one frozen value, or one clear error.

Pure: `parse` takes the file's bytes. How knobs are declared and refused: `punchd.knobs`.

Source: broker specification §6.1, §8 to §10, C-07, C-14, C-23, C-26, C-27, C-41.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from punchd import knobs
from punchd.broker.endpoints import Reported
from punchd.broker.health import Thresholds
from punchd.broker.passphrases import Scope
from punchd.broker.state import Policy
from punchd.errors import ConfigError
from punchd.knobs import knob
from punchd.redis import url as redis_url

LISTEN = ("*:8787",)  # the port of the reference implementation's development server
METRICS = ("127.0.0.1:8788",)
MEMORY = redis_url.MEMORY
ANY_ORIGIN = "*"
TALLY_FROM = ("admin", "admin+receiver")
LOG_ADDRESSES = ("full", "truncated", "none")

_PLACES = ("listen", "metrics")
_PATHS = ("tls_cert", "tls_key", "secret_file", "security_log")
_SWITCHES = ("insecure_dev", "behind_tls_proxy", "admin_may_register")
_CHOICES: Mapping[str, tuple[str, ...]] = {
    "reported_endpoint": tuple(one.value for one in Reported),
    "tally_from": TALLY_FROM,
    "passphrase_scope": tuple(one.value for one in Scope),
    "log_addresses": LOG_ADDRESSES,
    "log_level": knobs.LOG_LEVELS,
    "log_format": knobs.LOG_FORMATS,
}
_SITE_KEY = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_ORIGIN = re.compile(r"https?://[A-Za-z0-9.:\[\]-]{1,255}")
_PUBLIC_URL = re.compile(r"(https?)://(?:[A-Za-z0-9.-]{1,253}|\[[0-9A-Fa-f:.]{2,45}\])(?::[0-9]{1,5})?")


@dataclass(frozen=True, slots=True)
class Limits:
    """How much of the server one connection, one token, one source and all of them may use.

    A source is an IPv4 address or the /64 of an IPv6 address.
    """

    creations_per_minute: int = knob(10, "sessions created a minute and source", 1, 10**6)
    upgrades_per_minute: int = knob(30, "WebSockets opened a minute and source", 1, 10**6)
    requests_per_minute: int = knob(120, "other HTTP requests a minute and source", 1, 10**6)
    pages_per_minute: int = knob(600, "pages and files of the web page fetched a minute and source", 1, 10**6)
    failed_authentications_per_minute: int = knob(
        30, "refused tokens a minute and source; beyond, 429 in place of 401", 1, 10**6
    )
    messages_per_second: int = knob(10, "messages a second and token, over all its connections", 1, 10**6)
    message_burst: int = knob(60, "messages of a token at once", 1, 10**6)
    dropped_messages: int = knob(200, "messages of a connection dropped within 10 s; beyond, it is closed", 1, 10**6)
    violations: int = knob(20, "INVALID_MESSAGE to a connection within 60 s; beyond, it is closed", 1, 10**6)
    outbound_messages: int = knob(256, "messages that wait for a connection; beyond, it is closed", 1, 10**6)
    outbound_bytes: int = knob(1 << 20, "bytes that wait for a connection; beyond, it is closed", 1 << 10, 1 << 30)
    sessions: int = knob(10_000, "sessions in all", 1, 10**6)
    sessions_per_source: int = knob(100, "sessions of one source", 1, 10**6)
    observers: int = knob(8, "connections of a session beyond two a stream", 0, 10**6)
    websockets_per_source: int = knob(200, "WebSockets of one source", 1, 10**6)
    connections: int = knob(20_000, "TCP connections in all", 1, 10**6)
    connections_per_source: int = knob(
        400, "TCP connections of one source, those of trusted proxies excepted", 1, 10**6
    )
    connects_per_second: int = knob(
        200, "TCP connections that a source may open a second; beyond, it is not heard for 10 s", 1, 10**6
    )
    sources: int = knob(65_536, "sources or tokens that each of these limits remembers", 16, 10**7)
    drain_seconds: int = knob(1, "from SIGTERM, for how long health says 503 before connections are closed", 0, 600)


@dataclass(frozen=True, slots=True)
class Judgement:
    """When a stream's health is `warning` or `critical`."""

    warning_latency: int = knob(400, "percent of the round trip; a latency below it is a warning", 1, 10**6)
    critical_latency: int = knob(250, "percent of the round trip; a latency below it is critical", 1, 10**6)
    warning_retransmit: int = knob(3, "percent of packets sent again, from which on it is a warning", 0, 100)
    critical_retransmit: int = knob(10, "percent of packets sent again, from which on it is critical", 0, 100)
    valid_seconds: int = knob(30, "for how long a report is news", 1, 86_400)

    @property
    def thresholds(self) -> Thresholds:
        """For the session machine."""
        return Thresholds(
            self.warning_latency / 100,
            self.critical_latency / 100,
            self.warning_retransmit,
            self.critical_retransmit,
            self.valid_seconds * 1000,
        )


@dataclass(frozen=True, slots=True)
class Settings:
    """Everything the server is told from outside."""

    listen: tuple[str, ...] = knob(LISTEN, "where it serves, HOST:PORT; `*` is every address")
    tls_cert: str | None = knob(None, "certificate chain in PEM; read again on SIGHUP")
    tls_key: str | None = knob(None, "its private key in PEM")
    behind_tls_proxy: bool = knob(
        False, "serve plain HTTP on loopback, to a proxy that does TLS and says so in X-Forwarded-Proto"
    )
    insecure_dev: bool = knob(False, "serve plain HTTP on loopback, to try it on one host")
    trusted_proxies: tuple[str, ...] = knob((), "addresses of reverse proxies whose X-Forwarded-For is believed")
    public_url: str | None = knob(
        None, "what clients call it, https://HOST or https://HOST:PORT; needed unless insecure-dev"
    )
    secret_file: str | None = knob(
        None,
        "what tokens are signed with, mode 0600, a secret a line; read again on SIGHUP; none: a new one",
    )
    store: str = knob(
        MEMORY, "memory, or the URL of a Redis that servers share: redis://HOST:PORT/NUMBER, rediss://, unix://"
    )
    metrics: tuple[str, ...] = knob(METRICS, "where /metrics is served, HOST:PORT; none without")
    cors_origins: tuple[str, ...] = knob((), "origins whose pages may call the API from a browser; `*` is every one")
    turnstile_secret: str | None = field(
        default=None,
        repr=False,
        metadata={
            "doc": "whoever creates a session has to pass Cloudflare Turnstile; in a file of mode 0600 only",
            "least": None,
            "most": None,
        },
    )
    turnstile_site_key: str | None = knob(
        None, "the public key that goes with turnstile-secret; without it the web page cannot create sessions then"
    )
    reported_endpoint: str = knob("off", "how much of meta.punch is believed: off, port, or ip for both")
    admin_may_register: bool = knob(True, "an admin token may register as a peer, too")
    passphrase_scope: str = knob("session", "one passphrase a session, or one a stream")
    tally_from: str = knob("admin", "who sets a tally light: admin, or admin+receiver")
    log_level: str = knob("info", "least level that is logged; names of sessions only at debug")
    log_format: str = knob("json", "text or json")
    log_addresses: str = knob(
        "full", "how addresses of refused and limited clients are logged: full, truncated (/24, /48) or none"
    )
    security_log: str | None = knob(
        None,
        "a file for what is logged of refused and limited clients, daily, 7 days kept; none: with the rest",
    )
    limits: Limits = field(default_factory=Limits, metadata={"doc": "a table, see Limits"})
    health: Judgement = field(default_factory=Judgement, metadata={"doc": "a table, see Judgement"})

    @property
    def policy(self) -> Policy:
        """For the session machine."""
        return Policy(
            self.admin_may_register,
            self.tally_from != TALLY_FROM[0],
            Reported(self.reported_endpoint),
            self.limits.observers,
            self.health.thresholds,
        )

    @property
    def is_secure(self) -> bool:
        """Whether clients come over TLS."""
        return self.tls_cert is not None or self.behind_tls_proxy

    @property
    def base_url(self) -> str:
        """What clients call the server, without a slash at the end."""
        if self.public_url is not None:
            return self.public_url
        host, _, port = self.listen[0].rpartition(":")
        return f"{'https' if self.is_secure else 'http'}://{host.replace('*', 'localhost')}:{port}"


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
    return knobs.overlay(base or Settings(), table, where, tables=("limits", "health"), read=_value)


def check(settings: Settings) -> None:
    """Whether the settings go together.

    Raises:
        ConfigError: they do not.
    """
    if (settings.tls_cert is None) != (settings.tls_key is None):
        raise ConfigError("tls-cert and tls-key: expected both or none, got one")
    if not settings.listen:
        raise ConfigError("listen: expected one HOST:PORT or more, got none")
    check_plain(settings, [place.rpartition(":")[0].strip("[]") for place in settings.listen])
    if settings.behind_tls_proxy and not settings.trusted_proxies:
        raise ConfigError(
            "behind-tls-proxy: expected the proxy's address in trusted-proxies, since peers are told each other's "
            "addresses as X-Forwarded-For has them"
        )
    if settings.store != MEMORY and settings.secret_file is None:
        raise ConfigError("store: expected a secret-file, the same on all servers, since it seals what Redis keeps")
    if settings.public_url is None and not settings.insecure_dev:
        raise ConfigError("public-url: expected https://HOST, which is what clients are told, got none")
    if (settings.public_url or "https:").startswith("http:") and not settings.insecure_dev:
        raise ConfigError(f"public-url: expected https://HOST, got {settings.public_url}")


def check_plain(settings: Settings, hosts: list[str]) -> None:
    """Whether listening at `hosts` keeps tokens and passphrases from whoever is on the way (§8).

    Raises:
        ConfigError: it does not.
    """
    if settings.tls_cert is not None:
        return
    for host in hosts:
        if not knobs.is_loopback(host):
            raise ConfigError(
                f"listen {host}: expected tls-cert and tls-key, since everybody on the way reads tokens; "
                "plain HTTP is for loopback, with behind-tls-proxy or insecure-dev"
            )
        if not (settings.behind_tls_proxy or settings.insecure_dev):
            raise ConfigError(f"listen {host}: expected tls-cert and tls-key, behind-tls-proxy, or insecure-dev")


def _value(attribute: str, value: Any, where: str) -> Any:
    if attribute in _PLACES:
        return tuple(knobs.place(text, where) for text in knobs.strings(value, where))
    if attribute in _PATHS:
        return knobs.path(value, where)
    if attribute in _SWITCHES:
        return knobs.boolean(value, where)
    if attribute in _CHOICES:
        return knobs.choice(value, where, _CHOICES[attribute])
    match attribute:
        case "trusted_proxies":
            return tuple(knobs.ip(text, where) for text in knobs.strings(value, where))
        case "store":
            return redis_url.choice(value, where)
        case "cors_origins":
            return tuple(_origin(text, where) for text in knobs.strings(value, where))
        case "turnstile_secret":
            if not isinstance(value, str) or not value:
                raise ConfigError(f"{where}: expected text")
            return value
        case "turnstile_site_key":
            if not isinstance(value, str) or not _SITE_KEY.fullmatch(value):
                raise ConfigError(f"{where}: expected letters, digits, '-', '_' and '.', got {knobs.shown(value)}")
            return value
        case _:
            return _public_url(value, where)


def _origin(text: str, where: str) -> str:
    if text != ANY_ORIGIN and not _ORIGIN.fullmatch(text):
        raise ConfigError(f"{where}: expected https://HOST or *, got {knobs.shown(text)}")
    return text


def _public_url(value: Any, where: str) -> str:
    if not isinstance(value, str) or not _PUBLIC_URL.fullmatch(value):
        raise ConfigError(f"{where}: expected https://HOST or https://HOST:PORT, got {knobs.shown(value)}")
    return value
