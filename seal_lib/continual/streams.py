"""Streams: K passages in order with one self-edit each, and questions on what the model knew before.

Passages, reference self-edits and prior questions are drawn here, independently of models, update rules and scores.
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

    ``edits``: one self-edit text per passage; None where the model is to write it. ``prior``: (title, question) pairs
    on what the model knew before any edit; they differ between streams.
    """

    id: str
    passages: tuple[Passage, ...]
    edits: tuple[str | None, ...]
    prior: tuple[tuple[str, Question], ...] = ()

    def __len__(self) -> int:
        return len(self.passages)

    def seed(self, *parts: object) -> int:
        """Return the seed of a random draw for this stream.

        It is the same for every arm, so that arms differ by their rule alone.
        """
        return derive_seed("stream", self.id, *parts)


#: the number of passages of SQuAD v1.1 dev; the authors' indices count them in order of first appearance
SQUAD_DEV = 2067


def authors_sequences(kind: str = "authors", passages: int = SQUAD_DEV, length: int = 8) -> list[list[int]]:
    """Return the authors' 64 sequences as passage indices: eight samples after each `random.seed(42 + r)`, r = 0 … 7.

    They were checked against what the released matrices imply. ``kind="authors_dev"`` gives 16 sequences for tuning,
    drawn likewise with seeds 142 and 143 from the passages that the 64 do not use.
    """
    draws = [random.Random(42 + run) for run in range(8)]
    test = [draw.sample(range(passages), length) for draw in draws for _ in range(8)]
    if kind == "authors":
        return test
    taken = {i for row in test for i in row}
    left = [i for i in range(passages) if i not in taken]
    return [draw.sample(left, length) for draw in (random.Random(142), random.Random(143)) for _ in range(8)]


def load_streams(
    source: str,
    count: int,
    length: int,
    *,
    seed: int = 0,
    sequences: str = "disjoint",
    questions: int | None = None,
    skip: int = 0,
) -> list[Stream]:
    """Return ``count`` streams of ``length`` passages of ``source``, without self-edits.

    Args:
        seed: fixes the draw of the passages.
        sequences: ``disjoint``: no passage occurs twice. ``authors`` or ``authors_dev``: `authors_sequences` of the
            passages of ``source`` in file order.
        questions: the number of questions kept per passage, spread evenly (None: all).
        skip: the number of streams to leave out at the beginning, with their passages.

    Raises:
        DataError: there are too few passages, or the kind of sequences is unknown.
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
    """Return the streams with the reference texts by ``writer`` as self-edits.

    The made world has writers such as ``external`` and ``gold``.

    Raises:
        DataError: a passage has no text by this writer.
    """
    for p in (p for stream in streams for p in stream.passages):
        if writer not in p.references:
            has = ", ".join(p.references) or "none"
            raise DataError(f"writer: passage {p.id} has no notes by {writer!r} (it has {has}); use policy.")
    return [replace(s, edits=tuple(p.references[writer] for p in s.passages)) for s in streams]


def with_prior(streams: Sequence[Stream], source: str, count: int, seed: int, skip: int = 0) -> list[Stream]:
    """Return the streams with ``count`` questions each on what the model knew before any edit.

    No question is asked twice, so that streams are independent samples of questions too, and an interval over streams
    covers other questions.

    Args:
        source: ``world:known``: facts of the pretraining population. Any passage source: one question from each of its
            passages, shuffled by ``seed``, without passages of a stream.
        skip: the number of passages to leave out first, because a policy may have practised on them.

    Raises:
        DataError: there are too few questions.
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
