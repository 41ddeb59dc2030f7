"""Every knob of the broker, its secret file, and its command line: what they take and refuse, in one line."""

from __future__ import annotations

import logging
import stat
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.broker import names
from punchd.broker.health import Thresholds
from punchd.broker.routes import MAX_BODY_BYTES
from punchd.broker.secret import Secret
from punchd.broker.service import open_sockets
from punchd.broker.settings import Judgement, Limits, Settings, build, check, parse
from punchd.broker.sockets import MAX_FRAME_BYTES
from punchd.broker.state import Policy
from punchd.cli import broker as cli
from punchd.errors import ConfigError
from punchd.knobs import key
from tests.unit.broker.running import secret_file
from tests.unit.web.certificates import write_certificate

WHERE = "/etc/punchd-broker.toml"
GOOD = "punch-test-secret-B-fedcba9876543210fedcba9876543210"
RIGHT: list[tuple[str, str, object]] = [
    ("listen", '["*:80", "[::1]:81"]', ("*:80", "[::1]:81")),
    ("tls-cert", '"/c"', "/c"),
    ("tls-key", '"/k"', "/k"),
    ("behind-tls-proxy", "true", True),
    ("insecure-dev", "true", True),
    ("trusted-proxies", '["127.0.0.1", "2001:DB8::1"]', ("127.0.0.1", "2001:db8::1")),
    ("public-url", '"https://broker.example:8443"', "https://broker.example:8443"),
    ("public-url", '"https://[2001:db8::1]"', "https://[2001:db8::1]"),
    ("secret-file", '"/s"', "/s"),
    ("store", '"memory"', "memory"),
    ("store", '"rediss://me:secret@redis.example:7/3"', "rediss://me:secret@redis.example:7/3"),
    ("metrics", "[]", ()),
    ("cors-origins", '["https://a.example", "*"]', ("https://a.example", "*")),
    ("turnstile-secret", '"x"', "x"),
    ("turnstile-site-key", '"0x4AAA_-.b"', "0x4AAA_-.b"),
    ("reported-endpoint", '"ip"', "ip"),
    ("admin-may-register", "false", False),
    ("passphrase-scope", '"stream"', "stream"),
    ("tally-from", '"admin+receiver"', "admin+receiver"),
    ("log-level", '"debug"', "debug"),
    ("log-format", '"text"', "text"),
    ("log-addresses", '"none"', "none"),
    ("security-log", '"/l"', "/l"),
]
WRONG = [
    *((name, text) for name in ("listen", "metrics") for text in ('"*:80"', '["80"]', '["a:65536"]', "[1]")),
    *((name, '"true"') for name in ("behind-tls-proxy", "insecure-dev", "admin-may-register")),
    *((name, text) for name in ("tls-cert", "tls-key", "secret-file", "security-log") for text in ('""', "1")),
    ("trusted-proxies", '["localhost"]'),
    *(
        ("public-url", f'"{text}"')
        for text in ("broker.example", "ftp://x", "https://x/", "https://x?y", "https://a b")
    ),
    ("public-url", "1"),
    *(("store", text) for text in ('"disk"', "1", "[]", '"redis://localhost?db=1"')),
    *(("cors-origins", text) for text in ('["a.example"]', '["https://a.example/x"]', '"*"')),
    *(("turnstile-secret", text) for text in ('""', "1")),
    *(("turnstile-site-key", text) for text in ('""', "1", "'a\"b'", '"a b"')),
    *(
        (name, '"maybe"')
        for name in ("reported-endpoint", "passphrase-scope", "tally-from", "log-level", "log-format", "log-addresses")
    ),
    *((name, text) for name in ("limits", "health") for text in ("1", "[]", "{ nonsense = 1 }")),
]


def refusal(text: str) -> str:
    with pytest.raises(ConfigError) as caught:
        parse(text.encode(), WHERE)
    message = str(caught.value)
    assert message.startswith(f"{WHERE}: ")
    assert message.isprintable()
    return message


def test_the_tables_cover_every_knob() -> None:
    knobs = {key(one.name) for one in fields(Settings)}
    assert {name for name, *_ in WRONG} == knobs
    assert {name for name, *_ in RIGHT} == knobs - {"limits", "health"}


@pytest.mark.parametrize(("name", "text", "value"), RIGHT)
def test_a_right_value_is_taken(name: str, text: str, value: object) -> None:
    assert getattr(parse(f"{name} = {text}".encode(), WHERE), name.replace("-", "_")) == value


@pytest.mark.parametrize(("name", "text"), WRONG)
def test_a_wrong_value_is_refused_by_the_name_of_its_knob(name: str, text: str) -> None:
    message = refusal(f"{name} = {text}")
    assert message.startswith(f"{WHERE}: {name}: ")
    assert "expected" in message or "unknown key nonsense" in message


@pytest.mark.parametrize("name", ["limits", "health"])
def test_each_number_has_a_range_that_is_kept(name: str) -> None:
    table: Any = {"limits": Limits, "health": Judgement}[name]
    for one in fields(table):
        least, most = one.metadata["least"], one.metadata["most"]
        assert least <= getattr(table(), one.name) <= most
        for value in (least, most):
            found = getattr(parse(f"[{name}]\n{key(one.name)} = {value}".encode(), WHERE), name)
            assert getattr(found, one.name) == value
        for value in (least - 1, most + 1, "true", "1.5"):
            assert f"{key(one.name)}: expected a whole number" in refusal(f"[{name}]\n{key(one.name)} = {value}")


@given(st.binary(max_size=200) | st.text(max_size=200).map(str.encode))
def test_whatever_stands_in_a_file_is_settings_or_one_clear_error(data: bytes) -> None:
    try:
        parse(data, WHERE)
    except ConfigError as error:
        message = str(error)
    else:
        return
    assert message.startswith(WHERE)


def test_c_07_c_14_c_23_c_26_c_27_the_defaults_are_the_specifications() -> None:
    assert Settings().policy == Policy()
    assert Settings().health.thresholds == Thresholds()
    assert Limits().observers == names.OBSERVERS
    told = Settings().policy
    assert (told.receivers_may_tally, told.admin_may_register, told.reported.value) == (False, True, "off")
    other = parse(b'tally-from = "admin+receiver"\nadmin-may-register = false\nreported-endpoint = "ip"', WHERE).policy
    assert (other.receivers_may_tally, other.admin_may_register, other.reported.value) == (True, False, "ip")


def test_b_033_b_036_b_109_c_23_the_limits_are_those_of_section_9() -> None:
    figures = {
        "creations_per_minute": 10,
        "failed_authentications_per_minute": 30,
        "requests_per_minute": 120,
        "upgrades_per_minute": 30,
        "message_burst": 60,
        "messages_per_second": 10,
        "dropped_messages": 200,
        "violations": 20,
        "outbound_messages": 256,
        "outbound_bytes": 1 << 20,
        "sessions": 10_000,
        "sessions_per_source": 100,
        "observers": 8,
        "websockets_per_source": 200,
    }
    assert {name: getattr(Limits(), name) for name in figures} == figures
    assert (MAX_BODY_BYTES, MAX_FRAME_BYTES) == (16_384, 16_384)


URL = {"public-url": "https://x"}
TLS = {"tls-cert": "/c", "tls-key": "/k"}
PROXY = {"behind-tls-proxy": True, "trusted-proxies": ["127.0.0.1"]}
LOOPBACK = {"listen": ["127.0.0.1:80", "[::1]:80", "localhost:80"]}


@pytest.mark.parametrize(
    ("table", "is_fine"),
    [
        (URL | TLS, True),
        (URL | TLS | {"listen": ["192.0.2.1:80"]}, True),
        (TLS, False),
        (URL, False),
        (URL | {"tls-cert": "/c"}, False),
        (URL | LOOPBACK, False),
        (URL | LOOPBACK | PROXY, True),
        (URL | LOOPBACK | {"behind-tls-proxy": True}, False),
        (URL | PROXY, False),
        (LOOPBACK | {"insecure-dev": True}, True),
        ({"insecure-dev": True}, False),
        ({"insecure-dev": True, "listen": ["192.0.2.1:80"]}, False),
        (LOOPBACK | {"insecure-dev": True, "public-url": "http://x"}, True),
        (TLS | {"public-url": "http://x"}, False),
        (URL | TLS | {"listen": []}, False),
    ],
)
def test_b_110_c_38_plain_http_is_for_loopback_only_and_on_demand(table: dict[str, Any], is_fine: bool) -> None:
    chosen = build(table, WHERE)
    if is_fine:
        check(chosen)
    else:
        with pytest.raises(ConfigError, match="expected"):
            check(chosen)


def test_b_085_settings_do_not_show_their_secret() -> None:
    assert "canary" not in repr(parse(b'turnstile-secret = "canary"', WHERE))


# --- the secret file -------------------------------------------------------------------------------------------------


def test_b_087_of_several_secrets_the_first_signs_and_all_are_believed(tmp_path: Path) -> None:
    old, new = GOOD, GOOD[::-1]
    path = secret_file(tmp_path, old)
    secret = Secret(path)
    signed = secret.keys.sign(b"x")
    secret_file(tmp_path, new, "", old)
    secret.reload()
    assert secret.keys.has_signed(b"x", signed)
    assert secret.keys.sign(b"x") != signed
    secret_file(tmp_path, new)
    secret.reload()
    assert not secret.keys.has_signed(b"x", signed)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660])
def test_b_085_a_secret_that_others_may_read_is_refused(mode: int, tmp_path: Path) -> None:
    path = secret_file(tmp_path, GOOD, mode=mode)
    with pytest.raises(ConfigError, match="expected mode 0600, since it holds a secret, got 0"):
        Secret(path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "at least one"),
        (b"short\n", "at least 32 bytes, got 5"),
        (b"\xff" * 40, "UTF-8"),
        (b"\n\n", "at least one"),
    ],
)
def test_b_085_a_secret_that_is_none_is_refused_and_not_shown(content: bytes, words: str, tmp_path: Path) -> None:
    path = tmp_path / "secret"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ConfigError, match=words) as caught:
        Secret(path)
    assert "short" not in str(caught.value)


def test_b_085_when_the_file_went_bad_the_old_secrets_stay(tmp_path: Path) -> None:
    path = secret_file(tmp_path, GOOD)
    secret = Secret(path)
    before = secret.keys
    path.chmod(0o644)
    with pytest.raises(ConfigError):
        secret.reload()
    assert secret.keys is before
    assert GOOD not in repr(secret.keys) + repr(vars(secret))


def test_without_a_file_each_process_has_a_secret_of_its_own() -> None:
    assert Secret(None).keys.sign(b"x") != Secret(None).keys.sign(b"x")


# --- the command line ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (("--public-url", "https://x"), "listen *: expected tls-cert and tls-key"),
        (("--listen", "x"), "command line: listen: expected HOST:PORT, got 'x'"),
        (("--insecure-dev",), "listen *: expected tls-cert and tls-key"),
        (("--insecure-dev", "--listen", "127.0.0.1:1", "--secret-file", "/nowhere"), "/nowhere: No such file"),
        (
            ("--tls-cert", "/nowhere/c", "--tls-key", "/nowhere/k", "--public-url", "https://x"),
            "certificate: /nowhere/c",
        ),
        (("--config", "/nowhere/x.toml"), "/nowhere/x.toml: No such file or directory"),
        (("--store", "disk", "--insecure-dev"), "store: expected memory, redis://HOST:PORT/NUMBER"),
        (
            ("--store", "redis://x", "--insecure-dev", "--listen", "127.0.0.1:1"),
            "store: expected a secret-file, the same on all servers",
        ),
        (("--insecure-dev", "--listen", "127.0.0.1:1", "--public-url", "x"), "public-url: expected https://HOST"),
    ],
)
def test_what_it_cannot_start_with_is_one_line_and_78(
    argv: tuple[str, ...], text: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for checking in ((), ("--check-config",)):
        assert cli.main([*argv, *checking]) == 78
        shown = capsys.readouterr()
        assert shown.out == ""
        assert text in shown.err
        assert len(shown.err.splitlines()) == 1


def test_options_win_over_the_file_and_check_config_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chain, key_path = write_certificate(tmp_path, "x")
    file = tmp_path / "x.toml"
    file.write_text(f'public-url = "https://x"\ntls-cert = "{chain}"\nlog-level = "debug"\n[limits]\nsessions = 7\n')
    argv = ["--config", str(file), "--tls-key", str(key_path), "--log-level", "error", "--listen", "*:9"]
    found = cli.settings(cli.arguments().parse_args(argv))
    assert (found.limits.sessions, found.log_level, found.listen) == (7, "error", ("*:9",))
    assert cli.main([*argv, "--check-config"]) == 0
    assert capsys.readouterr().out == "punchd-broker: the settings are right\n"


def test_b_085_a_file_with_turnstiles_secret_is_its_owners_alone(tmp_path: Path) -> None:
    file = tmp_path / "x.toml"
    file.write_text('turnstile-secret = "x"\ninsecure-dev = true\nlisten = ["127.0.0.1:1"]\n')
    file.chmod(0o640)
    with pytest.raises(ConfigError, match="expected mode 0600"):
        cli.settings(cli.arguments().parse_args(["--config", str(file)]))
    file.chmod(0o600)
    assert cli.settings(cli.arguments().parse_args(["--config", str(file)])).turnstile_secret


def test_b_114_what_is_logged_of_addresses_can_go_to_a_file_that_is_kept_for_seven_days(tmp_path: Path) -> None:
    root, security = logging.getLogger(), logging.getLogger("punchd.security")
    before = (root.handlers[:], root.level)
    path = tmp_path / "security.log"
    try:
        cli.set_up_logs(Settings(security_log=str(path)))
        [handler] = security.handlers[-1:]
        assert isinstance(handler, logging.handlers.TimedRotatingFileHandler)
        assert (handler.when, handler.backupCount, security.propagate) == ("MIDNIGHT", 7, False)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        security.warning("refused: form: 192.0.2.1 p_abc.def")
        assert '"message": "refused: form: 192.0.2.1 p_***"' in path.read_text()
        with pytest.raises(ConfigError, match="security-log: /nowhere/x: No such file"):
            cli.set_up_logs(Settings(security_log="/nowhere/x"))
    finally:
        for handler in security.handlers[:]:
            if isinstance(handler, logging.FileHandler):
                security.removeHandler(handler)
                handler.close()
        security.propagate = True
        root.handlers[:], root.level = before


def test_sockets_that_cannot_be_had_are_one_error_and_none_stays_open() -> None:
    with pytest.raises(Exception, match="cannot listen there"):
        open_sockets(Settings(listen=("192.0.2.1:1",), tls_cert="/c"))
