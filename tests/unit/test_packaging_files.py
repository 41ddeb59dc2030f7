"""The Debian packages' files against the program: what is bundled, its licences, the units, users and commands."""

from __future__ import annotations

import configparser
import importlib.metadata
import os
import re
import shutil
import subprocess
import time
import tomllib
import zipfile
from email.parser import HeaderParser
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from punchd import __version__
from punchd.cli import users
from punchd.cli.process import EX_CONFIG
from texts import sbom
from texts.conffile import FILES

ROOT = Path(__file__).resolve().parents[2]
DEBIAN = ROOT / "packaging" / "debian"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
BUNDLED = sbom.pins((ROOT / "packaging" / "requirements.txt").read_text())
BUILD = sbom.pins((ROOT / "packaging" / "requirements-build.txt").read_text())
FROM_DEBIAN = {"cryptography", "httptools"}  # compiled; see docs/packaging.md
SERVICES = {"punchd": 2.0, "punchd-rendezvous": 1.5, "punchd-broker": 1.5}  # and the most that may be exposed

each_service = pytest.mark.parametrize("service", SERVICES)


def unit(name: str) -> configparser.RawConfigParser:
    found = configparser.RawConfigParser(strict=False, delimiters=("=",), comment_prefixes=("#",))
    found.optionxform = str  # type: ignore[assignment, method-assign]
    found.read_string((DEBIAN / name).read_text())
    return found


# --- what is bundled --------------------------------------------------------------------------------------------------


def test_what_the_program_needs_is_bundled_in_a_version_that_fits_or_comes_from_debian() -> None:
    extras = PROJECT["optional-dependencies"]
    control = (DEBIAN / "control").read_text()
    for wanted in map(Requirement, [*PROJECT["dependencies"], *extras["servers"], *extras["redis"]]):
        name = canonicalize_name(wanted.name)
        if name in FROM_DEBIAN:
            assert f"python3-{name} (>= " in control
        else:
            assert wanted.specifier.contains(BUNDLED[name]), wanted


def test_everything_that_a_bundled_library_needs_is_bundled_and_nothing_else_is() -> None:
    extras = PROJECT["optional-dependencies"]
    needed = {
        canonicalize_name(Requirement(text).name)
        for text in [*PROJECT["dependencies"], *extras["servers"], *extras["redis"]]
    } - FROM_DEBIAN
    queue = list(needed)
    while queue:
        for text in importlib.metadata.requires(queue.pop()) or ():
            wanted = Requirement(text)
            name = canonicalize_name(wanted.name)
            if (wanted.marker is None or wanted.marker.evaluate({"extra": ""})) and name not in needed:
                needed.add(name)
                queue.append(name)
    assert set(BUNDLED) == needed


@pytest.mark.parametrize("name", ["requirements.txt", "requirements-build.txt"])
def test_every_library_is_pinned_by_one_hash(name: str) -> None:
    for line in (ROOT / "packaging" / name).read_text().splitlines():
        assert re.fullmatch(r"[a-z0-9-]+==[0-9][0-9a-z.]* --hash=sha256:[0-9a-f]{64}", line), line


def test_the_licence_of_every_library_is_told() -> None:
    told = (DEBIAN / "copyright").read_text()
    for name in BUNDLED | BUILD:
        assert f"\nFiles: packaging/wheels/{name.replace('-', '_')}-*.whl\nCopyright: " in told, name
    for licence in set(re.findall(r"^License: (.*)", told, re.MULTILINE)):
        for one in re.split(" or | and ", licence):
            assert f"\nLicense: {one}\n " in told, one


def wheel(directory: Path, metadata: str) -> None:
    with zipfile.ZipFile(directory / "some_thing-1.2-py3-none-any.whl", "w") as archive:
        archive.writestr("some_thing-1.2.dist-info/METADATA", f"Metadata-Version: 2.1\nName: some-thing\n{metadata}\n")


def test_the_list_of_what_is_bundled_has_version_licence_and_hash_and_is_always_the_same(tmp_path: Path) -> None:
    wheel(tmp_path, "Version: 1.2\nLicense-Expression: MIT OR Apache-2.0")
    made = sbom.document("0", "some-thing==1.2 --hash=sha256:0\n", tmp_path)
    assert '"expression": "MIT OR Apache-2.0"' in made
    assert '"purl": "pkg:pypi/some-thing@1.2"' in made
    assert made == sbom.document("0", "some-thing==1.2 --hash=sha256:0\n", tmp_path)


@pytest.mark.parametrize(
    ("metadata", "pin", "complaint"),
    [
        ("Version: 1.2", "some-thing==1.2", "expected a licence"),
        ("Version: 1.3\nLicense: MIT", "some-thing==1.2", "expected version 1.2, got 1.3"),
        ("Version: 1.2\nLicense: MIT", "other==1.2", "expected a wheel of other"),
    ],
)
def test_a_list_of_what_is_bundled_is_complete_or_there_is_none(
    tmp_path: Path, metadata: str, pin: str, complaint: str
) -> None:
    wheel(tmp_path, metadata)
    with pytest.raises(ValueError, match=complaint):
        sbom.document("0", f"{pin} --hash=sha256:0\n", tmp_path)


# --- units, users, commands -------------------------------------------------------------------------------------------


@each_service
def test_a_unit_runs_the_command_as_its_user_with_its_file(service: str) -> None:
    (file,) = (one for one in FILES if one.program == service)
    found = unit(f"{service}.service")["Service"]
    assert found["ExecStart"] == f"/usr/sbin/{service} --config /etc/punchd/{file.name}"
    assert found["User"] == f"_{service}"
    assert f"\nu {found['User']} " in "\n" + (DEBIAN / f"{service}.sysusers").read_text()
    assert f"debian/texts/etc/{file.name} etc/punchd\n" in (DEBIAN / f"{service}.install").read_text()
    assert found["Type"] == "notify"
    assert found["WatchdogSec"] == "30s"
    assert found["RestartPreventExitStatus"] == str(EX_CONFIG)
    assert found["LimitCORE"] == "0"


def test_the_daemons_user_and_group_are_those_that_it_looks_for() -> None:
    assert unit("punchd.service")["Service"]["User"] == users.SERVICE_USER
    assert unit("punchd.socket")["Socket"]["SocketGroup"] == users.SERVICE_GROUP
    assert f"g {users.SERVICE_GROUP} -\n" in (DEBIAN / "punchd.sysusers").read_text()


@pytest.mark.skipif(shutil.which("systemd-tmpfiles") is None, reason="needs systemd-tmpfiles: apt-get install systemd")
@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
def test_the_link_in_tmp_outlives_the_cleaning_of_tmp(tmp_path: Path) -> None:
    """As on Debian 13, but after a second and not after ten days."""
    link, old = (tmp_path / "tmp" / Path(name).name for name in (unit("punchd.socket")["Socket"]["Symlinks"], "/old"))
    (tmp_path / "usr/lib/tmpfiles.d").mkdir(parents=True)
    (tmp_path / "usr/lib/tmpfiles.d/tmp.conf").write_text("q /tmp 1777 root root 1s\n")
    shutil.copy(DEBIAN / "punchd.tmpfiles", tmp_path / "usr/lib/tmpfiles.d/punchd.conf")
    (tmp_path / "tmp").mkdir()
    for one in (link, old):
        one.symlink_to(unit("punchd.socket")["Socket"]["ListenStream"])
    time.sleep(2.1)
    subprocess.run(["systemd-tmpfiles", "--clean", f"--root={tmp_path}"], check=True, capture_output=True)
    assert link.is_symlink()
    assert not old.is_symlink(), "nothing was cleaned"


def test_only_the_daemon_has_capabilities() -> None:
    for service in SERVICES:
        found = unit(f"{service}.service")["Service"]
        wanted = "CAP_NET_ADMIN CAP_NET_RAW" if service == "punchd" else ""
        assert (found["AmbientCapabilities"], found["CapabilityBoundingSet"]) == (wanted, wanted)


@each_service
@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze: apt-get install systemd")
def test_a_unit_exposes_little(service: str) -> None:
    done = subprocess.run(
        ["systemd-analyze", "security", "--offline=true", f"--threshold={int(SERVICES[service] * 10)}",
         DEBIAN / f"{service}.service"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-300:] + done.stderr


@pytest.mark.parametrize("command", PROJECT["scripts"])
def test_a_packaged_command_starts_the_same_as_that_of_the_wheel(command: str) -> None:
    lines = (ROOT / "packaging" / "bin" / command).read_text().splitlines()
    module, function = PROJECT["scripts"][command].split(":")
    assert lines[0] == "#!/usr/bin/python3 -I"  # neither the user's libraries nor the environment
    assert any(line.startswith('sys.path.insert(0, "/usr/lib/punchd")') for line in lines)
    assert any(line.startswith(f"from {module} import {function}") for line in lines)


def test_the_packages_have_the_programs_version() -> None:
    assert (DEBIAN / "changelog").read_text().startswith(f"punchd ({__version__}) ")
    assert PROJECT["version"] == __version__


def test_every_file_that_a_package_names_is_there() -> None:
    for names in [
        *DEBIAN.glob("*.install"),
        *DEBIAN.glob("*.docs"),
        *DEBIAN.glob("*.examples"),
        *DEBIAN.glob("*.manpages"),
    ]:
        for line in names.read_text().splitlines():
            source = line.split()[0]
            if source.startswith("debian/texts/man/"):
                source = f"packaging/man/{Path(source).name}.rst"
            if not source.startswith("debian/texts/"):
                assert (ROOT / source).exists(), f"{names.name}: {source}"


def test_the_daemon_is_for_every_architecture() -> None:
    stanzas = [HeaderParser().parsestr(text) for text in (DEBIAN / "control").read_text().split("\n\n")]
    assert {one["Architecture"] for one in stanzas[1:]} == {"all"}
    assert [one["Package"] for one in stanzas[1:]] == ["punchd", "python3-punchd", "punchd-rendezvous", "punchd-broker"]
