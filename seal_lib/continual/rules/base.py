"""The base class of update rules, which trains one edit after the other, and the state of a stream.

The study calls a rule's jobs, update and serve in each step; `trainer` trains the jobs. Evaluation questions never
enter training; a rule sees them only when it serves them. The random draws of an edit depend on (stream, step) alone,
so that arms differ by their rule and not by luck.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from seal_lib.continual import states as ops
from seal_lib.continual.lab import Lab
from seal_lib.continual.routing import route
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.errors import ParameterError
from seal_lib.records import Passage, Question
from seal_lib.training.adapters import Adapter
from seal_lib.training.jobs import Example, Result


@dataclass
class State:
    """A stream after some edits.

    ``history``: the weights that it serves. ``parts``: the independent edits, if the rule keeps them. ``extra``: the
    rule's own tensors.
    """

    history: Adapter | None = None
    parts: tuple[Adapter, ...] = ()
    extra: dict[str, Tensor] = field(default_factory=dict)


#: learning rates that tuning may choose for any trained rule, as multiples of the inner loop's
RATES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)
_ENERGIES = (0.2, 0.6, 0.8, 0.9, 0.95, 0.975, 0.9875, 0.99375)  # 1 − energy halves from step to step
_STRENGTHS = (0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
#: knob -> the values that tuning may climb through, as a rule in steps of equal ratio; the two ends are the stated
#: bounds of the search. A knob that is not listed (a number of texts, since more only cost more) stays fixed.
LADDERS = {
    "lr_scale": RATES,
    "share": (0.34, 0.67),  # for three layers: one or two, since none is `Sequential` and all trains nothing
    "strength": _STRENGTHS,
    "lam": _STRENGTHS,
    "weight": (0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0),  # of rehearsal or distillation, relative to the new edit's loss
    "energy": _ENERGIES,
    "past": _ENERGIES,
    "scale": (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0),  # 1/8 gives the mean of eight edits
    "density": (0.05, 0.1, 0.2, 0.35, 0.5, 0.7, 1.0),
    "budget": (0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0),
    "threshold": (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8),  # share of a question's words that its passage must hold
}


@dataclass(frozen=True)
class RuleCost:
    """The cost of a rule beyond plain training, for the cost plan (`seal_lib.plan.dry_study`).

    Attributes:
        more: the kind of the ``m`` further sequences in each step (``m`` is a knob): ``past`` documents, ``own`` texts,
            ``anchors``, or ``both`` (``m`` anchors and ``m`` past documents).
        texts: the number of texts that the model generates before an edit, where no knob gives it.
        reads: the cost of texts read once per edit, in forward passes.
        factors: how often the covariances of the layers' inputs are decomposed: ``once``, or once per ``edit``.
    """

    more: str = ""
    texts: int = 0
    reads: float = 0.0
    factors: str = ""


class Rule:
    """theta_k = theta_{k-1} + dW_k, dW_k = argmin L_k from theta_{k-1}: plain sequential training.

    Attributes:
        trains: False for references, which train nothing.
        stores: what is kept beside the one set of weights: nothing, text, statistics or adapters.
        single: True if the model is one set of weights and needs no passage when it answers; otherwise a question is
            answered with its passage, or with the edit of its passage (`shared`).
        knobs: the settings of the rule and their defaults. ``lr_scale`` multiplies the inner loop's learning rate.
        cost: the cost beyond plain training.
        ladders: the part of `LADDERS` that belongs to the rule's knobs, in their order.
    """

    trains = True
    shared = False  # True: edits depend neither on the rule nor on the past, so several arms train the same ones
    retrains = False  # True: an edit starts from the base with everything so far, so unmeasured ones can be skipped
    stores = "nothing"
    single = True
    knobs: dict[str, float] = {"lr_scale": 1.0}
    ladders: dict[str, tuple[float, ...]]
    cost = RuleCost()

    def __init_subclass__(cls) -> None:
        cls.ladders = {knob: LADDERS[knob] for knob in cls.knobs if knob in LADDERS}

    def __init__(self, lab: Lab, **knobs: float):
        if unknown := sorted(set(knobs) - set(self.knobs)):
            raise ParameterError(f"{type(self).__name__} has no knob {unknown[0]!r}; it has {sorted(self.knobs)}.")
        self.knobs = {**self.knobs, **knobs}
        scale = self.knobs.get("lr_scale", 1.0)
        self.lab = lab if scale == 1.0 else lab.with_inner(lr=lab.inner.lr * scale)

    # training

    def jobs(self, streams: Sequence[Stream], states: Sequence[State], k: int) -> list[EditJob]:
        """Return the training job of edit k (0-based) of every stream."""
        return [self.job(stream, state, k) for stream, state in zip(streams, states, strict=True)]

    def job(self, stream: Stream, state: State, k: int) -> EditJob:
        """Return the job that trains on the documents of edit k on top of the state's history."""
        return self._job(stream, k, history=state.history, examples=self.fresh(stream, k))

    def nothing(self, stream: Stream, k: int) -> bool:
        """Return whether edit k has nothing to train on: the self-edit is empty and the passage is not trained on."""
        return not self.lab.documents(stream, k)

    def unedited(self, stream: Stream, state: State, k: int) -> State:
        """Return the state after an edit k that had nothing to train on."""
        return state

    def fresh(self, stream: Stream, k: int) -> list[Example]:
        return [self.lab.example(ids, stream.seed(k, "pads", n)) for n, ids in enumerate(self.lab.documents(stream, k))]

    def texts_of(self, stream: Stream, k: int) -> list[list[int]]:
        """Return the token ids of the documents of edit k as training sees them, with end-of-text or pads if so set."""
        return [self.lab.example(ids).ids for ids in self.lab.documents(stream, k)]

    def own_texts(self, streams: Sequence[Stream], states: Sequence[State], k: int, n: int) -> list[list[list[int]]]:
        """Return per stream up to n texts (token ids) that theta_{k-1} generates; texts of one token are left out."""
        seeds = [stream.seed(k, "own texts") for stream in streams]
        written = self.lab.write([state.history for state in states], n, seeds)
        return [[text for text in texts if len(text) > 1] for texts in written]

    def _job(self, stream: Stream, k: int, **more: object) -> EditJob:
        settings = ("lr", "epochs", "rank", "alpha", "batch", "schedule", "clip")
        inner = {name: getattr(self.lab.inner, name) for name in settings}
        return EditJob(f"{stream.id}/{k + 1}", seed=stream.seed(k, "inner loop"), **inner, **more)

    def update(
        self, streams: Sequence[Stream], states: Sequence[State], k: int, results: Sequence[Result]
    ) -> list[State]:
        """Return the states after edit k."""
        return [
            self.after(stream, state, k, result.adapter)
            for stream, state, result in zip(streams, states, results, strict=True)
        ]

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        return replace(state, history=ops.compact(ops.concatenate([(state.history, 1.0), (edit, self.weight(k))])))

    def weight(self, k: int) -> float:
        """Return the factor with which edit k is added."""
        return 1.0

    def kept(self, state: State) -> dict[str, Tensor]:
        """Return the rule's own tensors on the model's device."""
        return {name: x.to(self.lab.model.device) for name, x in state.extra.items()}

    # answering

    def serve(
        self, stream: Stream, state: State, k: int, title: str, question: Question, own: int | None
    ) -> tuple[Passage | None, Adapter | None]:
        """Return what answers a question after k edits: a passage to show with it or None, and an adapter or None.

        A rule with the knob ``threshold`` finds the passage with BM25; below the threshold the base answers alone.

        Args:
            own: the index of the question's passage, None for prior knowledge; only oracles may use it.
        """
        if self.single:
            return None, state.history
        if "threshold" in self.knobs:
            found = route(stream, k, title, question, self.knobs["threshold"])
        else:
            found = own if own is not None and own < k else None
        if found is None:
            return None, None
        return (None, state.parts[found]) if self.shared else (stream.passages[found], None)
