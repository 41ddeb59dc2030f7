"""Names that tell whose they are, and the removal of what dead owners left.

A namespace has a name in /run/netns, which outlives a process that was killed. The name itself therefore says who
made it: `natlab-PID-START-NUMBER-NODE`, where START is the owner's start time in clock ticks since boot (proc(5),
field 22 of stat). A PID is used again, a PID with its start time is not. No further record is kept, so there is
nothing that could disagree with it: the directory is the record.

Every laboratory first removes what dead owners left; so does `python -m tests.natlab --clean`. A process that still
lives in such a namespace was started by that laboratory, since nobody else knew it; it is killed by its PID.

Left out: owners in another PID namespace that share /run/netns; they would look dead.
"""

from __future__ import annotations

import itertools
import os
import re
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import Final

from .namespace import DIRECTORY, remove

_NAME: Final = re.compile(r"natlab-(?P<pid>\d+)-(?P<start>\d+)-(?P<number>\d+)-(?P<node>.+)")
_numbers: Final = itertools.count()


def new_prefix() -> str:
    """A prefix of namespace names that no other laboratory, of this or another process, has."""
    start = _start_time(os.getpid())
    return f"natlab-{os.getpid()}-{start}-{next(_numbers)}-"


def sweep() -> list[str]:
    """Removes the namespaces of dead owners and kills what lives in them.

    Several sweepers may run at once.

    Returns:
        The names of the namespaces that were removed.
    """
    if not DIRECTORY.is_dir():
        return []
    dead = [entry for entry in sorted(DIRECTORY.iterdir()) if _owner_is_dead(entry.name)]
    raze(dead)
    return [entry.name for entry in dead]


def raze(namespaces: Iterable[Path]) -> None:
    """Kills every process in the namespaces, except this one, and removes them."""
    paths = list(namespaces)
    if not paths:
        return
    kill_inhabitants(paths)
    for path in paths:
        remove(path)


def kill_inhabitants(namespaces: Iterable[Path]) -> None:
    """Kills every process whose network namespace is among those, except this one.

    Twice: what was just being forked while the first list was made is in the second.
    """
    homes = {identity for path in namespaces if (identity := _identity(path))}
    for _ in range(2):
        inhabitants = [pid for pid in _processes() if _identity(Path(f"/proc/{pid}/ns/net")) in homes]
        if not inhabitants:
            return
        for pid in inhabitants:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def _processes() -> Iterable[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit() and int(entry) != os.getpid())


def _identity(namespace: Path) -> tuple[int, int] | None:
    try:
        status = namespace.stat()
    except OSError:
        return None
    return status.st_dev, status.st_ino


def _owner_is_dead(name: str) -> bool:
    match = _NAME.fullmatch(name)
    return match is not None and _start_time(int(match["pid"])) != int(match["start"])


def _start_time(pid: int) -> int | None:
    """Clock ticks since boot, or None if there is no such process or nothing but its exit status is left."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return None
    state, *rest = text.rpartition(")")[2].split()  # the name in parentheses may itself hold parentheses
    return None if state in "ZX" else int(rest[18])
