"""How techniques are found: through the entry point group `punchd.techniques`.

Only those that the configuration names are loaded, so that an installed but unwanted technique runs no code in a
privileged daemon.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import entry_points
from typing import Any

from punchd.errors import ConfigError
from punchd.technique import Technique
from punchd.wire.token import FIRST_PLUGIN_NUMBER, TECHNIQUE_NUMBERS

ENTRY_POINTS = "punchd.techniques"


def load(names: Iterable[str]) -> tuple[list[Technique[Any]], list[str]]:
    """The techniques called `names`, in that order, and the names that are not installed.

    Raises:
        ConfigError: an entry point that cannot be imported or is no technique.
    """
    points = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
    found: list[Technique[Any]] = []
    absent: list[str] = []
    for name in names:
        point = points.get(name)
        if point is None:
            absent.append(name)
            continue
        try:
            technique = point.load()()
        except Exception as error:  # foreign code: whatever it raises, the user gets one line
            raise ConfigError(f"technique {name}: {point.value} cannot be loaded: {error!r}") from error
        _check(technique, name)
        found.append(technique)
    return found, absent


def installed() -> list[str]:
    """The names of all techniques that could be loaded."""
    return [point.name for point in entry_points(group=ENTRY_POINTS)]


def _check(technique: object, name: str) -> None:
    if not isinstance(technique, Technique) or technique.name != name:
        raise ConfigError(f"technique {name}: the entry point names something else: {technique!r}")
    expected = TECHNIQUE_NUMBERS.get(name)
    number = technique.number
    if number != expected if expected is not None else not FIRST_PLUGIN_NUMBER <= number <= 255:
        wanted = expected if expected is not None else f"{FIRST_PLUGIN_NUMBER} to 255"
        raise ConfigError(f"technique {name}: expected token number {wanted}, got {number}")
