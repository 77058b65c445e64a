"""Rules that rehearse: replay of earlier documents or of self-generated texts, and distillation (KL) on such texts.

This module mixes memory examples into every step of a job; the `trainer` trains the job.
"""

from collections.abc import Sequence
from dataclasses import replace

from seal_lib.continual.lab import Lab
from seal_lib.continual.rules.base import Rule, RuleCost, State
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import Anchor, EditJob
from seal_lib.seeds import rng
from seal_lib.training.jobs import Example, Job


class Replay(Rule):
    """L = L_k + weight * mean of L over m documents of earlier self-edits, drawn anew each step (Robins 1995).

    Each loss is a mean over its own tokens. The buffer keeps every earlier document, so the rule stores text.
    """

    stores = "text"
    knobs = {"m": 4, "weight": 1.0, "lr_scale": 1.0}
    cost = RuleCost(more="past")

    def memory(self, stream: Stream, state: State, k: int) -> list[list[int]]:
        return past(self.lab, stream, k)

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        plain = super().job(stream, state, k)
        memory = [self.lab.example(ids) for ids in self.memory(stream, state, k)]
        return replace(plain, **mixed(plain, memory, **self.knobs))


def past(lab: Lab, stream: Stream, k: int) -> list[list[int]]:
    """Return the token ids of the documents of all edits before edit k."""
    return [ids for j in range(k) for ids in lab.documents(stream, j)]


def mixed(plain: Job, memory: Sequence[Example], *, m: int, weight: float, **_: float) -> dict[str, object]:
    """Return the ``examples`` and ``order`` of a job with m memory examples in every step, each of weight weight/m."""
    if not memory:
        return {"examples": plain.examples}
    steps, n = plain.plan(), len(plain.examples)
    fresh = [_weighted(example, 1 / plain.batch, 1 / plain.batch) for example in plain.examples]
    old = [_weighted(example, weight / m, 0.0) for example in memory]
    draw = rng(plain.seed, "memory")
    order = [(*step, *(n + i for i in draw.choices(range(len(old)), k=m))) for step in steps]
    return {"examples": [*fresh, *old], "order": order}


def _weighted(example: Example, share: float, denominator: float) -> Example:
    """Return the example with its loss, a mean over its tokens, times ``share``.

    It adds ``denominator`` to the divisor of the step's loss.
    """
    weights = [1.0] * len(example.ids) if example.weights is None else list(example.weights)
    total = sum(weights[1:]) if example.denominator is None else example.denominator
    return replace(example, weights=[w * share / total for w in weights], denominator=denominator)


class GenerativeReplay(Replay):
    """Replay of texts that theta_{k-1} writes by itself just before edit k; nothing is stored (Shin et al. 2017; Marek
    et al. 2605.26097). Temperature 1, from the lab's openings."""

    stores = "nothing"
    knobs = {"m": 4, "weight": 3.0, "texts": 192, "lr_scale": 1.0}
    cost = RuleCost(more="own")

    def jobs(self, streams: Sequence[Stream], states: Sequence[State], k: int) -> list[EditJob]:
        written = self.own_texts(streams, states, k, int(self.knobs["texts"]))
        self._written = {stream.id: texts for stream, texts in zip(streams, written, strict=True)}
        return super().jobs(streams, states, k)

    def memory(self, stream: Stream, state: State, k: int) -> list[list[int]]:
        return self._written[stream.id]


class Kl(Rule):
    """L = L_k + weight * mean_t KL(p_{theta_{k-1}} || p_theta) on m anchors a step (Li & Hoiem 2016, LwF).

    The anchors are texts that the base generated, the same for every stream. The teacher is theta_{k-1}; its outputs
    are cached once per edit.
    """

    knobs = {"m": 4, "weight": 10.0, "lr_scale": 1.0}
    cost = RuleCost(more="anchors")

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        plain, texts = super().job(stream, state, k), self.lab.base_texts
        teachers = self.lab.logprobs(texts, state.history)
        anchors = [Anchor(text, teacher=teacher) for text, teacher in zip(texts, teachers, strict=True)]
        return replace(plain, **mixed(plain, anchors, **self.knobs))


class KlReplay(Kl):
    """L = L_k + replay of past self-edits (m documents, weight 1) + weight * KL to theta_{k-1} on base anchors."""

    stores = "text"
    knobs = {"m": 3, "weight": 1.0, "lr_scale": 1.0}
    cost = RuleCost(more="both")

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        job, m = super().job(stream, state, k), int(self.knobs["m"])
        old = [_weighted(self.lab.example(ids), 1 / m, 0.0) for ids in past(self.lab, stream, k)]
        if not old:
            return job
        n, draw = len(job.examples), rng(job.seed, "past")
        order = [(*step, *(n + i for i in draw.choices(range(len(old)), k=m))) for step in job.plan()]
        return replace(job, examples=[*job.examples, *old], order=order)
