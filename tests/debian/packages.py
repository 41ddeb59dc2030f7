"""The packages that `./dev deb` has built, as they are and as an upgrade."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

from tests.debian.machine import TREES, Machine

DIST = Path(__file__).parents[2] / "dist"
NAMES = ("punchd", "python3-punchd", "punchd-rendezvous", "punchd-broker")
SUITES = ("bookworm", "trixie")
UPGRADE = "0.1.0+later"


def lacking() -> str:
    """What is missing for a test; "" if nothing is. What was built some other time is not what is to be tested."""
    if (
        "PUNCHD_DEB_TEST" not in os.environ
        or len(built()) != len(NAMES)
        or not all((TREES / suite / ".complete").exists() for suite in SUITES)
    ):
        return "needs the packages and trees to boot; run it with: ./dev deb-test"
    return ""


def built() -> list[Path]:
    return [package for name in NAMES for package in sorted(DIST.glob(f"{name}_*_all.deb"))]


def copy_to(machine: Machine, packages: list[Path]) -> list[str]:
    """Copy them into a machine; their paths there."""
    machine.run("mkdir", "-p", "/srv/packages", "/srv/source")
    machine.run("find", "/srv/packages", "-type", "f", "-delete")
    for package in packages:
        shutil.copy(package, machine.path("/srv/packages"))
    return [f"/srv/packages/{package.name}" for package in packages]


def install(machine: Machine, packages: list[Path]) -> None:
    """As an administrator would."""
    machine.run("apt-get", "install", "--yes", *copy_to(machine, packages))


def later(directory: Path) -> list[Path]:
    """The same packages with a higher version."""
    made = []
    for package in built():
        tree = directory / package.name
        subprocess.run(["dpkg-deb", "--raw-extract", package, tree], check=True)
        control = tree / "DEBIAN" / "control"
        version = next(line for line in control.read_text().splitlines() if line.startswith("Version: ")).split()[1]
        control.write_text(control.read_text().replace(version, UPGRADE))
        made.append(directory / f"{package.name.split('_')[0]}_{UPGRADE}_all.deb")
        subprocess.run(
            ["dpkg-deb", "--root-owner-group", "-Znone", "--build", tree, made[-1]],
            check=True,
            stdout=subprocess.DEVNULL,
        )
    return made
