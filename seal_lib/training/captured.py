"""Steps of the bank at fixed sizes, so that a GPU can replay them as CUDA graphs.

If the thousand or so kernels of a step are launched one by one from Python, a GPU is idle for half of the time
(measured, LOG.md). The tokens of a step are therefore laid end to end in a buffer of one of a few sizes, all that
differs between steps is held in device tensors, and the same graph is replayed. The first steps of each size run
without a graph, as a warm-up for the capture, so rare sizes are never captured. `seal_lib.training.steps` defines what
a step computes.
"""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen

from seal_lib.training.finetune import Minibatch
from seal_lib.training.fused import compiled
from seal_lib.training.packing import Packing, send

SHORT = 256  # tokens; attention has one bound for examples up to this length, another for longer ones
STEPS_BEFORE_CAPTURE = 2  # steps of a size before it is captured
#: torch < 2.13 groups heads without this option
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}


def size_of(count: int) -> int:
    """Return the smallest of 64, 96, 128, 192, 256 … that is at least ``count``."""
    power = max(64, 1 << (count - 1).bit_length())
    return power * 3 // 4 if count <= power * 3 // 4 and power > 64 else power


class Size(NamedTuple):
    """The sizes of a step's buffers: tokens N, examples R, and the bound on the tokens of one example."""

    tokens: int
    examples: int
    longest: int

    @classmethod
    def of(cls, batches: Sequence[Minibatch | None], slots: int) -> "Size":
        """Return the smallest size for these minibatches, with the unused tokens as one more example."""
        lengths = [length for batch in batches if batch is not None for length, _ in batch.lengths]
        tokens, short = size_of(sum(lengths)), max(lengths) <= SHORT
        left_over = tokens - sum(lengths)
        return cls(tokens, max(slots + 1, size_of(len(lengths) + 1)), SHORT if short and left_over <= SHORT else tokens)


class _Turn(torch.autograd.Function):
    """Rotary embedding of packed heads [N, H * D] by cos and sin [N, D], with one kernel per pass on a GPU."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1.0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _turned(grad, *ctx.saved_tensors, -1.0), None, None


@compiled
def _turned(x: Tensor, cos: Tensor, sin: Tensor, way: float) -> Tensor:
    """Return x cos + way (-x2, x1) sin. Both halves of sin are equal, so ``way=-1`` gives the adjoint of ``way=1``."""
    heads = x.view(len(x), -1, cos.shape[-1])
    first, second = heads.chunk(2, -1)
    turned = heads * cos[:, None] + torch.cat([-second, first], -1) * (sin[:, None] * way)
    return turned.to(x.dtype).view(x.shape)


class FixedPacking(Packing):
    """The packing of a step of fixed size, given by device tensors alone; adapters use grouped products, unpadded.

    Args:
        ends: end of each slot, [K] int32; the last slot ends with the buffer.
        starts: start of each example and the end of the last, [R + 1] int32.
        gain: alpha/rank of each token's slot, [N, 1]; 0 for unused tokens.
        longest: bound on the tokens of one example.
    """

    def __init__(self, ends: Tensor, starts: Tensor, gain: Tensor, longest: int):
        self.ends, self.starts, self.gain, self.dtype, self.longest = ends, starts, gain, gain.dtype, longest
        self.grouped = True

    def rotates(self, x: Tensor) -> bool:
        return True

    def attend_rotated(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Apply the rotary embedding and attention: q, k, v [N, H * D], cos, sin [1, N, D] -> [N, H * D]."""
        q, k = (_Turn.apply(x, cos[0], sin[0]) for x in (q, k))
        heads = (x.view(len(x), -1, cos.shape[-1]).transpose(0, 1)[None] for x in (q, k, v))
        return self.attend(None, *heads, None, scaling=scale, sliding_window=window)[0][0].flatten(1)

    def attend(
        self, module: nn.Module | None, q: Tensor, k: Tensor, v: Tensor, mask: None, **options
    ) -> tuple[Tensor, None]:
        """Apply attention within each example, with transformers' signature: q, k, v [1, H, N, D] -> [1, N, H, D]."""
        window, scale, count = options.get("sliding_window"), options.get("scaling"), q.shape[2]
        if q.device.type == "cuda":
            left = -1 if window is None else window - 1
            out = varlen.varlen_attn(
                *(x[0].transpose(0, 1) for x in (q, k, v)),
                self.starts,
                self.starts,
                self.longest,
                self.longest,
                scale=scale,
                window_size=(left, 0),
                **_GROUPED,
            )
            return out[None], None
        t = torch.arange(count, device=q.device)
        example = torch.searchsorted(self.starts, t, right=True)
        seen = (example == example[:, None]) & (t <= t[:, None])
        seen = seen if window is None else seen & (t > t[:, None] - window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2), None


class FixedStep:
    """The buffers of one size for the K ``slots`` of the storage, and the CUDA graph that reads them."""

    def __init__(self, size: Size, slots: int, dtype: torch.dtype, device: torch.device):
        self.size, self.slots, self.dtype, self.device = size, slots, dtype, device
        tokens, examples = size.tokens, size.examples
        self._whole = torch.zeros(4 * tokens, dtype=torch.int64, device=device)
        self._bounds = torch.zeros(slots + examples + 1, dtype=torch.int32, device=device)
        self._real = torch.zeros(2 * tokens + 8 * slots, device=device)
        self.ids, self.positions, self.targets, self.slot = self._whole.split(tokens)
        self.ends, self.starts = self._bounds.split([slots, examples + 1])
        self.weights, self._gain, rows = self._real.split([tokens, tokens, 8 * slots])
        self.rows = rows.view(slots, 8)
        self.uses, self.graph, self.losses = 0, None, None

    def packing(self) -> FixedPacking:
        """Return the packing of the buffers' content."""
        return FixedPacking(self.ends, self.starts, self._gain.to(self.dtype)[:, None], self.size.longest)

    @property
    def packed(self) -> tuple[Tensor, ...]:
        """ids, positions, targets, keep, slot and weights, as `seal_lib.training.steps.PackedModel._pack` returns."""
        return self.ids, self.positions, self.targets, self.ids, self.slot, self.weights

    def fill(self, batches: Sequence[Minibatch | None], scales: Sequence[float], rows: Tensor) -> None:
        """Write a step into the buffers: a minibatch or None for each of the first slots, and alpha/rank of these.

        ``rows`` [K, 8] are the optimiser's scalars (`seal_lib.training.adamw.settings`).
        """
        tokens, slots, examples = self.size.tokens, self.slots, self.size.examples
        whole, real = torch.zeros(4, tokens, dtype=torch.int64), torch.zeros(2, tokens)
        counts = [0 if batch is None else len(batch.ids) for batch in batches]
        here = [(k, batch) for k, batch in enumerate(batches) if batch is not None]
        used = sum(counts)
        for row, name in enumerate(("ids", "positions")):
            torch.cat([getattr(batch, name) for _, batch in here], out=whole[row, :used])
        whole[3] = slots - 1  # unused tokens belong to the last slot, with gain and weight 0
        start = 0
        for k, batch in here:
            end = start + counts[k]
            whole[2, start + batch.keep], real[0, start + batch.keep] = batch.targets, batch.weights.to(real.dtype)
            whole[3, start:end], real[1, start:end] = k, scales[k]
            start = end
        ends = torch.tensor(counts + [0] * (slots - len(counts))).cumsum(0)
        ends[-1] = tokens
        lengths = [length for _, batch in here for length, _ in batch.lengths]
        starts = torch.tensor([0, *lengths, tokens - used] + [0] * (examples - len(lengths) - 1)).cumsum(0)
        self._whole.copy_(send(whole.view(-1), self.device), non_blocking=True)
        self._bounds.copy_(send(torch.cat([ends, starts]).to(torch.int32), self.device), non_blocking=True)
        self._real.copy_(send(torch.cat([real.view(-1), rows.view(-1)]), self.device), non_blocking=True)

    def run(self, step: Callable[["FixedStep"], Tensor], pool: object, capture: bool) -> Tensor:
        """Run one step on the buffers' content and return the losses [K].

        With ``capture`` the step is captured after `STEPS_BEFORE_CAPTURE` uses, into ``pool``, and replayed afterwards.
        """
        self.uses += 1
        if not capture or self.uses <= STEPS_BEFORE_CAPTURE:
            return step(self)
        if self.graph is None:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self.losses = step(self)
            self.graph = graph
        self.graph.replay()
        return self.losses.clone()


def fits(batches: Sequence[Minibatch | None]) -> bool:
    """Return True if a step of fixed size supports these minibatches: every token must be visible to all later ones."""
    return all(seen == length for batch in batches if batch is not None for length, seen in batch.lengths)
