"""Streams: K passages in order, one self-edit each, and the probe of what the model knew before.

Knows where passages and self-edits come from and which texts an edit trains on. Does not know models beyond their
tokenizer, update rules or scores.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.knowledge.data import load_passages
from seal_lib.knowledge.documents import training_documents
from seal_lib.knowledge.prompts import Prompts
from seal_lib.records import Passage, Question
from seal_lib.seeds import derive_seed, rng


@dataclass(frozen=True)
class Stream:
    """K passages in the order of their edits. ``edits``: one self-edit text each; None where the model is to write."""

    id: str
    passages: tuple[Passage, ...]
    edits: tuple[str | None, ...]

    def __len__(self) -> int:
        return len(self.passages)

    def seed(self, *parts: object) -> int:
        """Of a random draw for this stream: the same for every arm, so that arms differ by their rule alone."""
        return derive_seed("stream", self.id, *parts)


def load_streams(
    source: str, count: int, length: int, *, seed: int = 0, sequences_file: str | None = None,
    questions: int | None = None, skip: int = 0,
) -> list[Stream]:  # fmt: skip
    """``count`` streams of ``length`` passages.

    ``world:heldout``: no passage occurs twice, ``skip`` leaves out the passages of so many streams (development
    streams and test streams then share none). With ``sequences_file`` (lists of indices into the passages of
    ``source``, in file order) exactly those: the authors' 64 are reproducible.

    Args:
        questions: keep so many questions of each passage, spread evenly (all: None).
    """
    if sequences_file is None:
        passages = load_passages(source, count * length, seed, start=skip * length)
        groups = [passages[i * length : (i + 1) * length] for i in range(count)]
    else:
        groups = _given(source, sequences_file, count, length, skip)
    chosen = [[_fewer(p, questions) for p in group] for group in groups]
    return [
        Stream(f"{source.partition(':')[2] or 'file'}-{seed}-{skip + n:03d}", tuple(group), (None,) * length)
        for n, group in enumerate(chosen)
    ]


def _given(source: str, file: str, count: int, length: int, skip: int) -> list[list[Passage]]:
    path = paths.given(file)
    if not path.is_file():
        raise DataError(f"sequences_file: {file} does not exist; give a JSON list of lists of passage indices or null.")
    lists = json.loads(path.read_text("utf-8"))[skip : skip + count]
    if source.startswith("world:"):
        raise DataError("sequences_file: indices belong to a list of passages; the made world has none, so leave it.")
    kind, _, rest = source.partition(":")
    from seal_lib.knowledge import data

    passages = data.from_hub(rest) if kind == "hub" else data.from_json(paths.given(source))
    if len(lists) < count or any(len(row) < length or max(row) >= len(passages) for row in lists):
        raise DataError(f"sequences_file: {file} has no {count} sequences of {length} passages of {source}.")
    return [[passages[i] for i in row[:length]] for row in lists]


def _fewer(passage: Passage, count: int | None) -> Passage:
    from dataclasses import replace

    n = len(passage.questions)
    if count is None or count >= n:
        return passage
    return replace(passage, questions=tuple(passage.questions[i * n // count] for i in range(count)))


def with_edits(streams: Sequence[Stream], writer: str) -> list[Stream]:
    """The streams with one reference text each as self-edit (``external``, ``gold`` … of the made world)."""
    from dataclasses import replace

    for p in (p for stream in streams for p in stream.passages):
        if writer not in p.references:
            has = ", ".join(p.references) or "none"
            raise DataError(f"writer: passage {p.id} has no notes by {writer!r} (it has {has}); use policy.")
    return [replace(s, edits=tuple(p.references[writer] for p in s.passages)) for s in streams]


def texts_of(passage: Passage, edit: str | None, prompts: Prompts, split_newlines: bool = True) -> list[str]:
    """The training documents of one edit: its pieces and the passage, each under the title."""
    return [d.text for d in training_documents(passage, edit, prompts, split_newlines)]


def prior_questions(source: str, count: int, seed: int) -> list[tuple[str, Question]]:
    """(title, question) pairs on what the model knew before any edit.

    ``world:known``: facts of the pretraining population. Any passage source: one question each of ``count`` passages,
    shuffled by ``seed``; they must not be passages of a stream.
    """
    if source == "world:known":
        from seal_lib.seedling.world import known_questions

        return known_questions(count, seed)
    draw = rng("prior", seed)
    return [(p.title, draw.choice(p.questions)) for p in load_passages(source, count, seed)]
