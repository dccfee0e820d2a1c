"""The page in a real browser: keys, the mouse, and text that tries to break out of it."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from mlflow import MlflowClient

from mlflow_ft.engine.serving import http_server, voting
from mlflow_ft.operations.comparing.pairs import Pair, Prompt
from tests.operations.comparing.test_session import Voted

selenium = pytest.importorskip("selenium.webdriver")
waiting = pytest.importorskip("selenium.webdriver.support.ui")
DRIVER, BROWSER = shutil.which("chromedriver"), shutil.which("chromium")
pytestmark = pytest.mark.skipif(not (DRIVER and BROWSER), reason="needs chromium and chromedriver")

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</textarea></script><img src=x onerror=\"document.title = 'owned'\">\n    four  spaces\n\tand a tab",
    "שלום, זו תשובה מימין לשמאל",
    "long " * 400,
    "${7*7} {{ 7*7 }} &lt;b&gt; \u202e \u0000 </div>",
)
TOKEN = "tried"


@pytest.fixture
def browser() -> Iterator[Any]:
    options = selenium.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,900"):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = selenium.Chrome(options=options, service=selenium.ChromeService(DRIVER))
    driver.implicitly_wait(0)
    yield driver
    driver.quit()


@pytest.fixture
def voted(client: MlflowClient) -> Voted:
    pairs = [
        Pair(
            prompt=Prompt(place="x:1", messages=[{"role": "user", "content": text}]),
            first=f"first {text}",
            second=f"{text} second",
            left="first",
        )
        for text in HOSTILE
    ]
    return Voted(client, pairs)


@pytest.fixture
def url(voted: Voted) -> Iterator[str]:
    stopping, started = threading.Event(), threading.Event()
    app = voting.make_app(voted.session, own_token=TOKEN, stopping=stopping)
    with http_server.bound("127.0.0.1", 0) as listener:
        server = threading.Thread(
            target=http_server.run,
            args=[app, listener],
            kwargs={"stopping": stopping, "ready": started.set, "access_log": False},
        )
        server.start()
        assert started.wait(30)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}/?token={TOKEN}"
        stopping.set()
        server.join()


class Tab:
    """The page, as somebody sees and uses it."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        browser.get(url)

    def text(self, selector: str) -> str:
        return str(self.browser.execute_script("return document.querySelector(arguments[0]).textContent", selector))

    def element(self, selector: str) -> Any:
        return self.browser.find_element("css selector", selector)

    def press(self, key: str) -> None:
        self.element("body").send_keys(key)

    def shows(self, progress: str, number: int | None = None) -> None:
        """Wait until so much is voted, and compare the shown pair with what it is, letter by letter."""
        waiting.WebDriverWait(self.browser, 20, 0.05).until(lambda _: self.text("#progress") == progress)
        if number is not None:
            content = HOSTILE[number]
            assert self.text("#prompt .text") == content
            assert self.text("#left .text") == f"first {content}"
            assert self.text("#right .text") == f"{content} second"


def test_keys_mouse_and_hostile_text(browser: Any, url: str, voted: Voted) -> None:
    tab = Tab(browser, url)
    tab.shows("0 voted, 5 to go", 0)
    assert not tab.element("#undo").is_enabled()
    tab.press("1")
    tab.shows("1 voted, 4 to go", 1)
    assert "    four  spaces" in tab.element("#left .text").text, "whitespace is shown"
    tab.press("x")
    tab.press("2")
    tab.shows("2 voted, 3 to go", 2)
    assert tab.element("#prompt .text").value_of_css_property("direction") == "rtl"
    tab.press("u")
    tab.shows("1 voted, 4 to go", 1)
    tab.element("#vote-equal").click()
    tab.shows("2 voted, 3 to go", 2)
    tab.element("#skip").click()
    tab.shows("2 voted, 1 skipped, 2 to go", 3)
    assert browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    tab.press("0")
    tab.shows("3 voted, 1 skipped, 1 to go", 4)
    tab.element("#vote-right").click()
    tab.shows("4 voted, 1 skipped, 0 to go")
    check_end(tab, voted)
    assert browser.title == "Which answer is better?", "no text was run as a script"
    assert browser.execute_script("return document.querySelectorAll('img, textarea').length") == 0
    assert [entry for entry in browser.get_log("browser") if "favicon" not in entry["message"]] == []


def check_end(tab: Tab, voted: Voted) -> None:
    assert tab.element("#end").is_displayed()
    assert not tab.element("#vote-left").is_enabled()
    assert tab.text("#sentence") == ""
    tab.element("#finish").click()
    waiting.WebDriverWait(tab.browser, 20, 0.05).until(lambda _: tab.element("#result").is_displayed())
    found = voted.found()
    assert found is not None
    assert tab.text("#sentence") == found.sentence()
    assert (found.wins, found.ties, found.losses, found.skipped) == (1, 2, 1, 1)
