"""Shared by all tests: one thread, no network, and a small suite of temporary notebooks."""

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

REPOSITORY = Path(__file__).resolve().parent.parent

# property-based tests: the same examples every time, each within ten seconds, as the machine may be busy;
# `PROPERTIES=10000` looks further
settings.register_profile(
    "suite",
    max_examples=int(os.environ.get("PROPERTIES", 100)),
    deadline=10_000,
    database=None,
    derandomize="PROPERTIES" not in os.environ,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
settings.load_profile("suite")


class Suite:
    """A folder with its own ``notebooks/``, ``params/`` and ``runs/``, seen by seal_lib through the environment."""

    def __init__(self, home: Path) -> None:
        self.home = home
        self.env = {"SEAL_HOME": str(home), "SEAL_SOURCE": str(home), "PYTHONPATH": str(REPOSITORY)}
        (home / "notebooks").mkdir()

    def notebook(self, name: str, *cells: str, tags: tuple = ("parameters",), kernel: str = "python3") -> Path:
        """Write a notebook; the first cell gets the tags."""
        code = [
            {
                "cell_type": "code",
                "id": f"c{index}",
                "execution_count": None,
                "metadata": {"tags": list(tags)} if index == 0 else {},
                "outputs": [],
                "source": textwrap.dedent(cell).strip("\n"),
            }
            for index, cell in enumerate(cells)
        ]
        spec = {"display_name": kernel, "language": "python", "name": kernel}
        content = {"cells": code, "metadata": {"kernelspec": spec}, "nbformat": 4, "nbformat_minor": 5}
        path = self.home / "notebooks" / f"{name}.ipynb"
        path.write_text(json.dumps(content))
        return path

    def in_batch(self, cell: str, monkeypatch: pytest.MonkeyPatch) -> "Suite":
        """The suite with one notebook, ``11_demo``, whose run folder the runner has chosen."""
        from seal_lib import paths
        from seal_lib.runs import lifecycle, manifest, params

        self.notebook("11_demo", cell)
        self.params("11_demo")
        self.values = params.resolve("11_demo", "seedling")
        identity = manifest.identity_of("11_demo", "seedling", self.values)
        self.folder = paths.runs() / "11_demo" / "seedling" / identity["key"]
        paths.write_json(self.folder / "parameters.json", identity)
        monkeypatch.setenv("SEAL_RUN_DIR", str(self.folder))
        monkeypatch.setenv("SEAL_BATCH", "1")
        monkeypatch.setattr(lifecycle, "LOCK_WAIT", 0.0)
        return self

    def params(self, name: str, text: str = "", scale: str = "seedling") -> Path:
        """Write a parameter file."""
        path = self.home / "params" / name / f"{scale}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path


def at_paper_scale(notebook: str, changes: list[str], home: Path) -> Path:
    """The folder of a notebook's run at scale paper in a process of its own, with these settings changed."""
    arguments = [part for change in changes for part in ("--set", change)]
    done = subprocess.run(
        [sys.executable, "-m", "seal_lib", "run", notebook, "--scale", "paper", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | {"SEAL_HOME": str(home)},
        timeout=600,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (record,) = (home / "runs" / notebook / "paper").glob("*/run.json")
    return record.parent


@pytest.fixture
def suite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suite:
    """A fresh :class:`Suite`; the current directory is somewhere else on purpose."""
    made = Suite(tmp_path)
    for name in ("SEAL_RUN_DIR", "SEAL_BATCH", "SET", "MAKEFLAGS", "MAKELEVEL"):
        monkeypatch.delenv(name, raising=False)
    for name, value in made.env.items():
        monkeypatch.setenv(name, value)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    return made


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Starts endpoints (``fake_endpoint``); pauses between tries are short, and all is kept in a folder of the test."""
    from fake_endpoint import FakeEndpoint

    from seal_lib.generation import endpoint

    monkeypatch.setenv("SEAL_HOME", str(tmp_path))
    monkeypatch.setattr(endpoint, "PAUSE", 0.01)
    servers = []

    def start(behave):
        servers.append(FakeEndpoint(behave if callable(behave) else lambda prompt, nth: behave))
        return servers[-1]

    yield start
    for server in servers:
        server.close()
