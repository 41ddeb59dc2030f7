"""The policy: which users may use which techniques, towards which addresses, and how much. A file, and what it means.

Pure. Names are resolved and the kernel is asked for a connection's user and groups elsewhere (`punchd.cli`,
`punchd.control.server`).

How it is read: the first rule that names the user, or one of the groups that the user's process has, decides, and it
alone. Where no rule does, `default` does: `allow` (all that the configuration allows, as without a policy) or `deny`.
A rule can only take away from what the configuration allows, but for private addresses, which it may permit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, fields
from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import Any

from punchd.endpoint import IPAddress
from punchd.errors import Code, ConfigError, DeniedError
from punchd.knobs import boolean, choice, integer, key, knob, shown, strings, toml, unknown

Network = IPv4Network | IPv6Network
Ids = Callable[[str], int]  # the number of a user or group; raises ConfigError, which says what it was for

DEFAULTS = ("allow", "deny")
MAX_RULES = 1000
MAX_NETWORKS = 1000  # of one list; each is looked at for each attempt
_TECHNIQUE = re.compile(r"[a-z][a-z0-9-]{1,15}")


@dataclass(frozen=True, slots=True)
class Rule:
    """What one rule says; None: nothing beyond the configuration."""

    users: tuple[str, ...] = knob((), "users that it is about, names or numbers")
    groups: tuple[str, ...] = knob((), "groups that it is about, names or numbers")
    techniques: tuple[str, ...] | None = knob(None, "techniques that may be used")
    allow: tuple[Network, ...] | None = knob(None, "networks that may be aimed at")
    deny: tuple[Network, ...] = knob((), "networks that may not be aimed at, whatever `allow` says")
    private: bool | None = knob(None, "whether private addresses may be aimed at (RFC 1918, RFC 6598, fc00::/7)")
    attempts: int | None = knob(None, "unfinished attempts and kept ports of a user", 0, 100_000)
    attempts_per_minute: int | None = knob(None, "attempts and probes that a user may begin in a minute", 1, 100_000)
    packets: int | None = knob(None, "punch packets of one round", 8, 100_000)

    def check_techniques(self, asked: tuple[str, ...], resolved: tuple[str, ...]) -> tuple[str, ...]:
        """Those of the techniques of a request that may be used.

        Args:
            asked: what the request says; names in it have to be permitted, each of them.
            resolved: what that is here.

        Raises:
            DeniedError: not-permitted.
        """
        if self.techniques is None:
            return resolved
        left = tuple(name for name in resolved if name in self.techniques)
        refused = [name for name in asked if name in resolved and name not in self.techniques]
        if refused or not left:
            text = f"{', '.join(refused) or 'the techniques'}: your user may use {', '.join(self.techniques) or 'none'}"
            raise DeniedError(Code.NOT_PERMITTED, text)
        return left

    def check_target(self, ip: IPAddress) -> None:
        """Raises DeniedError (not-permitted) where this address may not be aimed at."""
        if any(ip in network for network in self.deny):
            raise DeniedError(Code.NOT_PERMITTED, f"{ip}: your user may not aim at this network")
        if self.allow is not None and not any(ip in network for network in self.allow):
            raise DeniedError(Code.NOT_PERMITTED, f"{ip}: your user may aim at certain networks only")


ALL = Rule()


@dataclass(frozen=True, slots=True)
class Policy:
    """All rules, their users and groups as numbers."""

    rules: tuple[tuple[frozenset[int], frozenset[int], Rule], ...] = ()  # uids, gids, what holds for them
    is_open: bool = True

    @property
    def names_groups(self) -> bool:
        return any(gids for _, gids, _ in self.rules)

    def rule_for(self, uid: int, gids: Collection[int]) -> Rule:
        """What holds for a user.

        Raises:
            DeniedError: not-permitted: no rule, and the default is to deny.
        """
        for uids, groups, rule in self.rules:
            if uid in uids or not groups.isdisjoint(gids):
                return rule
        if self.is_open:
            return ALL
        raise DeniedError(Code.NOT_PERMITTED, f"uid {uid}: no rule of the policy is about this user")


def parse(text: bytes, where: str, *, uid_of: Ids, gid_of: Ids) -> Policy:
    """A policy from its file's bytes; `where` names it in errors.

    Raises:
        ConfigError: not TOML, a key that is not known, a value that does not fit, no such user or group.
    """
    table = dict(toml(text, where))
    is_open = choice(table.pop("default", "allow"), f"{where}: default", DEFAULTS) == "allow"
    rules = table.pop("rule", [])
    for name in table:
        raise ConfigError(f"{where}: {unknown(name, {'default': 0, 'rule': 0})}")
    if not isinstance(rules, list) or not all(isinstance(rule, Mapping) for rule in rules):
        raise ConfigError(f"{where}: rule: expected tables [[rule]], got {shown(rules)}")
    if len(rules) > MAX_RULES:
        raise ConfigError(f"{where}: expected at most {MAX_RULES} rules, got {len(rules)}")
    found = []
    for number, table in enumerate(rules, 1):
        at = f"{where}: rule {number}"
        rule = _rule(table, at)
        if not rule.users and not rule.groups:
            raise ConfigError(f"{at}: expected users or groups that it is about, got neither")
        uids = frozenset(_id(user, uid_of, at) for user in rule.users)
        gids = frozenset(_id(group, gid_of, at) for group in rule.groups)
        found.append((uids, gids, rule))
    return Policy(tuple(found), is_open)


def _rule(table: Mapping[str, Any], where: str) -> Rule:
    known = {key(one.name): one for one in fields(Rule)}
    values: dict[str, Any] = {}
    for name, value in table.items():
        one = known.get(name)
        if one is None:
            raise ConfigError(f"{where}: {unknown(name, known)}")
        values[one.name] = _value(one.name, value, f"{where}: {name}", one.metadata["least"], one.metadata["most"])
    return Rule(**values)


def _value(name: str, value: Any, where: str, least: int | None, most: int | None) -> Any:
    match name:
        case "users" | "groups":
            return tuple(str(item) for item in strings(value, where, numbers=True))
        case "techniques":
            return _names(value, where)
        case "allow" | "deny":
            return _networks(value, where)
        case "private":
            return boolean(value, where)
        case _:
            return integer(value, where, least or 0, most or 0)


def _names(value: Any, where: str) -> tuple[str, ...]:
    names = strings(value, where)
    for name in names:
        if not _TECHNIQUE.fullmatch(name) or name in ("auto", "all"):
            raise ConfigError(f"{where}: expected technique names, got {shown(name)}")
    return tuple(names)


def _networks(value: Any, where: str) -> tuple[Network, ...]:
    texts = strings(value, where)
    if len(texts) > MAX_NETWORKS:
        raise ConfigError(f"{where}: expected at most {MAX_NETWORKS} networks, got {len(texts)}")
    networks = []
    for text in texts:
        try:
            networks.append(ip_network(text))
        except ValueError as error:
            hint = "; bits behind the prefix are set" if "host bits" in str(error) else ""
            raise ConfigError(f"{where}: expected a network such as 203.0.113.0/24, got {shown(text)}{hint}") from None
    return tuple(networks)


def _id(text: str, number_of: Ids, where: str) -> int:
    try:
        return number_of(text)
    except ConfigError as error:
        raise ConfigError(f"{where}: {error}") from None
