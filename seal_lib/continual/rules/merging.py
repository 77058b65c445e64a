"""Rules that combine finished edits: the sum or TIES merge of independent edits, a gate on each edit, or a router.

They handle adapters as wholes, which `states` adds and merges.
"""

from collections.abc import Sequence
from dataclasses import replace

import torch

from seal_lib.continual import states as ops
from seal_lib.continual.rules.base import Rule, RuleCost, State
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.training.adapters import Adapter, target_linears, target_names
from seal_lib.training.jobs import Result


class Independent(Rule):
    """dW_k is trained from theta_0, every edit by itself; subclasses define what is served."""

    shared = True
    stores = "adapters"

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        return super().job(stream, replace(state, history=None), k)

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        return self.combined(replace(state, parts=(*state.parts, edit)))

    def unedited(self, stream: Stream, state: State, k: int) -> State:
        linears, job = target_linears(self.lab.model, self.lab.inner.targets), self._job(stream, k, examples=())
        targets = target_names(self.lab.model, self.lab.inner.targets)
        nothing = Adapter(job.rank, job.alpha, targets, job.initial(linears))  # B is zero; later parts keep their index
        return self.after(stream, state, k, nothing)

    def combined(self, state: State) -> State:
        return state


class Merge(Independent):
    """theta_k = theta_0 + scale * sum_j dW_j (task arithmetic, Ilharco et al. 2023); scale = 1/k would be the mean."""

    knobs = {"scale": 0.5, "lr_scale": 1.0}

    def combined(self, state: State) -> State:
        total = ops.concatenate([(part, self.knobs["scale"]) for part in state.parts])
        return replace(state, history=ops.compact(total))


class Ties(Independent):
    """theta_k = theta_0 + scale * TIES(dW_1 … dW_k): trim, elect signs, disjoint mean (Yadav et al. 2023)."""

    knobs = {"density": 0.5, "scale": 1.0, "lr_scale": 1.0}

    def combined(self, state: State) -> State:
        return replace(state, history=ops.ties(state.parts, self.knobs["density"], self.knobs["scale"]))


class IsolationOracle(Independent):
    """theta(q) = theta_0 + dW_{j(q)} with j(q) the question's own passage (MELO, PRAG …; oracle routing)."""

    stores = "adapters, oracle"
    single = False


class Isolation(Independent):
    """theta(q) = theta_0 + dW_{j(q)}, j(q) = BM25 top-1 over the first k passages; below the threshold theta_0 answers.

    A system that can retrieve the adapter could have retrieved the passage: compare it with `rag`.
    """

    stores = "adapters, text"
    single = False
    knobs = {"threshold": 0.5, "lr_scale": 1.0}


class GatedMerge(Rule):
    """theta_k = theta_{k-1} + lambda_k dW_k with the largest lambda in [0.1, 1] (5 bisections, else 0.1) whose
    KL(theta_{k-1} || theta_k) per token on texts theta_{k-1} wrote by itself is within `budget` (after STABLE
    2510.16089).

    It departs from that paper's protocol: the anchors are self-generated texts instead of evaluation questions, lambda
    scales dW itself (not both A and B), and the matrix is measured after the gate.
    """

    knobs = {"budget": 0.1, "lr_scale": 1.0}
    texts = 24
    cost = RuleCost(texts=texts, reads=7.0 * texts)  # the drift is measured at most seven times

    def update(
        self, streams: Sequence[Stream], states: Sequence[State], k: int, results: Sequence[Result]
    ) -> list[State]:
        written = self.own_texts(streams, states, k, self.texts)
        return [
            self._gated(state, result.adapter, texts)
            for state, result, texts in zip(states, results, written, strict=True)
        ]

    def _gated(self, state: State, edit: Adapter, texts: Sequence[list[int]]) -> State:
        teacher = torch.cat(self.lab.logprobs(texts, state.history))

        def scaled(factor: float) -> Adapter | None:
            return ops.compact(ops.concatenate([(state.history, 1.0), (edit, factor)]))

        def drift(factor: float) -> float:
            student = torch.cat(self.lab.logprobs(texts, scaled(factor)))
            return float((teacher.exp() * (teacher - student)).sum(-1).mean())

        low, high = 0.1, 1.0
        if drift(high) <= self.knobs["budget"]:
            return replace(state, history=scaled(high))
        for _ in range(5):
            middle = (low + high) / 2
            low, high = (middle, high) if drift(middle) <= self.knobs["budget"] else (low, middle)
        return replace(state, history=scaled(low))
