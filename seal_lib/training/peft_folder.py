"""Read PEFT's adapter folders from any source, and refuse all that are not a plain LoRA.

A plain LoRA adds alpha/r B A to the weight of each layer that it names and does nothing else. Every setting must
therefore be known not to change that, or be off, and config and weights must name the same layers.
"""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from seal_lib.errors import DataError
from seal_lib.models.checks import check_safetensors, json_object

CONFIG, WEIGHTS, KEY_PREFIX = "adapter_config.json", "adapter_model.safetensors", "base_model.model."
#: Settings that are read below, that locate layers (as the weights do, too), or that matter in training only.
_HARMLESS = {
    "r",
    "lora_alpha",
    "target_modules",
    "peft_type",
    "task_type",
    "init_lora_weights",
    "base_model_name_or_path",
    "revision",
    "auto_mapping",
    "peft_version",
    "inference_mode",
    "lora_dropout",
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "megatron_core",
    "qalora_group_size",
    "eva_config",
}
#: Settings that exclude some of the layers that the targets name.
_NARROWER = ("exclude_modules", "layers_to_transform", "layers_pattern")
#: Initial values that leave the base model's weights as they are; PiSSA, OLoRA, CorDA, LoftQ and LoRA-GA do not.
_STARTS = (True, False, None, "gaussian", "orthogonal", "eva")
_TYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_WAY = "load it with PEFT, merge it and give the merged model"


def read(folder: Path) -> tuple[int, float, tuple[str, ...], dict[str, tuple[Tensor, Tensor]]]:
    """Read a folder; return (rank, alpha, targets, {module name: (A [rank, in], B [out, rank])}).

    Raises:
        DataError: it is not a plain LoRA adapter, or is cut off, damaged or inconsistent.
    """
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).is_file():
            raise DataError(f"{folder} is no adapter folder: {name} is missing; save the adapter again.")
    config = json_object(folder / CONFIG)
    _check_settings(config, folder / CONFIG)
    rank, alpha, targets = config.get("r"), config.get("lora_alpha"), config.get("target_modules")
    if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
        raise DataError(f"{folder / CONFIG}: r is {rank!r}, not a whole number above 0; save the adapter again.")
    if not isinstance(alpha, int | float) or isinstance(alpha, bool) or not math.isfinite(alpha):
        raise DataError(f"{folder / CONFIG}: lora_alpha is {alpha!r}, not a number; save the adapter again.")
    listed = isinstance(targets, list) and all(isinstance(target, str) for target in targets)
    if not targets or not (listed or isinstance(targets, str)):
        raise DataError(f"{folder / CONFIG}: target_modules is {targets!r}, not names; save the adapter again.")
    check_safetensors(folder / WEIGHTS)
    weights = _pairs(load_file(folder / WEIGHTS), rank, folder / WEIGHTS)
    _check_targets(config, weights, folder)
    chosen = isinstance(targets, str) or any(config.get(key) for key in _NARROWER)
    return rank, alpha, tuple(weights if chosen else targets), weights


def _check_settings(config: Mapping[str, Any], file: Path) -> None:
    """Raise DataError if a setting may change what the adapter does, and name all such settings."""
    odd = {k: v for k, v in config.items() if v and k not in _HARMLESS and (k, v) != ("bias", "none")}
    if config.get("peft_type") != "LORA":
        odd["peft_type"] = config.get("peft_type")
    if config.get("task_type") not in (None, "CAUSAL_LM"):
        odd["task_type"] = config["task_type"]
    start = config.get("init_lora_weights")
    if not isinstance(start, bool | str | None) or start not in _STARTS:
        odd["init_lora_weights"] = start
    if odd:
        named = ", ".join(f"{key} is {str(value)[:60]!r}" for key, value in odd.items())
        raise DataError(f"{file} is no plain LoRA adapter: {named}; {_WAY}.")


def _pairs(state: dict[str, Tensor], rank: int, file: Path) -> dict[str, tuple[Tensor, Tensor]]:
    """Return the tensors of a file as pairs (A, B) by module name; ``state`` is emptied.

    Raises:
        DataError: a tensor has no partner, a wrong shape or type, values that are not finite, or is no LoRA weight.
    """
    weights = {}
    for key in sorted(key for key in state if key.startswith(KEY_PREFIX) and key.endswith(".lora_A.weight")):
        other, name = key.replace(".lora_A.", ".lora_B."), key.removeprefix(KEY_PREFIX).removesuffix(".lora_A.weight")
        if other not in state:
            raise DataError(f"{file}: {key} has no {other}; the file is cut, so save the adapter again.")
        weights[name] = a, b = state.pop(key), state.pop(other)
        if a.ndim != 2 or b.ndim != 2 or not len(a) == b.shape[1] == rank:
            shapes = f"{list(a.shape)} and {list(b.shape)}"
            raise DataError(f"{file}: A and B of {name} are {shapes}, which do not fit r = {rank}; save them again.")
        if a.dtype not in _TYPES or b.dtype not in _TYPES:
            raise DataError(f"{file}: A and B of {name} are {a.dtype} and {b.dtype}; save them as float32.")
        if not (a.isfinite().all() and b.isfinite().all()):
            raise DataError(f"{file}: A or B of {name} has values that are not finite; train the adapter again.")
    if state or not weights:
        odd = ", ".join(sorted(state)[:3]) or "no tensors at all"
        raise DataError(f"{file} holds what is no LoRA pair of a linear layer: {odd}; {_WAY}.")
    return weights


def _check_targets(config: Mapping[str, Any], weights: Mapping[str, Any], folder: Path) -> None:
    """Raise DataError if there are weights that the config does not target, which PEFT would ignore, or targets without
    weights."""
    targets, narrowed = config["target_modules"], any(config.get(key) for key in _NARROWER)
    if isinstance(targets, str) or narrowed:
        from peft.tuners.tuners_utils import check_target_module_exists  # takes seconds to import

        where = SimpleNamespace(target_modules=targets, target_parameters=None, **{k: config.get(k) for k in _NARROWER})
        try:
            astray = [name for name in weights if not check_target_module_exists(where, name)]
        except (re.error, TypeError, AttributeError) as error:
            raise DataError(f"{folder / CONFIG}: target_modules cannot be read ({error}); save it again.") from None
    else:
        astray = [name for name in weights if not any(ends_in(name, target) for target in targets)]
    if astray:
        raise DataError(
            f"{folder / WEIGHTS} has weights for {astray[0]}, which its config does not target; save it again."
        )
    bare = [] if isinstance(targets, str) else [t for t in targets if not any(ends_in(name, t) for name in weights)]
    if bare:
        raise DataError(f"{folder / WEIGHTS} has no weights for {bare[0]}, which {CONFIG} targets; save it again.")


def ends_in(name: str, suffix: str) -> bool:
    """Return whether a module's full name ends in ``suffix``, at a dot."""
    return name == suffix or name.endswith("." + suffix)
