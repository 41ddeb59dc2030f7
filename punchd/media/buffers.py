"""Memory for reassembly: one cap for the process, blocks of powers of two, and a pool of those that are free.

A fragment claims how long its logical send is, so one datagram can reserve 64 MiB. Large blocks are anonymous maps:
the kernel commits a page when something is written to it, so that such a claim costs address space and no memory.
Blocks are not cleared between uses; that shows nothing, since a block is handed out only when every byte of it was
written anew.

Source: media specification D13, D14.
"""

from __future__ import annotations

import mmap

SMALLEST_BLOCK = 4096  # a page
LAZY_FROM = 1 << 17  # below, a map costs more than clearing the bytes
MAX_IDLE = 64 << 20  # bytes in the pool

Block = memoryview


def block_size(total: int) -> int:
    """What a logical send of `total` bytes reserves."""
    return max(SMALLEST_BLOCK, 1 << (total - 1).bit_length())


class Memory:
    """The process's blocks.

    Args:
        limit: bytes that may be in use together.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.reserved = 0
        self.idle = 0
        self._pool: dict[int, list[Block]] = {}

    def take(self, total: int) -> Block | None:
        """A block of `block_size(total)` bytes with anything in it; None if that were too much."""
        size = block_size(total)
        if self.reserved + size > self.limit:
            return None
        self.reserved += size
        free = self._pool.get(size)
        if free:
            self.idle -= size
            return free.pop()
        return memoryview(bytearray(size) if size < LAZY_FROM else mmap.mmap(-1, size))

    def give_back(self, block: Block) -> None:
        """Nobody uses the block any more."""
        size = len(block)
        self.reserved -= size
        if self.idle + size <= MAX_IDLE:
            self.idle += size
            self._pool.setdefault(size, []).append(block)


class Delivery:
    """A complete logical send.

    The payload of a send that came in one datagram is a view into that datagram; of one that was reassembled, into a
    block that is the receiver's own until `release`.

    Attributes:
        sequence: its number.
        payload: its bytes; gone after `release`, and without `keep` when the datagram's buffer is used anew.
    """

    __slots__ = ("_block", "_memory", "payload", "sequence")

    def __init__(
        self, sequence: int, payload: memoryview, block: Block | None = None, memory: Memory | None = None
    ) -> None:
        self.sequence = sequence
        self.payload = payload
        self._block = block
        self._memory = memory

    def keep(self) -> None:
        """Makes the payload independent of the datagram that it came in."""
        if self._block is None:
            self.payload = memoryview(bytes(self.payload))

    def release(self) -> None:
        """Gives the memory back. Again: nothing."""
        if self._block is not None and self._memory is not None:
            self.payload.release()
            self._memory.give_back(self._block)
            self._block = None

    def take(self) -> bytes:
        """A copy of the payload; the memory is given back."""
        copy = bytes(self.payload)
        self.release()
        return copy
