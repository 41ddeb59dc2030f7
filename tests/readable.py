"""A checkout that every user can enter, wherever it lies: for tests whose programs are other users than root.

A checkout of root's is often in /root, which is root's alone. So these tests see, in a mount namespace of their own, an
empty directory in the place of the outermost one that is closed, with nothing in it but the checkout and the Python
that runs it. Files that are themselves for their owner only (cloned with a umask of 077) stay so.
"""

from __future__ import annotations

import ctypes
import os
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

_CLONE_NEWNS = 0x20000  # linux/sched.h


def open_for_all(checkout: Path) -> None:
    """For this process and those that it starts; root only. Single-threaded programs only."""
    closed = [parent for parent in checkout.parents if not parent.stat().st_mode & stat.S_IXOTH]
    if not closed or os.geteuid() != 0:
        return
    outermost = closed[-1]
    shown = [place for place in (checkout, Path(sys.base_prefix)) if place.is_relative_to(outermost)]
    if ctypes.CDLL(None).unshare(_CLONE_NEWNS) != 0:  # a container without CAP_SYS_ADMIN, where netns tests fail anyway
        return
    _mount("--make-rslave", "/")
    with tempfile.TemporaryDirectory(prefix="punchd-checkout-") as directory:
        held = [(place, Path(directory) / str(number)) for number, place in enumerate(shown)]
        for place, hold in held:
            hold.mkdir()
            _mount("--rbind", str(place), str(hold))
        _mount("-t", "tmpfs", "-o", "mode=755", "none", str(outermost))
        for place, hold in held:
            place.mkdir(parents=True, exist_ok=True)
            _mount("--rbind", str(hold), str(place))
            subprocess.run(["umount", "--lazy", str(hold)], check=True)
    os.chdir(checkout)


def _mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True)
