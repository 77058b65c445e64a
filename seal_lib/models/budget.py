"""The memory that a model, its adapters and one step need, computed from shapes before anything is loaded.

It holds the shapes of the Hub models that the parameter files name, and the bytes that training and generation keep per
parameter and token (measured counts in ``tests/models/test_budget.py``). It does not import torch. GB are 10^9 bytes.
"""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from seal_lib import models
from seal_lib.errors import DataError, ParameterError
from seal_lib.models import checks

#: Bytes per number. ``4bit``: NF4 in blocks of 64, whose float32 constants are quantised to 8 bits in blocks of 256.
WIDTHS = {"float64": 8.0, "float32": 4.0, "bfloat16": 2.0, "float16": 2.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}
GB = 1e9
CONTEXT = 0.8 * GB  # the CUDA context with the workspaces of its libraries, outside torch's allocator
VLLM = 2.0 * GB  # vLLM's activations and CUDA graphs at small batches, besides its weights and KV cache; not measured
RESERVE = 0.08  # share of the memory left free for fragmentation of the allocator
LOGIT = 16  # bytes per logit with its gradient: narrow, float32, log-softmax, float32 gradient, narrow gradient
LOGITS = 1 << 26  # largest number of logits that the bank keeps at once
# Tokens per step of the bank for a model of more than LARGE parameters. 2 048 are a twentieth faster per token than
# 1 024 on an H200 (measured, LOG.md); more only take memory.
STEP_TOKENS, LARGE = 2048, 200_000_000
DEFAULT_MEMORY = 4 * GB  # assumed for training on a CPU, where the free memory is unknown
#: keys of a config.json that must be positive integers
_SIZES = (
    "num_attention_heads",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "max_position_embeddings",
)

#: linear layers of a decoder layer of the Llama family, which "all-linear" stands for
LINEARS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def target_names(targets: str | Sequence[str]) -> tuple[str, ...]:
    """Return the module suffixes of ``targets`` in a decoder of the Llama family."""
    return LINEARS if targets == models.ALL_LINEAR else models.target_names(targets)


@dataclass(frozen=True)
class Shape:
    """The sizes of a decoder of the Llama family (Llama, Qwen2, Mistral; others without their extra norms)."""

    name: str
    layers: int
    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp: int
    vocabulary: int
    tied: bool
    qkv_bias: bool
    positions: int

    @classmethod
    def of(cls, config: Any, name: str = "") -> "Shape":
        """Read the shape from transformers' config object or the content of a ``config.json``.

        Raises:
            DataError: a size is missing or not a positive integer.
        """
        given = config if isinstance(config, Mapping) else config.to_dict()
        given = given.get("text_config") or given
        name = name or given.get("_name_or_path") or str(given.get("model_type"))
        for key in (*_SIZES, "model_type"):
            if key not in given:
                raise DataError(
                    f"The config of model {name!r} has no {key!r}; only Llama-like decoders can be planned."
                )
            if key in _SIZES and (not isinstance(size := given[key], int) or size < 1):
                raise DataError(
                    f"The config of model {name!r}: {key} is {size!r}, not a whole number from 1 on; mend it."
                )
        heads, width, layers, mlp, vocabulary, positions = (given[key] for key in _SIZES)
        return cls(
            name,
            layers,
            width,
            heads,
            given.get("num_key_value_heads") or heads,
            given.get("head_dim") or width // heads,
            mlp,
            vocabulary,
            bool(given.get("tie_word_embeddings")),
            bool(given.get("attention_bias", given["model_type"] == "qwen2")),
            positions,
        )

    def sides(self, target: str) -> tuple[int, int]:
        """Return (in, out) of one Linear of a decoder layer, or raise ParameterError if there is no such Linear."""
        width, q, kv = self.width, self.heads * self.head_dim, self.kv_heads * self.head_dim
        table = {
            "q_proj": (width, q),
            "k_proj": (width, kv),
            "v_proj": (width, kv),
            "o_proj": (q, width),
            "gate_proj": (width, self.mlp),
            "up_proj": (width, self.mlp),
            "down_proj": (self.mlp, width),
        }
        if target not in table:
            raise ParameterError(f"targets: {target!r} is not planned for; choose from: {', '.join(table)}.")
        return table[target]

    @property
    def linear_parameters(self) -> int:
        """The number of weights in the Linears of all decoder layers, without biases."""
        return self.layers * sum(i * o for i, o in map(self.sides, LINEARS))

    @property
    def embedding_parameters(self) -> int:
        """The number of weights in the input embeddings and the output layer, counted once if they are tied."""
        return self.vocabulary * self.width * (1 if self.tied else 2)

    @property
    def parameters(self) -> int:
        bias = (self.heads + 2 * self.kv_heads) * self.head_dim if self.qkv_bias else 0
        return self.linear_parameters + self.embedding_parameters + self.layers * (bias + 2 * self.width) + self.width

    def adapter_parameters(self, targets: str | Sequence[str], rank: int) -> int:
        """Return the number of parameters of one LoRA adapter."""
        return self.layers * rank * sum(sum(self.sides(target)) for target in target_names(targets))


def _qwen(size: str, layers: int, width: int, heads: int, kv: int, mlp: int, words: int, tied: bool, positions: int):
    name = f"Qwen/Qwen2.5-{size}"
    return Shape(name, layers, width, heads, kv, width // heads, mlp, words, tied, True, positions)


#: Shapes of Hub models by name, from their config.json; the "-Instruct" models differ in positions only.
SHAPES = {
    shape.name: shape
    for shape in (
        _qwen("7B", 28, 3584, 28, 4, 18944, 152064, False, 131072),
        _qwen("3B", 36, 2048, 16, 2, 11008, 151936, True, 32768),
        _qwen("1.5B", 28, 1536, 12, 2, 8960, 151936, True, 131072),
        _qwen("0.5B", 24, 896, 14, 2, 4864, 151936, True, 32768),
        Shape("meta-llama/Llama-3.2-1B-Instruct", 16, 2048, 32, 8, 64, 8192, 128256, True, False, 131072),
    )
}
SHAPES |= {
    f"{name}-Instruct": replace(shape, name=f"{name}-Instruct", positions=32768)
    for name, shape in SHAPES.items()
    if name.startswith("Qwen/")
}


def shape_of(name: str) -> Shape:
    """Return the shape of a known Hub model, a shipped seedling or a model folder, without a download.

    Raises:
        DataError: the Hub model is not in `SHAPES`, or the folder has no usable config.json.
    """
    source, _ = models.resolve(name)
    if source in SHAPES:
        return SHAPES[source]
    if not Path(source).is_dir():
        known = ", ".join(SHAPES)
        raise DataError(
            f"The shape of model {name!r} is not known here; download it and give its folder, or use: {known}."
        )
    return Shape.of(checks.json_object(Path(source) / "config.json"), name)


def width_of(dtype: str) -> float:
    """Return the bytes per number of a number type, or raise ParameterError for an unknown one."""
    if dtype not in WIDTHS:
        raise ParameterError(f"dtype: {dtype!r} is not one of {', '.join(WIDTHS)}.")
    return WIDTHS[dtype]


def weight_bytes(shape: Shape, dtype: str) -> float:
    """Return the bytes of the frozen base. ``4bit`` quantises the decoder's Linears; all else stays bfloat16."""
    plain = 2.0 if dtype == "4bit" else width_of(dtype)
    return shape.linear_parameters * width_of(dtype) + (shape.parameters - shape.linear_parameters) * plain


def slot_bytes(shape: Shape, targets: str | Sequence[str], rank: int) -> float:
    """Return the bytes of one adapter in training: weights, gradients and two moments in float32."""
    return 4 * 4 * shape.adapter_parameters(targets, -(-rank // 8) * 8)  # the bank's ranks are multiples of 8


def activation_bytes(
    shape: Shape,
    tokens: int,
    targets: str | Sequence[str],
    checkpointing: bool = False,
    dtype: str = "bfloat16",
    rank: int = 32,
) -> float:
    """Return the bytes that autograd keeps for ``tokens`` tokens until the backward pass, plus one layer's workspace.

    Autograd keeps per token and layer both residuals (for the norms), queries, keys, values and the result of
    attention, three activations of the MLP, the input of every target that nothing else keeps, and ``rank`` numbers
    per target. Gradient checkpointing keeps one residual per layer and all of this for one layer only. Attention scores
    are not counted, as the kernels for GPUs and long rows do not keep them.
    """
    names, width = target_names(targets), 2.0 if dtype == "4bit" else width_of(dtype)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    kept = 2 * shape.width + 2 * q + 2 * kv + 3 * shape.mlp
    kept += shape.width * bool({"q_proj", "k_proj", "v_proj"} & {*names})
    kept += q * ("o_proj" in names) + shape.width * bool({"gate_proj", "up_proj"} & {*names})
    kept += shape.mlp * ("down_proj" in names) + len(names) * rank
    working = (3 * shape.mlp + 2 * shape.width) * width  # temporary gradients of the MLP
    a_layer = kept * width + 12  # float32 scales of the norms and of attention
    if checkpointing:
        return tokens * (shape.layers * shape.width * width + a_layer + working)
    return tokens * (shape.layers * a_layer + working)


def chunk_of(shape: Shape) -> int:
    """Return the number of predicted tokens whose logits the bank keeps at once."""
    return max(1, LOGITS // shape.vocabulary)


def logits_bytes(shape: Shape, predicted: int, chunk: int | None = None) -> float:
    """Return the bytes of the logits of ``predicted`` tokens with all that their loss needs.

    If the logits are computed in chunks, only one chunk and the gradient of the hidden states count.
    """
    if chunk is None or predicted <= chunk:
        return LOGIT * shape.vocabulary * predicted
    return LOGIT * shape.vocabulary * chunk + 4 * shape.width * predicted


def kv_bytes(shape: Shape, tokens: int, dtype: str = "bfloat16") -> float:
    """Return the bytes of the keys and values of ``tokens`` tokens in all layers."""
    width = 2.0 if dtype == "4bit" else width_of(dtype)
    return 2 * shape.layers * shape.kv_heads * shape.head_dim * tokens * width


@dataclass
class Budget:
    """Named parts in bytes, compared with the ``total`` memory, of which the share `RESERVE` stays free."""

    title: str
    parts: dict[str, float]
    total: float

    @property
    def needed(self) -> float:
        """The bytes needed, including the reserve."""
        return sum(self.parts.values()) + RESERVE * self.total

    @property
    def fits(self) -> bool:
        return self.needed <= self.total

    def table(self) -> str:
        """Return the parts as text, one per line, in GB."""
        rows = {**self.parts, f"kept free ({RESERVE:.0%})": RESERVE * self.total}
        rows |= {"needed": self.needed, "there is": self.total}
        wide = max(map(len, rows))
        return "\n".join([self.title, *(f"  {name:<{wide}}  {size / GB:8.2f} GB" for name, size in rows.items())])

    def check(self) -> "Budget":
        """Return the budget itself, or raise ParameterError with its largest part if it does not fit."""
        if self.fits:
            return self
        name, size = max(self.parts.items(), key=lambda part: part[1])
        raise ParameterError(
            f"{self.title}: {self.needed / GB:.1f} GB are needed and there are {self.total / GB:.1f} GB; the largest "
            f"part is {name} with {size / GB:.1f} GB. Use fewer slots, fewer tokens_per_step, gradient_checkpointing, "
            "dtype 4bit, a smaller KV cache, more cards (where there is such a parameter) or a smaller model."
        )


def colocated(
    shape: Shape,
    dtype: str,
    slots: int,
    targets: str | Sequence[str],
    rank: int,
    tokens_per_step: int,
    predicted: int,
    checkpointing: bool = False,
    kv_tokens: int = 0,
    engine: str = "hf",
    total: float = 80 * GB,
) -> Budget:
    """Return the budget of the bank and generation on one device, used in turn.

    ``hf`` generates with the bank's own weights; ``vllm`` holds a second copy of them, in bfloat16 if the bank's are in
    4 bits. ``kv_tokens`` is the number of tokens over all rows whose keys and values exist at once. The memory of both
    phases is counted (training: slots and activations; generation: KV cache), since allocators give little of it back
    in between.

    Raises:
        ParameterError: the engine or the number type is unknown.
    """
    if engine not in ("hf", "vllm"):
        raise ParameterError(f"engine: {engine!r} is not one of hf, vllm.")
    parts = {
        f"weights ({dtype})": weight_bytes(shape, dtype),
        f"{slots} slots (adapters, gradients, moments)": slots * slot_bytes(shape, targets, rank),
        f"activations of {tokens_per_step} tokens": activation_bytes(
            shape, tokens_per_step, targets, checkpointing, dtype, rank
        ),
        f"logits of {predicted} predicted tokens": logits_bytes(shape, predicted, chunk_of(shape)),
        f"keys and values of {kv_tokens} tokens": kv_bytes(shape, kv_tokens, dtype),
        "CUDA context": CONTEXT,
    }
    if engine == "vllm":
        parts["vLLM's own copy of the weights"] = weight_bytes(shape, "bfloat16" if dtype == "4bit" else dtype)
        parts["vLLM's activations and graphs"] = VLLM
    return Budget(f"{shape.name}, bank and {engine} on one device", parts, total)


def slots_that_fit(
    shape: Shape,
    free: float,
    targets: str | Sequence[str],
    rank: int,
    tokens_per_slot: int,
    tokens_per_step: int | None = None,
    predicted_per_slot: int | None = None,
    checkpointing: bool = False,
    dtype: str = "bfloat16",
) -> int:
    """Return how many adapters can train side by side in ``free`` bytes after loading the base; 0 if none fits.

    Args:
        tokens_per_slot: tokens of one minibatch of one adapter.
        tokens_per_step: largest number of tokens in one forward pass; slots then take turns. Default: no bound.
        predicted_per_slot: targets in ``tokens_per_slot``. Default: all.
    """
    room, slot = free * (1 - RESERVE), slot_bytes(shape, targets, rank)
    predicted_per_slot = tokens_per_slot if predicted_per_slot is None else predicted_per_slot

    def needed(k: int) -> float:
        tokens = k * tokens_per_slot
        if tokens_per_step is not None:  # at least one slot is served
            tokens = min(tokens, max(tokens_per_step, tokens_per_slot))
        predicted = tokens * predicted_per_slot // tokens_per_slot
        there = activation_bytes(shape, tokens, targets, checkpointing, dtype, rank)
        return k * slot + there + logits_bytes(shape, predicted, chunk_of(shape))

    return bisect_right(range(1, int(room // slot) + 1), room, key=needed)
