"""The site: every link leads somewhere, and it builds where mkdocs is installed. Run: pytest tests/test_site.py"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from browser import NEEDS_BROWSER, opened, until
from conftest import REPOSITORY

WORDS = 1200  # of the README


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("site_of_docs", REPOSITORY / "docs" / "site.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def source(module: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> Path:
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


def test_parameters_are_told_once(module: ModuleType) -> None:
    def cell(tag: str, *lines: str) -> dict:
        return {"cell_type": "code", "metadata": {"tags": [tag]}, "source": "\n".join(lines)}

    first = cell("parameters", "n: int = 3  # passages", "lr: float = 2.0e-3", "names: list[str] = ['a']")
    same = cell("injected-parameters", "# Parameters", "n = 3", "lr = 0.002", 'names = ["a"]')
    assert module.told_once([first, same]) == [first]
    other = cell("injected-parameters", "# Parameters", "n = 4", "lr = 0.002")
    assert module.told_once([first, other])[1]["source"] == "# Parameters of this run\nn = 4"


def builder() -> str | None:
    """The Python that has mkdocs: this one, or that of `make docs`."""
    if importlib.util.find_spec("mkdocs"):
        return sys.executable
    own = REPOSITORY / ".venv-docs" / "bin" / "python"
    return str(own) if own.exists() else None


@pytest.mark.slow
@NEEDS_BROWSER
@pytest.mark.skipif(builder() is None, reason="mkdocs is not installed here: make docs")
def test_the_site_builds_and_a_browser_shows_it_light_dark_and_narrow(tmp_path: Path) -> None:
    done = subprocess.run(
        [builder(), str(REPOSITORY / "docs" / "site.py"), str(tmp_path / "site")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for scheme in ("light", "dark"):
        with opened(tmp_path / scheme, wide=760) as page:  # a reader of each has a browser of their own
            page.send("Emulation.setDeviceMetricsOverride", width=760, height=900, deviceScaleFactor=1, mobile=False)
            page.send("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
            for name in ("index", "RESULTS", "docs/own", "notebooks/01_one_self_edit", "notebooks/12_restem_rounds"):
                url = (tmp_path / "site" / f"{name}.html").as_uri()
                page.send("Page.navigate", url=url)
                until(
                    lambda url=url: page.js("location.href") == url and page.js("document.readyState") == "complete",
                    name,
                )
                shade = {"light": "default", "dark": "slate"}[scheme]
                until(lambda shade=shade: page.js("document.body.dataset.mdColorScheme") == shade, f"{name} {scheme}")
                assert page.js("document.documentElement.scrollWidth <= window.innerWidth"), (name, scheme)
                page.js("document.querySelectorAll('img').forEach(image => { image.loading = 'eager' })")
                until(lambda: page.js("Array.from(document.images).every(image => image.complete)"), "the pictures")
                texts = page.js("Array.from(document.images, image => image.naturalWidth ? image.alt : '')")
                assert all(texts) and not any("No description" in text for text in texts), (name, texts)
                assert len(page.js("document.querySelector('.md-content').innerText")) > 2000
            page.js("document.querySelector('#__search').click()")
            page.js("document.querySelector('.md-search__input').focus()")
            page.send("Input.insertText", text="WSL")
            found = "document.querySelector('.md-search-result__link').href"
            until(lambda found=found: "docs/own.html" in (page.js(found) or ""), "the search, without a server")
