"""A step of the bank at fixed sizes, so that a GPU can replay it as a CUDA graph.

Launched one by one from Python, the some thousand kernels of a step leave a GPU idle for half of its time (measured,
LOG.md). So the tokens of a step are laid end to end in a buffer of one of few sizes, what differs from step to step are
numbers in device tensors, and the same graph is replayed. The first steps of a size run as they are, which warms up
what a capture needs; rare sizes are never captured.
Knows sizes, buffers and graphs. What a step computes is said in `seal_lib.training.steps`.
"""

import inspect
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import varlen

from seal_lib.training.finetune import Minibatch
from seal_lib.training.fused import turn
from seal_lib.training.packing import Packing, send

SHORT = 256  # tokens of an example: attention over longer ones takes a bound of its own
PATIENCE = 2  # steps of a size that run as they are before it is captured
#: torch < 2.13 groups heads without being told
_GROUPED = {"enable_gqa": True} if "enable_gqa" in inspect.signature(varlen.varlen_attn).parameters else {}


def size_of(count: int, least: int = 64) -> int:
    """The smallest of 64, 96, 128, 192, 256 … that holds ``count``."""
    power = max(least, 1 << max(0, count - 1).bit_length())
    return power * 3 // 4 if count <= power * 3 // 4 and power > least else power


class Size(NamedTuple):
    """Sizes of the buffers of a step: tokens N, examples R, and the bound on the tokens of an example."""

    tokens: int
    examples: int
    longest: int

    @classmethod
    def of(cls, batches: Sequence[Minibatch | None], slots: int) -> "Size":
        """The smallest that holds these minibatches and one example of what is left over."""
        lengths = [length for batch in batches if batch is not None for length, _ in batch.lengths]
        tokens, short = size_of(sum(lengths)), max(lengths) <= SHORT
        left_over = tokens - sum(lengths)
        return cls(tokens, max(slots + 1, size_of(len(lengths) + 1)), SHORT if short and left_over <= SHORT else tokens)


class FixedPacking(Packing):
    """Where the tokens of one step lie, told by device tensors alone: adapters by grouped products, nothing padded.

    Args:
        ends: end of each slot, [K] int32; the last one ends with the buffer. starts: of each example, and the end of
            the last, [R + 1] int32. gain: alpha/rank of each token's slot, [N, 1]; 0 where there is no token.
        longest: bound on the tokens of an example.
    """

    def __init__(self, ends: Tensor, starts: Tensor, gain: Tensor, longest: int):
        self.ends, self.starts, self.gain, self.dtype, self.longest = ends, starts, gain, gain.dtype, longest
        self.grouped = True

    def rotates(self, x: Tensor) -> bool:
        return True

    def attend_rotated(
        self, q: Tensor, k: Tensor, v: Tensor, cos: Tensor, sin: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """Rotary embedding and attention: q, k, v [N, H * D], cos, sin [1, N, D] -> [N, H * D]."""
        q, k = turn(q, cos[0], sin[0]), turn(k, cos[0], sin[0])
        heads = (x.view(len(x), -1, cos.shape[-1]).transpose(0, 1)[None] for x in (q, k, v))
        return self.attend(None, *heads, None, scaling=scale, sliding_window=window)[0][0].flatten(1)

    def attend(
        self, module: nn.Module | None, q: Tensor, k: Tensor, v: Tensor, mask: None, **options
    ) -> tuple[Tensor, None]:
        """Attention inside each example, with transformers' signature: q, k, v [1, H, N, D] -> [1, N, H, D]."""
        window, scale, count = options.get("sliding_window"), options.get("scaling"), q.shape[2]
        if q.device.type == "cuda":
            left = -1 if window is None else window - 1
            out = varlen.varlen_attn(
                *(x[0].transpose(0, 1) for x in (q, k, v)), self.starts, self.starts, self.longest, self.longest,
                scale=scale, window_size=(left, 0), **_GROUPED,
            )  # fmt: skip
            return out[None], None
        t = torch.arange(count, device=q.device)
        example = torch.searchsorted(self.starts, t, right=True)
        seen = (example == example[:, None]) & (t <= t[:, None])
        seen = seen if window is None else seen & (t > t[:, None] - window)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=seen, scale=scale, enable_gqa=q.shape[1] != k.shape[1])
        return out.transpose(1, 2), None


class FixedStep:
    """Buffers of one size, and the graph that reads them.

    Args:
        size: of the buffers. slots: K, rows of the storage. dtype: of the adapters' products.
    """

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
        self.seconds = 0.0  # that the capture took

    def packing(self) -> FixedPacking:
        """The packing of what the buffers hold."""
        return FixedPacking(self.ends, self.starts, self._gain.to(self.dtype)[:, None], self.size.longest)

    @property
    def packed(self) -> tuple[Tensor, ...]:
        """ids, positions, targets, keep, slot, weights, as `seal_lib.training.steps.PackedModel._pack` gives."""
        return self.ids, self.positions, self.targets, self.ids, self.slot, self.weights

    def fill(self, batches: Sequence[Minibatch | None], scales: Sequence[float], rows: Tensor) -> None:
        """Write a step into the buffers: one minibatch, or none, for each of the first slots."""
        tokens, slots, examples = self.size.tokens, self.slots, self.size.examples
        whole, real = torch.zeros(4, tokens, dtype=torch.int64), torch.zeros(2, tokens)
        counts = [0 if batch is None else len(batch.ids) for batch in batches]
        here = [(k, batch) for k, batch in enumerate(batches) if batch is not None]
        used = sum(counts)
        for row, name in enumerate(("ids", "positions")):
            torch.cat([getattr(batch, name) for _, batch in here], out=whole[row, :used])
        whole[3] = slots - 1  # what lies after the last token belongs to the last slot, with gain and weight 0
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
        """The losses [K] of one step on what the buffers hold, replayed if this size was captured."""
        self.uses += 1
        if not capture or self.uses <= PATIENCE:
            return step(self)
        if self.graph is None:
            begun, graph = time.perf_counter(), torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=pool):
                self.losses = step(self)
            self.graph, self.seconds = graph, time.perf_counter() - begun
        self.graph.replay()
        return self.losses.clone()


def fits(batches: Sequence[Minibatch | None]) -> bool:
    """Whether a step of fixed sizes can serve these: nothing in an example may be hidden from what comes after it."""
    return all(seen == length for batch in batches if batch is not None for length, seen in batch.lengths)
