"""The paper's ARC parameters run end to end on a random Llama with a chat template; only sizes are overridden."""

import json

import pytest
from conftest import at_paper_scale
from transformers import AutoTokenizer

from seal_lib import models
from seal_lib.arc import data, prompts, self_edits, world
from seal_lib.arc.domain import TestTimeTraining, training_examples
from seal_lib.runs import manifest, params

TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<|start|>{{ message['role'] }}\n{{ message['content'] | trim }}<|end|>"
    "{% endfor %}{% if add_generation_prompt %}<|start|>assistant\n{% endif %}"
)
IDS = ["44f52bb0", "59341089"]  # ids are text, even those of digits only


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """A random Llama of two layers in bfloat16; the grid seedling's tokenizer with a BOS, turns and a template."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    folder = tmp_path_factory.mktemp("llama")
    tokenizer = AutoTokenizer.from_pretrained(models.resolve("seedling-grids")[0])
    tokenizer.add_special_tokens(
        {"bos_token": "<|begin|>", "eos_token": "<|end|>", "additional_special_tokens": ["<|start|>"]}
    )
    tokenizer.chat_template = TEMPLATE
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=8192,
        tie_word_embeddings=True,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def folder_of(tmp_path, name: str, ids: list[str], seed: int):
    """A folder of task files in the original format; the first task has two test inputs."""
    folder = tmp_path / name
    folder.mkdir()
    for k, (identity, task) in enumerate(zip(ids, world.tasks("heldout", len(ids), seed), strict=True)):
        pairs = [{"input": p.input, "output": p.output} for p in task.train]
        test = {"input": task.tests[0], "output": task.solutions[0]}
        (folder / f"{identity}.json").write_text(json.dumps({"train": pairs, "test": [test] * (2 if k == 0 else 1)}))
    return folder


@pytest.mark.notebook
@pytest.mark.parametrize("protocol", ["clean", "authors"])
def test_the_papers_parameters_run_to_the_end(protocol, llama, tmp_path) -> None:
    evaluation, practice = (
        folder_of(tmp_path, "evaluation", IDS, 0),
        folder_of(tmp_path, "training", ["aaaa", "bbbb"], 1),
    )
    changes = {
        "model": llama,
        "tasks": evaluation,
        "practice": practice,
        "ids": json.dumps(IDS),
        "practice_ids": '["aaaa", "bbbb"]',
        "protocol": protocol,
        "cap": 4,
        "answer_tokens": 12,
        "samples": 2,
        "edits": 1,
        "edit_tokens": 12,
        "rank": 4,
        "threshold": -1.0,
        "sft_epochs": 1,
        "resample": str(protocol == "authors").lower(),
        "max_tries": 3,
    }
    settings = [f"{key}={value}" for key, value in changes.items()]
    folder = at_paper_scale("21_arc_self_edits", settings, tmp_path)
    run = json.loads((folder / "run.json").read_text())
    assert run["parameters"]["views"] == "all" and run["parameters"]["dtype"] == "bfloat16"
    assert {"tasks", "practice", "model"} <= set(run["input_hashes"])  # other data or weights would be another run
    rows = manifest.rows(folder)
    oracle = [row for row in rows if row["phase"] == "evaluate/oracle"]
    assert [row["outcome"] for row in oracle] == ["ok", "ok"]  # all four switches on, two epochs, trained and asked
    inner = params.pick(TestTimeTraining, run["parameters"])
    config, tokenizer = self_edits.read(run["parameters"]["oracle"]).config, AutoTokenizer.from_pretrained(llama)
    for row, task in zip(oracle, data.load_tasks(str(evaluation), ids=IDS), strict=True):
        examples = training_examples(task, config, tokenizer, prompts.load("chat"), inner, seed=0)
        assert len(examples) == 4 and row["steps"] == 4
        assert row["tokens"] == 2 * sum(len(e.ids) for e in examples)  # trained on these and no others
    assert all(sum(row["read"].values()) == views for row, views in zip(oracle, (32, 16), strict=True))
    # what a random model writes is no configuration: counted with its reason, rewarded with nothing
    written = [row for row in rows if row["phase"].endswith("/write") or row["phase"].endswith("/sample")]
    assert sum(len(row["edits"]) for row in written) == 2 * (1 + 1 + 1) + 2 * 2
    again = [row for row in rows if "/again_" in row["phase"]]  # the authors' way, with a bound
    assert len(again) == (2 * len([e for row in written for e in row["edits"]]) if protocol == "authors" else 0)
