"""Bytes to and fro between two streams, each direction with its own end."""

from __future__ import annotations

import trio

from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.sockets import cut


async def relay(hole: trio.abc.HalfCloseableStream, local: trio.abc.HalfCloseableStream) -> None:
    """Carry bytes until both directions have ended.

    Raises:
        EndedError: one of the streams broke; `Exit.BROKEN`.

    Resource handling: both streams are closed in the end. If that was no proper one, TCP connections are reset: what is
        half a file must not look like a whole one to the program behind them either.
    """
    failures: list[str] = []
    is_proper = False
    try:
        async with trio.open_nursery() as nursery:

            async def carry(source: trio.abc.HalfCloseableStream, sink: trio.abc.HalfCloseableStream) -> None:
                try:
                    while data := await _receive(source, source is hole):
                        await _send(sink, data, sink is hole)
                    await _send(sink, None, sink is hole)
                except EndedError as error:
                    failures.append(str(error))
                    nursery.cancel_scope.cancel()

            nursery.start_soon(carry, hole, local)
            nursery.start_soon(carry, local, hole)
        is_proper = not failures
    finally:
        if not is_proper:
            cut(hole)
            cut(local)
        await trio.aclose_forcefully(hole)
        await trio.aclose_forcefully(local)
    if failures:
        raise EndedError(Exit.BROKEN, failures[0])


async def _receive(source: trio.abc.HalfCloseableStream, is_hole: bool) -> bytes:
    try:
        return bytes(await source.receive_some())
    except (trio.BrokenResourceError, OSError) as error:
        raise _broken(error, "the connection broke" if is_hole else "reading failed") from None


async def _send(sink: trio.abc.HalfCloseableStream, data: bytes | None, is_hole: bool) -> None:
    try:
        if data is None:
            await sink.send_eof()
        else:
            await sink.send_all(data)
    except (trio.BrokenResourceError, OSError) as error:
        raise _broken(error, "the connection broke" if is_hole else "nobody takes what comes through it") from None


def _broken(error: Exception, what: str) -> EndedError:
    return EndedError(Exit.BROKEN, f"{what}: {error.__cause__ or error}")
