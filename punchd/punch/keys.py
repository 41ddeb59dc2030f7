"""Keys by name: $XDG_CONFIG_HOME/punch/keys/NAME.pem, made at first use. See `punchd.rendezvous.identity`."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from punchd.errors import ConfigError

if TYPE_CHECKING:
    from punchd.rendezvous.identity import Identity

DEFAULT_NAME = "default"

_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")


def directory(environment: Mapping[str, str] = os.environ) -> Path:
    """Where `punch` keeps its configuration. A relative $XDG_CONFIG_HOME is ignored, as its specification says.

    Raises:
        ConfigError: there is no home.
    """
    given = environment.get("XDG_CONFIG_HOME", "")
    if given.startswith("/"):
        return Path(given) / "punch"
    try:
        return Path.home() / ".config" / "punch"
    except RuntimeError:
        raise ConfigError("expected $XDG_CONFIG_HOME or $HOME to be set, got neither") from None


def path(name: str, base: Path) -> Path:
    """The file of a key.

    Raises:
        ConfigError: no name.
    """
    if not _NAME.fullmatch(name):
        raise ConfigError(f"name {name[:60]!r}: expected 1 to 64 letters, digits and `_.-`, no dot in front")
    return base / "keys" / f"{name}.pem"


def load_or_make(file: Path) -> Identity:
    """The key in `file`; a new one, if there is none.

    Raises:
        ConfigError: the file cannot be read or made, or others may read it.
    """
    from punchd.rendezvous import identity  # what --help can do without

    if not os.path.exists(file):  # unlike Path.exists, False where we may not look; what is tried then says why
        try:
            file.parent.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # whatever the umask is
            file.parent.mkdir(mode=0o700, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{file.parent}: {error.strerror}") from None
        try:
            identity.save(identity.generate(), file)
        except ConfigError:
            if not os.path.exists(file):  # otherwise another process was faster
                raise
    return identity.load(file)
