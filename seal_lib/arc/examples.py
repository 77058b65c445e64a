"""The training data of one adapter on one task: leave-one-out examples, augmented, permuted, capped.

Only the demonstrations are used, never a test input. For n in (1, 2): hold out one demonstration
as the target and drop n - 1 of the others; add every augmentation that stays within 30 on a side; add one copy of
each with permuted colours and order; drop duplicates by content. Then n = 1 and n = 2 together are cut to a cap.

Everything is a list in a fixed order and every draw is seeded by (seed, task, purpose), so the result does not
depend on ``PYTHONHASHSEED``, as the released code's does. Knows no texts, no tokenizer and no model.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from seal_lib.arc.augment import Augmenter, augmenters, colour_permutation, recolour
from seal_lib.arc.grids import MAX_SIDE, Grid, size
from seal_lib.arc.tasks import Pair, Task
from seal_lib.seeds import rng

#: the released code's limits: examples, demonstrations held out or dropped, optimizer steps; and its batch
CAP, LEAVE_OUT, MAX_STEPS, BATCH = 250, (1, 2), 375, 2


@dataclass(frozen=True)
class PuzzleExample:
    """Demonstrations and the pair to be answered from them."""

    demonstrations: tuple[Pair, ...]
    target: Pair

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return (*self.demonstrations, self.target)


def leave_out(pairs: Sequence[Pair], count: int) -> list[PuzzleExample]:
    """Each pair as the target once for every way to drop ``count - 1`` of the others; order kept."""
    examples = []
    for held, target in enumerate(pairs):
        rest = [pair for index, pair in enumerate(pairs) if index != held]
        if len(rest) >= count - 1:
            examples += [PuzzleExample(kept, target) for kept in combinations(rest, len(rest) - count + 1)]
    return examples


def fits(example: PuzzleExample) -> bool:
    """Whether no side of a grid is longer than 30."""
    return all(max(size(pair.input) + size(pair.output)) <= MAX_SIDE for pair in example.pairs)


def augmented(pairs: Sequence[Pair], count: int, with_: Iterable[Augmenter]) -> list[PuzzleExample]:
    """Distinct leave-out examples and their augmentations that fit; the originals come first."""
    base = leave_out(pairs, count)
    seen = dict.fromkeys(base)
    for augmenter in with_:
        turn = cache(augmenter.pair)  # a pair stands in many examples; the task's few pairs are kept only here
        for example in base:
            turned = PuzzleExample(tuple(map(turn, example.demonstrations)), turn(example.target))
            if fits(turned):
                seen[turned] = None
    return list(seen)


def permuted(example: PuzzleExample, *seed: object, colours: bool = True) -> PuzzleExample:
    """The example with its demonstrations in random order and, if ``colours``, one colour permutation throughout."""
    draws = rng(*seed)
    demonstrations, target = list(example.demonstrations), example.target
    if colours:
        used = {cell for p in example.pairs for grid in (p.input, p.output) for row in grid for cell in row}
        paint = recolour(colour_permutation(used, draws)).pair
        demonstrations, target = [paint(pair) for pair in demonstrations], paint(target)
    draws.shuffle(demonstrations)
    return PuzzleExample(tuple(demonstrations), target)


def training_set(
    task: Task,
    switches: Iterable[str],
    seed: int = 0,
    protocol: str = "clean",
    drop: Sequence[int] = LEAVE_OUT,
    cap: int | None = CAP,
    copies: int = 1,
    keep: Callable[[PuzzleExample], bool] = lambda example: True,
) -> list[PuzzleExample]:
    """The examples one self-edit trains on; ``switches`` are those that are on.

    ``copies``: permuted copies of each (1, as released); colours are permuted only if some switch is on, as released.
    ``keep`` filters before the cap (a limit on tokens).
    With two demonstrations, n = 2 gives examples without any demonstration; they are kept, as released.
    """
    on = tuple(switches)
    with_ = augmenters(on, protocol, seed, task.id)
    chosen: list[PuzzleExample] = []
    for count in drop:
        base = augmented(task.train, count, with_)
        base = [example for example in base if keep(example)]  # a copy is as long as its original
        drawn = [
            permuted(e, seed, task.id, "permute", count, i, *[copy] * (copy > 0), colours=bool(on))
            for copy in range(copies)
            for i, e in enumerate(base)
        ]
        chosen += dict.fromkeys([*base, *drawn])
    if cap is not None and len(chosen) > cap:
        rng(seed, task.id, "cap").shuffle(chosen)
        chosen = chosen[:cap]
    return chosen


def steps(epochs: int, examples: int, batch: int = BATCH) -> int:
    """Optimizer steps as the authors count them: floor(epochs · examples / batch)."""
    return epochs * examples // batch


def question(task: Task, test: int) -> PuzzleExample:
    """All demonstrations and one test input: the full prompt. An unknown answer is the input's own grid, unread."""
    known: Grid = task.solutions[test] if task.solutions else task.tests[test]
    return PuzzleExample(task.train, Pair(task.tests[test], known))
