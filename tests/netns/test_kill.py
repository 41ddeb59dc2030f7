"""kill -9 at any moment: of a daemon and of an application, in the middle of an attempt between two NATs.

What must hold afterwards: nothing of the dead one stays but its socket's path; the next start replaces that and works
at once; the other side ends within its own timeout.

Each moment is a delay from a list that is drawn once with a fixed seed, so that a failure can be repeated.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.netns.daemons import HANG_S, Punchd, Talk, punchd, until

pytestmark = pytest.mark.netns

TIMEOUT_S = 2
OVERTIME_S = 2  # §4
SLACK_S = 3  # for a busy machine
_RANDOM = random.Random(20)
# An attempt takes about 0.15 s here. Half of the moments run always, the others with --long.
MOMENTS_S = [
    pytest.param(round(_RANDOM.uniform(0, 0.25), 4), marks=[pytest.mark.long] if index % 2 else [])
    for index in range(12)
]


@pytest.fixture(name="laboratory", scope="module")
def _laboratory() -> Iterator[Laboratory]:
    wan = Link(delay_s=0.01)
    sites = [Site("a", KINDS["apdf"], wan=wan), Site("b", KINDS["apdf"], wan=wan)]
    with Laboratory(sites) as laboratory:
        yield laboratory


def daemon(laboratory: Laboratory, name: str, directory: Path, techniques: str = "udp") -> Punchd:
    host = laboratory.site(name).host
    words = [word for server in laboratory.stun for word in ("--stun", server)] + ["--techniques", techniques]
    return punchd(directory, *words, "--log-level", "error", starter=host.popen, name=name)


def inhabitants(host: Host) -> set[int]:
    """The processes that live in a host's namespace."""
    found = set()
    for name in filter(str.isdigit, os.listdir("/proc")):
        with suppress(OSError):
            if os.path.samefile(f"/proc/{name}/ns/net", host.path):
                found.add(int(name))
    return found


@dataclass
class Side:
    """One application: its connection, its verdict, and when that came."""

    talk: Talk
    is_initiator: bool
    began_at: float = 0.0
    verdict: str = ""
    ended_at: float = 0.0
    known: bool = field(default=False)

    def take(self, line: str, other: Side) -> None:
        words = line.split("|")
        if words[0] == "progress" and words[4] == "relay":
            with suppress(OSError):
                other.hear(words[5])
        elif words[0] in ("ok", "error") and words[1] == "x":
            self.verdict, self.ended_at = line, time.monotonic()

    def hear(self, token: str) -> None:
        if not self.is_initiator and not self.known:
            self.began_at = time.monotonic()
            token += f"|timeout={TIMEOUT_S * 1000}"
        self.known = True
        self.talk.send(f"respond|x|{token}")


def play(
    initiator: Side,
    responder: Side,
    peer: str,
    kill: Callable[[], None],
    after_s: float,
    *,
    technique: str = "udp",
    lport: int = 40000,
) -> None:
    """Begin an attempt, relay all tokens, kill something after that time, go on until nobody can say more."""
    initiator.began_at = responder.began_at = time.monotonic()
    initiator.talk.send(f"initiate|x|{technique}|{peer}|40000|timeout={TIMEOUT_S * 1000};lport={lport}")
    killed = False
    open_sides = {initiator.talk.socket: initiator, responder.talk.socket: responder}
    while open_sides:
        elapsed = time.monotonic() - initiator.began_at
        if not killed and elapsed >= after_s:
            kill()
            killed = True
        assert elapsed < HANG_S
        if killed and elapsed > TIMEOUT_S + OVERTIME_S + SLACK_S:
            break
        if killed and all(side.verdict or not side.known for side in open_sides.values()):
            break
        patience = 0.05 if killed else max(0.0, after_s - elapsed)
        readable, _, _ = select.select(list(open_sides), [], [], patience)
        for item in readable:
            side = open_sides[item]
            try:
                while True:
                    side.take(side.talk.line(0), responder if side is initiator else initiator)
            except TimeoutError:
                continue
            except EOFError:
                del open_sides[item]


def assert_ended_in_time(side: Side) -> None:
    assert side.verdict, "the other side never ended"
    assert side.ended_at - side.began_at <= TIMEOUT_S + OVERTIME_S + SLACK_S


@pytest.mark.parametrize("victim", ["a", "b"])
@pytest.mark.parametrize("after_s", MOMENTS_S)
def test_a_daemon_that_is_killed_leaves_its_socket_only_and_the_next_start_works_at_once(
    laboratory: Laboratory, tmp_path: Path, victim: str, after_s: float
) -> None:
    host = laboratory.site(victim).host
    peer = laboratory.site("b").host.public_ipv4
    before = inhabitants(host)
    with ExitStack() as owned:
        daemons = {name: owned.enter_context(daemon(laboratory, name, tmp_path)) for name in "ab"}
        sides = {}
        for name, running in daemons.items():
            talk = owned.enter_context(running.ready().talk())
            sides[name] = Side(talk, name == "a", known=name == "a")
        dead = daemons[victim]

        def kill() -> None:
            os.kill(dead.pid, signal.SIGKILL)
            dead.wait()

        play(sides["a"], sides["b"], peer, kill, after_s)
        survivor = sides["b" if victim == "a" else "a"]
        if survivor.known:
            assert_ended_in_time(survivor)
        if all(side.verdict.startswith("ok|") for side in sides.values()):
            assert_connected(sides["a"], sides["b"])
        for side in sides.values():
            side.talk.close()
        assert dead.path.is_socket(), "it stays until the next start"
        until(lambda: inhabitants(host) == before, "nothing of it lives on")
        again = owned.enter_context(daemon(laboratory, victim, tmp_path))
        talk = owned.enter_context(again.ready().talk())
        other = daemons["b" if victim == "a" else "a"]
        fresh = {
            victim: Side(talk, victim == "a"),
            other_name(victim): Side(owned.enter_context(other.talk()), victim == "b"),
        }
        fresh["a"].known = True
        play(fresh["a"], fresh["b"], peer, lambda: None, TIMEOUT_S)
        for side in fresh.values():
            assert side.verdict.startswith("ok|x|udp|"), side.verdict


def assert_connected(one: Side, other: Side) -> None:
    """Sockets that were handed over are the applications' and outlive the daemon."""
    with socket.socket(fileno=one.talk.fds.popleft()) as left, socket.socket(fileno=other.talk.fds.popleft()) as right:
        for near, far in ((left, right), (right, left)):
            near.send(b"still here")
            far.settimeout(HANG_S)
            assert far.recv(100) == b"still here"


def other_name(name: str) -> str:
    return "b" if name == "a" else "a"


def udp_ports(host: Host) -> set[str]:
    """The local UDP ports that are bound in a host."""
    with host.entered():
        lines = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
    return {str(int(line.split()[1].partition(":")[2], 16)) for line in lines}


APPLICATION = """
import sys
from pathlib import Path
from tests.netns.daemons import Talk
talk = Talk(Path(sys.argv[1]))
for line in sys.argv[2:]:
    talk.send(line)
while True:
    print(talk.line(), flush=True)
"""


@pytest.mark.parametrize("after_s", MOMENTS_S)
def test_an_application_that_is_killed_leaves_nothing_in_its_daemon_and_the_other_side_ends(
    laboratory: Laboratory, tmp_path: Path, after_s: float
) -> None:
    peer = laboratory.site("b").host.public_ipv4
    with ExitStack() as owned:
        near = owned.enter_context(daemon(laboratory, "a", tmp_path)).ready()
        far = owned.enter_context(daemon(laboratory, "b", tmp_path)).ready()
        idle = sorted(near.descriptors())
        responder = Side(owned.enter_context(far.talk()), False)
        command = [sys.executable, "-c", APPLICATION, str(near.path)]
        lines = [f"initiate|x{number}|udp|{peer}|40000" for number in range(7)] + ["probe|p|udp"]
        with subprocess.Popen([*command, *lines], stdout=subprocess.PIPE, text=True) as application:
            assert application.stdout is not None
            token = ""
            while not token:
                words = application.stdout.readline().strip().split("|")
                token = words[5] if words[0] == "progress" and words[4] == "relay" else ""
            responder.hear(token)
            time.sleep(after_s)
            application.kill()
        until(lambda: sorted(near.descriptors()) == idle, f"{near.descriptors()} is {idle} again")
        nobody = Side(owned.enter_context(near.talk()), True)
        while not responder.verdict:
            responder.take(responder.talk.line(TIMEOUT_S + OVERTIME_S + SLACK_S), nobody)
        assert_ended_in_time(responder)
        assert responder.verdict.startswith(("error|x|timeout|", "error|x|peer-abort|", "ok|x|"))
        with near.talk() as talk:
            talk.send(*(f"initiate|y{number}|udp|{peer}|40000" for number in range(8)))
            answers = [talk.line() for _ in range(8)]
            assert not [answer for answer in answers if "busy" in answer], "its slots are free"


def test_an_application_that_is_killed_between_ok_and_reading_it_leaves_no_socket_open(
    laboratory: Laboratory, tmp_path: Path
) -> None:
    """Race rule 4: the descriptor in flight dies with its reader."""
    peer = laboratory.site("b").host.public_ipv4
    host = laboratory.site("a").host
    with ExitStack() as owned:
        near = owned.enter_context(daemon(laboratory, "a", tmp_path)).ready()
        far = owned.enter_context(daemon(laboratory, "b", tmp_path)).ready()
        sides = (Side(near.talk(), True, known=True), Side(owned.enter_context(far.talk()), False))
        sides[0].talk.send(f"initiate|x|udp|{peer}|40000|lport=40000")
        sides[0].take(sides[0].talk.until("progress|x|1|udp|relay|"), sides[1])
        sides[1].take(sides[1].talk.until("progress|x|1|udp|relay|"), sides[0])
        while not sides[1].verdict:
            sides[1].take(sides[1].talk.line(), sides[0])
        assert sides[1].verdict.startswith("ok|")
        until(lambda: not [name for name in near.descriptors() if name in udp_inodes(host)], "the daemon let go of it")
        assert "40000" in udp_ports(host), "it is in flight"
        sides[0].talk.close()
        until(lambda: "40000" not in udp_ports(host), "it is closed with the connection")


def udp_inodes(host: Host) -> set[str]:
    """The names that UDP sockets of a host have in /proc/PID/fd."""
    with host.entered():
        lines = Path("/proc/thread-self/net/udp").read_text().splitlines()[1:]
    return {f"socket:[{line.split()[9]}]" for line in lines}


def test_tokens_of_a_daemon_that_was_restarted_are_harmless(laboratory: Laboratory, tmp_path: Path) -> None:
    """Race rule 5: the responder's answer comes to a daemon that has forgotten the question."""
    peer = laboratory.site("b").host.public_ipv4
    with ExitStack() as owned:
        near = owned.enter_context(daemon(laboratory, "a", tmp_path)).ready()
        far = owned.enter_context(daemon(laboratory, "b", tmp_path)).ready()
        talk = owned.enter_context(near.talk())
        talk.send(f"initiate|x|udp|{peer}|40000")
        offer = talk.until("progress|x|1|udp|relay|").split("|")[5]
        near.process.kill()
        near.wait()
        with pytest.raises(EOFError):
            talk.line()
        again = owned.enter_context(daemon(laboratory, "a", tmp_path)).ready()
        responder = owned.enter_context(far.talk())
        responder.send(f"respond|x|{offer}|timeout=1000")
        answer = responder.until("progress|x|1|udp|relay|").split("|")[5]
        talk = owned.enter_context(again.talk())
        talk.send(f"respond|x|{answer}")
        assert talk.line().startswith("error|x|bad-token|")
        assert responder.until("error|x|").startswith("error|x|timeout|")
