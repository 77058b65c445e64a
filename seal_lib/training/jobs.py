"""Training jobs: examples, a job for one adapter, its result; schedules, and the authors' padding.

Imports no torch. Does not know how adapters are packed (`bank`) or what texts mean.
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
    """Factor of the learning rate at ``step`` (0 … total-1), as transformers' schedules: linear warm-up, then decay."""
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
        ids: tokens.
        weights: ``weights[t]`` is the loss weight of predicting ``ids[t]``; the first is ignored. Default: all 1.
        positions: position of each token. Default: 0, 1, 2 …
        visible: leading tokens that may be attended to. Default: all.
        denominator: what the weighted sum is divided by. Default: the sum of the weights, i.e. their mean.
    """

    ids: Sequence[int]
    weights: Sequence[float] | None = None
    positions: Sequence[int] | None = None
    visible: int | None = None
    denominator: float | None = None

    @property
    def reach(self) -> int:
        """Positions that a model needs for it; a last token is only predicted."""
        last = len(self.ids) - 1
        if self.weights is not None:
            last = max((t for t in range(1, len(self.weights)) if self.weights[t]), default=0)
        return last if self.positions is None else max(self.positions[:last], default=-1) + 1


def pad_examples(ids: Sequence[int], pad_loss: str, length: int = 2048, eos: int = 0, seed: int = 0) -> Example:
    """One document as an example, with the authors' pads in the loss or without.

    The authors pad every document to ``length`` with EOS, hide the pads as attention keys but keep them as labels, and
    take the mean over ``length - 1`` targets, so that text weighs about 2 %.

    Args:
        pad_loss: "none": the document as it is. "eos": and one EOS to predict, unless it ends in one. "full": as the
            authors, token for token. "probe:m": the same loss estimated from m stratified pads (m/length of the cost).
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
    pads = length - 1 - n  # pads that predict another pad: positions n … length-2
    if pads < 1:
        return Example(ids + [eos] * (length - n), visible=n, denominator=length - 1)
    probes = pads if kind == "full" else min(int(number), pads)
    draw = random.Random(seed)
    bounds = [n + pads * i // probes for i in range(probes + 1)]
    where = [draw.randrange(low, high) for low, high in zip(bounds, bounds[1:], strict=False)]
    return Example(
        ids + [eos] * (probes + 1),  # the last is only predicted
        weights=[1.0] * (n + 1) + [pads / probes] * probes,
        positions=[*range(n), *where, where[-1] + 1],
        visible=n,
        denominator=length - 1,
    )


@dataclass(frozen=True)
class Job:
    """One adapter to train: its data and its settings. ``init`` continues from an adapter; ``order`` lists the
    minibatches (tuples of example numbers) of the whole run instead of ``epochs`` seeded shuffles; ``cut_tokens``:
    how many tokens of its texts the examples leave out."""

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
        """Minibatches of all steps; depends on the job alone.

        Raises:
            DataError, ParameterError: the job cannot be trained.
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
        """Starting weights by module: ``init``, or PEFT's (A kaiming-uniform with a = sqrt 5, B zero) from ``seed``.

        Drawn in float32 in model order, so that slot, neighbours, order, dtype and device do not matter.
        """
        import torch

        if self.init is not None:
            if set(self.init.weights) != set(linears) or self.init.rank != self.rank:
                raise ParameterError(f"Job {self.id!r}: init has other targets or another rank than the job.")
            return self.init.weights
        sizes = [self.rank * layer.in_features for layer in linears.values()]
        start = {}
        for (name, layer), a in zip(
            linears.items(), uniform(self.seed, 0, sum(sizes), device).split(sizes), strict=True
        ):
            a = a.mul_(layer.in_features**-0.5).view(self.rank, -1)
            start[name] = (a, torch.zeros(layer.out_features, self.rank, device=device))
        return start


def uniform(seed: int, first: int, count: int, device: "torch.device | str") -> "Tensor":
    """Numbers ``first`` … ``first + count - 1`` of the seed's stream, float32 in [-1, 1): the same on every device.

    A counter goes through an integer hash (C. Wellons' lowbias32) twice, keyed by the seed; products of two 32-bit
    numbers of which one has 31 bits cannot overflow int64, and 24 bits are exact in float32.
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
    """The result of a job. ``adapter`` is None and ``reason`` a sentence if ``outcome`` is "diverged"."""

    id: str
    adapter: "Adapter | None"
    losses: list[float]  # of each step, before its update
    steps: int
    tokens: int  # trained on, all epochs
    outcome: str = "ok"
    reason: str = ""
    cut_tokens: int = 0  # of the job

    def summary(self) -> dict[str, float]:
        """What records of a training say of it: steps, tokens, first and last loss (NaN without any step)."""
        first, last = (self.losses[0], self.losses[-1]) if self.losses else (math.nan, math.nan)
        return {"steps": self.steps, "tokens": self.tokens, "first_loss": first, "last_loss": last}
