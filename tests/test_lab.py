"""A person in JupyterLab interrupts a run, restarts the kernel and runs all cells: it goes on where it was.

In a real headless Chromium, over its DevTools protocol. Run: pytest tests/test_lab.py
"""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from conftest import Suite

websocket = pytest.importorskip("websocket")  # comes with JupyterLab
BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = [pytest.mark.slow, pytest.mark.skipif(BROWSER is None, reason="no Chromium here")]
UNITS, PATIENCE = 16, 180.0  # s; a busy machine starts a kernel slowly
QUIET = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
LAB = "Array.from(jupyterapp.shell.widgets('main'))[0]"


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

    def command(self, name: str) -> None:
        """A command of JupyterLab, as its menus give it; it is not waited for."""
        self.js(f"void jupyterapp.commands.execute('{name}')")

    def idle(self) -> bool:
        return self.js(f"{LAB}.sessionContext.session.kernel.status") == "idle"


@pytest.fixture
def page(suite: Suite, tmp_path: Path) -> Iterator[Page]:
    suite.params("11_demo")
    suite.notebook(
        "11_demo",
        f"n: int = {UNITS}  # units",
        "import time\nimport seal_lib\nrun = seal_lib.start('11_demo', globals())\nprint(run)",
        "slow = lambda part: [time.sleep(0.5) or {'x': 1} for _ in part]\n"
        "rows = run.map('work', [f'u{i}' for i in range(n)], slow, chunk=1)",
        "run.finish([], {'n': len(rows)})",
    )
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {f"JUPYTER{name}": str(tmp_path / name) for name in (
        "_CONFIG_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")}  # fmt: skip
    server = subprocess.Popen(
        [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", f"--ServerApp.port={port}",
         "--ServerApp.token=t", f"--ServerApp.root_dir={suite.home / 'notebooks'}",
         "--LabApp.expose_app_in_browser=True", "--LabApp.news_url="],
        env={**os.environ, **own, "IPYTHONDIR": str(tmp_path / "ipython")}, **QUIET,
    )  # fmt: skip
    browser = subprocess.Popen(
        [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         "--window-size=1200,900", "--remote-debugging-port=0",
         f"--user-data-dir={tmp_path / 'profile'}", "about:blank"],
        **QUIET,
    )  # fmt: skip
    try:
        told = tmp_path / "profile" / "DevToolsActivePort"
        until(lambda: told.exists() and told.read_text().strip(), "the browser")
        address = f"http://127.0.0.1:{told.read_text().splitlines()[0]}/json"
        pages = json.loads(urllib.request.urlopen(address, timeout=PATIENCE).read())
        one = Page(next(found["webSocketDebuggerUrl"] for found in pages if found["type"] == "page"))
        until(lambda: _answers(port), "JupyterLab")
        one.send("Emulation.setFocusEmulationEnabled", enabled=True)  # commands act on what has the focus
        one.send("Page.navigate", url=f"http://127.0.0.1:{port}/lab/tree/11_demo.ipynb?token=t")
        until(lambda: one.js(f"{LAB}.context.isReady"), "the notebook")
        until(one.idle, "its kernel")
        one.js(f"jupyterapp.shell.activateById({LAB}.id)")
        until(lambda: one.js(f"jupyterapp.shell.currentWidget === {LAB}"), "the focus")
        yield one
    finally:
        for process in (browser, server):
            process.kill()
            process.wait(30)


def _answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=t", timeout=5).status == 200
    except OSError:
        return False


def test_interrupt_restart_and_run_all_goes_on(page: Page, suite: Suite) -> None:
    def rows() -> list[str]:
        found = list(suite.home.glob("runs/11_demo/seedling/*/rows.jsonl"))
        return found[0].read_text().splitlines() if found else []

    page.command("notebook:run-all-cells")
    until(lambda: len(rows()) >= 3, "three units")
    page.command("notebook:interrupt-kernel")
    until(page.idle, "the interruption")
    before = rows()
    assert 3 <= len(before) < UNITS

    page.command("notebook:restart-kernel")
    until(lambda: page.js("!!document.querySelector('.jp-Dialog .jp-mod-accept')"), "the question whether to restart")
    page.js("document.querySelector('.jp-Dialog .jp-mod-accept').click()")
    until(lambda: page.js("!document.querySelector('.jp-Dialog')") and page.idle(), "the new kernel")
    page.command("notebook:run-all-cells")
    until(lambda: list(suite.home.glob("runs/11_demo/seedling/*/run.json")), "the end")
    until(page.idle, "the last cell")
    assert len(rows()) == UNITS and rows()[: len(before)] == before  # kept, and no second folder
    assert len(list(suite.home.glob("runs/11_demo/seedling/*"))) == 1

    page.js("jupyterapp.commands.execute('docmanager:save')")
    saved = json.loads((suite.home / "notebooks" / "11_demo.ipynb").read_text())
    outputs = [output for cell in saved["cells"] for output in cell["outputs"]]
    assert f"{len(before)} rows done" in json.dumps(outputs)  # the banner says so
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds  # a saved bar needs no kernel
    assert f"work: {UNITS}/{UNITS}" in json.dumps(outputs)
