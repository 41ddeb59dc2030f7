"""Until when everything that came has been looked at.

What is missing counts as late when its time has passed; but while a receiver does not run, or is busy with what it
received, datagrams wait in the socket's buffer, and they did come in time. So gaps are judged by a clock of their own,
which goes on only as far as the buffer was read: up to now when it is empty; and where it never is, up to a time since
which as many bytes were read as it can hold at all.

Pure: times and sizes come in.
"""

from __future__ import annotations


class Horizon:
    """Of one socket.

    Args:
        room: of its buffer, bytes.
        now: seconds.

    Attributes:
        until: seconds; never goes back.
    """

    def __init__(self, room: int, now: float) -> None:
        self.until = now
        self._room = room
        self._since = now
        self._read = 0

    def emptied(self, now: float) -> None:
        """Nothing is left to read."""
        self.until = self._since = now
        self._read = 0

    def note(self, size: int, now: float) -> None:
        """So many bytes were read."""
        self._read += size
        if self._read >= self._room:
            self.until, self._since = self._since, now
            self._read = 0
