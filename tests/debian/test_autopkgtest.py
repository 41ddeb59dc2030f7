"""The packages' own test (packaging/debian/tests), run by autopkgtest inside a booted machine."""

from __future__ import annotations

import shutil
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


@pytest.mark.parametrize("suite", packages.SUITES)
def test_autopkgtest_passes(suite: str) -> None:
    with Machine(suite, f"punchd-autopkgtest-{suite}") as machine:
        names = packages.copy_to(machine, packages.built())
        shutil.copytree(Path(__file__).parents[2] / "packaging" / "debian", machine.path("/srv/source/debian"))
        # The null runner promises no container; this machine is one.
        own = "--ignore-restrictions=isolation-container"
        said = machine.run("autopkgtest", own, *names, "/srv/source", "--", "null")
        assert "services             PASS" in said
