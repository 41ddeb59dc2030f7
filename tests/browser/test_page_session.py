"""The page from creation to the end: a producer's window, two peers' windows, and what each is told."""

from __future__ import annotations

import secrets

import pytest
from selenium.webdriver.support.select import Select

from punchd.session import report
from tests.browser.chromium import PHONE, wait
from tests.browser.conftest import OpenWindow
from tests.browser.parts import hear, join, produce, raw_peers, say, token_of
from tests.browser.serving import Site, site

# Counts the locks that keep the screen awake; a headless browser has no screen.
WAKE_LOCK = """
window.locks = 0;
const lock = () => Object.assign(new EventTarget(), {release: () => { window.locks -= 1; }});
const request = async () => { window.locks += 1; return lock(); };
Object.defineProperty(navigator, "wakeLock", {value: {request}});
"""


def test_a_producer_and_two_peers_from_creation_to_the_end(open_window: OpenWindow) -> None:
    producer = open_window("/")
    link = produce(producer, "whole", "cam-wide, cam-close")["cam-wide"]
    producer.wait_for("Waiting")
    assert producer.run("return location.href").endswith("/s/whole")
    a, b = open_window(link, PHONE), open_window(link)
    for peer in (a, b):
        peer.wait_for("Nobody is registered for this stream yet.")
        assert peer.run("return location.href").endswith("/s/whole")
        for words, option in (
            ("Receive, to UDP port 5101", f"--output {report.OUTPUT}"),
            ("Send, from UDP port 5100", f"--input {report.INPUT}"),
        ):
            Select(peer.field("What it does")).select_by_visible_text(words)
            assert f"punch session join '{link}' {option}" == peer.value("In a terminal")
    join(a, 5000)
    a.wait_for("Waiting for the other peer")
    producer.wait_for("1 of 2 peers")
    join(b, 6000)
    for peer in (a, b):
        peer.wait_for("The other peer is there.")
    wait(lambda: a.value("Connection string").startswith("srt://127.0.0.1:6000?mode=rendezvous&port=5000&"), "A's URL")
    wait(lambda: b.value("Connection string").startswith("srt://127.0.0.1:5000?mode=rendezvous&port=6000&"), "B's URL")
    a.run("const e = arguments[0]; e.value = 'vmix'; e.dispatchEvent(new Event('change'))", a.field("Tool"))
    wait(lambda: "Type: SRT Rendezvous\nHostname: 127.0.0.1\nPort: 6000\n" in a.value("Connection string"), "vMix's")
    producer.wait_for("A: 127.0.0.1:5000 – B: 127.0.0.1:6000")  # noqa: RUF001 (typography)
    producer.press("Connection strings")
    wait(lambda: "port=5000" in producer.value("Side A"), "the string of A")
    wait(lambda: "port=6000" in producer.value("Side B"), "the string of B")
    a.press("I am ready")
    a.wait_for("Waiting for the other peer to be ready")
    b.press("I am ready")
    for peer in (a, b):
        peer.wait_for("Start your tool now.")
    b.press("It failed")
    a.press("It runs")
    a.wait_for("You said that it runs.")
    producer.wait_for("Connected")
    b.wait_for("Connected")
    b.press("It runs")
    producer.press("Close the session …")
    producer.press("Close it")
    for window in (producer, a, b):
        window.wait_for("The producer has closed this session. A stream that already runs goes on")
        window.wait_for("Closed")
    assert "port=5000" in producer.value("Side A")
    assert not {"Tally", "New link", "Links for", "Your own link"} & set(producer.text.splitlines())
    producer.run("document.querySelector('a[href=\"/\"]').click()")
    producer.wait_for("Create a session")


def test_opening_a_peers_page_takes_no_place_and_one_that_leaves_gives_it_back(
    open_window: OpenWindow, broker: Site
) -> None:
    made = broker.create("places")
    token = made["peerTokens"]["default"]
    link = f"{made['url']}#t={token}"
    before = len(broker.lines)
    with raw_peers(broker, "places", token, 7000) as [other]:
        page = open_window(link)
        page.wait_for("One peer is registered.")
        assert sum("GET /api/ws/{name} 101" in line for line in broker.lines[before:]) == 1  # the other one's
        assert broker.ask("GET", "/api/session/places", token=token)[1]["connected"] == 1
        join(page, 80)
        page.wait_for("Expected a whole number from 1024 to 65535.")
        join(page, 7001)
        assert hear(other, "peer")["port"] == 7001
        page.press("Leave the session")
        page.wait_for("Registering takes one of its two places")
        while hear(other, "session")["connected"] != 1:
            pass
        with raw_peers(broker, "places", token, 7002):
            join(page, 7001)
            page.wait_for("Both places of this stream are taken.")


def test_what_is_copied_is_what_stands_there(open_window: OpenWindow) -> None:
    producer = open_window("/")
    allowed = {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    producer.command("Browser.grantPermissions", allowed)
    link = produce(producer, "copies")["cam-wide"]
    producer.press("Copy")
    producer.button("Copied")
    assert producer.run("return navigator.clipboard.readText()") == link


def test_health_reports_are_drawn_and_named_in_words(open_window: OpenWindow, broker: Site) -> None:
    producer = open_window("/")
    token = token_of(produce(producer, "health")["cam-wide"])
    producer.wait_for("No reports")
    with raw_peers(broker, "health", token, 7000, 7001) as [a, _]:
        drawn = []
        for rtt, retransmit, word in ((20, 0.5, "● Healthy"), (60, 4, "▲ Warning"), (90, 12, "■ Critical")):
            say(a, "health", rtt=rtt, retransmit=retransmit, bitrate=8_000_000)
            producer.wait_for(word)
            producer.wait_for(f"{rtt} ms")
            drawn.append(producer.run("return document.querySelector('.curve').getAttribute('points')"))
            tip = producer.run("return document.querySelector('.tip').getAttribute('points')")
            assert tip.split() == [drawn[-1].split()[-1]] * 2  # a dot, which has to be drawn as a line
    assert [len(points.split()) for points in drawn] == [1, 2, 3]
    producer.wait_for("8.00 Mbit/s")
    named = producer.run("return document.querySelector('.figure svg').getAttribute('aria-label')")
    assert named.startswith("Round trip over ")
    assert named.endswith("last 90 ms, least 20 ms, most 90 ms")


def test_a_tally_reaches_the_peers_light_whether_it_holds_a_place_or_not(open_window: OpenWindow, broker: Site) -> None:
    producer = open_window("/")
    link = produce(producer, "tally")["cam-wide"]
    with raw_peers(broker, "tally", token_of(link), 7000, 7001) as [tool, _]:
        camera = open_window(link, PHONE)
        camera.wait_for("OFF")
        producer.press("■ Program")
        assert hear(tool, "tally")["state"] == "program"
        camera.run(WAKE_LOCK)
        camera.press("Tally over the whole screen")
        camera.wait_for("PROGRAM")
        lamp = camera.run("return document.querySelector('.lamp').getBoundingClientRect().toJSON()")
        assert lamp["height"] > 0.8 * PHONE[1]
        assert camera.run("return window.locks") == 1
        camera.press("Back to the page")
        assert camera.run("return window.locks") == 0
    join(camera, 7000)
    camera.wait_for("Waiting for the other peer")
    for words, shown in (("■ Program", "PROGRAM"), ("○ Off", "OFF")):
        producer.press(words)
        camera.wait_for(shown)
        pressed = f"return document.querySelector('[aria-pressed=true]').textContent === '{words}'"
        assert wait(lambda script=pressed: producer.run(script), f"{words} pressed")  # type: ignore[misc]


def test_a_new_link_works_until_it_is_revoked_and_old_ones_are_shown_once(
    open_window: OpenWindow, broker: Site, allowed: list[str]
) -> None:
    allowed += ["401 (Unauthorized)"]
    producer = open_window("/")
    first = produce(producer, "links")["cam-wide"]
    wait(lambda: producer.run("return document.querySelector('.qr img')?.naturalWidth > 0"), "the QR code")
    producer.run("location.reload()")
    producer.wait_for("This session")
    assert "Link for cam-wide" not in producer.text
    producer.press("New link for a peer")
    link = producer.value("Link for cam-wide")
    assert link != first
    peer, other = open_window(link), open_window(first)
    join(peer, 5000)
    peer.wait_for("Waiting for the other peer")
    producer.press("Revoke")
    producer.wait_for("Link for cam-wide: revoked.")
    peer.wait_for("was revoked")
    producer.fill("Revoke a peer's link", "nonsense")
    producer.element(".copyable input[id^=revoke] + button").click()
    producer.wait_for("Expected the whole link of a peer.")
    producer.fill("Revoke a peer's link", first)
    producer.element(".copyable input[id^=revoke] + button").click()
    wait(lambda: broker.ask("GET", "/api/session/links", token=token_of(first))[0] == 401, "the old link is worthless")
    other.run("location.reload()")
    other.wait_for("The server does not take this link")


def test_a_page_comes_back_after_the_network_was_away_and_says_so(open_window: OpenWindow, allowed: list[str]) -> None:
    allowed += ["ERR_INTERNET_DISCONNECTED"]
    producer = open_window("/")
    link = produce(producer, "network")["cam-wide"]
    a, b = open_window(link), open_window(link)
    for port, peer in ((5000, a), (6000, b)):
        join(peer, port)
    for peer in (a, b):
        peer.press("I am ready")
    a.press("It runs")
    a.wait_for("You said that it runs.")
    a.offline(True)
    a.wait_for("No connection to the server")
    a.wait_for("NO CONNECTION")
    a.offline(False)
    wait(lambda: "No connection" not in a.text, "the connection is back")
    a.wait_for("2 of 2 peers")
    a.wait_for("You said that it runs.")
    producer.wait_for("Connected")


def test_when_the_time_is_over_every_page_says_so(open_window: OpenWindow, broker: Site, allowed: list[str]) -> None:
    allowed += ["status of 404"]
    made = broker.create("short", ttl=6)
    tokens = (made["token"], made["peerTokens"]["default"], made["peerTokens"]["default"])
    producer, registered, watching = pages = [open_window(f"{made['url']}#t={token}") for token in tokens]
    join(registered, 5000)
    for page in pages:
        page.wait_for(" s left")
    for page in (producer, registered):
        page.wait_for("The time of this session is over.")
    watching.wait_for("The time of this session is over.")


@pytest.mark.parametrize(
    ("target", "words", "status"),
    [
        ("/s/show", "This address is without its key.", []),
        ("/s/show#t=nonsense", "The server does not take this link", []),
        ("/s/{other}#t={token}", "The server does not take this link", []),
        ("/s/{name}#t={forged}", "The server does not take this link", ["status of 401"]),
        ("/s/{name}?t={token}", "Nobody is registered", []),
        ("/s/{gone}#t={old}", "There is no such session any more", ["status of 404"]),
    ],
)
def test_a_link_that_does_not_work_is_explained(
    open_window: OpenWindow, broker: Site, allowed: list[str], *, target: str, words: str, status: list[str]
) -> None:
    allowed += status
    token = secrets.token_hex(4)
    made, gone = broker.create(f"a{token}"), broker.create(f"b{token}")
    broker.ask("DELETE", f"/api/session/{gone['session']}", token=gone["token"])
    peer = made["peerTokens"]["default"]
    values = {"name": made["session"], "other": "another", "token": peer, "forged": peer[:-4] + "AAAA"}
    page = open_window(target.format(**values, gone=gone["session"], old=gone["peerTokens"]["default"]))
    page.wait_for(words)
    assert "t=" not in page.run("return location.href")


def test_the_captcha_is_let_in_and_its_absence_is_explained(open_window: OpenWindow, allowed: list[str]) -> None:
    allowed += ["ERR_NAME_NOT_RESOLVED"]  # and nothing about a policy
    with site(("secret" * 4, "0x4AAA")) as served:
        page = open_window(served.url)
        page.wait_for("The captcha cannot be loaded")
    with site(("secret" * 4, None)) as served:
        page = open_window(served.url)
        page.wait_for("its operator gave this page none to show")
        assert not page.element("[type=submit]").is_enabled()
