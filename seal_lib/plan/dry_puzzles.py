"""Dry-run versions of what notebooks about puzzles load: tasks, and the domain with recorded lengths."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from seal_lib.arc.domain import Puzzles
from seal_lib.arc.examples import CAP, PuzzleExample
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Pair, Task
from seal_lib.arc.vote import View
from seal_lib.generation.contract import Completion, Request
from seal_lib.loops.domain import Candidate
from seal_lib.loops.policy import Policy
from seal_lib.plan.dry import Prompt, Tokenizer, spread
from seal_lib.plan.lengths import PuzzleLengths
from seal_lib.training.jobs import Example


def load_tasks(source: str, solutions: str | None = None, ids: Sequence[str] | None = None, **_: object) -> list[Task]:
    """Return stand-in tasks: one for each id, or as many as the source names; a folder of ARC-AGI-1 holds 400."""
    count, cell = int(source.rpartition(":")[2]) if source.startswith("world:") else 400, ((0,),)
    names = ids or [f"{source}-{number}" for number in range(count)]
    return [Task(name, (Pair(cell, cell),), (cell,), (cell,)) for name in names]


@dataclass(frozen=True)
class DryPuzzles(Puzzles):
    """The puzzle domain with recorded lengths."""

    lengths: PuzzleLengths | None = None
    written: itertools.count = field(default_factory=itertools.count)
    accepted: itertools.count = field(default_factory=itertools.count)

    def prompt(self, unit: Task, tokenizer: Tokenizer) -> Prompt:
        texts: list[str] = []

        def answer(limit: int, right: bool) -> Completion:
            """The next self-edit of the task: some ask for too much, some repeat another."""
            about, inner, number = self.lengths, self.inner, next(self.written)
            epochs = min(spread(about.epochs, number), inner.max_steps * inner.batch // self._count(), inner.max_epochs)
            if not spread(about.accepted, number):
                config = Config((), "train_using_output_tokens", inner.max_rate, inner.max_epochs + 1)
                return Completion(config.text(), min(about.edit, limit), "eos")
            config = Config((), "train_using_output_tokens", inner.max_rate / (2 + number), max(1, epochs))
            texts.append(config.text() if spread(about.distinct, next(self.accepted)) or not texts else texts[-1])
            return Completion(texts[-1], min(about.edit, limit), "eos")

        return Prompt(self.lengths.write, answer, lambda rows, limit, adapted: limit)

    def _count(self) -> int:
        return round(self.lengths.of(min(self.inner.cap, CAP)))

    def examples(self, candidate: Candidate, tokenizer: Tokenizer, sets: dict) -> list[Example]:
        return [Example(range(round(self.lengths.example)))] * self._count()

    def questions(self, candidate: Candidate, adapter: Any, tokenizer: Tokenizer, positions: int) -> list[Request]:
        views = {"full": 1.0, "leave_one_out": self.lengths.subsets, "all": self.lengths.views}[self.inner.views]
        asked = Prompt(self.lengths.ask, self._grid, self._longest, self.lengths.ask_longest, views)
        return [Request(asked, adapter=adapter)]

    def _views(self, candidate: Candidate) -> list[tuple[int, View]]:
        return [(0, View(PuzzleExample((), candidate.unit.train[0])))]

    def _grid(self, limit: int, right: bool) -> Completion:
        return Completion("[[0]]" if right else "", min(self.lengths.answer, limit), "stop" if right else "length")

    def _longest(self, rows: int, limit: int, adapted: bool) -> float:
        return min(self.lengths.answer_longest, limit) if adapted else limit

    def target(self, unit: Task, text: str, policy: Policy) -> tuple[list[int], list[int]]:
        written = min(self.lengths.edit, policy.model.parameters["edit_tokens"])
        return [0] * round(self.lengths.write), [0] * round(written)
