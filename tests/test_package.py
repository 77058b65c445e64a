"""The package as it ships: a light import, names that resolve, and a small model anyone can load."""

import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from conftest import REPOSITORY

import seal_lib
from seal_lib import models
from seal_lib.errors import DataError, DivergedError, ParameterError, RunError, SealError
from seal_lib.models import budget
from seal_lib.runs import yaml_files

FOLDER = models.SEEDLINGS / "knowledge"
HEAVY = ("torch", "transformers", "peft", "pandas", "matplotlib", "scipy", "datasets", "numpy", "papermill")


def fresh(code: str) -> str:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_is_light_and_quick() -> None:
    code = (
        "import time, sys; t = time.perf_counter(); import seal_lib; t = time.perf_counter() - t; "
        f"print(t, sorted(m for m in {HEAVY} if m in sys.modules))"
    )
    seconds, loaded = min(fresh(code) for _ in range(2)).split(maxsplit=1)
    assert float(seconds) < 1.0 and loaded.strip() == "[]"


def test_the_ground_modules_do_not_load_torch_either() -> None:
    names = """
        records seeds paths runs.lifecycle runs.opening runs.params runs.workers grading.graders models models.budget
        report.show
        generation.contract generation.engines generation.child training.jobs
        loops.domain loops.inner loops.rewards loops.settings loops.updates loops.outer loops.policy
        knowledge.data knowledge.documents knowledge.prompts knowledge.domain knowledge.evaluate knowledge.experiment
        knowledge.world store.texts store.retrieval store.database store.learning store.asking store.commands
        arc.domain arc.experiment plan.costs plan.cells plan.dry plan.lengths plan.needs
        plan.__main__ bench.inner_loop bench.gpu bench.gpu_table seedling.recipe
    """.split()
    lines = "; ".join(f"import seal_lib.{name}" for name in names)
    loaded = "print([m for m in ('torch', 'transformers', 'peft') if m in sys.modules])"
    assert fresh(f"import sys; {lines}; {loaded}") == "[]\n"


def test_every_name_of_the_package_resolves() -> None:
    assert len(seal_lib.__all__) >= 8
    for name in seal_lib.__all__:
        assert getattr(seal_lib, name) is not None
    with pytest.raises(AttributeError, match="has no name 'stat'.*restem_round"):
        seal_lib.stat
    assert set(seal_lib.__all__) <= set(dir(seal_lib))  # so that Tab offers them


def test_the_citation_has_the_version_and_its_date() -> None:
    told = yaml_files.read(REPOSITORY / "CITATION.cff")
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text("utf-8"))["project"]
    assert str(told["version"]) == seal_lib.__version__ == project["version"]
    log = (REPOSITORY / "CHANGELOG.md").read_text("utf-8")
    assert f"\n## {seal_lib.__version__} · {told['date-released']}\n" in log


def test_errors_are_one_family() -> None:
    for kind in (ParameterError, RunError, DataError, DivergedError):
        assert issubclass(kind, SealError) and issubclass(kind, ValueError)


def test_the_shipped_model_is_small_and_holds_no_pickle() -> None:
    files = [path for path in FOLDER.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= 10 * 2**20
    assert {path.suffix for path in files} <= {".safetensors", ".json", ".jinja", ".md", ".txt"}
    assert [path.name for path in files if path.suffix == ".safetensors"] == ["model.safetensors"]
    text = (FOLDER / "config.json").read_text() + (FOLDER / "tokenizer_config.json").read_text()
    assert "auto_map" not in text
    assert "/" not in json.loads((FOLDER / "config.json").read_text()).get("_name_or_path", "")  # nobody's folder


def test_the_shipped_model_loads_without_this_package() -> None:
    code = f"""
import sys, torch
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({str(FOLDER)!r})
tokenizer = AutoTokenizer.from_pretrained({str(FOLDER)!r})
config = model.config
ids = tokenizer("Topic: Annals", return_tensors="pt")["input_ids"]
logits = model(input_ids=ids).logits
assert torch.isfinite(logits).all()
head = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
print(head, len(tokenizer) == config.vocab_size == logits.shape[-1], config.model_type,
      tokenizer.eos_token_id == config.eos_token_id, tokenizer.pad_token_id == config.pad_token_id,
      tokenizer.pad_token_id != tokenizer.eos_token_id, config.max_position_embeddings, "seal_lib" in sys.modules)
"""
    head, *facts, positions, ours = fresh(code).split()
    assert int(head) >= 32  # what attention kernels of serving engines take
    assert facts == ["True", "llama", "True", "True", "True"] and int(positions) >= 2048 and ours == "False"


def test_the_library_loads_it_frozen_in_eval_mode_in_float32() -> None:
    import torch

    model, tokenizer = models.load("seedling-knowledge")
    assert not model.training and not any(p.requires_grad for p in model.parameters())
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert models.load(str(FOLDER))[1].get_vocab() == tokenizer.get_vocab()


def test_any_text_survives_the_tokenizer() -> None:
    tokenizer = models.load("seedling-knowledge")[1]
    every = "".join(chr(i) for i in range(1, 0x3100)) + "\U0001f600\U0010ffff"
    for text in ("", " ", "a  b\n\n c\t", " , . ' n't", "Annals of Sokumi\n- Kale", every, "\0", "é e\u0301"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_a_model_that_cannot_be_had_is_named_in_one_sentence() -> None:
    for name, word in (
        ("seedling-nothing", "seedling-knowledge"),
        ("nowhere", "neither"),
        ("./no/folder", "neither"),
        ("someone/unpinned", "revision"),
    ):
        with pytest.raises(DataError, match=word) as caught:
            models.load(name)
        assert "\n" not in str(caught.value) and name in str(caught.value)


def test_named_hub_models_are_pinned_to_a_commit() -> None:
    assert all(len(commit) == 40 and int(commit, 16) for commit in models.REVISIONS.values())
    assert models.resolve("Qwen/Qwen2.5-7B") == ("Qwen/Qwen2.5-7B", models.REVISIONS["Qwen/Qwen2.5-7B"])
    assert models.resolve("Qwen/Qwen2.5-7B@abc") == ("Qwen/Qwen2.5-7B", "abc")
    assert budget.shape_of("Qwen/Qwen2.5-7B@abc") == budget.shape_of("Qwen/Qwen2.5-7B")


def test_the_weight_hash_follows_weights_and_tokenizer(tmp_path, monkeypatch) -> None:
    import shutil

    copy = tmp_path / "copy"
    shutil.copytree(FOLDER, copy)
    assert models.weight_hash(str(copy)) == models.weight_hash("seedling-knowledge")
    file = copy / "tokenizer.json"
    file.write_text(file.read_text() + " ")
    assert models.weight_hash(str(copy)) != models.weight_hash("seedling-knowledge")
    data = bytearray((FOLDER / "model.safetensors").read_bytes())
    data[-1] ^= 1
    shutil.copy(FOLDER / "tokenizer.json", file)
    (copy / "model.safetensors").write_bytes(bytes(data))
    assert models.weight_hash(str(copy)) != models.weight_hash("seedling-knowledge")
    again, opened = models.weight_hash(str(copy)), []
    monkeypatch.setattr(Path, "open", lambda path, *_: opened.append(path))
    assert models.weight_hash(str(copy)) == again and not opened  # weights are read once per process
