"""A daemon that several users share, one of them hostile: what leaves the host, what the daemon uses, how others fare.

For a test and for the bench. The daemon is an ordinary user's with both capabilities, so that the kernel's guard
stands; the hostile user (`tests/hostile_user.py`) is another one, in the group that may connect; the one who measures
is root.

    a --- a-box ---.
                   core --- server          the hostile user, the daemon that he shares with the measuring one
    b --- b-box ---'                        the daemon of the measuring user's peer
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import trio

from punchd.client.trio_client import Daemon
from tests.natlab import KINDS, Host, Laboratory, Link, Site
from tests.netns.daemons import Punchd, open_to_all, punchd
from tests.pair import attempt, stun_arguments

GROUP, SERVICE, HOSTILE = 54500, 54321, 54402
PACKETS = 8  # of a round, by the policy
POLICY = f"""
[[rule]]
groups = [{GROUP}]
techniques = ["udp", "tcp-nutss", "tcp-syni"]
allow = ["203.0.113.0/24"]
deny = ["203.0.113.128/25"]
packets = {PACKETS}
"""
UNPACED = """
[limits]
requests-per-second = 100000
request-burst = 100000
user-requests-per-second = 100000
user-request-burst = 100000
user-attempts-per-second = 100000
user-attempt-burst = 100000
"""
TECHNIQUES = "udp,tcp-nutss,tcp-syni"
CAPABILITIES = ["--inh-caps=-all,+net_raw,+net_admin", "--ambient-caps=-all,+net_raw,+net_admin"]


@dataclass(slots=True)
class Scene:
    """Both hosts, both daemons."""

    laboratory: Laboratory
    near: Punchd  # the one that is shared
    far: Punchd

    @property
    def host(self) -> Host:
        return self.laboratory.site("a").host

    @property
    def own(self) -> list[str]:
        return [*self.host.ipv4_addresses, *self.host.ipv6_addresses]

    def hostile(self, seed: int, count: int = 0) -> subprocess.Popen[bytes]:
        """The hostile user's program; its end is one line of JSON."""
        user = ["setpriv", f"--reuid={HOSTILE}", f"--regid={HOSTILE}", f"--groups={GROUP}", "--bounding-set=-all"]
        program = [sys.executable, "-m", "tests.hostile_user", str(self.near.path), str(seed), str(count), *self.own]
        words = [*user, "--no-new-privs", "--", "nice", "-n", "19", *program]
        return self.host.popen(words, stdout=subprocess.PIPE)


def summary(program: subprocess.Popen[bytes]) -> dict[str, Any]:
    """What a hostile user's program did, once it has ended."""
    said, _ = program.communicate()
    assert program.returncode == 0
    found: dict[str, Any] = json.loads(said)
    return found


@contextmanager
def scene(*, paced: bool, delay_s: float = 0.0) -> Iterator[Scene]:
    """Both hosts, so far from the core each.

    `paced`: the shared daemon has its default limits; else lines are taken as fast as they come.
    """
    with tempfile.TemporaryDirectory(prefix="punchd-hostile-", dir="/tmp") as directory:
        yield from _scene(open_to_all(Path(directory)), paced, delay_s)


def _scene(directory: Path, paced: bool, delay_s: float) -> Iterator[Scene]:
    policy, settings = directory / "policy.toml", directory / "punchd.toml"
    policy.write_text(POLICY)
    settings.write_text(f'policy = "{policy}"\naccept-sockets = true\n{"" if paced else UNPACED}')
    with Laboratory([Site(name, KINDS["apdf"], wan=Link(delay_s=delay_s)) for name in "ab"]) as laboratory:
        words = [*stun_arguments(laboratory.stun), "--log-level", "warning", "--techniques", TECHNIQUES]
        user = ["setpriv", f"--reuid={SERVICE}", f"--regid={SERVICE}", f"--groups={GROUP}", *CAPABILITIES, "--"]
        shared = ["--group", str(GROUP), "--mode", "660", "--config", str(settings)]
        hosts = [laboratory.site(name).host for name in "ab"]
        with (
            punchd(directory, *words, *shared, starter=hosts[0].popen, prefix=user, name="near") as near,
            punchd(directory, *words, starter=hosts[1].popen, name="far") as far,
        ):
            yield Scene(laboratory, near.ready(), far.ready())


# --- how others fare -----------------------------------------------------------------------------------------------

WATCHERS = range(54411, 54416)
PAUSE_S = 0.015
WARM_UP_S = 2.0
UNDONE_S = 2.5  # the hostile user's attempts have a timeout of two seconds
KINDS_OF_WAITING = ("hello", "probe", "attempt")


@dataclass(slots=True)
class Fares:
    """What another user waited for, seconds: from a line to its answer, and for whole attempts that succeeded."""

    waits: dict[str, list[float]] = field(default_factory=lambda: {kind: [] for kind in KINDS_OF_WAITING})
    lost: int = 0  # attempts that did not succeed

    def quantile(self, kind: str, share: float) -> float:
        found = sorted(self.waits[kind])
        return found[min(len(found) - 1, int(share * len(found)))]


@contextmanager
def acting_as(uid: int) -> Iterator[None]:
    """This process is that user, in the group that may connect, for whoever looks at a connection made meanwhile."""
    os.setegid(GROUP)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


def ask(daemon: Punchd, uid: int, fares: Fares) -> None:
    """A fresh connection of that user, the greeting, a probe."""
    with acting_as(uid):
        talk = daemon.talk()
    with talk:
        for kind, line, start in (("hello", "hello|1", "ok|-|hello|"), ("probe", "probe|p|udp", "ok|p|probe|")):
            began = time.perf_counter()
            talk.send(line)
            answer = talk.line()
            fares.waits[kind].append(time.perf_counter() - began)
            assert answer.startswith(start), answer


async def watch(scene: Scene, fares: Fares, seconds: float) -> None:
    """Measure for so long, as several users, each within the pace that one user has: greetings, probes, attempts."""
    async with (
        Daemon.connect(str(scene.near.path), trusted_uids=frozenset({SERVICE})) as a,
        Daemon.connect(str(scene.far.path)) as b,
    ):
        until = trio.current_time() + seconds
        for number in itertools.count():
            if trio.current_time() >= until:
                return
            await trio.sleep(PAUSE_S)
            if number % 8:
                ask(scene.near, WATCHERS[number % len(WATCHERS)], fares)
                continue
            began = time.perf_counter()
            outcome = await attempt(a, b)
            if outcome.connected:
                fares.waits["attempt"].append(time.perf_counter() - began)
            else:
                fares.lost += 1
            outcome.close()


async def measure(scene: Scene, seconds: float, seed: int) -> tuple[Fares, Fares]:
    """How others fare: before and after, together so many seconds, and for as long while the hostile user is at it.

    The shared daemon has one core, all others have the rest.
    """
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(scene.near.pid, cores[:1])
    os.sched_setaffinity(0, cores[1:] or cores)
    quiet, busy = Fares(), Fares()
    try:
        await watch(scene, Fares(), WARM_UP_S)
        await watch(scene, quiet, seconds / 2)
        hostile = scene.hostile(seed)
        os.sched_setaffinity(hostile.pid, cores[1:] or cores)
        await watch(scene, Fares(), WARM_UP_S)
        await watch(scene, busy, seconds)
        hostile.terminate()
        assert summary(hostile)["answers"]
        await trio.sleep(UNDONE_S)
        await watch(scene, quiet, seconds / 2)
    finally:
        os.sched_setaffinity(0, cores)
    return quiet, busy
