"""The adapter bank: trains many LoRA adapters at once, side by side, on one frozen model.

A SEAL round trains hundreds of small adapters for a hundred tiny steps each. Here every step packs one minibatch of
each of K adapters end to end into one forward pass (padding the model only where that is the cheaper), sums the K
losses, so that gradients stay independent, and updates each adapter by its own AdamW, learning rate, clip and schedule;
a finished slot takes the next job. The result equals training each alone
(`seal_lib.training.finetune.train_alone`). If memory runs out, fewer adapters continue side by side from their
current state. Does not know self-edits.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seal_lib.errors import ParameterError, SealError
from seal_lib.models import budget
from seal_lib.models.checks import said
from seal_lib.training import adamw, captured
from seal_lib.training.adapters import Adapter, diverted, sibling_groups, target_linears, target_names
from seal_lib.training.captured import FixedStep, Size
from seal_lib.training.finetune import Minibatch, quiet, train_alone
from seal_lib.training.fused import forwards, quantised
from seal_lib.training.jobs import Example, Job, Result, learning_rate
from seal_lib.training.packing import Packing, Ragged, level, send, worth_levelling
from seal_lib.training.slots import Slot, SlotQueue

AUTO_SLOTS = 128  # most adapters that `slots=0` puts side by side: more no longer pay (LOG.md)
OUT_OF_MEMORY_HINT = (
    "Use gradient_checkpointing, dtype 4bit, shorter documents, fewer pads in the loss or a smaller model."
)


class Unpackable(SealError):
    """Examples of this model cannot be packed into one forward pass."""


class AdapterBank:
    """Trains jobs through ``slots`` adapters at once on a frozen Hugging Face causal LM, which it borrows until closed.

    The model itself sees no pads on a GPU: padded are only the adapters' products (a hundredth of the arithmetic;
    grouped where that would double them) and attention, to the step's longest example. ``bucketing`` keeps that short.

    Not every architecture can be packed (linear attention runs on from one example into the next). With one slot such a
    model trains all the same, example by example; with more it is refused.

    Args:
        model: stays in its dtype and on its device; its weights are never written.
        slots: adapters side by side; 0 or "auto": as many as fit; 1: one at a time. targets: see
            `seal_lib.training.adapters.target_linears`.
        rank_max: rank of the storage; default: the largest of the jobs of a run.
        tokens_per_step: bound on the tokens of one forward pass (memory); slots then take turns. Default: none, and
            ``budget.STEP_TOKENS`` for a model of more than ``budget.LARGE`` parameters.
        bucketing: where slots take turns, a step serves those whose next minibatches are alike in length; the order
            within an adapter stays. dtype: of adapters and optimiser state.
        gradient_checkpointing: recompute each decoder layer in the backward pass (memory).
        layout: "auto", "padded" or "grouped", see `seal_lib.training.packing.Packing`.
        memory: bytes that ``slots=0`` may fill. Default: what the device has free; on a CPU 4 GB.
        fixed: steps of fixed sizes, which a GPU replays as CUDA graphs (`seal_lib.training.captured`). Default: on
            a GPU, for a model in bfloat16 that is not recomputed. Pads in the loss and rare sizes take the plain step.

    Attributes:
        alone: whether adapters train one at a time, as examples of this model cannot be packed.
        halvings: how often memory ran out, and the slots and the tokens of a step were halved.
        captures, replays, capturing: steps captured and replayed so far, and the seconds that capturing took.
    """

    can_train_alone = True  # False where more than a plain job's loss is trained on

    def __init__(
        self, model: nn.Module, slots: int | str = 16, targets: str | Sequence[str] = "all-linear",
        rank_max: int | None = None, tokens_per_step: int | None = None, dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False, layout: str = "auto", memory: float | None = None,
        bucketing: bool = False, fixed: bool | None = None,
    ):  # fmt: skip
        slots = 0 if slots == "auto" else slots
        if not isinstance(slots, int) or slots < 0:
            raise ParameterError(f"slots: a bank needs at least 1, or 0 for as many as fit, not {slots!r}.")
        self.model, self.slots, self.targets = model, slots, target_names(model, targets)
        self.memory, self.halvings, self.checkpointing = memory, 0, gradient_checkpointing
        self.captures, self.replays, self.capturing = 0, 0, 0.0
        self.bucketing = bucketing
        if tokens_per_step is None and sum(p.numel() for p in model.parameters()) > budget.LARGE:
            tokens_per_step = budget.STEP_TOKENS
        self.rank_max, self.tokens_per_step, self.dtype = rank_max, tokens_per_step, dtype
        self.device = next(model.parameters()).device
        self._width, vocabulary = model.get_input_embeddings().embedding_dim, model.get_output_embeddings().out_features
        self._chunk = max(1, budget.LOGITS // vocabulary)  # predicted tokens whose logits exist at once
        self.linears = target_linears(model, self.targets)
        self.groups = sibling_groups(self.linears)
        odd = any(side % 8 for layer in self.linears.values() for side in (layer.in_features, layer.out_features))
        self.layout = "padded" if odd or dtype == torch.float64 else layout  # what grouped_mm does not take
        if fixed is None:
            fixed = self.device.type == "cuda" and model.dtype == torch.bfloat16
        packed = any(quantised(layer) for layer in self.linears.values())
        self.fixed = fixed and not (odd or packed or gradient_checkpointing) and self.can_train_alone
        self._steps: dict[Size, FixedStep] = {}
        self._busy, self._storage = False, []
        self._updating: list[Slot] = []  # slots of an update under way
        self._bound = False  # whether the groups hold the rows of the live slots
        self._stack, self.alone = ExitStack(), False
        try:
            self._borrow(gradient_checkpointing)
        except Unpackable:
            self._stack.close()
            self.alone = self.slots == 1 and self.can_train_alone
            if not self.alone:
                raise
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
        from transformers import AttentionInterface

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
            except Exception as problem:  # what an architecture says that takes no such rows is its own
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
            faster.close()  # once more with the model's own pieces
        way = "set slots to 1 to train one at a time" if self.can_train_alone else "choose another model here"
        raise Unpackable(
            f"{type(model).__name__} does not give its own logits when examples are packed ({why}), so its adapters "
            f"cannot train side by side; {way}."
        )

    @torch.no_grad()
    def _error(self, probes: list[Tensor], expected: Tensor) -> float:
        """The packed forward must give the plain model's logits: not every architecture allows it."""
        self._allocate(1, 8)
        batch = Minibatch([Example([*probe[0].tolist(), 0]) for probe in probes], "check", None, 1 << 31)
        logits = self._head(self._hidden(*self._pack([batch])))
        return float((logits - expected).abs().max() / expected.abs().max())

    @torch.no_grad()
    def _check_fixed(self, probes: list[Tensor], expected: Tensor, most: float) -> None:
        """Leave fixed sizes to the plain step where they do not give its logits."""
        self._allocate(1, 8)
        try:
            batch = Minibatch([Example([*probe[0].tolist(), 0]) for probe in probes], "check", None, 1 << 31)
            step = FixedStep(Size.of([batch], 1), 1, self._product_dtype, self.device)
            step.fill([batch], [1.0], adamw.settings([], [], 1))
            self._enter(step)
            logits = self._head(self._hidden(*step.packed))[: len(expected)]
            self.fixed = float((logits - expected).abs().max() / expected.abs().max()) < most
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # attention or products that this device or architecture has not
            self.fixed = False

    def close(self) -> None:
        """Give the model back exactly as it was. The bank cannot be used afterwards."""
        self._busy = True
        self._stack.close()

    def __enter__(self) -> "AdapterBank":
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # storage: one row per slot, so that norm, AdamW, refill and compaction are operations on rows

    def _allocate(self, slots: int, rank: int) -> None:
        size = sum(group.resize(-(-rank // 8) * 8) for group in self.groups)  # grouped_mm wants rows of 16 bytes
        self._storage = [torch.zeros(slots, size, dtype=self.dtype, device=self.device) for _ in range(4)]
        self._bind([1.0] * slots, [math.inf] * slots)
        self._pool = torch.cuda.graph_pool_handle() if self.fixed and self.device.type == "cuda" else None

    def _release(self) -> None:
        self._storage, self._packing, self._grad, self._rows, self._steps = [], None, None, [], {}
        for group in self.groups:
            group.release()

    def _bind(self, scales: Sequence[float], clips: Sequence[float]) -> None:
        """Use the first ``len(scales)`` rows."""
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
        """(module name, A [rank, in], B transposed [rank, out]) as views of one row of the storage."""
        sizes = [group.size for group in self.groups]
        for group, columns in zip(self.groups, row.split(sizes), strict=True):
            a, *b = (x.view(shape) for x, shape in zip(columns.split(group.parts), group.shapes, strict=True))
            for i, name in enumerate(group.names):
                yield name, a[i * group.rank : i * group.rank + rank], b[i][:rank]

    @torch.no_grad()
    def _open(self, k: int, slot: Slot) -> None:
        """Fresh adapter in row k. Rows beyond the job's rank are 0 in A and B; their gradients are 0 too, so they stay
        0."""
        flat, _, m, v = (x[k] for x in self._storage)
        for x in (flat, m, v):
            x.zero_()
        start = slot.job.initial(self.linears, self.device)
        for name, a, b in self._parts(flat, slot.job.rank):
            a.copy_(start[name][0])
            if slot.job.init is not None:  # else 0
                b.copy_(start[name][1].mT)

    def _restore(self, k: int, slot: Slot) -> None:
        """Put row k back to its state before memory ran out."""
        weights, _, *moments = (x[k] for x in self._storage)
        for x, kept in zip((weights, *moments), slot.parked, strict=True):
            x.copy_(kept)
        slot.parked = None

    # one step

    def _pack(self, batches: Sequence[Minibatch | None]) -> tuple[Tensor, ...]:
        """Set the packing; returns ids [N], positions [N], targets, keep, slot, weights [M] on the device."""
        here = [(k, batch) for k, batch in enumerate(batches) if batch is not None]
        slots = torch.tensor([0 if batch is None else len(batch.ids) for batch in batches])
        lengths, visible = torch.tensor([pair for _, batch in here for pair in batch.lengths]).unbind(1)
        rows, packed = None, self.device.type != "cpu" or self.layout == "grouped"
        if not packed and worth_levelling(slots, self._width, self.tokens_per_step):
            rows = Ragged(slots, slots.device)
            lengths, visible, slots = level(lengths, visible, slots)
        self._packing = Packing(lengths, visible, slots, self._scale, self._product_dtype, self.layout)
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
        """Of the adapters' products: on a GPU that of the model, for tensor cores; grouped_mm wants bfloat16 there."""
        narrow = self.device.type == "cuda" and self.model.dtype in (torch.bfloat16, torch.float16)
        return self.model.dtype if narrow else self.dtype

    def _begin(self) -> None:
        """Every group starts a pass over the packing. The anchor is new: a graph cannot take one that is older."""
        anchor = torch.zeros((), device=self.device, requires_grad=True)
        for group in self.groups:
            group.packing, group.fresh, group.anchor = self._packing, True, anchor

    def _enter(self, step: FixedStep) -> None:
        """Every group takes the packing of a fixed step, all rows of the storage, and their weights as one cast."""
        self._packing, self._bound = step.packing(), False
        self._bind_groups(self._storage[0].to(step.dtype), self._storage[1])
        self._begin()

    def _hidden(self, ids: Tensor, positions: Tensor, targets: Tensor, keep: Tensor, *_: Tensor) -> Tensor:
        """Hidden states at the positions that predict a token, [M, width]."""
        body = self.model.base_model
        h = body(input_ids=ids[None], position_ids=positions[None], use_cache=False).last_hidden_state[0]
        return h if len(keep) == len(ids) else h.index_select(0, keep)

    def _head(self, h: Tensor) -> Tensor:
        """Logits [M, vocabulary] of hidden states [M, width]."""
        logits = self.model.get_output_embeddings()(h)
        cap = getattr(self.model.config, "final_logit_softcapping", None)
        return logits if cap is None else torch.tanh(logits / cap) * cap

    def _backward(self, packed: tuple[Tensor, ...], batches: Sequence[Minibatch | None]) -> Tensor:
        """Gradients of the sum of all losses; returns the weighted loss of every predicted token, [M], without graph.

        A sum of per-slot means: what one slot does cannot reach another. Where the logits would be many, they exist for
        some tokens at a time.
        """
        h = self._hidden(*packed)
        if len(h) <= self._chunk:
            nll = self._nll(_wide(self._head(h)), packed, batches)
            nll.sum().backward()
            return nll.detach()
        parts, grad, start = [], torch.empty_like(h), 0
        for rows, out in zip(h.detach().split(self._chunk), grad.split(self._chunk), strict=True):
            rows.requires_grad_()
            nll = self._nll(_wide(self._head(rows)), packed, batches, start)
            out.copy_(*torch.autograd.grad(nll.sum(), rows))
            parts.append(nll.detach())
            start += len(rows)
        h.backward(grad)
        return torch.cat(parts)

    def _train_step(self, live: list[Slot], served: Sequence[int]) -> Tensor:
        """One optimiser step of the served slots; returns the losses before it, [K], without waiting for them."""
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
        p, g, m, v = self._rows[k]
        job, count = slot.job, torch.tensor(float(slot.step + 1))
        torch._fused_adamw_(
            [p], [g], [m], [v], [], [count],
            lr=job.lr * learning_rate(job.schedule, slot.step, len(slot.plan), job.warmup),
            beta1=job.betas[0], beta2=job.betas[1], weight_decay=job.weight_decay, eps=job.eps,
            amsgrad=False, maximize=False,
        )  # fmt: skip

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
        if first and step.graph is not None:
            self.captures, self.capturing = self.captures + 1, self.capturing + step.seconds
        else:
            self.replays += not first
        return losses

    def _whole_step(self, step: FixedStep) -> Tensor:
        """Losses of one step of all rows; reads nothing on the host and has no shape that depends on a number."""
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
        """Weighted loss of the predicted tokens from number ``start`` on, of which ``logits`` has the first."""
        targets, weights = (packed[i][start : start + len(logits)] for i in (2, 5))
        return F.cross_entropy(logits, targets, reduction="none") * weights.to(logits.dtype)

    def _before_update(self, live: list[Slot]) -> None:
        """Hook for subclasses, called after the backward pass and before gradients are clipped."""

    def _after_update(self, live: list[Slot]) -> None:
        """Hook for subclasses, called after the optimiser step."""

    def _serve(self, live: list[Slot], turn: int) -> list[int]:
        """Slots of the next step: all, or from ``turn`` on as many as the token budget takes (at least one).

        With ``bucketing`` those come first whose longest example is closest to that of the slot whose turn it is.
        """
        if self.tokens_per_step is None:
            return list(range(len(live)))
        order, served, total = [(turn + i) % len(live) for i in range(len(live))], [], 0
        if self.bucketing:
            longest = [max(length for length, _ in slot.next.lengths) for slot in live]
            here = longest[order[0]]
            order.sort(key=lambda k: abs(longest[k] - here))  # stable, so the slot itself stays first
        for k in order:
            total += len(live[k].next.ids)
            if served and total > self.tokens_per_step:
                break
            served.append(k)
        return served

    # the run

    def _prepare(self, number: int, job: Job) -> Slot:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        vocabulary, plan = self.model.get_input_embeddings().num_embeddings, job.plan()
        made: dict[tuple[int, ...], Minibatch] = {}
        for batch in plan:
            if batch not in made:
                made[batch] = Minibatch([job.examples[i] for i in batch], job.id, limit, vocabulary)
        return Slot(number, job, plan, made)

    def run(self, jobs: Sequence[Job], on_step: Callable[[dict], None] | None = None) -> list[Result]:
        """Train all jobs; results in job order. ``on_step`` gets a dict of counts after each step of the bank."""
        results = dict(self._stream(list(jobs), on_step))
        return [results[number] for number in range(len(results))]

    def stream(self, jobs: Sequence[Job], on_step: Callable[[dict], None] | None = None) -> Iterator[Result]:
        """Train all jobs and yield each result as soon as it is ready."""
        return (result for _, result in self._stream(list(jobs), on_step))

    def _stream(self, jobs: list[Job], on_step: Callable[[dict], None] | None) -> Iterator[tuple[int, Result]]:
        if self._busy:
            raise SealError("This bank is closed or still streaming another run; finish that one or open a new bank.")
        waiting = [self._prepare(number, job) for number, job in enumerate(jobs)]
        if not waiting:
            return
        rank = self.rank_max or max(job.rank for job in jobs)
        wrong = next((job for job in jobs if job.rank > rank), None)
        if wrong is not None:
            raise ParameterError(f"Job {wrong.id!r} has rank {wrong.rank}, the bank was made for up to {rank}.")
        self._busy = True
        try:
            yield from (self._one_by_one if self.alone else self._loop)(waiting, rank, on_step)
        finally:
            self._release()
            self._busy = False

    def _fitting(self, waiting: list[Slot], rank: int) -> int:
        """Slots for ``slots=0``: as many as fit in memory by the budget, up to the number that still saves time.

        Raises:
            ParameterError: not even one fits.
        """
        free = self.memory
        if free is None and self.device.type == "cuda":
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            free = torch.cuda.mem_get_info(self.device)[0] + cached
        free = budget.DEFAULT_MEMORY if free is None else free
        batches = [batch for slot in waiting for batch in slot.batches.values()]
        tokens, predicted = max(len(batch.ids) for batch in batches), max(len(batch.keep) for batch in batches)
        dtype, targets = str(self.model.dtype).removeprefix("torch."), {n.rpartition(".")[2] for n in self.linears}
        try:
            found = budget.slots_that_fit(
                budget.Shape.of(self.model.config), free, sorted(targets), rank, tokens, self.tokens_per_step,
                predicted, self.checkpointing, dtype,
            )  # fmt: skip
        except SealError as error:
            raise ParameterError(f"slots: how many fit cannot be planned here, so give a number: {error}") from error
        if not found:
            raise ParameterError(
                f"Not one adapter of rank {rank} fits beside the model: minibatches have up to {tokens} tokens and "
                f"{free / budget.GB:.1f} GB are free. {OUT_OF_MEMORY_HINT}"
            )
        return min(found, AUTO_SLOTS)

    def _one_by_one(
        self, waiting: list[Slot], rank: int, on_step: Callable[[dict], None] | None
    ) -> Iterator[tuple[int, Result]]:
        """Every job by itself, example by example: what any architecture can do."""
        if any(
            e.positions is not None or (e.visible or len(e.ids)) < len(e.ids) for s in waiting for e in s.job.examples
        ):
            raise ParameterError(
                f"pad_loss: pads in the loss need attention that can pass them over, which {type(self.model).__name__} "
                "has not in every layer; set pad_loss to none or eos."
            )
        done, tokens, goal = 0, 0, sum(len(slot.plan) for slot in waiting)
        for slot in waiting:
            try:
                result = train_alone(self.model, slot.job, self.targets, checkpointing=self.checkpointing)
            except torch.OutOfMemoryError as error:
                raise SealError(
                    f"Out of memory with one adapter, one example a step: {said(error)}. {OUT_OF_MEMORY_HINT}"
                ) from error
            yield slot.number, result
            done, tokens = done + len(slot.plan), tokens + result.tokens
            if on_step is not None:
                waits = len(waiting) - slot.number - 1
                on_step({"steps": done, "of": goal, "tokens": tokens, "live": 1, "waiting": waits, "halvings": 0})

    def _loop(self, waiting: list[Slot], rank: int, on_step: Callable | None) -> Iterator[tuple[int, Result]]:
        now = SlotQueue(waiting, min(self.slots or self._fitting(waiting, rank), len(waiting)), rank)
        self._updating, patience = [], 1 if self.device.type == "cpu" else 16
        while now.queue or now.live:
            if not self._advance(now):
                self._halve(now)
                continue
            if len(now.pending) == patience or all(slot.row is not None for slot in now.live) and not now.queue:
                now.read()
                yield from ((slot.number, self._result(slot)) for slot in now.ended)
                now.ended = []
            for k in reversed([k for k, slot in enumerate(now.live) if slot.row is not None or slot.reason]):
                now.changed, last = True, now.live.pop()  # the last row moves into the gap
                if k < len(now.live):
                    now.live[k] = last
                    for x in self._storage:
                        x[k].copy_(x[len(now.live)])
            if on_step is not None:
                on_step(now.counts() | {"halvings": self.halvings})
        yield from ((slot.number, self._result(slot)) for slot in now.ended)

    def _advance(self, now: SlotQueue) -> bool:
        """Fill the slots, take a step, collect finished jobs; False if the device ran out of memory."""
        try:
            if not self._storage:
                self._allocate(now.size, now.rank)
            while now.queue and len(now.live) < now.size:
                (self._open if now.queue[0].parked is None else self._restore)(len(now.live), now.queue[0])
                now.live.append(now.queue.popleft())
                now.changed = True
            live = now.live
            self._bound, now.changed = self._bound and not now.changed, False
            served = self._serve(live, now.turn)
            now.width = sum(len(live[k].next.ids) for k in served)
            useful = sum(live[k].next.tokens for k in served)
            now.pending.append((live[:], sorted(served), self._train_step(live, sorted(served))))
            self._updating = []
            now.turn = (served[0 if self.bucketing else -1] + 1) % len(live)  # each slot's turn comes
            now.done, now.tokens = now.done + len(served), now.tokens + useful
            for k, slot in enumerate(live):
                if slot.step == len(slot.plan):
                    slot.row = self._storage[0][k].clone()
                    now.ended.append(slot)
        except torch.OutOfMemoryError as error:
            if now.size < 2:
                first = str(error).partition("\n")[0]  # CUDA goes on for a page
                raise SealError(
                    f"Out of memory with one adapter, {now.width} tokens a step: {first} {OUT_OF_MEMORY_HINT}"
                ) from error
            return False
        return True

    def _halve(self, now: SlotQueue) -> None:
        """Out of memory: continue with half the slots and half the tokens a step, from each adapter's current state.

        Only adapters that were interrupted during an update start again, so results are those of an undisturbed run.
        """
        for group in self.groups:  # tensors of the pass that failed
            group.release()
        now.read()
        parked, used = [], now.size if now.queue else len(now.live) or now.size
        for k, slot in enumerate(now.live):
            if slot.row is not None or slot.reason:  # in now.ended
                continue
            if any(slot is x for x in self._updating):
                now.done -= len(slot.losses)
                slot.step, slot.tokens, slot.losses = 0, 0, []
            elif slot.step == len(slot.plan):
                slot.row = self._storage[0][k].cpu()
                now.ended.append(slot)
                continue
            else:
                weights, _, *moments = (x[k].to("cpu", copy=True) for x in self._storage)
                slot.parked = [weights, *moments]
            parked.append(slot)
        now.queue.extendleft(reversed(parked))
        self.halvings, self.slots = self.halvings + 1, max(1, (self.slots or now.size) // 2)
        if now.width:
            self.tokens_per_step = max(1, now.width // 2)
        now.size, now.live, now.turn = max(1, used // 2), [], 0
        self._updating = []
        self._release()
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _result(self, slot: Slot) -> Result:
        job, adapter = slot.job, None
        if not slot.reason and not bool(torch.isfinite(slot.row).all()):
            slot.reason = f"Job {job.id!r}: weights are not finite after step {slot.step}; lower lr {job.lr}."
        if not slot.reason:
            parts = self._parts(slot.row, job.rank)  # turned where they were trained, so that the host only receives
            weights = {n: (a.clone().cpu(), b.mT.contiguous().cpu()) for n, a, b in parts}
            adapter = Adapter(job.rank, job.alpha, self.targets, weights)
        outcome = "diverged" if slot.reason else "ok"
        return Result(job.id, adapter, slot.losses, len(slot.losses), slot.tokens, outcome, slot.reason, job.cut_tokens)


_names = count()


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
