"""The page in a real browser: keys, the mouse, and text that tries to break out of it."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from mlflow import MlflowClient

from mlflow_ft.engine.serving import http_server, voting
from mlflow_ft.operations.comparing.pairs import Pair, Prompt
from tests.browsing import Tab
from tests.operations.comparing.test_session import Voted

HOSTILE = (
    "<script>document.title = 'owned'</script>",
    "</textarea></script><img src=x onerror=\"document.title = 'owned'\">\n    four  spaces\n\tand a tab",
    "שלום, זו תשובה מימין לשמאל",
    "long " * 400,
    "${7*7} {{ 7*7 }} &lt;b&gt; \u202e \u0000 </div>",
)
TOKEN = "tried"


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


def shows(tab: Tab, progress: str, number: int | None = None) -> None:
    """Wait until so much is voted, and compare the shown pair with what it is, letter by letter."""
    tab.wait(lambda: tab.text("#progress") == progress)
    if number is not None:
        content = HOSTILE[number]
        assert tab.text("#prompt .text") == content
        assert tab.text("#left .text") == f"first {content}"
        assert tab.text("#right .text") == f"{content} second"


def test_keys_mouse_and_hostile_text(tab: Tab, url: str, voted: Voted) -> None:
    tab.driver.get(url)
    shows(tab, "0 voted, 5 to go", 0)
    assert not tab.element("#undo").is_enabled()
    tab.press("1")
    shows(tab, "1 voted, 4 to go", 1)
    assert "    four  spaces" in tab.element("#left .text").text, "whitespace is shown"
    tab.press("x")
    tab.press("2")
    shows(tab, "2 voted, 3 to go", 2)
    assert tab.element("#prompt .text").value_of_css_property("direction") == "rtl"
    tab.press("u")
    shows(tab, "1 voted, 4 to go", 1)
    tab.element("#vote-equal").click()
    shows(tab, "2 voted, 3 to go", 2)
    tab.element("#skip").click()
    shows(tab, "2 voted, 1 skipped, 2 to go", 3)
    assert tab.driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
    tab.press("0")
    shows(tab, "3 voted, 1 skipped, 1 to go", 4)
    tab.element("#vote-right").click()
    shows(tab, "4 voted, 1 skipped, 0 to go")
    check_end(tab, voted)
    assert tab.driver.title == "Which answer is better?", "no text was run as a script"
    assert tab.driver.execute_script("return document.querySelectorAll('img, textarea').length") == 0
    assert tab.complaints() == []


def check_end(tab: Tab, voted: Voted) -> None:
    assert tab.element("#end").is_displayed()
    assert not tab.element("#vote-left").is_enabled()
    assert tab.text("#sentence") == ""
    tab.element("#finish").click()
    tab.wait(lambda: bool(tab.element("#result").is_displayed()))
    found = voted.found()
    assert found is not None
    assert tab.text("#sentence") == found.sentence()
    assert (found.wins, found.ties, found.losses, found.skipped) == (1, 2, 1, 1)
