"""The state of a run of the bank: each job's progress in its slot, and the jobs waiting, in training and finished."""

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seal_lib.training.finetune import Minibatch
from seal_lib.training.jobs import Job


@dataclass(eq=False)
class Slot:
    """A job with its progress; in training it occupies one row of the storage."""

    number: int  # index of the job in its run
    job: Job
    plan: list[tuple[int, ...]]
    batches: dict[tuple[int, ...], Minibatch]
    step: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    reason: str = ""
    row: Tensor | None = None  # the trained weights, once finished
    parked: list[Tensor] | None = None  # weights and both moments on the host, until there is memory for them again

    @property
    def next(self) -> Minibatch:
        return self.batches[self.plan[self.step]]


class SlotQueue:
    """The jobs of one run of the bank: waiting, in training and finished."""

    def __init__(self, waiting: list[Slot], size: int, rank: int):
        self.size, self.rank = size, rank  # slots and rank of the storage
        self.goal = sum(len(slot.plan) for slot in waiting)
        self.queue = deque(sorted(waiting, key=lambda slot: -len(slot.plan)))  # longest first, for a short tail
        self.live: list[Slot] = []
        self.ended: list[Slot] = []  # finished jobs whose results were not yielded yet
        self.pending: list[tuple[list[Slot], list[int], Tensor]] = []  # losses not yet read, as reading stalls a GPU
        self.changed, self.turn, self.done, self.tokens, self.width = True, 0, 0, 0, 0

    def counts(self) -> dict[str, int]:
        """Return the counters that ``on_step`` receives."""
        here = {"live": len(self.live), "waiting": len(self.queue)}
        return {"steps": self.done, "of": self.goal, "tokens": self.tokens, **here}

    def read(self) -> None:
        """Read the pending losses into their slots; a loss that is not finite ends the job with a reason."""
        values = torch.cat([losses for *_, losses in self.pending]).tolist() if self.pending else []
        start = 0
        for live, served, losses in self.pending:
            for k in served:
                slot, loss = live[k], values[start + k]
                if not slot.reason:
                    slot.losses.append(loss)
                    if not math.isfinite(loss):
                        at = f"at step {len(slot.losses)} of {len(slot.plan)}"
                        slot.reason = f"Job {slot.job.id!r}: loss is {loss} {at}; lower lr {slot.job.lr}."
            start += len(losses)
        self.pending.clear()
        self.ended += [slot for slot in self.live if slot.reason and slot.row is None]
