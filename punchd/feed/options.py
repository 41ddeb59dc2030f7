"""The words of `punch media`, checked before anything is begun. Pure."""

from __future__ import annotations

import argparse
import re
from dataclasses import dataclass

from punchd import knobs
from punchd.errors import ConfigError
from punchd.media.datagrams import FRAGMENT_HEADER_SIZE, MAX_DATAGRAM_SIZE
from punchd.media.settings import DEFAULT_DATAGRAM_SIZE, MIB
from punchd.punch.target import is_target

DEFAULT_RATE_BPS = 20e6  # what most lines carry upwards; nothing slows a sender down that is too fast
DEFAULT_LATENCY_MS = 200
DEFAULT_IDLE_S = 30  # twice the time between two keep-alives
MOST_LATENCY_MS = 5000  # reassembly gives up then
MOST_IDLE_S = 3600

_RATE = re.compile(r"([0-9]+(?:\.[0-9]+)?)([kMG]?)")
_UNITS = {"": 1.0, "k": 1e3, "M": 1e6, "G": 1e9}


@dataclass(frozen=True, slots=True)
class SendOptions:
    """What `send` is to do.

    Attributes:
        source: a file's path; None: standard input.
        rate_bps: headers included.
        size: of a logical send, bytes; None: what suits.
        datagram_size: longest UDP payload.
    """

    source: str | None
    rate_bps: float
    size: int | None
    datagram_size: int


@dataclass(frozen=True, slots=True)
class ReceiveOptions:
    """What `receive` is to do.

    Attributes:
        target: a file's path; None: standard output.
        window_s: how long what comes after a gap waits; 0: not at all, whatever the order.
        idle_s: silence that ends it.
    """

    target: str | None
    window_s: float
    idle_s: float


def add_send(parser: argparse.ArgumentParser) -> None:
    """The options of `send` alone."""
    parser.add_argument("words", metavar="[FILE] ADDRESS", nargs="*", help="- or nothing for FILE: standard input")
    parser.add_argument("--direct", metavar="HOST:PORT", help="wait there for a receiver instead of calling ADDRESS")
    parser.add_argument(
        "--rate", metavar="BITS", default=f"{DEFAULT_RATE_BPS / 1e6:.0f}M",
        help="per second, headers included, with k, M or G; nothing slows down by itself (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument("--size", metavar="BYTES", type=int, help="of a logical send (default: what suits the input)")
    parser.add_argument(
        "--datagram", metavar="BYTES", type=int, default=DEFAULT_DATAGRAM_SIZE,
        help="longest UDP payload (default: %(default)s)",
    )  # fmt: skip


def add_receive(parser: argparse.ArgumentParser) -> None:
    """The options of `receive` alone."""
    parser.add_argument("file", metavar="FILE", nargs="?", default="-", help="- or nothing: standard output")
    parser.add_argument("--direct", metavar="HOST:PORT", help="ask the sender that waits there")
    parser.add_argument(
        "--latency", metavar="MS", type=int, default=DEFAULT_LATENCY_MS,
        help="that a gap holds up what comes after it; 0: no order (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--idle", metavar="SECONDS", type=int, default=DEFAULT_IDLE_S,
        help="of silence until the sender counts as gone (default: %(default)s)",
    )  # fmt: skip


def read_send(given: argparse.Namespace) -> tuple[SendOptions, str | None]:
    """What to do, and the ADDRESS if there is to be one.

    Raises:
        ConfigError: something cannot be.
    """
    words = list(given.words)
    address = None if given.direct else words.pop() if words else ""
    if address == "":
        raise ConfigError("send: expected an ADDRESS or --direct HOST:PORT")
    if len(words) > 1:
        raise ConfigError(f"send: expected {'FILE' if given.direct else 'FILE and ADDRESS'}, got {len(words)} files")
    if given.size is not None:
        knobs.integer(given.size, "--size", 1, 64 * MIB)
    knobs.integer(given.datagram, "--datagram", FRAGMENT_HEADER_SIZE + 1, MAX_DATAGRAM_SIZE)
    return SendOptions(_file(words[0] if words else "-"), read_rate(given.rate), given.size, given.datagram), address


def read_receive(given: argparse.Namespace) -> ReceiveOptions:
    """Raises ConfigError: something cannot be."""
    knobs.integer(given.latency, "--latency", 0, MOST_LATENCY_MS)
    knobs.integer(given.idle, "--idle", 1, MOST_IDLE_S)
    return ReceiveOptions(_file(given.file), given.latency / 1000, float(given.idle))


def read_rate(text: str) -> float:
    """Bit/s.

    Raises:
        ConfigError: no rate of 1 kbit/s to 1 Tbit/s.
    """
    match = _RATE.fullmatch(text)
    rate = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 1e3 <= rate <= 1e12:
        raise ConfigError(f"--rate: expected bit/s such as 800k, 8M or 1.5G, from 1k on, got {knobs.shown(text)}")
    return rate


def read_place(text: str) -> tuple[str, int]:
    """HOST:PORT of --direct.

    Raises:
        ConfigError: anything else.
    """
    if not is_target(text):
        raise ConfigError(f"--direct: expected HOST:PORT, got {knobs.shown(text)}")
    host, _, port = text.rpartition(":")
    return host.strip("[]"), int(port)


def _file(word: str) -> str | None:
    if not word:
        raise ConfigError("FILE: expected a name or -, got ''")
    return None if word == "-" else word
