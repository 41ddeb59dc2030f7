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
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd import __version__, knobs, logs
from punchd.cli import process
from punchd.cli.process import EX_CONFIG, Parser, one_line, signals_wait
from punchd.errors import ConfigError, PunchdError
from punchd.rendezvous import settings as rendezvous_settings
from punchd.rendezvous.settings import Settings

if TYPE_CHECKING:
    from punchd.rendezvous.service import Sockets
    from punchd.rendezvous.store import Store
    from punchd.web.listen import Certificate

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

log = logging.getLogger("punchd.rendezvous")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="punchd-rendezvous",
        description="Tells two programs behind NATs where the other one is, and carries their signals.",
        allow_abbrev=False,
    )
    place: dict[str, Any] = {"metavar": "HOST:PORT", "action": "append"}
    parser.add_argument("--http", **place, help="serve HTTP there, repeatable; * is every address (default: *:5025)")
    parser.add_argument("--udp", **place, help="take pulses there, repeatable (default: *:5024)")
    parser.add_argument("--stun", **place, help="serve STUN there, UDP and TCP, repeatable (default: *:3478)")
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain in PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key in PEM")
    parser.add_argument(
        "--insecure", action="store_true", default=None, help="plain HTTP for others than this host: keys can be read"
    )
    parser.add_argument("--store", metavar="URL", help="memory, or redis://HOST:PORT/NUMBER (default: memory)")
    parser.add_argument("--metrics", **place, help="serve /metrics there, repeatable (default: 127.0.0.1:5026)")
    parser.add_argument("--config", metavar="FILE", help="TOML file with the same names; the command line wins")
    parser.add_argument("--log-level", metavar="L", help=f"{', '.join(knobs.LOG_LEVELS)} (default: info)")
    parser.add_argument("--log-format", metavar="F", help="text or json (default: json)")
    parser.add_argument("--check-config", action="store_true", help="say whether the settings are right, and exit")
    parser.add_argument("--version", action="version", version=f"punchd-rendezvous {__version__}")
    return parser


def settings(given: argparse.Namespace) -> Settings:
    """File and command line as one.

    Raises:
        ConfigError: either is wrong, or they do not go together.
    """
    base = Settings()
    if given.config is not None:
        try:
            text = Path(given.config).read_bytes()
        except OSError as error:
            raise ConfigError(f"{given.config}: {error.strerror}") from None
        base = rendezvous_settings.parse(text, given.config)
    table = {
        knobs.key(name): value
        for name, value in vars(given).items()
        if value is not None and name not in ("config", "check_config")
    }
    chosen = rendezvous_settings.build(table, "command line", base)
    rendezvous_settings.check(chosen)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    return process.run(lambda: _main(arguments().parse_args(argv)))


def _main(given: argparse.Namespace) -> int:
    try:
        chosen = settings(given)
        certificate = _certificate(chosen)
        if given.check_config:
            print("punchd-rendezvous: the settings are right")
            return 0
        logs.set_up(chosen.log_level, chosen.log_format)
        return _start(chosen, certificate)
    except PunchdError as error:
        print(f"punchd-rendezvous: {one_line(str(error))}", file=sys.stderr)
        return EX_CONFIG


def _certificate(chosen: Settings) -> Certificate | None:
    from punchd.web.listen import Certificate

    if chosen.tls_cert is None or chosen.tls_key is None:
        return None
    return Certificate(Path(chosen.tls_cert), Path(chosen.tls_key))


def _start(chosen: Settings, certificate: Certificate | None) -> int:
    import trio

    from punchd.rendezvous import service

    store = service.open_store(chosen)
    with signals_wait(HANDLED), contextlib.closing(service.open_sockets(chosen)) as sockets:
        trio.run(_serve, chosen, sockets, store, certificate)
    return 0


async def _serve(chosen: Settings, sockets: Sockets, store: Store, certificate: Certificate | None) -> None:
    import trio

    from punchd import systemd
    from punchd.rendezvous import service

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        await nursery.start(_hear_signals, stop, certificate)  # READY means that a signal is heard, too
        nursery.start_soon(systemd.heartbeat)
        await service.serve(chosen, sockets, store, stop, certificate=certificate)
        nursery.cancel_scope.cancel()


async def _hear_signals(stop: Any, certificate: Certificate | None, task_status: Any) -> None:
    """The first signal to stop is a farewell; the second one ends the process as it is."""
    import trio

    from punchd import systemd

    with trio.open_signal_receiver(*HANDLED) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                _reload(certificate)
                continue
            log.info("stopping on %s", signal.Signals(number).name)
            systemd.notify("STOPPING=1")
            stop.set()
            break
    await trio.sleep_forever()


def _reload(certificate: Certificate | None) -> None:
    if certificate is None:
        log.info("SIGHUP: there is no certificate to read again")
        return
    try:
        certificate.reload()
    except ConfigError as error:
        log.warning("SIGHUP: the old certificate stays in use: %s", error)
    else:
        log.info("SIGHUP: certificate and key were read again")


if __name__ == "__main__":
    sys.exit(main())
