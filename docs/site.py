"""Lay out the repository as the source of the site and build it into ``runs/site``: ``python docs/site.py [FOLDER]``.

Notebooks are the published ones with outputs (``figures/<scale>/notebooks``), or else the committed ones. Nothing is
run.
"""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from functools import partial
from html import escape
from pathlib import Path

from latex2mathml.converter import convert

ROOT = Path(__file__).resolve().parents[1]
PAGES = ("RESULTS.md", "REPRODUCTION.md", "CONTRIBUTING.md", "LOG.md", "CHANGELOG.md")


def notebooks() -> list[Path]:
    """Return the published copy of each notebook, the core set's first, or else the committed notebook."""
    published = [ROOT / "figures" / name / "notebooks" for name in ("seedling", "seedling-full")]
    return [
        next((copy for folder in published if (copy := folder / path.name).exists()), path)
        for path in sorted(ROOT.glob("notebooks/*.ipynb"))
    ]


#: display mode of an equation → its pattern in Markdown
EQUATIONS = {"block": r"\$\$(.+?)\$\$", "inline": r"(?<![\\$])\$(?=\S)([^$\n]+?)(?<=\S)\$(?!\d)"}


def drawn(text: str) -> str:
    """Return Markdown with its equations as MathML, which browsers draw without a script; code is left alone."""
    parts = re.split(r"(```.*?```|`[^`\n]*`)", text, flags=re.DOTALL)
    for display, pattern in EQUATIONS.items():
        mathml = partial(_mathml, display)
        parts[::2] = [re.sub(pattern, mathml, part, flags=re.DOTALL) for part in parts[::2]]
    return "".join(parts)


def _mathml(display: str, found: re.Match[str]) -> str:
    return convert(found[1].strip(), display=display)


def _assigned(cell: dict) -> dict[str, str]:
    """Return name → value, as source text, of the assignments in a cell of parameters."""
    lines = ast.parse("".join(cell["source"])).body
    named = [
        (line.targets[0] if isinstance(line, ast.Assign) else line.target, line.value)
        for line in lines
        if isinstance(line, ast.Assign | ast.AnnAssign)
    ]
    return {name.id: ast.unparse(value) for name, value in named}


def told_once(cells: list[dict]) -> list[dict]:
    """Return the cells; a cell of injected parameters keeps only values that differ from the notebook's own, if any."""
    kept, defaults = [], {}
    for cell in cells:
        tags = cell["metadata"].get("tags", [])
        if "parameters" in tags:
            defaults = _assigned(cell)
        if "injected-parameters" in tags:
            others = {name: value for name, value in _assigned(cell).items() if defaults.get(name) != value}
            cell["source"] = "\n".join(["# Parameters of this run", *(f"{k} = {v}" for k, v in others.items())])
            if not others:
                continue
        kept.append(cell)
    return kept


def laid_out(notebook: dict) -> dict:
    """Return the notebook with its equations drawn and its pictures as HTML.

    The alternative text of a picture is the heading above it.
    """
    heading = ""
    notebook["cells"] = told_once(notebook["cells"])
    for cell in notebook["cells"]:
        if cell["cell_type"] == "markdown":
            source = "".join(cell["source"])
            heading = (re.findall(r"^#+ (.+)$", source, re.MULTILINE) or [heading])[-1]
            cell["source"] = drawn(source)
        for output in cell.get("outputs", []):
            if picture := output.get("data", {}).pop("image/png", None):  # nbconvert gives pictures no alternative text
                source = f"data:image/png;base64,{''.join(picture).strip()}"
                output["data"]["text/html"] = f'<img alt="Figure: {escape(heading)}" src="{source}">'
    return notebook


def lay_out(source: Path) -> None:
    """Write the whole source of the site into an empty folder."""
    shutil.copyfile(ROOT / "README.md", source / "index.md")
    for name in PAGES:
        shutil.copyfile(ROOT / name, source / name)
    shutil.copytree(ROOT / "docs", source / "docs", ignore=shutil.ignore_patterns("*.py", "*.yml"))
    shutil.copytree(ROOT / "figures", source / "figures", ignore=shutil.ignore_patterns("notebooks", "*.pdf"))
    (source / "notebooks").mkdir()
    lines = ["# Notebooks", "", "| notebook | |", "|---|---|"]
    for path in notebooks():
        notebook = laid_out(json.loads(path.read_text(encoding="utf-8")))
        (source / "notebooks" / path.name).write_text(json.dumps(notebook), encoding="utf-8")
        title = "".join(notebook["cells"][0]["source"]).splitlines()[0].lstrip("# ")
        lines.append(f"| [{path.stem}](notebooks/{path.name}) | {title} |")
    (source / "notebooks.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def main() -> int:
    """Build the site and return the exit status of mkdocs, which fails on a dead link."""
    site = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "runs" / "site").resolve()
    source = site.with_name(site.name + "-source")
    shutil.rmtree(source, ignore_errors=True)
    source.mkdir(parents=True)
    lay_out(source)
    environment = {**os.environ, "SITE_SOURCE": str(source), "SITE": str(site), "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "-f", str(ROOT / "docs" / "mkdocs.yml")]
    code = subprocess.run(command, env=environment).returncode
    if not code:
        print(f"open {site / 'index.html'}")
    return code


if __name__ == "__main__":
    raise SystemExit(main())
