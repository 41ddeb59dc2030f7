"""A browser and a broker for each module; after each test, what consoles and the broker's log said is looked at.

Not for the whole run: other tests, which pytest-randomly puts between, fork and count descriptors.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver

from tests.browser import chromium
from tests.browser.chromium import DESKTOP, Window
from tests.browser.serving import Site, site

OpenWindow = Callable[..., Window]

_TOKEN = re.compile(r"p_[A-Za-z0-9_-]{20,}|[A-Za-z0-9_-]{43}")  # a token's beginning, a signature, a passphrase
_MANY = 10**5


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    lacking = chromium.missing()
    if lacking:
        pytest.skip(lacking)
    with chromium.browser(tmp_path_factory.mktemp("chromium")) as started:
        yield started


@pytest.fixture(scope="module")
def broker() -> Iterator[Site]:
    with site(
        requests_per_minute=_MANY, creations_per_minute=_MANY, upgrades_per_minute=_MANY, pages_per_minute=_MANY
    ) as served:
        yield served


@pytest.fixture
def allowed() -> list[str]:
    """Parts of console messages that the test expects: a browser itself reports each answer of 400 and above."""
    return []


@pytest.fixture
def open_window(driver: WebDriver, broker: Site, allowed: list[str]) -> Iterator[OpenWindow]:
    """Opens windows at paths of the broker, which are closed with the test; none of them has complained then."""
    opened: list[Window] = []
    driver.get_log("browser")  # type: ignore[no-untyped-call]
    before = len(broker.lines)

    def open_(path: str, size: tuple[int, int] = DESKTOP) -> Window:
        url = path if path.startswith("http") else f"{broker.url}{path}"
        opened.append(Window.open(driver, url, size))
        return opened[-1]

    yield open_
    said = [str(entry["message"]) for entry in driver.get_log("browser")]  # type: ignore[no-untyped-call]
    for window in opened:
        window.close()
    assert [line for line in said if not any(part in line for part in allowed)] == []
    assert [line for line in broker.lines[before:] if _TOKEN.search(line)] == []
