"""A real browser for tests of pages: Chromium, where it is installed with its driver."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from typing import Any

import pytest

SECONDS = 20


class Tab:
    """A page, as somebody sees and uses it."""

    def __init__(self, driver: Any) -> None:
        self.driver = driver

    def text(self, selector: str) -> str:
        """The text of an element, letter by letter, shown or not."""
        return str(self.driver.execute_script("return document.querySelector(arguments[0]).textContent", selector))

    def element(self, selector: str) -> Any:
        return self.driver.find_element("css selector", selector)

    def press(self, keys: str) -> None:
        self.element("body").send_keys(keys)

    def wait(self, until: Callable[[], bool]) -> None:
        from selenium.webdriver.support.ui import WebDriverWait

        WebDriverWait(self.driver, SECONDS, 0.05).until(lambda _: until())

    def complaints(self) -> list[str]:
        """What the browser has refused, or a script has failed with."""
        messages = [entry["message"] for entry in self.driver.get_log("browser")]
        return [message for message in messages if "favicon" not in message]


@pytest.fixture
def tab() -> Iterator[Tab]:
    """An empty tab; the test is skipped where there is no browser."""
    webdriver = pytest.importorskip("selenium.webdriver")
    driver, browser = shutil.which("chromedriver"), shutil.which("chromium")
    if not (driver and browser):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = browser
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    opened = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield Tab(opened)
    opened.quit()
