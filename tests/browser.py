"""A real browser for tests, driven over the WebDriver protocol that chromedriver speaks (no further package)."""

from __future__ import annotations

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DRIVER = shutil.which("chromedriver")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


class Browser:
    """One window."""

    def __init__(self, session: str) -> None:
        self._session = session

    def _call(self, what: str, **body: Any) -> Any:
        return _post(f"{self._session}/{what}", body)

    def open(self, url: str) -> None:
        """Loads a page and waits for it."""
        self._call("url", url=url)

    def run(self, script: str) -> Any:
        """The value that a script returns."""
        return self._call("execute/sync", script=script, args=[])

    def set(self, element: str, value: object) -> None:
        """Changes a field of a form as a person does."""
        self.run(
            f"const field = document.getElementById({json.dumps(element)});"
            f"if (field.type === 'checkbox') field.checked = {json.dumps(value)};"
            f"else field.value = {json.dumps(value)};"
            "field.dispatchEvent(new Event('input', {bubbles: true}))"
        )

    def press(self, *keys: str) -> None:
        """Presses keys one after another, as a keyboard does; ``Tab``, ``Enter``, ``Escape`` and arrows by name."""
        codes = {"Tab": "\ue004", "Enter": "\ue007", "Escape": "\ue00c", "Left": "\ue012", "Right": "\ue014"}
        strokes = [(kind, codes.get(key, key)) for key in keys for kind in ("keyDown", "keyUp")]
        actions = [{"type": kind, "value": value} for kind, value in strokes]
        self._call("actions", actions=[{"type": "key", "id": "keyboard", "actions": actions}])

    def wait(self, condition: str) -> None:
        """Until an expression of JavaScript is true, at most for the two minutes that a script may take."""
        look = f"(function look() {{ ({condition}) ? done() : setTimeout(look, 20) }})()"
        self.run(f"return new Promise(done => {look})")

    def complaints(self) -> list[str]:
        """What the console says: errors of scripts, and what the page's policy has blocked."""
        return [entry["message"] for entry in self._call("se/log", type="browser")]

    def picture(self) -> bytes:
        """A PNG of the whole page, in a window that is as high; only what a window shows is drawn."""
        width, height, ratio = self.run(
            "return [innerWidth, document.documentElement.scrollHeight, devicePixelRatio]"
        )
        size = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": width < 600}
        self._call("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=size)
        return base64.b64decode(self._call("goog/cdp/execute", cmd="Page.captureScreenshot", params={})["data"])

    def dark(self) -> None:
        """From now on the browser asks for dark pages."""
        features = [{"name": "prefers-color-scheme", "value": "dark"}]
        self._call("goog/cdp/execute", cmd="Emulation.setEmulatedMedia", params={"features": features})


@contextlib.contextmanager
def browser(
    profile: Path, *, width: int, height: int, phone: bool = False, scripts: bool = True
) -> Iterator[Browser]:
    """A headless window of this size in CSS pixels; without ``scripts`` JavaScript is off."""
    assert DRIVER is not None and CHROMIUM is not None
    arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"]
    options: dict[str, Any] = {
        "binary": CHROMIUM,
        "args": [*arguments, f"--window-size={width},{height}", f"--user-data-dir={profile}"],
        "prefs": {} if scripts else {"profile.managed_default_content_settings.javascript": 2},
    }
    if phone:
        options["mobileEmulation"] = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 2}}
    wanted = {
        "browserName": "chrome",
        "timeouts": {"script": 120_000},
        "goog:chromeOptions": options,
        "goog:loggingPrefs": {"browser": "ALL"},
    }
    with subprocess.Popen(
        [DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as driver:
        try:
            assert driver.stdout is not None
            ready = (re.search(r"started successfully on port (\d+)", line) for line in driver.stdout)
            base = f"http://127.0.0.1:{next(filter(None, ready))[1]}/session"
            session = _post(base, {"capabilities": {"alwaysMatch": wanted}})["sessionId"]
            try:
                yield Browser(f"{base}/{session}")
            finally:
                _post(f"{base}/{session}", None, method="DELETE")
        finally:
            driver.terminate()


def _post(url: str, body: dict[str, Any] | None, *, method: str = "POST") -> Any:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"}, method=method)
    local = urllib.request.build_opener(urllib.request.ProxyHandler({}))  # never through a proxy
    try:
        with local.open(request, timeout=150) as answer:
            return json.loads(answer.read())["value"]
    except urllib.error.HTTPError as error:
        with error:
            raise RuntimeError(json.loads(error.read())["value"]["message"].splitlines()[0]) from None
