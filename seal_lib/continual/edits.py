"""One edit of some streams: the rule trains it, all questions are asked, and the weights are kept for the next edit.

A row records which questions were answered right. The folder of an arm holds the weights after the last two edits until
the arm is done, so a killed run continues after the last finished edit, and several workers can take turns with a
stream.
"""

import json
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from seal_lib.continual import states as ops
from seal_lib.continual.arm import Arm
from seal_lib.continual.lab import Lab
from seal_lib.continual.rules.base import State
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.errors import DataError, RunError
from seal_lib.generation.contract import Request, Sampling
from seal_lib.grading.graders import grade
from seal_lib.loops.policy import Policy
from seal_lib.models import SMALL
from seal_lib.records import Passage
from seal_lib.runs.work import Count
from seal_lib.training.jobs import Result

#: graders with a verdict of right or wrong, since a row holds one digit per answer
VERDICTS = ("exact", "contains")


@dataclass(frozen=True)
class EditUnit:
    """Edit ``k`` of a stream; k = 0 is the unedited model."""

    id: str
    k: int
    stream: Stream


@dataclass(frozen=True)
class ArmWork:
    """The work of an arm as another process can be told it: everything but weights.

    ``lab``: `Lab.settings`. ``folder`` keeps the weights of its streams.
    """

    arm: Arm
    lab: dict[str, Any]
    writing: Sampling | None
    full_rows: tuple[int, ...] | None
    folder: Path | None


#: policy -> the arm that this process is working on
_at_work: dict[str, "Edits"] = {}


@contextmanager
def at_work(settings: ArmWork, lab: Lab) -> Iterator["Edits"]:
    """Yield the edits of an arm on a lab that this process has; `edit` finds them within the block."""
    edits = _at_work[lab.policy.name] = Edits(settings, lab)
    try:
        yield edits
    finally:
        _at_work.pop(lab.policy.name, None)


def edit(policy: Policy, part: Sequence[EditUnit], count: Count, *, settings: ArmWork) -> list[dict]:
    """Return the rows of one edit of some streams; a worker makes the rule of an arm once, and the lab for all arms."""
    edits = _at_work.get(policy.name)
    if edits is None or edits.settings != settings or edits.lab.model is not policy.model:
        same = edits is not None and edits.settings.lab == settings.lab and edits.lab.model is policy.model
        edits = _at_work[policy.name] = Edits(settings, edits.common if same else Lab(policy, **settings.lab))
    return edits(part, count)


class Edits:
    """The edits of an arm: called with the units of one edit of some streams."""

    def __init__(self, settings: ArmWork, lab: Lab) -> None:
        self.settings, self.arm, self.writing, self.folder = settings, settings.arm, settings.writing, settings.folder
        self.full_rows, self.common, self.rule = settings.full_rows, lab, settings.arm.make(lab)
        self.lab = self.rule.lab
        self.grader = self.lab.inner.grader
        if self.grader not in VERDICTS:
            raise DataError(f"grader: {self.grader!r} is no verdict on an answer; use one of {', '.join(VERDICTS)}.")
        self.trains = self.rule.trains
        self.memory: dict[tuple[str, int], tuple[State, tuple[str | None, ...]]] = {}

    def spoiled(self) -> bool:
        """Return whether weights that a killed run kept are damaged, in which case the arm must be run again."""
        for file in sorted(self.folder.rglob("*.safetensors")) if self.folder else ():
            try:
                ops.load(file)
            except DataError as error:
                print(f"{error} The arm {self.arm.name} is made again.", flush=True)
                return True
        return False

    def clear(self) -> None:
        """Delete the arm's weights, which are not needed once it is done."""
        self.memory.clear()
        if self.folder is not None:
            shutil.rmtree(self.folder, ignore_errors=True)

    def __call__(self, units: Sequence[EditUnit], count: Count) -> list[dict]:
        k, self.count = units[0].k, count
        # where several workers take turns, this one may never get the next edit of a stream
        self.memory = {at: kept for at, kept in self.memory.items() if at[1] >= k - 1}
        skips = self.rule.retrains and not self.arm.live  # the model after edit k-1 writes live self-edit k
        if skips and k and self.full_rows is not None and k not in self.full_rows:
            for unit in units:
                self._remember(unit.stream, State(), k)
            nothing = [{"right": [None] * len(unit.stream)} for unit in units]
            return [self._row(row, self._empty(u.stream, k - 1)) for row, u in zip(nothing, units, strict=True)]
        before = [self._recall(unit.stream, k - 1) if k else (State(), unit.stream.edits) for unit in units]
        streams = [replace(u.stream, edits=edits) for u, (_, edits) in zip(units, before, strict=True)]
        states = [state for state, _ in before]
        alive = [i for i, state in enumerate(states) if state is not None]
        about: list[dict] = [{} for _ in units]
        if k and self.trains:
            if self.arm.live:
                for i, text in zip(alive, self._write(streams, states, alive, k - 1), strict=True):
                    edits = streams[i].edits
                    streams[i] = replace(streams[i], edits=(*edits[: k - 1], text, *edits[k:]))
            states, about = self._train(streams, states, alive, k - 1)
        for stream, state in zip(streams, states, strict=True):
            self._remember(stream, state, k)
        asked = [i for i, state in enumerate(states) if state is not None]
        answers = dict(zip(asked, self._ask(streams, states, asked, k), strict=True))
        return [self._row(answers.get(i), about[i]) for i in range(len(units))]

    # training

    def _train(
        self, streams: list[Stream], states: list[State | None], alive: Sequence[int], k: int
    ) -> tuple[list[State | None], list[dict]]:
        """Return the states after edit k (0-based), None where it diverged, and training facts for the rows.

        A stream with nothing to train on keeps its weights.
        """
        begun = time.process_time()
        rule, about, states = self.rule, [{} for _ in streams], list(states)
        trained = [i for i in alive if not rule.nothing(streams[i], k)]
        jobs = rule.jobs([streams[i] for i in trained], [states[i] for i in trained], k)
        results, elsewhere = self._results(jobs)
        done = [(i, result) for i, result in zip(trained, results, strict=True) if result.outcome == "ok"]
        kept = [i for i, _ in done]
        after = rule.update([streams[i] for i in kept], [states[i] for i in kept], k, [result for _, result in done])
        new = dict(zip(kept, after, strict=True))
        for i in set(alive) - set(trained):
            new[i], about[i] = rule.unedited(streams[i], states[i], k), {"steps": 0, "tokens": 0}
        for i, result in zip(trained, results, strict=True):
            about[i] = {"steps": result.steps, "tokens": result.tokens, "loss": result.losses[-1]}
            if result.outcome != "ok":
                about[i]["reason"] = result.reason
        for i in new:
            about[i] |= self._empty(streams[i], k)
        self.count(
            edits=len(alive),
            train_seconds=time.process_time() - begun + elsewhere,
            trained=sum(r.tokens for r in results),
        )
        return [new.get(i) for i in range(len(streams))], about

    def _empty(self, stream: Stream, k: int) -> dict[str, str]:
        """Return the outcome and reason for the row of edit k (0-based) if its self-edit is empty, else {}."""
        documents = self.lab.domain.documents(stream.passages[k], stream.edits[k])
        if documents and stream.edits[k].strip():
            return {}
        reason = "the self-edit is empty: the passage alone" if documents else "nothing to train on"
        return {"outcome": "empty_edit", "reason": reason}

    def _results(self, jobs: Sequence[EditJob]) -> tuple[list[Result], float]:
        """Train jobs; return the results, and the CPU seconds that another arm has already spent on them.

        Independent edits are the same jobs in several arms; while the model is small, their results are cached and
        reused.
        """
        keys = [_fingerprint(job, self.lab.inner.targets) for job in jobs] if self.rule.shared else []
        if self.rule.shared and all(key in self.lab.cache for key in keys):
            found = [self.lab.cache[key] for key in keys]
            return [result for result, _ in found], sum(seconds for _, seconds in found)
        begun = time.process_time()
        with self.lab.bank(slots=max(1, len(jobs)), targets=self.lab.inner.targets) as bank:
            results = bank.run(jobs)
        spent = (time.process_time() - begun) / max(1, len(jobs))
        if self.rule.shared and sum(p.numel() for p in self.lab.model.parameters()) < SMALL:
            self.lab.cache |= {key: (result, spent) for key, result in zip(keys, results, strict=True)}
        return results, 0.0

    def _write(self, streams: list[Stream], states: list[State | None], alive: Sequence[int], k: int) -> list[str]:
        """Return the self-edits for passage k, each written by its stream's own current model."""
        requests = [
            Request(
                self.lab.domain.prompt(streams[i].passages[k], self.lab.tokenizer),
                streams[i].seed(k, "self-edit"),
                states[i].history,
            )
            for i in alive
        ]
        return [done.text.strip() for (done,) in self.lab.generator.generate(requests, self.writing)]

    # measuring

    def _ask(self, streams: list[Stream], states: list[State | None], asked: Sequence[int], k: int) -> list[dict]:
        prompts, requests, golds = self.lab.domain.prompts, [], []
        full = self.full_rows is None or k in self.full_rows
        for i in asked:
            stream, state = streams[i], states[i]
            passages = [(own, p) for own, p in enumerate(stream.passages) if full or own == k - 1]
            questions = [(p.title, q, own) for own, p in passages for q in p.questions]
            questions += [(title, q, None) for title, q in stream.prior if full]
            for title, question, own in questions:
                shown, adapter = self.rule.serve(stream, state, k, title, question, own)
                passage = Passage("asked", title, shown.text if shown else "", (question,))
                requests.append(Request(prompts.ask(passage, question, shown is not None), adapter=adapter))
                golds.append((i, own, question))
        answered = self.lab.complete(requests, replace(self.lab.domain.answering, skip_long=False))
        right: dict[tuple, str] = {}
        blank: dict[tuple, str] = {}
        for (i, own, question), completion in zip(golds, answered, strict=True):
            (answer,) = grade([(question, completion.text.strip())], self.grader)
            right[i, own] = right.get((i, own), "") + str(int(answer.grades[self.grader]))
            blank[i, own] = blank.get((i, own), "") + str(int(answer.blank))
        self.count(scored=len(requests))
        return [
            {
                "right": [right.get((i, own)) for own in range(len(streams[i]))],
                "blank": [blank.get((i, own)) for own in range(len(streams[i]))],
                "prior": right.get((i, None), ""),
                "prior_blank": blank.get((i, None), ""),
                "norm": ops.update_norm(states[i].history) if full else None,
                "drift": self._drift(states[i]) if full else None,
                "stored": ops.bytes_of(states[i].history, *states[i].parts)
                + sum(x.numel() * x.element_size() for x in states[i].extra.values()),
            }
            for i in asked
        ]

    @cached_property
    def _anchors(self) -> tuple[list[list[int]], torch.Tensor]:
        """A quarter of the texts that the base generated, and its log-probabilities on them [tokens, vocabulary]."""
        texts = self.lab.base_texts[::4]
        return texts, torch.cat(self.lab.logprobs(texts, None))

    def _drift(self, state: State) -> float:
        """Return KL(theta_0 || theta_k) per token."""
        if state.history is None:
            return 0.0
        texts, base = self._anchors
        now = torch.cat(self.lab.logprobs(texts, state.history))
        return float((base.exp() * (base - now)).sum(-1).mean())

    def _row(self, answers: dict | None, about: dict) -> dict:
        if answers is None:
            return {"outcome": "diverged", **about}
        return {"outcome": "ok", **answers, **about}

    # remembering

    def _path(self, stream: Stream, k: int) -> Path:
        return self.folder / stream.id / f"edit_{k}.safetensors"

    def _remember(self, stream: Stream, state: State | None, k: int) -> None:
        self.memory[stream.id, k] = (state, stream.edits)
        self.memory.pop((stream.id, k - 1), None)
        if self.folder is None or not k or not self.trains:
            return
        about = {"diverged": str(state is None), "edits": json.dumps(stream.edits if self.arm.live else None)}
        state = state or State()
        parts = {f"part {n}": part for n, part in enumerate(state.parts)}
        ops.save(self._path(stream, k), {"history": state.history, **parts}, state.extra, about)
        self._path(stream, k - 2).unlink(missing_ok=True)

    def _recall(self, stream: Stream, k: int) -> tuple[State | None, tuple[str | None, ...]]:
        if (stream.id, k) in self.memory:
            return self.memory[stream.id, k]
        if not k or not self.trains:
            return State(), stream.edits
        path = self._path(stream, k) if self.folder else None
        if path is None or not path.is_file():
            raise RunError(f"arm {self.arm.name!r}: the weights of {stream.id} after edit {k} are gone; use FORCE=1.")
        adapters, extra, about = ops.load(path)
        written = json.loads(about["edits"])
        edits = stream.edits if written is None else tuple(written)
        if about["diverged"] == "True":
            return None, edits
        parts = tuple(adapters[f"part {n}"] for n in range(sum(key.startswith("part ") for key in adapters)))
        return State(adapters.get("history"), parts, extra), edits


def _fingerprint(job: EditJob, targets: object) -> tuple:
    """Return everything that determines the result of a job without history or extra terms."""
    settings = (job.lr, job.epochs, job.rank, job.alpha, job.batch, job.seed, job.schedule, job.clip)
    return (job.id, str(targets), settings, tuple((tuple(e.ids), e.denominator) for e in job.examples))
