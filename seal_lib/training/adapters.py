"""LoRA adapters: as values on disk and in memory, and as slots on a frozen model whose weights are never touched.

Knows PEFT's folder format, which Linears a target name means, and how several adapters share one forward pass: by batch
row for generation (`attached`) and by slot of packed tokens for training (`LinearGroup`).
Knows nothing of losses, optimisers, prompts or scores (Hu et al. 2021, LoRA: W + alpha/r B A).
"""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_lib import models
from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.models import ALL_LINEAR
from seal_lib.training import peft_folder
from seal_lib.training.fused import linear, linear_back, quantised
from seal_lib.training.packing import Ragged, send

#: Linears that read the same tensor in every decoder we meet; grouping them is a saving, never an assumption.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


def target_linears(model: nn.Module, targets: str | Sequence[str]) -> dict[str, nn.Linear]:
    """Full module name -> Linear for every target, in model order. The output layer is never a target: it may be tied.

    Raises:
        ParameterError: a target occurs nowhere in the model.
    """
    head = model.get_output_embeddings()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear) and m is not head}
    if targets == ALL_LINEAR and linears:
        return linears
    names = models.target_names(targets)
    absent = next((target for target in names if not any(_ends_in(name, target) for name in linears)), None)
    if absent is None and names:
        return {name: m for name, m in linears.items() if any(_ends_in(name, target) for target in names)}
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
    """Module suffixes that name the targets in PEFT's way: a word is spelt out, "all-linear" by what the model has."""
    if targets != ALL_LINEAR:
        return models.target_names(targets)
    linears = target_linears(model, targets)
    leaves = tuple(dict.fromkeys(name.rpartition(".")[2] for name in linears))
    alike = sum(isinstance(m, nn.Linear) and name.rpartition(".")[2] in leaves for name, m in model.named_modules())
    return leaves if alike == len(linears) else tuple(linears)  # the output layer may be called as others are


def _ends_in(name: str, suffix: str) -> bool:
    return name == suffix or name.endswith("." + suffix)


@dataclass
class Adapter:
    """One LoRA adapter; ``weights`` maps a full module name to (A [rank, in], B [out, rank])."""

    rank: int
    alpha: float
    targets: tuple[str, ...]
    weights: dict[str, tuple[Tensor, Tensor]]

    @property
    def scale(self) -> float:
        return self.alpha / self.rank

    def delta(self, name: str) -> Tensor:
        """What the adapter adds to the weight of module ``name``: alpha/rank B A, [out, in]."""
        a, b = self.weights[name]
        return self.scale * (b @ a)

    def digest(self) -> str:
        """SHA-256 of rank, alpha, names, shapes and weights, whatever the device."""
        sha = hashlib.sha256(f"{self.rank} {float(self.alpha)}".encode())
        for name in sorted(self.weights):
            for part in self.weights[name]:
                part = part.detach().cpu().contiguous()
                sha.update(f"{name} {tuple(part.shape)} {part.dtype}".encode())
                sha.update(part.view(torch.uint8).numpy().tobytes())
        return sha.hexdigest()

    def save(self, folder: str | Path, base_model: str) -> Path:
        """Write a PEFT adapter folder in one rename; an adapter already there is replaced.

        Args:
            folder: where; its parent is made if need be.
            base_model: name written as ``base_model_name_or_path``.
        """
        from safetensors.torch import save_file

        folder = Path(folder)
        fresh, stale = (folder.with_name(f".{folder.name}.{kind}-{os.getpid()}") for kind in ("new", "old"))
        fresh.mkdir(parents=True)
        try:
            state = {}
            for name, (a, b) in self.weights.items():
                state[f"{peft_folder.PREFIX}{name}.lora_A.weight"] = a.detach().cpu().contiguous()
                state[f"{peft_folder.PREFIX}{name}.lora_B.weight"] = b.detach().cpu().contiguous()
            save_file(state, str(fresh / peft_folder.WEIGHTS), metadata={"format": "pt"})
            config = {
                "peft_type": "LORA",
                "task_type": "CAUSAL_LM",
                "base_model_name_or_path": base_model,
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
        """Read a PEFT LoRA folder written by `save` or by PEFT.

        Raises:
            DataError: it is no plain LoRA adapter (see `seal_lib.training.peft_folder`), or is not whole.
        """
        return cls(*peft_folder.read(Path(folder)))


def check_fits(model: nn.Module, adapter: Adapter) -> dict[str, nn.Linear]:
    """The Linears that an adapter changes.

    Raises:
        DataError: it was made for another model, or lacks weights for a layer that it targets.
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
        if bare and any(_ends_in(name, target) for target in adapter.targets):
            raise DataError(
                f"The adapter targets {name!r} but has no weights for it; its file is cut or of another model, so save "
                "the adapter again."
            )
    return found


def joined(adapters: Sequence[Adapter]) -> Adapter:
    """One adapter that adds what all of them add: their ranks side by side, so W + sum of alpha/r B A, exactly.

    Raises:
        DataError: there is none, or they change different layers.
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
    """Add the adapter into the weights: W += alpha/r B A, computed in float32 (or wider) and cast back once.

    Args:
        copy: leave ``model`` alone and return a merged deep copy.

    Returns:
        A plain model, no parameter of which requires a gradient.

    Raises:
        DataError: the weights are packed into 4 bits, are shared with another layer, or would overflow.
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
        from copy import deepcopy

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


@contextmanager
def diverted(modules: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Replace the forward of each module by a function within the block; afterwards the modules are plain again.

    Only the instance's ``forward`` is set, so module names, types, parameters and ``state_dict`` stay as they are.
    """
    earlier = {module: module.__dict__.get("forward") for module in modules}
    if any(getattr(forward, "of_seal", False) for forward in earlier.values()):
        raise SealError("The model already carries adapters; close the bank or leave the `attached` block first.")
    try:
        for module, forward in modules.items():
            forward.of_seal = True
            module.forward = forward
        yield
    finally:
        for module, forward in earlier.items():
            module.__dict__.pop("forward", None)
            if forward is not None:
                module.forward = forward


class Routing:
    """Which adapter each batch row uses; changed with `route` while the adapters stay attached."""

    def __init__(self, slots: int, slot_of_row: Tensor, device: torch.device):
        self.slots, self.device = slots, device
        self.route(slot_of_row)

    def route(self, slot_of_row: Tensor | Sequence[int]) -> None:
        """Set the adapter number of every row of the coming batches; -1 is the plain base model.

        Raises:
            ParameterError: a number that is no adapter.
        """
        rows = torch.as_tensor(slot_of_row).cpu().long()
        if rows.ndim != 1 or (rows.numel() and not -1 <= int(rows.min()) <= int(rows.max()) < self.slots):
            raise ParameterError(
                f"slot_of_row must list one number from -1 to {self.slots - 1} a row, not {rows.tolist()}."
            )
        self.batch = rows.numel()
        order = torch.argsort(rows, stable=True)
        order = order[rows[order] >= 0]  # rows that have an adapter, those of one adapter together
        used, counts = torch.unique_consecutive(rows[order], return_counts=True)
        self.groups, self.pick = len(used), None if used.tolist() == list(range(self.slots)) else used.to(self.device)
        packed = Ragged(counts, self.device) if self.groups else None
        self.plain = order.numel() == self.batch and bool((order == torch.arange(self.batch)).all())
        self.plain = self.plain and (packed is None or packed.even)
        self.rows = order.to(self.device)
        self.spread = None if packed is None else self.rows if packed.even else self.rows[packed.spread_index]
        self.collect = None if packed is None or packed.even else packed.collect_index

    def add(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """y [B, T, out] plus each row's B A x; rows without an adapter are not touched. a [K, r, in], b [K, r, out]."""
        if x.ndim != 3 or x.shape[0] != self.batch:
            raise SealError(
                f"{self.batch} rows were routed to adapters but the model saw a batch of shape {tuple(x.shape)}; call "
                "route() with one number a row of [B, T, D] inputs."
            )
        if not self.groups:
            return y
        if self.pick is not None:
            a, b = a[self.pick], b[self.pick]
        x = x if self.plain else x.index_select(0, self.spread)
        update = torch.bmm(torch.bmm(x.reshape(self.groups, -1, x.shape[-1]), a.mT), b)
        if self.plain:
            return y.add_(update.view_as(y))
        update = update.view(x.shape[0], x.shape[1], -1)
        return y.index_add_(0, self.rows, update if self.collect is None else update.index_select(0, self.collect))


@contextmanager
def attached(model: nn.Module, adapters: Sequence[Adapter], slot_of_row: Tensor | Sequence[int]) -> Iterator[Routing]:
    """Within the block, batch row i of the model uses ``adapters[slot_of_row[i]]``, or the base model for -1.

    Rows with -1 give exactly the base model's bits; adapters of different rank and targets mix. Inputs are [B, T, D].
    Rows of one adapter that lie together in equal numbers run as one batched product; any other order is gathered.

    Yields:
        A `Routing`, whose ``route`` re-assigns rows (a batch that shrinks, the next batch).
    """
    device = next(model.parameters()).device
    routing = Routing(len(adapters), torch.as_tensor(slot_of_row), device)
    layers: dict[str, nn.Linear] = {}
    for adapter in adapters:
        layers |= check_fits(model, adapter)

    def forward_of(name: str, layer: nn.Linear) -> Callable[[Tensor], Tensor]:
        rank, packed = max(ad.rank for ad in adapters if name in ad.weights), quantised(layer)
        dtype = model.dtype if packed else layer.weight.dtype
        a = torch.zeros(len(adapters), rank, layer.in_features, dtype=dtype)
        b = torch.zeros(len(adapters), rank, layer.out_features, dtype=dtype)
        for k, adapter in enumerate(adapters):
            if name in adapter.weights:
                a[k, : adapter.rank] = adapter.weights[name][0]
                b[k, : adapter.rank] = adapter.weights[name][1].mT * adapter.scale
        if dtype == torch.float16 and not (a.isfinite().all() and b.isfinite().all()):
            raise DataError(f"An adapter's weights for {name!r} are past what {dtype} holds; choose a wider dtype.")
        a, b = send(a, device), send(b, device)  # one transfer a layer, not one an adapter
        if packed:
            return lambda x: routing.add(x, type(layer).forward(layer, x), a, b)
        return lambda x: routing.add(x, F.linear(x, layer.weight, layer.bias), a, b)

    with torch.no_grad():
        forwards = {layer: forward_of(name, layer) for name, layer in layers.items()}
    with diverted(forwards):
        yield routing


class LinearGroup:
    """Target Linears that read the same tensor (q, k, v), with K adapters in views of the bank's flat storage.

    ``a`` [K, members * rank, in] holds the members' A one below the other; ``b[i]`` [K, rank, out] is member i's B
    transposed (wide rows make every product fast). ``grad_a`` and ``grad_b`` are written by backward, not accumulated
    over steps; ``fresh`` says that this step has not written yet.
    """

    def __init__(self, names: Sequence[str], linears: Sequence[nn.Linear]):
        self.names, self.linears = tuple(names), tuple(linears)
        self.release()

    def resize(self, rank: int) -> int:
        """Set the rank of the storage; returns how many numbers one adapter needs here."""
        self.rank, layers = rank, self.linears
        self.shapes = [(len(layers) * rank, layers[0].in_features), *((rank, x.out_features) for x in layers)]
        self.parts = [p * q for p, q in self.shapes]
        self.size = sum(self.parts)
        return self.size

    def bind(self, flat: Tensor, grad: Tensor) -> None:
        """Take the views; flat and grad are [K, size] column ranges of the bank's storage."""
        views = [
            [x.view(len(flat), *shape) for x, shape in zip(store.split(self.parts, 1), self.shapes, strict=True)]
            for store in (flat, grad)
        ]
        (self.a, *self.b), self.grads = views

    def release(self) -> None:
        """Drop the storage and the tensors of an unfinished pass."""
        self.a, self.b, self.grads, self.packing, self.anchor = None, [], [], None, None
        self.fresh, self._input, self._outputs = True, None, []

    def forward_of(self, i: int) -> Callable[[Tensor], Tensor]:
        """The forward of member i. The first call computes all members; the others return their stored result."""

        def forward(x: Tensor) -> Tensor:
            if x is not self._input or self._outputs[i] is None:
                self._input, self._outputs = x, list(_Packed.apply(self.anchor, x, self))
            y, self._outputs[i] = self._outputs[i], None
            if all(out is None for out in self._outputs):
                self._input = None
            return y

        return forward

    def write(self, part: int, value: Tensor) -> None:
        """Store the gradient of ``a`` (0) or ``b[part - 1]``, adding if this step already wrote it."""
        self.grads[part].copy_(value) if self.fresh else self.grads[part].add_(value)

    def finish(self) -> None:
        """After the backward pass: a group that took no part has gradient 0, not the last step's."""
        if self.fresh:
            for grad in self.grads:
                grad.zero_()


class _Packed(torch.autograd.Function):
    """y_i = x W_iᵀ + bias_i + gain (x A_iᵀ) B_iᵀ for the members i of a group, over packed slots.

    One node instead of some twenty: at seedling size (and on a GPU) dispatch, not arithmetic, is what a step costs.
    ``anchor`` only makes autograd keep the node where x needs no gradient; adapter gradients go to the flat storage.
    """

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, group: LinearGroup) -> tuple[Tensor | None, ...]:
        packing, r = group.packing, group.rank
        flat = x.view(-1, x.shape[-1])
        outs = [linear(layer, flat).view(*x.shape[:-1], -1) for layer in group.linears]
        h = packing.times(packing.split(flat), group.a.to(packing.dtype).mT) * packing.gain
        for i, out in enumerate(outs):
            packing.add(out.view(-1, out.shape[-1]), h[..., i * r : (i + 1) * r], group.b[i].to(packing.dtype))
        ctx.group, ctx.packing = group, packing
        ctx.save_for_backward(x, h)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        group, packing, r = ctx.group, ctx.packing, ctx.group.rank
        x, h = ctx.saved_tensors
        dx, dh = None, []
        for i, (grad, layer) in enumerate(zip(grads, group.linears, strict=True)):
            grad = grad.reshape(-1, grad.shape[-1])
            if ctx.needs_input_grad[1]:
                part = linear_back(layer, grad)
                dx = part if dx is None else dx.add_(part)
            split = packing.split(grad)
            dh.append(packing.times(split, group.b[i].to(packing.dtype).mT))
            group.write(1 + i, packing.outer(h[..., i * r : (i + 1) * r], split))
        dh = (dh[0] if len(dh) == 1 else torch.cat(dh, -1)) * packing.gain
        group.write(0, packing.outer(dh, packing.split(x.view(-1, x.shape[-1]))))
        group.fresh = False
        if dx is not None:
            packing.add(dx, dh, group.a.to(packing.dtype))
            dx = dx.view_as(x)
        return None, dx, None


def sibling_groups(linears: Mapping[str, nn.Linear]) -> list[LinearGroup]:
    """Sort target Linears into groups that share their input, in model order."""
    groups: dict[tuple, list[str]] = {}
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        family = next((f for f in _SIBLINGS if leaf in f), leaf)
        groups.setdefault((parent, family), []).append(name)
    return [LinearGroup(names, [linears[n] for n in names]) for names in groups.values()]
