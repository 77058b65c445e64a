"""AdamW for K adapters at once: the rows of one tensor, each with its own learning rate, betas, clip and step count.

One call updates [K, P] in place of one call per adapter, since on a GPU a kernel launch costs more than the arithmetic
of a small row. On a CPU torch's own fused kernel is faster, row by row (`seal_lib.training.steps`).
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seal_lib.training.fused import compiled
from seal_lib.training.jobs import learning_rate
from seal_lib.training.slots import Slot

_MAX_ELEMENTS = 1 << 30  # of a compiled call: with more than 32-bit indices, compiling took a minute
IDLE = [0.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0, math.inf]  # the scalars of a row without update


def scalars(slot: Slot) -> list[float]:
    """Return the scalars of a slot's next update: [active, decay, step size, correction, beta1, beta2, eps, clip]."""
    job, count = slot.job, slot.step + 1
    lr = job.lr * learning_rate(job.schedule, slot.step, len(slot.plan), job.warmup)
    beta1, beta2 = job.betas
    size, correction = lr / (1 - beta1**count), math.sqrt(1 - beta2**count)
    return [1.0, 1 - lr * job.weight_decay, size, correction, beta1, beta2, job.eps, job.clip or math.inf]


def settings(live: Sequence[Slot], served: Sequence[int], rows: int) -> Tensor:
    """Return the `scalars` of ``rows`` rows as a float32 tensor [rows, 8]; rows that are not served are idle."""
    here = {*served}
    found = [scalars(slot) if k in here else IDLE for k, slot in enumerate(live)]
    return torch.tensor(found + [IDLE] * (rows - len(found)), dtype=torch.float64).to(torch.float32)


@torch.no_grad()
def update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, rows: Tensor) -> None:
    """Clip the gradients as ``clip_grad_norm_`` does, then update weights and moments in place.

    ``p``, ``g``, ``m`` and ``v`` are the weights, gradients and both moments, [K, P]; ``rows`` is the tensor of
    `settings`. Rows that are not active keep their values, whatever their gradient.
    """
    norm = torch.linalg.vector_norm(g, dim=1, keepdim=True)
    at_once = max(1, _MAX_ELEMENTS // g.shape[1])
    for part in zip(*(x.split(at_once) for x in (p, g, m, v, rows, norm)), strict=True):
        _update(*part)


@compiled
def _update(p: Tensor, g: Tensor, m: Tensor, v: Tensor, rows: Tensor, norm: Tensor) -> None:
    active, decay, size, correction, beta1, beta2, eps, clip = rows.split(1, dim=1)
    g = g * (clip / (norm + 1e-6)).clamp_max(1.0)
    first, second = m + (g - m) * (1 - beta1), v * beta2 + g * g * (1 - beta2)
    new = p * decay - size * (first / (second.sqrt() / correction + eps))
    on = active > 0
    p.copy_(torch.where(on, new, p))
    m.copy_(torch.where(on, first, m))
    v.copy_(torch.where(on, second, v))
