"""Rules without a remedy: no training, plain sequential editing at some strength, and joint retraining.

They are the references of the study: what reading the passage achieves, what plain editing forgets, the trade-off
between learning and forgetting that a remedy must beat, and training on everything at once.
"""

import math
from dataclasses import replace

from seal_lib.continual import states as ops
from seal_lib.continual.lab import Lab
from seal_lib.continual.rules.base import Rule, State
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.knowledge.domain import AUTHORS
from seal_lib.training.adapters import Adapter


class Frozen(Rule):
    """theta_k = theta_0. Nothing is learned, nothing forgotten."""

    trains = False
    knobs = {}


class PassageInContext(Frozen):
    """theta_0 answers with the right passage in view, once its turn came (oracle retrieval): the ceiling of reading."""

    stores = "text, oracle"
    single = False


class Rag(Frozen):
    """theta_0 answers with the BM25 top-1 of the first k passages in view; below the threshold without any.

    BM25 is that of Robertson & Zaragoza 2009; the threshold (the share of the question's words that are found) is ours.
    """

    stores = "text"
    single = False
    knobs = {"threshold": 0.5}


class Sequential(Rule):
    """theta_k = theta_{k-1} + dW_k: edits one after the other, pads masked, fp32 sums (SEAL's protocol, cleaned).

    The learning rate is tuned as for every rule: a lower one learns less and forgets less (Biderman et al. 2024), and a
    remedy must beat that trade-off.
    """


class SequentialAuthors(Rule):
    """SEAL as released: q and v only, its rules from text to documents, every document padded to the settings' length
    with pads in the loss.

    `Lab.authors_pads` says how pads enter the loss (the cosine with the full loss is 0.92-0.94 for 16 weighted probes
    and 0.97 for 64). Merges in bf16 and the restart per edit are not imitated.
    """

    def __init__(self, lab: Lab, **knobs: float):
        whole = {"split_newlines": True, "add_passage": True, "document_limit": None}
        theirs = {"protocol": "authors_v1", "pad_loss": lab.authors_pads, **AUTHORS, **whole}
        super().__init__(lab.with_inner(**theirs), **knobs)


class DeltaScaling(Rule):
    """theta_k = theta_{k-1} + dW_k / sqrt(k) (the schedule of SLAO, arXiv 2512.23017, without its initialisation)."""

    def weight(self, k: int) -> float:
        return 1 / math.sqrt(k + 1)


class Joint(Rule):
    """theta_k = theta_0 + dW trained on self-edits 1 … k at once: retraining from scratch after every edit.

    The rank is the same for all k, and the cost grows with k. It is not strictly an upper bound.
    """

    retrains = True
    stores = "text"

    def nothing(self, stream: Stream, k: int) -> bool:
        return all(super(Joint, self).nothing(stream, j) for j in range(k + 1))

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        examples = [example for j in range(k + 1) for example in self.fresh(stream, j)]
        return replace(super().job(stream, State(), k), examples=examples)

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        return State(ops.concatenate([(edit, 1.0)]))
