"""Which programs carry a stream, and how they are called: options and a peer to command lines. Pure.

    tool                sender                                    receiver
    srt-live-transmit   srt-live-transmit INPUT SRT               srt-live-transmit SRT OUTPUT
    gstreamer           gst-launch-1.0 INPUT ! srtsink            gst-launch-1.0 srtsrc ! OUTPUT
    ffmpeg              ffmpeg INPUT | srt-live-transmit SRT      srt-live-transmit SRT | ffmpeg OUTPUT
    --exec TEMPLATE     words with {uri}, {host} and so on

ffmpeg's own rendezvous mode binds the remote address, so it needs another one's SRT. A pipe, not UDP: nobody else on
the host can send to it, and its end has ffmpeg write the end of a file, which it does not do after a signal.

INPUT and OUTPUT are what the tool takes: of srt-live-transmit a URI, udp://HOST:PORT or file://con; of gstreamer a
piece of a pipeline; of ffmpeg words of its command line, or one word that is a file or URL, which is copied as it is.

**The passphrase** stands in command lines, which every user of the host can read. No tool takes it otherwise: each has
it in the URI or as a property. `--exec` has it in the environment, too, which only the same user can read: $PUNCH_URI.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field

from punchd.broker import connect
from punchd.broker.messages import Direction
from punchd.errors import ConfigError

STATISTICS = "{stats}"  # in a word: the file that statistics are written to; filled in when the program is started
TOOLS = ("srt-live-transmit", "gstreamer", "ffmpeg")
STREAM = "file://con"  # standard input or output
_REPORT_PACKETS = 100  # between two lines of statistics: 2 s of 500 kbit/s, ten times a second for 10 Mbit/s
_PACKET_BYTES = 1316  # seven packets of MPEG-TS, SRT's usual payload
_US = 1000
# Null packets, which receivers drop (ISO/IEC 13818-1 §2.4.3). srt-live-transmit sends whole pieces of standard input,
# and loses what does not fill the last one; as many as make a piece fill it, whatever there is of it.
_NULL_PACKETS = (b"\x47\x1f\xff\x10" + b"\xff" * 184) * 7

PACKAGES: Mapping[str, str] = {
    "srt-live-transmit": "srt-tools",
    "gst-launch-1.0": "gstreamer1.0-tools gstreamer1.0-plugins-bad",
    "ffmpeg": "ffmpeg",
}
_PLAIN = re.compile(r"[A-Za-z0-9._~-]{10,79}")  # libsrt takes 10 to 79 characters; RFC 3986 §2.3
_PLACEHOLDER = re.compile(r"\{([a-z_]+)\}")


@dataclass(frozen=True, slots=True)
class Choice:
    """What the user wants to be run.

    Attributes:
        tool: one of TOOLS; "" for a template.
        media: --input of a sender, --output of a receiver.
        template: words of --exec; with `is_shell` one word.
    """

    direction: Direction
    tool: str = TOOLS[0]
    media: str | None = None
    template: tuple[str, ...] = ()
    is_shell: bool = False


@dataclass(frozen=True, slots=True)
class Command:
    """A program to be run.

    Attributes:
        environment: to be added.
        is_end: it has the SRT socket; the others feed it or are fed.
        tail: follows what it wrote to the next one, once it has ended well.
    """

    words: tuple[str, ...] = field(repr=False)
    environment: Mapping[str, str] = field(default_factory=dict, repr=False)
    is_end: bool = True
    tail: bytes = b""


def programs(choice: Choice) -> tuple[str, ...]:
    """What has to be installed."""
    match choice.tool:
        case "srt-live-transmit":
            return ("srt-live-transmit",)
        case "gstreamer":
            return ("gst-launch-1.0",)
        case "ffmpeg":
            return "srt-live-transmit", "ffmpeg"
        case _:
            return ("/bin/sh",) if choice.is_shell else choice.template[:1]


def missing(program: str) -> str:
    """What to say if it is not there."""
    package = PACKAGES.get(program)
    return f"{program} is not installed" + (f"; on Debian: apt install {package}" if package else "")


def is_plain(passphrase: str) -> bool:
    """Whether it is one of SRT, of characters that mean nothing in URLs, shells and pipelines."""
    return _PLAIN.fullmatch(passphrase) is not None


def check_template(text: str, *, is_shell: bool) -> tuple[str, ...]:
    """The words of --exec.

    Raises:
        ConfigError: quotes that do not end, no word at all, or a placeholder that is not known.
    """
    for found in _PLACEHOLDER.finditer(text):
        if f"{{{found[1]}}}" not in (STATISTICS, *_KNOWN):
            raise ConfigError(f"--exec: unknown placeholder {found[0]}; expected {' '.join(_KNOWN)} {STATISTICS}")
    try:
        words = (text,) if is_shell and text.strip() else tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--exec: {error}") from None
    if not words:
        raise ConfigError("--exec: expected a command")
    return words


def commands(choice: Choice, end: connect.End, stream: str) -> tuple[Command, ...]:
    """What to run, each piped into the next."""
    media = choice.media or STREAM
    is_sender = choice.direction is Direction.SENDER
    match choice.tool:
        case "srt-live-transmit":
            return (_transmit(is_sender, connect.url(end), media),)
        case "gstreamer":
            return (_gstreamer(is_sender, connect.gstreamer_uri(end), choice.media),)
        case "ffmpeg":
            relay = _transmit(is_sender, connect.url(end), STREAM)
            words = _ffmpeg(is_sender, choice.media)
            if is_sender:
                return Command(words, is_end=False, tail=_NULL_PACKETS), relay
            return relay, Command(words, is_end=False)
        case _:
            return (_custom(choice, _values(end, stream)),)


def _transmit(is_sender: bool, uri: str, media: str) -> Command:
    options = (
        "srt-live-transmit",
        f"-chunk:{_PACKET_BYTES}",
        f"-s:{_REPORT_PACKETS}",
        "-pf:json",
        f"-statsout:{STATISTICS}",
        "-loglevel:note",
    )
    return Command((*options, media, uri) if is_sender else (*options, uri, media))


def _gstreamer(is_sender: bool, uri: str, media: str | None) -> Command:
    # libsrt's log at the level that says "Connection established".
    environment = {"GST_DEBUG": "srtlib:5", "GST_DEBUG_NO_COLOR": "1"}
    if is_sender:
        source = shlex.split(media or "fdsrc ! tsparse set-timestamps=true alignment=7")
        return Command(("gst-launch-1.0", "-q", "-e", *source, "!", "srtsink", f"uri={uri}"), environment)
    sink = shlex.split(media or "fdsink")
    return Command(("gst-launch-1.0", "-q", "-e", "srtsrc", f"uri={uri}", "!", *sink), environment)


def _ffmpeg(is_sender: bool, media: str | None) -> tuple[str, ...]:
    quiet = ("ffmpeg", "-hide_banner", "-loglevel", "warning", "-nostats")
    words = tuple(shlex.split(media or "-"))
    if is_sender:
        given = words if len(words) > 1 else ("-re", "-i", *words, "-c", "copy")
        return (*quiet, *given, "-f", "mpegts", "-flush_packets", "1", "pipe:1")
    given = words if len(words) > 1 else ("-c", "copy", *(("-f", "mpegts") if words == ("-",) else ("-y",)), *words)
    return (*quiet, "-i", "pipe:0", *given)


def _custom(choice: Choice, values: Mapping[str, str]) -> Command:
    environment = {f"PUNCH_{name.upper()}": value for name, value in values.items()}
    if choice.is_shell:
        quoted = {name: shlex.quote(value) for name, value in values.items()}
        return Command(("/bin/sh", "-c", _fill(choice.template[0], quoted)), environment)
    return Command(tuple(_fill(word, values) for word in choice.template), environment)


def _fill(text: str, values: Mapping[str, str]) -> str:
    return _PLACEHOLDER.sub(lambda found: values.get(found[1], found[0]), text)


def _values(end: connect.End, stream: str) -> dict[str, str]:
    return {
        "uri": connect.url(end),
        "gstreamer_uri": connect.gstreamer_uri(end),
        "host": str(end.remote.ip),
        "port": str(end.remote.port),
        "localport": str(end.local_port),
        "passphrase": end.passphrase,
        "latency": str(end.latency_ms),
        "latency_us": str(end.latency_ms * _US),
        "role": end.direction.value,
        "stream": stream,
    }


_KNOWN = (
    "{uri}", "{gstreamer_uri}", "{host}", "{port}", "{localport}", "{passphrase}", "{latency}", "{latency_us}",
    "{role}", "{stream}",
)  # fmt: skip
