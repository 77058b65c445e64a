"""Adapter folders of others: PEFT's own logits, or one sentence. Run: pytest tests/training/test_adapter_faults.py"""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from seal_lib.errors import DataError
from seal_lib.training.adapters import Adapter, merge
from seal_lib.training.attached import attached

torch.set_num_threads(1)
SIZES = dict(
    vocab_size=61,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=64,
)
IDS = torch.arange(1, 25).view(3, 8)
CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
LAYER = "base_model.model.model.layers.1.self_attn.q_proj"


def base(tied: bool = False):
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SIZES, tie_word_embeddings=tied)).eval().requires_grad_(False)


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS, use_cache=False).logits


def folder_of(path: Path, tied: bool = False, embeddings: bool | str = False, **settings: object) -> Path:
    """A folder as PEFT saves it, every weight drawn anew (trained adapters are not at their initial values)."""
    settings = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM"} | settings
    made = get_peft_model(base(tied), LoraConfig(**settings))
    torch.manual_seed(1)
    with torch.no_grad():
        for name, p in made.named_parameters():
            if "lora_" in name:
                p.add_(torch.randn_like(p), alpha=0.3)
    made.save_pretrained(path, save_embedding_layers=embeddings)
    return path


def peft_logits(path: Path, tied: bool = False) -> torch.Tensor:
    return logits(PeftModel.from_pretrained(base(tied), str(path)).eval())


SAME = {
    "plain": {},
    "alpha that is no whole number": {"lora_alpha": 2.5},
    "gaussian": {"init_lora_weights": "gaussian"},
    "orthogonal": {"init_lora_weights": "orthogonal"},
    "random start": {"init_lora_weights": False},
    "dropout": {"lora_dropout": 0.3},
    "regular expression": {"target_modules": r".*layers\.1.*(q_proj|up_proj)"},
    "all-linear": {"target_modules": "all-linear"},
    "one layer": {"layers_to_transform": [1]},
    "one layer by pattern": {"layers_to_transform": 0, "layers_pattern": "layers"},
    "left out": {"exclude_modules": ["layers.0.self_attn.q_proj"]},
    "untied output layer": {"target_modules": ["q_proj", "lm_head"]},
}
REFUSED = {
    "PiSSA": ({"init_lora_weights": "pissa"}, "init_lora_weights is 'pissa'"),
    "PiSSA, fast": ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights is 'pissa_niter_4'"),
    "OLoRA": ({"init_lora_weights": "olora"}, "init_lora_weights is 'olora'"),
    "MiCA": ({"init_lora_weights": "mica"}, "init_lora_weights is 'mica'"),
    "activated LoRA": ({"alora_invocation_tokens": [3, 4]}, r"alora_invocation_tokens is '\[3, 4\]'"),
    "DoRA": ({"use_dora": True}, "use_dora is 'True'"),
    "rsLoRA": ({"use_rslora": True}, "use_rslora is 'True'"),
    "ranks by layer": ({"rank_pattern": {"q_proj": 2}}, "rank_pattern is"),
    "alphas by layer": ({"alpha_pattern": {"q_proj": 60}}, "alpha_pattern is"),
    "biases": ({"bias": "lora_only"}, "bias is 'lora_only'"),
    "a bias in B": ({"lora_bias": True}, "lora_bias is 'True'"),
    "more modules": ({"modules_to_save": ["lm_head"]}, r"modules_to_save is"),
    "new tokens": ({"trainable_token_indices": [1, 2]}, "trainable_token_indices is"),
    "layers twice": ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication is"),
    "no linear layer": ({"target_modules": ["embed_tokens"]}, "lora_embedding"),
    "with base weights": ({"target_modules": ["lm_head"], "embeddings": True}, "lm_head.base_layer.weight"),
    "another task": ({"task_type": "FEATURE_EXTRACTION"}, "task_type is 'FEATURE_EXTRACTION'"),
}


@pytest.mark.parametrize("name", SAME)
def test_what_is_loaded_gives_pefts_logits_attached_and_merged(name: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path, **SAME[name])
    expected, adapter = peft_logits(folder), Adapter.load(folder)
    with attached(model := base(), [adapter], [0, 0, 0]):
        ours = logits(model)
    assert (expected - logits(base())).abs().max() > 0.05
    torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(logits(merge(base(), adapter)), expected, atol=1e-4, rtol=1e-4)
    adapter.save(tmp_path / "again", "base")
    torch.testing.assert_close(peft_logits(tmp_path / "again"), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_plain_lora_is_refused_by_the_name_of_its_setting(name: str, tmp_path: Path) -> None:
    settings, words = REFUSED[name]
    folder = folder_of(tmp_path, **settings)
    with pytest.raises(DataError, match=words) as caught:
        Adapter.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and "PEFT" in str(caught.value)


@pytest.mark.parametrize("name", ["PiSSA", "OLoRA", "activated LoRA", "rsLoRA", "alphas by layer"])
def test_these_would_have_given_other_logits(name: str, tmp_path: Path) -> None:
    """That the refusals above are no mere form."""
    folder = folder_of(tmp_path, **REFUSED[name][0])
    expected = peft_logits(folder)
    (folder / CONFIG).write_text(json.dumps(dict(json.loads((folder_of(tmp_path / "x") / CONFIG).read_text()))))
    assert (logits(merge(base(), Adapter.load(folder))) - expected).abs().max() > 1e-2


def test_every_setting_of_peft_is_known_or_refused_when_on(tmp_path: Path) -> None:
    """A setting of a later PEFT too: what is not empty and not known is refused, whatever it is called."""
    folder = folder_of(tmp_path)
    known = json.loads((folder / CONFIG).read_text())
    on = {"task_type": "SEQ_CLS", "peft_type": "LOHA", "init_lora_weights": "loftq", "bias": "all"}
    from seal_lib.training.peft_folder import _HARMLESS

    refused = {*known, "use_something_new"} - _HARMLESS | {*on}
    assert len(refused) > 20
    for key in sorted(refused):
        (folder / CONFIG).write_text(json.dumps(known | {key: on.get(key, {"any": 1})}))
        with pytest.raises(DataError, match=f"{key} is"):
            Adapter.load(folder)


def config(**changes: object) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        content = json.loads((folder / CONFIG).read_text()) | changes
        (folder / CONFIG).write_text(json.dumps({k: v for k, v in content.items() if v is not None}))

    return apply


def tensors(change: Callable[[dict], object]) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        state = load_file(folder / WEIGHTS)
        change(state)
        save_file(state, folder / WEIGHTS)

    return apply


def raw(file: str, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def set_value(state: dict, value: float) -> None:
    state[f"{LAYER}.lora_A.weight"][1, 1] = value


FAULTS = {
    "no config": (lambda f: (f / CONFIG).unlink(), f"{CONFIG} is missing"),
    "no weights": (lambda f: (f / WEIGHTS).unlink(), f"{WEIGHTS} is missing"),
    "weights cut": (raw(WEIGHTS, lambda b: b[: len(b) // 2]), f"{WEIGHTS} is cut or damaged"),
    "weights cut in the header": (raw(WEIGHTS, lambda b: b[:5]), f"{WEIGHTS} is cut or damaged"),
    "empty weights": (raw(WEIGHTS, lambda b: b""), f"{WEIGHTS} is cut or damaged"),
    "weights that are text": (raw(WEIGHTS, lambda b: b"some words of a note"), f"{WEIGHTS} is cut or damaged"),
    "weights that Git LFS left": (raw(WEIGHTS, lambda b: b"version https://git-lfs"), "git lfs pull"),
    "config cut": (raw(CONFIG, lambda b: b[: len(b) // 2]), f"{CONFIG} is no JSON"),
    "config in UTF-16 cut": (raw(CONFIG, lambda b: b"\xff\xfe{"), f"{CONFIG} is no JSON"),
    "config that is a list": (raw(CONFIG, lambda b: b"[]"), f"{CONFIG} holds a JSON list"),
    "config of nothing": (raw(CONFIG, lambda b: b"{}"), "peft_type is 'None'"),
    "another method": (config(peft_type="LOHA"), "peft_type is 'LOHA'"),
    "no rank": (config(r=None), "r is None"),
    "rank 0": (config(r=0), "r is 0"),
    "rank of text": (config(r="4"), "r is '4'"),
    "rank that is true": (config(r=True), "r is True"),
    "rank of others": (config(r=8), "do not fit r = 8"),
    "no alpha": (config(lora_alpha=None), "lora_alpha is None"),
    "alpha of text": (config(lora_alpha="16"), "lora_alpha is '16'"),
    "alpha NaN": (config(lora_alpha=float("nan")), "lora_alpha is nan"),
    "no targets": (config(target_modules=None), "target_modules is None"),
    "empty targets": (config(target_modules=[]), r"target_modules is \[\]"),
    "targets of numbers": (config(target_modules=[1]), r"target_modules is \[1\]"),
    "targets of a mapping": (config(target_modules={"q_proj": 1}), r"target_modules is \{'q_proj': 1\}"),
    "targets that are no expression": (config(target_modules="(q_proj"), "target_modules cannot be read"),
    "fewer targets than weights": (config(target_modules=["q_proj"]), "down_proj, which its config does not target"),
    "more targets than weights": (config(target_modules=["q_proj", "down_proj", "o_proj"]), "no weights for o_proj"),
    "layers left out": (config(layers_to_transform=[0]), r"layers.1.*which its config does not target"),
    "A without B": (tensors(lambda t: t.pop(f"{LAYER}.lora_B.weight")), "has no .*lora_B.weight"),
    "B without A": (tensors(lambda t: t.pop(f"{LAYER}.lora_A.weight")), "no LoRA pair.*lora_B"),
    "names without their prefix": (
        tensors(lambda t: [t.update({key.removeprefix("base_model.model."): t.pop(key)}) for key in list(t)]),
        "no LoRA pair.*model.layers.0",  # PEFT would ignore them
    ),
    "8 bits": (
        tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(4, 32, dtype=torch.int8)})),
        "stored as I8",
    ),
    "no pairs": (tensors(lambda t: t.clear()), "no tensors at all"),
    "a foreign tensor": (tensors(lambda t: t.update(extra=torch.zeros(1))), "no LoRA pair.*extra"),
    "ranks that differ": (tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(3, 32)})), r"\[3, 32\]"),
    "a flat tensor": (tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(128)})), r"\[128\]"),
    "whole numbers": (
        tensors(lambda t: t.update({f"{LAYER}.lora_A.weight": torch.ones(4, 32, dtype=torch.int32)})),
        "torch.int32",
    ),
    "a NaN": (tensors(lambda t: set_value(t, torch.nan)), "layers.1.self_attn.q_proj has values that are not finite"),
    "an infinity": (tensors(lambda t: set_value(t, torch.inf)), "layers.1.self_attn.q_proj has values that are not"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_broken_adapter_folder_is_one_sentence_that_names_the_file(fault: str, tmp_path: Path) -> None:
    spoil, words = FAULTS[fault]
    folder = folder_of(tmp_path)
    spoil(folder)
    with pytest.raises(DataError, match=words) as caught:
        Adapter.load(folder)
    assert "\n" not in str(caught.value) and str(folder) in str(caught.value) and str(caught.value).endswith(".")


def test_an_adapter_that_lacks_a_layer_is_refused_by_the_model(tmp_path: Path) -> None:
    """The file alone cannot show that a whole layer was cut off."""
    folder = folder_of(tmp_path)
    tensors(lambda t: [t.pop(f"{LAYER}.lora_{x}.weight") for x in "AB"])(folder)
    adapter, model = Adapter.load(folder), base()
    with pytest.raises(DataError, match="targets 'model.layers.1.self_attn.q_proj' but has no weights"):
        merge(model, adapter)
    with pytest.raises(DataError, match="has no weights"), attached(model, [adapter], [0, 0, 0]):
        pass


def test_the_tied_output_layer_is_right_attached_and_refused_merged(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, tied=True, target_modules=["q_proj", "lm_head"])
    adapter, model = Adapter.load(folder), base(tied=True)
    with attached(model, [adapter], [0, 0, 0]):
        ours = logits(model)
    torch.testing.assert_close(ours, peft_logits(folder, tied=True), atol=1e-4, rtol=1e-4)
    before = model.lm_head.weight.clone()
    with pytest.raises(DataError, match=r"'lm_head', whose weight another layer shares \(tied embeddings\)"):
        merge(model, adapter)
    assert torch.equal(model.lm_head.weight, before)


@pytest.mark.parametrize("how", ["attached", "merged"])
def test_an_adapter_too_large_for_float16_is_refused(how: str, tmp_path: Path) -> None:
    folder = folder_of(tmp_path)
    tensors(lambda t: t[f"{LAYER}.lora_B.weight"].mul_(1e6))(folder)
    adapter, model = Adapter.load(folder), base().half()
    with pytest.raises(DataError, match="q_proj.*torch.float16"):
        if how == "merged":
            merge(model, adapter)
        else:
            with attached(model, [adapter], [0, 0, 0]):
                pass


#: values that a setting of an adapter's config may hold in a file
SETTINGS = st.sampled_from(
    [None, True, False, 0, 1, 4, 6, 8, -1, 0.5, 1e400, "", "q_proj", "none", "gaussian", [], {}]
) | (
    st.recursive(
        st.integers() | st.text(max_size=5),
        lambda x: st.lists(x, max_size=2) | st.dictionaries(st.sampled_from(["q_proj", "layers"]), x, max_size=2),
        max_leaves=3,
    )
)


@pytest.fixture(scope="module")
def plain_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder_of(tmp_path_factory.mktemp("plain"))


@settings(max_examples=30)
@given(data=st.data())
def test_any_config_is_pefts_logits_or_one_sentence(plain_folder: Path, tmp_path: Path, data) -> None:
    """Never other logits than PEFT's, where PEFT loads it: a value that we do not read may stop PEFT."""
    known = json.loads((plain_folder / CONFIG).read_text())
    keys = st.sampled_from(sorted(known)) | st.text(max_size=4)
    content = known | data.draw(st.dictionaries(keys, SETTINGS, max_size=2))
    for file in plain_folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / CONFIG).write_text(json.dumps(content))
    try:
        adapter = Adapter.load(tmp_path)
        ours = logits(merge(base(), adapter))
    except DataError as error:
        assert "\n" not in str(error) and str(error).endswith(".")
        return
    try:
        theirs = peft_logits(tmp_path)
    except Exception:
        return
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@given(st.binary(max_size=80) | st.text(st.sampled_from('{}[]":,0r'), max_size=40).map(str.encode))
def test_any_bytes_as_a_config_are_one_sentence(plain_folder: Path, tmp_path: Path, content: bytes) -> None:
    (tmp_path / WEIGHTS).write_bytes((plain_folder / WEIGHTS).read_bytes())
    (tmp_path / CONFIG).write_bytes(content)
    with pytest.raises(DataError) as caught:
        Adapter.load(tmp_path)
    assert "\n" not in str(caught.value) and CONFIG in str(caught.value)
