"""nft tables that belong to a netlink socket of this process and die with it; the backend for exemptions is one.

Theory of operation. A table with the owner flag (NFT_TABLE_F_OWNER, Linux 5.12) can be changed only through the socket
that made it, `nft flush ruleset` passes it by, and when the socket is closed, if only by SIGKILL, the kernel removes
it. So nothing needs to be cleaned up, ever. The rules are made once (messages.py); an exemption is an element with a
timeout, which is a second safety, against a daemon that lives but forgets.

Batches are built with pyroute2's messages but sent through a socket of our own. pyroute2's `NFTables` waits for an
answer to each message of a batch, and when the kernel refuses the batch as a whole (EPERM) it answers only the first:
`NFTables` hangs for ever. It also takes 7 ms a call, for an event loop of its own; this takes a few per cent of that.
The kernel handles a batch inside send(2), so the answer is there when send returns.

Source: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h, netlink(7).
"""

from __future__ import annotations

import errno
import itertools
import os
import secrets
import socket
import struct
from collections.abc import Callable, Iterator, Sequence

from punchd.errors import KernelError
from punchd.kernel.firewall import messages
from punchd.kernel.firewall.exemptions import Exemption

LIMIT = 1024  # elements of each set; the daemon runs 128 attempts by default, each with one or two ports
TIMEOUT_MS = 180_000  # of an element; the longest attempt takes 120 s (line protocol §3)
_ANSWER_S = 1.0  # a bound only: answers are queued before send(2) returns
_ANSWER_BYTES = 65_536  # most that is read at once; an answer quotes its message, which are below 1 kB
_NETLINK_NETFILTER = 12  # linux/netlink.h
_NLMSG_ERROR = 2
_HEADER = struct.Struct("=IHHII")  # nlmsghdr: length, type, flags, sequence, port id
_ERROR = struct.Struct("=i")  # nlmsgerr: a negative errno or 0, then the message it is about

_HINTS = {
    errno.EPERM: "needs CAP_NET_ADMIN over this network namespace",
    errno.EOPNOTSUPP: "owner tables need Linux 5.12",
    errno.EINVAL: "owner tables need Linux 5.12",
    errno.EPROTONOSUPPORT: "this kernel has no nf_tables",
}


class OwnerTable:
    """A table in the network namespace of the thread that makes it; the kernel removes it with the socket.

    Args:
        build: the messages that make a table of this name.

    Attributes:
        name: the table's.

    Raises:
        KernelError: no privilege, or a kernel without it; nothing is left behind.
    """

    def __init__(self, build: Callable[[str], Sequence[messages.Message]]) -> None:
        self.name = f"punchd-{os.getpid()}-{secrets.token_hex(3)}"  # pids repeat among containers
        self._sequence = itertools.count(1)
        try:
            self._socket = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _NETLINK_NETFILTER)
        except OSError as error:
            raise refused("open a netlink socket", error.errno or 0) from None
        try:
            self._socket.settimeout(_ANSWER_S)
            self._socket.bind((0, 0))
            number = self.transact(build(self.name))
        except BaseException:
            self._socket.close()
            raise
        if number:
            self._socket.close()
            raise refused(f"make table {self.name}", number)

    @property
    def is_open(self) -> bool:
        return self._socket.fileno() >= 0

    def close(self) -> None:
        """Closes the socket; the kernel removes the table before this returns."""
        self._socket.close()

    def transact(self, batch: Sequence[messages.Message]) -> int:
        """Send one batch. Returns the errno of the first refusal, 0 when all was done."""
        first = next(self._sequence)
        last = first + len(batch)  # the message that is to be acknowledged; END follows
        self._sequence = itertools.count(last + 2)
        try:
            self._socket.send(messages.batch(batch, first))
            while True:
                for sequence, number in _answers(self._socket.recv(_ANSWER_BYTES)):
                    # Others are late refusals of an earlier batch, of which one was enough.
                    if first <= sequence <= last + 1 and (number or sequence == last):
                        return number
        except TimeoutError:
            raise KernelError("firewall nft: the kernel did not answer") from None
        except OSError as error:
            return error.errno or errno.EIO


class NftTable:
    """Exemptions in an owner table. Implements `Backend`. Raises as `OwnerTable`."""

    name = "nft"
    families = frozenset(messages.SETS)
    limit = LIMIT

    def __init__(self) -> None:
        self._owned = OwnerTable(lambda name: messages.table(name, LIMIT))
        self.table = self._owned.name

    def make(self, exemption: Exemption) -> bool:
        """Add the element, or renew its timeout."""
        family, port = exemption.family, exemption.port
        add = messages.add_port(self.table, family, port, TIMEOUT_MS)
        remove = messages.remove_port(self.table, family, port)
        for batch in ([add], [remove, add], [add]):  # it is there already; it has just timed out
            number = self._owned.transact(batch)
            if number not in {errno.EEXIST, errno.ENOENT}:
                break
        if number:
            raise refused(f"exempt port {port}", number)
        return True

    def undo(self, exemption: Exemption) -> bool:
        """Remove the element. What is not there, because it timed out or the table is closed, is fine."""
        if self._owned.is_open:
            number = self._owned.transact([messages.remove_port(self.table, exemption.family, exemption.port)])
            if number not in {0, errno.ENOENT}:
                raise refused(f"end the exemption of port {exemption.port}", number)
        return True

    def close(self) -> None:
        self._owned.close()


def _answers(data: bytes) -> Iterator[tuple[int, int]]:
    """Sequence number and errno of each acknowledgement; the kernel is trusted with lengths, but not blindly."""
    least = _HEADER.size + _ERROR.size
    while len(data) >= least:
        length, kind, _, sequence, _ = _HEADER.unpack_from(data)
        if length < least:
            return
        if kind == _NLMSG_ERROR:
            yield sequence, -_ERROR.unpack_from(data, _HEADER.size)[0]
        data = data[(length + 3) & ~3 :]


def refused(what: str, number: int) -> KernelError:
    """What the kernel would not do, with its errno and, where one is known, the reason."""
    hint = f" ({_HINTS[number]})" if number in _HINTS else ""
    return KernelError(f"firewall nft: {what}: {errno.errorcode.get(number, number)} {os.strerror(number)}{hint}")
