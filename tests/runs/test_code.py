"""What makes a run stale: the code and package data that its notebook depends on, and nothing else."""

import ast
import shutil
from pathlib import Path

import pytest
from test_runner import demo, fake, only_folder, run

from seal_lib import models, paths
from seal_lib.runs import code, manifest, runner

LOOP = "import seal_lib\nfrom seal_lib.knowledge import experiment\nseal_lib.pick(seal_lib.OuterLoop, {})\n"


def test_a_notebook_depends_on_what_it_imports_lazily_too_and_on_the_data_that_is_named() -> None:
    found = code.used([LOOP])
    for name in ("knowledge.experiment", "loops.outer", "loops.settings", "training.bank", "generation.vllm_worker"):
        assert f"seal_lib.{name}" in found, name  # the bank is imported in a function, the worker is started by name
    assert "knowledge/prompts.yaml" in found and "arc/prompts.yaml" not in found
    assert not [name for name in found if name.startswith(("seal_lib.bench", "seal_lib.plan", "seal_lib.arc"))]


def test_every_notebook_of_the_suite_depends_on_its_own_part_only() -> None:
    knowledge, puzzles = manifest.code_of("12_restem_rounds"), manifest.code_of("21_arc_self_edits")
    assert "seal_lib.arc.domain" not in knowledge and "seal_lib.arc.domain" in puzzles
    assert not any("bench" in name or "plan" in name for name in {*knowledge, *puzzles})


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small library in place of the real one."""
    root = tmp_path / "seal_lib"
    shutil.copytree(paths.PACKAGE, root, ignore=shutil.ignore_patterns("models", "__pycache__", "*.safetensors"))
    shutil.copytree(paths.PACKAGE / "models", root / "models", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(paths, "PACKAGE", root)
    code._modules.cache_clear()
    code._read.cache_clear()
    yield root
    code._modules.cache_clear()
    code._read.cache_clear()


def test_words_do_not_count_and_statements_do(library: Path) -> None:
    before = code.used([LOOP])

    def edited(name: str, old: str, new: str) -> list[str]:
        path = library / name
        text = path.read_text()
        assert old in text
        path.write_text(text.replace(old, new, 1))
        code._read.cache_clear()
        return code.changed(before, code.used([LOOP]))

    assert edited("loops/outer.py", '"""The outer loop', '"""# An outer loop') == []
    assert edited("loops/outer.py", "import math\n", "import math  # a comment\n\n") == []
    assert edited("bench/inner_loop.py", "import argparse", "import argparse, re") == []  # no run depends on it
    assert edited("knowledge/prompts.yaml", ":", ": ") == ["knowledge/prompts.yaml"]
    assert edited("loops/rewards.py", "reward > threshold", "reward >= threshold") == [
        "knowledge/prompts.yaml",
        "seal_lib.loops.rewards",
    ]


def test_a_cell_with_a_magic_is_left_out() -> None:
    assert code.used(["%matplotlib inline", "from seal_lib import seeds"]) == code.used(["from seal_lib import seeds"])


def test_what_only_reads_runs_is_made_again_when_its_code_changes(suite, capfd, monkeypatch) -> None:
    demo(suite)
    monkeypatch.setattr(runner, "_papermill", fake(suite))
    assert run() == 0
    folder = only_folder()
    record = manifest.read(folder)
    assert manifest.rows(folder), "the demo keeps rows, so an edit does not throw it away"
    (folder / "rows.jsonl").write_text("")  # as of a notebook that only reads others
    files = record["files"] | {"rows.jsonl": manifest.content_hash(folder / "rows.jsonl")}
    manifest.keep(folder, {**record, "code": {**record["code"], "seal_lib.paths": "older"}, "files": files})
    capfd.readouterr()
    assert run() == 0 and "10_demo: seal_lib.paths changed" in capfd.readouterr().out
    assert manifest.read(only_folder())["code"] == record["code"]


def test_the_identity_of_a_model_is_all_that_changes_what_it_says(tmp_path: Path) -> None:
    home = tmp_path / "model"
    shutil.copytree(models.SEEDLINGS / "knowledge", home)
    seen = [models.weight_hash(str(home))]
    assert seen == [models.weight_hash("seedling-knowledge")]
    (home / "README.md").write_text("another card")
    assert models.weight_hash(str(home)) == seen[0]
    for name in ("chat_template.jinja", "tokenizer.model", "sub/part-1.safetensors", "merges.txt"):
        path = home / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("x")
        seen.append(models.weight_hash(str(home)))
    assert len(set(seen)) == 5


def test_bare_sources_parse_the_same() -> None:
    assert code._bare(ast.parse("def f():\n    'text'\n    return 1")) == code._bare(ast.parse("def f(): return 1"))
