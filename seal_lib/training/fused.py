"""Faster operations for the parts of a frozen decoder, with gradients for activations only.

Every operation gives the result of transformers' own code, up to rounding. `forwards` finds the modules of a model that
are safe to replace and leaves all others as they are.
"""

import warnings
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def _onednn() -> Callable | None:
    """Return oneDNN's x Wᵀ + b if it may beat torch's BLAS, as MKL does not use AVX-512 on AMD (LOG.md); else None."""
    if not torch.backends.mkldnn.is_available() or torch.backends.cpu.get_cpu_capability() != "AVX512":
        return None
    return getattr(torch.ops.mkldnn, "_linear_pointwise", None)


_ONEDNN = _onednn()
_ROWS = 128  # smallest number of rows for which oneDNN is faster (measured)
# Rows are padded to multiples of _STEP, doubled each octave: oneDNN compiles a kernel for every number of rows and
# caches about 1 000 of them.
_STEP = 32


def _fast(weight: Tensor) -> bool:
    return _ONEDNN is not None and weight.device.type == "cpu" and weight.dtype == torch.float32


def product(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Multiply x [N, in] by weight [out, in] as ``F.linear`` does, without autograd; twice as fast on some CPUs."""
    rows = x.shape[0]
    if rows < _ROWS or not _fast(weight) or x.dtype != torch.float32:
        return F.linear(x, weight, bias)
    step = max(_STEP, 1 << max(rows.bit_length() - 5, 0))  # at most a sixteenth more rows
    if rows % step:
        x = F.pad(x, (0, 0, 0, -rows % step))
    return _ONEDNN(x, weight, bias, "none", [], "")[:rows]


def quantised(layer: nn.Linear) -> bool:
    """Return True if the weight of a Linear is quantised (bitsandbytes' 4-bit layers)."""
    return getattr(layer.weight, "quant_state", None) is not None


def linear(layer: nn.Linear, x: Tensor) -> Tensor:
    """Apply a frozen Linear to x [N, in], without autograd; a quantised one by its own forward. Return [N, out]."""
    return type(layer).forward(layer, x) if quantised(layer) else product(x, layer.weight, layer.bias)


def linear_back(layer: nn.Linear, grad: Tensor) -> Tensor:
    """Apply the adjoint of `linear`: [N, out] -> [N, in]."""
    if not quantised(layer):
        return product(grad, layer.weight.mT)
    from bitsandbytes.functional import dequantize_4bit

    return grad @ dequantize_4bit(layer.weight.data, layer.weight.quant_state).to(grad.dtype)


def compiled(function: Callable) -> Callable:
    """Decorate a function of tensors to run under ``torch.compile`` on a GPU, where launching small operations is slow.

    On a CPU, and if compiling fails, the function runs as it is.
    """
    quick: Callable | None = None

    @wraps(function)
    def call(*given: Any) -> Any:
        nonlocal quick
        if given[0].device.type != "cuda":
            return function(*given)
        if quick is None:
            quick = torch.compile(function)
        given = tuple(x.detach() if isinstance(x, Tensor) else x for x in given)  # one compilation with or without grad
        try:
            return quick(*given)
        except torch._dynamo.exc.TorchDynamoException as error:
            warnings.warn(f"{function.__name__} is not compiled and so takes longer: {error}", stacklevel=2)
            quick = function
            return function(*given)

    return call


class _Linear(torch.autograd.Function):
    """A frozen Linear computed by `product` in both passes."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Linear) -> Tensor:
        ctx.layer = layer
        return product(x.reshape(-1, x.shape[-1]), layer.weight, layer.bias).view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return product(grad.reshape(-1, grad.shape[-1]), ctx.layer.weight.mT).view(*grad.shape[:-1], -1), None


class _Norm(torch.autograd.Function):
    """RMSNorm as in Llama: x / rms(x) in at least float32, rounded to the type of x, times the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        y, scale = _normed(x, weight, eps)
        ctx.save_for_backward(x, weight, scale)
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return _norm_back(grad, *ctx.saved_tensors), None, None


@compiled
def _normed(x: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scale = torch.linalg.vector_norm(wide, dim=-1, keepdim=True)
    scale = scale.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    return (wide * scale).to(x.dtype).mul_(weight), scale


@compiled
def _norm_back(grad: Tensor, x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    wide, grad = x.to(scale.dtype), (grad * weight).to(scale.dtype)
    along = (grad * wide).sum(-1, keepdim=True).mul_(scale**3).div_(x.shape[-1])
    return grad.mul_(scale).addcmul_(wide, along, value=-1).to(x.dtype)


class _Gated(torch.autograd.Function):
    """silu(gate) * up of a Llama MLP, with one kernel per pass on a GPU."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        return _gated(gate, up)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
        return _gated_back(grad, *ctx.saved_tensors)


@compiled
def _gated(gate: Tensor, up: Tensor) -> Tensor:
    wide = gate.float()
    return (wide * wide.sigmoid() * up.float()).to(up.dtype)


@compiled
def _gated_back(grad: Tensor, gate: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
    grad, gate, wide = grad.float(), gate.float(), up.float()
    share = gate.sigmoid()
    return (grad * wide * share * (1 + gate * (1 - share))).to(up.dtype), (grad * gate * share).to(up.dtype)


_ATTENTION, _MLP = (
    {f"transformers.models.{x.lower()}.modeling_{x.lower()}.{x}{part}" for x in ("Llama", "Mistral", "Qwen2")}
    for part in ("Attention", "MLP")
)


def forwards(model: nn.Module, packing: Callable) -> dict[nn.Module, Callable]:
    """Return {module: faster forward} for those modules of a frozen model that this file can replace.

    ``packing`` returns the `seal_lib.training.packing.Packing` of the current pass.
    """
    found: dict[nn.Module, Callable] = {}
    for module in model.modules():
        kind = type(module)
        if "forward" in module.__dict__:  # already replaced by other code
            continue
        if kind is nn.Linear and _fast(module.weight):
            found[module] = partial(_linear, module)
        elif kind.__name__.endswith("RMSNorm") and _is_rms_norm(module):
            found[module] = partial(_rms_norm, module)
        elif f"{kind.__module__}.{kind.__qualname__}" in _ATTENTION:
            found[module] = partial(_attend, module, packing)
        elif f"{kind.__module__}.{kind.__qualname__}" in _MLP and module.gate_proj.weight.device.type == "cuda":
            if module.config.hidden_act == "silu":
                found[module] = partial(_mlp, module)
    return found


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return _Linear.apply(x, layer)


def _rms_norm(module: nn.Module, x: Tensor) -> Tensor:
    if x.dtype != module.weight.dtype:
        return type(module).forward(module, x)
    return _Norm.apply(x, module.weight, module.variance_epsilon)


@torch.no_grad()
def _is_rms_norm(module: nn.Module) -> bool:
    """Return True if a module computes the same as `_Norm` on a probe."""
    weight = getattr(module, "weight", None)
    if weight is None or not hasattr(module, "variance_epsilon"):
        return False
    probe = torch.linspace(-3, 2, 3 * weight.numel()).view(3, -1).to(weight)
    wanted, got = module(probe), _rms_norm(module, probe)
    return bool((got - wanted).abs().max() <= 8 * torch.finfo(weight.dtype).eps * wanted.abs().max())


def _mlp(module: nn.Module, x: Tensor) -> Tensor:
    return module.down_proj(_Gated.apply(module.gate_proj(x), module.up_proj(x)))


def _attend(module: nn.Module, packing: Callable, hidden_states: Tensor, **options):
    """Run a transformers attention module, by its own forward if the packing has no faster one."""
    rotary, here = options.get("position_embeddings"), packing()
    if rotary is None or rotary[0].shape[-1] != module.head_dim or not here.rotates(hidden_states):
        return type(module).forward(module, hidden_states, **options)
    q, k, v = (layer(hidden_states)[0] for layer in (module.q_proj, module.k_proj, module.v_proj))
    window = getattr(module, "sliding_window", getattr(module.config, "sliding_window", None))
    return module.o_proj(here.attend_rotated(q, k, v, *rotary, module.scaling, window)[None]), None
