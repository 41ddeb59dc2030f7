"""What is told of a stream under way: a line for people, members of a JSON object for programs. Pure.

`goodput_bps`, payload bits a second, is for whoever has a clock to fill in.
"""

from __future__ import annotations

from typing import Any

from punchd.media.statistics import Received, Sent

_BAR = 20
_RATES = ((1e9, "Gbit/s"), (1e6, "Mbit/s"), (1e3, "kbit/s"))
_SIZES = ((1e9, "GB"), (1e6, "MB"), (1e3, "kB"))


def sent(now: Sent, arrived: int | None) -> dict[str, Any]:
    """A sender's. `arrived`: logical sends that the receiver says it has got, once it does."""
    return {
        "goodput_bps": 0,
        "bytes": now.bytes,
        "datagrams": now.datagrams,
        "logical_sends": now.logical_sends,
        "lost": None if arrived is None else max(0, now.logical_sends - arrived),
        "duplicates": None,
        "kernel_drops": None,
        "path": now.path,
        "seconds": round(now.seconds, 3),
        "unsent": now.unsent,
        "rate_bps": now.rate_bps,
        "datagram_size": now.datagram_size,
    }


def received(now: Received, made: int | None) -> dict[str, Any]:
    """A receiver's. `made`: logical sends that the sender says it has made, once it does; then `lost` is exact."""
    return {
        "goodput_bps": 0,
        "bytes": now.bytes,
        "datagrams": now.datagrams,
        "logical_sends": now.logical_sends,
        "lost": now.lost if made is None else max(0, made - now.logical_sends),
        "duplicates": now.duplicates,
        "kernel_drops": now.kernel_drops,
        "path": now.path,
        "seconds": round(now.seconds, 3),
        "timeouts": now.timeouts,
        "evictions": now.evictions,
        "invalid": now.invalid,
        "jitter_s": _short(now.jitter_s),
        "queueing_s": _short(now.queueing_s),
        "trend": _short(now.trend),
    }


def line(members: dict[str, Any], whole: int | None = None) -> str:
    """For people. `whole`: bytes that there are altogether, if that is known."""
    words = [_amount(members["bytes"], _SIZES, "B"), _amount(members["goodput_bps"], _RATES, "bit/s")]
    if whole:
        share = min(members["bytes"] / whole, 1.0)
        full = int(share * _BAR)
        words.insert(0, f"[{'#' * full}{'.' * (_BAR - full)}] {share:4.0%}")
    if members["lost"] is not None:
        words.append(f"lost {members['lost']}")
    if members.get("queueing_s") is not None:
        words.append(f"delay +{members['queueing_s'] * 1000:.0f} ms")
    if members["kernel_drops"]:
        words.append(f"dropped here {members['kernel_drops']}")
    if members.get("unsent"):
        words.append(f"not sent {members['unsent']}")
    return f"{', '.join(words)} ({members['path']})"


def _amount(value: float, units: tuple[tuple[float, str], ...], plain: str) -> str:
    for unit, name in units:
        if value >= unit:
            return f"{value / unit:.1f} {name}"
    return f"{value:.0f} {plain}"


def _short(value: float | None) -> float | None:
    return None if value is None else round(value, 6)
