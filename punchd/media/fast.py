"""Which fast ways may be taken, and the words for those that are. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from punchd.media import strides
from punchd.media.strides import Plain, Strides


@dataclass(frozen=True, slots=True)
class Fast:
    """What may be used where it is there. Switching something off is for comparisons and for broken networks.

    Attributes:
        gso: UDP_SEGMENT, batches of datagrams that the kernel or the device cuts.
        gro: UDP_GRO, the same on the receiving side.
        mmsg: sendmmsg and recvmmsg.
        numpy: headers and copies by NumPy.
    """

    gso: bool = True
    gro: bool = True
    mmsg: bool = True
    numpy: bool = True

    def strides(self) -> Strides:
        """How batches are written and read."""
        return strides.best() if self.numpy else Plain()


ALL = Fast()
