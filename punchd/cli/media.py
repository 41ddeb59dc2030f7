"""`punch media`: files and pipes over the media protocol, through NATs or straight. Options: docs/media.md.

The receiver is who listens at an ADDRESS; the sender calls it. Once there is a hole, the receiver is the protocol's
initiator, and the sender its responder.
"""

from __future__ import annotations

import argparse
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd.cli import process
from punchd.cli.process import Parser
from punchd.cli.tool import add_meeting, meeting_settings, run, write_news
from punchd.errors import ConfigError
from punchd.feed import options
from punchd.punch import keys, settings
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit

if TYPE_CHECKING:
    from punchd.punch.holes import Puncher
    from punchd.punch.listener import Listener
    from punchd.punch.talk import Carry
    from punchd.rendezvous.identity import Identity

WARNING = "UDP: nothing is encrypted, neither side proves who it is, and nothing that is lost is sent again"

Run = Callable[[Any], Awaitable[None]]


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="punch media", description="Files and media over UDP.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    send = _command(commands, "send", "send a file or standard input to whoever receives at ADDRESS")
    options.add_send(send)
    add_meeting(send)
    receive = _command(commands, "receive", "take one call, and write what comes to a file or standard output")
    options.add_receive(receive)
    receive.add_argument("--as", dest="name", metavar="NAME", default=keys.DEFAULT_NAME, help="of the own key")
    add_meeting(receive)
    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    return made


def main(words: Sequence[str]) -> int:
    return process.run(lambda: _main(arguments().parse_args(words)))


def _main(given: argparse.Namespace) -> int:
    news = News(write_news, given.json, given.quiet)
    try:
        prepare = _send if given.command == "send" else _receive
        return run(prepare(given, keys.directory(), news))
    except ConfigError as error:
        news.fail(Exit.USAGE, str(error))
        return Exit.USAGE
    except EndedError as error:
        news.fail(error.code, str(error))
        return error.code


def _send(given: argparse.Namespace, base: Path, news: News) -> Callable[[], Awaitable[None]]:
    chosen, address = options.read_send(given)
    place = None if given.direct is None else options.read_place(given.direct)
    wanted = b"" if address is None else settings.read_key(address, "ADDRESS")
    meeting = meeting_settings(given, base / "config.toml")
    if place is None:
        settings.server(meeting)

    _check_file(chosen.source, is_input=True)

    from punchd.feed.send import send

    news.warn(WARNING)
    if place is not None:
        return lambda: _directly(place, partial(send, chosen=chosen, news=news, is_punched=False), is_waiting=True)

    from punchd.punch import commands

    carry = _carry(partial(send, chosen=chosen, news=news, is_punched=True))
    return lambda: commands.connect(meeting, news, is_udp=True, wanted=wanted, identify=None, forwards=[], carry=carry)


def _receive(given: argparse.Namespace, base: Path, news: News) -> Callable[[], Awaitable[None]]:
    chosen = options.read_receive(given)
    place = None if given.direct is None else options.read_place(given.direct)
    file = keys.path(given.name, base)
    meeting = meeting_settings(given, base / "config.toml")
    if place is None:
        settings.server(meeting)

    _check_file(chosen.target, is_input=False)

    from punchd.feed.receive import receive

    news.warn(WARNING)
    use = partial(receive, chosen=chosen, news=news)
    if place is not None:
        return lambda: _directly(place, use, is_waiting=False)

    from punchd.punch import commands

    def employ(puncher: Puncher, identity: Identity) -> Listener:
        from punchd.punch.admission import Policy
        from punchd.punch.listener import Listener

        policy = Policy(puncher.protocol, True, None, (), 1)
        return Listener(puncher, identity, policy, news, timeout_s=meeting.timeout, keep=False, carry=_carry(use))

    identify = partial(keys.load_or_make, file)
    return lambda: commands.listen(meeting, news, is_udp=True, identify=identify, employ=employ)


def _check_file(name: str | None, *, is_input: bool) -> None:
    """Before anybody is called; it is opened when there is a connection."""
    if name is None:
        return
    path = Path(name)
    if path.is_dir():
        raise ConfigError(f"{name}: expected a file, got a directory")
    if not (path if is_input else path.parent).exists():
        raise ConfigError(f"{name}: No such file or directory")


def _carry(use: Run) -> Carry:
    from punchd.feed.carriers import over_hole

    return lambda hole, mailroom, box: over_hole(hole, mailroom, box, use)


async def _directly(place: tuple[str, int], use: Run, *, is_waiting: bool) -> None:
    from punchd.feed.carriers import direct

    async with direct(*place, is_waiting=is_waiting) as sock:
        await use(sock)
