"""The tokens of one session: which are good, revoking, and that no two are the same."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker.names import MAX_TOKENS
from punchd.broker.tokens import (
    Grant,
    Keys,
    Ledger,
    LimitError,
    Refusal,
    Role,
    TokenError,
    check,
    digest,
    expiry,
    read,
)
from punchd.errors import ConfigError

KEYS = Keys(["k" * 32])
GRANT = Grant("show", Role.PEER, "cam", 1_777_810_754)


def test_c_32_a_genuine_token_that_this_session_has_not_issued_is_refused() -> None:
    former, present = Ledger(), Ledger()
    token, grant = former.mint(KEYS, GRANT)
    check(grant, digest(token), former.live, 0)
    with pytest.raises(TokenError) as caught:
        check(grant, digest(token), present.live, 0)
    assert caught.value.refusal is Refusal.NOT_ISSUED


def test_c_57_no_two_tokens_are_the_same_and_each_can_be_revoked_alone() -> None:
    ledger = Ledger()
    tokens = [ledger.mint(KEYS, GRANT)[0] for _ in range(3)]
    assert [read(token, KEYS).exp for token in tokens] == [GRANT.exp, GRANT.exp - 1, GRANT.exp - 2]
    assert ledger.revoke(digest(tokens[1]))
    assert not ledger.revoke(digest(tokens[1]))
    assert [digest(token) in ledger.live for token in tokens] == [True, False, True]


def test_c_57_a_revoked_token_is_never_minted_again_also_not_with_another_secret() -> None:
    ledger = Ledger()
    token, _ = ledger.mint(KEYS, GRANT)
    ledger.revoke(digest(token))
    assert ledger.mint(KEYS, GRANT)[1].exp == GRANT.exp - 1
    assert ledger.mint(Keys(["n" * 32]), GRANT)[1].exp == GRANT.exp - 2


def test_c_57_other_streams_and_the_admin_do_not_cost_each_other_seconds() -> None:
    ledger = Ledger()
    grants = [GRANT, Grant("show", Role.PEER, "close", GRANT.exp), Grant("show", Role.ADMIN, None, GRANT.exp)]
    assert [ledger.mint(KEYS, grant)[1] for grant in grants] == grants


def test_a_session_has_64_tokens_at_most_revoked_ones_included() -> None:
    ledger = Ledger()
    for _ in range(MAX_TOKENS):
        ledger.revoke(digest(ledger.mint(KEYS, GRANT)[0]))
    with pytest.raises(LimitError):
        ledger.mint(KEYS, GRANT)


def test_a_ledger_survives_as_plain_data_without_any_token() -> None:
    ledger = Ledger()
    tokens = [ledger.mint(KEYS, grant)[0] for grant in (GRANT, GRANT, Grant("show", Role.ADMIN, None, 1))]
    ledger.revoke(digest(tokens[0]))
    text = json.dumps(ledger.to_plain())
    assert Ledger.from_plain(json.loads(text)) == ledger
    assert not any(token.partition(".")[2] in text for token in tokens)


@given(st.integers(0, 1 << 50))
def test_c_33_a_token_expires_at_the_sessions_end_or_up_to_a_second_later(expires_ms: int) -> None:
    assert 0 <= expiry(expires_ms) * 1000 - expires_ms < 1000


@pytest.mark.parametrize("secrets", [[], ["k" * 31], ["k" * 32, "short"]])
def test_b_085_secrets_that_are_missing_or_short_are_refused_without_being_told(secrets: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        Keys(secrets)
    assert "kkk" not in str(caught.value)
