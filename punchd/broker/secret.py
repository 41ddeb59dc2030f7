"""What tokens are signed with: a file that only its owner may read, one secret a line, the first of which signs.

To rotate: put the new secret on the first line, send SIGHUP, and take the old one out when the last token that it
signed has expired, a day later at most. A server without a file makes a secret for its lifetime.

Source: seed 000 §7; broker specification B-085 to B-087, §7.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path

from punchd.broker.tokens import Keys
from punchd.errors import ConfigError

_MOST_BYTES = 65_536


class Secret:
    """The keys in use. With a path of None, a key that nobody else has.

    Raises:
        ConfigError: the file cannot be read, others may read it, or there is no secret of 32 bytes in it.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.keys = Keys([secrets.token_urlsafe(32)]) if path is None else _read(path)

    @property
    def is_lasting(self) -> bool:
        """Whether tokens outlive the process."""
        return self._path is not None

    def reload(self) -> None:
        """Read the file again.

        Raises:
            ConfigError: as above; the old keys stay in use.
        """
        if self._path is not None:
            self.keys = _read(self._path)


def check_mode(path: Path, what: str) -> None:
    """Whether only its owner may use a file.

    Raises:
        ConfigError: others may, or it cannot be looked at.
    """
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"{what}: {path}: {error.strerror}") from None
    _check_mode(mode, path, what)


def _check_mode(mode: int, path: Path, what: str) -> None:
    if mode & 0o077:
        raise ConfigError(f"{what}: {path}: expected mode 0600, since it holds a secret, got {mode:04o}")


def _read(path: Path) -> Keys:
    try:
        with path.open("rb") as file:
            _check_mode(stat.S_IMODE(os.fstat(file.fileno()).st_mode), path, "secret-file")
            data = file.read(_MOST_BYTES)
        lines = [line.strip() for line in data.decode().splitlines()]
    except OSError as error:
        raise ConfigError(f"secret-file: {path}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise ConfigError(f"secret-file: {path}: expected text in UTF-8") from None
    try:
        return Keys([line for line in lines if line])
    except ConfigError as error:
        raise ConfigError(f"secret-file: {path}: {error}") from None
