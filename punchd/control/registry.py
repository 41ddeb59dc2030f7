"""The techniques of this daemon: what is loaded, what can be used, and what `auto` and `all` mean here.

A technique that is known but cannot run (not installed, or the process lacks a capability) is stood in for by one that
gives the reason, so that a request that names it gets a clear `failed` line and the other side a skip.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from punchd.control.requests import ALL, AUTO
from punchd.errors import Code, ConfigError
from punchd.technique import Capability, Facts, Hole, Kit, Technique, Unsuitable
from punchd.wire.token import TECHNIQUE_NUMBERS, Card

_LACKING = {
    Capability.NET_RAW: "CAP_NET_RAW",
    Capability.NET_ADMIN: "CAP_NET_ADMIN",
    Capability.LOW_TTL_SYN: "CAP_NET_RAW (or a firewall for exemptions)",
}
ALL_ORDER = ("tcp-nutss", "tcp-syni", "tcp-repair", "udp")  # line protocol §13.5: best chance first


@dataclass(frozen=True)
class Unavailable:
    """Stands in for a technique that cannot run here."""

    name: str
    number: int
    reason: Code
    text: str
    protocol: ClassVar[str] = "-"
    needs: ClassVar[Capability] = Capability.NONE
    is_reversible: ClassVar[bool] = False

    def plan(self, facts: Facts) -> Unsuitable:
        return Unsuitable(self.reason, self.text)

    async def initiate(self, plan: object, kit: Kit) -> Hole:
        raise NotImplementedError

    async def respond(self, plan: object, offer: Card, kit: Kit) -> Hole:
        raise NotImplementedError


def with_firewall(held: Capability, *, can_exempt: bool) -> Capability:
    """A process's own capabilities, and LOW_TTL_SYN where they, or a firewall backend that works, give it."""
    if Capability.NET_RAW in held or can_exempt:
        return held | Capability.LOW_TTL_SYN
    return held


class Registry:
    """What can be asked for, by name and by token number.

    Args:
        loaded: the techniques of the configuration, in its order.
        held: the capabilities of this process, and what the host's firewall adds to them (`with_firewall`).

    Raises:
        ConfigError: two techniques of others have the same token number.
    """

    def __init__(self, loaded: Sequence[Technique[Any]], held: Capability) -> None:
        self._by_name: dict[str, Technique[Any]] = {}
        for name, number in TECHNIQUE_NUMBERS.items():
            self._by_name[name] = Unavailable(name, number, Code.UNSUPPORTED, f"{name} is not loaded here")
        self.usable: list[str] = []
        self.lacking: dict[str, str] = {}
        for technique in loaded:
            other = self.by_number.get(technique.number, technique.name)
            if other != technique.name:
                text = f"{other} and {technique.name} have the same token number {technique.number}"
                raise ConfigError(f"techniques: {text}")
            missing = technique.needs & ~held
            if missing:
                names = ", ".join(_LACKING[flag] for flag in missing)
                self.lacking[technique.name] = names
                text = f"{technique.name} needs {names}"
                self._by_name[technique.name] = Unavailable(technique.name, technique.number, Code.NO_PRIVILEGE, text)
            else:
                self.usable.append(technique.name)
                self._by_name[technique.name] = technique

    @property
    def names(self) -> tuple[str, ...]:
        """Every name that a request may hold."""
        return tuple(self._by_name)

    @property
    def by_name(self) -> Mapping[str, Technique[Any]]:
        return self._by_name

    @property
    def by_number(self) -> Mapping[int, str]:
        return {technique.number: name for name, technique in self._by_name.items()}

    def resolve(self, names: tuple[str, ...]) -> tuple[str, ...]:
        """What `auto` and `all` mean here; names stay as they are. Empty if nothing can be used."""
        match names:
            case (word,) if word == AUTO:
                return tuple(self.usable)
            case (word,) if word == ALL:
                ordered = [name for name in ALL_ORDER if name in self.usable]
                return (*ordered, *(name for name in self.usable if name not in ALL_ORDER))
            case _:
                return names
