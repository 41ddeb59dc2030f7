"""docs/broker.md says what the code does: settings, routes, codes, formats, options."""

from __future__ import annotations

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from punchd.broker.answers import HttpCode
from punchd.broker.connect import FORMATS
from punchd.broker.settings import Judgement, Limits, Settings, check, parse
from punchd.cli.broker import arguments
from punchd.knobs import key
from tests.unit.broker.running import running

PAGE = (Path(__file__).parents[3] / "docs" / "broker.md").read_text()


def section(title: str) -> str:
    found = re.search(rf"^#+ {title}\n(.*?)(?=^#|\Z)", PAGE, re.DOTALL | re.MULTILINE)
    assert found is not None, title
    return found[1]


def rows(text: str) -> list[list[str]]:
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines]


@pytest.mark.parametrize("table", [Settings, Limits, Judgement])
def test_every_knob_is_told_with_default_range_and_reason(table: Any) -> None:
    wanted = []
    for one in fields(table):
        if one.name not in ("limits", "health"):
            default = "none" if one.default is None else f"`{json.dumps(one.default)}`"
            least, most = one.metadata["least"], one.metadata["most"]
            reach = "–" if least is None else f"{least}–{most}"  # noqa: RUF001 (typography)
            wanted.append([f"`{key(one.name)}`", default, reach, one.metadata["doc"]])
    assert rows(section(table.__name__))[1:] == wanted


def test_the_example_of_a_configuration_is_one() -> None:
    [example] = re.findall(r"^```toml\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    found = parse(example.encode(), "docs/broker.md")
    check(found)
    assert found.limits.sessions == 2000


async def test_every_route_is_told_with_its_methods_and_whose_token_it_takes() -> None:
    told = {}
    for route, bearer, *_ in rows(section("HTTP")):
        if route.startswith("`") and "/" in route:
            method, path = route.strip("`").split()
            told[method, path.replace("NAME", "{name}")] = bearer
    async with running() as server:
        routes = server.broker.api.routes
    wanted = {}
    for one in routes:
        for method, act in one.acts.items():
            needs = act.needs_token or one.label.startswith("/api/ws")
            wanted[method, one.label] = "admin" if act.admin_only else "any" if needs else "–"  # noqa: RUF001
    assert told == wanted


def test_every_error_code_format_and_option_is_told() -> None:
    codes = {row[0].strip("`") for row in rows(section("HTTP")) if re.fullmatch(r"`[A-Z_]+`", row[0])}
    assert codes == {code.value for code in HttpCode}
    assert {row[0].strip("`") for row in rows(section("Connection strings"))[1:]} == set(FORMATS)
    options = {action.option_strings[-1] for action in arguments()._actions}
    assert options == set(re.findall(r"`(--[a-z-]+)", section("Command line")))
