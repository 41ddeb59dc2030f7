"""Connection strings: what to type into which tool, so that its SRT end meets the other one in the middle.

    format            local port                latency   remark
    url               port=                     ms        libsrt's own tools
    srt-live-transmit port=                     ms        the same in a command line, with UDP on the other side
    gstreamer         localport=                ms        srtsink, srtsrc; without localaddress= they bind the remote
                                                          address, which fails
    obs               the remote port's number  µs        its output binds that number whatever localport= says, and
                                                          IPv4 only; what it cannot do goes through a relay
    ffmpeg            none                      -         its rendezvous mode binds the remote address: a relay
    vmix              a field                   ms        fields to fill in

A relay is srt-live-transmit between SRT and a UDP port of the host, on loopback so that nobody else can send to it; the
tool speaks MPEG-TS to that port. OBS receives with ffmpeg's code, so it takes a relay, too.

Passphrases are letters, digits, "-" and "_", which neither a URL nor a shell needs quoted; the whole is quoted for "&".

Source: broker specification §6.2.6, C-08; measured with srt-tools 1.5.1, GStreamer 1.22 and ffmpeg 5.1; seen in
obs-studio's obs-ffmpeg-srt.h. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from punchd.broker.messages import Direction
from punchd.endpoint import Endpoint

RELAY_PORT = 5100  # of UDP on the host itself, between tool and relay
_KEY_BYTES = 32  # AES-256
_PACKET_BYTES = 1316  # seven packets of MPEG-TS, SRT's usual payload
_MS_US = 1000


@dataclass(frozen=True, slots=True)
class End:
    """One end of a stream: where it sends, which port it binds, and what it does."""

    remote: Endpoint = field(repr=False)
    local_port: int
    direction: Direction
    latency_ms: int
    passphrase: str = field(repr=False)


def _uri(end: End, local: str, latency: int) -> str:
    return (
        f"srt://{end.remote}?mode=rendezvous&{local}"
        f"&passphrase={end.passphrase}&pbkeylen={_KEY_BYTES}&latency={latency}"
    )


def url(end: End) -> str:
    """What libsrt's own tools take."""
    return _uri(end, f"port={end.local_port}", end.latency_ms)


def gstreamer_uri(end: End) -> str:
    """What srtsink and srtsrc take."""
    anywhere = "0.0.0.0" if end.remote.ip.version == 4 else "::"  # noqa: S104 (what other tools bind, too)
    return _uri(end, f"localaddress={anywhere}&localport={end.local_port}", end.latency_ms)


def _relay(end: End) -> str:
    udp = f"udp://127.0.0.1:{RELAY_PORT}"
    if end.direction is Direction.SENDER:
        return f'srt-live-transmit "{udp}" "{url(end)}"'
    return f'srt-live-transmit "{url(end)}" "{udp}"'


def _ffmpeg(end: End) -> str:
    if end.direction is Direction.SENDER:
        udp = f"udp://127.0.0.1:{RELAY_PORT}?pkt_size={_PACKET_BYTES}"
        return f'{_relay(end)} & ffmpeg -re -i INPUT -f mpegts "{udp}"'
    return f'{_relay(end)} & ffmpeg -i "udp://127.0.0.1:{RELAY_PORT}" OUTPUT'


def _obs(end: End) -> str:
    can_bind = end.remote.port == end.local_port and end.remote.ip.version == 4
    if end.direction is Direction.SENDER and can_bind:
        return _uri(end, f"localip=0.0.0.0&localport={end.local_port}", end.latency_ms * _MS_US)
    if end.direction is Direction.SENDER:
        return f"{_relay(end)} & OBS: Custom Output (FFmpeg), mpegts, udp://127.0.0.1:{RELAY_PORT}?pkt_size={_PACKET_BYTES}"
    return f"{_relay(end)} & OBS: Media Source, Input udp://127.0.0.1:{RELAY_PORT}, Input Format mpegts"


def _gstreamer(end: End) -> str:
    uri = f'uri="{gstreamer_uri(end)}"'
    if end.direction is Direction.SENDER:
        return f"gst-launch-1.0 filesrc location=INPUT ! tsparse set-timestamps=true alignment=7 ! srtsink {uri}"
    return f"gst-launch-1.0 srtsrc {uri} ! filesink location=OUTPUT"


def _vmix(end: End) -> str:
    return "\n".join(
        (
            "Type: SRT Rendezvous",
            f"Hostname: {end.remote.ip}",
            f"Port: {end.remote.port}",
            f"Local Port: {end.local_port}",
            f"Latency: {end.latency_ms}",
            f"Passphrase: {end.passphrase}",
            f"Key Length: {_KEY_BYTES * 8}",
        )
    )


FORMATS: Mapping[str, Callable[[End], str]] = {
    "url": url,
    "srt-live-transmit": _relay,
    "gstreamer": _gstreamer,
    "obs": _obs,
    "ffmpeg": _ffmpeg,
    "vmix": _vmix,
}
DEFAULT_FORMAT = "url"


def string(form: str, end: End) -> str:
    """What to type, in one of FORMATS."""
    return FORMATS[form](end)
