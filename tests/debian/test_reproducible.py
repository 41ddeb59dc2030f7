"""Building: the same packages from any directory, and a wheel that needs no compiler."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.debian import packages

ROOT = Path(__file__).parents[2]
WHEELS = ROOT / ".cache" / "wheels"

pytestmark = [
    pytest.mark.long,
    pytest.mark.timeout(600),
    pytest.mark.skipif(bool(packages.lacking()), reason=packages.lacking() or "-"),
]


def hashes(directory: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in directory.glob("*.deb")}


def test_two_builds_in_different_directories_are_the_same_to_the_bit(tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "copied" / "there"
    ignored = shutil.ignore_patterns(".venv", ".cache", "dist", ".hypothesis", ".mypy_cache", "__pycache__")
    shutil.copytree(ROOT, here, ignore=ignored, symlinks=True)
    shutil.copytree(here, there, symlinks=True)
    subprocess.run([here / "packaging" / "build", WHEELS, tmp_path / "first"], check=True)
    odd = {**os.environ, "TZ": "Pacific/Kiritimati", "LC_ALL": "C", "HOME": str(tmp_path)}
    subprocess.run([there / "packaging" / "build", WHEELS, tmp_path / "second"], check=True, env=odd, umask=0o077)
    first = hashes(tmp_path / "first")
    assert len(first) == len(packages.NAMES)
    assert hashes(tmp_path / "second") == first


def test_the_wheel_and_the_sdist_install_without_a_compiler(tmp_path: Path) -> None:
    subprocess.run([ROOT / "packaging" / "wheel", WHEELS, tmp_path], check=True, stderr=subprocess.DEVNULL)
    (wheel,), (sdist,) = tmp_path.glob("*.whl"), tmp_path.glob("*.tar.gz")
    assert wheel.name.endswith("-py3-none-any.whl")
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    pip = [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    nothing = {**os.environ, "CC": "/bin/false", "CXX": "/bin/false"}
    extras = f"{wheel}[servers,redis]"
    subprocess.run([*pip, "--only-binary", ":all:", extras], check=True, env=nothing)
    for command in ("punchd", "punch", "punchd-rendezvous", "punchd-broker"):
        said = subprocess.run([python.with_name(command), "--version"], check=True, capture_output=True, text=True)
        assert said.stdout.startswith(command)
    subprocess.run([*pip, "--force-reinstall", "--no-deps", sdist], check=True, env=nothing)
    subprocess.run([python.with_name("punchd"), "--check-config"], check=True, stdout=subprocess.DEVNULL)
