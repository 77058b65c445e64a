"""The training data of one adapter on one task: leave-one-out examples, augmented, permuted and capped.

Only the demonstrations are used, never a test input. For n in (1, 2): hold out one demonstration as the target and drop
n - 1 of the others; add every augmentation whose sides stay within 30; add one copy of each with permuted colours and
order; drop duplicates by content. Then the examples of n = 1 and n = 2 together are cut to a cap.

Everything is a list in a fixed order, and every draw is seeded by (seed, task, purpose), so the result does not depend
on ``PYTHONHASHSEED`` as the released code's does. Examples are grids; `render` makes texts and tokens of them.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import combinations

from seal_lib.arc.augment import Augmenter, augmenters, colour_permutation, recolour
from seal_lib.arc.grids import MAX_SIDE, Grid, size
from seal_lib.arc.tasks import Pair, Task
from seal_lib.seeds import rng

#: the released code's values: the cap on examples, n (see above), the limit on optimizer steps, and the batch size
CAP, LEAVE_OUT, MAX_STEPS, BATCH = 250, (1, 2), 375, 2


@dataclass(frozen=True)
class PuzzleExample:
    """Demonstrations, and the pair to be answered from them."""

    demonstrations: tuple[Pair, ...]
    target: Pair

    @property
    def pairs(self) -> tuple[Pair, ...]:
        return (*self.demonstrations, self.target)


def leave_out(pairs: Sequence[Pair], count: int) -> list[PuzzleExample]:
    """Return each pair as the target, once for every way to drop ``count - 1`` of the others; the order is kept."""
    examples = []
    for held, target in enumerate(pairs):
        rest = [pair for index, pair in enumerate(pairs) if index != held]
        if len(rest) >= count - 1:
            examples += [PuzzleExample(kept, target) for kept in combinations(rest, len(rest) - count + 1)]
    return examples


def fits(example: PuzzleExample) -> bool:
    """Return whether no side of a grid is longer than 30."""
    return all(max(size(pair.input) + size(pair.output)) <= MAX_SIDE for pair in example.pairs)


def augmented(pairs: Sequence[Pair], count: int, with_: Iterable[Augmenter]) -> list[PuzzleExample]:
    """Return the distinct leave-out examples and those of their augmentations that fit; the originals come first."""
    base = leave_out(pairs, count)
    seen = dict.fromkeys(base)
    for augmenter in with_:
        turn = cache(augmenter.pair)  # many examples share a pair; the cache lives only in this call
        for example in base:
            turned = PuzzleExample(tuple(map(turn, example.demonstrations)), turn(example.target))
            if fits(turned):
                seen[turned] = None
    return list(seen)


def permuted(example: PuzzleExample, *seed: object, colours: bool = True) -> PuzzleExample:
    """Return the example with its demonstrations in random order and, if ``colours``, with its colours permuted."""
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
    """Return the examples that one self-edit trains on.

    With two demonstrations, n = 2 gives examples without any demonstration; they are kept, as released.

    Args:
        switches: the switches that are on; colours are permuted only if there is one, as released.
        drop: the values of n (see the module docstring).
        cap: the maximum number of examples, drawn at random if there are more; None: no limit.
        copies: the number of permuted copies of each example (1, as released).
        keep: a filter that is applied before the cap, such as a limit on tokens.
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
    """Return the number of optimizer steps as the authors count them: floor(epochs · examples / batch)."""
    return epochs * examples // batch


def question(task: Task, test: int) -> PuzzleExample:
    """Return all demonstrations with one test input as target: the full prompt.

    Where the answer is unknown, the input's own grid stands in its place and is not read.
    """
    known: Grid = task.solutions[test] if task.solutions else task.tests[test]
    return PuzzleExample(task.train, Pair(task.tests[test], known))
