"""The base class of update rules, which trains one edit after the other, and the state of a stream.

Knows the order of a study's step (jobs, update, serve) and the inner loop's settings. Does not know the other rules,
how jobs are trained (`trainer`) or what is measured. Evaluation questions reach no rule; the draws of an edit come from
(stream, step) alone, so arms differ by their rule and not by luck.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from torch import Tensor

from seal_lib.continual import states as ops
from seal_lib.continual.lab import Lab
from seal_lib.continual.streams import Stream
from seal_lib.continual.trainer import EditJob
from seal_lib.errors import ParameterError
from seal_lib.records import Passage, Question
from seal_lib.training.adapters import Adapter
from seal_lib.training.jobs import Example, Result


@dataclass
class State:
    """A stream after some edits: the weights it serves, independent edits if the rule keeps them, and its tensors."""

    history: Adapter | None = None
    parts: tuple[Adapter, ...] = ()
    extra: dict[str, Tensor] = field(default_factory=dict)


#: learning rates that every trained rule may take, as multiples of the inner loop's; the ends bound the search
RATES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)


@dataclass(frozen=True)
class RuleCost:
    """What a rule costs beside plain training; plans read it (`seal_lib.plan.dry_study`).

    Attributes:
        more: what the ``m`` further sequences of a step are (a knob says how many): ``past`` documents, ``own`` texts,
            ``anchors``, or ``both`` (anchors and one document of the past each).
        texts: written by the model before an edit, where no knob says how many.
        reads: texts read once per edit, in forward passes.
        factors: eigenvectors of inputs' covariances: ``once``, or once per ``edit``.
    """

    more: str = ""
    texts: int = 0
    reads: float = 0.0
    factors: str = ""


class Rule:
    """theta_k = theta_{k-1} + dW_k, dW_k = argmin L_k from theta_{k-1}: plain sequential training.

    Attributes:
        trains: False for references. shared: see `Independent`. retrains: see `Joint`.
        stores: nothing, text, statistics or adapters (beside the one set of weights).
        single: the model is one set of weights and needs no passage at answering time.
        knobs: what may be set, with its default. ``lr_scale`` multiplies the inner loop's learning rate. Numbers of
            texts are a price and not a strength (more costs more): they are fixed.
        cost: beside plain training.
        ladders: knob -> the values that tuning may climb through, evenly spaced as a rule by ratio. Its ends are the
            stated bound of the search.
    """

    trains = True
    shared = False  # edits that do not depend on the rule or the past; several arms train the same ones
    retrains = False  # from the base with everything so far: an edit that is not measured need not be made
    stores = "nothing"
    single = True
    knobs: dict[str, float] = {"lr_scale": 1.0}
    ladders: dict[str, tuple[float, ...]] = {"lr_scale": RATES}
    cost = RuleCost()

    def __init__(self, lab: Lab, **knobs: float):
        if unknown := sorted(set(knobs) - set(self.knobs)):
            raise ParameterError(f"{type(self).__name__} has no knob {unknown[0]!r}; it has {sorted(self.knobs)}.")
        self.knobs = {**self.knobs, **knobs}
        scale = self.knobs.get("lr_scale", 1.0)
        self.lab = lab if scale == 1.0 else lab.with_inner(lr=lab.inner.lr * scale)

    # training

    def jobs(self, streams: Sequence[Stream], states: Sequence[State], k: int) -> list[EditJob]:
        """The training of edit k (0-based) of every stream."""
        return [self.job(stream, state, k) for stream, state in zip(streams, states, strict=True)]

    def job(self, stream: Stream, state: State, k: int, **more: object) -> EditJob:
        """Plain training on the documents of edit k on top of the state's history."""
        fresh = self.fresh(stream, k)
        more = {"history": state.history, "examples": fresh} | more
        return self._job(stream, k, **more)

    def nothing(self, stream: Stream, k: int) -> bool:
        """Whether edit k has nothing to train on: an empty self-edit, and the passage left out."""
        return not self.lab.documents(stream, k)

    def unedited(self, stream: Stream, state: State, k: int) -> State:
        """The state after an edit k that had nothing to train on."""
        return state

    def fresh(self, stream: Stream, k: int) -> list[Example]:
        return [self.lab.example(ids, stream.seed(k, "pads", n)) for n, ids in enumerate(self.lab.documents(stream, k))]

    def texts_of(self, stream: Stream, k: int) -> list[list[int]]:
        """Token ids of the documents of edit k as training sees them (end-of-text or pads as the settings say)."""
        return [self.lab.example(ids).ids for ids in self.lab.documents(stream, k)]

    def own_texts(self, streams: Sequence[Stream], states: Sequence[State], k: int, n: int) -> list[list[list[int]]]:
        """For each stream up to n texts (token ids) that theta_{k-1} writes by itself, those of one token left out."""
        seeds = [stream.seed(k, "own texts") for stream in streams]
        written = self.lab.write([state.history for state in states], n, seeds)
        return [[text for text in texts if len(text) > 1] for texts in written]

    def _job(self, stream: Stream, k: int, **more: object) -> EditJob:
        inner = self.lab.inner
        return EditJob(
            **{
                "id": f"{stream.id}/{k + 1}", "lr": inner.lr, "epochs": inner.epochs, "rank": inner.rank,
                "alpha": inner.alpha, "batch": inner.batch, "seed": stream.seed(k, "inner loop"),
                "schedule": inner.schedule, "clip": inner.clip, **more,
            }
        )  # fmt: skip

    def update(
        self, streams: Sequence[Stream], states: Sequence[State], k: int, results: Sequence[Result]
    ) -> list[State]:
        """The states after edit k."""
        return [
            self.after(stream, state, k, result.adapter)
            for stream, state, result in zip(streams, states, results, strict=True)
        ]

    def after(self, stream: Stream, state: State, k: int, edit: Adapter) -> State:
        return replace(state, history=ops.compact(ops.concatenate([(state.history, 1.0), (edit, self.weight(k))])))

    def weight(self, k: int) -> float:
        """The factor with which edit k is added."""
        return 1.0

    # answering

    def serve(
        self, stream: Stream, state: State, k: int, title: str, question: Question, own: int | None
    ) -> tuple[Passage | None, Adapter | None]:
        """After k edits: the passage to show with a question (None: none), and the adapter that answers it.

        ``own``: the number of the question's passage, None for prior knowledge; only oracles may look at it.
        """
        return None, state.history
