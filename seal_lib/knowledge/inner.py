"""The inner loop: self-edit → training documents → one fresh adapter → answers without the passage → a graded Trial.

Many trials go side by side through the adapter bank; nothing of one trial reaches another. The reward of the outer
loop is a function of the Trials made here.
"""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from seal_lib.errors import DataError
from seal_lib.generation.contract import Generator, Request, Sampling
from seal_lib.generation.hf import HFGenerator
from seal_lib.grading import graders
from seal_lib.knowledge.documents import CAPS, PROTOCOLS, TrainingDocument, training_documents
from seal_lib.knowledge.prompts import Prompts
from seal_lib.models.tokens import read_ids
from seal_lib.records import Passage, SelfEdit, Trial
from seal_lib.seeds import derive_seed

#: what the authors' code fixes; their other numbers are searched (Table 3) or told by the label
AUTHORS = {"targets": "qv", "schedule": "linear", "clip": 1.0}
#: what a protocol has unless its label says otherwise (the authors' answers end after 64 tokens at the latest)
_USUAL = {"max_length": 2048, "split_newlines": True, "add_passage": True}


@dataclass(frozen=True)
class InnerLoop:
    """Settings of one adapter's training and questioning (paper Table 3 and facts of the released code).

    ``pad_loss``: ``none``; ``eos`` (one end-of-text target per document); ``full`` (the authors: padded to
    ``max_length``, pads in the loss); ``probe:m`` (m weighted pads standing for all of them).
    ``protocol``: rules from text to documents (:mod:`seal_lib.knowledge.documents`) and which settings may go with
    them; ``document_limit`` is for ``clean``, the authors' cap comes with their protocol.
    ``slots``: adapters trained side by side; 0: as many as the device's memory takes.
    ``grader``: what judges the answers, a key of :data:`~seal_lib.grading.graders.GRADERS`; reward and tables read it.
    """

    lr: float
    epochs: int
    rank: int
    alpha: float
    targets: str
    protocol: str = "clean"
    pad_loss: str = "eos"
    batch: int = 1
    clip: float = 1.0
    schedule: str = "linear"
    max_length: int = 2048
    split_newlines: bool = True
    add_passage: bool = True
    document_limit: int | None = None
    answer_tokens: int = 64
    slots: int = 32
    grader: str = "exact"

    def __post_init__(self):
        graders.check(self.grader)
        if self.protocol not in PROTOCOLS:
            raise DataError(f"protocol: {self.protocol!r} is not one of {', '.join(PROTOCOLS)}.")
        authors = self.protocol != "clean"
        if not re.fullmatch(r"full|probe:[1-9]\d*" if authors else "none|eos", self.pad_loss):
            use = "full or probe:m (64, say)" if authors else "none or eos"
            raise DataError(f"pad_loss: {self.pad_loss!r} does not belong to protocol {self.protocol!r}; use {use}.")
        fixed = AUTHORS if self.document_limit is None else AUTHORS | {"document_limit": CAPS.get(self.protocol)}
        for key, theirs in fixed.items() if authors else ():
            if getattr(self, key) != theirs:
                raise DataError(
                    f"{key}: {getattr(self, key)!r} does not belong to protocol {self.protocol!r}, whose code has "
                    f"{theirs!r}; use that, or protocol clean."
                )

    @property
    def label(self) -> str:
        """What rows of results call this protocol, with all that departs from it: ``authors_v1 (probe:64)``.

        Rows of different labels never share a line of a table.
        """
        usual = _USUAL | ({"answer_tokens": 64} if self.protocol != "clean" else {"document_limit": None})
        departs = [] if self.pad_loss in ("eos", "full") else [self.pad_loss]
        departs += [f"{key}={getattr(self, key)}" for key, value in usual.items() if getattr(self, key) != value]
        return f"{self.protocol} ({', '.join(departs)})" if departs else self.protocol


@dataclass(frozen=True)
class Candidate:
    """A trial to be run: train on ``edit`` (None: the passage alone) with the given seed."""

    id: str
    passage: Passage
    edit: SelfEdit | None
    arm: str
    seed: int


def documents_of(passage: Passage, edit: str | None, prompts: Prompts, settings: InnerLoop) -> list[TrainingDocument]:
    """The texts that one adapter is trained on under these settings; ``edit=None``: the passage alone."""
    return training_documents(
        passage, edit, prompts, settings.split_newlines, settings.add_passage, settings.document_limit,
        settings.protocol,
    )  # fmt: skip


def examples_of(candidate: Candidate, tokenizer, prompts: Prompts, settings: InnerLoop) -> list:
    """The bank's training examples of one candidate; each document is cut at ``max_length`` tokens."""
    from seal_lib.training.bank import pad_examples

    edit = candidate.edit.text if candidate.edit else None
    documents = documents_of(candidate.passage, edit, prompts, settings)
    out = []
    for number, document in enumerate(documents):
        # a control token written out in a text stays text
        ids = read_ids(document.text, tokenizer, split_special_tokens=True)[: settings.max_length]
        out.append(
            pad_examples(
                ids, settings.pad_loss, settings.max_length, tokenizer.eos_token_id,
                derive_seed(candidate.seed, "pads", number),
            )
        )  # fmt: skip
    return out


def train(
    model, tokenizer, candidates: Sequence[Candidate], prompts: Prompts, settings: InnerLoop,
    count: Callable[..., None] | None = None,
) -> list:  # fmt: skip
    """One adapter per candidate, trained side by side: the bank's results in the order of ``candidates``.

    A candidate without any document (an empty self-edit, and the passage left out) gives None. ``count`` is told as
    ``out_of_memory`` how often the bank had to halve itself, if it had to.
    """
    from seal_lib.training.bank import AdapterBank, Job

    jobs = [
        Job(
            id=candidate.id,
            examples=examples,
            lr=settings.lr,
            epochs=settings.epochs,
            rank=settings.rank,
            alpha=settings.alpha,
            batch=settings.batch,
            seed=derive_seed(candidate.seed, "inner loop"),
            schedule=settings.schedule,
            clip=settings.clip,
        )
        for candidate in candidates
        if (examples := examples_of(candidate, tokenizer, prompts, settings))
    ]
    with AdapterBank(model, slots=settings.slots, targets=settings.targets) as bank:
        trained = {result.id: result for result in bank.run(jobs)}
        if count is not None and bank.halvings:
            count(out_of_memory=bank.halvings)
    return [trained.get(candidate.id) for candidate in candidates]


def question_all(
    generator: Generator,
    passages: Sequence[Passage],
    adapters: Sequence,
    prompts: Prompts,
    settings: InnerLoop,
    in_context: bool = False,
) -> list[tuple]:
    """Greedy graded answers to every question of each passage, each passage with its adapter (None: the base).

    Returns one tuple of :class:`~seal_lib.records.Answer` per passage.
    """
    asked = [(i, question) for i, passage in enumerate(passages) for question in passage.questions]
    requests = [Request(prompts.ask(passages[i], question, in_context), adapter=adapters[i]) for i, question in asked]
    stop = (prompts.stop,) if prompts.stop else ()
    texts = generator.generate(requests, Sampling(max_tokens=settings.answer_tokens, stop=stop))
    graded: list[list] = [[] for _ in passages]
    for (i, question), (completion,) in zip(asked, texts, strict=True):
        graded[i].append(graders.grade(question, completion.text.strip(), settings.grader))
    return [tuple(answers) for answers in graded]


def run_trials(
    model, tokenizer, candidates: Sequence[Candidate], prompts: Prompts, settings: InnerLoop, generator=None,
    count: Callable[..., None] | None = None,
) -> list[Trial]:  # fmt: skip
    """Train and question every candidate. A diverged adapter is an outcome with its reason, not an accuracy of zero."""
    generator = generator or HFGenerator(model, tokenizer)
    results = train(model, tokenizer, candidates, prompts, settings, count)
    sound = [i for i, result in enumerate(results) if result and result.outcome == "ok"]
    answers = question_all(
        generator, [candidates[i].passage for i in sound], [results[i].adapter for i in sound], prompts, settings
    )
    answered = dict(zip(sound, answers, strict=True))
    return [_trial(candidates[i], result, answered.get(i, ()), settings.grader) for i, result in enumerate(results)]


def _trial(candidate: Candidate, result, answers: tuple, grader: str) -> Trial:
    empty = candidate.edit is not None and not candidate.edit.text.strip()
    about = {
        "id": candidate.id, "passage_id": candidate.passage.id, "arm": candidate.arm, "edit": candidate.edit,
        "seed": candidate.seed, "answers": answers, "grader": grader,
    }  # fmt: skip
    if result is None:
        return Trial(**about, outcome="empty_edit", reason="nothing to train on")
    return Trial(
        **about,
        outcome="empty_edit" if empty and result.outcome == "ok" else result.outcome,
        reason=result.reason,
        steps=result.steps,
        tokens=result.tokens,
        first_loss=result.losses[0] if result.losses else math.nan,
        last_loss=result.losses[-1] if result.losses else math.nan,
    )


def untrained_trials(
    generator: Generator, passages: Sequence[Passage], arm: str, prompts: Prompts, settings: InnerLoop, in_context: bool
) -> list[Trial]:
    """The rows without training: the frozen model, with or without the passage in context."""
    answers = question_all(generator, passages, [None] * len(passages), prompts, settings, in_context)
    return [
        Trial(f"{arm}/{passage.id}", passage.id, arm, None, 0, given, settings.grader)
        for passage, given in zip(passages, answers, strict=True)
    ]
