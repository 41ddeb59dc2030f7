"""`./dev demo [KIND_A KIND_B]`: the main job, as one would see it on two machines, in a laboratory on one.

Two hosts, each behind a NAT of its own; a daemon on each; punchd-rendezvous on a public host; two chats. Shown are the
topology, what both sides say while they connect, how long it took, and the words that go both ways. Exit code 0 if they
got through, 1 if they did not (and why), 2 for a wrong command line.
"""

from __future__ import annotations

import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import trio

from tests.natlab import Laboratory, LaboratoryError, Link, Site, kind
from tests.pair import RunningDaemon, daemons, stun_arguments
from tests.servers import rendezvous

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = {"a": "alice", "b": "bob"}
LINKS_S = {"a": 0.012, "b": 0.028}  # one way; 80 ms from host to host and back
RENDEZVOUS_PORT = 5025
CONNECT_S = 40.0  # longer than an attempt may take
TALK_S = 10.0
LAST_WORDS_S = 2.0  # for the other side's explanation


@dataclass(frozen=True, slots=True)
class Said:
    """A line of a chat: news (standard error), or words of the other side; None is the end of either."""

    at: float
    who: str
    is_news: bool
    text: str | None


class Chats:
    """Both chat processes and what they say, in the order in which it is said."""

    def __init__(self, laboratory: Laboratory, running: dict[str, RunningDaemon], rendezvous: str) -> None:
        self._laboratory = laboratory
        self._running = running
        self._rendezvous = rendezvous
        self._said: queue.Queue[Said] = queue.Queue()
        self.processes: dict[str, subprocess.Popen[str]] = {}

    def start(self, who: str, *arguments: str) -> None:
        command = [sys.executable, str(EXAMPLES / "chat.py"), "--rendezvous", f"http://{self._rendezvous}"]
        command += ["--socket", self._running[who].path, *arguments]
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = self._laboratory.site(who).host.popen(command, text=True, bufsize=1, **pipes)
        self.processes[who] = process
        for stream, is_news in ((process.stderr, True), (process.stdout, False)):
            if stream is None:
                raise AssertionError("both are pipes")
            threading.Thread(target=self._listen, args=(who, stream, is_news), daemon=True).start()

    def _listen(self, who: str, stream: IO[str], is_news: bool) -> None:
        for line in stream:
            self._said.put(Said(time.monotonic(), who, is_news, line.rstrip("\n")))
        self._said.put(Said(time.monotonic(), who, is_news, None))

    def listen_until(self, done: Callable[[Said], bool], patience_s: float) -> bool:
        """Read what is said until `done`; False when a chat ends or time passes first."""
        deadline = time.monotonic() + patience_s
        while True:
            try:
                said = self._said.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                return False
            if done(said):
                return True
            if said.text is None and said.is_news:
                return False

    def tell(self, who: str, words: str) -> None:
        pipe = self.processes[who].stdin
        if pipe is not None:
            pipe.write(words + "\n")
            pipe.flush()

    def finish(self) -> list[int]:
        """End of input for both; their exit codes."""
        codes = []
        for process in self.processes.values():
            if process.stdin is not None:
                process.stdin.close()
            try:
                codes.append(process.wait(5))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return codes


def show(text: str = "") -> None:
    print(text, flush=True)


def run(kind_a: str, kind_b: str) -> int:
    """The demonstration with these kinds of NAT."""
    kinds = {"a": kind(kind_a), "b": kind(kind_b)}
    rtt_s = 2 * sum(LINKS_S.values())
    with ExitStack() as stack:
        sites = [Site(name, kinds[name], wan=Link(delay_s=LINKS_S[name])) for name in kinds]
        laboratory = stack.enter_context(Laboratory(sites))
        show(laboratory.topology())
        show()
        for name, nat in (("a", kind_a), ("b", kind_b)):
            show(f"{NAMES[name]} sits on host {name}, behind {nat}: {kinds[name].summary}")
        show(f"round trip between the hosts: {rtt_s * 1000:.0f} ms\n")

        words = stun_arguments(laboratory.stun)
        started = stack.enter_context(daemons([(laboratory.site(name).host, words) for name in kinds]))
        running = dict(zip(kinds, started, strict=True))
        trio.run(_until_ready, started)
        address = laboratory.stun[0].rpartition(":")[0]
        where = f"{address}:{RENDEZVOUS_PORT}"
        stack.enter_context(rendezvous(laboratory.server, where))
        chats = Chats(laboratory, running, where)
        return _converse(chats, rtt_s)


async def _until_ready(running: list[RunningDaemon]) -> None:
    for daemon in running:
        await daemon.until_ready()


class _Story:
    """What was said, shown as it comes, with the moments that count."""

    def __init__(self) -> None:
        self.began = time.monotonic()
        self.at: dict[tuple[str, str], float] = {}  # (who, first word of the news) -> when it was said first
        self.callee = ""  # the id that bob waits as
        self.failures: list[str] = []
        self.heard: set[tuple[str, str]] = set()

    def watch(self, said: Said) -> None:
        if said.text is None:
            return
        show(f"{said.at - self.began:7.3f} s  {NAMES[said.who]:6} {'' if said.is_news else 'hears: '}{said.text}")
        if not said.is_news:
            self.heard.add((said.who, said.text))
        elif said.text.startswith("chat: "):
            self.failures.append(f"{NAMES[said.who]}: {said.text.removeprefix('chat: ')}")
        else:
            if said.text.startswith("waiting as "):
                self.callee = said.text.removeprefix("waiting as ")
            self.at.setdefault((said.who, said.text.split(" ")[0]), said.at)

    def until(self, *moments: tuple[str, str]) -> Callable[[Said], bool]:
        """Watch, until all these moments have come."""

        def done(said: Said) -> bool:
            self.watch(said)
            return all(moment in self.at for moment in moments)

        return done

    def until_heard(self, who: str, sentence: str) -> Callable[[Said], bool]:
        def done(said: Said) -> bool:
            self.watch(said)
            return (who, sentence) in self.heard

        return done

    def until_failed(self, said: Said) -> bool:
        self.watch(said)
        return len(self.failures) == len(NAMES)


def _converse(chats: Chats, rtt_s: float) -> int:
    story = _Story()
    chats.start("b")
    if not chats.listen_until(story.until(("b", "waiting")), CONNECT_S):
        return _give_up(chats, story)
    chats.start("a", "--call", story.callee)
    if not chats.listen_until(story.until(("a", "connected"), ("b", "connected")), CONNECT_S):
        return _give_up(chats, story)
    took_s = max(story.at["a", "connected"], story.at["b", "connected"]) - story.at["a", "round"]
    show(f"\nconnected {took_s * 1000:.0f} ms after alice's daemon was asked: {took_s / rtt_s:.1f} round trips\n")

    for who, other in (("a", "b"), ("b", "a")):
        sentence = f"Hello {NAMES[other]}, this is {NAMES[who]}, straight through both NATs."
        chats.tell(who, sentence)
        chats.listen_until(story.until_heard(other, sentence), TALK_S)
    codes = chats.finish()
    if len(story.heard) < 2 or codes != [0, 0]:
        show(f"\nFAILED: {len(story.heard)} of 2 sentences were heard, exit codes {codes}")
        return 1
    show("\nBoth heard each other, both chats ended cleanly. The laboratory is being taken down.")
    return 0


def _give_up(chats: Chats, story: _Story) -> int:
    chats.listen_until(story.until_failed, LAST_WORDS_S)
    chats.finish()
    show("\nNOT CONNECTED")
    for failure in story.failures or ["a chat ended without a word, or said nothing in time"]:
        show(f"  {failure}")
    return 1


def main(arguments: list[str]) -> int:
    if len(arguments) not in (0, 2):
        print(f"demo: expected no kinds of NAT or two, got {len(arguments)}", file=sys.stderr)
        return 2
    try:
        return run(*(arguments or ["apdf", "apdf"]))
    except (ValueError, KeyError, LaboratoryError) as error:
        print(f"demo: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
