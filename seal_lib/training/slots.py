"""The jobs of a bank's run: each one's state in its slot, and which wait, are in training or are finished.

Knows losses, steps and reasons. Does not know how a step is computed (`bank`).
"""

import math
from collections import deque
from dataclasses import dataclass, field

import torch
from torch import Tensor

from seal_lib.training.finetune import Minibatch
from seal_lib.training.jobs import Job


@dataclass(eq=False)
class Slot:
    """A job in training; it occupies one row of the storage."""

    number: int  # of the job in its run
    job: Job
    plan: list[tuple[int, ...]]
    batches: dict[tuple[int, ...], Minibatch]
    step: int = 0
    losses: list[float] = field(default_factory=list)
    tokens: int = 0
    reason: str = ""
    row: Tensor | None = None  # the trained weights, once finished
    parked: list[Tensor] | None = None  # weights and both moments on the host, while out of memory for them

    @property
    def next(self) -> Minibatch:
        return self.batches[self.plan[self.step]]


class SlotQueue:
    """The state of one run of the bank: jobs waiting, in training and finished."""

    def __init__(self, waiting: list[Slot], size: int, rank: int):
        self.size, self.rank = size, rank  # slots of the storage
        self.goal = sum(len(slot.plan) for slot in waiting)
        self.queue = deque(sorted(waiting, key=lambda slot: -len(slot.plan)))  # the longest first: a short tail
        self.live: list[Slot] = []
        self.ended: list[Slot] = []  # not yet given out
        self.pending: list[tuple[list[Slot], list[int], Tensor]] = []  # losses not yet read: reading waits for a GPU
        self.changed, self.turn, self.done, self.tokens, self.width = True, 0, 0, 0, 0

    def counts(self) -> dict[str, int]:
        """The counters that ``on_step`` receives."""
        here = {"live": len(self.live), "waiting": len(self.queue)}
        return {"steps": self.done, "of": self.goal, "tokens": self.tokens, **here}

    def read(self) -> None:
        """Move losses to their slots; a loss that is not finite ends the slot's record with a reason."""
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
