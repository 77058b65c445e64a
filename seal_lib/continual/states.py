"""The weights of a stream as adapters: theta_k = base + one concatenated LoRA history, never merged into the base.

Adapters are summed, scaled, averaged and TIES-merged here, exactly up to rounding, and saved as tensors. Every state is
a `seal_lib.training.adapters.Adapter` with alpha = rank (scale 1), so that the bank trains beside it and the generator
answers with it. The module is independent of passages, arms and losses.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.training.adapters import Adapter


def concatenate(parts: Sequence[tuple[Adapter, float]]) -> Adapter | None:
    """Return the weighted sum of adapters as one adapter whose rank is the sum of the ranks; None if there is none.

    The sum is exact: W + sum w_j s_j B_j A_j. A is left unscaled (O-LoRA reads the old A from it); weight and scale go
    into B. Computed in float32 or wider.

    Raises:
        DataError: the adapters adapt different layers.
    """
    parts = [(adapter, weight) for adapter, weight in parts if adapter is not None]
    if not parts:
        return None
    names = parts[0][0].weights
    if any(set(adapter.weights) != set(names) for adapter, _ in parts):
        raise DataError("Adapters of one stream adapt different layers; use the same targets for every edit.")
    weights = {}
    for name in names:
        a = torch.cat([_wide(ad.weights[name][0]) for ad, _ in parts], 0)
        b = torch.cat([_wide(ad.weights[name][1]) * (ad.scale * w) for ad, w in parts], 1)
        weights[name] = (a, b)
    rank = sum(adapter.rank for adapter, _ in parts)
    return Adapter(rank, float(rank), parts[0][0].targets, weights)


def compact(state: Adapter | None) -> Adapter | None:
    """Return the same update with a rank of at most the largest min(in, out) of the layers: dW = dW I or I dW.

    An adapter whose rank is not above that limit is returned as it is.
    """
    if state is None:
        return None
    limit = max(min(b.shape[0], a.shape[1]) for a, b in state.weights.values())
    if state.rank <= limit:
        return state
    return from_dense({name: state.delta(name) for name in state.weights}, state.targets)


def from_dense(deltas: Mapping[str, Tensor], targets: Sequence[str]) -> Adapter:
    """Return dense updates [out, in] by module as an adapter of rank max min(in, out); smaller layers get zero rows."""
    rank = max(min(d.shape) for d in deltas.values())
    weights = {}
    for name, delta in deltas.items():
        out, width = delta.shape
        a, b = delta.new_zeros(rank, width), delta.new_zeros(out, rank)
        if width <= out:
            a[:width], b[:, :width] = torch.eye(width, dtype=delta.dtype), delta
        else:
            a[:out], b[:, :out] = delta, torch.eye(out, dtype=delta.dtype)
        weights[name] = (a, b)
    return Adapter(rank, float(rank), tuple(targets), weights)


def ties(parts: Sequence[Adapter], density: float, weight: float = 1.0) -> Adapter:
    """Return the TIES merge (Yadav et al. 2023) of independent edits, computed on dense updates and therefore exact.

    Per layer: keep the `density` share of each dW with the largest magnitudes, elect the sign of each weight by the
    sign of the sum, and average the kept values that agree with it; multiply by `weight`.
    """
    deltas = {}
    for name in parts[0].weights:
        stack = torch.stack([_wide(part.delta(name)) for part in parts])
        flat = stack.abs().flatten(1)
        trimmed = round((1 - density) * flat.shape[1])
        cut = flat.kthvalue(trimmed, dim=1).values if trimmed else -torch.ones(len(flat))
        kept = torch.where(stack.abs() > cut[:, None, None], stack, 0.0)
        agree = (kept.sign() == kept.sum(0).sign()) & (kept != 0)
        deltas[name] = weight * (kept * agree).sum(0) / agree.sum(0).clamp_min(1)
    return from_dense(deltas, parts[0].targets)


def update_norm(state: Adapter | None) -> float:
    """Return the Frobenius norm of the whole update, over all layers."""
    if state is None:
        return 0.0
    return float(torch.stack([state.delta(name).double().square().sum() for name in state.weights]).sum().sqrt())


def bytes_of(*adapters: Adapter | None) -> int:
    """Return the size of the adapters' tensors in bytes, in their own dtype."""
    pairs = [pair for adapter in adapters if adapter is not None for pair in adapter.weights.values()]
    return sum(part.numel() * part.element_size() for pair in pairs for part in pair)


def save(
    path: Path, adapters: Mapping[str, Adapter | None], extra: Mapping[str, Tensor], about: Mapping[str, str]
) -> None:
    """Write adapters and other tensors as one safetensors file, completely or not at all."""
    from safetensors.torch import save_file

    tensors, note = {}, dict(about)
    for key, adapter in adapters.items():
        if adapter is not None:
            note[f"adapter {key}"] = f"{adapter.rank} {adapter.alpha!r} {','.join(adapter.targets)}"
            for name, (a, b) in adapter.weights.items():
                tensors[f"adapter|{key}|{name}|A"], tensors[f"adapter|{key}|{name}|B"] = a.contiguous(), b.contiguous()
    tensors |= {f"extra|{key}": value.contiguous() for key, value in extra.items()}
    note["order"] = json.dumps(list(tensors))  # the file sorts its keys, but sums over layers must keep their order
    tensors = tensors or {"nothing": torch.zeros(1)}
    note["digest"] = _digest(tensors, note)
    with paths.whole(path) as temporary:
        save_file(tensors, str(temporary), metadata=note)


def load(path: Path) -> tuple[dict[str, Adapter], dict[str, Tensor], dict[str, str]]:
    """Return what `save` wrote: adapters, other tensors, and notes.

    Raises:
        DataError: the file is damaged or its content does not match its digest.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            note, tensors = dict(file.metadata() or {}), {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError, ValueError) as error:
        raise DataError(f"{path} is cut or damaged ({error}).") from error
    if note.pop("digest", None) != _digest(tensors, note):
        raise DataError(f"{path} is not what was written.")
    adapters: dict[str, Adapter] = {}
    extra = {}
    for key in json.loads(note.pop("order")):
        kind, *rest = key.split("|")
        if kind == "extra":
            extra["|".join(rest)] = tensors[key]
        elif kind == "adapter" and rest[2] == "A":
            rank, alpha, targets = note[f"adapter {rest[0]}"].split(" ")
            made = adapters.setdefault(rest[0], Adapter(int(rank), float(alpha), tuple(targets.split(",")), {}))
            made.weights[rest[1]] = (tensors[key], tensors[key[:-1] + "B"])
    return adapters, extra, {key: value for key, value in note.items() if not key.startswith("adapter ")}


def _digest(tensors: Mapping[str, Tensor], note: Mapping[str, str]) -> str:
    """Return the SHA-256 of everything that a file holds."""
    sha = hashlib.sha256(
        json.dumps([note, [(k, str(t.dtype), t.shape) for k, t in sorted(tensors.items())]], sort_keys=True).encode()
    )
    for _, tensor in sorted(tensors.items()):
        sha.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return sha.hexdigest()


def _wide(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
