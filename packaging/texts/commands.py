"""The command lines: every program with its parser, and what of them the manual pages and the completions need.

argparse shows its options and commands to nobody but itself, hence the private names.
"""

# ruff: noqa: SLF001

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from punchd import config, knobs
from punchd.cli import broker, media, punch, punchd, rendezvous, session

CHOICES = {"--log-level": knobs.LOG_LEVELS, "--log-format": knobs.LOG_FORMATS, "--firewall": config.FIREWALLS}
_FILES = ("FILE", "PATH", "DIR")
_TOOLS = {"punch session": session.arguments, "punch media": media.arguments}  # with parsers of their own


@dataclass(frozen=True, slots=True)
class Option:
    """An option, as a reader sees it.

    Attributes:
        names: `-q`, `--quiet`.
        value: what it is called in the help; None if it takes none.
        help: one sentence without its full stop.
        repeats: whether it may be given again.
        is_file: whether its value is a path.
        choices: its values, if they are few.
    """

    names: tuple[str, ...]
    value: str | None
    help: str
    repeats: bool
    is_file: bool
    choices: tuple[str, ...]


def parsers() -> dict[str, argparse.ArgumentParser]:
    """Program to parser."""
    return {one.prog: one for one in (module.arguments() for module in (punchd, punch, rendezvous, broker))}


def options(parser: argparse.ArgumentParser) -> Iterator[Option]:
    """Those of a parser, not of its commands."""
    for action in parser._actions:
        if not action.option_strings:
            continue
        names = tuple(action.option_strings)
        value = None if action.nargs == 0 else str(action.metavar or action.dest.upper())
        yield Option(
            names,
            value,
            "say all of this in short, and exit" if names[-1] == "--help" else _help(action.help),
            isinstance(action, argparse._AppendAction),
            value in _FILES,
            CHOICES.get(names[-1], tuple(action.choices or ())),
        )


def operands(parser: argparse.ArgumentParser) -> list[tuple[str, str]]:
    """(name, help) of what stands without a dash, in order."""
    return [
        (f"[{action.metavar}]" if action.nargs == "?" else str(action.metavar or action.dest), _help(action.help))
        for action in parser._actions
        if not action.option_strings and not isinstance(action, argparse._SubParsersAction)
    ]


def commands(parser: argparse.ArgumentParser) -> Mapping[str, tuple[str, argparse.ArgumentParser]]:
    """Command to (what it does, parser); those of `punch session` and `punch media` with both their words."""
    found: dict[str, tuple[str, argparse.ArgumentParser]] = {}
    for action in parser._actions:
        if not isinstance(action, argparse._SubParsersAction):
            continue
        helps = {one.dest: one.help or "" for one in action._choices_actions}
        for name, made in action.choices.items():
            more = _TOOLS.get(made.prog)
            below = commands(made if more is None else more())
            found |= {f"{name} {inner}": said for inner, said in below.items()} or {name: (helps.get(name, ""), made)}
    return found


def _help(text: str | None) -> str:
    text = (text or "").replace("`", "").replace("%%", "%")
    if text == "show program's version number and exit":
        return "say the version, and exit"
    return text
