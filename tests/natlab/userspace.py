"""Starts the two processes that stand in for the kernel: impaired cables, and NATs that nftables cannot do.

Each gets its devices as open file descriptors, and so needs neither names nor namespaces; a device ends with its
process. Frames that come before the process is at work wait in the device's queue.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

from .host import Node
from .model import Link, encode
from .plan import Tunnel

_ROOT: Final = Path(__file__).parents[2]


class Userspace:
    """Collects devices and starts the processes. Owns the descriptors until its `with` block ends."""

    def __init__(self, home: Node) -> None:
        self._home = home
        self._devices: list[int] = []
        self._cables: list[dict[str, Any]] = []
        self._nats: list[dict[str, Any]] = []
        self._children: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for device in self._devices:
            os.close(device)

    def add_cable(self, link: Link, devices: tuple[int, int]) -> None:
        """A cable between two TAP devices, which are owned from here on."""
        self._devices += devices
        self._cables.append({"devices": devices, "link": dataclasses.asdict(link)})

    def add_nat(self, tunnel: Tunnel, device: int) -> None:
        """A NAT on a TUN device, which is owned from here on."""
        self._devices.append(device)
        self._nats.append({"device": device, "nat": encode(tunnel.nat), "public": tunnel.public})

    def start(self) -> None:
        """Starts what is needed."""
        for program, work in (("cable_process", self._cables), ("nat_process", self._nats)):
            if work:
                self._children.append(
                    self._home.popen(
                        # Without site-packages, which neither needs: half the start.
                        [sys.executable, "-S", "-E", "-m", f"tests.natlab.{program}", json.dumps(work)],
                        cwd=_ROOT,
                        pass_fds=self._devices,
                        stdin=subprocess.DEVNULL,
                        stdout=subprocess.PIPE,
                    )
                )

    def wait(self) -> None:
        """Blocks until they are at work.

        Raises:
            RuntimeError: one has ended; why, it has said on standard error.
        """
        for child in self._children:
            assert child.stdout is not None
            with child.stdout:
                if not child.stdout.read(1):
                    raise RuntimeError(f"{child.args!r} ended with status {child.wait()}")
