"""A packet trace per namespace: one tcpdump each, on all interfaces."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Self

from .host import Node


class TraceError(Exception):
    """tcpdump did not start; the message is its own."""


class Trace:
    """A running trace into DIRECTORY/NODE.pcap, which `stop` or leaving a `with` block ends.

    Files are complete when it has ended. A packet that crosses a router is in its file twice, once on each
    interface (`tcpdump -e` shows which). Checksums of packets that a host has just sent may look wrong: on a
    virtual cable nobody computes them. tcpdump takes the names of interfaces from the namespace in which it reads.

    Raises:
        TraceError: tcpdump cannot capture.
    """

    def __init__(self, directory: Path, nodes: Mapping[str, Node]) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.files = {name: directory / f"{name}.pcap" for name in nodes}
        self._dumps = [
            node.popen(
                # -Z root: Debian's tcpdump would become a user who may not write here; -U: what was seen is written
                ["tcpdump", "-i", "any", "-n", "-U", "-Z", "root", "--immediate-mode", "-w", self.files[name]],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            for name, node in nodes.items()
        ]
        for dump in self._dumps:
            said = b""
            assert dump.stderr is not None
            while b"listening on" not in said:
                line: bytes = dump.stderr.readline()
                if not line:
                    self.stop()
                    raise TraceError(f"tcpdump ended: {said.decode(errors='replace').strip()}")
                said += line

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Ends the trace; its files are complete then. Harmless when it has ended."""
        for dump in self._dumps:
            if dump.poll() is None:
                dump.send_signal(signal.SIGINT)
        for dump in self._dumps:
            dump.communicate()
        self._dumps.clear()
