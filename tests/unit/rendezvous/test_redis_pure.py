"""URLs of Redis, what checks a signature without its key, and the layouts of what stands in Redis."""

from __future__ import annotations

import hmac
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.errors import ConfigError
from punchd.redis import url as redis_url
from punchd.redis.url import Place
from punchd.rendezvous import hmac_state, identity
from punchd.rendezvous import redis_codec as codec
from punchd.rendezvous.signals import Signal

SECRET = "hunter2"  # noqa: S105


@pytest.mark.parametrize(
    ("url", "place", "text"),
    [
        ("redis://h", Place("h"), "h:6379"),
        ("redis://H.example:7/3", Place("h.example", 7, "", 3), "h.example:7"),
        ("redis://:hunter2@h/", Place("h", password=SECRET), "h:6379"),
        ("rediss://me:p%40%2f@[2001:db8::1]:7/0", Place("2001:db8::1", 7, is_tls=True, user="me", password="p@/"),  # noqa: S106
         "[2001:db8::1]:7"),
        ("unix:///run/r.sock", Place(path="/run/r.sock"), "/run/r.sock"),
        ("unix://me:hunter2@/run/a%20b?db=9", Place(path="/run/a b", number=9, user="me", password=SECRET),
         "/run/a b"),
    ],
)  # fmt: skip
def test_a_url_names_a_place_whose_text_holds_no_account(url: str, place: Place, text: str) -> None:
    found = redis_url.parse(url, "store")
    assert found == place
    assert str(found) == text
    assert not any(secret in repr(found) + str(found) for secret in (SECRET, "me:", "p@/"))


@pytest.mark.parametrize(
    "url",
    ["disk", "", "redis:", "redis://", "redis:/:hunter2@h", "redis://:hunter2@h:x", "redis://:hunter2@h:70000",
     "redis://:hunter2@h:0", "redis://:hunter2@h/one", "redis://:hunter2@h/-1", "redis://:hunter2@h/99999",
     "redis://:hunter2@h?db=1", "redis://h?password=hunter2", "rediss://h?ssl_cert_reqs=none", "redis://h#hunter2",
     "http://:hunter2@h", "unix://hunter2", "unix:///", "unix:///a?db=1&db=2", "unix:///a?password=hunter2",
     "redis://[hunter2", "redis://h%00/"],
)  # fmt: skip
def test_what_is_no_such_url_is_refused_in_one_line_without_a_word_of_it(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        redis_url.parse(url, "x.toml: store")
    text = str(caught.value)
    assert text.startswith("x.toml: store: expected memory, redis://HOST:PORT/NUMBER")
    assert SECRET not in text
    assert "\n" not in text


@given(key=st.binary(min_size=32, max_size=32), message=st.binary(max_size=300))
def test_the_state_of_a_key_gives_the_hmac_of_the_key(key: bytes, message: bytes) -> None:
    state = hmac_state.of_key(key)
    mac = hmac.digest(key, message, "sha256")
    assert hmac_state.digest(state, message) == mac
    assert hmac_state.is_authentic(state, message, mac)
    assert not hmac_state.is_authentic(state, message + b"x", mac)
    assert len(state) == hmac_state.STATE_SIZE
    assert key not in state


@given(sender=st.binary(min_size=16, max_size=16), data=st.text(), us=st.integers(0, 1 << 52))
def test_a_signal_comes_back_as_it_went(sender: bytes, data: str, us: int) -> None:
    signal = Signal(sender, data, us / 1e6)
    packed = codec.pack_signal(signal)
    assert codec.read_signal(packed) == signal
    assert codec.pack_signal(codec.read_signal(packed)) == packed


@given(time=st.integers(0, (1 << 63) - 1))
def test_a_binding_comes_back_as_it_went(time: int) -> None:
    binding = replace(identity.Binding(b"i" * 16, b"p" * 32, 0, b"s" * 64), timestamp=time)
    assert codec.read_binding(codec.pack_binding(binding)) == binding


def test_messages_say_what_of_whom() -> None:
    who = bytes(range(16))
    assert codec.read_message(b"S" + who) == codec.Message(codec.Kind.SIGNAL, who)
    assert codec.read_message(b"G" + who) == codec.Message(codec.Kind.GONE, who)
    assert codec.read_message(b"W" + who + b"12") == codec.Message(codec.Kind.WAIT, who, 12)
    with pytest.raises(ValueError, match="Kind"):
        codec.read_message(b"X" + who)
