"""Manual pages: text from packaging/man and docs/, options from the command lines, settings from the settings.

In a page, a line of one of these words is replaced:

    @OPTIONS@   the options of the program; of one with commands, each command with its own
    @SETTINGS@  every knob of its configuration file
    @POLICY@    every key of a rule of the daemon's policy
    @PROTOCOL@  docs/line-protocol.md
"""

from __future__ import annotations

import argparse
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from punchd import __version__, knobs
from punchd.control.policy import Rule
from texts import markdown
from texts.commands import commands, operands, options, parsers
from texts.conffile import FILES, explanation, knobs_of, toml

PROTOCOL = Path(__file__).parents[2] / "docs" / "line-protocol.md"


def page(source: Path) -> str:
    """A manual page as reStructuredText. `source` is NAME.SECTION.rst, its first line what the page is about."""
    name, section, _ = source.name.rsplit(".", 2)
    title, _, body = source.read_text().partition("\n")
    head = [
        *_framed(name, "="), "", *_framed(title, "-"), "",
        f":Manual section: {section}", ":Manual group: punchd", f":Version: punchd {__version__}",
    ]  # fmt: skip
    return "\n".join([*head, "", _filled(body, name)])


def roff(rst: str, date: str) -> str:
    """A page for man(1); `date` as 2026-01-31."""
    from docutils.core import publish_string

    settings = {"halt_level": 2, "report_level": 2, "_disable_config": True}
    text = rst.replace(":Manual group:", f":Date: {date}\n:Manual group:", 1)
    made: bytes = publish_string(text, writer_name="manpage", settings_overrides=settings)
    return made.decode()


def _filled(body: str, name: str) -> str:
    if "@OPTIONS@" in body:
        body = body.replace("@OPTIONS@", _options(parsers()[name]))
    if "@SETTINGS@" in body:
        (file,) = (one for one in FILES if f"{one.program}.toml" == name)
        body = body.replace("@SETTINGS@", _settings(file.settings))
    if "@POLICY@" in body:
        body = body.replace("@POLICY@", "\n".join(line for one in fields(Rule) for line in _setting(one, one.default)))
    return body.replace("@PROTOCOL@", markdown.to_rst(PROTOCOL.read_text())) if "@PROTOCOL@" in body else body


def _framed(text: str, line: str) -> list[str]:
    return [line * len(text), text, line * len(text)]


def _options(parser: argparse.ArgumentParser) -> str:
    below = commands(parser)
    lines = [] if below else _option_list(parser)
    for name, (text, made) in below.items():
        usage = " ".join([f"**{parser.prog} {name}**", *(f"*{_escaped(word)}*" for word, _ in operands(made))])
        lines += [f"{parser.prog} {name}", "-" * 60, "", f"{usage}: {_escaped(text)}.", ""]
        lines += [
            item
            for word, told in operands(made)
            if told
            for item in (f"*{_escaped(word)}*", f"    {_escaped(told)}", "")
        ]
        lines += _option_list(made)
    if below:
        lines += ["Without a command", "-" * 60, "", *_option_list(parser)]
    return "\n".join(lines)


def _option_list(parser: argparse.ArgumentParser) -> list[str]:
    lines = []
    for option in options(parser):
        value = "" if option.value is None else f" *{_escaped(option.value)}*"
        lines += [", ".join(f"**{name}**{value}" for name in option.names), f"    {_escaped(option.help)}", ""]
    return lines


def _settings(settings: Any) -> str:
    lines = []
    tables = []
    for one in knobs_of(settings):
        default = getattr(settings, one.name)
        if is_dataclass(default):
            title = f"The table [{knobs.key(one.name)}]"
            intro = (type(default).__doc__ or "").strip().splitlines()[0]
            tables += [title, "-" * len(title), "", _escaped(intro), ""]
            tables += [line for inner in fields(default) for line in _setting(inner, getattr(default, inner.name))]
        else:
            lines += _setting(one, default)
    return "\n".join([*lines, *tables])


def _setting(one: Any, default: Any) -> list[str]:
    shown = "Not set by default." if default is None else f"Default: ``{toml(default)}``."
    return [f"**{knobs.key(one.name)}**", f"    {_escaped(explanation(one))} {shown}", ""]


def _escaped(text: str) -> str:
    """Without meaning for reStructuredText."""
    for char in "\\*`|_":
        text = text.replace(char, "\\" + char)
    return text
