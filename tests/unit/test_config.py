"""Every knob: what it takes and what it refuses; whatever stands in a file ends in settings or one ConfigError."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from punchd.config import Config, Limits, build, host_port, key, parse
from punchd.control.lines import TECHNIQUE
from punchd.errors import ConfigError

WHERE = "/etc/punchd.toml"
KNOBS = [key(knob.name) for knob in fields(Config) if "doc" in knob.metadata and knob.name != "limits"]
LIMITS = fields(Limits)

# Knob, what stands behind the equals sign, the value; every knob at least once, at its edges where it has any.
RIGHT: list[tuple[str, str, object]] = [
    ("socket", '"/run/punchd/punchd.socket"', "/run/punchd/punchd.socket"),
    ("stun", "[]", ()),
    ("stun", '["192.0.2.1:1", "[2001:db8::1]:65535", "stun_1.example-a.net:3478"]',
     (("192.0.2.1", 1), ("2001:db8::1", 65535), ("stun_1.example-a.net", 3478))),
    ("group", '"punchd"', "punchd"),
    ("group", "0", "0"),
    ("user", '"_punchd"', "_punchd"),
    ("user", "65520", "65520"),
    ("group", '"4294967294"', "4294967294"),
    ("mode", '"0660"', 0o660),
    ("mode", '"666"', 0o666),
    ("mode", '"000"', 0),
    ("ttl", "1", 1),
    ("ttl", "64", 64),
    ("techniques", '["udp"]', ("udp",)),
    ("techniques", '["udp", "tcp-syni", "my-own2"]', ("udp", "tcp-syni", "my-own2")),
    ("firewall", '"nft"', "nft"),
    ("firewall", '"iptables"', "iptables"),
    ("firewall", '"none"', "none"),
    ("log-level", '"debug"', "debug"),
    ("log-level", '"error"', "error"),
    ("log-format", '"json"', "json"),
    ("trace", '"/var/lib/punchd"', "/var/lib/punchd"),
    ("allow-private", "true", True),
    ("accept-sockets", "true", True),
    ("policy", '"/etc/punchd/policy.toml"', "/etc/punchd/policy.toml"),
    ("allow-private", "false", False),
    ("allow-users", "[]", ()),
    ("allow-users", '["alice", 1000, "1001"]', ("alice", "1000", "1001")),
]  # fmt: skip

# Knob, what stands behind the equals sign; of each: wrong types, and what lies just beyond its edges.
WRONG: list[tuple[str, str]] = [
    *(("socket", text) for text in ("5", "true", '""', '["/tmp/x"]', '"a\\u0000b"', "{}", "1979-05-27")),
    *(("stun", text) for text in ('"192.0.2.1:3478"', "5", "[5]", '[""]', '["192.0.2.1"]', '["192.0.2.1:0"]')),
    *(("stun", f'["{text}"]') for text in ("a:65536", "a:", ":1", "2001:db8::1:80", "[::1]", "[1]:80", "[:::]:80")),
    *(
        ("stun", f'["{text}"]')
        for text in ("[192.0.2.1]:80", "[2001:db8::1%lo]:80", "a b:80", "a:8O", "a:+8", "a/b:80")
    ),
    *(("group", text) for text in ("-1", "4294967295", "true", '""', '["punchd"]', "1.5", '"a\\u0000b"', '"a\\nb"')),
    *(("user", text) for text in ("-1", "4294967295", '""')),
    *(("group", text) for text in ('"99999999999"', '"4294967295"', '"\\u0663"')),
    *(
        ("mode", text)
        for text in ("660", "440", "0o660", "-1", "0o1000", '"0o660"', '"66"', '"1660"', '"668"', '"rw-rw----"', "true")
    ),
    *(("mode", text) for text in ("1.5", '["0660"]', '""', '"0660\\n"')),
    *(("ttl", text) for text in ("0", "65", "-1", "true", "4.0", '"4"', "[4]", "nan", "1e1")),
    *(("techniques", text) for text in ('"udp"', "[]", "[1]", '[""]', '["udp", "udp"]', '["UDP"]', '["u"]', "true")),
    *(("techniques", f'["{text}"]') for text in ("auto", "all", "probe", "hello", "a" * 17, "udp,tcp", "udp ", "2udp")),
    ("techniques", str([f"plugin-{number}" for number in range(9)])),
    *(("log-level", text) for text in ('"loud"', '"DEBUG"', '""', "10", "true", '["info"]', "{}")),
    *(("firewall", text) for text in ('"NFT"', '"nftables"', '""', "false", '["nft"]', "0", "{}")),
    *(("log-format", text) for text in ('"xml"', '"JSON"', "1", "false", '[["json"]]')),
    *(("trace", text) for text in ("5", '""', "true", '"a\\u0000b"')),
    *(("policy", text) for text in ("5", '""', "true")),
    *(("accept-sockets", text) for text in ("1", "0", '"true"', "[]")),
    *(("allow-private", text) for text in ("1", "0", '"true"', "[]", '"no"')),
    *(
        ("allow-users", text)
        for text in ('"alice"', "1000", "[true]", '[""]', "[1.5]", "[-1]", "[4294967295]", "[[1]]")
    ),
    *(("allow-users", text) for text in ('["a\\u0000b"]', '["a\\nb"]')),
    *(("limits", text) for text in ("5", "[]", '"x"', "true")),
]


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert message.isprintable()
    assert len(message) < 1000
    return message


def test_an_empty_file_is_the_default() -> None:
    assert parse(b"", WHERE) == Config()


def test_the_tables_cover_every_knob() -> None:
    assert {name for name, *_ in RIGHT} == set(KNOBS)
    assert {name for name, _ in WRONG} == {*KNOBS, "limits"}


@pytest.mark.parametrize(("name", "text", "value"), RIGHT)
def test_a_right_value_is_taken_and_changes_nothing_else(name: str, text: str, value: object) -> None:
    attribute = name.replace("-", "_")
    found = parse(f"{name} = {text}".encode(), WHERE)
    assert getattr(found, attribute) == value
    assert type(getattr(found, attribute)) is type(value)
    for knob in fields(Config):
        if knob.name not in (attribute, "techniques_were_named", "ttl_was_named"):
            assert getattr(found, knob.name) == getattr(Config(), knob.name)


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_knob(name: str, text: str) -> None:
    message = refusal(f"{name} = {text}")
    assert message.startswith(f"{WHERE}: {name}: ")
    assert "expected" in message or "stands twice" in message


@pytest.mark.parametrize("knob", LIMITS, ids=[knob.name for knob in LIMITS])
def test_a_limit_takes_whole_numbers_in_its_range(knob: Any) -> None:
    least, most = knob.metadata["least"], knob.metadata["most"]
    name = key(knob.name)
    assert least <= getattr(Limits(), knob.name) <= most
    for value in (least, most):
        found = parse(f"[limits]\n{name} = {value}".encode(), WHERE).limits
        assert getattr(found, knob.name) == value
        others = {other.name for other in LIMITS} - {knob.name}
        assert all(getattr(found, other) == getattr(Limits(), other) for other in others)
    for text in (least - 1, most + 1, -1, "true", "false", f"{least}.0", f'"{least}"', f"[{least}]", "inf"):
        message = refusal(f"[limits]\n{name} = {text}")
        assert f"{WHERE}: limits: {name}: expected a whole number from {least} to {most}, got " in message


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("sokcet = 'x'", "unknown key sokcet; did you mean socket?"),
        ("log_level = 'info'", "unknown key log_level; did you mean log-level?"),
        ("alow-privat = true", "unknown key alow-privat; did you mean allow-private?"),
        ("Techniques = ['udp']", "unknown key Techniques; did you mean techniques?"),
        ("zzz = 1", f"unknown key zzz; expected one of {', '.join([*KNOBS, 'limits'])}"),
        ("[limit]\nattempts = 1", "unknown key limit; did you mean limits?"),
        ("[limits]\natempts = 1", "limits: unknown key atempts; did you mean attempts?"),
        (
            "[limits]\nrequests_per_second = 1",
            "limits: unknown key requests_per_second; did you mean requests-per-second?",
        ),
        ("techniques-were-named = true", "unknown key techniques-were-named; did you mean techniques?"),
        ("'a\\nb' = 1", "unknown key a\\nb; expected one of"),
        ('"a\\nb" = 1', "unknown key 'a\\nb'; expected one of"),
        ('"" = 1', "unknown key ; expected one of"),
    ],
)
def test_an_unknown_key_is_refused_and_the_nearest_is_named(text: str, hint: str) -> None:
    assert refusal(text).startswith(f"{WHERE}: {hint}")


# What a parser of Python's may raise besides its own error, or say in a thousand lines.
HOSTILE = [
    pytest.param(b"\xff", id="not UTF-8"),
    pytest.param(b"\xef\xbb\xbfttl = 4", id="a byte order mark"),
    pytest.param(b"ttl", id="no value"),
    pytest.param(b"ttl = 4\nttl = 5", id="twice"),
    pytest.param(b"ttl = 4\n[ttl]\nx = 1", id="a number and a table"),
    pytest.param(b"ttl = " + b"9" * 5000, id="a decimal number of 5,000 digits"),
    pytest.param(b"ttl = 0x" + b"f" * 5000, id="a hexadecimal number of 5,000 digits"),
    pytest.param(b"limits.attempts = 0x" + b"f" * 5000, id="a limit of 5,000 digits"),
    pytest.param(b"mode = 0b" + b"1" * 50_000, id="a mode of 50,000 bits"),
    pytest.param(b"log-level = [0x" + b"f" * 5000 + b"]", id="a huge number in a list"),
    pytest.param(b"ttl = " + b"[" * 5000 + b"]" * 5000, id="5,000 lists in each other"),
    pytest.param(b"ttl." + b"a." * 5000 + b"a = 1", id="5,000 tables in each other"),
    pytest.param(b"limits." + b"a." * 5000 + b"a = 1", id="5,000 tables in limits"),
    pytest.param(b"stun." + b"a." * 5000 + b"a = 1", id="5,000 tables in stun"),
    pytest.param(b"a" * 100_000 + b" = 1", id="a key of 100,000 characters"),
    pytest.param(b"socket = [" + b"1," * 100_000 + b"]", id="a list of 100,000 numbers"),
    pytest.param(b'log-level = "' + b"x" * 100_000 + b'"', id="100,000 characters"),
    pytest.param(b'stun = ["' + b"x" * 100_000 + b'"]', id="a server of 100,000 characters"),
    pytest.param(b"ttl = 1979-05-27T25:00:00Z", id="an hour 25"),
    pytest.param(b"ttl = 0000-00-00", id="a day 0"),
]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_hostile_file_is_refused_in_one_short_line(text: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(text, WHERE)
    assert len(str(caught.value)) < 1000
    assert "\n" not in str(caught.value)


scalars = st.one_of(
    st.integers(-10, 70).map(str),
    st.sampled_from(
        ["true", "false", "nan", "-inf", "0o660", "0x" + "f" * 5000, "1979-05-27", "07:32:00", "1e400", "'"]
    ),
    st.text(max_size=10).map(lambda text: "'" + text.replace("'", "") + "'"),
    st.sampled_from(
        ['"udp"', '"0660"', '"info"', '"json"', '"192.0.2.1:3478"', '"[::1]:1"', '"\\u0000"', '"\\n"', '"x"']
    ),
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]"),
        st.tuples(st.sampled_from(["a", "attempts", "b.c"]), inner).map(lambda pair: f"{{{pair[0]} = {pair[1]}}}"),
    ),
    max_leaves=5,
)
names = st.one_of(
    st.sampled_from([*KNOBS, "limits", "limits.attempts", "limits.connections", "[limits]\nattempts", "[limits]\nx"]),
    st.text("abc-_.\"'\\ \n#[]", min_size=1, max_size=8),
)
files = st.lists(st.tuples(names, values).map(" = ".join), max_size=4).map(lambda lines: "\n".join(lines).encode())


@settings(max_examples=2000)
@given(st.one_of(files, st.binary(max_size=60)))
@example(b"socket = '\xf0\x9f\x92\xa9'")
def test_any_file_gives_settings_or_a_config_error(text: bytes) -> None:
    try:
        found: Config | str = parse(text, WHERE)
    except ConfigError as error:
        found = str(error)
    if isinstance(found, Config):
        check_sound(found)
    else:
        assert found.startswith(f"{WHERE}: ")
        assert len(found) < 2000


def check_sound(found: Config) -> None:
    """What the rest of the daemon takes for granted."""
    assert 1 <= found.ttl <= 64
    assert found.mode is None or 0 <= found.mode <= 0o777
    assert found.techniques
    assert all(TECHNIQUE.fullmatch(name) for name in found.techniques)
    assert all(host and 1 <= port <= 65535 for host, port in found.stun)
    assert all(found.allow_users)
    for knob in LIMITS:
        assert knob.metadata["least"] <= getattr(found.limits, knob.name) <= knob.metadata["most"]


def test_one_table_over_another_leaves_what_it_does_not_name() -> None:
    base = parse(b"ttl = 7\nstun = ['192.0.2.1:1']\n[limits]\nattempts = 5\nconnections = 6", WHERE)
    found = build({"ttl": 9, "limits": {"attempts": 8}}, "command line", base)
    assert (found.ttl, found.stun) == (9, (("192.0.2.1", 1),))
    assert (found.limits.attempts, found.limits.connections) == (8, 6)
    assert build({}, "command line", base) == base


def test_it_is_known_whether_the_techniques_were_named_or_are_the_default() -> None:
    assert not parse(b"ttl = 4", WHERE).techniques_were_named
    named = parse(b"techniques = ['tcp-syni', 'tcp-nutss', 'udp']", WHERE)
    assert named.techniques_were_named
    assert build({"ttl": 5}, "command line", named).techniques_were_named


def test_it_is_known_whether_the_ttl_was_named_even_if_it_is_the_default() -> None:
    assert not parse(b"log-level = 'info'", WHERE).ttl_was_named
    named = parse(b"ttl = 4", WHERE)
    assert named.ttl_was_named
    assert build({"log-level": "debug"}, "command line", named).ttl_was_named
    assert build({"ttl": 4}, "command line").ttl_was_named


@pytest.mark.parametrize(
    ("text", "expected"),
    [("192.0.2.1:3478", ("192.0.2.1", 3478)), ("[::1]:1", ("::1", 1)), ("a.b-c_d:65535", ("a.b-c_d", 65535))],
)
def test_a_server_is_a_host_and_a_port(text: str, expected: tuple[str, int]) -> None:
    assert host_port(text, "stun") == expected


def test_every_knob_says_what_it_is_for() -> None:
    for knob in (*fields(Config), *LIMITS):
        assert knob.name in ("techniques_were_named", "ttl_was_named") or len(knob.metadata["doc"]) > 5
