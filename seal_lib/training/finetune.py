"""What a fine-tuning job is, and how one is trained by itself with PEFT in a plain loop.

Holds the records of training (:class:`Example`, :class:`Job`, :class:`Result`), the one place for learning-rate
schedules, the authors' padding, :func:`train_alone` (the oracle the adapter bank is tested against) and :func:`sft`
(the outer ReST^EM step and continued pretraining). Knows nothing of packing adapters (bank) or of what texts mean.
"""

import math
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_lib.errors import DataError, DivergedError, ParameterError
from seal_lib.training.adapters import Adapter, target_linears, target_names

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


def pad_examples(ids: Sequence[int], pad_loss: str, length: int = 2048, eos: int = 0, seed: int = 0) -> Example:
    """One document as an example, with the authors' pads in the loss or without (facts: bank, "Pads in the loss").

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
    """One adapter to train: what on, and how. ``init`` continues from an adapter; ``order`` lists the minibatches
    (tuples of example numbers) of the whole run instead of ``epochs`` seeded shuffles."""

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
    init: Adapter | None = None
    order: Sequence[Sequence[int]] | None = None

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

    def initial(self, linears: dict[str, nn.Linear]) -> dict[str, tuple[Tensor, Tensor]]:
        """Starting weights by module: ``init``, or PEFT's (A kaiming-uniform with a = sqrt 5, B zero) from ``seed``.

        Drawn in float32 in model order, so that slot, neighbours, order and dtype do not matter.
        """
        if self.init is not None:
            if set(self.init.weights) != set(linears) or self.init.rank != self.rank:
                raise ParameterError(f"Job {self.id!r}: init has other targets or another rank than the job.")
            return self.init.weights
        draw = torch.Generator().manual_seed(self.seed)
        start = {}
        for name, layer in linears.items():
            a = (torch.rand(self.rank, layer.in_features, generator=draw) * 2 - 1) / math.sqrt(layer.in_features)
            start[name] = (a, torch.zeros(layer.out_features, self.rank))
        return start


@dataclass
class Result:
    """What became of a job. ``adapter`` is None and ``reason`` a sentence if ``outcome`` is "diverged"."""

    id: str
    adapter: Adapter | None
    losses: list[float]  # of each step, before its update
    steps: int
    tokens: int  # trained on, all epochs
    outcome: str = "ok"
    reason: str = ""


class Minibatch:
    """Examples checked and laid end to end as CPU tensors: inputs, what to predict from which, with what weight.

    Inputs after an example's last target are left out, as nothing depends on them.

    Raises:
        DataError: an example that cannot be trained on (nothing to predict, too long, foreign tokens).
    """

    def __init__(self, examples: Sequence[Example], job: str, positions: int | None, vocabulary: int):
        ids, where, keep, targets, weights, lengths, divisor = [], [], [], [], [], [], 0.0
        for number, example in enumerate(examples):
            w = [1.0] * len(example.ids) if example.weights is None else list(example.weights)
            last = max((t for t in range(1, len(w)) if w[t]), default=0)  # inputs after it cannot matter
            at = list(range(len(w)) if example.positions is None else example.positions)
            label = f"Job {job!r}: example {number} of a minibatch"
            if not last:
                raise DataError(f"{label} has {len(w)} tokens and none to predict; leave it out.")
            if not len(example.ids) == len(w) == len(at) or not 0 < (example.visible or 1) <= len(w):
                raise DataError(f"{label} has {len(example.ids)} ids; its weights, positions or visible do not fit.")
            if positions is not None and max(at[:last]) >= positions:
                raise DataError(f"{label} reaches position {max(at[:last])}, past the model's {positions}; cut it.")
            if not 0 <= min(example.ids) <= max(example.ids) < vocabulary:
                raise DataError(f"{label} has a token id outside 0 … {vocabulary - 1}; use the model's own tokenizer.")
            chosen = [t for t in range(1, last + 1) if w[t]]
            keep += [len(ids) + t - 1 for t in chosen]
            targets += [example.ids[t] for t in chosen]
            weights += [w[t] for t in chosen]
            divisor += sum(w[1:]) if example.denominator is None else example.denominator
            ids += example.ids[:last]
            where += at[:last]
            lengths.append((last, min(example.visible or last, last)))
        self.ids, self.positions, self.keep, self.targets = map(torch.tensor, (ids, where, keep, targets))
        self.weights = torch.tensor(weights, dtype=torch.float64) / divisor
        self.lengths, self.tokens = lengths, sum(len(example.ids) for example in examples)


@contextmanager
def quiet(model: nn.Module, checkpointing: bool = False) -> Iterator[None]:
    """Dropout off; on request decoder layers recomputed in the backward pass (memory). Flags restored at the end."""
    from transformers.modeling_layers import GradientCheckpointingLayer

    flags = [(module, module.training) for module in model.modules()]
    switch = checkpointing and not model.is_gradient_checkpointing
    model.eval()
    try:
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for module, _ in flags:  # the flag that recomputing asks for, on nothing that has dropout itself
                module.training = isinstance(module, GradientCheckpointingLayer)
        yield
    finally:
        if switch:
            model.gradient_checkpointing_disable()
        for module, flag in flags:
            module.training = flag


@contextmanager
def lora(model: nn.Module, start: dict[str, tuple[Tensor, Tensor]], rank: int, alpha: float, targets) -> Iterator[dict]:
    """PEFT adapters on the model for the length of the block; yields {module name: (A, B)} parameters, to be trained.

    Afterwards the model is plain again and every parameter requires gradients as before.
    """
    from peft import LoraConfig, get_peft_model

    flags = [(p, p.requires_grad) for p in model.parameters()]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(targets), lora_dropout=0.0, task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config)
    try:
        weights = {}
        for name, (a, b) in start.items():
            layer = model.get_submodule(name)
            weights[name] = (layer.lora_A["default"].weight, layer.lora_B["default"].weight)
            with torch.no_grad():
                weights[name][0].copy_(a)
                weights[name][1].copy_(b)
        yield weights
    finally:
        peft_model.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        for p, flag in flags:
            p.requires_grad_(flag)


def example_loss(model: nn.Module, examples: Sequence[Example], device: torch.device) -> Tensor:
    """Weighted mean negative log-likelihood of a minibatch, one forward pass an example, nothing padded."""
    total, divisor = 0.0, 0.0
    for example in examples:
        ids = torch.tensor([list(example.ids)], device=device)
        n = ids.shape[1]
        options = {}
        if example.positions is not None:
            options["position_ids"] = torch.tensor([list(example.positions)], device=device)
        if example.visible is not None and example.visible < n:
            t = torch.arange(n, device=device)
            seen = (t <= t[:, None]) & (t < example.visible)
            mask = torch.zeros(n, n, dtype=model.dtype, device=device).masked_fill(~seen, torch.finfo(model.dtype).min)
            options["attention_mask"] = mask[None, None]
        logits = model(input_ids=ids, use_cache=False, **options).logits[0, :-1]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        weights = torch.tensor([1.0] * n if example.weights is None else list(example.weights), dtype=torch.float64)
        weights = weights[1:].to(device, logits.dtype)
        total = total + (F.cross_entropy(logits, ids[0, 1:], reduction="none") * weights).sum()
        divisor += float(weights.sum()) if example.denominator is None else example.denominator
    return total / divisor


def train_alone(model: nn.Module, job: Job, targets: str | Sequence[str] = "all-linear", fused: bool = True) -> Result:
    """One job by itself: PEFT, torch's AdamW and ``clip_grad_norm_`` in a plain loop. Same result as the bank's."""
    plan, names, device = job.plan(), target_names(targets), next(model.parameters()).device
    start = job.initial(target_linears(model, names))
    losses, tokens, reason = [], 0, ""
    with quiet(model), lora(model, start, job.rank, job.alpha, names) as weights:
        parameters = [p for pair in weights.values() for p in pair]
        optimizer = torch.optim.AdamW(
            parameters, lr=job.lr, betas=job.betas, eps=job.eps, weight_decay=job.weight_decay, fused=fused
        )
        for step, batch in enumerate(plan):
            for group in optimizer.param_groups:
                group["lr"] = job.lr * learning_rate(job.schedule, step, len(plan), job.warmup)
            loss = example_loss(model, [job.examples[i] for i in batch], device)
            loss.backward()
            if job.clip:
                torch.nn.utils.clip_grad_norm_(parameters, job.clip)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
            tokens += sum(len(job.examples[i].ids) for i in batch)
            if not math.isfinite(losses[-1]):
                reason = f"Job {job.id!r}: loss is {losses[-1]} at step {step + 1} of {len(plan)}; lower lr {job.lr}."
                break
        kept = {name: tuple(p.detach().cpu().clone() for p in pair) for name, pair in weights.items()}
    adapter = None if reason else Adapter(job.rank, job.alpha, names, kept)
    return Result(job.id, adapter, losses, len(losses), tokens, "diverged" if reason else "ok", reason)


def sft(
    model: nn.Module, pairs: Sequence[tuple[Sequence[int], Sequence[int]]], *, lr: float, epochs: int, batch: int,
    rank: int = 64, alpha: float = 128.0, accumulate: int = 1, targets: str | Sequence[str] = "all-linear",
    schedule: str = "linear", clip: float | None = 1.0, warmup_ratio: float = 0.0, weight_decay: float = 0.0,
    seed: int = 0, loss_on: str = "completion", method: str = "lora", gradient_checkpointing: bool = False,
    in_place: bool = False, on_step: Callable[[dict], None] | None = None,
) -> tuple[Adapter | nn.Module, dict]:  # fmt: skip
    """Supervised fine-tuning on (prompt ids, completion ids), padded only within a micro-batch, pads never in the loss.

    The loss of an optimiser step is the mean over all its target tokens, so ``batch * accumulate`` alone matters, not
    how it is cut. Everything random comes from ``seed``.

    Args:
        loss_on: "completion", or "all" tokens but the first (continued pretraining: empty prompts). method: "lora":
            train an :class:`Adapter`, leave the model as it was (:func:`seal_lib.training.adapters.merge` adds it).
            "full": train every weight of a copy, or of ``model`` itself if ``in_place``.

    Returns:
        The adapter ("lora") or the trained model ("full"), and a report: steps, tokens, losses, learning rates …

    Raises:
        DivergedError: a loss is not finite.
    """
    for key, value, allowed in (
        ("loss_on", loss_on, ("completion", "all")), ("method", method, ("lora", "full")),
        ("schedule", schedule, SCHEDULES),
    ):  # fmt: skip
        if value not in allowed:
            raise ParameterError(f"sft: {key} is one of {', '.join(allowed)}, not {value!r}.")
    rows = _labelled(model, pairs, loss_on)
    plan = Job("sft", [Example(ids) for ids, _ in rows], epochs=epochs, batch=batch * accumulate, seed=seed).plan()
    warmup = math.ceil(warmup_ratio * len(plan))
    if method == "full" and not in_place:
        model = deepcopy(model)
    losses: list[float] = []
    rates: list[float] = []
    with ExitStack() as stack:
        stack.enter_context(quiet(model, gradient_checkpointing))
        if method == "lora":
            names = target_names(targets)
            start = Job("sft", (), rank=rank, seed=seed).initial(target_linears(model, names))
            weights = stack.enter_context(lora(model, start, rank, alpha, names))
            parameters = [p for pair in weights.values() for p in pair]
        else:
            parameters = list(model.requires_grad_(True).parameters())
        optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        for step, chosen in enumerate(plan):
            for group in optimizer.param_groups:
                group["lr"] = lr * learning_rate(schedule, step, len(plan), warmup)
            rates.append(optimizer.param_groups[0]["lr"])
            losses.append(_accumulate(model, [rows[i] for i in chosen], batch))
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"sft: loss is {losses[-1]} at step {step + 1} of {len(plan)}; lower lr {lr}.")
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
            if on_step is not None:
                on_step({"steps": step + 1, "of": len(plan), "loss": losses[-1]})
        if method == "lora":
            kept = {name: tuple(p.detach().cpu().clone() for p in pair) for name, pair in weights.items()}
            trained = Adapter(rank, alpha, names, kept)
        else:
            trained = model.requires_grad_(False)
    report = {
        "steps": len(plan),
        "examples": len(rows),
        "tokens": epochs * sum(len(ids) for ids, _ in rows),
        "targets": epochs * sum(labels.count(True) for _, labels in rows),
        "first_loss": losses[0],
        "last_loss": losses[-1],
        "losses": losses,
        "learning_rates": rates,
    }
    return trained, report


def _labelled(model: nn.Module, pairs: Sequence, loss_on: str) -> list[tuple[list[int], list[bool]]]:
    """(ids, is token t predicted) of each pair."""
    limit, rows = getattr(model.config, "max_position_embeddings", None), []
    if not pairs:
        raise DataError("sft: there are no examples to train on; nothing passed the filter, so skip this round.")
    for number, (prompt, completion) in enumerate(pairs):
        ids = [*prompt, *completion]
        labels = [t > 0 and (loss_on == "all" or t >= len(prompt)) for t in range(len(ids))]
        if not any(labels):
            raise DataError(f"sft: example {number} has no token to predict; leave it out.")
        if limit is not None and len(ids) > limit:
            raise DataError(f"sft: example {number} has {len(ids)} tokens, the model takes {limit}; cut it.")
        rows.append((ids, labels))
    return rows


def _accumulate(model: nn.Module, rows: list[tuple[list[int], list[bool]]], batch: int) -> float:
    """Gradient of the mean loss over all targets of ``rows``, ``batch`` rows a forward pass; returns that loss."""
    device, goal, total = next(model.parameters()).device, sum(labels.count(True) for _, labels in rows), 0.0
    for i in range(0, len(rows), batch):
        part = rows[i : i + batch]
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part], device=device)
        real = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in part], device=device)
        chosen = torch.tensor([labels + [False] * (width - len(labels)) for _, labels in part], device=device)[:, 1:]
        logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1][chosen]
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        loss = F.cross_entropy(logits, ids[:, 1:][chosen], reduction="sum") / goal
        loss.backward()
        total += loss.item()
    return total
