"""schemathesis against a running process: what the OpenAPI document says, right and wrong, with a token and without."""

from __future__ import annotations

import http.client
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from websockets.sync.client import connect

from tests.unit.broker.running import listener

START_S = 60.0
SEED = 1935
EXAMPLES = [12, pytest.param(400, marks=[pytest.mark.long, pytest.mark.timeout(1800)])]

_LIMITS = """
metrics = []
[limits]
drain-seconds = 0
sessions-per-source = 1000000
connects-per-second = 1000000
""" + "\n".join(
    f"{name}-per-minute = 1000000" for name in ("creations", "upgrades", "requests", "pages", "failed-authentications")
)
# What a schema cannot say: an HTTP client that asks for a WebSocket hears 426; a peer has to name its `port`, an admin
# has not; `stream` can be left out where the session has one.
_FINE = '["2xx", "3xx", "401", "403", "404", "409", "429", {}]'
_CONFIG = f"""
[[operations]]
include-operation-id = "openWebSocket"
checks.positive_data_acceptance.expected-statuses = {_FINE.format('"426"')}
"""
_UNNAMED = "".join(
    f"""
[[operations]]
include-operation-id = "{name}"
checks.positive_data_acceptance.expected-statuses = {_FINE.format('"400"')}
"""
    for name in ("connectString", "mintToken")
)
_OF_A_SESSION = """
[parameters]
"path.name" = "show"
"""


@contextmanager
def _broker(folder: Path) -> Iterator[str]:
    """A process that serves plain HTTP with generous limits; it logs no error, and ends when it is told."""
    config, log = folder / "broker.toml", folder / "log"
    config.write_text(_LIMITS)
    with closing(listener()) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "punchd.cli.broker", "--insecure-dev", "--listen", f"127.0.0.1:{port}"]
    with log.open("wb") as stderr:
        process = subprocess.Popen([*command, "--config", str(config)], stderr=stderr)
    try:
        deadline = time.monotonic() + START_S
        while "serving" not in log.read_text():
            assert time.monotonic() < deadline
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}"
        process.send_signal(signal.SIGTERM)
        assert process.wait(START_S) == 0
    finally:
        process.kill()
        process.wait()
    said = log.read_text()
    assert [line for line in said.splitlines() if json.loads(line)["level"] == "error"] == []
    assert "Traceback" not in said


def _explore(folder: Path, url: str, config: str, *words: str, follow: bool = False) -> None:
    """One run of schemathesis; what it finds is shown."""
    (folder / "schemathesis.toml").write_text(config)
    command = [
        str(Path(sys.executable).with_name("schemathesis")), "--config-file", str(folder / "schemathesis.toml"), "run",
        f"{url}/spec/openapi.json", "--url", url, "--checks", "all", "--mode", "all", "--seed", str(SEED),
        "--generation-database", "none", "--no-color", "--continue-on-failure", "--warnings", "off", *words,
    ]  # fmt: skip
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "tests.unit.broker.openapi_hooks", "PYTHONPATH": os.getcwd()}
    if follow:
        environment["PUNCHD_TEST_FOLLOW"] = "1"
    found = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout + found.stderr
    assert " passed" in found.stdout


def _created(url: str) -> dict[str, Any]:
    client = http.client.HTTPConnection(url.removeprefix("http://"), timeout=START_S)
    with closing(client):
        body = json.dumps({"name": "show", "streams": ["wide"], "ttl": 86_400})
        client.request("POST", "/api/session", body, {"Content-Type": "application/json"})
        return dict(json.loads(client.getresponse().read()))


@pytest.mark.parametrize("examples", EXAMPLES)
@pytest.mark.timeout(300)
def test_b_042_b_043_c_03_the_api_is_what_its_document_says(tmp_path: Path, examples: int) -> None:
    size = ("-n", str(examples))
    with _broker(tmp_path) as url, ExitStack() as peers:
        _explore(tmp_path, url, _CONFIG, *size, "--phases", "coverage,fuzzing")
        # One check leaves the token out, which `follow` puts in again; the other takes the 404 of a stream or of a
        # token for that of the session.
        words = ("--phases", "stateful", "--exclude-checks", "ignored_auth,ensure_resource_availability")
        _explore(tmp_path, url, _CONFIG + _UNNAMED, *size, *words, follow=True)
        made = _created(url)
        for port in (5000, 6000):
            peer = connect(f"{url.replace('http', 'ws')}/api/ws/show?t={made['peerTokens']['wide']}")
            peers.enter_context(peer).send(json.dumps({"type": "register", "port": port}))
        once = ("--phases", "coverage,fuzzing", "--exclude-operation-id", "closeSession")
        for token, more in ((made["token"], ""), (made["peerTokens"]["wide"], _UNNAMED)):
            config = _CONFIG + more + _OF_A_SESSION
            _explore(tmp_path, url, config, *size, *once, "--header", f"Authorization: Bearer {token}")
