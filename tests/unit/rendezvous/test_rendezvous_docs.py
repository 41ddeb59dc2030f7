"""docs/rendezvous.md says what the code does: settings, routes, codes, options, the example."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import trio

from punchd.cli.rendezvous import arguments
from punchd.knobs import key
from punchd.rendezvous import client, feed
from punchd.rendezvous.api import Api
from punchd.rendezvous.pulse import Code
from punchd.rendezvous.settings import Limits, Settings, Timing, parse
from tests.unit.rendezvous.client_parts import place
from tests.unit.rendezvous.parts import World

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs" / "rendezvous.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")][1:]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize("table", [Settings, Timing, Limits])
def test_every_knob_is_told_with_default_range_and_reason(table: Any) -> None:
    told = rows(section(table.__name__))
    wanted = []
    for one in fields(table):
        if one.name not in ("timing", "limits"):
            default = "none" if one.default is None else f"`{json.dumps(one.default)}`"
            least, most = one.metadata["least"], one.metadata["most"]
            reach = "–" if least is None else f"{least}–{most}"  # noqa: RUF001 (typography)
            wanted.append([f"`{key(one.name)}`", default, reach, one.metadata["doc"]])
    assert told == wanted


def test_the_examples_of_a_configuration_are_ones() -> None:
    examples = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    parsed = [parse(example.encode(), "docs/rendezvous.md") for example in examples]
    assert parsed[0].limits.clients == 20_000


def test_every_route_is_told_with_its_methods_and_whether_it_needs_a_key() -> None:
    told = {}
    for name, bearer, *_ in rows(section("HTTP"))[:11]:
        method, path = name.strip("`").split()
        told[method, re.sub(r"\?.*", "", path)] = bearer == "yes"
    api: Api = World().api
    for (method, path), needs_key in told.items():
        [route] = [one for one in api._routes if one.path.fullmatch(path)]
        assert method in route.acts
        assert route.needs_key is needs_key
    assert len(told) == sum(len(route.acts) for route in api._routes)


def test_every_code_of_a_reply_and_of_an_error_is_told() -> None:
    for code in Code:
        assert f"| {code} | `{code.to_bytes(4, 'big').hex()}`" in section("Pulses")
    source = "".join(file.read_text() for file in (ROOT / "punchd" / "rendezvous").glob("a*.py"))
    codes = set(re.findall(r'error\(\s*\d{3},\s*"([A-Z_]+)"', source))
    assert len(codes) >= 12
    assert [code for code in codes if f"`{code}`" not in section("HTTP")] == []


def test_the_close_codes_and_every_option_are_told() -> None:
    assert f"{feed.REPLACED} another request" in section("Signals")
    assert f"{feed.GONE} the client is gone" in section("Signals")
    options = {action.option_strings[-1] for action in arguments()._actions}
    assert options == set(re.findall(r"`(--[a-z-]+)", section("Command line")))


async def test_the_example_of_a_client_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    [example] = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(example.splitlines()) <= 15
    names: dict[str, Any] = {}
    exec(compile(example, "docs/rendezvous.md", "exec"), names)  # noqa: S102 (our own page)
    async with place() as server, server.client() as other, trio.open_nursery() as nursery:
        monkeypatch.setattr(client, "UDP_PORT", server.udp)
        nursery.start_soon(names["answer"], server.url)
        printed = ""
        while "I am" not in printed:
            printed += capsys.readouterr().out
            await trio.sleep(0.01)
        await other.send(bytes.fromhex(printed.split()[2]), "hello")
        assert (await other.receive()).text == "you said hello"
        nursery.cancel_scope.cancel()
