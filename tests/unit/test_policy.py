"""The policy: what its file may hold, which rule decides, and what a rule forbids."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import suppress
from dataclasses import fields
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from punchd.config import Config, Limits
from punchd.control.policy import ALL, Policy, Rule, parse
from punchd.control.quotas import Quotas
from punchd.errors import Code, ConfigError, DeniedError
from punchd.knobs import key
from tests.unit.daemon_fixture import PEER, offer, server

DOCS = Path(__file__).resolve().parents[2] / "docs" / "configuration.md"
USERS = {"alice": 1000, "bob": 1001}
GROUPS = {"students": 500}


def uid_of(user: str) -> int:
    if user not in USERS and not user.isdecimal():
        raise ConfigError(f"users: no user {user}")
    return USERS.get(user) or int(user)


def gid_of(group: str) -> int:
    return GROUPS[group] if group in GROUPS else int(group)


def policy(text: str) -> Policy:
    return parse(text.encode(), "p.toml", uid_of=uid_of, gid_of=gid_of)


def code_of(action: Callable[[], object]) -> Code | None:
    """With what it is refused, if it is."""
    try:
        action()
    except DeniedError as error:
        return error.code
    return None


def rule(**values: object) -> Rule:
    return Rule(**values)  # type: ignore[arg-type]


# --- the file -------------------------------------------------------------------------------------------------------

EXAMPLE = DOCS.read_text().split("## The policy")[1].split("```toml\n")[1].split("```")[0]


def test_the_example_of_the_documentation_is_one_and_shows_every_key() -> None:
    found = policy(EXAMPLE)
    assert not found.is_open
    assert [sorted(uids) for uids, _, _ in found.rules] == [[1000], []]
    assert found.rules[1][2].allow == (ip_network("203.0.113.0/24"), ip_network("2001:db8::/32"))
    for one in fields(Rule):
        assert f"\n{key(one.name)} = " in EXAMPLE
        assert f"| `{key(one.name)}` |" in DOCS.read_text()


def test_an_empty_file_changes_nothing() -> None:
    assert policy("") == Policy()
    assert policy("").rule_for(4711, []) is ALL


WRONG = [
    ("default = 1", "p.toml: default: expected one of allow, deny, got 1"),
    ("defualt = 'deny'", "p.toml: unknown key defualt; did you mean default?"),
    ("rule = 5", "p.toml: rule: expected tables [[rule]], got 5"),
    ("rule = [5]", "p.toml: rule: expected tables [[rule]], got [5]"),
    ("[[rule]]", "p.toml: rule 1: expected users or groups that it is about, got neither"),
    ("[[rule]]\nusers = []", "p.toml: rule 1: expected users or groups that it is about, got neither"),
    ("[[rule]]\nusers = 'alice'", "p.toml: rule 1: users: expected a list, got 'alice'"),
    ("[[rule]]\nusers = ['carol']", "p.toml: rule 1: users: no user carol"),
    ("[[rule]]\nusers=[1]\n[[rule]]\nusrs = ['alice']", "p.toml: rule 2: unknown key usrs; did you mean users?"),
    ("[[rule]]\nusers=[1]\ntechniques = 'udp'", "p.toml: rule 1: techniques: expected a list, got 'udp'"),
    ("[[rule]]\nusers=[1]\ntechniques = ['auto']", "p.toml: rule 1: techniques: expected technique names, got 'auto'"),
    (
        "[[rule]]\nusers=[1]\nallow = ['203.0.113.0/33']",
        "a network such as 203.0.113.0/24, got '203.0.113.0/33'",
    ),
    ("[[rule]]\nusers=[1]\nallow = ['203.0.113.1/24']", "got '203.0.113.1/24'; bits behind the prefix are set"),
    ("[[rule]]\nusers=[1]\ndeny = ['example.net']", "p.toml: rule 1: deny: expected a network such as"),
    ("[[rule]]\nusers=[1]\ndeny = [1]", "p.toml: rule 1: deny: expected text, got 1"),
    ("[[rule]]\nusers=[1]\nprivate = 1", "p.toml: rule 1: private: expected true or false, got 1"),
    (
        "[[rule]]\nusers=[1]\nattempts = -1",
        "rule 1: attempts: expected a whole number from 0 to 100000, got -1",
    ),
    ("[[rule]]\nusers=[1]\nattempts-per-minute = 0", "attempts-per-minute: expected a whole number from 1 to 100000"),
    ("[[rule]]\nusers=[1]\npackets = 7", "p.toml: rule 1: packets: expected a whole number from 8 to 100000, got 7"),
    ("[[rule", "p.toml: not TOML"),
]


@pytest.mark.parametrize(("text", "message"), WRONG)
def test_what_is_wrong_is_named_in_one_line(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        policy(text)
    assert message in str(caught.value)
    assert str(caught.value).isprintable()


@given(st.text(max_size=80))
def test_any_text_is_a_policy_or_one_error(text: str) -> None:
    with suppress(ConfigError):
        assert isinstance(policy(text), Policy)


# --- who ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("uid", "gids", "attempts"),
    [(1000, [], 1), (1000, [500], 1), (1001, [500, 7], 2), (1001, [8], 3), (1, [500], 2), (1, [], None)],
)
def test_the_first_rule_that_names_the_user_or_a_group_decides(uid: int, gids: list[int], attempts: int | None) -> None:
    found = policy(
        "[[rule]]\nusers=['alice']\nattempts=1\n"
        "[[rule]]\ngroups=['students']\nattempts=2\n"
        "[[rule]]\nusers=['bob']\ngroups=[9]\nattempts=3\n"
    )
    assert found.rule_for(uid, gids).attempts == attempts


def test_whom_no_rule_names_is_refused_where_the_default_is_to_deny() -> None:
    found = policy("default = 'deny'\n[[rule]]\nusers=['alice']\n")
    assert found.rule_for(1000, []).attempts is None
    with pytest.raises(DeniedError) as caught:
        found.rule_for(1001, [500])
    assert caught.value.code is Code.NOT_PERMITTED


# --- what -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("permitted", "asked", "resolved", "left"),
    [
        (None, ("auto",), ("tcp-syni", "udp"), ("tcp-syni", "udp")),
        (("udp",), ("auto",), ("tcp-syni", "udp"), ("udp",)),
        (("udp",), (), ("tcp-syni", "udp"), ("udp",)),
        (("udp",), ("udp", "udp"), ("udp", "udp"), ("udp", "udp")),
        (("udp",), ("udp", "tcp-syni"), ("udp", "tcp-syni"), None),
        (("udp",), ("all",), ("tcp-syni",), None),
        ((), ("auto",), ("udp",), None),
    ],
)
def test_techniques_that_are_named_are_refused_and_those_that_are_meant_are_left_out(
    permitted: tuple[str, ...] | None, asked: tuple[str, ...], resolved: tuple[str, ...], left: tuple[str, ...] | None
) -> None:
    chosen = rule(techniques=permitted)
    if left is not None:
        assert chosen.check_techniques(asked, resolved) == left
        return
    with pytest.raises(DeniedError) as caught:
        chosen.check_techniques(asked, resolved)
    assert caught.value.code is Code.NOT_PERMITTED


def is_refused(chosen: Rule, ip: IPv4Address | IPv6Address) -> bool:
    return code_of(lambda: chosen.check_target(ip)) is Code.NOT_PERMITTED


@pytest.mark.parametrize(
    ("allow", "deny", "ip", "refused"),
    [
        (None, [], "203.0.113.7", False),
        ([], [], "203.0.113.7", True),
        (["203.0.113.0/24"], [], "203.0.113.255", False),
        (["203.0.113.0/24"], [], "203.0.114.0", True),
        (["203.0.113.0/24"], [], "2001:db8::1", True),
        (["203.0.113.0/24"], ["203.0.113.7/32"], "203.0.113.7", True),
        (None, ["2001:db8::/32"], "2001:db8:ffff::1", True),
        (None, ["0.0.0.0/0"], "2001:db8::1", False),
        (["::/0"], [], "203.0.113.7", True),
    ],
)
def test_deny_wins_over_allow_and_families_do_not_mix(
    allow: list[str] | None, deny: list[str], ip: str, refused: bool
) -> None:
    chosen = rule(
        allow=None if allow is None else tuple(map(ip_network, allow)), deny=tuple(ip_network(text) for text in deny)
    )
    assert is_refused(chosen, ip_address(ip)) is refused


ADDRESSES = st.one_of(st.ip_addresses(v=4), st.ip_addresses(v=6))


@st.composite
def networks(draw: st.DrawFn) -> str:
    ip = draw(ADDRESSES)
    return str(ip_network((ip, draw(st.integers(0, ip.max_prefixlen))), strict=False))


def covers(network: str, ip: IPv4Address | IPv6Address) -> bool:
    """By the bits alone."""
    text, _, length = network.partition("/")
    base = ip_address(text)
    shift = base.max_prefixlen - int(length)
    return base.version == ip.version and int(base) >> shift == int(ip) >> shift


@given(st.none() | st.lists(networks(), max_size=4), st.lists(networks(), max_size=4), ADDRESSES)
def test_prefixes_decide_by_their_bits(allow: list[str] | None, deny: list[str], ip: IPv4Address | IPv6Address) -> None:
    text = "[[rule]]\nusers=[1]\n" + f"deny = {deny}\n" + ("" if allow is None else f"allow = {allow}\n")
    chosen = policy(text).rule_for(1, [])
    wanted = any(covers(one, ip) for one in deny) or (allow is not None and not any(covers(one, ip) for one in allow))
    assert is_refused(chosen, ip) is wanted


# --- how much -------------------------------------------------------------------------------------------------------


def begin(quotas: Quotas, chosen: Rule, now: float, uid: int = 1) -> bool:
    return code_of(lambda: quotas.begin(uid, 0, chosen, now)) is not Code.BUSY


def test_a_rule_lowers_the_attempts_at_once_and_never_raises_them() -> None:
    quotas = Quotas(Limits(attempts_per_user=3))
    assert [begin(quotas, rule(attempts=2), 0) for _ in range(3)] == [True, True, False]
    assert [begin(quotas, rule(attempts=50), 0, uid=2) for _ in range(4)] == [True, True, True, False]
    assert not begin(quotas, rule(attempts=0), 0, uid=3)


def test_attempts_a_minute_are_counted_by_user_and_a_refused_one_does_not_count() -> None:
    quotas = Quotas(Limits())
    chosen = rule(attempts_per_minute=3)

    def tries(now: float, uid: int = 1) -> bool:
        if begun := begin(quotas, chosen, now, uid):
            quotas.end(uid)
        return begun

    assert [tries(0) for _ in range(5)] == [True, True, True, False, False]
    assert tries(0, uid=2)
    assert [tries(19.9), tries(20.0), tries(20.0), tries(39.9), tries(40.0)] == [False, True, False, False, True]
    assert [tries(200) for _ in range(4)] == [True, True, True, False]


# --- through the daemon ---------------------------------------------------------------------------------------------

OWN = (frozenset({os.geteuid()}), frozenset[int]())


@pytest.mark.parametrize(
    ("chosen", "line", "answer"),
    [
        (rule(techniques=("waits",)), "hello|1", "ok|-|hello|1|waits|"),
        (rule(techniques=("waits",)), f"initiate|a|wins|{PEER}|40000", "error|a|not-permitted|wins: your user may use"),
        (rule(techniques=("waits",)), f"initiate|a|all|{PEER}|40000", "progress|a|1|waits|trying|-"),
        (rule(deny=(ip_network(PEER),)), f"initiate|a|waits|{PEER}|40000", f"error|a|not-permitted|{PEER}: your user"),
        (rule(deny=(ip_network(PEER),)), f"respond|a|{offer('waits')}", f"error|a|not-permitted|{PEER}: your user"),
        (rule(techniques=("waits",)), f"respond|a|{offer('wins')}|tech=wins", "error|a|not-permitted|wins: your"),
        (rule(private=True), "initiate|a|waits|10.0.0.1|40000", "progress|a|1|waits|trying|-"),
        (rule(private=None), "initiate|a|waits|10.0.0.1|40000", "error|a|bad-address|"),
        (rule(attempts=0), f"initiate|a|waits|{PEER}|40000", "error|a|busy|0 attempts of uid"),
        (rule(attempts=0), "probe|a|udp|stun=203.0.113.9:3478", "error|a|busy|0 attempts of uid"),
        (
            rule(deny=(ip_network("203.0.113.9/32"),)),
            "probe|a|udp|stun=203.0.113.9:3478",
            "error|a|not-permitted|203.0.113.9: your user",
        ),
    ],
)
async def test_the_daemon_keeps_to_the_rule_of_the_user(tmp_path: Path, chosen: Rule, line: str, answer: str) -> None:
    async with server(tmp_path, Config(), policy=Policy(((*OWN, chosen),))) as running:
        with await running.connect() as application:
            await application.send(line)
            assert (await application.line()).startswith(answer)


async def test_who_is_in_no_rule_is_told_so_and_sent_away(tmp_path: Path) -> None:
    async with server(tmp_path, Config(), policy=Policy((), is_open=False)) as running:
        with await running.connect() as application:
            [line] = await application.rest()
            assert line.startswith("error|-|not-permitted|uid ")


async def test_packets_of_a_round_are_those_of_the_rule(tmp_path: Path) -> None:
    for packets, wanted in ((9, (9, 9)), (100, (64, 100)), (100_000, (64, 512))):
        chosen = Policy(((*OWN, rule(packets=packets)),))
        async with server(tmp_path, Config(), policy=chosen) as running:
            seen = running.techniques["waits"].facts
            with await running.connect() as application:
                await application.send(f"initiate|a|waits|{PEER}|40000")
                await application.until_relay("a")
            assert [(facts.packets_per_port, facts.packets) for facts in seen] == [wanted]
        (tmp_path / "punchd.socket").unlink()
