"""The web page's routes: what is served with which rules, QR codes, and that no token is logged."""

from __future__ import annotations

import re
from importlib.resources import files
from xml.etree import ElementTree

import pytest
import segno

from punchd.broker.page import KINDS
from punchd.broker.settings import Settings
from tests.unit.broker.contract import TAP
from tests.unit.broker.running import URL, running, settings

FOLDER = files("punchd.broker") / "web_page"
FILES = sorted(one.name for one in FOLDER.iterdir())
SERVED = [name for name in FILES if name.rpartition(".")[2] in KINDS]
STRICT = {
    "default-src": "'none'",
    "script-src": "'self'",
    "style-src": "'self'",
    "img-src": "'self' blob:",
    "connect-src": "'self'",
    "base-uri": "'none'",
    "form-action": "'none'",
    "frame-ancestors": "'none'",
}
TRUSTED = {"require-trusted-types-for": "'script'", "trusted-types": "'none'"}
TURNSTILE = "https://challenges.cloudflare.com"


def policy(text: str) -> dict[str, str]:
    return {name: value for name, _, value in (one.strip().partition(" ") for one in text.split(";"))}


def test_the_package_has_two_documents_and_all_that_they_and_the_scripts_name() -> None:
    assert {name for name in FILES if name not in SERVED} == {"create.html", "session.html"}
    texts = {name: (FOLDER / name).read_text() for name in FILES}
    named = {found for text in texts.values() for found in re.findall(r'(?:from "\./|"/page/)([^"]+)"', text)}
    assert named == set(SERVED)


@pytest.mark.parametrize("path", ["/", "/s/show"])
async def test_documents_run_only_what_the_server_has_and_are_kept_by_nobody(path: str) -> None:
    async with running() as server:
        answer, head = await server.ask("GET", path), await server.ask("HEAD", path)
    assert answer.status == head.status == 200
    assert head.headers["content-length"] == str(len(answer.body))
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert policy(answer.headers["content-security-policy"]) == STRICT | TRUSTED


@pytest.mark.parametrize("name", ["create.html", "session.html"])
def test_documents_hold_no_script_no_style_and_nothing_from_elsewhere(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert re.findall(r"<script(?![^>]* src=\"/page/)|<style|\sstyle=|\son[a-z]+=|https?:|//", text) == []
    assert 'lang="en"' in text
    assert "width=device-width" in text


async def test_the_page_of_a_session_is_the_same_whatever_its_name_and_token_are() -> None:
    async with running() as server:
        made = await server.create()
        answers = [
            await server.ask("GET", path)
            for path in ("/s/show", "/s/nothing", f"/s/show?t={made['token']}", "/s/show?t=nonsense")
        ]
    assert len({answer.body for answer in answers}) == 1
    assert made["token"].encode() not in answers[0].body


@pytest.mark.parametrize(
    "path", ["/s/", "/s/-x", "/s/a%20b", "/s/-x/qr", "/page/nothing.js", "/page/create.html", "/page/"]
)
async def test_what_is_not_there_is_a_404_with_the_usual_body(path: str) -> None:
    async with running() as server:
        answer = await server.ask("GET", path)
    assert (answer.status, answer.error) == (404, "NOT_FOUND")


@pytest.mark.parametrize("name", SERVED)
async def test_files_are_served_as_they_are_and_asked_for_again_by_their_tag(name: str) -> None:
    async with running() as server:
        answer = await server.ask("GET", f"/page/{name}")
        assert (answer.status, answer.body) == (200, (FOLDER / name).read_bytes())
        assert answer.headers["cache-control"] == "no-cache"
        tag = answer.headers["etag"]
        for known in (tag, f"W/{tag}", f'"x", {tag}'):
            again = await server.ask("GET", f"/page/{name}", if_none_match=known)
            assert (again.status, again.body, again.headers["etag"]) == (304, b"", tag)
        assert (await server.ask("GET", f"/page/{name}", if_none_match='"x"')).status == 200


def test_scripts_make_no_html_from_text_and_load_nothing_from_elsewhere_but_turnstile() -> None:
    sinks = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\b|Function\(|setTimeout\(\"|javascript:"
    for name in SERVED:
        text = (FOLDER / name).read_text()
        assert re.findall(sinks, text) == [], name
        addresses = {one for one in re.findall(r"https?://[^/\"]+", text) if one != "http://www.w3.org"}
        assert addresses <= ({TURNSTILE} if name == "create.js" else set()), name


async def test_the_page_has_a_limit_of_its_own_beside_that_of_the_api() -> None:
    assert Settings().limits.pages_per_minute > 20 * (1 + len(SERVED))  # first visits of a studio behind one address
    async with running(settings({"pages_per_minute": 3, "requests_per_minute": 1})) as server:
        statuses = [(await server.ask("GET", path)).status for path in ("/", "/s/show", "/page/style.css", "/")]
        assert statuses == [200, 200, 200, 429]
        assert (await server.ask("GET", "/api/health")).status == 200
        assert await server.metric('punch_limited_total{limit="page"}') == 1


# --- Turnstile -------------------------------------------------------------------------------------------------------


async def test_turnstile_may_come_in_only_where_it_is_wanted() -> None:
    chosen = settings(turnstile_secret="x" * 16, turnstile_site_key="0x4AAA_key")
    async with running(chosen) as server:
        create, session = await server.ask("GET", "/"), await server.ask("GET", "/s/show")
    opened = policy(create.headers["content-security-policy"])
    assert opened == STRICT | {"script-src": f"'self' {TURNSTILE}", "frame-src": TURNSTILE}
    assert policy(session.headers["content-security-policy"]) == STRICT | TRUSTED
    assert b'data-captcha="0x4AAA_key"' in create.body
    async with running(settings(turnstile_site_key="0x4AAA_key")) as server:
        assert b'data-captcha=""' in (await server.ask("GET", "/")).body
    async with running(settings(turnstile_secret="x" * 16)) as server:
        assert b'data-captcha="missing"' in (await server.ask("GET", "/")).body


# --- QR codes --------------------------------------------------------------------------------------------------------


def matrix(svg: bytes) -> list[list[bool]]:
    """The dark modules of an SVG whose paths are horizontal strokes one module high, without its border."""
    root = ElementTree.fromstring(svg)  # noqa: S314 (our own)
    size = int(root.attrib["viewBox"].split()[2])
    dark = [[False] * size for _ in range(size)]
    [strokes] = [one.attrib["d"] for one in root if one.attrib.get("stroke") == "#000"]
    x, y = 0.0, 0.0
    for command, numbers in re.findall(r"([Mmh])([-\d. ]+)", strokes):
        values = [float(number) for number in re.findall(r"-?[\d.]+", numbers)]
        if command == "h":
            for column in range(int(x), int(x + values[0])):
                dark[int(y)][column] = True
            x += values[0]
        else:
            x, y = (values[0], values[1]) if command == "M" else (x + values[0], y + values[1])
    return [row[4:-4] for row in dark[4:-4]]


def expected(text: str) -> list[list[bool]]:
    return [[bool(module) for module in row] for row in segno.make(text, error="l", micro=False).matrix]


async def test_a_qr_code_is_the_pages_address_with_the_token_of_the_request_in_its_fragment() -> None:
    async with running() as server:
        made = await server.create(streams=["wide"])
        token = made["peerTokens"]["wide"]
        plain = await server.ask("GET", made["qr"].removeprefix(URL))
        whole = await server.ask("GET", "/s/show/qr", token=token)
        assert matrix(plain.body) == expected(made["url"]) == expected(f"{URL}/s/show")
        assert matrix(whole.body) == expected(f"{URL}/s/show#t={token}")
        assert whole.headers["cache-control"] == "no-store"
        assert whole.headers["content-security-policy"] == "default-src 'none'; sandbox; frame-ancestors 'none'"
        assert (await server.ask("GET", "/s/show/qr", token="x")).status == 401  # noqa: S106
        assert (await server.ask("GET", "/s/other/qr", token=token)).status == 401
        await server.ask("DELETE", "/api/session/show", token=made["token"])
        assert (await server.ask("GET", "/s/show/qr", token=token)).status == 404


async def test_c_40_c_56_no_token_that_a_page_was_opened_with_is_logged_or_answered() -> None:
    before = len(TAP.lines)
    async with running() as server:
        made = await server.create()
        for path in (f"/s/show?t={made['token']}", f"/?t={made['token']}", f"/page/style.css?t={made['token']}"):
            answer = await server.ask("GET", path)
            assert made["token"] not in str(answer)
        await server.ask("GET", "/s/show/qr", token=made["token"])
    said = [line for name, line in TAP.lines[before:] if name == "punchd.access"]
    assert any("/s/{name} 200" in line for line in said)
    assert TAP.leaks() == []
