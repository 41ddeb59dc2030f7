"""What the programs that run as services share: one line for each reason not to start, and signals.

Signals. Until the sockets are bound there is nothing to clean up, and a signal ends the process as it is; Python's own
way, an exception, gets lost in code that swallows exceptions (measured: 6 of 960 while modules are imported). From the
sockets on signals wait until trio listens to them; then each of them does what the program has it do.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NoReturn

EX_USAGE = 2  # what argparse and most programs use
EX_CONFIG = 78
EX_INTERRUPTED = 130  # 128 + SIGINT, as shells count


class Parser(argparse.ArgumentParser):
    """One line for a wrong command line, as for every other reason not to start."""

    def error(self, message: str) -> NoReturn:
        self.exit(EX_USAGE, f"{self.prog}: {one_line(message)}; see {self.prog} --help\n")

    def _print_message(self, message: str, file: Any = None) -> None:
        """Nobody may be there to read it: closed (None), a full disk, a pipe without a reader."""
        file = file or sys.stderr
        try:
            file.write(message)
            file.flush()
        except AttributeError:
            pass
        except OSError:
            with open(os.devnull, "wb") as null:  # for what is left in the buffer, which would fail again at the exit
                os.dup2(null.fileno(), file.fileno())


def one_line(text: str) -> str:
    """Paths and keys may hold line feeds and worse; a log or a terminal gets them escaped."""
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


def run(main: Callable[[], int]) -> int:
    """The exit code of `main`, that of an interrupt included."""
    try:
        with _interrupts_kill():
            return _run(main)
    except KeyboardInterrupt:  # it came a moment before it could kill
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
        signal.raise_signal(signal.SIGINT)
        return EX_INTERRUPTED


def _run(main: Callable[[], int]) -> int:
    try:
        return main()
    except KeyboardInterrupt:
        return EX_INTERRUPTED
    except BaseExceptionGroup as group:  # trio's way to raise one
        if group.split(KeyboardInterrupt)[1] is not None:
            raise
        return EX_INTERRUPTED


@contextlib.contextmanager
def _interrupts_kill() -> Iterator[None]:
    """SIGINT ends the process at once, unless whoever started it has it ignored.

    Python throws away a signal that it has noted when its handler is replaced, so none may come meanwhile. One that it
    noted before is raised by the blocking.
    """
    before = signal.getsignal(signal.SIGINT)
    if before is not signal.default_int_handler:
        yield
        return
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


@contextlib.contextmanager
def signals_wait(awaited: Sequence[signal.Signals]) -> Iterator[None]:
    """`awaited` wait from here until they are unblocked; from there to the end SIGINT is trio's KeyboardInterrupt."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, awaited)
    killing = signal.getsignal(signal.SIGINT)
    if killing is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, killing)
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
