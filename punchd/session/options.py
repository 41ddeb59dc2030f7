"""The words of `punch session join`, checked before anything is begun. Pure but for the search for programs."""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Callable
from dataclasses import dataclass

from punchd import knobs
from punchd.broker import connect
from punchd.broker.client_address import check_name
from punchd.broker.messages import Direction
from punchd.broker.names import MAX_PORT, MIN_LOCAL_PORT
from punchd.errors import ConfigError
from punchd.session import tools

STUN_PORT = 3478  # of the broker's host, if no server is named


@dataclass(frozen=True, slots=True)
class JoinOptions:
    """What `join` is to do.

    Attributes:
        stream: for a token that is good for several.
        port: 0: any.
        stun: none: the broker's host.
        form: of `connect.FORMATS`: show strings of it, and let the user run the tool.
        keep: go on when the tool has ended well.
    """

    choice: tools.Choice
    stream: str | None
    port: int
    stun: tuple[tuple[str, int], ...]
    form: str | None
    keep: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `join` besides those that say which session."""
    parser.add_argument("--role", choices=[one.value for one in Direction], help="what to do with SRT")
    parser.add_argument("--tool", choices=tools.TOOLS, help=f"what to run (default: {tools.TOOLS[0]})")
    parser.add_argument("--input", metavar="WHAT", help="what a sender sends (default: standard input)")
    parser.add_argument("--output", metavar="WHAT", help="where a receiver's media go (default: standard output)")
    parser.add_argument("--exec", metavar="COMMAND", help="run this instead, with {uri} and other placeholders")
    parser.add_argument("--shell", action="store_true", help="give the command of --exec to a shell")
    parser.add_argument(
        "--print", metavar="FORMAT", choices=sorted(connect.FORMATS),
        help="run nothing: print what to paste into a tool, and let me say how it goes",
    )  # fmt: skip
    parser.add_argument("--stream", metavar="NAME", help="which one, with an admin's token")
    parser.add_argument("--port", metavar="N", type=int, default=0, help="UDP port of SRT (default: one that is free)")
    parser.add_argument(
        "--stun", metavar="HOST:PORT", action="append", default=[], help="repeatable (default: the broker's host)"
    )
    parser.add_argument("--keep", action="store_true", help="go on after the tool has ended well")


def read(given: argparse.Namespace, find: Callable[[str], str | None] = shutil.which) -> JoinOptions:
    """The options.

    Raises:
        ConfigError: what does not go together, or is not installed.
    """
    choice = tools.Choice(_direction(given), "", _media(given))
    if given.exec is not None:
        if given.tool or given.print or given.input or given.output:
            raise ConfigError("--exec: expected none of --tool, --print, --input, --output")
        template = tools.check_template(given.exec, is_shell=given.shell)
        choice = tools.Choice(choice.direction, "", None, template, given.shell)
    elif given.shell:
        raise ConfigError("--shell: expected --exec")
    elif given.print and (given.tool or given.input or given.output):
        raise ConfigError("--print: expected none of --tool, --input, --output: nothing is run")
    elif not given.print:
        choice = tools.Choice(choice.direction, given.tool or tools.TOOLS[0], choice.media)
    for program in () if given.print else tools.programs(choice):
        if find(program) is None:
            raise ConfigError(tools.missing(program))
    return JoinOptions(
        choice,
        None if given.stream is None else check_name(given.stream, "--stream"),
        given.port and knobs.integer(given.port, "--port", MIN_LOCAL_PORT, MAX_PORT),
        tuple(knobs.host_port(one, "--stun") for one in given.stun),
        given.print,
        given.keep,
    )


def _direction(given: argparse.Namespace) -> Direction:
    if given.input is not None and given.output is not None:
        raise ConfigError("--input and --output: expected one of them: a stream goes one way")
    said = given.role or ("sender" if given.input is not None else "receiver" if given.output is not None else None)
    if said is None:
        raise ConfigError("expected --role sender or receiver, or --input, or --output")
    wrong = "output" if said == "sender" else "input"
    if getattr(given, wrong) is not None:
        raise ConfigError(f"--{wrong}: expected none for a {said}")
    return Direction(said)


def _media(given: argparse.Namespace) -> str | None:
    media: str | None = given.input if given.input is not None else given.output
    if media is not None and not media.strip():
        raise ConfigError("--input, --output: expected something, got nothing")
    return media
