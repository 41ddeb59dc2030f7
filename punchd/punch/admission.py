"""Which calls a listener takes up. Pure: one table, no clock.

Everything that a call says is the rendezvous server's word until TLS has proven it, so this keeps a listener from work
and noise, not from attackers; who is served is decided again inside TLS (tls.py).

A call is taken up once: its signal may come again while it runs (the machine answers then) and when it is over (nobody
does). Both are told by sender and id; a sender is a client of the rendezvous server.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection
from dataclasses import dataclass, field
from enum import Enum, auto

from punchd.control.requests import Protocol
from punchd.punch.messages import Call, Code, Reject

MOST_CALLS = 64  # at once, connected ones included
MOST_OF_SENDER = 32
MOST_AGE_S = 30  # of a signal; its sender has called again, or given up
REMEMBERED = 256  # calls that are over


@dataclass(frozen=True, slots=True)
class Policy:
    """What a listener serves.

    Attributes:
        allowed: fingerprints of keys; None: everybody.
        targets: HOST:PORT each; none: the listener's own input and output.
        most: calls at once.
    """

    protocol: Protocol
    is_plain: bool
    allowed: Collection[bytes] | None = None
    targets: tuple[str, ...] = ()
    most: int = MOST_CALLS

    def target(self, wanted: str | None) -> str | None:
        """What to connect a caller to; None: nothing that it may have."""
        if wanted is None:
            return self.targets[0] if len(self.targets) == 1 else None
        return next((one for one in self.targets if one.lower() == wanted.lower()), None)

    def objection_to_target(self, wanted: str | None) -> str | None:
        """Why not, in words for the other side; None where nothing stands against it."""
        if not self.targets:
            return None if wanted is None else "this listener forwards nothing: it has no --to"
        if self.target(wanted) is not None:
            return None
        return f"{wanted} is not served here" if wanted else "several targets are served here: name one with --forward"


class Verdict(Enum):
    """About a call that is not to be rejected."""

    TAKE = auto()
    RUNS = auto()  # the signal came again
    IGNORE = auto()


@dataclass(slots=True)
class Admission:
    """The calls of a listener."""

    policy: Policy
    _running: dict[tuple[bytes, str], None] = field(default_factory=dict)
    _over: deque[tuple[bytes, str]] = field(default_factory=lambda: deque(maxlen=REMEMBERED))

    def judge(self, sender: bytes, call_id: str, call: Call, key: bytes | None, age_s: int) -> Verdict | Reject:
        """What to do about a call.

        Args:
            key: fingerprint of the key in its certificate; None if there is none.
        """
        name = (sender, call_id)
        if name in self._running:
            return Verdict.RUNS
        if name in self._over or age_s > MOST_AGE_S:
            return Verdict.IGNORE
        objection = self._objection(call, key)
        if objection is not None:
            return objection
        of_sender = sum(one[0] == sender for one in self._running)
        if len(self._running) >= self.policy.most or of_sender >= MOST_OF_SENDER:
            return Reject(Code.BUSY, "too many calls at a time")
        self._running[name] = None
        return Verdict.TAKE

    def end(self, sender: bytes, call_id: str) -> None:
        """A call that was taken up is over."""
        self._running.pop((sender, call_id), None)
        self._over.append((sender, call_id))

    def _objection(self, call: Call, key: bytes | None) -> Reject | None:
        policy = self.policy
        if call.protocol is not policy.protocol:
            return Reject(Code.MODE, f"this listener takes {policy.protocol.upper()}: {_both('--udp')}")
        if call.is_plain is not policy.is_plain and policy.protocol is Protocol.TCP:
            taken = "plain connections" if policy.is_plain else "TLS"
            return Reject(Code.MODE, f"this listener takes {taken}: {_both('--plain')}")
        if key is None and not call.is_plain:
            return Reject(Code.NOT_ALLOWED, "there is no Ed25519 key in your certificate")
        if policy.allowed is not None and key not in policy.allowed:
            return Reject(Code.NOT_ALLOWED, "this listener does not serve your key")
        if call.is_plain and policy.protocol is Protocol.TCP:
            text = policy.objection_to_target(call.target)
            return None if text is None else Reject(Code.TARGET, text)
        return None


def _both(option: str) -> str:
    return f"either both sides or none have {option}"
