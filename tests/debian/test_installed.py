"""The packages on a booted Debian 12 and a booted Debian 13: what runs, as whom, and what it survives."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.debian import packages
from tests.debian.machine import Machine

pytestmark = [
    pytest.mark.long,
    pytest.mark.netns,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(packages.lacking()), reason=packages.lacking() or "-"),
]

SERVICES = ("punchd", "punchd-rendezvous", "punchd-broker")
# An application: says hello again and again until the file /run/enough is there, then how often it was answered, and
# how often not.
ASKING = """
import os, sys, time
from punchd.client.blocking import Daemon
answered, failed, waits = 0, [], []
while not os.path.exists("/run/enough"):
    began = time.monotonic()
    try:
        with Daemon.connect() as daemon:
            answered += 1
    except Exception as error:
        failed.append(repr(error))
    waits.append(time.monotonic() - began)
print(answered, len(failed), round(max(waits), 2), failed[:3])
"""
WHAT_CAN_BE_USED = """
import os, sys
from punchd.client.blocking import Daemon
with Daemon.connect() as daemon:
    print(*daemon.greeting.techniques)
"""
MAKE_CERTIFICATE = (
    "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj /CN=localhost -days 2 "
    "-keyout /etc/punchd/test.key -out /etc/punchd/test.pem"
)
# As the proxy that did TLS would.
ASKING_THE_BROKER = """
from urllib.request import Request, urlopen
headers = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.1"}
for path in ("/api/health", "/", "/spec/openapi.json"):
    print(urlopen(Request(f"http://127.0.0.1:8787{path}", headers=headers), timeout=20).status)
"""


@pytest.fixture(scope="module", params=packages.SUITES)
def machine(request: pytest.FixtureRequest) -> Iterator[Machine]:
    """A machine with all packages."""
    with Machine(request.param, f"punchd-{request.param}") as booted:
        packages.install(booted, packages.built())
        yield booted


def as_user(machine: Machine, user: str, program: str, *, check: bool = True) -> str:
    groups = ["--init-groups", f"--reuid={user}", f"--regid={user}"]
    return machine.run("setpriv", *groups, "/usr/bin/python3", "-c", program, check=check).strip()


def add_user(machine: Machine, name: str, *groups: str) -> None:
    machine.run("useradd", "--user-group", *(["--groups", ",".join(groups)] if groups else []), name)


def answers(machine: Machine, url: str) -> dict[str, object]:
    program = f"import urllib.request; print(urllib.request.urlopen({url!r}, timeout=20).read().decode())"
    said: dict[str, object] = json.loads(machine.run("python3", "-c", program))
    return said


def test_all_services_are_active_and_enabled(machine: Machine) -> None:
    for name in (*(f"{service}.service" for service in SERVICES), "punchd.socket"):
        assert machine.property(name, "ActiveState") == "active", machine.run("systemctl", "status", name, check=False)
        assert machine.run("systemctl", "is-enabled", name).strip() == "enabled"
    assert machine.property("punchd-rendezvous.socket", "ActiveState") == "inactive"
    assert machine.property("punchd-broker.socket", "ActiveState") == "inactive"


def test_the_daemon_has_two_capabilities_and_the_servers_have_none(machine: Machine) -> None:
    masks = {"punchd": 1 << 12 | 1 << 13, "punchd-rendezvous": 0, "punchd-broker": 0}
    for service, mask in masks.items():
        pid = machine.property(f"{service}.service", "MainPID")
        status = dict(
            line.split(":\t", 1) for line in machine.run("cat", f"/proc/{pid}/status").splitlines() if ":\t" in line
        )
        for name in ("CapPrm", "CapEff", "CapBnd", "CapAmb"):
            assert int(status[name], 16) == mask, f"{service}: {name} {status[name]}"
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        assert machine.run("id", "-nu", status["Uid"].split()[0]).strip() == f"_{service}"


def test_inside_the_sandbox_every_technique_of_the_default_can_be_used(machine: Machine) -> None:
    add_user(machine, "alice", "punchd")
    assert as_user(machine, "alice", WHAT_CAN_BE_USED).split() == ["tcp-syni", "tcp-nutss", "udp"]


def test_only_the_group_may_ask(machine: Machine) -> None:
    add_user(machine, "mallory")
    assert "Permission denied" in as_user(machine, "mallory", WHAT_CAN_BE_USED, check=False)


def test_the_servers_answer_and_read_their_certificate_again(machine: Machine) -> None:
    assert answers(machine, "http://127.0.0.1:5025/health")["ok"] is True
    assert machine.run("python3", "-c", ASKING_THE_BROKER).split() == ["200"] * 3
    for service in ("punchd-rendezvous", "punchd-broker"):
        machine.run("systemctl", "reload", service)
        assert machine.property(f"{service}.service", "NRestarts") == "0"
        assert machine.property(f"{service}.service", "ActiveState") == "active"


@pytest.mark.parametrize(("name", "path"), [("rendezvous", "/health"), ("broker", "/api/health")])
def test_a_server_without_privileges_serves_port_443_from_its_socket_unit(
    machine: Machine, name: str, path: str
) -> None:
    file, kept, owner = f"/etc/punchd/{name}.toml", f"/root/{name}.toml", f"_punchd-{name}"
    machine.run("cp", file, kept)
    for program in MAKE_CERTIFICATE, f"chown {owner} /etc/punchd/test.*":
        machine.run("sh", "-c", program)
    lines = ['tls-cert = "/etc/punchd/test.pem"', 'tls-key = "/etc/punchd/test.key"']
    lines += ['public-url = "https://localhost"'] if name == "broker" else []
    machine.path(file).write_text("\n".join(lines))
    machine.run("systemctl", "stop", f"punchd-{name}.service")  # a socket unit does not start while its service runs
    machine.run("systemctl", "start", f"punchd-{name}.socket", f"punchd-{name}.service")
    program = (
        "import ssl; from urllib.request import urlopen; context = ssl._create_unverified_context(); "
        f"print(urlopen('https://127.0.0.1{path}', timeout=20, context=context).status)"
    )
    assert machine.run("python3", "-c", program).strip() == "200"
    machine.run("systemctl", "stop", f"punchd-{name}.socket", f"punchd-{name}.service")
    machine.run("cp", kept, file)
    machine.run("sh", "-c", "rm /etc/punchd/test.*")
    machine.run("systemctl", "start", f"punchd-{name}.service")


def test_systemd_finds_no_fault_in_the_units_and_little_exposed(machine: Machine) -> None:
    for service, most in {"punchd": 2.0, "punchd-rendezvous": 1.5, "punchd-broker": 1.5}.items():
        assert machine.run("systemd-analyze", "verify", "--man=no", f"{service}.service").strip() == ""
        said = machine.run("systemd-analyze", "security", f"--threshold={int(most * 10)}", f"{service}.service")
        assert float(said.rsplit("Overall exposure level for", 1)[1].split()[1]) <= most


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_killed_comes_back(machine: Machine, service: str) -> None:
    before = int(machine.property(f"{service}.service", "NRestarts"))
    machine.run("systemctl", "kill", "--signal=KILL", f"{service}.service")
    machine.until("systemctl", "show", "--value", "--property=NRestarts", f"{service}.service", says=str(before + 1))
    machine.until("systemctl", "is-active", f"{service}.service", says="active")


@pytest.mark.parametrize("service", SERVICES)
def test_a_service_that_is_stuck_is_noticed_by_the_watchdog(machine: Machine, service: str) -> None:
    place = f"/run/systemd/system/{service}.service.d"
    machine.run("mkdir", "-p", place)
    machine.run("sh", "-c", f"printf '[Service]\\nWatchdogSec=3s\\n' > {place}/short.conf")
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", f"{service}.service")
    before = int(machine.property(f"{service}.service", "NRestarts"))
    machine.run("sleep", "7")
    assert machine.property(f"{service}.service", "NRestarts") == str(before), "it was killed although it was well"
    machine.run("systemctl", "kill", "--kill-whom=main", "--signal=STOP", f"{service}.service")
    machine.until("systemctl", "show", "--value", "--property=NRestarts", f"{service}.service", says=str(before + 1))
    machine.until("systemctl", "is-active", f"{service}.service", says="active")
    assert "watchdog" in machine.run("journalctl", "--unit", f"{service}.service", "--grep", "atchdog").lower()
    machine.run("rm", "-r", place)
    machine.run("systemctl", "daemon-reload")
    machine.run("systemctl", "restart", f"{service}.service")


def test_settings_that_are_wrong_are_one_line_and_no_second_try(machine: Machine) -> None:
    machine.run("cp", "/etc/punchd/rendezvous.toml", "/root/right.toml")
    machine.run("sh", "-c", "echo 'nonsense = 1' >> /etc/punchd/rendezvous.toml")
    machine.run("systemctl", "restart", "punchd-rendezvous", check=False)
    assert machine.property("punchd-rendezvous.service", "ActiveState") == "failed"
    assert machine.property("punchd-rendezvous.service", "ExecMainStatus") == "78"
    assert machine.property("punchd-rendezvous.service", "NRestarts") == "0"
    machine.run("cp", "/root/right.toml", "/etc/punchd/rendezvous.toml")
    machine.run("systemctl", "restart", "punchd-rendezvous")


def test_a_restart_of_the_daemon_keeps_who_asks_waiting_and_loses_nobody(machine: Machine) -> None:
    machine.run("rm", "-f", "/run/enough")
    asking = machine.start("python3", "-c", ASKING, stdout=-1)
    for _ in range(3):
        machine.run("sleep", "0.5")
        machine.run("systemctl", "restart", "punchd.service")
    machine.run("touch", "/run/enough")
    said, _ = asking.communicate(timeout=60)
    answered, failed, *_ = said.split()
    assert int(answered) > 10, said
    assert int(failed) == 0, said


def test_an_upgrade_loses_no_request(machine: Machine, tmp_path: Path) -> None:
    machine.run("rm", "-f", "/run/enough")
    asking = machine.start("python3", "-c", ASKING, stdout=-1)
    before = machine.property("punchd.service", "MainPID")
    packages.install(machine, packages.later(tmp_path))
    assert machine.property("punchd.service", "MainPID") != before
    machine.run("touch", "/run/enough")
    said, _ = asking.communicate(timeout=60)
    answered, failed, *_ = said.split()
    assert int(answered) > 10, said
    assert int(failed) == 0, said
    test_all_services_are_active_and_enabled(machine)


def test_after_a_reboot_everything_runs(machine: Machine) -> None:
    machine.reboot()
    test_all_services_are_active_and_enabled(machine)
    assert machine.run("readlink", "/tmp/punchd.socket").strip() == "/run/punchd/punchd.socket"


def test_the_manual_pages_and_completions_are_there(machine: Machine) -> None:
    for page in (
        "man1/punch.1",
        "man5/punchd.toml.5",
        "man7/punchd-protocol.7",
        "man8/punchd.8",
        "man8/punchd-broker.8",
    ):
        machine.run("test", "-s", f"/usr/share/man/{page}.gz")
    for program in ("punch", *SERVICES):
        machine.run("bash", "-n", f"/usr/share/bash-completion/completions/{program}")
        assert program in machine.run(program, "--version")


@pytest.mark.parametrize("suite", packages.SUITES)
def test_a_purge_leaves_nothing_but_users(suite: str) -> None:
    with Machine(suite, f"punchd-purge-{suite}") as machine:
        before = _files(machine)
        packages.install(machine, packages.built())
        machine.run("apt-get", "remove", "--yes", *packages.NAMES)
        for service in SERVICES:
            assert machine.property(f"{service}.service", "ActiveState") == "inactive"
        machine.run("test", "!", "-e", "/run/punchd/punchd.socket")
        machine.run("test", "-e", "/etc/punchd/punchd.toml")
        machine.run("test", "-e", "/etc/punchd/broker.secret")
        machine.run("apt-get", "purge", "--yes", *packages.NAMES)
        assert [file for file in sorted(_files(machine) - before) if "punch" in file] == []


def _files(machine: Machine) -> set[str]:
    ignored = ["-path", "/srv", "-prune", "-o", "-path", "/tmp/systemd-private-*", "-prune", "-o"]
    return set(
        machine.run("find", "/etc", "/usr", "/var", "/run", "/tmp", "/opt", "/srv", *ignored, "-print").splitlines()
    )
