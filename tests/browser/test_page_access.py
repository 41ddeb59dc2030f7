"""The page on a phone, in both colour schemes, by keyboard only, and for screen readers."""

from __future__ import annotations

import os
from pathlib import Path

from selenium.webdriver.common.keys import Keys

from tests.browser.chromium import DESKTOP, PHONE, Window, wait
from tests.browser.conftest import OpenWindow
from tests.browser.judged import looks, structure
from tests.browser.parts import join, produce, raw_peers, say, token_of
from tests.browser.serving import Site

SHOTS = os.environ.get("PUNCHD_SHOTS")  # a folder for pictures of all views, for people to look at
RING = """
const [focused, style] = [document.activeElement, getComputedStyle(document.activeElement)];
return focused === document.body ? "none" : [style.outlineStyle, style.outlineWidth];
"""
FOCUS = "const e = document.activeElement; return e.id || e.textContent"


def judge(window: Window, name: str, headings: int = 1) -> None:
    """In all sizes and colours."""
    assert structure(window, headings) == []
    for size, size_name in ((PHONE, "phone"), (DESKTOP, "desktop")):
        window.resize(size)
        for scheme in ("light", "dark"):
            window.prefer(color_scheme=scheme, reduced_motion="reduce")
            assert looks(window) == [], (name, size_name, scheme)
            if SHOTS:
                window.shot(Path(SHOTS) / f"{name}-{size_name}-{scheme}.png")


def test_every_view_can_be_read_on_a_phone_and_a_desk_by_day_and_by_night(
    open_window: OpenWindow, broker: Site, allowed: list[str]
) -> None:
    allowed += ["ERR_INTERNET_DISCONNECTED"]
    producer = open_window("/")
    judge(producer, "create")
    for label in ("Name of the session", "Streams", "Latency, ms", "Lifetime, minutes"):
        producer.fill(label, "-")
    producer.press("Create session")
    judge(producer, "create-errors")
    for label, text in (("Latency, ms", "120"), ("Lifetime, minutes", "30")):
        producer.fill(label, text)
    long = "a.session.with.a.name.that.is.as.long.as.a.name.can.be.0123456789"[:64]
    links = produce(producer, long, "cam-wide, cam-close")
    wait(lambda: producer.run("return document.querySelectorAll('.qr img').length") == 2, "QR codes")
    judge(producer, "producer-new")
    peer = open_window(links["cam-wide"], PHONE)
    peer.wait_for("Register")
    judge(peer, "peer-idle")
    token = token_of(links["cam-wide"])
    with raw_peers(broker, long, token, 7000) as [other]:
        join(peer, 5000)
        peer.wait_for("The other peer is there.")
        wait(lambda: peer.value("Connection string"), "the string")
        judge(peer, "peer-matched")
        say(other, "ready")
        peer.press("I am ready")
        peer.wait_for("Start your tool now.")
        judge(peer, "peer-start")
        say(other, "status", srt="connected")
        say(other, "health", rtt=90, retransmit=4, bitrate=25_000_000)
        producer.wait_for("Critical")
        producer.press("Connection strings")
        wait(lambda: producer.value("Side A"), "the strings")
        producer.press("■ Program")
        peer.wait_for("PROGRAM")
        judge(producer, "producer-live")
        peer.press("Tally over the whole screen")
        peer.offline(True)
        peer.wait_for("NO CONNECTION")
        judge(peer, "tally-lost", headings=0)
        peer.offline(False)
        peer.wait_for("PROGRAM")
        judge(peer, "tally", headings=0)  # what is behind the light cannot be reached
    producer.press("Close the session …")
    judge(producer, "producer-closing", headings=0)  # a dialog is before it
    producer.press("Close it")
    producer.wait_for("The producer has closed this session.")
    judge(producer, "producer-closed")
    peer.wait_for("The producer has closed this session.")
    judge(peer, "peer-closed")


def tab_to(window: Window, wanted: str) -> list[str]:
    """Press Tab until the focus is there; what had it on the way. It can be seen wherever it is."""
    on_the_way: list[str] = []
    for _ in range(60):
        window.use().switch_to.active_element.send_keys(Keys.TAB)
        on_the_way.append(str(window.run(FOCUS)))
        assert window.run(RING) in (["solid", "3px"], "none"), on_the_way
        if on_the_way[-1] == wanted:
            return on_the_way
    raise AssertionError(f"{wanted} cannot be reached: {on_the_way}")


def test_a_session_is_created_conducted_and_closed_by_keyboard_only(open_window: OpenWindow) -> None:
    page = open_window("/")

    def keys(*typed: str) -> None:
        page.use().switch_to.active_element.send_keys(*typed)

    assert tab_to(page, "name") == ["name"]
    keys(".", Keys.ENTER)
    assert page.run(FOCUS) == "name"  # what is wrong has the focus
    assert "the first a letter or a digit" in page.run("return document.getElementById('said').textContent")
    keys(Keys.BACKSPACE, "keys")
    assert tab_to(page, "Create session") == ["streams", "latency", "ttl", "Create session"]
    keys(Keys.ENTER)
    page.wait_for("Links for the peers")
    page.wait_for("Tally")
    tab_to(page, "△ Preview")
    keys(Keys.SPACE)
    wait(lambda: page.run("return document.activeElement.ariaPressed") == "true", "preview is on")
    tab_to(page, "Close the session …")
    keys(Keys.ENTER)
    wait(lambda: page.run(FOCUS) == "Cancel", "the dialog has the focus")
    keys(Keys.ESCAPE)
    wait(lambda: page.run(FOCUS) == "Close the session …", "the focus is back")
    keys(Keys.ENTER)
    wait(lambda: page.run(FOCUS) == "Cancel", "the dialog has the focus")
    tab_to(page, "Close it")
    keys(Keys.SPACE)
    page.wait_for("The producer has closed this session.")


def test_a_peer_registers_and_leaves_by_keyboard_and_the_focus_is_never_lost(
    open_window: OpenWindow, broker: Site
) -> None:
    made = broker.create("focus")
    token = made["peerTokens"]["default"]
    page = open_window(f"{made['url']}#t={token}")
    page.wait_for("Register")
    tab_to(page, "Register")
    with raw_peers(broker, "focus", token, 7000) as [other]:
        page.use().switch_to.active_element.send_keys(Keys.ENTER)
        page.wait_for("The other peer is there.")
        said = "return document.getElementById('said').textContent"
        wait(lambda: "The other peer is there." in page.run(said), "it is said")
        tab_to(page, "I am ready")
        page.use().switch_to.active_element.send_keys(Keys.ENTER)
        say(other, "ready")
        wait(lambda: page.run(FOCUS) == "Start your tool now.", "what to do now has the focus")
        tab_to(page, "It runs")
        tab_to(page, "Leave the session")
        page.use().switch_to.active_element.send_keys(Keys.ENTER)
        wait(lambda: page.run("return document.activeElement.value") == "5000", "the form has the focus")
