"""`punchd-broker`, the session broker.

It needs no privilege: whoever starts it as a user of its own is done. SIGTERM, SIGINT: it takes its leave; a second one
ends it as it is. SIGHUP: it reads certificate, key and secrets again. Exit codes: 0 after a stop, 2 for a wrong command
line, 78 (EX_CONFIG) for settings or a host that it cannot start with, 130 after an interrupt while it starts.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import logging.handlers
import os
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from punchd import logs
from punchd.broker import settings as broker_settings
from punchd.broker.redaction import redact
from punchd.broker.secret import Secret, check_mode
from punchd.broker.settings import Settings
from punchd.cli import process, server
from punchd.cli.process import EX_CONFIG, Parser, one_line, signals_wait
from punchd.errors import ConfigError, PunchdError

if TYPE_CHECKING:
    from punchd.broker.service import Listening
    from punchd.web.listen import Certificate

SECURITY_DAYS = 7  # B-114

log = logging.getLogger("punchd.broker")


def arguments() -> argparse.ArgumentParser:
    parser = Parser(
        prog="punchd-broker",
        description="Brings the two ends of an SRT stream together. Media never passes it.",
        allow_abbrev=False,
    )
    switch: dict[str, Any] = {"action": "store_true", "default": None}
    parser.add_argument(
        "--listen", **server.PLACE, help="serve there, repeatable; * is every address (default: *:8787)"
    )
    server.add_tls_options(parser)
    parser.add_argument("--insecure-dev", **switch, help="plain HTTP on loopback, to try it on one host")
    parser.add_argument("--secret-file", metavar="FILE", help="what tokens are signed with, mode 0600; a secret a line")
    parser.add_argument("--public-url", metavar="URL", help="what clients call it: https://HOST or https://HOST:PORT")
    parser.add_argument("--store", metavar="URL", help="memory, or a Redis: redis://… (default: memory)")
    parser.add_argument("--metrics", **server.PLACE, help="serve /metrics there, repeatable (default: 127.0.0.1:8788)")
    server.add_last_options(parser)
    return parser


def settings(given: argparse.Namespace) -> Settings:
    """File and command line as one.

    Raises:
        ConfigError: either is wrong, or they do not go together.
    """
    base = Settings()
    if given.config is not None:
        base = broker_settings.parse(server.read_config(given.config), given.config)
        if base.turnstile_secret is not None:
            check_mode(Path(given.config), "turnstile-secret")
    chosen = broker_settings.build(server.named(given), "command line", base)
    broker_settings.check(chosen)
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    return process.run(lambda: _main(arguments().parse_args(argv)))


def _main(given: argparse.Namespace) -> int:
    try:
        chosen = settings(given)
        certificate = server.certificate_of(chosen.tls_cert, chosen.tls_key)
        secret = Secret(None if chosen.secret_file is None else Path(chosen.secret_file))
        from punchd.broker.service import check_store

        check_store(chosen)
        if given.check_config:
            print("punchd-broker: the settings are right")
            return 0
        set_up_logs(chosen)
        if not secret.is_lasting:
            log.warning("there is no secret-file: tokens are signed with a secret that ends with this process")
        return _start(chosen, certificate, secret)
    except PunchdError as error:
        print(f"punchd-broker: {one_line(str(error))}", file=sys.stderr)
        return EX_CONFIG


def set_up_logs(chosen: Settings) -> None:
    """Send records to standard error, and those of `punchd.security` to a file of their own if one is named.

    Raises:
        ConfigError: that file cannot be written.
    """
    logs.set_up(chosen.log_level, chosen.log_format)
    [handler] = logging.getLogger().handlers
    handler.addFilter(redact)
    if chosen.security_log is None:
        return
    try:
        os.close(os.open(chosen.security_log, os.O_CREAT | os.O_APPEND | os.O_WRONLY, 0o600))
        separate = logging.handlers.TimedRotatingFileHandler(
            chosen.security_log, when="midnight", backupCount=SECURITY_DAYS, utc=True
        )
    except OSError as error:
        raise ConfigError(f"security-log: {chosen.security_log}: {error.strerror}") from None
    separate.setFormatter(handler.formatter)
    separate.addFilter(redact)
    security = logging.getLogger("punchd.security")
    security.addHandler(separate)
    security.propagate = False


def _start(chosen: Settings, certificate: Certificate | None, secret: Secret) -> int:
    import trio

    from punchd.broker import service

    with signals_wait(server.HANDLED), contextlib.closing(service.open_sockets(chosen)) as listening:
        trio.run(_serve, chosen, listening, certificate, secret)
    return 0


async def _serve(chosen: Settings, listening: Listening, certificate: Certificate | None, secret: Secret) -> None:
    import trio

    from punchd import systemd
    from punchd.broker import service

    stop = trio.Event()
    async with trio.open_nursery() as nursery:
        # READY means that a signal is heard, too
        await nursery.start(partial(server.hear_signals, stop, partial(_reload, certificate, secret), log))
        nursery.start_soon(systemd.heartbeat)
        broker = service.Broker(chosen, secret, certificate=certificate)
        server.settle_memory()
        await broker.serve(listening, stop)
        nursery.cancel_scope.cancel()


def _reload(certificate: Certificate | None, secret: Secret) -> None:
    """Each by itself: a bad certificate does not keep a secret from being rotated."""
    if certificate is not None:
        server.reload_certificate(certificate, log)
    if not secret.is_lasting:
        log.info("SIGHUP: there is no secret-file to read again")
        return
    try:
        secret.reload()
    except ConfigError as error:
        log.warning("SIGHUP: the old secrets stay in use: %s", error)
    else:
        log.info("SIGHUP: the secrets were read again")


if __name__ == "__main__":
    sys.exit(main())
