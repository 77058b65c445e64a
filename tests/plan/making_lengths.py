"""How the profiles ``squad`` and ``puzzles`` of ``seal_lib/plan/lengths.yaml`` were made from data."""

from statistics import fmean

from seal_lib.arc import vote
from seal_lib.arc.augment import SWITCHES
from seal_lib.arc.examples import training_set
from seal_lib.knowledge.documents import training_documents


def tokens(text: str) -> int:
    """Tokens of real text by the study's rule (4.6 characters of English per token of Qwen2.5), at least 1."""
    return max(1, round(len(text) / 4.6))


def of_passages(passages, prompts) -> dict[str, object]:
    """The profile of passages with released self-edits (``external``, ``external_1`` …), without the assumed fields.

    ``documents`` are those of each passage's first self-edit, which the paper evaluates.
    """

    def mean(values) -> float:
        return round(fmean(values), 2)

    return {
        "questions": mean([len(p.questions) for p in passages]),
        "ask": mean([tokens(prompts.ask(p, q)) for p in passages for q in p.questions]),
        "shown": mean([tokens(prompts.ask(p, q, True)) for p in passages for q in p.questions]),
        "write": mean([tokens(prompts.write(p)) for p in passages]),
        "passage": mean([tokens(prompts.training_text(p.title, p.text)) for p in passages]),
        "edits": tuple(sorted(tokens(text) for p in passages for text in p.references.values())),
        "documents": tuple(
            tuple(tokens(d.text) for d in training_documents(p, p.references["external"], prompts)) for p in passages
        ),
    }


def of_puzzles(tasks, cap: int = 250) -> dict[str, object]:
    """The profile of ARC tasks with all switches on, without the assumed fields."""

    def grid(g) -> int:
        return len(g) * (2 * len(g[0]) + 1)

    def text(example, answered: bool = True) -> int:
        """Tokens of a puzzle with 110 of the chat template and the instruction around its grids."""
        pairs = [*example.demonstrations, example.target]
        asked = sum(grid(p.input) + grid(p.output) for p in pairs) + 110
        return asked if answered else asked - grid(example.target.output)

    sets = {c: [training_set(t, SWITCHES, cap=c) for t in tasks] for c in (60, cap)}
    views = [[v for n in range(len(t.tests)) for v in vote.views(t, n)] for t in tasks]
    asked = [text(v.example, False) for several in views for v in several]
    answers = [grid(v.example.target.output) for several in views for v in several]
    return {
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
