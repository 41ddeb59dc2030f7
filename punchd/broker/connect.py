"""Connection strings: what to type into which tool, so that its SRT end meets the other one in the middle.

    format            local port                latency   remark
    url               port=                     ms        libsrt's own tools
    srt-live-transmit port=                     ms        the same in a command line, with UDP on the other side
    gstreamer         localport=                ms        srtsink, srtsrc
    obs               the remote port's number  µs        its output binds that number whatever localport= says, and
                                                          IPv4 only; what it cannot do goes through a relay
    ffmpeg            none                      -         its rendezvous mode binds the remote address: a relay
    vmix              a field                   ms        fields to fill in

A relay is srt-live-transmit between SRT and a UDP port of the host; the tool speaks MPEG-TS to that port. OBS receives
with ffmpeg's code, so it takes a relay, too.

Passphrases are letters, digits, "-" and "_", which neither a URL nor a shell needs quoted; the whole is quoted for "&".

Source: broker specification §6.2.6, C-08; seen in libsrt's srt-live-transmit, obs-studio's obs-ffmpeg-srt.h,
ffmpeg's libavformat/libsrt.c. Pure.
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


def _url(end: End) -> str:
    return _uri(end, f"port={end.local_port}", end.latency_ms)


def _relay(end: End) -> str:
    udp = f"udp://127.0.0.1:{RELAY_PORT}"
    if end.direction is Direction.SENDER:
        return f'srt-live-transmit "udp://:{RELAY_PORT}" "{_url(end)}"'
    return f'srt-live-transmit "{_url(end)}" "{udp}"'


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
    uri = f'uri="{_uri(end, f"localport={end.local_port}", end.latency_ms)}"'
    if end.direction is Direction.SENDER:
        return f"gst-launch-1.0 filesrc location=INPUT ! tsparse set-timestamps=true ! srtsink {uri}"
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
    "url": _url,
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
