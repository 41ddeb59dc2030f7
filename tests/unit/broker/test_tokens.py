"""The 56 token cases of the specification's §7, by their ids."""

from __future__ import annotations

import base64
import hashlib
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pytest

from punchd.broker.tokens import (
    Grant,
    Keys,
    Refusal,
    Role,
    TokenError,
    check,
    check_admin,
    check_session,
    check_stream,
    digest,
    mint,
    read,
)

A = "punch-test-secret-A-0123456789abcdef0123456789abcdef"
B = "punch-test-secret-B-fedcba9876543210fedcba9876543210"
NOW_MS = 1_777_810_000_000
NAME, EXP = "nab-floor-cam1", 1_777_810_754
LONGEST = "x" * 64

T01 = (
    "p_eyJzZXNzaW9uIjoibmFiLWZsb29yLWNhbTEiLCJyb2xlIjoiYWRtaW4iLCJzdHJlYW0iOm51bGwsImV4cCI6MTc3NzgxMDc1NH0"
    "._NmOWN2vw65H5pUoFNG9wVdkee75ncLoC3WFxk7egOc"
)
T02_PAYLOAD = (
    "eyJzZXNzaW9uIjoibmFiLWZsb29yLWNhbTEiLCJyb2xlIjoicGVlciIsInN0cmVhbSI6ImNhbS13aWRlIiwiZXhwIjoxNzc3ODEwNzU0fQ"
)
T02_SIGNATURE = "Fk12dY-LMyjj_6sy6M1Nt5KO9cpOCgrsSjscnFxPhNs"
T02 = f"p_{T02_PAYLOAD}.{T02_SIGNATURE}"
T03 = (
    "p_eyJzZXNzaW9uIjoiYSIsInJvbGUiOiJwZWVyIiwic3RyZWFtIjoiMCIsImV4cCI6MTc3NzgxMDc1NH0"
    ".DxTlFcrvg5QTX7vuCIc_Vw4_UlMgcFxsvPTKG66QWng"
)
R16 = (
    "p_eyJzZXNzaW9uIjoibmFiLWZsb29yLWNhbTEiLCJyb2xlIjoicGVlciIsInN0cmVhbSI6ImNhbS13aSIsImV4cCI6MTc3NzgxMDc1NH1"
    ".ilmcV8yLjHG0DVrD6bio4z47LH_JIfMwVXjI__e5n1M"
)
R28 = (
    "p_eyJzZXNzaW9uIjoibmFiLWZsb29yLWNhbTEiLCJyb2xlIjoicGVlciIsInJvbGUiOiJhZG1pbiIsInN0cmVhbSI6bnVsbCwiZXhwIjox"
    "Nzc3ODEwNzU0fQ.paviSqAgCURUcWD1_jNX2JmA8M_0DVi0qQBnDcvNPoc"
)


def to_text(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def hmac_of(data: bytes, secret: str = A) -> bytes:
    return hmac.new(secret.encode(), data, hashlib.sha256).digest()


def signed(payload: str | bytes, secret: str = A) -> str:
    data = payload if isinstance(payload, bytes) else payload.encode()
    return f"p_{to_text(data)}.{to_text(hmac_of(data, secret))}"


def payload(session: str = '"s"', role: str = '"peer"', stream: str = '"cam"', exp: str = str(EXP)) -> str:
    return f'{{"session":{session},"role":{role},"stream":{stream},"exp":{exp}}}'


NEEDS_ADMIN: Callable[[Grant], None] = check_admin


@dataclass(frozen=True)
class Case:
    """A token, where it is used, and at which check it fails (None: it does not)."""

    token: str
    refusal: Refusal | None = None
    session: str = "s"
    words: str = ""  # that the refusal has
    is_open: bool = True
    now_ms: int = NOW_MS
    secrets: Sequence[str] = (A,)
    scope: Callable[[Grant], None] = lambda grant: None


def refused(token: str, refusal: Refusal, words: str = "", session: str = NAME) -> Case:
    return Case(token, refusal, session, words)


FORM, SIGNATURE, PAYLOAD = Refusal.FORM, Refusal.SIGNATURE, Refusal.PAYLOAD
CASES: dict[str, Case] = {
    "T01": Case(T01, session=NAME, scope=NEEDS_ADMIN),
    "T02": Case(T02, session=NAME, scope=lambda grant: check_stream(grant, "cam-wide")),
    "T03": Case(T03, session="a", scope=lambda grant: check_stream(grant, "0")),
    "T04": Case(signed(payload(f'"{LONGEST}"', stream=f'"{LONGEST}"')), session=LONGEST),
    "T05": Case(signed(payload('"a.b_c-d"', stream='"9.-_"')), session="a.b_c-d"),
    "T06": Case(T02, session=NAME, now_ms=(EXP - 1) * 1000),
    "T07": Case(signed(payload(), B), secrets=(A, B)),
    "T08": Case(signed(f'{{\n\t"exp" : {EXP} , "stream":"cam","role":"peer" ,"session":"s"}}\r\n')),
    "T09": Case(signed(payload(r'"\u0073"', stream=r'"c\u0061m"')), scope=lambda grant: check_stream(grant, "cam")),
    "T10": Case(signed(payload(exp="9007199254740992"))),
    "R01": refused(f"{T01.partition('.')[0]}.{T02_SIGNATURE}", SIGNATURE),
    "R02": refused(f"p_{T02_PAYLOAD}.G{T02_SIGNATURE[1:]}", SIGNATURE),
    "R03": Case(signed(payload(), "punch-test-secret-C-0000000000000000000"), SIGNATURE, secrets=(A, B)),
    "R04": refused(f"p_{T02_PAYLOAD}.{to_text(hmac_of(T02_PAYLOAD.encode()))}", SIGNATURE),
    "R05": refused(f"p_{T02_PAYLOAD}.{to_text(hmac_of(b'p_' + T02_PAYLOAD.encode()))}", SIGNATURE),
    "R06": Case(T02, Refusal.EXPIRED, NAME, now_ms=EXP * 1000),
    "R07": Case(T02, Refusal.EXPIRED, NAME, now_ms=(EXP + 1) * 1000),
    "R08": Case(T02, Refusal.NOT_FOUND, NAME, now_ms=(EXP + 1) * 1000, is_open=False),
    "R09": refused(T02, Refusal.SESSION, session="another"),
    "R10": refused(T02, Refusal.SESSION, session=NAME.upper()),
    "R11": Case(T02, Refusal.SCOPE, NAME, "another stream", scope=lambda grant: check_stream(grant, "cam-close")),
    "R12": Case(T02, Refusal.SCOPE, NAME, "admin", scope=NEEDS_ADMIN),
    "R13": refused(T02.replace(".", "=."), FORM),
    "R14": refused(T02 + "=", FORM),
    "R15": refused(f"{T02[:-1]}t", FORM, "canonical"),
    "R16": refused(R16, FORM, "canonical"),
    "R17": refused(f"p_{T02_PAYLOAD}.{T02_SIGNATURE.replace('-', '+').replace('_', '/')}", FORM),
    "R18": refused(T02[2:], FORM),
    "R19": refused(f"P_{T02[2:]}", FORM),
    "R20": refused(f"{T02}.{T02_SIGNATURE}", FORM),
    "R21": refused(f"p_{T02_PAYLOAD}", FORM),
    "R22": refused(f"p_{T02_PAYLOAD}.", FORM),
    "R23": refused(f"p_.{T02_SIGNATURE}", FORM),
    "R24": refused(T02 + "\n", FORM),
    "R25": refused(f"{T02[:20]} {T02[20:]}", FORM),
    "R26": refused(f"p_{T02_PAYLOAD}.{to_text(hmac_of(base64.urlsafe_b64decode(T02_PAYLOAD + '=='))[:31])}", FORM),
    "R27": refused(f"p_{T02_PAYLOAD}.{to_text(hmac_of(base64.urlsafe_b64decode(T02_PAYLOAD + '==')) + b'x')}", FORM),
    "R28": refused(R28, PAYLOAD, "duplicate key"),
    "R29": Case(signed(f'{{"session":"x",{payload()[1:]}'), PAYLOAD, words="duplicate key"),
    "R30": Case(signed(payload(role='"admin"')), PAYLOAD, words="an admin's"),
    "R31": Case(signed(payload(stream="null")), PAYLOAD, words="a peer's"),
    "R32": Case(signed(f'{{"session":"s","role":"admin","exp":{EXP}}}'), PAYLOAD, words="members"),
    "R33": Case(signed(f'{payload()[:-1]},"x":1}}'), PAYLOAD, words="members"),
    "R34": Case(signed(payload(exp=f'"{EXP}"')), PAYLOAD, words="exp"),
    "R35": Case(signed(payload(exp=f"{EXP}.0")), PAYLOAD, words="exp"),
    "R36": Case(signed(payload(exp="true")), PAYLOAD, words="exp"),
    "R37": Case(signed(payload(exp="1e400")), PAYLOAD, words="beyond the range"),
    "R38": Case(signed(payload(exp="NaN")), PAYLOAD, words="NaN/Infinity"),
    "R39": Case(signed(payload(role='"Peer"')), PAYLOAD, words="role"),
    "R40": Case(signed(payload('"-s"')), PAYLOAD, "-s", "session"),
    "R41": Case(signed(payload(r'"s\n"')), PAYLOAD, "s\n", "session"),
    "R42": Case(signed(f'["s","peer","cam",{EXP}]'), PAYLOAD, words="members"),
    "R43": Case(signed(payload().replace("cam", "\xe4").encode("latin-1")), PAYLOAD, words="not JSON"),
    "R44": Case(signed(b"\xef\xbb\xbf" + payload().encode()), PAYLOAD, words="not JSON"),
    "R45": Case(signed(f"{payload()}{{}}"), PAYLOAD, words="not JSON"),
    "R46": Case(signed(payload() + " " * 400), FORM),
}


def outcome(case: Case) -> Grant:
    """What a server does with a token, in its order."""
    grant = read(case.token, Keys(case.secrets))
    check_session(grant, case.session)
    check(grant, digest(case.token), {digest(case.token)} if case.is_open else None, case.now_ms)
    case.scope(grant)
    return grant


@pytest.mark.parametrize("name", CASES)
def test_b_080_b_081_b_082_b_083_b_084_b_087_c_15_c_29_c_30_every_case_of_section_7(name: str) -> None:
    case = CASES[name]
    if case.refusal is None:
        assert outcome(case).session == case.session
        return
    with pytest.raises(TokenError) as caught:
        outcome(case)
    assert caught.value.refusal is case.refusal
    assert case.words in str(caught.value)


def test_b_080_there_are_56_cases_and_the_longest_token_has_293_characters() -> None:
    assert list(CASES) == [f"T{number:02}" for number in range(1, 11)] + [f"R{number:02}" for number in range(1, 47)]
    assert len(CASES) == 56
    assert len(CASES["T04"].token) == 293
    assert len(CASES["R46"].token) > 512


def test_b_080_minting_gives_the_vectors_byte_for_byte() -> None:
    keys = Keys([A])
    assert mint(keys, Grant(NAME, Role.ADMIN, None, EXP)) == T01
    assert mint(keys, Grant(NAME, Role.PEER, "cam-wide", EXP)) == T02
    assert mint(keys, Grant("a", Role.PEER, "0", EXP)) == T03


def test_b_087_the_first_secret_signs_and_any_is_believed() -> None:
    assert mint(Keys([B, A]), Grant(NAME, Role.ADMIN, None, EXP)) != T01
    assert read(T01, Keys([B, A])).role is Role.ADMIN


def test_c_31_each_refusal_has_its_status() -> None:
    statuses = {refusal.name: refusal.status for refusal in Refusal}
    assert statuses.pop("NOT_FOUND") == 404
    assert statuses.pop("SCOPE") == 403
    assert set(statuses.values()) == {401}


def test_b_085_no_text_of_a_refusal_or_of_the_keys_gives_a_secret_or_a_token_away() -> None:
    assert A not in repr(Keys([A]))
    for case in CASES.values():
        if case.refusal is not None:
            with pytest.raises(TokenError) as caught:
                outcome(case)
            said = str(caught.value)
            assert not any(part in said for part in case.token.split(".") if len(part) > 8)
