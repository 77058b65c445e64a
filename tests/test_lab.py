"""A person in JupyterLab: interrupts a run, restarts the kernel and runs all cells; moves the slider and writes notes.

In a real headless Chromium, over its DevTools protocol. Run: pytest tests/test_lab.py
"""

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
from browser import NEEDS_BROWSER, QUIET, Page, opened, until
from conftest import REPOSITORY, Suite

pytestmark = [pytest.mark.slow, NEEDS_BROWSER]
UNITS = 16
LAB = "Array.from(jupyterapp.shell.widgets('main'))[0]"


def command(page: Page, name: str) -> None:
    """A command of JupyterLab, as its menus give it; it is not waited for."""
    page.js(f"void jupyterapp.commands.execute('{name}')")


def idle(page: Page) -> bool:
    return page.js(f"{LAB}.sessionContext.session.kernel.status") == "idle"


@pytest.fixture
def lab(tmp_path: Path) -> Iterator[Callable[..., Page]]:
    """Opens a notebook of a folder in JupyterLab: its page in a browser, with the focus, and a kernel that is idle."""
    with ExitStack() as started:

        def open_it(folder: Path, name: str, high: int = 900, **environment: str) -> Page:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                port = free.getsockname()[1]
            own = {
                f"JUPYTER{name}": str(tmp_path / name)
                for name in ("_CONFIG_DIR", "_RUNTIME_DIR", "LAB_SETTINGS_DIR", "LAB_WORKSPACES_DIR")
            }
            server = subprocess.Popen(
                [
                    sys.executable,
                    "-m",
                    "jupyterlab",
                    "--no-browser",
                    "--allow-root",
                    f"--ServerApp.port={port}",
                    "--ServerApp.token=t",
                    f"--ServerApp.root_dir={folder}",
                    "--LabApp.expose_app_in_browser=True",
                    "--LabApp.news_url=",
                ],
                env={**os.environ, **own, "IPYTHONDIR": str(tmp_path / "ipython"), **environment},
                **QUIET,
            )
            started.callback(server.wait, 30)
            started.callback(server.kill)
            page = started.enter_context(opened(tmp_path / "profile", high=high))
            until(lambda: _answers(port), "JupyterLab")
            page.send("Emulation.setFocusEmulationEnabled", enabled=True)  # commands act on what has the focus
            page.send("Page.navigate", url=f"http://127.0.0.1:{port}/lab/tree/{name}.ipynb?token=t")
            until(lambda: page.js(f"{LAB}.context.isReady"), "the notebook")
            until(lambda: idle(page), "its kernel")
            page.js(f"jupyterapp.shell.activateById({LAB}.id)")
            until(lambda: page.js(f"jupyterapp.shell.currentWidget === {LAB}"), "the focus")
            return page

        yield open_it


def _answers(port: int) -> bool:
    try:
        return urllib.request.urlopen(f"http://127.0.0.1:{port}/api?token=t", timeout=5).status == 200
    except OSError:
        return False


def test_interrupt_restart_and_run_all_goes_on(lab: Callable[..., Page], suite: Suite) -> None:
    suite.params("11_demo")
    suite.notebook(
        "11_demo",
        f"n: int = {UNITS}  # units",
        "import time\nimport seal_lib\nrun = seal_lib.start('11_demo', globals())\nprint(run)",
        "slow = lambda part: [time.sleep(0.5) or {'x': 1} for _ in part]\n"
        "rows = run.map('work', [f'u{i}' for i in range(n)], slow, chunk=1)",
        "run.finish([], {'n': len(rows)})",
    )
    page = lab(suite.home / "notebooks", "11_demo")

    def rows() -> list[str]:
        found = list(suite.home.glob("runs/11_demo/seedling/*/rows.jsonl"))
        return found[0].read_text().splitlines() if found else []

    command(page, "notebook:run-all-cells")
    until(lambda: len(rows()) >= 3, "three units")
    command(page, "notebook:interrupt-kernel")
    until(lambda: idle(page), "the interruption")
    before = rows()
    assert 3 <= len(before) < UNITS

    command(page, "notebook:restart-kernel")
    until(lambda: page.js("!!document.querySelector('.jp-Dialog .jp-mod-accept')"), "the question whether to restart")
    page.js("document.querySelector('.jp-Dialog .jp-mod-accept').click()")
    until(lambda: page.js("!document.querySelector('.jp-Dialog')") and idle(page), "the new kernel")
    command(page, "notebook:run-all-cells")
    until(lambda: list(suite.home.glob("runs/11_demo/seedling/*/run.json")), "the end")
    until(lambda: idle(page), "the last cell")
    assert len(rows()) == UNITS and rows()[: len(before)] == before  # kept, and no second folder
    assert len(list(suite.home.glob("runs/11_demo/seedling/*"))) == 1

    page.js("jupyterapp.commands.execute('docmanager:save')")
    saved = json.loads((suite.home / "notebooks" / "11_demo.ipynb").read_text())
    outputs = [output for cell in saved["cells"] for output in cell["outputs"]]
    assert f"{len(before)} rows done" in json.dumps(outputs)  # the banner says so
    kinds = {kind for output in outputs for kind in output.get("data", {})}
    assert "application/vnd.jupyter.widget-view+json" not in kinds  # a saved bar needs no kernel
    assert f"work: {UNITS}/{UNITS}" in json.dumps(outputs)


def seen(page: Page, control: str) -> str:
    """The text of the output that a control stands in, without the control's own."""
    return page.js(f"document.querySelector('{control}').closest('.jp-OutputArea').innerText") or ""


def test_notes_of_your_own_the_slider_and_the_menu_of_notebook_01(lab: Callable[..., Page], tmp_path: Path) -> None:
    name, slider, menu, box = "01_one_self_edit", ".noUi-handle", ".widget-dropdown select", ".widget-textarea textarea"
    folder = tmp_path / "notebooks"
    folder.mkdir()
    shutil.copy(REPOSITORY / "notebooks" / f"{name}.ipynb", folder)
    home = {"SEAL_HOME": str(tmp_path), "SEAL_SOURCE": str(REPOSITORY), "PYTHONPATH": str(REPOSITORY)}
    page = lab(folder, name, high=12000, **home)  # so that all cells are drawn
    command(page, "notebook:run-all-cells")
    until(lambda: list(tmp_path.glob(f"runs/{name}/seedling/*/run.json")), "the end")
    until(lambda: idle(page), "the last cell")

    worst = until(lambda: seen(page, slider), "the self-edits")
    page.js(f"document.querySelector('{slider}').focus()")
    for _ in range(7):
        for kind in ("keyDown", "keyUp"):
            page.send(
                "Input.dispatchKeyEvent", type=kind, key="ArrowRight", code="ArrowRight", windowsVirtualKeyCode=39
            )
    assert worst.startswith("notes\n1: ")
    until(lambda: seen(page, slider).startswith("notes\n8: "), "the last self-edit")
    until(lambda: seen(page, slider).splitlines()[2:] != worst.splitlines()[2:], "what it teaches")

    first = seen(page, menu).splitlines()[-1]
    change = "(s => { s.selectedIndex = 3; s.dispatchEvent(new Event('change', {bubbles: true})); })"
    page.js(f"{change}(document.querySelector('{menu}'))")
    until(lambda: seen(page, menu).splitlines()[-1] != first, "another passage")

    page.js(f"document.querySelector('{box}').focus(); document.querySelector('{box}').select()")
    person, place = re.search(r"What is the birthplace of (.+?)\?.*\t(\w+)$", seen(page, box), re.M).groups()
    page.send("Input.insertText", text=f"- {person} comes from Fyrenia.\n- {person} was born in Fyrenia.")
    page.js("document.querySelector('.jupyter-button').click()")
    after = until(lambda: "Fyrenia" in seen(page, box) and seen(page, box), "the answers after them")
    before, said = re.findall(r"^What is the birthplace of .+?\?\t(.*?)\t", after, re.M)
    assert "after your notes" in after and before != said != place  # it answers what it was told, not what is right

    page.js("jupyterapp.commands.execute('docmanager:save')")
    until(lambda: "Fyrenia" in (folder / f"{name}.ipynb").read_text(), "the saved copy")
    saved = json.loads((folder / f"{name}.ipynb").read_text())
    bare = [o for cell in saved["cells"] for o in cell.get("outputs", []) if "Loading weights" in json.dumps(o)]
    assert not bare  # a bar that nothing can show once the kernel is gone
