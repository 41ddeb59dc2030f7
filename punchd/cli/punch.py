"""`punch`, the tool: a connection to whoever is behind an ADDRESS, through NATs.

Options, exit codes and what is protected: docs/punch.md. What takes long to import is imported when the command line
has been found to be right.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd import __version__
from punchd.cli import process
from punchd.cli.process import Parser
from punchd.cli.tool import add_meeting, meeting_settings, print_line, run, write_news
from punchd.errors import ConfigError
from punchd.punch import keys, settings
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit

if TYPE_CHECKING:
    from punchd.punch.holes import Puncher
    from punchd.punch.listener import Listener
    from punchd.punch.settings import Settings
    from punchd.rendezvous.identity import Identity


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="punch", description="Connects two programs behind NATs, by what `punchd` punches.", allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"punch {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    listen = _command(commands, "listen", "take calls, for standard input and output or for --to")
    _add_name(listen)
    target: dict[str, Any] = {"metavar": "HOST:PORT", "action": "append", "default": []}
    listen.add_argument("--to", **target, help="forward to this, repeatable; callers choose")
    listen.add_argument(
        "--allow", metavar="KEY", action="append", help="serve only this key, repeatable (default: any)"
    )
    listen.add_argument("--keep", action="store_true", help="go on after the first connection")
    _add_common(listen)

    connect = _command(commands, "connect", "call ADDRESS, for standard input and output or for --forward")
    connect.add_argument("address", metavar="ADDRESS", help="what `punch listen` says on the other side")
    connect.add_argument(
        "--forward", metavar="LPORT:HOST:PORT", action="append", default=[],
        help="take connections to this port of the own host to HOST:PORT of the other side, repeatable",
    )  # fmt: skip
    connect.add_argument("--as", dest="name", metavar="NAME", default=keys.DEFAULT_NAME, help="of the own key")
    _add_common(connect)

    _command(commands, "session", "SRT sessions of a broker: create, watch, join; see punch session --help")
    _command(commands, "media", "send and receive files and media over UDP; see punch media --help")

    address = _command(commands, "address", "print the ADDRESS of a key, which is made if there is none")
    _add_name(address)
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    return made


def _add_name(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "name", metavar="NAME", nargs="?", default=keys.DEFAULT_NAME, help=f"of the key (default: {keys.DEFAULT_NAME})"
    )


def _add_common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--udp", action="store_true", help="datagrams, unprotected, instead of a stream")
    parser.add_argument("--plain", action="store_true", help="TCP without TLS; both sides must say so")
    add_meeting(parser)


def main(argv: Sequence[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if words[:1] == ["session"]:  # its parsers and settings are no concern of the others
        from punchd.cli import session

        return session.main(words[1:])
    if words[:1] == ["media"]:
        from punchd.cli import media

        return media.main(words[1:])
    return process.run(lambda: _main(arguments().parse_args(words)))


def _main(given: argparse.Namespace) -> int:
    news = News(write_news, getattr(given, "json", False), getattr(given, "quiet", False))
    try:
        base = keys.directory()
        if given.command == "address":
            print_line(keys.load_or_make(keys.path(given.name, base)).address)
            return Exit.DONE
        chosen = meeting_settings(given, base / "config.toml")
        _check(given)
        prepare = _listen if given.command == "listen" else _connect
        return run(prepare(given, chosen, base, news))
    except ConfigError as error:
        news.fail(Exit.USAGE, str(error))
        return Exit.USAGE
    except EndedError as error:
        news.fail(error.code, str(error))
        return error.code


def _check(given: argparse.Namespace) -> None:
    """What does not go together."""
    unproven = "--udp" if given.udp else "--plain" if given.plain else None
    if given.udp and given.plain:
        raise ConfigError("--udp and --plain: expected one of them; UDP is never protected")
    if given.udp and (getattr(given, "to", None) or getattr(given, "forward", None)):
        raise ConfigError("--udp: expected neither --to nor --forward: they forward TCP")
    if unproven and getattr(given, "allow", None):
        raise ConfigError(f"{unproven}: expected no --allow: nobody proves a key then")


def _warn(given: argparse.Namespace, news: News) -> None:
    """Of what is not protected."""
    if given.udp:
        news.warn("UDP: nothing is encrypted, and neither side proves who it is")
    elif given.plain:
        news.warn("--plain: nothing is encrypted, and neither side proves who it is")
    elif given.command == "listen" and given.allow is None:
        news.say("open", "serving every key that calls; see --allow")


def _listen(given: argparse.Namespace, chosen: Settings, base: Path, news: News) -> Callable[[], Awaitable[None]]:
    allowed = None if given.allow is None else tuple(settings.read_key(one, "--allow") for one in given.allow)
    targets = tuple(settings.read_target(one, "--to") for one in given.to)
    file = keys.path(given.name, base)
    settings.server(chosen)

    from punchd.punch import commands

    def employ(puncher: Puncher, identity: Identity) -> Listener:
        from punchd.punch.admission import MOST_CALLS, Policy
        from punchd.punch.listener import Listener

        is_plain = given.plain or given.udp
        policy = Policy(puncher.protocol, is_plain, allowed, targets, MOST_CALLS if targets else 1)
        return Listener(puncher, identity, policy, news, timeout_s=chosen.timeout, keep=given.keep)

    _warn(given, news)
    identify = partial(keys.load_or_make, file)
    return lambda: commands.listen(chosen, news, is_udp=given.udp, identify=identify, employ=employ)


def _connect(given: argparse.Namespace, chosen: Settings, base: Path, news: News) -> Callable[[], Awaitable[None]]:
    wanted = settings.read_key(given.address, "ADDRESS")
    forwards = [settings.read_forward(one, "--forward") for one in given.forward]
    file = keys.path(given.name, base)
    settings.server(chosen)

    from punchd.punch import commands

    _warn(given, news)
    identify = None if given.plain or given.udp else partial(keys.load_or_make, file)
    return lambda: commands.connect(chosen, news, is_udp=given.udp, wanted=wanted, identify=identify, forwards=forwards)


if __name__ == "__main__":
    sys.exit(main())
