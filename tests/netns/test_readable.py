"""Tests whose programs are other users find the checkout, wherever it lies."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.netns.daemons import open_to_all

pytestmark = pytest.mark.netns

PROGRAM = """
import subprocess, sys
from pathlib import Path
from tests.readable import open_for_all
open_for_all(Path(sys.argv[1]))
user = ["setpriv", "--reuid=54321", "--regid=54321", "--clear-groups", "--"]
subprocess.run([*user, "cat", f"{sys.argv[1]}/file"], check=True)
print([str(one) for one in Path(sys.argv[1]).parents[1].iterdir()])
"""


def test_a_checkout_in_a_closed_home_can_be_read_by_all_and_what_else_is_there_cannot(tmp_path: Path) -> None:
    home = open_to_all(tmp_path) / "home"
    checkout = home / "src" / "punchd"
    checkout.mkdir(parents=True)
    (checkout / "file").write_text("found\n")
    (home / "secret").touch()
    home.chmod(0o700)
    done = subprocess.run([sys.executable, "-c", PROGRAM, str(checkout)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout == f"found\n['{home / 'src'}']\n"
    assert (home / "secret").exists(), "for this process alone"
