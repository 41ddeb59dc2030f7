"""Whether a broker's protocol is ours: the same major version; minor ones only add. Pure.

A broker that says nothing is taken as it is: the field gets lost in some proxies, and their own errors never have it.

Source: seed 000 "Status", §11; broker specification B-046.
"""

from __future__ import annotations

import re

from punchd.broker.client_errors import NotBrokerError, VersionError

MAJOR = 1
FIELD = "punch-version"

_VERSION = re.compile(r"([0-9]{1,6})\.[0-9]{1,6}(?:\.[0-9]{1,6})?(?:[-+][0-9A-Za-z.+-]{1,40})?")


def check(who: str, version: str | None) -> None:
    """
    Raises:
        VersionError: another major version.
        NotBrokerError: no version at all.
    """
    if version is None:
        return
    found = _VERSION.fullmatch(version.strip())
    if found is None:
        raise NotBrokerError(f"{who}: Punch-Version: expected {MAJOR}.x.y, got {version[:40]!r}")
    if int(found[1]) != MAJOR:
        raise VersionError(f"{who}: expected version {MAJOR} of the Punch protocol, got {found[0]}", found[0])
