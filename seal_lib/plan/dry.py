"""Dry-run versions of policy, engine and bank, which write and train nothing and count what they are asked for.

Texts, passages and puzzles are stand-ins of recorded length (``lengths``); one word is one token. The domains process
these stand-ins as they process real texts (documents, caps, pads, questions, filters). A recorded share of the trained
self-edits is answered right, so that filters keep as many as recorded. Nothing is read or written.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from statistics import fmean
from types import SimpleNamespace
from typing import Any, NoReturn

from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.plan import lengths
from seal_lib.plan.work import CACHE_TOKENS, ROWS, Phase
from seal_lib.records import Question
from seal_lib.runs.lifecycle import Scratch
from seal_lib.training.jobs import Job, Result

#: share of the self-edits about passages that a filter with a threshold keeps (assumed)
KEPT_SHARE = 0.5
SEVERAL = 1 << 62  # stands for an unlimited number of positions


def spread(mean: float, number: int) -> int:
    """Return a whole number near ``mean``; over consecutive values of ``number`` their mean is ``mean``."""
    return math.floor((number + 1) * mean) - math.floor(number * mean)


def words(count: float, first: str = "word") -> str:
    return " ".join([first, *["word"] * (round(count) - 1)])


class OfAnotherRun(Exception):
    """Raised where a notebook reads another run: what follows depends on results that a dry run does not have."""


@dataclass(eq=False, repr=False)
class Prompt(str):
    """A prompt that stands for ``times`` prompts of ``tokens`` tokens."""

    tokens: float
    answer: Callable[[int, bool], Completion]  # (limit, whether it is to be right) → the completion
    longest: Callable[[int, int, bool], float]  # (rows, limit, whether an adapter answers) → tokens of the last to end
    room: float = 0.0  # tokens of the longest prompt of its kind, by default its own
    times: float = 1.0

    def __new__(cls, *_: object, **__: object) -> "Prompt":
        return super().__new__(cls, "prompt")

    def __post_init__(self) -> None:
        self.room = self.room or self.tokens


@dataclass(frozen=True)
class Several(Question):
    """A question that stands for ``times`` questions on passages of a source."""

    times: float = 1.0


class Recorded:
    """Stand-in texts of a source; each has the length of a recorded text, with short and long ones evenly mixed."""

    def __init__(self, source: str) -> None:
        self.text = lengths.profile(source)
        self.mean, self.ask = lru_cache(self.text.edit), lru_cache(self._ask)
        found, n = sorted(self.text.documents, key=sum), len(self.text.documents)
        stride = next(step for step in range(round(0.618 * n), 0, -1) if math.gcd(step, n) == 1)
        self.order = [found[(n // 2 + number * stride) % n] for number in range(n)]
        added = fmean(sum(d[:-1]) for d in found) - self.mean(SEVERAL)
        self.title = round(added / fmean(len(d) - 1 for d in found))  # tokens of the title, in every document
        self.written = itertools.count()

    def body(self, number: int) -> str:
        return words(self.order[number % len(self.order)][-1] - self.title)

    def notes(self, number: int, share: float = 1.0) -> str:
        """Return a self-edit, cut after the first ``share`` of its words."""
        sizes = [max(1, size - self.title) for size in self.order[number % len(self.order)][:-1]]
        left = round(share * sum(sizes))
        before = itertools.accumulate(sizes[:-1], initial=0)
        return "\n".join(words(min(size, left - n)) for size, n in zip(sizes, before, strict=True) if n < left)

    def notes_by(self, writer: str, number: int) -> str:
        """Return another writer's notes; if none are recorded, they are like a self-edit."""
        if writer not in self.text.trained:
            return self.notes(number)
        documents, tokens = self.text.trained[writer]
        each = (tokens - self.text.passage) / (documents - 1) - self.title
        return "\n".join(words(spread(each, line)) for line in range(spread(documents - 1, number)))

    def write(self) -> Prompt:
        """Return the prompt for a self-edit; each completion is the next recorded text."""

        def answer(limit: int, right: bool) -> Completion:
            share = self.mean(limit) / self.mean(SEVERAL)
            return Completion(self.notes(next(self.written), share), self.mean(limit), "eos")

        return Prompt(self.text.write, answer, lambda rows, limit, adapted: self.text.longest(rows, limit))

    def _ask(self, times: float, gold: str, shown: bool) -> Prompt:
        def answer(limit: int, right: bool) -> Completion:
            return Completion(gold if right else "", min(self.text.answer, limit), "eos")

        def longest(rows: int, limit: int, adapted: bool) -> float:
            return min(self.text.answer_longest, limit)

        return Prompt(self.text.shown if shown else self.text.ask, answer, longest, times=times)


class Meter(Scratch):
    """A stand-in for the run, which counts the work of phases.

    ``times`` is the number of like chunks for which the current chunk stands.
    """

    def __init__(self, parameters: dict[str, Any]) -> None:
        self.parameters, self.phase, self.times = parameters, "", 1
        self.found: dict[tuple, Phase] = {}
        self.texts = itertools.count()
        self._right: dict[str, bool] = {}
        self.recorded = lru_cache(Recorded)

    def map(self, phase: str, units: Sequence, fn: Callable[[list], list[dict]], chunk: int = 32) -> list[dict]:
        """Return rows for every unit; of chunks that are alike, only one is computed.

        In the forgetting study all chunks of streams after the same edit are alike.
        """
        parts = [units[first : first + chunk] for first in range(0, len(units), chunk)]
        kinds = [getattr(part[0], "k", number) for number, part in enumerate(parts)]
        self.phase, done = phase, {}
        for kind, part in zip(kinds, parts, strict=True):
            if kind not in done:
                self.times = kinds.count(kind)
                done[kind] = fn(list(part))
        self.times = 1
        return [row for kind in kinds for row in done[kind]]

    def describe(self, **_: object) -> None: ...

    def input(self, *_: str) -> NoReturn:
        raise OfAnotherRun

    def add(self, kind: str, units: float, limit: int = 0, **about: Any) -> None:
        """Count work of the current phase; ``about`` are the values of `Phase` for these ``units``."""
        new = Phase(kind, self.phase, units, **about).times(self.times)
        key = (kind, self.phase, limit, new.adapters > 0)
        self.found[key] = self.found[key].joined(new) if key in self.found else new

    @contextmanager
    def once(self) -> Iterator[None]:
        """Within the block, count work only once, however many chunks are alike."""
        times, self.times = self.times, 1
        yield
        self.times = times

    def right(self, job: str, share: float) -> bool:
        """Return whether the adapter of a job answers right; a ``share`` of all jobs does, beginning with the first."""
        return self._right.setdefault(job, spread(share, len(self._right) - 1) > 0)


# ---------------------------------------------------------------------------------------------- policy


class Tokenizer:
    """A tokenizer for which one word is one token."""

    eos_token_id, all_special_ids, chat_template = 0, (), None

    def __init__(self) -> None:
        known: dict[str, int] = {}
        self._ids = lru_cache(None)(lambda text: [known.setdefault(word, len(known) + 1) for word in text.split()])

    def __call__(self, text: str, **_: object) -> dict[str, list[int]]:
        return {"input_ids": [1] * round(text.tokens) if isinstance(text, Prompt) else self._ids(text)}


@dataclass(frozen=True)
class DryEngine:
    """An engine that counts what it is asked to write (`seal_lib.generation.contract.Generator`)."""

    meter: Meter
    positions = SEVERAL

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Completion]]:
        limit, meter = sampling.max_tokens, self.meter
        asked = [request.prompt if isinstance(request.prompt, Prompt) else self._opening() for request in requests]
        texts = [
            [one.answer(limit, getattr(request.adapter, "right", False)) for _ in range(sampling.n)]
            for one, request in zip(asked, requests, strict=True)
        ]
        n = sampling.n * sum(one.times for one in asked)
        adapters = len({id(request.adapter) for request in requests if request.adapter is not None})
        rows = max(1, min(ROWS, int(CACHE_TOKENS // (max(one.room for one in asked) + limit)), round(n)))
        about = {"targets": meter.parameters.get("targets", "all-linear"), "rank": meter.parameters.get("rank", 8)}
        meter.add(
            "write" if sampling.temperature else "answer",
            n,
            limit,
            rows=rows,
            prompt=sum(one.times * one.tokens for one in asked) * sampling.n / n,
            tokens=sum(one.times * text.tokens for one, several in zip(asked, texts, strict=True) for text in several),
            longest=asked[0].longest(rows, limit, adapters > 0),
            adapters=max(1, round(adapters * rows / n)) if adapters else 0,
            **(about if adapters else {}),
        )
        return texts

    def _opening(self) -> Prompt:
        """Return a short prompt from which the model writes by itself; of up to 512 texts no two are equal."""
        text, number = lengths.profile(self.meter.parameters["passages"]), next(self.meter.texts) % 512

        def tokens(limit: int) -> float:
            return min(text.anchor - 2, limit)

        return Prompt(
            2.0,
            lambda limit, right: Completion(" " + words(tokens(limit), f"n{number}"), tokens(limit), "length"),
            lambda rows, limit, adapted: tokens(limit) + 2,
        )


@dataclass
class Bank:
    """A bank that counts what it is given to train (`seal_lib.training.bank.AdapterBank`)."""

    meter: Meter
    share: float
    slots: int
    targets: str
    tokens_per_step: int | None = None
    halvings = 0

    def __enter__(self) -> "Bank":
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        done = []
        for job in jobs:
            sizes = [len(example.ids) for example in job.examples]
            steps, tokens = job.epochs * -(-len(sizes) // job.batch), job.epochs * sum(sizes)
            if job.order is not None:
                steps, tokens = len(job.order), sum(sizes[i] for batch in job.order for i in batch)
            adapter = SimpleNamespace(right=self.meter.right(job.id, self.share))
            done.append(Result(job.id, adapter, [0.0], steps, tokens))
        steps, tokens = sum(r.steps for r in done), sum(r.tokens for r in done)
        batch = jobs[0].batch if jobs[0].order is None else max(map(len, jobs[0].order))
        served = int((self.tokens_per_step or SEVERAL) // (tokens / steps))
        self.meter.add(
            "train",
            len(jobs),
            tokens=tokens,
            steps=steps,
            batch=batch,
            rank=jobs[0].rank,
            targets=self.targets,
            slots=max(1, min(self.slots, served, len(jobs))),
        )
        return done


@dataclass(frozen=True)
class DryPolicy(Policy):
    """A policy without weights; its ``model`` is the `Meter`."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "engine", "dry")

    def generator(self) -> DryEngine:
        return DryEngine(self.model)

    def bank(self, **settings: Any) -> Bank:
        puzzles = self.model.parameters.get("tasks")
        about = lengths.profile(puzzles) if puzzles else None
        return Bank(self.model, about.kept / about.accepted if about else KEPT_SHARE, **settings)

    def finetuned(
        self, run: Any, pairs: Sequence[tuple[list[int], list[int]]], outer: OuterLoop, *, name: str, seed: int
    ) -> tuple[Policy, float]:
        self.model.phase = name
        sizes = [len(asked) + len(text) for asked, text in pairs]
        self._sft(sizes, outer.sft_epochs, outer.sft_batch, outer.sft_targets, outer.sft_rank)
        return replace(self, name=name), math.nan

    def pretrained(
        self, documents: Sequence[list[int]], settings: Pretraining, *, seed: int, on_step: object = None
    ) -> tuple[Policy, dict]:
        rank = settings.cpt_rank if settings.cpt_method == "lora" else 0
        sizes = list(map(len, documents))
        steps = self._sft(sizes, settings.cpt_epochs, settings.cpt_batch, settings.cpt_targets, rank)
        return self, {"tokens": sum(sizes), "steps": steps, "first_loss": math.nan, "last_loss": math.nan}

    def _sft(self, sizes: Sequence[int], epochs: int, batch: int, targets: str, rank: int) -> int:
        """Count finetuning on texts of these lengths; return the optimizer steps of an epoch."""
        steps, about = -(-len(sizes) // batch), {"batch": batch, "targets": targets, "rank": rank}
        self.model.add("sft", len(sizes), tokens=epochs * sum(sizes), steps=epochs * steps, **about)
        return steps
