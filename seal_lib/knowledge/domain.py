"""Knowledge incorporation as a domain of the loops: a passage, notes about it, closed-book questions.

A self-edit becomes training documents, these train one adapter, and the adapter answers questions without the passage;
each answer is graded by itself.
"""

import itertools
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from seal_lib.errors import DataError, must_be_one_of
from seal_lib.generation.contract import Completion, Request, Sampling
from seal_lib.grading import graders
from seal_lib.grading.judge import Judge
from seal_lib.knowledge.documents import CAPS, PROTOCOLS, TrainingDocument, read_edit, training_documents
from seal_lib.knowledge.prompts import Prompts
from seal_lib.knowledge.rubrics import Rubric
from seal_lib.loops.domain import TOO_LONG, Answers, Candidate, Rejected, Results, job_settings
from seal_lib.loops.policy import Policy
from seal_lib.models.tokens import read_ids, turn_end, written_ids
from seal_lib.records import Answer, Passage, PassageTrial, Question, SelfEdit
from seal_lib.runs.params import RARE
from seal_lib.runs.work import Count
from seal_lib.seeds import derive_seed
from seal_lib.training.jobs import Example, Job, Result, pad_examples

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from seal_lib.training.adapters import Adapter

#: settings that the authors' code fixes; their other numbers are searched (Table 3) or part of the label
AUTHORS = {"targets": "qv", "schedule": "linear", "clip": 1.0}
#: values that a protocol's label does not mention (the authors limit answers to 64 tokens)
_USUAL = {"max_length": 2048, "split_newlines": True, "add_passage": True}


@dataclass(frozen=True)
class InnerLoop:
    """Settings for training one adapter and asking it questions (paper Table 3 and the released code).

    ``pad_loss``: which pads count in the loss: ``none``; ``eos`` (one end-of-text target per document); ``full`` (the
    authors: padded to ``max_length``, all pads count); ``probe:m`` (m weighted pads standing for all of them).
    ``protocol``: the rules from text to documents (`seal_lib.knowledge.documents`), which also restrict other settings;
    ``document_limit`` is for ``clean``, since the authors' limit comes with their protocol.
    ``slots``: adapters trained side by side; 0: as many as fit into the device's memory.
    ``token_limit``: keep the first documents that, together with the passage, have at most so many tokens.
    ``grader``: the grader of answers, a key of `seal_lib.grading.graders.GRADERS`; the reward and the tables use it.
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
    token_limit: int | None = field(default=None, metadata=RARE)

    def __post_init__(self):
        must_be_one_of("grader", self.grader, graders.GRADERS)
        must_be_one_of("protocol", self.protocol, PROTOCOLS)
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
        """The name of this protocol in results, with every setting that departs from it: ``authors_v1 (probe:64)``.

        Rows with different labels never share a line of a table.
        """
        usual = _USUAL | ({"answer_tokens": 64} if self.protocol != "clean" else {"document_limit": None})
        departs = [] if self.pad_loss in ("eos", "full") else [self.pad_loss]
        usual |= {"token_limit": None}
        departs += [f"{key}={getattr(self, key)}" for key, value in usual.items() if getattr(self, key) != value]
        return f"{self.protocol} ({', '.join(departs)})" if departs else self.protocol


def _asked(candidate: Candidate, answers: Sequence[Completion | None]) -> list[tuple[Question, Completion]]:
    """Pair the questions of a candidate that was asked with their answers; raise ValueError if an answer is missing."""
    given = [answer for answer in answers if answer is not None]
    return list(zip(candidate.unit.questions if answers else (), given, strict=True))


def _texts(candidate: Candidate) -> list[str | None]:
    """Return the texts of a candidate's self-edits; ``[None]`` if it has none."""
    return [edit.text if edit else None for edit in (candidate.edit, *candidate.more)]


@dataclass(frozen=True)
class Knowledge:
    """The knowledge domain (`seal_lib.loops.domain.Domain`): its settings and prompts. A unit is a passage.

    ``judge``: where the grader is ``judge``. ``rubric``: rates self-edits by their text, without the inner loop.
    """

    inner: InnerLoop
    prompts: Prompts
    judge: Judge | None = None
    rubric: Rubric | None = None
    name: str = "knowledge"
    max_tries: int = 1
    schema: str | None = None

    @property
    def grader(self) -> str:
        return self.inner.grader

    @property
    def training(self) -> Mapping[str, Any]:
        return {"slots": self.inner.slots, "targets": self.inner.targets}

    @property
    def answering(self) -> Sampling:
        stop = (self.prompts.stop,) if self.prompts.stop else ()
        return Sampling(max_tokens=self.inner.answer_tokens + self.prompts.reasons, stop=stop, skip_long=True)

    @property
    def chunk(self) -> int:
        return 2 * (self.inner.slots or 32)

    def prompt(self, unit: Passage, tokenizer: "PreTrainedTokenizerBase") -> str:
        return self.prompts.write(unit)

    def read(self, unit: Passage, edit: SelfEdit, arm: str, seed: int) -> Candidate | Rejected:
        """Return a written self-edit, with the opening that it was given, as a candidate; every text counts as notes.

        The training seed is derived from ``seed`` and the self-edit's id. A self-edit that could not be written is
        rejected.
        """
        if edit.unwritten:
            return Rejected(TOO_LONG, edit.unwritten)
        whole = replace(edit, text=self.prompts.opened(edit.text))
        return Candidate(edit.id, unit, whole, arm, derive_seed(seed, edit.id, "trial"))

    def rate(self, candidates: Sequence[Candidate], count: Count) -> list[float]:
        """Return the rubric's rating of each self-edit's text, in [0, 1] (`seal_lib.loops.domain.Rates`)."""
        if self.rubric is None:
            raise DataError("reward: rubric and finalists need a rubric; make the domain with rubric=rubric_of(…).")
        return self.rubric.rate([(c.unit, c.edit.text) for c in candidates], count)

    def documents(self, passage: Passage, *edits: str | None) -> list[TrainingDocument]:
        """Return the texts that one adapter is trained on: those of every self-edit, then the passage. An edit of
        ``None`` is the passage alone."""
        inner, found = self.inner, []
        for number, edit in enumerate(edits, 1):
            ends = inner.add_passage and number == len(edits)
            rules = inner.split_newlines, ends, inner.document_limit, inner.protocol
            found += training_documents(passage, edit, self.prompts, *rules)
        return found

    def examples(self, candidate: Candidate, tokenizer: "PreTrainedTokenizerBase") -> list[Example]:
        """Return the bank's training examples for one candidate."""
        job = self.jobs([candidate], tokenizer)[0]
        return [] if isinstance(job, Rejected) else list(job.examples)

    def _within(self, examples: Sequence[Example], limit: int) -> list[Example]:
        """Return the first examples that fit into ``limit`` tokens together with the passage, which is always kept."""
        own = len(examples) - self.inner.add_passage
        sizes = [len(example.ids) for example in (*examples[own:], *examples[:own])]
        fitting = sum(total <= limit for total in itertools.accumulate(sizes)) - self.inner.add_passage
        return [*examples[: max(0, fitting)], *examples[own:]]

    def jobs(self, candidates: Sequence[Candidate], tokenizer: "PreTrainedTokenizerBase") -> list[Job | Rejected]:
        """Return one job per candidate; one without documents (empty self-edit, no passage) is rejected.

        Each document is cut at ``max_length`` tokens; a control token spelled out in a text stays text.
        """
        inner = self.inner
        jobs: list[Job | Rejected] = []
        for candidate in candidates:
            texts = [document.text for document in self.documents(candidate.unit, *_texts(candidate))]
            documents = [read_ids(text, tokenizer, split_special_tokens=True) for text in texts]
            examples = []
            for number, ids in enumerate(documents):
                seed, cut = derive_seed(candidate.seed, "pads", number), ids[: inner.max_length]
                examples.append(pad_examples(cut, inner.pad_loss, inner.max_length, tokenizer.eos_token_id, seed))
            if inner.token_limit is not None:
                examples = self._within(examples, inner.token_limit)
            beyond = sum(max(0, len(ids) - inner.max_length) for ids in documents)
            if not examples:
                jobs.append(Rejected("empty_edit", "nothing to train on"))
                continue
            seed = derive_seed(candidate.seed, "inner loop")
            jobs.append(Job(candidate.id, examples, seed=seed, cut_tokens=beyond, **job_settings(inner)))
        return jobs

    def questions(
        self, candidate: Candidate, adapter: "Adapter | None", tokenizer: "PreTrainedTokenizerBase", positions: int
    ) -> list[Request | None]:
        passage = candidate.unit
        return [Request(self.prompts.ask(passage, q, candidate.shown), adapter=adapter) for q in passage.questions]

    def grade(
        self, candidates: Sequence[Candidate], results: Results, answers: Answers, count: Count
    ) -> list[PassageTrial]:
        """Grade all answers together, and return the trial of each candidate.

        A diverged adapter, or a passage whose every question is longer than the model takes, is an outcome with its
        reason and not an accuracy of zero. A single such question, or one on which the grader gave no verdict, has no
        grade.
        """
        asked = [_asked(*pair) for pair in zip(candidates, answers, strict=True)]
        pairs = [
            (q, self.prompts.answered(given.text)) for own in asked for q, given in own if given.finish != "too_long"
        ]
        graded = iter(graders.grade(pairs, self.grader, self.judge and replace(self.judge, count=count)))
        trials = []
        for candidate, result, own in zip(candidates, results, asked, strict=True):
            long = [given.finish == "too_long" for _, given in own]
            kept = tuple(
                graders.ungraded(q, self.grader) if too_long else next(graded)
                for (q, _), too_long in zip(own, long, strict=True)
            )
            trials.append(self._trial(candidate, result, kept, sum(long)))
        return trials

    def _trial(
        self, candidate: Candidate, result: Result | Rejected | None, answers: tuple[Answer, ...], unasked: int
    ) -> PassageTrial:
        """Return the trial of a candidate with its graded answers, ``unasked`` of which were too long to ask."""
        edit, written, dropped = candidate.edit, False, Counter[str]()
        for text in _texts(candidate):
            rules = self.inner.split_newlines, self.inner.protocol, self.prompts
            pieces, lost = read_edit(text or "", *rules)
            written |= bool(text and text.strip() and pieces)
            dropped.update(lost)
        silent = sum(math.isnan(answer.grades[self.grader]) for answer in answers) - unasked
        left_out = {**dropped} | {
            "cut_tokens": getattr(result, "cut_tokens", 0),
            "questions": unasked,
            "verdicts": silent,
        }
        about = {
            "id": candidate.id,
            "unit_id": candidate.unit.id,
            "arm": candidate.arm,
            "edit": edit,
            "seed": candidate.seed,
            "answers": answers,
            "grader": self.grader,
            "left_out": {kind: n for kind, n in left_out.items() if n},
        }
        if isinstance(result, Rejected):
            return PassageTrial(**about, outcome=result.reason, reason=result.detail)
        if result is not None:
            about |= result.summary()
            if result.outcome != "ok":
                return PassageTrial(**about, outcome=result.outcome, reason=result.reason)
        if answers and unasked == len(answers):
            return PassageTrial(**about, outcome=TOO_LONG, reason="every question is longer than the model takes")
        empty = edit is not None and not written and result is not None
        return PassageTrial(**about, outcome="empty_edit" if empty else "ok")

    def trial(self, edit: SelfEdit, tried: PassageTrial | Rejected) -> PassageTrial:
        """Return the trial of a self-edit; one that was rejected has a trial without answers."""
        if isinstance(tried, Rejected):
            return PassageTrial(
                edit.id, edit.unit_id, edit.source, edit, 0, (), self.grader, tried.reason, tried.detail
            )
        return tried

    def load(self, row: Mapping[str, Any]) -> PassageTrial:
        return PassageTrial.from_dict(row)

    def reward_seeds(self, seed: int, count: int) -> list[int]:
        return [derive_seed(seed, "reward", s) for s in range(count)]

    def target(self, unit: Passage, text: str, policy: Policy) -> tuple[list[int], list[int]]:
        """Return (prompt ids, completion ids). The completion continues the prompt and ends the turn; the opening is
        part of it, so that it is learned."""
        end = turn_end(policy.model, policy.tokenizer)
        prompt = read_ids(self.prompts.unopened.write(unit), policy.tokenizer)
        return prompt, written_ids(self.prompts.opened(text), end, policy.tokenizer)
