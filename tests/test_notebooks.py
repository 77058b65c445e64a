"""Every committed notebook: its form, and that it runs from start to finish at scale smoke through the runner."""

import csv
import json
import re
from pathlib import Path

import pytest
from conftest import REPOSITORY

from seal_lib import paths
from seal_lib.errors import ParameterError
from seal_lib.runs import lifecycle, manifest, params, runner, yaml_files

NOTEBOOKS = sorted((REPOSITORY / "notebooks").glob("*.ipynb"))
LONGEST = 40  # lines of a code cell; what is longer belongs in the library


def problems(content: dict, name: str) -> list[str]:
    """What is wrong with the form of a notebook; parameters are checked by ``params.declared``."""
    found = []
    metadata, cells = content["metadata"], content["cells"]
    code = [(index, cell, "".join(cell["source"])) for index, cell in enumerate(cells) if cell["cell_type"] == "code"]
    whole = "\n".join(source for _, _, source in code)
    if metadata.get("kernelspec", {}).get("name") != "python3":
        found.append("the kernelspec is not python3")
    if cells[0]["cell_type"] != "markdown" or not "".join(cells[0]["source"]).startswith("# "):
        found.append("the first cell is not a title")
    if "papermill" in metadata or any("papermill" in cell["metadata"] for cell in cells):
        found.append("papermill's traces are kept")
    if any("injected-parameters" in cell["metadata"].get("tags", []) for cell in cells):
        found.append("an injected cell is kept")
    if len({cell.get("id") for cell in cells}) < len(cells):
        found.append("cell ids are missing or double")
    if not re.search(rf"start\(\s*[\"']{re.escape(name)}[\"'],\s*globals\(\)", whole):
        found.append(f"it does not call start({name!r}, globals())")
    if "run.finish(" not in (code[-1][2] if code else ""):
        found.append("the last code cell does not call run.finish")
    for index, cell, source in code:
        if cell["outputs"] or cell["execution_count"] is not None:
            found.append(f"cell {index} has outputs")
        if len(source.splitlines()) > LONGEST and "parameters" not in cell["metadata"].get("tags", []):
            found.append(f"cell {index} has more than {LONGEST} lines")
        if re.search(r"^\s*(async )?(def|class) ", source, re.MULTILINE):
            found.append(f"cell {index} defines something that belongs in the library")
        if re.search(r"(/home/|/Users/|/root/|/tmp/|[A-Z]:\\)", source):
            found.append(f"cell {index} has a path of one machine")
    return found


def sound() -> dict:
    """The smallest notebook without problems."""

    def cell(kind: str, source: str, ident: str) -> dict:
        extra = {"outputs": [], "execution_count": None} if kind == "code" else {}
        return {"cell_type": kind, "id": ident, "metadata": {}, "source": source, **extra}

    cells = [cell("markdown", "# Title", "a"), cell("code", "run = start('10_demo', globals())", "b")]
    cells.append(cell("code", "run.finish([], {})", "c"))
    return {"cells": cells, "metadata": {"kernelspec": {"name": "python3"}}, "nbformat": 4, "nbformat_minor": 5}


def test_a_sound_notebook_has_no_problems() -> None:
    assert problems(sound(), "10_demo") == []


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (lambda nb: nb["metadata"]["kernelspec"].update(name="my-env"), "not python3"),
        (lambda nb: nb["metadata"].update(papermill={}), "traces"),
        (lambda nb: nb["cells"][1]["metadata"].update(papermill={}), "traces"),
        (lambda nb: nb["cells"][1]["metadata"].update(tags=["injected-parameters"]), "injected"),
        (lambda nb: nb["cells"][1]["outputs"].append({}), "outputs"),
        (lambda nb: nb["cells"][1].update(execution_count=3), "outputs"),
        (lambda nb: nb["cells"][1].update(source="start('11_demo', globals())"), "does not call start"),
        (lambda nb: nb["cells"].pop(), "run.finish"),
        (lambda nb: nb["cells"][2].update(source="def f():\n    run.finish()"), "belongs in the library"),
        (lambda nb: nb["cells"][2].update(source="\n" * 40 + "run.finish()"), "more than 40"),
        (lambda nb: nb["cells"][2].update(source="run.finish('/home/me/x')"), "one machine"),
        (lambda nb: nb["cells"][0].update(source="Title"), "not a title"),
        (lambda nb: nb["cells"][2].update(id="b"), "ids"),
    ],
)
def test_every_problem_is_seen(spoil, says: str) -> None:
    content = sound()
    spoil(content)
    assert any(says in problem for problem in problems(content, "10_demo"))


@pytest.fixture
def committed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkout's own notebooks and parameters."""
    for name in ("SEAL_SOURCE", "SEAL_HOME", "SEAL_RUN_DIR", "SEAL_BATCH", "SET"):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_form(path: Path, committed: None) -> None:
    assert problems(json.loads(path.read_text(encoding="utf-8")), path.stem) == []
    assert params.declared(path.stem)
    assert params.scales(path.stem), f"params/{path.stem} has no file"


#: a number that looks like a result: a share, points, a time, an estimate, a step from one to another
RESULT = re.compile(r"\d[\d.]*\s*(?:%|points?\b|minutes?\b|seconds?\b)|\b\d+\.\d+\b|\d\s*→\s*\d")
CONSTANTS = re.compile(r"95 %|100 %|\b0\.05\b|±3 points|arXiv \d+\.\d+|0\.8-million")  # definitions, not results
SOURCED = re.compile(r"[Pp]aper|authors|released|Table \d|Qwen|Llama|GPT|reversal curse")  # of somebody's, who is named


def typed(markdown: str) -> list[str]:
    """Sentences that state a result without a source: they would stand under whatever the run produced."""
    text = re.sub(r"`[^`]*`|\$\$.*?\$\$|\$[^$]*\$|\]\([^)]*\)|^\|.*$", "", markdown, flags=re.DOTALL | re.MULTILINE)
    sentences = re.split(r"(?<=[.!?:;])\s+", text.replace("\n", " "))
    return [s for s in sentences if RESULT.search(CONSTANTS.sub("", s)) and not SOURCED.search(s)]


def test_a_typed_result_is_seen() -> None:
    assert typed("Intervals are 95 %. SEAL ends at 80.9 %.") == ["SEAL ends at 80.9 %."]
    assert typed("The deviation between streams is 4 to 8 points.") and typed("It takes 10 minutes.")
    assert typed("The curve goes 41 → 61.") and typed("p was 0.012.")
    assert not typed("The paper has 39.7 → 43.7 (Table 2).") and not typed("p below 0.05, $n = 5$, 100 % is the most.")


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_readings_belong_to_their_numbers(path: Path) -> None:
    """No result of one run is typed into text, and what a run shows is made from its rows, under its own heading."""
    cells = [(c["cell_type"], "".join(c["source"])) for c in json.loads(path.read_text(encoding="utf-8"))["cells"]]
    found = [sentence for kind, text in cells if kind == "markdown" for sentence in typed(text)]
    assert not found
    shows = [at for at, (kind, text) in enumerate(cells) if kind == "markdown" and "## What this run shows" in text]
    if path.stem[:2] in ("03", "20", "80", "90", "91", "99"):  # your own text, tokens, files, the rows of others
        return
    assert len(shows) == 1 and any("How to read this" in text for kind, text in cells if kind == "markdown")
    kind, after = cells[shows[0] + 1]
    assert kind == "code" and re.search(r"Markdown\(\w+\.\w+\(", after), after


def test_arms_have_labels_in_texts_and_no_keys() -> None:
    metrics = {"_own", "_live", *yaml_files.read(REPOSITORY / "seal_lib" / "report" / "metrics.yaml")}
    keys = re.compile(r"(?<![\w`/])(own_untrained|random_\w+_sft|seal_round_\d|passage_in_context|sequential_\w+)\b")
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
            if cell["cell_type"] == "markdown":
                text = "".join(cell["source"]).replace("\\_", "_")
                assert not keys.search(text), (path.stem, keys.search(text))
                assert not set(re.findall(r"`(\w+)`", text)) & metrics, path.stem


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One home for all notebooks, since later ones read the runs of earlier ones."""
    return tmp_path_factory.mktemp("smoke")


@pytest.mark.notebook
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_smoke(path: Path, home: Path, committed: None, monkeypatch: pytest.MonkeyPatch, capfd) -> None:
    monkeypatch.setenv("SEAL_HOME", str(home))
    try:
        params.resolve(path.stem, "smoke")
    except ParameterError as error:
        if "seedling" in params.scales(path.stem):
            raise
        pytest.skip(str(error))
    source = path.read_text(encoding="utf-8")
    needed = re.findall(r"run\.input\(\\?[\"'](\w+)", source)
    for name in [*dict.fromkeys(needed), path.stem]:  # so that one notebook can be tested alone
        assert runner.run(name, "smoke") == 0, f"{name} failed:\n{capfd.readouterr().err}"
    folder = manifest.newest(path.stem, "smoke")
    assert folder is not None and folder.is_relative_to(paths.runs())
    with open(folder / "results.csv", newline="") as file:
        results = list(csv.DictReader(file))
    assert all(list(row) == lifecycle.COLUMNS for row in results)
    json.loads((folder / "metrics.json").read_text())
    executed = json.loads((folder / "notebook.ipynb").read_text())
    assert "vnd.jupyter.widget-view" not in json.dumps(executed)  # nothing that a copy without a kernel cannot show
    for cell in executed["cells"]:
        if cell["cell_type"] == "code" and re.search(r"plt\.subplots\(|^\w*figures\.", "".join(cell["source"]), re.M):
            assert any("image/png" in output.get("data", {}) for output in cell["outputs"]), "a figure was not shown"
    capfd.readouterr()
    assert runner.run(path.stem, "smoke") == 0
    assert "up to date" in capfd.readouterr().out
