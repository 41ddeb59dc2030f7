"""The tool as processes, each piped into the next: started together, listened to, ended together.

A program's standard error is read here, line by line, with the passphrase blotted out. The first one's standard
input and the last one's standard output are our own, so that media can be piped through; from a terminal nothing is
read, since a process group in the background may not. Where something has to follow what a program wrote (`tail`), we
hold the writing end of its pipe, too.

Each program has a process group of its own: Ctrl-C reaches us alone, and a shell's children end with it. If we are
killed, srt-live-transmit ends by SIGPIPE with its next line of statistics.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import trio

from punchd.punch.outcomes import EndedError, Exit
from punchd.session.tools import STATISTICS, Command, missing

TERM_S = 3.0  # from SIGTERM to SIGKILL; srt-live-transmit takes 0.1 s
FED_S = 3.0  # from the end of the input to SIGTERM; ffmpeg writes its file's end then, and needs 0.1 s
LAST_WORDS_S = 1.0  # for what a program that has ended left in its pipe
MAX_LINE_BYTES = 4096
_LOOK_S = 0.01  # at whether a pipe is empty
_BLOT = "***"


@dataclass(frozen=True, slots=True)
class Ears:
    """Who hears what programs say. `heard` gets lines of standard error, `counted` lines of statistics."""

    heard: Callable[[str], None]
    counted: Callable[[bytes], None]
    secret: str


@dataclass(frozen=True, slots=True)
class Ended:
    """The first program that ended: its exit code (negative: the signal), and that in words."""

    code: int
    why: str


async def run(commands: Sequence[Command], ears: Ears, linger_s: float) -> Ended:
    """Run all until one ends; then, or when cancelled, end the others.

    Args:
        linger_s: how long the SRT end goes on when what feeds it has ended well: media are still on their way.

    Raises:
        EndedError: a program cannot be started.
    """
    running: list[_Program] = []
    try:
        with contextlib.ExitStack() as ours:
            source: int | None = subprocess.DEVNULL if os.isatty(0) else None
            for command in commands:
                following, sink = (None, None) if command is commands[-1] else _pipe(ours)
                running.append(await _start(command, source, sink))
                source = following
        return await _attend(running, ears, linger_s)
    finally:
        with trio.CancelScope(shield=True):
            for program in running:
                program.let_go()
            await _end(running)
            for program in running:
                await program.errors.aclose()
                await program.statistics.aclose()


def is_private() -> bool:
    """Whether other users cannot read our command lines: /proc is mounted with hidepid (proc(5))."""
    try:
        mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    except OSError:
        return False
    options = next((words[3].split(",") for words in reversed(mounts) if words[1] == "/proc"), [])
    return any(one.startswith("hidepid=") and one not in ("hidepid=0", "hidepid=off") for one in options)


@dataclass(slots=True)
class _Program:
    """A running program and our ends of its pipes.

    Attributes:
        output: where it writes, if something has to follow; None: nothing, or it is done.
        is_over: it has ended, and so has all that it started.
    """

    command: Command
    process: trio.Process
    errors: trio.abc.ReceiveStream
    statistics: trio.abc.ReceiveStream
    output: int | None
    is_over: bool = False

    async def add_tail(self) -> None:
        """Let what has to follow follow; who does not read is not waited for.

        Not before all else was read: srt-live-transmit takes ten pieces at once into a buffer of its own, and looks at
        what is left in that when more comes, which the end is not.
        """
        if self.output is not None:
            with trio.move_on_after(FED_S), contextlib.suppress(BrokenPipeError):
                while _waiting(self.output):  # noqa: ASYNC110 (a pipe tells nobody that it is empty)
                    await trio.sleep(_LOOK_S)
                os.write(self.output, self.command.tail)  # it does not block: less than the pipe holds
            self.let_go()

    def let_go(self) -> None:
        """What reads from it sees its end."""
        if self.output is not None:
            os.close(self.output)
            self.output = None


def _pipe(ours: contextlib.ExitStack) -> tuple[int, int]:
    """Reading and writing end, until `ours` closes them. Not trio's: those do not block, which no program expects."""
    ends = os.pipe()
    for one in ends:
        ours.callback(os.close, one)
    return ends


def _waiting(pipe: int) -> int:
    """How many bytes nobody has read yet."""
    return int.from_bytes(fcntl.ioctl(pipe, termios.FIONREAD, bytes(4)), sys.byteorder)


async def _start(command: Command, source: int | None, sink: int | None) -> _Program:
    """Start it with these as standard input and output; None: our own."""
    reading, writing = os.pipe()
    words = [word.replace(STATISTICS, f"/dev/fd/{writing}") for word in command.words]
    try:
        process = await trio.lowlevel.open_process(
            words,
            stdin=source,
            stdout=sink,
            stderr=subprocess.PIPE,
            pass_fds=[writing],
            process_group=0,
            env={**os.environ, **command.environment},
        )
    except OSError as error:
        os.close(reading)
        text = missing(words[0]) if isinstance(error, FileNotFoundError) else f"{words[0]}: {error.strerror}"
        raise EndedError(Exit.USAGE, text) from None
    except BaseException:
        os.close(reading)
        raise
    finally:
        os.close(writing)
    assert process.stderr is not None  # noqa: S101 (a pipe was asked for)
    output = os.dup(sink) if sink is not None and command.tail else None
    return _Program(command, process, process.stderr, trio.lowlevel.FdStream(reading), output)


async def _attend(running: Sequence[_Program], ears: Ears, linger_s: float) -> Ended:
    """Listen until one has ended, and to the last words of all."""

    def hear(line: bytes) -> None:
        ears.heard(line.decode(errors="replace").replace(ears.secret, _BLOT))

    first: list[Ended] = []
    async with trio.open_nursery() as listening:
        for program in running:
            listening.start_soon(_read_lines, program.errors, hear)
            listening.start_soon(_read_lines, program.statistics, ears.counted)
        async with trio.open_nursery() as waiting:
            for program in running:
                waiting.start_soon(_wait, program, first, linger_s, waiting.cancel_scope)
        await _end(running)
        listening.cancel_scope.deadline = trio.current_time() + LAST_WORDS_S
    return first[0]


async def _wait(program: _Program, first: list[Ended], linger_s: float, scope: trio.CancelScope) -> None:
    code = await program.process.wait()
    if not first:
        first.append(Ended(code, f"{program.command.words[0]}: {_in_words(code)}"))
        if code == 0 and not program.command.is_end:
            await program.add_tail()
            await trio.sleep(linger_s)
    scope.cancel()


def _in_words(code: int) -> str:
    return f"exit code {code}" if code >= 0 else f"ended by {signal.Signals(-code).name}"


async def _end(running: Sequence[_Program]) -> None:
    """One after the other, in the order of the pipe: what is fed ends by the end of its input, and has all of it then.

    SIGTERM and SIGKILL reach whatever a program has started, too.
    """
    for number, program in enumerate(running):
        if program.is_over:
            continue
        is_fed = number > 0 and not program.command.is_end
        for limit_s, sign in ((FED_S if is_fed else 0, signal.SIGTERM), (TERM_S, signal.SIGKILL)):
            with trio.move_on_after(limit_s):
                await program.process.wait()
            if program.process.returncode is None:
                _signal(program.process, sign)
        await program.process.wait()
        _signal(program.process, signal.SIGKILL)  # what it has left of its group
        program.is_over = True


def _signal(process: trio.Process, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)


async def _read_lines(stream: trio.abc.ReceiveStream, take: Callable[[bytes], None]) -> None:
    """Until the end. What is longer than a line may be comes in pieces."""
    left = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while chunk := await stream.receive_some(MAX_LINE_BYTES):
            *lines, left = (left + chunk).split(b"\n")
            for line in lines:
                take(line)
            if len(left) >= MAX_LINE_BYTES:
                take(left)
                left = b""
    if left:
        take(left)
