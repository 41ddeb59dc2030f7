"""`punch`, the tool: a connection to whoever is behind an ADDRESS, through NATs.

Options, exit codes and what is protected: docs/punch.md. What takes long to import is imported when the command line
has been found to be right.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd import __version__
from punchd.cli import process
from punchd.cli.process import Parser, one_line, signals_wait
from punchd.errors import ConfigError, PunchdError
from punchd.punch import keys, settings
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit

if TYPE_CHECKING:
    from punchd.punch.holes import Puncher
    from punchd.punch.listener import Listener
    from punchd.punch.settings import Settings
    from punchd.rendezvous.identity import Identity

ENDING = {signal.SIGINT: Exit.INTERRUPTED, signal.SIGTERM: Exit.TERMINATED, signal.SIGHUP: Exit.HUNG_UP}


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
    parser.add_argument("--rendezvous", metavar="URL", help=f"of the rendezvous server (or ${settings.VARIABLE})")
    parser.add_argument("--ca", metavar="FILE", help="trust the certificates in it for the rendezvous server")
    parser.add_argument("--socket", metavar="PATH", help="of punchd")
    parser.add_argument("--techniques", metavar="LIST", help="what to try, in this order (default: punchd's)")
    parser.add_argument("--stun", metavar="HOST:PORT", help="STUN server (default: punchd's, else the rendezvous host)")
    parser.add_argument("--timeout", metavar="SECONDS", type=int, help="for a call to be connected (default: 45)")
    parser.add_argument("--json", action="store_true", help="news as JSON, one object a line, on standard error")
    parser.add_argument("-q", "--quiet", action="store_true", help="no news but errors")


def main(argv: Sequence[str] | None = None) -> int:
    return process.run(lambda: _main(arguments().parse_args(argv)))


def _main(given: argparse.Namespace) -> int:
    news = News(_write, getattr(given, "json", False), getattr(given, "quiet", False))
    try:
        base = keys.directory()
        if given.command == "address":
            _print(keys.load_or_make(keys.path(given.name, base)).address)
            return Exit.DONE
        chosen = _settings(given, base / "config.toml")
        _check(given)
        prepare = _listen if given.command == "listen" else _connect
        return _run(prepare(given, chosen, base, news))
    except ConfigError as error:
        news.fail(Exit.USAGE, str(error))
        return Exit.USAGE
    except EndedError as error:
        news.fail(error.code, str(error))
        return error.code


def _settings(given: argparse.Namespace, file: Path) -> Settings:
    try:
        chosen = settings.parse(file.read_bytes(), str(file))
    except FileNotFoundError:
        chosen = settings.Settings()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    chosen = settings.environment(os.environ, chosen)
    names = ("rendezvous", "ca", "socket", "techniques", "stun", "timeout")
    table = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return settings.build(table, "command line", chosen)


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


def _run(command: Callable[[], Awaitable[None]]) -> int:
    """Run a command until it ends or a signal ends it; a second signal ends the process as it is."""
    import trio

    _open_standard_descriptors()
    # Whoever started us may have some of them ignored: nohup, or a shell for what runs in the background.
    awaited = tuple(number for number in ENDING if signal.getsignal(number) is not signal.SIG_IGN)
    caught: list[int] = []
    failures: list[PunchdError] = []

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            await nursery.start(_hear_signals, awaited, caught, nursery.cancel_scope)
            try:
                await command()
            except PunchdError as error:
                failures.append(error)
            nursery.cancel_scope.cancel()

    with signals_wait(awaited):
        trio.run(run)
    if caught:
        return ENDING[signal.Signals(caught[0])]
    if failures:
        raise failures[0]
    return Exit.DONE


async def _hear_signals(awaited: Sequence[signal.Signals], caught: list[int], scope: Any, task_status: Any) -> None:
    import trio

    with trio.open_signal_receiver(*awaited) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, awaited)
        task_status.started()
        async for number in signals:
            caught.append(number)
            scope.cancel()
            break


def _open_standard_descriptors() -> None:
    """A program that was started without them must not take its own sockets for its input and output."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free


# Not by sys.stdout and sys.stderr: they are None if they were closed from the start, and what they could not write they
# try again at the exit, whose code that changes.


def _print(line: str) -> None:
    try:
        os.write(1, f"{line}\n".encode())
    except OSError as error:
        raise ConfigError(f"standard output: {error.strerror}") from None


def _write(line: str) -> None:
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, f"{one_line(line)}\n".encode(errors="backslashreplace"))


if __name__ == "__main__":
    sys.exit(main())
