"""A headless Chromium, driven through chromedriver's protocol of HTTP and JSON. Nothing outside the machine is used."""

import base64
import contextlib
import json
import re
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars")


class Browser:
    """One window. Its log holds the messages of the console and the requests of the network since it was read."""

    def __init__(self, address: str) -> None:
        options = {
            "binary": CHROMIUM,
            "args": [*_FLAGS, "--host-resolver-rules=MAP * ~NOTFOUND"],
            "excludeSwitches": ["enable-automation"],
        }
        wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"}}
        self._address = address
        body = {"capabilities": {"alwaysMatch": wanted}}
        self._address = f"{address}/session/{self._send('POST', '/session', body)['sessionId']}"

    def _send(self, verb: str, path: str, body: dict[str, Any] | None = None) -> Any:
        data = None if verb != "POST" else json.dumps(body or {}).encode()
        request = urllib.request.Request(self._address + path, data, {"Content-Type": "application/json"}, method=verb)
        with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=60) as answer:
            return json.load(answer)["value"]

    def command(self, name: str, **parameters: Any) -> Any:
        """Send a command of the protocol of Chromium's developer tools."""
        return self._send("POST", "/goog/cdp/execute", {"cmd": name, "params": parameters})

    def show(self, path: Path, *, width: int = 1280, dark: bool = False) -> None:
        """Open a page in a window of a width in pixels; a narrow one is a phone."""
        self.command(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": 844, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.command("Emulation.setEmulatedMedia", features=[scheme])
        self._send("POST", "/url", {"url": path.absolute().as_uri()})

    def run(self, script: str, *arguments: Any) -> Any:
        """Run JavaScript, the body of a function, in the page."""
        return self._send("POST", "/execute/sync", {"script": script, "args": list(arguments)})

    def press(self, *keys: str) -> None:
        """Press and release keys, as `Tab` or `Escape`."""
        codes = {"Tab": "\ue004", "Escape": "\ue00c", "Left": "\ue012", "Up": "\ue013", "Right": "\ue014"}
        codes |= {"Down": "\ue015", "Enter": "\ue007"}
        actions = [{"type": kind, "value": codes[key]} for key in keys for kind in ("keyDown", "keyUp")]
        self._send("POST", "/actions", {"actions": [{"type": "key", "id": "keys", "actions": actions}]})

    def hover(self, selector: str) -> None:
        """Move the mouse to the middle of an element and wait until the page has answered."""
        script = "const r = document.querySelector(arguments[0]).getBoundingClientRect();"
        x, y = self.run(f"{script} return [r.x + r.width / 2, r.y + r.height / 2]", selector)
        move = {"type": "pointerMove", "duration": 0, "x": int(x), "y": int(y)}
        self._send("POST", "/actions", {"actions": [{"type": "pointer", "id": "mouse", "actions": [move]}]})
        self._send("POST", "/execute/async", {"script": "setTimeout(arguments[0], 300)", "args": []})

    def picture(self, path: Path) -> None:
        """Write the whole page as a PNG."""
        size = self.command("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        data = self.command("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)["data"]
        path.write_bytes(base64.b64decode(data))

    def problems(self) -> list[str]:
        """Return the messages of the console since the last call."""
        return [f"{entry['level']}: {entry['message']}" for entry in self._send("POST", "/se/log", {"type": "browser"})]

    def requests(self) -> list[str]:
        """Return the addresses that were asked for since the last call."""
        entries = self._send("POST", "/se/log", {"type": "performance"})
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        self._send("DELETE", "")


@contextlib.contextmanager
def browser() -> Iterator[Browser]:
    """Start a browser, and end it with its driver."""
    assert DRIVER is not None
    driver = subprocess.Popen([DRIVER, "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    try:
        assert driver.stdout is not None
        port = next(found[1] for line in driver.stdout if (found := re.search(r"on port ([1-9]\d*)", line)))
        window = Browser(f"http://127.0.0.1:{port}")
        try:
            yield window
        finally:
            window.close()
    finally:
        driver.terminate()
        driver.wait()
