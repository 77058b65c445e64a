"""Dry-run versions of policy, engine and bank, which write and train nothing and count what they are asked for.

Texts, passages and puzzles are stand-ins of recorded length (``lengths``); one word is one token. The domains process
these stand-ins as they process real texts (documents, caps, pads, questions, filters). A recorded share of the trained
self-edits is answered right, so that filters keep as many as recorded. Nothing is read or written.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import fmean
from types import SimpleNamespace
from typing import Any, NoReturn

from seal_lib.arc.domain import Puzzles
from seal_lib.arc.examples import CAP, PuzzleExample
from seal_lib.arc.self_edits import Config
from seal_lib.arc.tasks import Pair, Task
from seal_lib.arc.vote import View
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.knowledge import corpus, strategies
from seal_lib.knowledge.domain import Knowledge
from seal_lib.knowledge.evaluate import BASELINES
from seal_lib.knowledge.prompts import Prompts
from seal_lib.knowledge.strategies import Strategy
from seal_lib.loops.domain import Candidate
from seal_lib.loops.inner import ask
from seal_lib.loops.outer import write_self_edits
from seal_lib.loops.policy import Policy
from seal_lib.loops.settings import OuterLoop, Pretraining
from seal_lib.plan import lengths
from seal_lib.plan.lengths import PuzzleLengths
from seal_lib.plan.work import CACHE_TOKENS, ROWS, Phase
from seal_lib.records import Passage, Question, SelfEdit
from seal_lib.runs.lifecycle import Scratch
from seal_lib.runs.work import Count, Recorder
from seal_lib.store import texts
from seal_lib.store.growth import ways
from seal_lib.store.learning import OwnQuestions, learn
from seal_lib.store.review import Lines
from seal_lib.store.schema import Edit
from seal_lib.store.search import Search
from seal_lib.store.texts import Document
from seal_lib.training.jobs import Example, Job, Result

#: share of the self-edits about passages that a filter with a threshold keeps (assumed)
KEPT = 0.5
SEVERAL = 1 << 62  # stands for an unlimited number of positions


def spread(mean: float, number: int) -> int:
    """Return a whole number near ``mean``; over consecutive values of ``number`` their mean is ``mean``."""
    return math.floor((number + 1) * mean) - math.floor(number * mean)


def words(count: float, first: str = "word") -> str:
    return " ".join([first, *["word"] * (round(count) - 1)])


class OfAnotherRun(Exception):
    """Raised where a notebook reads another run: what follows depends on results that a dry run does not have."""


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


class Prompt(str):
    """A prompt that stands for ``times`` prompts of ``tokens`` tokens.

    Args:
        answer: (limit, whether it is to be right) → the completion.
        longest: (rows, limit, whether an adapter answers) → tokens until the last of ``rows`` completions has ended.
        room: tokens of the longest prompt of its kind.
    """

    def __new__(cls, *_: object, **__: object) -> "Prompt":
        return super().__new__(cls, "prompt")

    def __init__(
        self,
        tokens: float,
        answer: Callable[[int, bool], Completion],
        longest: Callable[[int, int, bool], float],
        room: float = 0.0,
        times: float = 1.0,
    ):
        self.tokens, self.answer, self.longest, self.room, self.times = tokens, answer, longest, room or tokens, times


@dataclass(frozen=True)
class Engine:
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


class Bank:
    """A bank that counts what it is given to train (`seal_lib.training.bank.AdapterBank`)."""

    halvings = 0

    def __init__(self, meter: Meter, share: float, *, slots: int, targets: str, tokens_per_step: int | None = None):
        self.meter, self.share, self.slots, self.targets, self.bound = meter, share, slots, targets, tokens_per_step

    def __enter__(self) -> "Bank":
        return self

    def __exit__(self, *_: object) -> None: ...

    def run(self, jobs: Sequence[Job]) -> list[Result]:
        done = []
        for job in jobs:
            sizes = [len(example.ids) for example in job.examples]
            if job.order is None:
                steps, tokens = job.epochs * -(-len(sizes) // job.batch), job.epochs * sum(sizes)
            else:
                steps, tokens = len(job.order), sum(sizes[i] for batch in job.order for i in batch)
            adapter = SimpleNamespace(right=self.meter.right(job.id, self.share))
            done.append(Result(job.id, adapter, [0.0], steps, tokens))
        steps, tokens = sum(r.steps for r in done), sum(r.tokens for r in done)
        batch = jobs[0].batch if jobs[0].order is None else max(map(len, jobs[0].order))
        served = int((self.bound or SEVERAL) // (tokens / steps))
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

    def generator(self) -> Engine:
        return Engine(self.model)

    def bank(self, **settings: Any) -> Bank:
        puzzles = self.model.parameters.get("tasks")
        about = lengths.profile(puzzles) if puzzles else None
        return Bank(self.model, about.kept / about.accepted if about else KEPT, **settings)

    def finetuned(
        self, run: Any, pairs: Sequence[tuple[list[int], list[int]]], outer: OuterLoop, *, name: str, seed: int
    ) -> tuple[Policy, float]:
        tokens, steps = sum(len(asked) + len(text) for asked, text in pairs), -(-len(pairs) // outer.sft_batch)
        self.model.phase = name
        self.model.add(
            "sft",
            len(pairs),
            tokens=outer.sft_epochs * tokens,
            steps=outer.sft_epochs * steps,
            batch=outer.sft_batch,
            targets=outer.sft_targets,
            rank=outer.sft_rank,
        )
        return replace(self, name=name), math.nan

    def pretrained(
        self, documents: Sequence[list[int]], settings: Pretraining, *, seed: int, on_step: object = None
    ) -> tuple[Policy, dict]:
        tokens, steps = sum(map(len, documents)), -(-len(documents) // settings.cpt_batch)
        lora = settings.cpt_method == "lora"
        self.model.add(
            "sft",
            len(documents),
            tokens=settings.cpt_epochs * tokens,
            steps=settings.cpt_epochs * steps,
            batch=settings.cpt_batch,
            targets=settings.cpt_targets,
            rank=settings.cpt_rank if lora else 0,
        )
        return self, {"tokens": tokens, "steps": steps, "first_loss": math.nan, "last_loss": math.nan}


# ---------------------------------------------------------------------------------------------- passages


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
        before = [sum(sizes[:n]) for n in range(len(sizes))]
        left = round(share * sum(sizes))
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


@dataclass(frozen=True, kw_only=True)
class Wording(Prompts):
    """A prompt set whose prompts have recorded lengths.

    The id of a passage begins with its source, and the text of a question is its source.
    """

    meter: Meter

    def write(self, passage: Passage) -> Prompt:
        return self.meter.recorded(passage.id.rpartition("-")[0]).write()

    def ask(self, passage: Passage, question: Question, in_context: bool = False) -> Prompt:
        return self.meter.recorded(question.question).ask(question.times, question.answer, in_context)

    def training_text(self, title: str, text: str) -> str:
        return f"{title}\n{text}"


def load_passages(
    meter: Meter, source: str, count: int, seed: int = 0, start: int = 0, people: int = 0
) -> list[Passage]:
    """Return passages of recorded length; the one question of each stands for all of them."""
    of, found = meter.recorded(source), []
    writers = {row.text.partition(":")[2] for row in BASELINES.values() if row.text.startswith("reference:")}
    for number in range(start, start + count):
        notes = {writer: of.notes_by(writer, number) for writer in writers}
        asked = Several(source, "right", of.text.questions)
        found.append(Passage(f"{source}-{number}", words(of.title), of.body(number), (asked,), notes))
    return found


def prior_passages(source: str, count: int, *_: object, **__: object) -> list[Passage]:
    """Return questions on prior knowledge; a source that is a made world counts like its held-out passages."""
    asked = Several("world:heldout" if source.startswith("world:") else source, "right", 1)
    return [Passage(f"{source}-prior-{number}", "w", "w", (asked,)) for number in range(count)]


def some_questions(passages: Sequence[Passage], count: int | None, seed: int) -> list[Passage]:
    """Return the passages with ``count`` questions in all, spread evenly over them."""
    times = 1.0 if count is None else count / sum(p.questions[0].times for p in passages)
    return [replace(p, questions=(replace(p.questions[0], times=times * p.questions[0].times),)) for p in passages]


def write_texts(
    run: Recorder,
    policy: Policy,
    passages: Sequence[Passage],
    arm: str,
    domain: Knowledge,
    outer: OuterLoop,
    *,
    count: int,
    seed: int,
) -> list[corpus.Text]:
    """Return the texts of an arm.

    A text that relates entities costs as much and is as long as a self-edit; the list of entities is not counted.
    """
    writer = corpus.writer_of(arm)
    if writer.source == "external":
        return [corpus.Text(p.id, arm, i, p.references["external"]) for p in passages for i in range(count)]
    if writer.study is None:
        return corpus.write(run, policy, passages, arm, domain, outer, count=count, seed=seed)
    samples = count * max(1, len(writer.study.groups))
    edits = write_self_edits(run, policy, passages, domain, outer, phase=f"{arm}/relate", seed=seed, samples=samples)
    return [corpus.Text(e.unit_id, e.source, i % count, e.text) for i, e in enumerate(edits)]


class DryStrategy(Strategy):
    """A strategy whose notes are those recorded for the writer that stands for it."""

    def notes(self, passage: Passage, count: int, seed: int) -> list[SelfEdit]:
        text = passage.references.get(self.made or "", passage.references["gold"])
        return [SelfEdit(f"{passage.id}/{self.name}/{k}", passage.id, text, self.arm) for k in range(count)]


def load_strategies(names: Sequence[str], file: str | None = None) -> list[DryStrategy]:
    return [DryStrategy(**vars(strategy)) for strategy in strategies.load(names, file)]


class DryRubric:
    """A rubric that rates the first text best; a judge that it would ask is not counted."""

    def rate(self, pairs: Sequence[tuple[Passage, str]], count: Count) -> list[float]:
        return [1 / (1 + number) for number in range(len(pairs))]


def batches(meter: Meter, source: str, count: int, seed: int) -> Callable[[int], list[Passage]]:
    return lambda index: load_passages(meter, source, count, start=(index - 1) * count)


def read_document(meter: Meter, path: Path, words: int) -> list[Document]:
    """Return a document with as many passages as the real one; they have the recorded lengths of its kind."""
    found = texts.read(path, words)[0]
    return [replace(found, passages=tuple(load_passages(meter, lengths.kind_of(path), len(found.passages))))]


def grow(
    run: Recorder,
    store: "DryStore",
    policy: Policy,
    domain: Knowledge,
    outer: OuterLoop,
    passages: Sequence[Passage],
    sizes: Sequence[int],
    *_: object,
    search: Search | None = None,
    seed: int = 0,
    **__: object,
) -> list:
    """Learn all passages, and at each size ask about the passages so far by every route; return no answers."""
    document = Document("passages", "", "", tuple(passages), ("",) * len(passages))
    learn(run, store, policy, document, domain, outer, OwnQuestions(domain.prompts, 0), seed=seed)
    for size in sizes:
        for way, _ in ways(search).values():
            shown = way in ("retrieval", "both")
            asked = [Candidate(p.id, p, None, "frozen", 0, trains=False, shown=shown) for p in passages[:size]]
            ask(policy, asked, {}, run.count, domain=domain)
    return []


class DryStore:
    """A store that keeps what is learned in memory, without adapters."""

    def __init__(self) -> None:
        self.kept: list[Edit] = []

    def add(self, document: Document) -> None: ...

    def lines(self, weights: str) -> Lines:
        return Lines()

    def edits(self, *states: str, passage: str = "", number: int = 0) -> list[Edit]:
        return []

    def edit(self, number: int) -> Edit:
        return self.kept[number - 1]

    def keep(self, edit: Edit, adapter: object) -> Edit:
        self.kept.append(replace(edit, id=len(self.kept) + 1))
        return self.kept[-1]


# ---------------------------------------------------------------------------------------------- puzzles


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
