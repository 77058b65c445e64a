"""Training jobs: examples, the job of one adapter and its result, learning rate schedules, and the authors' padding.

This module does not import torch.
"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from seal_lib.errors import DataError, ParameterError
from seal_lib.seeds import derive_seed

if TYPE_CHECKING:
    import torch
    from torch import Tensor, nn

    from seal_lib.training.adapters import Adapter

SCHEDULES = ("linear", "constant", "cosine")


def learning_rate(schedule: str, step: int, total: int, warmup: int = 0) -> float:
    """Return the factor of the learning rate at ``step`` (0 … total-1), as in transformers: warm-up, then decay."""
    if step < warmup:
        return step / warmup
    if schedule == "constant":
        return 1.0
    done = (step - warmup) / max(1, total - warmup)
    return 1.0 - done if schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Example:
    """One training sequence.

    Attributes:
        weights: ``weights[t]`` is the loss weight of predicting ``ids[t]``; the first is ignored. Default: all 1.
        positions: position of each token. Default: 0, 1, 2 …
        visible: number of leading tokens that later tokens can attend to. Default: all.
        denominator: divisor of the weighted sum of losses. Default: the sum of the weights, which gives the mean.
    """

    ids: Sequence[int]
    weights: Sequence[float] | None = None
    positions: Sequence[int] | None = None
    visible: int | None = None
    denominator: float | None = None

    @property
    def reach(self) -> int:
        """The number of positions that the model needs; the last token is a target only and needs none."""
        last = len(self.ids) - 1
        if self.weights is not None:
            last = max((t for t in range(1, len(self.weights)) if self.weights[t]), default=0)
        return last if self.positions is None else max(self.positions[:last], default=-1) + 1


def pad_examples(ids: Sequence[int], pad_loss: str, length: int = 2048, eos: int = 0, seed: int = 0) -> Example:
    """Make an example of one document, with or without the authors' padding in the loss.

    The authors pad every document to ``length`` with EOS, mask the padding as attention keys but keep it as labels, and
    take the mean over ``length - 1`` targets, so that the text contributes about 2 % of the loss.

    Args:
        pad_loss: "none" takes the document as it is. "eos" appends one EOS as a target, unless there is one already.
            "full" pads as the authors do, token for token. "probe:m" estimates the same loss from m stratified padding
            tokens, at m/length of the cost.

    Raises:
        ParameterError: ``pad_loss`` is none of these.
        DataError: the document is empty or longer than ``length`` ("full" and "probe:m" only).
    """
    ids = list(ids)
    if pad_loss == "none":
        return Example(ids)
    if pad_loss == "eos":
        return Example(ids if ids[-1:] == [eos] else [*ids, eos])
    kind, _, number = pad_loss.partition(":")
    if not (pad_loss == "full" or kind == "probe" and number.isdecimal() and int(number) > 0):
        raise ParameterError(f"pad_loss is 'none', 'eos', 'full' or 'probe:m' with m > 0, not {pad_loss!r}.")
    n = len(ids)
    if not 0 < n <= length:
        raise DataError(f"A document of {n} tokens cannot be padded to {length}; cut it or raise the length.")
    pads = length - 1 - n  # padding tokens that predict another one: positions n … length-2
    if pads < 1:
        return Example(ids + [eos] * (length - n), visible=n, denominator=length - 1)
    probes = pads if kind == "full" else min(int(number), pads)
    draw = random.Random(seed)
    bounds = [n + pads * i // probes for i in range(probes + 1)]
    where = [draw.randrange(low, high) for low, high in zip(bounds, bounds[1:], strict=False)]
    return Example(
        ids + [eos] * (probes + 1),  # the last one is a target only
        weights=[1.0] * (n + 1) + [pads / probes] * probes,
        positions=[*range(n), *where, where[-1] + 1],
        visible=n,
        denominator=length - 1,
    )


@dataclass(frozen=True)
class Job:
    """The data and the settings of one adapter to train.

    ``init`` is an adapter to continue from. ``order`` lists the minibatches (tuples of example indices) of the whole
    training, in place of ``epochs`` seeded shuffles. ``cut_tokens`` counts the tokens of its texts that the examples
    leave out.
    """

    id: str
    examples: Sequence[Example]
    lr: float = 1e-3
    epochs: int = 10
    rank: int = 32
    alpha: float = 64.0
    batch: int = 1
    seed: int = 0
    schedule: str = "linear"
    warmup: int = 0
    clip: float | None = 1.0
    weight_decay: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    init: "Adapter | None" = None
    order: Sequence[Sequence[int]] | None = None
    cut_tokens: int = 0

    def plan(self) -> list[tuple[int, ...]]:
        """Return the minibatches of all steps as tuples of example indices; they depend on the job alone.

        Raises:
            DataError: the job has no examples.
            ParameterError: a setting is out of range.
        """
        if not self.examples:
            raise DataError(f"Job {self.id!r} has no examples; leave it out and count it as an empty self-edit.")
        for key in ("epochs", "rank", "batch"):
            if getattr(self, key) < 1:
                raise ParameterError(f"Job {self.id!r}: {key} must be at least 1, not {getattr(self, key)}.")
        if self.schedule not in SCHEDULES:
            raise ParameterError(f"Job {self.id!r}: schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}.")
        if self.order is not None:
            return [tuple(batch) for batch in self.order]
        n, steps = len(self.examples), []
        for epoch in range(self.epochs):
            shuffled = list(range(n))
            random.Random(self.seed * 1_000_003 + epoch).shuffle(shuffled)
            steps += [tuple(shuffled[i : i + self.batch]) for i in range(0, n, self.batch)]
        return steps

    def initial(
        self, linears: dict[str, "nn.Linear"], device: "torch.device | str" = "cpu"
    ) -> "dict[str, tuple[Tensor, Tensor]]":
        """Return the initial (A, B) of each module: those of ``init``, or PEFT's (A kaiming-uniform, B zero).

        A is drawn from ``seed`` with a = sqrt 5, in float32 and in model order, so that slot, other jobs, order, dtype
        and device do not matter.

        Raises:
            ParameterError: ``init`` has other targets or another rank than the job.
        """
        import torch

        if self.init is not None:
            if set(self.init.weights) != set(linears) or self.init.rank != self.rank:
                raise ParameterError(f"Job {self.id!r}: init has other targets or another rank than the job.")
            return self.init.weights
        sizes = [self.rank * layer.in_features for layer in linears.values()]
        start, drawn = {}, uniform(self.seed, 0, sum(sizes), device).split(sizes)
        for (name, layer), a in zip(linears.items(), drawn, strict=True):
            a = a.mul_(layer.in_features**-0.5).view(self.rank, -1)
            start[name] = (a, torch.zeros(layer.out_features, self.rank, device=device))
        return start


def uniform(seed: int, first: int, count: int, device: "torch.device | str") -> "Tensor":
    """Return numbers ``first`` … ``first + count - 1`` of a seed's stream, float32 in [-1, 1), equal on all devices.

    A counter is hashed twice by an integer hash (C. Wellons' lowbias32) keyed by the seed. The product of a 32-bit and
    a 31-bit number cannot overflow int64, and 24 bits are exact in float32.
    """
    import torch

    key = derive_seed("uniform", seed)
    x = torch.arange(first, first + count, dtype=torch.int64, device=device)
    for part in (key & 0xFFFFFFFF, key >> 32):
        x ^= part
        for shift, factor in ((16, 0x21F0AAAD), (15, 0x735A2D97)):
            x ^= x >> shift
            x.mul_(factor).bitwise_and_(0xFFFFFFFF)
        x ^= x >> 15
    return (x >> 8).to(torch.float32).mul_(2.0**-23).sub_(1.0)


@dataclass
class Result:
    """The result of a job. If ``outcome`` is "diverged", ``adapter`` is None and ``reason`` is a sentence."""

    id: str
    adapter: "Adapter | None"
    losses: list[float]  # one per step, before its update
    steps: int
    tokens: int  # tokens trained on, over all epochs
    outcome: str = "ok"
    reason: str = ""
    cut_tokens: int = 0  # copied from the job

    def summary(self) -> dict[str, float]:
        """Return what trials record of a training: steps, tokens, first and last loss (NaN without any step)."""
        first, last = (self.losses[0], self.losses[-1]) if self.losses else (math.nan, math.nan)
        return {"steps": self.steps, "tokens": self.tokens, "first_loss": first, "last_loss": last}
