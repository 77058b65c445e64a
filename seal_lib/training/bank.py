"""The adapter bank: it trains many LoRA adapters side by side on one frozen model.

A SEAL round trains hundreds of small adapters for about a hundred tiny steps each. In the bank K of them share every
step (`seal_lib.training.steps`), and a free slot takes the next job. The result equals training each adapter alone
(`seal_lib.training.finetune.train_alone`). If memory runs out, fewer adapters continue side by side from their current
state. This module schedules jobs; `seal_lib.training.steps` computes the steps.
"""

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from seal_lib.errors import ParameterError, SealError
from seal_lib.models import budget
from seal_lib.models.checks import said
from seal_lib.training.adapters import Adapter
from seal_lib.training.finetune import Minibatch, train_alone
from seal_lib.training.jobs import Job, Result
from seal_lib.training.slots import Slot, SlotQueue
from seal_lib.training.steps import PackedModel, Unpackable

AUTO_SLOTS = 128  # largest number of slots that `slots=0` chooses; more do not save time (LOG.md)
OUT_OF_MEMORY_HINT = (
    "Use gradient_checkpointing, dtype 4bit, shorter documents, fewer pads in the loss or a smaller model."
)


class AdapterBank(PackedModel, AbstractContextManager):
    """Trains jobs in ``slots`` adapters side by side on a frozen Hugging Face causal LM.

    The bank modifies the model until it is closed; use it as a context manager.

    In a plain step on a GPU the model's own layers process no padding. Only the adapters' products (a hundredth of the
    arithmetic; grouped instead if padding would double them) and attention are padded, to the longest slot or example
    of the step.

    Not every architecture can be packed: linear attention carries its state from one example into the next. Such a
    model trains example by example with one slot; with more slots it is refused.

    Args:
        model: keeps its dtype, device and weights.
        slots: number of adapters side by side; 0 or "auto" for as many as fit; 1 for one at a time.
        targets: see `seal_lib.training.adapters.target_linears`.
        tokens_per_step: largest number of tokens in one forward pass (bounds memory); slots then take turns. Default:
            no bound, or ``budget.STEP_TOKENS`` for a model of more than ``budget.LARGE`` parameters.
        dtype: number type of the adapters and the optimiser state.
        gradient_checkpointing: recompute each decoder layer in the backward pass (saves memory).
        memory: bytes that ``slots=0`` may use. Default: the free memory of a GPU, 4 GB on a CPU.
        fixed: pad steps to fixed sizes, which a GPU replays as CUDA graphs (`seal_lib.training.captured`). Default:
            True on a GPU for a model in bfloat16. It has no effect with gradient checkpointing or quantised layers.
            Steps with padding in the loss stay plain; steps of rare sizes run without a graph.

    Attributes:
        alone: True if adapters train one at a time because this model's examples cannot be packed.
        halvings: how often memory ran out, so that the slots and the tokens per step were halved.

    Raises:
        Unpackable: the model cannot be packed and ``slots`` is not 1.
    """

    least_rank = 0  # of the storage

    def __init__(
        self,
        model: nn.Module,
        slots: int | str = 16,
        targets: str | Sequence[str] = "all-linear",
        tokens_per_step: int | None = None,
        dtype: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
        memory: float | None = None,
        fixed: bool | None = None,
    ):
        slots = 0 if slots == "auto" else slots
        if not isinstance(slots, int) or slots < 0:
            raise ParameterError(f"slots: a bank needs at least 1, or 0 for as many as fit, not {slots!r}.")
        self.slots, self.memory = slots, memory
        self.halvings, self.alone, self._busy = 0, False, False
        try:
            super().__init__(model, targets, tokens_per_step, dtype, gradient_checkpointing, fixed)
        except Unpackable:
            self.alone = self.slots == 1 and self.can_train_alone
            if not self.alone:
                raise

    def close(self) -> None:
        """Restore the model exactly as it was. The bank cannot be used afterwards."""
        self._busy = True
        self._stack.close()

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _serve(self, live: list[Slot], turn: int) -> list[int]:
        """Return the slots of the next step: all, or as many from ``turn`` on as ``tokens_per_step`` allows (≥ 1)."""
        if self.tokens_per_step is None:
            return list(range(len(live)))
        served, total = [], 0
        for k in ((turn + i) % len(live) for i in range(len(live))):
            total += len(live[k].next.ids)
            if served and total > self.tokens_per_step:
                break
            served.append(k)
        return served

    # the run

    def _prepare(self, number: int, job: Job) -> Slot:
        limit = getattr(self.model.config, "max_position_embeddings", None)
        vocabulary, plan = self.model.get_input_embeddings().num_embeddings, job.plan()
        made = {
            batch: Minibatch([job.examples[i] for i in batch], job.id, limit, vocabulary)
            for batch in dict.fromkeys(plan)
        }
        return Slot(number, job, plan, made)

    def run(self, jobs: Sequence[Job], on_step: Callable[[dict], None] | None = None) -> list[Result]:
        """Train all jobs and return the results in job order.

        ``on_step`` receives a dict of counters after each step of the bank.
        """
        results = dict(self._stream(list(jobs), on_step))
        return [results[number] for number in range(len(results))]

    def stream(self, jobs: Sequence[Job], on_step: Callable[[dict], None] | None = None) -> Iterator[Result]:
        """Train all jobs and yield each result as soon as it is available, in any order."""
        return (result for _, result in self._stream(list(jobs), on_step))

    def _stream(self, jobs: list[Job], on_step: Callable[[dict], None] | None) -> Iterator[tuple[int, Result]]:
        if self._busy:
            raise SealError("This bank is closed or still streaming another run; finish that one or open a new bank.")
        waiting = [self._prepare(number, job) for number, job in enumerate(jobs)]
        if not waiting:
            return
        rank = max(self.least_rank, *(job.rank for job in jobs))
        self._busy = True
        try:
            yield from (self._one_by_one if self.alone else self._loop)(waiting, rank, on_step)
        finally:
            self._release()
            self._busy = False

    def _fitting(self, waiting: list[Slot], rank: int) -> int:
        """Return the number of slots for ``slots=0``: as many as fit into memory, at most `AUTO_SLOTS`."""
        free = self.memory
        if free is None and self.device.type == "cuda":
            cached = torch.cuda.memory_reserved(self.device) - torch.cuda.memory_allocated(self.device)
            free = torch.cuda.mem_get_info(self.device)[0] + cached
        free = budget.DEFAULT_MEMORY if free is None else free
        batches = [batch for slot in waiting for batch in slot.batches.values()]
        tokens, predicted = max(len(batch.ids) for batch in batches), max(len(batch.keep) for batch in batches)
        dtype, targets = str(self.model.dtype).removeprefix("torch."), {n.rpartition(".")[2] for n in self.linears}
        size = (rank, tokens, self.tokens_per_step, predicted, self.checkpointing, dtype)
        try:
            found = budget.slots_that_fit(budget.Shape.of(self.model.config), free, sorted(targets), *size)
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
        """Train the jobs one after the other, example by example, which any architecture supports."""
        examples = [example for slot in waiting for example in slot.job.examples]
        if any(e.positions is not None or (e.visible or len(e.ids)) < len(e.ids) for e in examples):
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
        """Fill the slots, take a step and collect finished jobs; return False if the device ran out of memory."""
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
            now.turn = (served[-1] + 1) % len(live)  # every slot gets its turn
            now.done, now.tokens = now.done + len(served), now.tokens + useful
            for k, slot in enumerate(live):
                if slot.step == len(slot.plan):
                    slot.row = self._storage[0][k].clone()
                    now.ended.append(slot)
        except torch.OutOfMemoryError as error:
            if now.size < 2:
                first = str(error).partition("\n")[0]  # CUDA's message is a page long
                raise SealError(
                    f"Out of memory with one adapter, {now.width} tokens a step: {first} {OUT_OF_MEMORY_HINT}"
                ) from error
            return False
        return True

    def _halve(self, now: SlotQueue) -> None:
        """After running out of memory, halve the slots and the tokens per step; keep each adapter's current state.

        Only adapters that were interrupted during an update start again, so the results equal those of an undisturbed
        run.
        """
        for group in self.groups:  # free the tensors of the failed pass
            group.release()
        now.read()
        parked, used = [], now.size if now.queue else len(now.live) or now.size
        for k, slot in enumerate(now.live):
            if slot.row is not None or slot.reason:  # already in now.ended
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
            parts = self._parts(slot.row, job.rank)  # transposed on the device, so that the host only receives
            weights = {n: (a.clone().cpu(), b.mT.contiguous().cpu()) for n, a, b in parts}
            adapter = Adapter(job.rank, job.alpha, self.targets, weights)
        outcome = "diverged" if slot.reason else "ok"
        return Result(job.id, adapter, slot.losses, len(slot.losses), slot.tokens, outcome, slot.reason, job.cut_tokens)
