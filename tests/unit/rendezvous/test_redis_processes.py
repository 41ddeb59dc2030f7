"""`punchd-rendezvous` as it is started, thrice on one Redis: one is killed, and its clients go on at the others."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest

from punchd.cli import rendezvous as cli
from tests.unit.rendezvous.processes import config_for, server
from tests.unit.rendezvous.redis_server import RedisServer, needs_redis
from tests.unit.rendezvous.running import Pulser


@needs_redis
async def test_when_a_server_is_killed_its_clients_go_on_at_the_others(redis: RedisServer, tmp_path: Path) -> None:
    redis.ask("FLUSHALL")
    config = config_for(redis, tmp_path)
    with ExitStack() as stack:
        one, two, three = (stack.enter_context(server(config)) for _ in range(3))
        member, caller = await one.at.register(), await two.at.register()
        with Pulser(one.at.udp) as pulser:
            assert await pulser.pulse(member.raw_key) == 1020
            assert (await two.at.ask("POST", f"/peer/{member.id}/signal", caller, b"come"))[0] == 202
            one.kill()
            pulser.to = ("127.0.0.1", two.at.udp)  # as a load balancer does
            assert await pulser.pulse(member.raw_key) == 1020
            status, told = await three.at.ask("GET", f"/peer/{member.id}/udp", caller)
            assert (status, told["port"]) == (200, pulser.port)
        status, told = await three.at.ask("GET", "/signals?wait=5", member)
        assert [one["data"] for one in told["signals"]] == ["come"]


def test_without_the_extra_it_is_one_line_that_names_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delitem(sys.modules, "punchd.rendezvous.redis_store", raising=False)
    for name in ("punchd.redis.link", "punchd.redis.connection"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "coredis.parser", None)
    assert cli.main(["--http", "127.0.0.1:5025", "--store", "redis://:hunter2@h"]) == 78
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("punchd-rendezvous: store: expected the extra `redis`: pip install 'punchd[redis]'")
    assert "hunter2" not in line


def test_coredis_is_imported_only_where_it_is_configured() -> None:
    program = (
        "import sys, json\n"
        "from punchd.cli import rendezvous\n"
        "from punchd.rendezvous import service, settings\n"
        "service.open_store(settings.Settings())\n"
        "print(json.dumps('coredis' in sys.modules))"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert json.loads(found.stdout) is False
