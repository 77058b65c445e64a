"""Rules that keep dW out of a subspace of inputs: null spaces of the base's texts and of past edits, and InfLoRA.

A rule decides which directions each group of layers protects and when they grow; the `trainer` projects.
"""

import math
from dataclasses import replace
from functools import cached_property

import torch
from torch import Tensor

from seal_lib.continual.lab import basis
from seal_lib.continual.rules.base import Rule, RuleCost, State
from seal_lib.continual.rules.rehearsal import Replay
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.training.adapters import Adapter, target_linears


class NullSpaceCalibration(Rule):
    """A_k <- A_k (I - U U^T) after every step, so that dW_k x = 0 for x in span U: inputs of the base's own texts.

    There is one U per group of layers that read the same tensor: the directions that hold `energy` of the squared
    inputs of the texts that the base generated (AlphaEdit 2410.02355 in spirit; GPM, Saha et al. 2021, for the
    criterion).
    """

    stores = "statistics"
    knobs = {"energy": 0.9, "lr_scale": 1.0}
    cost = RuleCost(factors="once")

    @cached_property
    def _base(self) -> dict[str, Tensor]:
        inputs = self.lab.inputs(self.lab.base_texts, None)
        return {name: basis(x, self.knobs["energy"]) for name, x in inputs.items()}

    def spaces(self, state: State) -> dict[str, Tensor]:
        return self.kept(state) or self._base

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        spaces = self.spaces(state)
        protect = {name: spaces[names[0]] for names in self.lab.groups for name in names}
        return replace(super().job(stream, state, k), protect=protect)


class NullSpace(NullSpaceCalibration):
    """Null space of the base's texts and of every earlier edit's documents: U grows after each edit to hold `past` of
    the energy of that edit's inputs (GPM, Saha et al. 2021). Stores directions, no text."""

    knobs = {"energy": 0.8, "past": 0.95, "lr_scale": 1.0}
    cost = RuleCost(factors="edit")

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        done = super().after(stream, state, k, edit)
        inputs = self.lab.inputs(self.texts_of(stream, k), done.history)
        spaces, past = self.spaces(state), self.knobs["past"]
        return replace(done, extra={name: basis(x, past, spaces.get(name)) for name, x in inputs.items()})


class NullSpaceReplay(NullSpaceCalibration, Replay):
    """Null space of the base's own texts, and replay of past self-edits: the one guards what was known before, the
    other what was edited in."""

    stores = "text, statistics"
    knobs = {"energy": 0.8, "m": 2, "weight": 1.0, "lr_scale": 1.0}
    cost = RuleCost(more="past", factors="once")


class InfLora(NullSpace):
    """A_k fixed to the top right singular vectors of (I - U U^T) X_k, only B_k trained (Liang & Li 2024, InfLoRA).

    X_k are the inputs of the edit's documents under theta_{k-1}. As in the original, U is empty at first and grows by
    earlier edits only, so nothing protects what the base knew. The rows are scaled to the norm of PEFT's initial A. The
    growing U of `NullSpace` replaces the paper's DualGPM bookkeeping.
    """

    knobs = {"past": 0.95, "lr_scale": 1.0}
    _base: dict[str, Tensor] = {}  # U is empty at first

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        inner, lab = self.lab.inner, self.lab
        inputs = lab.inputs(self.texts_of(stream, k), state.history)
        linears, spaces, weights = target_linears(lab.model, inner.targets), self.spaces(state), {}
        for names in lab.groups:
            x, u = inputs[names[0]], spaces.get(names[0])
            free = x if u is None else x - (x @ u) @ u.mT
            top = torch.linalg.svd(free, full_matrices=False).Vh[: inner.rank]
            for name in names:
                a = torch.zeros(inner.rank, linears[name].in_features)
                a[: len(top)] = top / math.sqrt(3)  # rows of kaiming_uniform(sqrt 5): variance 1/(3 in) an entry
                weights[name] = (a, torch.zeros(linears[name].out_features, inner.rank))
        start = Adapter(inner.rank, inner.alpha, tuple(n.rpartition(".")[2] for n in linears), weights)
        return replace(Rule.job(self, stream, state, k), init=start, frozen_a=True)  # A lies in the free space already
