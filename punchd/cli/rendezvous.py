"""`punchd-rendezvous`, the rendezvous server.

It needs no privilege, and none of its default ports is below 1024: whoever starts it as a user of its own is done.
SIGTERM, SIGINT: it takes its leave, 2 s at most; a second one ends it as it is. SIGHUP: it reads certificate and key
again. Exit codes: 0 after a stop, 2 for a wrong command line, 78 (EX_CONFIG) for settings or a host that it cannot
start with, 130 after an interrupt while it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import sys
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from punchd import logs
from punchd.cli import process, server
from punchd.cli.process import EX_CONFIG, Parser, one_line, signals_wait
from punchd.errors import PunchdError
from punchd.rendezvous import settings as rendezvous_settings
from punchd.rendezvous.settings import Settings

if TYPE_CHECKING:
    from punchd.rendezvous.service import Sockets
    from punchd.rendezvous.store import Store
    from punchd.web.listen import Certificate


log = logging.getLogger("punchd.rendezvous")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="punchd-rendezvous",
        description="Tells two programs behind NATs where the other one is, and carries their signals.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--http", **server.PLACE, help="serve HTTP there, repeatable; * is every address (default: *:5025)"
    )
    parser.add_argument("--udp", **server.PLACE, help="take pulses there, repeatable (default: *:5024)")
    parser.add_argument("--stun", **server.PLACE, help="serve STUN there, UDP and TCP, repeatable (default: *:3478)")
    server.add_tls_options(parser)
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="plain HTTP for others than this host: keys can be read"
    )
    parser.add_argument("--store", metavar="URL", help="memory, or redis://HOST:PORT/NUMBER (default: memory)")
    parser.add_argument("--metrics", **server.PLACE, help="serve /metrics there, repeatable (default: 127.0.0.1:5026)")
    server.add_last_options(parser)
    return parser


def settings(given: argparse.Namespace) -> Settings:
    """File and command line as one.

    Raises:
        ConfigError: either is wrong, or they do not go together.
    """
    base = Settings()
    if given.config is not None:
        base = rendezvous_settings.parse(server.read_config(given.config), given.config)
    chosen = rendezvous_settings.build(server.named(given), "command line", base)
    rendezvous_settings.check(chosen)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    return process.run(lambda: _main(arguments().parse_args(argv)))


def _main(given: argparse.Namespace) -> int:
    try:
        chosen = settings(given)
        certificate = server.certificate_of(chosen.tls_cert, chosen.tls_key)
        if given.check_config:
            print("punchd-rendezvous: the settings are right")
            return 0
        logs.set_up(chosen.log_level, chosen.log_format)
        return _start(chosen, certificate)
    except PunchdError as error:
        print(f"punchd-rendezvous: {one_line(str(error))}", file=sys.stderr)
        return EX_CONFIG


def _start(chosen: Settings, certificate: Certificate | None) -> int:
    import trio

    from punchd.rendezvous import service

    store = service.open_store(chosen)
    with signals_wait(server.HANDLED), contextlib.closing(service.open_sockets(chosen)) as sockets:
        trio.run(_serve, chosen, sockets, store, certificate)
    return 0


async def _serve(chosen: Settings, sockets: Sockets, store: Store, certificate: Certificate | None) -> None:
    import trio

    from punchd import systemd
    from punchd.rendezvous import service

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        # READY means that a signal is heard, too
        await nursery.start(partial(server.hear_signals, stop, partial(_reload, certificate), log))
        nursery.start_soon(systemd.heartbeat)
        server.settle_memory()
        await service.serve(chosen, sockets, store, stop, certificate=certificate)
        nursery.cancel_scope.cancel()


def _reload(certificate: Certificate | None) -> None:
    if certificate is None:
        log.info("SIGHUP: there is no certificate to read again")
        return
    server.reload_certificate(certificate, log)


if __name__ == "__main__":
    sys.exit(main())
