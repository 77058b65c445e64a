"""A real headless Chromium for tests, over its DevTools protocol; no pytest fixtures."""

import json
import shutil
import subprocess
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
PATIENCE = 180.0  # s; a busy machine starts a browser, and a kernel, slowly
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
NEEDS_BROWSER = pytest.mark.skipif(BROWSER is None, reason="no Chromium here")


def until(look: Callable[[], object], what: str) -> object:
    """What ``look`` sees as soon as it sees something."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if found := look():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {PATIENCE:.0f} s")


class Page:
    """One page of a browser, by its DevTools address."""

    def __init__(self, address: str) -> None:
        websocket = pytest.importorskip("websocket")  # comes with JupyterLab
        self.socket = websocket.create_connection(address, timeout=PATIENCE, suppress_origin=True)
        self.number = 0

    def send(self, method: str, **parameters: object) -> dict:
        self.number += 1
        self.socket.send(json.dumps({"id": self.number, "method": method, "params": parameters}))
        while (answer := json.loads(self.socket.recv())).get("id") != self.number:
            pass
        return answer.get("result", {})

    def js(self, expression: str) -> object:
        """The value of an expression; None where it throws, as things do that are not there yet."""
        found = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return None if "exceptionDetails" in found else found["result"].get("value")


@contextmanager
def opened(profile: Path, wide: int = 1200, high: int = 900) -> Iterator[Page]:
    """A browser with an empty page, and a folder for what it keeps."""
    process = subprocess.Popen(
        [
            BROWSER,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            f"--window-size={wide},{high}",
            "--remote-debugging-port=0",
            f"--user-data-dir={profile}",
            "about:blank",
        ],
        **QUIET,
    )
    try:
        told = profile / "DevToolsActivePort"
        until(lambda: told.exists() and told.read_text().strip(), "the browser")
        address = f"http://127.0.0.1:{told.read_text().splitlines()[0]}/json"
        pages = json.loads(urllib.request.urlopen(address, timeout=PATIENCE).read())
        yield Page(next(found["webSocketDebuggerUrl"] for found in pages if found["type"] == "page"))
    finally:
        process.kill()
        process.wait(30)
