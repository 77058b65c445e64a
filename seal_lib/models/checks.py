"""Checks that a model is a complete causal language model with a matching tokenizer; every fault is one sentence.

What needs no weights (files, config, tokenizer, device) is checked first; what needs the loaded model (missing or
unexpected weights, values that are not finite, attention to later tokens) is checked right after loading.
"""

import json
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from seal_lib.errors import DataError, ParameterError, SealError

#: number types of weights; the parameter files know all but the first
DTYPES = ("float64", "float32", "bfloat16", "float16", "4bit")
#: A tokenizer with fewer tokens than this share of the embedding's rows belongs to another model. Models pad the rows
#: to round numbers, by at most 2 % in those that we tested (Phi 2).
LEAST_KNOWN = 0.9
#: number types of packed weights, which are meaningless without their scales
PACKED = ("I8", "U8", "F8", "F4")
_UNPACKED = 'give it in float32, bfloat16 or float16 (dtype: "4bit" packs a model here)'


def json_object(path: Path) -> dict[str, Any]:
    """Read the JSON object in a file, or raise DataError."""
    try:
        found = json.loads(_not_a_pointer(path.read_bytes(), path))
    except FileNotFoundError:
        raise DataError(f"{path} is missing; give a folder that is whole.") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror}); mend its rights or copy it again.") from None
    except SealError:
        raise
    except (ValueError, RecursionError) as error:  # not JSON, not Unicode, a number too long, nested too deep
        raise DataError(f"{path} is no JSON ({said(error)}); copy the file again.") from None
    if not isinstance(found, dict):
        raise DataError(f"{path} holds a JSON {type(found).__name__}, not an object of keys; copy the file again.")
    return found


def _not_a_pointer(content: bytes, path: Path) -> bytes:
    """Return the content of a file, or raise DataError if it is a pointer of Git LFS."""
    if content.startswith(b"version https://git-lfs"):
        raise DataError(f"{path} is a pointer of Git LFS, not the file; run `git lfs pull`.")
    return content


def check_safetensors(path: Path) -> None:
    """Raise DataError if the header of a file shows it damaged, cut off, a pointer of Git LFS, or of packed numbers."""
    from safetensors import SafetensorError, safe_open

    try:
        with open(path, "rb") as file:
            _not_a_pointer(file.read(64), path)
        with safe_open(str(path), "pt") as tensors:
            kinds = {key: str(tensors.get_slice(key).get_dtype()) for key in tensors.keys()}  # noqa: SIM118
        packed = next((key for key, kind in kinds.items() if kind.startswith(PACKED)), None)
        if packed:
            raise DataError(f"{path}: {packed} is stored as {kinds[packed]}, in packed numbers; {_UNPACKED}.")
    except SealError:
        raise
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is cut or damaged ({said(error)}); copy or download it again.") from None


def said(error: BaseException) -> str:
    """Return the message of an error in one line of at most 300 characters, without a final full stop."""
    text = " ".join(str(error).split())
    if isinstance(error, KeyError):
        text = f"the key {text} is missing"
    return (text if len(text) < 300 else text[:297] + "…").rstrip(".: ") or type(error).__name__


def check_place(device: str, dtype: str) -> str:
    """Return the device, ``auto`` resolved, or raise ParameterError if it or the number type is not available."""
    import torch

    if dtype not in DTYPES:
        raise ParameterError(f"dtype: {dtype!r} is not one of {', '.join(DTYPES)}.")
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if gpus else "cpu"
    kind, _, number = device.partition(":")
    if kind not in ("cpu", "cuda", "mps") or number and not number.isdecimal():
        raise ParameterError(f"device: {device!r} is not one of auto, cpu, cuda, cuda:0, mps.")
    if kind == "cuda" and int(number or 0) >= gpus:
        have = f"has {gpus} CUDA devices" if gpus else "has no CUDA device that torch can use"
        raise ParameterError(f"device: {device!r} was asked for, but this machine {have}; set device to auto or cpu.")
    if kind == "mps" and not torch.backends.mps.is_available():
        raise ParameterError("device: 'mps' was asked for, but this machine has none; set device to auto or cpu.")
    if kind == "cuda" and dtype == "bfloat16" and not has_bfloat16(device):
        card = torch.cuda.get_device_name(device)
        raise ParameterError(f"dtype: {card} has no bfloat16; set dtype to float16 or float32.")
    return device


def has_bfloat16(device: str) -> bool:
    """Return True if a device supports bfloat16 natively; a CUDA GPU before Ampere only emulates it."""
    import torch

    if not device.startswith("cuda"):
        return True
    with torch.cuda.device(device):
        return torch.cuda.is_bf16_supported(including_emulation=False)


#: name of an exception of the Hub's client → what it means and what to do; "": the Hub cannot be reached
_HUB = {
    "GatedRepoError": "asks for a licence to be accepted: accept it on its page and log in with `hf auth login`",
    "RevisionNotFoundError": "has no such revision: mend `revision`",
    "RepositoryNotFoundError": "does not exist on the Hub, or is private: mend the name or log in with `hf auth login`",
    "LocalEntryNotFoundError": "",
    "OfflineModeIsEnabled": "",
    "ConnectError": "",
    "ConnectionError": "",
    "ConnectTimeout": "",
}


@contextmanager
def opening(name: str, source: str, revision: str | None = None, what: str = "model") -> Iterator[None]:
    """Turn any exception in the block, which opens a model, into a DataError that names the model and what to do.

    ``name`` is the user's, ``source`` the folder or Hub id, ``what`` the part of the model that is opened.
    """
    try:
        yield
    except SealError:
        raise
    except ImportError as error:
        raise DataError(f"{what} {name!r} needs a package that is not installed: {said(error)}.") from error
    except Exception as error:
        if {"MemoryError", "OutOfMemoryError"} & {*_kinds(error)}:  # by name, since the planner does not import torch
            raise DataError(
                f"{what} {name!r} does not fit into memory ({said(error)}); choose dtype 4bit or a smaller model."
            ) from error
        if Path(source).is_dir():
            raise DataError(
                f"{what} {name!r} cannot be opened from {source}: {said(error)}; copy or download it again."
            ) from error
        at = f" at revision {revision}" if revision else ""
        way = next((_HUB[kind] for kind in _kinds(error) if kind in _HUB), None)
        if way:
            raise DataError(f"{what} {name!r}{at} {way}.") from error
        if way == "":
            raise DataError(
                f"{what} {name!r} is not on this machine and the Hub cannot be reached; where there is a network, run "
                f"`hf download {source}{f' --revision {revision}' if revision else ''}`, or give a folder as model."
            ) from error
        raise DataError(f"{what} {name!r}{at} cannot be opened: {said(error)}.") from error


def _kinds(error: BaseException | None) -> Iterator[str]:
    """Yield the class names of an exception, of its base classes and of its causes."""
    while error is not None:
        yield from (kind.__name__ for kind in type(error).__mro__)
        error = error.__cause__ or error.__context__


def check_folder(folder: Path) -> None:
    """Raise DataError if a model folder cannot be loaded as it is.

    It must have a readable config and whole weights, and no adapter, which transformers would add to the model. Only
    the headers of the weights are read.
    """
    if (folder / "adapter_config.json").exists():
        raise DataError(f"{folder} holds an adapter; merge it with PEFT (merge_and_unload) and give the merged model.")
    for file in ("config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"):
        if file == "config.json" or (folder / file).exists():
            json_object(folder / file)
    index = folder / "model.safetensors.index.json"
    if index.exists():
        parts = json_object(index).get("weight_map")
        if not isinstance(parts, dict) or not parts:
            raise DataError(f"{index} has no weight_map; copy or download the file again.")
        weights = sorted({folder / str(part) for part in parts.values()})
    else:
        weights = [folder / "model.safetensors"]
    for path in weights:
        if not path.is_file():
            raise DataError(
                f"{path} is missing; give a folder that holds a whole model, its weights as safetensors (older .bin "
                "files: load them with transformers and save_pretrained)."
            )
        check_safetensors(path)


def check_config(config: Any, name: str) -> None:
    """Raise DataError if a config is of no causal language model of transformers, or if its weights are packed."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    if config.model_type not in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES or getattr(config, "is_encoder_decoder", False):
        raise DataError(
            f"model {name!r}: model_type {config.model_type!r} in config.json is no causal language model; give a "
            "decoder such as Llama or Qwen."
        )
    if packed := getattr(config, "quantization_config", None):
        way = packed.get("quant_method") if isinstance(packed, dict) else type(packed).__name__
        raise DataError(f"model {name!r}: quantization_config in config.json says its weights are {way}; {_UNPACKED}.")


def check_tokenizer(tokenizer: Any, name: str) -> None:
    """Raise DataError if a tokenizer has no EOS token (no text could end), or its chat template cannot be filled."""
    if getattr(tokenizer, "chat_template", None):
        turns = [{"role": "user", "content": "question"}, {"role": "assistant", "content": "reply"}]
        try:
            tokenizer.apply_chat_template(turns, tokenize=False)
        except Exception as error:  # a template may raise anything
            raise DataError(
                f"The chat template of model {name!r} cannot be filled ({said(error)}); mend it, or take it out."
            ) from error
    if tokenizer.eos_token_id is None:
        raise DataError(
            f"The tokenizer of model {name!r} has no EOS token, so no text could be ended; set eos_token in its "
            "tokenizer_config.json."
        )


def check_vocabulary(tokenizer: Any, config: Any, name: str) -> None:
    """Raise DataError if a tokenizer belongs to another model: its ids exceed the embedding, or are far too few."""
    rows = config.get_text_config().vocab_size
    known = tokenizer.get_vocab()
    if known.get(tokenizer.unk_token, 0) >= rows:  # the class of a byte-level tokenizer may add one that is never used
        del known[tokenizer.unk_token]
    text, last = max(known.items(), key=lambda pair: pair[1], default=("", -1))
    way = "use the tokenizer that the model came with"
    if last >= rows:
        raise DataError(
            f"model {name!r}: its tokenizer gives ids up to {last} ({text!r}), but vocab_size in config.json is "
            f"{rows}; {way}, or resize the model's embeddings and save it again."
        )
    if len(known) < LEAST_KNOWN * rows:
        raise DataError(
            f"model {name!r}: its tokenizer knows {len(known)} tokens, but vocab_size in config.json is {rows}; {way}."
        )


def check_weights(model: Any, info: Mapping[str, Collection], name: str) -> None:
    """Raise DataError if, by the loading ``info``, weights do not fit the config one to one, or are wrongly tied."""
    for kind, what, way in (
        ("missing_keys", "are missing from its files and would be random", "give a whole causal language model"),
        ("mismatched_keys", "have another shape than config.json says", "use the config that the model came with"),
        ("unexpected_keys", "have no place in a {} of this config", "give a causal language model with its own config"),
    ):
        if info[kind]:
            keys = sorted(key if isinstance(key, str) else key[0] for key in info[kind])
            listed = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
            raise DataError(f"model {name!r}: weights {what.format(type(model).__name__)}: {listed}; {way}.")
    head, words = model.get_output_embeddings(), model.get_input_embeddings()
    tied = model.config.get_text_config().tie_word_embeddings
    if tied and head is not None and head.weight is not words.weight:
        raise DataError(
            f"model {name!r}: tie_word_embeddings in config.json is true, but its files hold an output layer of its "
            "own; set it to false, or leave the output layer out."
        )


def check_values(model: Any, name: str) -> None:
    """Raise DataError if weights or logits are not finite, or if a token attends to later tokens.

    The latter is tested with two texts that share a beginning: their logits must be equal there.
    """
    import torch

    broken = next((key for key, p in model.named_parameters() if p.is_floating_point() and not _finite(p)), None)
    if broken is not None:
        raise DataError(
            f"model {name!r}: {broken} has values that are not finite in {model.dtype}; copy or download the model "
            "again, or set dtype to float32 if it was made narrower."
        )
    rows = model.get_input_embeddings().num_embeddings
    ids = torch.arange(10, 16).remainder(rows).repeat(2, 1)
    ids[1, 3:] = torch.arange(20, 23).remainder(rows)
    with torch.no_grad():
        logits = model(input_ids=ids.to(model.device), use_cache=False).logits.float()
    if not _finite(logits):
        narrow = model.dtype == torch.float16
        way = "set dtype to float32 or bfloat16" if narrow else "copy or download the model again"
        raise DataError(f"model {name!r}: its logits are not finite in {model.dtype}; {way}.")
    one, other = logits[:, :3]
    if (one - other).abs().max() > (5e-2 if model.dtype.itemsize < 4 else 1e-3) * logits.abs().max():
        raise DataError(
            f"model {name!r}: in {type(model).__name__} a token sees those after it, so it is no causal language "
            "model; give a decoder such as Llama or Qwen."
        )


def _finite(x: Any) -> bool:
    return bool(x.isfinite().all())
