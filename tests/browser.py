"""A real Chromium without a window, spoken to by its own protocol over two pipes: nothing to install beside it.

Messages are JSON objects, each ended by a zero byte, as `--remote-debugging-pipe` has it.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

PROGRAMS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
LIMIT_S = 60.0
"""Of an answer; a start takes a second where nothing else runs."""


def chromium() -> str:
    """The program. Without one the test is left out with what to install, but in CI it fails."""
    found = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
    if found:
        return found
    why = (
        "no Chromium, so nobody looks at the page. On Debian: apt-get install --no-install-recommends "
        "chromium-headless-shell, which .ci/run does where it is root; elsewhere install Chrome or Chromium"
    )
    if os.environ.get("CI"):
        raise FileNotFoundError(why)
    pytest.skip(why)


class Browser:
    """One tab of a browser; used in a `with` block.

    Attributes:
        requests: Addresses that the tab asked for since `open`.
        complaints: Errors and warnings of its console, and exceptions.
    """

    def __init__(self, profile: Path) -> None:
        self.requests: list[str] = []
        self.complaints: list[str] = []
        to_read, to_write = os.pipe(), os.pipe()
        command = [
            *(chromium(), "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
            *(f"--user-data-dir={profile}", "--remote-debugging-pipe", "about:blank"),
        ]
        self._to, self._from = to_write[1], to_read[0]

        def at_their_places() -> None:
            os.dup2(to_write[0], 13)
            os.dup2(to_read[1], 14)
            os.dup2(13, 3)
            os.dup2(14, 4)

        self._process = subprocess.Popen(
            command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, preexec_fn=at_their_places, pass_fds=(3, 4)
        )
        os.close(to_write[0])
        os.close(to_read[1])
        self._number, self._rest, self._session = 0, b"", ""
        target = self._ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._ask(f"{domain}.enable")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)

    def open(self, address: str) -> None:
        """Goes to an address, and returns when all of it is there."""
        self.requests.clear()
        self.complaints.clear()
        self._ask("Page.navigate", url=address)
        self.until(lambda: self.value("document.readyState === 'complete'") is True)

    def value(self, script: str) -> Any:
        """What a script gives in the page; raises AssertionError with its exception."""
        answer = self._ask("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def until(self, happened: Callable[[], bool]) -> None:
        """Returns when something has happened; raises TimeoutError."""
        end = time.monotonic() + LIMIT_S
        while not happened():
            if time.monotonic() > end:
                raise TimeoutError(f"it did not happen within {LIMIT_S} s")
            time.sleep(0.05)

    def shape(self, width: int, *, dark: bool = False, media: str = "screen") -> None:
        """Gives the window a width, in CSS pixels, and the page a medium."""
        phone = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": width < 600}
        self._ask("Emulation.setDeviceMetricsOverride", **phone)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._ask("Emulation.setEmulatedMedia", media=media, features=[scheme])

    def press(self, key: str, text: str = "") -> None:
        """Presses and releases a key (`Tab`, `Enter`)."""
        code = {"Tab": 9, "Enter": 13}[key]
        for kind in ("keyDown", "keyUp"):
            self._ask("Input.dispatchKeyEvent", type=kind, key=key, code=key, text=text, windowsVirtualKeyCode=code)

    def picture(self) -> bytes:
        """The whole page as PNG."""
        answer = self._ask("Page.captureScreenshot", captureBeyondViewport=True, format="png")
        return base64.b64decode(answer["data"])

    def printed(self) -> bytes:
        """The whole page as PDF, on A4."""
        answer = self._ask(
            "Page.printToPDF", printBackground=True, preferCSSPageSize=False, paperWidth=8.27, paperHeight=11.7
        )
        return base64.b64decode(answer["data"])

    def _ask(self, method: str, **params: Any) -> dict[str, Any]:
        self._number += 1
        session = {"sessionId": self._session} if self._session else {}
        message = {"id": self._number, "method": method, "params": params, **session}
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer.get("result", {})
            self._note(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            piece = os.read(self._from, 2**20)
            assert piece, "the browser has ended"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)

    def _note(self, event: dict[str, Any]) -> None:
        given = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            self.requests.append(given["request"]["url"])
        elif event.get("method") == "Runtime.exceptionThrown":
            self.complaints.append(str(given["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded":
            self.complaints.append(f"{given['entry']['level']}: {given['entry']['text']}")
        elif event.get("method") == "Runtime.consoleAPICalled" and given["type"] in ("error", "warning"):
            self.complaints.append(str(given["args"]))
