"""Closing what comes from applications, without waiting for as long as they like.

Why. The kernel lets go of a file in the thread that gives up the last reference to it. For a TCP socket with unsent
data and SO_LINGER that takes as long as whoever set it wants, and the reference is as often as not one in flight: what
lies in the queue of a Unix socket goes with the socket, and what a `recvmsg` has no room for goes with the message.
(Measured: four such sockets held the daemon's loop for 20 s, 5 s each, with one line to a daemon that takes no
descriptors at all.) So nothing that an application may have sent is let go of in the loop:

    taken descriptors     close_apart: in a thread that may wait; linger is cleared before. A close(2) may also wait
                          for a file system (flush), whatever else refers to the file
    streams, with all     close_unread: in a thread that ends. The kernel does not linger for a thread that exits
    that nobody took      (PF_EXITING): so the thread gets a descriptor table of its own, with the streams in it; they
                          are closed here, where that is not the last reference any more; then the thread ends. 0.2 ms

Source: unshare(2), unix(7), socket(7); inet_release in net/ipv4/af_inet.c, unix_release_sock in net/unix/af_unix.c;
measured on Linux 6.18.
"""

from __future__ import annotations

import _thread
import array
import ctypes
import fcntl
import os
import socket
import struct
import termios
from collections.abc import Callable
from contextlib import suppress
from functools import partial

import trio

AGAIN_S = 0.1  # until another thread may be had, where there are too many
_CLONE_FILES = 0x400  # linux/sched.h
_NO_LINGER = struct.pack("ii", 0, 0)

_libc = ctypes.CDLL(None, use_errno=True)


async def close_apart(*fds: int) -> None:
    """Close descriptors of an application's in a thread of its own; returns when that is done.

    Cancelled or not, they are closed as soon as the kernel lets them: linger, a slow file system, what lies in the
    queue of a Unix socket may all take their time.
    """
    closed = trio.Event()
    token = trio.lowlevel.current_trio_token()

    def close() -> None:
        for fd in fds:
            _libc.setsockopt(fd, socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER, len(_NO_LINGER))  # if it is a socket
            with suppress(OSError):
                os.close(fd)

    def tell(_: object) -> None:
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(closed.set)

    await _started(partial(trio.lowlevel.start_thread_soon, close, tell))
    await closed.wait()


def has_unread(stream: socket.socket | trio.socket.SocketType) -> bool:
    """Shut a stream down, so that nothing can come any more; whether something lies there that nobody took."""
    unread = array.array("i", [0])
    with suppress(OSError):
        stream.shutdown(socket.SHUT_RDWR)
    with suppress(OSError):
        fcntl.ioctl(stream.fileno(), termios.FIONREAD, unread)
    return unread[0] > 0


async def close_unread(*streams: socket.socket | trio.socket.SocketType) -> None:
    """Close streams of which `has_unread` says so. Cancelled or not, they are closed when this returns."""
    fds = [stream.fileno() for stream in streams]
    token = trio.lowlevel.current_trio_token()
    has_table = trio.Event()
    closed = _thread.allocate_lock()
    closed.acquire()

    def hold() -> None:
        copies: list[int] = []
        if _libc.unshare(_CLONE_FILES) != 0:  # forbidden: then it is this thread that lingers
            for fd in fds:
                with suppress(OSError):
                    copies.append(os.dup(fd))
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(has_table.set)
            closed.acquire()
        for copy in copies:
            os.close(copy)

    try:
        await _started(partial(_thread.start_new_thread, hold, ()))
        with trio.CancelScope(shield=True):
            await has_table.wait()
    finally:
        for stream in streams:
            stream.close()
        closed.release()


async def _started(start: Callable[[], object]) -> None:
    """Start a thread, as soon as there may be one more."""
    while True:
        try:
            start()
        except RuntimeError:
            await trio.sleep(AGAIN_S)
        else:
            return
