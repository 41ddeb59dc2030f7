"""What is left of root after the daemon has started by hand, in all the ways in which it may be started.

Users are made up: the programs here get their service user from the test, /etc/passwd is not touched.
"""

from __future__ import annotations

import os
import pwd
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from punchd.cli.users import NAMELESS
from tests.netns.daemons import Punchd, open_to_all, punchd, quiet_namespace, writable

pytestmark = pytest.mark.netns

TWO = 1 << 12 | 1 << 13  # CAP_NET_ADMIN and CAP_NET_RAW
UID, GID = 54321, 54322

WITH_USER = f"""
import pwd, sys
from punchd.cli import punchd
pwd.getpwnam = lambda name: pwd.struct_passwd((name, "x", {UID}, {GID}, "", "/", "/bin/false"))
sys.exit(punchd.main(sys.argv[1:]))
"""
DROP = """
import ctypes, os, subprocess, sys
from punchd.errors import KernelError
from punchd.kernel import privileges
print("can_drop", privileges.can_drop())
try:
    privileges.drop(None)
except KernelError as error:
    print("failed", error)
    sys.exit()
print("dumpable", ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))
print("held", privileges.held())
print(open("/proc/self/status").read())
"""


def capabilities(status: dict[str, str]) -> dict[str, int]:
    return {name: int(value, 16) for name, value in status.items() if name.startswith("Cap")}


def dropped(*setpriv: str) -> dict[str, str]:
    """What `drop` leaves of a process that was started so: /proc/self/status, and what it said."""
    words = ["setpriv", *setpriv, "--", sys.executable, "-c", DROP] if setpriv else [sys.executable, "-c", DROP]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found = {}
    for line in done.stdout.splitlines():
        name, _, value = line.replace(" ", ":", 1).partition(":") if ":" not in line else line.partition(":")
        found[name.strip()] = value.strip().lstrip(":").strip()
    return found


def threads(daemon: Punchd) -> list[dict[str, str]]:
    """/proc/PID/status of each of its threads: capabilities belong to threads."""
    found = []
    for thread in Path(f"/proc/{daemon.pid}/task").iterdir():
        lines = (thread / "status").read_text().splitlines()
        found.append({name: value.strip() for name, _, value in (line.partition(":") for line in lines)})
    return found


# --- by hand --------------------------------------------------------------------------------------------------------


def test_by_hand_without_a_service_user_it_becomes_one_that_no_account_has(tmp_path: Path) -> None:
    with punchd(tmp_path) as daemon:
        daemon.ready()
        for status in threads(daemon):
            assert capabilities(status) == {"CapInh": 0, "CapPrm": TWO, "CapEff": TWO, "CapBnd": TWO, "CapAmb": 0}
            assert status["NoNewPrivs"] == "1"
            assert status["Uid"].split() == status["Gid"].split() == [str(NAMELESS)] * 4
            assert status["Groups"] == ""
        others = ["setpriv", f"--reuid={NAMELESS}", f"--regid={NAMELESS}", "--clear-groups", "--", "cat"]
        spied = subprocess.run([*others, f"/proc/{daemon.pid}/environ"], capture_output=True, text=True, check=False)
        assert "Permission denied" in spied.stderr, "not even by the same user: keys of attempts are in its memory"
        daemon.process.terminate()
        assert daemon.wait() == 0
        assert not daemon.path.exists()


@pytest.mark.parametrize("name", ["54321", "nobody"])
def test_by_hand_it_becomes_the_user_that_is_named(tmp_path: Path, name: str) -> None:
    wanted = pwd.getpwnam(name).pw_uid if name == "nobody" else int(name)
    with punchd(tmp_path, "--user", name) as daemon:
        daemon.ready()
        assert {status["Uid"] for status in threads(daemon)} == {"\t".join([str(wanted)] * 4)}


def test_it_stays_root_only_where_that_is_asked_for_and_says_what_that_means(tmp_path: Path) -> None:
    with punchd(tmp_path, "--user", "root") as daemon:
        daemon.ready()
        for status in threads(daemon):
            assert capabilities(status) == {"CapInh": 0, "CapPrm": TWO, "CapEff": TWO, "CapBnd": TWO, "CapAmb": 0}
            assert status["Uid"].split() == ["0"] * 4
        assert "staying uid 0, whose files are the host's: whoever takes punchd over can write to them" in daemon.output


@pytest.mark.parametrize(
    ("without", "needs"),
    [
        (["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"], "CAP_CHOWN, CAP_FOWNER, CAP_SETGID, CAP_SETUID"),
        (
            ["unshare", "--user", "--map-root-user", "--"],
            f"a namespace that has uid {NAMELESS}, a namespace that has gid {NAMELESS}",
        ),
    ],
    ids=["no-capability", "one-user"],
)
def test_a_root_that_cannot_become_anybody_else_does_not_start_and_says_what_is_missing(
    tmp_path: Path, without: list[str], needs: str
) -> None:
    with punchd(tmp_path, prefix=without) as daemon:
        assert daemon.wait() == 78
        begin = f"punchd: become uid {NAMELESS}: that needs {needs}; another user, or root: --user NAME"
        assert daemon.output.splitlines()[-1] == begin
        assert not daemon.path.exists()


def test_a_number_that_somebody_has_is_not_taken(tmp_path: Path) -> None:
    somebody = f'("ann", "x", {NAMELESS}, {NAMELESS}, "", "/", "/bin/sh")'
    program = WITH_USER.replace("pwd.getpwnam", f"pwd.getpwuid = lambda uid: pwd.struct_passwd({somebody})\nunused")
    with punchd(tmp_path, command=[sys.executable, "-c", program]) as daemon:
        assert daemon.wait() == 78
        start = (
            f"punchd: there is no user _punchd, and uid {NAMELESS} is ann's; make a user for punchd: useradd --system"
        )
        assert daemon.output.startswith(start)


def test_only_root_becomes_another_user(tmp_path: Path) -> None:
    prefix = ["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--"]
    with punchd(tmp_path, "--user", "root", prefix=prefix) as daemon:
        assert daemon.wait() == 78
        assert daemon.output == f"punchd: user root: only root can become another user, and this is uid {UID}\n"


def test_after_the_drop_nothing_of_its_own_is_read_any_more(tmp_path: Path) -> None:
    """The checkout may lie in a home that only its owner can enter."""
    late = tmp_path / "late"
    late.touch()
    late.chmod(0o666)
    program = f"""
import os, sys
log = os.open({str(late)!r}, os.O_WRONLY | os.O_APPEND)
def note(event, given):
    if event == "open" and str(given[0]).endswith((".py", ".pyc", ".so")) and os.geteuid():
        os.write(log, (str(given[0]) + "\\n").encode())
sys.addaudithook(note)
{WITH_USER}"""
    traces = writable(tmp_path / "traces")
    os.chown(traces, UID, GID)
    with (
        quiet_namespace() as start,
        punchd(
            tmp_path, "--techniques", "udp,tcp-nutss,tcp-syni,tcp-repair", "--trace", str(traces),
            starter=start, command=[sys.executable, "-c", program],
        ) as daemon,
        daemon.ready().talk() as talk,
    ):  # fmt: skip
        for technique in ("udp", "tcp-nutss", "tcp-syni", "tcp-repair"):
            talk.send(f"initiate|a|{technique}|203.0.113.7|40000|public=198.51.100.2;timeout=1000")
            talk.until("error|a|timeout|")
        assert list(traces.iterdir())
    assert late.read_text() == ""


def test_by_hand_with_a_service_user_it_becomes_that_user_for_good(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    with punchd(tmp_path, "--group", "54399", command=[sys.executable, "-c", WITH_USER]) as daemon:
        daemon.ready()
        for status in threads(daemon):
            assert capabilities(status) == {"CapInh": 0, "CapPrm": TWO, "CapEff": TWO, "CapBnd": TWO, "CapAmb": 0}
            assert status["NoNewPrivs"] == "1"
            assert status["Uid"].split() == [str(UID)] * 4
            assert status["Gid"].split() == [str(GID)] * 4
            assert status["Groups"] == ""
        assert Path(f"/proc/{daemon.pid}/fd").stat().st_uid == 0, "not dumpable: /proc/PID is root's"
        found = daemon.path.lstat()
        assert (found.st_uid, found.st_gid) == (UID, 54399)
        daemon.process.terminate()
        assert daemon.wait() == 0
        assert not daemon.path.exists(), "the service user could remove it from a sticky directory"


def test_an_attempt_works_with_what_is_left(tmp_path: Path) -> None:
    """Binding a port, asking the routing table and sending need none of what was dropped."""
    with (
        quiet_namespace() as start,
        punchd(tmp_path, starter=start, command=[sys.executable, "-c", WITH_USER]) as daemon,
        ExitStack() as stack,
    ):
        talk = stack.enter_context(daemon.ready().talk())
        talk.send("initiate|a|udp|203.0.113.7|40000|public=198.51.100.2")
        talk.until("progress|a|1|udp|relay|")


def test_a_socket_left_by_the_service_user_is_replaced_by_the_next_start(tmp_path: Path) -> None:
    open_to_all(tmp_path)
    command = [sys.executable, "-c", WITH_USER]
    with punchd(tmp_path, command=command) as daemon:
        daemon.ready()
        daemon.process.kill()
        daemon.wait()
        assert daemon.path.lstat().st_uid == UID
    with punchd(tmp_path, command=command) as daemon:
        daemon.ready()


def test_a_user_that_cannot_be_become_is_one_line_and_78(tmp_path: Path) -> None:
    prefix = ["setpriv", "--bounding-set=-setuid", "--"]
    with punchd(tmp_path, prefix=prefix, command=[sys.executable, "-c", WITH_USER]) as daemon:
        assert daemon.wait() == 78
        assert daemon.output.splitlines()[-1] == (
            "punchd: become _punchd: that needs CAP_SETUID; another user, or root: --user NAME"
        )
        assert not daemon.path.exists()


# --- with less ------------------------------------------------------------------------------------------------------


def test_without_any_capability_it_starts_and_offers_what_needs_none(tmp_path: Path) -> None:
    prefix = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--"]
    with punchd(tmp_path, "--user", "root", prefix=prefix) as daemon:
        with daemon.ready().talk() as talk:
            talk.send("hello|1")
            assert talk.line().startswith("ok|-|hello|1|udp|")
        assert capabilities(dict(daemon.status()))["CapEff"] == 0


def test_as_an_ordinary_user_it_starts_and_offers_what_needs_none(tmp_path: Path) -> None:
    directory = tmp_path / "own"
    directory.mkdir()
    os.chown(directory, UID, GID)
    open_to_all(tmp_path)
    prefix = ["setpriv", f"--reuid={UID}", f"--regid={GID}", "--clear-groups", "--"]
    with punchd(directory, prefix=prefix) as daemon:
        with daemon.ready().talk() as talk:
            talk.send("hello|1")
            assert talk.line().startswith("ok|-|hello|1|udp|")
        assert daemon.path.lstat().st_uid == UID


def test_a_technique_that_needs_more_is_left_out_and_the_capability_is_named(tmp_path: Path) -> None:
    environment = installed(tmp_path, "CAPABILITY.NET_RAW | CAPABILITY.NET_ADMIN")
    options = ("--techniques", "greedy,udp")
    with punchd(tmp_path, *options, env=environment) as daemon, daemon.ready().talk() as talk:
        talk.send("hello|1")
        assert talk.line().split("|")[4] == "greedy,udp", "as root it has what it needs"
    prefix = ["setpriv", "--bounding-set=-net_raw", "--inh-caps=-all", "--"]
    with punchd(tmp_path, *options, env=environment, prefix=prefix) as daemon:
        with daemon.ready().talk() as talk:
            talk.send("hello|1", "initiate|a|greedy|203.0.113.7|40000")
            assert talk.line().split("|")[4] == "udp"
            assert talk.line() == "error|a|no-privilege|no technique can be used: greedy needs CAP_NET_RAW"
        assert "technique greedy cannot be used: it needs CAP_NET_RAW" in daemon.output


def test_when_no_technique_can_be_used_it_says_why_and_does_not_start(tmp_path: Path) -> None:
    environment = installed(tmp_path, "CAPABILITY.NET_ADMIN")
    prefix = ["setpriv", "--bounding-set=-all,+setuid,+setgid,+chown,+fowner", "--inh-caps=-all", "--"]
    with punchd(tmp_path, "--techniques", "greedy", env=environment, prefix=prefix) as daemon:
        assert daemon.wait() == 78
        assert "technique greedy cannot be used: it needs CAP_NET_ADMIN" in daemon.output
        assert daemon.output.splitlines()[-1] == "punchd: techniques: none can be used without more privileges"
        assert not daemon.path.exists()


def installed(directory: Path, needs: str) -> dict[str, str]:
    """The environment of a program for which a technique `greedy` is installed."""
    package = directory / "greedy-1.dist-info"
    package.mkdir()
    (package / "METADATA").write_text("Metadata-Version: 2.1\nName: greedy\nVersion: 1\n")
    (package / "entry_points.txt").write_text("[punchd.techniques]\ngreedy = greedy:Greedy\n")
    (directory / "greedy.py").write_text(
        "from punchd.technique import Capability as CAPABILITY\n"
        "class Greedy:\n"
        "    name, number, protocol = 'greedy', 200, 'tcp'\n"
        f"    needs = {needs}\n"
        "    is_reversible = False\n"
        "    def plan(self, facts): return facts\n"
        "    async def initiate(self, plan, kit): raise NotImplementedError\n"
        "    async def respond(self, plan, offer, kit): raise NotImplementedError\n"
    )
    return {**os.environ, "PYTHONPATH": str(directory)}


# --- the stages -----------------------------------------------------------------------------------------------------


def test_what_drop_leaves_is_not_dumpable_and_cannot_be_extended() -> None:
    found = dropped()
    assert found["can_drop"] == "True"
    assert found["dumpable"] == "0"
    assert found["held"] == "Capability.NET_RAW|NET_ADMIN"
    assert capabilities(found) == {"CapInh": 0, "CapPrm": TWO, "CapEff": TWO, "CapBnd": TWO, "CapAmb": 0}
    assert found["NoNewPrivs"] == "1"


@pytest.mark.parametrize("ids", [f"{UID}, {UID}, 0", f"0, {UID}, {UID}", f"{UID}, 0, 0"])
def test_no_real_or_saved_user_is_left_to_go_back_to(ids: str) -> None:
    """As a set-user-ID program would start it, or one that became another user half-way."""
    program = f"import os; os.setresgid({ids}); os.setresuid({ids})\n{DROP}\nprint('Now:', *os.getresuid())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "failed" not in done.stdout
    assert len(set(done.stdout.splitlines()[-1].split()[1:])) == 1


def test_roots_groups_do_not_stay() -> None:
    done = subprocess.run(
        ["setpriv", "--groups=4,27", "--", sys.executable, "-c", DROP], capture_output=True, text=True, check=True
    )
    assert "Groups:\t \n" in done.stdout


def test_what_an_ordinary_user_has_too_much_goes_as_well() -> None:
    keep = "-all,+net_raw,+net_admin,+sys_admin,+dac_override"
    user = (f"--reuid={UID}", f"--regid={GID}", "--clear-groups")
    found = dropped(*user, f"--inh-caps={keep}", f"--ambient-caps={keep}", f"--bounding-set={keep}")
    assert "failed" not in found
    assert {name: capabilities(found)[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {
        "CapInh": 0,
        "CapPrm": TWO,
        "CapEff": TWO,
        "CapAmb": 0,
    }
    assert found["NoNewPrivs"] == "1"


def test_what_could_not_be_dropped_is_named_and_it_does_not_run(tmp_path: Path) -> None:
    """No kernel refuses to take capabilities away; so here it is made to say that it has not."""
    stubborn = "from punchd.kernel import privileges; privileges._let_go = lambda *_: None\n"
    command = [sys.executable, "-c", stubborn + WITH_USER]
    with punchd(tmp_path, command=command) as daemon:
        assert daemon.wait() == 78
        assert daemon.output.splitlines()[-1].startswith(
            "punchd: more privileges are left than punchd needs: CapPrm 0x"
        )
        assert not daemon.path.exists()


def test_with_nothing_to_drop_it_asks_for_no_capability_and_no_user(tmp_path: Path) -> None:
    """A service manager's filter of system calls may kill for the asking."""
    program = (
        "import ctypes, os\nfrom punchd.kernel import privileges\n"
        "def never(*_): raise SystemExit('asked')\n"
        "privileges._let_go = os.setgroups = os.setresuid = os.setresgid = never\n"
        "privileges.drop(None)\nprint(ctypes.CDLL(None).prctl(39, 0, 0, 0, 0), ctypes.CDLL(None).prctl(3, 0, 0, 0, 0))"
    )
    keep = "-all,+net_raw,+net_admin"
    user = (f"--reuid={UID}", f"--regid={GID}", "--clear-groups", f"--inh-caps={keep}", f"--ambient-caps={keep}")
    words = ["setpriv", *user, f"--bounding-set={keep}", "--", sys.executable, "-c", program]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    assert done.stdout == "1 0\n"


def test_a_root_that_lacks_the_right_to_drop_from_the_bounding_set_goes_as_far_down_as_it_can() -> None:
    """As in a container without CAP_SETPCAP; no_new_privs then keeps the rest away."""
    found = dropped("--bounding-set=-setpcap")
    assert "failed" not in found
    assert {name: capabilities(found)[name] for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")} == {
        "CapInh": 0,
        "CapPrm": TWO,
        "CapEff": TWO,
        "CapAmb": 0,
    }
    assert found["NoNewPrivs"] == "1"


@pytest.mark.parametrize(("without", "left"), [("net_raw", 1 << 12), ("net_admin", 1 << 13)])
def test_a_capability_that_was_not_there_is_not_asked_for(without: str, left: int) -> None:
    found = dropped(f"--bounding-set=-{without}")
    assert "failed" not in found
    assert capabilities(found) == {"CapInh": 0, "CapPrm": left, "CapEff": left, "CapBnd": left, "CapAmb": 0}


def test_with_nothing_to_drop_nothing_is_dropped() -> None:
    assert dropped("--bounding-set=-all", "--inh-caps=-all")["can_drop"] == "False"
    keep = "-all,+net_raw,+net_admin"
    assert dropped(f"--bounding-set={keep}", "--inh-caps=-all")["can_drop"] == "False"
