"""Rules that hold the weights back: lower layers frozen, or a penalty on dW in the loss (L2 to the base, EWC, O-LoRA).

A rule defines the weights of its penalty (none, a Fisher matrix, the history's A) and when they grow; the `trainer`
adds the penalty to the loss.
"""

import math
from dataclasses import replace
from functools import cached_property

from torch import Tensor

from seal_lib.continual import states as ops
from seal_lib.continual.rules.base import Rule, RuleCost, State
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.training.adapters import Adapter, target_linears


class FreezeLower(Rule):
    """dW_k = 0 in the lower layers (Zheng et al. 2025, arXiv 2501.13453); `share` of the layers is frozen."""

    knobs = {"share": 0.34, "lr_scale": 1.0}

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        frozen = round(self.knobs["share"] * self.lab.model.config.num_hidden_layers)
        names = target_linears(self.lab.model, self.lab.inner.targets)
        return replace(super().job(stream, state, k), frozen_layers=frozenset(n for n in names if _layer(n) < frozen))


def _layer(name: str) -> float:
    return next((int(part) for part in name.split(".") if part.isdecimal()), math.inf)


class L2(Rule):
    """L = L_k + strength/2 ||theta - theta_0||^2, in dW and not in A and B apart (L2 to the initial weights)."""

    knobs = {"strength": 0.03, "lr_scale": 1.0}

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        return replace(super().job(stream, state, k), strength=self.knobs["strength"], from_base=True)


class Ewc(Rule):
    """L = L_k + strength/2 sum_w F_w (theta_w - theta_{k-1,w})^2: online EWC (Schwarz et al. 2018 with gamma = 1, after
    Kirkpatrick et al. 2017), in dW (EWC-LoRA 2602.17559).

    F starts as the base model's Fisher information on texts that it generated (true Fisher). After each edit, that of
    the edit's documents (empirical) is added, so precision accumulates. The unit of F is the base's mean over all
    weights, fixed once. One penalty around the latest weights replaces the original's one penalty per edit. One dense
    number per weight is stored.
    """

    stores = "statistics"
    knobs = {"strength": 0.1, "lr_scale": 1.0}
    cost = RuleCost(reads=30.0)  # dense gradients of the edit's documents: about three forward passes each

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        job = super().job(stream, state, k)
        return replace(job, penalty=self._fisher(state), strength=self.knobs["strength"])

    @cached_property
    def _base(self) -> tuple[dict[str, Tensor], Tensor]:
        """The base's Fisher information, and the unit."""
        fisher = self.lab.fisher(self.lab.base_texts, None)
        unit = sum(f.sum() for f in fisher.values()) / sum(f.numel() for f in fisher.values())
        return {name: f / unit for name, f in fisher.items()}, unit

    def _fisher(self, state: State) -> dict[str, Tensor]:
        return self.kept(state) or self._base[0]

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        done, before = super().after(stream, state, k, edit), self._fisher(state)
        fresh, (_, unit) = self.lab.fisher(self.texts_of(stream, k), done.history), self._base
        return replace(done, extra={name: f + fresh[name] / unit for name, f in before.items()})


class OLora(Rule):
    """L = L_k + lambda sum_{j<k} sum |A_k A_j^T| (Wang et al. 2023, O-LoRA; the L1 norm is its code's, l2 = 0).

    The old A_j are the rows of the history's A, which is therefore never compacted here.
    """

    stores = "statistics"
    knobs = {"lam": 0.1, "lr_scale": 1.0}

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        return replace(super().job(stream, state, k), orthogonal=self.knobs["lam"])

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        return replace(state, history=ops.concatenate([(state.history, 1.0), (edit, 1.0)]))
