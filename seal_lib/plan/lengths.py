"""Recorded lengths of self-edits, documents, questions and puzzles, so that planning needs no data.

``lengths.yaml`` holds one profile per kind of data. Real text counts 4.6 characters per token (the study's rule for
Qwen2.5, not its tokenizer), a puzzle's grid h (2 w + 1) tokens as in the Llama-3 tokenizer, and the made worlds use
their own tokenizer. `of_passages` and `of_puzzles` compute a profile from data. Knows nothing of models, costs or
notebooks.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING

from seal_lib import paths
from seal_lib.errors import DataError
from seal_lib.runs import yaml_files

if TYPE_CHECKING:
    from seal_lib.arc.examples import PuzzleExample
    from seal_lib.arc.grids import Grid
    from seal_lib.arc.tasks import Task
    from seal_lib.knowledge.prompts import Prompts
    from seal_lib.records import Passage

#: characters of English text per token of Qwen2.5
CHARACTERS = 4.6
#: tokens of the chat template and instruction around a puzzle's grids
AROUND = 110


@dataclass(frozen=True)
class Text:
    """Lengths in tokens of passages with questions.

    Attributes:
        source: where the numbers come from.
        questions: questions per passage.
        ask: the whole prompt of a question.
        shown: the same with the passage in the prompt.
        write: the prompt for a self-edit.
        passage: the passage as a training document.
        answer: tokens written until an answer ends.
        answer_longest: tokens written until the last answer of a batch ends.
        anchor: a text that the model writes by itself.
        edits: tokens of each recorded self-edit, sorted.
        documents: for each recorded self-edit, the tokens of its training documents, the passage last, without
            end-of-text.
        trained: by name, the mean documents and tokens of other texts that an arm trains on.
    """

    source: str
    questions: float
    ask: float
    shown: float
    write: float
    passage: float
    answer: float
    answer_longest: float
    anchor: float
    edits: tuple[int, ...]
    documents: tuple[tuple[int, ...], ...]
    trained: dict[str, tuple[float, float]]

    def edit(self, limit: int) -> float:
        """Return the mean tokens of a self-edit cut at ``limit``."""
        return fmean(min(n, limit) for n in self.edits)

    def longest(self, rows: int, limit: int) -> float:
        """Return the expected tokens of the longest of ``rows`` self-edits, each cut at ``limit``."""
        n = len(self.edits)
        shares = ((k / n) ** rows - ((k - 1) / n) ** rows for k in range(1, n + 1))
        return sum(share * min(x, limit) for share, x in zip(shares, self.edits, strict=True))


@dataclass(frozen=True)
class PuzzleLengths:
    """Lengths in tokens of puzzles, as means over the recorded tasks.

    Attributes:
        source: where the numbers come from.
        examples: training examples of a self-edit, by cap.
        example: tokens of one training example.
        example_longest: the mean tokens of an example in the task with the longest examples.
        views: prompts in which a task is asked, over all its test inputs.
        subsets: the same for leave-one-out only.
        ask: tokens of one of these prompts.
        ask_longest: tokens of the longest one.
        answer: tokens of one answer.
        answer_longest: tokens of the longest answer.
        write: the prompt for a self-edit.
        edit: a written configuration.
        epochs: the epochs that a self-edit is assumed to ask for.
        accepted: share of the self-edits that are trained.
        distinct: share of these that equal no other self-edit of their task.
        kept: share of the self-edits that the M-step learns from.
    """

    source: str
    examples: dict[int, float]
    example: float
    example_longest: float
    views: float
    subsets: float
    ask: float
    ask_longest: float
    answer: float
    answer_longest: float
    write: float
    edit: float
    epochs: float
    accepted: float
    distinct: float
    kept: float

    def of(self, cap: int) -> float:
        """Return the examples of one training under a cap, from the smallest recorded cap that is not below it."""
        fitting = [size for known, size in sorted(self.examples.items()) if known >= cap]
        return min(fitting[0] if fitting else max(self.examples.values()), cap)


@cache
def profiles() -> dict[str, Text | PuzzleLengths]:
    """Return the recorded profiles by name: ``squad``, ``world``, ``puzzles``, ``grids``."""
    table = yaml_files.read(Path(__file__).parent / "lengths.yaml")
    found: dict[str, Text | PuzzleLengths] = {}
    for name, row in table.items():
        if "edits" in row:
            documents = tuple(tuple(d) for d in row["documents"])
            trained = {text: tuple(pair) for text, pair in row["trained"].items()}
            row = {**row, "edits": tuple(row["edits"]), "documents": documents, "trained": trained}
            found[name] = Text(**row)
        else:
            found[name] = PuzzleLengths(**row)
    return found


def kind_of(document: str | Path) -> str:
    """Return the source of passages whose recorded lengths stand for those of a person's document."""
    return "world:heldout" if paths.given(document).is_relative_to(paths.PACKAGE) else "hub:rajpurkar/squad"


def profile(source: str) -> Text | PuzzleLengths:
    """Return the recorded profile of a source of passages or puzzles, named as in the parameters."""
    known = profiles()
    if source.startswith("world:"):
        return known["grids"] if source.count(":") == 2 else known["world"]
    return known["puzzles"] if "arc" in source.lower() else known["squad"]


# ---------------------------------------------------------------------------------------------- making them


def tokens(text: str) -> int:
    """Return the tokens of real text by the study's rule, at least 1."""
    return max(1, round(len(text) / CHARACTERS))


def of_passages(passages: Sequence["Passage"], prompts: "Prompts", source: str) -> dict[str, object]:
    """Return the profile of passages with released self-edits (``external``, ``external_1`` …), as in ``lengths.yaml``.

    ``documents`` are those of each passage's first self-edit, which the paper evaluates.

    Raises:
        DataError: a passage has no released self-edit.
    """
    from seal_lib.knowledge.documents import training_documents

    if any("external" not in p.references for p in passages):
        raise DataError("Lengths are made from passages with self-edits; give a file whose entries have `completions`.")

    def mean(values: Sequence[float]) -> float:
        return round(fmean(values), 2)

    return {
        "source": source,
        "questions": mean([len(p.questions) for p in passages]),
        "ask": mean([tokens(prompts.ask(p, q)) for p in passages for q in p.questions]),
        "shown": mean([tokens(prompts.ask(p, q, True)) for p in passages for q in p.questions]),
        "write": mean([tokens(prompts.write(p)) for p in passages]),
        "passage": mean([tokens(prompts.training_text(p.title, p.text)) for p in passages]),
        "answer": 64.0,  # a base model writes until the limit of 64
        "answer_longest": 64.0,
        "anchor": 50.0,  # likewise
        "edits": sorted(tokens(text) for p in passages for text in p.references.values()),
        "documents": [
            [tokens(d.text) for d in training_documents(p, p.references["external"], prompts)] for p in passages
        ],
        "trained": {},
    }


def of_puzzles(tasks: Sequence["Task"], source: str, cap: int = 250) -> dict[str, object]:
    """Return the profile of ARC tasks with all switches on, as in ``lengths.yaml``, without the assumed fields."""
    from seal_lib.arc import vote
    from seal_lib.arc.augment import SWITCHES
    from seal_lib.arc.examples import training_set

    def grid(g: "Grid") -> int:
        return len(g) * (2 * len(g[0]) + 1)

    def text(example: "PuzzleExample", answered: bool = True) -> int:
        pairs = [*example.demonstrations, example.target]
        asked = sum(grid(p.input) + grid(p.output) for p in pairs) + AROUND
        return asked if answered else asked - grid(example.target.output)

    sets = {c: [training_set(t, SWITCHES, cap=c) for t in tasks] for c in (60, cap)}
    views = [[v for n in range(len(t.tests)) for v in vote.views(t, n)] for t in tasks]
    asked = [text(v.example, False) for several in views for v in several]
    answers = [grid(v.example.target.output) for several in views for v in several]
    return {
        "source": source,
        "examples": {c: round(fmean(map(len, s)), 1) for c, s in sets.items()},
        "example": round(fmean(text(e) for s in sets[cap] for e in s), 1),
        "example_longest": round(max(fmean(map(text, s)) for s in sets[cap]), 1),
        "views": round(fmean(map(len, views)), 1),
        "subsets": round(fmean(sum(len(vote.subsets(t, n)) for n in range(len(t.tests))) for t in tasks), 1),
        "ask": round(fmean(asked), 1),
        "ask_longest": float(max(asked)),
        "answer": round(fmean(answers), 1),
        "answer_longest": float(max(answers)),
        "write": round(fmean(sum(grid(p.input) + grid(p.output) for p in t.train) + 200 for t in tasks), 1),
    }
