"""The nodes of a running laboratory: boxes and routers, and hosts, which also have addresses to talk to."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .namespace import entered, open_socket
from .spawner import Argument, Spawner, mortal


@dataclass(frozen=True, slots=True)
class Node:
    """A namespace of a laboratory.

    Attributes:
        name: of the namespace, as `ip netns exec NAME` wants it.
        path: of the namespace.
    """

    name: str
    path: Path
    spawner: Spawner

    def run(self, command: Sequence[Argument], **options: Any) -> subprocess.CompletedProcess[Any]:
        """As `subprocess.run`, here. The program dies with this thread.

        Raises:
            OSError: the program cannot be started.
        """
        with self.entered():
            # The caller says whether a failure matters.
            return subprocess.run(mortal(command, options.get("env")), **options)  # noqa: PLW1510

    def popen(self, command: Sequence[Argument], **options: Any) -> subprocess.Popen[Any]:
        """As `subprocess.Popen`, here. The program is killed when the laboratory ends, however it ends.

        Raises:
            OSError: the program cannot be started.
        """
        return self.spawner.popen(self.path, command, **options)

    def entered(self) -> AbstractContextManager[None]:
        """The calling thread is here until the block ends. Do not await inside."""
        return entered(self.path)

    def socket(self, family: int = socket.AF_INET, kind: int = socket.SOCK_DGRAM, protocol: int = 0) -> socket.socket:
        """A new socket that lives here, owned by the caller."""
        return open_socket(self.path, family, kind, protocol)


@dataclass(frozen=True, slots=True)
class Host(Node):
    """A node where programs run.

    Attributes:
        ipv4: its own address.
        ipv6: its own, always public, address; None for a site without IPv6.
        public_ipv4: the address by which the Internet knows it, that of its outermost NAT if there is one.
        ipv4_addresses: all of its own; the server has two.
        ipv6_addresses: all of its own.
    """

    ipv4: str
    ipv6: str | None
    public_ipv4: str
    ipv4_addresses: tuple[str, ...]
    ipv6_addresses: tuple[str, ...]
