"""`punch connect --forward`: each local connection is a call and a hole of its own.

Independent and simple: nothing has to be multiplexed, no connection waits behind another one, and one that breaks takes
no other with it. It costs a punch for each, a second or so.
"""

from __future__ import annotations

import trio

from punchd.punch.connector import Caller, new_call
from punchd.punch.outcomes import EndedError, Exit
from punchd.punch.relay import relay
from punchd.punch.settings import Forward

HOST = "127.0.0.1"  # others of the network are nobody to speak for
MOST_CONNECTIONS = 32  # at once; more wait in the kernel's queue
PAUSE_S = 0.1  # when the process has no descriptors left


async def serve(caller: Caller, forwards: list[Forward]) -> None:
    """Take local connections until cancelled.

    Raises:
        EndedError: a port cannot be had.
    """
    places = trio.Semaphore(MOST_CONNECTIONS)
    listening = [(forward, await _listen(forward)) for forward in forwards]
    async with trio.open_nursery() as nursery:
        for forward, listener in listening:
            where = f"{HOST}:{listener.socket.getsockname()[1]}"
            caller.news.say("forwarding", f"forwarding {where} to {forward.target}", local=where, target=forward.target)
            nursery.start_soon(_accept, caller, forward, listener, places, nursery)


async def _listen(forward: Forward) -> trio.SocketListener:
    try:
        return (await trio.open_tcp_listeners(forward.port, host=HOST))[0]
    except OSError as error:
        raise EndedError(Exit.USAGE, f"--forward {forward.port}: {error.strerror or error}") from None


async def _accept(
    caller: Caller, forward: Forward, listener: trio.SocketListener, places: trio.Semaphore, nursery: trio.Nursery
) -> None:
    async with listener:
        while True:
            await places.acquire()
            try:
                stream = await listener.accept()
            except OSError:
                places.release()
                await trio.sleep(PAUSE_S)
            except BaseException:
                places.release()
                raise
            else:
                nursery.start_soon(_carry, caller, forward, stream, places)


async def _carry(caller: Caller, forward: Forward, stream: trio.SocketStream, places: trio.Semaphore) -> None:
    try:
        with new_call(caller, is_one_of_many=True) as (box, news):
            try:
                hole = await caller.call(box, forward.target, news)
                if hole.secured.stream is not None:
                    await relay(hole.secured.stream, stream)
            except EndedError as error:
                news.fail(error.code, f"{forward.target}: {error}")
            else:
                news.say("ended", "the connection has ended")
    finally:
        stream.socket.close()
        places.release()
