"""Shared by all tests: one thread, no network, and a small suite of temporary notebooks."""

import json
import os
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

    def params(self, name: str, text: str = "", scale: str = "seedling") -> Path:
        """Write a parameter file."""
        path = self.home / "params" / name / f"{scale}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text))
        return path


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
