"""The configuration files in /etc/punchd: every knob with its explanation, its range and its default, commented out.

What a package sets otherwise than the program's default is not commented out, with the reason before it.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

from punchd import config, knobs
from punchd.broker import settings as broker
from punchd.rendezvous import settings as rendezvous

WIDTH = 100


@dataclass(frozen=True, slots=True)
class File:
    """A configuration file.

    Attributes:
        program: who reads it.
        name: of the file in /etc/punchd.
        settings: the defaults.
        intro: what to know first.
        chosen: key to (value, reason): what the package sets.
        examples: key to a value, in TOML, for knobs that have no default.
    """

    program: str
    name: str
    settings: Any
    intro: str
    chosen: Mapping[str, tuple[Any, str]] = field(default_factory=dict)
    examples: Mapping[str, Any] = field(default_factory=dict)


_TLS = {"tls-cert": "/etc/ssl/certs/NAME.pem", "tls-key": "/etc/ssl/private/NAME.key"}
_PROXIES = (["127.0.0.1", "::1"], "A proxy on this host; without it, every client has its address.")

FILES = (
    File(
        "punchd",
        "punchd.toml",
        config.Config(),
        "socket, group, user and mode do not count under systemd: there they are its units'. Name two STUN servers on "
        "different addresses: without them, nobody can tell the daemon its public address.",
        examples={
            "group": "punchd",
            "user": "_punchd",
            "mode": "0660",
            "trace": "/var/lib/punchd",
            "policy": "/etc/punchd/policy.toml",
        },
    ),
    File(
        "punchd-rendezvous",
        "rendezvous.toml",
        rendezvous.Settings(),
        "For clients elsewhere, let a reverse proxy on this host do TLS, or give tls-cert and tls-key and set http "
        'to ["*:5025"]. The user _punchd-rendezvous must be able to read both files. Pulses and STUN are served to '
        "everybody.",
        chosen={
            "http": (["127.0.0.1:5025"], "Until there is TLS, for this host only: over plain HTTP keys can be read."),
            "trusted-proxies": _PROXIES,
        },
        examples=_TLS,
    ),
    File(
        "punchd-broker",
        "broker.toml",
        broker.Settings(),
        "For clients elsewhere, set public-url and let a reverse proxy on this host do TLS and say "
        "X-Forwarded-Proto: https; or give tls-cert and tls-key, set listen to "
        '["*:8787"] and take behind-tls-proxy and trusted-proxies out. The user _punchd-broker must be able to read '
        "both files. With turnstile-secret, this file must have mode 0600 and be that user's.",
        chosen={
            "listen": (["127.0.0.1:8787"], "Until there is TLS, for a proxy on this host only."),
            "behind-tls-proxy": (True, "See above."),
            "trusted-proxies": _PROXIES,
            "public-url": ("https://broker.example", "To be changed: it stands in what clients are told."),
            "secret-file": ("/etc/punchd/broker.secret", "Made when the package was installed; see punchd-broker(8)."),
        },
        examples={
            **_TLS,
            "turnstile-secret": "SECRET",
            "turnstile-site-key": "KEY",
            "security-log": "/var/log/punchd-broker/security.log",
        },
    ),
)


def render(file: File) -> str:
    """The file's text."""
    lines = [f"# Configuration of {file.program}; see {file.program}.toml(5). What is commented out is the default."]
    lines += _comment(f"Check a change with: {file.program} --check-config --config /etc/punchd/{file.name}")
    lines += ["#", *_comment(file.intro), ""]
    tables = []
    for one in knobs_of(file.settings):
        default = getattr(file.settings, one.name)
        if is_dataclass(default):
            tables += ["", f"[{knobs.key(one.name)}]", *_comment(_first_line(type(default))), ""]
            for inner in fields(default):
                tables += _knob(inner, getattr(default, inner.name), {}, {})
        else:
            lines += _knob(one, default, file.chosen, file.examples)
    return "\n".join([*lines, *tables]).rstrip() + "\n"


def knobs_of(settings: Any) -> list[Any]:
    """The fields that a file may set."""
    return [one for one in fields(settings) if "doc" in one.metadata]


def explanation(one: Any) -> str:
    """A knob's explanation as a sentence, with its range."""
    least, most = one.metadata.get("least"), one.metadata.get("most")
    doc: str = one.metadata["doc"].replace("`", "")
    return f"{doc[0].upper()}{doc[1:]}{'' if least is None else f'; {least} to {most}'}."


def toml(value: Any) -> str:
    """A value as a file would have it."""
    return json.dumps(list(value) if isinstance(value, tuple) else value, ensure_ascii=False)


def _knob(one: Any, default: Any, chosen: Mapping[str, tuple[Any, str]], examples: Mapping[str, Any]) -> list[str]:
    key = knobs.key(one.name)
    lines = _comment(explanation(one))
    if default is None:
        lines.append(f"#{key} = {toml(examples[key])}  # an example; not set by default" if key not in chosen else "")
    else:
        lines.append(f"#{key} = {toml(default)}")
    if key in chosen:
        value, reason = chosen[key]
        lines = [line for line in lines if line] + [*_comment(reason), f"{key} = {toml(value)}"]
    return [*lines, ""]


def _comment(text: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)


def _first_line(table: type) -> str:
    return (table.__doc__ or "").strip().splitlines()[0]
