"""Ways to start the daemon that would let others reach further through it, and what it does about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.netns.daemons import open_to_all, punchd, writable

pytestmark = pytest.mark.netns


def test_root_takes_no_settings_that_everybody_can_write(tmp_path: Path) -> None:
    settings = tmp_path / "punchd.toml"
    settings.write_text("ttl = 4\n")
    settings.chmod(0o666)
    with punchd(tmp_path, "--config", str(settings)) as daemon:
        assert daemon.wait() == 78
        assert daemon.output == f"punchd: {settings}: everybody can write to it, and this is root: chmod o-w\n"


@pytest.mark.parametrize("mode", [0o777, 0o775])
def test_a_trace_directory_where_others_can_leave_links_is_refused(tmp_path: Path, mode: int) -> None:
    traces = writable(tmp_path / "traces")
    traces.chmod(mode)
    with punchd(tmp_path, "--trace", str(traces)) as daemon:
        assert daemon.wait() == 78
        last = daemon.output.splitlines()[-1]
        assert last == f"punchd: trace {traces}: expected a directory that only its owner can write to"
        assert not daemon.path.exists()


def test_it_raises_the_limit_of_open_files_to_what_it_may_have(tmp_path: Path) -> None:
    with punchd(open_to_all(tmp_path), prefix=["prlimit", "--nofile=256:4096", "--"]) as daemon:
        daemon.ready()
        rows = Path(f"/proc/{daemon.pid}/limits").read_text().splitlines()
        [row] = [row for row in rows if row.startswith("Max open files")]
        assert row.split()[3:5] == ["4096", "4096"]
