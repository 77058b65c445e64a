"""Load models and tokenizers by name, and resolve names of LoRA targets.

The shipped seedlings need no network; Hub models need a pinned revision.
"""

import hashlib
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.models import checks

if TYPE_CHECKING:
    import torch
    from transformers import BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

SEEDLINGS = paths.PACKAGE / "seedling" / "models"

#: Models with fewer parameters run on one CPU thread, since a second one costs more than it gains, above all on a busy
#: machine. One thread also makes sums, and so results, independent of the number of cores.
SMALL = 20_000_000

#: Commits of the Hub models that the parameter files name (the parameter ``revision`` takes precedence).
REVISIONS = {
    "Qwen/Qwen2.5-7B": "d149729398750b98c0af14eb82c78cfe92750796",
    "Qwen/Qwen2.5-3B": "3aab1f1954e9cc14eb9509a215f9e5ca08227a9b",
    "Qwen/Qwen2.5-1.5B": "8faed761d45a263340a0528343f099c05c9a4323",
    "Qwen/Qwen2.5-0.5B": "060db6499f32faf8b98477b0a26969ef7d8b9987",
    "meta-llama/Llama-3.2-1B-Instruct": "9213176726f574b556790deb65791e0c5aa438b6",
}

#: Names of common sets of targets; ``qv`` is PEFT's default for Llama and Qwen2, and so the authors'.
TARGETS = {
    "qv": ("q_proj", "v_proj"),
    "qv-mlp": ("q_proj", "v_proj", "gate_proj", "up_proj", "down_proj"),  # the authors' ARC adapters
}
#: PEFT's word for every linear layer but the output layer, whatever their names.
ALL_LINEAR = "all-linear"


def target_names(targets: str | Sequence[str]) -> tuple[str, ...]:
    """Return the module suffixes of ``targets``; ``"all-linear"`` stays as it is, since it depends on the model."""
    if isinstance(targets, str):
        return TARGETS.get(targets, (targets,))
    return tuple(targets)


def resolve(name: str) -> tuple[str, str | None]:
    """Resolve a model name to (source, pinned revision).

    A seedling such as ``seedling-knowledge`` gives its shipped folder, a folder itself; any other name is a Hub id,
    with the commit from ``owner/name@commit`` or from `REVISIONS`.

    Raises:
        DataError: the name is none of these.
    """
    if name.startswith("seedling-"):
        folder = SEEDLINGS / name.removeprefix("seedling-")
        if not (folder / "config.json").is_file():
            shipped = ", ".join(sorted(f"seedling-{p.parent.name}" for p in SEEDLINGS.glob("*/config.json")))
            raise DataError(f"model {name!r} does not ship; choose one of: {shipped or 'none yet: run make seedling'}.")
        return str(folder), None
    if paths.given(name).is_dir():
        return str(paths.given(name)), None
    hub, _, commit = name.partition("@")
    if hub.count("/") == 1 and not hub.startswith((".", "/")):
        return hub, commit or REVISIONS.get(hub)
    raise DataError(f"model {name!r} is neither a shipped seedling, a folder on this machine, nor a Hub id owner/name.")


def load(
    name: str, device: str = "cpu", dtype: str = "float32", revision: str | None = None
) -> "tuple[PreTrainedModel, PreTrainedTokenizerBase]":
    """Load (model, tokenizer); the model is frozen and in eval mode. Only safetensors are read, no remote code runs.

    Args:
        device: "cpu", "cuda", "cuda:0", "mps", or "auto" for a GPU if there is one.
        dtype: a torch type, or "4bit" for the decoder's Linears in 4 bits (NF4, bitsandbytes) and all else in bfloat16
            (float16 on a GPU without it).

    Raises:
        DataError: the name cannot be resolved, or is a Hub id without a pinned revision; bitsandbytes is missing; the
            model is incomplete or not a causal language model, or its tokenizer does not fit.
        ParameterError: the device or the number type is not available.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    _without_bar()
    device = checks.check_place(device, dtype)
    source, at = pinned(name, revision)
    options = {**at, "trust_remote_code": False}
    if Path(source).is_dir():
        checks.check_folder(Path(source))
    narrow = torch.bfloat16 if checks.has_bfloat16(device) else torch.float16
    loading = {**options, "use_safetensors": True, "output_loading_info": True, "ignore_mismatched_sizes": True}
    if dtype == "4bit":
        loading |= {"quantization_config": _four_bits(narrow), "device_map": {"": device}}
    with checks.opening(name, source, at.get("revision")):
        config = AutoConfig.from_pretrained(source, **options)
        checks.check_config(config, name)
        tokenizer = load_tokenizer(name, revision)
        checks.check_vocabulary(tokenizer, config, name)
        model, info = AutoModelForCausalLM.from_pretrained(
            source, dtype=narrow if dtype == "4bit" else getattr(torch, dtype), **loading
        )
        checks.check_weights(model, info, name)
        if dtype == "4bit":
            for module in model.modules():  # else bitsandbytes repacks the weights on some CPUs, for inference only
                if hasattr(module, "support_avx512bf16_for_cpu"):
                    module.support_avx512bf16_for_cpu = False
        else:
            model.to(device)
        model.eval().requires_grad_(False)
        if device == "cpu" and model.num_parameters() < SMALL:
            torch.set_num_threads(1)
        checks.check_values(model, name)
    return model, tokenizer


def _without_bar() -> None:
    """Switch off the progress bar of loading weights, not of downloads: its widget is lost when a notebook reopens."""
    from huggingface_hub import utils
    from transformers.utils import logging

    hidden = utils.are_progress_bars_disabled()
    logging.disable_progress_bar()
    if not hidden:
        utils.enable_progress_bars()


def _four_bits(narrow: "torch.dtype") -> "BitsAndBytesConfig":
    """Return the config of NF4 in blocks of 64 with constants in 8 bits (Dettmers et al. 2023, QLoRA).

    The memory budget assumes this format. ``narrow`` is the torch type of products and of all weights that are not
    quantised. Without bitsandbytes raise DataError.
    """
    from transformers import BitsAndBytesConfig

    if find_spec("bitsandbytes") is None:
        raise DataError('dtype: "4bit" needs the package bitsandbytes; install it with `pip install -e ".[4bit]"`.')
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=narrow
    )


def load_tokenizer(name: str, revision: str | None = None) -> "PreTrainedTokenizerBase":
    """Load the tokenizer of a model; EOS becomes its pad token if it has none.

    Raises:
        DataError: the tokenizer cannot be opened, or has no EOS token.
    """
    from transformers import AutoTokenizer

    source, at = pinned(name, revision)
    with checks.opening(name, source, at.get("revision"), "the tokenizer of model"):
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False, **at)
        checks.check_tokenizer(tokenizer, name)
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def pinned(name: str, revision: str | None, parameter: str = "revision") -> tuple[str, dict[str, str]]:
    """Resolve a name to (source, keyword arguments), which hold the commit of a Hub id as ``revision``.

    Raises:
        DataError: the name cannot be resolved, or is a Hub id without a commit, which is the user's ``parameter``.
    """
    source, known = resolve(name)
    if Path(source).is_dir():
        return source, {}
    commit = revision or known
    if not commit:
        raise DataError(f"model {name!r} has no pinned revision; give the commit as parameter `{parameter}`.")
    return source, {"revision": commit}


#: suffixes of files in a model folder that do not affect the model
DOCUMENTS = (".md", ".png", ".jpg", ".pdf")


def weight_hash(name: str, revision: str | None = None) -> str:
    """Return the SHA-256 of all files that affect a local model's output, or ``hub:<id>@<revision>`` for a Hub model.

    All files count (weights, tokenizer, chat templates, also in subfolders), except documents and hidden files.
    A process reads them once, and again after a change.
    """
    source, pinned = resolve(name)
    if not Path(source).is_dir():
        return f"hub:{source}@{revision or pinned}"
    root, files = Path(source), []
    for path in sorted(root.rglob("*")):
        inside = path.relative_to(root)
        if path.is_file() and not any(part.startswith(".") for part in inside.parts) and path.suffix not in DOCUMENTS:
            about = path.stat()
            files.append((inside.as_posix(), about.st_size, about.st_mtime_ns, about.st_ctime_ns))
    return _digest(root, tuple(files))


@lru_cache(maxsize=8)
def _digest(root: Path, files: tuple[tuple[str, int, int, int], ...]) -> str:
    """Return the SHA-256 of names and contents. Size and times are in the key, so that changed files are read again."""
    digest = hashlib.sha256()
    for name, *_ in files:
        digest.update(name.encode())
        with (root / name).open("rb") as file:
            while block := file.read(2**20):  # weights can have gigabytes
                digest.update(block)
    return digest.hexdigest()
