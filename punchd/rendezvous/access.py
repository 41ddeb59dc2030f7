"""How often one may: the limits on requests, each a rate by name, and who is counted.

Pure: `now` is in seconds of a clock that never goes back.

Source: rendezvous specification §5.2, §6, D-21.
"""

from __future__ import annotations

from collections.abc import Hashable
from enum import Enum

from punchd.endpoint import IPAddress
from punchd.rendezvous.settings import Limits
from punchd.web.rate import Limiter, source_key

_MINUTE_S = 60.0


class Deed(Enum):
    """What is counted."""

    REQUEST = "request"
    REGISTER = "register"
    VERIFY = "verify"
    LOOKUP = "lookup"
    SIGNAL = "signal"
    BIND = "bind"


class Rates:
    """The limiters of one server."""

    def __init__(self, limits: Limits) -> None:
        self._limiters = {
            Deed.REQUEST: Limiter(limits.requests_per_second, limits.request_burst, limits.sources),
            Deed.REGISTER: Limiter(
                limits.registrations_per_minute / _MINUTE_S, limits.registration_burst, limits.sources
            ),
            Deed.VERIFY: Limiter(
                limits.verifications_per_minute / _MINUTE_S, limits.verification_burst, limits.sources
            ),
            Deed.LOOKUP: Limiter(limits.lookups_per_second, limits.lookup_burst, limits.sources),
            Deed.SIGNAL: Limiter(limits.signals_per_second, limits.signal_burst, limits.sources),
            Deed.BIND: Limiter(limits.bindings_per_minute / _MINUTE_S, limits.binding_burst, limits.sources),
        }

    def of_source(self, deed: Deed, ip: IPAddress, now: float) -> float:
        """Count a deed of a source; 0, or in how many seconds it will be allowed."""
        return self._allow(deed, source_key(ip), now)

    def of_client(self, deed: Deed, client_id: bytes, now: float) -> float:
        """Count a deed of a client; 0, or in how many seconds it will be allowed."""
        return self._allow(deed, client_id, now)

    def _allow(self, deed: Deed, key: Hashable, now: float) -> float:
        return self._limiters[deed].allow(key, now)
