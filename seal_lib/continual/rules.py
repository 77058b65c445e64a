"""Update rules: how theta_k comes from theta_{k-1} and self-edit k. One registry, `RULES`; each row a small class.

Notation: dW_k = s B_k A_k is what edit k trains, L_k its loss (the inner loop's), theta_k = theta_0 + sum of the
history. ``stores`` says what is kept beside the weights. Evaluation questions reach no rule; the draws of an edit come
from (stream, step) alone, so arms differ by their rule and not by luck. References are given with each row; the forms
are those of the study plan, where a paper leaves a choice the docstring says which was made.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from seal_lib.adapters import Adapter, target_linears
from seal_lib.continual import states as ops
from seal_lib.continual.lab import Lab, basis
from seal_lib.continual.routing import BM25
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import Anchor, EditJob
from seal_lib.finetune import Example, Job, Result
from seal_lib.records import Passage, Question
from seal_lib.seeds import rng


@dataclass
class State:
    """A stream after some edits: the weights it serves, independent edits if the rule keeps them, and its tensors."""

    history: Adapter | None = None
    parts: tuple[Adapter, ...] = ()
    extra: dict[str, Tensor] = field(default_factory=dict)


class Rule:
    """theta_k = theta_{k-1} + dW_k, dW_k = argmin L_k from theta_{k-1}: plain sequential training.

    Attributes:
        trains: False for references. shared: see `Independent`. retrains: see `Joint`.
        stores: nothing, text, statistics or adapters (beside the one set of weights).
        single: the model is one set of weights and needs no passage at answering time.
        grid: knob settings tried on development streams; the first is the default. ``lr_scale`` multiplies the inner
            loop's learning rate, ``epochs`` replaces its epochs.
    """

    trains = True
    shared = False  # edits that do not depend on the rule or the past; several arms train the same ones
    retrains = False  # from the base with everything so far: an edit that is not measured need not be made
    stores = "nothing"
    single = True
    grid: tuple[dict, ...] = ({},)

    def __init__(self, lab: Lab, **knobs: float):
        known = {key for row in self.grid for key in row}
        unknown = set(knobs) - known - {"lr_scale", "epochs"}
        if unknown:
            from seal_lib.errors import ParameterError

            raise ParameterError(f"{type(self).__name__} has no knob {sorted(unknown)[0]!r}; it has {sorted(known)}.")
        self.knobs = dict(self.grid[0]) | knobs
        inner = {"lr": lab.inner.lr * self.knobs["lr_scale"]} if "lr_scale" in self.knobs else {}
        inner |= {"epochs": int(self.knobs["epochs"])} if "epochs" in self.knobs else {}
        self.lab = replace(lab, inner=replace(lab.inner, **inner)) if inner else lab

    # training

    def jobs(self, streams: Sequence[Stream], states: Sequence[State], k: int) -> list[EditJob]:
        """The training of edit k (0-based) of every stream."""
        return [self.job(stream, state, k) for stream, state in zip(streams, states, strict=True)]

    def job(self, stream: Stream, state: State, k: int, **more: object) -> EditJob:
        """Plain training on the documents of edit k on top of the state's history."""
        fresh = self.fresh(stream, k)
        more = {"history": state.history, "examples": fresh} | more
        return self._job(stream, k, **more)

    def fresh(self, stream: Stream, k: int) -> list[Example]:
        return [self.lab.example(ids, stream.seed(k, "pads", n)) for n, ids in enumerate(self.lab.documents(stream, k))]

    def _job(self, stream: Stream, k: int, **more: object) -> EditJob:
        inner = self.lab.inner
        return EditJob(
            **{
                "id": f"{stream.id}/{k + 1}", "lr": inner.lr, "epochs": inner.epochs, "rank": inner.rank,
                "alpha": inner.alpha, "batch": inner.batch, "seed": stream.seed(k, "inner loop"),
                "schedule": inner.schedule, "clip": inner.clip, **more,
            }
        )  # fmt: skip

    def update(self, streams: Sequence[Stream], states: Sequence[State], k: int, results: Sequence[Result]):
        """The states after edit k."""
        return [
            self.after(stream, state, k, result.adapter)
            for stream, state, result in zip(streams, states, results, strict=True)
        ]

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        return replace(state, history=ops.compact(ops.concatenate([(state.history, 1.0), (edit, self.weight(k))])))

    def weight(self, k: int) -> float:
        """The factor of edit k."""
        return 1.0

    # answering

    def serve(
        self, stream: Stream, state: State, k: int, title: str, question: Question, own: int | None
    ) -> tuple[Passage | None, Adapter | None]:
        """After k edits: the passage to show with a question (None: none), and the adapter that answers it.

        ``own``: the number of the question's passage, None for prior knowledge; only oracles may look at it.
        """
        return None, state.history


# --- references without training ----------------------------------------------------------------------------------


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


_INDEX: dict[tuple, BM25] = {}


def route(stream: Stream, k: int, title: str, question: Question, threshold: float) -> int | None:
    """The number of the passage among the first k that the question (with its title) is about, or None."""
    key = tuple(f"{p.title} {p.text}" for p in stream.passages[:k])
    if key not in _INDEX:
        if len(_INDEX) > 1024:
            _INDEX.clear()
        _INDEX[key] = BM25(key)
    return _INDEX[key].best(f"{title} {question.question}", threshold)


# --- sequential and its frontier ----------------------------------------------------------------------------------

_STRENGTHS = ({"lr_scale": 1.0}, {"lr_scale": 0.5}, {"lr_scale": 2.0}, {"lr_scale": 4.0})


class Sequential(Rule):
    """theta_k = theta_{k-1} + dW_k: edits one after the other, pads masked, fp32 sums (SEAL's protocol, cleaned)."""

    grid = _STRENGTHS


class SequentialAuthors(Rule):
    """SEAL as released: q and v only, every document padded to the settings' length with pads in the loss.

    The pads are stood for by 16 weighted probes (cosine 0.92-0.94 with the full loss, bank facts); merges in bf16 and
    the restart per edit are not imitated.
    """

    grid = _STRENGTHS
    pads = "probe:16"

    def __init__(self, lab: Lab, **knobs: float):
        super().__init__(replace(lab, inner=replace(lab.inner, targets="qv")), **knobs)

    def fresh(self, stream, k):
        documents = self.lab.documents(stream, k)
        return [self.lab.example(ids, stream.seed(k, "pads", n), self.pads) for n, ids in enumerate(documents)]


class LowLr(Rule):
    """Sequential with a smaller step: the frontier every remedy must leave (Biderman et al. 2024, "learns less and
    forgets less")."""

    grid = ({"lr_scale": 0.25}, {"lr_scale": 0.125}, {"lr_scale": 0.375}, {"lr_scale": 0.0625})


class FewEpochs(Rule):
    """Sequential with fewer passes over the documents; the other end of the same frontier."""

    grid = ({"epochs": 4}, {"epochs": 2}, {"epochs": 3}, {"epochs": 6})


class DeltaScaling(Rule):
    """theta_k = theta_{k-1} + dW_k / sqrt(k) (the schedule of SLAO, arXiv 2512.23017, without its initialisation)."""

    grid = ({"lr_scale": 1.0}, {"lr_scale": 0.5}, {"lr_scale": 2.0}, {"lr_scale": 4.0})

    def weight(self, k):
        return 1 / math.sqrt(k + 1)


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


# --- rehearsal ----------------------------------------------------------------------------------------------------


class Replay(Rule):
    """L = L_k + weight * mean of L over m documents of earlier self-edits, drawn anew each step (Robins 1995).

    Each loss is a mean over its own tokens. The buffer holds every earlier document: it stores text.
    """

    stores = "text"
    grid = ({"m": 2, "weight": 1.0}, {"m": 4, "weight": 1.0}, {"m": 2, "weight": 3.0}, {"m": 4, "weight": 3.0})

    def memory(self, stream: Stream, state: State, k: int) -> list[list[int]]:
        return [ids for j in range(k) for ids in self.lab.documents(stream, j)]

    def job(self, stream, state, k, **more):
        fresh = more.pop("fresh", None) or self.fresh(stream, k)
        memory = [self.lab.example(ids) for ids in self.memory(stream, state, k)]
        return super().job(
            stream, state, k, **mixed(self._job(stream, k, examples=fresh), memory, **self.knobs), **more
        )


def mixed(plain: Job, memory: Sequence[Example], m: int, weight: float, **_: float) -> dict[str, object]:
    """``examples`` and ``order`` of a job that adds m drawn memory examples, with weight/m each, to every step."""
    if not memory:
        return {"examples": plain.examples}
    steps, n = plain.plan(), len(plain.examples)
    fresh = [_weighted(example, 1 / plain.batch, 1 / plain.batch) for example in plain.examples]
    old = [_weighted(example, weight / m, 0.0) for example in memory]
    draw = rng(plain.seed, "memory")
    order = [(*step, *(n + i for i in draw.choices(range(len(old)), k=m))) for step in steps]
    return {"examples": [*fresh, *old], "order": order}


def _weighted(example: Example, share: float, denominator: float) -> Example:
    """The example with its loss (a mean over its tokens) times ``share``, adding ``denominator`` to the divisor."""
    weights = [1.0] * len(example.ids) if example.weights is None else list(example.weights)
    total = sum(weights[1:]) if example.denominator is None else example.denominator
    return replace(example, weights=[w * share / total for w in weights], denominator=denominator)


class GenerativeReplay(Replay):
    """Replay of texts that theta_{k-1} writes by itself just before edit k; nothing is stored (Shin et al. 2017; Marek
    et al. 2605.26097). Temperature 1, from the lab's openings."""

    stores = "nothing"
    grid = (
        {"m": 2, "weight": 1.0, "texts": 96}, {"m": 4, "weight": 1.0, "texts": 96},
        {"m": 4, "weight": 3.0, "texts": 96}, {"m": 4, "weight": 3.0, "texts": 192},
    )  # fmt: skip

    def jobs(self, streams, states, k):
        seeds = [stream.seed(k, "own texts") for stream in streams]
        written = self.lab.write([state.history for state in states], int(self.knobs["texts"]), seeds)
        self._written = {s.id: [t for t in w if len(t) > 1] for s, w in zip(streams, written, strict=True)}
        return super().jobs(streams, states, k)

    def memory(self, stream, state, k):
        return self._written[stream.id]


class Kl(Rule):
    """L = L_k + weight * mean_t KL(p_{theta_{k-1}} || p_theta) on m anchors a step (Li & Hoiem 2016, LwF).

    Anchors: texts the base wrote by itself, the same for every stream. Teacher: theta_{k-1}, cached once per edit.
    """

    grid = ({"m": 4, "weight": 1.0}, {"m": 4, "weight": 3.0}, {"m": 4, "weight": 10.0}, {"m": 4, "weight": 0.3})

    def taught(self, stream: Stream, state: State, k: int) -> list[Anchor]:
        texts = self.lab.base_texts
        teachers = self.lab.logprobs(texts, state.history)
        return [Anchor(text, teacher=teacher) for text, teacher in zip(texts, teachers, strict=True)]

    def job(self, stream, state, k, **more):
        plain = self._job(stream, k, examples=self.fresh(stream, k))
        return super().job(stream, state, k, **mixed(plain, self.taught(stream, state, k), **self.knobs), **more)


class KlReplay(Kl):
    """L = L_k + replay of past self-edits (m documents, weight 1) + weight * KL to theta_{k-1} on base anchors."""

    stores = "text"
    grid = ({"m": 3, "weight": 1.0}, {"m": 3, "weight": 0.3}, {"m": 3, "weight": 3.0}, {"m": 3, "weight": 0.1})

    def job(self, stream, state, k, **more):
        plain = self._job(stream, k, examples=self.fresh(stream, k))
        past = [self.lab.example(ids) for j in range(k) for ids in self.lab.documents(stream, j)]
        m, both = int(self.knobs["m"]), mixed(plain, self.taught(stream, state, k), **self.knobs)
        if past:
            n, draw = len(both["examples"]), rng(plain.seed, "past")
            both["examples"] = [*both["examples"], *(_weighted(example, 1 / m, 0.0) for example in past)]
            both["order"] = [(*s, *(n + i for i in draw.choices(range(len(past)), k=m))) for s in both["order"]]
        return Rule.job(self, stream, state, k, **both, **more)


# --- penalties ----------------------------------------------------------------------------------------------------


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
        texts = [self.lab.example(ids).ids for ids in self.lab.documents(stream, k)]
        fresh = self.lab.fisher(texts, done.history)
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


# --- projections --------------------------------------------------------------------------------------------------


class NullSpaceCalibration(Rule):
    """A_k <- A_k (I - U U^T) after every step, so that dW_k x = 0 for x in span U: inputs of the base's own texts.

    U per group of layers that read the same tensor: the directions with `energy` of the squared inputs of the texts
    the base wrote by itself (AlphaEdit 2410.02355 in spirit; GPM, Saha et al. 2021, for the criterion).
    """

    stores = "statistics"
    grid = ({"energy": 0.9}, {"energy": 0.8}, {"energy": 0.95}, {"energy": 0.7})

    def spaces(self, state: State) -> dict[str, Tensor]:
        if state.extra:
            return {name: u.to(self.lab.model.device) for name, u in state.extra.items()}
        if not hasattr(self, "_base"):
            inputs = self.lab.inputs(self.lab.base_texts, None)
            self._base = {name: basis(x, self.knobs["energy"]) for name, x in inputs.items()}
        return self._base

    def protect(self, state: State) -> dict[str, Tensor]:
        spaces = self.spaces(state)
        return {name: spaces[names[0]] for names in self.lab.groups for name in names}

    def job(self, stream, state, k, **more):
        return super().job(stream, state, k, protect=self.protect(state), **more)


class NullSpace(NullSpaceCalibration):
    """Null space of the base's texts and of every earlier edit's documents: U grows after each edit to hold `past` of
    the energy of that edit's inputs (GPM, Saha et al. 2021). Stores directions, no text."""

    grid = ({"energy": 0.8, "past": 0.97}, {"energy": 0.9, "past": 0.97}, {"energy": 0.7, "past": 0.97},
            {"energy": 0.7, "past": 0.9})  # fmt: skip

    def after(self, stream, state, k, edit):
        done = super().after(stream, state, k, edit)
        inputs = self.lab.inputs([self.lab.example(i).ids for i in self.lab.documents(stream, k)], done.history)
        grown = {name: basis(inputs[name], self.knobs["past"], u) for name, u in self.spaces(state).items()}
        return replace(done, extra=grown)


class NullSpaceReplay(NullSpaceCalibration, Replay):
    """Null space of the base's own texts, and replay of past self-edits: the one guards what was known before, the
    other what was edited in."""

    stores = "text, statistics"
    grid = (
        {"energy": 0.8, "m": 2, "weight": 1.0}, {"energy": 0.9, "m": 2, "weight": 1.0},
        {"energy": 0.8, "m": 4, "weight": 1.0}, {"energy": 0.9, "m": 4, "weight": 1.0},
    )  # fmt: skip


class InfLora(NullSpace):
    """A_k fixed to the top right singular vectors of (I - U U^T) X_k, only B_k trained (Liang & Li 2024, InfLoRA).

    X_k: inputs of the edit's documents under theta_{k-1}. Rows are scaled to the norm PEFT's initial A has. The paper's
    DualGPM bookkeeping is replaced by the growing U of `NullSpace`.
    """

    def job(self, stream, state, k, **more):
        inner, lab = self.lab.inner, self.lab
        inputs = lab.inputs([lab.example(ids).ids for ids in lab.documents(stream, k)], state.history)
        linears, spaces, weights = target_linears(lab.model, inner.targets), self.spaces(state), {}
        for names in lab.groups:
            x, u = inputs[names[0]], spaces[names[0]]
            free = x - (x @ u) @ u.mT
            top = torch.linalg.svd(free, full_matrices=False).Vh[: inner.rank]
            for name in names:
                a = torch.zeros(inner.rank, linears[name].in_features)
                a[: len(top)] = top / math.sqrt(3)  # rows of kaiming_uniform(sqrt 5): variance 1/(3 in) an entry
                weights[name] = (a, torch.zeros(linears[name].out_features, inner.rank))
        start = Adapter(inner.rank, inner.alpha, tuple(n.rpartition(".")[2] for n in linears), weights)
        return super().job(stream, state, k, init=start, frozen_a=True, **more)


# --- independent edits --------------------------------------------------------------------------------------------


class Independent(Rule):
    """dW_k from theta_0, every edit by itself; subclasses say what is served."""

    shared = True
    stores = "adapters"

    def job(self, stream, state, k, **more):
        return super().job(stream, replace(state, history=None), k, **more)

    def after(self, stream, state, k, edit):
        return self.combined(replace(state, parts=(*state.parts, edit)))

    def combined(self, state: State) -> State:
        return state


class MergeSum(Independent):
    """theta_k = theta_0 + scale * sum_j dW_j (task arithmetic, Ilharco et al. 2023)."""

    grid = ({"scale": 1.0}, {"scale": 0.5}, {"scale": 0.3}, {"scale": 0.7})

    def combined(self, state):
        total = ops.concatenate([(part, self.knobs["scale"]) for part in state.parts])
        return replace(state, history=ops.compact(total))


class MergeMean(Independent):
    """theta_k = theta_0 + (1/k) sum_j dW_j, times `scale`."""

    grid = ({"scale": 1.0}, {"scale": 2.0}, {"scale": 1.5}, {"scale": 0.7})

    def combined(self, state):
        share = self.knobs["scale"] / len(state.parts)
        return replace(state, history=ops.compact(ops.concatenate([(part, share) for part in state.parts])))


class Ties(Independent):
    """theta_k = theta_0 + scale * TIES(dW_1 … dW_k): trim, elect signs, disjoint mean (Yadav et al. 2023)."""

    grid = ({"density": 0.2, "scale": 1.0}, {"density": 0.5, "scale": 1.0}, {"density": 0.2, "scale": 2.0},
            {"density": 0.5, "scale": 2.0})  # fmt: skip

    def combined(self, state):
        return replace(state, history=ops.ties(state.parts, self.knobs["density"], self.knobs["scale"]))


class IsolationOracle(Independent):
    """theta(q) = theta_0 + dW_{j(q)} with j(q) the question's own passage (MELO, PRAG …; oracle routing)."""

    stores = "adapters, oracle"
    single = False

    def serve(self, stream, state, k, title, question, own):
        return None, (state.parts[own] if own is not None and own < k else None)


class Isolation(Independent):
    """theta(q) = theta_0 + dW_{j(q)}, j(q) = BM25 top-1 over the first k passages; below the threshold theta_0 answers.

    Whoever can retrieve the adapter could have retrieved the passage: read it beside `rag`.
    """

    stores = "adapters, text"
    single = False
    grid = ({"threshold": 0.5}, {"threshold": 0.0}, {"threshold": 0.4}, {"threshold": 0.6})

    def serve(self, stream, state, k, title, question, own):
        found = route(stream, k, title, question, self.knobs["threshold"])
        return None, (None if found is None else state.parts[found])


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


class GatedMerge(Rule):
    """theta_k = theta_{k-1} + lambda_k dW_k with the largest lambda in [0.1, 1] (5 bisections, else 0.1) whose
    KL(theta_{k-1} || theta_k) per token on texts theta_{k-1} wrote by itself is within `budget` (after STABLE
    2510.16089).

    Not its protocol: anchors are self-written instead of evaluation questions, lambda scales dW itself (not A and B
    both), and the matrix is measured after the gate.
    """

    grid = ({"budget": 0.3}, {"budget": 0.1}, {"budget": 1.0}, {"budget": 0.03})
    texts = 24

    def update(self, streams, states, k, results):
        seeds = [stream.seed(k, "own texts") for stream in streams]
        written = self.lab.write([state.history for state in states], self.texts, seeds)
        return [
            self._gated(state, result.adapter, [t for t in texts if len(t) > 1])
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
            low = high
        else:
            for _ in range(5):
                middle = (low + high) / 2
                low, high = (middle, high) if drift(middle) <= self.knobs["budget"] else (low, middle)
        return replace(state, history=scaled(low))


#: name -> class; an arm of the study is one row
RULES: dict[str, type[Rule]] = {
    "frozen": Frozen,
    "passage_in_context": PassageInContext,
    "rag": Rag,
    "sequential_authors": SequentialAuthors,
    "sequential": Sequential,
    "low_lr": LowLr,
    "few_epochs": FewEpochs,
    "delta_scaling": DeltaScaling,
    "freeze_lower": FreezeLower,
    "replay": Replay,
    "generative_replay": GenerativeReplay,
    "kl": Kl,
    "kl_replay": KlReplay,
    "l2": L2,
    "ewc": Ewc,
    "o_lora": OLora,
    "null_space_calibration": NullSpaceCalibration,
    "null_space": NullSpace,
    "null_space_replay": NullSpaceReplay,
    "inflora": InfLora,
    "merge_sum": MergeSum,
    "merge_mean": MergeMean,
    "ties": Ties,
    "gated_merge": GatedMerge,
    "isolation": Isolation,
    "isolation_oracle": IsolationOracle,
    "joint": Joint,
}


def equation(name: str) -> str:
    """The first line of a rule's docstring."""
    return (RULES[name].__doc__ or "").strip().splitlines()[0]
