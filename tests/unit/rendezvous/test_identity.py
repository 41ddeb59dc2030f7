"""Addresses as text, keys in files, bindings that only the key's owner can make."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.errors import ConfigError, DecodeError
from punchd.rendezvous import bech32m, identity
from punchd.rendezvous.aliases import Aliases, Bound
from punchd.rendezvous.identity import Binding, Identity

ALPHABET = "qpzry9x8gf2tvdw0s3jn54khce6mua7l"
PRINTS = st.binary(min_size=20, max_size=20)
# RFC 8032 §7.1, TEST 1.
PUBLIC_KEY = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")


@pytest.fixture(scope="module")
def own() -> Identity:
    return identity.generate()


# BIP 350, "Test vectors for Bech32m": those whose data are whole bytes.
@pytest.mark.parametrize(("kind", "text"), [("a", "A1LQFN3A"), ("a", "a1lqfn3a")])
def test_the_vectors_of_bip_350_are_read(kind: str, text: str) -> None:
    assert bech32m.decode(kind, text, 0) == b""
    assert bech32m.encode(kind, b"") == text.lower()


@pytest.mark.parametrize("text", ["a1lqfn3b", "A1lqfn3a", "b1lqfn3a", "a1lqfn3", "alqfn3a", "", "a12uel5l"])
def test_what_is_not_bech32m_is_refused(text: str) -> None:
    with pytest.raises(DecodeError):
        bech32m.decode("a", text, 0)


@given(PRINTS)
def test_an_address_is_one_word_of_44_characters_that_reads_back(print_of_key: bytes) -> None:
    text = identity.address(print_of_key)
    assert re.fullmatch(r"punch1[a-z0-9]{38}", text)
    assert identity.read_address(text) == identity.read_address(text.upper()) == print_of_key


@given(PRINTS, st.integers(6, 43), st.sampled_from(ALPHABET))
def test_no_mistyped_character_goes_unnoticed(print_of_key: bytes, place: int, character: str) -> None:
    text = identity.address(print_of_key)
    mistyped = text[:place] + character + text[place + 1 :]
    if mistyped != text:
        with pytest.raises(DecodeError, match="checksum"):
            identity.read_address(mistyped)


@given(st.text(max_size=60) | st.from_regex("[Pp]unch1[a-z0-9]{30,40}", fullmatch=True))
def test_whatever_is_pasted_is_an_address_or_one_clear_line(text: str) -> None:
    try:
        assert identity.address(identity.read_address(text)) == text.lower()
    except DecodeError as error:
        said = str(error)
    else:
        return
    assert said.startswith("address ")
    assert said.isprintable()


def test_the_address_of_a_known_key() -> None:
    address = identity.address(identity.fingerprint(PUBLIC_KEY))
    assert address in (identity.__doc__ or "")
    assert address in (Path(__file__).parents[3] / "docs" / "rendezvous.md").read_text()


def test_a_key_is_a_pem_file_for_its_owner_only_and_openssl_reads_it(own: Identity, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    before = os.umask(0)
    try:
        identity.save(own, path)
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_bytes().startswith(b"-----BEGIN PRIVATE KEY-----\n")
    assert identity.load(path).address == own.address
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]


def test_a_key_never_takes_the_place_of_another(own: Identity, tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    path.write_text("mine")
    with pytest.raises(ConfigError, match="File exists"):
        identity.save(own, path)
    assert path.read_text() == "mine"
    assert [entry.name for entry in tmp_path.iterdir()] == ["key.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620, 0o644])
def test_a_key_that_others_may_have_read_is_refused(own: Identity, tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    identity.save(own, path)
    path.chmod(mode)
    with pytest.raises(ConfigError, match=f"expected mode 0600, got {mode:04o}"):
        identity.load(path)


X25519 = """-----BEGIN PRIVATE KEY-----
MC4CAQAwBQYDK2VuBCIEIHcHbQpzGKV9PBbBclGyZkXfTC+H68CZKrF3+6UduSwq
-----END PRIVATE KEY-----
"""


@pytest.mark.parametrize(
    ("text", "what"), [("", "an Ed25519 key in PEM"), ("hello", "an Ed25519"), (X25519, "another kind")]
)
def test_a_file_that_holds_no_such_key_is_refused(tmp_path: Path, text: str, what: str) -> None:
    path = tmp_path / "key.pem"
    path.write_text(text)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=what):
        identity.load(path)


def test_a_key_that_is_not_there_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        identity.load(tmp_path / "key.pem")


def test_a_binding_is_authentic_only_as_it_was_signed(own: Identity) -> None:
    binding = own.bind(b"c" * 16, 5)
    assert binding.is_authentic()
    other = identity.generate()
    for changed in (
        Binding(b"d" * 16, binding.public_key, 5, binding.signature),
        Binding(b"c" * 16, binding.public_key, 6, binding.signature),
        Binding(b"c" * 16, other.public_key, 5, binding.signature),
        Binding(b"c" * 16, binding.public_key, 5, bytes(64)),
        Binding(b"c" * 16, bytes(32), 5, binding.signature),
    ):
        assert not changed.is_authentic()


def test_a_signature_of_the_bare_fields_is_no_binding(own: Identity) -> None:
    fields = identity.fingerprint(own.public_key) + b"c" * 16 + (5).to_bytes(8, "big")
    assert not Binding(b"c" * 16, own.public_key, 5, own.private_key.sign(fields)).is_authentic()


def test_reading_an_address_does_not_import_cryptography() -> None:
    program = "import sys; from punchd.rendezvous import identity; print('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout == b"False\n"


# --- the table of aliases --------------------------------------------------------------------------------------------


def test_the_newer_binding_wins_and_the_same_one_twice_is_once(own: Identity) -> None:
    aliases = Aliases(4)
    print_of_key = identity.fingerprint(own.public_key)
    old, new, same_time = own.bind(b"a" * 16, 5), own.bind(b"b" * 16, 6), own.bind(b"a" * 16, 6)
    assert aliases.bind(old) is aliases.bind(old) is Bound.BOUND
    assert aliases.bind(new) is Bound.BOUND
    assert aliases.bind(old) is aliases.bind(same_time) is Bound.STALE
    assert aliases.resolve(print_of_key) == new
    aliases.forget(b"a" * 16)
    assert aliases.resolve(print_of_key) == new
    aliases.forget(b"b" * 16)
    assert aliases.resolve(print_of_key) is None
    assert not aliases._of_client
    assert aliases.bind(old) is Bound.BOUND


def test_a_client_has_few_aliases_and_they_go_with_it() -> None:
    aliases = Aliases(2)
    keys = [identity.generate() for _ in range(3)]
    results = [aliases.bind(key.bind(b"a" * 16, 5)) for key in keys]
    assert results == [Bound.BOUND, Bound.BOUND, Bound.TOO_MANY]
    assert aliases.bind(keys[0].bind(b"b" * 16, 6)) is Bound.BOUND  # moved to another client: there is room again
    assert aliases.bind(keys[2].bind(b"a" * 16, 6)) is Bound.BOUND
    aliases.forget(b"a" * 16)
    assert len(aliases) == 1
