"""What all commands of `punch` share: how they are run, ended by signals, and where their words go.

Not by sys.stdout and sys.stderr: they are None if they were closed from the start, and what they could not write they
try again at the exit, whose code that changes.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd.cli.process import one_line, signals_wait
from punchd.errors import ConfigError, PunchdError
from punchd.punch import settings
from punchd.punch.outcomes import Exit

if TYPE_CHECKING:
    from punchd.punch.settings import Settings

ENDING = {signal.SIGINT: Exit.INTERRUPTED, signal.SIGTERM: Exit.TERMINATED, signal.SIGHUP: Exit.HUNG_UP}


def configured(file: Path) -> Settings:
    """What the file and the environment say.

    Raises:
        ConfigError: something is wrong in the file.
    """
    try:
        chosen = settings.parse(file.read_bytes(), str(file))
    except FileNotFoundError:
        chosen = settings.Settings()
    except OSError as error:
        raise ConfigError(f"{file}: {error.strerror}") from None
    return settings.environment(os.environ, chosen)


def add_meeting(parser: argparse.ArgumentParser) -> None:
    """The options of whoever meets others by a rendezvous server and the daemon, and tells news."""
    parser.add_argument("--rendezvous", metavar="URL", help=f"of the rendezvous server (or ${settings.VARIABLE})")
    parser.add_argument("--ca", metavar="FILE", help="trust the certificates in it for the rendezvous server")
    parser.add_argument("--socket", metavar="PATH", help="of punchd")
    parser.add_argument("--techniques", metavar="LIST", help="what to try, in this order (default: punchd's)")
    parser.add_argument("--stun", metavar="HOST:PORT", help="STUN server (default: punchd's, else the rendezvous host)")
    parser.add_argument("--timeout", metavar="SECONDS", type=int, help="for a call to be connected (default: 45)")
    parser.add_argument("--json", action="store_true", help="news as JSON, one object a line, on standard error")
    parser.add_argument("-q", "--quiet", action="store_true", help="no news but errors")


def meeting_settings(given: argparse.Namespace, file: Path) -> Settings:
    """What the command line says of `add_meeting`'s options, over the environment, over the file.

    Raises:
        ConfigError: something cannot be.
    """
    names = ("rendezvous", "ca", "socket", "techniques", "stun", "timeout")
    table = {name: getattr(given, name) for name in names if getattr(given, name) is not None}
    return settings.build(table, "command line", configured(file))


def run(command: Callable[[], Awaitable[None]]) -> int:
    """Run a command until it ends or a signal ends it; a second signal ends the process as it is.

    Returns:
        The exit code.

    Raises:
        PunchdError: what the command raised.
    """
    import trio

    open_standard_descriptors()
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


def open_standard_descriptors() -> None:
    """A program that was started without them must not take its own sockets for its input and output."""
    for fd in (0, 1, 2):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest that is free


def print_line(line: str) -> None:
    """To standard output.

    Raises:
        ConfigError: it cannot be written.
    """
    try:
        os.write(1, f"{line}\n".encode())
    except OSError as error:
        raise ConfigError(f"standard output: {error.strerror}") from None


def write_news(line: str) -> None:
    """To standard error, if there is one."""
    with contextlib.suppress(OSError):  # nobody reads it any more
        os.write(2, f"{one_line(line)}\n".encode(errors="backslashreplace"))
