"""What is counted: validation errors by reason, and everything else that an operator wants to know.

Numbers only grow. Each session counts for itself and for whoever is above it (the process). Nothing is logged for each
datagram: who can send datagrams could then fill the disk.

Source: seed 004 §4, §8 ("record a validation error"), §9 ("record a timeout metric"); media specification C41, D32.
"""

from __future__ import annotations

from enum import IntEnum, auto


class Count(IntEnum):
    """What happened. The values are places in a list: an enum as a key of a dict is hashed in Python."""

    @staticmethod
    def _generate_next_value_(name: str, start: int, count: int, last_values: list[int]) -> int:
        return count

    # validation errors of the codec: the datagram was dropped
    SHORT = auto()  # no room for a flag
    UNKNOWN_FLAG = auto()
    CONNECTION_ID_SHORT = auto()
    CONNECTION_ID_UNTERMINATED = auto()
    HEADER_SHORT = auto()
    FRAGMENT_SHORT = auto()
    CONTROL_SHORT = auto()
    CONTROL_ID_UNTERMINATED = auto()
    VERSION = auto()  # SYN-ACK or ACK of another version; a SYN is answered
    ASSIGNED_ID_EMPTY = auto()  # a SYN-ACK that accepts and assigns nothing
    # validation errors of reassembly: the fragment was dropped
    TOTAL_TOO_LARGE = auto()
    BEYOND_END = auto()
    EMPTY_FRAGMENT = auto()
    TOTAL_MISMATCH = auto()
    UNFRAGMENTED_MISMATCH = auto()  # unfragmented, while fragments of the same sequence number wait
    OVERLAP = auto()
    TOO_MANY_INTERVALS = auto()
    # the handshake
    UNKNOWN_TUPLE = auto()
    UNEXPECTED = auto()  # well-formed, but nothing that this state waits for
    ACK_MISMATCH = auto()
    OPTIONS_IGNORED = auto()
    REFUSED = auto()  # SYNs answered with Accept=0
    WITHHELD = auto()  # not sent: the tuple is not validated and has had its share
    HALF_OPEN_EVICTED = auto()
    HALF_OPEN_EXPIRED = auto()
    FLUSHES = auto()
    FLUSHES_REFUSED = auto()
    # media
    DATAGRAMS = auto()
    EARLY_MEDIA = auto()  # before the session has an identity
    COMPLETED = auto()  # logical sends, each once
    DUPLICATES = auto()
    DUPLICATE_FRAGMENTS = auto()
    TIMEOUTS = auto()
    EVICTIONS = auto()
    NO_MEMORY = auto()
    LATE = auto()  # dropped: its turn in the order is over
    RESYNCHRONISED = auto()


VALIDATION_ERRORS = tuple(count for count in Count if count <= Count.TOO_MANY_INTERVALS)


class Counters:
    """One number for each `Count`.

    Args:
        parent: counts everything as well.
    """

    __slots__ = ("_numbers", "_parent")

    def __init__(self, parent: Counters | None = None) -> None:
        self._numbers = [0] * len(Count)
        self._parent = parent

    def add(self, what: Count, times: int = 1) -> None:
        """It happened, so many times."""
        self._numbers[what] += times
        if self._parent is not None:
            self._parent.add(what, times)

    def __getitem__(self, what: Count) -> int:
        return self._numbers[what]

    @property
    def validation_errors(self) -> int:
        """How many datagrams and fragments were invalid."""
        return sum(self._numbers[what] for what in VALIDATION_ERRORS)

    def named(self) -> dict[str, int]:
        """All that are not 0, by name: `unknown_flag` and so on."""
        return {what.name.lower(): self._numbers[what] for what in Count if self._numbers[what]}
