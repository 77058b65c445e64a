"""Pieces of a frozen decoder in fewer and faster operations, with gradients for activations only.

Every piece gives what transformers' own code gives, up to rounding; :func:`forwards` finds the modules of a model that
are known well enough to be replaced and leaves all others alone. Knows nothing of adapters, jobs or losses.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _onednn() -> Callable | None:
    """oneDNN's product x Wᵀ + b, where it beats torch's BLAS: MKL uses AVX-512 on no processor but Intel's."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN = _onednn()
_ROWS = 128  # from here on it pays (measured)
_STEP = 32  # rows; oneDNN compiles a kernel for every number of rows and keeps about a thousand


def _fast(weight: Tensor) -> bool:
    return _ONEDNN is not None and weight.device.type == "cpu" and weight.dtype == torch.float32


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [N, in] by weight [out, in] without a graph, as ``F.linear``; twice as fast on many CPUs."""
    rows = x.shape[0]
    if rows < _ROWS or not _fast(weight) or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    if rows % _STEP:
        x = F.pad(x, (0, 0, 0, -rows % _STEP))
    return _ONEDNN(x, weight, bias, "none", [], "")[:rows]


class _Linear(torch.autograd.Function):
    """A frozen Linear by :func:`product`, forwards and backwards."""

    @staticmethod
    def forward(ctx, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return product(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx, grad: Tensor):
        return product(grad.reshape(-1, grad.shape[-1]), ctx.layer.weight.mT).view(*grad.shape[:-1], -1), None


def forwards(model: nn.Module) -> dict[nn.Module, Callable]:
    """Module -> faster forward, for the modules of a frozen model that are known here."""
    found: dict[nn.Module, Callable] = {}
    for module in model.modules():
        if "forward" in module.__dict__:  # somebody else's
            continue
        if type(module) is nn.Linear and _fast(module.weight):
            found[module] = lambda x, layer=module: _Linear.apply(x, layer)
    return found
