"""Debian's chromium, driven by its own chromedriver: windows, and what a person does in them.

A window is a person of its own. Everything is on loopback: names are resolved to nothing. What
consoles say is kept, and looked at after each test: a broken policy or a failed script is a failed test.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

CHROMIUM, DRIVER = Path("/usr/bin/chromium"), Path("/usr/bin/chromedriver")
PATIENCE_S = 30.0
PHONE, DESKTOP = (360, 740), (1200, 900)
_POLL_S = 0.05
_FLAGS = (
    "--headless",
    "--no-sandbox",  # tests run as root, and see no page but ours
    "--disable-gpu",
    "--disable-quic",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-background-timer-throttling",  # windows wait in the background while another one is used
    "--disable-backgrounding-occluded-windows",
    "--disable-renderer-backgrounding",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
)

_T = TypeVar("_T")


def missing() -> str:
    """What to install, "" if all is there."""
    return "" if CHROMIUM.exists() and DRIVER.exists() else "needs a browser: apt-get install chromium chromium-driver"


@contextmanager
def browser(profile: Path) -> Iterator[WebDriver]:
    """A browser with an empty profile."""
    options = Options()
    options.binary_location = str(CHROMIUM)
    for flag in (*_FLAGS, f"--user-data-dir={profile}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(str(DRIVER)))  # the path: nothing is looked for or fetched
    try:
        yield driver
    finally:
        driver.quit()


def wait(condition: Callable[[], _T | None], words: str, patience_s: float = PATIENCE_S) -> _T:
    """What `condition` gives, once that is true; elements that are replaced meanwhile are looked for again."""
    deadline = time.monotonic() + patience_s
    while True:
        with contextlib.suppress(StaleElementReferenceException):
            found = condition()
            if found:
                return found
        assert time.monotonic() < deadline, f"waited in vain: {words}"
        time.sleep(_POLL_S)


@dataclass(slots=True)
class Window:
    """A window of its own, with its own sessionStorage."""

    driver: WebDriver
    handle: str

    @classmethod
    def open(cls, driver: WebDriver, url: str, size: tuple[int, int] = DESKTOP) -> Window:
        driver.switch_to.new_window("tab")
        made = cls(driver, driver.current_window_handle)
        made.resize(size)
        driver.get(url)
        return made

    def use(self) -> WebDriver:
        """The driver, turned to this window."""
        self.driver.switch_to.window(self.handle)
        return self.driver

    def resize(self, size: tuple[int, int]) -> None:
        """The page's width and height in CSS pixels; a headless window itself is not made narrower than 500."""
        metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": size == PHONE}
        self.command("Emulation.setDeviceMetricsOverride", metrics)

    def prefer(self, **features: str) -> None:
        """Media features: color_scheme="dark"."""
        told = [{"name": f"prefers-{name.replace('_', '-')}", "value": value} for name, value in features.items()]
        self.command("Emulation.setEmulatedMedia", {"features": told})

    def offline(self, is_offline: bool) -> None:
        """Take the network away from this window, or give it back."""
        speeds = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
        self.command("Network.enable", {})
        self.command("Network.emulateNetworkConditions", {"offline": is_offline, **speeds})

    def command(self, name: str, arguments: dict[str, Any]) -> Any:
        """A command of the DevTools protocol."""
        return self.use().execute_cdp_cmd(name, arguments)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.use().execute_script(script, *arguments)

    def module(self, name: str, expression: str, *arguments: Any) -> Any:
        """What an expression gives; `m` is a module of the page, `a` the arguments."""
        return self.run(f"const a = arguments; return import('/page/{name}').then((m) => ({expression}));", *arguments)

    @property
    def text(self) -> str:
        """All that can be seen."""
        return str(self.run("return document.body.innerText"))

    def wait_for(self, words: str) -> None:
        wait(lambda: words in self.text, f"{words!r} in:\n{self.text}")

    def element(self, css: str) -> WebElement:
        """The first that can be seen."""
        driver = self.use()
        return wait(
            lambda: next((one for one in driver.find_elements(By.CSS_SELECTOR, css) if one.is_displayed()), None), css
        )

    def button(self, words: str) -> WebElement:
        return self._named("*[self::button or self::summary]", words)

    def press(self, words: str) -> None:
        self.button(words).click()

    def field(self, label: str) -> WebElement:
        """The field that a label names."""
        return self.use().find_element(By.ID, str(self._named("label", label).get_attribute("for")))

    def value(self, label: str) -> str:
        """What stands in a field."""
        return str(self.field(label).get_property("value"))

    def fill(self, label: str, text: str) -> None:
        field = self.field(label)
        field.clear()
        field.send_keys(text)

    def shot(self, path: Path) -> None:
        """A picture of the whole page."""
        width, height = self.run("const e = document.documentElement; return [e.scrollWidth, e.scrollHeight]")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        data = self.command("Page.captureScreenshot", {"captureBeyondViewport": True, "clip": clip})["data"]
        path.write_bytes(base64.b64decode(data))

    def _named(self, kind: str, words: str) -> WebElement:
        """The first that can be seen and has these words."""
        driver, path = self.use(), f"//{kind}[normalize-space()={words!r}]"
        return wait(
            lambda: next((one for one in driver.find_elements(By.XPATH, path) if one.is_displayed()), None), words
        )

    def close(self) -> None:
        self.use().close()
        self.driver.switch_to.window(self.driver.window_handles[0])
