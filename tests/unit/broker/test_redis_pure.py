"""What is sealed for Redis, and the layouts of what stands there."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker import redis_codec as codec
from punchd.broker.moves import Action, Close, Probe, Registered, Send
from punchd.broker.passphrases import Passphrases
from punchd.broker.redis_codec import Say, State, Tombstone
from punchd.broker.redis_seal import NONCE_SIZE, SALT_SIZE, Sealer
from punchd.broker.server_messages import CloseCode, ErrorCode, ErrorMessage, Overview, Reason, Start
from punchd.broker.server_messages import State as SessionState
from punchd.broker.store import first_tokens
from punchd.broker.tokens import Keys
from punchd.cli import broker as cli
from punchd.errors import DecodeError
from tests.unit.broker.parts import Room
from tests.unit.broker.running import SECRET, secret_file

OLD, NEW = "a" * 32, "b" * 40
SALT, NONCE = b"s" * SALT_SIZE, b"n" * NONCE_SIZE
SEALER = Sealer(Keys([OLD]))

names = st.from_regex(r"[0-9a-f]{4}\.[0-9]-[0-9]{1,3}", fullmatch=True)
delivered = st.one_of(
    st.builds(
        Say,
        st.lists(names, min_size=1, max_size=3).map(tuple),
        st.text(),
        st.sampled_from([None, *ErrorCode]),
        st.booleans(),
    ),
    st.builds(Close, names, st.sampled_from(CloseCode)),
    st.builds(Probe, names),
    st.builds(Registered, names),
)


# --- sealing ---------------------------------------------------------------------------------------------------------


def test_b_085_keys_are_derived_as_rfc_5869_says_and_differ_by_purpose() -> None:
    keys = Keys([OLD, NEW])
    for purpose in (b"", b"one", b"two"):
        wanted = tuple(HKDF(SHA256(), 32, None, purpose).derive(one.encode()) for one in (OLD, NEW))
        assert keys.derived(purpose) == wanted


@given(text=st.binary(max_size=200), place=st.binary(max_size=40))
def test_what_is_sealed_is_opened_and_shows_nothing(text: bytes, place: bytes) -> None:
    sealed = SEALER.seal(text, SALT, NONCE, place)
    assert SEALER.open(sealed, place) == text
    assert len(text) < 8 or text not in sealed


@given(at=st.integers(0, 10**6), bit=st.integers(0, 7), text=st.binary(max_size=50))
def test_what_was_changed_in_a_single_bit_is_not_opened(at: int, bit: int, text: bytes) -> None:
    sealed = bytearray(SEALER.seal(text, SALT, NONCE, b"here"))
    sealed[at % len(sealed)] ^= 1 << bit
    with pytest.raises(DecodeError, match=r"^sealed"):
        SEALER.open(bytes(sealed), b"here")


@given(data=st.binary(max_size=80))
def test_what_was_never_sealed_is_not_opened(data: bytes) -> None:
    for foreign in (data, SEALER.seal(b"", SALT, NONCE, b"")[:8] + data):
        with pytest.raises(DecodeError):
            SEALER.open(foreign, b"here")


def test_it_is_opened_for_its_place_only_and_not_for_an_earlier_version_of_it() -> None:
    sealed = SEALER.seal(b"x", SALT, NONCE, codec.place_of_session("show", 7))
    for place in (
        codec.place_of_session("show", 6),
        codec.place_of_session("show1", 7),
        codec.place_of_entry("a.0", "show", 7),
    ):
        with pytest.raises(DecodeError):
            SEALER.open(sealed, place)


def test_b_087_the_first_secret_seals_and_all_of_them_open() -> None:
    both, newer = Sealer(Keys([NEW, OLD])), Sealer(Keys([NEW]))
    old = SEALER.seal(b"x", SALT, NONCE, b"")
    assert both.open(old, b"") == b"x"
    assert newer.open(both.seal(b"x", SALT, NONCE, b""), b"") == b"x"
    with pytest.raises(DecodeError, match="a secret that is not in the secret file"):
        newer.open(old, b"")
    assert OLD not in repr(SEALER)


def test_a_source_is_blinded_alike_everywhere_and_not_without_the_secret() -> None:
    assert SEALER.blind(b"\xc0\0\2\1") == Sealer(Keys([OLD])).blind(b"\xc0\0\2\1")
    assert (
        len({SEALER.blind(b"\xc0\0\2\1"), SEALER.blind(b"\xc0\0\2\2"), Sealer(Keys([NEW])).blind(b"\xc0\0\2\1")}) == 3
    )


# --- layouts ---------------------------------------------------------------------------------------------------------


def test_a_session_comes_back_as_it_went() -> None:
    room = Room("cam", "two")
    room.admin()
    room.pair("cam")
    room.peer("third", "2001:db8::1", "two")
    room.say("third", "register", port=7000, role="sender", meta={"a": "ä"})
    room.say("one", "health", rtt=1.5, retransmit=0, bitrate=1, dropped=3)
    ledger, *_ = first_tokens(Keys([OLD]), room.plan, frozenset({(None, 7), ("cam", 8)}))
    state = State(room.session, ledger, room.passphrases, b"src", SALT, 3, {"a.0": 5})
    back = codec.load(codec.dump(state), room.policy, SALT, 3)
    assert (back.session.plan, back.session.facts) == (room.plan, room.session.facts)
    assert (back.ledger, back.source, back.salt, back.version, back.done) == (ledger, b"src", SALT, 3, {"a.0": 5})
    assert back.passphrases.to_plain() == room.passphrases.to_plain()
    assert room.passphrases.of("cam") not in repr(back)


def test_a_tombstone_comes_back_as_it_went() -> None:
    stone = Tombstone(Reason.ADMIN_CLOSED, frozenset({(None, 7), ("cam", 8)}))
    assert codec.load_tombstone(codec.dump_tombstone(stone)) == stone


@given(st.lists(delivered, max_size=5))
def test_an_entry_comes_back_as_it_went(ones: list[codec.Delivery]) -> None:
    assert codec.load_deliveries(codec.dump_deliveries(ones)) == ones


@given(
    st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.sampled_from(["plan", "reason"]), inner),
    )
)
def test_another_layout_is_one_error(value: object) -> None:
    text = json.dumps([value]).encode()
    with pytest.raises(DecodeError):
        codec.load(text, Room().policy, SALT, 1)
    with pytest.raises(DecodeError):
        codec.load_tombstone(text)
    with pytest.raises(DecodeError):
        codec.load_deliveries(text)


def test_what_connections_are_told_is_sorted_by_their_server_and_keeps_its_order() -> None:
    actions: list[Action] = [
        Send(("a.0-1", "b.0-1", "a.0-2"), Start("cam")),
        Registered("b.0-1"),
        Send(("b.0-1",), ErrorMessage(ErrorCode.STREAM_TAKEN, "no")),
        Close("a.0-2", CloseCode.NORMAL),
        Send(("a.0-1",), Overview(SessionState.WAITING, {})),
    ]
    told = codec.deliveries(actions, Passphrases({}))
    assert {name: [type(one) for one in ones] for name, ones in told.items()} == {
        "a.0": [Say, Close, Say],
        "b.0": [Say, Registered, Say],
    }
    first, other = told["a.0"][0], told["b.0"][2]
    assert isinstance(first, Say)
    assert isinstance(other, Say)
    assert (first.to, other.code) == (("a.0-1", "a.0-2"), ErrorCode.STREAM_TAKEN)


# --- the extra -------------------------------------------------------------------------------------------------------


def test_without_the_extra_it_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path_factory: pytest.TempPathFactory
) -> None:
    for name in (
        "broker.redis_sessions",
        "broker.redis_changes",
        "broker.redis_instances",
        "redis.link",
        "redis.connection",
    ):
        monkeypatch.delitem(sys.modules, f"punchd.{name}", raising=False)
    monkeypatch.setitem(sys.modules, "coredis.parser", None)
    secret = secret_file(tmp_path_factory.mktemp("secret"), SECRET)
    argv = ["--insecure-dev", "--listen", "127.0.0.1:1", "--secret-file", str(secret), "--store", "redis://:hunter2@h"]
    assert cli.main(argv) == 78
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("punchd-broker: store: expected the extra `redis`: pip install 'punchd[redis]'")
    assert "hunter2" not in line


def test_coredis_is_imported_only_where_it_is_configured() -> None:
    program = "import sys; import punchd.cli.broker, punchd.broker.service; print('coredis' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout == "False\n"
