"""Rules that hold the weights back: lower layers frozen, or a penalty on dW in the loss (L2 to the base, EWC, O-LoRA).

Knows what each penalty is made of (nothing, a Fisher, the history's A) and when it grows; the `trainer` adds it.
"""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from seal_lib.adapters import target_linears
from seal_lib.continual import states as ops
from seal_lib.continual.rules.base import Rule, State


class FreezeLower(Rule):
    """dW_k = 0 in the lower layers (Zheng et al. 2025, arXiv 2501.13453); `share` of the layers is frozen."""

    grid = ({"share": 0.34}, {"share": 0.67}, {"share": 0.34, "lr_scale": 2.0}, {"share": 0.67, "lr_scale": 2.0})

    def job(self, stream, state, k, **more):
        names = list(target_linears(self.lab.model, self.lab.inner.targets))
        layers = self.lab.model.config.num_hidden_layers
        frozen = {n for n in names if _layer(n) < round(self.knobs["share"] * layers)}
        return super().job(stream, state, k, frozen_layers=frozenset(frozen), **more)


def _layer(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdecimal()), 1 << 30)


class L2(Rule):
    """L = L_k + strength/2 ||theta - theta_0||^2, in dW and not in A and B apart (L2 to the initial weights)."""

    grid = ({"strength": 0.01}, {"strength": 0.003}, {"strength": 0.03}, {"strength": 0.1})

    def job(self, stream, state, k, **more):
        return super().job(stream, state, k, strength=self.knobs["strength"], from_base=True, **more)


class Ewc(Rule):
    """L = L_k + strength/2 sum_w F_w (theta_w - theta_{k-1,w})^2 (Kirkpatrick et al. 2017; in dW: EWC-LoRA 2602.17559).

    F starts as the base's on texts it wrote by itself (true Fisher), adds after each edit that edit's documents
    (empirical), and is scaled to mean 1 over all weights. One dense number per adapted weight is stored.
    """

    stores = "statistics"
    grid = ({"strength": 0.01}, {"strength": 0.003}, {"strength": 0.03}, {"strength": 0.1})

    def job(self, stream, state, k, **more):
        fisher = self._fisher(state)
        mean = sum(f.sum() for f in fisher.values()) / sum(f.numel() for f in fisher.values())
        penalty = {name: f / mean for name, f in fisher.items()}
        return super().job(stream, state, k, penalty=penalty, strength=self.knobs["strength"], **more)

    def _fisher(self, state: State) -> dict[str, Tensor]:
        if state.extra:
            return {name: f.to(self.lab.model.device) for name, f in state.extra.items()}
        if not hasattr(self, "_base"):
            self._base = self.lab.fisher(self.lab.base_texts, None)
        return self._base

    def after(self, stream, state, k, edit):
        done = super().after(stream, state, k, edit)
        fresh = self.lab.fisher(self.texts_of(stream, k), done.history)
        return replace(done, extra={name: f + fresh[name] for name, f in self._fisher(state).items()})


class OLora(Rule):
    """L = L_k + lambda sum_{j<k} sum |A_k A_j^T| (Wang et al. 2023, O-LoRA; the L1 norm is its code's, l2 = 0).

    Old A are the history's own rows, which are never compacted here.
    """

    stores = "statistics"
    grid = ({"lam": 0.5}, {"lam": 0.1}, {"lam": 2.0}, {"lam": 5.0})

    def job(self, stream, state, k, **more):
        return super().job(stream, state, k, orthogonal=self.knobs["lam"], **more)

    def after(self, stream, state, k, edit):
        return replace(state, history=ops.concatenate([(state.history, 1.0), (edit, 1.0)]))
