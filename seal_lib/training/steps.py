"""A frozen model with K adapters, one in each row of a storage, and the steps that train them side by side.

A step packs one minibatch of each served row into one forward pass, sums the losses, so that the gradients stay
independent, and updates each row with its own AdamW state, learning rate, clip and schedule. Steps are plain or of
fixed size (`seal_lib.training.captured`). The bank (`seal_lib.training.bank`) assigns jobs to rows.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from seal_lib.errors import SealError
from seal_lib.models import budget
from seal_lib.models.checks import said
from seal_lib.training import adamw, captured
from seal_lib.training.adapters import target_linears, target_names
from seal_lib.training.attached import diverted, sibling_groups
from seal_lib.training.captured import FixedStep, Size
from seal_lib.training.finetune import Minibatch, quiet, wide
from seal_lib.training.fused import forwards, quantised
from seal_lib.training.jobs import Example, learning_rate
from seal_lib.training.packing import Packing, Ragged, level, send, worth_levelling
from seal_lib.training.slots import Slot


class Unpackable(SealError):
    """Raised if a model's examples cannot be packed into one forward pass."""


class PackedModel:
    """The model and the storage of its adapters; see `seal_lib.training.bank.AdapterBank` for the arguments.

    Attributes:
        fixed: True if steps run at fixed sizes where possible.
        captures, replays: steps captured and replayed so far.

    Raises:
        Unpackable: the model's logits change when examples are packed.
    """

    can_train_alone = True  # False in a subclass whose loss is more than a plain job's

    def __init__(
        self,
        model: nn.Module,
        targets: str | Sequence[str],
        tokens_per_step: int | None,
        dtype: torch.dtype,
        checkpointing: bool,
        fixed: bool | None,
    ):
        self.model, self.targets, self.checkpointing = model, target_names(model, targets), checkpointing
        if tokens_per_step is None and sum(p.numel() for p in model.parameters()) > budget.LARGE:
            tokens_per_step = budget.STEP_TOKENS
        self.tokens_per_step, self.dtype = tokens_per_step, dtype
        self.device = next(model.parameters()).device
        self.captures, self.replays = 0, 0
        self._width, vocabulary = model.get_input_embeddings().embedding_dim, model.get_output_embeddings().out_features
        self._chunk = max(1, budget.LOGITS // vocabulary)  # predicted tokens whose logits exist at once
        self.linears = target_linears(model, self.targets)
        self.groups = sibling_groups(self.linears)
        odd = any(side % 8 for layer in self.linears.values() for side in (layer.in_features, layer.out_features))
        self.groupable = not odd and dtype != torch.float64  # grouped_mm does not support these
        if fixed is None:
            fixed = self.device.type == "cuda" and model.dtype == torch.bfloat16
        packed = any(quantised(layer) for layer in self.linears.values())
        self.fixed = fixed and not (odd or packed or checkpointing) and self.can_train_alone
        self._steps: dict[Size, FixedStep] = {}
        self._storage: list[Tensor] = []
        self._updating: list[Slot] = []  # slots of the update in progress
        self._bound = False  # True if the groups are bound to the rows of the live slots
        self._stack = ExitStack()
        try:
            self._borrow(checkpointing)
        except BaseException:
            self._stack.close()
            raise

    def _borrow(self, checkpointing: bool) -> None:
        model = self.model
        for p in model.parameters():
            self._stack.callback(p.requires_grad_, p.requires_grad)
            p.requires_grad_(False)
        self._stack.enter_context(quiet(model))
        with torch.no_grad():
            probes = [torch.arange(1, n, device=self.device)[None] for n in (4, 3)]
            expected = torch.cat([model(input_ids=probe, use_cache=False).logits[0] for probe in probes])
        name = f"seal_bank_{next(_names)}"
        AttentionInterface.register(name, lambda *args, **options: self._packing.attend(*args, **options))
        self._stack.callback(AttentionInterface._global_mapping.pop, name)
        self._stack.callback(setattr, model.config, "_attn_implementation", model.config._attn_implementation)
        model.config._attn_implementation = name
        adapted = {x: group.forward_of(i) for group in self.groups for i, x in enumerate(group.linears)}
        self._stack.enter_context(diverted(adapted))
        faster = self._stack.enter_context(ExitStack())
        faster.enter_context(diverted(forwards(model, lambda: self._packing)))
        self._stack.enter_context(quiet(model, checkpointing))
        for _ in range(2):
            try:
                error = self._error(probes, expected)
            except torch.OutOfMemoryError:
                raise
            except Exception as problem:  # an architecture that cannot be packed may raise anything
                why = said(problem)
            else:
                most = 5e-2 if expected.dtype.itemsize < 4 else 1e-3
                if error < most:
                    if self.fixed:
                        self._check_fixed(probes, expected, most)
                    return
                why = f"off by {error:.1e}"
            finally:
                self._release()
            faster.close()  # try again with the model's own operations
        way = "set slots to 1 to train one at a time" if self.can_train_alone else "choose another model here"
        raise Unpackable(
            f"{type(model).__name__} does not give its own logits when examples are packed ({why}), so its adapters "
            f"cannot train side by side; {way}."
        )

    @torch.no_grad()
    def _error(self, probes: list[Tensor], expected: Tensor) -> float:
        """Return the relative error of the packed logits of ``probes``; ``expected`` are the plain model's."""
        self._allocate(1, 8)
        logits = self._head(self._hidden(*self._pack([_checked(probes)])))
        return _apart(logits, expected)

    @torch.no_grad()
    def _check_fixed(self, probes: list[Tensor], expected: Tensor, most: float) -> None:
        """Switch fixed sizes off if their logits differ from the expected ones by more than ``most``."""
        self._allocate(1, 8)
        try:
            batch = _checked(probes)
            step = FixedStep(Size.of([batch], 1), 1, self._product_dtype, self.device)
            step.fill([batch], [1.0], adamw.settings([], [], 1))
            self._enter(step)
            logits = self._head(self._hidden(*step.packed))[: len(expected)]
            self.fixed = _apart(logits, expected) < most
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # this device or architecture lacks the attention or the products
            self.fixed = False

    # Storage: one row per slot, so that norm, AdamW, refilling and compaction are operations on rows.

    def _allocate(self, slots: int, rank: int) -> None:
        size = sum(group.resize(-(-rank // 8) * 8) for group in self.groups)  # grouped_mm needs rows of 16 bytes
        self._storage = [torch.zeros(slots, size, dtype=self.dtype, device=self.device) for _ in range(4)]
        self._bind([1.0] * slots, [math.inf] * slots)
        self._pool = torch.cuda.graph_pool_handle() if self.fixed and self.device.type == "cuda" else None

    def _release(self) -> None:
        self._storage, self._packing, self._grad, self._rows, self._steps = [], None, None, [], {}
        for group in self.groups:
            group.release()

    def _bind(self, scales: Sequence[float], clips: Sequence[float]) -> None:
        """Bind the groups to the first ``len(scales)`` rows, with alpha/rank and gradient clip of each."""
        rows = [x[: len(scales)] for x in self._storage]
        self._bind_groups(rows[0], rows[1])
        self._grad, self._rows = rows[1], list(zip(*(x.unbind(0) for x in rows), strict=True))
        self._scale = torch.tensor(scales, dtype=self.dtype, device=self.device)
        self._clip = torch.tensor(clips, dtype=self.dtype, device=self.device)[:, None]

    def _bind_groups(self, values: Tensor, grad: Tensor) -> None:
        sizes = [group.size for group in self.groups]
        for group, flat, own in zip(self.groups, values.split(sizes, 1), grad.split(sizes, 1), strict=True):
            group.bind(flat, own)

    def _parts(self, row: Tensor, rank: int) -> Iterator[tuple[str, Tensor, Tensor]]:
        """Yield (module name, A [rank, in], transposed B [rank, out]) as views of one row of the storage."""
        sizes = [group.size for group in self.groups]
        for group, columns in zip(self.groups, row.split(sizes), strict=True):
            a, *b = (x.view(shape) for x, shape in zip(columns.split(group.parts), group.shapes, strict=True))
            for i, name in enumerate(group.names):
                yield name, a[i * group.rank : i * group.rank + rank], b[i][:rank]

    @torch.no_grad()
    def _open(self, k: int, slot: Slot) -> None:
        """Start a new adapter in row k.

        Ranks beyond the job's own are 0 in A and B; their gradients are 0 too, so they stay 0.
        """
        flat, _, m, v = (x[k] for x in self._storage)
        for x in (flat, m, v):
            x.zero_()
        start = slot.job.initial(self.linears, self.device)
        for name, a, b in self._parts(flat, slot.job.rank):
            a.copy_(start[name][0])
            if slot.job.init is not None:  # else 0
                b.copy_(start[name][1].mT)

    def _restore(self, k: int, slot: Slot) -> None:
        """Restore row k to its state before memory ran out."""
        weights, _, *moments = (x[k] for x in self._storage)
        for x, kept in zip((weights, *moments), slot.parked, strict=True):
            x.copy_(kept)
        slot.parked = None

    # one step

    def _pack(self, batches: Sequence[Minibatch | None]) -> tuple[Tensor, ...]:
        """Set the packing of a step; return ids, positions [N] and targets, keep, slot, weights [M] on the device."""
        here = [(k, batch) for k, batch in enumerate(batches) if batch is not None]
        slots = torch.tensor([0 if batch is None else len(batch.ids) for batch in batches])
        lengths, visible = torch.tensor([pair for _, batch in here for pair in batch.lengths]).unbind(1)
        rows = None
        if self.device.type == "cpu" and worth_levelling(slots, self._width, self.tokens_per_step):
            rows = Ragged(slots, slots.device)
            lengths, visible, slots = level(lengths, visible, slots)
        self._packing = Packing(lengths, visible, slots, self._scale, self._product_dtype, self.groupable)
        names = ("ids", "positions", "targets", "keep")
        ids, positions, targets, keep = (torch.cat([getattr(batch, name) for _, batch in here]) for name in names)
        counts = torch.tensor([len(batch.keep) for _, batch in here])
        slot = torch.tensor([k for k, _ in here]).repeat_interleave(counts)
        keep += (slots.cumsum(0) - slots)[slot]
        if rows is not None:
            ids, positions = ids[rows.spread_index], positions[rows.spread_index]
        columns = (ids, positions, targets, keep, slot)
        moved = send(torch.cat(columns), self.device).split([len(column) for column in columns])
        weights = send(torch.cat([batch.weights for _, batch in here]), self.device)
        self._begin()
        return (*moved, weights)

    @property
    def _product_dtype(self) -> torch.dtype:
        """The number type of the adapters' products: on a GPU that of a model in bfloat16 or float16.

        Tensor cores are faster with it, and grouped_mm needs bfloat16 there.
        """
        narrow = self.device.type == "cuda" and self.model.dtype in (torch.bfloat16, torch.float16)
        return self.model.dtype if narrow else self.dtype

    def _begin(self) -> None:
        """Start a pass over the packing in every group; the anchor is new, since a CUDA graph cannot use an old one."""
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        for group in self.groups:
            group.packing, group.fresh, group.anchor = self._packing, True, anchor

    def _enter(self, step: FixedStep) -> None:
        """Start a pass of a fixed step in every group, over all rows of the storage, with the weights cast once."""
        self._packing, self._bound = step.packing(), False
        self._bind_groups(self._storage[0].to(step.dtype), self._storage[1])
        self._begin()

    def _hidden(self, ids: Tensor, positions: Tensor, targets: Tensor, keep: Tensor, *_: Tensor) -> Tensor:
        """Return the hidden states at the positions that predict a target, [M, width]."""
        body = self.model.base_model
        h = body(input_ids=ids[None], position_ids=positions[None], use_cache=False).last_hidden_state[0]
        return h if len(keep) == len(ids) else h.index_select(0, keep)

    def _head(self, h: Tensor) -> Tensor:
        """Return the logits [M, vocabulary] of hidden states [M, width]."""
        logits = self.model.get_output_embeddings()(h)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _backward(self, packed: tuple[Tensor, ...], batches: Sequence[Minibatch | None]) -> Tensor:
        """Compute the gradients of the sum of all losses; return the weighted loss of every target, [M], detached.

        The loss is a sum of per-slot means, so no slot affects another. If there are many logits, they are computed for
        a chunk of the tokens at a time.
        """
        h = self._hidden(*packed)
        if len(h) <= self._chunk:
            nll = self._nll(wide(self._head(h)), packed, batches)
            nll.sum().backward()
            return nll.detach()
        parts, grad, start = [], torch.empty_like(h), 0
        for rows, out in zip(h.detach().split(self._chunk), grad.split(self._chunk), strict=True):
            rows.requires_grad_()
            nll = self._nll(wide(self._head(rows)), packed, batches, start)
            out.copy_(*torch.autograd.grad(nll.sum(), rows))
            parts.append(nll.detach())
            start += len(rows)
        h.backward(grad)
        return torch.cat(parts)

    def _train_step(self, live: list[Slot], served: Sequence[int]) -> Tensor:
        """Take one optimiser step of the served slots; return the losses before it, [K], without synchronising."""
        batches = [slot.next if k in served else None for k, slot in enumerate(live)]
        step = self._fixed_step if self.fixed and captured.fits(batches) else self._plain_step
        losses = step(live, served, batches)
        for k in served:
            live[k].tokens += live[k].next.tokens
            live[k].step += 1
        return losses

    def _plain_step(self, live: list[Slot], served: Sequence[int], batches: Sequence[Minibatch | None]) -> Tensor:
        if not self._bound:
            self._bind([s.job.alpha / s.job.rank for s in live], [s.job.clip or math.inf for s in live])
            self._bound = True
        packed = self._pack(batches)
        nll = self._backward(packed, batches)
        self._updating = [live[k] for k in served]
        with torch.no_grad():
            for group in self.groups:
                group.finish()
            self._before_update(live)
            if self.device.type == "cuda":
                rows = (x[: len(live)] for x in self._storage)
                adamw.update(*rows, send(adamw.settings(live, served, len(live)), self.device))
            else:
                norm = torch.linalg.vector_norm(self._grad, dim=1, keepdim=True)
                self._grad.mul_((self._clip / (norm + 1e-6)).clamp_max_(1.0))  # the rule of clip_grad_norm_
                for k in served:
                    self._update_alone(k, live[k])
            self._after_update(live)
            return torch.zeros(len(live), dtype=nll.dtype, device=self.device).index_add_(0, packed[4], nll)

    def _update_alone(self, k: int, slot: Slot) -> None:
        job, count = slot.job, torch.tensor(float(slot.step + 1))
        torch._fused_adamw_(
            *([x] for x in self._rows[k]),
            [],
            [count],
            lr=job.lr * learning_rate(job.schedule, slot.step, len(slot.plan), job.warmup),
            beta1=job.betas[0],
            beta2=job.betas[1],
            weight_decay=job.weight_decay,
            eps=job.eps,
            amsgrad=False,
            maximize=False,
        )

    def _fixed_step(self, live: list[Slot], served: Sequence[int], batches: Sequence[Minibatch | None]) -> Tensor:
        rows = len(self._storage[0])
        size = Size.of(batches, rows)
        if size not in self._steps:
            self._steps[size] = FixedStep(size, rows, self._product_dtype, self.device)
        step = self._steps[size]
        step.fill(batches, [s.job.alpha / s.job.rank for s in live], adamw.settings(live, served, rows))
        self._updating = [] if step.graph is not None else [live[k] for k in served]
        first = step.graph is None
        losses = step.run(self._whole_step, self._pool, self.device.type == "cuda")
        self.captures += first and step.graph is not None
        self.replays += not first
        return losses

    def _whole_step(self, step: FixedStep) -> Tensor:
        """Take one step of all rows and return the losses, without reading on the host or data-dependent shapes."""
        self._enter(step)
        nll = self._backward(step.packed, ())
        with torch.no_grad():
            for group in self.groups:
                group.finish()
            adamw.update(*self._storage, step.rows)
            losses = torch.zeros(len(step.rows), dtype=nll.dtype, device=self.device)
            return losses.index_add_(0, step.slot, nll)

    def _nll(
        self, logits: Tensor, packed: tuple[Tensor, ...], batches: Sequence[Minibatch | None], start: int = 0
    ) -> Tensor:
        """Return the weighted losses of the targets from ``start`` on, one for each row of ``logits``."""
        targets, weights = (packed[i][start : start + len(logits)] for i in (2, 5))
        return F.cross_entropy(logits, targets, reduction="none") * weights.to(logits.dtype)

    def _before_update(self, live: list[Slot]) -> None:
        """Hook for subclasses: called after the backward pass, before gradients are clipped."""

    def _after_update(self, live: list[Slot]) -> None:
        """Hook for subclasses: called after the optimiser step."""


_names = count()


def _checked(probes: Sequence[Tensor]) -> Minibatch:
    return Minibatch([Example([*probe[0].tolist(), 0]) for probe in probes], "check", None, 1 << 31)


def _apart(logits: Tensor, expected: Tensor) -> float:
    return float((logits - expected).abs().max() / expected.abs().max())
