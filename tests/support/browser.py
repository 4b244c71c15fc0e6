"""A real browser, driven over a pipe by the DevTools protocol (chromedevtools.github.io): without port or network.

It records errors of a page's script, violations of its content security policy, and requests. A test checks these at
its end.
"""

from __future__ import annotations

import base64
import json
import os
import select
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

PROGRAM = "chromium-headless-shell"
PATIENCE = 120.0
"""Seconds that an answer of the browser may take."""
KEYS = {"Enter": ("\r", 13), "Tab": ("\t", 9), "Escape": ("", 27), "ArrowLeft": ("", 37), "ArrowUp": ("", 38),
        "ArrowRight": ("", 39), "ArrowDown": ("", 40)}  # fmt: skip


def missing() -> str:
    """Return the reason why there is no browser; empty if there is one."""
    return "" if shutil.which(PROGRAM) else f"{PROGRAM} isn't installed: sudo scripts/provision --browser"


class Browser:
    """A running browser.

    :param reads: file from which the browser's messages are read.
    :param writes: file to which messages to the browser are written.
    """

    def __init__(self, reads: int, writes: int) -> None:
        self._reads, self._writes, self._number = reads, writes, 0
        self._buffer = b""
        self.events: list[dict[str, Any]] = []

    def call(self, method: str, session: str = "", **parameters: Any) -> dict[str, Any]:
        """Return the result of a command; record the events that come before it."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        message |= {"sessionId": session} if session else {}
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        last = time.monotonic() + PATIENCE
        while time.monotonic() < last:
            found = self._next(last)
            if found.get("id") == self._number:
                if "error" in found:
                    raise AssertionError(f"{method}: {found['error']}")
                result: dict[str, Any] = found["result"]
                return result
            self.events.append(found)
        raise AssertionError(f"{method}: no answer in {PATIENCE:g} s")

    def _next(self, last: float) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            if not select.select([self._reads], [], [], max(last - time.monotonic(), 0))[0]:
                raise AssertionError(f"the browser said nothing in {PATIENCE:g} s")
            raw = os.read(self._reads, 1 << 16)
            assert raw, "the browser has ended"
            self._buffer += raw
        message, _, self._buffer = self._buffer.partition(b"\0")
        found: dict[str, Any] = json.loads(message)
        return found


class Page:
    """A page in a browser."""

    def __init__(self, browser: Browser, file: Path, size: tuple[int, int], scheme: str, part: str) -> None:
        self._browser, self._first = browser, len(browser.events)
        target = browser.call("Target.createTarget", url="about:blank")["targetId"]
        self._target = target
        self._session = browser.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")
        width, height = size
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._call("Page.navigate", url=f"{file.as_uri()}{part}")
        self.until("document.readyState === 'complete' && location.protocol === 'file:'")

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        return self._browser.call(method, self._session, **parameters)

    def events(self, method: str) -> list[dict[str, Any]]:
        """Return the parameters of all events of one kind (*method*) that the page has sent so far."""
        self._call("Runtime.evaluate", expression="1")
        return [
            one["params"]
            for one in self._browser.events[self._first :]
            if one.get("sessionId") == self._session and one["method"] == method
        ]

    def errors(self) -> list[str]:
        """Return the errors of the page's script, violations of its policy, and dialogues that it opened."""
        found = [str(one["exceptionDetails"]) for one in self.events("Runtime.exceptionThrown")]
        found += [str(one["args"]) for one in self.events("Runtime.consoleAPICalled") if one["type"] == "error"]
        found += [one["entry"]["text"] for one in self.events("Log.entryAdded") if one["entry"]["level"] == "error"]
        return found + [one["message"] for one in self.events("Page.javascriptDialogOpening")]

    def forget(self) -> None:
        """Delete all recorded events of the page."""
        del self._browser.events[self._first :]

    def requests(self) -> list[str]:
        """Return the addresses that the page has requested."""
        return [one["request"]["url"] for one in self.events("Network.requestWillBeSent")]

    def value(self, expression: str) -> Any:
        """Evaluate an expression in the page; return its value."""
        found = self._call("Runtime.evaluate", expression=expression, returnByValue=True)
        if "exceptionDetails" in found:
            raise AssertionError(found["exceptionDetails"].get("exception", found)["description"])
        return found["result"].get("value")

    def until(self, expression: str) -> None:
        """Wait until an expression is true."""
        last = time.monotonic() + PATIENCE
        while not self.value(expression):
            assert time.monotonic() < last, f"not true in {PATIENCE:g} s: {expression}"
            time.sleep(0.02)

    def press(self, *keys: str) -> None:
        """Press keys, by their names or characters."""
        for key in keys:
            text, code = KEYS.get(key, (key, ord(key[0].upper())))
            about = {"key": key, "windowsVirtualKeyCode": code, **({"text": text} if text else {})}
            self._call("Input.dispatchKeyEvent", type="keyDown", **about)
            self._call("Input.dispatchKeyEvent", type="keyUp", **about)

    def click(self, selector: str) -> None:
        """Click on the first element that a selector finds, near its upper left corner."""
        where = f"(() => {{ const r = document.querySelector({json.dumps(selector)}).getBoundingClientRect();"
        x, y = self.value(f"{where} return [r.x + Math.min(r.width, 24) / 2, r.y + Math.min(r.height, 16) / 2]; }})()")
        for kind in ("mousePressed", "mouseReleased"):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def drag(self, start: tuple[int, int], end: tuple[int, int]) -> None:
        """Drag the mouse from one place to another."""
        for kind, (x, y) in (("mousePressed", start), ("mouseMoved", end), ("mouseReleased", end)):
            self._call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def wheel(self, at: tuple[int, int], down: int) -> None:
        """Turn the wheel over a place."""
        self._call("Input.dispatchMouseEvent", type="mouseWheel", x=at[0], y=at[1], deltaX=0, deltaY=down)

    def choose(self, selector: str, value: str) -> None:
        """Choose an option of a list, as a user does: with its events."""
        self.value(
            f"(() => {{ const s = document.querySelector({json.dumps(selector)}); s.value = {json.dumps(value)};"
            " for (const kind of ['input', 'change']) s.dispatchEvent(new Event(kind, {bubbles: true})); })()"
        )

    def picture(self, file: Path) -> None:
        """Write the visible part as PNG or WebP, as the file's name says."""
        form = file.suffix.removeprefix(".")
        more = {"quality": 60} if form == "webp" else {}
        file.write_bytes(base64.b64decode(self._call("Page.captureScreenshot", format=form, **more)["data"]))

    def close(self) -> None:
        """Close the page."""
        self._browser.call("Target.closeTarget", targetId=self._target)


@contextmanager
def running(folder: Path) -> Iterator[Browser]:
    """Run a browser with its files in *folder*; end it with all of its processes.

    As root, the browser runs without its own sandbox, which needs another user. All of its pages are the tests' own.
    """
    to_read, from_us = os.pipe()
    to_us, to_write = os.pipe()
    command = [
        PROGRAM, "--remote-debugging-pipe", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
        "--no-first-run", "--disable-background-networking", "--disable-component-update",
        f"--user-data-dir={folder}", "about:blank",
    ]  # fmt: skip
    shell = ["bash", "-c", f'exec "$@" 3<&{to_read} 4>&{to_write}', "bash", *command]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            shell,
            pass_fds=(to_read, to_write),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    os.close(to_read)
    os.close(to_write)
    try:
        yield Browser(to_us, from_us)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        os.close(to_us)
        os.close(from_us)
