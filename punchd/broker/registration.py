"""Who gets a stream's slots, and who is told of whom.

    a register finds                    and then
    its own slot, nothing changed       only the session's state is told again
    its own slot                        takes it anew: a new round, if there are two
    its own ghost (C-24)                takes its slot over; the ghost's connection is closed
    a free slot                         takes it: a round, if there are two
    others in both slots                claims one: both are probed. Who has not answered after 3 s loses its slot;
                                        if both answer, the stream is taken

A ghost is a holder with the same observed address and the same port, because two peers cannot share one public
address; unless both gave a role and the roles differ. It is looked for before a free slot is, or a peer that
reconnects would be matched with itself.

Source: broker specification §2.2, B-055 to B-057, B-066, B-107, C-09, C-12, C-23 to C-26.
"""

from __future__ import annotations

from punchd.broker.endpoints import public_endpoint
from punchd.broker.messages import Light, Register
from punchd.broker.moves import Action, Close, Probe, Registered, Send, error, send
from punchd.broker.server_messages import CloseCode, ErrorCode, ErrorMessage, PeerInfo, PeerMatch, TallyLight
from punchd.broker.state import Claim, Facts, Member, Plan, Policy
from punchd.broker.streams import Slot
from punchd.broker.tokens import Role

PROBE_MS = 3000  # 2 s for the pong (C-24), and one for the way to the process that holds the connection and back

_REPLACED = (ErrorMessage(ErrorCode.STREAM_TAKEN, "replaced by a newer connection"), CloseCode.NORMAL)
_SILENT = (ErrorMessage(ErrorCode.INVALID_MESSAGE, "no answer to a ping"), CloseCode.ERROR)


class Registration:
    """Gives and takes the slots in `facts`."""

    def __init__(self, plan: Plan, policy: Policy, facts: Facts) -> None:
        self._plan = plan
        self._policy = policy
        self._facts = facts

    def register(self, member: Member, name: str, message: Register, now_ms: int) -> list[Action]:
        """A member registers on a stream that it may register on."""
        return self._place(member, name, message) or self._claim(member, name, message, now_ms)

    def settle(self, now_ms: int) -> list[Action]:
        """Decide the claims that can be decided."""
        actions: list[Action] = []
        for connection, claim in list(self._facts.claims.items()):
            stream = self._facts.streams[claim.stream]
            claim.awaiting &= set(stream.peers)
            if stream.is_full and claim.awaiting:
                if now_ms < claim.until_ms:
                    continue
                for holder in sorted(claim.awaiting):
                    actions += drop(self._facts, holder, *_SILENT)
            del self._facts.claims[connection]
            member = self._facts.members[connection]
            actions += self._place(member, claim.stream, claim.register) or self._refuse(member, claim.register)
        return actions

    def match(self, name: str) -> PeerMatch | None:
        """What admins are told of a stream that is matched."""
        pair = self._facts.streams[name].pair
        if pair is None:
            return None
        a, b = pair
        return PeerMatch(name, a.endpoint, b.endpoint, a.register.port, self._plan.latency_ms)

    def _place(self, member: Member, name: str, message: Register) -> list[Action]:
        """Give it a slot; no actions if there is none for it."""
        if member.registered not in (None, name):
            return error(member.connection, ErrorCode.INVALID_MESSAGE, "registered on another stream already")
        stream = self._facts.streams[name]
        own = stream.slot(member.connection)
        if own is not None and own.says_the_same(message):
            return [Registered(member.connection)]
        endpoint = public_endpoint(member.ip, message, self._policy.reported)
        slot = Slot(member.connection, member.ip, endpoint, message)
        ghost = next((held for held in stream.slots if held is not own and held.is_same_peer(slot)), None)
        if ghost is None and own is None and stream.is_full:
            return []
        actions = [] if ghost is None else drop(self._facts, ghost.connection, *_REPLACED)
        self._facts.claims.pop(member.connection, None)
        member.registered = name
        stream.place(slot)
        actions += [Registered(member.connection), *self._introduce(name)]
        if own is None and stream.tally is not Light.OFF:
            actions += send([member.connection], TallyLight(name, stream.tally))
        return actions

    def _introduce(self, name: str) -> list[Action]:
        """A round begins, if there are two."""
        pair = self._facts.streams[name].pair
        if pair is None:
            return []
        latency_ms = self._plan.latency_ms
        told = [
            (mine.connection, PeerInfo(name, other.endpoint, mine.register.port, latency_ms, other.register.meta))
            for mine, other in (pair, pair[::-1])
        ]
        return [
            *(Send((connection,), peer) for connection, peer in told),
            *send(self._facts.admins, self.match(name)),
        ]

    def _claim(self, member: Member, name: str, message: Register, now_ms: int) -> list[Action]:
        claim = self._facts.claims.get(member.connection)
        if claim is not None and claim.stream == name:
            claim.register = message
            return []
        holders = self._facts.streams[name].peers
        self._facts.claims[member.connection] = Claim(name, message, set(holders), now_ms + PROBE_MS)
        return [Probe(connection) for connection in holders]

    def _refuse(self, member: Member, message: Register) -> list[Action]:
        if member.role is Role.ADMIN and message.stream is None:
            return error(member.connection, ErrorCode.SESSION_FULL, "every stream has both its peers")
        return error(member.connection, ErrorCode.STREAM_TAKEN, "the stream has both its peers")


def drop(facts: Facts, connection: str, farewell: ErrorMessage, code: CloseCode) -> list[Action]:
    """Close a connection, and forget it."""
    facts.forget(connection)
    return [Send((connection,), farewell), Close(connection, code)]
