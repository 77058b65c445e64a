"""Streams: K passages in order, one self-edit each, and the probe of what the model knew before.

Knows where passages and self-edits come from and which texts an edit trains on. Does not know models beyond their
tokenizer, update rules or scores.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.knowledge import data
from seal_lib.knowledge.data import load_passages
from seal_lib.records import Passage, Question
from seal_lib.seeds import derive_seed, rng


@dataclass(frozen=True)
class Stream:
    """K passages in the order of their edits.

    ``edits``: one self-edit text each; None where the model is to write. ``prior``: (title, question) pairs on what the
    model knew before any edit, other ones in every stream.
    """

    id: str
    passages: tuple[Passage, ...]
    edits: tuple[str | None, ...]
    prior: tuple[tuple[str, Question], ...] = ()

    def __len__(self) -> int:
        return len(self.passages)

    def seed(self, *parts: object) -> int:
        """The seed of a random draw for this stream; it is the same for every arm, so arms differ by their rule
        alone."""
        return derive_seed("stream", self.id, *parts)


#: passages of SQuAD v1.1 dev, in order of first appearance; the authors' indices count in them
SQUAD_DEV = 2067


def authors_sequences(kind: str = "authors", passages: int = SQUAD_DEV, length: int = 8) -> list[list[int]]:
    """The authors' 64 sequences as indices: per run r = 0 … 7 `random.seed(42 + r)`, then eight samples of eight.

    Checked against what their released matrices imply. ``authors_dev``: 16 for tuning,
    drawn likewise from seeds 142 and 143 after the passages of the 64 are taken out.
    """
    draws = [random.Random(42 + run) for run in range(8)]
    test = [draw.sample(range(passages), length) for draw in draws for _ in range(8)]
    if kind == "authors":
        return test
    taken = {i for row in test for i in row}
    left = [i for i in range(passages) if i not in taken]
    return [draw.sample(left, length) for draw in (random.Random(142), random.Random(143)) for _ in range(8)]


def load_streams(
    source: str, count: int, length: int, *, seed: int = 0, sequences: str = "disjoint",
    questions: int | None = None, skip: int = 0,
) -> list[Stream]:  # fmt: skip
    """``count`` streams of ``length`` passages.

    Args:
        sequences: ``disjoint``: no passage occurs twice, ``skip`` leaves out the passages of the first ``skip``
            streams.
            ``authors`` or ``authors_dev``: `authors_sequences` of the passages of ``source`` in file order.
        questions: number of questions kept per passage, spread evenly (None: all).

    Raises:
        DataError: too few passages, or an unknown kind of sequences.
    """
    if sequences == "disjoint":
        passages = load_passages(source, count * length, seed, start=skip * length)
        groups = [passages[i * length : (i + 1) * length] for i in range(count)]
    else:
        groups = _given(source, sequences, count, length, skip)
    chosen = [[_fewer(p, questions) for p in group] for group in groups]
    return [
        Stream(
            f"{source.partition(':')[2] or 'file'}-{seed}-{skip + n:03d}".replace("/", "."),
            tuple(group),
            (None,) * length,
        )
        for n, group in enumerate(chosen)
    ]


def _given(source: str, sequences: str, count: int, length: int, skip: int) -> list[list[Passage]]:
    kind, _, rest = source.partition(":")
    if sequences not in ("authors", "authors_dev") or kind == "world":
        raise DataError(
            f"sequences: {sequences!r} is not one of disjoint, authors, authors_dev (the latter for SQuAD)."
        )
    passages = data.from_hub(rest) if kind == "hub" else data.from_json(paths.given(source))
    if len(passages) != SQUAD_DEV:
        raise DataError(
            f"sequences: the authors' indices need the {SQUAD_DEV} passages of SQuAD dev, not {len(passages)}."
        )
    lists = authors_sequences(sequences)[skip : skip + count]
    if len(lists) < count or length > 8:
        raise DataError(f"sequences: there are no {count} sequences of {length} passages after the first {skip}.")
    return [[passages[i] for i in row[:length]] for row in lists]


def _fewer(passage: Passage, count: int | None) -> Passage:
    n = len(passage.questions)
    if count is None or count >= n:
        return passage
    return replace(passage, questions=tuple(passage.questions[i * n // count] for i in range(count)))


def with_edits(streams: Sequence[Stream], writer: str) -> list[Stream]:
    """The streams with one reference text each as self-edit (``external``, ``gold`` … of the made world)."""
    for p in (p for stream in streams for p in stream.passages):
        if writer not in p.references:
            has = ", ".join(p.references) or "none"
            raise DataError(f"writer: passage {p.id} has no notes by {writer!r} (it has {has}); use policy.")
    return [replace(s, edits=tuple(p.references[writer] for p in s.passages)) for s in streams]


def with_prior(streams: Sequence[Stream], source: str, count: int, seed: int, skip: int = 0) -> list[Stream]:
    """The streams with ``count`` questions each on what the model knew before any edit; no question is asked twice.

    Other questions in every stream: so streams are independent samples of questions too, and an interval over streams
    holds for other questions.

    ``world:known``: facts of the pretraining population. Any passage source: one question each of passages shuffled by
    ``seed``, without the first ``skip`` (on which a policy may have practised) and without passages of a stream.
    """
    wanted = count * len(streams)
    if source == "world:known":
        from seal_lib.knowledge.world import known_facts, known_questions

        have = len(known_facts())
        pool = known_questions(min(wanted, have), seed)
    else:
        taken, draw = {p.text for stream in streams for p in stream.passages}, rng("prior", seed)
        free = [p for p in load_passages(source, None, seed, start=skip) if p.text not in taken]
        have = len(free)
        pool = [(p.title, draw.choice(p.questions)) for p in free[:wanted]]
    if have < wanted:
        raise DataError(
            f"n_prior: {len(streams)} streams of {count} other questions each need {wanted}, but {source} has {have}; "
            f"ask for {have // len(streams)} at most."
        )
    return [replace(s, prior=tuple(pool[n * count : (n + 1) * count])) for n, s in enumerate(streams)]
