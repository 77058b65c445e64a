"""The base class of update rules, which trains one edit after the other, and the state of a stream.

The study calls a rule's jobs, update and serve in each step; `trainer` trains the jobs. Evaluation questions never
enter training; a rule sees them only when it serves them. The random draws of an edit depend on (stream, step) alone,
so that arms differ by their rule and not by luck.
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
    """A stream after some edits.

    ``history``: the weights that it serves. ``parts``: the independent edits, if the rule keeps them. ``extra``: the
    rule's own tensors.
    """

    history: Adapter | None = None
    parts: tuple[Adapter, ...] = ()
    extra: dict[str, Tensor] = field(default_factory=dict)


#: learning rates that tuning may choose for any trained rule, as multiples of the inner loop's
RATES = (1 / 32, 1 / 16, 1 / 8, 1 / 4, 1 / 2, 1.0, 2.0, 4.0, 8.0)


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
        shared: True for independent edits, which several arms share; see `Independent`.
        retrains: True if every edit is trained from the base; see `Joint`.
        stores: what is kept beside the one set of weights: nothing, text, statistics or adapters.
        single: True if the model is one set of weights and needs no passage when it answers.
        knobs: the settings of the rule and their defaults. ``lr_scale`` multiplies the inner loop's learning rate.
            Numbers of texts stay fixed in tuning, since more texts only cost more.
        cost: the cost beyond plain training.
        ladders: knob -> the values that tuning may climb through, as a rule in steps of equal ratio. The two ends are
            the stated bounds of the search.
    """

    trains = True
    shared = False  # True: edits depend neither on the rule nor on the past, so several arms train the same ones
    retrains = False  # True: an edit starts from the base with everything so far, so unmeasured ones can be skipped
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
        """Return the training job of edit k (0-based) of every stream."""
        return [self.job(stream, state, k) for stream, state in zip(streams, states, strict=True)]

    def job(self, stream: Stream, state: State, k: int, **more: object) -> EditJob:
        """Return the job that trains on the documents of edit k on top of the state's history."""
        fresh = self.fresh(stream, k)
        more = {"history": state.history, "examples": fresh} | more
        return self._job(stream, k, **more)

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
        inner = self.lab.inner
        return EditJob(
            **{
                "id": f"{stream.id}/{k + 1}",
                "lr": inner.lr,
                "epochs": inner.epochs,
                "rank": inner.rank,
                "alpha": inner.alpha,
                "batch": inner.batch,
                "seed": stream.seed(k, "inner loop"),
                "schedule": inner.schedule,
                "clip": inner.clip,
                **more,
            }
        )

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

    # answering

    def serve(
        self, stream: Stream, state: State, k: int, title: str, question: Question, own: int | None
    ) -> tuple[Passage | None, Adapter | None]:
        """Return what answers a question after k edits: a passage to show with it or None, and an adapter or None.

        ``own`` is the index of the question's passage, None for prior knowledge; only oracles may use it.
        """
        return None, state.history
