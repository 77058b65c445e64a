"""Recorded lengths of self-edits, documents, questions and puzzles, so that planning needs no data.

``lengths.yaml`` holds one profile per kind of data. Real text counts 4.6 characters per token (the study's rule for
Qwen2.5, not its tokenizer), a puzzle's grid h (2 w + 1) tokens as in the Llama-3 tokenizer, and the made worlds use
their own tokenizer. ``tests/plan/making_lengths.py`` computes profiles from data. Knows nothing of models, costs or
notebooks.
"""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean

from seal_lib import paths
from seal_lib.runs import yaml_files


@dataclass(frozen=True)
class TextLengths:
    """Lengths in tokens of passages with questions."""

    source: str  # where the numbers come from
    questions: float  # questions per passage
    ask: float  # the whole prompt of a question
    shown: float  # the same with the passage in the prompt
    write: float  # the prompt for a self-edit
    passage: float  # the passage as a training document
    answer: float  # tokens written until an answer ends
    answer_longest: float  # tokens written until the last answer of a batch ends
    anchor: float  # a text that the model writes by itself
    edits: tuple[int, ...]  # tokens of each recorded self-edit, sorted
    documents: tuple[tuple[int, ...], ...]  # of each recorded self-edit; the passage is last; without end-of-text
    trained: dict[str, tuple[float, float]]  # by name, the mean documents and tokens of other texts to train on

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
    """Lengths in tokens of puzzles, as means over the recorded tasks."""

    source: str  # where the numbers come from
    examples: dict[int, float]  # training examples of a self-edit, by cap
    example: float  # tokens of one training example
    example_longest: float  # the mean tokens of an example in the task with the longest examples
    views: float  # prompts in which a task is asked, over all its test inputs
    subsets: float  # the same for leave-one-out only
    ask: float  # tokens of one of these prompts
    ask_longest: float  # tokens of the longest one
    answer: float  # tokens of one answer
    answer_longest: float  # tokens of the longest answer
    write: float  # the prompt for a self-edit
    edit: float  # a written configuration
    epochs: float  # the epochs that a self-edit is assumed to ask for
    accepted: float  # share of the self-edits that are trained
    distinct: float  # share of these that equal no other self-edit of their task
    kept: float  # share of the self-edits that the M-step learns from

    def of(self, cap: int) -> float:
        """Return the examples of one training under a cap, from the smallest recorded cap that is not below it."""
        fitting = (size for known, size in sorted(self.examples.items()) if known >= cap)
        return min(next(fitting, max(self.examples.values())), cap)


@cache
def profiles() -> dict[str, TextLengths | PuzzleLengths]:
    """Return the recorded profiles by name: ``squad``, ``world``, ``puzzles``, ``grids``."""
    found: dict[str, TextLengths | PuzzleLengths] = {}
    for name, row in yaml_files.read(Path(__file__).parent / "lengths.yaml").items():
        if "edits" in row:
            trained = {text: tuple(pair) for text, pair in row["trained"].items()}
            documents = tuple(map(tuple, row["documents"]))
            found[name] = TextLengths(**row | dict(edits=tuple(row["edits"]), documents=documents, trained=trained))
        else:
            found[name] = PuzzleLengths(**row)
    return found


def kind_of(document: str | Path) -> str:
    """Return the source of passages whose recorded lengths stand for those of a person's document."""
    return "world:heldout" if paths.given(document).is_relative_to(paths.PACKAGE) else "hub:rajpurkar/squad"


def profile(source: str) -> TextLengths | PuzzleLengths:
    """Return the recorded profile of a source of passages or puzzles, named as in the parameters."""
    known = profiles()
    if source.startswith("world:"):
        return known["grids"] if source.count(":") == 2 else known["world"]
    return known["puzzles"] if "arc" in source.lower() else known["squad"]
