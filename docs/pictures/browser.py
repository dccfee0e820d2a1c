"""A browser without a window, through chromedriver (W3C WebDriver: JSON over HTTP)."""

from __future__ import annotations

import base64
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Self

import requests

FIND = """
const find = (words) => {
  for (const place of document.querySelectorAll('button, a, [role=button], h1, h2, h3, h4, h5, div, span'))
    if (place.textContent.trim() === words || place.getAttribute('aria-label') === words) return place;
  for (const place of document.querySelectorAll('h1, h2, h3, h4, h5'))
    if (place.textContent.trim().startsWith(words)) return place;
};
"""


class Browser:
    """Chromium, with a page of `size` pixels."""

    def __init__(self, driver: str, *, size: tuple[int, int], dark: bool = False) -> None:
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
        options = {"alwaysMatch": {"goog:chromeOptions": {"args": arguments}}}
        made = requests.post(f"{driver}/session", json={"capabilities": options}, timeout=60)
        made.raise_for_status()
        self.session = f"{driver}/session/{made.json()['value']['sessionId']}"
        page = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.develop("Emulation.setDeviceMetricsOverride", **page)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.develop("Emulation.setEmulatedMedia", features=[scheme])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        requests.delete(self.session, timeout=60)

    def call(self, command: str, **values: Any) -> Any:
        answer = requests.post(f"{self.session}/{command}", json=values, timeout=60)
        answer.raise_for_status()
        return answer.json()["value"]

    def develop(self, command: str, **values: Any) -> None:
        """A command of Chrome's DevTools protocol."""
        self.call("goog/cdp/execute", cmd=command, params=values)

    def script(self, text: str, *values: Any) -> Any:
        return self.call("execute/sync", script=text, args=list(values))

    def open(self, url: str, shows: str, *, seconds: int = 60) -> None:
        """Open a page, and wait until it shows these words."""
        self.call("url", url=url)
        end = time.monotonic() + seconds
        while shows not in self.script("return document.body.innerText"):
            if time.monotonic() > end:
                sys.exit(f"{url} does not show “{shows}” after {seconds} seconds")
            time.sleep(0.5)
        time.sleep(2)  # pictures and curves come last

    def click(self, words: str) -> None:
        """Click what has these words, or is named so for screen readers; nothing if nothing does."""
        self.script(f"{FIND} find(arguments[0])?.click();", words)
        time.sleep(1)

    def scroll_to(self, words: str) -> None:
        """Scroll to what has these words, or to the heading that begins with them."""
        if not self.script(f"{FIND} find(arguments[0])?.scrollIntoView(); return Boolean(find(arguments[0]));", words):
            sys.exit(f"the page does not have “{words}”")
        time.sleep(1)

    def picture(self) -> bytes:
        """The page as a PNG."""
        answer = requests.get(f"{self.session}/screenshot", timeout=60)
        answer.raise_for_status()
        return base64.b64decode(answer.json()["value"])


@contextmanager
def serving(command: Sequence[str], health: str, *, seconds: int = 120) -> Iterator[str]:
    """Run a server, with a free port for `PORT` in its command; its address, once the path `health` answers."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    words = [word.replace("PORT", port) for word in command]
    server = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        end = time.monotonic() + seconds
        while not answers(f"http://127.0.0.1:{port}{health}"):
            if server.poll() is not None or time.monotonic() > end:
                sys.exit(f"it does not answer: {' '.join(words)}")
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.terminate()
        server.wait()


def answers(url: str) -> bool:
    try:
        return requests.get(url, timeout=5).ok
    except requests.RequestException:
        return False
