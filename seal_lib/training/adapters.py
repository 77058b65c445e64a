"""LoRA adapters as values (Hu et al. 2021: W + alpha/r B A): save, load, join, and merge into weights.

Adapters are stored in PEFT's folder format. `seal_lib.training.attached` runs several of them in one forward pass.
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from seal_lib import models
from seal_lib.errors import DataError, ParameterError, on_disk
from seal_lib.models import ALL_LINEAR
from seal_lib.training import peft_folder
from seal_lib.training.fused import quantised


def target_linears(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Return {full module name: Linear} of every target, in model order.

    The output layer is never a target, as it may be tied to the embeddings.

    Raises:
        ParameterError: a target occurs nowhere in the model.
    """
    head = model.get_output_embeddings()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if targets == ALL_LINEAR and linears:
        return linears
    names = models.target_names(targets)
    absent = next((target for target in names if not any(peft_folder.ends_in(name, target) for name in linears)), None)
    if absent is None and names:
        return {name: m for name, m in linears.items() if any(peft_folder.ends_in(name, target) for target in names)}
    kind, known = type(model).__name__, sorted({name.rpartition(".")[2] for name in linears})
    if not known:
        raise ParameterError(f"targets: {kind} has no Linear layer but its output layer; choose another model.")
    words = [word for word, parts in models.TARGETS.items() if {*parts} <= {*known}]
    ways = ", ".join(f"'{word}'" for word in (ALL_LINEAR, *words))
    raise ParameterError(
        f"targets: {absent!r} names no Linear layer of {kind} that can be adapted; choose {ways} or a list from: "
        f"{', '.join(known)}."
    )


def target_names(model: nn.Module, targets: str | Sequence[str]) -> tuple[str, ...]:
    """Return the module suffixes of the targets, as PEFT takes them; "all-linear" becomes the model's own names."""
    if targets != ALL_LINEAR:
        return models.target_names(targets)
    linears = target_linears(model, targets)
    leaves = tuple(dict.fromkeys(name.rpartition(".")[2] for name in linears))
    alike = sum(isinstance(m, nn.Linear) and name.rpartition(".")[2] in leaves for name, m in model.named_modules())
    return leaves if alike == len(linears) else tuple(linears)  # full names if the output layer shares a suffix


@dataclass
class Adapter:
    """A LoRA adapter; ``weights`` maps a full module name to (A [rank, in], B [out, rank])."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    weights: dict[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self, name: str) -> Tensor:
        """Return the update of the weight of module ``name``: alpha/rank B A, [out, in]."""
        a, b = self.weights[name]
        return self.scale * (b @ a)

    def digest(self) -> str:
        """Return the SHA-256 of rank, alpha, names, shapes, number types and weights, independent of the device."""
        sha = hashlib.sha256(f"{self.rank} {float(self.alpha)}".encode())
        for name in sorted(self.weights):
            for part in self.weights[name]:
                part = part.detach().cpu().contiguous()
                sha.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
                sha.update(part.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def save(self, folder: str | Path, base_model: str, revision: str | None = None) -> Path:
        """Write a PEFT adapter folder and move it into place by a rename; an existing adapter is replaced.

        ``revision`` is the commit of a base model from the Hub.
        """
        folder = Path(folder)
        fresh, stale = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
        fresh.mkdir(parents=True)
        try:
            state = {}
            for name, (a, b) in self.weights.items():
                state[f"{peft_folder.KEY_PREFIX}{name}.lora_A.weight"] = a.detach().cpu().contiguous()
                state[f"{peft_folder.KEY_PREFIX}{name}.lora_B.weight"] = b.detach().cpu().contiguous()
            with on_disk(folder / peft_folder.WEIGHTS):
                save_file(state, str(fresh / peft_folder.WEIGHTS), metadata={"format": "pt"})
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base_model,
                "revision": revision,
                "r": self.rank,
                "lora_alpha": int(self.alpha) if float(self.alpha).is_integer() else self.alpha,
                "target_modules": list(self.targets),
                "lora_dropout": 0.0,
                "bias": "none",
                "fan_in_fan_out": False,
                "use_rslora": False,
                "use_dora": False,
                "modules_to_save": None,
                "inference_mode": True,
            }
            (fresh / peft_folder.CONFIG).write_text(json.dumps(config, indent=2) + "\n")
            for path in fresh.iterdir():
                with path.open("rb") as handle:
                    os.fsync(handle.fileno())
            if folder.exists():
                os.replace(folder, stale)
            os.replace(fresh, folder)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
            shutil.rmtree(stale, ignore_errors=True)
        return folder

    @classmethod
    def load(cls, folder: str | Path) -> "Adapter":
        """Read a PEFT LoRA folder that `save` or PEFT wrote.

        Raises:
            DataError: it is not a plain LoRA adapter (see `seal_lib.training.peft_folder`), or is incomplete.
        """
        return cls(*peft_folder.read(Path(folder)))


def check_fits(model: nn.Module, adapter: Adapter) -> dict[str, nn.Linear]:
    """Return the Linears that an adapter changes, by module name.

    Raises:
        DataError: the adapter belongs to another model, or lacks weights for a layer that it targets.
    """
    modules = dict(model.named_modules())
    found = {name: modules.get(name) for name in adapter.weights}
    for name, (a, b) in adapter.weights.items():
        layer = found[name]
        if not isinstance(layer, nn.Linear) or (b.shape[0], a.shape[1]) != (layer.out_features, layer.in_features):
            raise DataError(
                f"The adapter has a [{b.shape[0]}, {a.shape[1]}] update for {name!r}, which {type(model).__name__} "
                "does not have in that shape; use the adapter with the model it was trained on."
            )
    for name, layer in modules.items():
        bare = name not in found and isinstance(layer, nn.Linear)
        if bare and any(peft_folder.ends_in(name, target) for target in adapter.targets):
            raise DataError(
                f"The adapter targets {name!r} but has no weights for it; its file is cut or of another model, so save "
                "the adapter again."
            )
    return found


def joined(adapters: Sequence[Adapter]) -> Adapter:
    """Join adapters into one whose update is the exact sum of theirs, by concatenating their ranks.

    Raises:
        DataError: there are no adapters, or they change different layers.
    """
    if not adapters or any(other.weights.keys() != adapters[0].weights.keys() for other in adapters):
        raise DataError("Adapters are joined if they change the same layers; learn them with the same targets.")
    weights = {}
    for name in adapters[0].weights:
        a = torch.cat([one.weights[name][0] for one in adapters])
        b = torch.cat([one.scale * one.weights[name][1] for one in adapters], dim=1)
        weights[name] = a, b
    rank = sum(one.rank for one in adapters)
    return Adapter(rank, float(rank), adapters[0].targets, weights)


@torch.no_grad()
def merge(model: nn.Module, adapter: Adapter, copy: bool = False) -> nn.Module:
    """Merge the adapter into the weights: W += alpha/r B A, computed in float32 (or wider) and cast back once.

    Args:
        copy: merge into a deep copy and leave ``model`` as it is.

    Returns:
        The merged model; none of its parameters requires a gradient.

    Raises:
        DataError: a weight is quantised to 4 bits, is shared with another layer, or would overflow.
    """
    layers = check_fits(model, adapter)
    owners = Counter(id(p) for m in model.modules() for p in m.parameters(recurse=False))
    for name, layer in layers.items():
        if quantised(layer):
            raise DataError(
                "An adapter cannot be added into weights of 4 bits; load the model with dtype bfloat16 to merge."
            )
        if owners[id(layer.weight)] > 1:
            raise DataError(
                f"The adapter changes {name!r}, whose weight another layer shares (tied embeddings), so it cannot be "
                "added into one of them; train it without that target, or untie the model."
            )
    if copy:
        model = deepcopy(model)
    for name in layers:
        layer = model.get_submodule(name)
        wide = torch.promote_types(layer.weight.dtype, torch.float32)
        a, b = (part.to(layer.weight.device, wide) for part in adapter.weights[name])
        merged = (layer.weight.to(wide) + adapter.scale * (b @ a)).to(layer.weight.dtype)
        if not merged.isfinite().all():
            raise DataError(
                f"The adapter takes {name!r} past what {merged.dtype} holds; load the model in a wider dtype."
            )
        layer.weight.copy_(merged)
    return model.requires_grad_(False)
