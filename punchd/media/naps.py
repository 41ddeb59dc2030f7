"""When a receiver that has read everything should look again a little later, instead of being woken by what comes next.

A receiver that is faster than its sender finds one batch at a time: each costs it a wait, a wake-up and a system call,
and costs the sender, whose call wakes it, another processor's interrupt. Both together are more than the batch itself.
So where much comes, it sleeps for a millisecond, and reads what has gathered in the socket's buffer with few calls
(network drivers call this interrupt moderation). What would have come within that time has to fit into the buffer many
times over, so that small buffers and slow streams are not affected.

Pure: time and sizes come in.
"""

from __future__ import annotations

NAP_S = 0.001  # the shortest sleep of epoll
LEAST_GAIN = 256 << 10  # bytes in a nap; with less the waits cost little. 2 Gbit/s
MOST_FILL = 1 / 3  # of the buffer, which counts memory, not payload


class Naps:
    """Of one receiver.

    Args:
        room: of the socket's buffer, as the kernel counts.
        now: seconds.
    """

    def __init__(self, room: int, now: float) -> None:
        self._most = room * MOST_FILL
        self._read = 0
        self._since = now

    def note(self, size: int) -> None:
        """So many bytes were read."""
        self._read += size

    def is_due(self, now: float) -> bool:
        """Nothing is left to read: whether to sleep for `NAP_S`. By the rate since the last time."""
        passed_s, self._since = now - self._since, now
        read, self._read = self._read, 0
        return LEAST_GAIN <= read * NAP_S / max(passed_s, NAP_S) <= self._most
