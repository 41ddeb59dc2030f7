"""What the servers' commands share: their common options, file and command line as one, signals."""

from __future__ import annotations

import argparse
import gc
import logging
import signal
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd import __version__, knobs
from punchd.errors import ConfigError

if TYPE_CHECKING:
    import trio

    from punchd.web.listen import Certificate

HANDLED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
PLACE: dict[str, Any] = {"metavar": "HOST:PORT", "action": "append"}
GC_THRESHOLDS = (2000, 10, 100)  # Python's are 700, 10, 10


def add_tls_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tls-cert", metavar="FILE", help="certificate chain in PEM")
    parser.add_argument("--tls-key", metavar="FILE", help="its private key in PEM")


def add_last_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--config", metavar="FILE", help="TOML file with the same names; the command line wins")
    parser.add_argument("--log-level", metavar="L", help=f"{', '.join(knobs.LOG_LEVELS)} (default: info)")
    parser.add_argument("--log-format", metavar="F", help="text or json (default: json)")
    parser.add_argument("--check-config", action="store_true", help="say whether the settings are right, and exit")
    parser.add_argument("--version", action="version", version=f"{parser.prog} {__version__}")


def read_config(path: str) -> bytes:
    """A configuration file.

    Raises:
        ConfigError: it cannot be read.
    """
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None


def named(given: argparse.Namespace) -> dict[str, Any]:
    """What the command line names, as a configuration file would."""
    return {
        knobs.key(name): value
        for name, value in vars(given).items()
        if value is not None and name not in ("config", "check_config")
    }


def certificate_of(chain: str | None, key: str | None) -> Certificate | None:
    """The certificate in these files, if they are named.

    Raises:
        ConfigError: they hold none.
    """
    from punchd.web.listen import Certificate

    return None if chain is None or key is None else Certificate(Path(chain), Path(key))


def reload_certificate(certificate: Certificate, log: logging.Logger) -> None:
    try:
        certificate.reload()
    except ConfigError as error:
        log.warning("SIGHUP: the old certificate stays in use: %s", error)
    else:
        log.info("SIGHUP: certificate and key were read again")


def settle_memory() -> None:
    """Keep the garbage collector from making everybody wait: to be called when all is imported.

    A full collection looks at every object: 40 ms for what was imported, which is not looked at any more from now on,
    and 100 ms for 1,400 connections over TLS, which is done a thirtieth as often. Nearly all garbage is young.
    """
    gc.freeze()
    gc.set_threshold(*GC_THRESHOLDS)


async def hear_signals(
    stop: trio.Event, hang_up: Callable[[], object], log: logging.Logger, task_status: trio.TaskStatus[None]
) -> None:
    """The first signal to stop is a farewell; the second one ends the process as it is."""
    import trio

    from punchd import systemd

    with trio.open_signal_receiver(*HANDLED) as signals:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, HANDLED)
        task_status.started()
        async for number in signals:
            if number == signal.SIGHUP:
                hang_up()
                continue
            log.info("stopping on %s", signal.Signals(number).name)
            systemd.notify("STOPPING=1")
            stop.set()
            break
    await trio.sleep_forever()
