"""A headless Chromium, driven over a pipe: no driver and no port."""

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
TIMEOUT = 60


class Browser:
    """One page. Use as a context.

    Args:
        profile: An empty folder for the browser.

    Attributes:
        requests: Addresses of everything that the page asked for, itself included.
    """

    def __init__(self, profile: Path) -> None:
        assert CHROMIUM is not None
        self.requests: list[str] = []
        self._number, self._left = 0, b""
        to_browser, self._write = os.pipe()
        self._read, from_browser = os.pipe()
        # The browser reads from descriptor 3 and writes to 4.
        script = f'exec "$@" 3<&{to_browser} 4>&{from_browser}'
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run"]
        self._process = subprocess.Popen(
            ["bash", "-c", script, "bash", CHROMIUM, *options, f"--user-data-dir={profile}"],
            pass_fds=(to_browser, from_browser), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(to_browser)
        os.close(from_browser)
        os.set_blocking(self._read, False)
        self._session: str | None = None
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._session = None
        self.call("Browser.close")
        self._process.wait(TIMEOUT)
        os.close(self._read)
        os.close(self._write)

    def call(self, method: str, **parameters: Any) -> Any:
        """Call a method of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + TIMEOUT
        while True:
            for answer in self._answers():
                if answer.get("method") == "Network.requestWillBeSent":
                    self.requests.append(answer["params"]["request"]["url"])
                if answer.get("id") == self._number:
                    assert "error" not in answer, answer
                    return answer["result"]
            assert time.monotonic() < deadline, f"the browser does not answer {method}"
            time.sleep(0.01)

    def _answers(self) -> list[dict[str, Any]]:
        try:
            self._left += os.read(self._read, 1 << 20)
        except BlockingIOError:
            return []
        *whole, self._left = self._left.split(b"\0")
        return [json.loads(message) for message in whole]

    def open(self, address: str) -> None:
        """Open a page from its beginning, and wait until its script has run and its first examples are built."""
        self.call("Page.navigate", url="about:blank")  # another fragment alone would not load a page again
        self.call("Page.navigate", url=address)
        self.until("document.readyState === 'complete' && location.href !== 'about:blank'")
        self.settle()

    def until(self, condition: str) -> None:
        """Wait for a condition in the page."""
        deadline = time.monotonic() + TIMEOUT
        while not self.evaluate(condition):
            assert time.monotonic() < deadline, condition
            time.sleep(0.02)

    def settle(self) -> None:
        """Wait for two frames, in which observers have run."""
        self.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done))))")

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key."""
        text = {"text": key} if len(key) == 1 else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", key=key, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", key=key)
        self.settle()

    def set(self, element: str, value: object) -> None:
        """Give an input a value, as a hand would."""
        field = f"document.getElementById({json.dumps(element)})"
        self.evaluate(
            f"{field}.value = {json.dumps(value)};"
            f"for (const kind of ['input', 'change']) {field}.dispatchEvent(new Event(kind, {{bubbles: true}}))"
        )
        self.settle()

    def resize(self, width: int, height: int) -> None:
        """Give the window a size."""
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.settle()

    def screenshot(self, path: Path) -> None:
        """Write what the window shows as PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))
