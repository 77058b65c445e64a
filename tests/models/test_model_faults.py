"""Broken, foreign and ill-fitting models: one sentence each. Run: pytest tests/models/test_model_faults.py"""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from seal_lib import models
from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.models import budget, checks
from seal_lib.models.tokens import read_ids

SEEDLING, GRIDS = models.SEEDLINGS / "knowledge", models.SEEDLINGS / "grids"
Q = "model.layers.1.self_attn.q_proj.weight"


def edit(file: str, **changes: object) -> Callable[[Path], None]:
    """Set keys of a JSON file; None takes a key out."""

    def change(folder: Path) -> None:
        content = json.loads((folder / file).read_text()) | changes
        (folder / file).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return change


def write(file: str, content: str | bytes) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(content if isinstance(content, bytes) else content.encode())


def drop(file: str) -> Callable[[Path], None]:
    return lambda folder: (folder / file).unlink()


def weights(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return apply


def cut(file: str, keep: float) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = (folder / file).read_bytes()
        (folder / file).write_bytes(content[: int(keep * len(content))])

    return apply


def other(file: str) -> Callable[[Path], None]:
    return lambda folder: shutil.copy(GRIDS / file, folder / file)


def saved(build: Callable[[], torch.nn.Module]) -> Callable[[Path], None]:
    """Another architecture's weights and config, with the tokenizer that was there."""

    def apply(folder: Path) -> None:
        torch.manual_seed(0)
        build().save_pretrained(folder)

    return apply


def more_tokens(folder: Path) -> None:
    tokenizer = models.load_tokenizer("seedling-knowledge")
    tokenizer.add_tokens([f"<new {i}>" for i in range(3)])
    tokenizer.save_pretrained(folder)


def bert():
    from transformers import BertConfig, BertLMHeadModel

    return BertLMHeadModel(
        BertConfig(
            vocab_size=1384,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            initializer_range=0.2,
        )
    )


def t5():
    from transformers import T5Config, T5ForConditionalGeneration

    return T5ForConditionalGeneration(T5Config(vocab_size=1384, d_model=32, num_layers=1, num_heads=4, d_ff=48))


def classifier():
    from transformers import LlamaConfig, LlamaForSequenceClassification

    return LlamaForSequenceClassification(LlamaConfig.from_pretrained(SEEDLING))


def nan(tensors: dict) -> None:
    tensors[Q][3, 3] = torch.nan


def own_head(tensors: dict) -> None:
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"] * 1.1


def huge(tensors: dict) -> None:
    tensors[Q][0, 0] = 1e38
    tensors[Q.replace("q_proj", "k_proj")][0] = 1e38


FAULTS = {
    # weights
    "a missing weight": (weights(lambda t: t.pop(Q)), "missing.*layers.1.self_attn.q_proj"),
    "a missing norm": (weights(lambda t: t.pop("model.norm.weight")), "missing.*model.norm.weight"),
    "a layer fewer than the config says": (edit("config.json", num_hidden_layers=4), "missing.*layers.3.* and 6 more"),
    "a layer more than the config says": (edit("config.json", num_hidden_layers=2), "no place.*layers.2.* and 6 more"),
    "a foreign weight": (weights(lambda t: t.update(extra=torch.zeros(2))), "no place in a LlamaForCausalLM.*extra"),
    "a bias of another architecture": (edit("config.json", model_type="qwen2"), "missing.*k_proj.bias|its tokenizer"),
    "no embeddings": (weights(lambda t: t.pop("model.embed_tokens.weight")), "missing.*embed_tokens"),
    "untied in the config only": (edit("config.json", tie_word_embeddings=False), "missing.*lm_head"),
    "untied in the file only": (weights(own_head), "tie_word_embeddings in config.json is true"),
    "another shape": (weights(lambda t: t.update({Q: torch.zeros(128, 64)})), "another shape.*q_proj"),
    "a NaN": (weights(nan), "layers.1.self_attn.q_proj.weight has values that are not finite"),
    "logits that overflow": (weights(huge), "logits are not finite in torch.float32; copy"),
    "weights cut within": (cut("model.safetensors", 0.5), "model.safetensors is cut or damaged"),
    "weights cut in the header": (cut("model.safetensors", 0.001), "model.safetensors is cut or damaged"),
    "empty weights": (write("model.safetensors", b""), "model.safetensors is cut or damaged"),
    "no weights": (drop("model.safetensors"), "model.safetensors is missing"),
    "an index without its shard": (
        write("model.safetensors.index.json", '{"weight_map": {"x": "model-00001-of-00002.safetensors"}}'),
        "model-00001-of-00002.safetensors is missing",
    ),
    "an index without a map": (write("model.safetensors.index.json", "{}"), "index.json has no weight_map"),
    "weights in 8 bits": (weights(lambda t: t.update({Q: t[Q].to(torch.int8)})), "q_proj.weight is stored as I8"),
    "weights in float8": (
        weights(lambda t: t.update({Q: t[Q].to(torch.float8_e4m3fn)})),
        "q_proj.weight is stored as F8",
    ),
    "weights that Git LFS left": (
        write("model.safetensors", "version https://git-lfs.github.com/spec/v1"),
        "git lfs pull",
    ),
    "an adapter beside it": (write("adapter_config.json", "{}"), "holds an adapter; merge it with PEFT"),
    # config
    "a config that Git LFS left": (write("config.json", "version https://git-lfs.github.com/spec/v1"), "git lfs pull"),
    "packed by FP8": (
        edit("config.json", quantization_config={"quant_method": "fp8"}),
        "says its weights are fp8; give it in",
    ),
    "packed by GPTQ": (
        edit("config.json", quantization_config={"quant_method": "gptq", "bits": 4}),
        "says its weights are gptq",
    ),
    "packed by what is unknown": (
        edit("config.json", quantization_config={"quant_method": "x"}),
        "says its weights are x",
    ),
    "no config": (drop("config.json"), "config.json is missing"),
    "a config that is no JSON": (write("config.json", "{'a': 1}"), "config.json is no JSON"),
    "a config in Latin-1": (write("config.json", '{"a": "é"}'.encode("latin-1")), "config.json is no JSON"),
    "a config cut": (cut("config.json", 0.5), "config.json is no JSON"),
    "a config nested 200 000 deep": (write("config.json", "[" * 200_000), "config.json is no JSON"),
    "a config that is a list": (write("config.json", "[]"), "config.json holds a JSON list"),
    "no model_type": (edit("config.json", model_type=None), "model_type"),
    "an unknown model_type": (edit("config.json", model_type="nothing-such"), "nothing-such"),
    "an encoder and decoder": (saved(t5), "model_type 't5' in config.json is no causal language model"),
    "an encoder": (saved(bert), "a token sees those after it"),
    "a classifier": (saved(classifier), "no place|missing"),
    "a size that is a text": (edit("config.json", hidden_size="large"), "hidden_size"),
    "a size that is negative": (edit("config.json", num_hidden_layers=-1), "no place"),
    "heads that do not divide": (edit("config.json", num_attention_heads=5), "number of attention heads .5"),
    "generation_config that is no JSON": (write("generation_config.json", "{"), "generation_config.json is no JSON"),
    # tokenizer
    "no tokenizer": (lambda f: [drop(x)(f) for x in ("tokenizer.json", "tokenizer_config.json")], "tokenizer"),
    "a tokenizer cut": (cut("tokenizer.json", 0.5), "tokenizer.json is no JSON"),
    "a tokenizer that is nothing": (write("tokenizer.json", "{}"), "the tokenizer of model"),
    "a tokenizer of another model": (
        other("tokenizer.json"),
        "knows 378 tokens, but vocab_size in config.json is 1384",
    ),
    "more tokens than rows": (more_tokens, "gives ids up to 1386 .'<new 2>'.*vocab_size in config.json is 1384"),
    "an EOS that is not in the vocabulary": (edit("tokenizer_config.json", eos_token="</end>"), "'</end>'"),
    "no EOS": (edit("tokenizer_config.json", eos_token=None), "has no EOS token.*eos_token in its tokenizer_config"),
    "a chat template that is none": (
        edit("tokenizer_config.json", chat_template="{% for %}"),
        "The chat template of model .* cannot be filled",
    ),
    "a chat template that refuses": (
        edit("tokenizer_config.json", chat_template="{{ raise_exception('no') }}"),
        r"cannot be filled \(no\)",
    ),
    "neither EOS nor pad": (edit("tokenizer_config.json", eos_token=None, pad_token=None), "has no EOS token"),
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SEEDLING, tmp_path / "model"))


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_model_folder_is_one_sentence_that_names_it(folder: Path, fault: str, capfd) -> None:
    spoil, words = FAULTS[fault]
    spoil(folder)
    with pytest.raises(SealError, match=words) as caught:
        models.load(str(folder))
    said = str(caught.value)
    assert "\n" not in said and str(folder) in said and said.endswith(".") and "Traceback" not in said


def test_the_same_folder_whole_is_the_model_and_loads_twice_alike(folder: Path) -> None:
    (one, _), (two, _) = models.load(str(folder)), models.load(str(folder))
    assert all(torch.equal(p, q) for p, q in zip(one.parameters(), two.parameters(), strict=True))


def test_a_head_in_the_file_that_equals_the_embeddings_is_still_tied(folder: Path) -> None:
    """Checkpoints in one file often hold both."""
    weights(lambda t: t.update({"lm_head.weight": t["model.embed_tokens.weight"].clone()}))(folder)
    model, _ = models.load(str(folder))
    assert model.lm_head.weight is model.model.embed_tokens.weight


def test_rows_that_pad_the_embedding_are_no_fault(folder: Path) -> None:
    """Qwen2.5, Phi and others round the number of rows up."""

    def pad(t: dict) -> None:
        t["model.embed_tokens.weight"] = torch.cat([t["model.embed_tokens.weight"], torch.zeros(64, 128)])

    weights(pad)(folder)
    edit("config.json", vocab_size=1384 + 64)(folder)
    assert models.load(str(folder))[0].get_input_embeddings().num_embeddings == 1448


def test_an_unknown_token_past_the_rows_that_no_text_becomes_is_no_fault(folder: Path) -> None:
    """Qwen2's tokenizer class adds one of its own to any vocabulary."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    sizes = json.loads((SEEDLING / "config.json").read_text())
    Qwen2ForCausalLM(
        Qwen2Config(**{k: v for k, v in sizes.items() if k.startswith(("vocab", "hidden_size", "num_"))})
    ).save_pretrained(folder)
    tokenizer = models.load(str(folder))[1]
    assert tokenizer.unk_token_id == len(tokenizer) - 1 == sizes["vocab_size"]
    assert max(read_ids("Any text \U0001f600", tokenizer)) < sizes["vocab_size"]


def test_without_a_pad_token_eos_pads(folder: Path) -> None:
    edit("tokenizer_config.json", pad_token=None)(folder)
    tokenizer = models.load(str(folder))[1]
    assert tokenizer.pad_token_id == tokenizer.eos_token_id is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"device": "cuda"}, "device: 'cuda' was asked for.*auto or cpu"),
        ({"device": "cuda:3"}, "device: 'cuda:3' was asked for.*auto or cpu"),
        ({"device": "gpu"}, "device: 'gpu' is not one of auto, cpu"),
        ({"device": "cuda:x"}, "device: 'cuda:x' is not one of"),
        ({"device": ""}, "device: '' is not one of"),
        ({"dtype": "bf16"}, "dtype: 'bf16' is not one of.*bfloat16"),
        ({"dtype": "int8"}, "dtype: 'int8' is not one of"),
        ({"dtype": "nn"}, "dtype: 'nn' is not one of"),
    ],
)
def test_a_device_or_type_that_is_not_here_is_said_before_any_file_is_read(monkeypatch, options, words) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(checks, "check_folder", lambda folder: pytest.fail("read"))
    with pytest.raises(ParameterError, match=words):
        models.load("seedling-knowledge", **options)


def test_a_card_without_bfloat16_is_told_to_use_float16(monkeypatch) -> None:
    """A T4 emulates bfloat16 slowly; it has float16."""
    here = {"is_available": lambda: True, "device_count": lambda: 1, "get_device_name": lambda device: "Tesla T4"}
    for name, value in here.items():
        monkeypatch.setattr(torch.cuda, name, value)
    monkeypatch.setattr(checks, "has_bfloat16", lambda device: device == "cpu")
    with pytest.raises(ParameterError, match="Tesla T4 has no bfloat16; set dtype to float16 or float32"):
        checks.check_place("auto", "bfloat16")
    assert checks.check_place("auto", "float16") == "cuda" and checks.check_place("cpu", "bfloat16") == "cpu"


def test_the_planner_knows_the_same_types() -> None:
    assert set(checks.DTYPES) == set(budget.WIDTHS)


@pytest.mark.parametrize("open_it", [models.load, models.load_tokenizer])
def test_a_model_that_is_not_here_while_the_hub_is_off_is_said_with_the_command(open_it) -> None:
    """All tests run with HF_HUB_OFFLINE=1."""
    with pytest.raises(
        DataError, match=r"Hub cannot be reached.*`hf download Qwen/Qwen2.5-7B --revision d1497"
    ) as said:
        open_it("Qwen/Qwen2.5-7B")
    assert "\n" not in str(said.value)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        ("GatedRepoError", "accept it on its page and log in"),
        ("RepositoryNotFoundError", "does not exist on the Hub"),
        ("RevisionNotFoundError", "no such revision"),
    ],
)
def test_what_the_hub_refuses_is_said(error: str, words: str) -> None:
    kind = type(error, (Exception,), {})
    with pytest.raises(DataError, match=words), checks.opening("a/b", "a/b", "c0ffee"):
        try:
            raise kind("401 Client Error\n\nlong text")
        except kind as cause:
            raise OSError("You are trying to access a gated repo.\nMake sure ...") from cause


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError()]
)
def test_too_little_memory_names_the_ways_out(error: BaseException) -> None:
    with (
        pytest.raises(DataError, match="'m' does not fit into memory .*4bit or a smaller model"),
        checks.opening("m", "m"),
    ):
        raise error


@pytest.mark.parametrize("content", ["{", "[]", '{"hidden_size": 8}', "\xff\xfe{", "9" * 5000])
def test_the_planner_says_in_one_sentence_what_is_wrong_with_a_config(folder: Path, content: str) -> None:
    (folder / "config.json").write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=re.escape(str(folder))) as caught:
        budget.shape_of(str(folder))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("key", ["num_hidden_layers", "num_attention_heads", "vocab_size"])
@pytest.mark.parametrize("value", [0, -3, "x", None, 1.5, [1]])
def test_a_size_that_is_no_size_is_named(folder: Path, key: str, value: object) -> None:
    edit("config.json", **{key: value})(folder)
    with pytest.raises(DataError, match=key):
        budget.shape_of(str(folder))


@pytest.mark.parametrize("appended", ["<eos>", "<pad>", "<eos> <pad>", "<eos> <eos>"])
def test_whatever_a_tokenizer_appends_is_taken_off_a_text_that_goes_on(appended: str) -> None:
    from tokenizers import processors

    tokenizer = models.load_tokenizer("seedling-knowledge")
    plain = read_ids("The town", tokenizer)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<eos>", "<pad>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"<pad> $A {appended}", special_tokens=ids
    )
    assert len(tokenizer("The town")["input_ids"]) == 1 + len(plain) + len(appended.split())
    assert read_ids("The town", tokenizer) == [tokenizer.pad_token_id, *plain]  # what is put first stays
    written = read_ids("The town<eos>", tokenizer)
    assert written == [tokenizer.pad_token_id, *plain, tokenizer.eos_token_id]  # what was written stays too
