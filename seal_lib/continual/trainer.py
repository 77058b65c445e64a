"""Trains the next edit of many streams side by side, each on its own history, through the adapter bank.

The bank holds the history of a stream beside the new adapter: as frozen ranks or, where memory allows, summed into
dense float32 weights of that slot once per edit, which takes a third of the arithmetic. Nothing is merged on disk or in
the model. What an update rule adds to plain training is data on the job: soft targets, a projection of A, a quadratic
penalty on dW, an orthogonality penalty, frozen layers or a frozen A. The trainer is independent of the rules.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seal_lib.errors import ParameterError
from seal_lib.training.adapters import Adapter
from seal_lib.training.attached import LinearGroup
from seal_lib.training.bank import AdapterBank
from seal_lib.training.finetune import Minibatch
from seal_lib.training.jobs import Example, Job, Result
from seal_lib.training.slots import Slot


@dataclass(frozen=True)
class Anchor(Example):
    """A sequence with a teacher's distributions as targets instead of its tokens: KL(teacher || model) per position.

    ``teacher``: log-probabilities [T-1, vocabulary] of the next token after each token but the last.
    """

    teacher: Tensor | None = None


@dataclass(frozen=True)
class EditJob(Job):
    """A job on top of a frozen ``history``, with the terms that an update rule adds.

    Attributes:
        protect: linear -> orthonormal U [in, u]; A stays in the complement: A <- A (I - U U^T) after every step.
        penalty: linear -> weights F, broadcastable to [out, in]; adds strength/2 * sum F * dW^2 to the loss.
        strength: the weight of the penalty.
        from_base: True: the penalised dW counts from the base (history included) instead of from theta_{k-1}.
        orthogonal: lambda of sum |A A_hist^T| (O-LoRA), where A_hist holds the A of all earlier edits.
        frozen_layers: linears whose adapter stays zero.
        frozen_a: True: A stays at ``init``.
    """

    history: Adapter | None = None
    protect: dict[str, Tensor] = field(default_factory=dict)
    penalty: dict[str, Tensor] = field(default_factory=dict)
    strength: float = 0.0
    from_base: bool = False
    orthogonal: float = 0.0
    frozen_layers: frozenset[str] = frozenset()
    frozen_a: bool = False


class _Own(torch.autograd.Function):
    """y_i = x V_i^T + bias_i + gain (x A_i^T) B_i^T, where every slot has a dense V of its own (base plus history)."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, x: Tensor, group: "HistoryGroup") -> tuple[Tensor | None, ...]:
        packing, r, outs = group.packing, group.rank, []
        split = packing.split(x.view(-1, x.shape[-1]))
        h = packing.times(split, group.a.to(packing.dtype).mT) * packing.gain
        for i, layer in enumerate(group.linears):
            out = packing.times(split, group.dense[i])
            out = out + packing.times(h[..., i * r : (i + 1) * r].contiguous(), group.b[i].to(packing.dtype))
            out = (out if packing.grouped else packing.slots.collect(out)).to(x.dtype)
            outs.append((out if layer.bias is None else out + layer.bias).view(*x.shape[:-1], -1))
        ctx.group, ctx.packing = group, packing
        ctx.save_for_backward(split, h)
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        group, packing, r = ctx.group, ctx.packing, ctx.group.rank
        split, h = ctx.saved_tensors
        dx, dh = None, []
        for i, grad in enumerate(grads):
            given = packing.split(grad.reshape(-1, grad.shape[-1]))
            part = packing.times(given, group.dense[i].mT)
            dx = part if dx is None else dx.add_(part)
            dh.append(packing.times(given, group.b[i].to(packing.dtype).mT))
            group.write(1 + i, packing.outer(h[..., i * r : (i + 1) * r].contiguous(), given))
        dh = (dh[0] if len(dh) == 1 else torch.cat(dh, -1)) * packing.gain
        group.write(0, packing.outer(dh, split))
        group.fresh = False
        dx = dx.add_(packing.times(dh, group.a.to(packing.dtype)))
        dx = dx if packing.grouped else packing.slots.collect(dx)
        return None, dx.to(grads[0].dtype).view(*grads[0].shape[:-1], -1), None


class HistoryGroup(LinearGroup):
    """Linears that read one tensor, where each slot has its own dense weights; ``dense[i]`` is [K, in, out]."""

    dense: list[Tensor] | None = None

    def outputs(self, x: Tensor) -> tuple[Tensor, ...]:
        return super().outputs(x) if self.dense is None else _Own.apply(self.anchor, x, self)


DENSE_BYTES = 2e9  # limit on the dense weights of all slots; above it the history stays a low-rank product


class StreamBank(AdapterBank):
    """The adapter bank with a frozen history per slot; all jobs of one run have the same rank.

    Args:
        arguments, options: those of `AdapterBank`.
        history: "ranks", "dense", or "auto" (dense where it takes less than ``DENSE_BYTES``). Two cases always keep
            ranks: a model in a type narrower than float32, where the sum would round small edits away, and jobs with
            ``orthogonal`` or ``from_base``, which read the ranks.
    """

    can_train_alone = False

    def __init__(self, *arguments: Any, history: str = "auto", **options: Any):
        self._wish = history
        super().__init__(*arguments, **options)

    def _borrow(self, checkpointing: bool) -> None:
        self.groups = [HistoryGroup(group.names, group.linears) for group in self.groups]
        super()._borrow(checkpointing)

    def run(self, jobs: Sequence[EditJob], on_step: Callable[[dict], None] | None = None) -> list[Result]:
        """Train all edits; return the results in job order, where each adapter is the new edit alone.

        Raises:
            ParameterError: the jobs differ in rank.
        """
        if not jobs:
            return []
        ranks = {job.rank for job in jobs}
        if len(ranks) > 1:
            raise ParameterError(f"Edits of one arm have one rank, not {sorted(ranks)}; train them in separate runs.")
        self._new = ranks.pop()
        size = 4 * self.slots * sum(layer.weight.numel() for layer in self.linears.values())
        narrow = self.model.dtype.itemsize < 4  # a sum in bfloat16 would round small edits away
        self._dense = not narrow and (self._wish == "dense" or self._wish == "auto" and size < DENSE_BYTES)
        kept = any(job.orthogonal or job.from_base for job in jobs)  # these read the history's ranks
        self._dense = self._dense and not kept and any(job.history for job in jobs)
        self._past = 0 if self._dense else max(job.history.rank if job.history else 0 for job in jobs)
        self.least_rank = self._new + self._past
        return super().run(jobs, on_step)

    def _release(self) -> None:
        super()._release()
        self._stacked: dict = {}
        for group in self.groups:
            group.dense = None

    # filling a slot

    def _prepare(self, number: int, job: EditJob) -> Slot:
        slot = super()._prepare(number, job)
        for chosen, batch in slot.batches.items():
            batch.soft = _soft_rows([job.examples[i] for i in chosen])
        return slot

    @torch.no_grad()
    def _open(self, k: int, slot: Slot) -> None:
        super()._open(k, slot)
        job, r = slot.job, self._new
        if job.history is not None and self._past:
            past = job.history.scale * job.rank / job.alpha  # the slot multiplies all its ranks by alpha/rank
            for name, a, b in self._parts(self._storage[0][k], self.least_rank):
                if name in job.history.weights:
                    old_a, old_b = job.history.weights[name]
                    a[r : r + len(old_a)].copy_(old_a)
                    b[r : r + len(old_a)].copy_(old_b.mT * past)
        if self._dense:
            slot.own = {name: self._weights(name, job.history) for name in self.linears}
        self._stacked = {}
        for name, a, _ in self._parts(self._storage[0][k], r):
            if name in job.protect:
                u = job.protect[name].to(a)
                a -= (a @ u) @ u.mT

    def _weights(self, name: str, history: Adapter | None) -> Tensor:
        """Return base plus history of one linear as [in, out]."""
        weight = self.linears[name].weight.to(self.dtype)
        if history is not None and name in history.weights:
            weight = weight + history.delta(name).to(weight)
        return weight.mT.contiguous()

    # one step

    def _train_step(self, live: list[Slot], served: Sequence[int]) -> Tensor:
        if self._dense:
            key = tuple(slot.number for slot in live)
            if self._stacked.get("dense") != key:
                self._stacked["dense"] = key
                for group in self.groups:
                    group.dense = [torch.stack([slot.own[name] for slot in live]) for name in group.names]
        return super()._train_step(live, served)

    def _nll(
        self, logits: Tensor, packed: tuple[Tensor, ...], batches: Sequence[Minibatch | None], start: int = 0
    ) -> Tensor:
        targets, weights = (packed[i][start : start + len(logits)] for i in (2, 5))
        hard = F.cross_entropy(logits, targets, reduction="none")
        rows, teachers, first = [], [], -start
        for batch in (batch for batch in batches if batch is not None):
            if batch.soft is not None:
                at, teacher = batch.soft[0] + first, batch.soft[1]
                inside = (at >= 0) & (at < len(logits))
                if inside.any():
                    rows.append(at[inside])
                    teachers.append(teacher[inside])
            first += len(batch.keep)
        if rows:
            at = torch.cat(rows).to(logits.device)
            teacher = torch.cat(teachers).to(logits)
            kl = (teacher.exp() * (teacher - F.log_softmax(logits[at], -1))).sum(-1)
            hard = hard.index_copy(0, at, kl)
        return hard * weights.to(logits.dtype)

    def _before_update(self, live: list[Slot]) -> None:
        r, job = self._new, live[0].job  # the jobs of an arm have the same terms
        for group in self.groups:
            grad_a, *grad_b = group.grads
            K, members, R = len(live), len(group.linears), group.rank
            grad_a, a = grad_a.view(K, members, R, -1), group.a.view(K, members, R, -1)
            for i, name in enumerate(group.names):
                if job.strength:
                    self._penalise(live, name, a[:, i], group.b[i], grad_a[:, i], grad_b[i])
                if job.orthogonal and R > r:
                    old = a[:, i, r:]  # [K, R - r, in]
                    sign = torch.bmm(a[:, i, :r], old.mT).sign_()
                    grad_a[:, i, :r] += job.orthogonal * torch.bmm(sign, old)
                if name in job.frozen_layers:
                    grad_a[:, i].zero_()
                    grad_b[i].zero_()
            grad_a[:, :, r:] = 0  # the history
            for part in grad_b:
                part[:, r:] = 0
            if job.frozen_a:
                grad_a.zero_()

    def _penalise(self, live: list[Slot], name: str, a: Tensor, b: Tensor, grad_a: Tensor, grad_b: Tensor) -> None:
        """Add the gradient of strength/2 * sum F dW^2; a and grad_a are [K, R, in], b and grad_b are [K, R, out]."""
        r, job = self._new, live[0].job
        scale, ranks = job.alpha / job.rank, slice(None) if job.from_base else slice(0, r)
        pull = torch.bmm(b[:, ranks].mT, a[:, ranks]).mul_(scale * scale * job.strength)  # [K, out, in]
        weights = self._stack_of(live, "penalty", name)
        if weights is not None:
            pull.mul_(weights)
        grad_b[:, :r] += torch.bmm(a[:, :r], pull.mT)
        grad_a[:, :r] += torch.bmm(b[:, :r], pull)

    def _after_update(self, live: list[Slot]) -> None:
        for group in self.groups:
            K, members, R = len(live), len(group.linears), group.rank
            u = self._stack_of(live, "protect", group.names[0])  # siblings read the same input and share a basis
            if u is not None:
                a = group.a.view(K, members, R, -1)[:, :, : self._new]
                flat = a.reshape(K, members * self._new, -1)
                a -= torch.bmm(torch.bmm(flat, u), u.mT).view_as(a)

    def _stack_of(self, live: list[Slot], what: str, name: str) -> Tensor | None:
        """Return the jobs' tensors for one linear stacked as [K, ...], or None if a job has none.

        Narrower bases are padded with zero columns.
        """
        key = (what, name, tuple(slot.number for slot in live))
        if key not in self._stacked:
            parts = [getattr(slot.job, what).get(name) for slot in live]
            complete = all(part is not None for part in parts)
            if complete and what == "protect":
                width = max(part.shape[1] for part in parts)
                parts = [F.pad(part, (0, width - part.shape[1])) for part in parts]
            stacked = torch.stack([part.to(self.device, self.dtype) for part in parts]) if complete else None
            self._stacked[key] = stacked
        return self._stacked[key]


def _soft_rows(examples: Sequence[Example]) -> tuple[Tensor, Tensor] | None:
    """Return which rows of the minibatch's predictions have a teacher, and its log-probabilities there, or None."""
    rows, teachers, start = [], [], 0
    for example in examples:
        weights = [1.0] * len(example.ids) if example.weights is None else list(example.weights)
        predicted = [t for t in range(1, len(weights)) if weights[t]]
        if isinstance(example, Anchor) and example.teacher is not None:
            rows += range(start, start + len(predicted))
            teachers.append(example.teacher[torch.tensor(predicted) - 1])
        start += len(predicted)
    return (torch.tensor(rows), torch.cat(teachers)) if rows else None
