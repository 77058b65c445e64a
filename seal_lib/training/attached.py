"""Several adapters in one forward pass of a frozen model, whose weights are never changed.

Adapters are assigned by batch row for generation (`attached`), and by slot of packed tokens for training
(`LinearGroup`).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from seal_lib.errors import DataError, ParameterError, SealError
from seal_lib.training.adapters import Adapter, check_fits
from seal_lib.training.fused import linear, linear_back, quantised
from seal_lib.training.packing import Ragged, send

#: Linears that usually have the same input. Grouping them saves time; results do not depend on it.
_SIBLINGS = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"))


@contextmanager
def diverted(modules: Mapping[nn.Module, Callable]) -> Iterator[None]:
    """Replace the forward of each module by a function within the block, and restore it afterwards.

    Only the instance's ``forward`` is set, so module names, types, parameters and ``state_dict`` do not change.

    Raises:
        SealError: a module's forward is replaced already.
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


class _Routing:
    """The assignment of ``slots`` adapters to batch rows; -1 means the base model."""

    def __init__(self, slots: int, slot_of_row: Tensor | Sequence[int], device: torch.device):
        rows = torch.as_tensor(slot_of_row).cpu().long()
        if rows.ndim != 1 or (rows.numel() and not -1 <= int(rows.min()) <= int(rows.max()) < slots):
            raise ParameterError(f"slot_of_row must list one number from -1 to {slots - 1} a row, not {rows.tolist()}.")
        self.batch = rows.numel()
        order = torch.argsort(rows, stable=True)
        order = order[rows[order] >= 0]  # rows with an adapter, grouped by adapter
        used, counts = torch.unique_consecutive(rows[order], return_counts=True)
        self.groups, self.pick = len(used), None if used.tolist() == list(range(slots)) else used.to(device)
        packed = Ragged(counts, device) if self.groups else None
        self.plain = torch.equal(order, torch.arange(self.batch)) and (packed is None or packed.even)
        self.rows = order.to(device)
        self.spread = None if packed is None else self.rows if packed.even else self.rows[packed.spread_index]
        self.collect = None if packed is None or packed.even else packed.collect_index

    def add(self, x: Tensor, y: Tensor, a: Tensor, b: Tensor) -> Tensor:
        """Add B A x of each row's adapter to y [B, T, out], for x [B, T, in], a [K, r, in] and b [K, r, out].

        ``y`` may be changed in place.
        """
        if x.ndim != 3 or x.shape[0] != self.batch:
            raise SealError(
                f"{self.batch} rows were routed to adapters but the model saw a batch of shape {tuple(x.shape)}; "
                "attach them with one number a row of [B, T, D] inputs."
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
def attached(model: nn.Module, adapters: Sequence[Adapter], slot_of_row: Tensor | Sequence[int]) -> Iterator[None]:
    """Attach adapters within the block: batch row i uses ``adapters[slot_of_row[i]]``, or the base model for -1.

    Rows with -1 give bit for bit the base model's result; adapters may differ in rank and targets. Inputs are
    [B, T, D]. If every adapter has the same number of adjacent rows, they run as one batched product; any other order
    needs a gather.

    Raises:
        ParameterError: an index does not belong to an adapter.
        DataError: an adapter does not fit the model (`check_fits`) or its number type.
        SealError: the model carries adapters already, or sees another shape or number of rows than was routed.
    """
    device = next(model.parameters()).device
    routing = _Routing(len(adapters), slot_of_row, device)
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
        a, b = send(a, device), send(b, device)  # one transfer per layer, not per adapter
        return lambda x: routing.add(x, type(layer).forward(layer, x), a, b)

    with torch.no_grad():
        forwards = {layer: forward_of(name, layer) for name, layer in layers.items()}
    with diverted(forwards):
        yield


class LinearGroup:
    """Target Linears with the same input (q, k, v), and their K adapters as views of the bank's storage.

    ``a`` [K, members * rank, in] stacks the A of all members; ``b[i]`` [K, rank, out] is the transposed B of member i
    (wide rows make every product fast). ``grads`` holds the gradients of ``a`` and of each ``b[i]``. The first backward
    pass of a step overwrites them, so they do not accumulate over steps; ``fresh`` is True until it has.
    """

    def __init__(self, names: Sequence[str], linears: Sequence[nn.Linear]):
        self.names, self.linears = tuple(names), tuple(linears)
        self.release()

    def resize(self, rank: int) -> int:
        """Set the rank of the storage; return the number of elements that one adapter takes in this group."""
        self.rank, layers = rank, self.linears
        self.shapes = [(len(layers) * rank, layers[0].in_features), *((rank, x.out_features) for x in layers)]
        self.parts = [p * q for p, q in self.shapes]
        self.size = sum(self.parts)
        return self.size

    def bind(self, flat: Tensor, grad: Tensor) -> None:
        """Set the views of weights and gradients; flat and grad are [K, size] column ranges of the bank's storage."""
        views = [
            [x.view(len(flat), *shape) for x, shape in zip(store.split(self.parts, 1), self.shapes, strict=True)]
            for store in (flat, grad)
        ]
        (self.a, *self.b), self.grads = views

    def release(self) -> None:
        """Release the storage and the tensors of an unfinished pass."""
        self.a, self.b, self.grads, self.packing, self.anchor = None, [], [], None, None
        self.fresh, self._input, self._outputs = True, None, []

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        """Return the results of all members; their backward pass writes the gradients."""
        return _Packed.apply(self.anchor, x, self)

    def forward_of(self, i: int) -> Callable[[Tensor], Tensor]:
        """Return the forward of member i; the first call computes all members, the others return stored results."""

        def forward(x: Tensor) -> Tensor:
            if x is not self._input or self._outputs[i] is None:
                self._input, self._outputs = x, list(self.outputs(x))
            y, self._outputs[i] = self._outputs[i], None
            if all(out is None for out in self._outputs):
                self._input = None
            return y

        return forward

    def write(self, part: int, value: Tensor) -> None:
        """Store the gradient of ``a`` (part 0) or ``b[part - 1]``; add to it if this step has written it already."""
        self.grads[part].copy_(value) if self.fresh else self.grads[part].add_(value)

    def finish(self) -> None:
        """Set the gradients of a group without a backward pass in this step to 0."""
        if self.fresh:
            for grad in self.grads:
                grad.zero_()


class _Packed(torch.autograd.Function):
    """y_i = x W_iᵀ + bias_i + gain (x A_iᵀ) B_iᵀ for the members i of a group, over packed slots.

    This is one autograd node in place of about twenty: for the seedlings (and on a GPU) a step costs mainly dispatch,
    not arithmetic. ``anchor`` makes autograd keep the node even if x needs no gradient; the gradients of the adapters
    go to the bank's storage.
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
    """Group the target Linears that share their input, in model order."""
    groups: dict[tuple, list[str]] = {}
    for name in linears:
        parent, _, leaf = name.rpartition(".")
        family = next((f for f in _SIBLINGS if leaf in f), leaf)
        groups.setdefault((parent, family), []).append(name)
    return [LinearGroup(names, [linears[n] for n in names]) for names in groups.values()]
