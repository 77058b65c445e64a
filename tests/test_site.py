"""The site: every link leads somewhere, and it builds where mkdocs is installed. Run: pytest tests/test_site.py"""

import importlib.util
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

WORDS = 1200  # of the README


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    spec = importlib.util.spec_from_file_location("site_of_docs", REPOSITORY / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    folder = tmp_path_factory.mktemp("source")
    module.lay_out(folder)
    return folder


def links(path: Path) -> list[str]:
    """Relative targets of links and pictures of a Markdown file, without anchors."""
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    found = re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]*`", "", text))
    return [link.partition("#")[0] for link in found if not re.match(r"[a-z]+:|#", link)]


def test_every_link_of_a_page_leads_somewhere(source: Path) -> None:
    pages = sorted(source.rglob("*.md"))
    assert {"index.md", "RESULTS.md", "notebooks.md", "gpus.md", "own.md"} <= {path.name for path in pages}
    dead = [f"{path.name}: {link}" for path in pages for link in links(path) if not (path.parent / link).exists()]
    assert not dead
    assert len(links(source / "notebooks.md")) == len(list((REPOSITORY / "notebooks").glob("*.ipynb")))


def test_links_of_the_repository_lead_somewhere_too() -> None:
    for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]:
        assert not [link for link in links(path) if not (path.parent / link).exists()], path.name


def test_pictures_have_a_text_and_the_readme_is_one_screen() -> None:
    for path in [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").glob("*.md")]:
        assert "![](" not in path.read_text(encoding="utf-8"), path.name
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").split()) <= WORDS


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocs") is None, reason="mkdocs is not installed here: make docs")
def test_the_site_builds_and_a_browser_shows_it(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(REPOSITORY / "docs" / "site.py"), str(tmp_path / "site")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("no Chromium here; the site was built")
    shown = subprocess.run(
        [browser, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=760,900", "--dump-dom",
         (tmp_path / "site" / "index.html").as_uri()], capture_output=True, text=True, timeout=120,
    ).stdout  # fmt: skip
    assert "SEAL in notebooks" in shown and "What comes out" in shown
