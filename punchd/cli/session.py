"""`punch session`: sessions of a broker, for producers and for peers. Options and exit codes: docs/session.md.

What takes long to import is imported when the command line has been found to be right.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from punchd import knobs
from punchd.broker import names
from punchd.broker.client_address import check_name, is_for_peers
from punchd.broker.messages import Light
from punchd.cli import process
from punchd.cli.process import Parser
from punchd.cli.tool import configured, print_line, run, write_news
from punchd.errors import ConfigError
from punchd.punch import keys
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.session import options, where


def arguments() -> argparse.ArgumentParser:
    parser = Parser(prog="punch session", description="Sessions of an SRT session broker.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    create = _command(commands, "create", "make a session, and print what to hand out")
    create.add_argument("name", metavar="NAME", help="of the session")
    create.add_argument("--stream", metavar="NAME", action="append", default=[], help="of a stream, repeatable")
    create.add_argument("--latency", metavar="MS", type=int, help=f"for SRT (default: {names.DEFAULT_LATENCY_MS})")
    create.add_argument("--ttl", metavar="S", type=int, help=f"seconds it lives (default: {names.DEFAULT_TTL_S})")
    create.add_argument("--token-file", metavar="FILE", help="write the admin's token there instead of printing it")
    where.add_broker(create)

    status = _command(commands, "status", "print how a session is")
    where.add_session(status)

    tokens = _command(commands, "tokens", "make another URL for peers, or make one worthless")
    where.add_session(tokens)
    tokens.add_argument("--stream", metavar="NAME", help="of the token; needed if the session has several")
    tokens.add_argument("--ttl", metavar="S", type=int, help="seconds it is good for (default: to the session's end)")
    tokens.add_argument("--revoke", metavar="FILE", help="make the token in FILE worthless; - is standard input")

    close = _command(commands, "close", "end a session for everybody")
    where.add_session(close)

    tally = _command(commands, "tally", "set a stream's tally light")
    where.add_session(tally)
    tally.add_argument("stream", metavar="STREAM")
    tally.add_argument("state", choices=[one.value for one in Light])

    watch = _command(commands, "watch", "print what happens in a session, until it ends")
    where.add_session(watch)

    join = _command(commands, "join", "take part in a stream: find the way for SRT, and run the tool that carries it")
    where.add_session(join)
    options.add_arguments(join)

    return parser


def _command(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    made: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    made.add_argument("--json", action="store_true", help="JSON objects, one a line")
    made.add_argument("-q", "--quiet", action="store_true", help="no news but errors")
    return made


def main(words: Sequence[str]) -> int:
    return process.run(lambda: _main(arguments().parse_args(words)))


def _main(given: argparse.Namespace) -> int:
    news = News(write_news, given.json, given.quiet)
    try:
        return run(_prepare(given, news))
    except ConfigError as error:
        news.fail(Exit.USAGE, str(error))
        return Exit.USAGE
    except EndedError as error:
        news.fail(error.code, str(error))
        return error.code


def _prepare(given: argparse.Namespace, news: News) -> Callable[[], Awaitable[None]]:
    """The command, once its words are right."""
    chosen = configured(keys.directory() / "config.toml")
    if given.command == "create":
        return _create(given, where.broker(given, chosen))
    at = where.session(given, chosen, os.environ)
    if given.command == "join":
        return _join(given, at, news)
    if given.command != "status" and is_for_peers(at.token):
        raise ConfigError(f"{given.command}: expected the admin's token, got a peer's")

    from punchd.session import commands

    match given.command:
        case "status":
            return lambda: commands.status(at, print_line, is_json=given.json)
        case "tokens" if given.revoke is not None:
            revoked = where.read_token(given.revoke)
            return lambda: commands.revoke(at, revoked, news)
        case "tokens":
            stream = None if given.stream is None else check_name(given.stream, "--stream")
            return lambda: commands.mint(at, stream, given.ttl, print_line, is_json=given.json)
        case "close":
            return lambda: commands.close(at, news)
        case "tally":
            stream = check_name(given.stream, "STREAM")
            return lambda: commands.tally(at, stream, Light(given.state), news)
        case _:
            return lambda: commands.watch(at, print_line, _utc if given.json else _time_of_day, is_json=given.json)


def _create(given: argparse.Namespace, place: where.Place) -> Callable[[], Awaitable[None]]:
    check_name(given.name, "NAME")
    streams = tuple(check_name(one, "--stream") for one in given.stream)
    if len(set(streams)) != len(streams) or len(streams) > names.MAX_STREAMS:
        raise ConfigError(f"--stream: expected at most {names.MAX_STREAMS} distinct names")
    latency_ms, ttl_s = given.latency, given.ttl
    if latency_ms is not None:
        knobs.integer(latency_ms, "--latency", names.MIN_LATENCY_MS, names.MAX_LATENCY_MS)
    if ttl_s is not None:
        knobs.integer(ttl_s, "--ttl", names.MIN_TTL_S, names.MAX_TTL_S)

    from punchd.session import commands

    wanted = commands.Wanted(given.name, streams, latency_ms, ttl_s, given.token_file)
    return lambda: commands.create(place, wanted, print_line, is_json=given.json)


def _join(given: argparse.Namespace, at: where.Where, news: News) -> Callable[[], Awaitable[None]]:
    chosen = options.read(given)

    from punchd.session.join import join

    return lambda: join(at, chosen, news, print_line)


def _time_of_day() -> str:
    return time.strftime("%H:%M:%S")


def _utc() -> str:
    now = time.time()
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now * 1000) % 1000:03}Z"
