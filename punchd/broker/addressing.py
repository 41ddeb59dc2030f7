"""Which stream a message is about, and whether its sender may speak of that one.

Messages need not name their stream (C-13). A peer means the one that its token names, and may name no other. An admin
means the one that it registered on, or else the only one that there is.

Source: seed 000 §9.1; broker specification B-100, C-13, C-14, C-23.
"""

from __future__ import annotations

from punchd.broker.messages import ClientMessage, Register
from punchd.broker.server_messages import ErrorCode, ErrorMessage
from punchd.broker.state import Facts, Member, Policy
from punchd.broker.tokens import Role


def stream_of(member: Member, message: ClientMessage, facts: Facts, policy: Policy) -> str | ErrorMessage:
    """The name of the stream, one that the session has; or what the member is to be told instead."""
    if member.role is Role.PEER:
        if message.stream not in (None, member.stream):
            return ErrorMessage(ErrorCode.AUTH_FAILED, "the token is for another stream")
        name = member.stream
    else:
        if isinstance(message, Register) and not policy.admin_may_register:
            return ErrorMessage(ErrorCode.AUTH_FAILED, "an admin token does not register here")
        name = message.stream or member.registered or _only(facts)
        if name is None and isinstance(message, Register) and all(one.is_full for one in facts.streams.values()):
            return ErrorMessage(ErrorCode.SESSION_FULL, "every stream has both its peers")
    if name is None:
        return ErrorMessage(ErrorCode.INVALID_MESSAGE, "stream needed: the session has several")
    if name not in facts.streams:
        return ErrorMessage(ErrorCode.INVALID_MESSAGE, "stream: the session has none of that name")
    return name


def _only(facts: Facts) -> str | None:
    return next(iter(facts.streams)) if len(facts.streams) == 1 else None
