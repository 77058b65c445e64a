"""From one question to many views of it, from many answers to two attempts, and from attempts to a score.

A view shows all demonstrations but one, in some order, possibly turned; its answer is turned back. Views and vote
follow the released code; where the authors' result depends on the order of a set, ours is fixed. Scores are per task: a
task is right only if every test output is.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from seal_lib.arc.augment import IDENTITY, Augmenter, flip, rotate, transpose
from seal_lib.arc.examples import PuzzleExample, leave_out, question
from seal_lib.arc.grids import Grid, size
from seal_lib.arc.tasks import Task
from seal_lib.errors import DataError, must_be_one_of
from seal_lib.seeds import rng

#: the turns of a view, in the order in which the groups cast their proposals
TURNS: dict[str, Augmenter] = {a.name: a for a in (IDENTITY, transpose(), flip(0), flip(1), rotate(90), rotate(180))}
ORDERS = 2  # random orders per leave-one-out subset


@dataclass(frozen=True)
class View:
    """One way to ask a question; ``turn`` names the augmenter whose inverse turns the answer back."""

    example: PuzzleExample
    turn: str = "identity"

    def back(self, answer: Grid) -> Grid:
        return TURNS[self.turn].inverse(answer)


def subsets(task: Task, test: int) -> list[PuzzleExample]:
    """Return the distinct leave-one-out questions: each subset in its own order and in two random ones.

    A single demonstration is shown, since nothing would be shown without it. The orders come from numpy's frozen legacy
    generator with seed 0, which gives the published numbers of questions (2, 5, 11, 15, 18 for 2 to 6 demonstrations).
    """
    import numpy as np

    whole, draws = question(task, test), np.random.RandomState(0)
    if len(task.train) == 1:
        return [whole]
    plain = [left.demonstrations for left in leave_out(task.train, 1)]
    turns = [(shown, draws.permutation(len(shown))) for shown in plain for _ in range(ORDERS)]
    orders = [tuple(shown[i] for i in order) for shown, order in turns]
    return [PuzzleExample(shown, whole.target) for shown in dict.fromkeys([*plain, *orders])]


def views(task: Task, test: int, seed: int = 0) -> list[View]:
    """Return every view of one test input: the subsets, then five turned views, each of a subset drawn by ``seed``."""
    plain = subsets(task, test)
    draws = rng(seed, task.id, test, "views")
    turned = []
    for name, augmenter in TURNS.items():
        if name != "identity":
            chosen = draws.choice(plain)
            example = PuzzleExample(tuple(map(augmenter.pair, chosen.demonstrations)), augmenter.pair(chosen.target))
            turned.append(View(example, name))
    return list(dict.fromkeys([*(View(example) for example in plain), *turned]))


def majority(grids: Sequence[Grid], columns: bool = False) -> Grid:
    """Return the grid whose rows (or ``columns``) are the most frequent at their place, of the most frequent shape."""
    shape = Counter(map(size, grids)).most_common(1)[0][0]
    alike = [tuple(zip(*grid, strict=True)) if columns else grid for grid in grids if size(grid) == shape]
    lines = tuple(Counter(place).most_common(1)[0][0] for place in zip(*alike, strict=True))
    return tuple(zip(*lines, strict=True)) if columns else lines


def proposals(grids: Sequence[Grid]) -> list[tuple[Grid, int]]:
    """Return three (grid, votes), the most frequent first.

    If there are fewer than three grids, row-wise and then column-wise `majority` fill the gaps with 0 votes. Of equally
    frequent grids, the one that shares more rows with the others comes first, then the one seen first.
    """
    votes = Counter(grids)
    rows = Counter((size(grid), i, row) for grid in grids for i, row in enumerate(grid))
    shared = {grid: fmean(rows[size(grid), i, row] for i, row in enumerate(grid)) for grid in votes}
    ranked = sorted(votes, key=lambda grid: (-votes[grid], -shared[grid]))[:3]
    filled = [(grid, votes[grid]) for grid in ranked]
    for columns in (False, True)[: 3 - len(filled)]:
        filled.append((majority(grids, columns), 0))
    return filled


def vote(answers: Sequence[tuple[str, Grid]]) -> tuple[Grid, ...]:
    """Return two attempts from (turn, answer already turned back) pairs; none at all if there is no answer.

    Each group of answers (all, then by turn) casts three proposals, whatever its size, and these are voted on again. If
    the second and the third have equally many votes, the second attempt is the one with more unturned answers, or else
    the third. (The authors put a 1 × 1 grid of 0 where there is no answer; we count it as unanswered.)

    Raises:
        DataError: a turn is unknown.
    """
    for turn, _ in answers:
        must_be_one_of("vote, turn", turn, TURNS)
    if not answers:
        return ()
    groups = [[grid for _, grid in answers]]
    groups += [[grid for turn, grid in answers if turn == name] for name in TURNS]
    cast = [grid for group in groups if group for grid, _ in proposals(group)]
    (first, _), (second, votes_2), (third, votes_3) = proposals(cast)
    if votes_2 == votes_3:
        plain = Counter(groups[1])
        second = second if plain[second] > plain[third] else third
    return first, second


@dataclass(frozen=True)
class TaskScore:
    """The score of a task: its right test outputs, by the first attempt and by either, and the share of right cells."""

    first: tuple[bool, ...]
    either: tuple[bool, ...]
    share: tuple[float, ...]  # right cells of the better attempt; 0 if its shape is wrong

    @property
    def cells(self) -> float:
        return fmean(self.share)

    @property
    def pass_1(self) -> bool:
        return all(self.first)

    @property
    def pass_2(self) -> bool:
        return all(self.either)


def score(task: Task, attempts: Sequence[Sequence[Grid]]) -> TaskScore:
    """Score one task; ``attempts`` has up to two grids per test input, and a missing test input counts as wrong.

    Raises:
        DataError: the task has no solutions, or there are too many answers or more than two attempts.
    """
    if not task.solutions:
        raise DataError(f"task {task.id} has no solutions, so it cannot be scored; give the solutions file.")
    if len(attempts) > len(task.tests):
        raise DataError(f"task {task.id}: {len(attempts)} answers for {len(task.tests)} test inputs; one for each.")
    if any(len(tried) > 2 for tried in attempts):
        raise DataError(f"task {task.id}: more than two attempts at one test input; keep two.")
    tried = [*attempts, *[()] * (len(task.tests) - len(attempts))]
    pairs = list(zip(tried, task.solutions, strict=True))
    return TaskScore(
        tuple(len(grids) > 0 and grids[0] == truth for grids, truth in pairs),
        tuple(truth in grids for grids, truth in pairs),
        tuple(max((cells_right(grid, truth) for grid in grids), default=0.0) for grids, truth in pairs),
    )


def cells_right(grid: Grid, truth: Grid) -> float:
    """Return the share of the truth's cells that the grid has right; 0 if the shapes differ."""
    if size(grid) != size(truth):
        return 0.0
    return fmean(a == b for row, true in zip(grid, truth, strict=True) for a, b in zip(row, true, strict=True))


def rates(scores: Sequence[TaskScore]) -> dict[str, float]:
    """Return pass@1 and pass@2 over tasks, and the share of single outputs that either attempt has right.

    Raises:
        DataError: there is no score.
    """
    if not scores:
        raise DataError("rates: no task was scored; give at least one.")
    outputs = [right for item in scores for right in item.either]
    return {
        "pass_1": fmean(item.pass_1 for item in scores),
        "pass_2": fmean(item.pass_2 for item in scores),
        "outputs": fmean(outputs),
    }
