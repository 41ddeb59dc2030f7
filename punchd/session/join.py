"""`punch session join`: a peer's part in a stream, from registration to the tool's end; the shell of `join_machine`.

    broker ──events──▶ machine ──actions──▶ broker (one speaker, in order), port, tool
    port (STUN), tool (its words and statistics), clock, user ──▶

Whoever has news calls the machine at once and carries out its actions at once.
"""

from __future__ import annotations

import json
import logging
import math
import os
import secrets
from collections.abc import Awaitable, Callable
from functools import partial

import trio

from punchd.broker import client, connect
from punchd.broker.client import BrokerError, Joined, Peer
from punchd.nat.discover import Discovered
from punchd.nat.mapping import Behaviour
from punchd.punch.news import News
from punchd.punch.outcomes import EndedError, Exit
from punchd.session import child, commands, moves, srt_log, statistics, tools
from punchd.session.join_machine import JoinMachine
from punchd.session.options import STUN_PORT, JoinOptions
from punchd.session.port import HeldPort
from punchd.session.srt_log import Heard
from punchd.session.where import Where
from punchd.web import client_url

SPEAK_S = 5.0  # for one message to the broker
MOST_WAITING = 256  # messages to it
MOST_WORDS, WORDS_S = 20, 10.0  # lines of a tool that are shown in that time
MAX_WORD_CHARS = 300


async def join(at: Where, options: JoinOptions, news: News, write: Callable[[str], None]) -> None:
    """Take part until the tool or the session has ended.

    Args:
        write: takes what is to stand on standard output.

    Raises:
        EndedError: see `Exit`.
        ConfigError: something is wrong with the URL or the authority's file.
    """
    servers = options.stun or ((client_url.parse(at.place.url, "broker URL").host, STUN_PORT),)
    held = HeldPort(
        options.port, servers, lambda port: news.warn(f"UDP port {port} is in use: end the program that has it")
    )
    held.bind()
    logging.getLogger("punchd").addHandler(logging.NullHandler())  # what it has to say is told as news
    async with commands.at(at.place) as broker, broker.join(at.name, at.token) as joined:
        end = await _Joining(joined, held, options, news, write).run()
    if end.code is not Exit.DONE:
        raise EndedError(end.code, end.text)


class _Joining:
    def __init__(
        self, joined: Joined, held: HeldPort, options: JoinOptions, news: News, write: Callable[[str], None]
    ) -> None:
        self._joined = joined
        self._held = held
        self._options = options
        self._news = news
        self._write = write
        self._is_by_hand = options.form is not None
        self._machine = JoinMachine(keep=options.keep, by_hand=self._is_by_hand)
        self._nonce = secrets.token_hex(4)
        self._to_speak, self._spoken = trio.open_memory_channel[Callable[[], Awaitable[object]]](MOST_WAITING)
        self._changed = trio.Event()
        self._tool_scope = trio.CancelScope()
        self._ip_version = joined.ip_version or 4
        self._stream = options.stream or ""
        self._end: moves.End | None = None
        self._warned: set[str] = set()
        self._words_from, self._words = -math.inf, 0
        self._has_user = True

    async def run(self) -> moves.End:
        """Until it is over, and how."""
        async with trio.open_nursery() as self._nursery:
            for task in (self._speak, self._listen, self._keep_time, *([self._hear_user] if self._is_by_hand else [])):
                self._nursery.start_soon(task)
            self._do(self._machine.begin())
        return self._end or moves.End(Exit.DONE, "")

    def _do(self, actions: list[moves.Action]) -> None:
        for action in actions:
            if self._end is not None:
                return
            match action:
                case moves.HoldPort():
                    self._nursery.start_soon(self._hold)
                case moves.RunTool(peer):
                    self._held.release()
                    self._tool_scope = trio.CancelScope()
                    self._nursery.start_soon(self._run_tool, peer, self._tool_scope)
                case moves.StopTool():
                    self._tool_scope.cancel()
                case moves.ShowStrings(peer):
                    self._show(peer)
                case moves.Tell(event, line, more, is_warning):
                    self._news.say(event, f"warning: {line}" if is_warning else line, text=line, **more)
                case moves.Register(public_port, run):
                    self._register(public_port, run)
                case moves.SayReady():
                    self._say(partial(self._joined.ready, self._options.stream))
                case moves.SayStatus(srt):
                    self._say(partial(self._joined.status, srt, self._options.stream))
                case moves.SayHealth(health):
                    figures = {
                        name: getattr(health, name) for name in ("rtt", "retransmit", "bitrate", "dropped", "buffer")
                    }
                    self._news.say("health", _figures(health.rtt, health.retransmit, health.bitrate), **figures)
                    self._say(partial(self._joined.health, **figures, stream=self._options.stream))
                case moves.End():
                    self._end = action
                    self._to_speak.close()
                    self._nursery.cancel_scope.deadline = trio.current_time() + SPEAK_S
        self._changed.set()

    # To and from the broker.

    def _say(self, what: Callable[[], Awaitable[object]]) -> None:
        try:
            self._to_speak.send_nowait(what)
        except trio.WouldBlock:  # the broker reads nothing; the library will find that out
            self._warn_once("the broker does not read what we say")

    async def _speak(self) -> None:
        async for what in self._spoken:
            with trio.move_on_after(SPEAK_S):
                await what()
        self._nursery.cancel_scope.cancel()

    async def _listen(self) -> None:
        try:
            async for event in self._joined:
                self._do(self._take(event))
        except BrokerError as error:
            last = commands.ended(error)
            self._do(self._machine.dismissed(last.code, str(last)))

    def _take(self, event: client.Event) -> list[moves.Action]:
        now = trio.current_time()
        match event:
            case client.Peer():
                return self._take_peer(event)
            case client.Start():
                return self._machine.start(now)
            case client.Session(streams=streams) if self._stream in streams:
                return self._machine.populated(streams[self._stream].peers)
            case client.Error(code, text):
                return self._machine.refused(code, text, now)
            case client.SessionClosed(reason):
                return self._machine.closed(reason)
            case client.Tally(stream, light):
                return [moves.Tell("tally", f"tally of {stream}: {light}", {"stream": stream, "state": str(light)})]
            case client.Reconnecting(reason, wait_s):
                return [
                    moves.Tell(
                        "reconnecting", f"the broker is lost: {reason}; again in {wait_s:.0f} s", is_warning=True
                    )
                ]
            case client.Reconnected():
                return self._reconnected()
            case client.Malformed(why):
                return [moves.Tell("malformed", why, is_warning=True)]
            case _:
                return []

    def _take_peer(self, peer: Peer) -> list[moves.Action]:
        if not tools.is_plain(peer.passphrase):
            return [moves.End(Exit.REFUSED, "the broker's passphrase has characters that a URL cannot hold")]
        self._stream = peer.stream or self._stream
        where = str(peer.endpoint)
        matched = moves.Tell("matched", f"the other side is {where}", {"stream": peer.stream, "remote": where})
        return [matched, *self._machine.peer(peer)]

    def _reconnected(self) -> list[moves.Action]:
        actions: list[moves.Action] = [moves.Tell("reconnected", "the broker is back"), *self._machine.reconnected()]
        version = self._joined.ip_version or self._ip_version
        if version != self._ip_version:
            self._ip_version = version
            actions += self._machine.begin()
        return actions

    def _register(self, public_port: int | None, run: int) -> None:
        meta = json.dumps({"punchd": {"run": f"{self._nonce}-{run}"}}, separators=(",", ":"))
        direction, port = self._options.choice.direction, self._held.number
        seen = "" if public_port is None else f", seen as port {public_port}"
        self._news.say("registering", f"registering UDP port {port}{seen}", port=port, public_port=public_port)
        if public_port not in (None, port):
            self._warn_once(f'the NAT maps port {port} to another: the broker needs reported-endpoint = "port"')
        registration = client.Register(port, self._options.stream, direction, meta, public_port)
        self._say(partial(self._joined.register, registration))

    # The port.

    async def _hold(self) -> None:
        try:
            await self._held.hold(self._ip_version, self._discovered)
        except EndedError as error:
            self._do([moves.End(error.code, str(error))])

    def _discovered(self, found: Discovered) -> None:
        if found.mapping is None:
            why = found.reason if found.failures else "no STUN server's name has an address here"
            self._warn_once(f"{why}; registering the local port as it is")
            self._do(self._machine.port_held(None))
            return
        if found.mapping.behaviour in (Behaviour.SEQUENTIAL, Behaviour.RANDOM):
            self._warn_once("the own NAT gives each destination another port; SRT will hardly connect")
        self._do(self._machine.port_held(found.mapping.observed[-1].port))

    # The tool.

    async def _run_tool(self, peer: Peer, scope: trio.CancelScope) -> None:
        with scope:
            if self._is_by_hand:
                self._news.say("start", f"start your tool now; UDP port {self._held.number} is free")
                await trio.sleep_forever()
            called = tools.commands(self._options.choice, self._srt_end(peer), self._stream)
            if any(peer.passphrase in word for command in called for word in command.words) and not child.is_private():
                self._warn_once(
                    "other users of this host can read the passphrase in the tool's command line; see hidepid"
                )
            self._news.say("start", f"starting {called[0].words[0]}")
            ears = child.Ears(self._heard, self._counted, peer.passphrase)
            try:
                ended = await child.run(called, ears, linger_s=0.5 + 2 * peer.latency_ms / 1000)
            except EndedError as error:
                return self._do([moves.End(error.code, str(error))])
        if scope.cancelled_caught:
            ended = child.Ended(0, "stopped")
        return self._do(self._machine.tool_ended(ended.code, ended.why, trio.current_time()))

    def _srt_end(self, peer: Peer) -> connect.End:
        direction = self._options.choice.direction
        return connect.End(peer.endpoint, self._held.number, direction, peer.latency_ms, peer.passphrase)

    def _heard(self, line: str) -> None:
        now = trio.current_time()
        match srt_log.hear(line):
            case Heard.CONNECTED:
                self._do(self._machine.linked(True, now))
            case Heard.DISCONNECTED:
                self._do(self._machine.linked(False, now))
            case Heard.REFUSED:
                self._warn_once("SRT's handshake is refused: does the other side have another passphrase?")
            case Heard.WORDS:
                self._pass_on(line, now)
            case Heard.NOISE:
                pass

    def _pass_on(self, line: str, now: float) -> None:
        if now >= self._words_from + WORDS_S:
            self._words_from, self._words = now, 0
        self._words += 1
        if self._words <= MOST_WORDS:
            shown = line[:MAX_WORD_CHARS]
            self._news.say("tool", shown, text=shown)

    def _counted(self, line: bytes) -> None:
        sample = statistics.read(line, self._options.choice.direction)
        if sample is not None:
            self._do(self._machine.sampled(sample, trio.current_time()))

    # The user, where they run the tool.

    def _show(self, peer: Peer) -> None:
        self._write(connect.string(self._options.form or "", self._srt_end(peer)))
        if self._has_user:
            text = "press Enter when your tool is set up; then, as it goes: connected, disconnected, and Enter"
            self._news.say("set-up", text)
        else:
            self._do(self._machine.set_up())

    async def _hear_user(self) -> None:
        try:
            while True:
                await trio.lowlevel.wait_readable(0)
                words = os.read(0, 4096)
                if not words:
                    break
                for word in words.decode(errors="replace").splitlines():
                    self._take_word(word.strip())
        except OSError:  # a file, or a terminal that is gone
            pass
        self._has_user = False
        self._do(self._machine.set_up())

    def _take_word(self, word: str) -> None:
        match word:
            case "":
                self._do(self._machine.set_up())
            case "connected" | "disconnected":
                self._do(self._machine.linked(word == "connected", trio.current_time()))
            case _:
                self._news.warn("expected Enter alone, connected, or disconnected")

    # The rest.

    async def _keep_time(self) -> None:
        while True:
            self._changed = trio.Event()
            due_at = self._machine.next_timeout()
            with trio.move_on_at(math.inf if due_at is None else due_at) as patience:
                await self._changed.wait()
            if patience.cancelled_caught:
                self._do(self._machine.timeout(trio.current_time()))

    def _warn_once(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            self._news.warn(text)


def _figures(rtt: float, retransmit: float, bitrate: float) -> str:
    return f"{bitrate / 1000:.0f} kbit/s, round trip {rtt:.1f} ms, {retransmit:.1f} % sent again"
