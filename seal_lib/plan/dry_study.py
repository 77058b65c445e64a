"""The dry run of the forgetting study: streams of stand-ins, and a lab whose rules train and measure nothing.

A rule declares what it costs beside plain training (`seal_lib.continual.rules.base.RuleCost`). Imports torch, as the
rules do.
"""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from seal_lib.continual.lab import Lab
from seal_lib.continual.rules.base import Rule, State
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.plan import dry, dry_passages
from seal_lib.records import Passage, Question
from seal_lib.training.adapters import Adapter
from seal_lib.training.jobs import Example, Result

_STAND_IN_WEIGHTS = {"all": (torch.zeros(1, 1), torch.zeros(1, 1))}


def load_streams(
    meter: dry.Meter, source: str, count: int, length: int, *, questions: int | None = None, **_: object
) -> list[Stream]:
    """Return ``count`` streams of ``length`` stand-in passages."""
    passages = []
    for passage in dry_passages.load_passages(meter, source, count * length):
        (asked,) = passage.questions
        passages.append(replace(passage, questions=(replace(asked, times=min(questions or asked.times, asked.times)),)))
    groups = [tuple(passages[n * length : (n + 1) * length]) for n in range(count)]
    return [Stream(f"{n:03d}", group, (None,) * length) for n, group in enumerate(groups)]


def with_prior(streams: Sequence[Stream], source: str, count: int, *_: int) -> list[Stream]:
    return [replace(stream, prior=(("w", dry.Several(source, "right", count)),)) for stream in streams]


@dataclass
class DryLab(Lab):
    """A lab whose policy is a `seal_lib.plan.dry.DryPolicy`."""

    @property
    def meter(self) -> dry.Meter:
        return self.policy.model

    @property
    def base_texts(self) -> list[list[int]]:
        with self.meter.once():
            return super().base_texts

    def bank(self, **settings: Any) -> dry.Bank:
        return self.policy.bank(**settings)

    def rule(self, kind: Callable[..., Rule], **knobs: float) -> Rule:
        return DryRule(kind(self, **knobs))

    def logprobs(self, texts: Sequence[Sequence[int]], adapter: Adapter | None, at_once: int = 64) -> list[Tensor]:
        """Count the reading of texts; texts read by the base model alone are read once for all streams."""
        with self.meter.once() if adapter is None else nullcontext():
            self.read(texts, 1)
        return [torch.zeros(1, 1)] * len(texts)

    def read(self, texts: Sequence[Sequence[int]], times: float) -> None:
        about = {"targets": self.inner.targets, "rank": self.inner.rank}
        self.meter.add("read", times * len(texts), tokens=times * sum(map(len, texts)), **about)


class DryRule(Rule):
    """A rule that counts plain training and what ``cost`` declares beside it."""

    def __init__(self, rule: Rule) -> None:
        self.of, self.lab, self.knobs, self.cost = rule, rule.lab, rule.knobs, rule.cost
        self.trains, self.retrains = rule.trains, rule.retrains
        self.begun = False

    def jobs(self, streams: Sequence[Stream], states: Sequence[State], k: int) -> list[EditJob]:
        lab, cost = self.lab, self.cost
        if texts := int(self.knobs.get("texts", cost.texts)):
            self.own_texts(streams, states, k, texts)
        if cost.more in ("anchors", "both"):  # the teacher's distributions
            lab.read(lab.base_texts, len(streams))
        if cost.factors and not self.begun:
            self.begun = True
            with lab.meter.once():
                lab.meter.add("factor", 1, targets=lab.inner.targets)
        return super().jobs(streams, states, k)

    def job(self, stream: Stream, state: State, k: int, **more: object) -> EditJob:
        """Return a job on the edit's documents (all so far, if the rule retrains) and the extra sequences per step."""
        fresh = [e for j in range(0 if self.of.retrains else k, k + 1) for e in self.fresh(stream, j)]
        plain, m, extra = self._job(stream, k, examples=fresh), int(self.knobs.get("m", 0)), []
        for kind in {"both": ("past", "anchors"), "": ()}.get(self.cost.more, (self.cost.more,)):
            past = [self.lab.example(ids) for j in range(k) for ids in self.lab.documents(stream, j)]
            extra.append(past if kind == "past" else [Example(text) for text in self.lab.base_texts])
        if not any(extra):
            return plain
        examples, order = list(fresh), plain.plan()
        for several in filter(None, extra):
            first, n = len(examples), len(several)
            order = [(*step, *(first + (s * m + i) % n for i in range(m))) for s, step in enumerate(order)]
            examples += several
        return replace(plain, examples=examples, order=order)

    def update(
        self, streams: Sequence[Stream], states: Sequence[State], k: int, results: Sequence[Result]
    ) -> list[State]:
        if self.cost.reads:
            self.lab.read(self.lab.base_texts[:1], len(results) * self.cost.reads)
        if self.cost.factors == "edit":
            self.lab.meter.add("factor", len(results), targets=self.lab.inner.targets)
        return [State(Adapter(1, 1.0, ("all",), _STAND_IN_WEIGHTS)) for _ in results]

    def serve(
        self, stream: Stream, state: State, k: int, title: str, question: Question, own: int | None
    ) -> tuple[Passage | None, Adapter | None]:
        """Return the passage of the question if the rule only retrieves and has seen it, and otherwise the adapter."""
        if self.trains or self.of.single or own is None or own >= k:
            return None, state.history
        return stream.passages[own], None
