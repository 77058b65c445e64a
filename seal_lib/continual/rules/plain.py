"""Rules without a remedy: no training at all, plain sequential editing and its strength, and joint retraining.

They are the references of the study: what reading the passage gives, what editing forgets, the frontier of learning
less and forgetting less that every remedy must leave, and training on everything at once.
"""

from __future__ import annotations

import math
from dataclasses import replace

from seal_lib.continual import states as ops
from seal_lib.continual.lab import Lab
from seal_lib.continual.routing import route
from seal_lib.continual.rules.base import Rule, State
from seal_lib.inner_loop import AUTHORS


class Frozen(Rule):
    """theta_k = theta_0. Nothing is learned, nothing forgotten."""

    trains = False


class PassageInContext(Frozen):
    """theta_0 answers with the right passage in view, once its turn came (oracle retrieval): the ceiling of reading."""

    stores = "text, oracle"
    single = False

    def serve(self, stream, state, k, title, question, own):
        return (stream.passages[own] if own is not None and own < k else None), None


class Rag(Frozen):
    """theta_0 answers with the BM25 top-1 of the first k passages in view; below the threshold without any.

    Robertson & Zaragoza 2009 for BM25; the threshold (share of the question's words found) is ours.
    """

    stores = "text"
    single = False
    grid = ({"threshold": 0.5}, {"threshold": 0.0}, {"threshold": 0.4}, {"threshold": 0.6})

    def serve(self, stream, state, k, title, question, own):
        found = route(stream, k, title, question, self.knobs["threshold"])
        return (None if found is None else stream.passages[found]), None


_STRENGTHS = ({"lr_scale": 1.0}, {"lr_scale": 0.5}, {"lr_scale": 2.0}, {"lr_scale": 4.0})


class Sequential(Rule):
    """theta_k = theta_{k-1} + dW_k: edits one after the other, pads masked, fp32 sums (SEAL's protocol, cleaned)."""

    grid = _STRENGTHS


class SequentialAuthors(Rule):
    """SEAL as released: q and v only, its rules from text to documents, every document padded to the settings' length
    with pads in the loss.

    The pads are stood for by 16 weighted probes (cosine 0.92-0.94 with the full loss, bank facts); merges in bf16 and
    the restart per edit are not imitated.
    """

    grid = _STRENGTHS

    def __init__(self, lab: Lab, **knobs: float):
        whole = {"split_newlines": True, "add_passage": True, "document_limit": None}
        theirs = {"protocol": "authors_v1", "pad_loss": "probe:16", **AUTHORS, **whole}
        super().__init__(replace(lab, inner=replace(lab.inner, **theirs)), **knobs)


class LowLr(Rule):
    """Sequential with a smaller step: the frontier every remedy must leave (Biderman et al. 2024, "learns less and
    forgets less")."""

    grid = ({"lr_scale": 0.25}, {"lr_scale": 0.125}, {"lr_scale": 0.375}, {"lr_scale": 0.0625})


class FewEpochs(Rule):
    """Sequential with fewer passes over the documents; the other end of the same frontier."""

    grid = ({"epochs": 4}, {"epochs": 2}, {"epochs": 3}, {"epochs": 6})


class DeltaScaling(Rule):
    """theta_k = theta_{k-1} + dW_k / sqrt(k) (the schedule of SLAO, arXiv 2512.23017, without its initialisation)."""

    grid = _STRENGTHS

    def weight(self, k):
        return 1 / math.sqrt(k + 1)


class Joint(Rule):
    """theta_k = theta_0 + dW trained on self-edits 1 … k at once: retraining from scratch after every edit.

    The same rank for all; cost grows with k. Not strictly an upper bound.
    """

    retrains = True
    stores = "text"
    grid = ({"lr_scale": 1.0}, {"lr_scale": 0.5}, {"lr_scale": 2.0}, {"lr_scale": 1.0, "epochs": 5})

    def job(self, stream, state, k, **more):
        return super().job(stream, State(), k, examples=[e for j in range(k + 1) for e in self.fresh(stream, j)])

    def after(self, stream, state, k, edit):
        return State(ops.concatenate([(edit, 1.0)]))
