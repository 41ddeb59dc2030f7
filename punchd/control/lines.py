"""The line protocol between applications and the daemon, version 1: the whole grammar, both directions.

Lines of 1 to 500 printable ASCII characters and a line feed; fields separated by `|`, no escaping, never empty.

    request     = hello / probe / initiate / respond / cancel
    hello       = "hello|" version [ "|" client ]
    probe       = "probe|" id "|" ( "tcp" / "udp" ) [ "|" options ]
    initiate    = "initiate|" id "|" techniques "|" ip "|" ports [ "|" options ]
    respond     = "respond|" id "|" token [ "|" options ]
    cancel      = "cancel|" id

    answer      = ok-hello / ok-probe / ok / progress / error
    ok-hello    = "ok|-|hello|" version "|" techniques "|" number "|" verbs
    ok-probe    = "ok|" id "|probe|" proto "|" ip "|" ports "|" mapping "|" port
    ok          = "ok|" id "|" technique "|" proto "|" ip "|" port "|" ip "|" port        (carries one descriptor)
    progress    = "progress|" id "|" round "|" technique "|" stage "|" detail
    error       = "error|" ( "-" / id ) "|" code "|" text

    id          = 1*16( letter / digit / "_" / "." )
    techniques  = "auto" / "all" / technique *7( "," technique )
    ports       = item *3( "," item ), item = port [ "-" port ], 1 to 16 ports in all
    options     = key "=" value *( ";" key "=" value )

Which error: framing, verb, number of fields and the id are `bad-message`; every other field has its own code; the
leftmost wrong field wins (§13.6). What a field may hold beyond its form (known techniques, private addresses) is
given in as `Rules`, so that this order holds for policy as well.

Requests are parsed here for the daemon and written here for the client; answers the other way round. Clients ignore
extra fields at the end of an answer and codes they do not know.

Source: line protocol §1-§3, §6, §13.
"""

from __future__ import annotations

import re

from punchd.errors import Code, ProtocolError

VERSION = 1
MAX_LINE = 500  # bytes before the line feed
MAX_TEXT = 200  # free text of an error line
VERBS = ("hello", "probe", "initiate", "respond", "cancel")

ID = re.compile(r"[A-Za-z0-9_.]{1,16}")
CLIENT = re.compile(r"[A-Za-z0-9_.+/-]{1,32}")
TECHNIQUE = re.compile(r"[a-z][a-z0-9-]{1,15}")
_UNPRINTABLE = re.compile(r"[^\x20-\x7b\x7d-\x7e]")


class LineSplitter:
    """Cuts a byte stream into lines; holds at most one unfinished line.

    After a ProtocolError the stream has no known line borders any more and must be closed.
    """

    def __init__(self) -> None:
        self._pending = bytearray()

    def feed(self, data: bytes) -> list[bytes | ProtocolError]:
        """The lines that `data` completes, without their line feeds; a ProtocolError, if any, is the last item."""
        self._pending += data
        lines: list[bytes | ProtocolError] = []
        while True:
            end = self._pending.find(b"\n")
            line = bytes(self._pending if end < 0 else self._pending[:end])
            if (complaint := _bad_framing(line)) is not None:
                self._pending.clear()
                return [*lines, complaint]
            if end < 0:
                return lines
            lines.append(line)
            del self._pending[: end + 1]


def _bad_framing(line: bytes) -> ProtocolError | None:
    for position, byte in enumerate(line[:MAX_LINE]):
        if not 0x20 <= byte <= 0x7E:
            text = f"byte 0x{byte:02x} at position {position + 1}: lines are printable ASCII and end with 0x0a"
            return ProtocolError(Code.BAD_MESSAGE, text)
    if len(line) > MAX_LINE:
        return ProtocolError(Code.TOO_LONG, f"expected at most {MAX_LINE} bytes before the line feed, got more")
    return None


def clean_text(text: str) -> str:
    """Free text as an answer may hold it: every byte that the grammar does not allow is a `?`, at most 200 bytes."""
    return _UNPRINTABLE.sub("?", text)[:MAX_TEXT]
