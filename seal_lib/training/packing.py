"""The layout of tokens in one forward pass: rows of different lengths, concatenated or padded to one width.

On this layout it defines the products of adapters over slots and attention within each example, and decides when
padding saves time.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_lib.errors import SealError

GROUPED_FROM = 2  # times as many tokens by padding make grouped products faster than padded ones (measured on CPU)
LEVELLING_COST = 4.0  # see `worth_levelling`; measured at widths 128, 256 and 512
SHORT_EXAMPLE = 128  # tokens; attention by plain products is faster for examples up to this length (measured on CPU)


def send(x: Tensor, device: torch.device) -> Tensor:
    """Copy a CPU tensor to the device; the copy to a GPU is asynchronous."""
    return x.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else x.to(device)


class Ragged:
    """Conversion between R concatenated rows of different lengths ([N, …]) and the same rows padded ([R, width, …]).

    Padding repeats the last token of its own row, so that not even a NaN reaches another row; results of padding are
    dropped.
    """

    def __init__(self, lengths: Tensor, device: torch.device):
        self.lengths, self.count, self.width = lengths, len(lengths), max(int(lengths.max()), 1)
        self.even = bool((lengths == self.width).all())
        steps, starts = torch.arange(self.width), lengths.cumsum(0) - lengths
        real = steps < lengths[:, None]
        self.mask = send(real, device)  # [R, width]
        index = (starts[:, None] + torch.minimum(steps, lengths[:, None] - 1)).clamp_min_(0)
        self.spread_index = send(index.flatten(), device)
        self.collect_index = send(real.flatten().nonzero()[:, 0], device)

    def spread(self, x: Tensor) -> Tensor:
        """Pad the rows: [N, D] -> [R, width, D]."""
        return (x if self.even else x.index_select(0, self.spread_index)).view(self.count, self.width, -1)

    def collect(self, x: Tensor) -> Tensor:
        """Remove the padding: [R, width, D] -> [N, D]."""
        x = x.reshape(self.count * self.width, -1)
        return x if self.even else x.index_select(0, self.collect_index)

    def spread_back(self, grad: Tensor) -> Tensor:
        """Apply the adjoint of `collect`: [N, D] -> [R, width, D], with 0 in the padding."""
        return self.spread(grad) if self.even else self.spread(grad).mul_(self.mask[..., None])


def worth_levelling(slots: Tensor, width: int, most: int | None = None) -> bool:
    """Return True if `level` saves time on a CPU for a model of this hidden width, within ``most`` tokens.

    Passing a little padding through the model costs less than gathering around it in every layer: up to a third of the
    tokens at width 128, a sixth at 512.
    """
    tokens, padded = int(slots.sum()), len(slots) * int(slots.max())
    if not slots.all() or not tokens < padded <= (most or padded):
        return False
    return (padded - tokens) * width**0.5 <= LEVELLING_COST * tokens


def level(lengths: Tensor, visible: Tensor, slots: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Pad each slot to the longest one by repeating its last token; return the new lengths, visible and slots.

    Only other padding of the same slot attends to the padding, which has no loss, so the results do not change.
    """
    last, width = torch.searchsorted(lengths.cumsum(0), slots.cumsum(0)), slots.max()
    extra = torch.zeros_like(lengths).index_copy_(0, last, width - slots)
    return lengths + extra, visible + extra * (visible == lengths), torch.full_like(slots, int(width))


class _Move(torch.autograd.Function):
    """`Ragged.spread` (or `collect`) with its adjoint as a plain gather, since padding has no gradient."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, ragged: Ragged, out: bool) -> Tensor:
        ctx.ragged, ctx.out = ragged, out
        return ragged.spread(x) if out else ragged.collect(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        if ctx.out:
            return ctx.ragged.collect(grad), None, None
        return ctx.ragged.spread_back(grad), None, None


class _Attention(torch.autograd.Function):
    """Rotary embedding and attention of short rows by batched products; keys are padded to S and masked.

    At these sizes torch's CPU kernel is slow, most of all if the length of a row of scores is not a multiple of 16.
    q, k, v are [N, heads * D] before rotation (several query heads may share a key head), cos and sin [R, 1, T, D].
    The mask is added to the scores: [T * query heads per key head, S], or [R * key heads, …] if it differs by row.
    """

    @staticmethod
    def forward(
        ctx: Any, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, mask: Tensor, rows: Ragged, scale: float
    ) -> tuple[Tensor | None, ...]:
        (r, _, t, d), s = cos.shape, mask.shape[-1]

        def heads(x: Tensor) -> Tensor:  # [N, H * D] -> [R, H, T, D]
            return rows.spread(x).view(r, t, -1, d).transpose(1, 2)

        q, k, v = heads(q), heads(k), heads(v)
        turned = _rotate(q, cos, sin, q.new_empty(q.shape)).view(r * k.shape[1], -1, d)  # grouped by key head
        keys, values = k.new_empty(2, *k.shape[:2], s, d)
        for padded in (keys, values):
            padded[:, :, t:].zero_()
        _rotate(k, cos, sin, keys[:, :, :t])
        values[:, :, :t] = v
        keys, values = keys.view(-1, s, d), values.view(-1, s, d)
        share = torch.baddbmm(mask, turned, keys.mT, alpha=scale).softmax(-1)
        ctx.save_for_backward(turned, keys, values, share, cos, sin)
        ctx.rows, ctx.scale = rows, scale
        return rows.collect(torch.bmm(share, values).view(r, -1, t, d).transpose(1, 2).reshape(r, t, -1))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, share, cos, sin = ctx.saved_tensors
        (r, _, t, d), rows = cos.shape, ctx.rows
        grad = rows.spread_back(grad).view(r, t, -1, d).transpose(1, 2).reshape(q.shape)
        scores = torch._softmax_backward_data(torch.bmm(grad, v.mT), share, -1, share.dtype).mul_(ctx.scale)

        def flat(x: Tensor, length: int, turn: bool) -> Tensor:  # [R * H, .., D] -> [N, H * D]
            x = x.view(r, -1, length, d)[:, :, :t]
            out = x.new_empty(r, t, x.shape[1], d)
            _rotate(x, cos, sin, out.transpose(1, 2), back=True) if turn else out.transpose(1, 2).copy_(x)
            return rows.collect(out.flatten(2))

        dq, dk, dv = torch.bmm(scores, k), torch.bmm(scores.mT, q), torch.bmm(share.mT, grad)
        s = k.shape[1]
        return flat(dq, t, True), flat(dk, s, True), flat(dv, s, False), None, None, None, None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, out: Tensor, back: bool = False) -> Tensor:
    """Write the rotary embedding of x = (x1, x2), x cos + (-x2, x1) sin, or with ``back`` its adjoint into ``out``."""
    half = x.shape[-1] // 2
    torch.mul(x, cos, out=out)
    first, second = (sin[..., half:], sin[..., :half]) if back else (sin[..., :half], sin[..., half:])
    out[..., :half].addcmul_(x[..., half:], first, value=1 if back else -1)
    out[..., half:].addcmul_(x[..., :half], second, value=-1 if back else 1)
    return out


class Packing:
    """The layout of one step: K slots concatenated to one [1, N] row; each slot holds whole examples.

    Args:
        lengths: tokens of each example, in packed order.
        visible: number of leading tokens of each example that later tokens can attend to.
        slots: tokens of each slot, [K]; a slot may be empty in this step.
        scale: alpha/rank of each slot, [K].
        dtype: number type of the adapters' products.
        groupable: False if ``F.grouped_mm`` does not support the adapters' sizes, so that products are batched.
    """

    def __init__(
        self, lengths: Tensor, visible: Tensor, slots: Tensor, scale: Tensor, dtype: torch.dtype, groupable: bool
    ):
        device = scale.device
        self.examples, self.visible, self.dtype = Ragged(lengths, device), visible, dtype
        self.slots = self.examples if torch.equal(lengths, slots) else Ragged(slots, device)
        groupable = groupable and (device.type == "cpu" and dtype == torch.float32 or dtype == torch.bfloat16)
        self.grouped = groupable and self.slots.count * self.slots.width > GROUPED_FROM * int(slots.sum())
        if self.grouped:
            self.ends = send(slots.cumsum(0).to(torch.int32), device)
            self.gain = scale.repeat_interleave(send(slots, device), output_size=int(slots.sum()))[:, None]
        else:  # the mask is multiplied into the scale, so every product of padding is 0
            self.gain = scale[:, None, None] * self.slots.mask[..., None]
        self.gain = self.gain.to(dtype)
        self._masks: dict[int | None, Tensor | None] = {}
        self.short = self.examples.width <= SHORT_EXAMPLE
        self._rotary: tuple[Tensor, ...] = ()
        self._added: dict[tuple, Tensor] = {}

    def split(self, x: Tensor) -> Tensor:
        """Convert x [N, D] to the layout that `times` and `outer` take."""
        x = x.to(self.dtype)
        return x if self.grouped else self.slots.spread(x)

    def times(self, x: Tensor, w: Tensor) -> Tensor:
        """Multiply each slot's tokens by the slot's matrix in w [K, D, E]."""
        return F.grouped_mm(x, w, offs=self.ends) if self.grouped else torch.bmm(x, w)

    def outer(self, x: Tensor, y: Tensor) -> Tensor:
        """Sum x yᵀ over each slot's tokens; return [K, D, E]."""
        return F.grouped_mm(x.mT, y, offs=self.ends) if self.grouped else torch.bmm(x.mT, y)

    def add(self, total: Tensor, x: Tensor, w: Tensor) -> None:
        """Add ``times(x, w)`` to total [N, E] in place, rounding once if total has a narrower type."""
        if not self.grouped and self.slots.even and total.dtype == x.dtype:
            total.view(self.slots.count, self.slots.width, -1).baddbmm_(x, w)
        else:
            update = self.times(x, w)
            total.add_(update if self.grouped else self.slots.collect(update))

    def attend(self, module: nn.Module, q: Tensor, k: Tensor, v: Tensor, mask: None, **options) -> tuple[Tensor, None]:
        """Apply attention within each example, with transformers' signature: q, k, v [1, H, N, D] -> [1, N, H, D]."""
        rows = self.examples

        def spread(x: Tensor) -> Tensor:  # [1, H, N, D] -> [R, H, T, D]
            heads = x.shape[1]
            x = _Move.apply(x[0].transpose(0, 1).flatten(1), rows, True)
            return x.view(rows.count, rows.width, heads, -1).transpose(1, 2)

        mask, cap = self._mask(options.get("sliding_window")), options.get("softcap")
        if cap is not None:
            out = _capped(spread(q), spread(k), spread(v), mask, options["scaling"], cap)
        else:
            out = F.scaled_dot_product_attention(
                spread(q),
                spread(k),
                spread(v),
                attn_mask=mask,
                is_causal=mask is None,
                scale=options.get("scaling"),
                enable_gqa=q.shape[1] != k.shape[1],
            )
        heads = out.shape[1]
        out = _Move.apply(out.transpose(1, 2).flatten(2), rows, False)
        return out.view(1, out.shape[0], heads, -1), None

    def rotates(self, x: Tensor) -> bool:
        """Return True if `attend_rotated` is faster than `attend` for hidden states like x."""
        return self.short and x.device.type == "cpu" and x.dtype.itemsize >= 4

    def attend_rotated(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Apply the rotary embedding, then attention as `attend` does, for `short` rows.

        q, k, v and the result are [N, H * D], cos and sin [1, N, D].
        """
        rows = self.examples
        if not self._rotary or self._rotary[0] is not cos:  # all layers share cos and sin
            spread = (rows.spread(x[0]).view(rows.count, 1, rows.width, -1) for x in (cos, sin))
            self._rotary = (cos, *spread)
        heads, shared = k.shape[-1] // cos.shape[-1], q.shape[-1] // k.shape[-1]
        key = (window, heads, shared, q.dtype)
        if key not in self._added:
            self._added[key] = self._added_mask(*key)
        return _Attention.apply(q, k, v, *self._rotary[1:], self._added[key], rows, scale)

    def _added_mask(self, window: int | None, heads: int, shared: int, dtype: torch.dtype) -> Tensor:
        """Return the mask that `_Attention` adds to scores; keys are padded to multiples of 16."""
        mask = self._mask(window)
        if mask is None:
            mask = torch.ones(self.examples.width, self.examples.width, dtype=torch.bool).tril_()
        mask = F.pad(mask, (0, -mask.shape[-1] % 16))
        # not -inf: padding may have no visible key, and its NaN times a gradient of 0 would be NaN
        mask = torch.zeros(mask.shape, dtype=dtype).masked_fill_(~mask, torch.finfo(dtype).min)
        if mask.ndim == 2:
            return mask.repeat(shared, 1)
        return mask.repeat(1, heads, shared, 1).flatten(0, 1)

    def _mask(self, window: int | None) -> Tensor | None:
        """Return the boolean attention mask [R, 1, T, T], or None if plain causal attention is enough."""
        window = window if window is not None and window < self.examples.width else None
        if window not in self._masks:
            mask, pads = None, bool((self.visible < self.examples.lengths).any())
            if window is not None and pads:
                raise SealError(f"Pads in the loss need full attention, but the model sees only {window} tokens back.")
            if window is not None or pads:
                t = torch.arange(self.examples.width)
                mask = (t <= t[:, None]) & (t < self.visible[:, None, None])
                mask = mask if window is None else mask & (t > t[:, None] - window)
                mask = send(mask[:, None], self.gain.device)
            self._masks[window] = mask
        return self._masks[window]


def _capped(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, scale: float, cap: float) -> Tensor:
    """Apply attention with scores capped by cap * tanh(scores / cap), as in Gemma 2; q, k, v are [R, H, T, D]."""
    k, v = (x.repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (k, v))
    scores = torch.tanh(q @ k.mT * (scale / cap)) * cap
    if mask is None:
        mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril_()
    scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    return scores.softmax(-1, dtype=torch.promote_types(q.dtype, torch.float32)).to(q.dtype) @ v
