"""Starts the programs of a laboratory so that none outlives it.

The kernel can kill a child when its parent dies (PR_SET_PDEATHSIG, prctl(2)), even on SIGKILL. The parent, to it,
is the *thread* that forked: a child started from one of trio's worker threads would die ten seconds after that
thread became idle. So one thread of the laboratory starts them all and lives as long as it does.

`setpriv --pdeathsig` sets the signal in the child and then becomes the program (4 ms). A `preexec_fn` would do it
without, but is unsafe with threads and forbids vfork.

What escapes (a program that changes its user clears the signal, and its children never had it) still lives in a
namespace of ours, and is found there: leftovers.py.
"""

from __future__ import annotations

import os
import queue
import shutil
import subprocess
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Final

from .namespace import entered

MORTAL: Final = ("setpriv", "--pdeathsig", "KILL", "--")
"""Words before a command that make it die with the thread that starts it."""

Argument = str | os.PathLike[str]


def mortal(command: Sequence[Argument], environment: dict[str, str] | None = None) -> list[Argument]:
    """The command with a life that ends with its starter's.

    Raises:
        FileNotFoundError: there is no such program (setpriv itself would only exit with status 127).
    """
    search = (os.environ if environment is None else environment).get("PATH", os.defpath)
    if shutil.which(command[0], path=search) is None:
        raise FileNotFoundError(f"no program {os.fspath(command[0])!r} in {search}")
    return [*MORTAL, *command]


class Spawner:
    """A thread that starts programs in namespaces. Thread-safe."""

    def __init__(self) -> None:
        self._orders: queue.SimpleQueue[tuple[Path, list[Argument], dict[str, Any], Future[Any]] | None] = (
            queue.SimpleQueue()
        )
        self._children: list[subprocess.Popen[Any]] = []
        self._thread = threading.Thread(target=self._work, name="natlab-spawner", daemon=True)
        self._thread.start()

    def popen(self, namespace: Path, command: Sequence[Argument], **options: Any) -> subprocess.Popen[Any]:
        """As `subprocess.Popen`, in the namespace. The program is killed when the spawner closes or this process dies.

        Raises:
            OSError: the program cannot be started.
        """
        order: Future[subprocess.Popen[Any]] = Future()
        self._orders.put((namespace, mortal(command, options.get("env")), options, order))
        child = order.result()
        self._children.append(child)
        return child

    def close(self) -> None:
        """Kills and reaps what still runs, and ends the thread."""
        for child in self._children:
            if child.poll() is None:
                child.kill()
        for child in self._children:
            child.wait()
        self._children.clear()
        self._orders.put(None)
        self._thread.join()

    def _work(self) -> None:
        while (work := self._orders.get()) is not None:
            namespace, command, options, order = work
            try:
                with entered(namespace):
                    order.set_result(subprocess.Popen(command, **options))
            except Exception as error:  # noqa: BLE001 - it belongs to whoever ordered
                order.set_exception(error)
