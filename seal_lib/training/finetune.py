"""Training in a plain loop.

`train_alone` trains one job with PEFT; the adapter bank is tested against it. `sft` finetunes the policy in the outer
loop (ReST^EM's M-step) and does continued pretraining.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from copy import deepcopy

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.adamw import adamw
from transformers.modeling_layers import GradientCheckpointingLayer

from seal_lib.errors import DataError, DivergedError, ParameterError
from seal_lib.seeds import derive_seed
from seal_lib.training.adapters import Adapter, target_linears, target_names
from seal_lib.training.jobs import SCHEDULES, Example, Job, Result, learning_rate


class Minibatch:
    """Checked examples, concatenated as CPU tensors.

    ``ids`` and ``positions`` [N] are the inputs without those after an example's last target, which nothing depends on.
    ``keep``, ``targets`` and ``weights`` [M] are the index of the input that predicts each target, the target, and its
    loss weight over the minibatch's divisor. ``lengths`` holds (inputs, visible inputs) of each example; ``tokens``
    counts the tokens of all examples.

    Raises:
        DataError: an example cannot be trained on: it has nothing to predict, is too long or has unknown token ids.
    """

    def __init__(self, examples: Sequence[Example], job: str, positions: int | None, vocabulary: int):
        ids, where, keep, targets, weights, lengths, divisor = [], [], [], [], [], [], 0.0
        for number, example in enumerate(examples):
            w = [1.0] * len(example.ids) if example.weights is None else list(example.weights)
            last = max((t for t in range(1, len(w)) if w[t]), default=0)
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
    """Switch dropout off within the block, and gradient checkpointing on if asked for; restore all flags afterwards."""
    flags = [(module, module.training) for module in model.modules()]
    switch = checkpointing and not model.is_gradient_checkpointing
    model.eval()
    try:
        if checkpointing:
            model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
            for module, _ in flags:  # checkpointing needs this flag; these layers have no dropout of their own
                module.training = isinstance(module, GradientCheckpointingLayer)
        yield
    finally:
        if switch:
            model.gradient_checkpointing_disable()
        for module, flag in flags:
            module.training = flag


def cut(model: nn.Module, processes: int) -> None:
    """Shard every parameter over the processes of this group, if several (FSDP2), one decoder layer at a time."""
    if processes == 1:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(model.parameters()).device.type, (processes,))
    for module in [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]:
        fully_shard(module, mesh=mesh)
    fully_shard(model, mesh=mesh)


def gathered(tensor: Tensor) -> Tensor:
    """Return a copy of a tensor on the CPU; a sharded one is gathered whole, for which all processes must call this."""
    tensor = tensor.detach()
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).cpu().clone()


@contextmanager
def lora(
    model: nn.Module, start: dict[str, tuple[Tensor, Tensor]], rank: int, alpha: float, processes: int = 1
) -> Iterator[dict]:
    """Add a PEFT adapter to the model within the block and yield its trainable parameters, {module name: (A, B)}.

    ``start`` gives the initial A [rank, in] and B [out, rank] of each target. Afterwards the adapter is removed and
    every parameter requires a gradient as before. A model that is sharded over ``processes`` (`cut`) stays so.
    """
    from peft import LoraConfig, get_peft_model

    flags = [(p, p.requires_grad) for p in model.parameters()]
    config = LoraConfig(r=rank, lora_alpha=alpha, target_modules=list(start), lora_dropout=0.0, task_type="CAUSAL_LM")
    peft_model = get_peft_model(model, config)
    try:
        for name, pair in start.items():
            with torch.no_grad():
                for weight, value in zip(_pair(model, name), pair, strict=True):
                    weight.copy_(value)
        cut(model, processes)
        yield {name: _pair(model, name) for name in start}
    finally:
        peft_model.unload()
        if hasattr(model, "peft_config"):
            del model.peft_config
        for p, flag in flags:
            p.requires_grad_(flag)


def _pair(model: nn.Module, name: str) -> tuple[nn.Parameter, nn.Parameter]:
    layer = model.get_submodule(name)
    return layer.lora_A["default"].weight, layer.lora_B["default"].weight


def wide(logits: Tensor) -> Tensor:
    """Return logits in float32, or wider if they are."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def example_loss(model: nn.Module, examples: Sequence[Example], device: torch.device) -> Tensor:
    """Return the weighted mean negative log-likelihood of a minibatch, with one unpadded forward pass per example."""
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
        logits = wide(model(input_ids=ids, use_cache=False, **options).logits[0, :-1])
        weights = torch.tensor([1.0] * n if example.weights is None else list(example.weights), dtype=torch.float64)
        weights = weights[1:].to(device, logits.dtype)
        total = total + (F.cross_entropy(logits, ids[0, 1:], reduction="none") * weights).sum()
        divisor += float(weights.sum()) if example.denominator is None else example.denominator
    return total / divisor


def train_alone(
    model: nn.Module, job: Job, targets: str | Sequence[str] = "all-linear", checkpointing: bool = False
) -> Result:
    """Train one job with PEFT, torch's AdamW and ``clip_grad_norm_`` in a plain loop; the result equals the bank's."""
    plan, names, device = job.plan(), target_names(model, targets), next(model.parameters()).device
    start = job.initial(target_linears(model, names))
    losses, tokens, reason = [], 0, ""
    with quiet(model, checkpointing), lora(model, start, job.rank, job.alpha) as weights:
        parameters = [p for pair in weights.values() for p in pair]
        optimizer = torch.optim.AdamW(
            parameters, lr=job.lr, betas=job.betas, eps=job.eps, weight_decay=job.weight_decay, fused=True
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
    return Result(job.id, adapter, losses, len(losses), tokens, "diverged" if reason else "ok", reason, job.cut_tokens)


def sft(
    model: nn.Module,
    pairs: Sequence[tuple[Sequence[int], Sequence[int]]],
    *,
    lr: float,
    epochs: int,
    batch: int,
    rank: int = 64,
    alpha: float = 128.0,
    accumulate: int = 1,
    targets: str | Sequence[str] = "all-linear",
    schedule: str = "linear",
    clip: float | None = 1.0,
    warmup_ratio: float = 0.0,
    weight_decay: float = 0.0,
    seed: int = 0,
    loss_on: str = "completion",
    method: str = "lora",
    gradient_checkpointing: bool = False,
    in_place: bool = False,
    on_step: Callable[[dict], None] | None = None,
    process: tuple[int, int] = (0, 1),
) -> tuple[Adapter | nn.Module, dict]:
    """Finetune on (prompt ids, completion ids) pairs. Padding is within a micro-batch only and never in the loss.

    The loss of an optimiser step is the mean over all its target tokens, so only ``batch * accumulate`` matters, not
    how it is split. All randomness comes from ``seed``.

    Args:
        loss_on: "completion", or "all" tokens but the first (for continued pretraining, with empty prompts).
        method: "lora" trains an `Adapter` and leaves the model as it was (`seal_lib.training.adapters.merge` adds it);
            "full" trains every weight of a copy, or of ``model`` itself with ``in_place``. bfloat16 weights are rounded
            stochastically, see `HalfAdamW`.
        on_step: receives the step, the number of steps and the loss after each optimiser step.
        process: (rank, number of processes) in a torch process group. All its processes make the same call; the model
            is sharded over them and stays so, and each trains on its share of a step's pairs
            (`seal_lib.training.several`).

    Returns:
        The adapter ("lora") or the trained model ("full"), and a report: steps, tokens, losses, learning rates …

    Raises:
        ParameterError: an option or the number type of the weights is not supported.
        DataError: there are no pairs, or one cannot be trained on.
        DivergedError: a loss is not finite.
    """
    for key, value, allowed in (
        ("loss_on", loss_on, ("completion", "all")),
        ("method", method, ("lora", "full")),
        ("schedule", schedule, SCHEDULES),
    ):
        if value not in allowed:
            raise ParameterError(f"sft: {key} is one of {', '.join(allowed)}, not {value!r}.")
    rows = _labelled(model, pairs, loss_on)
    plan = Job("sft", [Example(ids) for ids, _ in rows], epochs=epochs, batch=batch * accumulate, seed=seed).plan()
    warmup = math.ceil(warmup_ratio * len(plan))
    if method == "full" and not in_place:
        model = deepcopy(model)
    number, processes = process
    losses: list[float] = []
    rates = [lr * learning_rate(schedule, step, len(plan), warmup) for step in range(len(plan))]
    with ExitStack() as stack:
        stack.enter_context(quiet(model, gradient_checkpointing))
        if method == "lora":
            names = target_names(model, targets)
            start = Job("sft", (), rank=rank, seed=seed).initial(target_linears(model, names))
            weights = stack.enter_context(lora(model, start, rank, alpha, processes))
            parameters = [p for pair in weights.values() for p in pair]
        else:
            cut(model, processes)
            parameters = list(model.requires_grad_(True).parameters())
        if parameters[0].dtype == torch.float32:
            optimizer = torch.optim.AdamW(parameters, lr=lr, weight_decay=weight_decay, fused=True)
        else:
            own = [number] if processes > 1 else []
            optimizer = HalfAdamW(parameters, lr, weight_decay, derive_seed(seed, "rounding", *own))
        for step, chosen in enumerate(plan):
            for group in optimizer.param_groups:
                group["lr"] = rates[step]
            losses.append(_accumulate(model, [rows[i] for i in chosen], batch, process))
            if not math.isfinite(losses[-1]):
                raise DivergedError(f"sft: loss is {losses[-1]} at step {step + 1} of {len(plan)}; lower lr {lr}.")
            if clip:
                torch.nn.utils.clip_grad_norm_(parameters, clip)
            optimizer.step()
            optimizer.zero_grad()
            if on_step is not None:
                on_step({"steps": step + 1, "of": len(plan), "loss": losses[-1]})
        if method == "lora":
            kept = {name: tuple(gathered(p) for p in pair) for name, pair in weights.items()}
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


class HalfAdamW(torch.optim.Optimizer):
    """AdamW with float32 arithmetic on bfloat16 weights and moments, which are rounded stochastically (unbiased).

    Rounding to nearest loses every update below half a spacing, which is nearly all of them at a learning rate of 1e-5;
    a float32 copy of weights and moments would take 12 more bytes per weight. The moments take 4 bytes per weight.

    Raises:
        ParameterError: a weight is not bfloat16 (float16 would also need loss scaling).
    """

    def __init__(self, parameters: Sequence[nn.Parameter], lr: float, weight_decay: float, seed: int):
        other = {p.dtype for p in parameters} - {torch.bfloat16}
        if other:
            raise ParameterError(f"dtype: all weights are trained in float32 or bfloat16, not {other.pop()}.")
        super().__init__(parameters, {"lr": lr, "weight_decay": weight_decay})
        self.draw = torch.Generator(parameters[0].device).manual_seed(seed)

    @torch.no_grad()
    def step(self, closure: None = None) -> None:
        """Take one optimiser step, one weight matrix at a time, so that only one has float32 copies at a time."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state, own, gradient = self.state[p], _own(p), _own(p.grad)
                if not state:
                    state |= {"step": torch.zeros(()), "mean": torch.zeros_like(own), "square": torch.zeros_like(own)}
                kept = (own, state["mean"], state["square"])
                weight, mean, square = (x.float() for x in kept)
                adamw(
                    *([x] for x in (weight, gradient.float(), mean, square)),
                    [],
                    [state["step"]],
                    foreach=False,
                    amsgrad=False,
                    beta1=0.9,
                    beta2=0.999,
                    lr=group["lr"],
                    weight_decay=group["weight_decay"],
                    eps=1e-8,
                    maximize=False,
                )
                for half, exact in zip(kept, (weight, mean, square), strict=True):
                    half.copy_(self._rounded(exact))

    def _rounded(self, exact: Tensor) -> Tensor:
        """Round stochastically: a bfloat16 is the upper half of a float32, so add random low bits and truncate."""
        noise = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, device=exact.device, generator=self.draw)
        return ((exact.view(torch.int32) + noise) & -(1 << 16)).view(torch.float32)


def _own(tensor: Tensor) -> Tensor:
    """Return this process's shard of a sharded tensor (not a copy), or any other tensor as it is."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _labelled(model: nn.Module, pairs: Sequence, loss_on: str) -> list[tuple[list[int], list[bool]]]:
    """Return (ids, whether each token is a target) of each pair; DataError for one that cannot be trained on."""
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


def _accumulate(
    model: nn.Module, rows: list[tuple[list[int], list[bool]]], batch: int, process: tuple[int, int]
) -> float:
    """Accumulate the gradient of the mean loss over all targets, ``batch`` rows per forward pass; return the loss.

    Each process takes its share of the rows. All processes must make the same number of passes, so one that has no
    rows left repeats a row with weight 0.
    """
    number, processes = process
    device, goal, total = next(model.parameters()).device, sum(labels.count(True) for _, labels in rows), 0.0
    mine = rows[number::processes]
    for i in range(0, math.ceil(len(rows) / processes), batch):
        part = mine[i : i + batch] or rows[:1]
        share = processes if i < len(mine) else 0  # FSDP averages gradients over processes
        width = max(len(ids) for ids, _ in part)
        ids = torch.tensor([ids + [0] * (width - len(ids)) for ids, _ in part], device=device)
        real = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in part], device=device)
        chosen = torch.tensor([labels + [False] * (width - len(labels)) for _, labels in part], device=device)[:, 1:]
        logits = model(input_ids=ids, attention_mask=real, use_cache=False).logits[:, :-1][chosen]
        loss = F.cross_entropy(wide(logits), ids[:, 1:][chosen], reduction="sum") / goal
        (loss * share).backward()
        total += loss.item() * share / processes
    if processes > 1:
        summed = torch.tensor(total, dtype=torch.float64, device=device)
        torch.distributed.all_reduce(summed)
        total = summed.item()
    return total
