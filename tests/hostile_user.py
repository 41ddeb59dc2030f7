"""A program of an unprivileged user that does everything to the daemon that it should not: a process of its own.

    python -m tests.hostile_user SOCKET SEED COUNT [OWN ADDRESS]...

One action after the other, drawn with that seed, over a dozen connections of which some are never read, until COUNT
requests were made; 0: until it is killed. A request is a line, a piece of one, or a connection; what the daemon does
not take at once is waited for a little, then dropped with its connection. At the end it prints, as JSON, how many of
each kind it made, which codes it got, and how many rounds it asked for by local port.
"""

from __future__ import annotations

import json
import os
import random
import select
import signal
import socket
import sys
import time
from array import array
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field, replace
from ipaddress import ip_address

from punchd.endpoint import PortSet
from punchd.errors import DecodeError
from punchd.wire import token as tokens

CONNECTIONS = 12  # kept, beside those of a burst; the daemon allows 16
PATIENCE_S = 0.02  # for a daemon that takes nothing more of a connection
HEEDED = 0.8  # of the lines: an answer is waited for, so that they are not all in the daemon's queue
REMEMBERED = 50  # tokens

ALLOWED = tuple(f"203.0.113.{last}" for last in range(40, 48))  # nobody is there
FORBIDDEN = (
    *("127.0.0.1", "127.8.8.8", "0.0.0.0", "0.1.2.3", "224.0.0.1", "239.1.2.3", "255.255.255.255", "169.254.7.7"),  # noqa: S104
    *("10.0.0.1", "172.16.3.4", "192.168.77.1", "100.64.1.3", "240.0.0.1", "203.0.113.200", "192.0.2.10"),
    *("::1", "::", "fe80::1", "ff02::1", "fc00::7", "fd12::1", "::ffff:203.0.113.7", "2001:db8:dead::1"),
)
TECHNIQUES = {"udp": 1, "tcp-nutss": 2, "tcp-syni": 2, "auto": 5, "udp,udp": 2}  # and rounds, those reversed as well


@dataclass(eq=False, slots=True)
class Line:
    """A connection; `deaf` ones are never read."""

    socket: socket.socket
    deaf: bool
    ids: list[str] = field(default_factory=list)
    pending: bytes = b""


@dataclass(slots=True)
class Hostile:
    """The user. `own`: addresses of the host, which are no peers either."""

    path: str
    rng: random.Random
    own: list[str]
    lines: list[Line] = field(default_factory=list)
    known: list[str] = field(default_factory=list)  # tokens that were seen
    requests: int = 0
    made: Counter[str] = field(default_factory=Counter)
    codes: Counter[str] = field(default_factory=Counter)
    rounds: Counter[int] = field(default_factory=Counter)  # asked for, by local port; 0: the daemon chooses
    answers: int = 0

    # --- acting ----------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """One action of the mixture."""
        kinds = {
            self.malformed: 10,
            self.forbidden: 14,
            self.foreign_token: 8,
            self.initiate: 26,
            self.respond: 8,
            self.cancel: 8,
            self.probe: 6,
            self.odd_descriptor: 6,
            self.unasked_descriptor: 3,
            self.half_line: 4,
            self.crowd: 1,
            self.churn: 6,
        }
        (kind,) = self.rng.choices(list(kinds), list(kinds.values()))
        self.made[kind.__name__] += 1
        kind()
        if self.requests % 8 == 0:
            self.listen()

    def malformed(self) -> None:
        text = bytearray(
            self.rng.choice((self._initiate("udp"), self._probe(), self._token_line(self._token()))), "ascii"
        )
        for _ in range(self.rng.randrange(1, 4)):
            at = self.rng.randrange(len(text))
            match self.rng.randrange(4):
                case 0:
                    text[at] = self.rng.randrange(256)
                case 1:
                    del text[at : at + self.rng.randrange(1, 9)]
                case 2:
                    text[at:at] = self.rng.choice((b"|", b";", b"=", b"\0", b"\n", b"9" * 30, b"x" * 600))
                case _:
                    text = text or bytearray(b"|")
            text = text or bytearray(b"|")
        self.say(bytes(text))

    def forbidden(self) -> None:
        peer = self.rng.choice((*FORBIDDEN, *self.own))
        match self.rng.randrange(4):
            case 0:
                self.say(self._initiate(peer=peer))
            case 1:
                port = self.rng.randrange(1024, 65536)
                self.say(f"{self._initiate()};stun={peer}:{port}")
            case 2:
                with suppress(ValueError):  # no token for an address of another form
                    self.say(self._token_line(self._crafted(peer)))
            case _:
                self.say(f"probe|{self._new_id()}|udp|local={peer}")

    def foreign_token(self) -> None:
        token = bytearray(self._token(), "ascii")
        for _ in range(self.rng.randrange(3)):
            token[self.rng.randrange(len(token))] = self.rng.choice(b"ABCDEFabcdef0123456789-_")
        self.say(self._token_line(token.decode()))

    def initiate(self) -> None:
        self.say(self._initiate())

    def respond(self) -> None:
        self.say(self._token_line(self._crafted(self.rng.choice(ALLOWED))))

    def cancel(self) -> None:
        line = self._line()
        self.say(f"cancel|{self.rng.choice(line.ids or ['none'])}", line)

    def probe(self) -> None:
        self.say(self._probe())

    def odd_descriptor(self) -> None:
        line = self._initiate(self.rng.choice(("udp", "tcp-nutss")), lport=0)
        with self._odd() as fds:
            self.say(f"{line};sock=1", fds=[*fds, *fds][: self.rng.choice((1, 1, 1, 2))])

    def unasked_descriptor(self) -> None:
        with self._odd() as fds:
            self.say(self.rng.choice((self._initiate(), "cancel|x", "hello|1", "x", "")), fds=list(fds))

    def half_line(self) -> None:
        """End of file at any place of a line, with or without a descriptor."""
        text = self.rng.choice((self._initiate("udp"), self._probe(), f"{self._initiate('udp', lport=0)};sock=1"))
        line = self._line()
        with self._odd() as fds:
            given = list(fds) if self.rng.random() < 0.3 else []
            self.say(text[: self.rng.randrange(len(text))], line, end=b"", fds=given)
        if self.rng.random() < 0.5:
            with suppress(OSError):
                line.socket.shutdown(socket.SHUT_WR)
        self._drop(line)

    def crowd(self) -> None:
        """More connections than allowed, and all of them gone again."""
        crowd = [socket.socket(socket.AF_UNIX) for _ in range(30)]
        for one in crowd:
            self.requests += 1
            with suppress(BlockingIOError, ConnectionError):
                one.setblocking(False)
                one.connect(self.path)
        for one in crowd:
            one.close()

    def churn(self) -> None:
        """Connections that end with their first byte, a wrong one or none."""
        for _ in range(self.rng.randrange(1, 10)):
            self.requests += 1
            with socket.socket(socket.AF_UNIX) as one, suppress(ConnectionError):
                one.connect(self.path)
                one.send(self.rng.choice((b"\0", b"\n", b"x", b"cancel|x\n")))

    # --- lines -----------------------------------------------------------------------------------------------------

    def _new_id(self) -> str:
        return f"h{self.rng.randrange(1000)}"

    def _initiate(self, techniques: str = "", peer: str = "", lport: int | None = None) -> str:
        name = techniques or self.rng.choice(list(TECHNIQUES))
        port = self.rng.randrange(20000, 21000) if lport is None else lport
        self.rounds[port] += TECHNIQUES[name]
        ports = self.rng.choice(("40000", "1-16", "1,22,80,443"))
        peer = peer or self.rng.choice(ALLOWED)
        ttl = self.rng.choice(("", "", ";ttl=64"))
        return f"initiate|{self._new_id()}|{name}|{peer}|{ports}|timeout=2000;lport={port}{ttl}"

    def _probe(self) -> str:
        return f"probe|{self._new_id()}|{self.rng.choice(('udp', 'tcp'))}|lport={self.rng.choice((0, 0, 30000, 80))}"

    def _token(self) -> str:
        return self.rng.choice(self.known) if self.known else self._crafted(ALLOWED[0])

    def _crafted(self, address: str) -> str:
        """An offer that nobody made, and that names this address."""
        card = tokens.Card(ip_address(address), PortSet((40000, 40001)), body=bytes(16))
        nonce = self.rng.randbytes(tokens.NONCE_SIZE)
        found = tokens.Token(tokens.Kind.OFFER, nonce, 1, tokens.TECHNIQUE_NUMBERS["udp"], card=card)
        if self.known:  # of a technique that exists
            with suppress(DecodeError, ValueError):
                real = tokens.decode(self.rng.choice(self.known))
                if real.card is not None:
                    found = replace(real, nonce=nonce, card=replace(real.card, address=card.address))
        return tokens.encode(found)

    def _token_line(self, token: str) -> str:
        self.rounds[0] += 1
        name = self.rng.choice([*(self._line().ids or [""])[-1:], self._new_id()])
        return f"respond|{name or self._new_id()}|{token}|timeout=1000"

    def _odd(self) -> Odd:
        return Odd(self.rng)

    # --- connections -----------------------------------------------------------------------------------------------

    def say(
        self, text: str | bytes, line: Line | None = None, *, end: bytes = b"\n", fds: list[int] | None = None
    ) -> None:
        """One request on some connection. A connection that takes no more is dropped."""
        self.requests += 1
        line = line or self._line()
        data = (text.encode() if isinstance(text, str) else text) + end
        words = data.split(b"|")
        if len(words) > 2 and words[0] in (b"initiate", b"probe", b"respond"):
            line.ids = [*line.ids[-20:], words[1].decode("ascii", "ignore") or "x"]
        ancillary = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
        if not data or not select.select([], [line.socket], [], PATIENCE_S)[1]:
            self._drop(line)
            return
        try:
            line.socket.sendmsg([data], ancillary)
        except OSError:  # sent away, most likely: not so often that requests are nothing but that
            self._drop(line)
            time.sleep(PATIENCE_S)
            return
        if not line.deaf and self.rng.random() < HEEDED and select.select([line.socket], [], [], PATIENCE_S)[0]:
            self._hear(line)

    def listen(self) -> None:
        """Take what has come, tokens above all."""
        hearing = [line for line in self.lines if not line.deaf]
        for line in select.select([line.socket for line in hearing], [], [], 0)[0] if hearing else []:
            self._hear(next(one for one in hearing if one.socket is line))

    def _hear(self, line: Line) -> None:
        try:
            data, control, _, _ = line.socket.recvmsg(65536, socket.CMSG_SPACE(64), socket.MSG_CMSG_CLOEXEC)
        except OSError:
            data, control = b"", []
        for _, _, raw in control:
            for fd in memoryview(raw).cast("i"):
                os.close(fd)
        if not data:
            self._drop(line)
            return
        *whole, line.pending = (line.pending + data).split(b"\n")
        for answer in whole:
            self.answers += 1
            words = answer.decode("ascii").split("|")
            if words[0] == "error":
                self.codes[words[2]] += 1
            elif words[0] == "progress" and words[4] == "relay":
                self.known = [*self.known[-REMEMBERED:], words[5]]

    def _line(self) -> Line:
        if len(self.lines) < CONNECTIONS:
            self.requests += 1
            one = socket.socket(socket.AF_UNIX)
            one.settimeout(1)
            with suppress(TimeoutError, ConnectionError):
                one.connect(self.path)
                one.setblocking(False)
            self.lines.append(Line(one, self.rng.random() < 0.2))
        return self.rng.choice(self.lines)

    def _drop(self, line: Line) -> None:
        line.socket.close()
        if line in self.lines:
            self.lines.remove(line)


class Odd:
    """Descriptors that are no unused sockets, and some that are; as a context manager that closes them."""

    def __init__(self, rng: random.Random) -> None:
        self._kind = rng.randrange(9)
        self._open: list[int] = []
        self._sockets: list[socket.socket] = []

    def __enter__(self) -> list[int]:
        match self._kind:
            case 0:
                self._open += os.pipe()
            case 1:
                self._open.append(os.open("/dev/null", os.O_RDWR))
            case 2:
                self._sockets += socket.socketpair()
            case 3:
                self._open.append(os.memfd_create("odd"))
            case 4:
                listening = socket.create_server(("", 0))
                connected = socket.create_connection(("127.0.0.1", listening.getsockname()[1]))
                self._sockets += [connected, listening]
            case 5:
                self._sockets.append(socket.socket(socket.AF_INET6, socket.SOCK_DGRAM))
            case 6:
                self._sockets.append(socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            case 7:
                bound = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
                bound.bind(("127.0.0.1", 0))
                self._sockets.append(bound)
            case _:
                self._sockets.append(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
        return (self._open + [one.fileno() for one in self._sockets])[:1]

    def __exit__(self, *_: object) -> None:
        for fd in self._open:
            os.close(fd)
        for one in self._sockets:
            one.close()


def main(path: str, seed: int, count: int, own: list[str]) -> None:
    hostile = Hostile(path, random.Random(seed), own)
    going = True

    def stop(*_: object) -> None:
        nonlocal going
        going = False

    signal.signal(signal.SIGTERM, stop)
    while going and (hostile.requests < count or count == 0):
        hostile.act()
    summary = {name: getattr(hostile, name) for name in ("requests", "answers", "made", "codes", "rounds")}
    print(json.dumps(summary), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:])
