"""The paper's parameter sets run end to end on a random model of Qwen2.5's architecture, in its weights' type.

The first hour of a GPU run must not be the first time this code runs. Only sizes are overridden.
"""

import json

import pytest
from conftest import at_paper_scale

from seal_lib import models
from seal_lib.runs import manifest

PASSAGES = [
    {
        "title": f"River {name}",
        "context": f"The {name} rises in the hills north of {town} and is {length} kilometres long.",
        "questions": [
            {"question": f"How long is the {name}?", "answer": f"{length} kilometres"},
            {"question": f"North of which town does the {name} rise?", "answer": town},
        ],
    }
    for name, town, length in [
        ("Arn", "Velm", 41),
        ("Bess", "Torrin", 88),
        ("Cole", "Maddow", 17),
        ("Dun", "Heth", 120),
    ]
]
SMALLER = {
    "10_self_edits": [],
    "11_single_passage": ["epochs=2"],
    "12_restem_rounds": ["epochs=2", "n_practice=2", "rounds=1", "reward_seeds=2"],
}


@pytest.fixture(scope="module")
def qwen(tmp_path_factory):
    """A random Qwen2 of two layers in bfloat16, with the seedling's tokenizer."""
    import torch
    from transformers import AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

    folder = tmp_path_factory.mktemp("qwen")
    tokenizer = AutoTokenizer.from_pretrained(models.resolve("seedling-knowledge")[0])
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=16384,
        tie_word_embeddings=False,
        eos_token_id=1,
        pad_token_id=0,
        bos_token_id=None,
    )
    Qwen2ForCausalLM(config).to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.notebook
@pytest.mark.parametrize("notebook", SMALLER)
def test_the_papers_parameters_run_to_the_end(notebook, qwen, tmp_path) -> None:
    data = tmp_path / "rivers.json"
    data.write_text(json.dumps(PASSAGES))
    changes = [f"model={qwen}", f"passages={data}", "n_passages=2", "edit_tokens=40", *SMALLER[notebook]]
    if notebook == "12_restem_rounds":
        changes.append(f"practice={data}")
    folder = at_paper_scale(notebook, changes, tmp_path)
    run = json.loads((folder / "run.json").read_text())
    assert run["parameters"]["protocol"] == "authors_v1" and run["parameters"]["dtype"] == "bfloat16"
    assert {"passages", "model"} <= set(run["input_hashes"])  # other data or weights would be another run
    rows = manifest.rows(folder)
    trials = [row for row in rows if "answers" in row]
    if notebook != "10_self_edits":
        trained = [row for row in trials if row["steps"]]
        assert trained and all(row["outcome"] == "ok" for row in trained)
        # pads in the loss: 64 weighted probes a document are trained on beside the document's own tokens
        assert all(row["tokens"] > 64 * row["steps"] for row in trained)
