"""A daemon with a policy, and programs of several users and groups that ask it for things."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.netns.daemons import COMMAND, Punchd, open_to_all, punchd, quiet_namespace, until

pytestmark = pytest.mark.netns

POLICY = """
default = "deny"

[[rule]]
users = [54401]
techniques = ["udp"]
allow = ["203.0.113.0/24"]

[[rule]]
groups = [54500]
deny = ["203.0.113.0/24"]
private = true
attempts-per-minute = 2
"""
ASK = """
import socket, sys
daemon = socket.socket(socket.AF_UNIX)
daemon.connect(sys.argv[1])
answers = daemon.makefile()
for line in sys.argv[2:]:
    daemon.sendall(line.encode() + b"\\n")
    print(answers.readline().strip())
"""
OPTIONS = "lport=0;public=198.51.100.2;pports=40000"


@pytest.fixture(name="daemon")
def _daemon(tmp_path: Path) -> Iterator[Punchd]:
    policy, settings = tmp_path / "policy.toml", tmp_path / "punchd.toml"
    policy.write_text(POLICY)
    settings.write_text(f'policy = "{policy}"\n')
    with quiet_namespace() as start, punchd(open_to_all(tmp_path), "--config", str(settings), starter=start) as daemon:
        until(lambda: daemon.path.exists() and "serving" in daemon.output, "it serves")  # root may not ask it
        daemon.path.chmod(0o666)
        yield daemon


def asked(daemon: Punchd, uid: int, gid: int, groups: str, *lines: str) -> list[str]:
    """The first answers to each line, as this user with these groups."""
    user = ["setpriv", f"--reuid={uid}", f"--regid={gid}", *(["--groups", groups] if groups else ["--clear-groups"])]
    words = [*user, "--", sys.executable, "-c", ASK, str(daemon.path), *lines]
    return subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()


def test_each_user_may_do_what_the_policy_says(daemon: Punchd) -> None:
    inside, outside, private = "203.0.113.7", "198.51.100.77", "10.0.0.1"

    def initiate(name: str, target: str) -> str:
        return f"initiate|{name}|udp|{target}|40000|{OPTIONS}"

    alice = asked(daemon, 54401, 54401, "", initiate("a", outside), initiate("b", private), initiate("c", inside))
    assert alice[0] == f"error|a|not-permitted|{outside}: your user may aim at certain networks only"
    assert alice[1].startswith("error|b|bad-address|field 4: 10.0.0.1 is a private address")
    assert alice[2] == "progress|c|1|udp|trying|-"

    for gid, groups in ((54500, ""), (54402, "54499,54500")):
        daemon_allows = asked(daemon, 54402 + gid % 7, gid, groups, initiate("a", inside))
        assert daemon_allows == [f"error|a|not-permitted|{inside}: your user may not aim at this network"]

    pace = asked(daemon, 54403, 54500, "", "probe|a|udp|stun=203.0.113.9:1", *[initiate("b", inside)] * 2)
    assert pace[0].startswith("error|a|not-permitted|203.0.113.9: ")
    assert pace[2] == "error|b|busy|uid 54403 may begin 2 attempts a minute"

    assert asked(daemon, 54409, 54409, "", "hello|1") == [
        "error|-|not-permitted|uid 54409: no rule of the policy is about this user"
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (POLICY, None),
        ('[[rule]]\nusers = ["no-such-user"]\n', "rule 1: users: no user no-such-user"),
        ('[[rule]]\nusers = [1]\nallow = ["203.0.113.7/24"]\n', "bits behind the prefix are set"),
    ],
)
def test_check_config_looks_at_the_policy(tmp_path: Path, text: str, message: str | None) -> None:
    policy, settings = tmp_path / "policy.toml", tmp_path / "punchd.toml"
    policy.write_text(text)
    settings.write_text(f'policy = "{policy}"\n')
    done = subprocess.run(
        [*COMMAND, "--check-config", "--config", str(settings)], capture_output=True, text=True, check=False
    )
    if message is None:
        assert (done.returncode, done.stdout) == (0, "punchd: the settings are right\n")
        return
    assert done.returncode == 78
    assert done.stderr.startswith(f"punchd: {policy}: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
